//! What other programs make of the same two binaries. They get the binaries as they run, because differences of
//! compressed files would be as large as the files.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};

use super::release::{ReleasePair, length};

/// Bytes of the old file that xdelta3 looks at: more than any binary has.
const XDELTA3_WINDOW: &str = "134217728";

/// Bytes that each of them would send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerDeltas {
    pub(super) zstd: u64,
    pub(super) xdelta3: u64,
    pub(super) bsdiff: u64,
    pub(super) casync: u64,
}

impl PeerDeltas {
    /// Runs all of them, each at what makes the fewest bytes, with windows as large as the binaries.
    pub(super) fn make(cx: &XtaskContext, release: &ReleasePair, folder: &Path) -> Result<Self> {
        let [old, new] = release.binaries.each_ref().map(|path| path.as_os_str());
        let out = |name: &str| folder.join(name).into_os_string();
        let mut patch_from = OsString::from("--patch-from=");
        patch_from.push(old);
        let run = |program: &str, arguments: &[&OsStr]| {
            let mut command = Command::new(program);
            command.args(arguments);
            cx.run(&mut command, &format!("a difference by {program}"), program)
        };
        let (zstd, xdelta3, bsdiff) = (out("zstd"), out("xdelta3"), out("bsdiff"));
        let best = ["-19", "--long=27", "-q"].map(OsStr::new);
        let files: [&OsStr; 4] = [&patch_from, new, OsStr::new("-o"), &zstd];
        run("zstd", &[&best[..], &files[..]].concat())?;
        let best = ["-e", "-9", "-B", XDELTA3_WINDOW, "-s"].map(OsStr::new);
        run("xdelta3", &[&best[..], &[old, new, &xdelta3][..]].concat())?;
        run("bsdiff", &[old, new, &bsdiff])?;
        Ok(Self {
            zstd: length(zstd.as_ref())?,
            xdelta3: length(xdelta3.as_ref())?,
            bsdiff: length(bsdiff.as_ref())?,
            casync: casync(cx, release, folder)?,
        })
    }
}

/// Bytes of the chunks of the new binary that the old one does not have, and of the index.
fn casync(cx: &XtaskContext, release: &ReleasePair, folder: &Path) -> Result<u64> {
    let [old, new] = &release.binaries;
    let (old, _) = store(cx, old, folder, "old")?;
    let (new, index) = store(cx, new, folder, "new")?;
    Ok(lacking_bytes(&old, &new) + length(&index)?)
}

/// Cuts a binary into chunks. Returns them, and the path of their index.
fn store(cx: &XtaskContext, binary: &Path, folder: &Path, name: &str) -> Result<(Chunks, PathBuf)> {
    let [store, index] = ["castr", "caibx"].map(|end| folder.join(format!("{name}.{end}")));
    let mut make = Command::new("casync");
    make.arg("make").arg(format!("--store={}", store.display()));
    make.arg(&index).arg(binary);
    cx.run(&mut make, "chunks by casync", "casync")?;
    let chunks = chunks(&store).map_err(TaskError::io(format!("read {}", store.display())))?;
    Ok((chunks, index))
}

/// Chunks by their names, which are hashes, with their bytes as they are stored.
type Chunks = BTreeMap<OsString, u64>;

/// A store has a folder for each beginning of a name.
fn chunks(store: &Path) -> io::Result<Chunks> {
    let mut chunks = Chunks::new();
    for folder in fs::read_dir(store)? {
        for chunk in fs::read_dir(folder?.path())? {
            let chunk = chunk?;
            chunks.insert(chunk.file_name(), chunk.metadata()?.len());
        }
    }
    Ok(chunks)
}

fn lacking_bytes(old: &Chunks, new: &Chunks) -> u64 {
    let lacking = new.iter().filter(|(name, _)| !old.contains_key(*name));
    lacking.map(|(_, bytes)| bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_chunks_that_the_old_store_lacks_are_sent() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = |name: &str, files: &[(&str, usize)]| {
            let store = folder.path().join(name);
            for (file, bytes) in files {
                let path = store.join(file);
                fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
                fs::write(&path, vec![0; *bytes]).expect("writable");
            }
            chunks(&store).expect("readable")
        };
        let old = store("old", &[("00/00a", 100), ("11/11b", 50)]);
        let new = store("new", &[("00/00a", 100), ("11/11c", 7), ("22/22d", 3)]);
        assert_eq!(lacking_bytes(&old, &new), 10);
        assert_eq!(lacking_bytes(&new, &new), 0);
    }
}
