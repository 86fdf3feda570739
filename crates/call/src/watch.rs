//! `services/watch`: tells callers when the operations they may call change.
//!
//! What is announced is kept whole, and each watcher compares what it saw last with what is there
//! now: a slow one misses steps and never a change.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use alknet_core::{Identity, PeerId};
use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::access::{AccessControl, Verdict};
use crate::body::Output;
use crate::context::Ctx;
use crate::error::CallError;
use crate::handler::HandlerKind;
use crate::registry::{Registration, Registry};
use crate::spec::{OperationSpec, Visibility};

/// Scope that lets a caller hear of other peers' operations.
const PEERS_SCOPE: &str = "peer:list";

/// One event of `services/watch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The hash of every operation of the source, as `services/list` gives it.
    pub registry: String,
    /// Names of operations the caller may call now and could not before.
    #[serde(default)]
    pub added: Vec<String>,
    /// Names of operations the caller can call no longer.
    #[serde(default)]
    pub removed: Vec<String>,
    /// Whose they are; absent for the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<PeerId>,
}

/// Where a node says what operations there are. Cheap to clone; every clone is the same.
#[derive(Clone, Debug)]
pub struct Announcer(Arc<watch::Sender<Arc<Snapshot>>>);

impl Announcer {
    pub(crate) fn new(registry: &Registry) -> Self {
        let promoted = registry.generation();
        let specs = registry.specs().chain(promoted.specs());
        let own = Source::new(promoted.digest(), external(specs));
        let snapshot = Snapshot {
            own: Arc::new(own),
            peers: BTreeMap::new(),
        };
        Self(Arc::new(watch::Sender::new(Arc::new(snapshot))))
    }

    /// The node's own operations are these now, with this hash. Internal ones are left out.
    pub fn own<'a>(&self, registry: &str, specs: impl IntoIterator<Item = &'a OperationSpec>) {
        let own = Arc::new(Source::new(registry, external(specs)));
        self.change(|snapshot| snapshot.own = own);
    }

    /// The operations imported from `peer` are these now, with the hash the peer gives.
    pub fn peer<'a>(
        &self,
        peer: &PeerId,
        registry: &str,
        specs: impl IntoIterator<Item = &'a OperationSpec>,
    ) {
        let source = Arc::new(Source::new(registry, specs));
        self.change(|snapshot| {
            snapshot.peers.insert(peer.clone(), source);
        });
    }

    /// Nothing of `peer` can be called any longer.
    pub fn peer_gone(&self, peer: &PeerId) {
        self.change(|snapshot| {
            snapshot.peers.remove(peer);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        self.0.send_if_modified(|current| {
            let mut next = Snapshot::clone(current);
            change(&mut next);
            let changed = next != **current;
            *current = Arc::new(next);
            changed
        });
    }
}

fn external<'a>(
    specs: impl IntoIterator<Item = &'a OperationSpec>,
) -> impl Iterator<Item = &'a OperationSpec> {
    let specs = specs.into_iter();
    specs.filter(|spec| spec.visibility == Visibility::External)
}

/// Every operation there is, by whose it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Snapshot {
    own: Arc<Source>,
    peers: BTreeMap<PeerId, Arc<Source>>,
}

/// The operations of this node or of one peer, and who may hear of each.
#[derive(Debug, Default, PartialEq, Eq)]
struct Source {
    registry: String,
    operations: BTreeMap<String, AccessControl>,
}

impl Source {
    fn new<'a>(registry: &str, specs: impl IntoIterator<Item = &'a OperationSpec>) -> Self {
        let entry = |spec: &OperationSpec| (spec.name.clone(), spec.access_control.clone());
        Self {
            registry: registry.to_owned(),
            operations: specs.into_iter().map(entry).collect(),
        }
    }

    fn shows(&self, name: &str, who: Option<&Identity>) -> bool {
        let access = self.operations.get(name);
        access.is_some_and(|access| access.check_scopes(who) == Verdict::Allowed)
    }

    /// What `who` can call here and not in `other`.
    fn beyond(&self, other: &Self, who: Option<&Identity>) -> Vec<String> {
        let names = self.operations.keys();
        names
            .filter(|name| self.shows(name, who) && !other.shows(name, who))
            .cloned()
            .collect()
    }

    fn change_to(
        &self,
        now: &Self,
        who: Option<&Identity>,
        peer: Option<&PeerId>,
    ) -> Option<Change> {
        (self != now).then(|| Change {
            registry: now.registry.clone(),
            added: now.beyond(self, who),
            removed: self.beyond(now, who),
            peer: peer.cloned(),
        })
    }
}

impl Snapshot {
    /// What `who` is told when this became `now`.
    fn changes_to(&self, now: &Self, who: Option<&Identity>) -> VecDeque<Change> {
        let mut changes = VecDeque::new();
        changes.extend(self.own.change_to(&now.own, who, None));
        if who.is_some_and(|who| who.scopes.allows(PEERS_SCOPE)) {
            changes.extend(self.peer_changes(now, who));
        }
        changes
    }

    fn peer_changes(&self, now: &Self, who: Option<&Identity>) -> Vec<Change> {
        let nothing = Source::default();
        let gone = self.peers.keys().filter(|id| !now.peers.contains_key(*id));
        let peers = now.peers.keys().chain(gone);
        peers
            .filter_map(|peer| {
                let before = self.peers.get(peer).map_or(&nothing, AsRef::as_ref);
                let after = now.peers.get(peer).map_or(&nothing, AsRef::as_ref);
                before.change_to(after, who, Some(peer))
            })
            .collect()
    }
}

