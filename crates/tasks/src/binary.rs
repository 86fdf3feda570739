//! The one binary: what cargo linked, and behind it the program for GPUs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use alknet_embedded_exe::trailer;
use xtask::last_use::BuildSet;
use xtask::workspace::BuildLock;

use crate::context::XtaskContext;
use crate::driver::{self, DriverSelection};
use crate::failure::{Result, TaskError};
use crate::gpu::{self, GpuExecutable};
use crate::scratch::ScratchFolder;
use crate::{cached, digest};

/// The file name of the binary.
pub const NAME: &str = "alknet";

/// How both are put together: a part of the name.
const STEPS: [&str; 2] = [include_str!("binary.rs"), gpu::CARRIED];

/// Whole binaries kept in the cache; an older one is put together again when it is wanted.
const KEPT: usize = 4;

/// As cargo links it: serves and calls, and carries nothing.
pub fn plain(cx: &XtaskContext) -> Result<PathBuf> {
    let lock = cx.claim()?;
    compile(cx, &lock)
}

pub(crate) fn compile(cx: &XtaskContext, _lock: &BuildLock) -> Result<PathBuf> {
    cx.build(NAME, BuildSet::Binary)
}

/// With the program for GPUs behind it, which has these drivers. With no driver it still has what the
/// processor computes without one.
pub fn whole(cx: &XtaskContext, selection: &DriverSelection) -> Result<PathBuf> {
    let drivers = driver::ensure(cx, selection)?;
    let lock = cx.claim()?;
    let plain = compile(cx, &lock)?;
    let gpu = gpu::with_drivers(cx, &drivers, selection, &lock)?;
    carry(cx, &plain, &gpu)
}

/// Puts both together, or finds them so in the cache.
pub(crate) fn carry(cx: &XtaskContext, plain: &Path, gpu: &GpuExecutable) -> Result<PathBuf> {
    let binaries = cx.cache().join("binary");
    let folder = folder(cx, plain, gpu)?;
    let binary = folder.join(NAME);
    if !binary.exists() {
        let what = || TaskError::io(format!("put together {}", binary.display()));
        let scratch = ScratchFolder::new(cx.cache(), "binary-")?;
        let ready = scratch.path().join("ready");
        fs::create_dir(&ready).map_err(what())?;
        join(plain, gpu, &ready.join(NAME)).map_err(what())?;
        cached::settle(&ready, &folder).map_err(what())?;
        cached::forget_old(&binaries, &folder, KEPT).map_err(what())?;
    }
    Ok(binary)
}

/// The binary of the last build with `gpu` behind it, if it lies in the cache.
pub(crate) fn cached(cx: &XtaskContext, gpu: &GpuExecutable) -> Result<Option<PathBuf>> {
    let plain = cx.executable(NAME);
    if !plain.exists() {
        return Ok(None);
    }
    let binary = folder(cx, &plain, gpu)?.join(NAME);
    Ok(binary.exists().then_some(binary))
}

fn folder(cx: &XtaskContext, plain: &Path, gpu: &GpuExecutable) -> Result<PathBuf> {
    let key = key(&[plain, &gpu.packed])?;
    Ok(cx.cache().join("binary").join(key))
}

fn join(plain: &Path, gpu: &GpuExecutable, out: &Path) -> io::Result<()> {
    fs::copy(plain, out)?;
    let mut out = OpenOptions::new().append(true).open(out)?;
    let packed = io::copy(&mut File::open(&gpu.packed)?, &mut out)?;
    let unpacked = fs::metadata(&gpu.executable)?.len();
    io::Write::write_all(&mut out, &trailer(packed, unpacked))
}

fn key(files: &[&Path]) -> Result<String> {
    let hashes = files.iter().map(|path| {
        digest::of_file(path).map_err(TaskError::io(format!("read {}", path.display())))
    });
    let hashes: Vec<String> = hashes.collect::<Result<_>>()?;
    let steps = STEPS.map(str::as_bytes);
    Ok(digest::key(
        hashes.iter().map(String::as_bytes).chain(steps),
    ))
}

#[cfg(test)]
mod tests {
    use alknet_embedded_exe::EmbeddedExe;

    use super::*;

    #[test]
    fn what_is_put_together_runs_as_before_and_carries_the_program() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let program = b"a program without any driver".repeat(40);
        let mut packed = Vec::new();
        alknet_embedded_exe::pack(&program, &mut packed, 1).expect("it packs");
        fs::write(at("plain"), b"what cargo linked").expect("writable");
        fs::write(at("gpu"), &program).expect("writable");
        fs::write(at("gpu.zst"), &packed).expect("writable");
        let gpu = GpuExecutable {
            executable: at("gpu"),
            packed: at("gpu.zst"),
        };
        join(&at("plain"), &gpu, &at("whole")).expect("put together");
        let whole = fs::read(at("whole")).expect("readable");
        assert!(whole.starts_with(b"what cargo linked"));
        let file = File::open(at("whole")).expect("readable");
        let mut carried = Vec::new();
        let found = EmbeddedExe::find(&file).expect("it carries something");
        found
            .unpack(&file, &mut carried)
            .expect("and that is whole");
        assert_eq!(carried, program);
    }
}
