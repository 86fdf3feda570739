//! Schemas that TypeBox makes, and its verdicts on random values: the same as this crate's.
//!
//! The package (npm `@sinclair/typebox`) is fetched by `cargo xtask test`, which names its folder in
//! `ALKNET_TEST_TYPEBOX`; `crates/tasks/sources.toml` pins it. Node comes with the set-up.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use alknet_typedef::{FieldKind, LayoutMode, Schema, SchemaLimits, compile};
use serde::Deserialize;
use serde_json::Value;

/// Random values of a kind.
const VALUES: usize = 1000;

/// The seed of the script: the same in every run, so that a failure comes back.
const SEED: &str = "20261121";

#[derive(Deserialize)]
struct TypeboxCase {
    name: String,
    kind: String,
    schema: Value,
    values: Vec<Value>,
    accepted: Vec<bool>,
}

fn ask() -> Vec<TypeboxCase> {
    let folder = std::env::var_os("ALKNET_TEST_TYPEBOX")
        .expect("ALKNET_TEST_TYPEBOX names the package's folder; cargo xtask test sets it");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/typedef/typebox.cjs");
    let out = Command::new("node")
        .arg(script)
        .arg(folder)
        .args([SEED, &VALUES.to_string()])
        .output()
        .expect("node runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[test]
fn typebox_and_we_accept_the_same() {
    let mut kinds = BTreeSet::new();
    for TypeboxCase {
        name,
        kind,
        schema,
        values,
        accepted,
    } in ask()
    {
        let what = format!("{name} {kind}");
        let engine = compile(&schema, LayoutMode::Packed, &SchemaLimits::default())
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let once = Schema::new(&schema, &SchemaLimits::default()).expect("a schema");
        let twice =
            Schema::new(once.normalized(), &SchemaLimits::default()).expect("still a schema");
        assert_eq!(once.normalized(), twice.normalized(), "{what}");
        assert_eq!((values.len(), accepted.len()), (VALUES, VALUES), "{what}");
        for (value, accepted) in values.iter().zip(&accepted) {
            let ours = engine.validate(value);
            assert_eq!(
                ours.is_ok(),
                *accepted,
                "{what}: {value}: {ours:?} with {schema}"
            );
            assert_eq!(engine.is_valid(value), *accepted, "{what}: {value}");
        }
        let taken = accepted.iter().filter(|accepted| **accepted).count();
        assert!(
            (20..VALUES - 20).contains(&taken),
            "{what}: {taken} of {VALUES} accepted"
        );
        kinds.insert(kind);
    }
    for kind in FieldKind::ALL {
        assert!(kinds.contains(kind.name()), "{kind} was not asked");
    }
}
