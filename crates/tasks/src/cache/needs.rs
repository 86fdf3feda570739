//! The needs of the checked-out tree in the cache.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use xtask::last_use::{LastUse, UseRecord};
use xtask::rustc;

use crate::context::XtaskContext;
use crate::driver::{self, DriverSelection};
use crate::failure::{Result, TaskError};
use crate::{binary, gpu, image, kernel, sources, third_party};

/// Folder of cargo's artefacts in the cache.
pub(super) const TARGET: &str = "target";

/// The entries that pruning must not remove.
#[derive(Debug, Default)]
pub(super) struct CacheNeeds {
    /// Folders of the cache, and files in folders of which each entry counts by itself.
    pub(super) folders: HashSet<PathBuf>,
    /// The units that the last builds used.
    pub(super) units: UseRecord,
    /// Names of the workspace's packages.
    pub(super) members: HashSet<String>,
}

impl CacheNeeds {
    /// Finds what a command would find, and makes and fetches nothing.
    pub(super) fn collect(cx: &XtaskContext) -> Result<Self> {
        let mut folders = HashSet::from([rustc::path(cx.cache())]);
        folders.extend(kernel::cached(cx)?.map(|kernel| kernel.folder().to_owned()));
        let drivers = driver::cached(cx, &DriverSelection::usual())?.into_iter();
        folders.extend(drivers.map(|driver| driver.folder));
        folders.extend(driver::linked(cx));
        if let Some(gpu) = gpu::cached(cx)? {
            folders.extend(parent(&gpu.packed));
            // Without the program for GPUs the name of the whole program is unknown, and so is that
            // of its image.
            if let Some(binary) = binary::cached(cx, &gpu)? {
                folders.extend(parent(&binary));
                folders.extend(image::cached(cx, &binary)?);
            }
        }
        let store = cx.cache().join("sources");
        let pins = sources::pinned()?.into_iter().flat_map(|(_, pins)| pins);
        // All accepted versions: a command may find any of them first.
        folders.extend(pins.map(|pin| store.join(pin.sha256)));
        folders.extend(third_party::pinned(cx)?);
        let units = LastUse::for_target(&cx.cache().join(TARGET)).read();
        Ok(Self {
            folders,
            units: units.map_err(TaskError::io("read which artefacts builds used"))?,
            members: members(cx.root())?,
        })
    }
}

#[derive(Deserialize)]
struct WorkspaceManifest {
    workspace: WorkspaceMembers,
}

#[derive(Deserialize)]
struct WorkspaceMembers {
    members: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct PackageManifest {
    package: PackageName,
}

#[derive(Deserialize)]
struct PackageName {
    name: String,
}

/// Names of the workspace's packages.
fn members(root: &Path) -> Result<HashSet<String>> {
    let workspace: WorkspaceManifest = manifest(root)?;
    let folders = workspace.workspace.members.into_iter();
    let name = |folder: PathBuf| {
        let package: PackageManifest = manifest(&root.join(folder))?;
        Ok(package.package.name)
    };
    folders.map(name).collect()
}

fn manifest<T: DeserializeOwned>(folder: &Path) -> Result<T> {
    let path = folder.join("Cargo.toml");
    let text =
        fs::read_to_string(&path).map_err(TaskError::io(format!("read {}", path.display())))?;
    toml::from_str(&text)
        .map_err(|error| TaskError::Workspace(format!("{}: {error}", path.display())))
}

fn parent(file: &Path) -> Option<PathBuf> {
    file.parent().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_of_the_workspace_is_a_member() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let members = members(&root).expect("the manifests are readable");
        for name in ["alknet", "alknet-tasks", "alknet-vulkan", "xtask"] {
            assert!(members.contains(name), "{name} in {members:?}");
        }
        assert!(!members.contains("serde"));
    }
}
