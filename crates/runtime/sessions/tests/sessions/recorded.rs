//! Sessions that tell what they called, and what a test makes of it.

use std::sync::Arc;

use alknet_call::{
    CallBody, CallConnection, CallError, ErrorDef, HandlerKind, OperationSpec, Registration,
};
use alknet_runtime::limits::RECORDED_BYTES_MAX;
use alknet_runtime::{CallRecorder, REDACTED};
use alknet_sessions::{SessionGrants, SessionsConfig};
use serde_json::{Value, json};

use crate::support::{SessionLab, identity, main, soon, spec};
use crate::tensors;

/// A door with a lock.
fn door() -> Registration {
    let secret = json!({ "type": "string", "x-secret": true });
    let mut spec = OperationSpec::query("test/door", "For tests.")
        .with_input(json!({ "type": "object", "properties": { "pin": secret } }))
        .with_output(json!({ "type": "object", "properties": { "token": secret } }));
    spec.error_schemas.push(ErrorDef {
        code: "WRONG_PIN".to_owned(),
        description: String::new(),
        schema: json!({ "type": "object", "properties": { "pin": secret } }),
        http_status: None,
    });
    let handler = HandlerKind::once(|input: CallBody, _| async move {
        let pin = input.value()["pin"].as_str().unwrap_or_default().to_owned();
        match pin.as_str() {
            "1234" | REDACTED => Ok(json!({ "token": "t-1", "open": true })),
            _ => Err(CallError::operation("WRONG_PIN", format!("{pin} is wrong"))
                .with_details(json!({ "pin": pin, "tries": 2 }))),
        }
    });
    Registration::new(spec, handler)
}

fn lab() -> (SessionLab, CallConnection) {
    let lab = SessionLab::with(SessionsConfig::default(), vec![door()]);
    let client = lab.client(&identity("dev", &["runtime:debug"]));
    (lab, client)
}

async fn eval(client: &CallConnection, input: &Value) -> Result<Value, CallError> {
    let answer = soon(client.call("runtime/eval", input)).await;
    answer.map(|answer| answer.value().clone())
}

async fn recorded(client: &CallConnection, source: &str) -> Value {
    let answer = eval(client, &json!({ "source": source, "record": true })).await;
    answer.expect("an answer")
}

