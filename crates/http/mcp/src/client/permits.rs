//! Places for calls of one server, which requesters share: a tool that does not answer keeps its callers' places and not
//! those of others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use alknet_call::{CallError, Ctx, ErrorCode};
use alknet_core::{NetworkPrefix, PeerId};
use tokio::sync::Mutex as AsyncMutex;

use crate::client::lock;
use crate::limits::{CALLS_MAX, CALLS_OF_ONE_MAX, CALLS_SHARED, CALLS_UNKNOWN_MAX};

/// Whose calls are counted together: those of the request from outside that they belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum McpRequester {
    Known(PeerId),
    /// Unknown peers of one network.
    NetworkPrefix(NetworkPrefix),
    /// Unknown peers on a carriage without addresses, as through a relay.
    Nowhere,
}

impl McpRequester {
    fn from_ctx(ctx: &Ctx) -> Self {
        match (ctx.identity(), ctx.conn().remote_addr) {
            (Some(identity), _) => Self::Known(identity.id.clone()),
            (None, Some(from)) => Self::NetworkPrefix(NetworkPrefix::from_ip(from.ip())),
            // The node itself asks for nothing: each call belongs to a request that came over a connection.
            (None, None) => Self::Nowhere,
        }
    }

    const fn is_known(&self) -> bool {
        matches!(self, Self::Known(_))
    }
}

/// The places of one server.
#[derive(Debug, Default)]
pub(super) struct McpCallPermits(Mutex<McpPermitCounts>);

#[derive(Debug, Default)]
struct McpPermitCounts {
    all: usize,
    /// By all unknown peers.
    unknown: usize,
    each: HashMap<McpRequester, McpRequesterCalls>,
}

/// The calls of one requester, those whose cancellation the server has yet to take among them.
#[derive(Debug, Default)]
struct McpRequesterCalls {
    count: usize,
    cancelling: Arc<AsyncMutex<()>>,
}

impl McpPermitCounts {
    /// What there is no place for.
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
    /// A place for a call, until what is returned is dropped.
    ///
    /// # Errors
    /// `OVERLOADED` where its requester, or all, have theirs.
    pub(super) fn take(self: &Arc<Self>, ctx: &Ctx) -> Result<McpCallPermit, CallError> {
        self.take_for(McpRequester::from_ctx(ctx))
    }

    fn take_for(self: &Arc<Self>, who: McpRequester) -> Result<McpCallPermit, CallError> {
        let mut taken = lock(&self.0);
        if let Some((whose, most)) = taken.full(&who) {
            let message = format!("{most} calls of this server by {whose} are under way");
            return Err(CallError::new(ErrorCode::Overloaded, message));
        }
        taken.all += 1;
        taken.unknown += usize::from(!who.is_known());
        taken.each.entry(who.clone()).or_default().count += 1;
        drop(taken);
        Ok(McpCallPermit {
            places: Arc::clone(self),
            who,
        })
    }
}

/// A place that is taken.
#[derive(Debug)]
pub(super) struct McpCallPermit {
    places: Arc<McpCallPermits>,
    who: McpRequester,
}

impl McpCallPermit {
    /// Held while one call of this requester is cancelled. So a requester with many does not keep those of others
    /// waiting for more than one.
    pub(super) fn cancelling(&self) -> Arc<AsyncMutex<()>> {
        let taken = lock(&self.places.0);
        let own = taken.each.get(&self.who);
        own.map(|own| Arc::clone(&own.cancelling))
            .unwrap_or_default()
    }
}

impl Drop for McpCallPermit {
    fn drop(&mut self) {
        let mut taken = lock(&self.places.0);
        taken.all -= 1;
        taken.unknown -= usize::from(!self.who.is_known());
        if let Some(own) = taken.each.get_mut(&self.who) {
            own.count -= 1;
            // Else every requester that there ever was would be kept.
            if own.count == 0 {
                taken.each.remove(&self.who);
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

    fn fill(places: &Arc<McpCallPermits>, who: &McpRequester) -> Vec<McpCallPermit> {
        std::iter::from_fn(|| places.take_for(who.clone()).ok()).collect()
    }

    #[test]
    fn one_requester_has_half_and_two_leave_others_a_place() {
        let places = Arc::default();
        let eve = fill(&places, &known("eve"));
        assert_eq!(eve.len(), CALLS_OF_ONE_MAX);
        let mallory = fill(&places, &known("mallory"));
        assert_eq!(mallory.len(), CALLS_SHARED - CALLS_OF_ONE_MAX);
        let others: Vec<_> = (0..CALLS_MAX - CALLS_SHARED)
            .map(|n| fill(&places, &known(&format!("other-{n}"))))
            .collect();
        assert!(others.iter().all(|places| places.len() == 1));
        assert!(fill(&places, &known("last")).is_empty());
        drop(eve);
        assert_eq!(fill(&places, &known("bob")).len(), CALLS_SHARED - 16);
        drop((mallory, others));
        let taken = lock(&places.0);
        assert!(taken.all == 0 && taken.each.is_empty(), "{taken:?}");
    }

    #[test]
    fn unknown_peers_leave_known_ones_their_places() {
        let places = Arc::default();
        let nowhere = fill(&places, &McpRequester::Nowhere);
        assert_eq!(nowhere.len(), CALLS_UNKNOWN_MAX);
        drop(nowhere);
        let held: Vec<_> = (0..=u8::MAX).map(|n| fill(&places, &network(n))).collect();
        let unknown: usize = held.iter().map(Vec::len).sum();
        assert_eq!(unknown, CALLS_UNKNOWN_MAX);
        assert!(fill(&places, &McpRequester::Nowhere).is_empty());
        assert_eq!(fill(&places, &known("ada")).len(), CALLS_OF_ONE_MAX);
    }
}
