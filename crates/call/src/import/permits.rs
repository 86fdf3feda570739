//! Permits for calls of one imported server, which requesters share: a server that does not answer holds the permits
//! of its callers, and leaves those of others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::context::Ctx;
use crate::error::CallError;
use crate::limits::{BYTES_SHARE, BYTES_UNKNOWN_PEERS};
use crate::request_bytes::Requester;
use crate::sync::lock;

/// The permits of one server. Clones are the same permits.
#[derive(Clone, Debug)]
pub struct ImportCallPermits(Arc<ImportPermitPool>);

#[derive(Debug)]
struct ImportPermitPool {
    most: usize,
    taken: Mutex<ImportCallCounts>,
}

/// Permits in use now.
#[derive(Debug, Default)]
struct ImportCallCounts {
    all: usize,
    /// Permits of all unknown peers.
    unknown: usize,
    each: HashMap<Requester, usize>,
}

impl ImportPermitPool {
    /// The limit that the requester has reached, and its number.
    fn full(
        &self,
        taken: &ImportCallCounts,
        requester: &Requester,
    ) -> Option<(&'static str, usize)> {
        let own = taken.each.get(requester).copied().unwrap_or_default();
        let (of_one, of_unknown) = (self.most / BYTES_SHARE, self.most / BYTES_UNKNOWN_PEERS);
        // Of the last quarter, only a requester without a call gets a permit: others always find one.
        let last_quarter = self.most - self.most / 4;
        if own >= of_one {
            Some(("calls of one imported server by one requester", of_one))
        } else if !requester.is_known() && taken.unknown >= of_unknown {
            Some((
                "calls of one imported server by all unknown peers",
                of_unknown,
            ))
        } else if taken.all >= self.most || (taken.all >= last_quarter && own > 0) {
            Some(("calls of one imported server", self.most))
        } else {
            None
        }
    }
}

impl ImportCallPermits {
    /// For a server that may have `most` calls under way at once: half of them by one requester, a quarter by all
    /// unknown peers, and of the last quarter one by each requester that has no other.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self(Arc::new(ImportPermitPool {
            most,
            taken: Mutex::default(),
        }))
    }

    /// A permit for a call of its requester, until the returned value is dropped.
    ///
    /// # Errors
    /// `OVERLOADED` where the requester, or all, have reached their limit.
    pub fn take(&self, ctx: &Ctx) -> Result<ImportCallPermit, CallError> {
        self.take_for(ctx.requester())
    }

    fn take_for(&self, requester: Requester) -> Result<ImportCallPermit, CallError> {
        let mut taken = lock(&self.0.taken);
        if let Some((what, most)) = self.0.full(&taken, &requester) {
            return Err(CallError::overloaded(what, most));
        }
        taken.all += 1;
        taken.unknown += usize::from(!requester.is_known());
        *taken.each.entry(requester.clone()).or_default() += 1;
        drop(taken);
        Ok(ImportCallPermit {
            permits: self.clone(),
            requester,
        })
    }
}

/// A permit in use.
#[derive(Debug)]
pub struct ImportCallPermit {
    permits: ImportCallPermits,
    requester: Requester,
}

impl Drop for ImportCallPermit {
    fn drop(&mut self) {
        let mut taken = lock(&self.permits.0.taken);
        taken.all -= 1;
        taken.unknown -= usize::from(!self.requester.is_known());
        if let Some(own) = taken.each.get_mut(&self.requester) {
            *own -= 1;
            // An entry for each requester that ever called would fill the memory.
            if *own == 0 {
                taken.each.remove(&self.requester);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str) -> Requester {
        Requester::Known(name.parse().expect("a peer id"))
    }

    fn fill(permits: &ImportCallPermits, requester: &Requester) -> Vec<ImportCallPermit> {
        std::iter::from_fn(|| permits.take_for(requester.clone()).ok()).collect()
    }

    #[test]
    fn one_requester_has_half_of_the_permits_and_two_leave_others_one_each() {
        let permits = ImportCallPermits::new(32);
        let eve = fill(&permits, &known("eve"));
        assert_eq!(eve.len(), 16);
        let mallory = fill(&permits, &known("mallory"));
        assert_eq!(mallory.len(), 8);
        let others: Vec<_> = (0..8)
            .map(|n| fill(&permits, &known(&format!("other-{n}"))))
            .collect();
        assert!(others.iter().all(|permits| permits.len() == 1));
        let refused = permits.take_for(known("last")).expect_err("all are taken");
        assert!(refused.retryable, "nothing was sent: {refused}");
        drop((eve, mallory, others));
        let taken = lock(&permits.0.taken);
        assert!(taken.all == 0 && taken.each.is_empty(), "{taken:?}");
    }

    #[test]
    fn unknown_peers_without_an_address_leave_known_ones_their_permits() {
        let permits = ImportCallPermits::new(32);
        let crowd = fill(&permits, &Requester::Nowhere);
        assert_eq!(crowd.len(), 8);
        assert_eq!(fill(&permits, &known("ada")).len(), 16);
        drop(crowd);
        assert_eq!(lock(&permits.0.taken).unknown, 0);
    }
}
