//! What every runtime for scripts of strangers is tried with.

use alknet_runtime::Code;

use super::{EXCEPTION, Kind, Rows};

/// The rows of the brief, in its order.
pub(super) const TABLE: Rows = &[
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
