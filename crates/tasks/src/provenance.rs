//! What an image is made from: the components for its SBOM, and the sources and tools for its manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use alknet_image::{BUILD_TIME_VARIABLE, BuildProvenance, ManifestSource, named_build_time};
use alknet_licenses::{ComponentLocation, LicenseInventory, SoftwareComponent};

use crate::context::XtaskContext;
use crate::driver;
use crate::failure::{Result, TaskError};
use crate::kernel::{self, KernelFiles};
use crate::sources::{self, SourcePin};
use crate::third_party;
use crate::{debian, digest};

/// The driver that needs LLVM. Every other one is that of a real GPU, and needs libdrm.
const LLVMPIPE: &str = "llvmpipe";

/// Components whose version and hash are those of what was built, by their names in the inventory.
const LINUX: &str = "Linux";
const MESA: &str = "Mesa";
const LLVM: &str = "LLVM";
const RUST: &str = "Rust standard library";
const WORD_LIST: &str = "BIP39 word list";

/// The file of the tree with the word list, which is the whole part.
const WORD_LIST_FILE: &str = "crates/vault/src/bip39/english.txt";

/// The provenance of an image with this kernel and with the drivers of the last build.
pub(crate) fn provenance(cx: &XtaskContext, kernel: &KernelFiles) -> Result<BuildProvenance> {
    let value = env::var_os(BUILD_TIME_VARIABLE);
    let seconds = build_time(cx.root(), value.as_deref())?;
    let inventory = LicenseInventory::own();
    let inventory = inventory.map_err(|error| TaskError::Workspace(error.to_string()))?;
    let origins = ImageOrigins::find(cx, kernel, &inventory)?;
    let drivers = &origins.drivers;
    let components = inventory.components.into_iter();
    let components = components.filter(|component| is_in_image(component.place, drivers));
    let components = components.map(|component| origins.complete(component));
    let components = components.collect::<Result<Vec<_>>>()?;
    Ok(BuildProvenance::new(
        components,
        origins.sources(cx)?,
        seconds,
    ))
}

/// Fails if [`BUILD_TIME_VARIABLE`] names no time. A build takes minutes before it asks for the provenance.
pub(crate) fn check_build_time() -> Result<()> {
    named_build_time(env::var_os(BUILD_TIME_VARIABLE).as_deref())?;
    Ok(())
}

/// The time of the build: that of the variable with this value, or else that of the commit.
fn build_time(root: &Path, value: Option<&OsStr>) -> Result<i64> {
    if let Some(seconds) = named_build_time(value)? {
        return Ok(seconds);
    }
    let log = crate::git(root)
        .args(["log", "-1", "--format=%ct"])
        .output();
    let text = log.map_or_else(|_| Vec::new(), |output| output.stdout);
    // A copy without history has the first second of 1970.
    Ok(String::from_utf8_lossy(&text).trim().parse().unwrap_or(0))
}

/// The origins of one build.
#[derive(Debug)]
struct ImageOrigins {
    linux: SourcePin,
    mesa: SourcePin,
    libdrm: SourcePin,
    /// Names of the drivers.
    drivers: Vec<String>,
    /// The version of LLVM's Debian package, if a driver has LLVM.
    llvm: Option<String>,
    /// SHA-256 of that package's archives.
    llvm_sha256: Option<String>,
    /// The compiler's version, with its commit.
    rustc: String,
    /// SHA-256 of the libraries of Rust's standard library.
    rust_sha256: String,
    /// SHA-256 of the word list.
    word_list: String,
    /// SHA-256 of each crate, by its name.
    crates: BTreeMap<String, String>,
    /// Versions of the compiler and the linker of C.
    tools: String,
}

