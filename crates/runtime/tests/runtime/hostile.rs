//! Scripts that mean harm. Each ends with the right code, or is ended by the flag that another
//! thread sets; none takes the process with it.
//!
//! What no flag stops is a loop inside the engine's own C: `sort` over hundreds of thousands of
//! numbers, powers of `BigInt`, `split` of megabytes. These are ended by killing the worker
//! process, whose tests show it; here they run small, to show that nothing else goes wrong.

use std::sync::Arc;
use std::time::Duration;

use alknet_runtime::{Isolate, IsolateSpec, IsolateWork, RuntimeCode, limits};
use serde_json::json;

use crate::support::{RecordingHost, code, main, outcome, spec, value, wait};

/// With little of everything, so that the tests are quick where the machine is not.
fn tight(source: &str) -> IsolateSpec {
    let mut spec = spec(source);
    spec.limits.fuel_ticks = 100;
    spec.limits.heap_bytes = 8 << 20;
    spec.limits.cpu = Duration::from_secs(60);
    spec
}

#[track_caller]
fn ends(source: &str, expected: &[RuntimeCode]) {
    let (outcome, _) = outcome(tight(source));
    let failure = outcome.result.expect_err(source);
    assert!(expected.contains(&failure.code), "{source}\n{failure:?}");
}

#[test]
fn loops_end_by_fuel_and_nothing_catches_it() {
    for source in [
        "for (;;) {}",
        "while (true) { try { for (;;) {} } catch {} finally { for (;;) {} } }",
        "try { for (;;) {} } catch { globalThis.x = 1 } finally { for (;;) {} }",
        "(function f() { try { for (;;) {} } finally { f() } })()",
        "/^(a+)+$/.test('a'.repeat(40) + 'b')",
        "/(x+x+)+y/.exec('x'.repeat(60))",
        "const a = []; a.length = 2 ** 32 - 1; a.indexOf(1, 1)",
        "const g = (function* () { for (;;) yield 1 })(); for (const x of g) ;",
        "async function f() { for (;;) await 1 } await f()",
        "const f = () => queueMicrotask(f); f(); await new Promise(() => {})",
        "const all = []; function f() { for (let i = 0; i < 8; i++) queueMicrotask(f) } f(); await new Promise(() => {})",
        "async function f() { try { for (;;) {} } finally { await f() } } await f()",
        "const t = { then(r) { r(t) } }; await t",
        "await new Promise((r) => { for (;;) ; }).catch(() => {})",
    ] {
        ends(source, &[RuntimeCode::Fuel, RuntimeCode::Memory]);
    }
}

#[test]
fn a_chain_of_promises_that_feeds_itself_ends() {
    // Either the fuel or the heap. Where not even an error fits, the engine rejects with null, and a
    // script that rejects with null looks the same.
    let source = "const f = () => Promise.resolve().then(f); await f()";
    ends(
        source,
        &[
            RuntimeCode::Fuel,
            RuntimeCode::Memory,
            RuntimeCode::Exception,
        ],
    );
}

#[test]
fn recursion_ends_by_the_stack() {
    for source in [
        "(function f() { f() })()",
        "const f = () => [1].map(f); f()",
        "const o = { get x() { return this.x } }; o.x",
        "const p = new Proxy({}, { get: (t, k, r) => r[k] }); p.x",
        "class A { constructor() { new A() } } new A()",
        "JSON.parse('['.repeat(100000) + ']'.repeat(100000))",
        "let a = []; for (let i = 0; i < 20000; i++) a = [a]; JSON.stringify(a)",
        "const o = { toString() { return String(this) } }; `${o}`",
        "'x'.replace(/x/, function f() { return 'x'.replace(/x/, f) })",
        "structuredClone((() => { let a = []; for (let i = 0; i < 20000; i++) a = [a]; return a })())",
    ] {
        ends(source, &[RuntimeCode::Stack]);
    }
    // A script that catches it goes on.
    let caught = "let n = 0; try { (function f() { f() })() } catch (e) { n = e instanceof RangeError } export default n";
    assert_eq!(value(caught), true);
}

