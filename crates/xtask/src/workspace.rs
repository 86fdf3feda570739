//! The one build folder, shared by every clone on this machine.
//!
//! Compiled libraries are the heavy part and are the same for every clone, so all of them build
//! into the cache. Cargo judges a workspace member by the age of its files, not by their folder:
//! after another clone has built, its results could pass for ours. A stamp names the clone that
//! built last; when it names another, the members (never the libraries) are thrown away first. A
//! lock keeps two clones from building at once.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// This clone and where it builds.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
    cache: PathBuf,
    triple: String,
}

/// Holds off every other clone until dropped.
#[derive(Debug)]
pub struct BuildLock {
    _file: File,
}

/// Seconds of a day.
const DAY_SECONDS: u64 = 86_400;

impl Workspace {
    /// The clone at `root`, with heavy outputs in `cache`.
    pub fn new(root: &Path, cache: &Path) -> Result<Self, String> {
        let root = fs::canonicalize(root)
            .map_err(|error| format!("cannot find the clone at {}: {error}", root.display()))?;
        Ok(Self {
            root,
            cache: cache.to_owned(),
            triple: host_triple()?,
        })
    }

    /// The clone's folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of heavy outputs.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Cargo's target folder.
    #[must_use]
    pub fn target(&self) -> PathBuf {
        self.cache.join("target")
    }

    /// The host, as cargo names it in the target folder.
    #[must_use]
    pub fn triple(&self) -> &str {
        &self.triple
    }

    /// A built executable.
    #[must_use]
    pub fn executable(&self, name: &str) -> PathBuf {
        self.target().join(&self.triple).join("release").join(name)
    }

    /// Cargo, in the clone, told to build into the shared folder.
    #[must_use]
    pub fn cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .current_dir(&self.root)
            .arg(subcommand)
            .env("CARGO_TARGET_DIR", self.target())
            .env_remove("CARGO_BUILD_TARGET_DIR");
        if let Some(day) = self.commit_day() {
            command.env("ALKNET_BUILD_TIME", day);
        }
        command
    }

    /// The day of the commit being built, in seconds since 1970: no clock of a machine that runs
    /// it may be earlier. The day, so that two commits of one day share what they compile.
    fn commit_day(&self) -> Option<String> {
        let mut git = Command::new("git");
        git.current_dir(&self.root)
            .args(["log", "-1", "--format=%ct"]);
        let output = git.output().ok().filter(|output| output.status.success())?;
        let seconds: u64 = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
        Some((seconds - seconds % DAY_SECONDS).to_string())
    }

    /// Takes the build folder for this clone: waits for other builds, then removes the members that
    /// another clone built.
    pub fn claim(&self) -> Result<BuildLock, String> {
        fs::create_dir_all(self.target()).map_err(|error| self.trouble("create", &error))?;
        let lock = self.lock().map_err(|error| self.trouble("lock", &error))?;
        let stamp = self.target().join("alknet-clone");
        let own = self.stamp().map_err(|error| self.trouble("read", &error))?;
        let last = fs::read_to_string(&stamp).unwrap_or_default();
        if last != own {
            if !last.is_empty() || self.executable("alknet-tasks").exists() {
                self.remove_members()?;
            }
            fs::write(&stamp, own).map_err(|error| self.trouble("write", &error))?;
        }
        Ok(lock)
    }

    /// Builds every member once, in the one profile.
    pub fn build(&self, _lock: &BuildLock) -> Result<(), String> {
        let status = self
            .cargo("build")
            .args(["--release", "--workspace"])
            .status()
            .map_err(|error| format!("cannot run cargo: {error}"))?;
        if status.success() {
            return Ok(());
        }
        Err("the workspace does not build: cargo's messages are above".to_owned())
    }

    fn lock(&self) -> io::Result<BuildLock> {
        let file = File::create(self.target().join("alknet-lock"))?;
        if file.try_lock().is_err() {
            eprintln!("waiting for another clone that is building ...");
            file.lock()?;
        }
        Ok(BuildLock { _file: file })
    }

    /// Names this clone: a new clone at an old path is another one.
    fn stamp(&self) -> io::Result<String> {
        let folder = fs::metadata(&self.root)?;
        Ok(format!(
            "{}\n{}:{}\n",
            self.root.display(),
            folder.dev(),
            folder.ino()
        ))
    }

    /// Cargo told to remove the members' results. It must be told the target: the one in
    /// `.cargo/config.toml`, `host-tuple`, is nothing that `clean` finds a folder for.
    fn clean_members(&self) -> Result<Command, String> {
        let mut command = self.cargo("clean");
        command.args(["--release", "--target", &self.triple]);
        for member in members(&self.root)? {
            command.args(["--package", &member]);
        }
        Ok(command)
    }

    fn remove_members(&self) -> Result<(), String> {
        let status = self
            .clean_members()?
            .arg("--quiet")
            .status()
            .map_err(|error| format!("cannot run cargo: {error}"))?;
        if status.success() {
            return Ok(());
        }
        Err(format!(
            "cannot clear another clone's results: delete {} and try again",
            self.target().display()
        ))
    }

    fn trouble(&self, verb: &str, error: &io::Error) -> String {
        format!(
            "cannot {verb} the build folder {}: {error}; make it writable or set ALKNET_CACHE",
            self.target().display()
        )
    }
}

