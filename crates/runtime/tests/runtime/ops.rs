//! `ops`, against a host in memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use alknet_runtime::{
    Isolate, IsolateSpec, IsolateWork, RuntimeCode, ScriptOperationKind, SessionMode, limits,
};
use serde_json::{Value, json};

use crate::support::{RecordingHost, code, main, outcome, spec, value, wait};

fn open(spec: IsolateSpec) -> (Isolate, Arc<RecordingHost>) {
    let host = Arc::new(RecordingHost::default());
    (
        Isolate::open(spec, Arc::clone(&host) as _).expect("an isolate"),
        host,
    )
}

#[test]
fn calls_carry_path_input_and_options() {
    let (outcome, host) = outcome(spec(
        "export default await ops.call('echo', { a: 1 }, { peer: 'p', timeoutMs: 5, idempotencyKey: 'k' })",
    ));
    assert_eq!(outcome.result, Ok(json!({ "a": 1 })));
    assert_eq!(outcome.stats.calls, 1);
    let calls = host.calls.lock().expect("no poison");
    let (path, input, options) = &calls[0];
    assert_eq!((path.as_str(), input), ("echo", &json!({ "a": 1 })));
    assert_eq!(options.peer.as_deref(), Some("p"));
    assert_eq!(
        (options.timeout_ms, options.idempotency_key.as_deref()),
        (Some(5), Some("k"))
    );
}

#[test]
fn errors_keep_their_code_and_details() {
    let source = "
        let seen;
        try { await ops.call('fail'); } catch (e) { seen = [e instanceof OpError, e instanceof Error, e.name, e.code, e.retryable, e.details, e.path]; }
        export default seen;";
    assert_eq!(
        value(source),
        json!([true, true, "OpError", "CONFLICT", true, { "at": 3 }, "fail"])
    );
    // An error that the script lets pass is reported whole.
    let (passed, _) = outcome(spec("await ops.call('fail')"));
    let error = passed
        .result
        .expect_err("it fails")
        .operation
        .expect("an operation's");
    assert_eq!(
        (error.code.as_str(), *error.details),
        ("CONFLICT", json!({ "at": 3 }))
    );
    // A missing operation is the host's answer and no matter of ours.
    let (missing, _) = outcome(spec("await ops.call('fs/read')"));
    assert_eq!(
        missing
            .result
            .expect_err("none")
            .operation
            .expect("an operation's")
            .code,
        "NOT_FOUND"
    );
}

/// The answer comes when no function of the script runs any more.
#[test]
fn an_error_of_an_operation_names_the_line_of_its_call() {
    for source in [
        "\n\nawait ops.call('fail');",
        "const f = async () => {\n  await 1;\n  await ops.call('fail');\n};\nawait f();",
        "\n\nfor await (const item of ops.subscribe('fail')) item;",
        "\n\nops.schema('fs/read');",
    ] {
        let (outcome, _) = outcome(spec(source));
        let failure = outcome.result.expect_err(source);
        assert!(failure.operation.is_some(), "{source}: {failure}");
        let place = failure.position().map(|place| place.to_string());
        assert_eq!(place.as_deref(), Some("./main.js:3"), "{source}");
        let stack = failure.stack.unwrap_or_default();
        assert!(!stack.contains("alknet:runtime"), "{stack}");
    }
    // A script that prepares its stacks itself may call while it does.
    let prepares = "Error.prepareStackTrace = () => { ops.call('echo', 1); return {}; };
        export default await ops.call('echo', 2);";
    assert_eq!(value(prepares), json!(2));
}

#[test]
fn a_script_cannot_make_the_runtimes_errors() {
    assert_eq!(
        code("throw new RuntimeError('E_FUEL', 'x')"),
        RuntimeCode::Exception
    );
    assert_eq!(
        code(
            "throw Object.assign(Object.create(RuntimeError.prototype), { code: 'E_FUEL', message: 'x' })"
        ),
        RuntimeCode::Exception
    );
    assert_eq!(
        code("throw Object.assign(new Error('x'), { code: 'E_MEMORY' })"),
        RuntimeCode::Exception
    );
    assert_eq!(
        code("class A extends RuntimeError {}; throw new A('E_FUEL')"),
        RuntimeCode::Exception
    );
}

/// A script may keep an error that the runtime threw, and change what is visible of it.
#[test]
fn a_script_chooses_no_code_of_the_runtime() {
    let caught = "let error; try { await ops.call('echo', { f() {} }); } catch (e) { error = e; }";
    assert_eq!(code(&format!("{caught} throw error;")), RuntimeCode::Encode);
    for other in RuntimeCode::ALL {
        for change in [
            "error.code = code",
            "Object.defineProperty(error, 'code', { get: () => code })",
        ] {
            let source = format!("{caught} const code = '{other}'; {change}; throw error;");
            assert_eq!(code(&source), RuntimeCode::Encode, "{other}: {change}");
        }
    }
    let hidden = "export default Reflect.ownKeys(RuntimeError).sort();";
    assert_eq!(value(hidden), json!(["length", "name", "prototype"]));
}

