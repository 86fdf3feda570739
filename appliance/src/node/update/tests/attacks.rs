//! Clients and hubs that keep an administrator from an update, or bring another version than the administrator chose.

use alknet_call::CallError;
use alknet_test_support::deadline;
use data_encoding::BASE64;
use futures_util::FutureExt;
use tokio::task::JoinHandle;

use super::operations::{ADMIN, UpdateCaller};
use super::scheduled_starts::not_started;
use super::*;
use crate::node::update::piece_pacing::PIECE_BYTES_MAX;
use crate::node::update::session::{StagingOutcome, WRONG_PIECES_MAX};

const CLIENT: (&str, &[&str]) = ("eve", &[STAGE_SCOPE, READ_SCOPE]);
const HUB: (&str, &[&str]) = ("hub", &[OFFER_SCOPE, READ_SCOPE]);

/// Sends a bundle of one piece.
pub(super) async fn upload(
    node: &UpdateCaller,
    who: (&str, &[&str]),
    data: &[u8],
) -> Result<Value, CallError> {
    let begin = json!({ "bytes": data.len() });
    let begun = node.call(who, "update/stage", begin).await?;
    let piece = json!({ "session": begun["session"], "offset": 0, "data": BASE64.encode(data) });
    node.call(who, "update/write", piece).await
}

fn staged(bench: &NodeUpdateBench, sha256: &str) {
    bench.set(|facts| {
        facts.update.state = "staged".to_owned();
        facts.update.other_version = Some("1.1.0".to_owned());
        facts.update.other_sha256 = Some(sha256.to_owned());
    });
}

pub(super) async fn scheduled(node: &UpdateCaller) -> Value {
    let status = node.call(ADMIN, "update/status", Value::Null).await;
    status.expect("a status")["scheduled"].clone()
}

/// An administrator sets a moment, and a client that may only stage brings another version before it.
#[tokio::test]
async fn a_moment_is_for_the_version_that_was_staged_when_it_was_set() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    upload(&node, ADMIN, b"good").await.expect("staged");
    staged(&bench, "a1");
    let in_an_hour =
        json!({ "at": (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1)).to_string() });
    let apply = |input: &Value| node.call(ADMIN, "update/apply", input.clone());
    let set = apply(&in_an_hour).await.expect("it waits");
    assert_eq!(scheduled(&node).await, set["scheduled"]);
    // The same program once more changes nothing.
    upload(&node, CLIENT, b"good").await.expect("staged");
    assert_eq!(scheduled(&node).await, set["scheduled"]);
    bench.judge(Verdict::PlansOf("b2"));
    upload(&node, CLIENT, b"evil").await.expect("staged");
    staged(&bench, "b2");
    assert_eq!(scheduled(&node).await, Value::Null);
    let own = node.call(CLIENT, "update/apply", in_an_hour.clone()).await;
    assert_eq!(own.expect_err("not its scope").code, ErrorCode::Forbidden);
    // A start that names the program starts no other one.
    let named = json!({ "at": in_an_hour["at"], "sha256": "a1" });
    let refused = apply(&named).await.expect_err("another program");
    assert_eq!(refused.details.expect("details")["code"], "other-staged");
    // Back to the first one: its moment is over.
    bench.judge(Verdict::Plans);
    upload(&node, CLIENT, b"good").await.expect("staged");
    staged(&bench, "a1");
    assert_eq!(scheduled(&node).await, Value::Null);
}

