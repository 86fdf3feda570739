//! The protocol handler of `/iroh-bytes/4`.

use std::sync::Arc;
use std::time::Duration;

use alknet_core::{
    AlpnSpec, AuthContext, AuthNeed, BoxFuture, Carriage, Connection, HandlerError, PeerKey,
    ProtocolHandler, StreamBudget, StreamError,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::policy::BlobClient;
use super::rate::BlobRates;
use super::serve::BlobStream;
use crate::limits::{
    BLOB_RATE_DEFAULT, BLOB_REQUEST_TIME, BLOB_STALLED_TIME, BLOB_STREAM_WINDOW_BYTES,
    BLOB_STREAMS_MAX,
};
use crate::service::{FsService, blocking};

/// The protocol's name in TLS.
pub const BLOBS_ALPN: &[u8] = b"/iroh-bytes/4";

/// Bytes in flight on a connection of the protocol.
pub(super) const BLOB_BUDGET: StreamBudget = StreamBudget {
    stream_window_bytes: BLOB_STREAM_WINDOW_BYTES,
    ..StreamBudget::AUTHENTICATED
};

/// How contents are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobOptions {
    /// Bytes a second that the node sends to one identity.
    pub bytes_per_second: u64,
    /// Time for a request to arrive.
    pub request_time: Duration,
    /// Time for a peer to take the next bytes.
    pub stalled_time: Duration,
}

impl Default for BlobOptions {
    fn default() -> Self {
        Self {
            bytes_per_second: BLOB_RATE_DEFAULT,
            request_time: BLOB_REQUEST_TIME,
            stalled_time: BLOB_STALLED_TIME,
        }
    }
}

/// Serves the contents of a node by their hash: to identities those of their buckets, and to the holders of other keys those
/// that were shared with them. It takes no contents.
#[derive(Debug)]
pub struct BlobHandler {
    service: FsService,
    options: BlobOptions,
    rates: Arc<BlobRates>,
    alpns: [AlpnSpec; 1],
}

impl BlobHandler {
    /// Serves the files of a node over QUIC.
    #[must_use]
    pub fn new(service: &FsService, options: BlobOptions) -> Self {
        Self {
            service: service.clone(),
            options,
            rates: BlobRates::new(options.bytes_per_second),
            alpns: [AlpnSpec {
                carriage: Carriage::Quic,
                // A key that the node does not know may be one with which contents were shared.
                auth: AuthNeed::Late,
                limits: BLOB_BUDGET,
                ..AlpnSpec::new(BLOBS_ALPN)
            }],
        }
    }

    pub(super) const fn service(&self) -> &FsService {
        &self.service
    }

    pub(super) const fn options(&self) -> &BlobOptions {
        &self.options
    }

    pub(super) fn rates(&self) -> &BlobRates {
        &self.rates
    }

    /// Refuses a client that can have no content at all, so that it costs no more than this.
    async fn admit(&self, connection: &Connection, auth: &AuthContext) -> Result<(), HandlerError> {
        if let Some(identity) = &auth.identity {
            let set = connection.set_identity(Arc::clone(identity));
            set.map_err(|error| HandlerError::Internal(error.into()))?;
        }
        // The connection of a client without an identity must not make a store.
        if auth.identity.is_none() && (auth.key.is_none() || !self.service.folder().exists()) {
            return Err(HandlerError::AuthRequired);
        }
        let client = BlobClient::from_connection(connection, auth.key.as_ref());
        let lease = self.service.lease_for(client.name()).await;
        let lease = lease.map_err(|error| HandlerError::Internal(error.into()))?;
        let may = blocking(move || Ok(client.may_have_any(&lease)?)).await;
        match may {
            Ok(true) => {
                connection.raise_budget(BLOB_BUDGET);
                Ok(())
            }
            Ok(false) => Err(HandlerError::AuthRequired),
            Err(error) => Err(HandlerError::Internal(error.into())),
        }
    }

    async fn serve(
        self: Arc<Self>,
        connection: Connection,
        key: Option<PeerKey>,
    ) -> Result<(), HandlerError> {
        let permits = Arc::new(Semaphore::new(BLOB_STREAMS_MAX));
        let mut closing = self.service.closing();
        let mut running = JoinSet::new();
        loop {
            let pair = tokio::select! {
                pair = connection.accept_bi() => pair,
                Some(_) = running.join_next() => continue,
                _ = closing.wait_for(|closing| *closing) => return Ok(()),
            };
            let (send, recv) = match pair {
                Ok(pair) => pair,
                Err(StreamError::Closed(_) | StreamError::Timeout) => return Ok(()),
                Err(error) => {
                    // One bad stream does not end the connection, whose other streams still work.
                    tracing::debug!(%error, "a stream could not be accepted");
                    continue;
                }
            };
            // The permit is not waited for: a peer above the limit gets a refusal at once.
            let permit = Arc::clone(&permits).try_acquire_owned().ok();
            let stream = BlobStream::new(Arc::clone(&self), connection.clone(), key, send, recv);
            match permit {
                Some(permit) => {
                    running.spawn(async move {
                        stream.answer().await;
                        drop(permit);
                    });
                }
                None => stream.refuse_busy(),
            }
        }
    }
}

impl ProtocolHandler for BlobHandler {
    fn alpns(&self) -> &[AlpnSpec] {
        &self.alpns
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        auth: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        Box::pin(async move {
            self.admit(&connection, &auth).await?;
            self.serve(connection, auth.key).await
        })
    }
}
