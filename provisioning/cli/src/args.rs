//! What `alknet provision` takes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Arguments of `alknet provision`. No secret is among them: others see a command line.
#[derive(Clone, Debug, Args)]
pub struct ProvisionArgs {
    /// What to write.
    #[arg(long, value_enum, default_value = "nocloud-iso")]
    pub(crate) form: SeedForm,
    /// Where: a file, or a folder for esp, fw-cfg and smbios; - is standard output, for cmdline, console
    /// and text.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: Option<PathBuf>,
    /// Write over what is there.
    #[arg(long)]
    pub(crate) force: bool,
    /// Begin with this document; the other options win over it. - reads standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Host name of the node.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Public domain of the node.
    #[arg(long)]
    pub(crate) domain: Option<String>,
    /// Key that may do everything on it; can be given several times [default: the key of 'alknet
    /// identity', made on first use]
    #[arg(long, value_name = "KEY")]
    pub(crate) admin: Vec<String>,
    /// A card that is not to be configured automatically, such as
    /// match=eth0,method=static,address=192.0.2.10/24,gateway=192.0.2.1,dns=192.0.2.53; can be given
    /// several times.
    #[arg(long, value_name = "KEY=VALUE,…")]
    pub(crate) network: Vec<String>,
    /// Where the recovery words come from: provisioned makes them here [default: provisioned, or
    /// generate with --words-to]
    #[arg(long, value_enum)]
    pub(crate) init: Option<WordsOrigin>,
    /// What opens the vault at a start; can be given several times [default: what the machine has]
    #[arg(long, value_name = "SLOT", value_delimiter = ',')]
    pub(crate) unlock: Vec<String>,
    /// Which of several nodes of the same words this is.
    #[arg(long, value_name = "N")]
    pub(crate) device: Option<u32>,
    /// How many words to make.
    #[arg(long, value_parser = ["12", "24"], default_value = "24")]
    pub(crate) words: String,
    /// Take these words instead of making some; - reads standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) words_file: Option<PathBuf>,
    /// Write the new words to this new file, which only you can read, and ask nothing back.
    #[arg(long, value_name = "FILE", conflicts_with = "words_file")]
    pub(crate) words_out: Option<PathBuf>,
    /// BIP39's passphrase of the words, a file of one line; - reads standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Let the node make the words, and encrypt them to this key: age1…, or a line of ssh-ed25519 or
    /// ssh-rsa; can be given several times.
    #[arg(long, value_name = "RECIPIENT")]
    pub(crate) words_to: Vec<String>,
    /// A third party's secret for a [[credentials]] entry of the document without a record: its name and
    /// a file with it; - reads standard input. Can be given several times.
    #[arg(long, value_name = "NAME=FILE")]
    pub(crate) credential: Vec<String>,
    /// Print the words in the answer, and ask nothing back.
    #[arg(long)]
    pub(crate) show_words: bool,
    /// Where the node will be reached, for its enrolment URI [default: --domain, or its static address]
    #[arg(long, value_name = "HOST")]
    pub(crate) address: Option<String>,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SeedForm {
    /// The word that goes onto a kernel's command line.
    Cmdline,
    /// The line to paste at the node's console.
    Console,
    /// Files for the boot partition of a flashed image, in the folder where it is mounted.
    Esp,
    /// Files for QEMU's -fw_cfg, in a folder.
    FwCfg,
    /// A FAT volume that is NoCloud's.
    NocloudFat,
    /// A CD that is NoCloud's.
    NocloudIso,
    /// OEM strings, one file each, in a folder.
    Smbios,
    /// The document alone.
    Text,
}

impl SeedForm {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cmdline => "cmdline",
            Self::Console => "console",
            Self::Esp => "esp",
            Self::FwCfg => "fw-cfg",
            Self::NocloudFat => "nocloud-fat",
            Self::NocloudIso => "nocloud-iso",
            Self::Smbios => "smbios",
            Self::Text => "text",
        }
    }

    /// Whether it may go to standard output, being one text.
    pub(crate) const fn is_text(self) -> bool {
        matches!(self, Self::Cmdline | Self::Console | Self::Text)
    }

    /// Whether the node finds it again at every start, and not on the disk that it is to protect.
    pub(crate) const fn stays_apart(self) -> bool {
        matches!(self, Self::FwCfg | Self::NocloudFat | Self::NocloudIso)
    }
}

/// Where the words come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WordsOrigin {
    /// The node makes them.
    Generate,
    /// There is no vault.
    Off,
    /// The administrator types them at the node's console.
    Prompt,
    /// They are made here and go with the seed.
    Provisioned,
}

impl WordsOrigin {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Off => "off",
            Self::Prompt => "prompt",
            Self::Provisioned => "provisioned",
        }
    }
}