#[test]
fn an_aborted_signal_drops_the_call() {
    let source = "
        const control = new AbortController();
        const call = ops.call('never', null, { signal: control.signal });
        queueMicrotask(() => control.abort('enough'));
        let seen;
        try { await call; } catch (reason) { seen = reason; }
        let early;
        try { await ops.call('echo', 1, { signal: control.signal }); } catch (reason) { early = reason; }
        export default [seen, early];";
    let (outcome, host) = outcome(spec(source));
    assert_eq!(outcome.result, Ok(json!(["enough", "enough"])));
    assert_eq!(host.aborted.load(Ordering::SeqCst), 1);
    assert_eq!(host.calls.lock().expect("no poison").len(), 1);
}

#[test]
fn an_abort_from_outside_reaches_the_signal_and_the_call() {
    let source = "
        export const f = async (input, { signal }) => {
          signal.addEventListener('abort', () => console.log(`aborted: ${signal.reason.name}`));
          await ops.call('never');
        };";
    let mut service = spec(source);
    service.mode = SessionMode::Service;
    let (mut isolate, host) = open(service);
    let work = IsolateWork::Export {
        module: "./main.js".into(),
        export: "f".into(),
        input: Value::Null,
    };
    isolate.start(5, work);
    let remote = isolate.remote();
    remote.abort(5);
    let outcome = wait(isolate.next());
    assert_eq!(
        (outcome.entry, outcome.result.expect_err("aborted").code),
        (5, RuntimeCode::Abort)
    );
    assert_eq!(
        host.lines.lock().expect("no poison")[0].1,
        "aborted: AbortError"
    );
    assert_eq!(host.aborted.load(Ordering::SeqCst), 1);
    assert!(isolate.closed().is_none(), "the session goes on");
    assert!(wait(isolate.run(main())).result.is_ok());
}

#[test]
fn calls_overlap_and_answer_under_their_ids() {
    let mut service =
        spec("export const f = async (n) => { await ops.call('yields', n); return n; }");
    service.mode = SessionMode::Service;
    service.clock = alknet_runtime::SessionTimeSource::System;
    let (mut isolate, _) = open(service);
    let remote = isolate.remote();
    for (id, turns) in [(1, 30), (2, 10), (3, 20)] {
        let work = IsolateWork::Export {
            module: "./main.js".into(),
            export: "f".into(),
            input: json!(turns),
        };
        remote.start(id, work);
    }
    let outcomes = wait(async {
        [
            isolate.next().await,
            isolate.next().await,
            isolate.next().await,
        ]
    });
    let answers = outcomes.map(|outcome| (outcome.entry, outcome.result));
    assert_eq!(
        answers,
        [(2, Ok(json!(10))), (3, Ok(json!(20))), (1, Ok(json!(30)))]
    );
}

#[test]
fn items_are_pulled_and_a_break_ends_the_subscription() {
    let source = "
        const seen = [];
        for await (const item of ops.subscribe('count')) { if (item === 5) break; seen.push(item); }
        const all = [];
        for await (const item of ops.subscribe('count', 3)) all.push(item);
        let failed;
        try { for await (const item of ops.subscribe('none')) ; } catch (error) { failed = error.code; }
        export default [seen, all, failed];";
    let (outcome, host) = outcome(spec(source));
    assert_eq!(
        outcome.result,
        Ok(json!([[0, 1, 2, 3, 4], [0, 1, 2], "NOT_FOUND"]))
    );
    assert_eq!(host.aborted.load(Ordering::SeqCst), 2, "both are closed");
}

#[test]
fn at_most_sixteen_items_wait() {
    let source = "
        const items = ops.subscribe('count');
        await items.next();
        for (let i = 0; i < 10; i++) await ops.call('yields', 3);
        export default 1;";
    let (outcome, host) = outcome(spec(source));
    assert_eq!(outcome.result, Ok(json!(1)));
    let polled = host.polled.load(Ordering::SeqCst);
    assert!(
        (2..=limits::UNACKNOWLEDGED + 1).contains(&polled),
        "{polled}"
    );
}

#[test]
fn list_and_schema_show_the_environment() {
    let source = "
        let none;
        try { ops.schema('none'); } catch (error) { none = error.code; }
        export default [ops.list().map((o) => o.path), ops.list('ec').length, ops.schema('echo').output, none];";
    assert_eq!(
        value(source),
        json!([["echo", "count"], 1, { "type": "number" }, "NOT_FOUND"])
    );
}

