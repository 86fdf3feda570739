//! What sessions may call, and with which identity.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use alknet_call::{
    CallBody, CallError, CallOutput, CompositionAuthority, Ctx, HandlerKind, Idempotence,
    OperationSpec, Provenance, Registration, ScopedPeerEnv,
};
use alknet_runtime::{RuntimeCode, ScriptFailure, SessionMode};
use alknet_sessions::{
    PeerSelector, ScriptSessions, SessionGrant, SessionGrants, SessionOutput, SessionsConfig,
    limits,
};
use serde_json::{Value, json};

use crate::support::{SessionLab, code, export, identity, main, soon, spec, until};

async fn value(lab: &SessionLab, source: &str) -> Value {
    lab.run(spec(source)).await.expect("a value").value
}

/// The operation's code, in a session with these grants.
async fn refused(lab: &SessionLab, grants: SessionGrants, source: &str) -> String {
    let mut spec = spec(source);
    spec.grants = grants;
    refusal(lab.run(spec).await)
}

fn refusal(ran: Result<SessionOutput, ScriptFailure>) -> String {
    match ran {
        Ok(ran) => format!("it came to {}", ran.value),
        Err(failure) => match failure.operation {
            Some(error) => error.code,
            None => failure.code.name().to_owned(),
        },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_cross_unchanged() {
    let lab = SessionLab::new();
    let source = "const v = { 'é': [1, -1, 0.1, 1e308, 5e-324, 2 ** 53, null, true, ''], a: {} };
        const back = await ops.call('test/echo', v);
        export default JSON.stringify(back) === JSON.stringify(v)";
    assert_eq!(value(&lab, source).await, json!(true));
    let source = "const { data, n } = await ops.call('test/bytes', {});
        export default [new TextDecoder().decode(data), n, data.byteLength]";
    assert_eq!(value(&lab, source).await, json!(["bcd", 0.1, 3]));
    let source = "const text = await ops.call('test/big', 3000000);
        export default (await ops.call('test/echo', text)).length";
    assert_eq!(value(&lab, source).await, json!(3_000_000));
    let source = "await ops.call('test/big', 5000000)";
    assert_eq!(refusal(lab.run(spec(source)).await), "INVALID_OUTPUT");
}

/// A script that does not know whether its call arrived asks again under the same key.
#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_call_reaches_it() {
    let mut spec_of_pay = OperationSpec::mutation("test/pay", "Runs once for a key.").internal();
    spec_of_pay.idempotent = Idempotence::Keyed;
    let paid = Arc::new(AtomicU64::new(0));
    let pay = HandlerKind::once(move |_, _| {
        let paid = Arc::clone(&paid);
        async move { Ok(json!(paid.fetch_add(1, Ordering::SeqCst) + 1)) }
    });
    let lab = SessionLab::with(
        SessionsConfig::default(),
        vec![Registration::new(spec_of_pay, pay)],
    );
    let source = "const pay = (idempotencyKey) => ops.call('test/pay', {}, { idempotencyKey });
        export default [await pay('a'), await pay('a'), await pay('b'), await pay()]";
    assert_eq!(value(&lab, source).await, json!([1, 1, 2, 3]));
}

/// What a script hands over is measured by what it takes in the node's memory.
#[tokio::test(flavor = "multi_thread")]
async fn what_takes_too_much_memory_does_not_cross() {
    let lab = SessionLab::new();
    let tries = "const tries = async (what) => {
            try { await what(); return 'done'; } catch (error) { return error.code; } };";
    let large = [
        "new Array(2e6)",
        "Array.from({ length: 1000 }, () => new Array(100))",
        "Object.fromEntries(Array.from({ length: 4e4 }, (_, i) => [i, {}]))",
        "'\\u0001'.repeat(1e6)",
        "'x'.repeat(4 << 20)",
    ];
    for value in large {
        let calls = format!(
            "{tries} const v = {value};
             export default [await tries(() => ops.call('test/echo', v)),
                 await tries(() => ops.register({{ name: 'a', kind: 'query', input: {{ const: v }} }},
                     () => 1))]"
        );
        let told = self::value(&lab, &calls).await;
        assert_eq!(told, json!(["E_ENCODE", "E_ENCODE"]), "{value}");
        let failure = lab.run(spec(&format!("export default {value}"))).await;
        assert_eq!(code(failure), RuntimeCode::Encode, "{value}");
    }
    // What crosses alone does not cross many times at once, and is given back.
    let many = format!(
        "{tries} const text = 'x'.repeat(1 << 20), given = new AbortController();
         const hang = () => tries(() => ops.call('test/hang', text, {{ signal: given.signal }}));
         const refused = await Promise.race(Array.from({{ length: 8 }}, hang));
         given.abort();
         let again;
         do again = await tries(() => ops.call('test/echo', text)); while (again !== 'done');
         export default refused"
    );
    let told = soon(value(&lab, &many)).await;
    assert_eq!(told, json!("QUOTA_EXCEEDED"));
    // Registered schemas stay, and count as long.
    let many = format!(
        "{tries} const input = {{ enum: new Array(4000).fill(null) }}, codes = new Set();
         for (let i = 0; i < 100; i++) {{
             codes.add(await tries(() => ops.register({{ name: 'a' + i, kind: 'query', input }}, () => 1)));
         }}
         export default [...codes].sort()"
    );
    assert_eq!(value(&lab, &many).await, json!(["QUOTA_EXCEEDED", "done"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_operations_arrive_whole() {
    let lab = SessionLab::new();
    let source = "try { await ops.call('test/fail', { at: 3 }) } catch (e) {
        globalThis.e = e; }
        export default [e instanceof OpError, e.code, e.details.at, e.path, e.retryable]";
    let expected = json!([true, "OUT_OF_INK", 3, "test/fail", false]);
    assert_eq!(value(&lab, source).await, expected);
    let failure = lab.run(spec("await ops.call('test/fail', {})")).await;
    let failure = failure.expect_err("uncaught");
    assert_eq!(failure.code, RuntimeCode::Exception);
    assert_eq!(
        failure.operation.expect("the operation's").code,
        "OUT_OF_INK"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_granted_exists() {
    let lab = SessionLab::new();
    let call = |path: &str| format!("export default await ops.call('{path}', {{}})");
    let all = || SessionGrants::to(["test/*"]);
    for (grants, path, expected) in [
        (all(), "test/deep/one", "it came to \"yes\""),
        (all(), "/test/deep/one", "it came to \"yes\""),
        (all(), "test/nowhere", "NOT_FOUND"),
        (all(), "other/place", "NOT_FOUND"),
        (all(), "lab/enter", "NOT_FOUND"),
        (all(), "runtime/stats", "NOT_FOUND"),
        (SessionGrants::default(), "test/deep/one", "NOT_FOUND"),
        (
            SessionGrants::to(["test/echo"]),
            "test/deep/one",
            "NOT_FOUND",
        ),
        (
            SessionGrants::to(["test/deep/*"]),
            "test/deep/one",
            "it came to \"yes\"",
        ),
        // The operation that opens the session does not reach it, whatever is granted.
        (SessionGrants::to(["other/*"]), "other/place", "NOT_FOUND"),
        (SessionGrants::to(["*"]), "other/place", "NOT_FOUND"),
        (
            SessionGrants {
                deny: ["test/deep/*"].into_iter().collect(),
                ..all()
            },
            "test/deep/one",
            "NOT_FOUND",
        ),
        (
            SessionGrants {
                deny: ["test/deep/*"].into_iter().collect(),
                ..all()
            },
            "//test/deep/one",
            "NOT_FOUND",
        ),
    ] {
        assert_eq!(refused(&lab, grants, &call(path)).await, expected, "{path}");
    }
    let elsewhere = "await ops.call('test/deep/one', {}, { peer: 'far' })";
    assert_eq!(refused(&lab, all(), elsewhere).await, "NOT_FOUND");
    let local = SessionGrants {
        allow: vec![SessionGrant {
            peer: PeerSelector::Local,
            ..SessionGrant::to("test/*")
        }],
        ..SessionGrants::default()
    };
    assert_eq!(refused(&lab, local.clone(), elsewhere).await, "NOT_FOUND");
    let here = refused(&lab, local, &call("test/deep/one")).await;
    assert_eq!(here, "it came to \"yes\"");
    let listed = "export default ops.list().map((o) => o.path).sort()";
    let mut spec = spec(listed);
    spec.grants = SessionGrants::to(["test/deep/*", "test/echo", "other/*"]);
    let listed = lab.run(spec).await.expect("a list").value;
    assert_eq!(listed, json!(["test/deep/one", "test/echo"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_have_constraints_and_budgets() {
    let lab = SessionLab::new();
    let grant = SessionGrant {
        constraint: Some(json!({ "type": "object", "required": ["a"] })),
        budget: Some(2),
        ..SessionGrant::to("test/echo")
    };
    let grants = SessionGrants {
        allow: vec![grant],
        ..SessionGrants::default()
    };
    let wrong = "await ops.call('test/echo', { b: 1 })";
    assert_eq!(refused(&lab, grants.clone(), wrong).await, "FORBIDDEN");
    let source = "const go = () => ops.call('test/echo', { a: 1 });
        await go(); await go(); await go();";
    assert_eq!(
        refused(&lab, grants.clone(), source).await,
        "QUOTA_EXCEEDED"
    );
    let source = "const go = () => ops.call('test/echo', { a: 1 }); await go(); await go();
        export default 'two'";
    assert_eq!(refused(&lab, grants, source).await, "it came to \"two\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_acts_with_the_scopes_of_its_caller_and_no_more() {
    let lab = SessionLab::new();
    let source = "export default await ops.call('test/paper', {})";
    for (scopes, expected) in [
        (&["*"][..], "it came to \"yes\""),
        (&["paper:read"], "it came to \"yes\""),
        (&["paper:*"], "it came to \"yes\""),
        (&["paper:write"], "FORBIDDEN"),
        (&[], "FORBIDDEN"),
    ] {
        let mut spec = spec(source);
        spec.identity = Some(identity("who", scopes));
        assert_eq!(refusal(lab.run(spec).await), expected, "{scopes:?}");
    }
    let mut unknown_peer = spec(source);
    unknown_peer.identity = None;
    assert_eq!(refusal(lab.run(unknown_peer).await), "FORBIDDEN");
    // Nothing in the call says who it is for.
    let source = "const asked = { identity: 'root', scopes: ['*'], auth_token: 'x' };
        export default (await ops.call('test/who', asked)).id";
    assert_eq!(value(&lab, source).await, json!("lab"));
}

/// Where an operation finds the sessions of its node, once there are any.
type SessionsCell = Arc<OnceLock<Arc<ScriptSessions>>>;

/// An operation that runs its input, a script, for its caller, and has these scopes itself.
fn opener(name: &str, scopes: &[&str], cell: &SessionsCell) -> Registration {
    let cell = Arc::clone(cell);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let cell = Arc::clone(&cell);
        async move {
            let sessions = cell.get().expect("it was set before the first call");
            let mut spec = spec(input.value().as_str().unwrap_or_default());
            spec.identity = ctx.identity().cloned();
            spec.grants = SessionGrants::to(["api/*"]);
            let env = ctx.env();
            let session = sessions.open(&env, spec).await.expect("a session");
            let ran = session.run(&env, main()).await;
            ran.map(|ran| ran.value)
                .map_err(|failure| CallError::internal(failure.to_string()))
        }
    });
    Registration::new(OperationSpec::query(name, "For tests."), handler).composing(
        CompositionAuthority::new(name, scopes),
        ScopedPeerEnv::new(["api/*"]),
    )
}

/// What a server of another owner answers, a script gets where its caller and the operation that opened its session both
/// hold the scope.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_calls_an_imported_operation_by_its_callers_scope_and_its_openers() {
    let note = HandlerKind::once(|_, _| async { Ok(json!("a note")) });
    let spec_of_note = OperationSpec::query("api/note", "A server's.").internal();
    let note = Registration::imported(spec_of_note, note, Provenance::FromOpenApi);
    let cell = SessionsCell::default();
    let more = vec![
        note.with_import_scope(),
        opener("test/may", &["import:api:*"], &cell),
        opener("test/may-not", &["import:app:*"], &cell),
    ];
    let lab = SessionLab::with(SessionsConfig::default(), more);
    let set = cell.set(Arc::clone(&lab.sessions));
    assert!(set.is_ok(), "it is set once");
    let source = json!(
        "let said;
         try { said = await ops.call('api/note') } catch ({ code, message }) { said = [code, message] }
         export default [said, ops.list().map((one) => one.path)]"
    );
    for (opener, scopes, may) in [
        ("test/may", &["import:api:note"][..], true),
        ("test/may", &["*"], true),
        ("test/may", &["import:app:note"], false),
        ("test/may-not", &["*"], false),
        ("test/may-not", &["import:api:note"], false),
    ] {
        let client = lab.client(&identity("who", scopes));
        let answer = soon(client.call(opener, &source)).await.expect("a value");
        let [said, listed] = [&answer.value()[0], &answer.value()[1]];
        if may {
            let expected = (&json!("a note"), &json!(["api/note"]));
            assert_eq!((said, listed), expected, "{opener} {scopes:?}");
        } else {
            assert_eq!(listed, &json!([]), "{opener} {scopes:?}");
            assert_eq!(said[0], "FORBIDDEN", "{opener} {scopes:?}");
            let message = said[1].as_str().unwrap_or_default();
            let lacks = "it lacks the scope 'import:api:note'";
            assert!(message.contains(lacks), "{opener} {scopes:?}: {message}");
        }
    }
}

/// A server may have some hundred operations with long schemas, and a session that may call them gets them all.
#[tokio::test(flavor = "multi_thread")]
async fn imported_operations_fill_a_part_of_the_list() {
    const IMPORTED: usize = 40;
    const DESCRIPTION_BYTES: usize = 8 << 10;
    const { assert!(IMPORTED * DESCRIPTION_BYTES > limits::LISTED_IMPORTED_BYTES_MAX) };
    let lab = SessionLab::new();
    let far = (0..IMPORTED).map(|n| {
        let words = "x".repeat(DESCRIPTION_BYTES);
        let spec = OperationSpec::query(&format!("test/far{n}"), &words).internal();
        let echo =
            HandlerKind::once(|input: CallBody, _| async move { Ok(CallOutput::from(input)) });
        Registration::imported(spec, echo, Provenance::FromOpenApi).with_import_scope()
    });
    let imported = lab.dispatcher.import("far", far.collect());
    imported.expect("no name is taken");
    let source = format!(
        "const paths = ops.list().map((one) => one.path);
         const far = paths.filter((path) => path.startsWith('test/far')).length;
         export default [far, paths.includes('test/who'), await ops.call('test/far{}', 7)]",
        IMPORTED - 1
    );
    let told = value(&lab, &source).await;
    assert_eq!((&told[1], &told[2]), (&json!(true), &json!(7)));
    let listed = told[0].as_u64().expect("a number");
    let most = limits::LISTED_IMPORTED_BYTES_MAX / DESCRIPTION_BYTES;
    assert!((1..most as u64).contains(&listed), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_yield_as_they_are_taken() {
    let lab = SessionLab::new();
    let source = "let sum = 0; for await (const n of ops.subscribe('test/count', 1000)) sum += n;
        export default sum";
    assert_eq!(value(&lab, source).await, json!(499_500));
    let before = lab.probe.yielded.load(Ordering::SeqCst);
    let source = "const taken = [];
        for await (const n of ops.subscribe('test/count')) { taken.push(n); if (n === 4) break; }
        await new Promise((done) => setTimeout(done, 20));
        export default taken";
    assert_eq!(value(&lab, source).await, json!([0, 1, 2, 3, 4]));
    until("it is dropped", || {
        lab.probe.dropped.load(Ordering::SeqCst) == 2
    })
    .await;
    let yielded = lab.probe.yielded.load(Ordering::SeqCst) - before;
    // Sixteen items that the script has not taken, and those that it took.
    assert!(yielded <= 5 + 2 * 16, "{yielded}");
    let wrong = "for await (const n of ops.subscribe('test/echo', {}));";
    assert_eq!(
        refusal(lab.run(spec(wrong)).await),
        "INVALID_OPERATION_TYPE"
    );
    let unknown = "for await (const n of ops.subscribe('test/nowhere', {}));";
    assert_eq!(refusal(lab.run(spec(unknown)).await), "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_calls_its_own_operations_through_the_registry() {
    let lab = SessionLab::new();
    let source = "await ops.register({ name: 'twice', kind: 'query', uses: [],
            input: { type: 'integer' }, errors: { TOO_BIG: {} } },
            (n) => { if (n > 99) throw new OpError('TOO_BIG', 'no', { n }); return 2 * n; });
        await ops.register({ name: 'upto', kind: 'subscription', uses: [] },
            async function* (n) { for (let i = 0; i < n; i++) yield i; });
        const codes = [];
        for (const bad of ['x', 100]) {
            try { await ops.call('js/twice', bad) } catch (e) { codes.push(e.code) }
        }
        const items = [];
        for await (const i of ops.subscribe('js/upto', 100)) items.push(i);
        export default [await ops.call('js/twice', 21), codes, items.length, items[99]]";
    let expected = json!([42, ["INVALID_INPUT", "TOO_BIG"], 100, 99]);
    let mut own = spec(source);
    own.grants = SessionGrants::default();
    assert_eq!(lab.run(own).await.expect("a value").value, expected);
    // No other session sees them.
    let other = "await ops.call('js/twice', 1)";
    assert_eq!(refusal(lab.run(spec(other)).await), "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_registered_again_and_better() {
    let lab = SessionLab::new();
    let source = "const spec = (input) => ({ name: 'x', kind: 'query', uses: [], input });
        await ops.register(spec({ type: 'string' }), () => 'old');
        const old = await ops.call('js/x', 'a');
        await ops.register(spec({ type: 'integer' }), () => 'new');
        let refused; try { await ops.call('js/x', 'a') } catch (e) { refused = e.code }
        export default [old, await ops.call('js/x', 1), refused]";
    assert_eq!(
        value(&lab, source).await,
        json!(["old", "new", "INVALID_INPUT"])
    );
    for (spec_text, expected) in [
        ("{ name: '1x', kind: 'query', uses: [] }", "INVALID_INPUT"),
        (
            "{ name: 'a/b/c/d', kind: 'query', uses: [] }",
            "INVALID_INPUT",
        ),
        (
            "{ name: 'a', kind: 'query', uses: [], input: { type: 'nonsense' } }",
            "INVALID_INPUT",
        ),
        (
            "{ name: 'a', kind: 'query', uses: [], errors: { lower: {} } }",
            "INVALID_INPUT",
        ),
        ("{ name: 'A', kind: 'query', uses: [] }", "E_LIMIT"),
    ] {
        let source = format!("await ops.register({spec_text}, () => 1)");
        assert_eq!(
            refusal(lab.run(spec(&source)).await),
            expected,
            "{spec_text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recursion_through_the_registry_ends() {
    let lab = SessionLab::new();
    let source = "await ops.register({ name: 'again', kind: 'query', uses: [] },
            (n) => ops.call('js/again', n + 1));
        let e; try { await ops.call('js/again', 0) } catch (error) { e = error }
        export default e.code";
    let code = value(&lab, source).await;
    assert!(
        ["QUOTA_EXCEEDED", "INTERNAL"].contains(&code.as_str().unwrap_or("")),
        "{code}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_counted_and_bounded() {
    let lab = SessionLab::new();
    let mut few = spec("for (let i = 0; i < 6; i++) await ops.call('test/echo', i)");
    few.limits.runtime.calls = 5;
    assert_eq!(code(lab.run(few).await), RuntimeCode::Quota);
    let mut wide =
        spec("await Promise.all(Array.from({ length: 9 }, () => ops.call('test/hang')))");
    wide.limits.runtime.calls_in_flight = 8;
    assert_eq!(code(lab.run(wide).await), RuntimeCode::Quota);
    let request = lab.request().await;
    let source = "for (let i = 0; i < 3; i++) await ops.call('test/echo', i);
        export default await ops.call('test/deep/one', 1)";
    let session = lab.open(&request, spec(source)).await;
    let ran = soon(session.run(&request.env(), main()))
        .await
        .expect("a value");
    assert_eq!(ran.calls, 4);
    let calls = session.info().calls;
    assert_eq!((calls["test/echo"], calls["test/deep/one"]), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_calls_only_in_the_course_of_a_call() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let source = "let later; export const begin = () => { setTimeout(async () => {
            try { later = await ops.call('test/echo', 1) } catch (e) { later = e.code } }, 1); };
        export const end = () => later ?? null;";
    let mut spec = spec(source);
    spec.mode = SessionMode::Service;
    let session = lab.open(&request, spec).await;
    soon(session.run(&env, export("begin", json!(null))))
        .await
        .expect("begun");
    let later = soon(async {
        // Nothing announces it: it is looked for again and again.
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            let ran = session.run(&env, export("end", json!(null))).await;
            let value = ran.expect("a value").value;
            if value != Value::Null {
                return value;
            }
        }
    })
    .await;
    // The timer may fire while `end` runs, and then there is a request to call for.
    assert!([json!("ABORTED"), json!(1)].contains(&later), "{later}");
}

/// A schema that no value could be checked against is refused when it is registered, and a check that
/// would take too long when it is asked for. Others are served meanwhile, or this would never end.
#[tokio::test(flavor = "multi_thread")]
async fn schemas_that_take_too_long_are_refused() {
    let lab = SessionLab::new();
    let register = "await ops.register({ name: 'a', kind: 'query', input: schema }, () => 1);";
    let chain = "const $defs = { d40: { type: 'string' } };
        for (let i = 0; i < 40; i++) {
            const next = { $ref: '#/$defs/d' + (i + 1) };
            $defs['d' + i] = { allOf: [next, next] };
        }
        const schema = { $ref: '#/$defs/d0', $defs };";
    let deep = "let schema = { type: 'string' };
        for (let i = 0; i < 40; i++) schema = { unevaluatedProperties: schema };";
    for bomb in [chain, deep] {
        assert_eq!(
            refusal(lab.run(spec(&format!("{bomb} {register}"))).await),
            "INVALID_INPUT",
            "{bomb}"
        );
    }
    let twice = "const a = { anyOf: [{ $ref: '#/$defs/a' }, { $ref: '#/$defs/a' }] };
        const schema = { $ref: '#/$defs/a', $defs: { a: { items: a } } };
        let v = 1; for (let i = 0; i < 60; i++) v = [v];";
    let numbers =
        "const schema = { items: { enum: Array.from({ length: 9000 }, (_, i) => i + 0.5) } };
        const v = new Array(40000).fill(7);";
    for bomb in [twice, numbers] {
        let source = format!("{bomb} {register} export default await ops.call('js/a', v)");
        assert_eq!(
            refusal(lab.run(spec(&source)).await),
            "INVALID_INPUT",
            "{bomb}"
        );
    }
    let source = "export default await ops.call('test/echo', 1)";
    assert_eq!(value(&lab, source).await, json!(1));
}
