//! `fs/share`: a content for the holder of a key that the node does not know. The key that its TLS client proves is all that
//! it presents, so that there is no secret to send or to lose.

use std::time::Duration;

use alknet_call::Registration;
use alknet_core::PeerKey;
use alknet_store::limits::{SHARE_TIME_MAX, SHARE_USES_MAX};
use alknet_store::{ContentShare, ContentShareId, Durability, NewShare, StoreError, StoreObject};
use serde::Deserialize;
use serde_json::{Value, json};

use super::addressed::content_hash;
use super::{FsCall, mutation, once, query, schema};
use crate::error::FsError;
use crate::rights::FsRight;
use crate::service::FsService;

pub(super) fn operations(service: &FsService) -> Vec<Registration> {
    vec![share(service), list(service), revoke(service)]
}

const EXAMPLE_HASH: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
const EXAMPLE_KEY: &str =
    "ed25519:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
const EXAMPLE_SHARE: &str = "af1349b9f5f9a1a6a0404dea36dcc949";
/// Seconds of a share that names no time.
const TIME_DEFAULT_S: u64 = 24 * 60 * 60;

fn id_schema() -> Value {
    json!({ "type": "string", "maxLength": 32, "description": "The number of a share, which is no secret" })
}

fn share_schema() -> Value {
    json!({
        "share": id_schema(), "hash": schema::hash(),
        "key": { "type": "string", "description": "The key whose holder may fetch the content" },
        "owner": { "type": "string" },
        "created_ms": schema::time(), "until_ms": schema::time(),
        "bytes_left": schema::count("Bytes that requests may still ask for"),
        "uses_left": schema::count("Requests that are left"),
    })
}

fn shown(share: &ContentShare) -> Value {
    let mut shown = json!({
        "share": share.id.to_string(), "hash": share.hash.to_string(), "key": share.grantee,
        "owner": share.owner, "created_ms": share.created_ms, "until_ms": share.until_ms,
    });
    // A member that is missing says "without a limit"; a number could not.
    if let Some(bytes) = share.bytes_left {
        shown["bytes_left"] = bytes.into();
    }
    if let Some(uses) = share.uses_left {
        shown["uses_left"] = uses.into();
    }
    shown
}

fn share(service: &FsService) -> Registration {
    let spec = mutation(
        "fs/share",
        "Lets the holder of a key fetch one content by its hash over /iroh-bytes/4. The share ends by its time, when its bytes \
         or requests are used up, and when the bucket does not have the content any more.",
    )
    .with_input(schema::input(
        &["bucket", "hash", "key"],
        json!({
            "bucket": schema::bucket(), "hash": schema::hash(),
            "key": { "type": "string", "maxLength": 80,
                     "description": "The key that the TLS client of the other side proves: ed25519:<64 hex> or spki:<64 hex>" },
            "time_s": { "type": "integer", "minimum": 1, "maximum": SHARE_TIME_MAX.as_secs(), "default": TIME_DEFAULT_S,
                        "description": "Seconds that the share lasts" },
            "bytes_max": { "type": "integer", "minimum": 1,
                           "description": "Bytes of content that all requests together may ask for" },
            "uses_max": { "type": "integer", "minimum": 1, "maximum": SHARE_USES_MAX,
                          "description": "Requests" },
        }),
        json!({ "bucket": "docs", "hash": EXAMPLE_HASH, "key": EXAMPLE_KEY, "time_s": 3600, "uses_max": 3 }),
    ))
    .with_output(schema::output(&["share", "hash", "key", "until_ms"], share_schema()));
    once(service, spec, run_share)
}

#[derive(Deserialize)]
struct ShareInput {
    bucket: String,
    hash: String,
    key: String,
    time_s: Option<u64>,
    bytes_max: Option<u64>,
    uses_max: Option<u64>,
}

async fn run_share(call: FsCall) -> Result<Value, FsError> {
    let input: ShareInput = call.parse()?;
    // It gives others what is in the bucket, so that the right to read is not enough.
    let bucket = call.bucket(FsRight::Admin, &input.bucket)?;
    let hash = content_hash(&input.hash)?;
    let key = input.key.parse::<PeerKey>();
    let key = key.map_err(|error| FsError::input(error.to_string()))?;
    let new = NewShare {
        hash,
        bucket: call.bucket_id(bucket).await?,
        grantee: key.to_string(),
        owner: call.requester.actor().to_owned(),
        time: Duration::from_secs(input.time_s.unwrap_or(TIME_DEFAULT_S)),
        bytes_max: input.bytes_max,
        uses_max: input.uses_max,
    };
    // Before the write: a share that was made and not logged would be worse than the reverse.
    call.audit("fs/share", &input.hash);
    let share = call.write(Durability::Full, move |tx| tx.create_share(&new));
    Ok(shown(&share.await?))
}

fn list(service: &FsService) -> Registration {
    let spec = query("fs/share/list", "Lists the shares of a bucket.")
        .with_input(schema::input(
            &["bucket"],
            json!({ "bucket": schema::bucket() }),
            json!({ "bucket": "docs" }),
        ))
        .with_output(schema::output(
            &["shares"],
            json!({ "shares": { "type": "array", "items": { "type": "object", "properties": share_schema() } } }),
        ));
    once(service, spec, run_list)
}

#[derive(Deserialize)]
struct ShareListInput {
    bucket: String,
}

async fn run_list(call: FsCall) -> Result<Value, FsError> {
    let input: ShareListInput = call.parse()?;
    let bucket = call.bucket(FsRight::Admin, &input.bucket)?;
    let bucket = call.bucket_id(bucket).await?;
    let shares = call.read(move |tx| tx.shares(bucket)).await?;
    let shares: Vec<_> = shares.iter().map(shown).collect();
    Ok(json!({ "shares": shares }))
}

fn revoke(service: &FsService) -> Registration {
    let spec = mutation(
        "fs/share/revoke",
        "Ends a share. A request that is under way breaks off soon.",
    )
    .with_input(schema::input(
        &["bucket", "share"],
        json!({ "bucket": schema::bucket(), "share": id_schema() }),
        json!({ "bucket": "docs", "share": EXAMPLE_SHARE }),
    ))
    .with_output(schema::output(&[], json!({})));
    once(service, spec, run_revoke)
}

#[derive(Deserialize)]
struct ContentShareRevokeInput {
    bucket: String,
    share: String,
}

async fn run_revoke(call: FsCall) -> Result<Value, FsError> {
    let input: ContentShareRevokeInput = call.parse()?;
    let bucket = call.bucket(FsRight::Admin, &input.bucket)?;
    let bucket = call.bucket_id(bucket).await?;
    let id: ContentShareId = input.share.parse()?;
    call.audit("fs/share/revoke", &input.share);
    let removed = call.write(Durability::Full, move |tx| tx.remove_share(bucket, id));
    match removed.await? {
        true => Ok(json!({})),
        false => Err(StoreError::NotFound(StoreObject::Share).into()),
    }
}
