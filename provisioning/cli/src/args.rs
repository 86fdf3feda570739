//! The arguments of `alknet provision`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Arguments of `alknet provision`. No secret is among them: others see a command line.
#[derive(Clone, Debug, Args)]
pub struct ProvisionArgs {
    /// The form of the seed.
    #[arg(long, value_enum, default_value = "nocloud-iso")]
    pub(crate) form: SeedForm,
    /// The output: a file, or a folder for esp, fw-cfg and smbios, which is made if it is new; - is standard output, for cmdline, console
    /// and text.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: Option<PathBuf>,
    /// Write over existing files.
    #[arg(long)]
    pub(crate) force: bool,
    /// Start from this configuration document; the other options win over it. - reads standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The host name of the node.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The public domain of the node.
    #[arg(long)]
    pub(crate) domain: Option<String>,
    /// The key of an administrator of the node. Repeat the option for more [default: the key of 'alknet
    /// identity', made on first use]
    #[arg(long, value_name = "KEY")]
    pub(crate) admin: Vec<String>,
    /// The settings of a network card, for example
    /// match=eth0,method=static,address=192.0.2.10/24,gateway=192.0.2.1,dns=192.0.2.53. Repeat the option for
    /// more [default: automatic]
    #[arg(long, value_name = "KEY=VALUE,…")]
    pub(crate) network: Vec<String>,
    /// Where the recovery words come from [default: provisioned, which makes them on this computer; with
    /// --words-to generate]
    #[arg(long, value_enum)]
    pub(crate) init: Option<WordsOrigin>,
    /// What opens the vault at a start. Repeat the option for more [default: what the machine has]
    #[arg(long, value_name = "SLOT", value_delimiter = ',')]
    pub(crate) unlock: Vec<String>,
    /// The number of the node among the nodes of the same words.
    #[arg(long, value_name = "N")]
    pub(crate) device: Option<u32>,
    /// The number of words to make.
    #[arg(long, value_parser = ["12", "24"], default_value = "24")]
    pub(crate) words: String,
    /// Read the words from this file instead of making new ones; - reads standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) words_file: Option<PathBuf>,
    /// Write the new words to this new file, which only you can read, and do not ask for three of them.
    #[arg(long, value_name = "FILE", conflicts_with = "words_file")]
    pub(crate) words_out: Option<PathBuf>,
    /// The file with the BIP39 passphrase of the words, one line; - reads standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Let the node make the words and encrypt them to this key: age1…, or a line of ssh-ed25519 or ssh-rsa.
    /// Repeat the option for more.
    #[arg(long, value_name = "RECIPIENT")]
    pub(crate) words_to: Vec<String>,
    /// The name of a [[credentials]] entry of the document, and the file with its secret; - reads standard
    /// input. Repeat the option for more.
    #[arg(long, value_name = "NAME=FILE")]
    pub(crate) credential: Vec<String>,
    /// Print the words in the answer, and do not ask for three of them.
    #[arg(long)]
    pub(crate) show_words: bool,
    /// The address of the node, for its enrolment URI [default: --domain, or the static address]
    #[arg(long, value_name = "HOST")]
    pub(crate) address: Option<String>,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SeedForm {
    /// One word for the kernel's command line.
    Cmdline,
    /// One line to paste at the console of the machine.
    Console,
    /// Files for the boot partition of a flashed image, in the folder where it is mounted.
    Esp,
    /// Files for QEMU's -fw_cfg, in a folder.
    FwCfg,
    /// A FAT volume for NoCloud.
    NocloudFat,
    /// A CD image for NoCloud.
    NocloudIso,
    /// OEM strings, one file each, in a folder.
    Smbios,
    /// Only the configuration document.
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

    /// Whether the form is a single text, which may go to standard output.
    pub(crate) const fn is_text(self) -> bool {
        matches!(self, Self::Cmdline | Self::Console | Self::Text)
    }

    /// Whether the node finds the seed at every start, on something other than the disk that the
    /// seed key protects.
    pub(crate) const fn stays_apart(self) -> bool {
        matches!(self, Self::FwCfg | Self::NocloudFat | Self::NocloudIso)
    }
}

/// The origin of the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WordsOrigin {
    /// The node makes them.
    Generate,
    /// The node has no vault.
    Off,
    /// The administrator types them at the node's console.
    Prompt,
    /// This command makes them, and the seed has them.
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
