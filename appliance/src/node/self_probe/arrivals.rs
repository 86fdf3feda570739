//! Whether a connection that the node made to a holder of its key came in at this very process. A node made of the same
//! words has the same key, so that the key does not tell them apart; but the keying material of a connection (RFC 8446
//! section 7.5) is known to its two ends alone.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{
    AlpnSpec, AuthContext, BoxFuture, Carriage, Connection, HandlerError, ProtocolHandler,
};
use tokio::sync::watch;
use tokio::time::sleep;

/// What the keying material is asked for by (RFC 5705 section 4).
const LABEL: &[u8] = b"EXPORTER-alknet-self-probe";
/// Connections of others that are noted while the node looks at itself.
const MARKS_MAX: usize = 4096;

/// What both ends of a connection know.
type ProbeNonce = [u8; 32];

/// The connections that came in while the node looks at itself.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(watch::Sender<ArrivalMarks>);

#[derive(Debug, Default)]
struct ArrivalMarks {
    is_looking: bool,
    seen: HashSet<ProbeNonce>,
}

impl Arrivals {
    /// Begins or ends to note what comes in.
    pub(super) fn set_probing(&self, is_looking: bool) {
        self.0.send_modify(|marks| {
            *marks = ArrivalMarks {
                is_looking,
                seen: HashSet::new(),
            };
        });
    }

    fn note(&self, connection: &Connection) {
        // Between two looks nothing is kept of other peers' connections.
        if !self.0.borrow().is_looking {
            return;
        }
        if let Some(mark) = mark(connection) {
            self.0.send_modify(|marks| {
                if marks.is_looking && marks.seen.len() < MARKS_MAX {
                    marks.seen.insert(mark);
                }
            });
        }
    }

    /// Whether `connection`, which the node made, came in here within `patience`. `None` where that cannot
    /// be found out: it ended, as one does that this node has no room for, or too many others came.
    pub(super) async fn has(&self, connection: &Connection, patience: Duration) -> Option<bool> {
        let mark = mark(connection)?;
        let mut marks = self.0.subscribe();
        let came = async {
            let known =
                // Where marks were left out, a missing one proves nothing.
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

/// Resolves once the other side ends `connection`, over which nothing is asked.
async fn ended(connection: &Connection) {
    if connection.carriage() == Carriage::Tcp {
        // Only who reads hears of the end.
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

/// A handler whose connections are noted.
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
