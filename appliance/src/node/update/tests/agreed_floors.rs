//! Clients that raise the floor of a staged program between the plan that a caller sees and the start.

use alknet_call::CallError;
use data_encoding::BASE64;
use jiff::{SignedDuration, Timestamp};

use super::attacks::upload;
use super::ended_starts::unscheduled;
use super::operations::{ADMIN, UpdateCaller};
use super::scheduled_starts::{
    file, let_tasks_run, not_started, restart_with, staged, start, starts, stored, wait_until,
};
use super::*;
use crate::node::update::scheduled_start::ScheduledStart;

const CLIENT: (&str, &[&str]) = ("eve", &[STAGE_SCOPE, READ_SCOPE]);
const HUB: (&str, &[&str]) = ("hub", &[OFFER_SCOPE, READ_SCOPE]);
/// The floor that the client brings.
const HIGHER: &str = "1.1.0";

fn agreed(text: &str) -> Option<AgreedFloor> {
    Some(text.parse().expect("a floor"))
}

/// The client sends metadata with the higher floor for the program that waits.
async fn raise_floor(bench: &NodeUpdateBench, node: &UpdateCaller) {
    bench.judge(Verdict::PlansFloor(HIGHER));
    upload(node, CLIENT, b"good").await.expect("staged");
    bench.seen.lock().expect("no panic").raises = Some(HIGHER);
}

/// What PID 1 was asked to start last, and to which floor the caller had agreed.
fn last_start(bench: &NodeUpdateBench) -> Option<(Option<String>, Option<AgreedFloor>)> {
    let requests = bench.requests().into_iter();
    let mut starts = requests.filter_map(|(request, _)| match request {
        UpdateRequest::Apply {
            sha256,
            agreed_floor,
            ..
        } => Some((sha256, agreed_floor)),
        _ => None,
    });
    starts.next_back()
}

fn code(refused: Result<Value, CallError>) -> Value {
    let refused = refused.expect_err("a refusal");
    assert_eq!(refused.code, ErrorCode::Conflict);
    refused.details.expect("details")["code"].clone()
}

/// The input of `update/apply` of a caller that agrees to this plan.
fn agreement_to(plan: &Value) -> Value {
    json!({ "sha256": plan["sha256"], "agreed_floor": plan["agreed_floor"] })
}

async fn plan_in_status(node: &UpdateCaller) -> Value {
    let status = node.call(ADMIN, "update/status", Value::Null).await;
    status.expect("a status")["plan"].clone()
}

/// The attack: the administrator reads the plan and answers the question, and the client is quicker.
#[tokio::test]
async fn an_administrator_starts_no_version_with_a_higher_floor_than_in_the_plan() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    let seen = upload(&node, ADMIN, b"good").await.expect("staged");
    staged(&bench, "a1");
    assert_eq!(seen["plan"]["agreed_floor"], "unchanged");
    raise_floor(&bench, &node).await;
    let start = agreement_to(&seen["plan"]);
    let refused = node.call(ADMIN, "update/apply", start).await;
    assert_eq!(code(refused), "floor-raised");
    let asked = (Some("a1".to_owned()), agreed("unchanged"));
    assert_eq!(last_start(&bench), Some(asked));
    // The next look at the plan shows the floor.
    let seen = plan_in_status(&node).await;
    assert_eq!(
        (&seen["floor"], &seen["sha256"]),
        (&json!(HIGHER), &json!("a1"))
    );
    let started = node.call(ADMIN, "update/apply", agreement_to(&seen)).await;
    assert_eq!(started, Ok(json!({ "restarts": true })));
    // A caller that names no floor takes the one that is staged, and not one that rises before PID 1 judges the start.
    let started = node.call(ADMIN, "update/apply", json!({ "sha256": "a1" }));
    assert_eq!(started.await, Ok(json!({ "restarts": true })));
    let asked = (Some("a1".to_owned()), agreed(HIGHER));
    assert_eq!(last_start(&bench), Some(asked));
    bench.seen.lock().expect("no panic").raises = Some("1.2.0");
    let refused = node.call(ADMIN, "update/apply", Value::Null).await;
    assert_eq!(code(refused), "floor-raised");
    assert_eq!(last_start(&bench), Some((None, agreed(HIGHER))));
    // The node does not know the floor of another program.
    let started = node.call(ADMIN, "update/apply", json!({ "sha256": "b2" }));
    assert_eq!(started.await, Ok(json!({ "restarts": true })));
    assert_eq!(last_start(&bench), Some((Some("b2".to_owned()), None)));
    for wrong in [json!("any"), json!(""), json!(7)] {
        let input = json!({ "agreed_floor": wrong });
        let refused = node.call(ADMIN, "update/apply", input).await;
        let refused = refused.expect_err("no floor");
        assert_eq!(refused.code, ErrorCode::InvalidInput);
    }
}

