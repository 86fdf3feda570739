//! What crosses between a script and its host.

use alknet_runtime::{RuntimeCode, limits, weight};
use serde_json::{Value, json};

use crate::support::{code, value};

#[test]
fn plain_values_go_there_and_back() {
    let source = r#"export default await ops.call("echo", { n: null, t: true, i: -1, big: 2 ** 53, f: 0.1, s: "ä\u{1f600}\n", a: [1, [2]], o: { "": 1, "__proto__x": 2 }, z: -0, n2: 5n, d: new Date(0), gone: undefined, hole: [undefined] })"#;
    let expected = json!({ "n": null, "t": true, "i": -1, "big": 9007199254740992_u64, "f": 0.1, "s": "ä\u{1f600}\n", "a": [1, [2]], "o": { "": 1, "__proto__x": 2 }, "z": 0, "n2": 5, "d": "1970-01-01T00:00:00.000Z", "hole": [null] });
    assert_eq!(value(source), expected);
}

#[test]
fn a_member_named_proto_is_a_member() {
    let source = r#"
        const own = JSON.parse('{"__proto__":{"x":1}}');
        const back = await ops.call("echo", own);
        export default [Object.hasOwn(back, "__proto__"), back.x === undefined, Object.getPrototypeOf(back) === Object.prototype];"#;
    assert_eq!(value(source), json!([true, true, true]));
}

#[test]
fn what_json_cannot_say_is_refused() {
    for made in [
        "NaN",
        "Infinity",
        "-Infinity",
        "2n ** 53n + 1n",
        "-(2n ** 64n)",
        "() => 1",
        "Symbol('x')",
        "'\\ud800'",
        "new Uint8Array(2)",
        "new ArrayBuffer(2)",
        "new DataView(new ArrayBuffer(2))",
        "new Map([[1, 2]])",
        "new Set()",
        "Promise.resolve(1)",
        "new Float16Array(1)",
        "{ '\\ud800': 1 }",
        "class {}",
    ] {
        assert_eq!(
            code(&format!("await ops.call('echo', {{ a: [{made}] }})")),
            RuntimeCode::Encode,
            "{made}"
        );
    }
    // A function as the default export is what a module offers, no value.
    assert_eq!(value("export default () => 1"), Value::Null);
    assert_eq!(code("export default { a: () => 1 }"), RuntimeCode::Encode);
}

#[test]
fn depth_and_size_are_limited() {
    let deep = |levels: usize| {
        format!("let a = 1; for (let i = 0; i < {levels}; i++) a = [a]; export default a")
    };
    assert!(value(&deep(limits::JSON_DEPTH)).is_array());
    assert_eq!(code(&deep(limits::JSON_DEPTH + 1)), RuntimeCode::Encode);
    assert_eq!(
        code("const a = {}; a.a = a; export default a"),
        RuntimeCode::Encode
    );
    let text = |bytes: usize| format!("export default 'x'.repeat({bytes})");
    let most = limits::JSON_BYTES - weight::VALUE;
    assert!(value(&text(most)).is_string());
    assert_eq!(code(&text(most + 1)), RuntimeCode::Encode);
    // Holes are values, however deep they lie.
    let holes = |items: usize| format!("export default [new Array({items})]");
    let most = limits::JSON_BYTES / weight::VALUE - 2;
    assert!(value(&holes(most)).is_array());
    assert_eq!(code(&holes(most + 1)), RuntimeCode::Encode);
    assert_eq!(code("export default new Array(2e6)"), RuntimeCode::Encode);
    assert_eq!(
        code("export default Array.from({ length: 1000 }, () => new Array(1000))"),
        RuntimeCode::Encode
    );
    assert_eq!(
        code("const a = []; a.length = 2 ** 32 - 1; export default a"),
        RuntimeCode::Encode
    );
    assert_eq!(
        code("export default new Proxy([], { get: (t, k) => k === 'length' ? 2 ** 40 : t[k] })"),
        RuntimeCode::Encode
    );
}

#[test]
fn getters_proxies_and_to_json_give_what_they_say() {
    let source = "
        export default [
            { get a() { return 1; } },
            new Proxy({ b: 2 }, {}),
            new Proxy([3], {}),
            { toJSON: (key) => ({ key }) },
            new (class { c = 4; #d = 5; get e() { return 6; } })(),
        ];";
    assert_eq!(
        value(source),
        json!([{ "a": 1 }, { "b": 2 }, [3], { "key": "3" }, { "c": 4 }])
    );
    assert_eq!(
        code("export default { get a() { throw new Error('x'); } }"),
        RuntimeCode::Exception
    );
    assert_eq!(
        code("export default { toJSON() { return this; } }"),
        RuntimeCode::Encode
    );
}
