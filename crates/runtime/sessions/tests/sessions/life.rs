//! How sessions begin, run and end.

use std::sync::atomic::Ordering;

use alknet_runtime::{IsolateWork, RuntimeCode, SessionMode, SessionTimeSource};
use alknet_sessions::limits::WALL_MAX_ONE_SHOT;
use alknet_sessions::{
    SessionConsoleLine, SessionEndReason, SessionGrants, SessionSpec, SessionState, SessionsConfig,
};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::json;
use tokio::sync::mpsc;

use crate::support::{SessionLab, code, export, identity, main, soon, spec, spec_of, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_module_runs_in_a_worker() {
    let lab = SessionLab::new();
    let source = "console.log('hello', [1]); console.error('no'); export default { six: 2 * 3, \
                  ops: typeof ops, gpu: typeof gpu, tensor: typeof tensor }";
    let mut spec = spec(source);
    let (console, mut lines) = mpsc::channel(8);
    spec.console = Some(console);
    let request = lab.request().await;
    let session = lab.open(&request, spec).await;
    assert_eq!(session.info().state, SessionState::Idle);
    assert_ne!(
        session.info().pid,
        i32::try_from(std::process::id()).expect("a pid")
    );
    let ran = soon(session.run(&request.env(), main()))
        .await
        .expect("a value");
    let expected = json!({ "six": 6, "ops": "object", "gpu": "undefined", "tensor": "undefined" });
    assert_eq!(ran.value, expected);
    assert!(ran.stats.heap_peak > 0);
    let SessionConsoleLine { text, .. } = lines.recv().await.expect("a line");
    assert!(text.starts_with("hello"), "{text}");
    assert_eq!(lines.recv().await.expect("another").text, "no");
    let info = session.info();
    assert_eq!((info.ended, info.tenant.as_str()), (1, "tenant"));
    drop(session);
    until("it is forgotten", || lab.sessions.list().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_are_called_again_and_again() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let source = "let n = 0; export const add = (x) => n += x; export default 1;";
    let session = lab.open(&request, spec(source)).await;
    let env = request.env();
    for (add, sum) in [(1, 1), (2, 3), (40, 43)] {
        let ran = soon(session.run(&env, export("add", json!(add)))).await;
        assert_eq!(ran.expect("a sum").value, json!(sum));
    }
    let none = soon(session.run(&env, export("sub", json!(1)))).await;
    assert_eq!(code(none), RuntimeCode::NotFound);
    // Two hundred at once share the isolate.
    let many = (0..200).map(|_| session.run(&env, export("add", json!(0))));
    for ran in soon(futures_util::future::join_all(many)).await {
        assert_eq!(ran.expect("a sum").value, json!(43));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_import_each_other_and_types_are_erased() {
    let lab = SessionLab::new();
    let mut one = spec("import { twice } from './twice.ts'; export default twice(21);");
    one.modules
        .insert(
            "./twice.ts",
            "export const twice = (n: number): number => 2 * n;",
        )
        .expect("a module");
    assert_eq!(lab.run(one).await.expect("a value").value, json!(42));
    let mut wrong = spec("import './a.ts'; export default 1;");
    wrong
        .modules
        .insert("./a.ts", "enum A { B }")
        .expect("a module");
    let failure = lab.run(wrong).await.expect_err("an enum");
    assert_eq!(failure.code, RuntimeCode::TsUnsupported);
    assert_eq!(failure.place.expect("a place").module, "./a.ts");
    let missing = spec("import './nowhere.js'");
    assert_eq!(code(lab.run(missing).await), RuntimeCode::NotFound);
    let syntax = spec("export default (");
    assert_eq!(code(lab.run(syntax).await), RuntimeCode::Exception);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_bundle_and_a_large_answer_travel_beside_the_frames() {
    let lab = SessionLab::new();
    let mut large = spec("import { n } from './large.js'; export default 'y'.repeat(n);");
    let text = format!("/* {} */ export const n = 3000000;", "x".repeat(900_000));
    large.modules.insert("./large.js", text).expect("a module");
    let value = lab.run(large).await.expect("a text").value;
    assert_eq!(value.as_str().map(str::len), Some(3_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_and_clock_give_the_same_answer() {
    let lab = SessionLab::new();
    let source = "await new Promise((done) => setTimeout(done, 86_400_000)); export default [
        Math.random(), Date.now(), [...crypto.getRandomValues(new Uint8Array(4))]]";
    let run = async |seed: u8| {
        let mut spec = spec(source);
        spec.seed = Some([seed; 32]);
        spec.clock = SessionTimeSource::Virtual { start_ms: 1000 };
        let ran = lab.run(spec).await.expect("a value");
        (ran.value, ran.stats.ticks)
    };
    let (one, again, other) = (run(1).await, run(1).await, run(2).await);
    assert_eq!(one, again);
    assert_ne!(one.0, other.0);
    assert_eq!(one.0[1], json!(86_401_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repl_remembers_its_lines() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let mut spec = spec("export const six = 6;");
    spec.mode = SessionMode::Repl;
    let session = lab.open(&request, spec).await;
    let env = request.env();
    let line = async |source: &str| {
        let source = source.to_owned();
        soon(session.run(&env, IsolateWork::Script { source })).await
    };
    assert_eq!(
        line("let a = 2").await.expect("nothing").shown.as_deref(),
        Some("undefined")
    );
    assert_eq!(line("a * 21").await.expect("a value").value, json!(42));
    assert_eq!(code(line("nowhere").await), RuntimeCode::Exception);
    assert_eq!(line("eval('a')").await.expect("a value").value, json!(2));
    assert_eq!(
        line("").await.expect("nothing").shown.as_deref(),
        Some("undefined")
    );
    let six = line("(await import('./main.js')).six")
        .await
        .expect("a value");
    assert_eq!((six.value, six.shown.as_deref()), (json!(6), Some("6")));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_call_aborts_it_and_what_it_called() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let source = "export let heard = false;
        export const wait = async (_, { signal }) => {
            signal.addEventListener('abort', () => { heard = true; });
            return ops.call('test/hang', {}, { signal, timeoutMs: 600_000 });
        };
        export const did = () => heard;";
    let mut spec = spec(source);
    spec.mode = SessionMode::Service;
    spec.limits.wall = WALL_MAX_ONE_SHOT;
    let session = lab.open(&request, spec).await;
    let env = request.env();
    {
        let waiting = session.run(&env, export("wait", json!(null)));
        tokio::pin!(waiting);
        let started = async {
            until("it started", || {
                lab.probe.started.load(Ordering::SeqCst) == 1
            })
            .await;
        };
        tokio::select! {
            _ = &mut waiting => panic!("it waits"),
            () = started => {}
        }
    }
    until("it was dropped", || {
        lab.probe.dropped.load(Ordering::SeqCst) == 1
    })
    .await;
    let did = soon(session.run(&env, export("did", json!(null)))).await;
    assert_eq!(did.expect("alive").value, json!(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ignored_abort_ends_the_script_and_not_its_neighbours() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let neighbour = lab
        .open(&request, spec("export const ping = () => 'pong'"))
        .await;
    soon(neighbour.run(&env, export("ping", json!(null))))
        .await
        .expect("pong");
    let mut busy = spec("console.log('on'); for (;;);");
    let (console, mut lines) = mpsc::channel(8);
    busy.console = Some(console);
    busy.limits.runtime.fuel_ticks = 10_000_000;
    busy.limits.runtime.cpu = std::time::Duration::from_secs(100);
    let session = lab.open(&request, busy).await;
    // Both are in one worker.
    assert_eq!(session.info().pid, neighbour.info().pid);
    {
        let running = session.run(&env, main());
        tokio::pin!(running);
        tokio::select! {
            _ = &mut running => panic!("it goes on"),
            line = lines.recv() => assert_eq!(line.expect("a line").text, "on"),
        }
    }
    let pong = soon(neighbour.run(&env, export("ping", json!(null)))).await;
    assert_eq!(pong.expect("not ended with it").value, json!("pong"));
    let over = soon(session.run(&env, main())).await;
    let over = over.expect_err("its isolate was stopped");
    assert_eq!(over.code, RuntimeCode::WorkerLost, "{over}");
    assert!(over.excused, "{over}");
    let ended = SessionState::Closed(SessionEndReason::Abort);
    assert_eq!(session.info().state, ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_session_ends_its_calls() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    // Nothing but the kill ends the call for as long as this waits.
    let mut spec = spec("await ops.call('test/hang', {}, { timeoutMs: 600_000 })");
    spec.limits.wall = WALL_MAX_ONE_SHOT;
    let session = lab.open(&request, spec).await;
    let kill = async {
        until("it started", || {
            lab.probe.started.load(Ordering::SeqCst) == 1
        })
        .await;
        assert!(matches!(session.info().state, SessionState::Running { .. }));
        assert!(lab.sessions.kill(session.id()));
    };
    let (ended, ()) = soon(async { tokio::join!(session.run(&env, main()), kill) }).await;
    assert_eq!(code(ended), RuntimeCode::Abort);
    until("it was dropped", || {
        lab.probe.dropped.load(Ordering::SeqCst) == 1
    })
    .await;
    until("it is over", || {
        session.info().state == SessionState::Closed(SessionEndReason::Abort)
    })
    .await;
    assert!(!lab.sessions.kill(session.id()));
    assert_eq!(
        code(soon(session.run(&env, main())).await),
        RuntimeCode::Disposed
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_dies_of_stays_in_it() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let mine = lab
        .open(&request, spec("await ops.call('test/hang', {})"))
        .await;
    let ping = "export const ping = () => 'pong'";
    let sibling = lab.open(&request, spec(ping)).await;
    let other = lab.open(&request, spec_of("other", ping)).await;
    let mut alone = spec(ping);
    alone.alone = true;
    let alone = lab.open(&request, alone).await;
    let pid = mine.info().pid;
    assert_eq!(pid, sibling.info().pid);
    assert!(pid != other.info().pid && pid != alone.info().pid);
    let kill = async {
        until("it started", || {
            lab.probe.started.load(Ordering::SeqCst) == 1
        })
        .await;
        signal::kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
    };
    let (ended, ()) = soon(async { tokio::join!(mine.run(&env, main()), kill) }).await;
    assert_eq!(code(ended), RuntimeCode::WorkerLost);
    until("both are over", || {
        let lost = SessionState::Closed(SessionEndReason::WorkerLost);
        mine.info().state == lost && sibling.info().state == lost
    })
    .await;
    for session in [&other, &alone] {
        let pong = soon(session.run(&env, export("ping", json!(null)))).await;
        assert_eq!(pong.expect("alive").value, json!("pong"));
    }
}

/// A worker says which of its sessions calls: code that takes it over could do what any session there may.
#[tokio::test(flavor = "multi_thread")]
async fn only_sessions_with_equal_rights_share_a_worker() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let open = async |scopes: &[&str], reach: &str| {
        let mut spec = spec("");
        spec.identity = Some(identity("tenant", scopes));
        spec.grants = SessionGrants::to([reach]);
        lab.open(&request, spec).await
    };
    let first = open(&["*"], "test/*").await;
    let equal = open(&["*"], "test/*").await;
    assert_eq!(first.info().pid, equal.info().pid);
    let reaches_less = open(&["*"], "test/echo").await;
    let may_less = open(&["paper:read"], "test/*").await;
    for other in [&reaches_less, &may_less] {
        assert_ne!(first.info().pid, other.info().pid);
    }
    assert_ne!(reaches_less.info().pid, may_less.info().pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_only_so_many_sessions() {
    let config = SessionsConfig {
        sessions_max: 4,
        of_tenant_max: 3,
        ..SessionsConfig::default()
    };
    let lab = SessionLab::with(config, Vec::new());
    let request = lab.request().await;
    let env = request.env();
    let open = async |tenant: &str| lab.sessions.open(&env, spec_of(tenant, "")).await;
    let mut held = Vec::new();
    for tenant in ["a", "a", "a", "b"] {
        held.push(open(tenant).await.expect("room"));
    }
    assert_eq!(
        open("a").await.expect_err("its own limit").code,
        RuntimeCode::Quota
    );
    assert_eq!(
        open("c").await.expect_err("the limit of all tenants").code,
        RuntimeCode::Quota
    );
    held.pop();
    until("one is gone", || lab.sessions.list().len() == 3).await;
    open("c").await.expect("room");
    let refused = open("a").await.expect_err("still");
    assert_eq!(refused.code, RuntimeCode::Quota);
    assert!(refused.is_no_capacity(), "another try may succeed");
}

/// Others call what is the tenant's as often as they like, and what they hand over is theirs.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_have_run_leaves_the_tenant_half_of_its_sessions() {
    let config = SessionsConfig {
        of_tenant_max: 4,
        ..SessionsConfig::default()
    };
    let lab = SessionLab::with(config, Vec::new());
    let request = lab.request().await;
    let env = request.env();
    let open = async |lent: bool| {
        let mut spec = spec_of("author", "");
        spec.lent = lent;
        lab.sessions.open(&env, spec).await
    };
    let _called = [open(true).await, open(true).await].map(|one| one.expect("room"));
    let refused = open(true).await.expect_err("half of the author's");
    assert!(refused.is_no_capacity());
    let own = [open(false).await, open(false).await].map(|one| one.expect("the other half"));
    assert!(open(false).await.expect_err("all of them").is_no_capacity());
    drop(own);
    until("they are gone", || lab.sessions.list().len() == 2).await;
    assert!(open(true).await.is_err() && open(false).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_session_may_have_is_refused() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let refused = async |change: fn(&mut SessionSpec)| {
        let mut spec = spec("export default 1");
        change(&mut spec);
        let opened = lab.sessions.open(&request.env(), spec).await;
        opened.err().map(|failure| failure.code)
    };
    assert_eq!(refused(|_| {}).await, None);
    assert_eq!(
        refused(|s| s.limits.runtime.heap_bytes = 2 << 30).await,
        Some(RuntimeCode::Limit)
    );
    assert_eq!(
        refused(|s| s.limits.wall = std::time::Duration::MAX).await,
        Some(RuntimeCode::Limit)
    );
    let constraint = |s: &mut SessionSpec| {
        s.grants.allow[0].constraint = Some(json!({ "type": "nonsense" }));
    };
    assert_eq!(refused(constraint).await, Some(RuntimeCode::Limit));
    // An operation that calls nothing itself opens nothing that calls.
    let unscoped = identity("unscoped", &[]);
    let mut spec = spec("export default await ops.call('test/paper', {})");
    spec.identity = Some(unscoped);
    let failure = lab.run(spec).await.expect_err("no scope");
    assert_eq!(failure.operation.expect("an error").code, "FORBIDDEN");
}
