//! Services that end for others keep their states, and do not keep others waiting.

use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_call::{CallError, ErrorCode, HandlerKind, OperationSpec, Registration};
use alknet_runtime::limits::JSON_BYTES;
use alknet_runtime::{RuntimeCode, SessionMode};
use alknet_sessions::limits::{RESTED_OF_TENANT_MAX, RESTED_VALUE_MAX};
use alknet_sessions::{ScriptService, ScriptSession, SessionSpec, SessionsConfig};
use alknet_test_support::deadline;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::{
    SessionLab, SessionTestRequest, code, identity, main, soon, spec, spec_of, until,
};

/// Bytes of a state, of which two leave no room for a third one that is as large as a value may be.
const LARGE_STATE_BYTES: usize = RESTED_OF_TENANT_MAX / 2 - RESTED_VALUE_MAX / 2 + (64 << 10);

/// A service that others call, with this source.
fn lent(source: &str) -> SessionSpec {
    let mut spec = spec(source);
    spec.lent = true;
    spec
}

/// The same with a state of so many bytes.
fn with_large_state(bytes: usize) -> SessionSpec {
    lent(&format!(
        "let state = 0;
         export const init = (prev) => {{ state = prev?.length ?? 0; }};
         export const dispose = () => 'x'.repeat({bytes});
         export const get = () => state;"
    ))
}

/// Fills the memory for registered operations, as far as this identity may.
async fn fill(lab: &SessionLab, request: &SessionTestRequest, tenant: &str) -> ScriptSession {
    let source = "let n = 0;
         for (const bytes of [250000, 60000, 15000, 4000, 1000]) {
             const description = 'x'.repeat(bytes);
             for (;;) {
                 try { await ops.register({ name: `r${n}`, kind: 'query', description }, () => 1); }
                 catch { break; }
                 n++;
             }
         }
         export default n";
    let session = lab.open(request, spec_of(tenant, source)).await;
    let ran = soon(session.run(&request.env(), main())).await;
    let registered = ran.expect("a number").value.as_u64();
    assert!(registered.is_some_and(|n| n > 4), "{registered:?}");
    session
}

