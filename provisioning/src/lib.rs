//! Finds the node's configuration.
//!
//! A provisioning medium comes from outside the node, and the data partition has what the node last
//! accepted. The order of the media is: QEMU's fw_cfg, NoCloud volumes, the boot partition, SMBIOS
//! strings, the kernel's command line if the image is not signed, a cloud's metadata service, the
//! console. [`load`] always returns a configuration, with all problems that it met:
//!
//! 1. If a medium's document differs from the one last taken from a medium, and is correct, it
//!    becomes the stored configuration, with a copy for a start that finds it damaged.
//! 2. Otherwise the stored configuration is used, so that a medium that stays attached does not
//!    undo later changes.
//! 3. A refused document never replaces a correct one. If there is no correct one, the settings
//!    that administrators need to log in are salvaged from it.
//!
//! A document may have an order to install the image onto a disk ([`install_request`]), which is no part of the
//! configuration.
//!
//! Recovery words, seed keys and credentials on a medium are [`MediaSecrets`]. They are removed
//! before a document is read, and are never stored. [`erase`] overwrites words and credentials
//! after they were stored elsewhere.
//!
//! The content of a medium is untrusted: sizes are bounded, special files are not opened, and file
//! systems are mounted read-only without devices, set-uid bits or programs.

mod error;
mod file;
mod install;
mod label;
mod mount;
mod programs;
mod secrets;
mod slot;
mod source;
mod sources;
mod store;
mod text;

use std::path::{Path, PathBuf};

use alknet_core::config::NodeConfig;
use toml::de::DeTable;

pub use error::ProvisioningError;
pub use install::{
    AfterInstall, DISK_SERIAL_BYTES_MAX, InstallOrder, InstallRequest, has_install,
    install_request, medium_devices, split_install,
};
pub use label::{FileSystem, VolumeLabel, volume_label};
pub use mount::{KernelMounter, Mounted, Mounter};
pub use programs::{NEXT, PROGRAM_BYTES_MAX, UpdatePrograms, programs};
pub use secrets::{
    MediaCredential, MediaLocation, MediaSecrets, MediaSeedKey, PutSeedKeyError, RecoveryWords,
    SECRET_BYTES_MAX, configuration_part, erase, put_seed_key,
};
pub use slot::running_slot;
pub use source::{ConfigOrigin, SourceDiagnostic};
pub use sources::console::{
    CONSOLE_HEAD, CONSOLE_LINE_BYTES_MAX, ConsoleDocument, ConsoleDocumentError,
};
pub use sources::{MetadataService, strings};

use secrets::SecretCollector;
use store::StoredConfig;

/// Where to look. Tests, and hosts other than the appliance, can change every path.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourcePaths {
    /// This project's entries in QEMU's firmware configuration, in sysfs.
    pub fw_cfg: PathBuf,
    /// The kernel's list of block devices.
    pub block_class: PathBuf,
    /// Device nodes.
    pub dev: PathBuf,
    /// Structures of the firmware's tables, in sysfs.
    pub dmi: PathBuf,
    /// The firmware's variables. Missing on machines that start without UEFI.
    pub efi: PathBuf,
    /// The kernel's command line.
    pub command_line: PathBuf,
    /// Where a volume is mounted while it is read.
    pub mount_point: PathBuf,
    /// Answers of metadata services since the machine started, in memory.
    pub metadata: PathBuf,
    /// The folder of the stored configuration. `None` while there is no data partition.
    pub config_dir: Option<PathBuf>,
    /// Whether the configuration is kept sealed. Then media provision the node only once. Otherwise
    /// an attacker who can attach a medium, or write to the boot partition, would become an
    /// administrator of the sealed data.
    pub is_sealed: bool,
    /// Whether the vault records that the node was configured before. Then a sealed node takes
    /// nothing from a medium, even if the stored configuration is missing, because an attacker who
    /// cannot read a disk can still damage it.
    pub is_configured: bool,
}

