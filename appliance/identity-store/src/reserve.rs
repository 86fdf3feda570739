//! Room on the disk for changes of entries that exist.
//!
//! A peer that fills the disk would keep its rights, because the node could not write their removal. So a file beside
//! the database holds room. A change of entries that exist may give up a part of it if the disk is full. The store
//! takes the room back after each change that it writes. New entries never use it: a peer with the right to make some
//! would use it up.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::quarantine;

/// Suffix of the file behind the name of the database.
const RESERVE: &str = "-reserve";

/// Bytes of the file.
pub(crate) const RESERVE_BYTES: u64 = 1 << 20;

/// Bytes that are given up at once. Most changes append less to the log. Another process may take these bytes first, so
/// not all are given up.
const STEP_BYTES: u64 = 64 << 10;

/// Makes the file as long as it should be, as far as the disk has room.
pub(crate) fn fill(path: &Path) {
    let reserve = quarantine::with(path, RESERVE);
    let is_whole = |length: u64| length >= RESERVE_BYTES;
    if reserve.metadata().is_ok_and(|about| is_whole(about.len())) {
        return;
    }
    if let Err(error) = try_fill(&reserve) {
        tracing::debug!(%error, "the reserve of the identity file is short");
    }
}

/// Written, and not made longer only: a hole holds no room.
fn try_fill(reserve: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .create(true)
        .append(true)
        .mode(0o600)
        .open(reserve)?;
    let zeros = [0; 4096];
    let mut length = file.metadata()?.len();
    while length < RESERVE_BYTES {
        let left = RESERVE_BYTES - length;
        let piece = usize::try_from(left).map_or(zeros.len(), |left| left.min(zeros.len()));
        file.write_all(&zeros[..piece])?;
        length += piece as u64;
    }
    file.sync_all()
}

/// Gives a part back to the disk. Returns whether there was one.
pub(crate) fn give_up(path: &Path) -> bool {
    let shorten = |file: File| {
        let length = file.metadata()?.len();
        file.set_len(length.saturating_sub(STEP_BYTES))?;
        // Some file systems free the blocks only then.
        file.sync_all()?;
        Ok::<_, io::Error>(length > 0)
    };
    let file = OpenOptions::new()
        .write(true)
        .open(quarantine::with(path, RESERVE));
    file.and_then(shorten).unwrap_or(false)
}
