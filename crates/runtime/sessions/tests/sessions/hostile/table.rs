//! The cases. A row's name says what it tries.

use alknet_runtime::Code;

/// How a case ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// At its fuel, with little of it.
    Fuel,
    /// At the fuel of a call that it made into its own session, which ends with it: as that, or as lost
    /// where the machine is too busy for the session to say so before it is closed.
    FuelOfAnother,
    /// Well: what it tries has no effect.
    Harmless,
    /// At its memory.
    Memory,
    /// With this code at once.
    Refused(Code),
    /// At its stack.
    Stack,
    /// At its processor time, by a flag or from outside.
    Time,
    /// At its time by the clock on the wall.
    Wall,
}

pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) source: String,
}

/// Every one of them.
pub(super) fn cases() -> Vec<Case> {
    let groups: [&[(&'static str, Kind, &str)]; 8] = [
        TABLE, LOOPS, NATIVE, MEMORY, STACK, PROMISES, TRICKS, REFUSED,
    ];
    let rows = groups.into_iter().flatten();
    rows.map(|&(name, kind, source)| Case {
        name,
        kind,
        source: source.to_owned(),
    })
    .collect()
}

type Rows = &'static [(&'static str, Kind, &'static str)];

const EXCEPTION: Kind = Kind::Refused(Code::Exception);

/// The rows of the brief, in its order.
const TABLE: Rows = &[
    ("endless loop", Kind::Time, "for (;;);"),
    (
        "endless loop inside try, catch and finally",
        Kind::Time,
        "for (;;) { try { for (;;); } catch { for (;;); } finally { for (;;); } }",
    ),
    (
        "catastrophic regular expression",
        Kind::Time,
        "/^(a+)+$/.test('a'.repeat(64) + 'b')",
    ),
    (
        "sparse indexOf",
        Kind::Time,
        "const a = []; a.length = 2 ** 32 - 1; a.indexOf(1)",
    ),
    (
        "unbounded recursion",
        Kind::Stack,
        "(function f() { f(); })()",
    ),
    (
        "JSON nested 100000 deep",
        Kind::Stack,
        "JSON.parse('['.repeat(100000))",
    ),
    (
        "padStart beyond all strings",
        Kind::Memory,
        "'a'.padStart(2 ** 29)",
    ),
    (
        "an array of all indices filled",
        Kind::Memory,
        "new Array(2 ** 32 - 1).fill(0)",
    ),
    (
        "sort of many numbers, again and again",
        Kind::Time,
        "const a = Array.from({ length: 300000 }, (_, i) => (i * 7919) % 300007);
         for (;;) a.sort()",
    ),
    (
        "a BigInt power as text",
        Kind::Time,
        "for (;;) String(3n ** 200000n)",
    ),
    (
        "repeated BigInt squaring",
        EXCEPTION,
        "let n = 3n; for (;;) n = n * n",
    ),
    (
        "split of a long text",
        Kind::Memory,
        "'a'.repeat(3e6).split('')",
    ),
    (
        "self-feeding promise chain",
        Kind::Refused(Code::Fuel),
        "const go = () => Promise.resolve().then(go); await go()",
    ),
];

/// Loops of the script's own.
const LOOPS: Rows = &[
    ("while", Kind::Fuel, "while (true);"),
    ("do while", Kind::Fuel, "do ; while (true)"),
    (
        "labelled continue",
        Kind::Fuel,
        "a: for (;;) { for (;;) continue a; }",
    ),
    (
        "for of an endless generator",
        Kind::Fuel,
        "for (const _ of (function* () { for (;;) yield; })());",
    ),
    (
        "spread of an endless generator",
        Kind::Memory,
        "[...(function* () { for (;;) yield 1; })()]",
    ),
    (
        "array destructuring of an endless iterator",
        Kind::Memory,
        "const [...a] = { [Symbol.iterator]: () => ({ next: () => ({ value: 1, done: false }) }) }",
    ),
    (
        "for in over a proxy that lies",
        Kind::Fuel,
        "for (;;) for (const k in new Proxy({}, { ownKeys: () => ['a', 'b'] }));",
    ),
    (
        "for await of nothing new",
        Kind::Fuel,
        "for await (const _ of (async function* () { for (;;) yield; })());",
    ),
    (
        "a getter that loops",
        Kind::Fuel,
        "({ get a() { for (;;); } }).a",
    ),
    (
        "a setter that loops",
        Kind::Fuel,
        "({ set a(_) { for (;;); } }).a = 1",
    ),
    (
        "toString that loops",
        Kind::Fuel,
        "`${{ toString() { for (;;); } }}`",
    ),
    (
        "valueOf that loops",
        Kind::Fuel,
        "+{ valueOf() { for (;;); } }",
    ),
    (
        "Symbol.toPrimitive that loops",
        Kind::Fuel,
        "+{ [Symbol.toPrimitive]() { for (;;); } }",
    ),
    (
        "toJSON that loops",
        Kind::Fuel,
        "export default { toJSON() { for (;;); } }",
    ),
    (
        "a getter of the answer that loops",
        Kind::Fuel,
        "export default { get a() { for (;;); } }",
    ),
    (
        "a proxy of the answer that loops",
        Kind::Fuel,
        "export default new Proxy({}, { ownKeys() { for (;;); } })",
    ),
    (
        "an input whose getter loops",
        Kind::Fuel,
        "ops.call('test/echo', { get a() { for (;;); } })",
    ),
    (
        "a then that loops",
        Kind::Fuel,
        "await { then() { for (;;); } }",
    ),
    (
        "a thrown error whose stack loops",
        Kind::Fuel,
        "throw Object.defineProperty(new Error('a'), 'message', { get() { for (;;); } })",
    ),
    (
        "a class field that loops",
        Kind::Fuel,
        "new (class { a = (() => { for (;;); })(); })()",
    ),
    (
        "a static block that loops",
        Kind::Fuel,
        "class A { static { for (;;); } }",
    ),
    (
        "a decorator-like call that loops",
        Kind::Fuel,
        "((f) => f(f))(function (f) { for (;;); })",
    ),
    (
        "a tagged template that loops",
        Kind::Fuel,
        "((s) => { for (;;); })`a`",
    ),
    (
        "a replace function that loops",
        Kind::Fuel,
        "'a'.replace(/a/, () => { for (;;); })",
    ),
    (
        "a compare function that loops",
        Kind::Fuel,
        "[2, 1].sort(() => { for (;;); })",
    ),
    (
        "a reviver that loops",
        Kind::Fuel,
        "JSON.parse('[1]', () => { for (;;); })",
    ),
    (
        "a replacer that loops",
        Kind::Fuel,
        "JSON.stringify([1], () => { for (;;); })",
    ),
    (
        "a microtask that loops",
        Kind::Fuel,
        "queueMicrotask(() => { for (;;); }); await 0;",
    ),
    (
        "a timer that loops",
        Kind::Fuel,
        "setTimeout(() => { for (;;); }); await new Promise((r) => setTimeout(r, 1e6))",
    ),
    (
        "an abort listener that loops",
        Kind::Fuel,
        "const c = new AbortController(); c.signal.addEventListener('abort', () => { for (;;); }); c.abort()",
    ),
    (
        "a handler that loops",
        Kind::FuelOfAnother,
        "await ops.register({ name: 'l', kind: 'query', uses: [] }, () => { for (;;); });
         await ops.call('js/l', 1)",
    ),
    (
        "a finally that loops on",
        Kind::Fuel,
        "try { for (;;); } finally { for (;;); }",
    ),
    (
        "an async finally that loops on",
        Kind::Fuel,
        "const f = async () => { try { await 0; for (;;); } finally { await 0; for (;;); } }; await f()",
    ),
];

/// Loops of the engine's own, which no flag stops.
const NATIVE: Rows = &[
    (
        "nested quantifiers",
        Kind::Time,
        "/(x+x+)+y/.exec('x'.repeat(64))",
    ),
    (
        "nested alternatives",
        Kind::Time,
        "/^(a|a)*$/.test('a'.repeat(64) + 'b')",
    ),
    (
        "a back reference without end",
        Kind::Time,
        "/(a*)*\\1b/.test('a'.repeat(64))",
    ),
    (
        "a look-behind of many",
        Kind::Harmless,
        "/(?<=(a+)+)c/.test('a'.repeat(40) + 'b')",
    ),
    (
        "replaceAll by a catastrophe",
        Kind::Time,
        "('a'.repeat(64) + 'b').replaceAll(/^(a+)+$/g, '')",
    ),
    (
        "split by a catastrophe",
        Kind::Time,
        "('a'.repeat(64) + 'b').split(/^(a+)+$/)",
    ),
    (
        "matchAll by a catastrophe",
        Kind::Time,
        "[...('a'.repeat(64) + 'b').matchAll(/^(a+)+$/g)]",
    ),
    (
        "sparse lastIndexOf",
        Kind::Time,
        "const a = []; a.length = 2 ** 32 - 1; a.lastIndexOf(1)",
    ),
    (
        "sparse includes",
        Kind::Time,
        "const a = []; a.length = 2 ** 32 - 1; a.includes(1)",
    ),
    (
        "sparse reverse",
        Kind::Time,
        "const a = [1]; a.length = 2 ** 32 - 1; a.reverse()",
    ),
    (
        "sparse forEach",
        Kind::Time,
        "const a = []; a.length = 2 ** 32 - 1; a.forEach(() => 1)",
    ),
    (
        "sparse join",
        Kind::Time,
        "const a = []; a.length = 2 ** 32 - 1; a.join()",
    ),
    (
        "sparse sort",
        Kind::Time,
        "const a = []; a.length = 2 ** 32 - 1; a.sort()",
    ),
    (
        "sparse copyWithin",
        Kind::Time,
        "const a = []; a.length = 2 ** 32 - 1; a.copyWithin(1, 0)",
    ),
    (
        "indexOf of something that is like an array",
        Kind::Time,
        "Array.prototype.indexOf.call({ length: 2 ** 53 - 1 }, 1)",
    ),
    (
        "fill of something that is like an array",
        Kind::Memory,
        "Array.prototype.fill.call({ length: 2 ** 53 - 1 }, 1)",
    ),
    (
        "unshift of something that is like an array",
        Kind::Time,
        "Array.prototype.unshift.call({ length: 2 ** 53 - 2 }, 1)",
    ),
    (
        "splice of something that is like an array",
        Kind::Time,
        "Array.prototype.splice.call({ length: 2 ** 53 - 1 }, 0, 1)",
    ),
    (
        "sort of many texts",
        Kind::Time,
        "const a = Array.from({ length: 100000 }, (_, i) => 'x'.repeat(50) + (i * 7919) % 100003);
         for (;;) a.sort()",
    ),
    (
        "toSorted in a loop",
        Kind::Time,
        "const a = Array.from({ length: 100000 }, (_, i) => (i * 7919) % 100003); for (;;) a.toSorted()",
    ),
    (
        "sort of typed numbers",
        Kind::Time,
        "const a = new Float64Array(1000000).map((_, i) => (i * 7919) % 1000003); for (;;) a.sort()",
    ),
    (
        "factorial of a BigInt",
        Kind::Time,
        "let n = 1n; for (let i = 1n; ; i++) n *= i",
    ),
    (
        "division of large BigInts",
        Kind::Time,
        "const a = 7n ** 100000n, b = 3n ** 90000n; for (;;) a / b",
    ),
    (
        "remainder of large BigInts",
        Kind::Time,
        "const a = 7n ** 100000n, b = 3n ** 90000n; for (;;) a % b",
    ),
    (
        "a long text as BigInt",
        Kind::Time,
        "const t = '9'.repeat(200000); for (;;) BigInt(t)",
    ),
    (
        "BigInt shift beyond all numbers",
        EXCEPTION,
        "1n << (2n ** 40n)",
    ),
    (
        "indexOf of a long text in a long text",
        Kind::Time,
        "const t = 'a'.repeat(2e6); for (;;) t.indexOf('a'.repeat(1e6) + 'b')",
    ),
    (
        "normalize in a loop",
        Kind::Time,
        "const t = 'é'.repeat(1e6); for (;;) t.normalize('NFD')",
    ),
    (
        "localeCompare in a loop",
        Kind::Time,
        "const t = 'a'.repeat(3e6); for (;;) t.localeCompare(t)",
    ),
    (
        "toUpperCase in a loop",
        Kind::Time,
        "const t = 'ß'.repeat(1e6); for (;;) t.toUpperCase()",
    ),
    (
        "fill of a typed array in a loop",
        Kind::Time,
        "const a = new Uint8Array(2e7); for (;;) a.fill(1)",
    ),
    (
        "structuredClone in a loop",
        Kind::Time,
        "const a = Array.from({ length: 10000 }, (_, i) => ({ i })); for (;;) structuredClone(a)",
    ),
    (
        "digest in a loop",
        Kind::Time,
        "const a = new Uint8Array(8e6); for (;;) await crypto.subtle.digest('SHA-512', a)",
    ),
    (
        "JSON of much in a loop",
        Kind::Time,
        "const a = Array.from({ length: 100000 }, (_, i) => i); for (;;) JSON.stringify(a)",
    ),
    (
        "encoding in a loop",
        Kind::Time,
        "const t = 'é'.repeat(1e6), e = new TextEncoder(); for (;;) e.encode(t)",
    ),
    (
        "URLs in a loop",
        Kind::Time,
        "for (;;) new URL('http://' + 'a.'.repeat(50000) + 'b')",
    ),
];

const MEMORY: Rows = &[
    (
        "an array that grows",
        Kind::Memory,
        "const a = []; for (;;) a.push({ a })",
    ),
    (
        "a text that doubles",
        Kind::Memory,
        "let t = 'ab'; for (;;) t = t + t + [t].join()",
    ),
    (
        "a map that grows",
        Kind::Memory,
        "const m = new Map(); for (let i = 0; ; i++) m.set(i, [i])",
    ),
    (
        "a set that grows",
        Kind::Memory,
        "const m = new Set(); for (let i = 0; ; i++) m.add({ i })",
    ),
    (
        "an object that grows",
        Kind::Memory,
        "const o = {}; for (let i = 0; ; i++) o['k' + i] = i",
    ),
    (
        "closures that grow",
        Kind::Memory,
        "let f = () => 0; const a = []; for (;;) { const g = f; a.push(f = () => g); }",
    ),
    (
        "buffers that grow",
        Kind::Memory,
        "const a = []; for (;;) a.push(new ArrayBuffer(1 << 20))",
    ),
    ("one large buffer", EXCEPTION, "new ArrayBuffer(2 ** 31)"),
    (
        "one large typed array",
        EXCEPTION,
        "new Float64Array(2 ** 28)",
    ),
    ("repeat", Kind::Memory, "'abc'.repeat(2 ** 28)"),
    ("padEnd", Kind::Memory, "'a'.padEnd(2 ** 29)"),
    (
        "join of a large array",
        Kind::Memory,
        "new Array(2 ** 27).join('ab')",
    ),
    (
        "a resizable buffer",
        EXCEPTION,
        "new ArrayBuffer(0, { maxByteLength: 2 ** 31 }).resize(2 ** 30)",
    ),
    (
        "Array.from of a length",
        Kind::Memory,
        "Array.from({ length: 2 ** 27 }, () => 1.5)",
    ),
    (
        "concat to more and more",
        Kind::Memory,
        "let a = [1.5, 2.5]; for (;;) a = a.concat(a)",
    ),
    (
        "flat of the same again",
        Kind::Memory,
        "let a = [1, 2]; for (;;) a = [a, a].flat()",
    ),
    (
        "promises that wait",
        Kind::Memory,
        "const a = []; for (;;) a.push(new Promise(() => {}))",
    ),
    (
        "symbols",
        Kind::Memory,
        "const a = []; for (let i = 0; ; i++) a.push(Symbol('s' + i))",
    ),
    (
        "out of memory, caught again and again",
        Kind::Time,
        "const a = []; for (;;) try { for (;;) a.push(new Array(100).fill(0.5)) } catch {}",
    ),
    (
        "cycles that only the collector finds",
        Kind::Time,
        "for (;;) { const a = {}; a.a = { a, t: 'x'.repeat(10000) }; }",
    ),
];

const STACK: Rows = &[
    (
        "two functions",
        Kind::Stack,
        "const f = () => g(), g = () => f(); f()",
    ),
    (
        "a getter of itself",
        Kind::Stack,
        "const o = { get a() { return this.a; } }; o.a",
    ),
    (
        "toString of itself",
        Kind::Stack,
        "const o = { toString() { return `${this}`; } }; `${o}`",
    ),
    (
        "a proxy of a proxy",
        Kind::Stack,
        "let p = {}; for (let i = 0; i < 200000; i++) p = new Proxy(p, {}); p.a",
    ),
    (
        "a deep array as text",
        Kind::Stack,
        "let a = []; for (let i = 0; i < 100000; i++) a = [a]; String(a)",
    ),
    (
        "a deep array as JSON",
        Kind::Stack,
        "let a = []; for (let i = 0; i < 100000; i++) a = [a]; JSON.stringify(a)",
    ),
    (
        "a deep array flattened",
        Kind::Stack,
        "let a = []; for (let i = 0; i < 100000; i++) a = [a]; a.flat(Infinity)",
    ),
    (
        "deep groups in a pattern",
        Kind::Refused(Code::Exception),
        "new RegExp('('.repeat(100000))",
    ),
    (
        "construct of itself",
        Kind::Stack,
        "class A { constructor() { new A(); } } new A()",
    ),
    (
        "apply of itself",
        Kind::Stack,
        "const f = (...a) => f.apply(null, [...a]); f(1)",
    ),
    (
        "a bound function of a bound function",
        Kind::Memory,
        "let f = () => 1; for (let i = 0; i < 200000; i++) f = f.bind(null); f()",
    ),
    (
        "Symbol.hasInstance of itself",
        Kind::Stack,
        "const c = { [Symbol.hasInstance]: (v) => v instanceof c }; 1 instanceof c",
    ),
];

const PROMISES: Rows = &[
    (
        "a chain that feeds itself",
        Kind::Refused(Code::Fuel),
        "const go = () => Promise.resolve().then(go); go(); await new Promise((r) => setTimeout(r, 1e9))",
    ),
    (
        "a fork bomb of promises",
        Kind::Refused(Code::Fuel),
        "const go = () => { Promise.resolve().then(go); Promise.resolve().then(go); }; go();
         await new Promise((r) => setTimeout(r, 1e9))",
    ),
    (
        "microtasks that queue themselves",
        Kind::Refused(Code::Fuel),
        "const go = () => queueMicrotask(go); go(); await new Promise((r) => setTimeout(r, 1e9))",
    ),
    (
        "an async loop",
        Kind::Refused(Code::Fuel),
        "for (;;) await 0",
    ),
    (
        "a thenable of itself",
        Kind::Refused(Code::Fuel),
        "const t = { then(r) { r(t); } }; await t",
    ),
    (
        "a promise that never settles",
        EXCEPTION,
        "await new Promise(() => {})",
    ),
    (
        "a timer that never comes",
        Kind::Wall,
        "await new Promise((r) => setTimeout(r, 1e9))",
    ),
    (
        "an operation that never answers",
        Kind::Wall,
        "await ops.call('test/hang', {})",
    ),
    (
        "many operations that never answer",
        Kind::Wall,
        "await Promise.all(Array.from({ length: 60 }, () => ops.call('test/hang', {})))",
    ),
    (
        "a subscription without end",
        Kind::Time,
        "for await (const _ of ops.subscribe('test/count'));",
    ),
    (
        "too many timers",
        Kind::Refused(Code::Quota),
        "for (let i = 0; i < 5000; i++) setTimeout(() => {}, 1e6)",
    ),
    (
        "too many calls at once",
        Kind::Refused(Code::Quota),
        "await Promise.all(Array.from({ length: 65 }, () => ops.call('test/hang', {})))",
    ),
    (
        "too many subscriptions",
        Kind::Refused(Code::Quota),
        "const a = []; for (let i = 0; i < 65; i++) { const s = ops.subscribe('test/count');
         a.push(s); await s[Symbol.asyncIterator]().next(); }",
    ),
    (
        "too many calls in all",
        Kind::Refused(Code::Quota),
        "for (let i = 0; i < 1001; i++) await ops.call('test/deep/one', i)",
    ),
    (
        "too many operations registered",
        Kind::Refused(Code::Quota),
        "for (let i = 0; i < 300; i++) await ops.register(
            { name: 'n' + i, kind: 'query', uses: [] }, () => 1)",
    ),
    (
        "a rejection that nobody hears",
        EXCEPTION,
        "Promise.reject(new Error('no')); await new Promise((r) => setTimeout(r, 1))",
    ),
];

