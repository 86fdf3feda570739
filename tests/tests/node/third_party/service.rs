//! A node in this process with an operation of every kind.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_call::{
    CallError, CallOutput, ErrorDef, HandlerKind, Idempotence, OperationSpec, Registration,
    Registry,
};
use alknet_core::config::NodeConfig;
use alknet_endpoint::{EndpointLimits, EndpointServer};
use alknet_tests::CliRunner;
use alknet_tls::NodeKey;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use crate::local_node::LocalNode;

/// Counters of the node's operations.
#[derive(Debug, Default)]
struct OperationCounts {
    /// Events made.
    made: AtomicUsize,
    /// Handlers that run and wait.
    running: AtomicUsize,
    /// Charges made.
    charged: AtomicUsize,
}

/// A handler that runs, which `running` counts until this value is dropped.
struct RunningOperation(Arc<OperationCounts>);

impl RunningOperation {
    fn new(counts: &Arc<OperationCounts>) -> Self {
        counts.running.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(counts))
    }
}

impl Drop for RunningOperation {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A running node. Dropping it ends the node.
pub(crate) struct ForeignClientNode {
    server: EndpointServer,
    key: NodeKey,
}

impl ForeignClientNode {
    /// Starts the node with these peers, each with one scope, and with more configuration.
    pub(crate) fn start(peers: &[(&CliRunner, &str)], more: &str) -> Self {
        let mut document = String::new();
        for (n, (peer, scope)) in peers.iter().enumerate() {
            let key = peer.identity();
            writeln!(
                document,
                "[[peers]]\npeer_id = \"peer-{n}\"\nkeys = [\"{key}\"]\nscopes = [\"{scope}\"]"
            )
            .expect("text grows");
        }
        document.push_str(more);
        let config = NodeConfig::parse(document.as_bytes()).expect("a correct document");
        let here = LocalNode::start(&config, operations(), EndpointLimits::default());
        Self {
            server: here.server,
            key: here.key,
        }
    }

    /// The node's target in the form that the command line accepts.
    pub(crate) fn target(&self) -> String {
        let (key, port) = (self.key.public(), self.server.port());
        format!("{key}@{}:{port}", Ipv4Addr::LOCALHOST)
    }
}

fn operations() -> Registry {
    let counts = Arc::new(OperationCounts::default());
    Registry::builder()
        .with(state(&counts))
        .with(count(&counts))
        .with(hang(&counts))
        .with(charge(&counts))
        .with(Registration::new(
            query("demo/echo"),
            HandlerKind::once(|input, _| async move { Ok(CallOutput::from(input)) }),
        ))
        .with(Registration::new(
            query("demo/back"),
            HandlerKind::once(|input, ctx| async move {
                let answer = ctx.caller().call("client/double", input.value()).await?;
                Ok(answer.value().clone())
            }),
        ))
        .with(full())
        .with(binary())
        .build()
        .expect("correct operations")
}

fn query(name: &str) -> OperationSpec {
    OperationSpec::query(name, "For tests.").with_scope("demo")
}

fn state(counts: &Arc<OperationCounts>) -> Registration {
    let counts = Arc::clone(counts);
    let spec = query("demo/state").with_input(json!({ "type": ["object", "null"] }));
    let handler = HandlerKind::once(move |_, _| {
        let read = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        let state = json!({ "made": read(&counts.made), "running": read(&counts.running) });
        std::future::ready(Ok::<Value, CallError>(state))
    });
    Registration::new(spec, handler)
}

fn count(counts: &Arc<OperationCounts>) -> Registration {
    let counts = Arc::clone(counts);
    let spec = OperationSpec::subscription("demo/count", "Counts from 0.").with_scope("demo");
    let spec = spec.with_input(json!({ "type": ["integer", "null"] }));
    let handler = HandlerKind::stream(move |input, _| {
        let most = input.value().as_u64().unwrap_or(u64::MAX);
        let running = RunningOperation::new(&counts);
        stream::unfold((0, running), move |(n, running)| async move {
            (n < most).then(|| {
                running.0.made.fetch_add(1, Ordering::SeqCst);
                (Ok::<Value, CallError>(json!(n)), (n + 1, running))
            })
        })
    });
    Registration::new(spec, handler)
}

fn hang(counts: &Arc<OperationCounts>) -> Registration {
    let counts = Arc::clone(counts);
    let handler = HandlerKind::once(move |_, _| {
        let running = RunningOperation::new(&counts);
        async move {
            let _running = running;
            std::future::pending::<Result<Value, CallError>>().await
        }
    });
    Registration::new(query("demo/hang"), handler)
}

fn charge(counts: &Arc<OperationCounts>) -> Registration {
    let counts = Arc::clone(counts);
    let mut spec = OperationSpec::mutation("demo/charge", "Counts how often.").with_scope("demo");
    spec.idempotent = Idempotence::Keyed;
    let handler = HandlerKind::once(move |_, _| {
        let charged = counts.charged.fetch_add(1, Ordering::SeqCst) + 1;
        std::future::ready(Ok::<Value, CallError>(json!(charged)))
    });
    Registration::new(spec, handler)
}

fn full() -> Registration {
    let mut spec = query("demo/full");
    spec.error_schemas.push(ErrorDef {
        code: "DISK_FULL".to_owned(),
        description: "No room.".to_owned(),
        schema: json!({ "type": "object" }),
        http_status: None,
    });
    let handler = HandlerKind::once(|_, _| async {
        let error = CallError::operation("DISK_FULL", "no room").with_details(json!({ "free": 0 }));
        Err::<Value, _>(error)
    });
    Registration::new(spec, handler)
}

/// An operation that returns, twice, the bytes that `data` in its input refers to.
fn binary() -> Registration {
    let handler = HandlerKind::once(|input, _| async move {
        let data = input
            .binary(&input.value()["data"])
            .ok_or_else(|| CallError::invalid_input("no data"))?;
        let twice: Bytes = [data.as_ref(), data.as_ref()].concat().into();
        let len = twice.len();
        Ok(CallOutput::Mixed(
            json!({ "data": { "$bin": [0, len] } }),
            twice,
        ))
    });
    Registration::new(query("demo/twice"), handler)
}
