//! The origins of a configuration, and who could have written it.

use std::fmt;

use alknet_core::config::ConfigError;

use crate::{MetadataService, store};

/// Where a configuration came from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigOrigin {
    /// `alknet.toml` of the boot partition on the block device of this name.
    BootPartition { device: String },
    /// The kernel's command line.
    CommandLine,
    /// An administrator pasted it at the console.
    Console,
    /// Nothing was configured.
    Default,
    /// QEMU's fw_cfg.
    FwCfg,
    /// `config.last-good.toml`, because `config.toml` is damaged.
    LastGood,
    /// User data of a cloud's metadata service.
    Metadata { service: MetadataService },
    /// A NoCloud volume on the block device of this name.
    NoCloud { device: String },
    /// OEM strings of the firmware's tables.
    Smbios,
    /// `config.toml` of the data partition.
    Stored,
}

impl ConfigOrigin {
    /// Who could have written it: `hypervisor`, `medium` (a person who can attach one),
    /// `boot-partition` (a program that can write to the disk), `boot-loader`, `console` (a user in
    /// front of it), `data-partition` (this node, which accepted it before) or `built-in`.
    #[must_use]
    pub fn trust(&self) -> &'static str {
        match self {
            Self::BootPartition { .. } => "boot-partition",
            Self::CommandLine => "boot-loader",
            Self::Console => "console",
            Self::Default => "built-in",
            Self::FwCfg | Self::Metadata { .. } | Self::Smbios => "hypervisor",
            Self::LastGood | Self::Stored => "data-partition",
            Self::NoCloud { .. } => "medium",
        }
    }
}

impl fmt::Display for ConfigOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BootPartition { device } => write!(f, "alknet.toml ({device})"),
            Self::CommandLine => f.write_str("kernel command line"),
            Self::Console => f.write_str("console"),
            Self::Default => f.write_str("default"),
            Self::FwCfg => f.write_str("fw_cfg"),
            Self::LastGood => f.write_str(store::LAST_GOOD),
            Self::Metadata { service } => write!(f, "metadata ({service})"),
            Self::NoCloud { device } => write!(f, "nocloud ({device})"),
            Self::Smbios => f.write_str("smbios"),
            Self::Stored => f.write_str(store::LIVE),
        }
    }
}

/// A problem that was met while the configuration was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceDiagnostic {
    /// Stable name, see `docs/provisioning.md`.
    pub code: &'static str,
    /// What is wrong, in one line.
    pub text: String,
    /// What to do, in one line.
    pub hint: String,
}

impl SourceDiagnostic {
    pub(crate) fn new(
        code: &'static str,
        text: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            code,
            text: text.into(),
            hint: hint.into(),
        }
    }

    pub(crate) fn refused(source: &ConfigOrigin, error: &ConfigError) -> Self {
        let text = format!("{source}: {}", error.summary());
        Self::new("config-refused", text, error.fix.clone())
    }

    /// Whether the problem is only a notice. Reading the sources again would not remove it.
    #[must_use]
    pub fn is_notice(&self) -> bool {
        const NOTICES: [&str; 4] = [
            "nocloud-ignored",
            "provisioning-conflict",
            "provisioning-ignored",
            "secrets-left",
        ];
        NOTICES.contains(&self.code)
    }
}