/// PID 1 compares once more: another version may have been staged at the last moment.
#[tokio::test]
async fn at_its_moment_the_program_is_named() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    upload(&node, ADMIN, b"good").await.expect("staged");
    staged(&bench, "a1");
    let now = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1);
    let at = json!({ "at": now.to_string() });
    node.call(ADMIN, "update/apply", at)
        .await
        .expect("it waits");
    let is_asked = || {
        let requests = bench.requests();
        let mut sent = requests.into_iter().map(|(request, _)| request);
        sent.find(|request| matches!(request, UpdateRequest::Apply { .. }))
    };
    let asked = async {
        loop {
            match is_asked() {
                Some(asked) => break asked,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let asked = tokio::time::timeout(deadline(Duration::from_secs(60)), asked);
    let expected = UpdateRequest::Apply {
        sha256: Some("a1".to_owned()),
        agreed_floor: unchanged(),
        limited: false,
        unasked: false,
    };
    assert_eq!(asked.await.expect("it starts"), expected);
}

#[tokio::test]
async fn a_hub_sets_no_moment_and_replaces_no_version_of_an_administrator() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    let offer = |version: &str| json!({ "version": version, "bytes": 3 });
    upload(&node, ADMIN, b"good").await.expect("staged");
    let kept = node.call(HUB, "update/offer", offer("1.2.0")).await;
    assert_eq!(kept.expect("an answer")["wanted"], false);
    // Also after the node restarted, when only PID 1 knows who staged it: the machine itself, or another one.
    bench.updates.0.sessions.forget_staged();
    // The facts are from before, so the offer waits for the next ones.
    bench.set(|facts| facts.update.outdated = true);
    let look = async {
        staged(&bench, "a1");
        bench.set(|facts| facts.update.outdated = false);
    };
    let (kept, ()) = tokio::join!(node.call(HUB, "update/offer", offer("1.2.0")), look);
    assert_eq!(kept.expect("an answer")["wanted"], false);
    for by in ["the machine", "hub"] {
        bench.set_stager(by, false);
        let taken = node.call(HUB, "update/offer", offer("1.2.0")).await;
        let taken = taken.expect("an answer");
        assert_eq!(taken["wanted"], true, "{by}");
        let piece =
            json!({ "session": taken["session"], "offset": 0, "data": BASE64.encode(b"abc") });
        node.call(HUB, "update/write", piece).await.expect("taken");
        bench.updates.0.sessions.forget_staged();
    }
    let (stage, _) = bench.requests().pop().expect("a request");
    assert!(
        matches!(stage, UpdateRequest::Stage { unasked: true, .. }),
        "{stage:?}"
    );
    // What it sent it starts at once, and at no moment.
    let taken = node.call(HUB, "update/offer", offer("1.2.0")).await;
    let piece = json!({ "session": taken.expect("an answer")["session"], "offset": 0, "data": BASE64.encode(b"abc") });
    node.call(HUB, "update/write", piece).await.expect("taken");
    let at = json!({ "at": jiff::Timestamp::now().to_string() });
    let refused = node.call(HUB, "update/apply", at).await;
    assert_eq!(refused.expect_err("no moment").code, ErrorCode::Forbidden);
    assert!(node.call(HUB, "update/apply", Value::Null).await.is_ok());
}

#[tokio::test]
async fn a_version_that_an_administrator_left_is_not_taken_from_a_hub() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    bench.set(|facts| facts.update.left = vec!["1.1.0".to_owned()]);
    let offer = |version: &str| json!({ "version": version, "bytes": 3 });
    let left = node.call(HUB, "update/offer", offer("1.1.0")).await;
    assert_eq!(left.expect("an answer")["wanted"], false);
    let newer = node.call(HUB, "update/offer", offer("1.2.0")).await;
    assert_eq!(newer.expect("an answer")["wanted"], true);
}

/// A client restarts the machine by updates and rollbacks. PID 1 counts its starts, and not those of an administrator.
#[tokio::test]
async fn starts_of_a_client_are_counted() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    let client = ("eve", &[APPLY_SCOPE][..]);
    for (who, limited) in [(client, true), (ADMIN, false)] {
        for (operation, expected) in [
            (
                "update/apply",
                UpdateRequest::Apply {
                    sha256: None,
                    agreed_floor: None,
                    limited,
                    unasked: false,
                },
            ),
            ("update/rollback", UpdateRequest::Rollback { limited }),
        ] {
            let done = node.call(who, operation, Value::Null).await;
            assert!(done.is_ok(), "{done:?}");
            assert_eq!(bench.requests().pop().expect("a request").0, expected);
        }
    }
}

