//! `alknet gpu`: this program parses the verbs, and runs the program for GPUs that it carries to do the work.

use std::fs;
use std::process::{Command, Output};

use alknet_tests::{TestBench, binary};
use serde_json::Value;

/// A shader that doubles each word of its buffer.
const DOUBLE: &str = "@group(0) @binding(0) var<storage, read_write> words: array<u32>;
@compute @workgroup_size(8) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    words[id.x] = words[id.x] * 2u;
}
";

/// Exit code of the program for GPUs when it finds no driver (docs/driver.md).
const WITHOUT_DRIVER: i32 = 3;

fn gpu(bench: &TestBench, line: &str) -> Output {
    let mut command = Command::new(binary());
    command.arg("gpu").args(line.split(' '));
    let output = command.current_dir(bench.path()).output();
    output.expect("the binary runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("it is text")
}

/// The code of the only error, which is a line of JSON on standard error.
fn error_code(output: &Output) -> String {
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = text(&output.stderr);
    assert_eq!(text.lines().count(), 1, "{text}");
    let error: Value = serde_json::from_str(text).expect("the error is JSON");
    error["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn measurements_and_shaders_answer_in_json() {
    let bench = TestBench::new();
    fs::write(bench.path().join("double.wgsl"), DOUBLE).expect("the folder is ours");
    let info = gpu(&bench, "info --json");
    let info: Value = serde_json::from_slice(&info.stdout).expect("JSON on one line");
    let has_driver = info["drivers"].as_array().is_some_and(|it| !it.is_empty());
    for (line, expected) in [
        (
            "run double.wgsl --words 8 --groups 1 --repeat 1 --json",
            "[0,2,4,6,8,10,12,14]",
        ),
        (
            "bench --side 64 --rounds 1 --threads 1 --kernels host --json",
            "null",
        ),
    ] {
        let output = gpu(&bench, line);
        if has_driver {
            assert!(output.status.success(), "{line}: {output:?}");
            let row: Value = serde_json::from_slice(&output.stdout).expect("one row");
            assert_eq!(row["words"].to_string(), expected, "{line}");
            let rate = row["gflops"].as_f64();
            assert_eq!(rate.is_some_and(|rate| rate > 0.0), expected == "null");
        } else {
            assert_eq!(output.status.code(), Some(WITHOUT_DRIVER), "{line}");
            assert_eq!(error_code(&output), "NO_DRIVER", "{line}");
            let plain = gpu(&bench, line.trim_end_matches(" --json"));
            let said = text(&plain.stderr);
            assert!(said.contains("no Vulkan driver linked"), "{line}: {said}");
            assert!(!said.contains('{'), "{line}: {said}");
        }
    }
}

#[test]
fn a_number_that_the_program_refuses_is_an_error_in_json() {
    let bench = TestBench::new();
    for line in ["bench --side 63 --json", "run a.wgsl --words 0 --json"] {
        let output = gpu(&bench, line);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert_eq!(error_code(&output), "USAGE", "{line}");
    }
    let plain = gpu(&bench, "bench --side 63");
    assert_eq!(plain.status.code(), Some(2));
    let said = text(&plain.stderr);
    assert!(said.contains("not a multiple of 64"), "{said}");
}

#[test]
fn each_spelling_of_help_names_the_options_of_the_verb() {
    let bench = TestBench::new();
    for line in ["help bench", "bench --help"] {
        let output = gpu(&bench, line);
        assert!(output.status.success(), "{line}: {output:?}");
        let said = text(&output.stdout);
        for part in ["alknet gpu bench", "--kernels", "Exit codes: 0"] {
            assert!(said.contains(part), "{line}: {said}");
        }
    }
}
