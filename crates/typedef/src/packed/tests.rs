use serde_json::{Value, json};

use crate::engine::compile;
use crate::error::TypedefError;
use crate::json::ExternalData;
use crate::limits::SchemaLimits;
use crate::model::LayoutMode;
use crate::packed::PackedCodec;
use crate::value::RecordValue;

fn codec(schema: &Value, limits: &SchemaLimits) -> PackedCodec {
    let engine = compile(schema, LayoutMode::Packed, limits).expect("a layout");
    engine.packed().expect("packed")
}

/// JSON to bytes and back, and the bytes.
#[track_caller]
fn bytes(schema: &Value, value: &Value) -> Vec<u8> {
    let engine = compile(schema, LayoutMode::Packed, &SchemaLimits::default()).expect("a layout");
    engine.validate(value).expect("valid");
    let codec = engine.packed().expect("packed");
    let meant = engine
        .from_json(value, &mut Vec::new())
        .expect("it can be bytes");
    let mut bytes = Vec::new();
    codec.write(&meant, &mut bytes).expect("written");
    let read = codec.read(&bytes).expect("read");
    assert_eq!(read, meant);
    let json = engine
        .to_json(&read, &ExternalData::default())
        .expect("JSON");
    assert_eq!(&json, value);
    for end in 0..bytes.len() {
        assert!(
            codec.read(&bytes[..end]).is_err(),
            "{end} of {}",
            bytes.len()
        );
    }
    bytes
}

#[test]
fn nothing_stands_between_fields() {
    let schema = json!({
        "TypeDef:Struct": true,
        "properties": {
            "z": { "TypeDef:Uint8": true },
            "a": { "TypeDef:Uint32": true },
            "s": { "TypeDef:String": true },
            "f": { "TypeDef:String": { "encoding": "fixed" }, "TypeDef:maxBytes": 4 },
            "b": { "TypeDef:Bytes": { "encoding": "fixed" }, "TypeDef:maxBytes": 3 },
            "l": { "TypeDef:Array": true, "items": { "TypeDef:Int8": true } },
            "p": { "TypeDef:Array": true, "items": { "TypeDef:Boolean": true },
                   "minItems": 2, "maxItems": 2 },
            "r": { "TypeDef:Record": { "values": { "TypeDef:Int16": true } } },
        },
    });
    let value = json!({ "z": 1, "a": 2, "s": "hé", "f": "ab", "b": "AAA", "l": [-1, 2],
                        "p": [true, false], "r": { "k": -2 } });
    let expected = [
        &[1][..],
        &[2, 0, 0, 0],
        &[3, 0, 0, 0],
        "hé".as_bytes(),
        b"ab\0\0",
        &[2, 0, 0, 0, 0, 0, 0],
        &[2, 0, 0, 0, 0xff, 2],
        &[1, 0],
        &[1, 0, 0, 0, 1, 0, 0, 0],
        b"k",
        &[0xfe, 0xff],
    ];
    assert_eq!(bytes(&schema, &value), expected.concat());
}

#[test]
fn the_byte_order_is_inherited() {
    let schema = json!({
        "TypeDef:Struct": { "endian": "big" },
        "properties": {
            "a": { "TypeDef:Uint16": true },
            "s": { "TypeDef:String": true },
            "l": { "TypeDef:Int32": { "endian": "little" } },
            "u": { "TypeDef:Union": {
                "discriminator": { "kind": "field", "name": "k", "type": "Uint16" },
                "mapping": { "x": { "TypeDef:Struct": true },
                             "y": { "TypeDef:Struct": true,
                                    "properties": { "n": { "TypeDef:Float32": true } } } } } },
        },
    });
    let value = json!({ "a": 1, "s": "!", "l": -2, "u": { "k": "y", "n": 1.0 } });
    let expected = [
        &[0, 1][..],
        &[0, 0, 0, 1],
        b"!",
        &[0xfe, 0xff, 0xff, 0xff],
        &[0, 1],
        &[0x3f, 0x80, 0, 0],
    ];
    assert_eq!(bytes(&schema, &value), expected.concat());
}

