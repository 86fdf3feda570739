//! Every limit of a session, and the code that it ends with.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use alknet_runtime::{RuntimeCode, ScriptFailure, SessionMode};
use alknet_sessions::limits::LOG_BYTES_PER_S;
use alknet_sessions::{SessionEndReason, SessionOutput, SessionSpec, SessionState};
use alknet_test_support::deadline;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::support::{
    SessionLab, SessionTestRequest, code, export, main, soon, spec, spec_of, until,
};

async fn limited(
    lab: &SessionLab,
    source: &str,
    limit: impl FnOnce(&mut SessionSpec),
) -> RuntimeCode {
    let mut spec = spec(source);
    limit(&mut spec);
    let request = lab.request().await;
    let session = lab.open(&request, spec).await;
    let ran: Result<SessionOutput, ScriptFailure> = soon(session.run(&request.env(), main())).await;
    let ended = code(ran);
    // After a limit nothing of it is used again.
    if let Some(reason) = reason(ended) {
        let state = || session.info().state;
        until("it is closed", || {
            matches!(state(), SessionState::Closed(_))
        })
        .await;
        assert_eq!(state(), SessionState::Closed(reason));
        let again = soon(session.run(&request.env(), main())).await;
        assert!(again.is_err());
    }
    ended
}

fn reason(code: RuntimeCode) -> Option<SessionEndReason> {
    Some(match code {
        RuntimeCode::Fuel => SessionEndReason::Fuel,
        RuntimeCode::Memory => SessionEndReason::Memory,
        RuntimeCode::Timeout => SessionEndReason::Timeout,
        _ => return None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_limit_has_its_code() {
    let lab = SessionLab::new();
    let ms = Duration::from_millis;
    let spin = "for (;;);";
    assert_eq!(
        limited(&lab, spin, |s| s.limits.runtime.fuel_ticks = 10).await,
        RuntimeCode::Fuel
    );
    let cpu = |s: &mut SessionSpec| {
        s.limits.runtime.fuel_ticks = 10_000_000;
        s.limits.runtime.cpu = ms(100);
    };
    assert_eq!(limited(&lab, spin, cpu).await, RuntimeCode::Timeout);
    let wall = |s: &mut SessionSpec| s.limits.wall = ms(200);
    let waits = "await new Promise((done) => setTimeout(done, 1e9))";
    assert_eq!(limited(&lab, waits, wall).await, RuntimeCode::Timeout);
    assert_eq!(
        limited(&lab, "await ops.call('test/hang', {})", wall).await,
        RuntimeCode::Timeout
    );
    let heap = |s: &mut SessionSpec| s.limits.runtime.heap_bytes = 4 << 20;
    let fills = "const all = []; for (;;) all.push(new Array(1000).fill(1.5))";
    assert_eq!(limited(&lab, fills, heap).await, RuntimeCode::Memory);
    let external = |s: &mut SessionSpec| s.limits.runtime.external_bytes = 2;
    let bytes = "await ops.call('test/bytes', {})";
    // The answer does not fit, which is an error of the operation.
    assert_eq!(limited(&lab, bytes, external).await, RuntimeCode::Exception);
    assert_eq!(
        limited(&lab, "(function f() { f() })()", |_| {}).await,
        RuntimeCode::Stack
    );
    let chain = "const go = () => Promise.resolve().then(go); go();
        await new Promise((done) => setTimeout(done, 1e9))";
    assert_eq!(limited(&lab, chain, |_| {}).await, RuntimeCode::Fuel);
    let never = "await new Promise(() => {})";
    assert_eq!(limited(&lab, never, |_| {}).await, RuntimeCode::Exception);
    assert_eq!(
        limited(&lab, "export default NaN", |_| {}).await,
        RuntimeCode::Encode
    );
    let many = "for (let i = 0; i < 2000; i++) setTimeout(() => {}, 1e6)";
    assert_eq!(limited(&lab, many, |_| {}).await, RuntimeCode::Quota);
}

/// A call that ends with an error says how much memory its script had, although nothing of it is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_answer_has_the_peak_that_it_reached() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    // A value takes 16 bytes.
    let takes = "let all = new Array(1 << 20).fill(0.5); all = undefined;";
    for (then, refused) in [
        ("export default 1", None),
        ("export default NaN", Some(RuntimeCode::Encode)),
        ("throw new Error('no')", Some(RuntimeCode::Exception)),
        (
            "for (all = [];;) all.push(new Array(1000).fill(1.5))",
            Some(RuntimeCode::Memory),
        ),
    ] {
        let mut spec = spec(&format!("{takes} {then}"));
        spec.limits.runtime.heap_bytes = 64 << 20;
        let session = lab.open(&request, spec).await;
        let ran = soon(session.run(&env, main())).await;
        assert_eq!(ran.err().map(|failure| failure.code), refused, "{then}");
        let peak = session.info().heap_peak;
        assert!((16 << 20..=64 << 20).contains(&peak), "{then}: {peak}");
    }
}

/// A session that ends by its time alone.
fn until_killed(source: &str) -> SessionSpec {
    let mut slow = spec(source);
    slow.limits.runtime.fuel_ticks = 10_000_000;
    slow.limits.runtime.cpu = Duration::from_secs(100);
    slow.limits.runtime.heap_bytes = 512 << 20;
    // The strings are made within it.
    slow.limits.wall = deadline(Duration::from_secs(1));
    slow
}

/// Loops inside the engine that no flag stops: killed from outside, with the limit's code.
#[tokio::test(flavor = "multi_thread")]
async fn a_native_loop_is_killed_with_the_code_of_its_limit() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let source = "const a = Array.from({ length: 600000 }, (_, i) => String((i * 7919) % 600011));
        export const sort = () => { for (;;) a.sort(); };
        export const big = () => { let n = 3n ** 300000n; for (;;) n = n * n; };";
    for name in ["sort", "big"] {
        let session = lab.open(&request, until_killed(source)).await;
        let ended = soon(session.run(&env, export(name, json!(null)))).await;
        let failure = ended.expect_err("it has no end");
        assert!(
            [RuntimeCode::Timeout, RuntimeCode::Exception].contains(&failure.code),
            "{name}: {failure}"
        );
        assert_eq!(
            failure.code == RuntimeCode::Exception,
            failure.message.contains("BigInt"),
            "{name}"
        );
    }
}

/// The worker of a call that does not stop is killed at its limit. The session has ended by the limit, and not because a
/// worker was lost, even if its caller looks at the answer much later.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_by_its_limit_although_its_caller_is_late() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    // Each comparison reads a megabyte, so this call alone takes minutes. Between two calls the worker could obey.
    let source = "const long = 'x'.repeat(1 << 20); const both = [long + 'a', long + 'b'];
        const a = Array.from({ length: 600000 }, (_, i) => both[i % 2]);
        export const sort = () => a.sort().length;";
    let session = lab.open(&request, until_killed(source)).await;
    let pid = session.info().pid;
    let run = session.run(&env, export("sort", json!(null)));
    let mut run = std::pin::pin!(run);
    let begun = async {
        until("it runs", || {
            matches!(session.info().state, SessionState::Running { .. })
        })
        .await;
    };
    tokio::select! {
        biased;
        ended = &mut run => panic!("{ended:?}"),
        () = begun => {}
    }
    let folder = format!("/proc/{pid}");
    until("its worker is gone", || !Path::new(&folder).exists()).await;
    // Time in which the session could have taken the loss of its worker for its end.
    tokio::time::sleep(deadline(Duration::from_millis(100))).await;
    let failure = soon(run).await.expect_err("it has no end");
    assert_eq!(failure.code, RuntimeCode::Timeout, "{failure}");
    let state = || session.info().state;
    until("it is closed", || {
        matches!(state(), SessionState::Closed(_))
    })
    .await;
    assert_eq!(state(), SessionState::Closed(SessionEndReason::Timeout));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_one_call_ends_the_others_of_its_session() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let source = "export const wait = () => ops.call('test/hang', {});
        export const spin = () => { for (;;); };";
    let mut both = spec(source);
    both.mode = SessionMode::Service;
    both.limits.runtime.cpu = Duration::from_millis(100);
    let session = lab.open(&request, both).await;
    let started = || lab.probe.started.load(Ordering::SeqCst) == 1;
    let spin = async {
        until("it waits", started).await;
        session.run(&env, export("spin", json!(null))).await
    };
    let wait = session.run(&env, export("wait", json!(null)));
    let (waited, span) = soon(async { tokio::join!(wait, spin) }).await;
    // They share a thread and so its time: which of them ends with the limit, and which with the end of the session, is
    // the machine's to choose.
    let told = [code(waited), code(span)];
    let limit = |code: &RuntimeCode| matches!(code, RuntimeCode::Fuel | RuntimeCode::Timeout);
    let end = |code: &RuntimeCode| {
        matches!(
            code,
            RuntimeCode::WorkerLost | RuntimeCode::Abort | RuntimeCode::Disposed
        )
    };
    assert!(told.iter().any(limit), "{told:?}");
    assert!(told.iter().all(|code| limit(code) || end(code)), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_has_its_share() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let mut loud =
        spec("for (let i = 0; i < 300; i++) console.log('x'.repeat(1000)); export default 1");
    let (console, mut lines) = mpsc::channel(1000);
    loud.console = Some(console);
    let session = lab.open(&request, loud).await;
    let begun = Instant::now();
    soon(session.run(&request.env(), main()))
        .await
        .expect("a value");
    // A share at once, and one for each second that it took.
    let shares = 2 + begun.elapsed().as_secs();
    let mut bytes = 0;
    while let Ok(line) = lines.try_recv() {
        bytes += line.text.len();
    }
    let most = usize::try_from(shares * LOG_BYTES_PER_S).expect("few seconds");
    assert!((1..=most).contains(&bytes), "{bytes}");
}

/// Calls into sessions of one tenant, four of which leave the next 1.5 MB of the tenant's memory.
async fn keep_values(
    lab: &SessionLab,
    request: &SessionTestRequest,
) -> JoinSet<Result<SessionOutput, ScriptFailure>> {
    let keeps = "export const keep = () => new Promise(() => {
         for (let i = 0; i < 4; i++)
             ops.call('test/hang', 'x'.repeat(1e6), { timeoutMs: 600000 }).catch(() => {});
     });";
    let mut kept = JoinSet::new();
    for _ in 0..4 {
        let mut service = spec(keeps);
        service.mode = SessionMode::Service;
        let session = lab.open(request, service).await;
        let env = request.env();
        kept.spawn(async move { session.run(&env, export("keep", Value::Null)).await });
    }
    let all = || lab.probe.started.load(Ordering::SeqCst) == 16;
    until("all values are there", all).await;
    kept
}

/// A caller whose other scripts keep values could have it fail so; a script that keeps too many itself fails by
/// itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_value_finds_no_room_beside_others_is_excused() {
    let lab = SessionLab::new();
    let keeps = lab.request().await;
    let kept = keep_values(&lab, &keeps).await;
    let beside =
        "export default await ops.call('test/echo', 'x'.repeat(1.2e6)).catch((e) => e.code)";
    let alone = "ops.call('test/hang', 'x'.repeat(2.2e6)).catch(() => {});
         export default await ops.call('test/echo', 'x'.repeat(2.2e6)).catch((e) => e.code)";
    for (tenant, source, excused) in [("tenant", beside, true), ("other", alone, false)] {
        let request = lab.request().await;
        let session = lab.open(&request, spec_of(tenant, source)).await;
        let ran = soon(session.run(&request.env(), main())).await;
        assert_eq!(ran.expect("a value").value, "QUOTA_EXCEEDED", "{tenant}");
        assert_eq!(request.ctx.is_excused(), excused, "{tenant}");
    }
    assert!(!keeps.ctx.is_excused());
    drop(kept);
}
