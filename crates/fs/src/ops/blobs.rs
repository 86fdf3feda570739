//! `fs/blob/…`: contents by their hash. A hash is no capability: a caller gets what one of its buckets has, and every other
//! hash looks like one that no bucket has.

use alknet_call::{CallBody, CallError, CallOutput, Ctx, HandlerKind, Registration};
use alknet_store::{ContentBlocks, ContentHash, ContentStatus, StoreError, StoreObject};
use futures_util::{Stream, stream};
use serde::Deserialize;
use serde_json::{Value, json};

use super::addressed::content_hash;
use super::{FsCall, mutation, once, query, schema, shown, subscription};
use crate::error::FsError;
use crate::lease::StoreLease;
use crate::limits::VERIFY_STEP_BYTES;
use crate::rights::FsRight;
use crate::service::{FsService, blocking};

pub(super) fn operations(service: &FsService) -> Vec<Registration> {
    vec![
        status(service),
        pin(service),
        unpin(service),
        verify(service),
    ]
}

const EXAMPLE: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

#[derive(Deserialize)]
struct HashInput {
    hash: String,
}

impl FsCall {
    /// A content by its hash, if a bucket in which the caller has this right refers to it and has a right to its bytes.
    pub(super) async fn content_with(
        &self,
        right: FsRight,
        hash: &str,
    ) -> Result<ContentHash, FsError> {
        let (hash, status) = self.known_content(right, hash).await?;
        match status {
            ContentStatus::Complete { .. } | ContentStatus::Bad { .. } => Ok(hash),
            ContentStatus::Wanted { .. } | ContentStatus::Partial { .. } => {
                Err(StoreError::ContentUnavailable { hash }.into())
            }
            ContentStatus::Missing => Err(StoreError::NotFound(StoreObject::Content).into()),
        }
    }

    /// A content by its hash, and what the buckets in which the caller has this right know of it.
    pub(super) async fn known_content(
        &self,
        right: FsRight,
        hash: &str,
    ) -> Result<(ContentHash, ContentStatus), FsError> {
        let hash = content_hash(hash)?;
        let buckets = self.requester.buckets(&[right]);
        let status = self.read(move |tx| buckets.content_status(tx, hash));
        match status.await? {
            ContentStatus::Missing => Err(StoreError::NotFound(StoreObject::Content).into()),
            status => Ok((hash, status)),
        }
    }
}

fn status(service: &FsService) -> Registration {
    let spec = query(
        "fs/blob/status",
        "Says whether a content is here. Its bytes are not looked at.",
    )
    .with_input(schema::input(
        &["hash"],
        json!({ "hash": schema::hash() }),
        json!({ "hash": EXAMPLE }),
    ))
    .with_output(schema::output(
        &["status", "size"],
        json!({
            "status": { "enum": ["wanted", "partial", "complete", "bad"] },
            "size": schema::count("Bytes of the content"),
        }),
    ));
    once(service, spec, run_status)
}

async fn run_status(call: FsCall) -> Result<Value, FsError> {
    let input: HashInput = call.parse()?;
    let (_, status) = call.known_content(FsRight::Read, &input.hash).await?;
    let shown = shown::status(status);
    shown.ok_or_else(|| StoreError::NotFound(StoreObject::Content).into())
}

fn pin(service: &FsService) -> Registration {
    let spec = mutation(
        "fs/blob/pin",
        "Keeps a content although no name may lead to it any more. A second pin of the caller replaces the first.",
    )
    .with_input(schema::input(
        &["hash"],
        json!({
            "hash": schema::hash(), "until_ms": schema::time(),
            "recursive": schema::flag("Whether the content is a sequence of hashes, whose contents are pinned too"),
        }),
        json!({ "hash": EXAMPLE, "until_ms": 1_893_456_000_000_u64 }),
    ))
    .with_output(schema::output(&[], json!({})));
    once(service, spec, run_pin)
}

#[derive(Deserialize)]
struct PinInput {
    hash: String,
    until_ms: Option<u64>,
    #[serde(default)]
    recursive: bool,
}

async fn run_pin(call: FsCall) -> Result<Value, FsError> {
    let input: PinInput = call.parse()?;
    // What is pinned counts for no quota, so that the right to write is not enough.
    let hash = call.content_with(FsRight::Admin, &input.hash).await?;
    if input.recursive {
        // The sequence may list contents of any bucket.
        call.requester.require_everywhere(FsRight::Admin)?;
    }
    let actor = call.requester.actor().to_owned();
    call.audit("fs/blob/pin", &input.hash);
    let pinned = call.blocking(move |store| {
        let content = store.content();
        Ok(content.pin_content(hash, &actor, input.until_ms, input.recursive)?)
    });
    pinned.await?;
    Ok(json!({}))
}

