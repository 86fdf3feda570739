//! Offers of a hub, which the node decides by what holds when it answers, and not by what held at the question.

use std::cell::Cell;

use alknet_test_support::deadline;
use data_encoding::BASE64;

use super::attacks::scheduled;
use super::operations::{ADMIN, UpdateCaller};
use super::scheduled_starts::staged;
use super::*;

const HUB: (&str, &[&str]) = ("hub", &[OFFER_SCOPE, READ_SCOPE]);

async fn offer(node: &UpdateCaller, version: &str) -> Result<Value, CallError> {
    let input = json!({ "version": version, "bytes": 3 });
    node.call(HUB, "update/offer", input).await
}

fn assert_busy(answer: Result<Value, CallError>) {
    let refused = answer.expect_err("it is refused");
    assert_eq!(refused.details.expect("details")["code"], "busy");
}

/// How many requests PID 1 has got of those that a test counts.
fn count(bench: &NodeUpdateBench, is_counted: fn(&UpdateRequest) -> bool) -> usize {
    let requests = bench.requests().into_iter();
    requests.filter(|(it, _)| is_counted(it)).count()
}

/// A machine with a version that its hub has staged. The node restarted since, so only PID 1 knows who staged it.
fn bench_with_version_of_hub() -> NodeUpdateBench {
    let bench = NodeUpdateBench::new();
    staged(&bench, "b2");
    bench.set_stager(HUB.0, false);
    bench
}

async fn begin_upload(node: &UpdateCaller) -> Value {
    let begun = node
        .call(ADMIN, "update/stage", json!({ "bytes": 3 }))
        .await;
    begun.expect("it begins")["session"].clone()
}

/// The hub offers its next version while an administrator stages another one, and sets the moment of its start. The session
/// of the administrator begins before the offer, or while PID 1 reads the slots for the offer.
#[tokio::test]
async fn a_hub_does_not_replace_what_is_staged_while_its_offer_is_decided() {
    for begins_before in [true, false] {
        let bench = bench_with_version_of_hub();
        bench.set(|facts| facts.update.outdated = true);
        let node = UpdateCaller::new(&bench.updates);
        let begun = match begins_before {
            true => Some(begin_upload(&node).await),
            false => None,
        };
        let is_answered = Cell::new(false);
        let of_hub = async {
            let answer = offer(&node, "1.2.0").await;
            is_answered.set(true);
            answer
        };
        let of_administrator = async {
            // The offer waits for the next facts after some turns of its tasks.
            for _ in 0..500 {
                tokio::task::yield_now().await;
            }
            assert_eq!(is_answered.get(), begins_before);
            let session = match begun {
                Some(session) => session,
                None => begin_upload(&node).await,
            };
            while !is_answered.get() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let piece = json!({ "session": session, "offset": 0, "data": BASE64.encode(b"abc") });
            let last = node.call(ADMIN, "update/write", piece).await;
            assert_eq!(last.expect("staged")["plan"]["sha256"], "a1");
            staged(&bench, "a1");
            let in_an_hour = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
            let at = json!({ "at": in_an_hour.to_string() });
            let set = node.call(ADMIN, "update/apply", at).await;
            set.expect("it waits")["scheduled"].clone()
        };
        let (answer, set) = tokio::join!(of_hub, of_administrator);
        assert_busy(answer);
        assert!(bench.updates.0.sessions.current().is_none());
        let stagings = count(&bench, |it| matches!(it, UpdateRequest::Stage { .. }));
        assert_eq!(stagings, 1, "only the administrator's");
        assert_eq!(scheduled(&node).await, set);
    }
}

#[tokio::test]
async fn an_offer_waits_for_the_slots_no_longer_than_its_time() {
    let pace = StagingPace {
        slots: Duration::from_millis(50),
        ..StagingPace::default()
    };
    let bench = NodeUpdateBench::with("", pace, None);
    let node = UpdateCaller::new(&bench.updates);
    bench.set(|facts| facts.update.outdated = true);
    let answer = offer(&node, "1.2.0");
    let answer = tokio::time::timeout(deadline(Duration::from_secs(30)), answer).await;
    assert_busy(answer.expect("it does not wait for ever"));
    assert!(bench.updates.0.sessions.current().is_none());
    assert!(bench.requests().is_empty(), "PID 1 was asked");
    bench.set(|facts| facts.update.outdated = false);
    let wanted = offer(&node, "1.2.0").await;
    assert_eq!(wanted.expect("an answer")["wanted"], true);
}

/// An administrator leaves a version, or starts another one, and PID 1 has not read the slots since.
#[tokio::test]
async fn an_offer_is_judged_by_the_facts_for_which_it_waited() {
    for (state, left) in [("idle", vec!["1.2.0".to_owned()]), ("trial", Vec::new())] {
        let bench = NodeUpdateBench::new();
        let node = UpdateCaller::new(&bench.updates);
        bench.set(|facts| facts.update.outdated = true);
        let look = async {
            // The offer waits for the next facts after some turns of its tasks.
            for _ in 0..500 {
                tokio::task::yield_now().await;
            }
            bench.set(|facts| {
                facts.update.state = state.to_owned();
                facts.update.left = left;
                facts.update.outdated = false;
            });
        };
        let (answer, ()) = tokio::join!(offer(&node, "1.2.0"), look);
        assert_eq!(answer.expect("an answer")["wanted"], false, "{state}");
        assert!(bench.updates.0.sessions.current().is_none(), "{state}");
        assert!(bench.requests().is_empty(), "{state}");
    }
}
