//! The contents of all sources, in order of precedence.

mod boot_loader;
pub(crate) mod console;
mod metadata;
mod parts;
mod smbios;
mod volumes;

use alknet_core::config::CONFIG_BYTES_MAX;
use zeroize::Zeroizing;

use crate::mount::Mounter;
use crate::secrets::split::SecretsPart;
use crate::secrets::{MediaLocation, SECRET_BYTES_MAX, SecretFile};
use crate::{ConfigOrigin, ProvisioningError, SourceDiagnostic, SourcePaths, file};

pub use metadata::MetadataService;
pub use parts::strings;
pub(crate) use volumes::{LabelledVolume, VolumeFileNames, WritableVolume, labelled, writable};

/// Bytes that may be secret, wiped on drop.
pub(crate) type Bytes = Zeroizing<Vec<u8>>;

/// The unparsed contents of one source.
pub(crate) struct SourceContents {
    pub(crate) source: ConfigOrigin,
    pub(crate) document: Option<Bytes>,
    pub(crate) words: Option<Bytes>,
    pub(crate) seed_key: Option<Bytes>,
    /// Names of its files, if it has files.
    pub(crate) names: Option<&'static VolumeFileNames>,
    /// The volume that they are on.
    pub(crate) volume: Option<(std::path::PathBuf, crate::FileSystem)>,
}

impl SourceContents {
    fn document(source: ConfigOrigin, document: Bytes) -> Self {
        Self {
            source,
            document: Some(document),
            words: None,
            seed_key: None,
            names: None,
            volume: None,
        }
    }

    /// Where its secrets are: a separate file, or a part of the document.
    pub(crate) fn location(
        &self,
        path: Option<&'static str>,
        within: Option<SecretsPart>,
    ) -> MediaLocation {
        let file = self.volume.as_ref().zip(path);
        let file = file.map(|((device, file_system), path)| SecretFile {
            device: device.clone(),
            file_system: *file_system,
            path,
            within,
        });
        MediaLocation {
            source: self.source.clone(),
            what: match within {
                Some(SecretsPart::Credentials) => "credentials",
                _ => "recovery words",
            },
            file,
        }
    }
}

/// The contents of all sources, in order of precedence. `console` is what an administrator pasted.
pub(crate) fn all(
    paths: &SourcePaths,
    mounter: &dyn Mounter,
    console: Option<Bytes>,
    problems: &mut Vec<SourceDiagnostic>,
) -> Vec<SourceContents> {
    let mut offers = Vec::new();
    offers.extend(fw_cfg(paths, problems));
    offers.extend(volumes::find(paths, mounter, problems));
    offers.extend(smbios::find(paths, problems));
    offers.extend(boot_loader::find(paths, problems));
    offers.extend(metadata::find(paths, problems));
    offers
        .extend(console.map(|document| SourceContents::document(ConfigOrigin::Console, document)));
    offers
}

fn fw_cfg(paths: &SourcePaths, problems: &mut Vec<SourceDiagnostic>) -> Option<SourceContents> {
    let mut entry = |name: &str, limit: usize| {
        let found = file::read_bounded(&paths.fw_cfg.join(name).join("raw"), limit);
        found.unwrap_or_else(|error| {
            problems.push(unreadable(
                &ConfigOrigin::FwCfg,
                error,
                "check the -fw_cfg option of the hypervisor",
            ));
            None
        })
    };
    let offer = SourceContents {
        source: ConfigOrigin::FwCfg,
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

fn unreadable(
    source: &ConfigOrigin,
    error: impl std::fmt::Display,
    hint: &str,
) -> SourceDiagnostic {
    SourceDiagnostic::new(
        "provisioning-unreadable",
        format!("{source}: {error}"),
        hint,
    )
}

/// A file of a mounted volume. An unreadable file is a problem of the whole volume.
fn of_volume(
    root: &std::path::Path,
    name: &str,
    limit: usize,
) -> Result<Option<Bytes>, ProvisioningError> {
    file::read_bounded(&root.join(name), limit)
}
