//! The errors of the vault.

use thiserror::Error;

use crate::limits;
use crate::slots::SlotError;

/// Why the vault refused a request.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VaultError {
    /// The vault is open; it must be locked before it is opened with other words.
    #[error("the vault is already unlocked")]
    AlreadyUnlocked,
    /// A label is outside the grammar.
    #[error(transparent)]
    BadLabel(#[from] LabelError),
    /// The text is no recovery phrase.
    #[error(transparent)]
    BadMnemonic(#[from] MnemonicError),
    /// A derivation path is outside the grammar.
    #[error(transparent)]
    BadPath(#[from] PathError),
    /// A record does not open. The error never says why, because a reason would tell an attacker
    /// what to change.
    #[error("the record cannot be decrypted")]
    Decrypt,
    /// A record of another program, version or algorithm.
    #[error("this is no record of this vault's format")]
    Foreign,
    /// The vault is locked, so it derives no keys.
    #[error("the vault is locked")]
    Locked,
    /// The kernel returned no random bytes.
    #[error("the kernel's random generator failed")]
    NoRandomness,
    /// A key slot refused a request.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The data exceed the limit of a record.
    #[error("{bytes} bytes are more than the {limit} of one record")]
    TooLarge {
        /// The number of bytes.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A key version that does not exist or that the configuration forbids.
    #[error("key version {0} is not accepted")]
    UnknownVersion(u32),
    /// The key of the purpose has no such operation.
    #[error("a key of this purpose does not do that")]
    Unsupported,
}

/// Why a phrase is no mnemonic. Errors never repeat a typed word, except by naming a near one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MnemonicError {
    /// All words exist, but their checksum is wrong.
    #[error("the checksum of the words is wrong; compare them one by one with the paper")]
    Checksum,
    /// No phrase has entropy of this size.
    #[error("{bytes} bytes of entropy; 16, 20, 24, 28 or 32 are needed")]
    EntropyLength {
        /// The number of bytes.
        bytes: usize,
    },
    /// The passphrase exceeds its limit.
    #[error("the passphrase is longer than {} bytes", limits::MAX_PASSPHRASE_BYTES)]
    PassphraseTooLong,
    /// The text exceeds the limit of a phrase.
    #[error("the phrase is longer than {} bytes", limits::MAX_PHRASE_BYTES)]
    TooLong,
    /// A word is not in the list.
    #[error("word {position} is not in the list; the nearest is \"{nearest}\"")]
    UnknownWord {
        /// Its position, counted from 1.
        position: usize,
        /// The word of the list with the least edit distance.
        nearest: &'static str,
    },
    /// No phrase has this number of words.
    #[error("{words} words; 12, 15, 18, 21 or 24 are needed")]
    WordCount {
        /// The number of words; counting ends at 25.
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
    /// A number begins with an unnecessary zero.
    #[error("level {level} of the path has a leading zero")]
    LeadingZero {
        /// Index of the component in the derivation path, from 0.
        level: usize,
    },
    /// A level has other characters than digits and one mark.
    #[error("level {level} of the path is no number with at most one mark (' or h)")]
    NotANumber {
        /// Index of the component in the derivation path, from 0.
        level: usize,
    },
    /// A level without a mark, on a curve for which this vault has hardened keys only.
    #[error("level {level} of the path is not hardened; add ' to it")]
    NotHardened {
        /// Index of the component in the derivation path, from 0.
        level: usize,
    },
    /// The path does not begin with `m/`.
    #[error("a path begins with m/ and has at least one level")]
    NotRooted,
    /// The number is 2³¹ or more.
    #[error("level {level} of the path is above {}", limits::MAX_INDEX)]
    TooBig {
        /// Index of the component in the derivation path, from 0.
        level: usize,
    },
    /// The path has too many levels.
    #[error("the path has more than {} levels", limits::MAX_PATH_LEVELS)]
    TooDeep,
}

/// Why a text is no label.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LabelError {
    /// A character is not allowed in labels.
    #[error("byte {at} of the label is no printable ASCII character")]
    Character {
        /// Its position, counted from 0.
        at: usize,
    },
    /// The text is not `kind:name`.
    #[error("a label is kind:name, with a kind of a-z, 0-9, - and _ and a name that is not empty")]
    Form,
    /// The label exceeds its limit.
    #[error("a label has at most {} bytes", limits::MAX_LABEL_BYTES)]
    TooLong,
}
