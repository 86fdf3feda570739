use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Serialize;
use serde_json::value::RawValue;

use super::*;

#[derive(Serialize)]
struct TestUnit;

#[derive(Serialize)]
struct Newtype(u16);

#[derive(Serialize)]
struct Tuple(i64, char);

#[derive(Serialize)]
enum Kinds {
    Unit,
    Newtype(String),
    Tuple(u8, f32),
    Struct { a: bool, b: Option<i8> },
}

#[derive(Serialize)]
struct Everything {
    unit: TestUnit,
    newtype: Newtype,
    tuple: Tuple,
    kinds: Vec<Kinds>,
    bytes: &'static [u8],
    big: (i128, u128, u64),
    numbers: BTreeMap<i32, f64>,
    truth: BTreeMap<bool, ()>,
    characters: BTreeMap<char, u32>,
    raw: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nothing: Option<()>,
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

fn same(value: &(impl Serialize + ?Sized)) {
    let ours = to_vec(value).expect("it has a form");
    let theirs = serde_json::to_vec(value).expect("it has a form");
    assert_eq!(
        String::from_utf8_lossy(&ours),
        String::from_utf8_lossy(&theirs)
    );
}

#[test]
fn everything_is_written_as_the_library_writes_it() {
    same(&Everything {
        unit: TestUnit,
        newtype: Newtype(7),
        tuple: Tuple(-3, '"'),
        kinds: vec![
            Kinds::Unit,
            Kinds::Newtype("a\u{7f}\u{0}\u{1b}\u{8}\u{c}\n\r\t\\\"é".into()),
            Kinds::Tuple(0, 1.5e-9),
            Kinds::Struct { a: true, b: None },
        ],
        bytes: b"\x00\xff",
        big: (i128::MIN, u128::MAX, u64::MAX),
        numbers: [(-1, f64::NAN), (2, 1e300)].into(),
        truth: [(false, ()), (true, ())].into(),
        characters: [('\n', 1), ('x', 2)].into(),
        raw: RawValue::from_string("{ \"a\" : [1, 2] }".into()).expect("JSON"),
        nothing: None,
        more: [("m".to_owned(), Value::Null)].into(),
    });
    same("");
    same(&Value::Array(Vec::new()));
    same(&BTreeMap::<String, String>::new());
}

#[test]
fn keys_are_strings_here_and_there() {
    let ours = |key: Option<Vec<u8>>| to_vec(&BTreeMap::from([(key, 1)]));
    let theirs = |key: Option<Vec<u8>>| serde_json::to_vec(&BTreeMap::from([(key, 1)]));
    for key in [None, Some(vec![1])] {
        let [ours, theirs] = [ours(key.clone()), theirs(key)].map(|r| r.map_err(|e| e.to_string()));
        assert_eq!(ours, Err("key must be a string".to_owned()));
        assert_eq!(ours, theirs);
    }
}

#[test]
fn a_byte_to_escape_is_found_wherever_it_stands() {
    for len in 0..100 {
        let text = "x".repeat(len);
        assert_eq!(find_special(text.as_bytes()), None);
        for at in 0..len {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = b'"';
            assert_eq!(find_special(&bytes), Some(at));
            bytes.push(0x1f);
            assert_eq!(find_special(&bytes), Some(at));
        }
    }
}

fn value() -> impl Strategy<Value = Value> {
    let text = || prop_oneof![".{0,80}", "[\"\\\\\u{0}-\u{20}a]{0,80}", "[a-z ]{0,200}"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::vec((text(), inner), 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn values_are_written_as_the_library_writes_them(value in value()) {
        same(&value);
    }
}
