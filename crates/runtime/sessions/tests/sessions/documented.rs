//! The examples of `docs/sessions.md`, as they stand there, and its table of limits.

use alknet_runtime::limits::{JSON_BYTES, RECORDED_BYTES_MAX, RECORDED_MAX};
use alknet_sessions::{SessionGrants, SessionLimits, SessionsConfig, limits};
use serde_json::{Value, json};

use crate::support::{SessionLab, identity, soon, spec};
use crate::tensors;

const PAGE: &str = include_str!("../../../../../docs/sessions.md");
const CONFIGURATION: &str = include_str!("../../../../../docs/configuration.md");

/// The blocks of this kind.
fn blocks(kind: &str) -> Vec<String> {
    let opening = format!("\n```{kind}\n");
    let after = PAGE.split(opening.as_str()).skip(1);
    after
        .map(|rest| rest.split("\n```").next().unwrap_or_default().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_page_sends_is_answered() {
    let lab = SessionLab::new();
    let client = lab.client(&identity("reader", &["runtime:debug"]));
    let mut last = Value::Null;
    let inputs = blocks("json");
    assert_eq!(inputs.len(), 5);
    for input in inputs {
        let input: Value = serde_json::from_str(&input).expect("JSON");
        let answer = soon(client.call("runtime/eval", &input)).await;
        last = answer
            .unwrap_or_else(|error| panic!("{input}: {error}"))
            .value()
            .clone();
    }
    assert_eq!(last["value"], json!(42));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_s_service_counts_on() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let sources = blocks("js");
    let [source] = sources.as_slice() else {
        panic!("one service")
    };
    let service = lab.service(&request, spec(source)).await;
    soon(service.call(&env, "visit", json!(2)))
        .await
        .expect("two");
    let modules = spec(source).modules;
    soon(service.reload(&env, modules, async |_| Ok(())))
        .await
        .expect("reloaded");
    let three = soon(service.call(&env, "visit", json!(1)))
        .await
        .expect("three");
    assert_eq!(three.value, json!(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_s_tensors_are_there() {
    let tensor_table = SessionLab::with(
        SessionsConfig::default(),
        tensors::operations(&std::sync::Arc::default()),
    );
    for (lab, kind, expected) in [
        (tensor_table, "js gpu", json!([2, 4, 6])),
        (
            tensors::stored(),
            "js tensor",
            json!(["F32", [3, 2], [2, 3]]),
        ),
    ] {
        let sources = blocks(kind);
        let [source] = sources.as_slice() else {
            panic!("one example of {kind}")
        };
        let mut spec = spec(source);
        spec.grants = SessionGrants::to(["compute/*", "tensor/*"]);
        assert_eq!(lab.run(spec).await.expect("a value").value, expected);
    }
}

/// An administrator who makes this time longer does so for other callers than scripts.
#[test]
fn the_key_for_gpu_time_tells_the_limit_of_scripts() {
    let mut rows = CONFIGURATION.lines();
    let row = rows.find(|line| line.starts_with("| `compute.gpu_seconds` |"));
    let row = row.expect("the page has every key");
    let own = SessionLimits::default().gpu.as_secs();
    for said in [
        format!("A larger number than {own} is of no use to scripts"),
        format!("has {own} s on the GPU in all"),
    ] {
        assert!(row.contains(&said), "{said}: {row}");
    }
}

#[test]
fn the_page_tells_the_limits_that_there_are() {
    let own = SessionLimits::default();
    // A sentence may go over the end of a line.
    let words: Vec<_> = PAGE.split_whitespace().collect();
    let page = words.join(" ");
    for row in [
        format!(
            "| wall time of a call | {} s unless said, at most {} s, in a service or REPL {} s |",
            own.wall.as_secs(),
            limits::WALL_MAX_ONE_SHOT.as_secs(),
            limits::WALL_MAX.as_secs()
        ),
        format!(
            "| GPU time of a call | {} s unless said, at most {} s |",
            own.gpu.as_secs(),
            limits::GPU_MAX.as_secs()
        ),
        format!("| fuel of a call | at most {} ticks |", limits::FUEL_MAX),
        format!(
            "| bytes outside the heap | at most {} MiB |",
            limits::EXTERNAL_BYTES_MAX >> 20
        ),
        format!("| calls of a session | at most {} |", limits::CALLS_MAX),
        format!("| sessions of a node | {} |", limits::SESSIONS_MAX),
        format!(
            "| sessions of one tenant | {} |",
            limits::SESSIONS_OF_TENANT_MAX
        ),
        format!(
            "| REPLs of one caller, with those that begin | {}, each closed after {} s without a line, or",
            limits::REPLS_OF_TENANT_MAX,
            limits::REPL_IDLE.as_secs()
        ),
        format!(
            "| operations that `ops.list` tells | {}, {} KiB |",
            limits::LISTED_MAX,
            limits::LISTED_BYTES_MAX >> 10
        ),
        format!(
            "| of these, imported ones | as long as the whole list has at most {} KiB |",
            limits::LISTED_IMPORTED_BYTES_MAX >> 10
        ),
        format!(
            "| recorded calls | {RECORDED_MAX}, {} KiB as text, eight times as much in memory |",
            RECORDED_BYTES_MAX >> 10
        ),
        format!(
            "| console | {} KiB a second, where a line counts {} bytes more than its text |",
            limits::LOG_BYTES_PER_S >> 10,
            limits::LOG_LINE_EXTRA_BYTES
        ),
        format!(
            "| a value that crosses | {0} MiB in the node's memory, an answer {0} MiB as text |",
            JSON_BYTES >> 20
        ),
        format!(
            "| values of a session under way, of a tenant's, of all | {}, {}, {} MiB of the node's memory |",
            limits::MEMORY_OF_SESSION_MAX >> 20,
            limits::MEMORY_OF_TENANT_MAX >> 20,
            limits::MEMORY_MAX >> 20
        ),
        format!(
            "| of these, registered operations of a tenant's sessions, of all | {}, {} MiB |",
            limits::REGISTERED_OF_TENANT_MAX >> 20,
            limits::REGISTERED_MAX >> 20
        ),
        format!(
            "of one author, of all | {}, {} MiB; while a `dispose` runs, its state counts {} MiB |",
            limits::RESTED_OF_TENANT_MAX >> 20,
            limits::RESTED_MAX >> 20,
            limits::RESTED_VALUE_MAX >> 20
        ),
        format!(
            "16 MiB of values, {} MiB of registered operations and {} MiB of services' states",
            limits::REGISTERED_MAX >> 22,
            limits::RESTED_MAX >> 22
        ),
        format!(
            "have not ended after {} s, the new session gets `OVERLOADED`",
            limits::EVICTION_TIME_MAX.as_secs()
        ),
        format!(
            "each value in it counts {} bytes",
            alknet_runtime::weight::VALUE
        ),
    ] {
        assert!(page.contains(&row), "{row}");
    }
}
