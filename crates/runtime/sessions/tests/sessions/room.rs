//! Idle sessions give up their place where another one needs it, and busy ones do not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_call::{CallConnection, CallError};
use alknet_runtime::SessionMode;
use alknet_sessions::limits::REPLS_OF_TENANT_MAX;
use alknet_sessions::{
    SESSION_END_TARGET, ScriptService, SessionGrants, SessionSpec, SessionsConfig,
};
use alknet_test_support::log_capture::LogCapture;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{SessionLab, code, identity, soon, spec, until};

/// A service that counts, and that waits where its input says so.
const COUNTER: &str = "let n = 0; export const init = (prev) => { n = prev?.n ?? 0; };
     export const dispose = () => ({ n });
     export const add = (by) => n += by;
     export const hang = () => ops.call('test/hang', {});";

/// A service of one author that others call. Each place has other rights.
fn service_spec(place: usize) -> SessionSpec {
    let mut spec = spec(COUNTER);
    spec.lent = true;
    let own = format!("test/place-{place}");
    spec.grants = SessionGrants::to(["test/hang", &own]);
    spec
}

async fn eval(client: &CallConnection, input: Value) -> Result<Value, CallError> {
    let answer = soon(client.call("runtime/eval", &input)).await?;
    Ok(answer.value().clone())
}

/// Three services where the author has two workers for callers.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_service_gives_up_its_worker_and_keeps_its_state() {
    let lab = SessionLab::with_workers(16);
    let request = lab.request().await;
    let env = request.env();
    let mut services: Vec<Arc<ScriptService>> = Vec::new();
    for place in 0..3 {
        services.push(Arc::new(lab.service(&request, service_spec(place)).await));
    }
    for round in 1..=3 {
        for (place, service) in services.iter().enumerate() {
            let counted = soon(service.call(&env, "add", json!(1))).await;
            let counted = counted.expect("it has a worker").value;
            assert_eq!(counted, json!(round), "{place}");
        }
    }
    // While calls run in both, the third one has to wait.
    let mut busy = JoinSet::new();
    for (at, service) in services.iter().take(2).enumerate() {
        let (service, env) = (Arc::clone(service), env.clone());
        busy.spawn(async move { service.call(&env, "hang", json!(null)).await });
        let started = || lab.probe.started.load(Ordering::SeqCst) == at as u64 + 1;
        until("it hangs", started).await;
    }
    let refused = soon(services[2].call(&env, "add", json!(1))).await;
    assert!(refused.expect_err("both are busy").is_no_room());
    while !busy.is_empty() {
        lab.probe.release.notify_one();
        if let Some(ended) = busy.try_join_next() {
            ended.expect("no panic").expect("a call that ran goes on");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let counted = soon(services[2].call(&env, "add", json!(1))).await;
    assert_eq!(counted.expect("there is room").value, json!(4));
}

/// A changed service gets the state that it had when its session ended for another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_rests_passes_its_state_to_its_next_version() {
    let lab = SessionLab::with_workers(8);
    let request = lab.request().await;
    let env = request.env();
    let first = lab.service(&request, service_spec(0)).await;
    let counted = soon(first.call(&env, "add", json!(5))).await;
    assert_eq!(counted.expect("a sum").value, json!(5));
    // The author has one worker for callers.
    let second = lab.service(&request, service_spec(1)).await;
    soon(first.replace(&env, service_spec(0)))
        .await
        .expect("replaced");
    let counted = soon(first.call(&env, "add", json!(1))).await;
    assert_eq!(counted.expect("a sum").value, json!(6));
    let left = soon(second.stop(&env)).await.expect("a state");
    assert_eq!(left, json!({ "n": 0 }));
}

/// Three services with equal rights where the author has two sessions for callers.
#[tokio::test(flavor = "multi_thread")]
async fn services_of_one_author_give_up_their_sessions_to_each_other() {
    let config = SessionsConfig {
        of_tenant_max: 4,
        ..SessionsConfig::default()
    };
    let lab = SessionLab::with(config, Vec::new());
    let request = lab.request().await;
    let env = request.env();
    let mut services = Vec::new();
    for _ in 0..3 {
        services.push(lab.service(&request, service_spec(0)).await);
    }
    for round in 1..=2 {
        for service in &services {
            let counted = soon(service.call(&env, "add", json!(1))).await;
            assert_eq!(counted.expect("it has a place").value, json!(round));
        }
    }
}

