//! GRUB for machines with a BIOS: core images, which Debian's program makes of Debian's modules.
//!
//! Program and modules are pinned and lie in the cache, so every machine makes the same bytes, and
//! no boot loader is installed on it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_image::{GRUB_FORMATS, GRUB_MODULES, GRUB_PREFIX, GrubFiles};

use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;
use crate::sources::{self, SourcePin};
use crate::{cached, third_party};

/// The package with the modules and the first sectors, by its name in `sources.toml`.
const MODULES: &str = "grub-modules";
/// The program that joins modules, and the library that it needs and that not every system has.
const PROGRAM: [&str; 2] = ["grub-mkimage", "libdevmapper"];

/// The folder of a PC's modules in the package.
const MODULES_FOLDER: &str = "usr/lib/grub/i386-pc";
/// Finds the parts of GRUB in the cache, or makes them.
pub(crate) fn ensure(cx: &XtaskContext) -> Result<GrubFiles> {
    let (folder, version) = ensure_folder(cx)?;
    Ok(GrubFiles::in_folder(&folder, version))
}

/// The folder with the parts, and the version of their source package.
pub(crate) fn ensure_folder(cx: &XtaskContext) -> Result<(PathBuf, String)> {
    let modules = sources::obtain(cx, MODULES)?;
    let mut pins = vec![modules.pin.clone()];
    let mut program = Vec::new();
    for name in PROGRAM {
        let part = sources::obtain(cx, name)?;
        pins.push(part.pin);
        program.push(part.path);
    }
    let folder = folder(cx, &pins);
    if !folder.exists() {
        let scratch = ScratchFolder::new(cx.cache(), "grub-")?;
        let fresh = make(cx, &modules.path, &program, scratch.path())?;
        cached::settle(&fresh, &folder)
            .map_err(TaskError::io(format!("make {}", folder.display())))?;
    }
    Ok((folder, modules.pin.version))
}

/// The folder in the cache that [`ensure`] finds or makes, whether it exists or not.
pub(crate) fn pinned(cx: &XtaskContext) -> Result<PathBuf> {
    let names = [MODULES].into_iter().chain(PROGRAM);
    let pins: Vec<SourcePin> = names
        .map(|name| sources::likely(cx, name))
        .collect::<Result<_>>()?;
    Ok(folder(cx, &pins))
}

fn folder(cx: &XtaskContext, pins: &[SourcePin]) -> PathBuf {
    let modules = GRUB_MODULES.join(" ");
    let configs = GRUB_FORMATS.iter().map(|format| format.config);
    let own = [modules.as_str(), GRUB_PREFIX].into_iter().chain(configs);
    third_party::parts_folder(cx, "grub", pins, own)
}

/// Makes the folder of all four files in `scratch`.
fn make(cx: &XtaskContext, package: &Path, program: &[PathBuf], scratch: &Path) -> Result<PathBuf> {
    let [fresh, libraries] = ["grub", "program"].map(|name| scratch.join(name));
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("--extract").arg(package).arg(scratch);
    cx.run(&mut unpack, "unpack GRUB's modules", "grub-modules")?;
    let modules = scratch.join(MODULES_FOLDER);
    let prepare = || -> io::Result<()> {
        fs::create_dir(&fresh)?;
        fs::create_dir(&libraries)?;
        for part in program {
            let name = part.file_name().unwrap_or_default();
            let copy = libraries.join(name);
            fs::copy(part, &copy)?;
            fs::set_permissions(&copy, Permissions::from_mode(0o755))?;
        }
        for name in GrubFiles::SECTORS {
            fs::copy(modules.join(name), fresh.join(name))?;
        }
        for format in GRUB_FORMATS {
            fs::write(scratch.join(format.name), format.config)?;
        }
        Ok(())
    };
    prepare().map_err(TaskError::io(format!("make {}", fresh.display())))?;
    for (format, name) in GRUB_FORMATS.into_iter().zip(GrubFiles::CORES) {
        let mut command = Command::new(libraries.join("grub-mkimage"));
        command
            .env("LD_LIBRARY_PATH", &libraries)
            .args(["--format", format.name, "--prefix", GRUB_PREFIX])
            .arg("--directory")
            .arg(&modules)
            .arg("--config")
            .arg(scratch.join(format.name))
            .arg("--output")
            .arg(fresh.join(name))
            .args(GRUB_MODULES);
        cx.run(
            &mut command,
            &format!("GRUB {}", format.name),
            "grub-mkimage",
        )?;
    }
    Ok(fresh)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_pinned_and_their_folder_is_kept() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cx = XtaskContext::in_folder(folder.path());
        let kept = pinned(&cx).expect("all of them are pinned");
        assert!(kept.starts_with(cx.cache().join("tools")));
        for name in [MODULES].into_iter().chain(PROGRAM) {
            let pins = sources::accepted(name).expect("pinned");
            // A list of versions would make a different image on each machine.
            assert_eq!(pins.len(), 1, "{name}");
        }
    }
}
