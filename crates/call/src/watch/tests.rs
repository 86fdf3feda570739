use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::pin;

use alknet_core::{Identity, IdentityKind};

use super::history::TURN_OPERATIONS_MAX;
use super::*;
use crate::access::AccessDecision;
use crate::limits::{PEERS_MAX, SCOPE_BYTES_MAX, SCOPES_MAX, WATCH_HISTORY_BYTES, WATCH_STEPS_MAX};

fn identity(scopes: &[&str]) -> Identity {
    Identity {
        id: "watcher".parse().expect("a peer id"),
        kind: IdentityKind::Peer,
        scopes: scopes.iter().collect(),
        resources: Default::default(),
        generation: 0,
    }
}

fn announcer() -> Announcer {
    Announcer::new(&Registry::empty())
}

/// A watcher for an identity with these scopes, or for an unknown peer, after its first event.
fn watcher(announcer: &Announcer, scopes: Option<&[&str]>) -> RegistryWatcher {
    let identity = scopes.map(identity);
    let mut watcher = RegistryWatcher::new(announcer.clone(), move || {
        let identity = identity.clone();
        Box::new(move |rule| rule.check_scopes(identity.as_ref()) == AccessDecision::Allowed)
    });
    watcher.first = None;
    watcher
}

fn unread_changes(watcher: &mut RegistryWatcher) -> Vec<RegistryChange> {
    let mut changes_received = Vec::new();
    loop {
        match watcher.take_turn() {
            WatchTurn::Change(change) => {
                changes_received.push(change.expect("it is not too far behind"))
            }
            WatchTurn::Silent => {}
            WatchTurn::UpToDate => return changes_received,
        }
    }
}

fn query(name: &str) -> OperationSpec {
    OperationSpec::query(name, "")
}

/// A query with as large a rule as there may be, which `n` makes different.
fn large(name: &str, n: usize) -> OperationSpec {
    let mut spec = query(name);
    let scope = |m: usize| format!("{n}-{m}-{:0>1$}", "", SCOPE_BYTES_MAX - 10);
    spec.access_control.required_scopes = (0..SCOPES_MAX).map(scope).collect();
    spec
}

fn worker() -> PeerId {
    "worker".parse().expect("a peer id")
}

#[test]
fn each_watcher_gets_the_operations_that_it_may_call() {
    let announcer = announcer();
    let (mut unknown, mut admin) = (
        watcher(&announcer, None),
        watcher(&announcer, Some(&["admin"])),
    );
    let open = query("a/open");
    let closed = query("a/closed").with_scope("admin");
    let internal = query("a/internal").internal();
    announcer.own("h1", [&open, &closed, &internal]);
    assert_eq!(unread_changes(&mut unknown)[0].added, ["a/open"]);
    assert_eq!(unread_changes(&mut admin)[0].added, ["a/closed", "a/open"]);
    announcer.own("", []);
    let back = &unread_changes(&mut admin)[0];
    assert_eq!(back.removed, ["a/closed", "a/open"]);
    assert!(back.added.is_empty() && back.registry.is_empty());
}

#[test]
fn a_changed_rule_adds_or_removes_and_a_changed_schema_is_a_new_hash() {
    let announcer = announcer();
    announcer.own("h1", [&query("a/x")]);
    let mut unknown = watcher(&announcer, None);
    announcer.own("h2", [&query("a/x").with_scope("admin")]);
    assert_eq!(unread_changes(&mut unknown)[0].removed, ["a/x"]);
    announcer.own("h3", [&query("a/x").with_scope("admin")]);
    let expected = RegistryChange {
        registry: "h3".to_owned(),
        ..RegistryChange::default()
    };
    assert_eq!(unread_changes(&mut unknown), [expected]);
}

