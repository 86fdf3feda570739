//! `fs/blob/fetch` and `fs/blob/providers`: contents from peers, by their hash.

use std::sync::Arc;

use alknet_call::{CallBody, CallError, CallOutput, Ctx, HandlerKind, Registration};
use alknet_core::PeerId;
use alknet_store::{BucketId, BucketName, ContentHash, ContentStatus, StoreError, StoreObject};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::addressed::content_hash;
use super::{FsCall, once, query, schema, subscription};
use crate::blobs::{
    BlobPeers, FetchFailure, FetchOrder, FetchProgress, JoinedFetch, MissingBytes, ProviderStatus,
    ask_provider,
};
use crate::error::{FsError, of_unavailable};
use crate::limits::{FETCH_PEERS_MAX, PROVIDERS_AT_ONCE};
use crate::rights::FsRight;
use crate::service::FsService;

pub(super) fn operations(service: &FsService) -> Vec<Registration> {
    vec![fetch(service), providers(service)]
}

const EXAMPLE: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

/// The peers that a call asks, in this order.
struct FetchSources {
    from: Vec<PeerId>,
    peers: Arc<dyn BlobPeers>,
}

impl FetchSources {
    /// The named peers, or those that the node knows.
    fn new(service: &FsService, names: Option<&[String]>) -> Result<Self, FsError> {
        let peers = service.peers();
        let peers =
            peers.ok_or_else(|| CallError::unavailable("the node dials no peers for files"))?;
        let from = match names {
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
        Ok(Self { from, peers })
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

#[derive(Deserialize)]
struct ProvidersInput {
    hash: String,
    from: Option<Vec<String>>,
}

async fn run_providers(call: FsCall) -> Result<Value, FsError> {
    let input: ProvidersInput = call.parse()?;
    // The names of peers and the load on them are for those who exchange contents with them.
    let (hash, _) = call.known_content(FsRight::Sync, &input.hash).await?;
    let FetchSources { from, peers } = FetchSources::new(&call.service, input.from.as_deref())?;
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
        "Fetches a content that a bucket refers to and whose bytes it does not have, from one peer after the other, with \
         reports of how far it came. This bucket alone gets the right to the bytes. Each group is compared with the hash as \
         it arrives. What the bucket has already is not fetched again. The fetch ends when its last caller leaves.",
    )
    .with_input(schema::input(
        &["bucket", "hash"],
        json!({ "bucket": schema::bucket(), "hash": schema::hash(), "from": from_schema() }),
        json!({ "bucket": "docs", "hash": EXAMPLE, "from": ["edge-1", "edge-2"] }),
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

#[derive(Deserialize)]
struct FetchInput {
    bucket: String,
    hash: String,
    from: Option<Vec<String>>,
}

/// A content that a bucket of the caller wants, and the peers to ask for it.
struct WantedContent {
    bucket: BucketId,
    hash: ContentHash,
    /// Bytes by the word of the bucket.
    size: u64,
    sources: FetchSources,
}

/// A fetch that the caller follows.
struct FollowedFetch {
    call: FsCall,
    /// The bucket that wants the content.
    bucket: BucketName,
    wanted: WantedContent,
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
    let input: FetchInput = call.parse()?;
    let name = call.bucket(FsRight::Sync, &input.bucket)?;
    let hash = content_hash(&input.hash)?;
    let bucket = call.bucket_id(name.clone()).await?;
    let size = match call.status_in(bucket, hash).await? {
        ContentStatus::Complete { size } => return Ok(BegunFetch::Present { size }),
        ContentStatus::Wanted { size }
        | ContentStatus::Partial { size }
        | ContentStatus::Bad { size } => size,
        ContentStatus::Missing => return Err(StoreError::NotFound(StoreObject::Content).into()),
    };
    let sources = FetchSources::new(&call.service, input.from.as_deref())?;
    let wanted = WantedContent {
        bucket,
        hash,
        size,
        sources,
    };
    call.audit("fs/blob/fetch", &hash.to_string());
    let joined = call.join(&wanted).await?;
    Ok(BegunFetch::Under(Box::new(FollowedFetch {
        call,
        bucket: name,
        wanted,
        progress: joined.progress,
        is_own: joined.is_own,
        is_reported: false,
    })))
}

impl FsCall {
    /// What a bucket knows of a content.
    async fn status_in(
        &self,
        bucket: BucketId,
        hash: ContentHash,
    ) -> Result<ContentStatus, FsError> {
        self.read(move |tx| tx.content_status_in(bucket, hash))
            .await
    }

    async fn join(&self, wanted: &WantedContent) -> Result<JoinedFetch, FsError> {
        let order = FetchOrder {
            hash: wanted.hash,
            size: wanted.size,
            bucket: wanted.bucket,
            from: wanted.sources.from.clone(),
            peers: Arc::clone(&wanted.sources.peers),
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
            // A caller that has lost the right learns nothing more of the content, and the fetch does not go on for it.
            if self.call.renew_rights()? {
                self.call.requester.require(FsRight::Sync, &self.bucket)?;
            }
            let progress = self.progress.borrow_and_update().clone();
            match progress {
                FetchProgress::Done => {
                    if let Some(size) = self.size_when_done().await? {
                        return Ok((report(size, size, true), FollowedFetchState::Done));
                    }
                    self.join_again().await?;
                }
                FetchProgress::Missing(MissingBytes { missing, size }) => {
                    let fetched = size.saturating_sub(missing);
                    let under = FollowedFetchState::Under(self);
                    return Ok((report(fetched, size, false), under));
                }
                // Another call named the peers: those of this one may have the content.
                FetchProgress::Failed(_) if !self.is_own => self.join_again().await?,
                FetchProgress::Failed(failure) => return Err(self.error(failure)),
            }
        }
    }

    /// Bytes of the content, which has come. `None` if another call fetched it, and the bucket lacks it again.
    async fn size_when_done(&self) -> Result<Option<u64>, FsError> {
        let WantedContent { bucket, hash, .. } = self.wanted;
        match self.call.status_in(bucket, hash).await? {
            ContentStatus::Complete { size } => Ok(Some(size)),
            // The names went away meanwhile.
            ContentStatus::Missing => Err(StoreError::NotFound(StoreObject::Content).into()),
            _ if !self.is_own => Ok(None),
            // It came, and proved damaged on the disk since.
            _ => Err(StoreError::ContentMissing { hash }.into()),
        }
    }

    async fn join_again(&mut self) -> Result<(), FsError> {
        let joined = self.call.join(&self.wanted).await?;
        self.progress = joined.progress;
        self.is_own = joined.is_own;
        self.is_reported = false;
        Ok(())
    }

    fn error(&self, failure: FetchFailure) -> CallError {
        let hash = self.wanted.hash;
        match failure {
            FetchFailure::Store(error) => FsError::from(error).into(),
            // The caller has the right to synchronise the bucket.
            FetchFailure::Peers(tried) => of_unavailable(hash, &tried, true),
        }
    }
}
