//! Promises, games with the language, and what is not there.

use alknet_runtime::RuntimeCode;

use super::{CaseEnd, EXCEPTION, Rows};

pub(super) const PROMISES: Rows = &[
    (
        "a chain that feeds itself",
        CaseEnd::Refused(RuntimeCode::Fuel),
        "const go = () => Promise.resolve().then(go); go(); await new Promise((r) => setTimeout(r, 1e9))",
    ),
    (
        "a fork bomb of promises",
        CaseEnd::Refused(RuntimeCode::Fuel),
        "const go = () => { Promise.resolve().then(go); Promise.resolve().then(go); }; go();
         await new Promise((r) => setTimeout(r, 1e9))",
    ),
    (
        "microtasks that queue themselves",
        CaseEnd::Refused(RuntimeCode::Fuel),
        "const go = () => queueMicrotask(go); go(); await new Promise((r) => setTimeout(r, 1e9))",
    ),
    (
        "an async loop",
        CaseEnd::Refused(RuntimeCode::Fuel),
        "for (;;) await 0",
    ),
    (
        "a thenable of itself",
        CaseEnd::Refused(RuntimeCode::Fuel),
        "const t = { then(r) { r(t); } }; await t",
    ),
    (
        "a promise that never settles",
        EXCEPTION,
        "await new Promise(() => {})",
    ),
    (
        "a timer that never comes",
        CaseEnd::Wall,
        "await new Promise((r) => setTimeout(r, 1e9))",
    ),
    (
        "an operation that never answers",
        CaseEnd::Wall,
        "await ops.call('test/hang', {})",
    ),
    (
        "many operations that never answer",
        CaseEnd::Wall,
        "await Promise.all(Array.from({ length: 60 }, () => ops.call('test/hang', {})))",
    ),
    (
        "a subscription without end",
        CaseEnd::Time,
        "for await (const _ of ops.subscribe('test/count'));",
    ),
    (
        "too many timers",
        CaseEnd::Refused(RuntimeCode::Quota),
        "for (let i = 0; i < 5000; i++) setTimeout(() => {}, 1e6)",
    ),
    (
        "too many calls at once",
        CaseEnd::Refused(RuntimeCode::Quota),
        "await Promise.all(Array.from({ length: 65 }, () => ops.call('test/hang', {})))",
    ),
    (
        "too many subscriptions",
        CaseEnd::Refused(RuntimeCode::Quota),
        "const a = []; for (let i = 0; i < 65; i++) { const s = ops.subscribe('test/count');
         a.push(s); await s[Symbol.asyncIterator]().next(); }",
    ),
    (
        "too many calls in all",
        CaseEnd::Refused(RuntimeCode::Quota),
        "for (let i = 0; i < 1001; i++) await ops.call('test/deep/one', i)",
    ),
    (
        "too many operations registered",
        CaseEnd::Refused(RuntimeCode::Quota),
        "for (let i = 0; i < 300; i++) await ops.register(
            { name: 'n' + i, kind: 'query', uses: [] }, () => 1)",
    ),
    (
        "an unhandled rejection",
        EXCEPTION,
        "Promise.reject(new Error('no')); await new Promise((r) => setTimeout(r, 1))",
    ),
];