/// The outcome of the session under way.
async fn end_of_session(bench: &NodeUpdateBench) -> StagingOutcome {
    let sessions = &bench.updates.0.sessions;
    let session = sessions.current().expect("a session");
    let end = sessions.outcome(session);
    let end = tokio::time::timeout(deadline(Duration::from_secs(30)), end);
    end.await.expect("it ends")
}

/// A sender that keeps the session alive by a byte at a time, or by pieces that do not fit.
#[tokio::test]
async fn a_bundle_that_comes_slowly_is_given_up() {
    let ever = Duration::from_secs(3600);
    let slow = |whole, rate, grace| StagingPace {
        idle: ever,
        whole,
        rate,
        grace,
        answer: ever,
        ..StagingPace::default()
    };
    let short = Duration::from_millis(200);
    for (pace, text) in [
        (slow(short, 1, ever), "it did not come within"),
        (
            slow(ever, 1 << 20, short),
            "with less than 1048576 bytes a second",
        ),
    ] {
        let bench = NodeUpdateBench::with("", pace, None);
        let id = bench.begin(1 << 20);
        let trickle = async {
            for offset in 0.. {
                if bench.send(&id, offset, b"x").await.is_err() {
                    break;
                }
                // The attack itself: a byte now and then.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let (end, ()) = tokio::join!(end_of_session(&bench), trickle);
        let StagingOutcome::GivenUp(why) = end else {
            panic!("{end:?}");
        };
        assert!(why.contains(text), "{why}");
        // The next bundle is staged whole.
        let next = bench.begin(3);
        bench.send(&next, 0, b"abc").await.expect("taken");
        assert_eq!(bench.bundles().last(), Some(&(b"abc".to_vec(), true)));
    }
}

#[tokio::test]
async fn pieces_at_wrong_offsets_end_their_own_upload() {
    let bench = NodeUpdateBench::new();
    let id = bench.begin(9);
    bench.send(&id, 0, b"abc").await.expect("taken");
    for _ in 0..WRONG_PIECES_MAX {
        let wrong = bench.send(&id, 7, b"x").await;
        assert_eq!(wrong, Err(StagingError::Offset(3)));
    }
    let over = bench.send(&id, 3, b"def").await;
    assert!(matches!(over, Err(StagingError::Ended(_))), "{over:?}");
    let next = bench.begin(3);
    bench.send(&next, 0, b"abc").await.expect("taken");
    assert_eq!(
        bench.bundles(),
        [(b"abc".to_vec(), false), (b"abc".to_vec(), true)]
    );
}

/// Pieces that do not fit are no pieces for the longest pause.
#[tokio::test]
async fn wrong_pieces_keep_no_upload_alive() {
    let pace = StagingPace {
        idle: Duration::from_millis(200),
        ..StagingPace::default()
    };
    let bench = NodeUpdateBench::with("", pace, None);
    let id = bench.begin(9);
    let wrong = async {
        // Fewer than end the upload by their number.
        let mut answered = 0;
        while answered < WRONG_PIECES_MAX
            && bench.send(&id, 7, b"x").await == Err(StagingError::Offset(0))
        {
            answered += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        answered
    };
    let (end, answered) = tokio::join!(end_of_session(&bench), wrong);
    assert!(matches!(end, StagingOutcome::GivenUp(_)), "{end:?}");
    assert!(
        answered < WRONG_PIECES_MAX - 1,
        "{answered} wrong pieces kept it"
    );
}

/// A client holds the session; an administrator takes it over, and the client cannot begin again meanwhile.
#[tokio::test]
async fn an_administrator_takes_a_session_over() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    let begin = |bytes: u64, take_over: bool| json!({ "bytes": bytes, "take_over": take_over });
    for blocker in [CLIENT, HUB] {
        let begun = match blocker {
            HUB => {
                let offer = json!({ "version": "1.2.0", "bytes": 900 });
                node.call(HUB, "update/offer", offer).await
            }
            _ => node.call(CLIENT, "update/stage", begin(900, false)).await,
        };
        let id = begun.expect("it begins")["session"].clone();
        let piece = json!({ "session": id, "offset": 0, "data": BASE64.encode(b"x") });
        node.call(blocker, "update/write", piece)
            .await
            .expect("taken");
        let busy = node.call(ADMIN, "update/stage", begin(3, false)).await;
        assert_eq!(
            busy.expect_err("busy").details.expect("details")["code"],
            "busy"
        );
        let refused = node.call(CLIENT, "update/stage", begin(3, true)).await;
        assert_eq!(refused.expect_err("no scope").code, ErrorCode::Forbidden);
        let own = node.call(ADMIN, "update/stage", begin(3, true)).await;
        let own = own.expect("it takes the session over")["session"].clone();
        let busy = node.call(CLIENT, "update/stage", begin(3, false)).await;
        assert!(busy.is_err(), "the session is the administrator's");
        let piece = json!({ "session": own, "offset": 0, "data": BASE64.encode(b"abc") });
        let last = node
            .call(ADMIN, "update/write", piece)
            .await
            .expect("taken");
        assert_eq!(last["plan"]["to"], "1.1.0");
        node.call(ADMIN, "update/rollback", Value::Null)
            .await
            .expect("taken back");
    }
    let given_up = bench.bundles().iter().filter(|(_, whole)| !whole).count();
    assert_eq!(given_up, 2);
}

/// While the session under way ends for an administrator, no other caller begins one.
#[tokio::test]
async fn a_turn_is_of_the_one_who_took_over() {
    let bench = NodeUpdateBench::new();
    let sessions = &bench.updates.0.sessions;
    let id = bench.begin(900);
    bench.send(&id, 0, b"x").await.expect("taken");
    let turn = sessions
        .take_over("enough".to_owned())
        .await
        .expect("a turn");
    assert!(sessions.current().is_none());
    let other = sessions.begin(request(3), None).err();
    assert_eq!(other, Some(StagingError::Busy));
    let second = sessions.take_over("enough".to_owned()).await.err();
    assert_eq!(second, Some(StagingError::Busy));
    drop(turn);
    // An administrator who left gives the turn back.
    let own = bench.begin(3);
    bench.send(&own, 0, b"abc").await.expect("taken");
}

#[tokio::test]
async fn an_administrator_cancels_a_session() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    let cancel = || node.call(ADMIN, "update/cancel", Value::Null);
    assert_eq!(cancel().await, Ok(json!({ "cancelled": false })));
    let begin = json!({ "bytes": 900 });
    node.call(CLIENT, "update/stage", begin)
        .await
        .expect("it begins");
    assert_eq!(cancel().await, Ok(json!({ "cancelled": true })));
    let status = node.call(CLIENT, "update/status", Value::Null).await;
    let status = status.expect("a status");
    assert_eq!(status["session"], Value::Null);
    assert_eq!(status["ended"]["error"]["text"], "admin cancelled it");
    upload(&node, ADMIN, b"good").await.expect("staged");
}

/// Begins an upload of one piece by a client, and waits for the moment at which PID 1 applies the delta in it.
async fn upload_that_is_applied(
    bench: &NodeUpdateBench,
    node: &UpdateCaller,
    verdict: Verdict,
) -> JoinHandle<Result<Value, CallError>> {
    let stalls = matches!(verdict, Verdict::StallsUntilGivenUp);
    bench.judge(verdict);
    let seen = || match stalls {
        true => bench.requests().len(),
        false => bench.bundles().len(),
    };
    let before = seen();
    // More than the socket to PID 1 takes.
    let begin = json!({ "bytes": PIECE_BYTES_MAX });
    let begun = node.call(CLIENT, "update/stage", begin).await;
    let id = begun.expect("it begins")["session"].clone();
    let sessions = bench.updates.0.sessions.clone();
    let write = tokio::spawn(async move {
        let piece = (0, Bytes::from(vec![7; PIECE_BYTES_MAX]));
        let id = id.as_str().expect("a name");
        let taken = sessions.write((id, "eve"), piece).await;
        taken
            .map(|taken| json!(taken.plan))
            .map_err(CallError::from)
    });
    while seen() == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The socket is full after some turns of the task that writes.
    for _ in 0..500 {
        tokio::task::yield_now().await;
    }
    write
}

/// PID 1 applies the delta of a client for minutes: it has the whole bundle, or reads nothing more of it.
#[tokio::test]
async fn an_administrator_ends_a_session_while_pid_1_applies_its_delta() {
    let limit = deadline(Duration::from_secs(20));
    for (verdict, is_whole) in [
        (Verdict::AppliesUntilGivenUp, true),
        (Verdict::StallsUntilGivenUp, false),
    ] {
        let bench = NodeUpdateBench::new();
        let node = UpdateCaller::new(&bench.updates);
        let write = upload_that_is_applied(&bench, &node, verdict.clone()).await;
        let cancel = node.call(ADMIN, "update/cancel", Value::Null);
        let cancelled = tokio::time::timeout(limit, cancel).await;
        let expected = Ok(Ok(json!({ "cancelled": true })));
        assert_eq!(cancelled, expected, "{verdict:?}");
        let write = write.await.expect("no panic").expect_err("it is cancelled");
        assert!(write.message.contains("admin cancelled it"), "{write:?}");
        assert_eq!(bench.bundles().pop().map(|it| it.1), Some(is_whole));
        // The same by an administrator who takes the session over.
        let write = upload_that_is_applied(&bench, &node, verdict.clone()).await;
        bench.judge(Verdict::Plans);
        let take_over = json!({ "bytes": 3, "take_over": true });
        let begun = node.call(ADMIN, "update/stage", take_over);
        let begun = tokio::time::timeout(limit, begun).await;
        let id = begun.expect("it ends").expect("it begins")["session"].clone();
        assert!(write.await.expect("no panic").is_err(), "{verdict:?}");
        let piece = json!({ "session": id, "offset": 0, "data": BASE64.encode(b"abc") });
        let last = node.call(ADMIN, "update/write", piece).await;
        assert_eq!(last.expect("staged")["plan"]["to"], "1.1.0");
    }
}

/// The order to give up arrives when PID 1 has written its last byte: the caller learns that the version is staged.
#[tokio::test]
async fn a_session_that_is_cancelled_too_late_is_staged() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    let write = upload_that_is_applied(&bench, &node, Verdict::StagedBeforeGivenUp).await;
    let cancelled = node.call(ADMIN, "update/cancel", Value::Null).await;
    assert_eq!(cancelled, Ok(json!({ "cancelled": false })));
    let plan_of_client = write.await.expect("no panic").expect("staged");
    assert_eq!(plan_of_client["to"], "1.1.0");
    assert_eq!(bench.updates.0.sessions.staged(), Some(plan()));
}

