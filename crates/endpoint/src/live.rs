//! The connections that the node serves, and how it ends them from outside their handlers.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_core::{
    Carriage, CloseCode, ConnId, Connection, IdentityProvider, NetworkPrefix, PeerId, PeerKey,
};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::admission::CapacityScope;
use crate::eviction::{self, UnknownConnection};
use crate::metrics::{AlpnMeters, OpenConnection};

/// Close code and constant reason for ending a connection from outside its handler.
pub(crate) type End = (CloseCode, &'static str);

/// One in this many of known peers' connections ends at once where memory runs short.
const RELIEF_PART_KNOWN: usize = 16;

/// Time for which the node then lets no unknown peer in: the ended connections give their memory back a while later,
/// and new peers would take more meanwhile.
const SHORT: Duration = Duration::from_secs(2);

/// The peers whose connections end where memory runs short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReliefScope {
    /// Unknown peers only.
    Unknown,
    /// Unknown peers, and known ones only where there are no unknown ones.
    UnknownFirst,
    /// A part of both at once: otherwise known peers would be safe for as long as there are unknown ones.
    All,
}

/// One connection being served, for status displays.
#[derive(Clone, Debug)]
pub struct ConnectionSummary {
    /// Number of the connection in logs.
    pub id: ConnId,
    /// The protocol.
    pub alpn: Arc<[u8]>,
    /// The carriage.
    pub carriage: Carriage,
    /// The peer, if the node knows it.
    pub peer: Option<PeerId>,
    /// The key that the peer proved.
    pub key: Option<PeerKey>,
    /// The address of the peer.
    pub remote_addr: Option<SocketAddr>,
    /// The moment at which it began.
    pub since: Instant,
}

struct LiveConnection {
    connection: Connection,
    /// The address that pays for it.
    from: IpAddr,
    key: Option<PeerKey>,
    /// The peer to which the key belonged when the connection began.
    peer: Option<PeerId>,
    since: Instant,
    meters: Arc<AlpnMeters>,
    end: watch::Sender<Option<End>>,
}

#[derive(Default)]
pub(crate) struct LiveConnections {
    table: Mutex<HashMap<ConnId, LiveConnection>>,
    count: watch::Sender<usize>,
    /// The moment until which the node counts memory as short.
    short_until: Mutex<Option<Instant>>,
}

impl LiveConnections {
    /// Adds a connection; dropping the guard removes it.
    pub(crate) fn insert(
        self: &Arc<Self>,
        connection: &Connection,
        from: IpAddr,
        key: Option<PeerKey>,
        peer: Option<PeerId>,
        meters: Arc<AlpnMeters>,
    ) -> (LiveConnectionGuard, watch::Receiver<Option<End>>) {
        let (end, ended) = watch::channel(None);
        let entry = LiveConnection {
            connection: connection.clone(),
            from,
            key,
            peer,
            since: Instant::now(),
            meters,
            end,
        };
        let id = connection.id();
        self.change(|table| table.insert(id, entry));
        let guard = LiveConnectionGuard {
            live: Arc::clone(self),
            id,
        };
        (guard, ended)
    }

    /// Looks every known peer up again. Peers that are known still get their new scopes, and the connections of the
    /// others end. Returns the number of connections ended.
    pub(crate) fn sweep(&self, identities: &dyn IdentityProvider) -> usize {
        let table = self.lock();
        table
            .values()
            .filter(|entry| entry.check(identities))
            .count()
    }

    /// Like `sweep`, for one connection. Returns whether it was ended.
    pub(crate) fn sweep_one(&self, id: ConnId, identities: &dyn IdentityProvider) -> bool {
        let table = self.lock();
        table.get(&id).is_some_and(|entry| entry.check(identities))
    }

    /// Ends every connection. Returns how many there were.
    pub(crate) fn end_all(&self, end: End) -> usize {
        let table = self.lock();
        for entry in table.values() {
            entry.end.send_replace(Some(end));
        }
        table.len()
    }

