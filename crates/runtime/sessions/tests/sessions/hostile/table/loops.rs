//! What never ends by itself: in the script, and inside the engine.

use super::{CaseEnd, EXCEPTION, Rows};

/// Loops of the script's own.
pub(super) const LOOPS: Rows = &[
    ("while", CaseEnd::Fuel, "while (true);"),
    ("do while", CaseEnd::Fuel, "do ; while (true)"),
    (
        "labelled continue",
        CaseEnd::Fuel,
        "a: for (;;) { for (;;) continue a; }",
    ),
    (
        "for of an endless generator",
        CaseEnd::Fuel,
        "for (const _ of (function* () { for (;;) yield; })());",
    ),
    (
        "spread of an endless generator",
        CaseEnd::Memory,
        "[...(function* () { for (;;) yield 1; })()]",
    ),
    (
        "array destructuring of an endless iterator",
        CaseEnd::Memory,
        "const [...a] = { [Symbol.iterator]: () => ({ next: () => ({ value: 1, done: false }) }) }",
    ),
    (
        "for in over a proxy that lies",
        CaseEnd::Fuel,
        "for (;;) for (const k in new Proxy({}, { ownKeys: () => ['a', 'b'] }));",
    ),
    (
        "for await of nothing new",
        CaseEnd::Fuel,
        "for await (const _ of (async function* () { for (;;) yield; })());",
    ),
    (
        "a getter that loops",
        CaseEnd::Fuel,
        "({ get a() { for (;;); } }).a",
    ),
    (
        "a setter that loops",
        CaseEnd::Fuel,
        "({ set a(_) { for (;;); } }).a = 1",
    ),
    (
        "toString that loops",
        CaseEnd::Fuel,
        "`${{ toString() { for (;;); } }}`",
    ),
    (
        "valueOf that loops",
        CaseEnd::Fuel,
        "+{ valueOf() { for (;;); } }",
    ),
    (
        "Symbol.toPrimitive that loops",
        CaseEnd::Fuel,
        "+{ [Symbol.toPrimitive]() { for (;;); } }",
    ),
    (
        "toJSON that loops",
        CaseEnd::Fuel,
        "export default { toJSON() { for (;;); } }",
    ),
    (
        "a getter of the answer that loops",
        CaseEnd::Fuel,
        "export default { get a() { for (;;); } }",
    ),
    (
        "a proxy of the answer that loops",
        CaseEnd::Fuel,
        "export default new Proxy({}, { ownKeys() { for (;;); } })",
    ),
    (
        "an input whose getter loops",
        CaseEnd::Fuel,
        "ops.call('test/echo', { get a() { for (;;); } })",
    ),
    (
        "a then that loops",
        CaseEnd::Fuel,
        "await { then() { for (;;); } }",
    ),
    (
        "a thrown error whose stack loops",
        CaseEnd::Fuel,
        "throw Object.defineProperty(new Error('a'), 'message', { get() { for (;;); } })",
    ),
    (
        "a class field that loops",
        CaseEnd::Fuel,
        "new (class { a = (() => { for (;;); })(); })()",
    ),
    (
        "a static block that loops",
        CaseEnd::Fuel,
        "class A { static { for (;;); } }",
    ),
    (
        "a decorator-like call that loops",
        CaseEnd::Fuel,
        "((f) => f(f))(function (f) { for (;;); })",
    ),
    (
        "a tagged template that loops",
        CaseEnd::Fuel,
        "((s) => { for (;;); })`a`",
    ),
    (
        "a replace function that loops",
        CaseEnd::Fuel,
        "'a'.replace(/a/, () => { for (;;); })",
    ),
    (
        "a compare function that loops",
        CaseEnd::Fuel,
        "[2, 1].sort(() => { for (;;); })",
    ),
    (
        "a reviver that loops",
        CaseEnd::Fuel,
        "JSON.parse('[1]', () => { for (;;); })",
    ),
    (
        "a replacer that loops",
        CaseEnd::Fuel,
        "JSON.stringify([1], () => { for (;;); })",
    ),
    (
        "a microtask that loops",
        CaseEnd::Fuel,
        "queueMicrotask(() => { for (;;); }); await 0;",
    ),
    (
        "a timer that loops",
        CaseEnd::Fuel,
        "setTimeout(() => { for (;;); }); await new Promise((r) => setTimeout(r, 1e6))",
    ),
    (
        "an abort listener that loops",
        CaseEnd::Fuel,
        "const c = new AbortController(); c.signal.addEventListener('abort', () => { for (;;); }); c.abort()",
    ),
    (
        "a handler that loops",
        CaseEnd::FuelOfAnother,
        "await ops.register({ name: 'l', kind: 'query', uses: [] }, () => { for (;;); });
         await ops.call('js/l', 1)",
    ),
    (
        "a finally that loops on",
        CaseEnd::Fuel,
        "try { for (;;); } finally { for (;;); }",
    ),
    (
        "an async finally that loops on",
        CaseEnd::Fuel,
        "const f = async () => { try { await 0; for (;;); } finally { await 0; for (;;); } }; await f()",
    ),
];