fn unpin(service: &FsService) -> Registration {
    let spec = mutation(
        "fs/blob/unpin",
        "Ends the caller's pin of a content, if there is one.",
    )
    .with_input(schema::input(
        &["hash"],
        json!({ "hash": schema::hash() }),
        json!({ "hash": EXAMPLE }),
    ))
    .with_output(schema::output(&[], json!({})));
    once(service, spec, run_unpin)
}

async fn run_unpin(call: FsCall) -> Result<Value, FsError> {
    let input: HashInput = call.parse()?;
    // No right: only pins of the caller itself end, and the answer says nothing.
    let hash = content_hash(&input.hash)?;
    let actor = call.requester.actor().to_owned();
    let unpinned = call.blocking(move |store| Ok(store.content().unpin_content(hash, &actor)?));
    unpinned.await?;
    Ok(json!({}))
}

fn verify(service: &FsService) -> Registration {
    let spec = subscription(
        "fs/blob/verify",
        "Reads a content and compares it with its hash, with reports of how far it came. It ends with CONTENT_MISSING if \
         the content is damaged.",
    )
    .with_input(schema::input(
        &["hash"],
        json!({ "hash": schema::hash() }),
        json!({ "hash": EXAMPLE }),
    ))
    .with_output(schema::output(
        &["verified", "size", "done"],
        json!({
            "verified": schema::count("Bytes so far"), "size": schema::count("Bytes of the content"),
            "done": { "type": "boolean" },
        }),
    ));
    let service = service.clone();
    let handler = HandlerKind::stream(move |input: CallBody, ctx: Ctx| {
        reports(FsCall::new(&service, input, &ctx))
    });
    Registration::new(spec, handler)
}

/// A content that is being verified.
struct OpenVerification {
    // Dropped before the store.
    blocks: ContentBlocks,
    verified: u64,
    size: u64,
    _lease: StoreLease,
    call: FsCall,
    /// The content, as the request names it.
    hash: String,
}

enum VerifyState {
    // In a box, as the other one: the state is moved for each report.
    Requested(Box<Result<FsCall, FsError>>),
    Under(Box<OpenVerification>),
    Done,
}

fn reports(
    call: Result<FsCall, FsError>,
) -> impl Stream<Item = Result<CallOutput, CallError>> + Send + 'static {
    stream::try_unfold(VerifyState::Requested(Box::new(call)), |state| async move {
        let open = match state {
            VerifyState::Requested(call) => begin((*call)?).await?,
            VerifyState::Under(mut open) => {
                open.check_right().await?;
                open
            }
            VerifyState::Done => return Ok::<_, CallError>(None),
        };
        let open = blocking(move || verify_step(open)).await?;
        let is_done = open.verified >= open.size;
        let report = json!({ "verified": open.verified, "size": open.size, "done": is_done });
        let next = match is_done {
            true => VerifyState::Done,
            false => VerifyState::Under(open),
        };
        Ok(Some((CallOutput::Value(report), next)))
    })
}

async fn begin(call: FsCall) -> Result<Box<OpenVerification>, FsError> {
    let input: HashInput = call.parse()?;
    let hash = call.content_with(FsRight::Read, &input.hash).await?;
    let lease = call.lease().await?;
    blocking(move || {
        let reader = lease.read_content(hash)?;
        Ok(Box::new(OpenVerification {
            blocks: reader.blocks(0..reader.size()),
            verified: 0,
            size: reader.size(),
            _lease: lease,
            call,
            hash: input.hash,
        }))
    })
    .await
}

impl OpenVerification {
    /// Ends a subscription whose requester has lost the right since it began, or whose content no bucket has any more.
    async fn check_right(&mut self) -> Result<(), FsError> {
        // Each time, because a step of the verification takes far longer than the look-up.
        self.call.renew_rights()?;
        let found = self.call.content_with(FsRight::Read, &self.hash);
        found.await.map(drop)
    }
}

fn verify_step(mut open: Box<OpenVerification>) -> Result<Box<OpenVerification>, FsError> {
    let end = open.verified.saturating_add(VERIFY_STEP_BYTES);
    while open.verified < end
        && let Some(block) = open.blocks.next()
    {
        open.verified += block?.len() as u64;
    }
    Ok(open)
}
