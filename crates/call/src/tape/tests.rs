use jsonschema::json::Node as _;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn with<T>(text: &str, read: impl FnOnce(TapeNode<'_>) -> T) -> T {
    let size = TapeSize::measure(text.as_bytes()).expect("it is read");
    let tape = Tape::new(text.as_bytes(), size).expect("it is UTF-8");
    assert_eq!(tape.words.len(), size.words, "{text}");
    assert_eq!(tape.words.capacity(), size.words, "{text}");
    read(tape.root())
}

/// Every kind of value, written in any of many ways.
fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3..3_i32).prop_map(Value::from),
        (-3..3_i32).prop_map(|n| Value::from(f64::from(n))),
        "[a-c\"\\\\é\n]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 24, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..24).prop_map(Value::from),
            prop::collection::hash_map("[a-e\"\\\\é]{0,2}", inner, 0..24)
                .prop_map(|members| members.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn a_tape_reads_as_the_tree_does(value in values(), other in values()) {
        for text in [value.to_string(), serde_json::to_string_pretty(&value).expect("JSON")] {
            with(&text, |node| {
                assert_eq!(node.tree(), value);
                assert!(node.equals_value(&value));
                let same = jsonschema::json::cmp::equal(&value, &other);
                assert_eq!(node.equals_value(&other), same);
                reads(node, &value);
            });
        }
    }

    #[test]
    fn schemas_decide_as_they_do_about_trees(values in prop::collection::vec(values(), 0..40)) {
        let value = Value::from(values);
        let schemas = [
            json!({"uniqueItems": true}),
            json!({"items": {"type": ["integer", "string", "object"]}}),
            json!({"contains": {"const": {"a": 1}}}),
            json!({"maxItems": 12, "items": {"required": ["a"], "propertyNames": {"maxLength": 1}}}),
            json!({"items": {"properties": {"a": {"type": "number"}}, "additionalProperties": {"type": "string"}}}),
            json!({"items": {"enum": [1, "a", null, [], {}, {"b": [1.0]}]}}),
            json!({"prefixItems": [{"minimum": 0}], "unevaluatedItems": {"type": "null"}}),
        ];
        for schema in schemas {
            let tree = jsonschema::validator_for(&schema).expect("a schema");
            let own = jsonschema::options_for::<TapeJson>().build(&schema).expect("a schema");
            let text = value.to_string();
            let result = with(&text, |node| own.is_valid(node));
            prop_assert_eq!(result, tree.is_valid(&value), "{} {}", schema, text);
        }
    }
}

fn reads(node: TapeNode<'_>, value: &Value) {
    assert_eq!(
        node.pointer("").map(|node| node.tree()).as_ref(),
        Some(value)
    );
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let path = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
                let found = node.pointer(&path).expect("it is there");
                reads(found, member);
            }
            assert!(node.pointer("/none of them").is_none());
        }
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                reads(node.pointer(&format!("/{n}")).expect("it is there"), item);
            }
            assert!(node.pointer(&format!("/{}", items.len())).is_none());
        }
        _ => assert!(node.pointer("/0").is_none()),
    }
}

#[test]
fn the_table_has_at_most_four_times_the_bytes_of_the_text() {
    let many = |part: &str| format!("[{}]", vec![part; 10_000].join(","));
    let members = |n: usize| {
        let members: Vec<_> = (0..n).map(|n| format!("\"{n:x}\":0")).collect();
        format!("{{{}}}", members.join(","))
    };
    let texts = [
        many("0"),
        many("[]"),
        many("{}"),
        many("\"\""),
        many("{\"\":0}"),
        members(16),
        members(17),
        members(100_000),
        many(&members(17)),
    ];
    for text in texts {
        let size = TapeSize::measure(text.as_bytes()).expect("it is read");
        // The outermost value has its own head.
        let most = 4 * text.len() + HEAD_WORDS as usize * size_of::<u32>();
        assert!(size.tape_bytes() <= most, "{}", &text[..20]);
        with(&text, |node| assert!(node.is_string() || !node.is_null()));
    }
}

#[test]
fn values_are_the_same_however_they_are_written() {
    let unique = |text: &str| {
        let schema = json!({"uniqueItems": true});
        let own = jsonschema::options_for::<TapeJson>()
            .build(&schema)
            .expect("a schema");
        with(text, |node| own.is_valid(node))
    };
    for twice in [
        r#"[1, 1.0]"#,
        r#"[0, -0.0]"#,
        r#"["a", "\u0061"]"#,
        r#"[{"a":1,"b":[2]},{"b":[2.0],"\u0061":1}]"#,
        r#"[[],[]]"#,
        r#"[null,true,false,null]"#,
    ] {
        assert!(!unique(twice), "{twice}");
    }
    for once in [
        r#"[0, false, null, "", [], {}]"#,
        r#"[[1,2],[2,1],[[1],2],[1,[2]]]"#,
        r#"[9007199254740993, 9007199254740992]"#,
    ] {
        assert!(unique(once), "{once}");
    }
    let mut numbers: Vec<_> = (0..50_000).map(|n| n.to_string()).collect();
    assert!(unique(&format!("[{}]", numbers.join(","))));
    numbers.push("17".to_owned());
    assert!(!unique(&format!("[{}]", numbers.join(","))));
}

#[test]
fn what_no_tree_could_be_made_of_is_refused() {
    for text in ["[1e999]", "[-1E400]", &format!("[{}]", "9".repeat(400))] {
        assert!(TapeSize::measure(text.as_bytes()).is_err(), "{text}");
    }
    assert!(TapeSize::measure(b"[1e-999,1E10]").is_ok());
    let deep = |n| format!("{}{}", "[".repeat(n), "]".repeat(n));
    assert!(TapeSize::measure(deep(NESTING_MAX).as_bytes()).is_ok());
    assert!(TapeSize::measure(deep(NESTING_MAX + 1).as_bytes()).is_err());
}

/// A text that no parser has checked is misread, and nothing worse happens.
#[test]
fn nonsense_ends() {
    for text in [
        "", "]", "}{", "[}", "{\"a\"", "\"", "\"\\", "{1:2:3}", "[[", "{\"a\":}", "tru",
    ] {
        with(text, |node| {
            node.tree();
            node.equals_value(&json!({"a": [1]}));
            node.pointer("/a/0");
            node.as_number();
        });
    }
}