impl SourcePaths {
    /// The appliance's paths, without a data partition.
    #[must_use]
    pub fn system() -> Self {
        Self {
            fw_cfg: "/sys/firmware/qemu_fw_cfg/by_name/opt/org.alknet".into(),
            block_class: "/sys/class/block".into(),
            dev: "/dev".into(),
            dmi: "/sys/firmware/dmi/entries".into(),
            efi: "/sys/firmware/efi".into(),
            command_line: "/proc/cmdline".into(),
            mount_point: "/run/alknet/nocloud".into(),
            metadata: "/run/alknet/metadata".into(),
            config_dir: None,
            is_sealed: false,
            is_configured: false,
        }
    }

    /// The same paths with `is_sealed` set.
    #[must_use]
    pub fn sealed(mut self, is_sealed: bool) -> Self {
        self.is_sealed = is_sealed;
        self
    }

    /// The same paths with `is_configured` set.
    #[must_use]
    pub fn configured(mut self, is_configured: bool) -> Self {
        self.is_configured = is_configured;
        self
    }

    /// The same paths with the configuration kept in `dir`, such as `/data/config`.
    #[must_use]
    pub fn with_config_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.config_dir = Some(dir.into());
        self
    }
}

/// A configuration and its origin.
#[derive(Debug)]
#[non_exhaustive]
pub struct LoadedConfig {
    /// The configuration to run with.
    pub config: NodeConfig,
    /// Where it came from.
    pub source: ConfigOrigin,
    /// What it set: the names of the document's tables and keys, in order.
    pub set: Vec<String>,
    /// All problems, in the order in which they were found.
    pub problems: Vec<SourceDiagnostic>,
    /// Whether the document of `source` was refused, so that `config` has only what
    /// [`NodeConfig::salvage`] takes from it.
    pub salvaged: bool,
    /// Whether a document is stored, and this program refuses it as well as its copy. The program that stored the
    /// document took it.
    pub refuses_stored: bool,
    /// Words and seed keys on media, whichever document was used.
    pub secrets: MediaSecrets,
    /// Whether credentials from media may be stored. A sealed node takes only those that came with
    /// its provisioning document, just as it takes no other document.
    pub takes_credentials: bool,
    /// Whether a correct document is stored, so that the next start needs no medium.
    pub is_stored: bool,
    /// The metadata service that may have a document, if no source has one, nothing is stored, and
    /// the service was not asked since the machine started. `None` on every machine whose firmware
    /// names no cloud.
    pub asks: Option<MetadataService>,
}

impl LoadedConfig {
    /// Where the configuration came from, who could have written it, and what it set, as one line
    /// for the log.
    #[must_use]
    pub fn summary(&self) -> String {
        let set = if self.set.is_empty() {
            "nothing".to_owned()
        } else {
            self.set.join(", ")
        };
        format!("{} ({}) set {set}", self.source, self.source.trust())
    }
}

/// Finds the configuration of this boot. Blocks on disks. Never fails.
#[must_use]
pub fn load(paths: &SourcePaths) -> LoadedConfig {
    load_with(paths, &KernelMounter)
}

/// [`load`] with another mounter.
#[must_use]
pub fn load_with(paths: &SourcePaths, mounter: &dyn Mounter) -> LoadedConfig {
    load_all(paths, mounter, None)
}

/// [`load`] with a document that an administrator pasted at the console. It counts after all media.
#[must_use]
pub fn load_console(
    paths: &SourcePaths,
    mounter: &dyn Mounter,
    pasted: ConsoleDocument,
) -> LoadedConfig {
    load_all(paths, mounter, Some(pasted))
}

