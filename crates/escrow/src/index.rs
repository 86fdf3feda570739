//! The list of shares: one file, written beside its place and moved there, so that a power cut leaves the
//! old or the new.
//!
//! `{"escrow":1,"shares":[…]}`. What is secret is not in it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::entry::ShareEntry;
use crate::share_registry::SHARES_MAX;

const FORMAT: u64 = 1;
const FILE: &str = "shares.json";
/// Longest list: each entry with all its ranges is shorter than 2 KiB.
const BYTES_MAX: u64 = SHARES_MAX as u64 * 2048;

/// What is wrong with the list.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IndexError {
    /// It cannot be read.
    #[error("{0} is no list of shares, or was damaged; nothing is released by it")]
    Damaged(String),
    /// The disk.
    #[error("{file} cannot be used ({source})")]
    Io {
        /// Path of the file.
        file: String,
        /// Error of the operating system.
        source: io::Error,
    },
    /// Of a later program.
    #[error("the list of shares has format {0}; this program knows 1")]
    Newer(u64),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EscrowIndexDocument {
    escrow: u64,
    shares: Vec<ShareEntry>,
}

#[derive(Deserialize)]
struct EscrowIndexHeader {
    escrow: u64,
}

/// The file in its folder.
#[derive(Debug)]
pub(crate) struct ShareIndex {
    dir: PathBuf,
}

impl ShareIndex {
    pub(crate) fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// The entries of the list; none if the file does not exist yet.
    pub(crate) fn load(&self) -> Result<Vec<ShareEntry>, IndexError> {
        let path = self.dir.join(FILE);
        let damaged = || IndexError::Damaged(path.display().to_string());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(&path, error)),
        };
        let mut text = Vec::new();
        // A file longer than any list is not read to its end; cut off, it is no JSON and counts as
        // damaged.
        let read = file.take(BYTES_MAX + 1).read_to_end(&mut text);
        read.map_err(|error| failed(&path, error))?;
        // The format first: a later one may have members that would look like damage.
        let head: EscrowIndexHeader = serde_json::from_slice(&text).map_err(|_| damaged())?;
        if head.escrow != FORMAT {
            return Err(IndexError::Newer(head.escrow));
        }
        let form: EscrowIndexDocument = serde_json::from_slice(&text).map_err(|_| damaged())?;
        let ids = form.shares.windows(2);
        // The entries were written from a sorted map; what is out of order or there twice was not
        // written here.
        let in_order = ids.into_iter().all(|two| two[0].id < two[1].id);
        if form.shares.len() > SHARES_MAX || !in_order {
            return Err(damaged());
        }
        Ok(form.shares)
    }

    /// Writes it whole.
    pub(crate) fn store(&self, shares: Vec<ShareEntry>) -> Result<(), IndexError> {
        let form = EscrowIndexDocument {
            escrow: FORMAT,
            shares,
        };
        let path = self.dir.join(FILE);
        let write = || {
            fs::create_dir_all(&self.dir)?;
            let text = serde_json::to_vec(&form)?;
            alknet_durable::replace(&path, &text, 0o600)
        };
        write().map_err(|error| failed(&path, error))
    }
}

fn failed(path: &Path, source: io::Error) -> IndexError {
    let file = path.display().to_string();
    IndexError::Io { file, source }
}
