//! What one connection takes of the node's limits, from its first packet until the library has let go of it.

use std::net::IpAddr;
use std::sync::{Arc, Weak};

use alknet_core::{CloseCode, ConnId, Connection, NetworkPrefix, PeerId};

use crate::admission::AdmissionLimit;
use crate::closing::ClosingConnection;
use crate::connection_slots::SlotDecision;
use crate::live::End;
use crate::windows::{ReceiveWindow, WindowCredit, WindowOwner};

use super::{EndpointShared, RELIEF_END, Resolved};

/// One connection's part of the limits. Dropping it gives that back.
pub(super) struct ConnectionPermit<'a> {
    shared: &'a Arc<EndpointShared>,
    /// The address of the client.
    pub(super) from: IpAddr,
    conn: ConnId,
    peer: Option<PeerId>,
    /// The peer that the connection belongs to, whether or not there is room for it.
    slot_peer: Option<PeerId>,
    /// Its receive window, where the carriage has one.
    credit: Option<Arc<WindowCredit>>,
}

/// A connection that ended. The library drops this guard together with all that it has of the connection.
struct ClosingConnectionGuard {
    shared: Weak<EndpointShared>,
    connection: ClosingConnection,
}

impl Drop for ClosingConnectionGuard {
    fn drop(&mut self) {
        // The endpoint may have ended before the library drops its last connection.
        if let Some(shared) = self.shared.upgrade() {
            shared.admission().let_go(&self.connection);
        }
    }
}

/// A QUIC connection from its first packet until it has a slot. Dropped before that, it counts for its owner until
/// the library has let go of it: its handshake failed or was ended for a newer one, or the node refused it
/// afterwards.
pub(crate) struct ConnectionReservation {
    shared: Arc<EndpointShared>,
    from: IpAddr,
    window: Arc<ReceiveWindow>,
    /// `None` where the address may be forged: such a connection counts for no network, but among those that the node
    /// does not serve.
    owner: Option<WindowOwner>,
}

impl ConnectionReservation {
    /// `paid`: its address is proven, and its network has paid.
    pub(crate) fn new(shared: &Arc<EndpointShared>, from: IpAddr, paid: bool) -> Self {
        let one = shared.admission().unserved().begin();
        Self {
            shared: Arc::clone(shared),
            from,
            window: ReceiveWindow::new(one),
            owner: paid.then(|| WindowOwner::Network(NetworkPrefix::from_ip(from))),
        }
    }

    pub(crate) fn window(&self) -> Arc<ReceiveWindow> {
        Arc::clone(&self.window)
    }

    /// The handshake is done, which proves the address, and the identity if `who` has one.
    pub(super) fn belongs_to(&mut self, who: Option<&Resolved>) {
        self.owner = Some(match who {
            Some((_, Some(identity))) => WindowOwner::Peer(identity.id.clone()),
            _ => WindowOwner::Network(NetworkPrefix::from_ip(self.from)),
        });
    }

    /// Ends the reservation, because the slot counts the connection from now on.
    pub(super) fn release(mut self) {
        self.owner = None;
    }
}

impl Drop for ConnectionReservation {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.take() {
            let connection = self.shared.admission().count_closing(owner, self.from);
            let shared = Arc::downgrade(&self.shared);
            self.window
                .hold_until_gone(ClosingConnectionGuard { shared, connection });
        }
    }
}

impl<'a> ConnectionPermit<'a> {
    pub(super) fn take(
        shared: &'a Arc<EndpointShared>,
        connection: &Connection,
        from: IpAddr,
        who: Option<&PeerId>,
        is_kept: bool,
    ) -> Result<Self, End> {
        let (conn, known) = (connection.id(), who.is_some());
        // While memory is short, the node admits known peers only.
        if !known && shared.live.is_short() {
            shared.meters.hit(AdmissionLimit::Memory);
            return Err(RELIEF_END);
        }
        let taken = shared.admission().connect(conn, from, known, is_kept);
        if let Err(full) = taken {
            shared.meters.hit(full.limit());
            let info = connection.info();
            let handler = shared.registry.get(&info.alpn, info.carriage);
            let newest_wins = handler.is_some_and(|(spec, _)| spec.newest_wins);
            if !shared.evict(full, who, newest_wins) {
                return Err((CloseCode::Overload, "too many connections"));
            }
            shared.admission().connect_for(conn, from, known);
        }
        Ok(Self {
            shared,
            from,
            conn,
            peer: None,
            slot_peer: None,
            credit: None,
        })
    }

    /// Gives the connection the limits of the identity that its peer proves.
    pub(super) fn watch(&mut self, connection: &Connection, credit: Option<Arc<WindowCredit>>) {
        self.credit.clone_from(&credit);
        let (watching, conn) = (Arc::downgrade(self.shared), self.conn);
        connection.on_authenticated(move |who| {
            if let Some(credit) = &credit {
                credit.identify(who);
            }
            let (shared, is_kept) = (watching.upgrade(), credit.is_some());
            shared.is_some_and(|shared| shared.admission().authenticated(conn, who, is_kept))
        });
    }

    pub(super) fn identify(&mut self, peer: &PeerId, newest_wins: bool) -> Result<(), End> {
        self.slot_peer = Some(peer.clone());
        let own_max = self.shared.identities.max_connections(peer);
        let is_kept = self.credit.is_some();
        let mut admission = self.shared.admission();
        let entry = admission.identify(peer, self.conn, newest_wins, own_max, is_kept);
        drop(admission);
        match entry {
            SlotDecision::Full => {
                self.shared.totals.peer_limit_hits.add();
                self.shared.meters.hit(AdmissionLimit::ConnectionsPerPeer);
                return Err((CloseCode::Overload, "too many connections of this peer"));
            }
            SlotDecision::Supersedes { drain, end } => {
                self.shared.meters.hit(AdmissionLimit::ConnectionsPerPeer);
                self.shared.supersede(drain, end);
            }
            SlotDecision::Welcome => {}
        }
        self.peer = Some(peer.clone());
        Ok(())
    }
}

impl Drop for ConnectionPermit<'_> {
    fn drop(&mut self) {
        let mut admission = self.shared.admission();
        let owner = admission.disconnect(self.conn, self.peer.as_ref());
        let owner = self.slot_peer.take().map(WindowOwner::Peer).or(owner);
        let closing = self.credit.take().zip(owner);
        let closing =
            closing.map(|(credit, owner)| (credit, admission.count_closing(owner, self.from)));
        // The lock is released first: the library may drop the window at once, and its guard takes the lock.
        drop(admission);
        if let Some((credit, connection)) = closing {
            let shared = Arc::downgrade(self.shared);
            credit.hold_until_gone(ClosingConnectionGuard { shared, connection });
        }
    }
}
