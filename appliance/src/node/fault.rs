//! `node/fault`: makes the node or PID 1 misbehave, so that tests can see it recover.
//!
//! The operation exists only where the hypervisor set the fw_cfg entry `opt/org.alknet/test-faults`
//! (who can do that owns the machine anyway), and only an administrator may call it. The console
//! says so.

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

/// What can be broken. Names beginning with `init-` are PID 1's.
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

/// How long a node computes: longer than one may be silent that does not.
const COMPUTES: Duration = Duration::from_secs(25);

#[derive(Deserialize)]
struct FaultInput {
    kind: String,
}

/// The operation.
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
        // Rust's own handler takes the first, which is no stack overflow, and leaves the next to
        // the kernel.
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

/// Takes the thread it runs on, as what a peer asks for may on a slow processor.
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

/// Ends every worker at once, as a crash would: to a process that is the first of its namespace no other
/// signal comes through. Returns how many there were, and of how many the kernel says that they were walled in.
fn kill_workers() -> io::Result<(usize, usize)> {
    let (mut killed, mut walled) = (0, 0);
    for group in fs::read_dir(WORKERS_CGROUP)? {
        let processes = group?.path().join("cgroup.procs");
        if !processes.exists() {
            // A file of the group itself.
            continue;
        }
        for process in fs::read_to_string(processes)?.lines() {
            if let Ok(number) = process.parse() {
                walled += usize::from(is_walled_in(process));
                kill(Pid::from_raw(number), Signal::SIGKILL)?;
                killed += 1;
            }
        }
    }
    Ok((killed, walled))
}

/// Whether a process has a filter of its system calls, and no program gives it more rights: as the kernel says, not
/// the worker.
fn is_walled_in(process: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let has = |wall: &str| status.lines().any(|line| line == wall);
    // proc_pid_status(5) writes them in this form.
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
