//! `fs/blob/fetch` and `fs/blob/providers`: contents from peers, by their hash.

use std::sync::Arc;

use alknet_call::{CallBody, CallError, CallOutput, Ctx, HandlerKind, Registration};
use alknet_core::PeerId;
use alknet_store::{ContentHash, ContentStatus, StoreError, StoreObject};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{FsCall, once, query, schema, subscription};
use crate::blobs::{
    BlobPeers, FetchFailure, FetchOrder, FetchProgress, ProviderStatus, ask_provider,
};
use crate::error::FsError;
use crate::limits::{FETCH_PEERS_MAX, PROVIDERS_AT_ONCE};
use crate::rights::{FsRight, VisibleBuckets};
use crate::service::FsService;

pub(super) fn operations(service: &FsService) -> Vec<Registration> {
    vec![fetch(service), providers(service)]
}

const EXAMPLE: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

#[derive(Deserialize)]
struct TransferInput {
    hash: String,
    from: Option<Vec<String>>,
}

/// A content that a bucket of the caller wants, and the peers to ask for it.
struct WantedContent {
    hash: ContentHash,
    status: ContentStatus,
    /// The buckets that get the right to the bytes once they have come.
    buckets: VisibleBuckets,
    from: Vec<PeerId>,
    peers: Arc<dyn BlobPeers>,
}

impl FsCall {
    async fn wanted(&self) -> Result<WantedContent, FsError> {
        let input: TransferInput = self.parse()?;
        // The names of peers and the load on them are for those who exchange contents with them.
        let (hash, status) = self.known_content(FsRight::Sync, &input.hash).await?;
        let buckets = self.requester.buckets(&[FsRight::Sync]);
        let peers = self.service.peers();
        let peers =
            peers.ok_or_else(|| CallError::unavailable("the node dials no peers for files"))?;
        let from = match input.from {
            Some(names) => names
                .iter()
                .map(|name| peer(name))
                .collect::<Result<_, _>>()?,
            None => {
                let mut known = peers.known();
                known.truncate(FETCH_PEERS_MAX);
                known
            }
        };
        Ok(WantedContent {
            hash,
            status,
            buckets,
            from,
            peers,
        })
    }
}

fn peer(name: &str) -> Result<PeerId, FsError> {
    let parsed = name.parse::<PeerId>();
    parsed.map_err(|error| FsError::input(error.to_string()))
}

fn from_schema() -> Value {
    json!({
        "type": "array", "minItems": 1, "maxItems": FETCH_PEERS_MAX,
        "items": { "type": "string", "maxLength": PeerId::MAX_BYTES },
        "description": "Names of peers, in the order in which they are asked; those that the node knows without it",
    })
}

fn providers(service: &FsService) -> Registration {
    let spec = query(
        "fs/blob/providers",
        "Asks peers whether they have a content that a bucket here refers to. A peer that does not give it to this node \
         says that it does not exist.",
    )
    .with_input(schema::input(
        &["hash"],
        json!({ "hash": schema::hash(), "from": from_schema() }),
        json!({ "hash": EXAMPLE, "from": ["edge-1"] }),
    ))
    .with_output(schema::output(
        &["providers"],
        json!({ "providers": { "type": "array", "items": {
            "type": "object", "required": ["peer", "status"],
            "properties": {
                "peer": { "type": "string" },
                "status": { "enum": ["absent", "complete", "partial", "penalised", "unreachable"] },
                "size": schema::count("Bytes of the content by the word of the peer"),
            },
        } } }),
    ));
    once(service, spec, run_providers)
}

async fn run_providers(call: FsCall) -> Result<Value, FsError> {
    let WantedContent {
        hash, from, peers, ..
    } = call.wanted().await?;
    let fetches = Arc::clone(call.service.fetches());
    let asked = stream::iter(from).map(|peer| {
        let (peers, fetches) = (Arc::clone(&peers), Arc::clone(&fetches));
        async move {
            let status = match fetches.is_penalised(&peer) {
                true => ProviderStatus::Penalised,
                false => ask_provider(&*peers, &peer, hash).await,
            };
            shown_provider(&peer, status)
        }
    });
    let shown: Vec<_> = asked.buffered(PROVIDERS_AT_ONCE).collect().await;
    Ok(json!({ "providers": shown }))
}

fn shown_provider(peer: &PeerId, status: ProviderStatus) -> Value {
    let mut shown = json!({ "peer": peer.as_str(), "status": status.name() });
    if let Some(size) = status.size() {
        shown["size"] = size.into();
    }
    shown
}

fn fetch(service: &FsService) -> Registration {
    let spec = subscription(
        "fs/blob/fetch",
        "Fetches a content that a bucket here refers to and whose bytes are not here, from one peer after the other, with \
         reports of how far it came. Each group is compared with the hash as it arrives. What is here already is not fetched \
         again. The fetch ends when its last caller leaves.",
    )
    .with_input(schema::input(
        &["hash"],
        json!({ "hash": schema::hash(), "from": from_schema() }),
        json!({ "hash": EXAMPLE, "from": ["edge-1", "edge-2"] }),
    ))
    .with_output(schema::output(
        &["fetched", "size", "done"],
        json!({
            "fetched": schema::count("Bytes that are here"), "size": schema::count("Bytes of the content"),
            "done": { "type": "boolean" },
        }),
    ));
    let service = service.clone();
    let handler = HandlerKind::stream(move |input: CallBody, ctx: Ctx| {
        reports(FsCall::new(&service, input, &ctx))
    });
    Registration::new(spec, handler)
}