#[test]
fn registered_handlers_are_called() {
    let source = "
        await ops.register({ name: 'add', kind: 'query', uses: ['echo'], errors: { TOO_LARGE: {} } }, async ({ a, b }, { signal }) => {
          if (a > 100) throw new OpError('TOO_LARGE', 'too large', { details: { a } });
          return (await ops.call('echo', a)) + b;
        });
        await ops.register({ name: 'stream', kind: 'subscription' }, async function* (n) { for (let i = 0; i < n; i++) yield { i }; });
        let taken;
        try { await ops.register({ name: 'taken', kind: 'query' }, () => 1); } catch (error) { taken = error.code; }
        export default taken;";
    let mut service = spec(source);
    service.mode = SessionMode::Service;
    let (mut isolate, host) = open(service);
    assert_eq!(wait(isolate.run(main())).result, Ok(json!("CONFLICT")));
    let mut call = |name: &str, input: Value| {
        wait(isolate.run(IsolateWork::Handler {
            name: name.to_owned(),
            input,
        }))
        .result
    };
    assert_eq!(call("add", json!({ "a": 1, "b": 2 })), Ok(json!(3)));
    let failed = call("add", json!({ "a": 101, "b": 2 })).expect_err("too large");
    assert_eq!(failed.operation.expect("its own").code, "TOO_LARGE");
    assert_eq!(
        call("none", Value::Null).expect_err("none").code,
        RuntimeCode::NotFound
    );
    assert_eq!(call("stream", json!(3)), Ok(Value::Null));
    let items = host.emitted.lock().expect("no poison");
    assert_eq!(
        items
            .iter()
            .map(|(_, item)| item["i"].clone())
            .collect::<Vec<_>>(),
        [json!(0), json!(1), json!(2)]
    );
    let registered = host.registered.lock().expect("no poison");
    assert_eq!(
        (registered[0].0.kind, registered[0].0.uses.len()),
        (ScriptOperationKind::Query, 1)
    );
    assert_ne!(registered[0].1, registered[1].1);
}

#[test]
fn the_loop_of_writing_and_testing() {
    let source = |fix: &str| {
        format!("
        await ops.register({{ name: 'double', kind: 'query', errors: {{ NEGATIVE: {{}}, ODD: {{}} }} }}, async (n) => {{
          if (n < 0) throw new OpError('NEGATIVE', 'below zero');
          const by = await ops.call('config/factor', {{}});
          return n * by {fix};
        }});
        const calls = [{{ path: 'config/factor', input: {{}}, output: 2 }}];
        export default await ops.test('double', [
          {{ name: 'two', input: 2, calls, expect: {{ output: 4 }} }},
          {{ name: 'shape', input: 2, calls, expect: {{ schema: {{ type: 'number' }} }} }},
          {{ name: 'negative', input: -1, expect: {{ error: 'NEGATIVE' }} }},
          {{ name: 'no record', input: 2, expect: {{ error: 'NOT_FOUND' }} }},
        ]);")
    };
    let failing = value(&source("+ 1"));
    assert_eq!(failing["passed"], json!(false));
    assert_eq!(failing["cases"][0]["reason"], json!("expected 4, got 5"));
    let passing = value(&source(""));
    assert_eq!(passing["passed"], json!(true), "{passing}");
    assert_eq!(passing["uncovered"], json!(["ODD"]));
    assert_eq!(passing["cases"].as_array().map(Vec::len), Some(4));
}

#[test]
fn a_test_sees_the_same_chance_and_time_every_time() {
    let source = "
        await ops.register({ name: 'x', kind: 'query' }, () => [Math.random(), Date.now()]);
        const report = await ops.test('x', [{ expect: { schema: { type: 'array' } } }]);
        export default report.passed;";
    let mut real = spec(source);
    real.clock = alknet_runtime::SessionTimeSource::System;
    real.seed = None;
    assert_eq!(outcome(real).0.result, Ok(json!(true)));
}

#[test]
fn what_is_pure_calls_nothing() {
    let source = "
        let seen;
        try { ops.pure(() => ops.call('echo', 1)).catch((error) => {}); seen = await ops.pure(() => ops.call('echo', 1)); } catch (error) { seen = error.code; }
        export default [seen, ops.pure((a, b) => a + b, 1, 2), await ops.call('echo', 3)];";
    let (outcome, host) = outcome(spec(source));
    assert_eq!(outcome.result, Ok(json!(["E_DENIED", 3, 3])));
    assert_eq!(host.calls.lock().expect("no poison").len(), 1);
}
