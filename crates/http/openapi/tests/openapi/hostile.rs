//! Documents that mean harm: each ends in one error, or in operations that keep every rule.

use std::fmt::Write;

use alknet_call::AdapterError;
use alknet_openapi::from::limits::{
    DOCUMENT_BYTES_MAX, OPERATIONS_MAX, PARAMETERS_MAX, REFS_MAX, VALUES_MAX,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::common::{import, import_json, register};

fn reason(result: Result<Vec<alknet_call::Registration>, AdapterError>) -> String {
    match result {
        Ok(registrations) => panic!("{} operations", registrations.len()),
        Err(error) => error.to_string(),
    }
}

fn paths(operation: Value) -> Value {
    json!({ "openapi": "3.1.0", "info": {}, "paths": { "/a": { "get": operation } } })
}

#[test]
fn anchors_that_multiply_are_too_much() {
    let mut bomb =
        "openapi: 3.0.0\na0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for n in 1..=9 {
        let before = format!("*a{}", n - 1);
        let ten = vec![before; 10].join(", ");
        writeln!(bomb, "a{n}: &a{n} [{ten}]").expect("memory");
    }
    let text = reason(import(bomb));
    assert!(text.contains("cannot be read"), "{text}");
    // One that refers to itself.
    let own = "openapi: 3.0.0\npaths: &p\n  /a: *p\n";
    reason(import(own.to_owned()));
}

#[test]
fn what_is_too_deep_is_no_document() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        for depth in [200, 500_000] {
            let nested = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            let json = format!("{{\"openapi\":\"3.0.0\",\"x\":{nested}}}");
            reason(import(json));
            reason(import(format!("openapi: 3.0.0\nx: {nested}\n")));
        }
    }
    let mut blocks = "openapi: 3.0.0\n".to_owned();
    for depth in 0..3000 {
        writeln!(blocks, "{}a:", " ".repeat(depth)).expect("memory");
    }
    reason(import(blocks));
}

#[test]
fn what_is_too_much_is_refused_while_it_is_read() {
    let long = vec![b' '; DOCUMENT_BYTES_MAX + 1];
    assert!(matches!(import(long), Err(AdapterError::TooLarge("bytes"))));
    let many = "0,".repeat(VALUES_MAX);
    let json = format!("{{\"openapi\":\"3.0.0\",\"paths\":[{many}0]}}");
    assert!(reason(import(json)).contains("values"));
    let yaml = format!("openapi: 3.0.0\npaths: [{many}0]\n");
    reason(import(yaml));
    let mut all = serde_json::Map::new();
    for n in 0..=OPERATIONS_MAX {
        all.insert(format!("/p{n}"), json!({ "get": {} }));
    }
    let document = json!({ "openapi": "3.0.0", "paths": all });
    assert!(reason(import_json(&document)).contains("operations"));
    let parameters: Vec<_> = (0..=PARAMETERS_MAX)
        .map(|n| json!({ "name": format!("p{n}"), "in": "query" }))
        .collect();
    let document = paths(json!({ "parameters": parameters }));
    assert!(reason(import_json(&document)).contains("parameters"));
}

#[test]
fn references_lead_somewhere_within_the_document() {
    let body = |schema: Value| {
        paths(json!({ "requestBody": { "content": { "application/json": { "schema": schema } } } }))
    };
    for (reference, word) in [
        ("https://evil.example/x.json#/a", "another document"),
        ("other.yaml", "another document"),
        ("/etc/passwd", "another document"),
        ("#/nowhere", "not in the document"),
        ("#anchor", "not in the document"),
    ] {
        let text = reason(import_json(&body(json!({ "$ref": reference }))));
        assert!(text.contains(word) && text.contains("/paths/"), "{text}");
        let node = paths(json!({ "parameters": [{ "$ref": reference }] }));
        assert!(reason(import_json(&node)).contains(word));
    }
    // A chain as long as may be, and one that is longer; a circle.
    let chain = |length: usize, last: Value| {
        let mut document = body(json!({ "$ref": "#/components/schemas/s0" }));
        let mut schemas = serde_json::Map::new();
        for n in 0..length {
            let next = format!("#/components/schemas/s{}", n + 1);
            schemas.insert(format!("s{n}"), json!({ "$ref": next }));
        }
        schemas.insert(format!("s{length}"), last);
        document["components"] = json!({ "schemas": schemas });
        import_json(&document)
    };
    assert!(chain(REFS_MAX - 1, json!({})).is_ok());
    assert!(reason(chain(REFS_MAX, json!({}))).contains("one after the other"));
    let circle = json!({ "$ref": "#/components/schemas/s0" });
    assert!(reason(chain(3, circle)).contains("one after the other"));
}

