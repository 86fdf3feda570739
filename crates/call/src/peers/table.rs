//! The attached peers, read without locks.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;

use alknet_core::{ConnId, PeerId};
use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, watch};

use crate::client::Caller;
use crate::compiled::CompiledOperation;
use crate::compose::{OperationLookup, ResolvedOperation};
use crate::connection::CallConnectionState;
use crate::layers::OperationOverlay;
use crate::limits::{IMPORTS_AT_ONCE, PEERS_MAX};
use crate::peers::{PeerRef, RoutingPolicy};
use crate::sync::lock;
use crate::watch::Announcer;

/// The attached peers of a node, in the order they attached. One table per node.
pub struct PeerTable {
    table: ArcSwap<Vec<Arc<AttachedPeer>>>,
    changing: Mutex<()>,
    turn: AtomicUsize,
    changes: watch::Sender<u64>,
    /// Bounds the imports that run at once.
    pub(crate) imports: Semaphore,
    /// Bounds the imports whose schemas the node checks at once, which takes a processor.
    pub(crate) admissions: Semaphore,
}

/// A peer and its operations over its newest connection.
pub(crate) struct AttachedPeer {
    pub(crate) id: PeerId,
    pub(crate) connection: ConnId,
    pub(crate) operations: OperationOverlay,
    pub(crate) state: Weak<CallConnectionState>,
}

impl AttachedPeer {
    /// Whether it takes new calls.
    pub(crate) fn is_ready(&self) -> bool {
        self.state.upgrade().is_some_and(|state| state.is_ready())
    }

    /// Whether it takes new calls and answered lately: a call that names no peer goes only to such a peer.
    fn is_well(&self) -> bool {
        self.state.upgrade().is_some_and(|state| state.is_well())
    }

    fn resolved(&self, operation: &str) -> Option<ResolvedOperation> {
        Some(ResolvedOperation {
            operation: Arc::clone(self.operations.get(operation)?),
            peer: Some(self.id.clone()),
        })
    }

    fn in_flight(&self) -> usize {
        self.state
            .upgrade()
            // A peer whose connection is gone is never the least busy one.
            .map_or(usize::MAX, |state| state.forwarded())
    }
}

/// Why a call chooses none of several peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerSelectionError {
    /// The peers that serve the operation are about to go, or did not answer lately.
    IsWell,
    /// No suitable peer serves the operation.
    Serves,
}

/// The outcome for a peer that wanted to attach.
#[derive(Debug)]
pub(crate) enum AttachResult {
    /// A newer connection of the same peer is attached already.
    Older,
    /// It is in the table; the connection is that of the older connection it replaced.
    Primary(Option<Arc<CallConnectionState>>),
    /// The table is full.
    TooMany,
}

impl Default for PeerTable {
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self {
            table: ArcSwap::default(),
            changing: Mutex::default(),
            turn: AtomicUsize::new(0),
            changes: watch::Sender::default(),
            imports: Semaphore::new(IMPORTS_AT_ONCE),
            // Half of the processors are left to all other work.
            admissions: Semaphore::new((processors / 2).max(1)),
        }
    }
}

impl PeerTable {
    /// The ids of the attached peers, in the order they attached.
    #[must_use]
    pub fn ids(&self) -> Vec<PeerId> {
        self.all().iter().map(|peer| peer.id.clone()).collect()
    }

    /// Whether a peer is attached.
    #[must_use]
    pub fn is_attached(&self, peer: &PeerId) -> bool {
        self.all().iter().any(|entry| entry.id == *peer)
    }

    /// Whether a peer is attached over this connection.
    pub(crate) fn is_attached_over(&self, connection: ConnId) -> bool {
        self.all()
            .iter()
            .any(|entry| entry.connection == connection)
    }

    /// The connections over which peers are attached.
    pub(crate) fn connections(&self) -> HashSet<ConnId> {
        self.all().iter().map(|peer| peer.connection).collect()
    }

    /// The attached peers that serve an operation to this node, in the order they attached.
    #[must_use]
    pub fn serving(&self, operation: &str) -> Vec<PeerId> {
        let table = self.all();
        let serving = table
            .iter()
            .filter(|peer| peer.operations.get(operation).is_some());
        serving.map(|peer| peer.id.clone()).collect()
    }

    /// Calls an attached peer by what this node itself may do there, for no caller of its own. `None` if the peer is
    /// not attached.
    #[must_use]
    pub fn caller(&self, peer: &PeerId) -> Option<Caller> {
        self.connection_to(peer).map(Caller::new)
    }