fn load_all(
    paths: &SourcePaths,
    mounter: &dyn Mounter,
    pasted: Option<ConsoleDocument>,
) -> LoadedConfig {
    let mut problems = Vec::new();
    let pasted = pasted.map(|document| document.0);
    let offers = sources::all(paths, mounter, pasted, &mut problems);
    let mut collector = SecretCollector::default();
    let mut documents = Vec::new();
    for offer in &offers {
        let bytes = offer.document.as_ref();
        // The secrets are removed before the document is compared, kept or refused, because an
        // error may quote a line of it.
        let mut parted = bytes.map_or_else(Default::default, |bytes| secrets::part(bytes));
        collector.take(offer, &mut parted);
        // An order to install is for a start from the medium of the image, which asks for it by itself.
        if let Some(table) = install::take(&mut parted.document) {
            parted.mistakes.extend(table.mistakes);
        }
        if bytes.is_some() {
            documents.push(OfferedDocument {
                source: offer.source.clone(),
                bytes: parted.document,
                mistakes: parted.mistakes,
                held_secrets: parted.held_secrets,
            });
        }
    }
    let medium = first(documents, &mut problems);
    let (secrets, more) = collector.finish();
    problems.extend(more);
    let store = paths.config_dir.clone().map(StoredConfig::new);
    let mut choice = DocumentChoice {
        problems,
        refused: None,
        refuses_stored: false,
        is_sealed: paths.is_sealed,
        is_configured: paths.is_sealed && paths.is_configured,
    };
    let (config, source, salvaged, set) = choice.choose(medium, store.as_ref());
    let settled = store.as_ref().is_some_and(StoredConfig::is_settled);
    // A sealed node that was configured takes no document, so it asks for none.
    let asks = (source == ConfigOrigin::Default && !choice.is_configured)
        .then(|| MetadataService::detect(paths))
        .flatten()
        .filter(|service| !service.was_asked(paths));
    LoadedConfig {
        config,
        source,
        set,
        problems: choice.problems,
        salvaged,
        refuses_stored: choice.refuses_stored,
        secrets,
        // A sealed node takes credentials once, so that a medium that stays attached does not
        // restore old ones.
        takes_credentials: !(paths.is_sealed && (settled || paths.is_configured)),
        is_stored: store.as_ref().is_some_and(StoredConfig::has_correct),
        asks,
    }
}

/// Records in `config_dir` that the credentials that came with the last medium's document were
/// stored, or are not wanted. From then on a sealed node takes none.
///
/// # Errors
/// The record cannot be written.
pub fn settle_credentials(config_dir: &Path) -> Result<(), ProvisioningError> {
    StoredConfig::new(config_dir.to_owned()).settle()
}

/// Stores a correct document that the running node accepted, for the next start: first as
/// `config.toml` in `config_dir`, then as its copy `config.last-good.toml`.
///
/// # Errors
/// A file cannot be written. Each document is still complete, old or new.
pub fn store_document(config_dir: &Path, document: &[u8]) -> Result<(), ProvisioningError> {
    StoredConfig::new(config_dir.to_owned()).store_document(document)
}

/// Whether the hypervisor switched fault injection on (fw_cfg `opt/org.alknet/test-faults`).
#[must_use]
pub fn fault_injection(paths: &SourcePaths) -> bool {
    let switch = file::read_bounded(&paths.fw_cfg.join("test-faults/raw"), 16);
    matches!(switch, Ok(Some(content)) if content.trim_ascii() == b"1")
}

/// A document and its source, without its secrets.
struct OfferedDocument {
    source: ConfigOrigin,
    bytes: Vec<u8>,
    /// Reasons to refuse the document, whatever else it contains.
    mistakes: Vec<(String, String)>,
    /// Whether it contained secrets.
    held_secrets: bool,
}

impl OfferedDocument {
    fn stored(source: ConfigOrigin, bytes: Vec<u8>) -> Self {
        Self {
            source,
            bytes,
            mistakes: Vec::new(),
            held_secrets: false,
        }
    }

    fn is_empty(&self) -> bool {
        self.mistakes.is_empty() && self.bytes.trim_ascii().is_empty()
    }
}

/// The first document that is not empty. Other documents that differ are reported and not used.
fn first(
    documents: Vec<OfferedDocument>,
    problems: &mut Vec<SourceDiagnostic>,
) -> Option<OfferedDocument> {
    let (empty, mut saying): (Vec<_>, Vec<_>) =
        documents.into_iter().partition(OfferedDocument::is_empty);
    // A document with only secrets is not empty by mistake.
    for document in empty.iter().filter(|document| !document.held_secrets) {
        problems.push(SourceDiagnostic::new(
            "provisioning-empty",
            format!(
                "{}: the document is empty and changes nothing",
                document.source
            ),
            "write at least node.admin_keys, or take the medium away",
        ));
    }
    if saying.is_empty() {
        return None;
    }
    let first = saying.remove(0);
    // The same document on two media is not a conflict.
    let others = saying.iter().filter(|other| other.bytes != first.bytes);
    let others: Vec<_> = others.map(|other| other.source.to_string()).collect();
    if !others.is_empty() {
        problems.push(SourceDiagnostic::new(
            "provisioning-conflict",
            format!(
                "{} counts; other documents are not used: {}",
                first.source,
                others.join(", ")
            ),
            "leave one document, or make all of them the same",
        ));
    }
    Some(first)
}