#[test]
fn schemas_in_circles_are_kept_as_definitions_and_end() {
    let schema = json!({
        "$ref": "#/components/schemas/Tree",
    });
    let mut document = paths(json!({
        "parameters": [{ "name": "filter", "in": "query", "content": {
            "application/json": { "schema": schema } } }],
    }));
    document["components"] = json!({ "schemas": {
        "Tree": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": { "type": "string" },
                "children": { "type": "array", "items": { "$ref": "#/components/schemas/Tree" } },
                "kind": { "$ref": "#/components/schemas/Base" },
            },
        },
        // What inheritance looks like in many documents.
        "Base": { "oneOf": [{ "$ref": "#/components/schemas/Child" }, { "type": "null" }] },
        "Child": { "allOf": [{ "$ref": "#/components/schemas/Base" }, { "type": "object" }] },
        "Own": { "allOf": [{ "$ref": "#/components/schemas/Own" }] },
    }});
    let registry = register(import_json(&document).expect("a document"));
    let tree = |child: Value| json!({ "filter": { "name": "a", "children": [child], "kind": {} } });
    let check = |input: &Value| registry.validate("ns/get_a", input);
    assert!(check(&tree(json!({ "name": "b", "children": [] }))).is_ok());
    let error = check(&tree(json!({ "children": [] }))).expect_err("a child without a name");
    assert_eq!(error.code.name(), "INVALID_INPUT");
}

#[test]
fn what_would_be_long_everywhere_is_cut() {
    // Every schema refers to every other. Written out, one would come to 270 KB, and those of all operations to 40 MB.
    const SCHEMAS: usize = 80;
    let mut schemas = serde_json::Map::new();
    for n in 0..SCHEMAS {
        let mut properties = serde_json::Map::new();
        for m in 0..SCHEMAS {
            let to = format!("#/components/schemas/s{m}");
            properties.insert(format!("p{m}"), json!({ "$ref": to }));
        }
        schemas.insert(
            format!("s{n}"),
            json!({ "type": "object", "properties": properties }),
        );
    }
    let mut all = serde_json::Map::new();
    for n in 0..SCHEMAS {
        let schema = json!({ "$ref": format!("#/components/schemas/s{n}") });
        let content = json!({ "content": { "application/json": { "schema": schema } } });
        let operation = json!({ "requestBody": content, "responses": { "200": content } });
        all.insert(format!("/p{n}"), json!({ "put": operation }));
    }
    let document = json!({
        "openapi": "3.0.3", "paths": all, "components": { "schemas": schemas },
    });
    let registrations = import_json(&document).expect("a document");
    let bytes: usize = registrations
        .iter()
        .map(|one| {
            one.spec().input_schema.to_string().len() + one.spec().output_schema.to_string().len()
        })
        .sum();
    assert!(bytes < 16 << 20, "{bytes}");
    register(registrations);
}

#[test]
fn what_is_no_document_is_said_to_be_none() {
    for (document, word) in [
        ("", "version"),
        ("{}", "version"),
        ("[]", "version"),
        ("null", "version"),
        ("\u{0}", "cannot be read"),
        ("{\"openapi\": \"3.0.0\"", "cannot be read"),
        ("{\"swagger\": \"2.0\"}", "convert"),
        ("openapi: 3.2.0", "convert"),
        ("openapi: 3.10.0", "convert"),
        ("openapi: 3.1.0\npaths: 7", "object"),
        ("openapi: 3.1.0\npaths: {a: {}}", "path"),
        ("openapi: 3.1.0\npaths: {/a: {get: 7}}", "object"),
        ("openapi: 3.1.0\npaths: {'/a{b': {get: {}}}", "path"),
        (
            "openapi: 3.1.0\npaths: {/a: {get: {parameters: 7}}}",
            "list",
        ),
        (
            "openapi: 3.1.0\npaths: {/a: {get: {parameters: [{name: x, in: body}]}}}",
            "in a path",
        ),
        ("--- a\n--- b\n", "cannot be read"),
    ] {
        let text = reason(import(document.to_owned()));
        assert!(text.contains(word), "{document}: {word}: {text}");
    }
    let binary = import(vec![0xff, 0xfe, 0x00]);
    assert!(reason(binary).contains("UTF-8"));
    assert_eq!(import("openapi: 3.1\n".to_owned()).expect("empty").len(), 0);
}

