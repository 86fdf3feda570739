//! Programs nobody here wrote that tests use as clients, and that the system's packages lack. They
//! lie in the cache; nothing is installed.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::scratch::Scratch;
use crate::sources;
use crate::{cached, digest};

/// The packages, each pinned by SHA-256.
const PYTHON_PACKAGES: &str = include_str!("../python.txt");

/// The parts of OpenSSL, as `sources.toml` names them. The first is the program.
const OPENSSL_PARTS: [&str; 5] = [
    "openssl",
    "openssl-libssl",
    "openssl-libcrypto",
    "openssl-libc",
    "openssl-loader",
];

/// Folders around the language's tests in the source of the engine that carries them.
const TEST262_DEPTH: u32 = 5;

/// Where the libraries lie that both C libraries can carry.
const SYSTEM_LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// A command like the system's `openssl`, and newer.
pub(crate) fn openssl(cx: &Context) -> Result<PathBuf> {
    let mut parts = Vec::new();
    for name in OPENSSL_PARTS {
        parts.push(sources::obtain(cx, name)?);
    }
    let pins = parts.iter().map(|part| part.pin.sha256.as_bytes());
    let folder = cx
        .cache()
        .join("tools")
        .join(format!("openssl-{}", digest::key(pins)));
    let program = folder.join("run");
    if program.exists() {
        return Ok(program);
    }
    let scratch = Scratch::new(cx.cache(), "openssl-")?;
    let fresh = scratch.path().join("openssl");
    let make = || -> io::Result<()> {
        fs::create_dir(&fresh)?;
        for part in &parts {
            let to = fresh.join(&part.pin.file);
            fs::copy(&part.path, &to)?;
            fs::set_permissions(&to, Permissions::from_mode(0o755))?;
        }
        let run = fresh.join("run");
        fs::write(&run, launcher())?;
        fs::set_permissions(&run, Permissions::from_mode(0o755))?;
        cached::settle(&fresh, &folder)
    };
    make().map_err(Failure::io(format!("make {}", folder.display())))?;
    Ok(program)
}

/// Starts the program with the C library it was built for, wherever the folder is.
fn launcher() -> String {
    format!(
        "#!/bin/sh\nhere=$(dirname \"$0\")\nexec \"$here/ld-linux-x86-64.so.2\" \
         --library-path \"$here:{SYSTEM_LIBRARIES}\" \"$here/openssl\" \"$@\"\n"
    )
}

/// The folder that Python finds the packages in.
pub(crate) fn python_packages(cx: &Context) -> Result<PathBuf> {
    python_folder(cx, PYTHON_PACKAGES)
}

/// A folder in the cache with exactly the packages of a list that pins each by its hash.
pub(crate) fn python_folder(cx: &Context, packages: &str) -> Result<PathBuf> {
    let python = python_version()?;
    let key = digest::key([packages.as_bytes(), python.as_bytes()]);
    let folder = cx.cache().join("tools").join(format!("python-{key}"));
    if folder.exists() {
        return Ok(folder);
    }
    let scratch = Scratch::new(cx.cache(), "python-")?;
    let list = scratch.path().join("python.txt");
    fs::write(&list, packages).map_err(Failure::io(format!("write {}", list.display())))?;
    let fresh = scratch.path().join("packages");
    let mut command = Command::new("python3");
    command
        .args(["-m", "pip", "install", "--quiet"])
        .args(["--disable-pip-version-check", "--no-cache-dir"])
        .args(["--no-deps", "--require-hashes", "--only-binary", ":all:"])
        .arg("--requirement")
        .arg(&list)
        .arg("--target")
        .arg(&fresh);
    cx.run(&mut command, "Python packages (private)", "python-packages")?;
    cached::settle(&fresh, &folder).map_err(Failure::io(format!("make {}", folder.display())))?;
    Ok(folder)
}

/// The folder of TypeBox, a JavaScript package that makes and checks schemas.
pub(crate) fn typebox(cx: &Context) -> Result<PathBuf> {
    // Archives of npm hold one folder of this name.
    Ok(unpacked(cx, "typebox", &[], 0)?.join("package"))
}

/// The folder of TypeScript's compiler.
pub(crate) fn typescript(cx: &Context) -> Result<PathBuf> {
    Ok(unpacked(cx, "typescript", &[], 0)?.join("package"))
}

/// The folder of the language's own tests, with what they share in `shell.js`.
pub(crate) fn test262(cx: &Context) -> Result<PathBuf> {
    unpacked(cx, "test262", &["*/js/src/tests/test262/*"], TEST262_DEPTH)
}

/// A pinned archive in a folder in the cache: the members that fit the patterns, or all, without so
/// many folders around them.
fn unpacked(cx: &Context, name: &str, members: &[&str], strip: u32) -> Result<PathBuf> {
    let archive = sources::obtain(cx, name)?;
    let key = digest::key([archive.pin.sha256.as_bytes()]);
    let folder = cx.cache().join("tools").join(format!("{name}-{key}"));
    if folder.exists() {
        return Ok(folder);
    }
    let scratch = Scratch::new(cx.cache(), &format!("{name}-"))?;
    let fresh = scratch.path().join(name);
    fs::create_dir(&fresh).map_err(Failure::io(format!("make {}", fresh.display())))?;
    let mut unpack = Command::new("tar");
    unpack
        .args([
            "--extract",
            "--auto-compress",
            "--no-same-owner",
            "--wildcards",
        ])
        .arg(format!("--strip-components={strip}"))
        .arg("--file")
        .arg(&archive.path)
        .arg("--directory")
        .arg(&fresh)
        .args(members);
    cx.run(&mut unpack, &format!("{name} (private)"), name)?;
    cached::settle(&fresh, &folder).map_err(Failure::io(format!("make {}", folder.display())))?;
    Ok(folder)
}

/// What compiled packages are made for.
fn python_version() -> Result<String> {
    let output = Command::new("python3")
        .args(["-c", "import sys; print(sys.implementation.cache_tag)"])
        .output()
        .map_err(Failure::io("run python3"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_python_package_is_pinned() {
        let lines = PYTHON_PACKAGES.lines();
        let packages = lines.filter(|line| !line.starts_with(['#', ' ']));
        for package in packages {
            assert!(
                package.ends_with(" \\") && package.contains("=="),
                "{package}"
            );
        }
        assert_eq!(PYTHON_PACKAGES.matches("sha256:").count(), 23);
    }
}
