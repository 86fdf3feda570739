//! How this node imports a peer's operations and keeps them up to date.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{IdentityKind, PeerId};
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use crate::client::{Caller, Subscription};
use crate::connection::CallConnectionState;
use crate::import::{AdapterError, ImportOptions, ImportedOperations, read_peer};
use crate::layers::OperationOverlay;
use crate::limits::IMPORT_DEBOUNCE;
use crate::peers::state::PeerEvent;
use crate::peers::table::{AttachResult, AttachedPeer};

/// The operation that reports changes of a peer's operations.
const WATCH: &str = "services/watch";
/// The first wait before another attempt to import; waits double up to the longest. No wait is shorter than the one
/// after a change: a peer chooses how its stream of changes ends.
const RETRY_FIRST: Duration = IMPORT_DEBOUNCE;
const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// The result of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportSummary {
    /// The peer it is attached as; `None` for one without a name. Calls find the operations of such a peer only by
    /// the names it gives them, over the same connection.
    pub peer: Option<PeerId>,
    /// The number of operations.
    pub operations: usize,
    /// The peer's name for the set of its operations; changes with it.
    pub registry: String,
}

impl Caller {
    /// Imports the operations of the other side into this node, replacing those imported over this connection before.
    /// A known peer is attached under its id. Where it is connected twice, the newest connection counts and the older
    /// one finishes its running calls.
    ///
    /// # Errors
    /// The errors of [`from_call`](crate::from_call); `Collision` when the other side has no name and serves an
    /// operation under the name of one of this node's, which a prefix avoids.
    pub async fn import(&self, options: &ImportOptions) -> Result<ImportSummary, AdapterError> {
        let (imported, found) = self.read(options).await?;
        match &imported.peer {
            Some(peer) => attach(self.connection_state(), peer, found).await?,
            None => store_imports(self.connection_state(), found).await?,
        }
        Ok(imported)
    }

    /// Like [`import`](Self::import), of a peer that serves operations. A peer that only calls is not attached: it may
    /// call over several connections, and none of these stands for the peer.
    async fn import_served(&self, options: &ImportOptions) -> Result<ImportSummary, AdapterError> {
        let (imported, found) = self.read(options).await?;
        let state = self.connection_state();
        // A peer that served operations before is updated also when it has none left.
        let attached = state.dispatcher.peers.is_attached_over(state.info.id);
        match &imported.peer {
            Some(peer) if attached || imported.operations > 0 => {
                attach(state, peer, found).await?;
            }
            _ => {}
        }
        Ok(imported)
    }

    async fn read(
        &self,
        options: &ImportOptions,
    ) -> Result<(ImportSummary, ImportedOperations), AdapterError> {
        let peers = &self.connection_state().dispatcher.peers;
        // Never closed; without a turn in the queue the import still would be right.
        let _turn = peers.imports.acquire().await.ok();
        let found = read_peer(self, options).await?;
        let imported = ImportSummary {
            peer: peer_of(self.connection_state()),
            operations: found.registrations.len(),
            registry: found.registry.clone(),
        };
        Ok((imported, found))
    }
}

async fn attach(
    state: &Arc<CallConnectionState>,
    peer: &PeerId,
    found: ImportedOperations,
) -> Result<(), AdapterError> {
    let (peers, announcer) = (&state.dispatcher.peers, state.dispatcher.announcer());
    let _turn = peers.admissions.acquire().await.ok();
    let entry = AttachedPeer {
        id: peer.clone(),
        connection: state.info.id,
        operations: OperationOverlay::new(found.registrations)?,
        state: Arc::downgrade(state),
    };
    let attached = peers.attach(entry, &found.registry, announcer);
    // The connection may have ended meanwhile, before there was an entry to detach.
    if state.is_over() {
        peers.detach(state.info.id, announcer);
        return Err(AdapterError::lost("the connection ended"));
    }
    match attached {
        AttachResult::Primary(older) => {
            tracing::info!(%peer, connection = %state.info.id, "attached");
            if let Some(older) = older {
                // Two connections of one peer must not both serve its calls.
                older.supersede();
            }
            Ok(())
        }
        AttachResult::Older => {
            state.supersede();
            Err(AdapterError::lost(
                "a newer connection of this peer is there",
            ))
        }
        AttachResult::TooMany => Err(AdapterError::TooLarge("peers attached")),
    }
}

