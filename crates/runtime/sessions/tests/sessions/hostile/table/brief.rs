//! What every runtime for scripts of untrusted authors is tried with.

use alknet_runtime::RuntimeCode;

use super::{CaseEnd, EXCEPTION, Rows};

/// The rows of the brief, in its order.
pub(super) const TABLE: Rows = &[
    ("endless loop", CaseEnd::Time, "for (;;);"),
    (
        "endless loop inside try, catch and finally",
        CaseEnd::Time,
        "for (;;) { try { for (;;); } catch { for (;;); } finally { for (;;); } }",
    ),
    (
        "catastrophic regular expression",
        CaseEnd::Time,
        "/^(a+)+$/.test('a'.repeat(64) + 'b')",
    ),
    (
        "sparse indexOf",
        CaseEnd::Time,
        "const a = []; a.length = 2 ** 32 - 1; a.indexOf(1)",
    ),
    (
        "unbounded recursion",
        CaseEnd::Stack,
        "(function f() { f(); })()",
    ),
    (
        "JSON nested 100000 deep",
        CaseEnd::Stack,
        "JSON.parse('['.repeat(100000))",
    ),
    (
        "padStart beyond all strings",
        CaseEnd::Memory,
        "'a'.padStart(2 ** 29)",
    ),
    (
        "an array of all indices filled",
        CaseEnd::Memory,
        "new Array(2 ** 32 - 1).fill(0)",
    ),
    (
        "sort of many numbers, again and again",
        CaseEnd::Time,
        "const a = Array.from({ length: 300000 }, (_, i) => (i * 7919) % 300007);
         for (;;) a.sort()",
    ),
    (
        "a BigInt power as text",
        CaseEnd::Time,
        "for (;;) String(3n ** 200000n)",
    ),
    (
        "repeated BigInt squaring",
        EXCEPTION,
        "let n = 3n; for (;;) n = n * n",
    ),
    (
        "split of a long text",
        CaseEnd::Memory,
        "'a'.repeat(3e6).split('')",
    ),
    (
        "self-feeding promise chain",
        CaseEnd::Refused(RuntimeCode::Fuel),
        "const go = () => Promise.resolve().then(go); await go()",
    ),
];
