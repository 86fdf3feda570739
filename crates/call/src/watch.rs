//! `services/watch`: notifies callers when the operations that they may call change.
//!
//! A watcher stores the number of the last change that it received and nothing else: a slow one misses steps and
//! never a change, and holds nothing in the node's memory meanwhile. A watcher that is behind takes the missed
//! changes in turns, between which other tasks run, and locks the history only while it takes them.

mod history;
mod rights;

use std::sync::{Arc, Mutex};

use alknet_core::{BoxFuture, PeerId};
use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::yield_now;

use self::history::{HistoryTurn, ListsDue, RegistryHistory};
use self::rights::WatcherRights;
use crate::access::AccessControl;
use crate::body::CallOutput;
use crate::context::Ctx;
use crate::error::CallError;
use crate::handler::HandlerKind;
use crate::registry::{Registration, Registry};
use crate::spec::{OperationSpec, Visibility};
use crate::sync::lock;

/// The scope with which a caller gets changes of other peers' operations.
const PEERS_SCOPE: &str = "peer:list";

/// One event of `services/watch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryChange {
    /// The hash of every operation of the source, as `services/list` gives it.
    pub registry: String,
    /// Names of operations that the caller may call now and could not before.
    #[serde(default)]
    pub added: Vec<String>,
    /// Names of operations that the caller can call no longer.
    #[serde(default)]
    pub removed: Vec<String>,
    /// `added` is every operation of this source that the caller may call now, whatever it received before: the scopes
    /// of the caller changed, or so much changed since then that this node does not remember the changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
    /// The peer that serves them; absent for the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<PeerId>,
}

/// Announces the operations of a node. Cheap to clone; every clone is the same.
#[derive(Clone, Debug)]
pub struct Announcer(Arc<Announced>);

#[derive(Debug)]
struct Announced {
    history: Mutex<RegistryHistory>,
    /// Wakes watchers; the history has the changes.
    changed: watch::Sender<()>,
}

impl Announcer {
    pub(crate) fn new(registry: &Registry) -> Self {
        let announcer = Self(Arc::new(Announced {
            history: Mutex::default(),
            changed: watch::Sender::default(),
        }));
        let now = registry.now();
        let specs = now.after("").map(|operation| &operation.spec);
        announcer.own(&now.digest(), specs);
        announcer
    }

    /// Sets the node's own operations, with this hash. Internal ones are left out.
    pub fn own<'a>(&self, registry: &str, specs: impl IntoIterator<Item = &'a OperationSpec>) {
        let specs = specs.into_iter();
        let external = specs.filter(|spec| spec.visibility == Visibility::External);
        self.set(None, registry, external);
    }

    /// Sets the operations imported from `peer`, with the hash that the peer gives.
    pub fn peer<'a>(
        &self,
        peer: &PeerId,
        registry: &str,
        specs: impl IntoIterator<Item = &'a OperationSpec>,
    ) {
        self.set(Some(peer), registry, specs);
    }

    /// Removes all operations of `peer`.
    pub fn peer_gone(&self, peer: &PeerId) {
        self.set(Some(peer), "", []);
    }

    fn set<'a>(
        &self,
        owner: Option<&PeerId>,
        registry: &str,
        specs: impl IntoIterator<Item = &'a OperationSpec>,
    ) {
        if lock(&self.0.history).set(owner, registry, specs) {
            self.0.changed.send_replace(());
        }
    }
}

/// The operation.
pub(crate) fn registration() -> Registration {
    let spec = OperationSpec::subscription(
        "services/watch",
        "Sends the hash of the operations that the caller may call, and again after each change.",
    )
    .with_input(json!({ "type": ["object", "null"] }))
    .with_output(change_schema());
    Registration::new(spec, HandlerKind::stream(|_, ctx| run(&ctx)))
}

fn change_schema() -> Value {
    let names = json!({ "type": "array", "items": { "type": "string" } });
    json!({
        "type": "object",
        "properties": {
            "registry": { "type": "string" },
            "added": names,
            "removed": names,
            "whole": { "type": "boolean" },
            "peer": { "type": "string" },
        },
        "required": ["registry", "added", "removed"],
    })
}

fn run(ctx: &Ctx) -> impl Stream<Item = Result<CallOutput, CallError>> + Send + use<> {
    let ctx = ctx.clone();
    let announcer = ctx.dispatcher().announcer().clone();
    let tables = ctx.dispatcher().identity_changes();
    let rights = tables.map(|tables| {
        let ctx = ctx.clone();
        WatcherRights::new(tables, move || ctx.identity_now())
    });
    let drain = ctx.draining();
    let mut watcher = RegistryWatcher::new(announcer, move || {
        // Looked up at each change: scopes come and go.
        let (ctx, identity) = (ctx.clone(), ctx.identity_now());
        Box::new(move |rule| ctx.shows(rule, identity.as_deref()))
    });
    watcher.rights = rights;
    watcher.drain = Some(Box::pin(drain));
    stream::unfold(watcher, |mut watcher| async move {
        let change = watcher.next().await?;
        let output = change.and_then(|change| CallOutput::json(&change));
        Some((output, watcher))
    })
}