/// Names of the workspace's packages, read from its manifests.
pub fn members(root: &Path) -> Result<Vec<String>, String> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    let mut names = Vec::new();
    for folder in member_folders(&read(&root.join("Cargo.toml"))?) {
        let manifest = root.join(folder).join("Cargo.toml");
        let name = package_name(&read(&manifest)?)
            .ok_or_else(|| format!("{} names no package", manifest.display()))?;
        names.push(name);
    }
    Ok(names)
}

/// The quoted strings of `members = [...]`.
fn member_folders(manifest: &str) -> Vec<String> {
    let Some((_, rest)) = manifest.split_once("members = [") else {
        return Vec::new();
    };
    let list = rest.split(']').next().unwrap_or(rest);
    list.split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

fn package_name(manifest: &str) -> Option<String> {
    let line = manifest.lines().find(|line| line.starts_with("name = "))?;
    Some(line.split('"').nth(1)?.to_owned())
}

fn host_triple() -> Result<String, String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .arg("-vV")
        .output()
        .map_err(|error| format!("cannot run rustc: {error}; install Rust from rustup.rs"))?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .ok_or_else(|| "rustc -vV names no host".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn every_member_is_named() {
        let names = members(&root()).expect("the workspace's manifests are readable");
        assert!(names.contains(&"xtask".to_owned()) && names.contains(&"alknet".to_owned()));
        let unique: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
    }

    #[test]
    fn a_manifest_without_members_has_none() {
        assert!(member_folders("[workspace]\n").is_empty());
        assert!(package_name("[package]\n").is_none());
    }

    #[test]
    fn another_clone_is_told_apart() {
        let base = std::env::temp_dir().join(format!("xtask-claim-{}", std::process::id()));
        let clone = |name: &str| {
            let folder = base.join(name);
            fs::create_dir_all(&folder).expect("the temporary folder is writable");
            Workspace::new(&folder, &base.join("cache")).expect("the folder exists")
        };
        let (one, two) = (clone("one"), clone("two"));
        assert_ne!(one.stamp().ok(), two.stamp().ok());
        drop(one.claim().expect("nothing was built yet"));
        let stamp = fs::read_to_string(one.target().join("alknet-clone")).expect("stamped");
        assert_eq!(Some(stamp), one.stamp().ok());
        fs::remove_dir_all(base).expect("the folder is ours");
    }

    #[test]
    fn what_another_clone_built_is_found() {
        // TARGET/TRIPLE/release/deps/this-test
        let this = std::env::current_exe().expect("it runs");
        let target = this.ancestors().nth(4).expect("cargo built it");
        let cache = target.parent().expect("a folder holds it");
        let workspace = Workspace::new(&root(), cache).expect("the clone is here");
        let mut clean = workspace.clean_members().expect("the members are known");
        let output = clean
            .arg("--dry-run")
            .env("CARGO_TARGET_DIR", target)
            .output()
            .expect("cargo runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert!(
            said.contains("Summary") && !said.contains("Summary 0 files"),
            "{said}"
        );
    }

    #[test]
    fn a_held_build_folder_is_not_handed_out_twice() {
        let base = std::env::temp_dir().join(format!("xtask-lock-{}", std::process::id()));
        fs::create_dir_all(&base).expect("the temporary folder is writable");
        let workspace = Workspace::new(&base, &base.join("cache")).expect("the folder exists");
        let held = workspace.claim().expect("nothing was built yet");
        let file = File::open(workspace.target().join("alknet-lock")).expect("the lock exists");
        assert!(file.try_lock().is_err());
        drop(held);
        // Waits: a child that another test is starting may still hold a copy of the descriptor.
        file.lock().expect("nobody keeps it");
        fs::remove_dir_all(base).expect("the folder is ours");
    }
}
