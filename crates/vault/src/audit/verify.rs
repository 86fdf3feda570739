//! Checking the whole log again, oldest line first.

use std::path::Path;

use crate::audit::line::{NOTHING, Place};
use crate::audit::read::{At, each};
use crate::audit::{AuditError, Break};
use crate::limits::AUDIT_FILES;
use crate::vault::Vault;

/// A log without a break.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many lines there are.
    pub lines: usize,
    /// The number of the oldest; above 1 once files were rotated away.
    pub first: u64,
    /// The number of the newest.
    pub last: u64,
}

/// Checks every line of the log in `dir`; answers the first that is broken. Needs the vault unlocked.
pub fn verify(dir: &Path, vault: &Vault) -> Result<Verified, AuditError> {
    let mut chain = Chain {
        vault,
        found: Verified::default(),
        last: None,
    };
    each(dir, |at| chain.line(at))?;
    Ok(chain.found)
}

struct Chain<'a> {
    vault: &'a Vault,
    found: Verified,
    /// Number and hash of the line before.
    last: Option<(u64, [u8; 32])>,
}

impl Chain<'_> {
    fn line(&mut self, at: &At<'_>) -> Result<(), AuditError> {
        let broken = |why| AuditError::Broken {
            file: at.path.display().to_string(),
            line: at.number,
            why,
        };
        let line = at.line.strip_suffix(b"\n");
        let place = Place::of(line.ok_or_else(|| broken(Break::Cut))?).map_err(broken)?;
        self.follows(&place, at.age).map_err(broken)?;
        if !place.is_genuine(self.vault)? {
            return Err(broken(Break::Mac));
        }
        self.last = Some((place.seq, place.hash));
        self.found.lines += 1;
        self.found.last = place.seq;
        Ok(())
    }

    fn follows(&mut self, place: &Place, age: usize) -> Result<(), Break> {
        let (seq, prev) = match self.last {
            Some((seq, hash)) => (seq + 1, hash),
            // The lines before were rotated away, which happens to a full set of files only.
            None if age == AUDIT_FILES - 1 => (place.seq, place.prev),
            None => (1, NOTHING),
        };
        if place.seq != seq {
            return Err(Break::Sequence);
        }
        if place.prev != prev {
            return Err(Break::Previous);
        }
        if self.last.is_none() {
            self.found.first = seq;
        }
        Ok(())
    }
}