/// Stores the operations of a peer without a name with the connection they came over.
async fn store_imports(
    state: &CallConnectionState,
    found: ImportedOperations,
) -> Result<(), AdapterError> {
    let _turn = state.dispatcher.peers.admissions.acquire().await.ok();
    let overlay = OperationOverlay::new(found.registrations)?;
    let registry = &state.dispatcher.registry;
    // Calls find these operations by their names alone: one of them must not hide this node's own.
    if let Some(name) = overlay.names().find(|name| registry.lookup(name).is_some()) {
        return Err(AdapterError::Collision { name: name.into() });
    }
    state.set_imports(overlay);
    if state.is_over() {
        return Err(AdapterError::lost("the connection ended"));
    }
    Ok(())
}

/// Browsers and tokens have an identity and are no peers: this node routes no call to them.
pub(crate) fn peer_of(state: &CallConnectionState) -> Option<PeerId> {
    if state.is_guest() {
        return None;
    }
    let identity = state.connection.identity()?;
    (identity.kind == IdentityKind::Peer).then(|| identity.id.clone())
}

/// Imports the peer's operations, and again whenever the peer reports a change.
pub(crate) async fn follow(state: &Arc<CallConnectionState>) {
    let Some(options) = state.dispatcher.imports.clone() else {
        return;
    };
    let Some(peer) = peer_of(state) else {
        return;
    };
    let caller = Caller::new(Arc::clone(state));
    let mut retry = ImportRetry(RETRY_FIRST);
    loop {
        state.life.apply(PeerEvent::Reading);
        match caller.import_served(&options).await {
            Ok(imported) => {
                let serves = imported.operations > 0;
                state.life.apply(PeerEvent::Read { serves });
                // A successful read ends the series of failures.
                retry = ImportRetry(RETRY_FIRST);
                match wait_for_change(&caller, &imported.registry).await {
                    ImportChange::Changed => {}
                    // The operations may have changed unseen: the node reads them again.
                    ImportChange::Lost => retry.wait().await,
                    // Without reports of changes, the node keeps this list for the life of the connection.
                    ImportChange::Never => return,
                }
            }
            Err(error) if error.is_temporary() => {
                let connection = state.info.id;
                tracing::debug!(%connection, %error, "the peer's operations are read again later");
                retry.wait().await;
            }
            Err(error) => {
                state.life.apply(PeerEvent::Unreadable);
                let connection = state.info.id;
                tracing::debug!(%peer, %connection, %error, "the peer's operations are not imported");
                return;
            }
        }
    }
}

struct ImportRetry(Duration);

impl ImportRetry {
    async fn wait(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(RETRY_LONGEST);
    }
}

enum ImportChange {
    Changed,
    /// This node does not know at the moment whether the operations changed.
    Lost,
    /// The peer does not report changes.
    Never,
}

#[derive(Deserialize)]
struct WatchNotice {
    #[serde(default)]
    registry: String,
    /// The scopes of this node at the peer changed: it may call other operations of the same set.
    #[serde(default)]
    whole: bool,
}

async fn wait_for_change(caller: &Caller, known: &str) -> ImportChange {
    let Ok(mut events) = caller.subscribe(WATCH, &serde_json::json!({})).await else {
        return ImportChange::Lost;
    };
    loop {
        match events.next().await {
            // The first event may report the set that is known already.
            Some(Ok(event)) => match event.output.parse::<WatchNotice>() {
                Ok(now) if now.registry == known && !now.whole => {}
                _ => break,
            },
            Some(Err(error)) if error.retryable => return ImportChange::Lost,
            Some(Err(error)) => {
                let connection = caller.connection_state().info.id;
                tracing::debug!(%connection, %error, "the peer does not tell of changes");
                return ImportChange::Never;
            }
            None => return ImportChange::Never,
        }
    }
    settle(&mut events).await;
    ImportChange::Changed
}

/// Waits for [`IMPORT_DEBOUNCE`] while more may change: the node reads a peer that registers a hundred operations
/// once.
async fn settle(events: &mut Subscription) {
    let more = async {
        while let Some(Ok(_)) = events.next().await {}
        // The wait lasts as long where the peer has ended its stream: otherwise the peer alone would decide how often
        // this node reads its operations.
        pending::<()>().await;
    };
    let _ = timeout(IMPORT_DEBOUNCE, more).await;
}