#[test]
fn memory_ends_by_the_heap() {
    for source in [
        "'x'.padStart(2 ** 29)",
        "let s = 'x'; for (;;) s += s",
        "const a = []; for (;;) a.push(new Array(1000).fill(0))",
        "const a = []; for (;;) a.push({ a })",
        "new Uint8Array(2 ** 30)",
        "new ArrayBuffer(2 ** 29)",
        "const m = new Map(); for (let i = 0; ; i++) m.set(i, 'x'.repeat(100))",
        "'x'.repeat(2 ** 22).split('')",
        "[...Array(2 ** 26).keys()]",
        "Array.from({ length: 2 ** 27 }, () => 1)",
        "const a = [1]; for (;;) a.push(...a)",
        "let r = '('; while (r.length < 2 ** 21) r += r; new RegExp(r + ')')",
    ] {
        let expected = [
            RuntimeCode::Memory,
            RuntimeCode::Fuel,
            RuntimeCode::Stack,
            RuntimeCode::Exception,
        ];
        ends(source, &expected);
    }
    assert_eq!(
        code("const a = []; for (;;) a.push(new Uint8Array(1 << 20))"),
        RuntimeCode::Memory
    );
}

#[test]
fn a_script_is_closed_after_a_limit_and_cannot_go_on() {
    let source = "
        async function f() { try { for (;;) {} } finally { await 0; console.log('after') } }
        f().catch(() => console.log('caught'));
        setTimeout(() => console.log('timer'));
        queueMicrotask(() => console.log('job'));
        for (;;) {}";
    let host = Arc::new(RecordingHost::default());
    let mut isolate = Isolate::open(tight(source), Arc::clone(&host) as _).expect("an isolate");
    let first = wait(isolate.run(main())).result.expect_err("fuel");
    assert_eq!(first.code, RuntimeCode::Fuel);
    assert_eq!(
        isolate.closed().map(|failure| failure.code),
        Some(RuntimeCode::Fuel)
    );
    let again = wait(isolate.run(main())).result.expect_err("closed");
    assert_eq!(again.code, RuntimeCode::Fuel);
    assert!(host.lines.lock().expect("no poison").is_empty());
}

#[test]
fn conversions_run_inside_the_limits() {
    for source in [
        "export default { get a() { for (;;) {} } }",
        "export default { toJSON() { for (;;) {} } }",
        "export default new Proxy({}, { ownKeys() { for (;;) {} } })",
        "export default new Proxy([], { get(t, k) { if (k === 'length') for (;;) {} ; return t[k] } })",
        "await ops.call('echo', { get a() { for (;;) {} } })",
        "console.log({ [Symbol.toStringTag]: 1, toString() { for (;;) {} } } + '')",
        "throw { get message() { for (;;) {} } }",
        "throw new Proxy({}, { get() { for (;;) {} } })",
        "throw Object.assign(new Error('x'), { toString() { for (;;) {} } , get name() { for (;;) {} } })",
        "new URL({ toString() { for (;;) {} } })",
        "setTimeout(() => {}, { valueOf() { for (;;) {} } })",
    ] {
        ends(source, &[RuntimeCode::Fuel, RuntimeCode::Exception]);
    }
}

