//! Spellings of verbs that earlier versions had. Scripts may keep them; help does not list them.

use alknet_vault::slots::SlotId;
use clap::{Args, Subcommand};

use crate::args::{
    DeriveArgs, DirArgs, ExportKeyArgs, KeyShowArgs, RecordArgs, RemoveArgs, SealArgs, SlotSetArgs,
    VaultOpenArgs, VaultRotateArgs, slot_id,
};
use crate::verbs::{DerivedKeyVerb, OfflineVaultVerb, RecordVerb, SlotVerb, WordsVerb};

/// The hidden verbs. The text of each names the present spelling, and a test reads it there.
#[derive(Debug, Subcommand)]
pub enum EarlierVaultVerb {
    /// As 'alknet vault key derive'.
    #[command(hide = true)]
    Derive(DeriveArgs),
    /// As 'alknet vault key export'.
    #[command(hide = true)]
    ExportKey(ExportKeyArgs),
    /// As 'alknet vault words show'.
    #[command(hide = true)]
    ExportPhrase(VaultOpenArgs),
    /// As 'alknet vault record list'.
    #[command(hide = true)]
    List(DirArgs),
    /// As 'alknet vault record show'.
    #[command(hide = true)]
    Open(RecordArgs),
    /// As 'alknet vault slot set'.
    #[command(hide = true)]
    Passwd(PasswdArgs),
    /// As 'alknet vault key show'.
    #[command(hide = true)]
    Pub(KeyShowArgs),
    /// As 'alknet vault record remove'.
    #[command(hide = true)]
    Remove(RemoveArgs),
    /// As 'alknet vault record rotate'.
    #[command(hide = true)]
    Rotate(VaultRotateArgs),
    /// As 'alknet vault record add'.
    #[command(hide = true)]
    Seal(SealArgs),
}

/// Arguments of `alknet vault passwd`, which names the slot by an option.
#[derive(Debug, Args)]
pub struct PasswdArgs {
    /// The number of the slot.
    #[arg(long, value_name = "ID", value_parser = slot_id)]
    slot: Option<SlotId>,
    #[command(flatten)]
    set: SlotSetArgs,
}

impl EarlierVaultVerb {
    /// The same verb in its present spelling.
    pub(crate) fn present(self) -> OfflineVaultVerb {
        match self {
            Self::Derive(args) => OfflineVaultVerb::Key(DerivedKeyVerb::Derive(args)),
            Self::ExportKey(args) => OfflineVaultVerb::Key(DerivedKeyVerb::Export(args)),
            Self::ExportPhrase(open) => OfflineVaultVerb::Words(WordsVerb::Show(open)),
            Self::List(vault_dir) => OfflineVaultVerb::Record(RecordVerb::List(vault_dir)),
            Self::Open(args) => OfflineVaultVerb::Record(RecordVerb::Show(args)),
            Self::Passwd(PasswdArgs { slot, set }) => {
                OfflineVaultVerb::Slot(SlotVerb::Set { id: slot, set })
            }
            Self::Pub(args) => OfflineVaultVerb::Key(DerivedKeyVerb::Show(args)),
            Self::Remove(args) => OfflineVaultVerb::Record(RecordVerb::Remove(args)),
            Self::Rotate(args) => OfflineVaultVerb::Record(RecordVerb::Rotate(args)),
            Self::Seal(args) => OfflineVaultVerb::Record(RecordVerb::Add(args)),
        }
    }
}