    /// Asks one connection to finish its work.
    pub(crate) fn ask_to_drain(&self, id: ConnId) {
        if let Some(entry) = self.lock().get(&id) {
            let _ = entry.connection.ask_to_drain();
        }
    }

    /// Ends one connection. Returns whether there was one that was not ending already.
    pub(crate) fn end(&self, id: ConnId, end: End) -> bool {
        let table = self.lock();
        let entry = table.get(&id);
        entry.is_some_and(|entry| entry.end.send_replace(Some(end)).is_none())
    }

    /// Ends one connection of an unknown peer, so that another one gets its slot. Returns whether there was one that
    /// may end.
    pub(crate) fn evict(&self, full: CapacityScope, end: End) -> bool {
        let table = self.lock();
        let unknown = table.values().filter(|entry| entry.is_unknown());
        let all = unknown.map(|entry| {
            let unknown = UnknownConnection {
                network: NetworkPrefix::from_ip(entry.from),
                quiet: entry.connection.traffic().quiet(),
            };
            (unknown, entry)
        });
        let victim = eviction::choose(full, all.collect());
        victim.is_some_and(|entry| entry.end.send_replace(Some(end)).is_none())
    }

    /// Ends one connection of the known peer that has the most, if that are more than `comer` would have, so that
    /// `comer` gets its slot; `None` for an unknown peer, which has none. `tokens` names the holders of tokens. Returns
    /// whether there was one.
    pub(crate) fn evict_known(
        &self,
        comer: Option<&PeerId>,
        tokens: &HashMap<ConnId, PeerId>,
        end: End,
    ) -> bool {
        let table = self.lock();
        let known = table.values().filter(|entry| entry.is_known());
        let known = known.filter_map(|entry| {
            let who = entry.owner(tokens)?;
            Some((who, entry.connection.traffic().quiet(), entry))
        });
        let victim = eviction::choose_known(comer, known.collect());
        victim.is_some_and(|entry| entry.end.send_replace(Some(end)).is_none())
    }

    /// Ends one in `part` of the connections of unknown peers to free their memory, and of known peers' as `scope`
    /// says. `tokens` names the holders of tokens. Returns how many ended.
    pub(crate) fn relieve(
        &self,
        part: usize,
        scope: ReliefScope,
        tokens: &HashMap<ConnId, PeerId>,
        end: End,
    ) -> usize {
        let table = self.lock();
        let unknown = table.values().filter(|entry| entry.is_unknown());
        let unknown = unknown.map(|entry| {
            let site = NetworkPrefix::from_ip(entry.from).site();
            (site, entry.connection.traffic().quiet(), entry)
        });
        let mut victims = eviction::relieve(part, unknown.collect());
        let is_known_too = match scope {
            ReliefScope::Unknown => false,
            ReliefScope::UnknownFirst => victims.is_empty(),
            ReliefScope::All => true,
        };
        if is_known_too {
            let known = table.values().filter(|entry| entry.is_known());
            let known = known.map(|entry| {
                let who = entry.owner(tokens);
                (who, entry.connection.traffic().quiet(), entry)
            });
            victims.extend(eviction::relieve(RELIEF_PART_KNOWN, known.collect()));
        }
        let ended = |entry: &&LiveConnection| entry.end.send_replace(Some(end)).is_none();
        let ended = victims.into_iter().filter(ended).count();
        if ended > 0 {
            *self.shortage() = Some(Instant::now() + SHORT);
        }
        ended
    }

    /// Whether the node ended connections for memory a moment ago.
    pub(crate) fn is_short(&self) -> bool {
        self.shortage().is_some_and(|until| Instant::now() < until)
    }

