use alknet_runtime::{GlobalGrants, Isolate, IsolateWork, SessionMode};
use serde_json::json;
use std::sync::Arc;

use crate::support::{RecordingHost, code, failure, outcome, spec, value, wait};

/// Everything on `globalThis`, in the order of names. A change here is a change of what scripts can
/// reach: think twice.
const NAMES: &str = "AbortController AbortSignal AggregateError Array ArrayBuffer BigInt BigInt64Array \
    BigUint64Array Boolean DOMException DataView Date Error EvalError Float16Array Float32Array \
    Float64Array Function Infinity Int16Array Int32Array Int8Array InternalError Iterator JSON Map Math \
    NaN Number Object OpError Promise Proxy RangeError ReferenceError Reflect RegExp RuntimeError Set \
    String SuppressedError Symbol SyntaxError TextDecoder TextEncoder TypeError URIError URL Uint16Array \
    Uint32Array Uint8Array Uint8ClampedArray WeakMap WeakSet capabilities clearTimeout console crypto decodeURI \
    decodeURIComponent encodeURI encodeURIComponent globalThis isFinite isNaN ops parseFloat parseInt \
    queueMicrotask setTimeout structuredClone undefined";

#[test]
fn global_names_are_exactly_these() {
    let names = value("export default Object.getOwnPropertyNames(globalThis).sort().join(' ')");
    let listed = names
        .as_str()
        .expect("a text")
        .replace("AsyncDisposableStack ", "")
        .replace("DisposableStack ", "");
    assert_eq!(
        listed,
        NAMES.split_whitespace().collect::<Vec<_>>().join(" ")
    );
}

#[test]
fn what_is_not_granted_is_absent() {
    let mut spec = spec("export default typeof ops");
    spec.grants = GlobalGrants {
        ops: false,
        ..GlobalGrants::default()
    };
    assert_eq!(outcome(spec).0.result, Ok(json!("undefined")));
}

#[test]
fn no_text_becomes_code() {
    for source in [
        "eval('1')",
        "globalThis.eval('1')",
        "new Function('return 1')()",
        "Function('return 1')()",
        "(() => {}).constructor('return 1')()",
        "(async () => {}).constructor('return 1')()",
        "(function* () {}).constructor('return 1')()",
        "(async function* () {}).constructor('return 1')()",
        "Object.getPrototypeOf((async () => {}).constructor)('return 1')()",
        "Reflect.construct(Function, ['return 1'])()",
        "class A extends Function {}; new A('return 1')()",
        "setTimeout('1')",
        "await import('data:text/javascript,export default 1')",
        "new (class extends Object.getPrototypeOf(class {}).constructor {})('return 1')",
        "Function.prototype.constructor.call(null, 'return 1')()",
        "parseInt.constructor('return 1')()",
    ] {
        let failure = failure(source);
        let refused = ["ReferenceError", "TypeError", "RuntimeError"];
        let name = failure.name.clone().unwrap_or_default();
        assert!(refused.contains(&name.as_str()), "{source}: {failure:?}");
    }
    assert_eq!(
        value("export default (() => {}) instanceof Function"),
        json!(true)
    );
}

#[test]
fn a_repl_has_eval_and_shows_values() {
    let mut spec = spec("");
    spec.mode = SessionMode::Repl;
    let host = Arc::new(RecordingHost::default());
    let mut isolate = Isolate::open(spec, host).expect("an isolate");
    let mut run = |source: &str| {
        wait(isolate.run(IsolateWork::Script {
            source: source.to_owned(),
        }))
    };
    assert_eq!(run("eval('1 + 1')").result, Ok(json!(2)));
    assert_eq!(
        run("var a = new Map([[1, { b: 'c' }]]); a")
            .shown
            .as_deref(),
        Some("Map(1) { 1 => { b: 'c' } }")
    );
    assert_eq!(run("await Promise.resolve(a.size)").result, Ok(json!(1)));
    assert!(run("throw new Error('x')").result.is_err());
    assert_eq!(run("a.size").result, Ok(json!(1)), "the session goes on");
}

#[test]
fn time_is_the_sessions() {
    let source = "
        const times = [Date.now(), +new Date(), new Date(5).getTime(), Date.UTC(1970, 0, 1)];
        await new Promise((done) => setTimeout(done, 86_400_000));
        times.push(Date.now());
        export default [...times, Date.name, Date.length, new Date(0) instanceof Date, typeof Date()];";
    let expected = json!([1000, 1000, 5, 0, 86_401_000, "Date", 7, true, "string"]);
    assert_eq!(value(source), expected);
}

#[test]
fn timers_fire_in_order_and_not_after_they_were_cleared() {
    let source = "
        const seen = [];
        setTimeout((x) => seen.push(x), 20, 'c');
        setTimeout(() => seen.push('b'), 10);
        setTimeout(() => seen.push('a'));
        clearTimeout(setTimeout(() => seen.push('never'), 15));
        clearTimeout(undefined);
        await new Promise((done) => setTimeout(done, 30));
        export default seen;";
    assert_eq!(value(source), json!(["a", "b", "c"]));
}

#[test]
fn text_is_utf_8() {
    let source = r"
        const bytes = new TextEncoder().encode('a€\ud800');
        const parts = new TextDecoder();
        let text = '';
        for (const byte of bytes) text += parts.decode(new Uint8Array([byte]), { stream: true });
        let fatal = '';
        try { new TextDecoder('utf-8', { fatal: true }).decode(new Uint8Array([0xff])); } catch (error) { fatal = error.name; }
        export default [[...bytes], text + parts.decode(), fatal, new TextDecoder().decode(new Uint8Array([0xef, 0xbb, 0xbf, 65]))];";
    let expected = json!([
        [97, 226, 130, 172, 239, 191, 189],
        "a€\u{fffd}",
        "TypeError",
        "A"
    ]);
    assert_eq!(value(source), expected);
}

