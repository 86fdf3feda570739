//! The sealed executable that computes on a GPU: built, stripped, and packed for the one binary.
//!
//! It holds the Vulkan drivers and, with llvmpipe, LLVM: 50 MB that a node which never computes should
//! neither load nor keep in memory. So it is a program of its own, packed so that the one binary can
//! carry it and start it from memory when a worker is wanted.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use xtask::last_use::BuildSet;
use xtask::workspace::BuildLock;

use crate::context::Context;
use crate::driver::{self, Sealed, Selection};
use crate::failure::{Failure, Result};
use crate::scratch::Scratch;
use crate::{cached, digest};

/// The executable's name.
const NAME: &str = "alknet-gpu";

/// Largest executable in bytes, stripped: docs/driver.md promises it.
pub const BYTES_MAX: u64 = 75_000_000;

/// Changed when the steps below change in a way that changes their result.
const RECIPE: &str = "2";

/// The executable in the cache.
#[derive(Clone, Debug)]
pub struct Gpu {
    /// Stripped and runnable.
    pub executable: PathBuf,
    /// The same, as `alknet` carries it.
    pub packed: PathBuf,
}

impl Gpu {
    fn at(folder: &Path) -> Self {
        Self {
            executable: folder.join(NAME),
            packed: folder.join(format!("{NAME}.zst")),
        }
    }
}

/// Builds drivers and executable, or finds them in the cache.
pub fn ensure(cx: &Context, selection: &Selection) -> Result<Gpu> {
    let drivers = driver::ensure(cx, selection)?;
    let lock = cx.claim()?;
    with_drivers(cx, &drivers, selection, &lock)
}

/// Builds the executable with drivers that are there, or finds it in the cache.
pub(crate) fn with_drivers(
    cx: &Context,
    drivers: &[Sealed],
    selection: &Selection,
    _lock: &BuildLock,
) -> Result<Gpu> {
    driver::link(cx, drivers)?;
    let built = cx.build(NAME, BuildSet::Gpu)?;
    check(&built, selection)?;
    let folder = folder(cx, &built)?;
    let gpu = Gpu::at(&folder);
    if !gpu.packed.exists() {
        pack(cx, &built, &folder)?;
    }
    Ok(gpu)
}

/// The executable of the last build, if it lies in the cache.
pub(crate) fn cached(cx: &Context) -> Result<Option<Gpu>> {
    let built = cx.executable(NAME);
    if !built.exists() {
        return Ok(None);
    }
    let gpu = Gpu::at(&folder(cx, &built)?);
    Ok(gpu.packed.exists().then_some(gpu))
}

fn folder(cx: &Context, built: &Path) -> Result<PathBuf> {
    let hash = digest::of_file(built).map_err(Failure::io(format!("read {}", built.display())))?;
    let key = digest::key([hash.as_bytes(), RECIPE.as_bytes()]);
    Ok(cx.cache().join("gpu").join(key))
}

/// Whether the program itself says that it has exactly these drivers.
fn check(program: &Path, selection: &Selection) -> Result<()> {
    let output = Command::new(program)
        .args(["info", "--json"])
        .output()
        .map_err(Failure::io(format!("run {}", program.display())))?;
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let names = info["drivers"].as_array();
    let names = names.map(|names| names.iter().filter_map(serde_json::Value::as_str));
    let mut linked: Vec<&str> = names.into_iter().flatten().collect();
    linked.sort_unstable();
    let mut wanted: Vec<&str> = selection.names().iter().map(String::as_str).collect();
    wanted.sort_unstable();
    if output.status.success() && linked == wanted {
        return Ok(());
    }
    Err(Failure::Workspace(format!(
        "{} was to have the drivers {selection}, and says \"{}\" ({}): {}",
        program.display(),
        linked.join(","),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

fn pack(cx: &Context, built: &Path, folder: &Path) -> Result<()> {
    let scratch = Scratch::new(cx.cache(), "gpu-pack-")?;
    let ready = scratch.path().join("ready");
    fs::create_dir(&ready).map_err(Failure::io("make a folder for the program"))?;
    let fresh = Gpu::at(&ready);
    let mut strip = Command::new("strip");
    strip
        .args(["--strip-all", "-o"])
        .arg(&fresh.executable)
        .arg(built);
    cx.run(&mut strip, "strip the program for GPUs", "gpu-strip")?;
    let bytes = fs::metadata(&fresh.executable)
        .map_err(Failure::io("look at the program for GPUs"))?
        .len();
    if bytes > BYTES_MAX {
        return Err(Failure::TooLarge {
            what: NAME.into(),
            bytes,
            limit: BYTES_MAX,
        });
    }
    cx.say("pack the program for GPUs");
    let what = || Failure::io("pack the program for GPUs");
    let program = fs::read(&fresh.executable).map_err(what())?;
    let packed = File::create(&fresh.packed).map_err(what())?;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let threads = u32::try_from(threads).unwrap_or(1);
    alknet_carried::pack(&program, packed, threads).map_err(what())?;
    cached::settle(&ready, folder).map_err(Failure::io("put the program for GPUs into the cache"))
}
