//! Metadata services of clouds. The firmware's tables name the cloud. PID 1 has a helper ask its
//! service and puts the answer into a folder in memory, which this module reads like any other
//! source. PID 1 itself parses no answer of a network.

use std::fmt;
use std::path::PathBuf;

use alknet_core::config::CONFIG_BYTES_MAX;

use super::smbios::strings;
use super::{Bytes, SourceContents, unreadable};
use crate::{ConfigOrigin, ProvisioningError, SourceDiagnostic, SourcePaths, file};

/// Most bytes of one structure of the firmware's tables: as many as a whole SMBIOS 2 table could
/// have.
const STRUCTURE_BYTES_MAX: usize = (64 << 10) * 3 / 2;
/// The chassis asset tag of every virtual machine of Azure.
const AZURE_TAG: &str = "7783-7084-3265-9085-8269-3286-77";

/// Types of structures (DMTF DSP0134, 7.2 and 7.4), and where each has the number of the string
/// that is wanted.
const MANUFACTURER: SmbiosField = (1, 0x04);
const PRODUCT: SmbiosField = (1, 0x05);
const ASSET_TAG: SmbiosField = (3, 0x08);

type SmbiosField = (u8, usize);

/// A cloud whose metadata service can have the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetadataService {
    /// Microsoft Azure.
    Azure,
    /// Droplets of DigitalOcean.
    DigitalOcean,
    /// Amazon EC2.
    Ec2,
    /// Google Compute Engine.
    Gce,
    /// Hetzner Cloud.
    Hetzner,
    /// A cloud of OpenStack.
    OpenStack,
}

impl MetadataService {
    /// Every service.
    pub const ALL: [Self; 6] = [
        Self::Azure,
        Self::DigitalOcean,
        Self::Ec2,
        Self::Gce,
        Self::Hetzner,
        Self::OpenStack,
    ];

    /// A name for files and messages between processes.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Azure => "azure",
            Self::DigitalOcean => "digitalocean",
            Self::Ec2 => "ec2",
            Self::Gce => "gce",
            Self::Hetzner => "hetzner",
            Self::OpenStack => "openstack",
        }
    }

    /// The service with this [`key`](Self::key).
    #[must_use]
    pub fn from_key(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.key() == key)
    }

    /// The service of the cloud that the firmware's tables name. A machine elsewhere has none.
    #[must_use]
    pub fn detect(paths: &SourcePaths) -> Option<Self> {
        let is = |field, expected: &[&str]| {
            let found = read_string(paths, field);
            found.is_some_and(|found| expected.contains(&found.trim()))
        };
        if is(ASSET_TAG, &[AZURE_TAG]) {
            return Some(Self::Azure);
        }
        if is(PRODUCT, &["Google Compute Engine"]) {
            return Some(Self::Gce);
        }
        if is(PRODUCT, &["OpenStack Nova", "OpenStack Compute"]) {
            return Some(Self::OpenStack);
        }
        [
            ("Amazon EC2", Self::Ec2),
            ("DigitalOcean", Self::DigitalOcean),
            ("Hetzner", Self::Hetzner),
        ]
        .into_iter()
        .find_map(|(vendor, service)| is(MANUFACTURER, &[vendor]).then_some(service))
    }

    fn path(self, paths: &SourcePaths) -> PathBuf {
        paths.metadata.join(self.key())
    }

    /// Whether the service was asked since the machine started.
    pub(crate) fn was_asked(self, paths: &SourcePaths) -> bool {
        self.path(paths).exists()
    }

    /// Keeps what the service answered until the machine restarts, for the next read of the
    /// sources. An empty answer says that it has no document.
    ///
    /// # Errors
    /// [`ProvisioningError::Write`] if the folder in memory cannot be written.
    pub fn store_answer(
        self,
        paths: &SourcePaths,
        document: &[u8],
    ) -> Result<(), ProvisioningError> {
        let path = self.path(paths);
        let failed = |source| ProvisioningError::Write {
            path: path.clone(),
            source,
        };
        file::create_private_dir(&paths.metadata).map_err(failed)?;
        file::replace(&path, document).map_err(failed)
    }
}

impl fmt::Display for MetadataService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Azure => "Azure",
            Self::DigitalOcean => "DigitalOcean",
            Self::Ec2 => "Amazon EC2",
            Self::Gce => "Google Cloud",
            Self::Hetzner => "Hetzner",
            Self::OpenStack => "OpenStack",
        })
    }
}

/// The document that a service gave since the machine started.
pub(super) fn find(
    paths: &SourcePaths,
    problems: &mut Vec<SourceDiagnostic>,
) -> Option<SourceContents> {
    MetadataService::ALL.into_iter().find_map(|service| {
        let source = ConfigOrigin::Metadata { service };
        let found = file::read_bounded(&service.path(paths), CONFIG_BYTES_MAX);
        let document: Option<Bytes> = found.unwrap_or_else(|error| {
            problems.push(unreadable(&source, error, "restart the machine"));
            None
        });
        document
            .filter(|document| !document.is_empty())
            .map(|document| SourceContents::document(source, document))
    })
}

