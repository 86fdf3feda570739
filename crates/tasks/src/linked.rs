//! The crates that the one binary is linked from, with those of the program for GPUs that it carries.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::failure::{Result, TaskError};

/// Programs of an image that are compiled for one platform.
#[derive(Clone, Copy, Debug)]
struct LinkedPrograms {
    /// Their packages.
    roots: &'static [&'static str],
    platform: &'static str,
    /// What cargo needs to know beside these.
    options: &'static [&'static str],
}

/// The binary, and the program for GPUs in it.
const BINARY: LinkedPrograms = LinkedPrograms {
    roots: &["alknet", "alknet-gpu"],
    platform: "x86_64-unknown-linux-gnu",
    options: &[],
};

/// The loader for UEFI, whose programs wait behind a feature.
const LOADER: LinkedPrograms = LinkedPrograms {
    roots: &["alknet-loader"],
    platform: "x86_64-unknown-uefi",
    options: &["--features=alknet-loader/firmware"],
};

/// A crate in the binary.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkedCrate {
    /// The name on crates.io.
    pub name: String,
    pub version: String,
    /// The licence as its manifest has it.
    pub license: Option<String>,
    /// The licence file that its manifest names, from its folder.
    pub license_file: Option<PathBuf>,
    /// Where its source is on this machine.
    pub folder: PathBuf,
    /// SHA-256 of its archive, which the lock file has. Packages of this workspace have none.
    pub checksum: Option<String>,
}

impl LinkedCrate {
    /// Whether it is a package of this workspace.
    pub(crate) const fn is_own(&self) -> bool {
        self.checksum.is_none()
    }
}

/// The crates of the loader, as those of the binary.
pub(crate) fn loader_crates(root: &Path) -> Result<Vec<LinkedCrate>> {
    crates_of(root, LOADER)
}

/// The crates of the binary, by name and version: everything that its packages need at run time on
/// the platform of an image, without procedural macros.
///
/// The features are those of a build of the whole workspace, which is how the commands build.
/// `cargo tree` knows them; `cargo metadata` counts features that only tests switch on as well.
pub(crate) fn linked_crates(root: &Path) -> Result<Vec<LinkedCrate>> {
    crates_of(root, BINARY)
}

fn crates_of(root: &Path, programs: LinkedPrograms) -> Result<Vec<LinkedCrate>> {
    let checksums = checksums(root)?;
    let reached = reached(&tree(root, programs)?, programs.roots);
    let packages = metadata(root, programs)?.packages.into_iter();
    let crates = packages.filter_map(|package| {
        let named = (package.name, package.version);
        let folder = package.manifest_path.parent()?.to_owned();
        reached.contains(&named).then(|| LinkedCrate {
            checksum: checksums.get(&named).cloned(),
            name: named.0,
            version: named.1,
            license: package.license,
            license_file: package.license_file,
            folder,
        })
    });
    let mut crates: Vec<LinkedCrate> = crates.collect();
    crates.sort();
    Ok(crates)
}

/// The crates of which several versions are in the binary, each with its versions in rising order of
/// their texts.
pub(crate) fn duplicates(crates: &[LinkedCrate]) -> BTreeMap<String, Vec<String>> {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for linked in crates {
        let versions = versions.entry(linked.name.clone()).or_default();
        versions.push(linked.version.clone());
    }
    versions.retain(|_, versions| versions.len() > 1);
    versions
}

/// Name and version of a package.
type PackageKey = (String, String);

/// The part of cargo's metadata that is read here.
#[derive(Debug, Deserialize)]
struct ResolvedMetadata {
    packages: Vec<CargoPackage>,
}

#[derive(Debug, Deserialize)]
struct CargoPackage {
    name: String,
    version: String,
    license: Option<String>,
    license_file: Option<PathBuf>,
    manifest_path: PathBuf,
}

fn metadata(root: &Path, programs: LinkedPrograms) -> Result<ResolvedMetadata> {
    let options = ["--format-version=1", "--filter-platform", programs.platform];
    let text = cargo(root, "metadata", &[&options[..], programs.options].concat())?;
    serde_json::from_str(&text)
        .map_err(|error| TaskError::Workspace(format!("cargo metadata: {error}")))
}

