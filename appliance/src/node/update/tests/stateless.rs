//! A machine that keeps no data: its PID 1 has no log of updates, and no list of the versions that were left.

use alknet_init::control::UpdateOutcome;

use super::attacks::upload;
use super::downloads::{FILE, ask_instead, breaking_server, follower_of};
use super::operations::{ADMIN, UpdateCaller};
use super::refused_starts::{act, mark_staged, sent};
use super::*;

const CLIENT: (&str, &[&str]) = ("eve", &[STAGE_SCOPE, READ_SCOPE]);
const HUB: (&str, &[&str]) = ("hub", &[OFFER_SCOPE, READ_SCOPE]);

/// A stateless machine that follows a channel, with the server of the channel.
async fn stateless() -> (NodeUpdateBench, PeerAddr) {
    let server = breaking_server(FILE, 1000, true).await;
    let bench = follower_of(&server);
    bench.set(|facts| facts.data.mode = "volatile".to_owned());
    (bench, server)
}

/// Restarts the node, which then asks its channel again.
fn restart(bench: &mut NodeUpdateBench, server: &PeerAddr) {
    bench.restart();
    ask_instead(bench, server);
}

/// Restarts the machine, whose state is in memory.
fn restart_machine(bench: &mut NodeUpdateBench, server: &PeerAddr) {
    // The folder is there only if the node has noted something.
    std::fs::remove_dir_all(bench.dir.path().join("state")).ok();
    // PID 1 does not know any more which programs it has verified, and for which callers.
    bench.seen.lock().expect("no panic").slot = None;
    bench.set(|facts| {
        facts.update.other_sha256 = None;
        facts.update.staged_version = None;
        facts.update.stager = None;
    });
    restart(bench, server);
}

/// What the machine does next, after it has looked at its channel.
async fn next_after_look(bench: &NodeUpdateBench) -> Value {
    act(bench, 2).await;
    bench.updates.auto_shown()["next"].clone()
}

/// A client sends the version once more, which makes it not its own.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_node_the_machine_starts_what_it_has_staged() {
    for has_client in [false, true] {
        let (mut bench, server) = stateless().await;
        act(&bench, 2).await;
        mark_staged(&bench, "1.1.0");
        restart(&mut bench, &server);
        if has_client {
            let node = UpdateCaller::new(&bench.updates);
            upload(&node, CLIENT, b"the same").await.expect("staged");
            restart(&mut bench, &server);
        }
        let before = sent(&bench).len();
        act(&bench, 2).await;
        assert_eq!(sent(&bench)[before..], ["look", "start"], "{has_client}");
    }
}

/// An administrator's version waits for the administrator, also after a restart of the node. After one of the machine PID 1
/// starts it for no caller, and the machine goes on with its channel.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_of_an_administrator_waits_as_long_as_pid_1_would_start_it() {
    let (mut bench, server) = stateless().await;
    bench.judge(Verdict::PlansVersion("1.0.5"));
    let node = UpdateCaller::new(&bench.updates);
    upload(&node, ADMIN, b"chosen").await.expect("staged");
    mark_staged(&bench, "1.0.5");
    bench.judge(Verdict::Plans);
    restart(&mut bench, &server);
    let next = next_after_look(&bench).await;
    assert_eq!(next, "waits-for-administrator");
    assert_eq!(sent(&bench), ["stage", "look"]);
    restart_machine(&mut bench, &server);
    act(&bench, 2).await;
    assert_eq!(sent(&bench)[2..4], ["look", "stage"]);
    assert_eq!(bench.requests().last().map(|it| it.1.as_str()), Some(BY));
}

/// The node cannot write its notes, and restarts. PID 1 has staged the program since the start of the machine, and would
/// start it.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_of_an_administrator_waits_also_if_its_note_was_not_written() {
    let (mut bench, server) = stateless().await;
    // A folder has the name of the file.
    let in_the_way = bench.dir.path().join("state/update-notes.json");
    std::fs::create_dir_all(&in_the_way).expect("writable");
    bench.judge(Verdict::PlansVersion("1.0.5"));
    let node = UpdateCaller::new(&bench.updates);
    upload(&node, ADMIN, b"chosen").await.expect("staged");
    mark_staged(&bench, "1.0.5");
    bench.judge(Verdict::Plans);
    restart(&mut bench, &server);
    let stager = bench.facts.load().update.stager.clone();
    let by = stager.map(|stager| stager.by);
    assert_eq!(by.as_deref(), Some(ADMIN.0), "PID 1 alone knows it");
    let next = next_after_look(&bench).await;
    assert_eq!(next, "waits-for-administrator");
    assert_eq!(sent(&bench), ["stage", "look"]);
}

/// PID 1 says that the trial of 1.1.0 has failed.
fn mark_failed(bench: &NodeUpdateBench) {
    bench.set(|facts| {
        facts.update.state = "failed".to_owned();
        facts.update.other_version = Some("1.1.0".to_owned());
        facts.update.last = Some(UpdateOutcome {
            version: "1.1.0".to_owned(),
            outcome: "failed".to_owned(),
            ..UpdateOutcome::default()
        });
    });
}