impl ImageOrigins {
    fn find(cx: &XtaskContext, kernel: &KernelFiles, inventory: &LicenseInventory) -> Result<Self> {
        let folders = driver::linked(cx);
        let mut noted = folders.iter();
        let llvm = noted.find_map(|folder| Some((driver::llvm_of(folder)?, folder)));
        let (llvm, llvm_folder) = llvm.unzip();
        let names = folders.iter().filter_map(|folder| driver_name(folder));
        Ok(Self {
            linux: kernel::source(cx, kernel)?,
            mesa: sources::likely(cx, "mesa")?,
            libdrm: sources::likely(cx, "libdrm")?,
            drivers: names.collect(),
            llvm: llvm.as_deref().and_then(llvm_package_version),
            llvm_sha256: llvm_folder.and_then(|folder| driver::llvm_sha256_of(folder)),
            rustc: third_party::rustc_version(cx)?,
            rust_sha256: rust_sha256(&third_party::rust_libraries(cx)?)?,
            word_list: file_sha256(&cx.root().join(WORD_LIST_FILE))?,
            crates: crate_hashes(inventory),
            tools: kernel::tool_versions()?,
        })
    }

    /// Fills in what only this build knows.
    fn complete(&self, mut component: SoftwareComponent) -> Result<SoftwareComponent> {
        let pin = match component.name.as_str() {
            LINUX => Some(&self.linux),
            MESA => Some(&self.mesa),
            _ => None,
        };
        if let Some(pin) = pin {
            component.version = Some(pin.version.clone());
            component.sha256 = Some(pin.sha256.clone());
            component.source = sources::address(pin);
        }
        match component.name.as_str() {
            RUST => {
                let release = self.rustc.split_whitespace().next();
                component.version = release.map(str::to_owned);
                component.sha256 = Some(self.rust_sha256.clone());
            }
            WORD_LIST => component.sha256 = Some(self.word_list.clone()),
            LLVM => {
                component.version = self.llvm.clone().or(component.version);
                component.sha256.clone_from(&self.llvm_sha256);
            }
            _ => {
                if let Some(package) = &component.debian {
                    component.version = debian::version(package).or(component.version);
                    component.sha256 = debian::archives_sha256(package)?;
                }
            }
        }
        if let Some(carrier) = &component.within {
            component.sha256 = self.crates.get(carrier).cloned();
        }
        Ok(component)
    }

    /// The sources and tools, in the manifest's order.
    fn sources(&self, cx: &XtaskContext) -> Result<Vec<ManifestSource>> {
        let pinned = |name: &str, pin: &SourcePin| {
            let (version, hash) = (pin.version.clone(), pin.sha256.clone());
            ManifestSource::new(name, Some(version), Some(hash))
        };
        let lock_hash = file_sha256(&cx.root().join("Cargo.lock"))?;
        let mut sources = vec![pinned("linux", &self.linux)];
        if is_in_image(ComponentLocation::Driver, &self.drivers) {
            sources.push(pinned("mesa", &self.mesa));
        }
        if is_in_image(ComponentLocation::Libdrm, &self.drivers) {
            sources.push(pinned("libdrm", &self.libdrm));
        }
        if let Some(version) = &self.llvm {
            let (version, hash) = (version.clone(), self.llvm_sha256.clone());
            sources.push(ManifestSource::new("llvm", Some(version), hash));
        }
        sources.push(ManifestSource::new("Cargo.lock", None, Some(lock_hash)));
        sources.push(ManifestSource::new("rustc", Some(self.rustc.clone()), None));
        // In the order in which they are asked for.
        for (name, version) in ["gcc", "ld"].into_iter().zip(self.tools.lines()) {
            sources.push(ManifestSource::new(name, Some(version.to_owned()), None));
        }
        Ok(sources)
    }
}

/// Whether an image with these drivers has components of this place.
fn is_in_image(place: ComponentLocation, drivers: &[String]) -> bool {
    match place {
        ComponentLocation::Driver => !drivers.is_empty(),
        ComponentLocation::Llvm => drivers.iter().any(|driver| driver == LLVMPIPE),
        ComponentLocation::Libdrm => drivers.iter().any(|driver| driver != LLVMPIPE),
        _ => true,
    }
}

/// The driver in a folder such as `llvmpipe-0123456789abcdef`.
fn driver_name(folder: &Path) -> Option<String> {
    let (name, _) = folder.file_name()?.to_str()?.rsplit_once('-')?;
    Some(name.to_owned())
}

/// The last word of a note such as `LLVM 19.1.7 1:19.1.7-3~deb12u1`.
fn llvm_package_version(note: &str) -> Option<String> {
    note.split_whitespace().next_back().map(str::to_owned)
}

