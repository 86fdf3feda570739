//! `fs/watch`: the events of a branch, to be resumed behind the last one.

use std::collections::VecDeque;

use alknet_call::{
    CallBody, CallError, CallOutput, Ctx, HandlerKind, Registration, SubscriptionItem,
};
use alknet_store::{
    BucketName, EventFilter, EventTopic, EventWatch, StoreError, StoreErrorCode, StoreEvent,
    TreeVersion,
};
use futures_util::{Stream, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::addressed::target;
use super::{FsCall, schema, shown, subscription};
use crate::error::{FsError, declared};
use crate::lease::StoreLease;
use crate::limits::{WATCH_BUSY_PAUSE, WATCH_PAGE_EVENTS};
use crate::rights::FsRight;
use crate::service::FsService;
use crate::watches::WatchPermit;

pub(super) fn operation(service: &FsService) -> Registration {
    let topics: Vec<_> = EventTopic::ALL.iter().map(|topic| topic.name()).collect();
    let mut spec = subscription(
        "fs/watch",
        "Sends the events of what is at a path or below it, in their order and each at least once: first where they begin. \
         Events that were removed before they were read end it with GAP.",
    )
    .with_input(schema::input(
        &["path"],
        json!({
            "path": schema::address(),
            "cursor": { "type": "integer", "minimum": 0, "maximum": i64::MAX,
                        "description": "The id of the last event that was handled; from now on without it" },
            "topics": { "type": "array", "maxItems": EventTopic::ALL.len(), "items": { "enum": topics } },
            "all_branches": schema::flag("Whether the events of all branches of the bucket are sent"),
        }),
        json!({ "path": "docs:/2026", "cursor": 1041 }),
    ))
    .with_output(json!({
        "type": "object", "required": ["id", "topic"],
        "properties": {
            "id": { "type": "integer" }, "topic": { "type": "string" },
            "time_ms": schema::time(), "bucket": schema::bucket(), "branch": schema::branch(),
            "seq": schema::seq(), "path": { "type": "string" }, "to": { "type": "string" },
            "kind": { "type": "string" }, "hash": schema::hash(), "size": schema::count("Bytes"),
            "actor": schema::actor(),
        },
    }));
    spec.resumable = true;
    spec.error_schemas.extend(declared(&[StoreErrorCode::Gap]));
    let service = service.clone();
    let handler = HandlerKind::stream(move |input: CallBody, ctx: Ctx| {
        items(FsCall::new(&service, input, &ctx))
    });
    Registration::new(spec, handler)
}

#[derive(Deserialize)]
struct WatchInput {
    path: String,
    cursor: Option<i64>,
    #[serde(default)]
    topics: Vec<String>,
    #[serde(default)]
    all_branches: bool,
}

/// A subscription under way.
struct OpenWatch {
    // Dropped before the store.
    events: EventWatch,
    ready: VecDeque<StoreEvent>,
    closing: watch::Receiver<bool>,
    /// The bucket whose events are sent.
    bucket: BucketName,
    call: FsCall,
    /// Wakes the subscription when its requester may have lost the right.
    identities: Option<watch::Receiver<u64>>,
    _permit: WatchPermit,
    _lease: StoreLease,
}

enum EventWatchState {
    // In a box, as the other one: the state is moved for each event.
    Requested(Box<Result<FsCall, FsError>>),
    Under(Box<OpenWatch>),
}

fn items(
    call: Result<FsCall, FsError>,
) -> impl Stream<Item = Result<SubscriptionItem, CallError>> + Send + 'static {
    let begin = EventWatchState::Requested(Box::new(call));
    stream::try_unfold(begin, |state| async move {
        let mut open = match state {
            EventWatchState::Requested(call) => {
                let open = begin_watch((*call)?).await?;
                // A client that comes back before the first event goes on from here.
                let id = open.events.cursor();
                let first = item(id, json!({ "id": id, "topic": "watch.begin" }));
                return Ok::<_, CallError>(Some((first, EventWatchState::Under(open))));
            }
            EventWatchState::Under(open) => open,
        };
        let event = open.next().await?;
        // The right may be gone since the event was read.
        open.check_right()?;
        let next = item(event.id, shown::event(&event));
        Ok(Some((next, EventWatchState::Under(open))))
    })
}