/// A fetch that the caller follows.
struct FollowedFetch {
    call: FsCall,
    wanted: WantedContent,
    size: u64,
    progress: watch::Receiver<FetchProgress>,
    /// Whether this call's peers are asked.
    is_own: bool,
    /// Whether the present state was reported.
    is_reported: bool,
}

enum FollowedFetchState {
    // In a box, as the other one: the state is moved for each report.
    Requested(Box<Result<FsCall, FsError>>),
    Under(Box<FollowedFetch>),
    Done,
}

fn reports(
    call: Result<FsCall, FsError>,
) -> impl Stream<Item = Result<CallOutput, CallError>> + Send + 'static {
    stream::try_unfold(
        FollowedFetchState::Requested(Box::new(call)),
        |state| async move {
            let followed = match state {
                FollowedFetchState::Requested(call) => match begin((*call)?).await? {
                    BegunFetch::Present { size } => {
                        return Ok::<_, CallError>(Some((
                            report(size, size, true),
                            FollowedFetchState::Done,
                        )));
                    }
                    BegunFetch::Under(followed) => followed,
                },
                FollowedFetchState::Under(followed) => followed,
                FollowedFetchState::Done => return Ok(None),
            };
            followed.next().await.map(Some)
        },
    )
}

fn report(fetched: u64, size: u64, is_done: bool) -> CallOutput {
    json!({ "fetched": fetched, "size": size, "done": is_done }).into()
}

enum BegunFetch {
    Present { size: u64 },
    Under(Box<FollowedFetch>),
}

async fn begin(call: FsCall) -> Result<BegunFetch, FsError> {
    let wanted = call.wanted().await?;
    let hash = wanted.hash;
    let size = match wanted.status {
        // A bucket of the caller may still wait for what another one has: its right comes with the bytes.
        ContentStatus::Complete { size } if !call.is_awaited(&wanted).await? => {
            return Ok(BegunFetch::Present { size });
        }
        ContentStatus::Complete { size }
        | ContentStatus::Wanted { size }
        | ContentStatus::Partial { size }
        | ContentStatus::Bad { size } => size,
        ContentStatus::Missing => return Err(StoreError::NotFound(StoreObject::Content).into()),
    };
    call.audit("fs/blob/fetch", &hash.to_string());
    let joined = call.join(&wanted, size).await?;
    Ok(BegunFetch::Under(Box::new(FollowedFetch {
        call,
        wanted,
        size,
        progress: joined.progress,
        is_own: joined.is_own,
        is_reported: false,
    })))
}

impl FsCall {
    /// Whether a bucket of the caller waits for the bytes.
    async fn is_awaited(&self, wanted: &WantedContent) -> Result<bool, FsError> {
        let (hash, buckets) = (wanted.hash, wanted.buckets.clone());
        let awaiting = self.read(move |tx| buckets.awaiting(tx, hash));
        Ok(!awaiting.await?.is_empty())
    }

    async fn join(
        &self,
        wanted: &WantedContent,
        size: u64,
    ) -> Result<crate::blobs::JoinedFetch, FsError> {
        let order = FetchOrder {
            hash: wanted.hash,
            size,
            buckets: wanted.buckets.clone(),
            from: wanted.from.clone(),
            peers: Arc::clone(&wanted.peers),
            lease: self.lease().await?,
            closing: self.service.closing(),
        };
        self.service.fetches().join(order)
    }
}

impl FollowedFetch {
    async fn next(mut self: Box<Self>) -> Result<(CallOutput, FollowedFetchState), CallError> {
        loop {
            if self.is_reported && self.progress.changed().await.is_err() {
                return Err(FsError::Unserved.into());
            }
            self.is_reported = true;
            let progress = self.progress.borrow_and_update().clone();
            match progress {
                // The bytes came for the buckets of another call, and gave those of this one no right.
                FetchProgress::Done
                    if !self.is_own && self.call.is_awaited(&self.wanted).await? =>
                {
                    self.join_again().await?;
                }
                FetchProgress::Done => {
                    let done = report(self.size, self.size, true);
                    return Ok((done, FollowedFetchState::Done));
                }
                FetchProgress::Missing(missing) => {
                    let fetched = self.size.saturating_sub(missing);
                    return Ok((
                        report(fetched, self.size, false),
                        FollowedFetchState::Under(self),
                    ));
                }
                // Another call named the peers: those of this one may have the content.
                FetchProgress::Failed(_) if !self.is_own => self.join_again().await?,
                FetchProgress::Failed(failure) => return Err(self.error(failure)),
            }
        }
    }

    async fn join_again(&mut self) -> Result<(), FsError> {
        let joined = self.call.join(&self.wanted, self.size).await?;
        self.progress = joined.progress;
        self.is_own = joined.is_own;
        self.is_reported = false;
        Ok(())
    }

    fn error(&self, failure: FetchFailure) -> CallError {
        let hash = self.wanted.hash;
        match failure {
            FetchFailure::Store(error) => FsError::from(error).into(),
            FetchFailure::Peers(tried) => {
                let error = CallError::from(FsError::from(StoreError::ContentUnavailable { hash }));
                let tried: Vec<_> = tried
                    .iter()
                    .map(|(peer, outcome)| json!({ "peer": peer.as_str(), "outcome": outcome }))
                    .collect();
                error.with_details(json!({ "hash": hash.to_string(), "tried": tried }))
            }
        }
    }
}
