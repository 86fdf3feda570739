//! One request of `/iroh-bytes/4`.

use std::sync::Arc;

use alknet_core::{Connection, PeerKey, RecvStream, SendStream, StreamCode, StreamError};
use alknet_objects::ChunkSelection;
use alknet_store::{
    ContentEncoding, ContentHash, ContentReader, ContentStatus, StoreError, StoreErrorCode,
};
use bytes::Bytes;
use tokio::time::timeout;

use super::handler::BlobHandler;
use super::policy::{BlobAccess, BlobClient, BlobGrant};
use super::sequence::HashSequence;
use super::wire::{
    BlobRequest, BlobRequestError, BlobRequestParser, BlobSelections, encode_observed,
};
use crate::error::FsError;
use crate::lease::StoreLease;
use crate::limits::BLOB_REQUEST_COST_BYTES;
use crate::recheck::RecheckPace;
use crate::service::blocking;

/// Bytes of a request that are read at once.
const REQUEST_PIECE_BYTES: usize = 16 << 10;
/// Bytes handed to the transport at a time, so that the time limit tells a slow peer from one that stopped.
const STEP_BYTES: usize = 64 << 10;

/// The codes with which a stream of the protocol breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlobCode {
    /// The content does not exist, or not for this peer; or the node does not serve this kind of request.
    Permission = 1,
    /// The request, the peer or the node is above a limit.
    Limit = 2,
    /// The node cannot send what it has.
    Internal = 3,
}

impl From<BlobCode> for StreamCode {
    fn from(code: BlobCode) -> Self {
        Self::Foreign(code as u32)
    }
}

/// How a stream ends that was not served to its end.
#[derive(Debug)]
enum BlobEnd {
    Broken(BlobCode),
    /// The peer closed the stream.
    Gone,
}

impl From<StreamError> for BlobEnd {
    fn from(_: StreamError) -> Self {
        Self::Gone
    }
}

impl From<BlobRequestError> for BlobEnd {
    fn from(error: BlobRequestError) -> Self {
        Self::Broken(match error {
            BlobRequestError::Kind(_) => BlobCode::Permission,
            _ => BlobCode::Limit,
        })
    }
}

impl From<FsError> for BlobEnd {
    fn from(error: FsError) -> Self {
        let code = match &error {
            FsError::Store(error) if error.code() == StoreErrorCode::Busy => BlobCode::Limit,
            _ => BlobCode::Internal,
        };
        tracing::debug!(error = %error.logged(), "a content is not served");
        Self::Broken(code)
    }
}

/// One request.
#[derive(Debug)]
pub(super) struct BlobStream {
    peer: ServedPeer,
    send: SendStream,
    recv: RecvStream,
}

/// The peer that a request is of.
#[derive(Debug)]
struct ServedPeer {
    handler: Arc<BlobHandler>,
    connection: Connection,
    key: Option<PeerKey>,
}

/// A content that the client may have.
#[derive(Debug)]
struct AllowedContent {
    reader: ContentReader,
    /// The client as it was when the right was looked at.
    client: BlobClient,
    grant: BlobGrant,
    pace: RecheckPace,
}

impl BlobStream {
    pub(super) const fn new(
        handler: Arc<BlobHandler>,
        connection: Connection,
        key: Option<PeerKey>,
        send: SendStream,
        recv: RecvStream,
    ) -> Self {
        Self {
            peer: ServedPeer {
                handler,
                connection,
                key,
            },
            send,
            recv,
        }
    }

    /// Refuses a request because the peer has too many of them.
    pub(super) fn refuse_busy(mut self) {
        self.break_off(BlobCode::Limit);
    }

    pub(super) async fn answer(mut self) {
        match self.run().await {
            // If the stream is gone, the peer does not wait for its end.
            Ok(()) => drop(self.send.finish()),
            Err(BlobEnd::Broken(code)) => self.break_off(code),
            Err(BlobEnd::Gone) => {
                self.send.reset(StreamCode::Cancelled);
                self.recv.stop(StreamCode::Cancelled);
            }
        }
    }