#[test]
fn urls_follow_the_standard() {
    let source = "
        const url = new URL('../b?x=1#h', 'https://u:p@Example.ORG:443/a/c');
        url.searchParams.append('y', 'a b');
        url.hash = '';
        url.port = '8080';
        let bad = '';
        try { new URL('nothing'); } catch (error) { bad = error.name; }
        export default [url.href, url.host, url.origin, url.searchParams.get('y'), bad, JSON.stringify({ url }), URL.canParse('x:y')];";
    let href = "https://u:p@example.org:8080/b?x=1&y=a+b";
    let expected = json!([
        href,
        "example.org:8080",
        "https://example.org:8080",
        "a b",
        "TypeError",
        format!("{{\"url\":\"{href}\"}}"),
        true
    ]);
    assert_eq!(value(source), expected);
}

#[test]
fn digests_equal_known_ones() {
    let source = "
        const hex = (b) => [...new Uint8Array(b)].map((x) => x.toString(16).padStart(2, '0')).join('');
        const data = new TextEncoder().encode('abc');
        let bad = '';
        try { await crypto.subtle.digest('MD5', data); } catch (error) { bad = error.name; }
        export default [hex(await crypto.subtle.digest('SHA-256', data)), (await crypto.subtle.digest({ name: 'sha-512' }, data.buffer)).byteLength, bad];";
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(value(source), json!([abc, 64, "NotSupportedError"]));
}

#[test]
fn chance_is_seeded_where_it_has_to_be() {
    let source = "export default [Math.random(), [...crypto.getRandomValues(new Uint8Array(8))]]";
    assert_eq!(value(source), value(source));
    let mut other = spec(source);
    other.seed = Some([2; 32]);
    assert_ne!(outcome(other).0.result, Ok(value(source)));
    let mut system = spec(source);
    system.seeded_crypto = false;
    let system = outcome(system).0.result.expect("bytes");
    assert_eq!(system[0], value(source)[0]);
    assert_ne!(system[1], value(source)[1]);
    assert_eq!(
        failure("crypto.getRandomValues(new Uint8Array(65537))")
            .name
            .as_deref(),
        Some("QuotaExceededError")
    );
}

#[test]
fn clones_are_deep_and_keep_cycles() {
    let source = "
        const from = { date: new Date(5), map: new Map([[1, new Set([2])]]), re: /a/g, bytes: new Uint8Array([1, 2]), error: new RangeError('x'), ['__proto__']: 1 };
        from.self = from;
        const to = structuredClone(from);
        const moved = new ArrayBuffer(4);
        const given = structuredClone({ moved }, { transfer: [moved] });
        let bad = '';
        try { structuredClone(() => {}); } catch (error) { bad = error.name; }
        export default [to !== from, to.self === to, +to.date, to.map.get(1).has(2), String(to.re), [...to.bytes], to.bytes.buffer !== from.bytes.buffer, to.error.name, Object.hasOwn(to, '__proto__'), moved.byteLength, given.moved.byteLength, bad];";
    let expected = json!([
        true,
        true,
        5,
        true,
        "/a/g",
        [1, 2],
        true,
        "RangeError",
        true,
        0,
        4,
        "DataCloneError"
    ]);
    assert_eq!(value(source), expected);
}

#[test]
fn signals_abort_once_and_join() {
    let source = "
        const control = new AbortController();
        const seen = [];
        const any = AbortSignal.any([control.signal, AbortSignal.timeout(1e6)]);
        any.addEventListener('abort', () => seen.push('any'));
        control.signal.onabort = () => seen.push('on');
        control.signal.addEventListener('abort', () => seen.push('listened'), { once: true });
        control.abort('why');
        control.abort('again');
        let illegal = '';
        try { new AbortSignal(); } catch (error) { illegal = error.name; }
        const late = AbortSignal.timeout(5);
        await new Promise((done) => late.addEventListener('abort', done));
        export default [seen, any.reason, control.signal.aborted, AbortSignal.abort().reason.name, late.reason.name, illegal];";
    let expected = json!([
        ["on", "any", "listened"],
        "why",
        true,
        "AbortError",
        "TimeoutError",
        "TypeError"
    ]);
    assert_eq!(value(source), expected);
}

#[test]
fn frozen_objects_stay_as_they_are() {
    let source = "
        const tries = [
            () => { Array.prototype.push = 1; },
            () => { Object.prototype.x = 1; },
            () => { Promise.prototype.then = null; },
            () => { ops.call = null; },
            () => { Object.getPrototypeOf(async function () {}).x = 1; },
            () => { Math.random = null; },
            () => { URL.prototype.toString = null; },
        ];
        export default tries.map((run) => { try { run(); return 'changed'; } catch (error) { return error.name; } });";
    let mut frozen = spec(source);
    frozen.frozen = true;
    assert_eq!(outcome(frozen).0.result, Ok(json!(vec!["TypeError"; 7])));
}

#[test]
fn an_exception_names_the_line() {
    let failure = failure("\n\nfunction f() { throw new TypeError('no'); }\nf();");
    assert_eq!(
        (failure.name.as_deref(), failure.message.as_str()),
        (Some("TypeError"), "no")
    );
    let stack = failure.stack.expect("a stack");
    assert!(
        stack.contains("./main.js:3") && stack.contains("./main.js:4"),
        "{stack}"
    );
    assert!(!stack.contains("alknet:runtime"), "{stack}");
    assert_eq!(code("throw 5").name(), "E_EXCEPTION");
    assert_eq!(
        code("Promise.reject(new Error('x')); await 1; await 2;").name(),
        "E_EXCEPTION"
    );
}