/// The attack: the administrator plans a start, days ahead, and the client raises the floor of the same program. The start
/// must not look as if it still held until PID 1 refuses it at its moment. A caller that names no floor agrees to the one
/// that is staged when it sets the moment.
#[tokio::test]
async fn a_planned_start_ends_at_once_when_the_floor_of_its_program_rises() {
    for named in [Value::Null, json!("unchanged")] {
        let mut bench = NodeUpdateBench::new();
        let node = UpdateCaller::new(&bench.updates);
        upload(&node, ADMIN, b"good").await.expect("staged");
        staged(&bench, "a1");
        let at = Timestamp::now() + SignedDuration::from_hours(48);
        let input = json!({ "at": at.to_string(), "agreed_floor": named });
        let set = node.call(ADMIN, "update/apply", input).await;
        set.expect("it waits");
        assert_eq!(stored(&bench).agreed_floor, agreed("unchanged"));
        // The same floor once more ends nothing.
        upload(&node, CLIENT, b"good").await.expect("staged");
        let_tasks_run().await;
        assert_eq!(bench.updates.start_moment(), Some(at), "the program waits");
        raise_floor(&bench, &node).await;
        wait_until(|| !unscheduled(&bench).is_empty()).await;
        let reason = format!("eve has staged its program with a higher floor, {HIGHER}");
        let text = format!("version 1.1.0 does not start at {at}, as planned: {reason}");
        assert_eq!(not_started(&bench), Some(text.clone()));
        let status = node.call(ADMIN, "update/status", Value::Null).await;
        let status = status.expect("a status");
        assert_eq!(status["scheduled"], Value::Null);
        assert_eq!(status["not_started"]["reason"], reason);
        let logged = format!("it does not start at {at}, as admin had planned: {reason}");
        let logged = ["1.1.0", logged.as_str(), "eve"].map(str::to_owned);
        assert_eq!(unscheduled(&bench), std::slice::from_ref(&logged));
        // Neither a restart nor the moment repeats or hides it.
        bench.set(|facts| facts.update.other_floor = Some(HIGHER.to_owned()));
        bench.restart();
        bench.clock.0.store(48 * 3600 + 60, Ordering::Relaxed);
        tokio::time::sleep(STEP * 5).await;
        assert_eq!(not_started(&bench), Some(text));
        assert_eq!(unscheduled(&bench), [logged]);
        assert_eq!(starts(&bench), 0);
    }
}

/// A start of an administrator that agrees to a floor which stays as it is, so many seconds from now.
fn start_of_unchanged(seconds: i64) -> ScheduledStart {
    ScheduledStart {
        agreed_floor: agreed("unchanged"),
        ..start(seconds)
    }
}

/// The node ended between the client's staging and its note.
#[tokio::test]
async fn a_planned_start_ends_after_a_restart_if_the_floor_has_risen() {
    let mut bench = NodeUpdateBench::new();
    staged(&bench, "a1");
    bench.set(|facts| facts.update.other_floor = Some(HIGHER.to_owned()));
    let planned = start_of_unchanged(48 * 3600);
    restart_with(&mut bench, &planned);
    wait_until(|| !unscheduled(&bench).is_empty()).await;
    let reason = format!("its program was staged with a higher floor, {HIGHER}");
    let at = planned.at;
    let text = format!("version 1.1.0 does not start at {at}, as planned: {reason}");
    assert_eq!(not_started(&bench), Some(text));
    let logged = format!("it does not start at {at}, as admin had planned: {reason}");
    let logged = ["1.1.0", logged.as_str(), BY].map(str::to_owned);
    assert_eq!(unscheduled(&bench), [logged]);
    assert_eq!(starts(&bench), 0);
}

