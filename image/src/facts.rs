//! What is known about input files by their hashes, for a caller who has the files and not their sources.

use std::path::Path;

use alknet_embedded_exe::EmbeddedExe;
use alknet_licenses::{ComponentLocation, LicenseInventory, SoftwareComponent};

use crate::error::ImageError;
use crate::form::OutputRole;
use crate::inputs::{invalid, read_file, read_regular};
use crate::manifest::{MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest, ManifestInput, hex_sha256};
use crate::sbom;

/// The name of the program for GPUs, of which no file says which drivers it has.
const GPU_PROGRAM: &str = "alknet-gpu";

/// Maximum length in bytes of a bill of materials that is read. That of the whole image has less than a tenth.
const BILL_BYTES_MAX: u64 = 16 << 20;

/// The components of files whose hashes are known.
#[derive(Clone, Debug)]
pub struct InputFacts {
    /// As the manifest of an image names them.
    files: Vec<ManifestInput>,
    components: Vec<SoftwareComponent>,
    /// Time of the components' document, in seconds since 1970.
    seconds: Option<i64>,
}

impl InputFacts {
    /// The facts in the folder of a finished image: its manifest has the hashes of its inputs, and its bill of materials
    /// their components. No signature is checked.
    ///
    /// # Errors
    /// The folder has no manifest or no bill of materials, one of them is no regular file or too long, the bill is not the
    /// one that the manifest names, or it does not say where in the image each component is.
    pub fn of_image(folder: &Path) -> Result<Self, ImageError> {
        let path = folder.join(MANIFEST_FILE);
        let manifest = read_regular("image manifest", &path, MANIFEST_BYTES_MAX)?;
        let manifest = Manifest::parse(&manifest, &path)?;
        let mut outputs = manifest.outputs.iter();
        let Some(bill) = outputs.find(|it| it.role == OutputRole::Sbom) else {
            return Err(ImageError::Argument {
                what: "folder",
                value: folder.display().to_string(),
                why: "its image has no bill of materials; name the folder of an image that has one",
            });
        };
        let what = "bill of materials";
        let path = folder.join(&bill.file);
        let document = read_regular(what, &path, BILL_BYTES_MAX)?;
        if hex_sha256(&document) != bill.sha256 {
            let why = "it has another SHA-256 than the manifest beside it says; copy both again";
            return Err(invalid(what, &path, why.to_owned()));
        }
        let (components, seconds) =
            sbom::parse(&document).map_err(|why| invalid(what, &path, why))?;
        Ok(Self {
            files: manifest.inputs,
            components,
            seconds: Some(seconds),
        })
    }

    /// The facts about a binary whose inventory the caller has, such as the running one. The inventory does not say which
    /// drivers the program for GPUs has, so that program is one component without a known licence.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of_binary(path: &Path, inventory: LicenseInventory) -> Result<Self, ImageError> {
        let bytes = read_file("binary", path)?;
        let components = inventory.components.into_iter();
        let mut components: Vec<_> = components
            .filter(|it| it.place == ComponentLocation::Binary)
            .collect();
        components.extend(gpu_program(&bytes));
        Ok(Self {
            files: vec![ManifestInput {
                name: "binary".to_owned(),
                bytes: bytes.len() as u64,
                sha256: hex_sha256(&bytes),
            }],
            components,
            seconds: None,
        })
    }

    /// The time of the document from which the facts come, in seconds since 1970. A binary has none.
    #[must_use]
    pub const fn seconds(&self) -> Option<i64> {
        self.seconds
    }

    /// Whether all of these files are known.
    fn know(&self, files: &[&ManifestInput]) -> bool {
        files.iter().all(|file| self.files.contains(file))
    }
}

