//! What can be asked, as the command line spells it.

use std::path::PathBuf;

use alknet_vault::slots::SlotId;
use clap::Subcommand;

use crate::args::{
    AuditVerifyArgs, CostArgs, DeriveArgs, DirArgs, ExportKeyArgs, ImportArgs, InitArgs, LogArgs,
    MigrateArgs, PasswdArgs, PubArgs, RecordArgs, RecoveryKeyArgs, RekeyArgs, RemoveArgs, SealArgs,
    SlotArg, VaultOpenArgs, VaultRotateArgs, VaultStatusArgs, slot_id,
};

/// The verbs below `alknet vault` that need no connection.
#[derive(Debug, Subcommand)]
pub enum OfflineVaultVerb {
    /// Show or check the log of what happened to the vault.
    #[command(subcommand)]
    Audit(AuditVerb),
    /// Print the keys at any path of recovery words; needs no vault.
    #[command(after_help = "Example:\n  \
alknet vault derive \"m/74'/0'/0'/0'\" --mnemonic-stdin <words.txt")]
    Derive(DeriveArgs),
    /// Print a private key as PKCS #8, after asking for the passphrase.
    #[command(after_help = "Example:\n  \
alknet vault export-key ssh-host --dir vault | openssl pkey -pubout")]
    ExportKey(ExportKeyArgs),
    /// Print the recovery words, after asking for the passphrase.
    #[command(after_help = "Example:\n  alknet vault export-phrase --dir vault")]
    ExportPhrase(VaultOpenArgs),
    /// Make a vault of words that exist.
    #[command(after_help = "Example:\n  \
alknet vault import --dir again --slot none --mnemonic-stdin <words.txt")]
    Import(ImportArgs),
    /// Make a vault of new words, and show them once.
    #[command(after_help = "Examples:\n  alknet vault init --dir vault\n  \
alknet vault init --dir vault --words 12 --slot passphrase --slot provisioning")]
    Init(InitArgs),
    /// List the sealed records.
    #[command(after_help = "Example:\n  alknet vault list --dir vault")]
    List(DirArgs),
    /// Replace the words: a new vault with the same records, and a statement of the old identity that
    /// the new one follows it.
    #[command(after_help = "Example:\n  alknet vault migrate --dir vault --to next")]
    Migrate(MigrateArgs),
    /// Print what was sealed under a label.
    #[command(after_help = "Example:\n  alknet vault open cred:openai --dir vault")]
    Open(RecordArgs),
    /// Change the passphrase of a slot.
    #[command(after_help = "Example:\n  alknet vault passwd --dir vault")]
    Passwd(PasswdArgs),
    /// Print a public key.
    #[command(
        after_help = "Examples:\n  alknet vault pub node-identity --dir vault\n  \
alknet vault pub ssh-host --ssh --mnemonic-stdin <words.txt"
    )]
    Pub(PubArgs),
    /// Print what opens the data partition when only the words are left.
    #[command(after_help = "Examples:\n  alknet vault recovery-key --dir vault\n  \
alknet vault recovery-key --mnemonic-stdin <words.txt | cryptsetup open --key-file - /dev/sdX data")]
    RecoveryKey(RecoveryKeyArgs),
    /// Give the vault a new master key, so that old copies of its file open nothing new.
    #[command(after_help = "Example:\n  alknet vault rekey --dir vault --lose 1")]
    Rekey(RekeyArgs),
    /// Remove a sealed record.
    #[command(after_help = "Example:\n  alknet vault remove cred:openai --dir vault")]
    Remove(RemoveArgs),
    /// Seal all records under a newer version of their key, and accept no older one.
    #[command(after_help = "Example:\n  alknet vault rotate --to 3 --dir vault")]
    Rotate(VaultRotateArgs),
    /// Seal what is read from standard input under a label.
    #[command(
        after_help = "Examples:\n  alknet vault seal cred:openai --dir vault <key.txt\n  \
alknet vault seal cred:openai --print --dir vault <key.txt >>node.toml"
    )]
    Seal(SealArgs),
    /// Compute all official vectors with this program.
    #[command(after_help = "Example:\n  alknet vault selftest")]
    Selftest,
    /// List, make, remove and test key slots.
    #[command(subcommand)]
    Slot(SlotVerb),
    /// Say how a vault is without opening it.
    #[command(after_help = "Examples:\n  alknet vault status --dir vault\n  \
alknet vault status ed25519:…@192.0.2.7:443")]
    Status(VaultStatusArgs),
    /// Check a statement that one identity follows another.
    #[command(after_help = "Example:\n  alknet vault successor next/successor.json")]
    Successor {
        /// The statement.
        file: PathBuf,
    },
}

/// The verbs below `alknet vault audit`.
#[derive(Debug, Subcommand)]
pub enum AuditVerb {
    /// Print the log, oldest first; believes it.
    #[command(
        after_help = "Examples:\n  alknet vault audit show --dir vault --last 20\n  \
alknet vault audit show --log rescued/audit"
    )]
    Show {
        #[command(flatten)]
        log: LogArgs,
        #[command(flatten)]
        place: DirArgs,
        /// Only so many of the newest lines.
        #[arg(long, value_name = "N")]
        last: Option<usize>,
    },
    /// Check that no line was changed, removed or put in.
    #[command(after_help = "Examples:\n  alknet vault audit verify --dir vault\n  \
alknet vault audit verify --log rescued/audit --mnemonic-stdin <words.txt")]
    Verify(AuditVerifyArgs),
}

/// The verbs below `alknet vault slot`.
#[derive(Debug, Subcommand)]
pub enum SlotVerb {
    /// Make a key slot.
    #[command(
        after_help = "Examples:\n  alknet vault slot add passphrase --dir vault\n  \
alknet vault slot add provisioning --dir vault --out seed.key"
    )]
    Add {
        /// What opens it.
        #[arg(value_enum, value_name = "TYPE")]
        kind: SlotArg,
        /// Where the seed of a provisioning slot goes [default: seed.key in the vault's directory].
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
        /// Its number.
        #[arg(value_parser = slot_id)]
        id: SlotId,
        /// Remove it even if it is the last slot that opens by typing.
        #[arg(long)]
        i_have_the_mnemonic: bool,
        #[command(flatten)]
        open: VaultOpenArgs,
    },
    /// Open a key slot, and forget what was in it.
    #[command(after_help = "Example:\n  alknet vault slot test 0 --dir vault")]
    Test {
        /// Its number [default: every slot that this computer can open].
        #[arg(value_parser = slot_id)]
        id: Option<SlotId>,
        #[command(flatten)]
        open: VaultOpenArgs,
    },
}
