//! Events that keep an open page up to date.

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

/// Milliseconds after which a browser that lost the connection comes again.
const RETRY_MS: u64 = 5000;

/// Streams what changes, for as long as the viewer reads and may. The stream holds a place among
/// the identity's streams meanwhile.
pub(crate) fn events(
    page: &Arc<AdminPageInner>,
    viewer: PageViewer,
    address: String,
) -> Result<EventBody, ApiError> {
    let place = page.gateway.stream(&viewer.caller)?;
    // One at a time: what a slow reader does not take is not made.
    let (write, events) = mpsc::channel(1);
    let writing = follow(Arc::clone(page), viewer, address, write, place);
    let task = tokio::spawn(writing);
    Ok(EventBody::new(events, task.abort_handle()))
}

async fn follow(
    page: Arc<AdminPageInner>,
    mut viewer: PageViewer,
    address: String,
    write: mpsc::Sender<Bytes>,
    _place: GatewayPermit,
) {
    let mut shown: HashMap<&'static str, String> = HashMap::new();
    let mut often = interval(LIVE_EVERY);
    often.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let hello = format!("retry: {RETRY_MS}\n\n");
    if write.send(hello.into()).await.is_err() {
        return;
    }
    // The first tick is now, when the page is new.
    often.tick().await;
    loop {
        often.tick().await;
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
    page.look(viewer);
    let gathered = gather(&page.gateway, &viewer.caller, &page.history).await;
    let view = view(&gathered, &page.history, address);
    let mut sections = Map::new();
    for section in &view.sections {
        let html = page.templates.section(section);
        if shown.get(section.id) != Some(&html) {
            sections.insert(section.id.to_owned(), Value::String(html.clone()));
            shown.insert(section.id, html);
        }
    }
    let told = json!({
        "ids": view.sections.iter().map(|section| section.id).collect::<Vec<_>>(),
        "sections": sections,
        "state": view.state,
        "well": view.well,
        "at": view.at,
    });
    // JSON has no line ends of its own.
    format!("event: update\ndata: {told}\n\n").into()
}

/// Takes numbers down for the plots, as long as a viewer has looked lately and `viewer` still may.
pub(crate) async fn sample(page: std::sync::Weak<AdminPageInner>, mut viewer: PageViewer) {
    let mut often = interval(SAMPLE_EVERY);
    often.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        often.tick().await;
        let Some(page) = page.upgrade() else {
            return;
        };
        if !page.history.wanted(Instant::now()) {
            return;
        }
        if !viewer.is_let_in(&page) {
            // The next viewer starts a task of its own.
            return page.history.stop();
        }
        let asked = ask(&page.gateway, &viewer.caller, "node/metrics", Value::Null).await;
        match asked {
            PageCallResult::Answer(answer) => page
                .history
                .add(Instant::now(), MetricsSample::from_metrics(&answer)),
            // By this connection nothing can be asked any more, or never could.
            PageCallResult::Absent | PageCallResult::Failed(_) => return page.history.stop(),
        }
    }
}
