//! Scripts that pass the node values which would take much more memory there than in the script.

use serde_json::{Value, json};

/// Attacks by scripts. Each script returns how often the node refused it.
pub(super) const HOARDERS: [(&str, &str); 11] = [
    (
        "an array of holes",
        "await tries(() => ops.call('node/info', new Array(2e6)))",
    ),
    (
        "arrays of holes in an array",
        "await tries(() => ops.call('node/info', Array.from({ length: 1000 }, () => new Array(2000))))",
    ),
    (
        "an object of empty objects",
        "const o = {}; for (let i = 0; i < 2e5; i++) o[i] = {};
         await tries(() => ops.call('node/info', o))",
    ),
    (
        "a text of which each character is six in JSON",
        "await tries(() => ops.call('node/info', '\\u0001'.repeat(3e6)))",
    ),
    (
        "a schema with an enum of nulls",
        "await tries(() => ops.register({
             name: 'a', kind: 'query', input: { enum: new Array(4e5).fill(null) } }, () => 1))",
    ),
    (
        "many schemas with an enum of nulls",
        "for (let i = 0; i < 200; i++) await tries(() => ops.register({
             name: 'a' + i, kind: 'query', input: { enum: new Array(9e3).fill(null) } }, () => 1))",
    ),
    (
        "a schema with many schemas behind long names",
        "let input = { anyOf: new Array(2000).fill({}) };
         for (let i = 0; i < 28; i++) input = { properties: { ['x'.repeat(4000)]: input } };
         await tries(() => ops.register({ name: 'a', kind: 'query', input }, () => 1))",
    ),
    (
        "schemas with patterns that compile to much",
        "for (let i = 0; i < 20; i++) await tries(() => ops.register({ name: 'a' + i, kind: 'query', input: {
             anyOf: Array.from({ length: 60 }, (_, n) => ({ pattern: `^(a${n}|[^a]{60}){3}$` })) } }, () => 1))",
    ),
    (
        "recorded calls of an operation with a long schema that marks secrets",
        "await ops.register({ name: 'a', kind: 'query', input: {
             'x-secret': true, description: 'x'.repeat(8e5) } }, () => 1);
         for (let i = 0; i < 300; i++) await ops.call('js/a', i);
         await tries(() => ops.call('node/info', NaN))",
    ),
    (
        "calls by names that are none",
        "for (let i = 0; i < 100; i++) await tries(() => ops.call(i + 'x'.repeat(9e5), 1))",
    ),
    (
        "many calls at once",
        "await Promise.all(Array.from({ length: 64 }, () =>
             tries(() => ops.call('node/info', 'x'.repeat(1 << 20)))))",
    ),
];

/// The input of `runtime/eval` that runs an attack.
pub(super) fn hoarder(attack: &str) -> Value {
    let source = format!(
        "let refused = 0;
         const tries = async (what) => {{ try {{ await what(); }} catch {{ refused += 1; }} }};
         {attack};
         export default refused"
    );
    json!({ "source": source, "record": true })
}