/// The components of the input files. Each group of files has those of the first facts that know all of its files. If
/// there are none, each file of the group is a component of its own, with its hash and without a licence.
pub(crate) fn components(
    facts: &[InputFacts],
    inputs: &[ManifestInput],
    kernel_release: &str,
) -> Vec<SoftwareComponent> {
    let mut known = vec![Vec::new(); facts.len()];
    let mut unknown = Vec::new();
    for group in InputGroup::ALL {
        let files = group.files(inputs);
        // The bill of materials lists a crate of both programs once, as a part of the binary.
        let whole = match group {
            InputGroup::Loader => [files.clone(), InputGroup::Binary.files(inputs)].concat(),
            _ => files.clone(),
        };
        match facts.iter().position(|it| it.know(&whole)) {
            Some(at) if !files.is_empty() => known[at].push(group),
            _ => unknown.extend(files.iter().map(|file| group.unknown(file, kernel_release))),
        }
    }
    let known = facts.iter().zip(known).flat_map(|(facts, groups)| {
        let components = facts.components.iter();
        components.filter(move |it| groups.contains(&InputGroup::of_component(it)))
    });
    known.cloned().chain(unknown).collect()
}

/// Inputs that have components in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InputGroup {
    Binary,
    Kernel,
    Stub,
    Grub,
    Loader,
}

impl InputGroup {
    const ALL: [Self; 5] = [
        Self::Binary,
        Self::Kernel,
        Self::Stub,
        Self::Grub,
        Self::Loader,
    ];

    /// The group of a component.
    const fn of_component(component: &SoftwareComponent) -> Self {
        match component.place {
            ComponentLocation::Kernel => Self::Kernel,
            ComponentLocation::Stub => Self::Stub,
            // Of the two boot loaders, the one for UEFI is made of crates.
            ComponentLocation::Loader if component.is_crate => Self::Loader,
            ComponentLocation::Loader => Self::Grub,
            _ => Self::Binary,
        }
    }

    /// Where in the image the inputs are.
    const fn place(self) -> ComponentLocation {
        match self {
            Self::Binary => ComponentLocation::Binary,
            Self::Kernel => ComponentLocation::Kernel,
            Self::Stub => ComponentLocation::Stub,
            Self::Grub | Self::Loader => ComponentLocation::Loader,
        }
    }

    /// Its inputs.
    fn files(self, inputs: &[ManifestInput]) -> Vec<&ManifestInput> {
        let is_of_group = |it: &&ManifestInput| match self {
            Self::Binary => it.name == "binary",
            Self::Kernel => ["kernel", "vmlinux"].contains(&it.name.as_str()),
            Self::Stub => it.name == "stub",
            Self::Grub => it.name.starts_with("GRUB "),
            Self::Loader => it.name == "loader",
        };
        inputs.iter().filter(is_of_group).collect()
    }

    /// The component for an input that no facts know.
    fn unknown(self, file: &ManifestInput, kernel_release: &str) -> SoftwareComponent {
        let mut component = SoftwareComponent::new(&file.name, self.place(), sbom::UNKNOWN);
        component.sha256 = Some(file.sha256.clone());
        // The header of a kernel names its release.
        component.version = (self == Self::Kernel).then(|| kernel_release.to_owned());
        component
    }
}

