//! Files out of Debian packages, fetched through the machine's own package configuration.
//!
//! The system's configuration and package state are only read. Lists and downloads go to a private
//! folder. The archive's address is the one that this machine already uses.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;
use crate::sources::pins::DebianLocation;

/// Keys of every Debian release that this machine's keyring package knows.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The package client's own downloader, with its configuration of mirrors and proxies.
const DOWNLOADER: &str = "/usr/lib/apt/apt-helper";

/// Fetches a file by its path in this machine's configured archive. No lists are needed, because
/// the file is checked by its hash.
pub(super) fn fetch_from_pool(cx: &XtaskContext, path: &str, to: &Path) -> Result<()> {
    let address = format!("{}/{path}", address()?.trim_end_matches('/'));
    // The downloader would keep an existing file if it is not older.
    fs::remove_file(to).map_err(TaskError::io(format!("replace {}", to.display())))?;
    let mut command = Command::new(DOWNLOADER);
    command
        // As its own user the downloader could not write into our folder.
        .args(["-o", "APT::Sandbox::User=root", "download-file"])
        .arg(&address)
        .arg(to);
    cx.run(&mut command, &format!("download {address}"), "apt-download")
}

/// Takes the package at this address, or one file out of it.
pub(super) fn fetch_from_snapshot(
    cx: &XtaskContext,
    address: &str,
    member: Option<&str>,
    to: &Path,
) -> Result<()> {
    let scratch = ScratchFolder::new(cx.cache(), "snapshot-")?;
    let package = scratch.path().join("package.deb");
    super::download(cx, address, &package)?;
    take(&package, member, to)
}

/// A private view of the archive, removed on drop.
#[derive(Debug)]
pub(crate) struct DebianArchive {
    folder: ScratchFolder,
}

impl DebianArchive {
    /// Reads the lists of `suites` from this machine's configured archive.
    pub(crate) fn open(cx: &XtaskContext, suites: &[&str]) -> Result<Self> {
        let folder = ScratchFolder::new(cx.cache(), "apt-")?;
        let archive = Self { folder };
        archive.prepare(suites)?;
        let mut update = archive.apt();
        update.arg("update");
        cx.run(&mut update, "package lists (private)", "apt-update")?;
        Ok(archive)
    }

    /// Takes a package of exactly the pinned version, or one file out of it.
    pub(crate) fn fetch(&self, cx: &XtaskContext, place: &DebianLocation, to: &Path) -> Result<()> {
        let folder = tempfile::tempdir_in(self.folder.path())
            .map_err(TaskError::io("make a folder for a package"))?;
        let mut download = self.apt();
        download
            .arg("download")
            .arg(format!("{}={}", place.package, place.version))
            .current_dir(folder.path());
        cx.run(
            &mut download,
            &format!("download {} {}", place.package, place.version),
            "apt-download",
        )?;
        let package = only_file(folder.path())?;
        take(&package, place.member.as_deref(), to)
    }

    fn prepare(&self, suites: &[&str]) -> Result<()> {
        let folder = self.folder.path();
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part)).map_err(TaskError::io("make package folders"))?;
        }
        let address = address()?;
        let lines: String = suites.iter().map(|suite| line(&address, suite)).collect();
        fs::write(folder.join("sources.list"), lines).map_err(TaskError::io("write a sources.list"))
    }

    fn apt(&self) -> Command {
        let folder = self.folder.path().display();
        let mut command = Command::new("apt-get");
        command.args([
            "-qq",
            "-o",
            "APT::Sandbox::User=root",
            "-o",
            "Acquire::Languages=none",
        ]);
        for option in [
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            // Only the list that is written here counts, and no file of this machine's
            // configuration is changed.
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State={folder}/state"),
            format!("Dir::Cache={folder}/cache"),
            // Without this apt would look for the list of installed packages below the folder
            // above.
            "Dir::State::status=/var/lib/dpkg/status".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}

fn line(address: &str, suite: &str) -> String {
    // Without the file apt takes the keys that the machine trusts.
    let keys = if Path::new(KEYRING).exists() {
        format!("[signed-by={KEYRING}] ")
    } else {
        String::new()
    };
    format!("deb {keys}{address} {suite} main\n")
}

/// The archive of this machine's own packages.
pub(super) fn address() -> Result<String> {
    let output = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Created-By: Packages",
        ])
        .stderr(Stdio::null())
        .output();
    let targets = output.map_or_else(
        |_| String::new(),
        |o| String::from_utf8_lossy(&o.stdout).into_owned(),
    );
    first_archive(&targets)
        .or_else(configured_address)
        .ok_or_else(|| {
            TaskError::Arguments("this machine's package configuration names no archive".to_owned())
        })
}

