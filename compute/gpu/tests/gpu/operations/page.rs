//! The examples of docs/compute.md.

use std::path::Path;

use alknet_test_support::skip;
use serde_json::Value;

use super::node::NODE;
use crate::adapter;

/// One example: what is asked, and what comes back.
struct Example {
    operation: String,
    input: Value,
    answer: Value,
}

/// Blocks marked with the name of an operation, each with the block of its answer behind it.
fn examples(page: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut block: Option<(String, String)> = None;
    for line in page.lines() {
        match (&mut block, line.strip_prefix("```")) {
            (None, Some(mark)) => block = Some((mark.to_owned(), String::new())),
            (Some((_, text)), None) => {
                text.push_str(line);
                text.push('\n');
            }
            (Some((mark, text)), Some(_)) => {
                if let Some(kind) = mark.strip_prefix("json ") {
                    let value = serde_json::from_str(text).expect("the page has JSON");
                    match (kind, examples.last_mut()) {
                        ("answer", Some(last)) => last.answer = value,
                        _ => examples.push(Example {
                            operation: kind.to_owned(),
                            input: value,
                            answer: Value::Null,
                        }),
                    }
                }
                block = None;
            }
            (None, None) => {}
        }
    }
    examples
}

/// Whether the answer is as the page has it; `"…"` stands for anything.
fn alike(page: &Value, real: &Value) -> bool {
    match (page, real) {
        (Value::String(text), _) if text == "…" => !real.is_null(),
        (Value::Object(page), Value::Object(real)) => {
            page.len() == real.len()
                && page
                    .iter()
                    .all(|(name, value)| real.get(name).is_some_and(|other| alike(value, other)))
        }
        (Value::Array(page), Value::Array(real)) => {
            page.len() == real.len() && page.iter().zip(real).all(|(a, b)| alike(a, b))
        }
        _ => page == real,
    }
}

/// Puts the handle of the last answer that had one where the page says so.
fn fill(value: &mut Value, handle: &Value) {
    match value {
        Value::String(text) if text == "HANDLE" => *value = handle.clone(),
        Value::Object(members) => members.values_mut().for_each(|member| fill(member, handle)),
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, handle)),
        _ => {}
    }
}

#[test]
fn the_page_is_right() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compute.md");
    let page = std::fs::read_to_string(path).expect("the page is there");
    let examples = examples(&page);
    assert!(examples.len() >= 6, "{} examples", examples.len());
    let person = NODE.person("reader");
    let mut handle = Value::Null;
    for Example {
        operation,
        mut input,
        answer,
    } in examples
    {
        fill(&mut input, &handle);
        let real = match person.try_ask(&operation, &input) {
            Ok(real) => real.value().clone(),
            Err(error) => serde_json::to_value(&error).expect("JSON"),
        };
        if let Some(made) = real.get("handle") {
            handle = made.clone();
        }
        assert!(
            alike(&answer, &real),
            "{operation} {input}:\n{real:#}\nis not\n{answer:#}"
        );
    }
}