/// The operation.
pub(crate) fn registration() -> Registration {
    let spec = OperationSpec::subscription(
        "services/watch",
        "Tells the hash of the operations, and every change of those the caller may call.",
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
            "peer": { "type": "string" },
        },
        "required": ["registry", "added", "removed"],
    })
}

fn run(ctx: &Ctx) -> impl Stream<Item = Result<Output, CallError>> + Send + use<> {
    let changes = ctx.dispatcher().announcer().0.subscribe();
    let seen = Arc::clone(&changes.borrow());
    let first = Change {
        registry: seen.own.registry.clone(),
        ..Change::default()
    };
    let watcher = Watcher {
        changes,
        seen,
        ready: VecDeque::from([first]),
        who: Box::new({
            let ctx = ctx.clone();
            move || ctx.identity_now()
        }),
    };
    stream::unfold(watcher, |mut watcher| async move {
        let change = watcher.next().await?;
        Some((Output::json(&change), watcher))
    })
}

struct Watcher {
    changes: watch::Receiver<Arc<Snapshot>>,
    seen: Arc<Snapshot>,
    ready: VecDeque<Change>,
    /// Asked at each change: scopes come and go.
    who: Box<dyn Fn() -> Option<Arc<Identity>> + Send>,
}

impl Watcher {
    async fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(change);
            }
            self.changes.changed().await.ok()?;
            let now = Arc::clone(&self.changes.borrow_and_update());
            self.ready = self.seen.changes_to(&now, (self.who)().as_deref());
            self.seen = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use alknet_core::IdentityKind;

    use super::*;

    fn who(scopes: &[&str]) -> Identity {
        Identity {
            id: "watcher".parse().expect("a peer id"),
            kind: IdentityKind::Peer,
            scopes: scopes.iter().collect(),
            resources: BTreeMap::default(),
            generation: 0,
        }
    }

    fn snapshot(announcer: &Announcer) -> Arc<Snapshot> {
        Arc::clone(&announcer.0.borrow())
    }

    fn query(name: &str) -> OperationSpec {
        OperationSpec::query(name, "")
    }

    #[test]
    fn everybody_hears_of_what_they_may_call() {
        let announcer = Announcer::new(&Registry::empty());
        let before = snapshot(&announcer);
        let open = query("a/open");
        let closed = query("a/closed").with_scope("admin");
        let internal = query("a/internal").internal();
        announcer.own("h1", [&open, &closed, &internal]);
        let now = snapshot(&announcer);
        let told = |who: Option<&Identity>| before.changes_to(&now, who)[0].clone();
        assert_eq!(told(None).added, ["a/open"]);
        assert_eq!(told(Some(&who(&["admin"]))).added, ["a/closed", "a/open"]);
        let back = &now.changes_to(&before, Some(&who(&["admin"])))[0];
        assert_eq!(back.removed, ["a/closed", "a/open"]);
        assert!(back.added.is_empty() && back.registry.is_empty());
    }

    #[test]
    fn a_changed_rule_adds_or_removes_and_a_changed_schema_is_a_new_hash() {
        let announcer = Announcer::new(&Registry::empty());
        announcer.own("h1", [&query("a/x")]);
        let before = snapshot(&announcer);
        announcer.own("h2", [&query("a/x").with_scope("admin")]);
        let closed = snapshot(&announcer);
        assert_eq!(before.changes_to(&closed, None)[0].removed, ["a/x"]);
        announcer.own("h3", [&query("a/x").with_scope("admin")]);
        let told = closed.changes_to(&snapshot(&announcer), None);
        let expected = Change {
            registry: "h3".to_owned(),
            ..Change::default()
        };
        assert_eq!(told, [expected]);
    }

    #[test]
    fn peers_operations_are_for_those_who_may_list_them() {
        let announcer = Announcer::new(&Registry::empty());
        let before = snapshot(&announcer);
        let peer: PeerId = "worker".parse().expect("a peer id");
        announcer.peer(&peer, "p1", [&query("gpu/run").internal()]);
        let now = snapshot(&announcer);
        assert!(before.changes_to(&now, None).is_empty());
        assert!(before.changes_to(&now, Some(&who(&["admin"]))).is_empty());
        let told = before.changes_to(&now, Some(&who(&[PEERS_SCOPE])));
        assert_eq!(told[0].added, ["gpu/run"]);
        assert_eq!(told[0].peer, Some(peer.clone()));
        announcer.peer_gone(&peer);
        let told = now.changes_to(&snapshot(&announcer), Some(&who(&[PEERS_SCOPE])));
        assert_eq!(told[0].removed, ["gpu/run"]);
    }

    #[tokio::test]
    async fn a_slow_watcher_sees_the_sum() {
        let announcer = Announcer::new(&Registry::empty());
        let changes = announcer.0.subscribe();
        let mut watcher = Watcher {
            seen: snapshot(&announcer),
            changes,
            ready: VecDeque::new(),
            who: Box::new(|| None),
        };
        announcer.own("h1", [&query("a/x")]);
        announcer.own("h2", [&query("a/x"), &query("a/y")]);
        announcer.own("h3", [&query("a/y")]);
        let change = watcher.next().await.expect("a change");
        assert_eq!(
            (change.registry.as_str(), change.added),
            ("h3", vec!["a/y".to_owned()])
        );
        // The same again is no change.
        announcer.own("h3", [&query("a/y")]);
        announcer.own("h4", []);
        assert_eq!(watcher.next().await.expect("a change").registry, "h4");
    }
}
