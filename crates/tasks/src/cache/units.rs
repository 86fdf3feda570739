//! Cargo's units: the files in the target folder that belong together.
//!
//! Cargo 1.95 keeps a unit's files in several folders beside those of all other units, under names
//! that end in the unit's hash (`docs/development.md` has the picture). Pruning leaves a file alone
//! that is no part of a unit, so a later cargo with other file names loses nothing.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use xtask::last_use::{BuildUnit, hash_in};

/// Cargo's record of a unit's inputs. Without it cargo makes the unit again.
const FINGERPRINTS: &str = ".fingerprint";

/// The lock that cargo holds while it builds.
const CARGO_LOCK: &str = ".cargo-lock";

/// The folders of a unit's other files.
const OUTPUTS: [&str; 3] = ["build", "deps", "examples"];

/// The files that cargo made in one step.
#[derive(Debug, Default)]
pub(super) struct CargoUnitFiles {
    /// The package's name. `None` if the fingerprint is gone, which makes the rest useless.
    pub(super) package: Option<String>,
    /// The part of the package: `lib-NAME`, `bin-NAME`, `test-integration-test-NAME` and the like.
    pub(super) target: String,
    /// Files and folders, in the order of removal: the fingerprint first, so that cargo never finds
    /// one whose artefacts are gone.
    pub(super) paths: Vec<PathBuf>,
}

/// Every unit of a target folder.
pub(super) fn find(target: &Path) -> io::Result<BTreeMap<BuildUnit, CargoUnitFiles>> {
    let mut units = BTreeMap::new();
    for layout in layouts(target)? {
        add_layout(&mut units, target, &layout)?;
    }
    Ok(units)
}

/// The locks of cargo for each folder of a profile. While they are held no cargo builds there.
pub(super) fn cargo_locks(target: &Path) -> io::Result<Vec<PathBuf>> {
    let layouts = layouts(target)?.into_iter();
    Ok(layouts
        .map(|layout| layout.join(CARGO_LOCK))
        .filter(|lock| lock.exists())
        .collect())
}

/// The folders of profiles: `release`, and `x86_64-unknown-linux-gnu/release`.
pub(super) fn layouts(target: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in folders(target)? {
        if is_folder(&folder.join(FINGERPRINTS)) {
            found.push(folder);
            continue;
        }
        // With `--target` each triple has a folder, and the profiles are below it.
        let inner = folders(&folder)?.into_iter();
        found.extend(inner.filter(|folder| is_folder(&folder.join(FINGERPRINTS))));
    }
    found.sort();
    Ok(found)
}

/// The entries of a folder. There are none if the folder is missing or is a link.
pub(super) fn entries(folder: &Path) -> io::Result<Vec<DirEntry>> {
    if !is_folder(folder) {
        return Ok(Vec::new());
    }
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read?.collect(),
    }
}

/// Whether this is a folder itself, and no link to one.
pub(super) fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|data| data.is_dir())
}

fn folders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = entries(folder)?.into_iter().map(|entry| entry.path());
    Ok(paths.filter(|path| is_folder(path)).collect())
}

fn add_layout(
    units: &mut BTreeMap<BuildUnit, CargoUnitFiles>,
    target: &Path,
    layout: &Path,
) -> io::Result<()> {
    let relative = layout.strip_prefix(target).unwrap_or(layout);
    let unit = |hash: &str| BuildUnit {
        layout: relative.to_string_lossy().into_owned(),
        hash: hash.to_owned(),
    };
    for entry in entries(&layout.join(FINGERPRINTS))? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(hash) = hash_in(&name) {
            let artefacts: &mut CargoUnitFiles = units.entry(unit(hash)).or_default();
            artefacts.package = name.strip_suffix(&format!("-{hash}")).map(str::to_owned);
            artefacts.target = target_of(&entry.path())?;
            artefacts.paths.push(entry.path());
        }
    }
    let mut links = HashMap::new();
    for output in OUTPUTS {
        for entry in entries(&layout.join(output))? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(hash) = hash_in(&name) {
                // Two names of one file: cargo links the finished program to a name without the
                // hash.
                if let Some(inode) = linked(&entry) {
                    links.insert(inode, unit(hash));
                }
                let artefacts = units.entry(unit(hash)).or_default();
                artefacts.paths.push(entry.path());
            }
        }
    }
    // Programs and libraries of the workspace have a second name beside or above the first one.
    for folder in [layout.to_owned(), layout.join("examples")] {
        for entry in entries(&folder)? {
            let unlabelled = hash_in(&entry.file_name().to_string_lossy()).is_none();
            let unit = linked(&entry).and_then(|inode| links.get(&inode));
            if let Some(artefacts) = unit.and_then(|unit| units.get_mut(unit))
                && unlabelled
            {
                artefacts.paths.push(entry.path());
            }
        }
    }
    Ok(())
}

