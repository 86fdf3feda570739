//! The parts that an image consists of, their licences, and the texts of the licences.
//!
//! `licenses.zst` and `components.json` are made by `cargo xtask licenses --write` from the lock file,
//! from the licence files of the crates, and from `parts.toml`. They are kept in the tree: the binary
//! contains the first of them, so a build that made it would have to know the crates of the binary
//! before it compiles them, and would compile again whenever one file of a dependency differs. A test
//! of `alknet-tasks` makes both again and fails if the ones in the tree are older.

use std::io;

use serde::{Deserialize, Serialize};

/// What `cargo xtask licenses --write` made: a frame of Zstandard with the JSON of a
/// [`LicenseInventory`].
const INVENTORY: &[u8] = include_bytes!("../licenses.zst");

/// Largest unpacked inventory in bytes, so that a damaged frame does not fill the memory.
pub const INVENTORY_BYTES_MAX: usize = 8 << 20;

/// Level at which the inventory is packed. It is packed rarely, and unpacking takes the same time at
/// every level.
const LEVEL: i32 = 19;

/// An inventory cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InventoryError {
    /// The frame cannot be unpacked.
    #[error("the list of licences is damaged: {0}")]
    Frame(io::Error),
    /// The text in the frame is not an inventory.
    #[error("the list of licences is damaged: {0}")]
    Json(serde_json::Error),
}

/// Where a component is in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ComponentLocation {
    /// The one binary, or the program for GPUs whatever drivers it has.
    Binary,
    /// The kernel.
    Kernel,
    /// The EFI program's first part.
    Stub,
    /// The boot loader.
    Loader,
    /// The program for GPUs, if it has a Vulkan driver.
    Driver,
    /// The program for GPUs, if it has llvmpipe.
    Llvm,
    /// The program for GPUs, if it has the driver of a real GPU.
    Libdrm,
}

impl ComponentLocation {
    /// The name in lists.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Kernel => "kernel",
            Self::Stub => "stub",
            Self::Loader => "loader",
            Self::Driver => "driver",
            Self::Llvm => "llvm",
            Self::Libdrm => "libdrm",
        }
    }
}

/// A part of an image that has a licence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SoftwareComponent {
    /// Its name; of a crate the name on crates.io.
    pub name: String,
    /// Its version. Parts that come from the machine that builds have theirs in an image's SBOM only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub version: Option<String>,
    /// Where it is in an image.
    pub place: ComponentLocation,
    /// Whether it is a crate of crates.io.
    #[serde(rename = "crate")]
    pub is_crate: bool,
    /// Its licence as an SPDX expression, or `NOASSERTION`.
    pub license: String,
    /// SHA-256 of the archive that it comes from, in lower-case hexadecimal. An image's SBOM has it for parts from the
    /// machine that builds as well.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sha256: Option<String>,
    /// The address of that archive. That of a crate follows from its name and version.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source: Option<String>,
    /// The crate that carries its source.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub within: Option<String>,
    /// The Debian package of the machine that builds from which it is linked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub debian: Option<String>,
    /// Where people find it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub homepage: Option<String>,
    /// Names of its licence texts.
    pub texts: Vec<String>,
}

impl SoftwareComponent {
    /// A component without a version, a source and texts.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        place: ComponentLocation,
        license: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            version: None,
            place,
            is_crate: false,
            license: license.into(),
            sha256: None,
            source: None,
            within: None,
            debian: None,
            homepage: None,
            texts: Vec::new(),
        }
    }

    /// The address of the archive that it comes from.
    #[must_use]
    pub fn download_location(&self) -> Option<String> {
        match (&self.version, self.is_crate) {
            // The address follows from name and version, so it is not stored for each of the crates.
            (Some(version), true) => {
                let name = &self.name;
                Some(format!(
                    "https://static.crates.io/crates/{name}/{name}-{version}.crate"
                ))
            }
            _ => self.source.clone(),
        }
    }
}

/// The text of a licence. Texts that differ in white space only are one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LicenseText {
    /// The name by which components refer to it.
    pub name: String,
    /// The text, with line feeds.
    pub text: String,
}

impl LicenseText {
    /// A text with its name.
    #[must_use]
    pub const fn new(name: String, text: String) -> Self {
        Self { name, text }
    }
}

/// Components with the texts of their licences.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LicenseInventory {
    /// The components: alknet, the parts of other languages, and the crates by name and version.
    pub components: Vec<SoftwareComponent>,
    /// The texts, each once.
    pub texts: Vec<LicenseText>,
}

