//! Arguments of the verbs, as the command line spells them.

use std::path::PathBuf;

use alknet_vault::limits::{ARGON2_FLOOR_KIB, ARGON2_FLOOR_PASSES};
use alknet_vault::slots::{Argon2Params, SlotId};
use alknet_vault::{BlobLabel, KeyPurpose, KeyVersion, PathIndex};
use clap::{Args, ValueEnum};

/// Where the vault is.
#[derive(Clone, Debug, Args)]
pub struct DirArgs {
    /// The vault's directory, with vault.a and vault.b.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
}

/// Where the vault is, and what opens it.
#[derive(Clone, Debug, Args)]
pub struct VaultOpenArgs {
    #[command(flatten)]
    pub(crate) place: DirArgs,
    /// Opens a provisioning slot [default: seed.key in the vault's directory].
    #[arg(long, value_name = "FILE")]
    pub(crate) seed_key: Option<PathBuf>,
    /// Read passphrases from standard input, a line each, before anything else that is read there.
    #[arg(long)]
    pub(crate) passphrase_stdin: bool,
}

/// Words instead of a vault.
#[derive(Clone, Debug, Args)]
pub struct WordsArgs {
    /// Ask for the recovery words instead of opening a vault.
    #[arg(long, conflicts_with = "mnemonic_stdin")]
    pub(crate) mnemonic: bool,
    /// Read the recovery words from a line of standard input instead of opening a vault.
    #[arg(long)]
    pub(crate) mnemonic_stdin: bool,
    /// The words have a passphrase of BIP39: ask for it, or read it from the line after them.
    #[arg(long)]
    pub(crate) bip39_passphrase: bool,
    /// Which of the nodes of these words.
    #[arg(long, value_name = "N", default_value = "0", value_parser = index)]
    pub(crate) device: PathIndex,
}

impl WordsArgs {
    pub(crate) fn asked(&self) -> bool {
        self.mnemonic || self.mnemonic_stdin
    }
}

/// Which log is read.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// The folder of a log that lies elsewhere, such as audit of a machine's data partition [default:
    /// audit in the vault's directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) log: Option<PathBuf>,
}

/// Arguments of `alknet vault audit verify`.
#[derive(Debug, Args)]
pub struct AuditVerifyArgs {
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(flatten)]
    pub(crate) words: WordsArgs,
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
}

/// What an attempt at a passphrase costs.
#[derive(Clone, Copy, Debug, Args)]
pub struct CostArgs {
    /// Memory of Argon2id in MiB [default: measured, so that an attempt takes 0.5 to 1 s here].
    #[arg(long, value_name = "N", requires = "passes")]
    pub(crate) memory_mib: Option<u32>,
    /// Passes of Argon2id over that memory.
    #[arg(long, value_name = "N", requires = "memory_mib")]
    pub(crate) passes: Option<u32>,
}

impl CostArgs {
    pub(crate) fn chosen(&self) -> Result<Option<Argon2Params>, String> {
        let Some((mib, passes)) = self.memory_mib.zip(self.passes) else {
            return Ok(None);
        };
        let kib = mib.saturating_mul(1 << 10);
        let cost = Argon2Params::new(kib, passes).map_err(|_| {
            let least = ARGON2_FLOOR_KIB >> 10;
            format!("at least {least} MiB and {ARGON2_FLOOR_PASSES} passes, at most 4096 and 64")
        });
        cost.map(Some)
    }
}

/// Arguments of `alknet vault init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// How many words.
    #[arg(long, value_name = "N", default_value = "24", value_parser = ["12", "24"])]
    pub(crate) words: String,
    #[command(flatten)]
    pub(crate) new: NewArgs,
}

/// How a vault is made.
#[derive(Debug, Args)]
pub struct NewArgs {
    #[command(flatten)]
    pub(crate) place: DirArgs,
    /// What opens it; may be given several times.
    #[arg(
        long = "slot",
        value_enum,
        value_name = "TYPE",
        default_value = "passphrase"
    )]
    pub(crate) slots: Vec<SlotArg>,
    /// Which of the nodes of its words it is.
    #[arg(long, value_name = "N", default_value = "0", value_parser = index)]
    pub(crate) device: PathIndex,
    /// Give the words a passphrase of BIP39: without it they make other keys.
    #[arg(long)]
    pub(crate) bip39_passphrase: bool,
    /// Read passphrases from standard input, a line each: BIP39's, then those of slots in their order.
    #[arg(long)]
    pub(crate) passphrase_stdin: bool,
    #[command(flatten)]
    pub(crate) cost: CostArgs,
}

/// Arguments of `alknet vault import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Read the words from the first line of standard input; passphrases follow.
    #[arg(long)]
    pub(crate) mnemonic_stdin: bool,
    #[command(flatten)]
    pub(crate) new: NewArgs,
}

/// Arguments of `alknet vault migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// The directory of the new vault, which has none.
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,
    /// How many words.
    #[arg(long, value_name = "N", default_value = "24", value_parser = ["12", "24"])]
    pub(crate) words: String,
    /// What opens the new vault; may be given several times.
    #[arg(
        long = "slot",
        value_enum,
        value_name = "TYPE",
        default_value = "passphrase"
    )]
    pub(crate) slots: Vec<SlotArg>,
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
    #[command(flatten)]
    pub(crate) cost: CostArgs,
}

/// Arguments of `alknet vault export-key`.
#[derive(Debug, Args)]
pub struct ExportKeyArgs {
    /// What the key is for, such as ssh-host.
    #[arg(value_parser = purpose)]
    pub(crate) purpose: KeyPurpose,
    /// In OpenSSH's own form, which its older versions need for Ed25519.
    #[arg(long)]
    pub(crate) openssh: bool,
    #[command(flatten)]
    pub(crate) words: WordsArgs,
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
}

