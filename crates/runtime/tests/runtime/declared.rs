//! The declarations for TypeScript, against what is really there.

use alknet_runtime::{EnvOperation, IsolateHost, ScriptOperationKind, declarations};

use crate::support::{RecordingHost, outcome, spec, value};

#[test]
fn operations_of_the_session_are_declared() {
    let text = declarations(&RecordingHost::default().list(""));
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

#[test]
fn shaders_and_tensors_are_declared_where_they_may_be_used() {
    let may = |path: &str| EnvOperation {
        path: path.to_owned(),
        kind: ScriptOperationKind::Query,
        input: serde_json::json!({}),
        output: serde_json::json!({}),
        description: String::new(),
    };
    let none = declarations(&[may("test/echo")]);
    assert!(!none.contains("declare const gpu") && !none.contains("declare const tensor"));
    let gpu = declarations(&[may("compute/dispatch")]);
    assert!(gpu.contains("declare const gpu: {") && !gpu.contains("declare const tensor"));
    let tensor = declarations(&[may("tensor/open")]);
    assert!(tensor.contains("declare const tensor: {") && tensor.contains("type Bytes ="));
}

#[test]
fn shaders_and_tensors_are_there_where_they_are_granted() {
    for (gpu, tensor) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut spec = spec("export default [typeof gpu, typeof tensor]");
        (spec.grants.gpu, spec.grants.tensor) = (gpu, tensor);
        let kind = |granted| if granted { "object" } else { "undefined" };
        let expected = serde_json::json!([kind(gpu), kind(tensor)]);
        assert_eq!(outcome(spec).0.result, Ok(expected));
    }
}
