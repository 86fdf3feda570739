//! What each source offers, in the order in which they count.

mod boot_loader;
pub(crate) mod console;
mod parts;
mod smbios;
mod volumes;

use alknet_core::config::CONFIG_BYTES_MAX;
use zeroize::Zeroizing;

use crate::mount::Mounter;
use crate::secrets::split::Part;
use crate::secrets::{Place, PlaceFile, SECRET_BYTES_MAX};
use crate::{Paths, Problem, ProvisioningError, Source, file};

pub use parts::strings;
pub(crate) use volumes::{Labelled, Names, Writable, labelled, writable};

/// Bytes that may be secret, wiped when they are let go.
pub(crate) type Bytes = Zeroizing<Vec<u8>>;

/// What one source holds, as it was read.
pub(crate) struct Offer {
    pub(crate) source: Source,
    pub(crate) document: Option<Bytes>,
    pub(crate) words: Option<Bytes>,
    pub(crate) seed_key: Option<Bytes>,
    /// What its files are called, if it has files.
    pub(crate) names: Option<&'static Names>,
    /// The volume they are on.
    pub(crate) volume: Option<(std::path::PathBuf, crate::FileSystem)>,
}

impl Offer {
    fn document(source: Source, document: Bytes) -> Self {
        Self {
            source,
            document: Some(document),
            words: None,
            seed_key: None,
            names: None,
            volume: None,
        }
    }

    /// Where secrets of it lie: in a file of their own, or in a part of the document.
    pub(crate) fn place(&self, path: Option<&'static str>, within: Option<Part>) -> Place {
        let file = self.volume.as_ref().zip(path);
        let file = file.map(|((device, file_system), path)| PlaceFile {
            device: device.clone(),
            file_system: *file_system,
            path,
            within,
        });
        Place {
            source: self.source.clone(),
            what: match within {
                Some(Part::Credentials) => "credentials",
                _ => "recovery words",
            },
            file,
        }
    }
}

/// Everything that is offered, in the order in which it counts; `console` is what somebody pasted.
pub(crate) fn all(
    paths: &Paths,
    mounter: &dyn Mounter,
    console: Option<Bytes>,
    problems: &mut Vec<Problem>,
) -> Vec<Offer> {
    let mut offers = Vec::new();
    offers.extend(fw_cfg(paths, problems));
    offers.extend(volumes::find(paths, mounter, problems));
    offers.extend(smbios::find(paths, problems));
    offers.extend(boot_loader::find(paths, problems));
    offers.extend(console.map(|document| Offer::document(Source::Console, document)));
    offers
}

fn fw_cfg(paths: &Paths, problems: &mut Vec<Problem>) -> Option<Offer> {
    let mut entry = |name: &str, limit: usize| {
        let found = file::read_bounded(&paths.fw_cfg.join(name).join("raw"), limit);
        found.unwrap_or_else(|error| {
            problems.push(unreadable(
                &Source::FwCfg,
                error,
                "check the -fw_cfg option of the hypervisor",
            ));
            None
        })
    };
    let offer = Offer {
        source: Source::FwCfg,
        document: entry("node", CONFIG_BYTES_MAX),
        words: entry("words", SECRET_BYTES_MAX),
        seed_key: entry("seed.key", SECRET_BYTES_MAX),
        names: None,
        volume: None,
    };
    let is_there = [&offer.document, &offer.words, &offer.seed_key];
    let is_there = is_there.into_iter().any(Option::is_some);
    is_there.then_some(offer)
}

fn unreadable(source: &Source, error: impl std::fmt::Display, hint: &str) -> Problem {
    Problem::new(
        "provisioning-unreadable",
        format!("{source}: {error}"),
        hint,
    )
}

/// A file of a mounted volume; one that cannot be read is a problem of the whole volume.
fn of_volume(
    root: &std::path::Path,
    name: &str,
    limit: usize,
) -> Result<Option<Bytes>, ProvisioningError> {
    file::read_bounded(&root.join(name), limit)
}
