use std::fmt::Write as _;

use serde_json::json;

use super::*;
use crate::engine::compile;
use crate::error::LimitExceeded;
use crate::limits::{DEPTH_MAX, NODES_MAX, PATH_BYTES_MAX, SCHEMA_BYTES_MAX};
use crate::model::LayoutMode;

fn pass(schema: &Value) -> Result<Schema> {
    Schema::new(schema, &SchemaLimits::default())
}

#[track_caller]
fn refused(schema: &Value, at: &str, word: &str) {
    match pass(schema) {
        Err(TypedefError::Schema { ptr, why }) => {
            assert_eq!(ptr, at, "{why}");
            assert!(why.contains(word), "{why}");
        }
        other => panic!("{schema}: {other:?}"),
    }
}

#[track_caller]
fn limited(schema: &Value, word: &str, limit: u64) {
    match pass(schema) {
        Err(TypedefError::Limit(LimitExceeded { what, max })) => {
            assert!(what.contains(word), "{what}");
            assert_eq!(max, limit);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_unknown_part_is_refused_by_name_and_path() {
    let here = |keyword: &str, value: Value| json!({ "properties": { "a": { keyword: value } } });
    for (keyword, value, word) in [
        ("TypeDef:Int128", json!(true), "TypeDef:Int128"),
        ("typedef:Int8", json!(true), "typedef:Int8"),
        ("TypeDef:", json!(true), "TypeDef:"),
        ("$dynamicRef", json!("#a"), "$dynamicRef"),
        ("$dynamicAnchor", json!("a"), "$dynamicAnchor"),
        ("$recursiveRef", json!("#"), "$recursiveRef"),
        ("$anchor", json!("a"), "$anchor"),
        ("$vocabulary", json!({}), "vocabulary"),
        (
            "$schema",
            json!("http://json-schema.org/draft-07/schema#"),
            "2020-12",
        ),
        ("$ref", json!("https://example.com/a"), "of this document"),
        ("$ref", json!("a.json#/b"), "of this document"),
        ("$ref", json!("#anchor"), "of this document"),
        ("$ref", json!(7), "text"),
        ("$id", json!("https://example.com/a"), "address"),
        ("items", json!([{}]), "prefixItems"),
        ("additionalItems", json!(false), "items"),
        ("TypeDef:maxBytes", json!(3), "String"),
        ("TypeDef:Int8", json!(false), "true or an object"),
        ("TypeDef:Int8", json!(null), "true or an object"),
    ] {
        let at = format!("/properties/a/{keyword}");
        refused(&here(keyword, value), &at, word);
    }
    let missing = json!({ "items": { "$ref": "Nobody" } });
    refused(&missing, "/items", "#/$defs/Nobody");
    refused(&json!({ "not": 1 }), "/not", "a schema is");
    let two = json!({ "TypeDef:Int8": true, "TypeDef:Uint8": true });
    refused(&two, "", "Int8 and Uint8");
    let both = json!({ "$defs": { "A": {} }, "items": { "$ref": "A", "TypeDef:Int8": true } });
    refused(&both, "/items", "both");
}

#[test]
fn annotations_are_checked_by_name_and_value() {
    for (kind, name, value, word) in [
        ("Int8", "encoding", json!("fixed"), "align, endian"),
        ("Float32", "nonfinite", json!(1), "true or false"),
        ("String", "encoding", json!("zip"), "indirect"),
        ("Int8", "align", json!(3), "power of two"),
        ("Int8", "align", json!(8192), "4096"),
        ("Int8", "align", json!(-1), "power of two"),
        ("Int8", "endian", json!("middle"), "little"),
        ("Struct", "fields", json!("a"), "list of names"),
        ("Struct", "fields", json!(["a", "a"]), "twice"),
        ("Struct", "fields", json!([1]), "list of names"),
        ("Tensor", "dtype", json!("F33"), "dtype"),
        ("Tensor", "shape", json!([-1]), "shape"),
        ("Tensor", "shape", json!([""]), "shape"),
        ("Union", "mapping", json!([]), "object of schemas"),
        ("Union", "discriminator", json!("a"), "object"),
        (
            "Union",
            "discriminator",
            json!({ "kind": "byte", "name": "a" }),
            "no name",
        ),
        (
            "Union",
            "discriminator",
            json!({ "kind": "field" }),
            "needs the name",
        ),
        ("Union", "discriminator", json!({ "kind": "x" }), "kind"),
        (
            "Union",
            "discriminator",
            json!({ "kind": "byte", "offset": 1 }),
            "offset",
        ),
        (
            "Union",
            "discriminator",
            json!({ "kind": "byte", "type": "Int8" }),
            "Uint8",
        ),
    ] {
        let keyword = format!("TypeDef:{kind}");
        let at = format!("/{keyword}/{name}");
        refused(&json!({ keyword.as_str(): { name: value } }), &at, word);
    }
    let size = json!({ "kind": "byte", "size": 1 });
    let union = json!({ "TypeDef:Union": { "discriminator": size } });
    refused(&union, "/TypeDef:Union/discriminator/size", "nothing else");
    let twice = json!({ "TypeDef:Int8": { "align": 4 }, "align": 4 });
    refused(&twice, "/align", "already");
    let wild = json!({ "TypeDef:String": true, "TypeDef:maxBytes": -1 });
    refused(&wild, "/TypeDef:maxBytes", "bytes");
}

#[test]
fn names_that_are_no_keywords_are_left_alone() {
    let schema = json!({
        "properties": { "TypeDef:Nothing": {}, "$ref": {}, "$dynamicRef": {}, "id": {} },
        "const": { "TypeDef:Nothing": 1, "$ref": "https://example.com" },
        "enum": [{ "TypeDef:Nothing": 1 }],
        "default": { "$dynamicRef": 1 },
        "examples": [{ "typedef:x": 1 }],
        "x-note": { "TypeDef:Nothing": 1 },
    });
    assert_eq!(pass(&schema).expect("a schema").normalized(), &schema);
}

/// As TypeBox 0.34 writes a module that is imported by a name.
#[test]
fn bare_names_become_pointers_once() {
    let schema = json!({
        "$defs": {
            "A": {
                "type": "object", "required": ["b"], "$id": "A",
                "properties": { "b": { "$ref": "B" }, "c": { "$ref": "a b%" } },
            },
            "B": { "type": "integer", "$id": "B" },
            "a b%": true,
        },
        "$ref": "A",
    });
    let once = pass(&schema).expect("a schema");
    let expected = json!({
        "$defs": {
            "A": {
                "type": "object", "required": ["b"],
                "properties": {
                    "b": { "$ref": "#/$defs/B" },
                    "c": { "$ref": "#/$defs/a%20b%25" },
                },
            },
            "B": { "type": "integer" },
            "a b%": true,
        },
        "$ref": "#/$defs/A",
    });
    assert_eq!(once.normalized(), &expected);
    let twice = pass(once.normalized()).expect("still a schema");
    assert_eq!(twice.normalized(), &expected);
}

#[test]
fn annotations_beside_a_keyword_move_behind_it() {
    let beside = json!({
        "TypeDef:Union": true,
        "discriminator": { "kind": "byte" },
        "mapping": { "1": { "TypeDef:String": true, "encoding": "indirect" } },
        "endian": "big",
    });
    let moved = pass(&beside).expect("a schema");
    let behind = json!({ "TypeDef:Union": {
        "discriminator": { "kind": "byte" },
        "endian": "big",
        "mapping": { "1": { "TypeDef:String": { "encoding": "indirect" } } },
    } });
    assert_eq!(moved.normalized(), &behind);
    assert_eq!(pass(&behind).expect("a schema").normalized(), &behind);
}

#[test]
fn what_contains_itself_is_refused() {
    let direct = json!({ "$ref": "#" });
    let list = json!({ "TypeDef:Array": true, "items": { "$ref": "#" } });
    let tree = json!({
        "$defs": { "T": { "TypeDef:Struct": true, "properties": { "a": { "$ref": "U" } } },
                   "U": { "TypeDef:Array": true, "items": { "$ref": "T" } } },
        "$ref": "T",
    });
    for schema in [direct, list, tree] {
        let error =
            compile(&schema, LayoutMode::Packed, &SchemaLimits::default()).expect_err("no end");
        assert!(error.to_string().contains("contains itself"), "{error}");
    }
    // A definition that no schema uses does no harm.
    let unused = json!({ "TypeDef:Int8": true, "$defs": { "T": { "items": { "$ref": "T" } } } });
    compile(&unused, LayoutMode::Packed, &SchemaLimits::default()).expect("a layout");
}

#[test]
fn definitions_that_double_are_counted_before_they_are_followed() {
    let mut defs = Map::new();
    for i in 0..40 {
        let next = format!("d{}", i + 1);
        defs.insert(
            format!("d{i}"),
            json!({ "allOf": [{ "$ref": next }, { "$ref": next }] }),
        );
    }
    defs.insert("d40".to_owned(), json!({ "TypeDef:Int8": true }));
    let schema = json!({ "TypeDef:Array": true, "items": { "TypeDef:Int8": true },
                         "not": { "$ref": "d0" }, "$defs": defs });
    let error =
        compile(&schema, LayoutMode::Packed, &SchemaLimits::default()).expect_err("too much");
    assert!(matches!(error, TypedefError::Limit(_)), "{error}");
}

#[test]
fn each_limit_holds_at_its_edge() {
    let nested = |depth: u64| (1..depth).fold(json!({}), |inner, _| json!({ "not": inner }));
    assert!(pass(&nested(DEPTH_MAX)).is_ok());
    limited(&nested(DEPTH_MAX + 1), "within each other", DEPTH_MAX);
    // The root, the list, and its items.
    let wide = |nodes: u64| json!({ "enum": vec![0; nodes as usize - 2] });
    assert!(pass(&wide(NODES_MAX)).is_ok());
    limited(&wide(NODES_MAX + 1), "values", NODES_MAX);
    let heavy = |bytes: u64| json!({ "title": "a".repeat(bytes as usize - 5) });
    assert!(pass(&heavy(SCHEMA_BYTES_MAX)).is_ok());
    limited(
        &heavy(SCHEMA_BYTES_MAX + 1),
        "bytes of a schema",
        SCHEMA_BYTES_MAX,
    );
    let named = |bytes: u64| json!({ "properties": { "a".repeat(bytes as usize - 12): {} } });
    assert!(pass(&named(PATH_BYTES_MAX)).is_ok());
    limited(&named(PATH_BYTES_MAX + 1), "pointer", PATH_BYTES_MAX);
    let patterns = |count: u64| json!({ "allOf": vec![json!({ "pattern": "a" }); count as usize] });
    assert!(pass(&patterns(PATTERNS_MAX)).is_ok());
    limited(&patterns(PATTERNS_MAX + 1), "patterns", PATTERNS_MAX);
}

#[test]
fn text_is_read_in_one_way_only() {
    let limits = SchemaLimits::default();
    let read = |text: &str| parse(text.as_bytes(), &limits);
    let schema = r#"{"a":[1,-2,2.5,"x",null,true,{"b":1}]}"#;
    assert_eq!(read(schema).expect("JSON").to_string(), schema);
    for (text, word) in [
        (r#"{"a":1,"a":1}"#, "'a' stands twice"),
        (r#"{"b":[{"a":1,"\u0061":2}]}"#, "'a' stands twice"),
        ("{} {}", "trailing"),
        ("{", "EOF"),
        ("NaN", "expected"),
        (&"[".repeat(200), "recursion"),
    ] {
        let error = read(text).expect_err("refused").to_string();
        assert!(error.contains(word), "{error}");
    }
    let mut long = String::from("[");
    while (long.len() as u64) < SCHEMA_BYTES_MAX {
        write!(long, "{:>100},", 1).expect("a string grows");
    }
    assert!(matches!(read(&long), Err(TypedefError::Limit(_))));
}