/// A string of the first structure of this type.
fn read_string(paths: &SourcePaths, (kind, at): SmbiosField) -> Option<String> {
    let raw = paths.dmi.join(format!("{kind}-0")).join("raw");
    // A table that cannot be read names no cloud.
    let structure = file::read_bounded(&raw, STRUCTURE_BYTES_MAX).ok()??;
    let found = numbered_string(&structure, kind, at)?;
    std::str::from_utf8(found).ok().map(str::to_owned)
}

/// The string whose number is at this place of the formatted part (DSP0134, 6.1.3).
fn numbered_string(structure: &[u8], kind: u8, at: usize) -> Option<&[u8]> {
    let [found, length, ..] = structure else {
        return None;
    };
    // A table of an old version ends before the field.
    if *found != kind || at >= usize::from(*length) {
        return None;
    }
    // Zero says that there is no such string.
    let number = usize::from(*structure.get(at)?).checked_sub(1)?;
    strings(structure, kind).nth(number)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    /// A structure with two numbers of strings at this place.
    fn structure(kind: u8, numbers: &[(usize, u8)], strings: &[&str]) -> Vec<u8> {
        let mut bytes = vec![0; 0x1b];
        (bytes[0], bytes[1]) = (kind, 0x1b);
        for (at, number) in numbers {
            bytes[*at] = *number;
        }
        for string in strings {
            bytes.extend_from_slice(string.as_bytes());
            bytes.push(0);
        }
        bytes.push(0);
        bytes
    }

    fn machine(vendor: &str, product: &str, tag: &str) -> (tempfile::TempDir, SourcePaths) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut paths = SourcePaths::system();
        paths.dmi = dir.path().join("dmi");
        paths.metadata = dir.path().join("metadata");
        let system = structure(1, &[(4, 1), (5, 2)], &[vendor, product]);
        let chassis = structure(3, &[(4, 1), (8, 2)], &["QEMU", tag]);
        for (name, bytes) in [("1-0", system), ("3-0", chassis)] {
            fs::create_dir_all(paths.dmi.join(name)).expect("a writable directory");
            fs::write(paths.dmi.join(name).join("raw"), bytes).expect("a writable directory");
        }
        (dir, paths)
    }

    #[test]
    fn each_cloud_is_known_by_the_strings_that_its_vendor_documents() {
        for (vendor, product, tag, service) in [
            ("Amazon EC2", "t3.micro", "Amazon EC2", "ec2"),
            ("Google", "Google Compute Engine", "", "gce"),
            (
                "Microsoft Corporation",
                "Virtual Machine",
                AZURE_TAG,
                "azure",
            ),
            ("OpenStack Foundation", "OpenStack Nova", "", "openstack"),
            ("RDO", "OpenStack Compute", "", "openstack"),
            ("Hetzner", "vServer", "", "hetzner"),
            ("DigitalOcean", "Droplet", "", "digitalocean"),
        ] {
            let (_dir, paths) = machine(vendor, product, tag);
            let found = MetadataService::detect(&paths);
            assert_eq!(found.map(MetadataService::key), Some(service), "{vendor}");
        }
    }

    #[test]
    fn other_machines_have_no_service() {
        for (vendor, product, tag) in [
            ("QEMU", "Standard PC (Q35 + ICH9, 2009)", ""),
            // Hyper-V of an owner is no Azure.
            ("Microsoft Corporation", "Virtual Machine", "1234"),
            ("Google", "Chromebook", ""),
            ("Hetzner Online", "vServer", ""),
        ] {
            let (_dir, paths) = machine(vendor, product, tag);
            assert_eq!(MetadataService::detect(&paths), None, "{vendor}");
        }
        let mut paths = SourcePaths::system();
        paths.dmi = "/nonexistent".into();
        assert_eq!(MetadataService::detect(&paths), None);
    }

    #[test]
    fn an_answer_is_read_once_it_is_stored_and_an_empty_one_only_ends_the_question() {
        let (_dir, paths) = machine("Hetzner", "vServer", "");
        let service = MetadataService::Hetzner;
        let read = || {
            let mut problems = Vec::new();
            let found = find(&paths, &mut problems);
            assert_eq!(problems, []);
            found.map(|found| (found.source, found.document.expect("a document").to_vec()))
        };
        assert!(!service.was_asked(&paths));
        assert_eq!(read(), None);
        service.store_answer(&paths, b"").expect("writable");
        assert!(service.was_asked(&paths));
        assert_eq!(read(), None);
        service
            .store_answer(&paths, b"version = 1\n")
            .expect("writable");
        let source = ConfigOrigin::Metadata { service };
        assert_eq!(read(), Some((source, b"version = 1\n".to_vec())));
    }

    #[test]
    fn a_structure_that_is_cut_or_names_no_string_has_none() {
        let whole = structure(1, &[(4, 2)], &["a", "Hetzner"]);
        assert_eq!(numbered_string(&whole, 1, 4), Some(&b"Hetzner"[..]));
        assert_eq!(numbered_string(&whole, 1, 5), None, "number zero");
        assert_eq!(numbered_string(&whole, 2, 4), None, "another type");
        assert_eq!(numbered_string(&whole, 1, 0x1b), None, "behind its end");
        for length in 0..0x1b {
            assert_eq!(numbered_string(&whole[..length], 1, 4), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_structure_is_read(bytes in prop::collection::vec(any::<u8>(), 0..60), at in 0_usize..70) {
            let _ = numbered_string(&bytes, 1, at);
        }
    }
}
