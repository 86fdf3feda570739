//! The errors between a copy of `vault.alkv` and an open vault.

use std::io;

use thiserror::Error;

use crate::error::MnemonicError;
use crate::limits;
use crate::slots::{SlotId, VaultId};

/// Why a key slot or the file refused a request.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SlotError {
    /// Parameters outside the accepted range.
    #[error("slot parameters: {0}")]
    BadParams(&'static str),
    /// The text is no `seed.key`.
    #[error("this is no seed.key; it is one line: alknet-seed-1, the vault's id, the key")]
    BadSeedKey,
    /// Both copies are damaged. They are not overwritten.
    #[error("both copies of the vault are damaged; restore one, or reset and enter the words")]
    Corrupt,
    /// The storage has a vault already.
    #[error("there is a vault already; reset it first")]
    Exists,
    /// No program of this project wrote the copy.
    #[error("this is no vault file: {0}")]
    Form(&'static str),
    /// The vault has the maximum number of slots.
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
    /// The key of the slot could not be obtained from its source.
    #[error("slot {id}: {source}")]
    Kek {
        /// Number of the slot.
        id: SlotId,
        /// Error that caused this one.
        source: KekError,
    },
    /// The slot is the last one that opens by typing.
    #[error(
        "slot {0} is the last that opens without a device; removing it needs the words at hand"
    )]
    LastInteractive(SlotId),
    /// The slot is the only one.
    #[error("slot {0} is the last; add another first")]
    LastSlot(SlotId),
    /// A later program wrote the file.
    #[error("the vault file has format {0}; this program knows 1")]
    Newer(u64),
    /// The machine has not enough memory.
    #[error("{kib} KiB of memory are needed and cannot be had")]
    NoMemory {
        /// The memory needed.
        kib: u32,
    },
    /// The vault has no slot with that number.
    #[error("there is no slot {0}")]
    NoSuchSlot(SlotId),
    /// There is no vault to change.
    #[error("there is no vault")]
    Nothing,
    /// The copies on the disk belong to another vault than the open one, or are newer.
    #[error("the vault on the disk is another or newer; read it again")]
    Stale,
    /// The key belongs to another vault.
    #[error("the key is for vault {0}")]
    OtherVault(VaultId),
    /// The passphrase cannot be used.
    #[error(transparent)]
    Passphrase(#[from] MnemonicError),
    /// The slot opened, but the rest of the file is not authentic.
    #[error("the vault file was changed without a key that opens it")]
    Tampered,
    /// The slot needs more memory than this machine allows.
    #[error("the slot needs {kib} KiB of memory; {cap_kib} KiB are allowed on this machine")]
    TooExpensive {
        /// The memory needed.
        kib: u32,
        /// The memory allowed.
        cap_kib: u32,
    },
    /// The vault exceeds the size of a copy.
    #[error(
        "the vault does not fit into the {} bytes of a copy",
        limits::COPY_BYTES
    )]
    TooLarge,
    /// A new master key can only be put into slots whose keys are present.
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

/// Why a key could not be obtained from its source.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum KekError {
    /// The device or the other node is not reachable.
    #[error("what keeps the key is not there")]
    Absent,
    /// Another failure.
    #[error("the key could not be had: {0}")]
    Failed(String),
    /// The source accepts no more attempts for now.
    #[error("locked out after too many attempts")]
    LockedOut,
    /// The machine is not in the state to which the key is bound, or the other node refuses.
    #[error("the key was refused: what runs here is not what it is bound to")]
    Refused,
    /// The PIN is wrong.
    #[error("wrong PIN")]
    WrongPin,
}