#[test]
fn numbers_keep_every_bit() {
    for (kind, json, expected) in [
        (
            "Int64",
            json!("-9223372036854775808"),
            i64::MIN.to_le_bytes(),
        ),
        ("Int64", json!(-1), (-1_i64).to_le_bytes()),
        (
            "Uint64",
            json!("18446744073709551615"),
            u64::MAX.to_le_bytes(),
        ),
        (
            "Uint64",
            json!(9_007_199_254_740_992_u64),
            (1_u64 << 53).to_le_bytes(),
        ),
        ("Float64", json!(0.1), 0.1_f64.to_le_bytes()),
    ] {
        let schema = json!({ format!("TypeDef:{kind}"): true });
        assert_eq!(bytes(&schema, &json), expected, "{kind} {json}");
    }
    for (kind, json, expected) in [
        ("Float16", json!("-Infinity"), [0, 0xfc]),
        ("Float16", json!(65504.0), [0xff, 0x7b]),
        ("BFloat16", json!(1.0), [0x80, 0x3f]),
        ("BFloat16", json!("NaN"), [0xc0, 0x7f]),
    ] {
        let schema = json!({ format!("TypeDef:{kind}"): { "nonfinite": true } });
        let engine =
            compile(&schema, LayoutMode::Packed, &SchemaLimits::default()).expect("a layout");
        let meant = engine.from_json(&json, &mut Vec::new()).expect("a number");
        let mut bytes = Vec::new();
        engine
            .packed()
            .expect("packed")
            .write(&meant, &mut bytes)
            .expect("written");
        assert_eq!(bytes, expected, "{kind} {json}");
        let read = engine.packed().expect("packed").read(&bytes).expect("read");
        assert_eq!(engine.to_json(&read, &ExternalData::default()), Ok(json));
    }
}

#[track_caller]
fn broken(schema: &Value, bytes: &[u8], at: &str, word: &str) {
    match codec(schema, &SchemaLimits::default()).read(bytes) {
        Err(TypedefError::Access { path, why }) => {
            assert_eq!(path, at, "{why}");
            assert!(why.contains(word), "{why}");
        }
        other => panic!("{schema} {bytes:?}: {other:?}"),
    }
}

#[test]
fn bytes_that_break_the_schema_are_named() {
    let list = |items: Value| json!({ "TypeDef:Array": true, "items": items, "maxItems": 2 });
    broken(
        &list(json!({ "TypeDef:Boolean": true })),
        &[1, 0, 0, 0, 2],
        "/0",
        "0x02",
    );
    broken(
        &list(json!({ "TypeDef:Int8": true })),
        &[3, 0, 0, 0],
        "",
        "may have 0 to 2",
    );
    let text = list(json!({ "TypeDef:String": true, "TypeDef:maxBytes": 4 }));
    broken(&text, &[1, 0, 0, 0, 1, 0, 0, 0, 0xff], "/0", "UTF-8");
    broken(&text, &[1, 0, 0, 0, 5, 0, 0, 0], "/0", "may have 4");
    broken(&text, &[1, 0, 0, 0, 4, 0, 0, 0, 1], "/0", "missing");
    let fixed = json!({ "TypeDef:Bytes": { "encoding": "fixed" }, "TypeDef:maxBytes": 2 });
    broken(&fixed, &[3, 0, 0, 0, 1, 2], "", "may have 2");
    broken(&fixed, &[1, 0, 0, 0, 1, 2], "", "not zero");
    let number = json!({ "TypeDef:Float32": true });
    broken(&number, &f32::NAN.to_le_bytes(), "", "nonfinite");
    broken(&number, &[0; 5], "", "1 bytes follow");
    broken(
        &json!({ "TypeDef:Enum": true, "enum": ["a"] }),
        &[1, 0, 0, 0],
        "",
        "has 1",
    );
    broken(
        &json!({ "TypeDef:Timestamp": true }),
        b"\x01\0\0\0x",
        "",
        "RFC 3339",
    );
    let union = json!({ "TypeDef:Union": { "discriminator": { "kind": "byte" },
                        "mapping": { "1": { "TypeDef:Int8": true } } } });
    broken(&union, &[2, 0], "", "the tag 2");
    let record =
        json!({ "TypeDef:Record": true, "additionalProperties": { "TypeDef:Int8": true } });
    broken(
        &record,
        &[2, 0, 0, 0, 1, 0, 0, 0, b'a', 0, 1, 0, 0, 0, b'a', 0],
        "",
        "twice",
    );
    broken(&record, &[1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0], "", "UTF-8");
}