fn item(cursor: i64, output: Value) -> SubscriptionItem {
    SubscriptionItem {
        output: CallOutput::Value(output),
        cursor: Some(cursor.into()),
        dropped: 0,
    }
}

async fn begin_watch(mut call: FsCall) -> Result<Box<OpenWatch>, FsError> {
    let input: WatchInput = call.parse()?;
    call.drop_input();
    let address = call.address(FsRight::Read, &input.path)?;
    let branch = match &address.version {
        TreeVersion::Head(branch) => branch.clone(),
        TreeVersion::At(..) | TreeVersion::Snapshot(_) => {
            return Err(FsError::input(
                "a version does not change; watch the head of a branch",
            ));
        }
    };
    let permit = call.service.watches().enter(call.requester.id())?;
    let bucket = address.bucket.clone();
    let watched = call.read(move |tx| target(tx, &bucket, &branch)).await?;
    let topics = input.topics.iter();
    let filter = EventFilter {
        bucket: Some(watched.bucket),
        branch: (!input.all_branches).then_some(watched.branch),
        prefix: (!address.path.is_root()).then_some(address.path),
        topics: topics
            .filter_map(|name| EventTopic::from_name(name))
            .collect(),
    };
    let bucket = address.bucket;
    let lease = call.lease().await?;
    let events = lease.db().watch_events(filter, input.cursor);
    // Asked now, so that a client with an old cursor learns of the gap before it takes the beginning for one.
    if let Some(cursor) = input.cursor {
        let none = EventFilter::default();
        call.read(move |tx| tx.read_events(cursor, &none, 1))
            .await?;
    }
    Ok(Box::new(OpenWatch {
        events,
        ready: VecDeque::new(),
        closing: call.service.closing(),
        bucket,
        identities: call.ctx.identity_changes(),
        call,
        _permit: permit,
        _lease: lease,
    }))
}

/// Returns when the rights of requesters may have changed.
async fn changed(identities: Option<&mut watch::Receiver<u64>>) {
    let changed = match identities {
        Some(identities) => identities.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        // They never will again.
        std::future::pending::<()>().await;
    }
}

/// Returns when the service closes, or is gone.
async fn closed(closing: &mut watch::Receiver<bool>) {
    drop(closing.wait_for(|is_closing| *is_closing).await);
}

impl OpenWatch {
    /// Ends a subscription whose requester has lost the right since it began.
    fn check_right(&mut self) -> Result<(), FsError> {
        match self.call.renew_rights()? {
            true => self.call.requester.require(FsRight::Read, &self.bucket),
            false => Ok(()),
        }
    }

    /// The next event; waits until there is one.
    async fn next(&mut self) -> Result<StoreEvent, CallError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            // A change before the subscription listened wakes nothing, and neither does one while it read.
            self.check_right()?;
            // A dropped future of the store loses no event.
            let page = tokio::select! {
                page = self.events.next_page(WATCH_PAGE_EVENTS, tokio::time::sleep) => page,
                // An end that waits for the next event would tell that there was one.
                () = changed(self.identities.as_mut()) => continue,
                error = self.call.ctx.draining() => return Err(error),
                () = closed(&mut self.closing) => return Err(FsError::Unserved.into()),
            };
            match page {
                Ok(page) => self.ready.extend(page.events),
                Err(StoreError::Busy(_) | StoreError::TimedOut) => {
                    tokio::time::sleep(WATCH_BUSY_PAUSE).await;
                }
                Err(StoreError::Closed) => return Err(FsError::Unserved.into()),
                Err(error) => return Err(FsError::from(error).into()),
            }
        }
    }
}
