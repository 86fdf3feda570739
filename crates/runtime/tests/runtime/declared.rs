//! The declarations for TypeScript, against what is really there.

use alknet_runtime::{Host, declarations};

use crate::support::{Memory, value};

#[test]
fn operations_of_the_session_are_declared() {
    let text = declarations(&Memory::default().list(""));
    assert!(text.contains("interface AlknetCalls {\n  /** for tests */\n  \"echo\": { input: { \"a\": number }; output: number };\n}"), "{text}");
    assert!(
        text.contains("interface AlknetSubscriptions {\n  /** for tests */\n  \"count\":"),
        "{text}"
    );
}

#[test]
fn every_declared_global_exists() {
    let text = declarations(&[]);
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("declare "))
        .filter_map(|line| {
            line.strip_prefix("const ")
                .or_else(|| line.strip_prefix("function "))
                .or_else(|| line.strip_prefix("class "))
        })
        .filter_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric()).next())
        .collect();
    assert!(names.len() > 12, "{names:?}");
    let source = format!(
        "export default {:?}.filter((name) => !(name in globalThis))",
        names
    );
    assert_eq!(value(&source), serde_json::json!([]));
}