/// Two identities register all that they may, and the `init` of a service of a third one does not handle the error.
#[tokio::test(flavor = "multi_thread")]
async fn operations_that_others_register_take_no_state_from_a_service() {
    let config = SessionsConfig {
        of_tenant_max: 2,
        ..SessionsConfig::default()
    };
    let lab = SessionLab::with(config, Vec::new());
    let request = lab.request().await;
    let env = request.env();
    let registering = lent(
        "let n = 0;
         export const init = async (prev) => {
             const description = 'x'.repeat(100000);
             await ops.register({ name: 'big', kind: 'query', description }, () => 1);
             n = prev?.n ?? 0;
         };
         export const dispose = () => ({ n });
         export const add = (by) => n += by;",
    );
    let service = lab.service(&request, registering).await;
    let counted = soon(service.call(&env, "add", json!(5))).await;
    assert_eq!(counted.expect("a sum").value, json!(5));
    // The author has one session for callers: the first one rests for the other one.
    let other = lab
        .service(&request, lent("export const get = () => 7;"))
        .await;
    let filled = [
        fill(&lab, &request, "eve").await,
        fill(&lab, &request, "mallory").await,
    ];
    let refused = soon(service.call(&env, "add", json!(1))).await;
    let refused = refused.expect_err("its init finds no room");
    let error = refused.operation.as_deref();
    assert_eq!(refused.code, RuntimeCode::Exception, "{refused}");
    assert_eq!(
        error.map(|error| error.code.as_str()),
        Some("QUOTA_EXCEEDED")
    );
    drop((filled, other));
    // The operations are there until the sessions of both have ended.
    let counted = soon(async {
        loop {
            match service.call(&env, "add", json!(1)).await {
                Ok(counted) => break counted.value,
                Err(refused) => assert_eq!(refused.code, RuntimeCode::Exception, "{refused}"),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert_eq!(counted.await, json!(6));
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

/// Neither the new code nor the old one could begin for the caller who brings the change about, and the states of two
/// other services have taken the room in which this one's would wait. The author has two sessions for callers.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_not_changed_without_room_in_which_its_state_can_wait() {
    let config = SessionsConfig {
        of_tenant_max: 4,
        ..SessionsConfig::default()
    };
    let lab = SessionLab::with(config, vec![for_one_caller()]);
    let request = lab.request().await;
    let env = request.env();
    let mut resting = Vec::new();
    for _ in 0..2 {
        let large = with_large_state(LARGE_STATE_BYTES);
        resting.push(lab.service(&request, large).await);
    }
    let largest = JSON_BYTES - (64 << 10);
    let asking = lent(&format!(
        "let n = 0;
         export const init = async (prev) => {{ await ops.call('test/one', {{}}); n = prev?.n ?? 0; }};
         export const dispose = () => ({{ n, text: 'x'.repeat({largest}) }});
         export const add = (by) => n += by;"
    ));
    let service = lab.service(&request, asking.clone()).await;
    let other = lab.service(&request, with_large_state(1)).await;
    let counted = soon(service.call(&env, "add", json!(5))).await;
    assert_eq!(counted.expect("a sum").value, json!(5));
    // Both large ones rest, and the new code finds a place.
    drop(other);
    until("one is open", || lab.sessions.list().len() == 1).await;
    let eve = lab.request_by("eve").await;
    let changed = soon(service.replace(&eve.env(), asking)).await;
    let refused = changed.expect_err("its state could not wait");
    assert!(refused.is_no_capacity(), "{refused}");
    let counted = soon(service.call(&env, "add", json!(1))).await;
    assert_eq!(counted.expect("a sum").value, json!(6));
    drop(resting);
}

/// The worker ends while `init` takes the state: for a call of another session in it, for example. The author has one
/// session for callers.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_lost_in_init_takes_no_state_from_a_service() {
    let config = SessionsConfig {
        of_tenant_max: 2,
        ..SessionsConfig::default()
    };
    let lab = SessionLab::with(config, Vec::new());
    let request = lab.request().await;
    let env = request.env();
    // It calls nothing: a call of `init` would keep the state by itself.
    let slow = lent(
        "let n = 0;
         export const init = async (prev) => {
             if (prev) console.log('takes');
             if (prev) await new Promise((done) => setTimeout(done, 2000));
             n = prev?.n ?? 0;
         };
         export const dispose = () => ({ n });
         export const add = (by) => n += by;",
    );
    let (console, mut lines) = mpsc::channel(8);
    let slow = SessionSpec {
        console: Some(console),
        ..slow
    };
    let service = lab.service(&request, slow).await;
    let counted = soon(service.call(&env, "add", json!(5))).await;
    assert_eq!(counted.expect("a sum").value, json!(5));
    // It rests for the other one.
    let other = lab
        .service(&request, lent("export const get = () => 7;"))
        .await;
    let ends = async {
        let line = lines.recv().await.expect("init has begun");
        assert_eq!(line.text, "takes");
        let open = lab.sessions.list();
        let opening = open.iter().find(|it| it.state.name() == "running");
        let pid = opening.expect("init runs").pid;
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
    };
    let call = service.call(&env, "add", json!(1));
    let (lost, ()) = soon(async { tokio::join!(call, ends) }).await;
    assert_eq!(code(lost), RuntimeCode::WorkerLost);
    let counted = soon(service.call(&env, "add", json!(1))).await;
    assert_eq!(counted.expect("a sum").value, json!(6));
    drop(other);
}

/// How many services one worker has.
const CROWD: usize = 16;

/// Services of one author with equal rights, which share one of two workers. A script of bob's keeps the other one.
async fn crowd(
    lab: &SessionLab,
    request: &SessionTestRequest,
    specs: impl IntoIterator<Item = SessionSpec>,
) -> (Vec<ScriptService>, JoinHandle<Result<Value, CallError>>) {
    let mut services = Vec::new();
    for spec in specs {
        services.push(lab.service(request, spec).await);
    }
    let mut pids: Vec<_> = lab.sessions.list().iter().map(|it| it.pid).collect();
    pids.dedup();
    assert_eq!(pids.len(), 1, "they share a worker");
    let source = "export default await ops.call('test/hang', {})";
    let busy = script(
        lab,
        "bob",
        json!({ "source": source, "uses": ["test/hang"] }),
    );
    until("bob's script runs", || {
        lab.probe.started.load(Ordering::SeqCst) == 1
    })
    .await;
    (services, busy)
}

/// Runs a script of an identity.
fn script(lab: &SessionLab, who: &str, input: Value) -> JoinHandle<Result<Value, CallError>> {
    let client = lab.client(&identity(who, &["runtime:debug"]));
    tokio::spawn(async move {
        let answer = client.call("runtime/eval", &input).await?;
        Ok(answer.value()["value"].clone())
    })
}

/// A service that takes its time to say goodbye.
fn slow_to_end() -> SessionSpec {
    lent(
        "let n = 0; export const init = (prev) => { n = prev?.n ?? 0; };
         export const dispose = async () => {
             await new Promise((done) => setTimeout(done, 400));
             return { n };
         };
         export const add = (by) => n += by;",
    )
}

/// The numbers of the services' sessions that are open.
fn open_services(lab: &SessionLab) -> Vec<u64> {
    let sessions = lab.sessions.list();
    let services = sessions.iter().filter(|it| it.mode == SessionMode::Service);
    services.map(|it| it.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_does_not_wait_for_all_services_of_a_worker() {
    let lab = SessionLab::with_workers(2);
    let request = lab.request().await;
    let specs = std::iter::repeat_with(slow_to_end).take(CROWD);
    let (services, busy) = crowd(&lab, &request, specs).await;
    let eve = script(&lab, "eve", json!({ "source": "export default 42" }));
    let answered = timeout(deadline(Duration::from_secs(2)), eve).await;
    match answered.expect("an answer in time").expect("no panic") {
        Ok(value) => assert_eq!(value, 42),
        Err(refused) => assert_eq!(refused.code.name(), "OVERLOADED"),
    }
    let left = open_services(&lab).len();
    assert!(left < CROWD, "some have given up their place");
    drop(services);
    busy.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_answers_while_others_of_its_worker_end() {
    let lab = SessionLab::with_workers(2);
    let request = lab.request().await;
    let env = request.env();
    let specs = std::iter::repeat_with(slow_to_end).take(CROWD);
    let (services, busy) = crowd(&lab, &request, specs).await;
    let eve = script(&lab, "eve", json!({ "source": "export default 42" }));
    until("the first one ends", || {
        let sessions = lab.sessions.list();
        sessions.iter().any(|it| it.state.name() == "draining")
    })
    .await;
    let last = services.last().expect("sixteen");
    let call = last.call(&env, "add", json!(1));
    let counted = timeout(deadline(Duration::from_secs(1)), call).await;
    let counted = counted.expect("an answer in time");
    assert_eq!(counted.expect("a sum").value, json!(1));
    eve.abort();
    busy.abort();
}

/// The states of two leave no room for that of the third one, as the node knows after the first attempt.
#[tokio::test(flavor = "multi_thread")]
async fn services_whose_states_do_not_fit_together_end_once_for_nothing() {
    let lab = SessionLab::with_workers(2);
    let request = lab.request().await;
    let env = request.env();
    let large = || with_large_state(LARGE_STATE_BYTES);
    let specs = std::iter::repeat_with(large).take(3);
    let (services, busy) = crowd(&lab, &request, specs).await;
    let asks = async || {
        let eve = script(&lab, "eve", json!({ "source": "export default 42" }));
        let refused = soon(eve).await.expect("no panic");
        let refused = refused.expect_err("the third one cannot end");
        assert_eq!(refused.code.name(), "OVERLOADED");
    };
    asks().await;
    assert_eq!(open_services(&lab).len(), 1, "two have ended");
    let mut states = Vec::new();
    for service in &services {
        let got = soon(service.call(&env, "get", json!(null))).await;
        states.push(got.expect("it begins again").value);
    }
    // A state is longer than a frame to a worker.
    let back = json!(LARGE_STATE_BYTES);
    assert_eq!(states.iter().filter(|state| **state == back).count(), 2);
    let before = open_services(&lab);
    assert_eq!(before.len(), 3);
    asks().await;
    assert_eq!(open_services(&lab), before, "none has ended");
    busy.abort();
}
