//! What asks for more heap or stack than there is.

use alknet_runtime::RuntimeCode;

use super::{CaseEnd, EXCEPTION, Rows};

pub(super) const MEMORY: Rows = &[
    (
        "an array that grows",
        CaseEnd::Memory,
        "const a = []; for (;;) a.push({ a })",
    ),
    (
        "a text that doubles",
        CaseEnd::Memory,
        "let t = 'ab'; for (;;) t = t + t + [t].join()",
    ),
    (
        "a map that grows",
        CaseEnd::Memory,
        "const m = new Map(); for (let i = 0; ; i++) m.set(i, [i])",
    ),
    (
        "a set that grows",
        CaseEnd::Memory,
        "const m = new Set(); for (let i = 0; ; i++) m.add({ i })",
    ),
    (
        "an object that grows",
        CaseEnd::Memory,
        "const o = {}; for (let i = 0; ; i++) o['k' + i] = i",
    ),
    (
        "closures that grow",
        CaseEnd::Memory,
        "let f = () => 0; const a = []; for (;;) { const g = f; a.push(f = () => g); }",
    ),
    (
        "buffers that grow",
        CaseEnd::Memory,
        "const a = []; for (;;) a.push(new ArrayBuffer(1 << 20))",
    ),
    ("one large buffer", EXCEPTION, "new ArrayBuffer(2 ** 31)"),
    (
        "one large typed array",
        EXCEPTION,
        "new Float64Array(2 ** 28)",
    ),
    ("repeat", CaseEnd::Memory, "'abc'.repeat(2 ** 28)"),
    ("padEnd", CaseEnd::Memory, "'a'.padEnd(2 ** 29)"),
    (
        "join of a large array",
        CaseEnd::Memory,
        "new Array(2 ** 27).join('ab')",
    ),
    (
        "a resizable buffer",
        EXCEPTION,
        "new ArrayBuffer(0, { maxByteLength: 2 ** 31 }).resize(2 ** 30)",
    ),
    (
        "Array.from of a length",
        CaseEnd::Memory,
        "Array.from({ length: 2 ** 27 }, () => 1.5)",
    ),
    (
        "concat to more and more",
        CaseEnd::Memory,
        "let a = [1.5, 2.5]; for (;;) a = a.concat(a)",
    ),
    (
        "flat of the same again",
        CaseEnd::Memory,
        "let a = [1, 2]; for (;;) a = [a, a].flat()",
    ),
    (
        "promises that wait",
        CaseEnd::Memory,
        "const a = []; for (;;) a.push(new Promise(() => {}))",
    ),
    (
        "symbols",
        CaseEnd::Memory,
        "const a = []; for (let i = 0; ; i++) a.push(Symbol('s' + i))",
    ),
    (
        "out of memory, caught again and again",
        CaseEnd::Time,
        "const a = []; for (;;) try { for (;;) a.push(new Array(100).fill(0.5)) } catch {}",
    ),
    (
        "cycles that only the collector finds",
        CaseEnd::Time,
        "for (;;) { const a = {}; a.a = { a, t: 'x'.repeat(10000) }; }",
    ),
];

pub(super) const STACK: Rows = &[
    (
        "two functions",
        CaseEnd::Stack,
        "const f = () => g(), g = () => f(); f()",
    ),
    (
        "a getter of itself",
        CaseEnd::Stack,
        "const o = { get a() { return this.a; } }; o.a",
    ),
    (
        "toString of itself",
        CaseEnd::Stack,
        "const o = { toString() { return `${this}`; } }; `${o}`",
    ),
    (
        "a proxy of a proxy",
        CaseEnd::Stack,
        "let p = {}; for (let i = 0; i < 200000; i++) p = new Proxy(p, {}); p.a",
    ),
    (
        "a deep array as text",
        CaseEnd::Stack,
        "let a = []; for (let i = 0; i < 100000; i++) a = [a]; String(a)",
    ),
    (
        "a deep array as JSON",
        CaseEnd::Stack,
        "let a = []; for (let i = 0; i < 100000; i++) a = [a]; JSON.stringify(a)",
    ),
    (
        "a deep array flattened",
        CaseEnd::Stack,
        "let a = []; for (let i = 0; i < 100000; i++) a = [a]; a.flat(Infinity)",
    ),
    (
        "deep groups in a pattern",
        CaseEnd::Refused(RuntimeCode::Exception),
        "new RegExp('('.repeat(100000))",
    ),
    (
        "construct of itself",
        CaseEnd::Stack,
        "class A { constructor() { new A(); } } new A()",
    ),
    (
        "apply of itself",
        CaseEnd::Stack,
        "const f = (...a) => f.apply(null, [...a]); f(1)",
    ),
    (
        "a bound function of a bound function",
        CaseEnd::Memory,
        "let f = () => 1; for (let i = 0; i < 200000; i++) f = f.bind(null); f()",
    ),
    (
        "Symbol.hasInstance of itself",
        CaseEnd::Stack,
        "const c = { [Symbol.hasInstance]: (v) => v instanceof c }; 1 instanceof c",
    ),
];
