//! Versions that PID 1 stages without an answer to the node, which has to know all the same whose they are.

use alknet_call::CallOptions;

use super::attacks::upload;
use super::blocked_updates::note_found;
use super::downloads::{FILE, ask_instead, breaking_server, follower_with};
use super::operations::{ADMIN, UpdateCaller};
use super::refused_starts::{act, sent};
use super::scheduled_starts::{connected, wait_until};
use super::*;

const CLIENT: (&str, &[&str]) = ("eve", &[STAGE_SCOPE, READ_SCOPE]);

/// A machine that follows a channel and does not wait long for the answer to a bundle, with the server of the channel.
async fn hasty_follower(mode: &str) -> (NodeUpdateBench, PeerAddr) {
    let pace = StagingPace {
        answer: Duration::from_millis(20),
        abort: Duration::from_millis(20),
        ..StagingPace::default()
    };
    follower(mode, pace).await
}

/// A machine that follows a channel, with the server of the channel. The facts say what PID 1 has staged.
async fn follower(mode: &str, pace: StagingPace) -> (NodeUpdateBench, PeerAddr) {
    let server = breaking_server(FILE, 1000, true).await;
    let bench = follower_with(&server, "", pace);
    bench.set(|facts| facts.data.mode = mode.to_owned());
    bench.seen.lock().expect("no panic").shows_slot = true;
    (bench, server)
}

/// The caller whose version waits, by the facts.
fn stager(bench: &NodeUpdateBench) -> Option<String> {
    let facts = bench.facts.load();
    let stager = facts.update.stager.as_ref();
    stager.map(|stager| stager.by.clone())
}

/// PID 1 stages this version for a caller, and does not say so.
async fn stage_unanswered(bench: &NodeUpdateBench, who: (&str, &[&str]), version: &'static str) {
    bench.judge(Verdict::Silent(version));
    let node = UpdateCaller::new(&bench.updates);
    let error = upload(&node, who, b"slow").await;
    let error = error.expect_err("PID 1 says nothing");
    assert_eq!(error.details.expect("details")["code"], "unanswered");
    wait_until(|| stager(bench).as_deref() == Some(who.0)).await;
    bench.judge(Verdict::Plans);
}

/// Lets the machine decide. Then the version of this caller waits.
async fn assert_replaced_by(bench: &NodeUpdateBench, by: &str) {
    act(bench, 1).await;
    let requests = bench.requests().into_iter();
    let own = requests.filter(|(_, sender)| sender == BY).count();
    assert_eq!(own > 0, by == BY, "{by}");
    wait_until(|| stager(bench).as_deref() == Some(by)).await;
}

/// The machine has staged 1.1.0 by itself, and the channel has it still.
fn stage_own(bench: &NodeUpdateBench) {
    bench.seen.lock().expect("no panic").slot = Some(StagedSlot {
        version: "1.1.0".to_owned(),
        sha256: "a1".to_owned(),
        stager: UpdateStager {
            by: BY.to_owned(),
            limited: false,
        },
    });
    look_at_slots(&bench.seen, &bench.facts);
    note_found(bench, Some(plan()));
}

/// The attack: a client stages a version on a slow disk, and PID 1 does not say so. The node restarts, and the machine waits
/// for an administrator who has staged nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_a_client_staged_without_an_answer_is_replaced() {
    for (who, has_restart, expected) in [
        (CLIENT, false, BY),
        (CLIENT, true, BY),
        (ADMIN, true, ADMIN.0),
    ] {
        let (mut bench, server) = hasty_follower("volatile").await;
        stage_unanswered(&bench, who, "1.0.5").await;
        if has_restart {
            bench.restart();
            ask_instead(&bench, &server);
        }
        note_found(&bench, Some(plan()));
        assert_replaced_by(&bench, expected).await;
    }
}