impl LicenseInventory {
    /// An inventory of these components and texts.
    #[must_use]
    pub const fn new(components: Vec<SoftwareComponent>, texts: Vec<LicenseText>) -> Self {
        Self { components, texts }
    }

    /// The inventory of this binary.
    ///
    /// ```
    /// use alknet_licenses::LicenseInventory;
    ///
    /// let inventory = LicenseInventory::own()?;
    /// let kernel = inventory.components.iter().find(|it| it.name == "Linux");
    /// let kernel = kernel.expect("every image has it");
    /// assert!(kernel.license.starts_with("GPL-2.0-only"));
    /// assert!(inventory.texts_of(kernel).any(|text| text.text.contains("GNU GENERAL PUBLIC LICENSE")));
    /// # Ok::<(), alknet_licenses::InventoryError>(())
    /// ```
    ///
    /// # Errors
    /// The file of this program is damaged.
    pub fn own() -> Result<Self, InventoryError> {
        Self::unpack(INVENTORY)
    }

    /// Reads an inventory.
    ///
    /// # Errors
    /// The frame or the text in it is damaged, or unpacks to more than [`INVENTORY_BYTES_MAX`].
    pub fn unpack(frame: &[u8]) -> Result<Self, InventoryError> {
        // The limit is for the text: a damaged frame of a few bytes could unpack to gigabytes.
        let json =
            zstd::bulk::decompress(frame, INVENTORY_BYTES_MAX).map_err(InventoryError::Frame)?;
        serde_json::from_slice(&json).map_err(InventoryError::Json)
    }

    /// The bytes for `licenses.zst`.
    ///
    /// # Errors
    /// The library cannot get the memory to compress.
    pub fn pack(&self) -> Result<Vec<u8>, InventoryError> {
        let json = serde_json::to_vec(self).map_err(InventoryError::Json)?;
        zstd::bulk::compress(&json, LEVEL).map_err(InventoryError::Frame)
    }

    /// The texts of a component, in its order.
    pub fn texts_of<'a>(
        &'a self,
        component: &'a SoftwareComponent,
    ) -> impl Iterator<Item = &'a LicenseText> {
        let find = move |name: &String| self.texts.iter().find(|text| text.name == *name);
        // A missing text hides no other: the list is shown with what there is.
        component.texts.iter().filter_map(find)
    }
}

/// The bytes that the inventory takes in the binary.
#[must_use]
pub const fn packed_bytes() -> usize {
    INVENTORY.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The promise of docs/image.md: the texts take little of the image.
    const PACKED_BYTES_MAX: usize = 150_000;

    #[test]
    fn every_component_has_a_licence_and_its_texts() {
        let inventory = LicenseInventory::own().expect("whole");
        assert!(inventory.components.len() > 200, "crates and parts");
        for component in &inventory.components {
            assert!(!component.license.is_empty(), "{}", component.name);
            let found = inventory.texts_of(component).count();
            assert_eq!(found, component.texts.len(), "{}", component.name);
            assert!(found > 0, "{} has no text", component.name);
        }
        for text in &inventory.texts {
            let uses = |it: &SoftwareComponent| it.texts.contains(&text.name);
            assert!(inventory.components.iter().any(uses), "{}", text.name);
            assert!(text.text.len() > 10, "{}: {}", text.name, text.text);
        }
    }

    #[test]
    fn the_inventory_takes_little_of_the_binary() {
        let bytes = packed_bytes();
        assert!(bytes < PACKED_BYTES_MAX, "{bytes} bytes");
    }

    #[test]
    fn what_is_packed_is_read_back_and_damage_is_an_error() {
        let component = SoftwareComponent::new("Linux", ComponentLocation::Kernel, "GPL-2.0-only");
        let text = LicenseText::new("a".to_owned(), "permission".to_owned());
        let inventory = LicenseInventory::new(vec![component], vec![text]);
        let packed = inventory.pack().expect("it packs");
        let read = LicenseInventory::unpack(&packed).expect("whole");
        assert_eq!(read, inventory);
        LicenseInventory::unpack(&packed[1..]).expect_err("not a frame");
        let other = zstd::bulk::compress(b"[]", 1).expect("it packs");
        LicenseInventory::unpack(&other).expect_err("not an inventory");
    }

    #[test]
    fn the_address_of_a_crate_follows_from_its_name() {
        let mut component = SoftwareComponent::new("aes", ComponentLocation::Binary, "MIT");
        component.version = Some("0.9.0".to_owned());
        assert_eq!(component.download_location(), None);
        component.is_crate = true;
        assert_eq!(
            component.download_location().as_deref(),
            Some("https://static.crates.io/crates/aes/aes-0.9.0.crate")
        );
    }
}
