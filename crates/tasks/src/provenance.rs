//! What an image is made from: the components for its SBOM, and the sources and tools for its manifest.

use std::env;
use std::ffi::OsStr;
use std::path::Path;

use alknet_image::{BUILD_TIME_VARIABLE, BuildProvenance, ManifestSource, named_build_time};
use alknet_licenses::{ComponentLocation, LicenseInventory, SoftwareComponent};

use crate::context::XtaskContext;
use crate::driver;
use crate::failure::{Result, TaskError};
use crate::kernel::{self, KernelFiles};
use crate::sources::{self, SourcePin};
use crate::third_party;
use crate::{digest, steps};

/// The driver that needs LLVM. Every other one is that of a real GPU, and needs libdrm.
const LLVMPIPE: &str = "llvmpipe";

/// Components whose version and hash are those of what was built, by their names in the inventory.
const LINUX: &str = "Linux";
const MESA: &str = "Mesa";
const LLVM: &str = "LLVM";
const RUST: &str = "Rust standard library";

/// The provenance of an image with this kernel and with the drivers of the last build.
pub(crate) fn provenance(cx: &XtaskContext, kernel: &KernelFiles) -> Result<BuildProvenance> {
    let value = env::var_os(BUILD_TIME_VARIABLE);
    let seconds = build_time(cx.root(), value.as_deref())?;
    let origins = ImageOrigins::find(cx, kernel)?;
    let inventory = LicenseInventory::own();
    let inventory = inventory.map_err(|error| TaskError::Workspace(error.to_string()))?;
    let drivers = &origins.drivers;
    let components = inventory.components.into_iter();
    let components = components.filter(|component| is_in_image(component.place, drivers));
    let components = components.map(|component| origins.complete(component));
    let components = components.collect();
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
    /// The compiler's version, with its commit.
    rustc: String,
    /// Versions of the compiler and the linker of C.
    tools: String,
}

impl ImageOrigins {
    fn find(cx: &XtaskContext, kernel: &KernelFiles) -> Result<Self> {
        let folders = driver::linked(cx);
        let llvm = folders.iter().find_map(|folder| driver::llvm_of(folder));
        let names = folders.iter().filter_map(|folder| driver_name(folder));
        Ok(Self {
            linux: kernel::source(cx, kernel)?,
            mesa: sources::likely(cx, "mesa")?,
            libdrm: sources::likely(cx, "libdrm")?,
            drivers: names.collect(),
            llvm: llvm.as_deref().and_then(llvm_package_version),
            rustc: third_party::rustc_version(cx)?,
            tools: kernel::tool_versions()?,
        })
    }

    /// Fills in what only this build knows.
    fn complete(&self, mut component: SoftwareComponent) -> SoftwareComponent {
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
            }
            LLVM => component.version = self.llvm.clone().or(component.version),
            _ => {
                if let Some(package) = &component.debian {
                    component.version = debian_version(package).or(component.version);
                }
            }
        }
        component
    }

    /// The sources and tools, in the manifest's order.
    fn sources(&self, cx: &XtaskContext) -> Result<Vec<ManifestSource>> {
        let pinned = |name: &str, pin: &SourcePin| {
            let (version, hash) = (pin.version.clone(), pin.sha256.clone());
            ManifestSource::new(name, Some(version), Some(hash))
        };
        let lock = cx.root().join("Cargo.lock");
        let lock_hash =
            digest::of_file(&lock).map_err(TaskError::io(format!("read {}", lock.display())))?;
        let mut sources = vec![pinned("linux", &self.linux)];
        if is_in_image(ComponentLocation::Driver, &self.drivers) {
            sources.push(pinned("mesa", &self.mesa));
        }
        if is_in_image(ComponentLocation::Libdrm, &self.drivers) {
            sources.push(pinned("libdrm", &self.libdrm));
        }
        if let Some(version) = &self.llvm {
            sources.push(ManifestSource::new("llvm", Some(version.clone()), None));
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

/// The version of an installed package. `None` on a system without Debian's packages.
fn debian_version(package: &str) -> Option<String> {
    let mut ask = steps::program("dpkg-query");
    let output = ask.args(["-W", "-f=${Version}", package]).output().ok();
    let output = output.filter(|output| output.status.success())?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!version.is_empty()).then_some(version)
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
        for name in [LINUX, MESA, LLVM, RUST] {
            let mut components = inventory.components.iter();
            assert!(components.any(|it| it.name == name), "{name}");
        }
    }
}