/// How many REPLs are open.
fn open_repls(lab: &SessionLab) -> usize {
    let sessions = lab.sessions.list();
    let repls = sessions.iter().filter(|it| it.mode == SessionMode::Repl);
    repls.count()
}

/// Four identities hold all workers, each by REPLs with different rights.
#[tokio::test(flavor = "multi_thread")]
async fn idle_repls_of_four_leave_the_next_caller_a_worker() {
    const OF_EACH: usize = 2;
    let lab = SessionLab::with_workers(4 * OF_EACH);
    for user in 0..4 {
        let user = lab.client(&identity(&format!("user-{user}"), &["runtime:debug"]));
        for n in 0..OF_EACH {
            let uses = [format!("test/r{n}")];
            let line = json!({ "repl": format!("r{n}"), "source": "1", "uses": uses });
            eval(&user, line).await.expect("a REPL");
        }
    }
    assert_eq!(open_repls(&lab), 4 * OF_EACH);
    let admin = lab.client(&identity("admin", &["runtime:debug"]));
    let ran = eval(&admin, json!({ "source": "export default 42" })).await;
    assert_eq!(ran.expect("it has a worker")["value"], 42);
    assert_eq!(open_repls(&lab), 4 * OF_EACH - 1, "one has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repl_with_a_line_in_progress_gives_up_nothing() {
    let lab = SessionLab::with_workers(4);
    let mut lines = JoinSet::new();
    for n in 0..4 {
        let user = lab.client(&identity(&format!("user-{n}"), &["runtime:debug"]));
        let line = json!({ "repl": "a", "source": "await ops.call('test/hang', {})" });
        lines.spawn(async move { eval(&user, line).await });
    }
    until("all wait", || lab.probe.started.load(Ordering::SeqCst) == 4).await;
    let admin = lab.client(&identity("admin", &["runtime:debug"]));
    let refused = eval(&admin, json!({ "source": "export default 42" })).await;
    let refused = refused.expect_err("each worker is busy");
    assert_eq!(refused.code.name(), "OVERLOADED");
    while !lines.is_empty() {
        lab.probe.release.notify_one();
        if let Some(ended) = lines.try_join_next() {
            let ended = ended.expect("no panic").expect("its line goes on");
            assert_eq!(ended["value"], "released");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repls_that_begin_at_the_same_time_are_no_more_than_one_caller_may_have() {
    let lab = SessionLab::new();
    let dev = lab.client(&identity("dev", &["runtime:debug"]));
    let mut lines = JoinSet::new();
    for n in 0..3 * REPLS_OF_TENANT_MAX {
        let dev = dev.clone();
        let line = json!({ "repl": format!("r{n}"), "source": "1" });
        lines.spawn(async move { eval(&dev, line).await });
    }
    let mut opened = 0;
    while let Some(ended) = lines.join_next().await {
        match ended.expect("no panic") {
            Ok(_) => opened += 1,
            Err(error) => assert_eq!(error.code.name(), "OVERLOADED"),
        }
    }
    assert_eq!(opened, REPLS_OF_TENANT_MAX);
}

/// The names of operations that a script calls are texts of its own choice.
#[tokio::test]
async fn the_record_of_an_ended_session_is_short_and_names_its_owner() {
    let heard = LogCapture::listen();
    let lab = SessionLab::new();
    let mut spec = spec(
        "for (let n = 0; n < 64; n++) {
             await ops.call(`test/${'x'.repeat(100)}-${n}`, 1).catch(() => {});
         }
         await ops.call('test/echo', 1);
         for (;;);",
    );
    spec.limits.runtime.cpu = Duration::from_millis(500);
    code(lab.run(spec).await);
    let mut records = Vec::new();
    until("its end is recorded", || {
        records.extend(heard.take(|line| line.target == SESSION_END_TARGET));
        !records.is_empty()
    })
    .await;
    let record = &records[0];
    assert_eq!(record.field("owner"), Some("tenant"));
    assert_eq!(record.field("calls_out"), Some("65"));
    assert_eq!(record.field("called"), Some("test/echo"));
    let bytes: usize = record.fields.iter().map(|(_, text)| text.len()).sum();
    assert!(bytes < 512, "{record:?}");
}
