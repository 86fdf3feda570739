//! Streams events that update an open page.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use alknet_gateway::{ApiError, GatewayPermit};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::answer::EventBody;
use crate::gather::{PageCallResult, ask, gather};
use crate::history::MetricsSample;
use crate::limits::{LIVE_EVERY, SAMPLE_EVERY};
use crate::page::{AdminPageInner, PageViewer};
use crate::view::view;

/// The milliseconds after which a browser reconnects if it lost the connection.
const RETRY_MS: u64 = 5000;

/// Streams the changes of the page, as long as the viewer reads and is allowed to, until the node drains. The stream
/// counts as one of the identity's streams meanwhile.
pub(crate) fn events(
    page: &Arc<AdminPageInner>,
    viewer: PageViewer,
    address: String,
) -> Result<EventBody, ApiError> {
    let permit = page.gateway.stream(&viewer.caller)?;
    // The channel holds one event, so nothing is built that a slow reader does not read.
    let (write, events) = mpsc::channel(1);
    let writing = follow(Arc::clone(page), viewer, address, write, permit);
    let task = tokio::spawn(writing);
    Ok(EventBody::new(events, task.abort_handle()))
}

async fn follow(
    page: Arc<AdminPageInner>,
    mut viewer: PageViewer,
    address: String,
    write: mpsc::Sender<Bytes>,
    _permit: GatewayPermit,
) {
    let mut shown: HashMap<&'static str, String> = HashMap::new();
    let mut often = interval(LIVE_EVERY);
    often.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let hello = format!("retry: {RETRY_MS}\n\n");
    if write.send(hello.into()).await.is_err() {
        return;
    }
    let drain = viewer.caller.gate.dispatcher().drain_token().clone();
    // The first tick is immediate, when the page is still current.
    often.tick().await;
    // The stream has no end of its own, so a drain would wait for it until its time is over.
    while drain.run_until_cancelled(often.tick()).await.is_some() {
        if !viewer.is_let_in(&page) {
            let _ = write
                .send(Bytes::from_static(b"event: over\ndata: {}\n\n"))
                .await;
            return;
        }
        let event = update(&page, &viewer, &address, &mut shown).await;
        if write.send(event).await.is_err() {
            return;
        }
    }
}

async fn update(
    page: &Arc<AdminPageInner>,
    viewer: &PageViewer,
    address: &str,
    shown: &mut HashMap<&'static str, String>,
) -> Bytes {
    page.record_view(viewer);
    let gathered = gather(&page.gateway, &viewer.caller, &page.history).await;
    let view = view(&gathered, &page.history, address);
    let mut sections = Map::new();
    for section in &view.sections {
        let html = page.templates.section(section);
        // Only changed sections are sent.
        if shown.get(section.id) != Some(&html) {
            sections.insert(section.id.to_owned(), Value::String(html.clone()));
            shown.insert(section.id, html);
        }
    }
    let event = json!({
        "ids": view.sections.iter().map(|section| section.id).collect::<Vec<_>>(),
        "sections": sections,
        "state": view.state,
        "well": view.well,
        "at": view.at,
    });
    // JSON text without indentation has no line ends, which would end the event's data.
    format!("event: update\ndata: {event}\n\n").into()
}

/// Takes samples for the plots, as long as a viewer has read the page recently and `viewer` is
/// allowed to.
pub(crate) async fn sample(page: std::sync::Weak<AdminPageInner>, mut viewer: PageViewer) {
    let mut often = interval(SAMPLE_EVERY);
    often.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        often.tick().await;
        // The task holds the page weakly, so it does not keep a stopped node's page alive.
        let Some(page) = page.upgrade() else {
            return;
        };
        if !page.history.wanted(Instant::now()) {
            return;
        }
        if !viewer.is_let_in(&page) {
            // The next viewer starts a new task.
            return page.history.stop();
        }
        let answer = ask(&page.gateway, &viewer.caller, "node/metrics", Value::Null).await;
        match answer {
            PageCallResult::Answer(metrics) => page
                .history
                .add(Instant::now(), MetricsSample::from_metrics(&metrics)),
            // This viewer cannot call the operation any more, or never could.
            PageCallResult::Absent | PageCallResult::Failed(_) => return page.history.stop(),
        }
    }
}
