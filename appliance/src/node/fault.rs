//! `node/fault`: makes the node or PID 1 misbehave, so that tests can see it recover.
//!
//! The operation exists only if the hypervisor set the fw_cfg entry `opt/org.alknet/test-faults`,
//! and a person who can do that owns the machine anyway. Only an administrator may call it. The
//! console shows that it is on.

use std::time::{Duration, Instant};
use std::{fs, io};

use alknet_call::{CallError, ErrorCode, HandlerKind, OperationSpec, Registration};
use alknet_init::control::{InitMessage, WORKERS_CGROUP};
use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::ops::NodeContext;

/// The kinds of faults. PID 1 performs those that begin with `init-`.
const KINDS: [&str; 14] = [
    "handler-panic",
    "handler-hang",
    "node-computes",
    "node-hang",
    "node-segv",
    "node-kill",
    "node-panic",
    "worker-kill",
    "init-hang",
    "init-housekeep-panic",
    "init-open-panic",
    "init-orphans",
    "init-panic",
    "init-net-panic",
];

/// How long the node computes: longer than an idle node may be silent.
const COMPUTES: Duration = Duration::from_secs(25);

#[derive(Deserialize)]
struct FaultInput {
    kind: String,
}

/// `node/fault`
pub(crate) fn operation(node: NodeContext) -> Registration {
    let spec = OperationSpec::mutation("node/fault", "Breaks something on purpose. Tests only.")
        .with_input(json!({
            "type": "object",
            "required": ["kind"],
            "additionalProperties": false,
            "properties": { "kind": { "enum": KINDS } }
        }))
        .with_scope("admin");
    let handler = HandlerKind::once(move |input: alknet_call::CallBody, _ctx| {
        let node = node.clone();
        async move {
            let input: FaultInput = input.parse()?;
            inject(&node, &input.kind).await
        }
    });
    Registration::new(spec, handler)
}

async fn inject(node: &NodeContext, kind: &str) -> Result<Value, CallError> {
    tracing::warn!(kind, "fault injected");
    match kind {
        "handler-panic" => panic!("a fault was injected into this handler"),
        "handler-hang" => std::future::pending().await,
        "node-computes" => {
            for _ in 0..Handle::current().metrics().num_workers() {
                tokio::spawn(async { compute() });
            }
            Ok(json!({ "injected": kind }))
        }
        "node-hang" => signal(Signal::SIGSTOP),
        // Rust's own handler takes the first signal, which is no stack overflow, and then restores
        // the default action. The kernel acts on the second one.
        "node-segv" => signal(Signal::SIGSEGV).and_then(|_| signal(Signal::SIGSEGV)),
        "node-kill" => signal(Signal::SIGKILL),
        "node-panic" => {
            std::thread::spawn(|| panic!("a fault was injected into a thread of the node"));
            Ok(json!({ "injected": kind }))
        }
        "worker-kill" => kill_workers()
            .map(|(killed, walled)| json!({ "injected": kind, "killed": killed, "walled": walled }))
            .map_err(|error| CallError::internal(format!("cannot end workers: {error}"))),
        _ => ask_init(node, kind).await,
    }
}

/// Keeps its thread busy, as a peer's request may on a slow processor.
fn compute() {
    let until = Instant::now() + COMPUTES;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

fn signal(signal: Signal) -> Result<Value, CallError> {
    raise(signal)
        .map_err(|error| CallError::internal(format!("cannot raise {signal}: {error}")))?;
    Ok(json!({ "injected": signal.as_str() }))
}

/// Kills every worker, as a crash would. SIGKILL is the only signal that reaches the first process
/// of a PID namespace from outside. Returns the number of workers, and how many of them the kernel
/// reports as confined.
fn kill_workers() -> io::Result<(usize, usize)> {
    let (mut killed, mut walled) = (0, 0);
    for group in fs::read_dir(WORKERS_CGROUP)? {
        let processes = group?.path().join("cgroup.procs");
        if !processes.exists() {
            // This entry is a file of the group itself, and not a worker's group.
            continue;
        }
        for process in fs::read_to_string(processes)?.lines() {
            if let Ok(number) = process.parse() {
                walled += usize::from(is_confined(process));
                kill(Pid::from_raw(number), Signal::SIGKILL)?;
                killed += 1;
            }
        }
    }
    Ok((killed, walled))
}

/// Whether a process has a filter of its system calls and cannot gain rights by executing a
/// program. The kernel says so, not the worker.
fn is_confined(process: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let has = |wall: &str| status.lines().any(|line| line == wall);
    // The form is that of proc_pid_status(5).
    has("NoNewPrivs:\t1") && has("Seccomp:\t2")
}

async fn ask_init(node: &NodeContext, kind: &str) -> Result<Value, CallError> {
    let message = InitMessage::Fault {
        kind: kind.trim_start_matches("init-").to_owned(),
    };
    match &node.to_init {
        Some(to_init) if to_init.send(message).await.is_ok() => Ok(json!({ "injected": kind })),
        _ => Err(CallError::new(
            ErrorCode::Unavailable,
            "there is no PID 1 of ours to break",
        )),
    }
}
