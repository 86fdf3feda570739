//! Counts the guest's instructions with a plugin for QEMU's translator.
//!
//! A counted guest runs with `-icount`, which makes a loop that waits for time take the same number
//! of turns however loaded the host is, but QEMU does not publish its count. The plugin does: each
//! translated block adds its length to a number in a file that QEMU and the harness map, so that
//! the harness can read the count at any moment. The C compiler of the kernel's build builds it,
//! for the plugin interface of the emulator that runs.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::tools;

/// The plugin's source.
const SOURCE: &str = include_str!("count.c");

/// A counter in a file.
#[derive(Debug)]
pub(crate) struct FileCounter {
    file: File,
}

impl FileCounter {
    /// Makes the file at `path`, and QEMU's argument to `-plugin` that counts into it.
    pub(crate) fn create(path: &Path, scratch: &Path) -> Result<(Self, String)> {
        let plugin = plugin(scratch)?;
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(path)
            .map_err(Error::io("creating the counter's file"))?;
        // The plugin maps the file, so the file needs its size before QEMU starts.
        file.set_len(8)
            .map_err(Error::io("sizing the counter's file"))?;
        let argument = format!("file={},out={}", plugin.display(), path.display());
        Ok((Self { file }, argument))
    }

    /// Another handle of the same counter.
    pub(crate) fn share(&self) -> Result<Self> {
        let file = self
            .file
            .try_clone()
            .map_err(Error::io("sharing the counter's file"))?;
        Ok(Self { file })
    }

    /// Instructions so far.
    pub(crate) fn read(&self) -> Option<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, 0).ok()?;
        Some(u64::from_ne_bytes(bytes))
    }
}

/// The built plugin: from the cache, or built now.
fn plugin(scratch: &Path) -> Result<PathBuf> {
    let interface = interface(&tools::program_version()?);
    let mut hasher = DefaultHasher::new();
    (SOURCE, interface).hash(&mut hasher);
    let name = format!("count-{:016x}.so", hasher.finish());
    let dir = tools::cache_dir().map_or_else(|| scratch.to_owned(), |dir| dir.join("qemu"));
    let built = dir.join(&name);
    // The name has the hash of the source, so an existing file is built from this source.
    if built.exists() {
        return Ok(built);
    }
    fs::create_dir_all(&dir).map_err(Error::io(format!("creating {}", dir.display())))?;
    let fresh = scratch.join(&name);
    compile(scratch, &fresh, interface)?;
    install(&fresh, &built)?;
    Ok(built)
}

/// The version of the plugin interface of an emulator that says this about its own version. QEMU 9 dropped the first
/// one, and accepts the second.
fn interface(version: &str) -> u32 {
    let number = version.split("version ").nth(1).unwrap_or_default();
    let major = number.split('.').next().unwrap_or_default();
    match major.parse::<u32>() {
        Ok(major) if major < 9 => 1,
        _ => 2,
    }
}

fn compile(scratch: &Path, output: &Path, interface: u32) -> Result<()> {
    let source = scratch.join("count.c");
    fs::write(&source, SOURCE).map_err(Error::io("writing the plugin's source"))?;
    let result = Command::new("cc")
        .arg(format!("-DINTERFACE={interface}"))
        .args(["-O2", "-shared", "-fPIC", "-o"])
        .args([output, &source])
        .output()
        .map_err(Error::io("starting the C compiler `cc` (install gcc)"))?;
    if result.status.success() {
        return Ok(());
    }
    Err(Error::NoCounter(
        String::from_utf8_lossy(&result.stderr).into_owned(),
    ))
}

/// Moves the finished file into the cache in one step. The cache may be on another file system.
fn install(fresh: &Path, built: &Path) -> Result<()> {
    // The copy is written beside and renamed: several tests may build it at once, and must load
    // only a whole one.
    let staged = built.with_extension(format!("{}.new", std::process::id()));
    fs::copy(fresh, &staged)
        .and_then(|_| fs::rename(&staged, built))
        .map_err(Error::io(format!("writing {}", built.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_is_built_for_the_interface_of_the_emulator() {
        assert_eq!(
            interface("QEMU emulator version 7.2.22 (Debian 1:7.2)\n"),
            1
        );
        assert_eq!(
            interface("QEMU emulator version 10.0.2 (Debian 1:10.0.2)\n"),
            2
        );
        assert_eq!(interface("QEMU emulator version 9.1.0\n"), 2);
    }
}
