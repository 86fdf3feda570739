//! Packages of crates.io, fetched by cargo: it knows the address and the way there that this machine is set up for.
//! Nothing of a package runs.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::context::XtaskContext;
use crate::digest;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;

/// Takes the archive of `package`, `NAME@VERSION`, as the registry has it; where cargo has several, the one with this
/// SHA-256.
pub(super) fn fetch(cx: &XtaskContext, package: &str, sha256: &str, to: &Path) -> Result<()> {
    let home = home().ok_or_else(|| {
        TaskError::Arguments("no place of cargo's packages: set HOME or CARGO_HOME".to_owned())
    })?;
    let file = format!("{}.crate", package.replace('@', "-"));
    let archive = match kept(&home, &file, sha256) {
        Some(archive) => archive,
        None => {
            download(cx, package)?;
            kept(&home, &file, sha256).ok_or_else(|| {
                let what = format!("cargo put no {file} into {}", home.display());
                TaskError::Arguments(what)
            })?
        }
    };
    fs::copy(&archive, to)
        .map(|_| ())
        .map_err(TaskError::io(format!("copy {}", archive.display())))
}

/// Cargo tells of a package what its archive has, and keeps the archive.
fn download(cx: &XtaskContext, package: &str) -> Result<()> {
    // In a folder of no workspace: a member of that name would be told of in its place.
    let scratch = ScratchFolder::new(cx.cache(), "registry-")?;
    let mut command = cx.cargo("info");
    command.arg(package).current_dir(scratch.path());
    cx.run(&mut command, &format!("download {package}"), "registry")
}

/// Cargo's own folder.
fn home() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let home = set("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(PathBuf::from(set("HOME")?).join(".cargo")))
}

/// The archive, of whichever registry or mirror of one cargo took it from: the one with this SHA-256, else any. Its
/// bytes are judged by the caller.
fn kept(home: &Path, file: &str, sha256: &str) -> Option<PathBuf> {
    let registries = fs::read_dir(home.join("registry/cache")).ok()?;
    let archives = registries
        .flatten()
        .map(|registry| registry.path().join(file));
    let mut archives: Vec<_> = archives.filter(|archive| archive.exists()).collect();
    // By its hash, since several registries may have a package of this name.
    let is_wanted = |archive: &PathBuf| digest::of_file(archive).is_ok_and(|got| got == sha256);
    let wanted = archives.iter().position(is_wanted).unwrap_or_default();
    (wanted < archives.len()).then(|| archives.swap_remove(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_found_whatever_the_registry_is_called() {
        const FILE: &str = "a-1.0.0.crate";
        let home = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(kept(home.path(), FILE, ""), None);
        let archives = ["one", "two", "three"].map(|registry| {
            let folder = home.path().join("registry/cache").join(registry);
            fs::create_dir_all(&folder).expect("writable");
            folder.join(FILE)
        });
        assert_eq!(kept(home.path(), FILE, ""), None);
        fs::write(&archives[1], "packed").expect("writable");
        let wanted = digest::of_file(&archives[1]).expect("readable");
        assert_eq!(kept(home.path(), FILE, &wanted), Some(archives[1].clone()));
        // One with other bytes is for the caller to refuse, and hides no other.
        assert_eq!(kept(home.path(), FILE, ""), Some(archives[1].clone()));
        // The file system chooses the order in which the registries are listed: each is the right one once.
        for own in &archives {
            for archive in &archives {
                let bytes = if archive == own {
                    "packed"
                } else {
                    "other bytes"
                };
                fs::write(archive, bytes).expect("writable");
            }
            assert_eq!(kept(home.path(), FILE, &wanted).as_ref(), Some(own));
        }
    }
}