/// The attack: after a bundle without an answer the client, or an administrator, sends others that come to nothing. They
/// say nothing of the version that waits: it is neither the administrator's nor the client's for that.
#[tokio::test(flavor = "multi_thread")]
async fn bundles_that_come_to_nothing_do_not_change_whose_version_waits() {
    for (who, other, expected) in [(CLIENT, ADMIN, BY), (ADMIN, CLIENT, ADMIN.0)] {
        for mode in ["volatile", "mounted"] {
            let (bench, _server) = hasty_follower(mode).await;
            stage_unanswered(&bench, who, "1.0.5").await;
            let node = UpdateCaller::new(&bench.updates);
            bench.judge(Verdict::Refuses(b"busy", "busy"));
            let refused = upload(&node, other, b"busy").await;
            refused.expect_err("PID 1 has other work");
            let begun = node
                .call(other, "update/stage", json!({ "bytes": 9 }))
                .await;
            let session = begun.expect("it begins")["session"].clone();
            let abort = json!({ "session": session, "abort": true });
            node.call(other, "update/write", abort)
                .await
                .expect("given up");
            wait_until(|| !bench.facts.load().update.outdated).await;
            bench.judge(Verdict::Plans);
            note_found(&bench, Some(plan()));
            assert_replaced_by(&bench, expected).await;
        }
    }
}

/// The attack: a client gives its bundle up when PID 1 has the program, and needs no more of the bundle. The slot has the
/// client's version, which the machine would start as its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_is_given_up_too_late_is_not_the_machines_own() {
    let (bench, _server) = follower("mounted", StagingPace::default()).await;
    stage_own(&bench);
    bench.judge(Verdict::StagesAfter(3, "1.0.5"));
    let node = UpdateCaller::new(&bench.updates);
    let begun = node.call(CLIENT, "update/stage", json!({ "bytes": 4 }));
    let session = begun.await.expect("it begins")["session"].clone();
    let id = session.as_str().expect("a name");
    let piece = (0, Bytes::from_static(b"abc"));
    let written = bench.updates.0.sessions.write((id, CLIENT.0), piece).await;
    written.expect("it is taken");
    let abort = json!({ "session": session, "abort": true });
    let aborted = node.call(CLIENT, "update/write", abort).await;
    // It was staged all the same, and the answer says so.
    let aborted = aborted.expect("its end is known");
    assert_eq!(aborted["aborted"], Value::Null);
    assert_eq!(aborted["plan"]["to"], "1.0.5");
    let known = bench.updates.0.sessions.staged().map(|plan| plan.to);
    assert_eq!(known.as_deref(), Some("1.0.5"));
    bench.judge(Verdict::Plans);
    act(&bench, 1).await;
    assert_eq!(sent(&bench), ["stage", "stage", "start"]);
    assert_eq!(stager(&bench).as_deref(), Some(BY));
}

/// The disk is slow for the machine's own bundle.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_the_machine_stages_without_an_answer_is_its_own() {
    let (bench, _server) = hasty_follower("mounted").await;
    note_found(&bench, Some(plan()));
    bench.judge(Verdict::Silent("1.1.0"));
    act(&bench, 1).await;
    wait_until(|| stager(&bench).as_deref() == Some(BY)).await;
    bench.judge(Verdict::Plans);
    act(&bench, 1).await;
    assert_eq!(sent(&bench), ["stage", "start"]);
}

/// The attack: a client stages a version without an answer over that of the machine, and an administrator takes it back. The
/// machine would not install its own version any more, and would install the client's.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_leaves_the_version_that_was_staged_without_an_answer() {
    let (bench, _server) = hasty_follower("volatile").await;
    stage_own(&bench);
    stage_unanswered(&bench, CLIENT, "1.0.5").await;
    // PID 1 has not read the slots since.
    bench.set(|facts| {
        facts.update.outdated = true;
        facts.update.staged_version = Some("1.1.0".to_owned());
    });
    let node = UpdateCaller::new(&bench.updates);
    let look = async {
        for _ in 0..500 {
            tokio::task::yield_now().await;
        }
        look_at_slots(&bench.seen, &bench.facts);
    };
    let back = node.call(ADMIN, "update/rollback", Value::Null);
    let (back, ()) = tokio::join!(back, look);
    back.expect("taken back");
    assert_eq!(bench.updates.0.notes.current().left, ["1.0.5"]);
}

