//! Clients of WebDAV that tests start: litmus, rclone, cadaver and davfs2, with their library neon. Every other library
//! that they need comes with programs that the set-up installs: GnuTLS, OpenSSL, Kerberos, libxml2 and readline.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;
use crate::sources::{self, SourcePin};
use crate::{cached, third_party};

/// The packages, by their names in `sources.toml`.
const PACKAGES: [&str; 6] = [
    "litmus",
    "rclone",
    "cadaver",
    "davfs2",
    "neon-gnutls",
    "neon-openssl",
];

/// The commands in the folder, each with the program that it starts.
const COMMANDS: [(&str, &str); 5] = [
    ("cadaver", "usr/bin/cadaver"),
    ("litmus", "usr/bin/litmus"),
    ("mount.davfs", "usr/sbin/mount.davfs"),
    ("rclone", "usr/bin/rclone"),
    ("umount.davfs", "usr/sbin/umount.davfs"),
];

/// The folder in the cache with the commands, each of which starts its program wherever the folder is.
pub(crate) fn ensure_folder(cx: &XtaskContext) -> Result<PathBuf> {
    let mut packages = Vec::new();
    for name in PACKAGES {
        packages.push(sources::obtain(cx, name)?);
    }
    let pins: Vec<SourcePin> = packages.iter().map(|package| package.pin.clone()).collect();
    let folder = folder(cx, &pins);
    if folder.exists() {
        return Ok(folder);
    }
    let scratch = ScratchFolder::new(cx.cache(), "webdav-")?;
    let fresh = scratch.path().join("webdav");
    for package in &packages {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(&package.path).arg(&fresh);
        cx.run(&mut unpack, "unpack clients of WebDAV", "webdav-clients")?;
    }
    let settle = || -> io::Result<()> {
        write_commands(&fresh)?;
        cached::settle(&fresh, &folder)
    };
    settle().map_err(TaskError::io(format!("make {}", folder.display())))?;
    Ok(folder)
}

/// The folder of [`ensure_folder`], whether it exists or not.
pub(crate) fn pinned(cx: &XtaskContext) -> Result<PathBuf> {
    let pins = PACKAGES.iter().map(|name| sources::likely(cx, name));
    let pins: Vec<SourcePin> = pins.collect::<Result<_>>()?;
    Ok(folder(cx, &pins))
}

fn folder(cx: &XtaskContext, pins: &[SourcePin]) -> PathBuf {
    let launchers = COMMANDS.map(|(_, program)| launcher(program));
    third_party::parts_folder(cx, "webdav", pins, launchers.iter().map(String::as_str))
}

/// A script that starts a program with the libraries beside it. litmus, which is a script itself, learns where its own
/// programs and files are. A link to the script works as well.
fn launcher(program: &str) -> String {
    format!(
        "#!/bin/sh\nhere=$(dirname \"$(readlink -f \"$0\")\")\n\
         export LD_LIBRARY_PATH=\"$here/usr/lib/x86_64-linux-gnu\"\n\
         export TESTROOT=\"$here/usr/libexec/litmus\" HTDOCS=\"$here/usr/share/litmus/htdocs\"\n\
         exec \"$here/{program}\" \"$@\"\n"
    )
}

fn write_commands(folder: &Path) -> io::Result<()> {
    for (name, program) in COMMANDS {
        let path = folder.join(name);
        fs::write(&path, launcher(program))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A command that tidies the cache removes what is not listed.
    #[test]
    fn the_folder_of_the_clients_is_kept() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let cx = XtaskContext::in_folder(cache.path());
        let kept = pinned(&cx).expect("all packages are pinned");
        let all = third_party::pinned(&cx).expect("all sources are pinned");
        assert!(all.contains(&kept), "{} is not kept", kept.display());
    }

    #[test]
    fn a_command_starts_its_program_with_the_libraries_of_its_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (_, program) in COMMANDS {
            let path = folder.path().join(program);
            fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
            // Prints what it was started with.
            symlink("/usr/bin/env", &path).expect("writable");
        }
        write_commands(folder.path()).expect("writable");
        let link = folder.path().join("link");
        symlink(folder.path().join("rclone"), &link).expect("writable");
        let here = fs::canonicalize(folder.path()).expect("it exists");
        let here = here.display();
        let commands = COMMANDS.map(|(name, _)| folder.path().join(name));
        for command in commands.iter().chain([&link]) {
            let said = Command::new("sh").arg(command).arg("ARGUMENT=a b").output();
            let said = said.expect("a shell").stdout;
            let said = String::from_utf8_lossy(&said);
            for line in [
                format!("LD_LIBRARY_PATH={here}/usr/lib/x86_64-linux-gnu"),
                format!("TESTROOT={here}/usr/libexec/litmus"),
                format!("HTDOCS={here}/usr/share/litmus/htdocs"),
                "ARGUMENT=a b".to_owned(),
            ] {
                assert!(said.lines().any(|it| it == line), "{line}: {said}");
            }
        }
    }
}
