//! The one binary: what cargo linked, and behind it the program for GPUs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use alknet_carried::trailer;

use crate::context::Context;
use crate::driver::Selection;
use crate::failure::{Failure, Result};
use crate::scratch::Scratch;
use crate::{cached, digest, gpu};

/// Its name.
pub(crate) const NAME: &str = "alknet";

/// Whole binaries kept in the cache; an older one is put together again when it is wanted.
const KEPT: usize = 4;

/// As cargo linked it: serves and calls, and carries nothing. The front door built it.
pub(crate) fn plain(cx: &Context) -> Result<PathBuf> {
    let path = cx.executable(NAME);
    if path.exists() {
        return Ok(path);
    }
    Err(Failure::Workspace(format!(
        "{} is missing: run this through `cargo xtask`",
        path.display()
    )))
}

/// With the program for GPUs behind it, which has these drivers. With no driver it still has what the
/// processor computes without one.
pub(crate) fn whole(cx: &Context, selection: &Selection) -> Result<PathBuf> {
    let plain = plain(cx)?;
    let gpu = gpu::ensure(cx, selection)?;
    let binaries = cx.cache().join("binary");
    let folder = binaries.join(key(&[&plain, &gpu.packed])?);
    let binary = folder.join(NAME);
    if !binary.exists() {
        let what = || Failure::io(format!("put together {}", binary.display()));
        let scratch = Scratch::new(cx.cache(), "binary-")?;
        let ready = scratch.path().join("ready");
        fs::create_dir(&ready).map_err(what())?;
        join(&plain, &gpu, &ready.join(NAME)).map_err(what())?;
        cached::settle(&ready, &folder).map_err(what())?;
        cached::forget_old(&binaries, &folder, KEPT).map_err(what())?;
    }
    Ok(binary)
}

fn join(plain: &Path, gpu: &gpu::Gpu, out: &Path) -> io::Result<()> {
    fs::copy(plain, out)?;
    let mut out = OpenOptions::new().append(true).open(out)?;
    let packed = io::copy(&mut File::open(&gpu.packed)?, &mut out)?;
    let unpacked = fs::metadata(&gpu.executable)?.len();
    io::Write::write_all(&mut out, &trailer(packed, unpacked))
}

fn key(files: &[&Path]) -> Result<String> {
    let hashes = files
        .iter()
        .map(|path| digest::of_file(path).map_err(Failure::io(format!("read {}", path.display()))));
    let hashes: Vec<String> = hashes.collect::<Result<_>>()?;
    Ok(digest::key(hashes.iter().map(String::as_bytes)))
}

#[cfg(test)]
mod tests {
    use alknet_carried::Carried;

    use super::*;

    #[test]
    fn what_is_put_together_runs_as_before_and_carries_the_program() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let program = b"a program without any driver".repeat(40);
        let mut packed = Vec::new();
        alknet_carried::pack(&program, &mut packed, 1).expect("it packs");
        fs::write(at("plain"), b"what cargo linked").expect("writable");
        fs::write(at("gpu"), &program).expect("writable");
        fs::write(at("gpu.zst"), &packed).expect("writable");
        let gpu = gpu::Gpu {
            executable: at("gpu"),
            packed: at("gpu.zst"),
        };
        join(&at("plain"), &gpu, &at("whole")).expect("put together");
        let whole = fs::read(at("whole")).expect("readable");
        assert!(whole.starts_with(b"what cargo linked"));
        let file = File::open(at("whole")).expect("readable");
        let mut carried = Vec::new();
        let found = Carried::find(&file).expect("it carries something");
        found
            .unpack(&file, &mut carried)
            .expect("and that is whole");
        assert_eq!(carried, program);
    }
}