/// Loops of the engine's own, which no flag stops.
pub(super) const NATIVE: Rows = &[
    (
        "nested quantifiers",
        CaseEnd::Time,
        "/(x+x+)+y/.exec('x'.repeat(64))",
    ),
    (
        "nested alternatives",
        CaseEnd::Time,
        "/^(a|a)*$/.test('a'.repeat(64) + 'b')",
    ),
    (
        "a back reference without end",
        CaseEnd::Time,
        "/(a*)*\\1b/.test('a'.repeat(64))",
    ),
    (
        "a look-behind of many",
        CaseEnd::Harmless,
        "/(?<=(a+)+)c/.test('a'.repeat(40) + 'b')",
    ),
    (
        "replaceAll by a catastrophe",
        CaseEnd::Time,
        "('a'.repeat(64) + 'b').replaceAll(/^(a+)+$/g, '')",
    ),
    (
        "split by a catastrophe",
        CaseEnd::Time,
        "('a'.repeat(64) + 'b').split(/^(a+)+$/)",
    ),
    (
        "matchAll by a catastrophe",
        CaseEnd::Time,
        "[...('a'.repeat(64) + 'b').matchAll(/^(a+)+$/g)]",
    ),
    (
        "sparse lastIndexOf",
        CaseEnd::Time,
        "const a = []; a.length = 2 ** 32 - 1; a.lastIndexOf(1)",
    ),
    (
        "sparse includes",
        CaseEnd::Time,
        "const a = []; a.length = 2 ** 32 - 1; a.includes(1)",
    ),
    (
        "sparse reverse",
        CaseEnd::Time,
        "const a = [1]; a.length = 2 ** 32 - 1; a.reverse()",
    ),
    (
        "sparse forEach",
        CaseEnd::Time,
        "const a = []; a.length = 2 ** 32 - 1; a.forEach(() => 1)",
    ),
    (
        "sparse join",
        CaseEnd::Time,
        "const a = []; a.length = 2 ** 32 - 1; a.join()",
    ),
    (
        "sparse sort",
        CaseEnd::Time,
        "const a = []; a.length = 2 ** 32 - 1; a.sort()",
    ),
    (
        "sparse copyWithin",
        CaseEnd::Time,
        "const a = []; a.length = 2 ** 32 - 1; a.copyWithin(1, 0)",
    ),
    (
        "indexOf of something that is like an array",
        CaseEnd::Time,
        "Array.prototype.indexOf.call({ length: 2 ** 53 - 1 }, 1)",
    ),
    (
        "fill of something that is like an array",
        CaseEnd::Memory,
        "Array.prototype.fill.call({ length: 2 ** 53 - 1 }, 1)",
    ),
    (
        "unshift of something that is like an array",
        CaseEnd::Time,
        "Array.prototype.unshift.call({ length: 2 ** 53 - 2 }, 1)",
    ),
    (
        "splice of something that is like an array",
        CaseEnd::Time,
        "Array.prototype.splice.call({ length: 2 ** 53 - 1 }, 0, 1)",
    ),
    (
        "sort of many texts",
        CaseEnd::Time,
        "const a = Array.from({ length: 100000 }, (_, i) => 'x'.repeat(50) + (i * 7919) % 100003);
         for (;;) a.sort()",
    ),
    (
        "toSorted in a loop",
        CaseEnd::Time,
        "const a = Array.from({ length: 100000 }, (_, i) => (i * 7919) % 100003); for (;;) a.toSorted()",
    ),
    (
        "sort of typed numbers",
        CaseEnd::Time,
        "const a = new Float64Array(1000000).map((_, i) => (i * 7919) % 1000003); for (;;) a.sort()",
    ),
    (
        "factorial of a BigInt",
        CaseEnd::Time,
        "let n = 1n; for (let i = 1n; ; i++) n *= i",
    ),
    (
        "division of large BigInts",
        CaseEnd::Time,
        "const a = 7n ** 100000n, b = 3n ** 90000n; for (;;) a / b",
    ),
    (
        "remainder of large BigInts",
        CaseEnd::Time,
        "const a = 7n ** 100000n, b = 3n ** 90000n; for (;;) a % b",
    ),
    (
        "a long text as BigInt",
        CaseEnd::Time,
        "const t = '9'.repeat(200000); for (;;) BigInt(t)",
    ),
    (
        "BigInt shift beyond all numbers",
        EXCEPTION,
        "1n << (2n ** 40n)",
    ),
    (
        "indexOf of a long text in a long text",
        CaseEnd::Time,
        "const t = 'a'.repeat(2e6); for (;;) t.indexOf('a'.repeat(1e6) + 'b')",
    ),
    (
        "normalize in a loop",
        CaseEnd::Time,
        "const t = 'é'.repeat(1e6); for (;;) t.normalize('NFD')",
    ),
    (
        "localeCompare in a loop",
        CaseEnd::Time,
        "const t = 'a'.repeat(3e6); for (;;) t.localeCompare(t)",
    ),
    (
        "toUpperCase in a loop",
        CaseEnd::Time,
        "const t = 'ß'.repeat(1e6); for (;;) t.toUpperCase()",
    ),
    (
        "fill of a typed array in a loop",
        CaseEnd::Time,
        "const a = new Uint8Array(2e7); for (;;) a.fill(1)",
    ),
    (
        "structuredClone in a loop",
        CaseEnd::Time,
        "const a = Array.from({ length: 10000 }, (_, i) => ({ i })); for (;;) structuredClone(a)",
    ),
    (
        "digest in a loop",
        CaseEnd::Time,
        "const a = new Uint8Array(8e6); for (;;) await crypto.subtle.digest('SHA-512', a)",
    ),
    (
        "JSON of much in a loop",
        CaseEnd::Time,
        "const a = Array.from({ length: 100000 }, (_, i) => i); for (;;) JSON.stringify(a)",
    ),
    (
        "encoding in a loop",
        CaseEnd::Time,
        "const t = 'é'.repeat(1e6), e = new TextEncoder(); for (;;) e.encode(t)",
    ),
    (
        "URLs in a loop",
        CaseEnd::Time,
        "for (;;) new URL('http://' + 'a.'.repeat(50000) + 'b')",
    ),
];