    fn break_off(&mut self, code: BlobCode) {
        self.send.reset(code.into());
        self.recv.stop(code.into());
    }

    async fn run(&mut self) -> Result<(), BlobEnd> {
        let limit = self.peer.handler.options().request_time;
        let request = timeout(limit, self.request()).await;
        let request = request.map_err(|_| BlobEnd::Broken(BlobCode::Limit))??;
        // Before any look-up, so that a peer cannot ask faster for what it may not have.
        self.peer.pay(BLOB_REQUEST_COST_BYTES).await;
        let lease = Arc::new(self.peer.lease().await?);
        match request {
            BlobRequest::Get { hash, selections } => self.get(&lease, hash, &selections).await,
            BlobRequest::Observe { hash, .. } => self.observe(lease, hash).await,
        }
    }

    async fn request(&mut self) -> Result<BlobRequest, BlobEnd> {
        let mut parser = BlobRequestParser::new();
        while let Some(piece) = self.recv.read_chunk(REQUEST_PIECE_BYTES).await? {
            parser.push(&piece)?;
        }
        Ok(parser.finish()?)
    }

    async fn observe(&mut self, lease: Arc<StoreLease>, hash: ContentHash) -> Result<(), BlobEnd> {
        let client = self.peer.client();
        let status = blocking(move || {
            let status = match client.access(&lease, hash)? {
                Some(BlobAccess::Announced { size }) => Some(ContentStatus::Wanted { size }),
                Some(BlobAccess::Bucket | BlobAccess::Share) => Some(lease.content().status(hash)?),
                None => None,
            };
            Ok(status)
        });
        let (size, is_whole) = match status.await? {
            Some(ContentStatus::Complete { size }) => (size, true),
            // Parts that are here are not served, so that the peer need not know them.
            Some(
                ContentStatus::Wanted { size }
                | ContentStatus::Partial { size }
                | ContentStatus::Bad { size },
            ) => (size, false),
            None | Some(ContentStatus::Missing) => {
                return Err(BlobEnd::Broken(BlobCode::Permission));
            }
        };
        self.pass(encode_observed(size, is_whole).into()).await
    }

    async fn get(
        &mut self,
        lease: &Arc<StoreLease>,
        hash: ContentHash,
        selections: &BlobSelections,
    ) -> Result<(), BlobEnd> {
        let Some(first) = selections.next_selected(0) else {
            // Nothing is asked for, and nothing is looked up.
            return Ok(());
        };
        let of_root = selections.selection(0).cloned().unwrap_or_default();
        let mut root = self.peer.open(lease, hash, &of_root).await?;
        if first == 0 {
            self.send_content(&mut root, &of_root).await?;
        }
        let Some(mut number) = selections.next_selected(first.max(1)) else {
            return Ok(());
        };
        let sequence = HashSequence::new(root.reader.clone());
        let mut sequence = sequence.ok_or(BlobEnd::Broken(BlobCode::Internal))?;
        loop {
            let listed = blocking(move || {
                let hash = sequence.hash(number - 1)?;
                Ok((hash, sequence))
            });
            let (listed, rest) = listed.await?;
            sequence = rest;
            let (Some(hash), Some(selection)) = (listed, selections.selection(number)) else {
                return Ok(());
            };
            self.peer.pay(BLOB_REQUEST_COST_BYTES).await;
            let mut content = self.peer.open(lease, hash, selection).await?;
            self.send_content(&mut content, selection).await?;
            match selections.next_selected(number.saturating_add(1)) {
                Some(next) => number = next,
                None => return Ok(()),
            }
        }
    }

