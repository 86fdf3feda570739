//! What the page shows, asked of the operations as whoever looks.

use std::time::Instant;

use alknet_call::Body;
use alknet_gateway::{Caller, Gateway, Invocation};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::history::{History, Numbers};
use crate::limits::{ASK_TIME, LOG_LINES};

/// What an operation answered.
#[derive(Clone, Debug, Default)]
pub(crate) enum Asked {
    /// There is none, or whoever looks may not call it.
    #[default]
    Absent,
    /// It answered.
    Answer(Value),
    /// It did not, and why.
    Failed(String),
}

/// Everything that is shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) info: Asked,
    pub(crate) metrics: Asked,
    pub(crate) peers: Asked,
    pub(crate) operations: Asked,
    pub(crate) compute: Asked,
    pub(crate) sessions: Asked,
    pub(crate) workers: Asked,
    pub(crate) vault: Asked,
    pub(crate) log: Asked,
}

/// Asks all of them.
pub(crate) async fn gather(gateway: &Gateway, caller: &Caller, history: &History) -> Gathered {
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
    if let Asked::Answer(answer) = &metrics {
        history.add(Instant::now(), Numbers::of(answer));
    }
    Gathered {
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

/// Asks one.
pub(crate) async fn ask(
    gateway: &Gateway,
    caller: &Caller,
    operation: &str,
    input: Value,
) -> Asked {
    if gateway.find(caller, operation).is_err() {
        return Asked::Absent;
    }
    let call = Invocation {
        timeout: Some(ASK_TIME),
        ..Invocation::of(operation, &input)
    };
    match gateway.invoke(caller, call).await {
        Ok(output) => Asked::Answer(Body::from(output).value().clone()),
        Err(error) => Asked::Failed(error.error.message.clone()),
    }
}

/// The last records of the log.
async fn follow(gateway: &Gateway, caller: &Caller) -> Asked {
    const OPERATION: &str = "node/log";
    if gateway.find(caller, OPERATION).is_err() {
        return Asked::Absent;
    }
    let call = Invocation::of(OPERATION, &json!({ "last": LOG_LINES }));
    let mut events = match gateway.subscribe(caller.clone(), call) {
        Ok(events) => events,
        Err(error) => return Asked::Failed(error.error.message.clone()),
    };
    let mut records = Vec::new();
    let read = async {
        while let Some(event) = events.next().await {
            let event = event.map_err(|error| error.error.message.clone())?;
            records.push(Body::from(event.output).value().clone());
            if records.len() >= LOG_LINES {
                break;
            }
        }
        Ok::<_, String>(())
    };
    match timeout(ASK_TIME, read).await {
        Ok(Err(why)) => Asked::Failed(why),
        // What came in time is shown.
        Ok(Ok(())) | Err(_) => Asked::Answer(Value::Array(records)),
    }
}
