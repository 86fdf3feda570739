//! From what cargo linked to the files in the cache. This file is a part of their name.

use std::fs::{self, File};
use std::path::Path;
use std::thread;

use super::{BYTES_MAX, GpuExecutable, NAME};
use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;
use crate::{cached, steps};

/// Strips the program, packs it, and puts both into their place in the cache.
pub(super) fn pack(cx: &XtaskContext, built: &Path, folder: &Path) -> Result<()> {
    let scratch = ScratchFolder::new(cx.cache(), "gpu-pack-")?;
    let ready = scratch.path().join("ready");
    fs::create_dir(&ready).map_err(TaskError::io("make a folder for the program"))?;
    let fresh = GpuExecutable::at(&ready);
    let mut strip = steps::program("strip");
    strip
        .args(["--strip-all", "-o"])
        .arg(&fresh.executable)
        .arg(built);
    cx.run(&mut strip, "strip the program for GPUs", "gpu-strip")?;
    let bytes = fs::metadata(&fresh.executable)
        .map_err(TaskError::io("look at the program for GPUs"))?
        .len();
    if bytes > BYTES_MAX {
        return Err(TaskError::TooLarge {
            what: NAME.into(),
            bytes,
            limit: BYTES_MAX,
        });
    }
    cx.say("pack the program for GPUs");
    let what = || TaskError::io("pack the program for GPUs");
    let program = fs::read(&fresh.executable).map_err(what())?;
    let packed = File::create(&fresh.packed).map_err(what())?;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let threads = u32::try_from(threads).unwrap_or(1);
    alknet_embedded_exe::pack(&program, packed, threads).map_err(what())?;
    cached::settle(&ready, folder).map_err(TaskError::io("put the program for GPUs into the cache"))
}
