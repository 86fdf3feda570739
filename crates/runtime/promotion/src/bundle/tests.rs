use alknet_runtime::ops::{CaseExpectation, script_id};
use alknet_runtime::{ENGINE, ScriptOperationKind};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn pair() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[9; 32]).expect("a seed")
}

fn content() -> BundleContent {
    let public = pair().public_key().as_ref().try_into().expect("32 bytes");
    BundleContent {
        format: 1,
        engine: ENGINE.to_owned(),
        spec: serde_json::from_value(json!({ "name": "invoice/total", "kind": "query" }))
            .expect("a specification"),
        entry: "./main.js".to_owned(),
        export: Some("total".to_owned()),
        service: false,
        modules: [(
            "./main.js".to_owned(),
            "export const total = () => 1".to_owned(),
        )]
        .into(),
        tests: vec![serde_json::from_value(json!({ "expect": { "output": 1 } })).expect("a case")],
        fuel: FuelPercentiles { p50: 1, p99: 1 },
        author: "ada".parse().expect("a name"),
        key: PeerKey::Ed25519(public),
    }
}

fn sign(content: &BundleContent) -> Result<PromotionBundle, BundleError> {
    PromotionBundle::sign(content, |text| {
        pair().sign(text).as_ref().try_into().expect("64 bytes")
    })
}

#[test]
fn what_was_signed_is_read_and_nothing_else() {
    let bundle = sign(&content()).expect("a bundle");
    let read = PromotionBundle::read(bundle.document().as_bytes()).expect("its own text");
    assert_eq!(read, bundle);
    // Blanks and order are no part of it.
    let value: Value = serde_json::from_str(bundle.document()).expect("JSON");
    let pretty = serde_json::to_string_pretty(&value).expect("text");
    let read = PromotionBundle::read(pretty.as_bytes()).expect("the same");
    assert_eq!((read.digest(), read.id()), (bundle.digest(), bundle.id()));
    let changed = bundle.document().replace("() => 1", "() => 2");
    assert_eq!(
        PromotionBundle::read(changed.as_bytes()),
        Err(BundleError::Signature)
    );
}

/// A signature over what is refused would be a signature that its author did not mean.
#[test]
fn a_key_signs_nothing_that_would_be_refused() {
    let good = content();
    let mut without_module = good.clone();
    without_module.entry = "./none.js".to_owned();
    let mut too_long = good.clone();
    let source = "x".repeat(BUNDLE_BYTES_MAX);
    too_long.modules.insert("./long.js".to_owned(), source);
    let mut another_kind_of_key = good.clone();
    another_kind_of_key.key = PeerKey::Spki([7; 32]);
    for refused in [without_module, too_long, another_kind_of_key] {
        let mut signed = false;
        let bundle = PromotionBundle::sign(&refused, |_| {
            signed = true;
            [0; 64]
        });
        assert!(bundle.is_err() && !signed, "{bundle:?}");
    }
    assert!(sign(&good).is_ok());
}

/// The document with another value at this place, which may be new.
fn with(document: &Value, place: &str, value: &Value) -> Value {
    let mut changed = document.clone();
    let (above, name) = place.rsplit_once('/').expect("a path");
    changed.pointer_mut(above).expect("a member")[name] = value.clone();
    changed
}

#[test]
fn every_member_is_signed() {
    let mut content = content();
    let other = "export const total = () => 2".to_owned();
    content.modules.insert("./other.js".to_owned(), other);
    let bundle = sign(&content).expect("a bundle");
    let value: Value = serde_json::from_str(bundle.document()).expect("JSON");
    let other_key = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).expect("a seed");
    let other_key = other_key
        .public_key()
        .as_ref()
        .try_into()
        .expect("32 bytes");
    let changes = [
        ("/author", json!("eve")),
        ("/engine", json!("another")),
        ("/entry", json!("./other.js")),
        ("/export", json!("other")),
        ("/fuel/p50", json!(0)),
        ("/fuel/p99", json!(2)),
        ("/key", json!(PeerKey::Ed25519(other_key))),
        (
            "/modules",
            json!({ "./main.js": "export const total = () => 1" }),
        ),
        ("/service", json!(true)),
        ("/signature", json!("00".repeat(64))),
        ("/spec/description", json!("Another one.")),
        ("/spec/errors", json!({ "NO_INVOICE": {} })),
        ("/spec/kind", json!("mutation")),
        ("/spec/name", json!("invoice/sum")),
        ("/spec/uses", json!(["fs/read"])),
        ("/tests/0/expect/output", json!(2)),
    ];
    for (place, member) in &changes {
        let changed = with(&value, place, member).to_string();
        let read = PromotionBundle::read(changed.as_bytes());
        assert_eq!(read, Err(BundleError::Signature), "{place}");
    }
    let members = value.as_object().expect("members").keys();
    // Only one format is known: another one is refused before the signature is looked at.
    for name in members.filter(|name| *name != "format") {
        let is_changed =
            |(place, _): &(&str, Value)| place.split('/').nth(1) == Some(name.as_str());
        assert!(changes.iter().any(is_changed), "{name} is not changed here");
    }
}

