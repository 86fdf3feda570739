//! Errors while media are read and configurations are stored.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a file or a volume could not be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProvisioningError {
    /// Several volumes have a program with this name, and one of them may be an attacker's.
    #[error("there is more than one {name}: on {}; leave only the one that is meant", .volumes.join(" and "))]
    AmbiguousProgram {
        /// The file.
        name: &'static str,
        /// The block devices.
        volumes: Vec<String>,
    },
    /// A volume could not be mounted.
    #[error("{device} cannot be mounted ({source}); write the volume again", device = device.display())]
    Mount {
        /// The block device.
        device: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A required program was not found.
    #[error("there is no {name} in the root of {volume}; put it there")]
    NoProgram {
        /// The file.
        name: &'static str,
        /// Where it was searched.
        volume: &'static str,
    },
    /// A file's path leads to something else.
    #[error("{path} is no regular file; put a plain file there", path = path.display())]
    NotAFile {
        /// Path of the file.
        path: PathBuf,
    },
    /// A file could not be read.
    #[error("{path} cannot be read ({source})", path = path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A file is longer than the limit.
    #[error("{path} has more than {limit} bytes; that is no image", path = path.display())]
    TooLarge {
        /// Path of the file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file could not be written.
    #[error("{path} cannot be written ({source})", path = path.display())]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
}
