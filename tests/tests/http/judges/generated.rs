//! The client that a generator makes from a node's document, used on this host and with a booted
//! machine.

use std::process::Command;
use std::time::Duration;

use alknet_test_support::limited;
use alknet_tests::tools::{client, run_with_json, variable};
use alknet_tests::{TestBench, WebNode};
use serde_json::json;

/// Longest run of Python. Long, because guests may run in emulation.
const LIMIT: Duration = Duration::from_secs(300);

/// Python with the packages of the generator, in the bench's folder, where its client is.
fn python(bench: &TestBench) -> Command {
    let packages = variable("ALKNET_TEST_OPENAPI_PYTHONPATH");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = limited(LIMIT, "python3");
    command
        .env("PATH", format!("{packages}/bin:{path}"))
        .env(
            "PYTHONPATH",
            format!("{packages}:{}", bench.path().display()),
        )
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(bench.path());
    command
}

/// Generates a client from the node's document, and calls the node with it.
pub(crate) fn a_client_calls<N>(bench: &TestBench, web: &WebNode<N>) {
    let document = web.curl_as(&web.reader, "/openapi.json", &[]);
    assert_eq!(document.status, 200, "{document:?}");
    std::fs::write(bench.path().join("openapi.json"), document.body).expect("room");
    let generate = ["-m", "openapi_python_client", "generate"];
    let options = ["--meta", "none", "--path", "openapi.json"];
    let output = python(bench)
        .args(generate)
        .args(options)
        .args(["--output-path", "client"])
        .output()
        .expect("Python is installed by the set-up");
    assert!(output.status.success(), "{output:?}");
    let wrong = json!({ "operation": "/node/info", "input": { "no such member": 1 } });
    let given = json!({ "url": web.url(""), "token": web.reader, "wrong": wrong });
    let output = run_with_json(python(bench).arg(client("generated.py")), &given);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"fine\n", "{output:?}");
}
