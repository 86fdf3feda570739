//! Debian's network installer, which tests start as a rescue system: its kernel and its initial file system.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cached;
use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;
use crate::sources;
use crate::third_party::unpacked_folder;

/// The package, by its name in `sources.toml`.
const PACKAGE: &str = "debian-installer";
/// The folder of the text installer in the package.
const INSTALLER_FOLDER: &str =
    "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64";
/// The kernel and the initial file system.
const FILES: [&str; 2] = ["linux", "initrd.gz"];

/// The folder in the cache with the two files, which are taken out of the package once.
pub(crate) fn ensure_folder(cx: &XtaskContext) -> Result<PathBuf> {
    let accepted = sources::accepted(PACKAGE)?;
    let folders = accepted.iter().map(|pin| unpacked_folder(cx, PACKAGE, pin));
    // The package has 133 MB, so it is neither fetched nor hashed once its files are there.
    if let Some(folder) = folders.into_iter().find(|folder| folder.exists()) {
        return Ok(folder);
    }
    let package = sources::obtain(cx, PACKAGE)?;
    let folder = unpacked_folder(cx, PACKAGE, &package.pin);
    let scratch = ScratchFolder::new(cx.cache(), "installer-")?;
    let fresh = unpack(cx, &package.path, scratch.path())?;
    cached::settle(&fresh, &folder).map_err(TaskError::io(format!("make {}", folder.display())))?;
    Ok(folder)
}

/// Makes the folder of the two files in `scratch`.
fn unpack(cx: &XtaskContext, package: &Path, scratch: &Path) -> Result<PathBuf> {
    let [tree, fresh] = ["tree", "installer"].map(|name| scratch.join(name));
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("--extract").arg(package).arg(&tree);
    cx.run(&mut unpack, "unpack Debian's installer", PACKAGE)?;
    let take = || -> io::Result<()> {
        fs::create_dir(&fresh)?;
        for name in FILES {
            fs::rename(tree.join(INSTALLER_FOLDER).join(name), fresh.join(name))?;
        }
        Ok(())
    };
    take().map_err(TaskError::io(format!("make {}", fresh.display())))?;
    Ok(fresh)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_files_are_taken_out_of_the_package_and_stay() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cx = XtaskContext::in_folder(&folder.path().join("cache"));
        let write = |name: &str, text: &str| {
            let path = folder.path().join("made").join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
            fs::write(path, text).expect("writable");
        };
        for name in FILES.into_iter().chain(["bootnetx64.efi"]) {
            write(&format!("{INSTALLER_FOLDER}/{name}"), name);
        }
        let control =
            "Package: made\nVersion: 1\nArchitecture: all\nMaintainer: Us\nDescription: made\n";
        write("DEBIAN/control", control);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder.path().join("made/DEBIAN"), mode).expect("ours");
        let package = folder.path().join("made.deb");
        let mut build = Command::new("dpkg-deb");
        build.arg("--build").arg(folder.path().join("made"));
        let built = build.arg(&package).output().expect("every Debian has it");
        assert!(built.status.success(), "{built:?}");
        let scratch = folder.path().join("scratch");
        fs::create_dir(&scratch).expect("a new folder");
        let fresh = unpack(&cx, &package, &scratch).expect("both files are there");
        let names = fs::read_dir(&fresh).expect("made").count();
        assert_eq!(names, FILES.len(), "nothing else");
        for name in FILES {
            let text = fs::read_to_string(fresh.join(name)).expect("taken");
            assert_eq!(text, name);
        }
        // Once the files are there, no package is needed.
        let pin = sources::accepted(PACKAGE).expect("pinned").remove(0);
        let destination = unpacked_folder(&cx, PACKAGE, &pin);
        cached::settle(&fresh, &destination).expect("ours");
        assert_eq!(ensure_folder(&cx).expect("it is there"), destination);
    }
}
