//! Promises, games with the language, and what is not there.

use alknet_runtime::Code;

use super::{EXCEPTION, Kind, Rows};

pub(super) const PROMISES: Rows = &[
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
pub(super) const TRICKS: Rows = &[
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

pub(super) const REFUSED: Rows = &[
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
