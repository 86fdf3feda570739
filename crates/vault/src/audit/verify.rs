//! Verifies the whole log, oldest line first.

use std::path::Path;

use crate::audit::line::{ChainPosition, NOTHING};
use crate::audit::read::{RawLine, each};
use crate::audit::{AuditError, ChainBreak};
use crate::limits::AUDIT_FILES;
use crate::vault::Vault;

/// A log without a break.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifiedLog {
    /// The number of lines.
    pub lines: usize,
    /// The number of the oldest line; above 1 once files were rotated away.
    pub first: u64,
    /// The number of the newest line.
    pub last: u64,
}

/// Verifies every line of the log in `dir`; returns the first break. The vault must be unlocked.
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
    /// The number and the hash of the line before.
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
        let position =
            ChainPosition::parse(line.ok_or_else(|| broken(ChainBreak::Cut))?).map_err(broken)?;
        self.follows(&position, at.age).map_err(broken)?;
        // The chain is checked before the code, which costs more; a missing line is also the better message.
        if !position.is_genuine(self.vault)? {
            return Err(broken(ChainBreak::Mac));
        }
        self.last = Some((position.seq, position.hash));
        self.found.lines += 1;
        self.found.last = position.seq;
        Ok(())
    }

    fn follows(&mut self, position: &ChainPosition, age: usize) -> Result<(), ChainBreak> {
        let (seq, prev) = match self.last {
            Some((seq, hash)) => (seq + 1, hash),
            // A full set of files begins after lines that were rotated away, so any number may be the first.
            None if age == AUDIT_FILES - 1 => (position.seq, position.prev),
            None => (1, NOTHING),
        };
        if position.seq != seq {
            return Err(ChainBreak::Sequence);
        }
        if position.prev != prev {
            return Err(ChainBreak::Previous);
        }
        if self.last.is_none() {
            self.found.first = seq;
        }
        Ok(())
    }
}