/// The program for GPUs that a binary carries, as it is packed there.
fn gpu_program(binary: &[u8]) -> Option<SoftwareComponent> {
    let found = EmbeddedExe::find_in(binary).ok()?;
    let from = usize::try_from(found.offset).ok()?;
    let bytes = usize::try_from(found.packed).ok()?;
    let packed = binary.get(from..)?.get(..bytes)?;
    let mut component =
        SoftwareComponent::new(GPU_PROGRAM, ComponentLocation::Driver, sbom::UNKNOWN);
    component.sha256 = Some(hex_sha256(packed));
    Some(component)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(name: &str, sha256: &str) -> ManifestInput {
        ManifestInput {
            name: name.to_owned(),
            bytes: 1,
            sha256: sha256.to_owned(),
        }
    }

    fn part(name: &str, place: ComponentLocation, is_crate: bool) -> SoftwareComponent {
        let mut component = SoftwareComponent::new(name, place, "MIT");
        component.is_crate = is_crate;
        component
    }

    /// Facts about one build of every part.
    fn facts() -> InputFacts {
        InputFacts {
            files: vec![
                input("kernel", "k"),
                input("binary", "b"),
                input("vmlinux", "v"),
                input("stub", "s"),
                input("GRUB boot sector", "g"),
                input("GRUB core image", "c"),
                input("loader", "l"),
            ],
            components: vec![
                part("Linux", ComponentLocation::Kernel, false),
                part("systemd-stub", ComponentLocation::Stub, false),
                part("GRUB", ComponentLocation::Loader, false),
                part("Mesa", ComponentLocation::Driver, false),
                part("tokio", ComponentLocation::Binary, true),
                part("uefi", ComponentLocation::Loader, true),
            ],
            seconds: Some(7),
        }
    }

    /// The names of the components, and the hashes of those without a licence.
    fn found(inputs: &[(&str, &str)], facts: &[InputFacts]) -> Vec<String> {
        let inputs: Vec<_> = inputs
            .iter()
            .map(|(name, sha256)| input(name, sha256))
            .collect();
        let components = components(facts, &inputs, "6.12-own");
        let named = components.iter().map(|it| match it.license.as_str() {
            "NOASSERTION" => format!("{}:{}", it.name, it.sha256.as_deref().unwrap_or_default()),
            _ => it.name.clone(),
        });
        named.collect()
    }

    #[test]
    fn files_of_the_known_build_have_its_components() {
        let inputs = [
            ("kernel", "k"),
            ("binary", "b"),
            ("stub", "s"),
            ("GRUB boot sector", "g"),
            ("GRUB core image", "c"),
            ("loader", "l"),
            ("root document of updates", "r"),
        ];
        let all = ["Linux", "systemd-stub", "GRUB", "Mesa", "tokio", "uefi"];
        assert_eq!(found(&inputs, &[facts()]), all);
        // What the image does not have has no components.
        assert_eq!(found(&inputs[..2], &[facts()]), ["Linux", "Mesa", "tokio"]);
    }

    #[test]
    fn another_file_is_named_with_its_hash_and_its_neighbours_stay_known() {
        let inputs = [
            ("kernel", "other"),
            ("binary", "b"),
            ("GRUB boot sector", "g"),
            ("GRUB core image", "other"),
        ];
        let expected = [
            "Mesa",
            "tokio",
            "kernel:other",
            "GRUB boot sector:g",
            "GRUB core image:other",
        ];
        assert_eq!(found(&inputs, &[facts()]), expected);
        let kernels = [("kernel", "k"), ("vmlinux", "other")];
        assert_eq!(
            found(&kernels, &[facts()]),
            ["kernel:k", "vmlinux:other"],
            "one of them was built from something else"
        );
        let unknown = components(&[], &[input("kernel", "x")], "6.12-own");
        assert_eq!(unknown[0].version.as_deref(), Some("6.12-own"));
    }

    /// The bill of the known build lists the crates of both programs as parts of the binary.
    #[test]
    fn a_loader_beside_another_binary_is_not_known() {
        let inputs = [("binary", "other"), ("loader", "l")];
        assert_eq!(found(&inputs, &[facts()]), ["binary:other", "loader:l"]);
    }

    #[test]
    fn the_first_facts_that_know_a_file_count() {
        let own = InputFacts {
            files: vec![input("binary", "b"), input("binary", "new")],
            components: vec![part("serde", ComponentLocation::Binary, true)],
            seconds: None,
        };
        let both = [facts(), own];
        let shipped = [("kernel", "k"), ("binary", "b")];
        assert_eq!(found(&shipped, &both), ["Linux", "Mesa", "tokio"]);
        let newer = [("kernel", "k"), ("binary", "new")];
        assert_eq!(found(&newer, &both), ["Linux", "serde"]);
    }

    #[test]
    fn the_program_for_gpus_is_a_component_of_unknown_licence() {
        let mut packed = Vec::new();
        alknet_embedded_exe::pack(b"program", &mut packed, 1).expect("it packs");
        let trailer = alknet_embedded_exe::trailer(packed.len() as u64, 7);
        let binary = [&b"binary"[..], &packed, &trailer].concat();
        let found = gpu_program(&binary).expect("it carries one");
        assert_eq!(found.sha256, Some(hex_sha256(&packed)));
        assert_eq!(found.license, sbom::UNKNOWN);
        assert_eq!(gpu_program(b"binary"), None);
    }
}
