//! What can go wrong between a copy of `vault.alkv` and an open vault.

use std::io;

use thiserror::Error;

use crate::error::MnemonicError;
use crate::limits;
use crate::slots::{SlotId, VaultId};

/// Why a key slot or the file did not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SlotError {
    /// Parameters outside what is accepted.
    #[error("slot parameters: {0}")]
    BadParams(&'static str),
    /// A text that is no `seed.key`.
    #[error("this is no seed.key; it is one line: alknet-seed-1, the vault's id, the key")]
    BadSeedKey,
    /// No copy is whole. Nothing is overwritten.
    #[error("both copies of the vault are damaged; restore one, or reset and enter the words")]
    Corrupt,
    /// There is a vault already.
    #[error("there is a vault already; reset it first")]
    Exists,
    /// A copy that no program of this kind wrote.
    #[error("this is no vault file: {0}")]
    Form(&'static str),
    /// As many slots as there may be.
    #[error("the vault has {} slots, more are not possible", limits::MAX_SLOTS)]
    Full,
    /// A file or a device could not be read or written.
    #[error("the vault's copy {copy} cannot be used ({source})")]
    Io {
        /// Name of the copy: `vault.a` or `vault.b`.
        copy: &'static str,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The key of the slot could not be had from where it is kept.
    #[error("slot {id}: {source}")]
    Kek {
        /// Number of the slot.
        id: SlotId,
        /// Error that caused this one.
        source: KekError,
    },
    /// It is the last slot that opens by typing.
    #[error(
        "slot {0} is the last that opens without a device; removing it needs the words at hand"
    )]
    LastInteractive(SlotId),
    /// There is no other.
    #[error("slot {0} is the last; add another first")]
    LastSlot(SlotId),
    /// A file of a later program.
    #[error("the vault file has format {0}; this program knows 1")]
    Newer(u64),
    /// The machine did not give the memory.
    #[error("{kib} KiB of memory are needed and cannot be had")]
    NoMemory {
        /// How much.
        kib: u32,
    },
    /// No slot of that number.
    #[error("there is no slot {0}")]
    NoSuchSlot(SlotId),
    /// There is no vault to change.
    #[error("there is no vault")]
    Nothing,
    /// The copies on the disk are not those of the vault that was opened, or newer.
    #[error("the vault on the disk is another or newer; read it again")]
    Stale,
    /// The key belongs to another vault.
    #[error("the key is for vault {0}")]
    OtherVault(VaultId),
    /// A passphrase that cannot be used.
    #[error(transparent)]
    Passphrase(#[from] MnemonicError),
    /// The slot opened, but the file is not the one that was written.
    #[error("the vault file was changed without a key that opens it")]
    Tampered,
    /// The slot wants more memory than this machine allows.
    #[error("the slot needs {kib} KiB of memory; {cap_kib} KiB are allowed on this machine")]
    TooExpensive {
        /// How much.
        kib: u32,
        /// How much there may be.
        cap_kib: u32,
    },
    /// More than a copy can hold.
    #[error(
        "the vault does not fit into the {} bytes of a copy",
        limits::COPY_BYTES
    )]
    TooLarge,
    /// A new master key goes only into slots whose keys are there.
    #[error("slots {} need their keys, or are to be named as lost", list(.0))]
    Unnamed(Vec<SlotId>),
    /// The key does not open the slot.
    #[error("slot {0} does not open with this key")]
    WrongKey(SlotId),
    /// The key is for slots of another type.
    #[error("slot {0} is of another type than the key")]
    WrongType(SlotId),
}

fn list(ids: &[SlotId]) -> String {
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    ids.join(", ")
}

/// Why a key that is kept elsewhere could not be had.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum KekError {
    /// The device or the other node is not there.
    #[error("what keeps the key is not there")]
    Absent,
    /// Something else.
    #[error("the key could not be had: {0}")]
    Failed(String),
    /// It takes no more attempts for now.
    #[error("locked out after too many attempts")]
    LockedOut,
    /// The machine is not in the state the key is bound to, or the other node does not want to.
    #[error("the key was refused: what runs here is not what it is bound to")]
    Refused,
    /// The PIN is wrong.
    #[error("wrong PIN")]
    WrongPin,
}
