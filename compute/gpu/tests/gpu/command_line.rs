//! Verbs and options, and how the program says that something is wrong.

use std::process::Output;

use alknet_test_support::skip;
use serde_json::Value;

use crate::{adapter, diagnostics, gpu, rows, shader};

/// The one error of a run with `--json`: its code.
fn error_code(output: &Output) -> String {
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = diagnostics(output);
    assert_eq!(text.lines().count(), 1, "{text}");
    let error: Value = serde_json::from_str(&text).expect("the error is JSON");
    let message = error["error"]["message"].as_str().unwrap_or_default();
    assert!(!message.is_empty() && !message.contains("Usage"), "{text}");
    error["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn a_wrong_command_line_is_one_line_of_json_if_asked_for() {
    for words in [
        &["frob", "--json"][..],
        &["--json"],
        &["bench", "--side", "63", "--json"],
        &["--json", "run"],
    ] {
        let output = gpu(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert_eq!(error_code(&output), "USAGE", "{words:?}");
    }
    // Behind `--` it is the name of a file.
    for words in [&["frob"][..], &["frob", "--", "--json"]] {
        let output = gpu(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        let text = diagnostics(&output);
        assert!(text.starts_with("error: "), "{words:?}: {text}");
        assert!(text.contains("\n\nUsage: "), "{words:?}: {text}");
    }
}

#[test]
fn shaders_and_measurements_take_json_too() {
    let double = shader("double.wgsl");
    let bench = "bench --side 64 --rounds 1 --kernels host --json";
    let bench: Vec<&str> = bench.split(' ').collect();
    for (words, figure) in [
        (&["run", "--json", &double][..], "first_ms"),
        (&["--json", "run", &double], "words"),
        (&bench, "gflops"),
    ] {
        let output = gpu(words);
        match adapter() {
            Ok(()) => {
                assert!(output.status.success(), "{}", diagnostics(&output));
                let rows = rows(&output);
                assert_eq!(rows.len(), 1, "{rows:?}");
                assert!(!rows[0][figure].is_null(), "{words:?}: {}", rows[0]);
            }
            // What `adapter` says is the exit code as well as the text.
            Err(why) => {
                let code = match output.status.code() {
                    Some(3) => "NO_DRIVER",
                    Some(4) => "NO_ADAPTER",
                    other => panic!("{words:?} ended with {other:?}: {why}"),
                };
                assert_eq!(error_code(&output), code, "{words:?}");
            }
        }
    }
}

/// The shader that a page has for `alknet gpu run`.
fn shader_of(page: &str) -> &str {
    let behind = page.split_once("```wgsl\n").map(|(_, behind)| behind);
    let shader = behind.and_then(|behind| behind.split_once("```\n"));
    shader.expect("the page has a shader").0
}

#[test]
fn the_shader_of_the_pages_runs() {
    let compute = shader_of(include_str!("../../../../docs/compute.md"));
    let driver = shader_of(include_str!("../../../../docs/driver.md"));
    assert_eq!(compute, driver);
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("double.wgsl");
    std::fs::write(&file, compute).expect("the folder is ours");
    let output = gpu(&["run", file.to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{}", diagnostics(&output));
    let rows = rows(&output);
    assert_eq!(
        rows[0]["words"],
        serde_json::json!([0, 2, 4, 6, 8, 10, 12, 14])
    );
}
