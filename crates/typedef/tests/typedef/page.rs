//! The page for authors of schemas is correct.

use std::fmt::Write as _;

use alknet_typedef::{FieldKind, LayoutEngine, LayoutMode, SchemaLimits, compile, limits};
use serde_json::Value;

const PAGE: &str = include_str!("../../../../docs/typedef.md");

/// The text of the fenced blocks below a heading, with the language of each.
fn blocks(heading: &str) -> Vec<(&'static str, &'static str)> {
    let (_, section) = PAGE
        .split_once(&format!("\n## {heading}\n"))
        .expect("the page has it");
    let section = section.split("\n## ").next().unwrap_or_default();
    let inside = section.split("```").skip(1).step_by(2);
    inside
        .map(|block| block.split_once('\n').expect("a block has lines"))
        .collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn table(engine: &LayoutEngine) -> String {
    let map = engine.offsets().expect("aligned");
    let mut text = String::new();
    for entry in map.iter() {
        let range = entry.range();
        let path = if entry.path().is_empty() {
            "(record)"
        } else {
            entry.path()
        };
        let kind = entry.kind();
        writeln!(
            text,
            "{path:<12} {:>3}..{:<3} {kind}",
            range.start, range.end
        )
        .expect("a string grows");
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    let lines = bytes.chunks(8).map(|line| {
        let line: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        line.join(" ") + "\n"
    });
    lines.collect()
}

#[test]
fn the_worked_example_is_true() {
    let blocks = blocks("A worked example");
    let languages: Vec<_> = blocks.iter().map(|(language, _)| *language).collect();
    assert_eq!(languages, ["json", "text", "json", "text", "json", "text"]);
    let schema = json(blocks[0].1);
    let engine = compile(&schema, LayoutMode::Aligned, &SchemaLimits::default()).expect("a layout");
    assert_eq!(table(&engine), blocks[1].1);

    let value = json(blocks[2].1);
    engine.validate(&value).expect("valid");
    let meant = engine
        .from_json(&value, &mut Vec::new())
        .expect("it can be bytes");
    let mut record = vec![0; engine.offsets().expect("aligned").stride() as usize];
    engine.write(&mut record, "", &meant).expect("written");
    assert_eq!(hex(&record), blocks[3].1);

    let fields = alknet_typedef::fields(&schema, "#", &SchemaLimits::default()).expect("a layout");
    let lines: Vec<_> = fields
        .fields
        .iter()
        .map(|field| serde_json::to_string(field).expect("JSON"))
        .collect();
    assert_eq!(format!("[{}]\n", lines.join(",\n ")), blocks[4].1);

    let packed = compile(&schema, LayoutMode::Packed, &SchemaLimits::default()).expect("a layout");
    let mut bytes = Vec::new();
    packed
        .packed()
        .expect("packed")
        .write(&meant, &mut bytes)
        .expect("written");
    assert_eq!(hex(&bytes), blocks[5].1);
}

#[test]
fn the_messages_are_those_that_are_shown() {
    for (_, block) in blocks("Errors") {
        for line in block.lines() {
            let (schema, message) = line.split_once("  →  ").expect("a schema and its message");
            let schema = json(schema);
            let error = compile(&schema, LayoutMode::Aligned, &SchemaLimits::default())
                .expect_err("refused");
            assert_eq!(error.to_string(), message);
        }
    }
}

#[test]
fn every_kind_and_every_limit_is_listed() {
    let rows: Vec<_> = PAGE.lines().filter(|line| line.starts_with('|')).collect();
    for kind in FieldKind::ALL {
        let name = format!("`{kind}`");
        assert!(
            rows.iter().any(|row| row.contains(&name)),
            "{name} is in no table"
        );
    }
    for (what, max) in [
        ("bytes of a schema", limits::SCHEMA_BYTES_MAX),
        ("objects and arrays within each other", limits::DEPTH_MAX),
        ("values in a schema", limits::NODES_MAX),
        ("schemas once references are followed", limits::EXPANDED_MAX),
        ("patterns in a schema", limits::PATTERNS_MAX),
        (
            "bytes of a compiled pattern",
            limits::PATTERN_BYTES_MAX as u64,
        ),
        ("bytes of a pointer or a path", limits::PATH_BYTES_MAX),
        ("entries of an offset map", limits::ENTRIES_MAX),
        ("bytes of a packed value", limits::PACKED_BYTES_MAX),
        ("values read at once", limits::VALUES_MAX),
        ("alignment in bytes", limits::ALIGN_MAX.into()),
        ("violations listed", limits::VIOLATIONS_MAX as u64),
    ] {
        let row = format!("| {what} | {max} |");
        assert!(
            rows.iter().any(|line| line.starts_with(&row)),
            "no row {row}"
        );
    }
}