#[test]
fn operations_of_peers_are_for_callers_that_may_list_them() {
    let announcer = announcer();
    let mut unknown = watcher(&announcer, None);
    let mut admin = watcher(&announcer, Some(&["admin"]));
    let mut lister = watcher(&announcer, Some(&[PEERS_SCOPE]));
    announcer.peer(&worker(), "p1", [&query("gpu/run").internal()]);
    assert!(unread_changes(&mut unknown).is_empty() && unread_changes(&mut admin).is_empty());
    let first = &unread_changes(&mut lister)[0];
    assert_eq!(first.added, ["gpu/run"]);
    assert_eq!(first.peer, Some(worker()));
    announcer.peer_gone(&worker());
    assert_eq!(unread_changes(&mut lister)[0].removed, ["gpu/run"]);
    announcer.peer_gone(&worker());
    assert!(unread_changes(&mut lister).is_empty(), "it is gone already");
}

#[tokio::test]
async fn a_slow_watcher_sees_the_sum() {
    let announcer = announcer();
    let mut watcher = watcher(&announcer, None);
    announcer.own("h1", [&query("a/x")]);
    announcer.peer(&worker(), "p1", [&query("gpu/run")]);
    announcer.own("h2", [&query("a/x"), &query("a/y")]);
    announcer.own("h3", [&query("a/y")]);
    let mut next = async || {
        let change = watcher.next().await.expect("a change");
        change.expect("it is not too far behind")
    };
    let change = next().await;
    assert_eq!(
        (change.registry.as_str(), change.added),
        ("h3", vec!["a/y".to_owned()])
    );
    // Setting the same operations again is not a change.
    announcer.own("h3", [&query("a/y")]);
    announcer.own("h4", []);
    assert_eq!(next().await.registry, "h4");
}

/// A watcher gets the changes of several sources in their order, each relative to the state before that change.
#[test]
fn changes_of_two_sources_are_reported_in_turn() {
    let announcer = announcer();
    let mut lister = watcher(&announcer, Some(&[PEERS_SCOPE]));
    announcer.own("h1", [&query("a/x")]);
    announcer.peer(&worker(), "p1", [&query("gpu/run")]);
    announcer.peer(&worker(), "p2", [&query("gpu/run"), &query("gpu/stop")]);
    announcer.own("h2", []);
    let changes_received = unread_changes(&mut lister);
    let names: Vec<_> = changes_received
        .iter()
        .map(|change| {
            (
                change.registry.as_str(),
                change.added.len(),
                change.removed.len(),
            )
        })
        .collect();
    assert_eq!(names, [("h1", 1, 0), ("p2", 2, 0), ("h2", 0, 1)]);
}

/// A peer changes the rules of its operations again and again while watchers take nothing.
#[test]
fn a_watcher_that_is_not_read_keeps_nothing_old() {
    const OPERATIONS: usize = 200;
    let announcer = announcer();
    announcer.own("h1", [&query("a/x")]);
    let (mut unread, mut rules) = (Vec::new(), Vec::new());
    for n in 0..10 {
        let specs: Vec<_> = (0..OPERATIONS)
            .map(|m| large(&format!("gpu/run{m}"), n))
            .collect();
        announcer.peer(&worker(), &format!("p{n}"), &specs);
        unread.push(watcher(&announcer, Some(&[PEERS_SCOPE, "*"])));
        let rule = lock(&announcer.0.history).rule(&worker(), "gpu/run0");
        rules.push(rule.expect("it was announced"));
    }
    let kept = lock(&announcer.0.history).kept_bytes();
    assert!(kept <= WATCH_HISTORY_BYTES, "{kept}");
    let is_kept: Vec<_> = rules.iter().map(|rule| rule.strong_count() > 0).collect();
    // Each takes some 0.7 MiB: the history has the newest, and as many before it as there is room for.
    assert!(is_kept[9] && !is_kept[0] && !is_kept[3], "{is_kept:?}");
    // The node cannot report the changes that a watcher missed; the watcher gets the present operations.
    announcer.peer(&worker(), "p10", [&query("gpu/new")]);
    let mut changes_received = unread_changes(&mut unread[0]);
    let whole = changes_received.remove(0);
    assert!(
        whole.whole && whole.peer == Some(worker()),
        "{:?}",
        whole.registry
    );
    let mut known: BTreeSet<_> = whole.added.into_iter().collect();
    for change in changes_received {
        change
            .removed
            .iter()
            .for_each(|name| assert!(known.remove(name)));
        known.extend(change.added);
        assert!(!change.whole);
    }
    assert_eq!(known.into_iter().collect::<Vec<_>>(), ["gpu/new"]);
}

