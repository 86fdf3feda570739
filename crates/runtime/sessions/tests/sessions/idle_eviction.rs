//! Idle sessions give up their place where another one needs it, and busy ones do not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_call::{CallConnection, CallError, ErrorCode, HandlerKind, OperationSpec, Registration};
use alknet_runtime::SessionMode;
use alknet_sessions::limits::{REPLS_OF_TENANT_MAX, RESTED_OF_TENANT_MAX, RESTED_VALUE_MAX};
use alknet_sessions::{
    SESSION_END_TARGET, ScriptService, SessionGrants, SessionSpec, SessionsConfig,
};
use alknet_test_support::log_capture::LogCapture;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{SessionLab, code, identity, soon, spec, spec_of, until};

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
    // While calls of two callers run in both, the third one has to wait.
    let others = [lab.request_by("ada").await, lab.request_by("bob").await];
    let mut busy = JoinSet::new();
    for (at, (service, other)) in services.iter().zip(&others).enumerate() {
        let (service, env) = (Arc::clone(service), other.env());
        busy.spawn(async move { service.call(&env, "hang", json!(null)).await });
        let started = || lab.probe.started.load(Ordering::SeqCst) == at as u64 + 1;
        until("it hangs", started).await;
    }
    let refused = soon(services[2].call(&env, "add", json!(1))).await;
    assert!(refused.expect_err("both are busy").is_no_capacity());
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

/// An operation that answers one caller alone.
fn for_one_caller() -> Registration {
    let answer = HandlerKind::once(|_, ctx| async move {
        let caller = ctx.identity().map(|who| who.id.to_string());
        match caller.as_deref() {
            Some("lab") => Ok(json!("yes")),
            _ => Err(CallError::new(ErrorCode::Forbidden, "not for this caller")),
        }
    });
    Registration::new(OperationSpec::query("test/one", "For tests."), answer)
}

/// As [`service_spec`], for a service that calls this operation before it takes its state.
fn asking_spec() -> SessionSpec {
    let source = "let n = 0;
         export const init = async (prev) => { await ops.call('test/one', {}); n = prev?.n ?? 0; };
         export const dispose = () => ({ n });
         export const add = (by) => n += by;";
    let mut spec = spec(source);
    spec.lent = true;
    spec.grants = SessionGrants::to(["test/one"]);
    spec
}

/// The author has one session for callers.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_cannot_begin_a_service_takes_no_state_from_it() {
    let config = SessionsConfig {
        of_tenant_max: 2,
        ..SessionsConfig::default()
    };
    let lab = SessionLab::with(config, vec![for_one_caller()]);
    let request = lab.request().await;
    let env = request.env();
    let service = lab.service(&request, asking_spec()).await;
    let counted = soon(service.call(&env, "add", json!(5))).await;
    assert_eq!(counted.expect("a sum").value, json!(5));
    // It rests for the other one.
    let other = lab.service(&request, service_spec(0)).await;
    let eve = lab.request_by("eve").await;
    for _ in 0..2 {
        let refused = soon(service.call(&eve.env(), "add", json!(1))).await;
        let refused = refused.expect_err("its init gets no answer");
        assert!(!refused.is_no_capacity(), "{refused}");
    }
    let counted = soon(service.call(&env, "add", json!(1))).await;
    assert_eq!(counted.expect("a sum").value, json!(6));
    drop(other);
}

/// Neither the new code nor the old one can begin for the caller who brings the change about.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_fails_for_its_caller_takes_no_state_from_a_service() {
    let lab = SessionLab::with(SessionsConfig::default(), vec![for_one_caller()]);
    let request = lab.request().await;
    let env = request.env();
    let service = lab.service(&request, asking_spec()).await;
    let counted = soon(service.call(&env, "add", json!(5))).await;
    assert_eq!(counted.expect("a sum").value, json!(5));
    let eve = lab.request_by("eve").await;
    let changed = soon(service.replace(&eve.env(), asking_spec())).await;
    assert!(changed.is_err(), "{changed:?}");
    let counted = soon(service.call(&env, "add", json!(1))).await;
    assert_eq!(counted.expect("a sum").value, json!(6));
}

/// Bytes of a state, of which two leave no room for a third one that is as large as a value may be.
const LARGE_STATE_BYTES: usize = RESTED_OF_TENANT_MAX / 2 - RESTED_VALUE_MAX / 2 + (64 << 10);

/// Four services where the author has two sessions for callers.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_for_whose_state_there_is_no_room_goes_on() {
    let config = SessionsConfig {
        of_tenant_max: 4,
        ..SessionsConfig::default()
    };
    let lab = SessionLab::with(config, Vec::new());
    let request = lab.request().await;
    let env = request.env();
    let source = format!(
        "export const dispose = () => 'x'.repeat({LARGE_STATE_BYTES});
         export const get = () => 7;"
    );
    let mut large = spec(&source);
    large.lent = true;
    let mut resting = Vec::new();
    for _ in 0..2 {
        resting.push(lab.service(&request, large.clone()).await);
    }
    let mut small = Vec::new();
    for _ in 0..2 {
        small.push(lab.service(&request, service_spec(0)).await);
    }
    let open = || lab.sessions.list().into_iter().map(|session| session.id);
    let before: Vec<u64> = open().collect();
    let refused = soon(resting[0].call(&env, "get", json!(null))).await;
    assert!(refused.expect_err("no service can rest").is_no_capacity());
    assert_eq!(open().collect::<Vec<_>>(), before, "both go on");
    for service in &small {
        let counted = soon(service.call(&env, "add", json!(1))).await;
        assert_eq!(counted.expect("a sum").value, json!(1));
    }
}

