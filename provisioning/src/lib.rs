//! Where the node's configuration comes from.
//!
//! A provisioning medium (QEMU's fw_cfg, else a NoCloud volume) is the outside's word; the data
//! partition keeps what was last accepted. [`load`] weighs them and always ends with a
//! configuration, together with everything that was wrong on the way:
//!
//! 1. A medium whose document differs from the one last taken from a medium becomes the stored
//!    configuration, once it is found correct; the one before is kept as the last good one.
//! 2. Otherwise the stored configuration is used, so that a medium left in place does not undo a
//!    change made since.
//! 3. A refused document never replaces a correct one. Where there is no correct one, what lets
//!    the administrators in is salvaged from it.
//!
//! What a medium holds is untrusted until it is read: sizes are bounded, special files are not
//! opened, file systems are mounted read-only without devices, set-uid bits or programs.

mod error;
mod file;
mod label;
mod nocloud;
mod store;

use std::fmt;
use std::path::{Path, PathBuf};

use alknet_core::config::{ConfigError, NodeConfig};

pub use error::ProvisioningError;
pub use label::{FileSystem, VolumeLabel, volume_label};
pub use nocloud::{KernelMounter, Mounted, Mounter};

use store::Store;

/// Where to look. Every root can be moved, for tests and for hosts that are not the appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Paths {
    /// Our entries of QEMU's firmware configuration, as sysfs shows them.
    pub fw_cfg: PathBuf,
    /// The kernel's list of block devices.
    pub block_class: PathBuf,
    /// Device nodes.
    pub dev: PathBuf,
    /// Where a NoCloud volume is mounted while it is read.
    pub mount_point: PathBuf,
    /// Where the configuration is kept; absent while there is no data partition.
    pub config_dir: Option<PathBuf>,
}

impl Paths {
    /// The appliance's own, without a data partition.
    #[must_use]
    pub fn system() -> Self {
        Self {
            fw_cfg: "/sys/firmware/qemu_fw_cfg/by_name/opt/org.alknet".into(),
            block_class: "/sys/class/block".into(),
            dev: "/dev".into(),
            mount_point: "/run/alknet/nocloud".into(),
            config_dir: None,
        }
    }

    /// The same with the configuration kept in `dir`, `/data/config`.
    #[must_use]
    pub fn with_config_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.config_dir = Some(dir.into());
        self
    }
}

/// Where a configuration came from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// Nothing was configured.
    Default,
    /// QEMU's fw_cfg.
    FwCfg,
    /// `config.last-good.toml`, since `config.toml` is damaged.
    LastGood,
    /// A NoCloud volume on the block device of this name.
    NoCloud { device: String },
    /// `config.toml` of the data partition.
    Stored,
}

impl Source {
    /// Whose word it is: `hypervisor`, `medium` (whoever could attach one), `data-partition` (what
    /// this node accepted before) or `built-in`.
    #[must_use]
    pub fn trust(&self) -> &'static str {
        match self {
            Self::Default => "built-in",
            Self::FwCfg => "hypervisor",
            Self::LastGood | Self::Stored => "data-partition",
            Self::NoCloud { .. } => "medium",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::FwCfg => f.write_str("fw_cfg"),
            Self::LastGood => f.write_str(store::LAST_GOOD),
            Self::NoCloud { device } => write!(f, "nocloud ({device})"),
            Self::Stored => f.write_str(store::LIVE),
        }
    }
}

/// Something that was wrong on the way to a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Stable name, see `docs/provisioning.md`.
    pub code: &'static str,
    /// What is wrong, one line.
    pub text: String,
    /// What to do, one line.
    pub hint: String,
}

impl Problem {
    fn new(code: &'static str, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            hint: hint.into(),
        }
    }

    fn refused(source: &Source, error: &ConfigError) -> Self {
        let text = format!("{source}: {}", error.summary());
        Self::new("config-refused", text, error.fix.clone())
    }
}

/// A configuration and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What to run with.
    pub config: NodeConfig,
    /// Where it came from.
    pub source: Source,
    /// Everything that was wrong, in the order in which it was met.
    pub problems: Vec<Problem>,
    /// The document of `source` was refused, and `config` holds only what
    /// [`NodeConfig::salvage`] takes from it.
    pub salvaged: bool,
}

/// Finds the configuration of this boot. Blocks on disks; fails never.
#[must_use]
pub fn load(paths: &Paths) -> Loaded {
    load_with(paths, &KernelMounter)
}

/// [`load`] with another way to look into a volume.
#[must_use]
pub fn load_with(paths: &Paths, mounter: &dyn Mounter) -> Loaded {
    let mut problems = Vec::new();
    let medium = medium(paths, mounter, &mut problems);
    let store = paths.config_dir.clone().map(Store::new);
    let mut choice = Choice {
        problems,
        refused: None,
    };
    let (config, source, salvaged) = choice.of(medium, store.as_ref());
    Loaded {
        config,
        source,
        problems: choice.problems,
        salvaged,
    }
}

/// Keeps a correct document that the running node took, for the next start: it becomes
/// `config.toml` in `config_dir`, and the one before it, if correct, `config.last-good.toml`.
///
/// # Errors
/// A file cannot be written. Either document is whole, whatever happens.
pub fn keep(config_dir: &Path, document: &[u8]) -> Result<(), ProvisioningError> {
    Store::new(config_dir.to_owned()).keep(document)
}

