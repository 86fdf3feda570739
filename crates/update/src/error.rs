//! Why a bundle or its metadata is refused. Each text says what was wrong and what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::document::TufRole;
use crate::release::InvalidRelease;
use crate::version::{ReleaseVersion, VersionRefusal};

/// What to do about a file that an attacker, or a fault on the way, has changed.
const AGAIN: &str = "Get the bundle again from its publisher";

/// A time in seconds since 1970, for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixSeconds(pub i64);

impl fmt::Display for UnixSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Timestamp::from_second(self.0) {
            Ok(time) => time.fmt(f),
            Err(_) => write!(f, "{} s since 1970", self.0),
        }
    }
}

/// Why an update, its metadata or a target is refused. Nothing of a refused update may be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// Two documents of one version differ: the signer or an attacker made a second one.
    #[error(
        "{file} has version {version}, and an earlier {file} of this version had another content. {AGAIN}; the publisher has \
         to raise the version with each change"
    )]
    Equivocation {
        /// The file.
        file: String,
        /// The version of both documents.
        version: u64,
    },
    /// The metadata is not valid any more.
    #[error(
        "{file} expired at {expired}, and it is {now} now. Get a newer bundle, because this one may hide a newer version; if \
         the clock of this machine is wrong, correct it first"
    )]
    Expired {
        /// The file.
        file: String,
        /// Until when it was valid.
        expired: UnixSeconds,
        /// The time that this machine knows.
        now: UnixSeconds,
    },
    /// A document or target has other bytes than the signed hash says.
    #[error(
        "{file} has another SHA-256 than the signed one. It was changed or damaged on its way. {AGAIN}"
    )]
    Hash {
        /// The file.
        file: String,
    },
    /// A target is shorter or longer than the signed length.
    #[error(
        "{file} has another length than the signed {expected} bytes. It was cut off or changed on its way. {AGAIN}"
    )]
    Length {
        /// The file.
        file: String,
        /// The signed length.
        expected: u64,
    },
    /// The file is no metadata of TUF, or breaks one of its rules.
    #[error("{file} cannot be read: {why}. {AGAIN}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file that every repository has is not there.
    #[error("{file} is missing. The bundle is incomplete. {AGAIN}")]
    Missing {
        /// The file.
        file: String,
    },
    /// A snapshot does not name a document that an earlier one named.
    #[error("{file} does not name {gone}, which an earlier one named. {AGAIN}")]
    Removed {
        /// The file.
        file: String,
        /// The document that it named before.
        gone: String,
    },
    /// The release is not for this machine.
    #[error(
        "the bundle has no target for {wanted}, only for {offered}. Get the bundle for this machine"
    )]
    OtherMachine {
        /// What this machine is.
        wanted: String,
        /// What the bundle has.
        offered: String,
    },
    /// A document is older than one that this machine has seen.
    #[error(
        "{file} has version {offered}, and this machine has seen version {seen}. The bundle is older than one before it, or was \
         replayed. Get the newest bundle"
    )]
    Rollback {
        /// The file.
        file: String,
        /// The version that this machine has seen.
        seen: u64,
        /// The version in the bundle.
        offered: u64,
    },
    /// The description of the release is wrong.
    #[error("target '{target}' has a wrong description: {source}. {AGAIN}")]
    Release {
        /// The target.
        target: String,
        /// What is wrong.
        source: InvalidRelease,
    },
    /// Too few keys have signed.
    #[error(
        "{file} has {valid} valid signatures by keys of the {role} role in {by}, and {threshold} are necessary. Use a bundle that \
         the holders of these keys have signed"
    )]
    Signatures {
        /// The file.
        file: String,
        /// The role whose keys had to sign.
        role: TufRole,
        /// Where these keys are named.
        by: KeysOrigin,
        /// Keys whose signature is valid.
        valid: usize,
        /// Keys that have to sign.
        threshold: usize,
    },
    /// The medium or the server failed.
    #[error("{file} cannot be read: {source}. Try again, or get the bundle from another place")]
    Source {
        /// The file.
        file: String,
        /// The error of the system.
        source: io::Error,
    },
    /// The file is longer than any file of its kind.
    #[error("{file} has more than {max} bytes, the most that this program reads. {AGAIN}")]
    TooLarge {
        /// The file.
        file: String,
        /// The limit.
        max: u64,
    },
    /// The state file of this machine is damaged.
    #[error(
        "{} cannot be used: {why}. Restore it from a backup, or remove it: then this machine forgets which metadata it has seen, \
         and trusts the keys that it began with",
        path.display()
    )]
    Trust {
        /// The state file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No such target was signed.
    #[error("the signed metadata names no target '{target}'. {AGAIN}")]
    UnknownTarget {
        /// The name that was asked for, or that the bundle has.
        target: String,
    },
    /// The release needs something that this machine does not know.
    #[error(
        "version {version} needs {missing}, which this machine lacks or does not know. No update brings that: make a backup, \
         write a newer image to the disk of the machine, and restore the backup"
    )]
    UnmetNeeds {
        /// The version of the release.
        version: ReleaseVersion,
        /// The names that the machine does not know.
        missing: String,
    },
    /// The version may not be installed.
    #[error(transparent)]
    Version(#[from] VersionRefusal),
    /// Two documents that do not belong together.
    #[error(
        "{file} has version {found}, and {named_by} names version {expected}. Files of several releases were mixed. {AGAIN}"
    )]
    VersionMismatch {
        /// The file.
        file: String,
        /// The document that names a version of it.
        named_by: String,
        /// The version that it names.
        expected: u64,
        /// The version of the file.
        found: u64,
    },
    /// A document of one role in the place of another.
    #[error("{file} is metadata of the role '{found}', and '{expected}' belongs there. {AGAIN}")]
    WrongRole {
        /// The file.
        file: String,
        /// The role that belongs there.
        expected: TufRole,
        /// The role that the document names.
        found: String,
    },
}

/// Where the keys are named that had to sign a document.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeysOrigin {
    /// The owner's keys in the configuration.
    Configuration,
    /// A root document of this version.
    Root(u64),
}

impl fmt::Display for KeysOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration => f.write_str("the configuration"),
            Self::Root(version) => write!(f, "root version {version}"),
        }
    }
}

impl UpdateError {
    pub(crate) fn malformed(file: &str, why: impl fmt::Display) -> Self {
        Self::Malformed {
            file: file.to_owned(),
            why: why.to_string(),
        }
    }

    pub(crate) fn source(file: &str, source: io::Error) -> Self {
        Self::Source {
            file: file.to_owned(),
            source,
        }
    }
}