#[test]
fn odd_values_end_with_an_error_and_nothing_worse() {
    for source in [
        "throw null",
        "throw undefined",
        "throw Symbol('x')",
        "throw new Proxy({}, { get() { throw 1 } })",
        "throw Object.create(null)",
        "throw { get message() { throw { get message() { throw 1 } } } }",
        "Error.prepareStackTrace = () => { throw 1 }; throw new Error('x')",
        "Error.stackTraceLimit = { valueOf() { throw 1 } }; throw new Error('x')",
        "const p = Proxy.revocable({}, {}); p.revoke(); throw p.proxy",
        "const p = Proxy.revocable([], {}); p.revoke(); console.log(p.proxy)",
        "new (class extends Promise { constructor(f) { super(f); throw 1 } })(() => {})",
        "class P extends Promise { static get [Symbol.species]() { throw 1 } } new P(() => {}).then()",
        "class A extends Array { static get [Symbol.species]() { return function () { return Object.freeze([]) } } } new A(1, 2, 3).map((x) => x)",
        "const b = new ArrayBuffer(8); b.constructor = { [Symbol.species]: function () { return b } }; b.slice(0)",
        "const a = new Uint8Array(8); new TextDecoder().decode(a, { get stream() { a.buffer.transfer(); throw 1 } })",
        "ops.call({ toString() { throw 1 } })",
        "ops.register({}, () => {})",
        "ops.register({ name: 'A', kind: 'query' }, () => {})",
        "ops.register({ name: 'a', kind: 'query', more: 1 }, () => {})",
        "ops.test('none', [])",
        "await ops.call('echo', 1, { timeoutMs: 'x' })",
    ] {
        ends(
            source,
            &[
                RuntimeCode::Exception,
                RuntimeCode::Limit,
                RuntimeCode::NotFound,
                RuntimeCode::Encode,
            ],
        );
    }
}

#[test]
fn polluted_prototypes_reach_nothing_of_ours() {
    let source = "
        Object.defineProperty(Object.prototype, 'a', { set() { throw new Error('set') }, configurable: true });
        Object.defineProperty(Array.prototype, 0, { set() { throw new Error('set 0') }, configurable: true });
        Object.prototype.timeout_ms = 'polluted';
        Promise.prototype.then = () => { throw new Error('then') };
        Array.prototype[Symbol.iterator] = () => { throw new Error('iterator') };
        Function.prototype.call = () => { throw new Error('call') };
        const answer = ops.call('echo', { a: [1, { '__proto__x': 2 }] });
        export default await answer;";
    // `await` itself does not look at the prototype of a native promise.
    let (outcome, host) = outcome(spec(source));
    let calls = host.calls.lock().expect("no poison");
    assert_eq!(calls.len(), 1, "{outcome:?}");
    assert_eq!(calls[0].2, alknet_runtime::ScriptCallOptions::default());
    drop(calls);
    assert_eq!(
        outcome.result,
        Ok(serde_json::json!({ "a": [1, { "__proto__x": 2 }] }))
    );
}