type Chosen = (NodeConfig, ConfigOrigin, bool, Vec<String>);

/// The names of a document's tables and keys, in their order.
fn names(document: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(document).unwrap_or_default();
    let (table, _) = DeTable::parse_recoverable(text);
    let mut names: Vec<_> = table.get_ref().keys().collect();
    names.sort_unstable_by_key(|name| name.span().start);
    names
        .iter()
        .map(|name| name.get_ref().to_string())
        .collect()
}

struct DocumentChoice {
    problems: Vec<SourceDiagnostic>,
    /// The first refused document. It is salvaged if no correct document is found.
    refused: Option<OfferedDocument>,
    /// Whether a stored document was refused, and no copy of it taken.
    refuses_stored: bool,
    /// Whether a medium cannot replace a stored configuration.
    is_sealed: bool,
    /// Whether a medium cannot replace even a missing one.
    is_configured: bool,
}

impl DocumentChoice {
    fn choose(&mut self, medium: Option<OfferedDocument>, store: Option<&StoredConfig>) -> Chosen {
        if self.is_configured {
            return self.of_configured(medium.as_ref(), store);
        }
        let mut fallback = None;
        if let Some(medium) = medium {
            let new = store.is_none_or(|store| self.is_new(&medium, store));
            if let Some(store) = store.filter(|_| new && self.is_sealed)
                && let Some(chosen) = self.stored(store)
            {
                // The power was lost before the document was recorded as taken.
                if !store.is_live(&medium.bytes) {
                    self.note_sealed(&medium.source);
                }
                return chosen;
            }
            match self.parse(&medium) {
                Some(chosen) if new => {
                    self.apply_to_store(store, &medium.bytes);
                    return chosen;
                }
                // The medium's document was taken before. The store has what an administrator
                // changed since, and wins.
                Some(chosen) => fallback = Some(chosen),
                // Kept as the last resort, because parts of it may be readable.
                None => self.refused = Some(medium),
            }
        }
        store
            .and_then(|store| self.stored(store))
            .or(fallback)
            .unwrap_or_else(|| self.last_resort())
    }

    /// The stored configuration, or what is left of it. A medium with a different document is
    /// reported.
    fn of_configured(
        &mut self,
        medium: Option<&OfferedDocument>,
        store: Option<&StoredConfig>,
    ) -> Chosen {
        if let Some(medium) = medium
            && store.is_none_or(|store| !store.is_live(&medium.bytes) && self.is_new(medium, store))
        {
            self.note_sealed(&medium.source);
        }
        let stored = store.and_then(|store| self.stored(store));
        stored.unwrap_or_else(|| self.last_resort())
    }

    /// Whether a document differs from the one last taken. True if that one cannot be read.
    fn is_new(&mut self, medium: &OfferedDocument, store: &StoredConfig) -> bool {
        match store.read(store::APPLIED) {
            Ok(applied) => applied.as_deref() != Some(&medium.bytes),
            Err(error) => {
                self.problems.push(SourceDiagnostic::new(
                    "config-unreadable",
                    format!("{error}; so {} counts as a new document", medium.source),
                    "check the data partition",
                ));
                // Taken again rather than ignored, because the administrator may have brought it to
                // repair the node.
                true
            }
        }
    }

    fn stored(&mut self, store: &StoredConfig) -> Option<Chosen> {
        let had_refused = self.refused.is_some();
        if let Some(chosen) = self.read_stored(store, ConfigOrigin::Stored) {
            self.copy_live(store);
            if had_refused {
                self.note_last_good("the stored configuration");
            }
            return Some(chosen);
        }
        let chosen = self.read_stored(store, ConfigOrigin::LastGood)?;
        // Both files have the same content, so the first one is damaged.
        self.refuses_stored = false;
        self.note_last_good(store::LAST_GOOD);
        Some(chosen)
    }

