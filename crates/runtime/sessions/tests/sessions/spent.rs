//! What a session has spent: time on the GPU and wall-clock time.

use std::time::Duration;

use alknet_call::{
    CallBody, CallError, ErrorCode, HandlerKind, OperationSpec, Provenance, Registration,
};
use alknet_runtime::{RuntimeCode, SessionMode};
use alknet_sessions::{SessionGrants, SessionSpec, SessionsConfig};
use serde_json::json;

use crate::support::{SessionLab, code, export, soon, spec, until};

/// A GPU that takes as long as its input says, in milliseconds, and is stopped at a negative number.
fn gpu() -> Registration {
    let handler = HandlerKind::once(|input: CallBody, _| async move {
        let ms = input.value()["ms"].as_f64().unwrap_or_default();
        match ms < 0.0 {
            true => Err(CallError::new(ErrorCode::Timeout, "stopped")
                .with_details(json!({ "code": "E_GPU_TIMEOUT" }))),
            false => Ok(json!({ "outputs": {}, "gpu_ms": ms, "jit_ms": 0 })),
        }
    });
    Registration::new(
        OperationSpec::query("compute/dispatch", "For tests."),
        handler,
    )
}

/// The same as an operation that chooses where to compute.
fn matmul() -> Registration {
    let handler = HandlerKind::once(|input: CallBody, _| async move {
        let variant = input.value()["variant"].clone();
        Ok(json!({ "variant": variant, "ms": 40, "jit_ms": 0 }))
    });
    Registration::new(
        OperationSpec::query("compute/matmul", "For tests."),
        handler,
    )
}

fn limited(source: &str) -> SessionSpec {
    let mut spec = spec(source);
    spec.grants = SessionGrants::to(["compute/*"]);
    spec.limits.gpu = Duration::from_millis(100);
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn time_on_the_gpu_is_that_of_a_call() {
    let lab = SessionLab::with(SessionsConfig::default(), vec![gpu(), matmul()]);
    let request = lab.request().await;
    let env = request.env();
    let source = "export const run = async (times) => {
        for (const ms of times) {
            try { await ops.call('compute/dispatch', { ms }); } catch {}
        }
        return times.length;
    };
    export const multiply = async (variant) => {
        for (let n = 0; n < 4; n++) await ops.call('compute/matmul', { variant });
    };";
    let mut stays = limited(source);
    stays.mode = SessionMode::Service;
    let session = lab.open(&request, stays.clone()).await;
    // Each call has all of it.
    for _ in 0..3 {
        let ran = soon(session.run(&env, export("run", json!([40, 40])))).await;
        assert_eq!(ran.expect("within its limit").value, json!(2));
    }
    let host = soon(session.run(&env, export("multiply", json!("host")))).await;
    host.expect("no shader ran");
    assert_eq!(session.info().gpu, Duration::from_millis(240));
    assert!(session.info().wall > Duration::ZERO);
    let ended = soon(session.run(&env, export("run", json!([40, 40, 40, 1])))).await;
    assert_eq!(code(ended), RuntimeCode::GpuTimeout);
    until("it is closed", || lab.sessions.list().is_empty()).await;
    let session = lab.open(&request, stays).await;
    let ended = soon(session.run(&env, export("multiply", json!("wgsl")))).await;
    assert_eq!(code(ended), RuntimeCode::GpuTimeout);
}

/// A script calls `compute/dispatch` without a peer, and reaches one that says an hour: its session was ended for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_say_of_a_gpu_is_not_counted() {
    let handler = HandlerKind::once(|_, _| async move {
        Ok(json!({ "outputs": {}, "gpu_ms": 3_600_000, "jit_ms": 0 }))
    });
    let remote = OperationSpec::query("compute/dispatch", "For tests.");
    let remote = Registration::imported(remote, handler, Provenance::FromCall);
    let lab = SessionLab::with(SessionsConfig::default(), vec![remote]);
    let request = lab.request().await;
    let env = request.env();
    let source = "export const run = async () => (await ops.call('compute/dispatch', {})).gpu_ms;";
    let session = lab.open(&request, limited(source)).await;
    let ran = soon(session.run(&env, export("run", json!(null)))).await;
    assert_eq!(ran.expect("nothing was spent").value, json!(3_600_000));
    assert_eq!(session.info().gpu, Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stopped_on_the_gpu_was_there() {
    let lab = SessionLab::with(SessionsConfig::default(), vec![gpu()]);
    let request = lab.request().await;
    let env = request.env();
    let source = "export const run = async () => {
        for (;;) { try { await ops.call('compute/dispatch', { ms: -1 }); } catch {} }
    };";
    let mut endless = limited(source);
    endless.limits.gpu = Duration::from_nanos(1);
    let session = lab.open(&request, endless).await;
    let ended = soon(session.run(&env, export("run", json!(null)))).await;
    assert_eq!(code(ended), RuntimeCode::GpuTimeout);
}
