//! What can go wrong in the vault.

use thiserror::Error;

use crate::limits;
use crate::slots::SlotError;

/// Why the vault did not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VaultError {
    /// It is open; lock it before it is opened with other words.
    #[error("the vault is already unlocked")]
    AlreadyUnlocked,
    /// A label is outside the grammar.
    #[error(transparent)]
    BadLabel(#[from] LabelError),
    /// The recovery words are not recovery words.
    #[error(transparent)]
    BadMnemonic(#[from] MnemonicError),
    /// A derivation path is outside the grammar.
    #[error(transparent)]
    BadPath(#[from] PathError),
    /// A record does not open. Never says why: a reason would tell an attacker what to change.
    #[error("the record cannot be decrypted")]
    Decrypt,
    /// A record of another program, version or algorithm.
    #[error("this is no record of this vault's format")]
    Foreign,
    /// Nothing is derived while it is locked.
    #[error("the vault is locked")]
    Locked,
    /// The kernel gave no random bytes.
    #[error("the kernel's random generator failed")]
    NoRandomness,
    /// A key slot did not do what it was asked.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// More bytes than a record may hold.
    #[error("{bytes} bytes are more than the {limit} of one record")]
    TooLarge {
        /// How many there were.
        bytes: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A key version that does not exist or that the configuration forbids.
    #[error("key version {0} is not accepted")]
    UnknownVersion(u32),
    /// The purpose has no such operation: its key is of another kind.
    #[error("a key of this purpose does not do that")]
    Unsupported,
}

/// Why a phrase is no mnemonic. Words that were typed are never repeated.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MnemonicError {
    /// All words exist, but not together.
    #[error("the checksum of the words is wrong; compare them one by one with the paper")]
    Checksum,
    /// Entropy of a size that no phrase has.
    #[error("{bytes} bytes of entropy; 16, 20, 24, 28 or 32 are needed")]
    EntropyLength {
        /// How many there were.
        bytes: usize,
    },
    /// The passphrase is longer than any that is accepted.
    #[error("the passphrase is longer than {} bytes", limits::MAX_PASSPHRASE_BYTES)]
    PassphraseTooLong,
    /// More text than words can be.
    #[error("the phrase is longer than {} bytes", limits::MAX_PHRASE_BYTES)]
    TooLong,
    /// A word that is not in the list.
    #[error("word {position} is not in the list; the nearest is \"{nearest}\"")]
    UnknownWord {
        /// Which, counted from 1.
        position: usize,
        /// The word of the list with the least edit distance.
        nearest: &'static str,
    },
    /// A number of words that no phrase has.
    #[error("{words} words; 12, 15, 18, 21 or 24 are needed")]
    WordCount {
        /// How many there were; counting ends soon after 24.
        words: usize,
    },
}

/// Why a text is no derivation path. Levels are counted from 1.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathError {
    /// No digits between two slashes, or after the last.
    #[error("level {level} of the path is empty")]
    EmptyLevel {
        /// Index of the component in the derivation path, from 0.
        level: usize,
    },
    /// A number that begins with a zero it does not need.
    #[error("level {level} of the path has a leading zero")]
    LeadingZero {
        /// Index of the component in the derivation path, from 0.
        level: usize,
    },
    /// Something else than digits and one mark.
    #[error("level {level} of the path is no number with at most one mark (' or h)")]
    NotANumber {
        /// Index of the component in the derivation path, from 0.
        level: usize,
    },
    /// A level without a mark on a curve that only has hardened keys here.
    #[error("level {level} of the path is not hardened; add ' to it")]
    NotHardened {
        /// Index of the component in the derivation path, from 0.
        level: usize,
    },
    /// It does not begin with `m/`.
    #[error("a path begins with m/ and has at least one level")]
    NotRooted,
    /// A number of 2³¹ or more.
    #[error("level {level} of the path is above {}", limits::MAX_INDEX)]
    TooBig {
        /// Index of the component in the derivation path, from 0.
        level: usize,
    },
    /// Too many levels.
    #[error("the path has more than {} levels", limits::MAX_PATH_LEVELS)]
    TooDeep,
}

/// Why a text is no label.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LabelError {
    /// A character that no label has.
    #[error("byte {at} of the label is no printable ASCII character")]
    Character {
        /// Where, counted from 0.
        at: usize,
    },
    /// No `kind:name`.
    #[error("a label is kind:name, with a kind of a-z, 0-9, - and _ and a name that is not empty")]
    Form,
    /// Longer than a label may be.
    #[error("a label has at most {} bytes", limits::MAX_LABEL_BYTES)]
    TooLong,
}
