//! Events that keep an open page up to date.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use alknet_gateway::{ApiError, Running};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::answer::EventBody;
use crate::gather::{Asked, ask, gather};
use crate::history::Numbers;
use crate::limits::{LIVE_EVERY, SAMPLE_EVERY};
use crate::page::{Inner, Viewer};
use crate::view::view;

/// Milliseconds after which a browser that lost the connection comes again.
const RETRY_MS: u64 = 5000;

/// What changes, for as long as somebody looks and may. A place among the identity's streams is held
/// meanwhile.
pub(crate) fn events(
    page: &Arc<Inner>,
    viewer: Viewer,
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
    page: Arc<Inner>,
    mut viewer: Viewer,
    address: String,
    write: mpsc::Sender<Bytes>,
    _place: Running,
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
    page: &Arc<Inner>,
    viewer: &Viewer,
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

/// Takes numbers down for the plots, as long as somebody has looked lately and may.
pub(crate) async fn sample(page: std::sync::Weak<Inner>, mut viewer: Viewer) {
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
            // Another who looks begins anew.
            return page.history.stop();
        }
        let asked = ask(&page.gateway, &viewer.caller, "node/metrics", Value::Null).await;
        match asked {
            Asked::Answer(answer) => page.history.add(Instant::now(), Numbers::of(&answer)),
            // By this connection nothing can be asked any more, or never could.
            Asked::Absent | Asked::Failed(_) => return page.history.stop(),
        }
    }
}