    /// Sends the length of a content and its selected chunks.
    async fn send_content(
        &mut self,
        content: &mut AllowedContent,
        selection: &ChunkSelection,
    ) -> Result<(), BlobEnd> {
        let size = content.reader.size().to_le_bytes();
        self.pass(Bytes::copy_from_slice(&size)).await?;
        let mut next = read_on(content.reader.encoded(selection));
        loop {
            let (block, blocks) = next.await.map_err(stopped)?;
            match block {
                None => return Ok(()),
                Some(Err(error)) => return Err(FsError::from(error).into()),
                Some(Ok(block)) => {
                    // The next block is read from the disk while this one is sent.
                    next = read_on(blocks);
                    self.peer.pay(block.len() as u64).await;
                    // Behind the wait, in which the client may have lost the right.
                    self.peer.check_right(content).await?;
                    content.pace.note_bytes(block.len());
                    self.pass(block.into()).await?;
                }
            }
        }
    }

    async fn pass(&mut self, mut block: Bytes) -> Result<(), BlobEnd> {
        let limit = self.peer.handler.options().stalled_time;
        while !block.is_empty() {
            let step = block.split_to(block.len().min(STEP_BYTES));
            let sent = timeout(limit, self.send.write_chunk(step)).await;
            sent.map_err(|_| BlobEnd::Broken(BlobCode::Limit))??;
        }
        Ok(())
    }
}

impl ServedPeer {
    /// Opens a content that the client may have. A share counts what is selected of it.
    async fn open(
        &self,
        lease: &Arc<StoreLease>,
        hash: ContentHash,
        selection: &ChunkSelection,
    ) -> Result<AllowedContent, BlobEnd> {
        let (client, lease, selection) = (self.client(), Arc::clone(lease), selection.clone());
        let opened = blocking(move || {
            let is_shared = match client.access(&lease, hash)? {
                None => return Ok(None),
                Some(BlobAccess::Announced { .. }) => {
                    return Err(StoreError::ContentUnavailable { hash }.into());
                }
                Some(BlobAccess::Bucket) => false,
                Some(BlobAccess::Share) => true,
            };
            let reader = lease.read_content(hash)?;
            let bytes = selection.bytes(reader.size());
            let grant = match is_shared {
                true => client.use_share(&lease, hash, bytes)?.map(BlobGrant::Share),
                false => Some(BlobGrant::Bucket),
            };
            Ok(grant.map(|grant| AllowedContent {
                reader,
                client,
                grant,
                pace: RecheckPace::new(),
            }))
        });
        opened.await?.ok_or(BlobEnd::Broken(BlobCode::Permission))
    }

    /// Breaks off if the client has lost the right to a content since it was opened: by other scopes, because the bucket or
    /// its name of the content is gone, or by the end of the share.
    async fn check_right(&self, content: &mut AllowedContent) -> Result<(), BlobEnd> {
        let client = self.client();
        // The common case costs a comparison of two addresses and a look at the clock.
        if client.is_same(&content.client) && !content.pace.take_due() {
            return Ok(());
        }
        content.client = client.clone();
        let lease = self.lease().await?;
        let (hash, grant) = (content.reader.hash(), content.grant);
        let may_go_on = blocking(move || Ok(client.may_go_on(&lease, hash, grant)?));
        match may_go_on.await? {
            true => Ok(()),
            false => Err(BlobEnd::Broken(BlobCode::Permission)),
        }
    }

    async fn lease(&self) -> Result<StoreLease, FsError> {
        let service = self.handler.service();
        service.lease_for(self.client().name()).await
    }

    fn client(&self) -> BlobClient {
        BlobClient::from_connection(&self.connection, self.key.as_ref())
    }

    async fn pay(&self, bytes: u64) {
        let client = self.client();
        self.handler.rates().wait(client.name(), bytes).await;
    }
}

/// A block, and what is behind it.
type ReadBlock = (Option<Result<Vec<u8>, StoreError>>, ContentEncoding);

/// Begins to read the next block.
fn read_on(mut blocks: ContentEncoding) -> tokio::task::JoinHandle<ReadBlock> {
    tokio::task::spawn_blocking(move || {
        let block = blocks.next();
        (block, blocks)
    })
}

fn stopped(error: tokio::task::JoinError) -> BlobEnd {
    FsError::from(StoreError::Panicked(error.to_string())).into()
}
