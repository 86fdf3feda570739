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

/// With the program for GPUs behind it, which has these drivers; with no driver it is the plain one.
pub(crate) fn whole(cx: &Context, selection: &Selection) -> Result<PathBuf> {
    let plain = plain(cx)?;
    if selection.names().is_empty() {
        return Ok(plain);
    }
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