/// Of the bundle PID 1 has every byte, and `update/status` says how much of the program is written.
/// The node would forget the session, and PID 1 would be busy with it for every other caller.
#[tokio::test]
async fn a_bundle_about_which_pid_1_is_silent_is_given_up() {
    let pace = StagingPace {
        answer: Duration::from_millis(50),
        ..StagingPace::default()
    };
    let bench = NodeUpdateBench::with("", pace, None);
    let node = UpdateCaller::new(&bench.updates);
    let write = upload_that_is_applied(&bench, &node, Verdict::AppliesUntilGivenUp).await;
    let write = write.await.expect("no panic").expect_err("it is given up");
    assert!(
        write.message.contains("did not stage it within"),
        "{write:?}"
    );
    // PID 1 is free again: it takes up one request after the other.
    let log = node.call(ADMIN, "update/log", Value::Null);
    let log = tokio::time::timeout(deadline(Duration::from_secs(20)), log).await;
    log.expect("PID 1 answers").expect("the log");
}

#[tokio::test]
async fn the_progress_of_a_delta_is_shown() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    let write = upload_that_is_applied(&bench, &node, Verdict::AppliesUntilGivenUp).await;
    bench.set(|facts| facts.update.writing = Some((3000, 9000)));
    let status = node.call(ADMIN, "update/status", Value::Null).await;
    let session = status.expect("a status")["session"].clone();
    assert_eq!(session["offset"], session["bytes"]);
    assert_eq!(
        (&session["written"], &session["program_bytes"]),
        (&json!(3000), &json!(9000))
    );
    let cancelled = node.call(ADMIN, "update/cancel", Value::Null).await;
    assert_eq!(cancelled, Ok(json!({ "cancelled": true })));
    assert!(write.await.expect("no panic").is_err());
}

