//! Arguments of the verbs, as the command line spells them.

use std::path::PathBuf;

use alknet_vault::limits::{ARGON2_FLOOR_KIB, ARGON2_FLOOR_PASSES};
use alknet_vault::slots::{Argon2Params, SlotId};
use alknet_vault::{BlobLabel, KeyPurpose, KeyVersion, PathIndex};
use clap::{Args, ValueEnum};

/// The directory of a vault.
#[derive(Clone, Debug, Args)]
pub struct DirArgs {
    /// The directory of the vault, with vault.a and vault.b.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
}

/// The directory of a vault, and what opens the vault.
#[derive(Clone, Debug, Args)]
pub struct VaultOpenArgs {
    #[command(flatten)]
    pub(crate) vault_dir: DirArgs,
    /// The file that opens a provisioning slot [default: seed.key in the vault's directory].
    #[arg(long, value_name = "FILE")]
    pub(crate) seed_key: Option<PathBuf>,
    /// Read passphrases from the first lines of standard input, instead of asking for them.
    #[arg(long)]
    pub(crate) passphrase_stdin: bool,
}

impl VaultOpenArgs {
    /// Whether passphrases come from standard input.
    #[must_use]
    pub const fn reads_stdin(&self) -> bool {
        self.passphrase_stdin
    }
}

/// Recovery words instead of a vault.
#[derive(Clone, Debug, Args)]
pub struct WordsArgs {
    /// Ask for the recovery words instead of opening a vault.
    #[arg(long, conflicts_with = "mnemonic_stdin")]
    pub(crate) mnemonic: bool,
    /// Read the recovery words from a line of standard input instead of opening a vault.
    #[arg(long)]
    pub(crate) mnemonic_stdin: bool,
    /// Ask for the BIP39 passphrase of the words, or read it from the line after the words.
    #[arg(long)]
    pub(crate) bip39_passphrase: bool,
    /// The number of the node among the nodes of these words.
    #[arg(long, value_name = "N", default_value = "0", value_parser = index)]
    pub(crate) device: PathIndex,
}

impl WordsArgs {
    pub(crate) fn is_given(&self) -> bool {
        self.mnemonic || self.mnemonic_stdin
    }
}

/// The folder of an audit log.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// The folder of the log, for example audit on a machine's data partition [default: audit in the
    /// vault's directory].
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

/// What each attempt at a passphrase costs.
#[derive(Clone, Copy, Debug, Args)]
pub struct CostArgs {
    /// Memory of Argon2id in MiB [default: measured, so that one attempt takes 0.5 to 1 s on this computer].
    #[arg(long, value_name = "N", requires = "passes")]
    pub(crate) memory_mib: Option<u32>,
    /// Number of passes of Argon2id over the memory.
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
    /// The number of words.
    #[arg(long, value_name = "N", default_value = "24", value_parser = ["12", "24"])]
    pub(crate) words: String,
    #[command(flatten)]
    pub(crate) new: NewArgs,
}

/// Arguments of the verbs that make a vault.
#[derive(Debug, Args)]
pub struct NewArgs {
    #[command(flatten)]
    pub(crate) vault_dir: DirArgs,
    /// What opens the vault. Several options make several slots.
    #[arg(
        long = "slot",
        value_enum,
        value_name = "TYPE",
        default_value = "passphrase"
    )]
    pub(crate) slots: Vec<SlotArg>,
    /// The number of the node among the nodes of these words.
    #[arg(long, value_name = "N", default_value = "0", value_parser = index)]
    pub(crate) device: PathIndex,
    /// Ask for a BIP39 passphrase of the words. Another passphrase, or none, makes other keys.
    #[arg(long)]
    pub(crate) bip39_passphrase: bool,
    /// Read passphrases from standard input, one a line: the BIP39 passphrase, then one for each slot.
    #[arg(long)]
    pub(crate) passphrase_stdin: bool,
    #[command(flatten)]
    pub(crate) cost: CostArgs,
}

/// Arguments of `alknet vault import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Read the words from the first line of standard input, before the passphrases.
    #[arg(long)]
    pub(crate) mnemonic_stdin: bool,
    #[command(flatten)]
    pub(crate) new: NewArgs,
}

/// Arguments of `alknet vault migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// The directory of the new vault. It must not have a vault yet.
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,
    /// The number of words.
    #[arg(long, value_name = "N", default_value = "24", value_parser = ["12", "24"])]
    pub(crate) words: String,
    /// What opens the new vault. Several options make several slots.
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