/// The same before the first decision of the node, which comes a minute after its start.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stages_before_the_first_decision_has_no_failure_forgotten() {
    let (bench, _server) = stateless().await;
    mark_failed(&bench);
    let node = UpdateCaller::new(&bench.updates);
    bench.judge(Verdict::PlansVersion("1.0.5"));
    upload(&node, CLIENT, b"older").await.expect("staged");
    mark_staged(&bench, "1.0.5");
    bench.set(|facts| facts.update.last = None);
    bench.judge(Verdict::Plans);
    let next = next_after_look(&bench).await;
    assert_eq!(next, "left-before");
    assert_eq!(sent(&bench), ["stage", "look"]);
    // The bundle of a hub, and one that the node downloads, have sessions of their own.
    let (bench, _server) = stateless().await;
    mark_failed(&bench);
    let node = UpdateCaller::new(&bench.updates);
    let offer = json!({ "version": "1.0.5", "bytes": 3 });
    let wanted = node.call(HUB, "update/offer", offer).await;
    assert_eq!(wanted.expect("an answer")["wanted"], true);
    assert_eq!(bench.updates.0.notes.current().left, ["1.1.0"]);
    let (bench, _server) = stateless().await;
    mark_failed(&bench);
    let node = UpdateCaller::new(&bench.updates);
    let begun = node.call(CLIENT, "update/stage", Value::Null).await;
    begun.expect("it begins");
    assert_eq!(bench.updates.0.notes.current().left, ["1.1.0"]);
}

/// A client that may only stage has the machine forget a version whose trial failed, which would then be tried without end.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_failed_is_not_tried_again_after_a_client_has_staged_another_one() {
    let (mut bench, server) = stateless().await;
    mark_failed(&bench);
    let next = next_after_look(&bench).await;
    assert_eq!(next, "failed-before");
    let node = UpdateCaller::new(&bench.updates);
    bench.judge(Verdict::PlansVersion("1.0.5"));
    upload(&node, CLIENT, b"older").await.expect("staged");
    // PID 1 knows of the failure by the slot alone.
    mark_staged(&bench, "1.0.5");
    bench.set(|facts| facts.update.last = None);
    bench.judge(Verdict::Plans);
    let before = sent(&bench).len();
    act(&bench, 3).await;
    assert_eq!(sent(&bench).len(), before);
    restart(&mut bench, &server);
    let next = next_after_look(&bench).await;
    assert_eq!(next, "left-before");
    assert_eq!(sent(&bench)[before..], ["look"]);
    // A later one is installed.
    restart(&mut bench, &server);
    bench.judge(Verdict::PlansVersion("1.2.0"));
    act(&bench, 2).await;
    assert_eq!(sent(&bench)[before..], ["look", "look", "stage", "start"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_an_administrator_has_taken_back_stays_away() {
    let (mut bench, server) = stateless().await;
    act(&bench, 2).await;
    mark_staged(&bench, "1.1.0");
    let node = UpdateCaller::new(&bench.updates);
    let back = node.call(ADMIN, "update/rollback", Value::Null).await;
    back.expect("taken back");
    bench.set(|facts| {
        facts.update.state = "idle".to_owned();
        facts.update.other_version = None;
    });
    act(&bench, 3).await;
    restart(&mut bench, &server);
    let next = next_after_look(&bench).await;
    assert_eq!(next, "left-before");
    assert_eq!(sent(&bench), ["look", "stage", "look"]);
    // A hub does not bring it either, and callers see why.
    let node = UpdateCaller::new(&bench.updates);
    let offer = |version: &str| json!({ "version": version, "bytes": 3 });
    let refused = node.call(HUB, "update/offer", offer("1.1.0")).await;
    assert_eq!(refused.expect("an answer")["wanted"], false);
    bench.set(|facts| facts.update.left = vec!["1.0.9".to_owned()]);
    let status = node.call(HUB, "update/status", Value::Null).await;
    let status = status.expect("a status");
    assert_eq!(status["left"], json!(["1.0.9", "1.1.0"]));
    let wanted = node.call(HUB, "update/offer", offer("1.2.0")).await;
    assert_eq!(wanted.expect("an answer")["wanted"], true);
}

/// The data of a machine could not be mounted once, so the node wrote notes. Later PID 1 has the list, from which it takes
/// a version that an administrator has confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_data_does_not_go_by_notes_of_left_versions() {
    let (bench, _server) = stateless().await;
    mark_failed(&bench);
    act(&bench, 1).await;
    assert_eq!(bench.updates.0.notes.current().left, ["1.1.0"]);
    bench.set(|facts| {
        facts.data.mode = "rw".to_owned();
        facts.update.state = "idle".to_owned();
        facts.update.other_version = None;
        facts.update.last = None;
    });
    let node = UpdateCaller::new(&bench.updates);
    let status = node.call(HUB, "update/status", Value::Null).await;
    assert_eq!(status.expect("a status")["left"], json!([]));
    act(&bench, 1).await;
    assert_eq!(sent(&bench), ["look", "stage"]);
    let offer = json!({ "version": "1.1.0", "bytes": 3 });
    let wanted = node.call(HUB, "update/offer", offer).await;
    assert_eq!(wanted.expect("an answer")["wanted"], true);
}

/// A machine with data has the list of PID 1, and writes no notes beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_data_writes_no_notes() {
    let bench = follower_of(&breaking_server(FILE, 1000, true).await);
    mark_failed(&bench);
    act(&bench, 1).await;
    let node = UpdateCaller::new(&bench.updates);
    upload(&node, CLIENT, b"older").await.expect("staged");
    mark_staged(&bench, "1.1.0");
    let back = node.call(ADMIN, "update/rollback", Value::Null).await;
    back.expect("taken back");
    let notes = bench.updates.0.notes.current();
    assert_eq!(notes, update_notes::UpdateNotes::default());
}
