//! The verbs of `alknet vault`, as the command line spells them.

use std::path::PathBuf;

use alknet_vault::slots::SlotId;
use clap::{Args, Subcommand};

use crate::VaultCliError;
use crate::args::{
    AuditVerifyArgs, CostArgs, DeriveArgs, DirArgs, ExportKeyArgs, ImportArgs, InitArgs,
    KeyShowArgs, LogArgs, MigrateArgs, RecordArgs, RecoveryKeyArgs, RekeyArgs, RemoveArgs,
    SealArgs, SlotArg, SlotSetArgs, VaultOpenArgs, VaultRotateArgs, VaultStatusArgs, slot_id,
};
use crate::earlier::EarlierVaultVerb;

/// The verbs below `alknet vault` that need no connection.
#[derive(Debug, Subcommand)]
pub enum OfflineVaultVerb {
    /// Show or verify the audit log of a vault.
    #[command(subcommand)]
    Audit(AuditVerb),
    /// Make a vault of recovery words that you have.
    #[command(after_help = "Example:\n  \
alknet vault import --dir again --slot none --mnemonic-stdin <words.txt")]
    Import(ImportArgs),
    /// Make a vault of new recovery words, and show them once.
    #[command(after_help = "Examples:\n  alknet vault init --dir vault\n  \
alknet vault init --dir vault --words 12 --slot passphrase --slot provisioning")]
    Init(InitArgs),
    /// Show, export or derive the keys of a vault or of recovery words.
    #[command(subcommand)]
    Key(DerivedKeyVerb),
    /// Replace the recovery words: make a new vault with the same records, and a statement of the old
    /// identity that names the new one.
    #[command(after_help = "Example:\n  alknet vault migrate --dir vault --to next")]
    Migrate(MigrateArgs),
    /// List, show, add, remove and rotate sealed records.
    #[command(subcommand)]
    Record(RecordVerb),
    /// Show the key that opens the data partition by the recovery words alone.
    RecoveryKey(RecoveryKeyCommandArgs),
    /// Give the vault a new master key, so that old copies of its file open no later record.
    #[command(after_help = "Example:\n  alknet vault rekey --dir vault --lose 1")]
    Rekey(RekeyArgs),
    /// Compute the official test vectors with this program.
    #[command(after_help = "Example:\n  alknet vault selftest")]
    Selftest,
    /// List, add, remove, set and test key slots.
    #[command(subcommand)]
    Slot(SlotVerb),
    /// Show the state of a node's vault, or with --dir of a vault on this computer, without opening it.
    #[command(
        override_usage = "alknet vault status [OPTIONS] [NODE]\n       \
alknet vault status [OPTIONS] --dir <DIR>",
        after_help = "Examples:\n  alknet vault status ed25519:…@192.0.2.7:443\n  \
alknet vault status\n  alknet vault status --dir vault"
    )]
    Status(VaultStatusArgs),
    /// Verify a statement that one identity follows another.
    Successor(SuccessorArgs),
    /// Show the recovery words.
    #[command(subcommand)]
    Words(WordsVerb),
    #[command(flatten)]
    Earlier(EarlierVaultVerb),
}

/// The verbs below `alknet vault audit`.
#[derive(Debug, Subcommand)]
pub enum AuditVerb {
    /// Print the log, oldest line first, without verifying it.
    #[command(
        after_help = "Examples:\n  alknet vault audit show --dir vault --last 20\n  \
alknet vault audit show --log rescued/audit"
    )]
    Show {
        #[command(flatten)]
        log: LogArgs,
        #[command(flatten)]
        vault_dir: DirArgs,
        /// Print only the newest N lines.
        #[arg(long, value_name = "N")]
        last: Option<usize>,
    },
    /// Verify that every line is as it was written, and that none is missing.
    #[command(after_help = "Examples:\n  alknet vault audit verify --dir vault\n  \
alknet vault audit verify --log rescued/audit --mnemonic-stdin <words.txt")]
    Verify(AuditVerifyArgs),
}

/// The verbs below `alknet vault key`.
#[derive(Debug, Subcommand)]
pub enum DerivedKeyVerb {
    /// Print the keys at any path of recovery words, without a vault.
    #[command(after_help = "Example:\n  \
alknet vault key derive \"m/74'/0'/0'/0'\" --mnemonic-stdin <words.txt")]
    Derive(DeriveArgs),
    /// Print a private key as PKCS #8. The command always asks for a passphrase or the words.
    #[command(after_help = "Example:\n  \
alknet vault key export ssh-host --dir vault | openssl pkey -pubout")]
    Export(ExportKeyArgs),
    /// Print a public key.
    #[command(
        after_help = "Examples:\n  alknet vault key show node-identity --dir vault\n  \
alknet vault key show ssh-host --ssh --mnemonic-stdin <words.txt"
    )]
    Show(KeyShowArgs),
}

