//! `node/fault`: makes the node or PID 1 misbehave, so that tests can see it recover.
//!
//! The operation exists only where the hypervisor set the fw_cfg entry `opt/org.alknet/test-faults`
//! (who can do that owns the machine anyway), and only an administrator may call it. The console
//! says so.

use alknet_call::{CallError, ErrorCode, HandlerKind, OperationSpec, Registration};
use alknet_init::control::ToInit;
use nix::sys::signal::{Signal, raise};
use serde::Deserialize;
use serde_json::{Value, json};

use super::ops::NodeContext;

/// What can be broken. Names beginning with `init-` are PID 1's.
const KINDS: [&str; 10] = [
    "handler-panic",
    "handler-hang",
    "node-hang",
    "node-segv",
    "node-kill",
    "node-panic",
    "init-hang",
    "init-orphans",
    "init-panic",
    "init-net-panic",
];

#[derive(Deserialize)]
struct Input {
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
    let handler = HandlerKind::once(move |input: alknet_call::Body, _ctx| {
        let node = node.clone();
        async move {
            let input: Input = input.parse()?;
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
        "node-hang" => signal(Signal::SIGSTOP),
        // Rust's own handler takes the first, which is no stack overflow, and leaves the next to
        // the kernel.
        "node-segv" => signal(Signal::SIGSEGV).and_then(|_| signal(Signal::SIGSEGV)),
        "node-kill" => signal(Signal::SIGKILL),
        "node-panic" => {
            std::thread::spawn(|| panic!("a fault was injected into a thread of the node"));
            Ok(json!({ "injected": kind }))
        }
        _ => ask_init(node, kind).await,
    }
}

fn signal(signal: Signal) -> Result<Value, CallError> {
    raise(signal)
        .map_err(|error| CallError::internal(format!("cannot raise {signal}: {error}")))?;
    Ok(json!({ "injected": signal.as_str() }))
}

async fn ask_init(node: &NodeContext, kind: &str) -> Result<Value, CallError> {
    let message = ToInit::Fault {
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
