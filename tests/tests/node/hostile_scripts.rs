//! Scripts that are written against the node itself and not against their own limits: what they make it check
//! must cost the node little time.

use std::fs;
use std::thread;

use alknet_tests::{Bench, Cli};
use serde_json::{Value, json};

/// Sessions at once, each of an identity of its own.
const AT_ONCE: usize = 12;

fn people(people: &[(String, Cli)], scopes: &[&str]) -> String {
    let peer = |(name, who): &(String, Cli)| {
        let key = who.identity();
        format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\nscopes = {scopes:?}\n")
    };
    people.iter().map(peer).collect()
}

fn crowd(bench: &Bench) -> Vec<(String, Cli)> {
    let names = (0..AT_ONCE).map(|n| format!("author-{n}"));
    names
        .map(|name| (name.clone(), bench.somebody(&name)))
        .collect()
}

/// Schemas that take a validator longer than anybody lives, and values that make them.
const BOMBS: [(&str, &str, &str); 4] = [
    (
        "a chain of forty, each twice the next",
        "const $defs = { d40: { type: 'string' } };
         for (let i = 0; i < 40; i++) {
             const next = { $ref: '#/$defs/d' + (i + 1) };
             $defs['d' + i] = { allOf: [next, next] };
         }
         const schema = { $ref: '#/$defs/d0', $defs };",
        "'x'",
    ),
    (
        "a list of many numbers, each one of many",
        "const schema = { items: { enum: Array.from({ length: 15000 }, (_, i) => i + 0.5) } };",
        "new Array(40000).fill(7)",
    ),
    (
        "a schema that refers to itself twice at each level",
        "const schema = { $ref: '#/$defs/a',
             $defs: { a: { items: { anyOf: [{ $ref: '#/$defs/a' }, { $ref: '#/$defs/a' }] } } } };",
        "(() => { let v = 1; for (let i = 0; i < 60; i++) v = [v]; return v; })()",
    ),
    (
        "deep unevaluatedProperties",
        "let schema = { type: 'string' };
         for (let i = 0; i < 30; i++) schema = { unevaluatedProperties: schema };",
        "(() => { let v = 1; for (let i = 0; i < 30; i++) v = { v }; return v; })()",
    ),
];

#[test]
fn schemas_of_scripts_cost_the_node_little_time() {
    let bench = Bench::new();
    let crowd = crowd(&bench);
    let node = bench.host_with(&people(&crowd, &["runtime:debug", "node:read"]));
    // As many at once as would take every thread of the node.
    thread::scope(|scope| {
        for (at, (_, who)) in crowd.iter().enumerate() {
            let (name, schema, value) = BOMBS[at % BOMBS.len()];
            let source = format!(
                "{schema}
                 const codes = [];
                 try {{
                     await ops.register({{ name: 'a', kind: 'query', input: schema }}, () => 1);
                 }} catch (error) {{ codes.push(error.code); }}
                 try {{ await ops.call('js/a', {value}); }} catch (error) {{ codes.push(error.code); }}
                 export default codes"
            );
            let node = &node;
            scope.spawn(move || {
                let input = json!({ "source": source });
                let ran = who.call(node.target(), "runtime/eval", &input, &[]).json();
                let codes = &ran["value"];
                // Refused when it is registered, or when it would be evaluated.
                let expected = [
                    json!(["INVALID_INPUT", "NOT_FOUND"]),
                    json!(["INVALID_INPUT"]),
                ];
                assert!(expected.contains(codes), "{name}: {ran}");
            });
        }
        for _ in 0..10 {
            assert_eq!(node.call("node/info", &Value::Null)["problems"], json!([]));
        }
    });
}

/// Proposing is enough to have a schema evaluated: the tests of what is proposed are run.
#[test]
fn schemas_of_proposals_cost_the_node_little_time() {
    let bench = Bench::new();
    let author = vec![("author".to_owned(), bench.somebody("author"))];
    let node = bench.host_with(&people(&author, &["ops:propose"]));
    let mut defs = json!({ "d40": { "type": "number" } });
    for at in 0..40 {
        let next = json!({ "$ref": format!("#/$defs/d{}", at + 1) });
        defs[format!("d{at}")] = json!({ "allOf": [next, next] });
    }
    let schema = json!({ "$ref": "#/$defs/d0", "$defs": defs });
    let operation = json!({
        "spec": { "name": "bomb", "kind": "query" }, "entry": "./main.js", "export": "run",
        "tests": [{ "input": 1, "expect": { "schema": schema } }],
    });
    let folder = bench.path().join("bomb");
    fs::create_dir_all(&folder).expect("the folder is ours");
    fs::write(folder.join("operation.json"), operation.to_string()).expect("room");
    fs::write(folder.join("main.js"), "export const run = (n) => n;").expect("room");
    let mut command = author[0].1.command(&["ops", "propose", node.target()]);
    command.arg(&folder);
    let answer = author[0].1.run(command);
    assert_ne!(answer.status, 0, "{answer:?}");
    assert_eq!(node.call("node/info", &Value::Null)["problems"], json!([]));
}