#[test]
fn the_flag_ends_what_computes_and_what_waits() {
    for source in [
        "for (;;) {}",
        "await ops.call('never')",
        "await new Promise((r) => setTimeout(r, 1e9))",
    ] {
        let mut spec = spec(&format!("console.log('begun'); {source}"));
        spec.limits.fuel_ticks = u64::MAX >> 1;
        spec.limits.cpu = Duration::from_secs(300);
        spec.clock = alknet_runtime::SessionTimeSource::System;
        let memory = Arc::new(RecordingHost::default());
        let mut isolate = Isolate::open(spec, memory.clone()).expect("an isolate");
        let remote = isolate.remote();
        let stopper = std::thread::spawn(move || {
            // The flag is meant to find the script at work: its line is looked for again and again. One that
            // has not begun after ten seconds ends by the flag as well.
            for _ in 0..10_000 {
                if !memory.lines.lock().expect("no poison").is_empty() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            remote.stop(RuntimeCode::Timeout);
        });
        let failure = wait(isolate.run(main())).result.expect_err(source);
        stopper.join().expect("the thread ends");
        assert_eq!(failure.code, RuntimeCode::Timeout, "{source}");
        assert!(isolate.closed().is_some());
    }
}

#[test]
fn cpu_time_is_limited_where_fuel_is_not() {
    let mut spec = spec("for (;;) {}");
    spec.limits.fuel_ticks = u64::MAX >> 1;
    spec.limits.cpu = Duration::from_millis(20);
    assert_eq!(
        outcome(spec).0.result.expect_err("time").code,
        RuntimeCode::Timeout
    );
}

/// The engine asks for no limit while the runtime makes a value for a script.
#[test]
fn cpu_time_is_limited_while_an_answer_is_made() {
    let mut spec = spec("await ops.call('repeat').catch(() => {}); export default 1");
    spec.limits.cpu = Duration::from_millis(50);
    assert_eq!(
        outcome(spec).0.result.expect_err("time").code,
        RuntimeCode::Timeout
    );
}

/// A script that makes an object, or a list of objects of one member, with so many names that have one hash.
fn script_of_names(work: &str) -> String {
    format!(
        "const pair = (at) => String.fromCharCode(0x800 + at, 0xd700 - 263 * at);
         const name = (at) => pair(at % 100) + pair(Math.trunc(at / 100));
         const names = (count) => Array.from({{ length: count }}, (_, at) => [name(at), 0]);
         const object = (count) => Object.fromEntries(names(count));
         const list = (count) => names(count).map((member) => Object.fromEntries([member]));
         const most = {};
         {work}",
        limits::NAMES_ALIKE_MAX
    )
}

/// Others choose the names of an answer and of an error's details: the call fails, and the script goes on.
#[test]
fn names_that_share_a_hash_are_refused() {
    let answers = script_of_names(
        "const size = (value) => Object.keys(value).length;
         const ask = (input) => ops.call('echo', input).then(size, (error) => error.code);
         const fail = (input) => ops.call('refuse', input).catch(({ details }) => details && size(details));
         const all = (ask) => [ask(object(most)), ask(list(most)), ask(object(most + 1)), ask(list(most + 1))];
         export default [await Promise.all(all(ask)), await Promise.all(all(fail))];",
    );
    let (most, refused) = (limits::NAMES_ALIKE_MAX, "QUOTA_EXCEEDED");
    let expected = json!([[most, most, refused, refused], [most, most, null, null]]);
    assert_eq!(value(&answers), expected);
}

/// A caller chooses the names of an input, which may not take the state of the session.
#[test]
fn an_input_whose_names_share_a_hash_is_refused() {
    let makes = |count: usize| {
        value(&script_of_names(&format!(
            "export default object(most + {count})"
        )))
    };
    let host = Arc::new(RecordingHost::default());
    let source = "let n = 0; export const next = (input) => [++n, Object.keys(input).length]";
    let mut isolate = Isolate::open(spec(source), host as _).expect("an isolate");
    let mut next = |input| {
        let work = IsolateWork::Export {
            module: "./main.js".to_owned(),
            export: "next".to_owned(),
            input,
        };
        wait(isolate.run(work)).result
    };
    let most = limits::NAMES_ALIKE_MAX;
    assert_eq!(next(makes(0)).expect("it fits"), json!([1, most]));
    let refused = next(makes(1)).expect_err("too many");
    assert_eq!(refused.code, RuntimeCode::Quota);
    assert!(refused.message.contains("the same hash"), "{refused}");
    assert_eq!(next(json!({})).expect("it goes on"), json!([2, 0]));
}

#[test]
fn native_loops_stay_within_memory_when_they_are_small() {
    for source in [
        "const a = Array.from({ length: 20000 }, (_, i) => (i * 7919) % 20011); a.sort((x, y) => x - y); export default a[0]",
        "export default String(3n ** 2000n).length",
        "export default 'a'.repeat(30000).split('').length",
    ] {
        assert!(value(source).is_number(), "{source}");
    }
    // The engine's own cap, or the memory.
    let (outcome, _) = outcome(tight("let a = 2n; for (;;) a *= a"));
    let failure = outcome.result.expect_err("too large");
    assert!(
        [
            RuntimeCode::Exception,
            RuntimeCode::Memory,
            RuntimeCode::Fuel
        ]
        .contains(&failure.code),
        "{failure:?}"
    );
}

#[test]
fn many_isolates_come_and_go() {
    let host = Arc::new(RecordingHost::default());
    for round in 0..200 {
        let source = [
            "for (;;) {}",
            "(function f() { f() })()",
            "await ops.call('never')",
            "export default 1",
        ][round % 4];
        let mut isolate = Isolate::open(tight(source), Arc::clone(&host) as _).expect("an isolate");
        if round % 4 == 2 {
            isolate.start(1, main());
            drop(isolate);
        } else {
            wait(isolate.run(main())).result.err();
        }
    }
}