    fn shortage(&self) -> MutexGuard<'_, Option<Instant>> {
        // The value behind the lock is replaced whole, so that a panic of its holder cannot leave it half written.
        self.short_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Resolves once no connection is left.
    pub(crate) async fn empty(&self) {
        // The sender lives as long as `self`.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Visits what every connection did so far and its state, each once. Connections that end meanwhile wait for the
    /// lock, so that none is missed.
    pub(crate) fn tally(&self, see: impl FnOnce(&mut dyn Iterator<Item = OpenConnection<'_>>)) {
        let table = self.lock();
        see(&mut table.values().map(|entry| OpenConnection {
            connection: &entry.connection,
            known: entry.peer.is_some() || entry.connection.identity().is_some(),
        }));
    }

    pub(crate) fn summaries(&self) -> Vec<ConnectionSummary> {
        let mut all: Vec<_> = self.lock().values().map(LiveConnection::summary).collect();
        // Numbers of connections ascend, so that the oldest comes first.
        all.sort_by_key(|summary| summary.id);
        all
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ConnId, LiveConnection>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the table. An entry that leaves it is dropped after the lock is released: it may be the last owner of
    /// a connection, and closing one does work.
    fn change<T>(&self, change: impl FnOnce(&mut HashMap<ConnId, LiveConnection>) -> T) {
        let mut table = self.lock();
        let left = change(&mut table);
        self.count.send_replace(table.len());
        drop(table);
        drop(left);
    }
}

impl LiveConnection {
    /// Whether its peer has not proved who it is, and the node may end it for others.
    fn is_unknown(&self) -> bool {
        !self.connection.is_authenticated() && self.may_end()
    }

    /// Whether its peer has proved who it is, and the node may end it for others.
    fn is_known(&self) -> bool {
        self.connection.is_authenticated() && self.may_end()
    }

    /// The identity for which it counts; `tokens` names the holders of tokens.
    fn owner(&self, tokens: &HashMap<ConnId, PeerId>) -> Option<PeerId> {
        let identity = self.connection.identity();
        let who = identity.map(|identity| identity.id.clone());
        who.or_else(|| tokens.get(&self.connection.id()).cloned())
    }

    /// Whether it has a slot of its own, because no other connection carries it, and is not ending already.
    fn may_end(&self) -> bool {
        self.connection.carriers().next().is_none() && self.end.borrow().is_none()
    }

    /// Ends the connection if its peer is no longer known. Returns whether it did so now.
    fn check(&self, identities: &dyn IdentityProvider) -> bool {
        if !self.revoked(identities) {
            return false;
        }
        // The identity is revoked first: no code does anything more in the peer's name, however long the end takes.
        self.connection.revoke_identity();
        let end = Some((CloseCode::Policy, "revoked"));
        self.end.send_replace(end).is_none()
    }

    fn revoked(&self, identities: &dyn IdentityProvider) -> bool {
        let (Some(key), Some(peer)) = (&self.key, &self.peer) else {
            return false;
        };
        // A key that was moved to another entry belongs to another peer: the connection in the old one's name ends as
        // that of a removed peer does.
        match identities.by_key(key) {
            Some(identity) if identity.id == *peer => {
                // Another identity on the connection comes from the handler, which saw a token, and stays.
                let _ = self.connection.set_identity(identity);
                false
            }
            _ => true,
        }
    }

    fn summary(&self) -> ConnectionSummary {
        let info = self.connection.info();
        ConnectionSummary {
            id: self.connection.id(),
            alpn: Arc::clone(&info.alpn),
            carriage: info.carriage,
            peer: self.peer.clone(),
            key: self.key,
            remote_addr: info.remote_addr,
            since: self.since,
        }
    }
}

pub(crate) struct LiveConnectionGuard {
    live: Arc<LiveConnections>,
    id: ConnId,
}

impl Drop for LiveConnectionGuard {
    fn drop(&mut self) {
        self.live.change(|table| {
            let left = table.remove(&self.id);
            if let Some(entry) = &left {
                // The totals are kept under the lock, so that a tally has this traffic either here or there.
                entry.meters.add_ended(entry.connection.traffic());
            }
            left
        });
    }
}