/// The moment comes before PID 1 has said what lies in the slots since the client raised the floor.
#[tokio::test]
async fn a_planned_start_keeps_the_agreed_floor_over_a_restart() {
    let mut bench = NodeUpdateBench::new();
    bench.set(|facts| facts.update.outdated = true);
    bench.seen.lock().expect("no panic").raises = Some(HIGHER);
    restart_with(&mut bench, &start_of_unchanged(-1));
    wait_until(|| not_started(&bench).is_some()).await;
    let asked = (Some("a1".to_owned()), agreed("unchanged"));
    assert_eq!(last_start(&bench), Some(asked));
    let text = not_started(&bench).expect("a problem");
    assert!(text.ends_with("the floor is a higher one"), "{text}");
    // Neither time nor another restart repeats it, and the log says so once PID 1 has read the slots.
    bench.restart();
    let_tasks_run().await;
    assert!(not_started(&bench).is_some());
    bench.set(|facts| facts.update.other_floor = Some(HIGHER.to_owned()));
    staged(&bench, "a1");
    wait_until(|| !unscheduled(&bench).is_empty()).await;
    let text = not_started(&bench).expect("a problem");
    let reason = format!("a higher one; and its program was staged with a higher floor, {HIGHER}");
    assert!(text.ends_with(&reason), "{text}");
    assert_eq!(starts(&bench), 1);
}

/// The administrator learns of the higher floor when it sets the moment, and not only at the moment. The node has restarted
/// since, so it knows the floor by PID 1.
#[tokio::test]
async fn a_moment_is_not_taken_for_a_floor_that_was_raised_already() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    staged(&bench, "a1");
    let seen = plan_in_status(&node).await;
    assert_eq!(seen["agreed_floor"], "unchanged");
    bench.set(|facts| facts.update.other_floor = Some(HIGHER.to_owned()));
    let planned = |plan: &Value| {
        let mut input = agreement_to(plan);
        input["at"] = json!(start(3600).at.to_string());
        input
    };
    let refused = node.call(ADMIN, "update/apply", planned(&seen)).await;
    assert_eq!(code(refused), "floor-raised");
    assert!(!file(&bench).exists());
    let seen = plan_in_status(&node).await;
    let set = node.call(ADMIN, "update/apply", planned(&seen)).await;
    set.expect("it waits");
    assert_eq!(stored(&bench).agreed_floor, agreed(HIGHER));
    assert!(bench.requests().is_empty());
}

/// A start that an earlier version of the node has stored names no floor, and an earlier version passes over that of this
/// one, as over each member that it does not know.
#[tokio::test]
async fn a_start_of_an_earlier_version_has_no_limit() {
    let mut bench = NodeUpdateBench::new();
    staged(&bench, "a1");
    bench.seen.lock().expect("no panic").raises = Some(HIGHER);
    restart_with(&mut bench, &start(-60));
    let stored = std::fs::read_to_string(file(&bench));
    assert!(!stored.expect("it waits").contains("agreed_floor"));
    wait_until(|| !file(&bench).exists()).await;
    assert_eq!(last_start(&bench), Some((Some("a1".to_owned()), None)));
    assert_eq!(not_started(&bench), None);
    let of_this = start_of_unchanged(3600);
    let mut stored = serde_json::to_value(&of_this).expect("JSON");
    let member = stored.as_object_mut().expect("an object");
    assert_eq!(member.remove("agreed_floor"), Some(json!("unchanged")));
    let read: ScheduledStart = serde_json::from_value(stored).expect("the rest is as before");
    assert_eq!(read.agreed_floor, None);
}

/// The attack, before and after the hub has sent its bundle: no person reads the plan, so the hub agrees to the floor of its
/// own bundle.
#[tokio::test]
async fn a_hub_agrees_to_the_floor_of_its_own_bundle() {
    for is_before in [true, false] {
        let bench = NodeUpdateBench::new();
        let node = UpdateCaller::new(&bench.updates);
        if is_before {
            raise_floor(&bench, &node).await;
        }
        bench.judge(match is_before {
            true => Verdict::PlansBelowFloor(HIGHER),
            false => Verdict::Plans,
        });
        let offer = json!({ "version": "1.1.0", "bytes": 3 });
        let taken = node.call(HUB, "update/offer", offer).await;
        let session = taken.expect("it is wanted")["session"].clone();
        let piece = json!({ "session": session, "offset": 0, "data": BASE64.encode(b"abc") });
        let sent = node.call(HUB, "update/write", piece).await;
        assert_eq!(sent.expect("staged")["plan"]["bundle_floor"], Value::Null);
        if !is_before {
            raise_floor(&bench, &node).await;
        }
        // Nor does the hub get further by words of its own.
        for input in [Value::Null, json!({ "agreed_floor": HIGHER })] {
            let refused = node.call(HUB, "update/apply", input).await;
            assert_eq!(code(refused), "floor-raised", "{is_before}");
            let asked = (Some("a1".to_owned()), agreed("unchanged"));
            assert_eq!(last_start(&bench), Some(asked));
        }
    }
}