/// One peer changes as much as all changes may have, and another changes as well.
#[test]
fn a_peer_that_changes_much_costs_others_no_change_of_theirs() {
    let announcer = announcer();
    let mut lister = watcher(&announcer, Some(&[PEERS_SCOPE]));
    announcer.own("h1", [&query("a/x")]);
    announcer.peer(&other(), "o1", [&query("b/y")]);
    for n in 0..20 {
        let specs: Vec<_> = (0..200).map(|m| large(&format!("c/{m}"), n)).collect();
        announcer.peer(&worker(), &format!("p{n}"), &specs);
    }
    let changes_received = unread_changes(&mut lister);
    let wholes = changes_received.iter().filter(|change| change.whole);
    assert!(wholes.clone().all(|change| change.peer == Some(worker())));
    assert_eq!(wholes.count(), 1);
    assert_eq!(changes_received[0].added, ["a/x"]);
    assert_eq!(changes_received[1].added, ["b/y"]);
}

fn other() -> PeerId {
    "other".parse().expect("a peer id")
}

/// Two peers change the rule of one operation each, in turn: no two changes of one of them are in a row.
fn change_in_turn(
    announcer: &Announcer,
    times: usize,
    rule: fn(OperationSpec, usize) -> OperationSpec,
) {
    for n in 0..times {
        announcer.peer(&worker(), "", [&rule(query("gpu/run"), n)]);
        announcer.peer(&other(), "", [&rule(query("a/b"), n)]);
    }
}

/// No watcher here satisfies the rule.
fn hidden(spec: OperationSpec, n: usize) -> OperationSpec {
    spec.with_scope(&format!("none:{n}"))
}

/// The turns that a watcher takes after the change with this number: the operations that it goes through in each.
fn turns_since(announcer: &Announcer, mut seen: u64) -> Vec<usize> {
    let mut turns = Vec::new();
    loop {
        match lock(&announcer.0.history).next(&mut seen, true) {
            HistoryTurn::Forgotten => panic!("no peer is forgotten"),
            HistoryTurn::Missed(missed) => turns.push(missed.operations()),
            HistoryTurn::UpToDate => return turns,
        }
    }
}

/// Two peers change rules again and again, and the watcher may see none of that.
#[test]
fn a_watcher_that_is_behind_looks_at_each_change_once() {
    let announcer = announcer();
    let seen = lock(&announcer.0.history).last();
    change_in_turn(&announcer, WATCH_STEPS_MAX, hidden);
    // A turn that included later changes as well would have more than the one operation of its change.
    let turns = turns_since(&announcer, seen);
    assert_eq!(turns, [1; 2 * WATCH_STEPS_MAX]);
}

/// One peer changes much at once, and no change of another comes in between.
#[test]
fn a_turn_of_a_watcher_has_few_operations() {
    const CHANGES: usize = 40;
    const OPERATIONS: usize = 200;
    let announcer = announcer();
    let seen = lock(&announcer.0.history).last();
    for n in 0..CHANGES {
        let spec = |m: usize| hidden(query(&format!("gpu/run{m}")), n);
        let specs: Vec<_> = (0..OPERATIONS).map(spec).collect();
        announcer.peer(&worker(), "", &specs);
    }
    let turns = turns_since(&announcer, seen);
    assert_eq!(turns.iter().sum::<usize>(), CHANGES * OPERATIONS);
    let most = turns.iter().max().expect("a turn");
    assert!(*most <= TURN_OPERATIONS_MAX, "{most}");
}

/// A future that does not return between two changes keeps its thread from all other tasks.
#[tokio::test]
async fn others_have_their_turn_while_a_watcher_catches_up() {
    let announcer = announcer();
    let mut lister = watcher(&announcer, Some(&[PEERS_SCOPE]));
    change_in_turn(&announcer, WATCH_STEPS_MAX, hidden);
    announcer.own("h1", [&query("a/x")]);
    let mut polled = 0;
    let mut next = pin!(lister.next());
    let next = poll_fn(|cx| {
        polled += 1;
        next.as_mut().poll(cx)
    });
    let change = next.await.expect("a change").expect("all is kept");
    assert_eq!(change.added, ["a/x"]);
    assert!(polled > 2 * WATCH_STEPS_MAX, "{polled}");
}