/// The hash of each crate, by its name. A crate that carries another part is there in one version only.
fn crate_hashes(inventory: &LicenseInventory) -> BTreeMap<String, String> {
    let crates = inventory.components.iter().filter(|it| it.is_crate);
    let hash = |it: &SoftwareComponent| Some((it.name.clone(), it.sha256.clone()?));
    crates.filter_map(hash).collect()
}

/// One SHA-256 for the libraries in the compiler's folder, by their names.
fn rust_sha256(folder: &Path) -> Result<String> {
    let failed = || TaskError::io(format!("read {}", folder.display()));
    let mut libraries = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(failed())? {
        let name = entry.map_err(failed())?.file_name().into_string();
        libraries.extend(name.ok().filter(|name| name.ends_with(".rlib")));
    }
    digest::of_list(folder, &libraries).map_err(failed())
}

fn file_sha256(path: &Path) -> Result<String> {
    digest::of_file(path).map_err(TaskError::io(format!("read {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drivers(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn an_image_has_the_components_of_its_drivers() {
        let has = |place, names: &[&str]| is_in_image(place, &drivers(names));
        for place in [
            ComponentLocation::Driver,
            ComponentLocation::Llvm,
            ComponentLocation::Libdrm,
        ] {
            assert!(!has(place, &[]), "{place:?}");
            assert!(has(place, &["llvmpipe", "v3dv"]), "{place:?}");
        }
        assert!(!has(ComponentLocation::Llvm, &["v3dv"]));
        assert!(!has(ComponentLocation::Libdrm, &["llvmpipe"]));
        assert!(has(ComponentLocation::Binary, &[]) && has(ComponentLocation::Kernel, &[]));
    }

    #[test]
    fn the_folder_of_a_driver_and_the_note_in_it_are_read() {
        let folder = Path::new("/cache/vulkan/llvmpipe-0123456789abcdef");
        assert_eq!(driver_name(folder).as_deref(), Some("llvmpipe"));
        let note = llvm_package_version("LLVM 19.1.7 1:19.1.7-3~deb12u1\n");
        assert_eq!(note.as_deref(), Some("1:19.1.7-3~deb12u1"));
    }

    #[test]
    fn a_time_of_the_build_that_is_no_number_is_refused() {
        let time = |text: &str| build_time(Path::new("/"), Some(text.as_ref()));
        assert_eq!(time("1700000000").expect("a number"), 1_700_000_000);
        let refused = time("yesterday").expect_err("no number");
        assert_eq!(refused.exit_code(), 2);
        let said = refused.to_string();
        assert!(said.contains(BUILD_TIME_VARIABLE), "{said}");
    }

    /// The inventory names the parts whose versions this build fills in.
    #[test]
    fn the_parts_with_versions_of_the_build_are_in_the_inventory() {
        let inventory = LicenseInventory::own().expect("whole");
        for name in [LINUX, MESA, LLVM, RUST, WORD_LIST] {
            let mut components = inventory.components.iter();
            assert!(components.any(|it| it.name == name), "{name}");
        }
    }

    /// A part within a crate has the hash of the crate, of which the inventory has one version.
    #[test]
    fn each_crate_that_carries_a_part_has_one_hash() {
        let inventory = LicenseInventory::own().expect("whole");
        let hashes = crate_hashes(&inventory);
        let carriers = inventory
            .components
            .iter()
            .filter_map(|it| it.within.as_ref());
        let carriers: Vec<_> = carriers.collect();
        assert!(carriers.len() > 3, "{carriers:?}");
        for carrier in carriers {
            assert!(hashes.contains_key(carrier), "{carrier}");
            let components = inventory.components.iter();
            let versions = components.filter(|it| it.is_crate && it.name == *carrier);
            assert_eq!(versions.count(), 1, "{carrier}");
        }
    }

    #[test]
    fn the_standard_library_hashes_by_its_libraries_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| {
            fs::write(folder.path().join(name), text).expect("writable");
            rust_sha256(folder.path()).expect("readable")
        };
        let one = write("libstd-1.rlib", "a");
        assert_eq!(write("libstd-1.so", "b"), one);
        let two = write("libcore-1.rlib", "b");
        assert_ne!(two, one);
        assert_ne!(write("libcore-1.rlib", "c"), two);
    }
}