/// Services with other rights, one call of each at once: a caller gets half of the author's four workers for callers.
#[tokio::test(flavor = "multi_thread")]
async fn slow_calls_of_services_leave_other_callers_workers() {
    const OF_CALLER: u64 = 2;
    let lab = SessionLab::with_workers(32);
    let request = lab.request().await;
    let mut services: Vec<Arc<ScriptService>> = Vec::new();
    for place in 0..4 {
        services.push(Arc::new(lab.service(&request, service_spec(place)).await));
    }
    let eve = lab.request_by("eve").await;
    let mut calls = JoinSet::new();
    for service in &services {
        let (service, env) = (Arc::clone(service), eve.env());
        calls.spawn(async move { service.call(&env, "hang", json!(null)).await });
    }
    for _ in OF_CALLER..4 {
        let ended = soon(calls.join_next()).await.expect("some run");
        let refused = ended.expect("no panic").expect_err("she has her share");
        assert!(refused.is_no_capacity(), "{refused}");
    }
    until("the others run", || {
        lab.probe.started.load(Ordering::SeqCst) == OF_CALLER
    })
    .await;
    // A fifth operation, beside those whose calls hang.
    let bob = lab.request_by("bob").await;
    let fifth = soon(ScriptService::start(
        &lab.sessions,
        &bob.env(),
        service_spec(4),
    ))
    .await
    .expect("a worker");
    let counted = soon(fifth.call(&bob.env(), "add", json!(1))).await;
    assert_eq!(counted.expect("it has a worker").value, json!(1));
    assert_eq!(calls.len() as u64, OF_CALLER, "hers go on");
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

/// As many identities as there are workers have one REPL each, and another one wants several workers at once.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_begin_at_once_end_one_repl_of_those_with_no_more() {
    const WORKERS: usize = 12;
    const AT_ONCE: usize = 3;
    let lab = SessionLab::with_workers(WORKERS);
    for user in 0..WORKERS {
        let user = lab.client(&identity(&format!("user-{user}"), &["runtime:debug"]));
        let line = json!({ "repl": "a", "source": "1" });
        eval(&user, line).await.expect("a REPL");
    }
    assert_eq!(open_repls(&lab), WORKERS);
    let eve = lab.client(&identity("eve", &["runtime:debug"]));
    let mut scripts = JoinSet::new();
    for n in 0..AT_ONCE {
        let eve = eve.clone();
        let source = "export default await ops.call('test/hang', {})";
        let uses = ["test/hang".to_owned(), format!("test/r{n}")];
        let script = json!({ "source": source, "uses": uses });
        scripts.spawn(async move { eval(&eve, script).await });
    }
    for _ in 1..AT_ONCE {
        let ended = soon(scripts.join_next()).await.expect("some run");
        let refused = ended.expect("no panic").expect_err("all have as many");
        assert_eq!(refused.code.name(), "OVERLOADED");
    }
    until("one runs", || lab.probe.started.load(Ordering::SeqCst) == 1).await;
    assert_eq!(open_repls(&lab), WORKERS - 1, "one has ended");
    scripts.abort_all();
}

/// A session of ada's operation, for a call of mallory.
fn called_by_mallory() -> SessionSpec {
    let mut spec = spec_of("ada", "");
    spec.lent = true;
    spec.payer = Some(identity("mallory", &["*"]));
    spec
}

/// Calls of ada's operation wait for the worker of a service that takes its time to end. Then ada runs a script. One
/// more worker has an idle REPL, and all others are busy.
#[tokio::test(flavor = "multi_thread")]
async fn callers_of_an_author_keep_no_worker_from_the_author() {
    const WORKERS: usize = 8;
    const BUSY: usize = WORKERS - 2;
    const CALLS: usize = 20;
    let lab = Arc::new(SessionLab::with_workers(WORKERS));
    let request = lab.request_by("mallory").await;
    let mut slow = spec(
        "export const dispose = () => new Promise((done) => setTimeout(done, 400));
         export const get = () => 7;",
    );
    slow.lent = true;
    let service = lab.service(&request, slow).await;
    let rita = lab.client(&identity("rita", &["runtime:debug"]));
    let line = json!({ "repl": "a", "source": "1" });
    eval(&rita, line).await.expect("a REPL");
    let mut busy = JoinSet::new();
    for n in 0..BUSY {
        let user = lab.client(&identity(&format!("user-{n}"), &["runtime:debug"]));
        let source = "export default await ops.call('test/hang', {})";
        let script = json!({ "source": source, "uses": ["test/hang"] });
        busy.spawn(async move { eval(&user, script).await });
    }
    until("all workers are in use", || {
        lab.probe.started.load(Ordering::SeqCst) == BUSY as u64
    })
    .await;
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let (lab, env) = (Arc::clone(&lab), request.env());
        calls.spawn(async move { lab.sessions.open(&env, called_by_mallory()).await });
    }
    until("the service ends", || {
        let sessions = lab.sessions.list();
        sessions.iter().any(|it| it.state.name() == "draining")
    })
    .await;
    assert_eq!(open_repls(&lab), 1, "the calls have not ended it");
    let ada = lab.client(&identity("ada", &["runtime:debug"]));
    let ran = eval(&ada, json!({ "source": "export default 42" })).await;
    assert_eq!(ran.expect("it has a worker")["value"], 42);
    assert_eq!(open_repls(&lab), 0, "it has ended for ada");
    let opened = soon(calls.join_all()).await;
    let opened = opened.into_iter().filter(Result::is_ok).count();
    assert!(opened > 0, "the first call has the service's worker");
    busy.abort_all();
    drop(service);
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