/// Calls of every kind: that answer, fail, are not there, have bytes, come in parts, and at once.
const BODY: &str = "async (pin) => {
    const told = [];
    const caught = (promise) => promise.catch((error) => [error.code, error.details]);
    told.push(await ops.call('test/echo', { sum: 0.1 + 0.2, third: 1 / 3 }));
    told.push(await caught(ops.call('test/fail', { at: 3 })));
    told.push(await caught(ops.call('none/such', {})));
    told.push((await caught(ops.call('test/paper', {})))[0]);
    for await (const n of ops.subscribe('test/count', null)) if (told.push(n) > 6) break;
    for await (const n of ops.subscribe('test/count', 2)) told.push(n);
    const { data, n } = await ops.call('test/bytes');
    told.push([...new Uint8Array(data)], n);
    for await (const { bytes = [] } of ops.subscribe('test/blocks')) told.push(...new Uint8Array(bytes));
    told.push(await Promise.all([1, 2, 3].map((n) => ops.call('test/echo', n))));
    const { token, open } = await ops.call('test/door', { pin });
    told.push(open, token.length > 0);
    return told;
}";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_called_makes_its_test_pass_without_a_node() {
    let (_lab, client) = lab();
    let source = format!("export default await ({BODY})('1234')");
    let answer = recorded(&client, &source).await;
    let (calls, value) = (&answer["calls"], &answer["value"]);
    assert_eq!(answer["calls_left_out"], 0, "{answer:#}");
    let text = calls.to_string();
    assert!(!text.contains("1234") && !text.contains("t-1"), "{text}");
    let paths: Vec<&str> = calls.as_array().map_or_else(Vec::new, |calls| {
        calls
            .iter()
            .filter_map(|call| call["path"].as_str())
            .collect()
    });
    assert_eq!(
        paths,
        [
            "test/echo",
            "test/fail",
            "test/paper",
            "test/count",
            "test/count",
            "test/bytes",
            "test/blocks",
            "test/echo",
            "test/echo",
            "test/echo",
            "test/door",
        ]
    );
    assert_eq!(
        calls[0]["output"],
        json!({ "sum": 0.1 + 0.2, "third": 1.0 / 3.0 })
    );
    assert_eq!(calls[1]["error"]["code"], "OUT_OF_INK");
    assert_eq!(calls[4]["output"], json!([0, 1]));
    assert_eq!(
        (&calls[5]["output"], &calls[5]["bytes"]),
        (
            &json!({ "data": { "$bin": [0, 3] }, "n": 0.1 }),
            &json!("YmNk")
        )
    );
    assert_eq!(
        (&calls[6]["output"], &calls[6]["bytes"]),
        (
            &json!([
                { "length": 4 }, { "bytes": { "$bin": [0, 2] } }, { "bytes": { "$bin": [2, 2] } },
            ]),
            &json!("YWJiYw==")
        )
    );
    assert_eq!(calls[10]["input"], json!({ "pin": REDACTED }));
    assert_eq!(
        calls[10]["output"],
        json!({ "token": REDACTED, "open": true })
    );

    // The same function, with the record for a node; and a call less is missed.
    let test = |calls: &Value| {
        let cases = json!([{ "input": REDACTED, "calls": calls, "expect": { "output": value } }]);
        let source = format!(
            "await ops.register({{ name: 'again', kind: 'query' }}, {BODY});
            export default await ops.test('again', {cases})"
        );
        json!({ "source": source, "uses": [] })
    };
    let report = eval(&client, &test(calls)).await.expect("a report");
    assert_eq!(report["value"]["passed"], true, "{report:#}");
    assert!(report.get("calls").is_none(), "they were not asked for");
    let fewer: Value = calls
        .as_array()
        .map(|calls| calls[1..].into())
        .unwrap_or_default();
    let report = eval(&client, &test(&fewer)).await.expect("a report");
    assert_eq!(report["value"]["passed"], false, "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_lists_the_calls_that_the_script_made_before() {
    let (_lab, client) = lab();
    let call = "await ops.call('test/echo', 1);";
    for (more, code) in [
        (
            "await ops.call('test/door', { pin: '99' })",
            "SCRIPT_FAILED",
        ),
        ("throw new Error('no')", "SCRIPT_FAILED"),
        ("for (;;);", "FUEL_EXHAUSTED"),
        ("await ops.call('test/hang', 1)", "TIMEOUT"),
    ] {
        let limits = json!({ "fuel_ticks": 50, "wall_ms": 2000 });
        let source = format!("{call} {more}");
        let input = json!({ "source": source, "record": true, "limits": limits });
        let error = eval(&client, &input).await.expect_err("a failure");
        assert_eq!(error.code.name(), code, "{more}: {error}");
        let details = error.details.expect("details");
        let calls = &details["calls"];
        assert_eq!(
            calls[0],
            json!({ "path": "test/echo", "input": 1, "output": 1 })
        );
        // A call without an answer is no fixture.
        let hung = u64::from(code == "TIMEOUT");
        assert_eq!(details["calls_left_out"], hung, "{more}");
        if more.contains("door") {
            let error = &calls[1]["error"];
            assert_eq!(
                (&error["code"], &error["message"], &error["details"]),
                (
                    &json!("WRONG_PIN"),
                    &json!(REDACTED),
                    &json!({ "pin": REDACTED, "tries": 2 })
                )
            );
        }
    }
    // What called nothing has nothing to tell.
    let input = json!({ "source": "throw 1", "record": true });
    let error = eval(&client, &input).await.expect_err("a failure");
    assert!(error.details.expect("details").get("calls").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repl_tells_the_calls_of_each_line_that_asks() {
    let (_lab, client) = lab();
    let line =
        |source: &str, record: bool| json!({ "repl": "a", "source": source, "record": record });
    for (n, record) in [(1, true), (2, false), (3, true)] {
        let line = line(&format!("await ops.call('test/echo', {n})"), record);
        let answer = eval(&client, &line).await.expect("a value");
        let echo = json!([{ "path": "test/echo", "input": n, "output": n }]);
        assert_eq!(answer.get("calls"), record.then_some(&echo), "{n}");
    }
    let line = line("1; await ops.call('test/fail', 4)", true);
    let error = eval(&client, &line).await.expect_err("a failure");
    assert_eq!(error.details.expect("details")["calls"][0]["input"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_says_how_much_it_lacks() {
    let (_lab, client) = lab();
    let half = RECORDED_BYTES_MAX / 2;
    let source =
        format!("for (const bytes of [1, {half}, {half}, 2]) await ops.call('test/big', bytes)");
    let answer = recorded(&client, &source).await;
    let calls = answer["calls"].as_array().expect("a list");
    let inputs: Vec<_> = calls.iter().map(|call| &call["input"]).collect();
    assert_eq!(inputs, [&json!(1), &json!(half), &json!(2)]);
    assert_eq!(answer["calls_left_out"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_with_bytes_are_left_out_and_work_all_the_same() {
    let lab = SessionLab::with(
        SessionsConfig::default(),
        tensors::operations(&Arc::default()),
    );
    let source = "const buffer = await gpu.buffer(new Float32Array([1, 2]));
        export default [...new Float32Array(await gpu.read(buffer))]";
    let mut spec = spec(source);
    spec.grants = SessionGrants::to(["compute/*", "tensor/*"]);
    let request = lab.request().await;
    let session = lab.open(&request, spec).await;
    let record = CallRecorder::default();
    session.set_record(Some(record.clone()));
    let ran = soon(session.run(&request.env(), main()))
        .await
        .expect("a value");
    assert_eq!(ran.value, json!([1, 2]));
    let recorded = record.end();
    let paths: Vec<&str> = recorded
        .calls
        .iter()
        .map(|call| call.path.as_str())
        .collect();
    assert_eq!(paths, ["tensor/create", "tensor/read"]);
    assert_eq!(recorded.left_out, 1);
}
