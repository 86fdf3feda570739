//! Gathers the content of the page: the outputs of operations that are called as the viewer.

use std::time::Instant;

use alknet_call::CallBody;
use alknet_gateway::{Gateway, GatewayCall, HttpCaller};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::history::{MetricsHistory, MetricsSample};
use crate::limits::{ASK_TIME, LOG_LINES};

/// The result of calling an operation for the page.
#[derive(Clone, Debug, Default)]
pub(crate) enum PageCallResult {
    /// The node has no such operation, or the viewer may not call it.
    #[default]
    Absent,
    /// The operation's output.
    Answer(Value),
    /// The reason why the operation failed.
    Failed(String),
}

/// All results that the page shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct StatusSnapshot {
    pub(crate) info: PageCallResult,
    pub(crate) metrics: PageCallResult,
    pub(crate) peers: PageCallResult,
    pub(crate) operations: PageCallResult,
    pub(crate) compute: PageCallResult,
    pub(crate) sessions: PageCallResult,
    pub(crate) workers: PageCallResult,
    pub(crate) vault: PageCallResult,
    pub(crate) log: PageCallResult,
}

/// Calls all operations of the page.
pub(crate) async fn gather(
    gateway: &Gateway,
    caller: &HttpCaller,
    history: &MetricsHistory,
) -> StatusSnapshot {
    let ask = |operation, input| ask(gateway, caller, operation, input);
    let (info, metrics, peers, operations, compute, sessions, workers, vault, log) = tokio::join!(
        ask("node/info", Value::Null),
        ask("node/metrics", Value::Null),
        ask("peer/list", Value::Null),
        ask("services/list", json!({ "limit": 1000 })),
        ask("compute/info", Value::Null),
        ask("runtime/sessions", Value::Null),
        ask("runtime/stats", Value::Null),
        ask("vault/status", Value::Null),
        follow(gateway, caller),
    );
    if let PageCallResult::Answer(answer) = &metrics {
        // The page reads the metrics anyway, so the plots use them as a sample.
        history.add(Instant::now(), MetricsSample::from_metrics(answer));
    }
    StatusSnapshot {
        info,
        metrics,
        peers,
        operations,
        compute,
        sessions,
        workers,
        vault,
        log,
    }
}

/// Calls one operation.
pub(crate) async fn ask(
    gateway: &Gateway,
    caller: &HttpCaller,
    operation: &str,
    input: Value,
) -> PageCallResult {
    if gateway.find(caller, operation).is_err() {
        return PageCallResult::Absent;
    }
    let call = GatewayCall {
        timeout: Some(ASK_TIME),
        ..GatewayCall::for_operation(operation, &input)
    };
    match gateway.invoke(caller, call).await {
        Ok(output) => PageCallResult::Answer(CallBody::from(output).value().clone()),
        Err(error) => PageCallResult::Failed(error.error.message.clone()),
    }
}

/// Reads the last records of the log.
async fn follow(gateway: &Gateway, caller: &HttpCaller) -> PageCallResult {
    const OPERATION: &str = "node/log";
    if gateway.find(caller, OPERATION).is_err() {
        return PageCallResult::Absent;
    }
    let call = GatewayCall::for_operation(OPERATION, &json!({ "last": LOG_LINES }));
    let mut events = match gateway.subscribe(caller.clone(), call) {
        Ok(events) => events,
        Err(error) => return PageCallResult::Failed(error.error.message.clone()),
    };
    let mut records = Vec::new();
    let read = async {
        while let Some(event) = events.next().await {
            let event = event.map_err(|error| error.error.message.clone())?;
            records.push(CallBody::from(event.output).value().clone());
            if records.len() >= LOG_LINES {
                break;
            }
        }
        Ok::<_, String>(())
    };
    match timeout(ASK_TIME, read).await {
        Ok(Err(why)) => PageCallResult::Failed(why),
        // After the time limit, the page shows the records that arrived before it.
        Ok(Ok(())) | Err(_) => PageCallResult::Answer(Value::Array(records)),
    }
}
