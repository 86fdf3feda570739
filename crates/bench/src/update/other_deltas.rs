//! What other programs make of the same two programs: stub, kernel and initial file system, with the binary and the
//! program for GPUs in it. They get them with the initial file system unpacked, as our deltas are made of them, because
//! differences of compressed files would be as large as the files. zstd gets the files of the bundles as well.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};

use super::release::{ReleasePair, length};
use crate::work_cost::WorkCost;

/// Bytes of the old file that xdelta3 looks at: more than any program has.
const XDELTA3_WINDOW: &str = "134217728";

/// What one of them would send, and what it cost to make it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PeerDelta {
    pub(super) bytes: u64,
    pub(super) made: WorkCost,
}

/// What each of them would send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PeerDeltas {
    pub(super) zstd: PeerDelta,
    /// Between the programs as bundles have them.
    pub(super) zstd_packed: PeerDelta,
    pub(super) xdelta3: PeerDelta,
    pub(super) bsdiff: PeerDelta,
    pub(super) casync: PeerDelta,
}

impl PeerDeltas {
    /// Runs all of them, each at what makes the fewest bytes, with windows as large as the programs.
    pub(super) fn make(cx: &XtaskContext, release: &ReleasePair, folder: &Path) -> Result<Self> {
        let [old, new] = release.unpacked.each_ref().map(|path| path.as_os_str());
        let run = |program: &str, out: &Path, arguments: &[&OsStr]| {
            let mut command = Command::new(program);
            command.args(arguments);
            let doing = format!("a difference by {program}");
            let ((), made) = WorkCost::measure(|| cx.run(&mut command, &doing, program))?;
            let bytes = length(out)?;
            Ok::<_, TaskError>(PeerDelta { bytes, made })
        };
        let zstd = |[old, new]: [&OsStr; 2], name: &str| {
            let out = folder.join(name);
            let mut patch_from = OsString::from("--patch-from=");
            patch_from.push(old);
            let best = ["-19", "--long=27", "-q"].map(OsStr::new);
            let files: [&OsStr; 4] = [&patch_from, new, OsStr::new("-o"), out.as_os_str()];
            run("zstd", &out, &[&best[..], &files[..]].concat())
        };
        let programs = release.programs.each_ref().map(|path| path.as_os_str());
        let (xdelta3, bsdiff) = (folder.join("xdelta3"), folder.join("bsdiff"));
        let best = ["-e", "-9", "-B", XDELTA3_WINDOW, "-s"].map(OsStr::new);
        let files = [old, new, xdelta3.as_os_str()];
        Ok(Self {
            zstd: zstd([old, new], "zstd")?,
            zstd_packed: zstd(programs, "zstd-packed")?,
            xdelta3: run("xdelta3", &xdelta3, &[&best[..], &files[..]].concat())?,
            bsdiff: run("bsdiff", &bsdiff, &[old, new, bsdiff.as_os_str()])?,
            casync: casync(cx, release, folder)?,
        })
    }
}

/// Bytes of the chunks of the new program that the old one does not have, and of the index.
fn casync(cx: &XtaskContext, release: &ReleasePair, folder: &Path) -> Result<PeerDelta> {
    let [old, new] = &release.unpacked;
    let (old, _) = store(cx, old, folder, "old")?;
    let ((new, index), made) = WorkCost::measure(|| store(cx, new, folder, "new"))?;
    Ok(PeerDelta {
        bytes: lacking_bytes(&old, &new) + length(&index)?,
        made,
    })
}

/// Cuts a program into chunks. Returns them, and the path of their index.
fn store(
    cx: &XtaskContext,
    program: &Path,
    folder: &Path,
    name: &str,
) -> Result<(Chunks, PathBuf)> {
    let [store, index] = ["castr", "caibx"].map(|end| folder.join(format!("{name}.{end}")));
    let mut make = Command::new("casync");
    make.arg("make").arg(format!("--store={}", store.display()));
    make.arg(&index).arg(program);
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