/// Arguments of `alknet vault pub`.
#[derive(Debug, Args)]
pub struct PubArgs {
    /// What the key is for: node-identity, ssh-host, ssh-user-ca, acme-account, image-signing,
    /// message-leaf or dns-zone-ZONE-GENERATION.
    #[arg(value_parser = purpose)]
    pub(crate) purpose: KeyPurpose,
    /// As a line of authorized_keys or known_hosts.
    #[arg(long, group = "form")]
    pub(crate) ssh: bool,
    /// As a SubjectPublicKeyInfo in PEM.
    #[arg(long, group = "form")]
    pub(crate) pem: bool,
    /// As hex digits, which is the default.
    #[arg(long, group = "form")]
    pub(crate) hex: bool,
    #[command(flatten)]
    pub(crate) words: WordsArgs,
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
}

/// Arguments of `alknet vault derive`.
#[derive(Debug, Args)]
pub struct DeriveArgs {
    /// The path, such as m/74'/0'/0'/0'.
    pub(crate) path: String,
    /// Whose master key it begins at.
    #[arg(long, value_enum, default_value = "ed25519")]
    pub(crate) curve: CurveArg,
    /// Read the words from a line of standard input instead of asking for them.
    #[arg(long)]
    pub(crate) mnemonic_stdin: bool,
    /// The words have a passphrase of BIP39: ask for it, or read it from the line after them.
    #[arg(long)]
    pub(crate) bip39_passphrase: bool,
}

/// Arguments of `alknet vault recovery-key`.
#[derive(Debug, Args)]
pub struct RecoveryKeyArgs {
    #[command(flatten)]
    pub(crate) words: WordsArgs,
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
}

/// Arguments of `alknet vault passwd`.
#[derive(Debug, Args)]
pub struct PasswdArgs {
    /// Which slot, if there are several to type into.
    #[arg(long, value_name = "ID", value_parser = slot_id)]
    pub(crate) slot: Option<SlotId>,
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
    #[command(flatten)]
    pub(crate) cost: CostArgs,
}

/// Arguments of `alknet vault rekey`.
#[derive(Debug, Args)]
pub struct RekeyArgs {
    /// A slot whose key is not at hand and that is given up; may be given several times.
    #[arg(long, value_name = "ID", value_parser = slot_id)]
    pub(crate) lose: Vec<SlotId>,
    /// Give up slots even if none is left to type into.
    #[arg(long)]
    pub(crate) i_have_the_mnemonic: bool,
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
}

/// Arguments of `alknet vault seal`.
#[derive(Debug, Args)]
pub struct SealArgs {
    /// Print the record, for a node's configuration, and keep it nowhere.
    #[arg(long)]
    pub(crate) print: bool,
    #[command(flatten)]
    pub(crate) record: RecordArgs,
}

/// Arguments of `alknet vault open`, and what sealing has as well.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// What the record is called, kind:name.
    #[arg(value_parser = label)]
    pub(crate) label: BlobLabel,
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
}

/// Arguments of `alknet vault remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// What the record is called, kind:name.
    #[arg(value_parser = label)]
    pub(crate) label: BlobLabel,
    #[command(flatten)]
    pub(crate) place: DirArgs,
}

/// Arguments of `alknet vault rotate`.
#[derive(Debug, Args)]
pub struct VaultRotateArgs {
    /// The version, 3 or more.
    #[arg(long, value_name = "N", value_parser = version)]
    pub(crate) to: KeyVersion,
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
}

/// Arguments of `alknet vault status`.
#[derive(Debug, Args)]
pub struct VaultStatusArgs {
    /// A node to ask, over the network, instead of looking into a directory.
    pub node: Option<String>,
    #[command(flatten)]
    pub(crate) place: DirArgs,
}

/// What opens a slot, as the command line spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SlotArg {
    /// Nothing: the key lies beside. For development.
    None,
    /// A passphrase, which a person types.
    Passphrase,
    /// A seed.key file.
    Provisioning,
}

/// A curve, as the command line spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CurveArg {
    /// SLIP-0010 for Ed25519.
    Ed25519,
    /// SLIP-0010 for NIST P-256.
    P256,
}

fn purpose(text: &str) -> Result<KeyPurpose, String> {
    let purpose = text.parse::<KeyPurpose>();
    let signs = purpose
        .ok()
        .filter(|purpose| purpose.signs() && *purpose != KeyPurpose::Ethereum);
    signs.ok_or_else(|| {
        "keys that sign are node-identity, ssh-host, ssh-user-ca, acme-account, image-signing, \
         message-leaf and dns-zone-ZONE-GENERATION"
            .to_owned()
    })
}

pub(crate) fn label(text: &str) -> Result<BlobLabel, String> {
    text.parse()
        .map_err(|error: alknet_vault::LabelError| error.to_string())
}

fn index(text: &str) -> Result<PathIndex, String> {
    let index = text.parse().ok().and_then(PathIndex::new);
    index.ok_or_else(|| "give a number below 2147483648".to_owned())
}

fn version(text: &str) -> Result<KeyVersion, String> {
    let version = text.parse().ok().and_then(KeyVersion::new);
    version.ok_or_else(|| "versions begin at 2".to_owned())
}

pub(crate) fn slot_id(text: &str) -> Result<SlotId, String> {
    let id = text.parse().map(SlotId::new);
    id.map_err(|_| "slots have numbers; 'slot list' shows them".to_owned())
}