/// Arguments of `alknet vault key export`.
#[derive(Debug, Args)]
pub struct ExportKeyArgs {
    /// The purpose of the key, for example ssh-host.
    #[arg(value_parser = purpose)]
    pub(crate) purpose: KeyPurpose,
    /// Print OpenSSH's own format, which old versions of OpenSSH need for Ed25519.
    #[arg(long)]
    pub(crate) openssh: bool,
    #[command(flatten)]
    pub(crate) words: WordsArgs,
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
}

/// Arguments of `alknet vault key show`.
#[derive(Debug, Args)]
pub struct KeyShowArgs {
    /// The purpose of the key: node-identity, ssh-host, ssh-user-ca, acme-account, image-signing,
    /// message-leaf or dns-zone-ZONE-GENERATION.
    #[arg(value_parser = purpose)]
    pub(crate) purpose: KeyPurpose,
    /// Print a line for authorized_keys or known_hosts.
    #[arg(long, group = "form")]
    pub(crate) ssh: bool,
    /// Print a SubjectPublicKeyInfo in PEM.
    #[arg(long, group = "form")]
    pub(crate) pem: bool,
    /// Print hex digits (default).
    #[arg(long, group = "form")]
    pub(crate) hex: bool,
    #[command(flatten)]
    pub(crate) words: WordsArgs,
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
}

/// Arguments of `alknet vault key derive`.
#[derive(Debug, Args)]
pub struct DeriveArgs {
    /// The derivation path, for example m/74'/0'/0'/0'.
    pub(crate) path: String,
    /// The curve of the key.
    #[arg(long, value_enum, default_value = "ed25519")]
    pub(crate) curve: CurveArg,
    /// Read the recovery words from the first line of standard input instead of asking for them.
    #[arg(long)]
    pub(crate) mnemonic_stdin: bool,
    /// Ask for the BIP39 passphrase of the words, or read it from the line after the words.
    #[arg(long)]
    pub(crate) bip39_passphrase: bool,
}

/// Arguments of `alknet vault recovery-key show`.
#[derive(Debug, Args)]
pub struct RecoveryKeyArgs {
    #[command(flatten)]
    pub(crate) words: WordsArgs,
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
}

/// Arguments of `alknet vault slot set`, beside the slot.
#[derive(Debug, Args)]
pub struct SlotSetArgs {
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
    #[command(flatten)]
    pub(crate) cost: CostArgs,
}

/// Arguments of `alknet vault rekey`.
#[derive(Debug, Args)]
pub struct RekeyArgs {
    /// Remove this slot, because its key is lost. Several options remove several slots.
    #[arg(long, value_name = "ID", value_parser = slot_id)]
    pub(crate) lose: Vec<SlotId>,
    /// Remove lost slots even if no slot with a passphrase stays.
    #[arg(long)]
    pub(crate) i_have_the_mnemonic: bool,
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
}

/// Arguments of `alknet vault record add`.
#[derive(Debug, Args)]
pub struct SealArgs {
    /// Print the record for the configuration of a node, and do not store it.
    #[arg(long)]
    pub(crate) print: bool,
    #[command(flatten)]
    pub(crate) record: RecordArgs,
}

/// Arguments of `alknet vault record show`, which `record add` has as well.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// The label of the record, kind:name.
    #[arg(value_parser = label)]
    pub(crate) label: BlobLabel,
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
}

/// Arguments of `alknet vault record remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The label of the record, kind:name.
    #[arg(value_parser = label)]
    pub(crate) label: BlobLabel,
    #[command(flatten)]
    pub(crate) vault_dir: DirArgs,
}

/// Arguments of `alknet vault record rotate`.
#[derive(Debug, Args)]
pub struct VaultRotateArgs {
    /// The new version, 3 or more.
    #[arg(long, value_name = "N", value_parser = version)]
    pub(crate) to: KeyVersion,
    #[command(flatten)]
    pub(crate) open: VaultOpenArgs,
}

/// Arguments of `alknet vault status`.
#[derive(Debug, Args)]
pub struct VaultStatusArgs {
    /// The node to ask over the network: as every verb takes it, and without NODE the default node.
    #[arg(conflicts_with = "dir")]
    pub node: Option<String>,
    /// Ask no node, and read the vault in this directory of this computer, with vault.a and vault.b.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// The type of a key slot, as the command line spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SlotArg {
    /// No secret: the key lies beside the vault, for development.
    None,
    /// A passphrase that you type.
    Passphrase,
    /// A file seed.key.
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
    id.map_err(|_| "the slot is a number; 'slot list' lists the slots".to_owned())
}