/// Whether the hypervisor switched fault injection on (fw_cfg `opt/org.alknet/test-faults`).
#[must_use]
pub fn fault_injection(paths: &Paths) -> bool {
    let switch = file::read_bounded(&paths.fw_cfg.join("test-faults/raw"));
    matches!(switch, Ok(Some(content)) if content.trim_ascii() == b"1")
}

/// A document and where it lay.
struct Document {
    source: Source,
    bytes: Vec<u8>,
}

/// What the outside provides: fw_cfg before a NoCloud volume.
fn medium(paths: &Paths, mounter: &dyn Mounter, problems: &mut Vec<Problem>) -> Option<Document> {
    let fw_cfg = file::read_bounded(&paths.fw_cfg.join("node/raw"));
    let found = match fw_cfg {
        Ok(Some(bytes)) => Some(Document {
            source: Source::FwCfg,
            bytes,
        }),
        Ok(None) => nocloud::find(paths, mounter, problems),
        Err(error) => {
            problems.push(Problem::new(
                "provisioning-unreadable",
                format!("fw_cfg: {error}"),
                "check the -fw_cfg option of the hypervisor",
            ));
            nocloud::find(paths, mounter, problems)
        }
    }?;
    if found.bytes.trim_ascii().is_empty() {
        problems.push(Problem::new(
            "provisioning-empty",
            format!(
                "{}: the document is empty and changes nothing",
                found.source
            ),
            "write at least node.admin_keys, or take the medium away",
        ));
        return None;
    }
    Some(found)
}

type Chosen = (NodeConfig, Source, bool);

struct Choice {
    problems: Vec<Problem>,
    /// The first document refused: salvaged from where nothing correct is found.
    refused: Option<Document>,
}

impl Choice {
    fn of(&mut self, medium: Option<Document>, store: Option<&Store>) -> Chosen {
        let mut fallback = None;
        if let Some(medium) = medium {
            let new =
                store.is_none_or(|store| store.last_applied().as_deref() != Some(&medium.bytes));
            let Document { source, bytes } = &medium;
            match self.parse(source, bytes) {
                Some(config) if new => {
                    self.keep(store, bytes);
                    return (config, source.clone(), false);
                }
                Some(config) => fallback = Some((config, source.clone(), false)),
                None => self.refused = Some(medium),
            }
        }
        store
            .and_then(|store| self.stored(store))
            .or(fallback)
            .unwrap_or_else(|| self.last_resort())
    }

    fn stored(&mut self, store: &Store) -> Option<Chosen> {
        let had_refused = self.refused.is_some();
        if let Some(config) = self.read_stored(store, Source::Stored) {
            if had_refused {
                self.note_last_good("the stored configuration");
            }
            return Some((config, Source::Stored, false));
        }
        let config = self.read_stored(store, Source::LastGood)?;
        self.note_last_good(store::LAST_GOOD);
        Some((config, Source::LastGood, false))
    }

    fn read_stored(&mut self, store: &Store, source: Source) -> Option<NodeConfig> {
        let bytes = match store.read(&source.to_string()) {
            Ok(bytes) => bytes?,
            Err(error) => {
                self.problems.push(Problem::new(
                    "config-unreadable",
                    error.to_string(),
                    "check the data partition",
                ));
                return None;
            }
        };
        let config = self.parse(&source, &bytes);
        if config.is_none() && self.refused.is_none() {
            self.refused = Some(Document { source, bytes });
        }
        config
    }

    fn parse(&mut self, source: &Source, bytes: &[u8]) -> Option<NodeConfig> {
        match NodeConfig::parse(bytes) {
            Ok(config) => Some(config),
            Err(errors) => {
                let refused = errors.iter().map(|error| Problem::refused(source, error));
                self.problems.extend(refused);
                None
            }
        }
    }

    fn note_last_good(&mut self, what: &str) {
        self.problems.push(Problem::new(
            "config-last-good",
            format!("the node runs with {what}, not with the refused document"),
            "correct the document and start again",
        ));
    }

    fn keep(&mut self, store: Option<&Store>, bytes: &[u8]) {
        let Some(Err(error)) = store.map(|store| store.apply(bytes)) else {
            return;
        };
        self.problems.push(Problem::new(
            "config-not-stored",
            format!("the configuration holds until the next start only: {error}"),
            "check the data partition, and leave the medium in place",
        ));
    }

    fn last_resort(&mut self) -> Chosen {
        let Some(refused) = self.refused.take() else {
            return (NodeConfig::default(), Source::Default, false);
        };
        let config = NodeConfig::salvage(&refused.bytes);
        let text = if config.node.admin_keys.is_empty() {
            format!(
                "{}: no administrator key could be read from it",
                refused.source
            )
        } else {
            let way_in = "only administrators, name, port and network";
            format!("{}: {way_in} are taken from it", refused.source)
        };
        self.problems.push(Problem::new(
            "config-salvaged",
            text,
            "correct the document and start again",
        ));
        (config, refused.source, true)
    }
}

#[cfg(test)]
mod tests;
