//! Checking the whole log again, oldest line first.

use std::path::Path;

use crate::audit::line::{ChainPosition, NOTHING};
use crate::audit::read::{RawLine, each};
use crate::audit::{AuditError, ChainBreak};
use crate::limits::AUDIT_FILES;
use crate::vault::Vault;

/// A log without a break.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifiedLog {
    /// How many lines there are.
    pub lines: usize,
    /// The number of the oldest; above 1 once files were rotated away.
    pub first: u64,
    /// The number of the newest.
    pub last: u64,
}

/// Checks every line of the log in `dir`; answers the first that is broken. Needs the vault unlocked.
pub fn verify(dir: &Path, vault: &Vault) -> Result<VerifiedLog, AuditError> {
    let mut chain = ChainVerifier {
        vault,
        found: VerifiedLog::default(),
        last: None,
    };
    each(dir, |at| chain.line(at))?;
    Ok(chain.found)
}

struct ChainVerifier<'a> {
    vault: &'a Vault,
    found: VerifiedLog,
    /// Number and hash of the line before.
    last: Option<(u64, [u8; 32])>,
}

impl ChainVerifier<'_> {
    fn line(&mut self, at: &RawLine<'_>) -> Result<(), AuditError> {
        let broken = |why| AuditError::Broken {
            file: at.path.display().to_string(),
            line: at.number,
            why,
        };
        let line = at.line.strip_suffix(b"\n");
        let place =
            ChainPosition::parse(line.ok_or_else(|| broken(ChainBreak::Cut))?).map_err(broken)?;
        self.follows(&place, at.age).map_err(broken)?;
        // After the chain: the MAC costs more, and a missing line is the better message.
        if !place.is_genuine(self.vault)? {
            return Err(broken(ChainBreak::Mac));
        }
        self.last = Some((place.seq, place.hash));
        self.found.lines += 1;
        self.found.last = place.seq;
        Ok(())
    }

    fn follows(&mut self, place: &ChainPosition, age: usize) -> Result<(), ChainBreak> {
        let (seq, prev) = match self.last {
            Some((seq, hash)) => (seq + 1, hash),
            // The lines before were rotated away, which happens to a full set of files only.
            None if age == AUDIT_FILES - 1 => (place.seq, place.prev),
            None => (1, NOTHING),
        };
        if place.seq != seq {
            return Err(ChainBreak::Sequence);
        }
        if place.prev != prev {
            return Err(ChainBreak::Previous);
        }
        if self.last.is_none() {
            self.found.first = seq;
        }
        Ok(())
    }
}
