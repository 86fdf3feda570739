//! What a configuration names: files beside it, operations, and scopes.

use std::fs;
use std::path::Path;
use std::process::Command;

use alknet_tests::tools::client;
use alknet_tests::{HostNode, HostServer, TestBench, binary, eventually};
use serde_json::{Value, json};

/// A document with an import whose description lies beside it.
fn importing(port: u16) -> String {
    format!(
        "[[http.import]]\nkind = \"openapi\"\nnamespace = \"api\"\nplain = true\nprivate = [\"127.0.0.1\"]\n\
         document = \"cfg:/api.yaml\"\nbase_url = \"http://127.0.0.1:{port}/api\"\n"
    )
}

/// What `alknet config check --json` says from inside of `folder`, and whether it ends well.
fn check(folder: &Path, arguments: &[&str]) -> (bool, Value) {
    let mut command = Command::new(binary());
    command.args(["config", "check", "--json"]).args(arguments);
    let output = command.current_dir(folder).output();
    let output = output.expect("the binary can be started");
    let said = serde_json::from_slice(&output.stdout).expect("JSON");
    (output.status.success(), said)
}

/// The folder of a bare name is the one that the process is in.
#[test]
fn a_bare_name_of_a_configuration_leads_to_the_files_beside_it() {
    let bench = TestBench::new();
    let api = HostServer::api(0, None);
    fs::copy(client("api.yaml"), bench.path().join("api.yaml")).expect("the folder is ours");
    fs::write(bench.path().join("n1.toml"), importing(api.port())).expect("the folder is ours");
    let state = bench.path().join("host");
    let node = HostNode::start_in(bench.path(), "n1.toml", &state, bench.admin());
    eventually("the document beside the configuration is imported", || {
        let input = json!({ "last": 100_000 });
        let log = bench.admin().call(node.target(), "node/log", &input, &[]);
        log.output.contains("imported api").then_some(())
    });
    let problems = node.call("node/info", &Value::Null)["problems"].take();
    assert_eq!(problems, json!([]));
}

#[test]
fn a_check_names_each_file_that_is_not_there() {
    let bench = TestBench::new();
    let folder = bench.path();
    let roots = folder.join("roots.pem").display().to_string();
    let document = format!("tls.roots = \"{roots}\"\n{}", importing(1));
    fs::write(folder.join("n1.toml"), document).expect("the folder is ours");
    let (valid, said) = check(folder, &["n1.toml"]);
    let errors = said["errors"].as_array().expect("a list");
    let named = |key: &str, path: &str| {
        let texts = errors.iter().filter_map(Value::as_str);
        let mut texts = texts.filter(|text| text.starts_with(key));
        texts.any(|text| text.contains(path))
    };
    assert!(!valid && errors.len() == 2, "{said:#}");
    assert!(named("tls.roots: ", &roots), "{said:#}");
    assert!(named("http.import[0].document: ", "api.yaml"), "{said:#}");

    // A document for another machine is checked without its files.
    let (valid, said) = check(folder, &["--no-files", "n1.toml"]);
    assert!(valid, "{said:#}");

    fs::copy(client("api.yaml"), folder.join("api.yaml")).expect("the folder is ours");
    fs::write(&roots, "").expect("the folder is ours");
    let (valid, said) = check(folder, &["n1.toml"]);
    assert!(valid && said["valid"] == true, "{said:#}");
}