/// Whether the watcher sees operations with a rule.
type View = Box<dyn Fn(&AccessControl) -> bool + Send>;

struct RegistryWatcher {
    announcer: Announcer,
    changes: watch::Receiver<()>,
    /// The number of the last change that it received.
    seen: u64,
    first: Option<RegistryChange>,
    view: Box<dyn Fn() -> View + Send>,
    /// `None` where identities never change.
    rights: Option<WatcherRights>,
    due: ListsDue,
    /// Resolves with the error that ends the subscription once the node drains. `None` once it has.
    drain: Option<BoxFuture<'static, CallError>>,
}

impl RegistryWatcher {
    fn new(announcer: Announcer, view: impl Fn() -> View + Send + 'static) -> Self {
        // Before the history is read: a change in between wakes the watcher.
        let changes = announcer.0.changed.subscribe();
        let (seen, registry) = {
            let history = lock(&announcer.0.history);
            (history.last(), history.registry().to_owned())
        };
        Self {
            announcer,
            changes,
            seen,
            first: Some(RegistryChange {
                registry,
                ..RegistryChange::default()
            }),
            view: Box::new(view),
            rights: None,
            due: ListsDue::None,
            drain: None,
        }
    }

    async fn next(&mut self) -> Option<Result<RegistryChange, CallError>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        loop {
            // A watcher that is behind has many turns, and other tasks have theirs in between.
            yield_now().await;
            // Before the turn: the next one sees a change in between.
            self.changes.mark_unchanged();
            match self.take_turn() {
                WatchTurn::Change(change) => return Some(change),
                WatchTurn::Silent => {}
                WatchTurn::UpToDate => tokio::select! {
                    error = drained(self.drain.as_mut()) => {
                        self.drain = None;
                        return Some(Err(error));
                    }
                    changed = self.changes.changed() => changed.ok()?,
                    () = WatcherRights::changed(self.rights.as_mut()) => {}
                },
            }
        }
    }

    /// One turn.
    fn take_turn(&mut self) -> WatchTurn {
        if self.rights.as_mut().is_some_and(WatcherRights::take_change) {
            self.due = ListsDue::All;
        }
        let view = (self.view)();
        // The same right as for `services/list-peers`: a watcher learns no more than a list shows.
        let lists = view(&AccessControl {
            required_scopes: vec![PEERS_SCOPE.to_owned()],
            ..AccessControl::default()
        });
        // Other watchers and all changes wait for the lock: this takes the missed changes under it, and goes through
        // them below.
        let (turn, whole) = {
            let history = lock(&self.announcer.0.history);
            let turn = history.next(&mut self.seen, lists);
            // Missed changes come first: after a whole list of that moment they would count twice.
            let whole =
                matches!(turn, HistoryTurn::UpToDate).then(|| history.next_whole(&self.due, lists));
            (turn, whole.flatten())
        };
        match turn {
            HistoryTurn::Forgotten => {
                let message = "more has changed than the node keeps for a watcher; subscribe again";
                WatchTurn::Change(Err(CallError::unavailable(message)))
            }
            HistoryTurn::Missed(missed) => match missed.change(&*view) {
                Some(change) => WatchTurn::Change(Ok(change)),
                None => WatchTurn::Silent,
            },
            HistoryTurn::UpToDate => match whole {
                Some((owner, whole)) => {
                    self.due = ListsDue::After(owner);
                    let change = whole.change(&*view);
                    change.map_or(WatchTurn::Silent, |change| WatchTurn::Change(Ok(change)))
                }
                None => {
                    self.due = ListsDue::None;
                    WatchTurn::UpToDate
                }
            },
        }
    }
}

/// Resolves once the node drains; never without `drain`.
async fn drained(drain: Option<&mut BoxFuture<'static, CallError>>) -> CallError {
    match drain {
        Some(drain) => drain.await,
        None => std::future::pending().await,
    }
}

/// The outcome of a watcher's turn.
enum WatchTurn {
    /// An event, or the error that ends the subscription.
    Change(Result<RegistryChange, CallError>),
    /// The changes do not concern this watcher; there may be more.
    Silent,
    /// There are no more changes.
    UpToDate,
}

#[cfg(test)]
mod tests;
