use serde_json::{Value, json};

use super::LayoutMode;
use crate::engine::compile;
use crate::error::TypedefError;
use crate::kind::FieldKind;
use crate::limits::SchemaLimits;

type Row<'a> = (&'a str, u64, u64, FieldKind);

#[track_caller]
fn lies(schema: &Value, rows: &[Row<'_>], stride: u64, align: u32) {
    let engine = compile(schema, LayoutMode::Aligned, &SchemaLimits::default()).expect("a layout");
    let map = engine.offsets().expect("aligned");
    let found: Vec<_> = map
        .iter()
        .map(|entry| {
            (
                entry.path(),
                entry.range().start,
                entry.range().end,
                entry.kind(),
            )
        })
        .collect();
    assert_eq!(found, rows);
    assert_eq!((map.stride(), map.align()), (stride, align));
    for entry in map.iter() {
        let id = map.id(entry.path()).expect("it has a place");
        assert_eq!(map.entry(id).range(), entry.range());
    }
}

#[track_caller]
fn refused(schema: &Value, mode: LayoutMode, at: &str, word: &str) {
    match compile(schema, mode, &SchemaLimits::default()) {
        Err(TypedefError::Layout { path, why }) => {
            assert_eq!(path, at, "{why}");
            assert!(why.contains(word), "{why}");
        }
        other => panic!("{schema}: {other:?}"),
    }
}

#[test]
fn each_scalar_has_its_size_and_alignment() {
    for (kind, size) in [
        ("Int8", 1),
        ("Uint8", 1),
        ("Boolean", 1),
        ("Int16", 2),
        ("Uint16", 2),
        ("Float16", 2),
        ("BFloat16", 2),
        ("Int32", 4),
        ("Uint32", 4),
        ("Float32", 4),
        ("Enum", 4),
        ("Int64", 8),
        ("Uint64", 8),
        ("Float64", 8),
    ] {
        let keyword = format!("TypeDef:{kind}");
        let of = FieldKind::of_keyword(&keyword).expect("a kind");
        let schema = json!({ keyword: true, "enum": ["a", "b"] });
        lies(&schema, &[("", 0, size, of)], size, size as u32);
    }
}

#[test]
fn parts_are_as_aligned_as_what_is_in_them() {
    let inner = json!({
        "TypeDef:Struct": { "fields": ["a", "b"] },
        "properties": { "b": { "TypeDef:Float64": true }, "a": { "TypeDef:Uint8": true } },
    });
    let schema = json!({
        "TypeDef:Struct": { "fields": ["x", "in", "y", "list"] },
        "properties": {
            "in": { "$ref": "Inner" },
            "list": { "TypeDef:Array": true, "minItems": 2, "maxItems": 2,
                      "items": { "$ref": "Inner" } },
            "x": { "TypeDef:Uint8": true },
            "y": { "TypeDef:Uint8": true },
        },
        "$defs": { "Inner": inner },
    });
    lies(
        &schema,
        &[
            ("", 0, 64, FieldKind::Struct),
            ("/x", 0, 1, FieldKind::Uint8),
            ("/in", 8, 24, FieldKind::Struct),
            ("/in/a", 8, 9, FieldKind::Uint8),
            ("/in/b", 16, 24, FieldKind::Float64),
            ("/y", 24, 25, FieldKind::Uint8),
            ("/list", 32, 64, FieldKind::Array),
            ("/list/0", 32, 48, FieldKind::Struct),
            ("/list/0/a", 32, 33, FieldKind::Uint8),
            ("/list/0/b", 40, 48, FieldKind::Float64),
            ("/list/1", 48, 64, FieldKind::Struct),
            ("/list/1/a", 48, 49, FieldKind::Uint8),
            ("/list/1/b", 56, 64, FieldKind::Float64),
        ],
        64,
        8,
    );
}

#[test]
fn text_takes_what_its_encoding_says() {
    let schema = json!({
        "TypeDef:Struct": { "fields": ["s", "b", "i", "t"] },
        "properties": {
            "s": { "TypeDef:String": { "encoding": "fixed" }, "TypeDef:maxBytes": 5 },
            "b": { "TypeDef:Bytes": true, "TypeDef:maxBytes": 6 },
            "i": { "TypeDef:String": { "encoding": "indirect" } },
            "t": { "TypeDef:Tensor": { "dtype": "F32", "shape": ["N"] } },
        },
    });
    lies(
        &schema,
        &[
            ("", 0, 40, FieldKind::Struct),
            ("/s", 0, 5, FieldKind::String),
            ("/b", 8, 20, FieldKind::Bytes),
            ("/i", 24, 40, FieldKind::String),
            ("/t", 40, 40, FieldKind::Tensor),
        ],
        40,
        8,
    );
}

#[test]
fn a_union_is_its_tag_and_its_largest_variant() {
    let schema = json!({
        "TypeDef:Union": {
            "discriminator": { "kind": "byte", "type": "TypeDef:Uint16" },
            "mapping": {
                "7": { "TypeDef:Uint8": true },
                "300": { "TypeDef:Array": true, "minItems": 3, "maxItems": 3,
                         "items": { "TypeDef:Uint32": true } },
            },
        },
    });
    lies(
        &schema,
        &[
            ("", 0, 16, FieldKind::Union),
            ("/7", 4, 5, FieldKind::Uint8),
            ("/300", 4, 16, FieldKind::Array),
        ],
        16,
        4,
    );
}

#[test]
fn alignment_is_raised_and_never_lowered() {
    let with = |align: u32| {
        json!({
            "TypeDef:Struct": { "fields": ["a", "b", "c"], "align": 64 },
            "properties": {
                "a": { "TypeDef:Uint8": true },
                "b": { "TypeDef:Float32": { "align": align } },
                "c": { "$ref": "C", "align": 16 },
            },
            "$defs": { "C": { "TypeDef:Uint16": true } },
        })
    };
    let rows = [
        ("", 0, 64, FieldKind::Struct),
        ("/a", 0, 1, FieldKind::Uint8),
        ("/b", 32, 36, FieldKind::Float32),
        ("/c", 48, 50, FieldKind::Uint16),
    ];
    lies(&with(32), &rows, 64, 64);
    refused(&with(2), LayoutMode::Aligned, "/b", "below the natural 4");
    // Without gaps, alignment has no effect.
    compile(&with(2), LayoutMode::Packed, &SchemaLimits::default()).expect("packed");
}

#[test]
fn a_part_without_an_offset_of_its_own_is_refused() {
    let field = |schema: Value| json!({ "TypeDef:Struct": { "fields": ["a"] }, "properties": { "a": schema } });
    for (schema, word) in [
        (json!({ "type": "integer" }), "names no kind"),
        (json!(true), "names no kind"),
        (json!({ "TypeDef:String": true }), "TypeDef:maxBytes"),
        (
            json!({ "TypeDef:Bytes": { "encoding": "length-prefixed" } }),
            "indirect",
        ),
        (json!({ "TypeDef:Array": true }), "items"),
        (
            json!({ "TypeDef:Array": true, "items": { "TypeDef:Int8": true }, "minItems": 1 }),
            "minItems and maxItems",
        ),
        (
            json!({ "TypeDef:Record": { "values": { "TypeDef:Int8": true } } }),
            "packed mode only",
        ),
        (
            json!({ "TypeDef:Struct": true, "properties": {} }),
            "order of its fields",
        ),
        (
            json!({ "TypeDef:Struct": { "fields": ["b"] } }),
            "'b' is not in properties",
        ),
        (
            json!({ "TypeDef:Struct": { "fields": [] }, "properties": { "b": {} } }),
            "'b' is not in fields",
        ),
        (
            json!({ "TypeDef:Struct": { "fields": ["b"] }, "required": [],
                 "properties": { "b": { "TypeDef:Int8": true } } }),
            "not in required",
        ),
        (json!({ "TypeDef:Union": true }), "discriminator"),
        (
            json!({ "TypeDef:Union": { "discriminator": { "kind": "byte" } } }),
            "mapping",
        ),
        (
            json!({ "TypeDef:Union": { "discriminator": { "kind": "byte" },
                 "mapping": { "256": { "TypeDef:Int8": true } } } }),
            "does not fit Uint8",
        ),
        (
            json!({ "TypeDef:Union": { "discriminator": { "kind": "byte" },
                 "mapping": { "07": { "TypeDef:Int8": true } } } }),
            "no tag",
        ),
        (
            json!({ "TypeDef:Union": { "discriminator": { "kind": "field", "name": "k" },
                 "mapping": { "a": { "TypeDef:Int8": true } } } }),
            "order",
        ),
        (
            json!({ "TypeDef:Union": { "discriminator": { "kind": "field", "name": "k" },
                 "order": ["b"], "mapping": { "a": { "TypeDef:Int8": true } } } }),
            "not in the mapping",
        ),
        (
            json!({ "TypeDef:Union": { "discriminator": { "kind": "field", "name": "k" },
                 "order": [], "mapping": { "a": { "TypeDef:Int8": true } } } }),
            "every variant",
        ),
        (
            json!({ "TypeDef:Array": true, "minItems": u64::MAX, "maxItems": u64::MAX,
                 "items": { "TypeDef:Int8": true } }),
            "larger than",
        ),
    ] {
        refused(&field(schema), LayoutMode::Aligned, "/a", word);
    }
    let named = json!({ "TypeDef:Union": {
        "discriminator": { "kind": "field", "name": "k" }, "order": ["a"],
        "mapping": { "a": { "TypeDef:Int8": true } } } });
    refused(&named, LayoutMode::Packed, "/a", "Struct");
    let taken = json!({ "TypeDef:Union": {
        "discriminator": { "kind": "field", "name": "k" },
        "mapping": { "a": { "TypeDef:Struct": { "fields": ["k"] },
                            "properties": { "k": { "TypeDef:Int8": true } } } } } });
    refused(&taken, LayoutMode::Packed, "/a", "names the variant");
}

#[test]
fn big_endian_is_for_wires() {
    for schema in [
        json!({ "TypeDef:Int16": { "endian": "big" } }),
        json!({ "$ref": "A", "endian": "big", "$defs": { "A": { "TypeDef:Int16": true } } }),
    ] {
        let error =
            compile(&schema, LayoutMode::Aligned, &SchemaLimits::default()).expect_err("aligned");
        assert!(matches!(error, TypedefError::Schema { .. }), "{error}");
        compile(&schema, LayoutMode::Packed, &SchemaLimits::default()).expect("packed");
    }
}

#[test]
fn reserved_space_has_a_size() {
    let schema = json!({ "TypeDef:String": { "encoding": "fixed" } });
    for mode in [LayoutMode::Aligned, LayoutMode::Packed] {
        let error = compile(&schema, mode, &SchemaLimits::default()).expect_err("no size");
        assert!(error.to_string().contains("TypeDef:maxBytes"), "{error}");
    }
}

#[test]
fn an_enum_has_members_each_once() {
    for members in [
        json!([]),
        json!(null),
        json!([1.5]),
        json!([null]),
        json!(["a", "a"]),
    ] {
        let schema = json!({ "TypeDef:Enum": true, "enum": members });
        let error =
            compile(&schema, LayoutMode::Aligned, &SchemaLimits::default()).expect_err("no enum");
        assert!(error.to_string().contains("#/enum"), "{error}");
    }
}

#[test]
fn many_items_with_parts_are_too_many_entries() {
    let of = |items: u64| {
        json!({ "TypeDef:Array": true, "minItems": items, "maxItems": items, "items": {
            "TypeDef:Array": true, "minItems": 3, "maxItems": 3,
            "items": { "TypeDef:Float32": true } } })
    };
    let limits = SchemaLimits {
        entries: 101,
        ..SchemaLimits::default()
    };
    assert!(compile(&of(100), LayoutMode::Aligned, &limits).is_ok());
    for items in [101, 1 << 40] {
        let error = compile(&of(items), LayoutMode::Aligned, &limits).expect_err("too many");
        assert!(matches!(error, TypedefError::Limit(_)), "{error}");
    }
    // One entry, however many items: the items are numbers.
    let numbers = json!({ "TypeDef:Array": true, "minItems": 1_u64 << 40, "maxItems": 1_u64 << 40,
                          "items": { "TypeDef:Float64": true } });
    let engine = compile(&numbers, LayoutMode::Aligned, &limits).expect("a layout");
    let map = engine.offsets().expect("aligned");
    assert_eq!(map.stride(), 8 << 40);
    assert_eq!(
        map.get("").and_then(crate::OffsetEntry::items),
        Some((1 << 40, 8))
    );
}
