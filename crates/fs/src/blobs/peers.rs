//! The peers that have contents, as this node asks them.

use std::fmt;
use std::time::Duration;

use alknet_core::{
    BoxFuture, Connection, DialError, PeerId, RecvStream, SendStream, StreamCode, StreamError,
};
use alknet_objects::ChunkSelection;
use alknet_store::{BucketName, ContentHash};
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::handler::BLOB_BUDGET;
use super::serve::BlobCode;
use super::wire::{BlobRequest, VariableNumber, decode_observed};
use crate::limits::{BLOB_STALLED_TIME, FETCH_CONNECT_TIME, FETCH_OBSERVED_BYTES_MAX};

/// The peers of a node. The node implements it by its dialler and its table of peers.
pub trait BlobPeers: fmt::Debug + Send + Sync + 'static {
    /// The peers that the node can dial.
    fn known(&self) -> Vec<PeerId>;

    /// Those of them with which a bucket may be synchronised, which are asked for contents that its readers miss.
    fn synced(&self, _bucket: &BucketName) -> Vec<PeerId> {
        self.known()
    }

    /// Connects to a peer for [`BLOBS_ALPN`](super::BLOBS_ALPN), only if it proves one of its keys. Dropping the future gives
    /// up.
    fn connect<'a>(&'a self, peer: &'a PeerId) -> BoxFuture<'a, Result<Connection, DialError>>;
}

/// What a peer says of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProviderStatus {
    /// The peer does not have it, or does not give it to this node.
    Absent,
    /// The peer has all of it.
    Complete {
        /// Bytes that it has by the word of the peer.
        size: u64,
    },
    /// The peer has a part of it, or none.
    Partial {
        /// Bytes that it has by the word of the peer.
        size: u64,
    },
    /// The peer sent wrong bytes a short time ago and is not asked.
    Penalised,
    /// The peer cannot be reached or does not answer.
    Unreachable,
}

impl ProviderStatus {
    /// The name in answers.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Complete { .. } => "complete",
            Self::Partial { .. } => "partial",
            Self::Penalised => "penalised",
            Self::Unreachable => "unreachable",
        }
    }

    /// Bytes of the content by the word of the peer.
    pub(crate) const fn size(self) -> Option<u64> {
        match self {
            Self::Complete { size } | Self::Partial { size } => Some(size),
            Self::Absent | Self::Penalised | Self::Unreachable => None,
        }
    }
}

/// Connects to a peer within the time limit.
pub(super) async fn connect(peers: &dyn BlobPeers, peer: &PeerId) -> Option<Connection> {
    match timeout(FETCH_CONNECT_TIME, peers.connect(peer)).await {
        Ok(Ok(connection)) => {
            connection.raise_budget(BLOB_BUDGET);
            Some(connection)
        }
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "a peer with contents is not reached");
            None
        }
        Err(_) => None,
    }
}

/// Sends a request on a stream of its own.
pub(super) async fn request(
    connection: &Connection,
    request: &BlobRequest,
) -> Result<(SendStream, RecvStream), StreamError> {
    let (mut send, recv) = connection.open_bi().await?;
    send.write_chunk(Bytes::from(request.encode())).await?;
    send.finish()?;
    Ok((send, recv))
}

/// Asks a peer what it has of a content.
pub(crate) async fn ask_provider(
    peers: &dyn BlobPeers,
    peer: &PeerId,
    hash: ContentHash,
) -> ProviderStatus {
    let Some(connection) = connect(peers, peer).await else {
        return ProviderStatus::Unreachable;
    };
    let observed = timeout(BLOB_STALLED_TIME, observe(&connection, hash)).await;
    match observed {
        Ok(Ok(status)) => status,
        Ok(Err(StreamError::Reset(code))) if code == BlobCode::Permission as u64 => {
            ProviderStatus::Absent
        }
        Ok(Err(_)) | Err(_) => ProviderStatus::Unreachable,
    }
}

async fn observe(
    connection: &Connection,
    hash: ContentHash,
) -> Result<ProviderStatus, StreamError> {
    let selection = ChunkSelection::all();
    let asked = BlobRequest::Observe { hash, selection };
    let (_send, mut recv) = request(connection, &asked).await?;
    let mut length = VariableNumber::default();
    let length = loop {
        let byte = read_chunk(&mut recv, 1).await?;
        let byte = byte.first().copied().unwrap_or_default();
        match length.push(byte) {
            Ok(Some(length)) => break usize::try_from(length).unwrap_or(usize::MAX),
            Ok(None) => {}
            Err(_) => return Ok(ProviderStatus::Absent),
        }
    };
    // The peer's word for what comes, checked before memory for it is allocated.
    if length > FETCH_OBSERVED_BYTES_MAX {
        return Ok(ProviderStatus::Absent);
    }
    let mut item = Vec::new();
    while item.len() < length {
        item.extend(read_chunk(&mut recv, length - item.len()).await?);
    }
    // A peer of iroh-blobs would send changes from here on.
    recv.stop(StreamCode::Cancelled);
    let observed = decode_observed(&item);
    Ok(observed.map_or(ProviderStatus::Absent, |(size, chunks)| {
        match chunks.bytes(size) == size && !chunks.is_empty() {
            true => ProviderStatus::Complete { size },
            false => ProviderStatus::Partial { size },
        }
    }))
}

/// The next bytes, at least one.
async fn read_chunk(recv: &mut RecvStream, most: usize) -> Result<Bytes, StreamError> {
    let chunk = recv.read_chunk(most).await?;
    chunk.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
}

/// Fills a buffer within a time limit.
pub(super) async fn read_exact(
    recv: &mut (impl tokio::io::AsyncRead + Unpin),
    buffer: &mut [u8],
    limit: Duration,
) -> std::io::Result<()> {
    match timeout(limit, recv.read_exact(buffer)).await {
        Ok(read) => read.map(drop),
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}
