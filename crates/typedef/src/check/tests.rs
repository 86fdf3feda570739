use serde_json::{Value, json};

use crate::engine::{LayoutEngine, compile};
use crate::error::TypedefError;
use crate::limits::{SchemaLimits, VIOLATIONS_MAX};
use crate::model::LayoutMode;
use crate::tensor::Dims;

fn engine(schema: &Value, mode: LayoutMode) -> LayoutEngine {
    compile(schema, mode, &SchemaLimits::default()).expect("a layout")
}

/// Every value of `good` is valid and none of `bad`, by both questions.
#[track_caller]
fn judged(schema: &Value, good: &[Value], bad: &[Value]) {
    let engine = engine(schema, LayoutMode::Packed);
    for value in good {
        assert_eq!(engine.validate(value), Ok(()), "{schema} {value}");
        assert!(engine.is_valid(value));
    }
    for value in bad {
        let error = engine.validate(value).expect_err("it is not valid");
        let TypedefError::Validation(violations) = &error else {
            panic!("{error}");
        };
        assert!(!violations.is_empty() && violations.len() <= VIOLATIONS_MAX);
        assert!(violations.iter().all(|v| !v.message.is_empty()), "{error}");
        assert!(!engine.is_valid(value), "{schema} {value}");
    }
}

#[test]
fn integers_have_a_range() {
    judged(
        &json!({ "TypeDef:Int8": true }),
        &[json!(-128), json!(127), json!(0), json!(1.0), json!(-0.0)],
        &[
            json!(-129),
            json!(128),
            json!(0.5),
            json!("1"),
            json!(true),
            json!(null),
            json!(1e300),
            json!([1]),
        ],
    );
    judged(
        &json!({ "TypeDef:Uint32": true }),
        &[json!(0), json!(u32::MAX)],
        &[json!(-1), json!(1_u64 << 32)],
    );
    judged(
        &json!({ "TypeDef:Uint64": true }),
        &[
            json!(u64::MAX),
            json!(1e18),
            json!("18446744073709551615"),
            json!("9007199254740993"),
        ],
        &[
            json!("9007199254740992"),
            json!("7"),
            json!("18446744073709551616"),
            json!(1.9e19),
            json!("+9007199254740993"),
            json!("09007199254740993"),
            json!("9007199254740993.0"),
            json!("-9007199254740993"),
            json!(" 9007199254740993"),
            json!(""),
        ],
    );
    judged(
        &json!({ "TypeDef:Int64": true }),
        &[
            json!(i64::MIN),
            json!(i64::MAX),
            json!("-9223372036854775808"),
        ],
        &[
            json!(u64::MAX),
            json!("9223372036854775808"),
            json!("-7"),
            json!(9.3e18),
        ],
    );
}

#[test]
fn floats_are_finite_and_need_not_be_exact() {
    judged(
        &json!({ "TypeDef:Float32": true }),
        &[
            json!(0.1),
            json!(3.4e38),
            json!(1),
            json!(u64::MAX),
            json!(1e-60),
        ],
        &[json!(3.5e38), json!("NaN"), json!("0.1"), json!(null)],
    );
    judged(
        &json!({ "TypeDef:Float32": { "nonfinite": true } }),
        &[
            json!("NaN"),
            json!("Infinity"),
            json!("-Infinity"),
            json!(0.1),
        ],
        &[json!("nan"), json!("+Infinity"), json!(3.5e38)],
    );
    judged(
        &json!({ "TypeDef:Float16": true }),
        &[json!(65504), json!(65519)],
        &[json!(65520)],
    );
    judged(
        &json!({ "TypeDef:BFloat16": true }),
        &[json!(3.38e38)],
        &[json!(3.4e38)],
    );
    judged(
        &json!({ "TypeDef:Float64": true }),
        &[json!(1.7e308)],
        &[json!("Infinity")],
    );
}

#[test]
fn text_is_counted_in_bytes() {
    judged(
        &json!({ "TypeDef:String": true, "TypeDef:maxBytes": 3 }),
        &[json!(""), json!("abc"), json!("é"), json!("a\0")],
        &[json!("éé"), json!("abcd"), json!(1)],
    );
    judged(
        &json!({ "TypeDef:String": true, "maxLength": 3 }),
        &[json!("ééé")],
        &[json!("abcd")],
    );
    judged(
        &json!({ "TypeDef:Bytes": true, "TypeDef:maxBytes": 2 }),
        &[json!(""), json!("AA"), json!("-_8")],
        &[
            json!("A"),
            json!("AAAA"),
            json!("AA=="),
            json!("AB"),
            json!("+/8"),
            json!(" AA"),
            json!(0),
        ],
    );
    judged(
        &json!({ "TypeDef:Timestamp": true }),
        &[json!("2026-11-21T00:00:00Z")],
        &[json!("2026-11-31T00:00:00Z"), json!("today"), json!(0)],
    );
    judged(
        &json!({ "TypeDef:Boolean": true }),
        &[json!(true), json!(false)],
        &[json!(0), json!(1), json!("true")],
    );
    judged(
        &json!({ "TypeDef:Enum": true, "enum": ["a", 2] }),
        &[json!("a"), json!(2), json!(2.0)],
        &[json!("b"), json!(3), json!("2")],
    );
}

#[test]
fn reserved_text_cannot_end_in_zero() {
    let schema = json!({ "TypeDef:String": true, "TypeDef:maxBytes": 3 });
    let aligned = engine(&schema, LayoutMode::Aligned);
    assert!(aligned.is_valid(&json!("\u{0}a")) && !aligned.is_valid(&json!("a\u{0}")));
}