/// They take few bytes, so that a bound on bytes alone would keep thousands of them.
#[test]
fn of_many_short_changes_of_a_peer_few_are_kept() {
    let announcer = announcer();
    let mut lister = watcher(&announcer, Some(&[PEERS_SCOPE]));
    change_in_turn(&announcer, 10 * WATCH_STEPS_MAX, hidden);
    let kept = lock(&announcer.0.history).kept_steps();
    assert_eq!(kept, 2 * WATCH_STEPS_MAX);
    let changes_received = unread_changes(&mut lister);
    let wholes: Vec<_> = changes_received
        .iter()
        .map(|change| (change.whole, &change.peer))
        .collect();
    assert_eq!(wholes, [(true, &Some(worker())), (true, &Some(other()))]);
    assert!(
        changes_received
            .iter()
            .all(|change| change.added.is_empty())
    );
}

/// However far the watcher is behind, and whatever changes while it catches up.
#[test]
fn the_sum_of_a_watchers_changes_is_the_present_state() {
    const CHANGES: usize = 1_000;
    let rule = |n: usize, m: usize| match (n * (m + 1) + m) % 4 {
        0 => None,
        1 => Some(hidden(query(&format!("a/{m}")), 0)),
        _ => Some(query(&format!("a/{m}"))),
    };
    for pause in [1, 3, 10, 300] {
        let announcer = announcer();
        let mut lister = watcher(&announcer, Some(&[PEERS_SCOPE]));
        let (mut there, mut known) = (BTreeMap::new(), BTreeMap::new());
        for n in 0..CHANGES {
            let specs: Vec<_> = (0..6).filter_map(|m| rule(n, m)).collect();
            let owner = [None, Some(worker()), Some(other())][n / 2 % 3].clone();
            announcer.set(owner.as_ref(), &format!("h{n}"), &specs);
            let open = |spec: &&OperationSpec| spec.access_control.required_scopes.is_empty();
            let open = specs.iter().filter(open).map(|spec| spec.name.clone());
            there.insert(owner, open.collect::<BTreeSet<_>>());
            if n.is_multiple_of(pause)
                && let WatchTurn::Change(change) = lister.take_turn()
            {
                hear(&mut known, change.expect("it is not too far behind"));
            }
        }
        for change in unread_changes(&mut lister) {
            hear(&mut known, change);
        }
        assert_eq!(known, there, "{pause}");
    }
}

/// Applies an event to what a reader knows.
fn hear(known: &mut BTreeMap<Option<PeerId>, BTreeSet<String>>, change: RegistryChange) {
    let names = known.entry(change.peer).or_default();
    if change.whole {
        names.clear();
    }
    for name in change.removed {
        assert!(names.remove(&name), "{name} was not there");
    }
    for name in change.added {
        assert!(names.insert(name), "it was there");
    }
}

/// More peers come and go than may be attached.
#[test]
fn of_peers_that_are_gone_few_are_kept() {
    let announcer = announcer();
    let mut early = watcher(&announcer, Some(&[PEERS_SCOPE]));
    let mut unknown = watcher(&announcer, None);
    let mut late = None;
    for n in 0..3 * PEERS_MAX {
        let peer = format!("peer-{n}").parse().expect("a peer id");
        announcer.peer(&peer, "p", [&query("a/b")]);
        late = Some(watcher(&announcer, Some(&[PEERS_SCOPE])));
        announcer.peer_gone(&peer);
    }
    assert!(lock(&announcer.0.history).sources() <= 2 * PEERS_MAX + 1);
    let WatchTurn::Change(Err(refused)) = early.take_turn() else {
        panic!("a watcher that is too far behind is refused");
    };
    assert!(refused.retryable, "{refused:?}");
    assert!(unread_changes(&mut unknown).is_empty());
    assert_eq!(
        unread_changes(&mut late.expect("a watcher"))[0].removed,
        ["a/b"]
    );
}