/// Eve may start versions, and asks for a rollback that PID 1 refuses: the moment of the administrator stays.
#[tokio::test]
async fn a_rollback_that_pid_1_refuses_takes_no_moment_away() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    upload(&node, ADMIN, b"good").await.expect("staged");
    staged(&bench, "a1");
    let in_an_hour = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let set = json!({ "at": in_an_hour.to_string() });
    let set = node
        .call(ADMIN, "update/apply", set)
        .await
        .expect("it waits");
    let eve = ("eve", &[APPLY_SCOPE][..]);
    bench.seen.lock().expect("no panic").refuses_rollback = Some("busy");
    let refused = node.call(eve, "update/rollback", Value::Null).await;
    assert_eq!(
        refused.expect_err("busy").details.expect("details")["code"],
        "busy"
    );
    assert_eq!(scheduled(&node).await, set["scheduled"]);
    bench.seen.lock().expect("no panic").refuses_rollback = None;
    let done = node.call(eve, "update/rollback", Value::Null).await;
    assert!(done.is_ok(), "{done:?}");
    assert_eq!(scheduled(&node).await, Value::Null);
    // Eve's rollback ends it, and the administrator learns of this.
    let text = not_started(&bench).expect("a problem");
    assert!(text.ends_with("eve has taken it back"), "{text}");
}

