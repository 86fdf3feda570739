//! `fs/notify/…`: named readers of the events of a bucket, whose cursors the store keeps.
//!
//! A consumer belongs to a bucket: its name in the store begins with the number of the bucket, so that the right to one
//! bucket never reaches the consumers of another one, and it goes with its bucket.

use std::time::Duration;

use alknet_call::{OperationSpec, Registration};
use alknet_store::limits::EVENTS_PAGE_MAX;
use alknet_store::{
    ConsumerName, Durability, EventFilter, OutboxConsumer, OutboxStart, StoreErrorCode,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{FsCall, mutation, once, query, schema, shown};
use crate::error::{FsError, declared};
use crate::rights::FsRight;
use crate::service::FsService;

pub(super) fn operations(service: &FsService) -> Vec<Registration> {
    vec![
        once(service, add_spec(), run_add),
        once(service, claim_spec(), run_claim),
        once(service, events_spec(), run_events),
        once(service, ack_spec(), run_ack),
        once(service, reset_spec(), run_reset),
        once(service, release_spec(), run_release),
        once(service, remove_spec(), run_remove),
    ]
}

/// Milliseconds of a lease that a request names none for.
pub(super) const LEASE_DEFAULT_MS: u64 = 60_000;

fn members(more: Value) -> Value {
    let own = json!({ "bucket": schema::bucket(), "consumer": schema::name() });
    schema::joined(&[own, more])
}

fn start_schema() -> Value {
    json!({
        "description": "Where it begins: with the oldest event, with the next one, or behind the event of this number",
        "oneOf": [
            { "enum": ["oldest", "now"] },
            { "type": "integer", "minimum": 0, "maximum": i64::MAX },
        ],
    })
}

fn consumer_schema() -> Value {
    schema::output(
        &["consumer", "cursor"],
        json!({
            "consumer": schema::name(), "cursor": { "type": "integer" },
            "owner": { "type": ["string", "null"] }, "lease_until_ms": { "type": ["integer", "null"] },
        }),
    )
}

#[derive(Deserialize)]
struct ConsumerInput {
    bucket: String,
    consumer: String,
    start: Option<ConsumerStartInput>,
    lease_ms: Option<u64>,
    id: Option<i64>,
    limit: Option<usize>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum ConsumerStartInput {
    After(i64),
    Named(String),
}

impl ConsumerInput {
    fn start(&self) -> OutboxStart {
        match &self.start {
            Some(ConsumerStartInput::After(id)) => OutboxStart::After(*id),
            // The schema knows no third name.
            Some(ConsumerStartInput::Named(name)) if name == "oldest" => OutboxStart::Oldest,
            Some(ConsumerStartInput::Named(_)) | None => OutboxStart::Now,
        }
    }
}

/// The consumer of a request, for which the caller has a right. It has the number of the bucket, so that it is never one of
/// a later bucket with the same name.
async fn named_consumer(
    call: &FsCall,
    right: FsRight,
    input: &ConsumerInput,
) -> Result<ConsumerName, FsError> {
    let bucket = call.bucket(right, &input.bucket)?;
    // A bucket that does not exist has the same answer here as elsewhere.
    let bucket = call.bucket_id(bucket).await?;
    Ok(ConsumerName::parse(bucket, &input.consumer)?)
}

fn shown_consumer(name: &str, consumer: &OutboxConsumer) -> Value {
    json!({
        "consumer": name, "cursor": consumer.cursor, "owner": consumer.owner,
        "lease_until_ms": consumer.lease_until_ms,
    })
}

fn with_gap(mut spec: OperationSpec) -> OperationSpec {
    spec.error_schemas.extend(declared(&[StoreErrorCode::Gap]));
    spec
}

fn add_spec() -> OperationSpec {
    let spec = mutation(
        "fs/notify/add",
        "Makes a consumer of the events of a bucket. One that exists keeps its cursor.",
    )
    .with_input(schema::input(
        &["bucket", "consumer"],
        members(json!({ "start": start_schema() })),
        json!({ "bucket": "docs", "consumer": "indexer", "start": "oldest" }),
    ))
    .with_output(consumer_schema());
    with_gap(spec)
}

async fn run_add(call: FsCall) -> Result<Value, FsError> {
    let input: ConsumerInput = call.parse()?;
    // A consumer is a row of the store.
    call.bucket(FsRight::Write, &input.bucket)?;
    let consumer = named_consumer(&call, FsRight::Read, &input).await?;
    let start = input.start();
    let added = call.write(Durability::Full, move |tx| {
        tx.add_outbox_consumer(&consumer, start)
    });
    Ok(shown_consumer(&input.consumer, &added.await?))
}

fn claim_spec() -> OperationSpec {
    mutation(
        "fs/notify/claim",
        "Takes the lease of a consumer, or renews it. Only its owner may move the cursor.",
    )
    .with_input(schema::input(
        &["bucket", "consumer"],
        members(json!({ "lease_ms": schema::lease() })),
        json!({ "bucket": "docs", "consumer": "indexer", "lease_ms": 30_000 }),
    ))
    .with_output(consumer_schema())
}

async fn run_claim(call: FsCall) -> Result<Value, FsError> {
    let input: ConsumerInput = call.parse()?;
    let consumer = named_consumer(&call, FsRight::Read, &input).await?;
    let owner = call.requester.actor().to_owned();
    let lease = Duration::from_millis(input.lease_ms.unwrap_or(LEASE_DEFAULT_MS));
    let claimed = call.write(Durability::Full, move |tx| {
        tx.claim_outbox_consumer(&consumer, &owner, lease)
    });
    Ok(shown_consumer(&input.consumer, &claimed.await?))
}

fn events_spec() -> OperationSpec {
    let spec = query(
        "fs/notify/events",
        "Returns the events behind the cursor of a consumer. They come again until they are acknowledged.",
    )
    .with_input(schema::input(
        &["bucket", "consumer"],
        members(json!({ "limit": schema::limit(EVENTS_PAGE_MAX) })),
        json!({ "bucket": "docs", "consumer": "indexer", "limit": 100 }),
    ))
    .with_output(schema::output(
        &["events", "cursor", "end"],
        json!({
            "events": { "type": "array", "items": { "type": "object" } },
            "cursor": { "type": "integer", "description": "What to acknowledge after these" },
            "end": { "type": "boolean", "description": "Whether there is no further event at present" },
        }),
    ));
    with_gap(spec)
}

async fn run_events(call: FsCall) -> Result<Value, FsError> {
    let input: ConsumerInput = call.parse()?;
    let consumer = named_consumer(&call, FsRight::Read, &input).await?;
    let limit = input.limit.unwrap_or(EVENTS_PAGE_MAX);
    let page = call.read(move |tx| {
        let filter = EventFilter {
            // The right is for one bucket, and the outbox has the events of all buckets.
            bucket: Some(consumer.bucket()),
            ..EventFilter::default()
        };
        tx.consumer_events(&consumer, &filter, limit)
    });
    let page = page.await?;
    let rows = shown::within_page(page.events.iter().map(shown::event));
    // A page that the answer has no room for ends with its last event.
    let is_whole = rows.len() == page.events.len();
    let last = page.events.get(rows.len().saturating_sub(1));
    let cursor = match last.filter(|_| !is_whole) {
        Some(last) => last.id,
        None => page.cursor,
    };
    Ok(json!({ "events": rows, "cursor": cursor, "end": page.is_end && is_whole }))
}

fn ack_spec() -> OperationSpec {
    mutation(
        "fs/notify/ack",
        "Notes that a consumer has handled all events up to this number. It needs the lease.",
    )
    .with_input(schema::input(
        &["bucket", "consumer", "id"],
        members(json!({ "id": { "type": "integer", "minimum": 0, "maximum": i64::MAX } })),
        json!({ "bucket": "docs", "consumer": "indexer", "id": 1041 }),
    ))
    .with_output(schema::output(&[], json!({})))
}

async fn run_ack(call: FsCall) -> Result<Value, FsError> {
    let input: ConsumerInput = call.parse()?;
    let consumer = named_consumer(&call, FsRight::Read, &input).await?;
    let owner = call.requester.actor().to_owned();
    // The schema asks for it. No event has the number 0.
    let id = input.id.unwrap_or_default();
    let acknowledged = call.write(Durability::Full, move |tx| {
        tx.acknowledge_events(&consumer, &owner, id)
    });
    acknowledged.await?;
    Ok(json!({}))
}

fn reset_spec() -> OperationSpec {
    let spec = mutation(
        "fs/notify/reset",
        "Sets the cursor of a consumer, also back. It needs the lease.",
    )
    .with_input(schema::input(
        &["bucket", "consumer", "start"],
        members(json!({ "start": start_schema() })),
        json!({ "bucket": "docs", "consumer": "indexer", "start": 1000 }),
    ))
    .with_output(consumer_schema());
    with_gap(spec)
}

async fn run_reset(call: FsCall) -> Result<Value, FsError> {
    let input: ConsumerInput = call.parse()?;
    let consumer = named_consumer(&call, FsRight::Read, &input).await?;
    let start = input.start();
    let owner = call.requester.actor().to_owned();
    let reset = call.write(Durability::Full, move |tx| {
        tx.reset_outbox_consumer(&consumer, &owner, start)
    });
    Ok(shown_consumer(&input.consumer, &reset.await?))
}

fn release_spec() -> OperationSpec {
    mutation(
        "fs/notify/release",
        "Gives the lease of a consumer back, so that the next owner does not wait for its end.",
    )
    .with_input(schema::input(
        &["bucket", "consumer"],
        members(json!({})),
        json!({ "bucket": "docs", "consumer": "indexer" }),
    ))
    .with_output(schema::output(&[], json!({})))
}

async fn run_release(call: FsCall) -> Result<Value, FsError> {
    let input: ConsumerInput = call.parse()?;
    let consumer = named_consumer(&call, FsRight::Read, &input).await?;
    let owner = call.requester.actor().to_owned();
    let released = call.write(Durability::Full, move |tx| {
        tx.release_outbox_consumer(&consumer, &owner)
    });
    released.await?;
    Ok(json!({}))
}

fn remove_spec() -> OperationSpec {
    mutation("fs/notify/remove", "Removes a consumer, leased or not.")
        .with_input(schema::input(
            &["bucket", "consumer"],
            members(json!({})),
            json!({ "bucket": "docs", "consumer": "indexer" }),
        ))
        .with_output(schema::output(&[], json!({})))
}

async fn run_remove(call: FsCall) -> Result<Value, FsError> {
    let input: ConsumerInput = call.parse()?;
    // As for making one: a row of the store goes, also one that another caller has leased.
    let consumer = named_consumer(&call, FsRight::Write, &input).await?;
    let removed = call.write(Durability::Full, move |tx| {
        tx.remove_outbox_consumer(&consumer)
    });
    removed.await?;
    Ok(json!({}))
}