/// Games with the language: none leads anywhere.
const TRICKS: Rows = &[
    ("a prototype with a setter for the answer", Kind::Harmless,
        "Object.defineProperty(Object.prototype, 'a', { set() { throw 1; } });
         export default await ops.call('test/echo', { b: 1 })"),
    ("a key __proto__ on the way", Kind::Harmless,
        "const v = JSON.parse('{\"__proto__\": {\"x\": 1}}');
         const back = await ops.call('test/echo', v); if (back.x) throw 1; export default 1"),
    ("Array.prototype.push replaced", Kind::Harmless,
        "Array.prototype.push = () => { throw 1; }; export default await ops.call('test/echo', [1])"),
    ("Promise.prototype.then replaced", EXCEPTION,
        "Promise.prototype.then = function () { return this; };
         await ops.call('test/echo', 1); throw 1"),
    ("Symbol.species that lies", EXCEPTION,
        "const a = [1, 2, 3]; a.constructor = { [Symbol.species]: function () { return Object.freeze([]); } };
         a.map((x) => x)"),
    ("Symbol.species of a typed array that is too short", EXCEPTION,
        "class A extends Uint8Array { static get [Symbol.species]() { return function () { return new Uint8Array(0); }; } }
         new A(100).map((x) => x)"),
    ("a buffer detached in the middle", EXCEPTION,
        "const b = new ArrayBuffer(8), a = new Uint8Array(b);
         a.fill({ valueOf() { b.transfer(); return 1; } }); export default 1"),
    ("a buffer resized while it is sorted", Kind::Harmless,
        "const b = new ArrayBuffer(64, { maxByteLength: 64 }), a = new Uint8Array(b);
         a.sort((x, y) => { b.resize(1); return x - y; }); export default 1"),
    ("an array shortened while it is sorted", Kind::Harmless,
        "const a = Array.from({ length: 100 }, (_, i) => -i); a.sort((x, y) => { a.length = 0; return x - y; });
         export default 1"),
    ("a map cleared while it is walked", Kind::Harmless,
        "const m = new Map([[1, 1], [2, 2]]); for (const _ of m) { m.clear(); } export default 1"),
    ("an error that claims to be the runtime's", EXCEPTION,
        "throw Object.assign(new Error('E_WORKER_LOST'), { code: 'E_WORKER_LOST', name: 'RuntimeError' })"),
    ("null is thrown", EXCEPTION, "throw null"),
    ("an interrupt that is caught", Kind::Fuel, "for (;;) try { for (;;); } catch (e) {} finally {}"),
    ("bytes of an answer that are written to", Kind::Harmless,
        "const { data } = await ops.call('test/bytes', {}); new Uint8Array(data)[0] = 0;
         if (new Uint8Array(data)[0] === 0) throw 1; export default 1"),
    ("bytes of an answer that are given away", EXCEPTION,
        "const { data } = await ops.call('test/bytes', {}); data.transfer()"),
    ("hooks that are looked for", Kind::Harmless,
        "for (const name of Object.getOwnPropertyNames(globalThis)) if (/native|alknet|std|os$/.test(name)) throw name;
         export default 1"),
];

const REFUSED: Rows = &[
    ("eval", EXCEPTION, "eval('1')"),
    ("Function", EXCEPTION, "new Function('return 1')()"),
    (
        "the constructor of an async generator",
        EXCEPTION,
        "(async function* () {}).constructor('1')()",
    ),
    (
        "import of a file",
        Kind::Refused(Code::NotFound),
        "import '/etc/passwd'",
    ),
    (
        "import of a URL",
        Kind::Refused(Code::NotFound),
        "import 'https://example.org/a.js'",
    ),
    (
        "import of the engine's own modules",
        Kind::Refused(Code::NotFound),
        "import * as std from 'std'",
    ),
    (
        "import of the runtime's own scripts",
        Kind::Refused(Code::NotFound),
        "import own from 'alknet:runtime/errors'; export default typeof own",
    ),
    (
        "dynamic import of the runtime's own scripts",
        Kind::Refused(Code::NotFound),
        "const own = await import('alknet:runtime/ops'); export default typeof own.default",
    ),
    (
        "import from outside of the bundle",
        Kind::Refused(Code::NotFound),
        "import '../../a.js'",
    ),
    (
        "dynamic import of data",
        Kind::Refused(Code::NotFound),
        "await import('data:text/javascript,1')",
    ),
    (
        "an answer that is no number",
        Kind::Refused(Code::Encode),
        "export default NaN",
    ),
    (
        "an answer that is a BigInt",
        Kind::Refused(Code::Encode),
        "export default 2n ** 60n",
    ),
    (
        "an answer that has itself inside",
        Kind::Refused(Code::Encode),
        "const a = {}; a.a = a; export default a",
    ),
    (
        "an answer that is too deep",
        Kind::Refused(Code::Encode),
        "let a = 1; for (let i = 0; i < 100; i++) a = [a]; export default a",
    ),
    (
        "an answer that is too large",
        Kind::Refused(Code::Encode),
        "export default 'x'.repeat(5e6)",
    ),
    (
        "an input that is too large",
        Kind::Refused(Code::Encode),
        "await ops.call('test/echo', 'x'.repeat(5e6))",
    ),
    (
        "an answer with half a character",
        Kind::Refused(Code::Encode),
        "export default '\\ud800'",
    ),
    (
        "a call where none is allowed",
        Kind::Refused(Code::Denied),
        "ops.pure(() => ops.call('test/echo', 1))",
    ),
    (
        "options that are none",
        Kind::Harmless,
        "await ops.call('test/echo', 1, { nonsense: 1 })",
    ),
    (
        "an operation that is not granted",
        EXCEPTION,
        "await ops.call('other/place', {})",
    ),
    ("a syntax error", EXCEPTION, "export default ("),
];