/// The targets of a folder of fingerprints. Its files are `TARGET`, `TARGET.json` and some with
/// prefixes.
fn target_of(fingerprint: &Path) -> io::Result<String> {
    let mut targets = Vec::new();
    for entry in entries(fingerprint)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        targets.extend(name.strip_suffix(".json").map(str::to_owned));
    }
    targets.sort();
    Ok(targets.join(" "))
}

/// The identity of a file with more than one name.
fn linked(entry: &DirEntry) -> Option<(u64, u64)> {
    let several = |data: &Metadata| data.is_file() && data.nlink() > 1;
    let data = entry.metadata().ok().filter(several)?;
    Some((data.dev(), data.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const ONE: &str = "1111111111111111";
    const TWO: &str = "2222222222222222";

    fn touch(path: &Path) {
        fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("writable");
        fs::write(path, path.to_string_lossy().as_bytes()).expect("writable");
    }

    fn names(target: &Path, artefacts: &CargoUnitFiles) -> Vec<String> {
        let short = |path: &PathBuf| path.strip_prefix(target).expect("inside").to_owned();
        let names = artefacts.paths.iter().map(short);
        names
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn the_files_of_a_unit_lie_in_several_folders() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let target = folder.path();
        let layout = target.join("a-b/release");
        for (package, hash) in [("my-tool", ONE), ("my-tool", TWO)] {
            touch(&layout.join(format!(".fingerprint/{package}-{hash}/bin-my-tool.json")));
            touch(&layout.join(format!("deps/my_tool-{hash}")));
            touch(&layout.join(format!("deps/my_tool-{hash}.d")));
        }
        let program = layout.join(format!("deps/my_tool-{TWO}"));
        fs::hard_link(program, layout.join("my-tool")).expect("links");
        touch(&layout.join("my-tool.d"));
        touch(&target.join("release/.fingerprint/invoked.timestamp"));
        touch(&target.join(format!("release/build/x-{ONE}/out/file")));
        let units = find(target).expect("readable");
        assert_eq!(units.len(), 3);
        let unit = |layout: &str, hash: &str| BuildUnit {
            layout: layout.to_owned(),
            hash: hash.to_owned(),
        };
        let two = &units[&unit("a-b/release", TWO)];
        assert_eq!(two.package.as_deref(), Some("my-tool"));
        assert_eq!(two.target, "bin-my-tool");
        let mut found = names(target, two);
        assert_eq!(found[0], format!("a-b/release/.fingerprint/my-tool-{TWO}"));
        found.sort();
        assert_eq!(
            found,
            [
                format!("a-b/release/.fingerprint/my-tool-{TWO}"),
                format!("a-b/release/deps/my_tool-{TWO}"),
                format!("a-b/release/deps/my_tool-{TWO}.d"),
                "a-b/release/my-tool".to_owned(),
            ]
        );
        assert_eq!(names(target, &units[&unit("a-b/release", ONE)]).len(), 3);
        // A killed cargo left no fingerprint and no package.
        let left = &units[&unit("release", ONE)];
        assert_eq!((left.package.as_deref(), left.paths.len()), (None, 1));
    }

    #[test]
    fn links_to_folders_elsewhere_are_no_folders() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [target, elsewhere] = ["target", "elsewhere"].map(|name| folder.path().join(name));
        touch(&elsewhere.join(format!("release/.fingerprint/x-{ONE}/lib-x")));
        touch(&elsewhere.join(format!("x-{TWO}/lib-x")));
        fs::create_dir(&target).expect("writable");
        symlink(elsewhere.join("release"), target.join("release")).expect("links");
        symlink(&elsewhere, target.join("a-b")).expect("links");
        assert!(find(&target).expect("readable").is_empty());
        fs::create_dir_all(target.join("debug/.fingerprint")).expect("writable");
        symlink(&elsewhere, target.join("debug/deps")).expect("links");
        assert!(find(&target).expect("readable").is_empty());
        assert!(find(&target.join("gone")).expect("no error").is_empty());
    }
}