/// A document with something of everything.
fn whole() -> Value {
    json!({
        "openapi": "3.0.3",
        "paths": { "/a/{id}": {
            "parameters": [{ "name": "id", "in": "path", "schema": { "type": "integer", "minimum": 1 } }],
            "post": {
                "operationId": "one",
                "security": [],
                "tags": ["t"],
                "summary": "s",
                "parameters": [
                    { "$ref": "#/components/parameters/P" },
                    { "name": "h", "in": "header", "style": "simple", "explode": true },
                ],
                "requestBody": { "required": true, "content": {
                    "multipart/form-data": {
                        "schema": { "$ref": "#/components/schemas/S" },
                        "encoding": { "a": { "contentType": "text/plain", "style": "form" } },
                    },
                }},
                "responses": {
                    "200": { "description": "", "content": { "application/json": {
                        "schema": { "$ref": "#/components/schemas/S" } } } },
                    "404": { "$ref": "#/components/responses/E" },
                    "default": { "content": { "text/event-stream": {} } },
                },
            },
        }},
        "components": {
            "parameters": { "P": { "name": "p", "in": "query", "style": "deepObject" } },
            "responses": { "E": { "description": "e" } },
            "schemas": { "S": {
                "type": "object",
                "nullable": true,
                "required": ["a"],
                "properties": {
                    "a": { "type": "string", "format": "binary", "enum": ["x"], "pattern": "(" },
                    "b": { "oneOf": [{ "$ref": "#/components/schemas/S" }, { "not": {} }] },
                    "c": { "type": "number", "maximum": 3, "exclusiveMaximum": true },
                },
                "additionalProperties": { "items": { "allOf": [true] } },
            }},
            "securitySchemes": { "k": { "type": "apiKey", "in": "query", "name": "key" } },
        },
    })
}

/// Every place in a document.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let name = name.replace('~', "~0").replace('/', "~1");
                places(value, &format!("{at}/{name}"), all);
            }
        }
        Value::Array(list) => {
            for (n, value) in list.iter().enumerate() {
                places(value, &format!("{at}/{n}"), all);
            }
        }
        _ => {}
    }
}

fn odd() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!("text/plain\r\nx: y")),
        Just(json!([])),
        Just(json!({})),
        Just(json!([[1, {}], null])),
        Just(json!({ "$ref": "#" })),
        Just(json!({ "$ref": "#/components/schemas/S" })),
        Just(json!({ "$ref": "#/components/parameters/P" })),
        Just(json!({ "$ref": 7 })),
        Just(json!({ "": { "": {} } })),
    ]
}

#[test]
fn the_whole_document_is_one() {
    let registrations = import_json(&whole()).expect("a document");
    assert_eq!(registrations.len(), 1);
    register(registrations);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever stands anywhere: an error, or operations whose schemas compile.
    #[test]
    fn no_wrong_type_gets_through(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), odd()), 1..4),
    ) {
        let mut document = whole();
        for (index, value) in changes {
            let mut all = Vec::new();
            places(&document, "", &mut all);
            let at = index.get(&all);
            if let Some(place) = document.pointer_mut(at) {
                *place = value;
            }
        }
        if let Ok(registrations) = import_json(&document) {
            register(registrations);
        }
    }

    #[test]
    fn no_text_panics(text in "(openapi: 3.1.0\\n)?[a-z{}\\[\\]:,&*!| \\n#'\"/-]{0,80}") {
        let _ = import(text);
    }
}
