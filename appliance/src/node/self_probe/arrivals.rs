//! Finds out whether a connection that the node made to a holder of its key arrived in this very
//! process. A node with the same recovery words has the same key, so the key does not distinguish
//! them. Only the two ends of a connection know its keying material (RFC 8446, 7.5).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{
    AlpnSpec, AuthContext, BoxFuture, Carriage, Connection, HandlerError, ProtocolHandler,
};
use tokio::sync::watch;
use tokio::time::sleep;

/// Label of the exported keying material (RFC 5705, 4).
const LABEL: &[u8] = b"EXPORTER-alknet-self-probe";
/// Maximum number of connections that are marked while the node probes itself.
const MARKS_MAX: usize = 4096;

/// Keying material that both ends of a connection can export.
type ProbeNonce = [u8; 32];

/// The connections that arrived while the node probes itself.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(watch::Sender<ArrivalMarks>);

#[derive(Debug, Default)]
struct ArrivalMarks {
    is_probing: bool,
    seen: HashSet<ProbeNonce>,
}

impl Arrivals {
    /// Starts or stops marking connections.
    pub(super) fn set_probing(&self, is_probing: bool) {
        self.0.send_modify(|marks| {
            *marks = ArrivalMarks {
                is_probing,
                seen: HashSet::new(),
            };
        });
    }

    fn note(&self, connection: &Connection) {
        // While no probe runs, the node keeps nothing of other peers' connections.
        if !self.0.borrow().is_probing {
            return;
        }
        if let Some(mark) = mark(connection) {
            self.0.send_modify(|marks| {
                if marks.is_probing && marks.seen.len() < MARKS_MAX {
                    marks.seen.insert(mark);
                }
            });
        }
    }

    /// Whether `connection`, which the node made, arrived here within `patience`. Returns `None` if
    /// that cannot be found out: the connection ended, as one does for which the node has no
    /// connection slot, or too many others arrived.
    pub(super) async fn has(&self, connection: &Connection, patience: Duration) -> Option<bool> {
        let mark = mark(connection)?;
        let mut marks = self.0.subscribe();
        let came = async {
            let known =
                // Once the marks are full, a missing mark proves nothing.
                |marks: &ArrivalMarks| marks.seen.contains(&mark) || marks.seen.len() >= MARKS_MAX;
            let marks = marks.wait_for(known).await.ok()?;
            marks.seen.contains(&mark).then_some(true)
        };
        tokio::select! {
            came = came => came,
            () = ended(connection) => None,
            () = sleep(patience) => Some(false),
        }
    }
}

/// Resolves once the other side ends `connection`, which carries no request.
async fn ended(connection: &Connection) {
    if connection.carriage() == Carriage::Tcp {
        // On TCP, only a reader notices the end. A byte, which does not belong there, is an end as well.
        if let Ok((_send, mut recv)) = connection.accept_bi().await {
            let _ = recv.read_chunk(1).await;
        }
    } else {
        connection.closed().await;
    }
}

fn mark(connection: &Connection) -> Option<ProbeNonce> {
    let mut mark = ProbeNonce::default();
    let exported = connection.export_keying_material(LABEL, b"", &mut mark);
    exported.ok().map(|()| mark)
}

/// A handler whose connections are marked.
pub(crate) struct ArrivalHandler {
    handler: Arc<dyn ProtocolHandler>,
    arrivals: Arc<Arrivals>,
}

impl ArrivalHandler {
    pub(crate) fn new(handler: Arc<dyn ProtocolHandler>, arrivals: Arc<Arrivals>) -> Self {
        Self { handler, arrivals }
    }
}

impl ProtocolHandler for ArrivalHandler {
    fn alpns(&self) -> &[AlpnSpec] {
        self.handler.alpns()
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        auth: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        self.arrivals.note(&connection);
        Arc::clone(&self.handler).handle(connection, auth)
    }

    fn drain(&self) -> BoxFuture<'static, ()> {
        self.handler.drain()
    }
}
