//! Services and the change of their code.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_runtime::limits::CPU_MAX;
use alknet_runtime::{ModuleSet, RuntimeCode, ScriptFailure, SessionMode};
use alknet_sessions::limits::FUEL_MAX;
use alknet_sessions::{ScriptService, SessionEndReason, SessionSpec, SessionState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{SessionLab, code, export, main, soon, spec, until};

fn counter(version: u32) -> String {
    format!(
        "let n = 0; export const init = (prev) => {{ n = prev?.n ?? 0; }};
         export const dispose = () => ({{ n }});
         export const add = (by) => [{version}, n += by];
         export const hang = async () => {{ await ops.call('test/hang', {{}}); return {version}; }};
         export const spin = () => {{ for (;;); }};"
    )
}

fn service_spec(source: &str) -> SessionSpec {
    let mut spec = spec(source);
    spec.limits.runtime.cpu = Duration::from_millis(200);
    spec
}

fn modules(source: &str) -> ModuleSet {
    let mut modules = ModuleSet::new();
    modules.insert("./main.js", source).expect("a module");
    modules
}

async fn passes(_: alknet_sessions::ScriptSession) -> Result<(), ScriptFailure> {
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn state_passes_from_version_to_version() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let spec = service_spec(&counter(1));
    let service = lab.service(&request, spec).await;
    let add = async |by: i64| -> Value {
        let ran = soon(service.call(&env, "add", json!(by))).await;
        ran.expect("a sum").value
    };
    assert_eq!(add(5).await, json!([1, 5]));
    soon(service.reload(&env, modules(&counter(2)), passes))
        .await
        .expect("reloaded");
    assert_eq!(add(1).await, json!([2, 6]));
    // A version whose test fails never serves.
    let test = |trial: alknet_sessions::ScriptSession| {
        let env = env.clone();
        async move {
            let ran = trial.run(&env, export("add", json!(2))).await?;
            match ran.value == json!([2, 2]) {
                true => Ok(()),
                false => Err(ScriptFailure::new(
                    RuntimeCode::Exception,
                    "the test failed",
                )),
            }
        }
    };
    let failed = soon(service.reload(&env, modules(&counter(3)), test)).await;
    assert_eq!(failed.expect_err("a test").message, "the test failed");
    assert_eq!(add(1).await, json!([2, 7]));
    // Nor does one that does not compile, nor one whose init throws: what was known is kept.
    for broken in [
        "export default (",
        "throw 1",
        "export const init = () => { throw new Error('no') }",
    ] {
        let failed = soon(service.reload(&env, modules(broken), passes)).await;
        assert!(failed.is_err(), "{broken}");
        assert_eq!(add(0).await, json!([2, 7]), "{broken}");
    }
    let left = soon(service.stop(&env)).await.expect("a state");
    assert_eq!(left, json!({ "n": 7 }));
    until("all are closed", || lab.sessions.list().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_run_finish_on_the_old_version() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let spec = service_spec(&counter(1));
    let service = Arc::new(lab.service(&request, spec).await);
    let hang = {
        let (service, env) = (Arc::clone(&service), env.clone());
        tokio::spawn(async move { service.call(&env, "hang", json!(null)).await })
    };
    until("it hangs", || lab.probe.started.load(Ordering::SeqCst) == 1).await;
    let reload = {
        let (service, env) = (Arc::clone(&service), env.clone());
        tokio::spawn(async move { service.reload(&env, modules(&counter(2)), passes).await })
    };
    // The new one is there, and waits.
    until("both are open", || lab.sessions.list().len() >= 2).await;
    lab.probe.release.notify_one();
    let old = soon(hang).await.expect("no panic").expect("a value").value;
    assert_eq!(old, json!(1));
    soon(reload).await.expect("no panic").expect("reloaded");
    let new = soon(service.call(&env, "add", json!(1)))
        .await
        .expect("a sum")
        .value;
    assert_eq!(new, json!([2, 1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_service_starts_again() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let spec = service_spec(&counter(1));
    let service = lab.service(&request, spec).await;
    soon(service.call(&env, "add", json!(5)))
        .await
        .expect("a sum");
    let ended = code(soon(service.call(&env, "spin", json!(null))).await);
    assert!(
        matches!(ended, RuntimeCode::Timeout | RuntimeCode::Fuel),
        "{ended}"
    );
    let restarted = soon(service.call(&env, "add", json!(1)))
        .await
        .expect("a sum")
        .value;
    assert_eq!(restarted, json!([1, 1]));
}

/// The session of a service whose isolate was stopped for one call is over for the next one, which is not to blame.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_stopped_for_one_call_is_opened_again() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let source = "export const add = (by) => by;
         export const spin = () => { ops.call('test/echo', 1).catch(() => {}); for (;;); };";
    let mut spec = spec(source);
    spec.limits.runtime.fuel_ticks = FUEL_MAX;
    spec.limits.runtime.cpu = CPU_MAX;
    let service = lab.service(&request, spec).await;
    let session = service.session().await;
    {
        let spinning = service.call(&env, "spin", json!(null));
        tokio::pin!(spinning);
        let computes = until("it computes", || !session.info().calls.is_empty());
        tokio::select! {
            ran = &mut spinning => panic!("it has no end: {ran:?}"),
            () = computes => {}
        }
    }
    let refused = soon(service.call(&env, "add", json!(1))).await;
    let refused = refused.expect_err("the isolate was stopped");
    assert_eq!(refused.code, RuntimeCode::WorkerLost, "{refused}");
    assert!(refused.excused, "{refused}");
    let over = SessionState::Closed(SessionEndReason::Abort);
    assert_eq!(session.info().state, over);
    let sum = soon(service.call(&env, "add", json!(1))).await;
    assert_eq!(sum.expect("it is opened again").value, json!(1));
}

/// A caller gives up a call in native code, which no abort reaches, so that the host kills the worker. A call of
/// another session runs there.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_for_one_call_is_not_held_against_another() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let source = "export const hang = () => ops.call('test/hang', {});
         const text = 'a'.repeat(1 << 24), sought = 'a'.repeat(1 << 15) + 'b';
         export const seek = () => {
             ops.call('test/echo', 1).catch(() => {});
             for (;;) text.indexOf(sought);
         };";
    let mut native = spec(source);
    native.mode = SessionMode::Service;
    native.limits.runtime.fuel_ticks = FUEL_MAX;
    native.limits.runtime.cpu = CPU_MAX;
    native.limits.runtime.heap_bytes = 512 << 20;
    let [attacked, attacker] = [
        lab.open(&request, native.clone()).await,
        lab.open(&request, native).await,
    ];
    assert_eq!(attacked.info().pid, attacker.info().pid);
    let waits = {
        let (attacked, env) = (attacked.clone(), env.clone());
        tokio::spawn(async move { attacked.run(&env, export("hang", json!(null))).await })
    };
    until("it waits", || lab.probe.started.load(Ordering::SeqCst) == 1).await;
    {
        // It compares for longer than a worker has for its answer to an abort, here and on a busy machine.
        let seeking = attacker.run(&env, export("seek", json!(null)));
        tokio::pin!(seeking);
        let computes = until("it computes", || !attacker.info().calls.is_empty());
        tokio::select! {
            ran = &mut seeking => panic!("it has no end: {ran:?}"),
            () = computes => {}
        }
    }
    let lost = soon(waits).await.expect("no panic");
    let lost = lost.expect_err("its worker is killed");
    assert_eq!(lost.code, RuntimeCode::WorkerLost, "{lost}");
    assert!(lost.excused, "{lost}");
    // A worker that ends under one call alone is held against it.
    let alone = lab
        .open(&request, spec("await ops.call('test/hang', {})"))
        .await;
    let waits = {
        let (alone, env) = (alone.clone(), env.clone());
        tokio::spawn(async move { alone.run(&env, main()).await })
    };
    until("it waits", || lab.probe.started.load(Ordering::SeqCst) == 2).await;
    kill(Pid::from_raw(alone.info().pid), Signal::SIGKILL).expect("it lives");
    let lost = soon(waits).await.expect("no panic");
    let lost = lost.expect_err("its worker is killed");
    assert_eq!((lost.code, lost.excused), (RuntimeCode::WorkerLost, false));
}

/// What comes of a call into a worker that an attacker has taken over, and of its session.
async fn call_of_worker(name: &str) -> (ScriptFailure, SessionState) {
    let folder = tempfile::tempdir().expect("a folder");
    let lab = SessionLab::with_hostile_workers(name, folder.path());
    let request = lab.request().await;
    let session = lab.open(&request, spec("export const v = () => 1;")).await;
    let ran = soon(session.run(&request.env(), export("v", json!(null)))).await;
    (ran.expect_err("it runs no script"), session.info().state)
}

/// Expects that the call of such a worker fails as one of a lost worker, and speaks against the code.
async fn expect_loss_without_excuse(worker: &str) {
    let (failed, state) = call_of_worker(worker).await;
    assert_eq!(
        (failed.code, failed.excused),
        (RuntimeCode::WorkerLost, false),
        "{failed}"
    );
    let over = SessionState::Closed(SessionEndReason::WorkerLost);
    assert_eq!(state, over);
}

/// A worker says that the call was stopped from outside, where the node has given up no call of the session.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_claims_an_abort_is_not_excused() {
    expect_loss_without_excuse("claims-abort").await;
}

/// The node ends the session, and with it the call, which its caller did not give up.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_breaks_the_protocol_is_not_excused() {
    expect_loss_without_excuse("breaks-protocol").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farewell_has_half_a_second() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let source = "export const v = () => 1; export const dispose = () => new Promise(() => {});";
    let spec = service_spec(source);
    let service = lab.service(&request, spec).await;
    // It leaves nothing, and does not keep its successor out.
    let next = modules(
        "let p; export const init = (prev) => { p = prev; }; export const v = () => [2, p];",
    );
    soon(service.reload(&env, next, passes))
        .await
        .expect("reloaded");
    let v = soon(service.call(&env, "v", json!(null)))
        .await
        .expect("a value")
        .value;
    assert_eq!(v, json!([2, null]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_names_its_module() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let mut nameless = service_spec("export const v = 1");
    nameless.main = None;
    let failed = ScriptService::start(&lab.sessions, &request.env(), nameless).await;
    assert_eq!(failed.expect_err("no module").code, RuntimeCode::Limit);
}

/// A caller chooses the text of an error, and the size of an input and of what a server answers: none of them ends the
/// session, whose state others need.
#[tokio::test(flavor = "multi_thread")]
async fn no_text_and_no_size_of_a_caller_takes_a_services_state() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let source = "let n = 0; export const add = (by) => n += by;
         export const fails = (text) => { throw new Error(text); };
         export const holds = (text) => text.length;
         export const asks = async (bytes) => {
             const held = [];
             for (;;) held.push(await ops.call('test/big', bytes));
         };";
    let mut spec = service_spec(source);
    spec.limits.runtime.heap_bytes = 4 << 20;
    spec.limits.runtime.external_bytes = 8 << 20;
    let service = lab.service(&request, spec).await;
    let call = async |name: &str, input: Value| {
        let ran = soon(service.call(&env, name, input)).await;
        ran.map(|ran| ran.value)
            .map_err(|failure| (failure.code, failure.operation.map(|error| error.code)))
    };
    assert_eq!(call("add", json!(4)).await, Ok(json!(4)));
    let exception = RuntimeCode::Exception;
    for (name, input, failed) in [
        ("fails", json!("out of memory"), (exception, None)),
        (
            "fails",
            json!("Maximum call stack size exceeded"),
            (RuntimeCode::Stack, None),
        ),
        (
            "holds",
            json!("x".repeat(3_900_000)),
            (RuntimeCode::Quota, None),
        ),
        (
            "asks",
            json!(1 << 20),
            (exception, Some("QUOTA_EXCEEDED".to_owned())),
        ),
    ] {
        let failure = call(name, input).await;
        assert_eq!(failure, Err(failed), "{name}");
        assert_eq!(call("add", json!(0)).await, Ok(json!(4)), "{name}");
    }
}