/// What each package of the workspace needs at run time, one package a line: the depth, the name and
/// the version. What a package needs stands below its first line only.
fn tree(root: &Path, programs: LinkedPrograms) -> Result<String> {
    let options = [
        "--workspace",
        "--edges=normal,no-proc-macro",
        "--target",
        programs.platform,
        "--prefix=depth",
        "--format= {p}",
    ];
    cargo(root, "tree", &[&options[..], programs.options].concat())
}

/// What a command of cargo prints about the tree at `root`.
fn cargo(root: &Path, command: &str, options: &[&str]) -> Result<String> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(program)
        .args([command, "--locked"])
        .args(options)
        .current_dir(root)
        .output()
        .map_err(TaskError::io("run cargo"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(TaskError::Step {
        what: format!("cargo {command}"),
        how: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        log: None,
    })
}

/// The packages that run in the programs of an image, from the text of [`tree`].
fn reached(tree: &str, roots: &[&str]) -> BTreeSet<PackageKey> {
    let mut needs: BTreeMap<PackageKey, BTreeSet<PackageKey>> = BTreeMap::new();
    let mut above: Vec<PackageKey> = Vec::new();
    for (depth, package) in tree.lines().filter_map(tree_line) {
        above.truncate(depth);
        if let Some(parent) = above.last() {
            let needed = needs.entry(parent.clone()).or_default();
            needed.insert(package.clone());
        }
        needs.entry(package.clone()).or_default();
        above.push(package);
    }
    let roots = needs
        .keys()
        .filter(|(name, _)| roots.contains(&name.as_str()));
    let mut open: Vec<&PackageKey> = roots.collect();
    let mut seen = BTreeSet::new();
    while let Some(package) = open.pop() {
        if seen.insert(package.clone()) {
            open.extend(needs.get(package).into_iter().flatten());
        }
    }
    seen
}

/// Depth and package of a line such as `2 aes v0.9.0 (*)`.
fn tree_line(line: &str) -> Option<(usize, PackageKey)> {
    let mut words = line.split_whitespace();
    let depth = words.next()?.parse().ok()?;
    let name = words.next()?.to_owned();
    let version = words.next()?.strip_prefix('v')?.to_owned();
    Some((depth, (name, version)))
}

/// A lock file, as far as it is read here.
#[derive(Debug, Deserialize)]
struct CargoLock {
    package: Vec<LockedPackage>,
}

#[derive(Debug, Deserialize)]
struct LockedPackage {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// The hashes of archives in the lock file, by name and version.
fn checksums(root: &Path) -> Result<BTreeMap<PackageKey, String>> {
    let path = root.join("Cargo.lock");
    let what = || format!("read {}", path.display());
    let text = fs::read_to_string(&path).map_err(TaskError::io(what()))?;
    let lock: CargoLock = toml::from_str(&text)
        .map_err(|error| TaskError::Workspace(format!("cannot {}: {error}", what())))?;
    let locked = lock.package.into_iter();
    let hashed = locked.filter_map(|it| Some(((it.name, it.version), it.checksum?)));
    Ok(hashed.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linked(name: &str, version: &str) -> LinkedCrate {
        LinkedCrate {
            name: name.to_owned(),
            version: version.to_owned(),
            license: None,
            license_file: None,
            folder: PathBuf::new(),
            checksum: None,
        }
    }

    #[test]
    fn a_crate_with_two_versions_is_listed_with_both() {
        let crates = [
            linked("a", "1.0.0"),
            linked("b", "1.0.0"),
            linked("b", "2.0.0"),
        ];
        let found = duplicates(&crates);
        assert_eq!(found.len(), 1);
        assert_eq!(found["b"], ["1.0.0", "2.0.0"]);
    }

    /// Cargo shows what a package needs once, also if that is below a package of no image.
    #[test]
    fn what_the_programs_of_an_image_need_is_found_wherever_it_stands() {
        let tree = "0 alknet-tests v0.1.0 (/x/tests)\n1 judge v1.0.0\n1 shared v2.0.0\n2 below v3.0.0\n\n\
                    0 alknet v0.1.0 (/x/appliance)\n1 shared v2.0.0 (*)\n1 own v0.2.0\n\n\
                    0 alknet-gpu v0.1.0 (/x/gpu)\n1 wgpu v30.0.0\n";
        let found = reached(tree, BINARY.roots);
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        let expected = ["alknet", "alknet-gpu", "below", "own", "shared", "wgpu"];
        assert_eq!(names, expected);
        assert!(found.contains(&("shared".to_owned(), "2.0.0".to_owned())));
    }
}
