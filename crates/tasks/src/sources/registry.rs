//! Packages of crates.io, fetched by cargo, which knows the address and the proxies of this
//! machine's configuration. No code of a package runs.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::context::XtaskContext;
use crate::digest;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;

/// Takes the archive of `package`, `NAME@VERSION`, from the registry. If cargo has several, takes
/// the one with this SHA-256.
pub(super) fn fetch(cx: &XtaskContext, package: &str, sha256: &str, to: &Path) -> Result<()> {
    let home = home().ok_or_else(|| {
        TaskError::Arguments("no place of cargo's packages: set HOME or CARGO_HOME".to_owned())
    })?;
    let file = format!("{}.crate", package.replace('@', "-"));
    let archive = match cached_archive(&home, &file, sha256) {
        Some(archive) => archive,
        None => {
            download(cx, package)?;
            cached_archive(&home, &file, sha256).ok_or_else(|| {
                let what = format!("cargo put no {file} into {}", home.display());
                TaskError::Arguments(what)
            })?
        }
    };
    fs::copy(&archive, to)
        .map(|_| ())
        .map_err(TaskError::io(format!("copy {}", archive.display())))
}

/// Makes cargo fetch the archive of a package, by asking for information about it.
fn download(cx: &XtaskContext, package: &str) -> Result<()> {
    // The folder is in no workspace: cargo would describe a member of that name instead.
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

/// The archive, from whichever registry or mirror cargo took it: the one with this SHA-256, or else
/// any. The caller checks its bytes.
fn cached_archive(home: &Path, file: &str, sha256: &str) -> Option<PathBuf> {
    let registries = fs::read_dir(home.join("registry/cache")).ok()?;
    let archives = registries
        .flatten()
        .map(|registry| registry.path().join(file));
    let mut archives: Vec<_> = archives.filter(|archive| archive.exists()).collect();
    // The hash decides, since several registries may have a package of this name.
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
        assert_eq!(cached_archive(home.path(), FILE, ""), None);
        let archives = ["one", "two", "three"].map(|registry| {
            let folder = home.path().join("registry/cache").join(registry);
            fs::create_dir_all(&folder).expect("writable");
            folder.join(FILE)
        });
        assert_eq!(cached_archive(home.path(), FILE, ""), None);
        fs::write(&archives[1], "packed").expect("writable");
        let wanted = digest::of_file(&archives[1]).expect("readable");
        assert_eq!(
            cached_archive(home.path(), FILE, &wanted),
            Some(archives[1].clone())
        );
        // The caller refuses one with other bytes, and it hides no other.
        assert_eq!(
            cached_archive(home.path(), FILE, ""),
            Some(archives[1].clone())
        );
        // The file system chooses the order in which the registries are listed, so each is the
        // right one once.
        for own in &archives {
            for archive in &archives {
                let bytes = if archive == own {
                    "packed"
                } else {
                    "other bytes"
                };
                fs::write(archive, bytes).expect("writable");
            }
            assert_eq!(
                cached_archive(home.path(), FILE, &wanted).as_ref(),
                Some(own)
            );
        }
    }
}