    /// Updates the copy of the stored configuration, because an earlier one must not come back.
    fn copy_live(&mut self, store: &StoredConfig) {
        if let Err(error) = store.copy_live() {
            self.problems.push(SourceDiagnostic::new(
                "config-not-stored",
                format!("the copy of the configuration for a start that finds it damaged: {error}"),
                "check the data partition",
            ));
        }
    }

    fn read_stored(&mut self, store: &StoredConfig, source: ConfigOrigin) -> Option<Chosen> {
        let bytes = match store.read(&source.to_string()) {
            Ok(bytes) => bytes?,
            Err(error) => {
                self.problems.push(SourceDiagnostic::new(
                    "config-unreadable",
                    error.to_string(),
                    "check the data partition",
                ));
                return None;
            }
        };
        let document = OfferedDocument::stored(source, bytes);
        let chosen = self.parse(&document);
        self.refuses_stored |= chosen.is_none();
        // The first refused document is the one that the administrator most likely meant.
        if chosen.is_none() && self.refused.is_none() {
            self.refused = Some(document);
        }
        chosen
    }

    fn parse(&mut self, document: &OfferedDocument) -> Option<Chosen> {
        let OfferedDocument { source, bytes, .. } = document;
        let of_text = |(what, fix): &(String, String)| {
            SourceDiagnostic::new("config-refused", format!("{source}: {what}"), fix)
        };
        let before = self.problems.len();
        self.problems.extend(document.mistakes.iter().map(of_text));
        let parsed = NodeConfig::parse(bytes);
        if let Err(errors) = &parsed {
            let refused = errors
                .iter()
                .map(|error| SourceDiagnostic::refused(source, error));
            self.problems.extend(refused);
        }
        // A mistake in the secrets refuses the whole document, as any other mistake does.
        let is_good = self.problems.len() == before;
        let config = parsed.ok().filter(|_| is_good)?;
        Some((config, source.clone(), false, names(bytes)))
    }

    fn note_sealed(&mut self, source: &ConfigOrigin) {
        self.problems.push(SourceDiagnostic::new(
            "provisioning-ignored",
            format!(
                "{source}: another document than this node was provisioned with, and not taken, since \
                 the node is sealed"
            ),
            "change it with 'alknet config apply', or reset the node and provision it again",
        ));
    }

    fn note_last_good(&mut self, what: &str) {
        self.problems.push(SourceDiagnostic::new(
            "config-last-good",
            format!("the node runs with {what}, not with the refused document"),
            "correct the document and start again",
        ));
    }

    fn apply_to_store(&mut self, store: Option<&StoredConfig>, bytes: &[u8]) {
        let Some(Err(error)) = store.map(|store| store.apply(bytes)) else {
            return;
        };
        self.problems.push(SourceDiagnostic::new(
            "config-not-stored",
            format!("the configuration holds until the next start only: {error}"),
            "check the data partition, and leave the medium in place",
        ));
    }

    fn last_resort(&mut self) -> Chosen {
        let Some(refused) = self.refused.take() else {
            return (
                NodeConfig::default(),
                ConfigOrigin::Default,
                false,
                Vec::new(),
            );
        };
        let config = NodeConfig::salvage(&refused.bytes);
        let text = if config.node.admin_keys.is_empty() {
            format!(
                "{}: no administrator key could be read from it",
                refused.source
            )
        } else {
            let way_in = "only administrators, name, port, network and vault";
            format!("{}: {way_in} are taken from it", refused.source)
        };
        self.problems.push(SourceDiagnostic::new(
            "config-salvaged",
            text,
            "correct the document and start again",
        ));
        // Only the settings that are used, not all that the document has.
        let taken = [
            ("listen", config.listen != Default::default()),
            ("network", !config.network.is_empty()),
            ("node", config.node != Default::default()),
            ("vault", config.vault != Default::default()),
        ];
        let set = taken.into_iter().filter(|(_, is_set)| *is_set);
        let set = set.map(|(name, _)| name.to_owned()).collect();
        (config, refused.source, true, set)
    }
}

#[cfg(test)]
mod tests;
