//! Permits for the calls of one server, which all requesters share. A tool that does not answer holds the permits of
//! its own callers, not those of others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use alknet_call::{CallError, Ctx, ErrorCode};
use alknet_core::{NetworkPrefix, PeerId};
use tokio::sync::Mutex as AsyncMutex;

use crate::client::lock;
use crate::limits::{CALLS_MAX, CALLS_OF_ONE_MAX, CALLS_SHARED, CALLS_UNKNOWN_MAX};

/// The requester of a call. Calls are counted for the sender of the outside request that they belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum McpRequester {
    Known(PeerId),
    /// The unknown peers of one network.
    NetworkPrefix(NetworkPrefix),
    /// The unknown peers on a carriage without addresses, for example through a relay.
    Nowhere,
}

impl McpRequester {
    fn from_ctx(ctx: &Ctx) -> Self {
        match (ctx.identity(), ctx.conn().remote_addr) {
            (Some(identity), _) => Self::Known(identity.id.clone()),
            (None, Some(from)) => Self::NetworkPrefix(NetworkPrefix::from_ip(from.ip())),
            // The node itself starts no calls: each call belongs to a request that arrived over a connection.
            (None, None) => Self::Nowhere,
        }
    }

    const fn is_known(&self) -> bool {
        matches!(self, Self::Known(_))
    }
}

/// The permits for the calls of one server.
#[derive(Debug, Default)]
pub(super) struct McpCallPermits(Mutex<McpPermitCounts>);

#[derive(Debug, Default)]
struct McpPermitCounts {
    all: usize,
    /// The calls of all unknown peers.
    unknown: usize,
    each: HashMap<McpRequester, McpRequesterCalls>,
}

/// The calls of one requester, including those whose cancellation the server has not accepted yet.
#[derive(Debug, Default)]
struct McpRequesterCalls {
    count: usize,
    cancelling: Arc<AsyncMutex<()>>,
}

impl McpPermitCounts {
    /// The limit that a further call of `who` would exceed, with its scope.
    fn full(&self, who: &McpRequester) -> Option<(&'static str, usize)> {
        let own = self.each.get(who).map_or(0, |own| own.count);
        if own >= CALLS_OF_ONE_MAX {
            Some(("one requester", CALLS_OF_ONE_MAX))
        } else if !who.is_known() && self.unknown >= CALLS_UNKNOWN_MAX {
            Some(("all unknown peers", CALLS_UNKNOWN_MAX))
        } else if self.all >= CALLS_MAX || (self.all >= CALLS_SHARED && own > 0) {
            Some(("all requesters", CALLS_MAX))
        } else {
            None
        }
    }
}

impl McpCallPermits {
    /// Takes a permit for a call, which is held until the returned value is dropped.
    ///
    /// # Errors
    /// `OVERLOADED` if the requester, or all requesters together, hold as many permits as they may.
    pub(super) fn take(self: &Arc<Self>, ctx: &Ctx) -> Result<McpCallPermit, CallError> {
        self.take_for(McpRequester::from_ctx(ctx))
    }

    fn take_for(self: &Arc<Self>, who: McpRequester) -> Result<McpCallPermit, CallError> {
        let mut counts = lock(&self.0);
        if let Some((whose, most)) = counts.full(&who) {
            let message = format!("{most} calls of this server by {whose} are under way");
            return Err(CallError::new(ErrorCode::Overloaded, message));
        }
        counts.all += 1;
        counts.unknown += usize::from(!who.is_known());
        counts.each.entry(who.clone()).or_default().count += 1;
        drop(counts);
        Ok(McpCallPermit {
            permits: Arc::clone(self),
            who,
        })
    }
}

/// A permit that a call holds.
#[derive(Debug)]
pub(super) struct McpCallPermit {
    permits: Arc<McpCallPermits>,
    who: McpRequester,
}

impl McpCallPermit {
    /// The lock that is held while one call of this requester is cancelled. So a requester with many cancellations
    /// delays each other requester by at most one.
    pub(super) fn cancelling(&self) -> Arc<AsyncMutex<()>> {
        let counts = lock(&self.permits.0);
        let own = counts.each.get(&self.who);
        own.map(|own| Arc::clone(&own.cancelling))
            .unwrap_or_default()
    }
}

impl Drop for McpCallPermit {
    fn drop(&mut self) {
        let mut counts = lock(&self.permits.0);
        counts.all -= 1;
        counts.unknown -= usize::from(!self.who.is_known());
        if let Some(own) = counts.each.get_mut(&self.who) {
            own.count -= 1;
            // Without this removal, an entry would stay for every requester that ever called.
            if own.count == 0 {
                counts.each.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn known(name: &str) -> McpRequester {
        McpRequester::Known(name.parse().expect("a peer id"))
    }

    fn network(n: u8) -> McpRequester {
        McpRequester::NetworkPrefix(NetworkPrefix::from_ip(Ipv4Addr::new(192, 0, n, 1).into()))
    }

    fn fill(permits: &Arc<McpCallPermits>, who: &McpRequester) -> Vec<McpCallPermit> {
        std::iter::from_fn(|| permits.take_for(who.clone()).ok()).collect()
    }

    #[test]
    fn one_requester_has_half_and_two_leave_others_a_place() {
        let permits = Arc::default();
        let eve = fill(&permits, &known("eve"));
        assert_eq!(eve.len(), CALLS_OF_ONE_MAX);
        let mallory = fill(&permits, &known("mallory"));
        assert_eq!(mallory.len(), CALLS_SHARED - CALLS_OF_ONE_MAX);
        let others: Vec<_> = (0..CALLS_MAX - CALLS_SHARED)
            .map(|n| fill(&permits, &known(&format!("other-{n}"))))
            .collect();
        assert!(others.iter().all(|permits| permits.len() == 1));
        assert!(fill(&permits, &known("last")).is_empty());
        drop(eve);
        assert_eq!(fill(&permits, &known("bob")).len(), CALLS_SHARED - 16);
        drop((mallory, others));
        let counts = lock(&permits.0);
        assert!(counts.all == 0 && counts.each.is_empty(), "{counts:?}");
    }

    #[test]
    fn unknown_peers_leave_known_ones_their_places() {
        let permits = Arc::default();
        let nowhere = fill(&permits, &McpRequester::Nowhere);
        assert_eq!(nowhere.len(), CALLS_UNKNOWN_MAX);
        drop(nowhere);
        let held: Vec<_> = (0..=u8::MAX).map(|n| fill(&permits, &network(n))).collect();
        let unknown: usize = held.iter().map(Vec::len).sum();
        assert_eq!(unknown, CALLS_UNKNOWN_MAX);
        assert!(fill(&permits, &McpRequester::Nowhere).is_empty());
        assert_eq!(fill(&permits, &known("ada")).len(), CALLS_OF_ONE_MAX);
    }
}