#[test]
fn an_id_is_that_of_the_script() {
    let bundle = sign(&content()).expect("a bundle");
    let spec = serde_json::from_str::<Value>(bundle.document()).expect("JSON");
    let mut spec = spec["spec"].clone();
    spec["entry"] = json!("./main.js");
    spec["export"] = json!("total");
    let expected = script_id(&spec, "export const total = () => 1");
    assert_eq!(bundle.id(), Blake3Hash(expected));
    // Tests and author are no part of it, every source is.
    let mut more = content();
    more.fuel.p99 = 5;
    assert_eq!(sign(&more).expect("a bundle").id(), bundle.id());
    more.modules.insert("./b.js".to_owned(), String::new());
    assert_ne!(sign(&more).expect("a bundle").id(), bundle.id());
    // So is whether it stays.
    let mut stays = content();
    stays.service = true;
    let stays = sign(&stays).expect("a bundle");
    assert_ne!(stays.id(), bundle.id());
    assert!(!bundle.document().contains("service") && stays.content().service);
}

#[test]
fn documents_that_are_none_are_refused() {
    let good = sign(&content()).expect("a bundle").document().to_owned();
    let place = |text: &str| match PromotionBundle::read(text.as_bytes()) {
        Err(BundleError::Shape { member, .. }) => member,
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(
        place(&good.replace("\"fuel\":{\"p50\":1,\"p99\":1}", "\"fuel\":[1,1]")),
        "fuel"
    );
    let mut array: Value = serde_json::from_str(&good).expect("JSON");
    let members = array["spec"].as_object().expect("members").values();
    array["spec"] = members.cloned().collect();
    assert_eq!(place(&array.to_string()), "spec");
    let twice = good.replacen('{', "{\"format\":1,", 1);
    assert_eq!(
        PromotionBundle::read(twice.as_bytes()),
        Err(BundleError::Duplicate("format".to_owned()))
    );
    let unknown = good.replacen('{', "{\"more\":1,", 1);
    assert!(matches!(
        PromotionBundle::read(unknown.as_bytes()),
        Err(BundleError::Json(_))
    ));
    let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
    assert_eq!(
        PromotionBundle::read(deep.as_bytes()),
        Err(BundleError::Nesting)
    );
    let long = vec![b' '; BUNDLE_BYTES_MAX + 1];
    assert!(matches!(
        PromotionBundle::read(&long),
        Err(BundleError::TooLarge(_))
    ));
    let after = format!("{good} 1");
    assert!(matches!(
        PromotionBundle::read(after.as_bytes()),
        Err(BundleError::Json(_))
    ));
    for text in ["", "null", "1", "[]", "{}", "\"x\""] {
        assert!(PromotionBundle::read(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn every_bound_is_held() {
    type Change = fn(&mut BundleContent);
    let broken: &[(&str, Change)] = &[
        ("format", |it| it.format = 2),
        ("engine", |it| it.engine.clear()),
        ("entry", |it| it.entry = "./other.js".to_owned()),
        ("export", |it| it.export = Some("a b".to_owned())),
        ("export", |it| {
            it.spec.kind = ScriptOperationKind::Subscription
        }),
        ("service", |it| (it.service, it.export) = (true, None)),
        ("tests", |it| it.tests.clear()),
        ("tests", |it| it.tests = vec![it.tests[0].clone(); 257]),
        ("modules", |it| {
            it.modules.insert("op:a/b@1".to_owned(), String::new());
        }),
        ("modules", |it| {
            it.modules.insert("./a/../b.js".to_owned(), String::new());
        }),
        ("modules", |it| {
            it.modules.insert("./nul.js".to_owned(), "\0".to_owned());
        }),
        ("modules", |it| {
            it.modules
                .insert("./long.js".to_owned(), " ".repeat((1 << 20) + 1));
        }),
        ("modules", |it| {
            let more = |n| (format!("./{n}.js"), String::new());
            it.modules.extend((0..256).map(more));
        }),
        ("spec.name", |it| it.spec.name = "a".repeat(129)),
        ("spec.uses", |it| {
            it.spec.uses = (0..65).map(|n| format!("a/b{n}")).collect()
        }),
        ("spec.errors", |it| {
            let more = |n| (format!("CODE_{n}"), json!({}));
            it.spec.errors = (0..65).map(more).collect();
        }),
        ("spec.name", |it| it.spec.name = "A/B".to_owned()),
        ("spec.name", |it| it.spec.name = "../a".to_owned()),
        ("spec.description", |it| {
            it.spec.description = "x".repeat(4097)
        }),
        ("spec.uses", |it| {
            it.spec.uses = vec!["fs/read".to_owned(); 2]
        }),
        ("spec.uses", |it| it.spec.uses = vec!["*".to_owned()]),
        ("spec.uses", |it| it.spec.uses = vec!["/*".to_owned()]),
        ("spec.uses", |it| it.spec.uses = vec!["fs/re*".to_owned()]),
        ("spec.errors", |it| {
            it.spec.errors.insert("TIMEOUT".to_owned(), json!({}));
        }),
        ("spec.errors", |it| {
            it.spec
                .errors
                .insert("FUEL_EXHAUSTED".to_owned(), json!({}));
        }),
        ("tests.0.calls", |it| {
            let call = json!({ "path": "fs/read", "output": 1 });
            it.tests[0].calls = vec![serde_json::from_value(call).expect("a call")];
        }),
        ("key", |it| it.key = PeerKey::Spki([1; 32])),
    ];
    for (place, change) in broken {
        let mut content = content();
        change(&mut content);
        match sign(&content) {
            Err(BundleError::Shape { member: found, .. }) => assert_eq!(found, *place),
            other => panic!("{place}: {other:?}"),
        }
    }
    let mut reaches = content();
    reaches.spec.uses = ["fs/*", "fs/a/*", "config/tax"].map(str::to_owned).to_vec();
    assert!(sign(&reaches).is_ok());
    let mut full = content();
    full.spec.name = "a".repeat(128);
    full.spec.uses = (0..64).map(|n| format!("a/b{n}")).collect();
    full.tests = vec![full.tests[0].clone(); 256];
    let more = |n| (format!("./{n}.js"), String::new());
    full.modules.extend((0..255).map(more));
    assert!(sign(&full).is_ok());
}

#[test]
fn fuel_is_counted_as_sessions_do() {
    assert_eq!(
        FuelPercentiles::from_ticks(vec![5]),
        FuelPercentiles { p50: 5, p99: 5 }
    );
    assert_eq!(
        FuelPercentiles::from_ticks((1..=100).rev().collect()),
        FuelPercentiles { p50: 50, p99: 99 }
    );
    assert_eq!(
        FuelPercentiles::from_ticks(Vec::new()),
        FuelPercentiles { p50: 0, p99: 0 }
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|it| json!(it)),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map("\\PC{0,6}", inner, 0..5)
                .prop_map(|it| Value::Object(it.into_iter().collect())),
        ]
    })
}

/// Whether they say the same: numbers by what they are worth, members in any order.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => match (one.as_i64(), other.as_i64()) {
            (Some(one), Some(other)) => one == other,
            _ => one.as_f64() == other.as_f64(),
        },
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let is_there = |(name, member): (&String, &Value)| {
                other.get(name).is_some_and(|other| same(member, other))
            };
            one.len() == other.len() && one.iter().all(is_there)
        }
        _ => one == other,
    }
}