    /// Counts every time a peer attached, changed or left.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn all(&self) -> Arc<Vec<Arc<AttachedPeer>>> {
        self.table.load_full()
    }

    /// An operation of one peer.
    pub(crate) fn get(&self, peer: &PeerId, operation: &str) -> Option<Arc<CompiledOperation>> {
        let table = self.table.load();
        let entry = table.iter().find(|entry| entry.id == *peer)?;
        entry.operations.get(operation).cloned()
    }

    /// The connection over which a peer is attached.
    pub(crate) fn connection_to(&self, peer: &PeerId) -> Option<Arc<CallConnectionState>> {
        let table = self.table.load();
        let entry = table.iter().find(|entry| entry.id == *peer)?;
        entry.state.upgrade().filter(|state| !state.is_over())
    }

    /// The operation on the peer that `wanted` selects.
    pub(crate) fn pick(
        &self,
        wanted: &PeerRef,
        lookup: &OperationLookup<'_>,
    ) -> Option<ResolvedOperation> {
        let table = self.table.load();
        // The calling code checks whether the authority has the scope for the way.
        let is_routed =
            matches!(wanted, PeerRef::Specific(_)) && lookup.scope.routes(lookup.operation);
        let serves = |peer: &&Arc<AttachedPeer>| {
            peer.operations.get(lookup.operation).is_some()
                && (is_routed || lookup.scope.reaches(lookup.operation, Some(&peer.id)))
                && lookup.except != Some(&peer.id)
        };
        let mut serving = table.iter().filter(serves);
        let chosen = match wanted {
            PeerRef::Specific(id) => serving.find(|peer| peer.id == *id),
            PeerRef::Any => serving.find(|peer| peer.is_well()),
            PeerRef::Policy(policy) => {
                let well: Vec<_> = serving.filter(|peer| peer.is_well()).collect();
                self.choose(policy, &well)
            }
        }?;
        chosen.resolved(lookup.operation)
    }

    /// Of the suitable peers that serve an operation, the well one with the fewest calls of this node in flight.
    pub(crate) fn least_busy(
        &self,
        operation: &str,
        suits: impl Fn(&PeerId, &CompiledOperation) -> bool,
    ) -> Result<ResolvedOperation, PeerSelectionError> {
        let table = self.table.load();
        let serves = |peer: &&Arc<AttachedPeer>| {
            let operation = peer.operations.get(operation);
            operation.is_some_and(|operation| suits(&peer.id, operation))
        };
        let serving: Vec<_> = table.iter().filter(serves).collect();
        if serving.is_empty() {
            return Err(PeerSelectionError::Serves);
        }
        let well: Vec<_> = serving.into_iter().filter(|peer| peer.is_well()).collect();
        let chosen = self.choose(&RoutingPolicy::LeastInFlight, &well);
        chosen
            .and_then(|peer| peer.resolved(operation))
            .ok_or(PeerSelectionError::IsWell)
    }

    fn choose<'a>(
        &self,
        policy: &RoutingPolicy,
        ready: &[&'a Arc<AttachedPeer>],
    ) -> Option<&'a Arc<AttachedPeer>> {
        let in_turn = |peers: &[&'a Arc<AttachedPeer>]| {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            peers.get(turn.checked_rem(peers.len())?).copied()
        };
        match policy {
            RoutingPolicy::Affinity(key) => ready
                .iter()
                .copied()
                // Rendezvous hashing: a key moves only when its own peer leaves.
                .max_by_key(|peer| weight(key, &peer.id)),
            RoutingPolicy::LeastInFlight => {
                let loads: Vec<_> = ready.iter().map(|peer| peer.in_flight()).collect();
                let least = loads.iter().min()?;
                let idle: Vec<_> = ready
                    .iter()
                    .zip(&loads)
                    .filter(|(_, load)| *load == least)
                    .map(|(peer, _)| *peer)
                    .collect();
                in_turn(&idle)
            }
            RoutingPolicy::RoundRobin => in_turn(ready),
        }
    }

    /// Adds a peer to the table, or replaces its older connection, and notifies watchers. `registry` is the peer's
    /// name for the set of its operations.
    pub(crate) fn attach(
        &self,
        peer: AttachedPeer,
        registry: &str,
        announcer: &Announcer,
    ) -> AttachResult {
        let _one_at_a_time = lock(&self.changing);
        let mut table = Vec::clone(&self.table.load());
        let index = table.iter().position(|entry| entry.id == peer.id);
        let peer = Arc::new(peer);
        let older = match index {
            // Connections are numbered as they come: the greater number is the newer one.
            Some(at) if table[at].connection > peer.connection => return AttachResult::Older,
            Some(at) => {
                let again = table[at].connection == peer.connection;
                // A connection whose operations the node read again does not supersede itself.
                let older = table[at].state.upgrade().filter(|_| !again);
                table[at] = Arc::clone(&peer);
                older
            }
            // Only a new peer counts: a known one may always reconnect.
            None if table.len() >= PEERS_MAX => return AttachResult::TooMany,
            None => {
                table.push(Arc::clone(&peer));
                None
            }
        };
        self.store(table);
        let operations = peer.operations.sorted();
        let specs = operations.iter().map(|operation| &operation.spec);
        announcer.peer(&peer.id, registry, specs);
        AttachResult::Primary(older)
    }

    /// Forgets the operations that came over a connection, and notifies watchers.
    pub(crate) fn detach(&self, connection: ConnId, announcer: &Announcer) {
        let is_there =
            |table: &[Arc<AttachedPeer>]| table.iter().any(|entry| entry.connection == connection);
        // Most connections attach nothing, and end without the lock.
        if !is_there(&self.table.load()) {
            return;
        }
        let _one_at_a_time = lock(&self.changing);
        let mut table = Vec::clone(&self.table.load());
        let (gone, table): (Vec<_>, Vec<_>) = table
            .drain(..)
            .partition(|entry| entry.connection == connection);
        self.store(table);
        for peer in gone {
            announcer.peer_gone(&peer.id);
        }
    }

    fn store(&self, table: Vec<Arc<AttachedPeer>>) {
        self.table.store(Arc::new(table));
        self.changes.send_modify(|n| *n += 1);
    }
}

impl fmt::Debug for PeerTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

/// The weight of a peer for a key: the highest wins, so a key moves only with its own peer.
fn weight(key: &str, peer: &PeerId) -> (u64, PeerId) {
    let mut hash = DefaultHasher::new();
    (key, peer.as_str()).hash(&mut hash);
    (hash.finish(), peer.clone())
}