#[test]
fn a_promise_of_much_costs_nothing() {
    let limits = SchemaLimits {
        values: 1000,
        packed_bytes: 64,
        ..SchemaLimits::default()
    };
    let nothing = json!({ "TypeDef:Array": true, "items": { "TypeDef:Struct": true } });
    let error = codec(&nothing, &limits)
        .read(&[0xff; 4])
        .expect_err("too many");
    assert!(matches!(error, TypedefError::Limit(_)), "{error}");
    let text = json!({ "TypeDef:String": true });
    let error = codec(&text, &limits)
        .read(&[0xff; 100])
        .expect_err("too long");
    assert!(matches!(error, TypedefError::Limit(_)), "{error}");
    let reserve = json!({ "TypeDef:String": { "encoding": "fixed" },
                          "TypeDef:maxBytes": u32::MAX });
    let written = codec(&reserve, &limits).write(&RecordValue::Text(String::new()), &mut vec![7]);
    assert!(matches!(written, Err(TypedefError::Limit(_))));
}

#[test]
fn the_budget_holds_at_its_edge() {
    let text = json!({ "TypeDef:String": true });
    for (len, fits) in [(60, true), (61, false)] {
        let limits = SchemaLimits {
            packed_bytes: 64,
            ..SchemaLimits::default()
        };
        let codec = codec(&text, &limits);
        let mut out = vec![1, 2];
        let written = codec.write(&RecordValue::Text("x".repeat(len)), &mut out);
        assert_eq!(written.is_ok(), fits);
        if fits {
            assert_eq!(
                codec.read(&out[2..]),
                Ok(RecordValue::Text("x".repeat(len)))
            );
        } else {
            assert_eq!(out, [1, 2], "what is refused leaves nothing behind");
            let mut long = vec![61, 0, 0, 0];
            long.resize(65, b'x');
            assert!(matches!(codec.read(&long), Err(TypedefError::Limit(_))));
        }
    }
    let list = json!({ "TypeDef:Array": true, "items": { "TypeDef:Int8": true } });
    let limits = SchemaLimits {
        values: 4,
        ..SchemaLimits::default()
    };
    let codec = codec(&list, &limits);
    assert!(codec.read(&[3, 0, 0, 0, 1, 1, 1]).is_ok());
    let error = codec.read(&[4, 0, 0, 0, 1, 1, 1, 1]).expect_err("too many");
    assert!(matches!(error, TypedefError::Limit(_)), "{error}");
}

#[test]
fn values_of_another_form_are_refused() {
    let schema = json!({
        "TypeDef:Struct": true,
        "properties": { "a": { "TypeDef:Uint8": true }, "b": { "TypeDef:String": true } },
    });
    let codec = codec(&schema, &SchemaLimits::default());
    let fields = |fields: &[(&str, RecordValue)]| {
        let fields = fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()));
        RecordValue::Struct(fields.collect())
    };
    let (number, text) = (RecordValue::Uint(1), RecordValue::Text("x".to_owned()));
    for (value, word) in [
        (fields(&[("a", number.clone())]), "other fields"),
        (
            fields(&[("b", text.clone()), ("a", number.clone())]),
            "another order",
        ),
        (
            fields(&[("a", RecordValue::Uint(256)), ("b", text.clone())]),
            "/a: it is no Uint8",
        ),
        (
            fields(&[("a", RecordValue::Int(1)), ("b", text.clone())]),
            "a signed integer is no",
        ),
        (
            fields(&[("a", number.clone()), ("b", number.clone())]),
            "/b: an unsigned integer",
        ),
        (RecordValue::Tensor, "a tensor is no Struct"),
    ] {
        let error = codec.write(&value, &mut Vec::new()).expect_err("refused");
        assert!(error.to_string().contains(word), "{error}");
    }
}