/// The same value with the members of every object in the opposite order.
fn turned(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(turned).collect(),
        Value::Object(members) => {
            let members = members.iter().rev();
            Value::Object(
                members
                    .map(|(name, it)| (name.clone(), turned(it)))
                    .collect(),
            )
        }
        plain => plain.clone(),
    }
}

proptest! {
    #[test]
    fn canonical_text_is_one_and_says_the_same(value in any_json()) {
        let text = canonical(&value);
        let read = read_json(text.as_bytes()).expect("its own text");
        prop_assert!(same(&read, &value), "{} of {}", text, value);
        prop_assert_eq!(canonical(&read), text.clone());
        // The order of members is no part of a value.
        prop_assert_eq!(canonical(&turned(&value)), text);
    }

    #[test]
    fn hostile_documents_end_in_an_error(at in 0_usize..600, with in "\\PC{0,3}", cut in any::<bool>()) {
        let good = sign(&content()).expect("a bundle").document().to_owned();
        let at = at % good.len();
        let end = if cut { good.len() } else { at + 1 };
        let mut text = good.clone().into_bytes();
        text.splice(at..end, with.bytes());
        if let Ok(read) = PromotionBundle::read(&text) {
            prop_assert_eq!(read.document(), good);
        }
    }
}

#[test]
fn a_case_is_the_runtimes() {
    assert!(matches!(
        content().tests[0].expect,
        CaseExpectation::Output(_)
    ));
}

/// The document has no room for additions: each needs a new format.
#[test]
fn the_first_format_of_a_bundle_is_read() {
    const SAMPLE: &str = r#"{"author":"ada","engine":"quickjs-ng 0.16","entry":"./main.js","export":"total","format":1,"fuel":{"p50":1,"p99":1},"key":"ed25519:fd1724385aa0c75b64fb78cd602fa1d991fdebf76b13c58ed702eac835e9f618","modules":{"./main.js":"export const total = () => 1"},"signature":"4085a50bcd49d323ce34e9ac23d61259ec9093bf7546a7262a1ee835350feb7e6bd8df727a2336d8b1fb39c2edb622135f5d44e5e218c35254fd41dd6891b807","spec":{"kind":"query","name":"invoice/total"},"tests":[{"expect":{"output":1}}]}"#;
    let bundle = PromotionBundle::read(SAMPLE.as_bytes()).expect("the first format");
    assert_eq!(bundle.document(), SAMPLE);
    let read = bundle.content();
    let expected = BundleContent {
        engine: read.engine.clone(),
        ..content()
    };
    assert_eq!(*read, expected);
}