/// Eve may start versions, and moves the start that an administrator has set for tonight by 29 days.
#[tokio::test]
async fn a_client_does_not_move_the_start_that_an_administrator_has_set() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    upload(&node, ADMIN, b"good").await.expect("staged");
    staged(&bench, "a1");
    let now = jiff::Timestamp::now();
    let after =
        |hours: i64| json!({ "at": (now + jiff::SignedDuration::from_hours(hours)).to_string() });
    let eve = ("eve", &[APPLY_SCOPE][..]);
    let entries = admins_and("eve", &[2], &[APPLY_SCOPE]);
    bench.identities.identities.replace_config(entries);
    let own = node.call(eve, "update/apply", after(2)).await;
    assert_eq!(
        scheduled(&node).await,
        own.expect("none was set")["scheduled"]
    );
    let set = node.call(ADMIN, "update/apply", after(1)).await;
    let set = set.expect("it takes the place of the client's")["scheduled"].clone();
    let moved = node.call(eve, "update/apply", after(29 * 24)).await;
    let refused = moved.expect_err("it is the administrator's");
    assert_eq!(refused.details.expect("details")["code"], "scheduled");
    assert_eq!(scheduled(&node).await, set);
    let later = node.call(ADMIN, "update/apply", after(3)).await;
    assert_eq!(
        scheduled(&node).await,
        later.expect("it is moved")["scheduled"]
    );
}

