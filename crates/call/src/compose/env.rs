//! Where an operation finds the operations it calls.

use std::fmt;
use std::sync::Arc;

use alknet_core::PeerId;

use super::Provenance;
use crate::compiled::CompiledOperation;
use crate::generation::Generation;
use crate::layers::{OperationOverlay, SessionLayer};
use crate::peers::{PeerRef, PeerTable, ScopedPeerEnv};
use crate::registry::Registry;
use crate::server_imports::ServerImports;
use crate::spec::OperationSpec;

/// The question that a lookup answers.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct OperationLookup<'a> {
    /// The operation's name.
    pub operation: &'a str,
    /// The peer to look on; `None` for wherever the node finds it first.
    pub peer: Option<&'a PeerRef>,
    /// What the calling operation reaches.
    pub scope: &'a ScopedPeerEnv,
    /// A peer that the caller tried already.
    pub except: Option<&'a PeerId>,
}

/// An operation that a lookup found.
#[derive(Clone, Debug)]
pub struct ResolvedOperation {
    pub(crate) operation: Arc<CompiledOperation>,
    pub(crate) peer: Option<PeerId>,
}

impl ResolvedOperation {
    pub(crate) fn here(operation: &Arc<CompiledOperation>) -> Self {
        Self {
            operation: Arc::clone(operation),
            peer: None,
        }
    }

    /// The operation's own description.
    #[must_use]
    pub fn spec(&self) -> &OperationSpec {
        &self.operation.spec
    }

    /// The name under which this node knows the operation.
    #[must_use]
    pub fn operation(&self) -> &str {
        &self.operation.spec.name
    }

    /// Where it came from.
    #[must_use]
    pub fn provenance(&self) -> Provenance {
        self.operation.provenance
    }

    /// The peer that serves it; `None` for this node.
    #[must_use]
    pub fn peer(&self) -> Option<&PeerId> {
        self.peer.as_ref()
    }
}

/// Finds operations for composition. A node makes one per incoming request and shares it by the whole tree of calls
/// below that request.
///
/// Finding is not calling: the node calls what an implementation returns only if the calling operation reaches it and
/// its authority passes the operation's access control.
pub trait OperationEnv: Send + Sync + 'static {
    /// The operation, or `None`: then the caller sees `NOT_FOUND`.
    fn resolve(&self, lookup: &OperationLookup<'_>) -> Option<ResolvedOperation>;

    /// Every operation of this node that a lookup can find, for operations that list them. Operations of peers need
    /// not be among them.
    fn every(&self) -> Vec<ResolvedOperation> {
        Vec::new()
    }
}

/// The layers of a node, in order: the operations of the program, the promoted ones as they were
/// when the request first called another operation, what was imported from servers, what was imported
/// from the connection that the request came over, and what attached peers serve. Importing a name that this node has is refused,
/// and one that is promoted later counts before what was imported: no peer can take the place of an
/// operation of this node. In a namespace that is [kept for a server](crate::RegistryBuilder::keep_for_server), the
/// connection has no operations, and a peer has only those that the scope pins or routes there. The same holds in a
/// namespace that is [kept for the node](crate::RegistryBuilder::keep_for_node) for a call that names no peer. A
/// [`Session`](crate::SandboxSession) puts its own operations before all of them.
#[derive(Clone)]
pub struct PeerCompositeEnv {
    base: Arc<Registry>,
    promoted: Arc<Generation>,
    imported: Arc<ServerImports>,
    connection: Option<Arc<OperationOverlay>>,
    peers: Arc<PeerTable>,
}

impl PeerCompositeEnv {
    pub(crate) fn new(
        base: &Arc<Registry>,
        connection: Option<Arc<OperationOverlay>>,
        peers: &Arc<PeerTable>,
    ) -> Self {
        Self {
            base: Arc::clone(base),
            promoted: base.generation(),
            imported: base.imported(),
            connection,
            peers: Arc::clone(peers),
        }
    }

    fn here(&self, name: &str) -> Option<ResolvedOperation> {
        let from_servers = || self.imported.get(name);
        // What is meant for a server, or for this node, does not go to the caller that opened the connection.
        let from_caller = || match self.base.is_kept(name, None) {
            true => None,
            false => self.connection.as_ref().and_then(|layer| layer.get(name)),
        };
        // In the order of trust: the program, what an administrator promoted, servers, the caller.
        let own = self.base.curated(name);
        own.or_else(|| self.promoted.get(name))
            .or_else(from_servers)
            .or_else(from_caller)
            .map(ResolvedOperation::here)
    }
}

impl OperationEnv for PeerCompositeEnv {
    fn resolve(&self, lookup: &OperationLookup<'_>) -> Option<ResolvedOperation> {
        let name = lookup.operation;
        // An operation that the scope reaches on a peer only is not looked up here.
        if lookup.peer.is_none()
            && lookup.scope.reaches(name, None)
            && let Some(found) = self.here(name)
        {
            return Some(found);
        }
        let peer = lookup.peer.unwrap_or(&PeerRef::Any);
        // The reach to the server's own operations does not extend to a peer with the same names.
        if self.base.is_kept(name, lookup.peer) {
            // Only an explicit pin or route may lead to a peer in the server's stead.
            let scope = &lookup.scope.on_peers_alone();
            return self.peers.pick(peer, &OperationLookup { scope, ..*lookup });
        }
        self.peers.pick(peer, lookup)
    }

    fn every(&self) -> Vec<ResolvedOperation> {
        let connection = self.connection.as_deref();
        let connection = connection.into_iter().flat_map(OperationOverlay::sorted);
        let connection = connection.filter(|one| !self.base.is_kept(&one.spec.name, None));
        // Imports come last: of a long list a session gets the beginning.
        let is_first = |one: &&Arc<CompiledOperation>| self.promoted.get(&one.spec.name).is_none();
        let own = self.promoted.sorted().iter();
        own.chain(connection)
            .chain(self.imported.every().filter(is_first))
            .map(ResolvedOperation::here)
            .collect()
    }
}

impl fmt::Debug for PeerCompositeEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerCompositeEnv")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

/// A session's own operations before everything else.
pub(crate) struct SessionEnv {
    pub(crate) layer: Arc<SessionLayer>,
    pub(crate) below: Arc<dyn OperationEnv>,
}

impl OperationEnv for SessionEnv {
    fn resolve(&self, lookup: &OperationLookup<'_>) -> Option<ResolvedOperation> {
        let own = || {
            self.layer
                .get(lookup.operation)
                .as_ref()
                .map(ResolvedOperation::here)
        };
        // A call that names a peer means the peer's operation, not the session's.
        match lookup.peer {
            None => own().or_else(|| self.below.resolve(lookup)),
            Some(_) => self.below.resolve(lookup),
        }
    }

    fn every(&self) -> Vec<ResolvedOperation> {
        let mut all = self.layer.every();
        all.extend(self.below.every());
        all
    }
}