/// Games with the language: none leads anywhere.
pub(super) const TRICKS: Rows = &[
    ("a prototype with a setter for the answer", CaseEnd::Harmless,
        "Object.defineProperty(Object.prototype, 'a', { set() { throw 1; } });
         export default await ops.call('test/echo', { b: 1 })"),
    ("a key __proto__ on the way", CaseEnd::Harmless,
        "const v = JSON.parse('{\"__proto__\": {\"x\": 1}}');
         const back = await ops.call('test/echo', v); if (back.x) throw 1; export default 1"),
    ("Array.prototype.push replaced", CaseEnd::Harmless,
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
    ("a buffer resized while it is sorted", CaseEnd::Harmless,
        "const b = new ArrayBuffer(64, { maxByteLength: 64 }), a = new Uint8Array(b);
         a.sort((x, y) => { b.resize(1); return x - y; }); export default 1"),
    ("an array shortened while it is sorted", CaseEnd::Harmless,
        "const a = Array.from({ length: 100 }, (_, i) => -i); a.sort((x, y) => { a.length = 0; return x - y; });
         export default 1"),
    ("a map cleared while it is walked", CaseEnd::Harmless,
        "const m = new Map([[1, 1], [2, 2]]); for (const _ of m) { m.clear(); } export default 1"),
    ("an error that claims to be the runtime's", EXCEPTION,
        "throw Object.assign(new Error('E_WORKER_LOST'), { code: 'E_WORKER_LOST', name: 'RuntimeError' })"),
    ("null is thrown", EXCEPTION, "throw null"),
    ("an interrupt that is caught", CaseEnd::Fuel, "for (;;) try { for (;;); } catch (e) {} finally {}"),
    ("bytes of an answer that are written to", CaseEnd::Harmless,
        "const { data } = await ops.call('test/bytes', {}); new Uint8Array(data)[0] = 0;
         if (new Uint8Array(data)[0] === 0) throw 1; export default 1"),
    ("bytes of an answer that are given away", EXCEPTION,
        "const { data } = await ops.call('test/bytes', {}); data.transfer()"),
    ("hooks that are looked for", CaseEnd::Harmless,
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
        CaseEnd::Refused(RuntimeCode::NotFound),
        "import '/etc/passwd'",
    ),
    (
        "import of a URL",
        CaseEnd::Refused(RuntimeCode::NotFound),
        "import 'https://example.org/a.js'",
    ),
    (
        "import of the engine's own modules",
        CaseEnd::Refused(RuntimeCode::NotFound),
        "import * as std from 'std'",
    ),
    (
        "import of the runtime's own scripts",
        CaseEnd::Refused(RuntimeCode::NotFound),
        "import own from 'alknet:runtime/errors'; export default typeof own",
    ),
    (
        "dynamic import of the runtime's own scripts",
        CaseEnd::Refused(RuntimeCode::NotFound),
        "const own = await import('alknet:runtime/ops'); export default typeof own.default",
    ),
    (
        "import from outside of the bundle",
        CaseEnd::Refused(RuntimeCode::NotFound),
        "import '../../a.js'",
    ),
    (
        "dynamic import of data",
        CaseEnd::Refused(RuntimeCode::NotFound),
        "await import('data:text/javascript,1')",
    ),
    (
        "an answer that is no number",
        CaseEnd::Refused(RuntimeCode::Encode),
        "export default NaN",
    ),
    (
        "an answer that is a BigInt",
        CaseEnd::Refused(RuntimeCode::Encode),
        "export default 2n ** 60n",
    ),
    (
        "an answer that has itself inside",
        CaseEnd::Refused(RuntimeCode::Encode),
        "const a = {}; a.a = a; export default a",
    ),
    (
        "an answer that is too deep",
        CaseEnd::Refused(RuntimeCode::Encode),
        "let a = 1; for (let i = 0; i < 100; i++) a = [a]; export default a",
    ),
    (
        "an answer that is too large",
        CaseEnd::Refused(RuntimeCode::Encode),
        "export default 'x'.repeat(5e6)",
    ),
    (
        "an input that is too large",
        CaseEnd::Refused(RuntimeCode::Encode),
        "await ops.call('test/echo', 'x'.repeat(5e6))",
    ),
    (
        "an answer with half a character",
        CaseEnd::Refused(RuntimeCode::Encode),
        "export default '\\ud800'",
    ),
    (
        "a call where none is allowed",
        CaseEnd::Refused(RuntimeCode::Denied),
        "ops.pure(() => ops.call('test/echo', 1))",
    ),
    (
        "options that are none",
        CaseEnd::Harmless,
        "await ops.call('test/echo', 1, { nonsense: 1 })",
    ),
    (
        "an operation that is not granted",
        EXCEPTION,
        "await ops.call('other/place', {})",
    ),
    ("a syntax error", EXCEPTION, "export default ("),
];