/// The connection of an upload breaks within a piece: the call ends, and the frame that it sent stays whole.
#[tokio::test]
async fn after_an_upload_whose_connection_broke_the_next_bundle_is_staged() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    let begin = json!({ "bytes": 1 << 20 });
    let begun = node
        .call(CLIENT, "update/stage", begin)
        .await
        .expect("it begins");
    let id = begun["session"].as_str().expect("a name").to_owned();
    for polls in 0..6 {
        let sessions = &bench.updates.0.sessions;
        let offset = sessions.current().expect("a session").offset();
        let piece = (offset, Bytes::from(vec![7; 100_000]));
        let write = sessions.write((id.as_str(), "eve"), piece);
        let mut write = Box::pin(write.fuse());
        for _ in 0..polls {
            let polled = futures_util::poll!(&mut write);
            drop(polled);
            tokio::task::yield_now().await;
        }
        drop(write);
    }
    let take_over = json!({ "bytes": 3, "take_over": true });
    let own = node
        .call(ADMIN, "update/stage", take_over)
        .await
        .expect("it begins");
    let piece = json!({ "session": own["session"], "offset": 0, "data": BASE64.encode(b"abc") });
    let last = node
        .call(ADMIN, "update/write", piece)
        .await
        .expect("taken");
    assert_eq!(last["plan"]["to"], "1.1.0");
    let bundles = bench.bundles();
    assert_eq!(bundles.len(), 2);
    assert!(!bundles[0].1 && bundles[0].0.len().is_multiple_of(100_000));
    assert_eq!(bundles[1], (b"abc".to_vec(), true));
}

/// A hub that restarts a worker by day, whose administrator permits restarts at night.
#[tokio::test]
async fn a_hub_starts_nothing_outside_of_the_window() {
    let now = jiff::Timestamp::now();
    // The window begins after so many hours, and is two hours long.
    let bench = |after: i64| {
        let at = |hours| {
            let at = now + jiff::SignedDuration::from_hours(after + hours);
            at.strftime("%H:%M").to_string()
        };
        let document = format!("[update]\nwindow = \"{}-{}\"\n", at(0), at(2));
        NodeUpdateBench::with(&document, StagingPace::default(), None)
    };
    let send = async |node: &UpdateCaller| {
        let offer = json!({ "version": "1.1.0", "bytes": 3 });
        let begun = node.call(HUB, "update/offer", offer).await.expect("wanted");
        let piece =
            json!({ "session": begun["session"], "offset": 0, "data": BASE64.encode(b"abc") });
        node.call(HUB, "update/write", piece).await.expect("staged");
    };
    let started = |bench: &NodeUpdateBench| {
        let requests = bench.requests().into_iter();
        let starts = requests.filter(|(it, _)| matches!(it, UpdateRequest::Apply { .. }));
        starts.count()
    };
    let closed = bench(6);
    let node = UpdateCaller::new(&closed.updates);
    send(&node).await;
    let refused = node.call(HUB, "update/apply", Value::Null).await;
    let refused = refused.expect_err("by day");
    assert_eq!(refused.code, ErrorCode::Conflict);
    assert_eq!(refused.details.expect("details")["code"], "outside-window");
    assert_eq!(started(&closed), 0);
    // The window is no limit for administrators.
    let restarts = node.call(ADMIN, "update/apply", Value::Null).await;
    assert_eq!(restarts, Ok(json!({ "restarts": true })));
    let open = bench(-1);
    let node = UpdateCaller::new(&open.updates);
    send(&node).await;
    open.set(|facts| facts.clock = "unset".to_owned());
    let refused = node.call(HUB, "update/apply", Value::Null).await;
    let refused = refused.expect_err("the time is not known");
    assert_eq!(refused.details.expect("details")["code"], "outside-window");
    assert_eq!(started(&open), 0);
    open.set(|facts| facts.clock = "sntp".to_owned());
    let restarts = node.call(HUB, "update/apply", Value::Null).await;
    assert_eq!(restarts, Ok(json!({ "restarts": true })));
}