/// The attack: an administrator stages a version while the machine waits for the server of its channel. PID 1 refuses the
/// machine's own version then, and with a delta as well. The machine does not send it once more as the whole program, waits
/// for the administrator, and installs its own version when the other one was taken back.
#[tokio::test(flavor = "multi_thread")]
async fn the_machine_waits_for_a_version_that_was_staged_after_its_decision() {
    let (bench, _server) = follower("mounted", StagingPace::default()).await;
    bench.set(|facts| facts.update.running_sha256 = Some("c3".to_owned()));
    note_found(&bench, Some(plan()));
    bench.judge(Verdict::Refuses(b"", "other-staged"));
    act(&bench, 1).await;
    assert_eq!(sent(&bench), ["stage"]);
    let (found, whole) = {
        let auto = bench.updates.auto();
        (auto.found.clone(), auto.whole.clone())
    };
    assert_eq!((found, whole), (Some(plan()), None));
    bench.seen.lock().expect("no panic").slot = Some(StagedSlot {
        version: "1.0.5".to_owned(),
        sha256: "b2".to_owned(),
        stager: UpdateStager {
            by: ADMIN.0.to_owned(),
            limited: false,
        },
    });
    look_at_slots(&bench.seen, &bench.facts);
    bench.judge(Verdict::Plans);
    act(&bench, 1).await;
    assert_eq!(
        bench.updates.auto_shown()["next"],
        "waits-for-administrator"
    );
    assert_eq!(sent(&bench), ["stage"]);
    bench.seen.lock().expect("no panic").slot = None;
    bench.set(|facts| {
        facts.update.state = "idle".to_owned();
        facts.update.other_version = None;
        facts.update.staged_version = None;
        facts.update.stager = None;
    });
    act(&bench, 1).await;
    assert_eq!(sent(&bench)[..2], ["stage", "stage"]);
    assert_eq!(stager(&bench).as_deref(), Some(BY));
}

/// The attack: a hub stages a version for an administrator who calls it by `hub/invoke`, and the node restarts. PID 1 alone
/// knows then that the hub has passed it on, and the hub would replace it by its own.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_hub_passes_on_does_not_become_its_own() {
    let bench = NodeUpdateBench::new();
    let scopes = [STAGE_SCOPE, APPLY_SCOPE, OFFER_SCOPE];
    let entries = admins_and("hub", &[2], &scopes);
    bench.identities.identities.replace_config(entries);
    let hub = connected(&bench, PeerKey::Ed25519([2; 32]));
    for (hops, by) in [(0, "hub"), (1, "hub, for its clients")] {
        let options = CallOptions {
            hops,
            ..CallOptions::default()
        };
        let input = json!({ "bytes": 3 });
        let begun = hub.call_with("update/stage", &input, &options).await;
        let session = begun.expect("it begins").value()["session"].clone();
        let abort = json!({ "session": session, "abort": true });
        let ended = hub.call_with("update/write", &abort, &options).await;
        ended.expect("given up");
        assert_eq!(bench.requests().last().map(|it| it.1.as_str()), Some(by));
        bench.set(|facts| {
            facts.update.outdated = false;
            facts.update.state = "staged".to_owned();
        });
        bench.set_stager(by, false);
        let offer = json!({ "version": "1.2.0", "bytes": 3 });
        let answer = hub.call("update/offer", &offer).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.value()["wanted"], hops == 0, "{by}");
        if hops == 0 {
            let abort = json!({ "session": answer.value()["session"], "abort": true });
            let ended = hub.call("update/write", &abort).await;
            ended.expect("given up");
        }
    }
}
