//! The two questions about a value have one answer, and bytes agree with it.

use alknet_typedef::{ExternalData, LayoutMode, SchemaLimits, compile};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::plan::{PlanRng, PlanStyle, SchemaPlan};

/// Values that are invalid in most fields.
fn strange(dice: &mut PlanRng) -> Value {
    let things = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0.5),
        json!(255.0),
        json!(256),
        json!(65_536),
        json!(1e39),
        json!(u64::MAX),
        json!(i64::MIN),
        json!("NaN"),
        json!("AA"),
        json!("9223372036854775807"),
        json!("2026-01-01T00:00:00Z"),
        json!("a\u{0}"),
        json!("x".repeat(40)),
        json!("m0"),
        json!([]),
        json!([0]),
        json!({}),
        json!({ "0": 1 }),
        json!({ "=": "v0" }),
    ];
    dice.one(&things).clone()
}

/// Changes one value, or removes one member.
fn damage(value: &mut Value, dice: &mut PlanRng) {
    match value {
        Value::Array(items) if !items.is_empty() && dice.below(4) > 0 => match dice.below(5) {
            0 => {
                items.pop();
            }
            _ => {
                let at = dice.below(items.len() as u64) as usize;
                damage(&mut items[at], dice);
            }
        },
        Value::Object(members) if !members.is_empty() && dice.below(4) > 0 => {
            let at = dice.below(members.len() as u64) as usize;
            let name = members.keys().nth(at).cloned().unwrap_or_default();
            match dice.below(5) {
                0 => {
                    members.remove(&name);
                }
                _ => damage(&mut members[&name], dice),
            }
        }
        _ => *value = strange(dice),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn one_value_has_one_verdict(seed in any::<u64>()) {
        let mut dice = PlanRng::new(seed);
        for mode in [LayoutMode::Aligned, LayoutMode::Packed] {
            let plan = SchemaPlan::random(&mut dice, PlanStyle { mode, native: false }, 3);
            let engine = compile(&plan.schema(), mode, &SchemaLimits::default()).expect("a layout");
            let mut region = Vec::new();
            let value = plan.value(&mut dice, &mut region);
            let outside = ExternalData { region: &region, ..ExternalData::default() };
            let good = engine.to_json(&value, &outside).expect("JSON");
            prop_assert!(engine.is_valid(&good) && engine.validate(&good).is_ok());
            for _ in 0..20 {
                let mut bad = good.clone();
                damage(&mut bad, &mut dice);
                let valid = engine.is_valid(&bad);
                prop_assert_eq!(engine.validate(&bad).is_ok(), valid, "{}", bad);
                // The value has no member beyond the layout, so bytes give the same answer.
                let bytes = engine.from_json(&bad, &mut Vec::new());
                if valid {
                    prop_assert!(bytes.is_ok() || has_more(&bad, &good), "{bad}: {bytes:?}");
                } else {
                    prop_assert!(bytes.is_err(), "{bad}");
                }
            }
        }
    }

    #[test]
    fn plain_keywords_beside_kinds_agree_too(low in -200_i64..200, high in -200_i64..200, value in -300_i64..300) {
        let schema = json!({
            "TypeDef:Struct": true,
            "properties": {
                "a": { "TypeDef:Int16": true, "minimum": low, "maximum": high, "multipleOf": 3 },
                "b": { "anyOf": [{ "const": 1 }, { "TypeDef:Int8": true }], "TypeDef:Int16": true },
                "t": { "TypeDef:Tensor": { "shape": ["N", "N"] } },
            },
            "additionalProperties": false,
        });
        let engine = compile(&schema, LayoutMode::Packed, &SchemaLimits::default()).expect("a layout");
        for tensor in [json!({ "dtype": "U8", "shape": [3, 3] }), json!({ "dtype": "U8", "shape": [3, value.abs()] })] {
            let instance = json!({ "a": value, "b": value, "t": tensor });
            prop_assert_eq!(engine.validate(&instance).is_ok(), engine.is_valid(&instance));
        }
    }
}

/// Whether `one` has a member that `other` lacks at the same path: JSON Schema lets it pass.
fn has_more(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), other) => one
            .iter()
            .any(|(name, value)| other.get(name).is_none_or(|other| has_more(value, other))),
        (Value::Array(one), other) => {
            let mut pairs = one.iter().enumerate();
            pairs.any(|(i, value)| has_more(value, other.get(i).unwrap_or(&Value::Null)))
        }
        _ => false,
    }
}