/// The verbs below `alknet vault record`.
#[derive(Debug, Subcommand)]
pub enum RecordVerb {
    /// Seal standard input under a label.
    #[command(
        after_help = "Examples:\n  alknet vault record add cred:openai --dir vault <key.txt\n  \
alknet vault record add cred:openai --print --dir vault <key.txt >>node.toml"
    )]
    Add(SealArgs),
    /// List the labels of the sealed records.
    #[command(after_help = "Example:\n  alknet vault record list --dir vault")]
    List(DirArgs),
    /// Remove a sealed record.
    #[command(after_help = "Example:\n  alknet vault record remove cred:openai --dir vault")]
    Remove(RemoveArgs),
    /// Seal all records again under a newer version of their key, and refuse older versions.
    #[command(after_help = "Example:\n  alknet vault record rotate --to 3 --dir vault")]
    Rotate(VaultRotateArgs),
    /// Print the secret that was sealed under a label.
    #[command(after_help = "Example:\n  alknet vault record show cred:openai --dir vault")]
    Show(RecordArgs),
}

/// Arguments of `alknet vault recovery-key`, which is `recovery-key show` without its verb: the earlier spelling.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct RecoveryKeyCommandArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<RecoveryKeyVerb>,
    #[command(flatten)]
    pub(crate) earlier: RecoveryKeyArgs,
}

impl RecoveryKeyCommandArgs {
    /// The arguments in the spelling that the user typed.
    pub(crate) fn chosen(self) -> RecoveryKeyArgs {
        match self.verb {
            Some(RecoveryKeyVerb::Show(args)) => args,
            None => self.earlier,
        }
    }
}

/// The verb below `alknet vault recovery-key`.
#[derive(Debug, Subcommand)]
pub enum RecoveryKeyVerb {
    /// Print the key that opens the data partition by the recovery words alone.
    #[command(
        after_help = "Examples:\n  alknet vault recovery-key show --dir vault\n  \
alknet vault recovery-key show --mnemonic-stdin <words.txt | cryptsetup open --key-file - /dev/sdX data"
    )]
    Show(RecoveryKeyArgs),
}

/// The verbs below `alknet vault slot`.
#[derive(Debug, Subcommand)]
pub enum SlotVerb {
    /// Add a key slot.
    #[command(
        after_help = "Examples:\n  alknet vault slot add passphrase --dir vault\n  \
alknet vault slot add provisioning --dir vault --out seed.key"
    )]
    Add {
        /// What opens the slot.
        #[arg(value_enum, value_name = "TYPE")]
        kind: SlotArg,
        /// The file for the seed of a provisioning slot [default: seed.key in the vault's directory].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        open: VaultOpenArgs,
        #[command(flatten)]
        cost: CostArgs,
    },
    /// List the key slots.
    #[command(after_help = "Example:\n  alknet vault slot list --dir vault")]
    List(DirArgs),
    /// Remove a key slot.
    #[command(
        alias = "rm",
        after_help = "Example:\n  alknet vault slot remove 1 --dir vault"
    )]
    Remove {
        /// The number of the slot.
        #[arg(value_parser = slot_id)]
        id: SlotId,
        /// Remove the slot even if it is the last one with a passphrase.
        #[arg(long)]
        i_have_the_mnemonic: bool,
        #[command(flatten)]
        open: VaultOpenArgs,
    },
    /// Replace the passphrase of a key slot.
    #[command(after_help = "Examples:\n  alknet vault slot set --dir vault\n  \
alknet vault slot set 1 --dir vault")]
    Set {
        /// The number of the slot [default: the slot that the old passphrase opens].
        #[arg(value_parser = slot_id)]
        id: Option<SlotId>,
        #[command(flatten)]
        set: SlotSetArgs,
    },
    /// Open a key slot, and change nothing.
    #[command(after_help = "Example:\n  alknet vault slot test 0 --dir vault")]
    Test {
        /// The number of the slot [default: every slot that this computer can open].
        #[arg(value_parser = slot_id)]
        id: Option<SlotId>,
        #[command(flatten)]
        open: VaultOpenArgs,
    },
}

/// Arguments of `alknet vault successor`. The bare file is the earlier spelling.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SuccessorArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<SuccessorVerb>,
    /// The statement, as 'successor verify' takes it.
    #[arg(hide = true)]
    pub(crate) earlier: Option<PathBuf>,
}

impl SuccessorArgs {
    /// The file in the spelling that the user typed.
    pub(crate) fn file(self) -> Result<PathBuf, VaultCliError> {
        let verified = self.verb.map(|SuccessorVerb::Verify { file }| file);
        verified.or(self.earlier).ok_or_else(|| {
            VaultCliError::Usage("FILE is missing: 'successor verify FILE'".to_owned())
        })
    }
}

/// The verb below `alknet vault successor`.
#[derive(Debug, Subcommand)]
pub enum SuccessorVerb {
    /// Verify both signatures of a statement, and print the old and the new key.
    #[command(after_help = "Example:\n  alknet vault successor verify next/successor.json")]
    Verify {
        /// The file with the statement.
        file: PathBuf,
    },
}

/// The verb below `alknet vault words`.
#[derive(Debug, Subcommand)]
pub enum WordsVerb {
    /// Print the recovery words. The command always asks for a passphrase.
    #[command(after_help = "Example:\n  alknet vault words show --dir vault")]
    Show(VaultOpenArgs),
}