#[test]
fn parts_are_checked_through_references() {
    let schema = json!({
        "TypeDef:Struct": { "fields": ["list", "by", "rec", "one"] },
        "properties": {
            "list": { "TypeDef:Array": true, "items": { "$ref": "Byte" }, "maxItems": 2 },
            "by": { "$ref": "By" },
            "rec": { "TypeDef:Record": { "values": { "$ref": "Byte" } } },
            "one": { "TypeDef:Union": { "discriminator": { "kind": "byte" },
                     "mapping": { "1": { "$ref": "Byte" }, "2": { "TypeDef:String": true } } } },
        },
        "$defs": {
            "Byte": { "TypeDef:Uint8": true },
            "By": { "TypeDef:Union": {
                "discriminator": { "kind": "field", "name": "k" },
                "mapping": {
                    "a/~ é": { "TypeDef:Struct": true, "properties": { "n": { "$ref": "Byte" } } },
                    "b": { "TypeDef:Struct": true,
                           "properties": { "k": { "const": "b" }, "s": { "TypeDef:String": true } } },
                } } },
        },
    });
    let good = json!({ "list": [1, 2], "by": { "k": "a/~ é", "n": 3 }, "rec": { "x": 1 },
                       "one": { "2": "text" } });
    let with = |path: &str, value: Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(path).expect("it is there") = value;
        changed
    };
    judged(
        &schema,
        &[
            good.clone(),
            with("/by", json!({ "k": "b", "s": "" })),
            with("/one", json!({ "1": 9 })),
            with("/rec", json!({})),
        ],
        &[
            with("/list", json!([1, 2, 3])),
            with("/list", json!({})),
            with("/list/1", json!(256)),
            with("/by", json!({ "k": "c" })),
            with("/by", json!({ "n": 3 })),
            with("/by", json!({ "k": "b", "n": 3 })),
            with("/by/n", json!("x")),
            with("/by", json!([])),
            with("/rec/x", json!(-1)),
            with("/rec", json!([])),
            with("/one", json!({})),
            with("/one", json!({ "1": 1, "2": "x" })),
            with("/one", json!({ "3": 1 })),
            with("/one", json!({ "1": "x" })),
            with("/one", json!(7)),
            json!({}),
            json!(null),
        ],
    );
    let engine = engine(&schema, LayoutMode::Packed);
    let error = engine
        .validate(&with("/by/n", json!(-1)))
        .expect_err("no byte");
    let TypedefError::Validation(violations) = error else {
        panic!("{error}");
    };
    assert!(
        violations.iter().any(|v| v.path == "/by/n"
            && v.keyword == "TypeDef:Uint8"
            && v.message.contains("0 to 255")),
        "{violations:?}"
    );
}

#[test]
fn names_of_sizes_agree_over_a_file() {
    let tensor = |shape: Value| json!({ "TypeDef:Tensor": { "dtype": "F32", "shape": shape } });
    let schema = json!({
        "TypeDef:Struct": { "fields": ["w", "b", "more"] },
        "properties": {
            "w": tensor(json!(["N", "M", 2])),
            "b": tensor(json!(["N"])),
            "more": { "TypeDef:Array": true, "items": tensor(json!(["M"])) },
        },
    });
    let value = |n: u64, m: u64, bias: u64, more: &[u64]| {
        let tensor = |shape: Value| json!({ "dtype": "F32", "shape": shape, "name": "x" });
        let more: Vec<_> = more.iter().map(|size| tensor(json!([size]))).collect();
        json!({ "w": tensor(json!([n, m, 2])), "b": tensor(json!([bias])), "more": more })
    };
    judged(
        &schema,
        &[value(3, 4, 3, &[4, 4]), value(0, 0, 0, &[])],
        &[
            value(3, 4, 4, &[]),
            value(3, 4, 3, &[4, 5]),
            json!({ "w": { "dtype": "F32", "shape": [1, 1, 3] }, "b": 1, "more": [] }),
        ],
    );
    let engine = engine(&schema, LayoutMode::Packed);
    let mut dims = Dims::new();
    engine
        .validate_with(&value(3, 4, 3, &[]), &mut dims)
        .expect("valid");
    assert_eq!((dims.size("N"), dims.size("M")), (Some(3), Some(4)));
    let error = engine
        .validate_with(&value(5, 4, 5, &[]), &mut dims)
        .expect_err("another N");
    assert!(
        error
            .to_string()
            .contains("/w: axis 0 of the tensor is 5, not 3"),
        "{error}"
    );
    assert_eq!(engine.tensors().len(), 3);
    assert_eq!(engine.tensors()[2].0, "/more/*");
}

#[test]
fn a_refusal_of_the_library_is_named_by_its_path() {
    for (schema, at) in [
        (json!({ "TypeDef:Int8": true, "type": "float32" }), "/type"),
        (
            json!({ "TypeDef:Array": true, "items": { "TypeDef:Int8": true, "minimum": "x" } }),
            "/items/minimum",
        ),
    ] {
        let error =
            compile(&schema, LayoutMode::Packed, &SchemaLimits::default()).expect_err("no schema");
        let TypedefError::Schema { ptr, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(ptr, at, "{error}");
    }
    let heavy = json!({ "TypeDef:String": true, "pattern": "(\\w{1000}){1000}" });
    assert!(compile(&heavy, LayoutMode::Packed, &SchemaLimits::default()).is_err());
    let backtracking = json!({ "TypeDef:String": true, "pattern": "(a)\\1" });
    assert!(compile(&backtracking, LayoutMode::Packed, &SchemaLimits::default()).is_err());
}