/// The address in apt's configuration. Without package lists apt names no targets.
fn configured_address() -> Option<String> {
    let parts = fs::read_dir("/etc/apt/sources.list.d").ok();
    let parts = parts
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let files = std::iter::once(PathBuf::from("/etc/apt/sources.list")).chain(parts);
    let texts = files.filter_map(|file| fs::read_to_string(file).ok());
    texts
        .flat_map(|text| addresses(&text))
        .find(|address| is_main(address))
}

fn addresses(text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let words = lines.flat_map(str::split_whitespace);
    words
        .filter(|word| word.starts_with("http://") || word.starts_with("https://"))
        .map(str::to_owned)
        .collect()
}

fn first_archive(targets: &str) -> Option<String> {
    targets
        .lines()
        .map(str::trim)
        .find(|line| is_main(line))
        .map(str::to_owned)
}

/// Whether this is the main archive. Security updates are in their own archive, which has nothing
/// of the releases.
fn is_main(address: &str) -> bool {
    !address.is_empty() && !address.contains("security")
}

/// The file that a package client put into an empty folder.
pub(super) fn only_file(folder: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(folder).map_err(TaskError::io("read the download"))?;
    entries
        .find_map(|entry| entry.ok().map(|entry| entry.path()))
        .ok_or_else(|| TaskError::Arguments("the package client downloaded nothing".to_owned()))
}

fn take(package: &Path, member: Option<&str>, to: &Path) -> Result<()> {
    match member {
        Some(member) => extract(package, member, to),
        None => fs::copy(package, to)
            .map(drop)
            .map_err(TaskError::io(format!("copy {}", package.display()))),
    }
}

fn extract(package: &Path, member: &str, to: &Path) -> Result<()> {
    let out = File::create(to).map_err(TaskError::io(format!("write {}", to.display())))?;
    let mut unpack = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(TaskError::io("run dpkg-deb"))?;
    let archive = unpack.stdout.take().map_or_else(Stdio::null, Stdio::from);
    let status = Command::new("tar")
        .args(["-xO", "-f", "-", member])
        .stdin(archive)
        .stdout(out)
        .status()
        .map_err(TaskError::io("run tar"))?;
    // tar may stop reading once it has the member, which ends dpkg-deb with a broken pipe.
    unpack.wait().map_err(TaskError::io("wait for dpkg-deb"))?;
    if status.success() {
        return Ok(());
    }
    Err(TaskError::Arguments(format!(
        "{} has no file {member}",
        package.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_security_archive_is_passed_over() {
        let targets = "http://a.example/debian-security/\nhttp://a.example/debian/\n";
        assert_eq!(
            first_archive(targets).as_deref(),
            Some("http://a.example/debian/")
        );
        assert_eq!(first_archive(""), None);
    }

    #[test]
    fn both_styles_of_configuration_are_read() {
        let old = "# deb http://no.example/debian x main\ndeb [arch=amd64] http://a.example/debian bookworm main\n";
        assert_eq!(addresses(old), ["http://a.example/debian"]);
        let new = "Types: deb\nURIs: https://b.example/debian\nSuites: bookworm\n";
        assert_eq!(addresses(new), ["https://b.example/debian"]);
    }

    #[test]
    fn a_file_is_taken_out_of_a_package_at_an_address() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join("tree").join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
            fs::write(path, text).expect("writable");
        };
        write("usr/bin/made", "a program");
        let control =
            "Package: made\nVersion: 1\nArchitecture: all\nMaintainer: Us\nDescription: made\n";
        write("DEBIAN/control", control);
        for name in ["tree", "tree/DEBIAN"] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(folder.path().join(name), mode).expect("ours");
        }
        let package = folder.path().join("made_1_all.deb");
        let built = Command::new("dpkg-deb")
            .arg("--build")
            .arg(folder.path().join("tree"))
            .arg(&package)
            .output();
        let built = built.expect("every Debian has it");
        assert!(built.status.success(), "{built:?}");
        let cx = XtaskContext::in_folder(&folder.path().join("cache"));
        let to = folder.path().join("taken");
        let fetch = |address: &str, member| fetch_from_snapshot(&cx, address, member, &to);
        let address = format!("file://{}", package.display());
        let member = Some("./usr/bin/made");
        fetch(&address, member).expect("it is there");
        assert_eq!(fs::read_to_string(&to).expect("readable"), "a program");
        fetch(&format!("{address}.gone"), member).expect_err("it is not");
        // The package itself, for what has many files.
        fetch(&address, None).expect("it is there");
        let same = fs::read(&to).expect("readable") == fs::read(&package).expect("readable");
        assert!(same, "it is another file");
    }

    #[test]
    fn a_missing_member_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let package = folder.path().join("x.deb");
        fs::write(&package, "no package").expect("it is writable");
        let error =
            extract(&package, "./f", &folder.path().join("out")).expect_err("not a package");
        assert!(error.to_string().contains("./f"), "{error}");
    }
}
