//! The sealed executable that computes on a GPU: built, stripped, and packed for the one binary.
//!
//! It holds the Vulkan drivers and, with llvmpipe, LLVM: 50 MB that a node which never computes
//! should neither load nor keep in memory. So it is a program of its own, packed so that the one
//! binary can carry it, and start it from memory when the node needs a worker.

mod pack;

use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::last_use::BuildSet;
use xtask::workspace::BuildLock;

use crate::context::XtaskContext;
use crate::driver::{self, DriverSelection, SealedDriver};
use crate::failure::{Result, TaskError};
use crate::{digest, kernel};

/// The executable's name.
pub(crate) const NAME: &str = "alknet-gpu";

/// Largest executable in bytes, stripped, as docs/driver.md promises.
pub const BYTES_MAX: u64 = 75_000_000;

/// The code that strips and packs it, which is a part of the name.
const STEPS: [&str; 3] = [
    include_str!("gpu/pack.rs"),
    include_str!("steps.rs"),
    CARRIED,
];

/// The form in which one program carries another.
pub(crate) const CARRIED: &str = include_str!("../../../compute/embedded-exe/src/lib.rs");

/// The libraries that pack it. Their versions and hashes are a part of the name, too.
const PACKERS: [&str; 2] = ["lzma-rust2", "zstd-sys"];

/// The locked libraries of this program.
const LOCKED: &str = include_str!("../../../Cargo.lock");

/// The executable in the cache.
#[derive(Clone, Debug)]
pub struct GpuExecutable {
    /// Stripped and runnable.
    pub executable: PathBuf,
    /// Like `executable`, in the form that `alknet` carries.
    pub packed: PathBuf,
}

impl GpuExecutable {
    fn at(folder: &Path) -> Self {
        Self {
            executable: folder.join(NAME),
            packed: folder.join(format!("{NAME}.zst")),
        }
    }
}

/// Builds drivers and executable, or finds them in the cache.
pub fn ensure(cx: &XtaskContext, selection: &DriverSelection) -> Result<GpuExecutable> {
    let drivers = driver::ensure(cx, selection)?;
    let lock = cx.claim()?;
    with_drivers(cx, &drivers, selection, &lock)
}

/// Builds the executable with existing drivers, or finds it in the cache.
pub(crate) fn with_drivers(
    cx: &XtaskContext,
    drivers: &[SealedDriver],
    selection: &DriverSelection,
    _lock: &BuildLock,
) -> Result<GpuExecutable> {
    driver::link(cx, drivers)?;
    let built = cx.build(NAME, BuildSet::Gpu)?;
    check(&built, selection)?;
    let folder = folder(cx, &built)?;
    let gpu = GpuExecutable::at(&folder);
    if !gpu.packed.exists() {
        pack::pack(cx, &built, &folder)?;
    }
    Ok(gpu)
}

/// Strips and packs an executable that was built elsewhere, into `folder`, which must not exist.
pub(crate) fn pack_into(
    cx: &XtaskContext,
    built: &Path,
    selection: &DriverSelection,
    folder: &Path,
) -> Result<GpuExecutable> {
    check(built, selection)?;
    pack::pack(cx, built, folder)?;
    Ok(GpuExecutable::at(folder))
}

/// The executable of the last build, if it is in the cache.
pub(crate) fn cached(cx: &XtaskContext) -> Result<Option<GpuExecutable>> {
    let built = cx.executable(NAME);
    if !built.exists() {
        return Ok(None);
    }
    let gpu = GpuExecutable::at(&folder(cx, &built)?);
    Ok(gpu.packed.exists().then_some(gpu))
}

fn folder(cx: &XtaskContext, built: &Path) -> Result<PathBuf> {
    let hash =
        digest::of_file(built).map_err(TaskError::io(format!("read {}", built.display())))?;
    // The program's bytes also depend on the tools that strip it.
    let tools = kernel::tool_versions()?;
    let inputs = [hash.as_bytes(), tools.as_bytes()];
    let steps = STEPS.into_iter().chain(PACKERS.map(locked));
    let key = digest::key(inputs.into_iter().chain(steps.map(str::as_bytes)));
    Ok(cx.cache().join("gpu").join(key))
}

/// The lock file's entry of a library.
fn locked(library: &str) -> &'static str {
    let name = format!("name = \"{library}\"\n");
    let mut libraries = LOCKED.split("\n\n");
    libraries.find(|it| it.contains(&name)).unwrap_or_default()
}

/// Checks that the program itself reports exactly these drivers.
fn check(program: &Path, selection: &DriverSelection) -> Result<()> {
    let output = Command::new(program)
        .args(["info", "--json"])
        .output()
        .map_err(TaskError::io(format!("run {}", program.display())))?;
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let names = info["drivers"].as_array();
    let names = names.map(|names| names.iter().filter_map(serde_json::Value::as_str));
    let mut linked: Vec<&str> = names.into_iter().flatten().collect();
    // The program and the selection may have different orders.
    linked.sort_unstable();
    let mut wanted: Vec<&str> = selection.names().iter().map(String::as_str).collect();
    wanted.sort_unstable();
    // Cargo may have kept a program that was linked with other drivers.
    if output.status.success() && linked == wanted {
        return Ok(());
    }
    Err(TaskError::Workspace(format!(
        "{} was to have the drivers {selection}, and says \"{}\" ({}): {}",
        program.display(),
        linked.join(","),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_that_pack_are_known_by_their_hashes() {
        for library in PACKERS {
            let locked = locked(library);
            assert!(
                locked.contains("version = ") && locked.contains("checksum = "),
                "{library}"
            );
        }
        assert_eq!(locked("no such library"), "");
    }
}
