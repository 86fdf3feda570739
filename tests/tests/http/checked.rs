//! What a configuration refers to: files beside it, operations, and scopes.

use std::fs;
use std::path::Path;
use std::process::Command;

use alknet_tests::tools::client;
use alknet_tests::{HostNode, HostServer, TestBench, binary, eventually};
use serde_json::{Value, json};

/// A document with an import whose description is beside it.
fn importing(port: u16) -> String {
    format!(
        "[[http.import]]\nkind = \"openapi\"\nnamespace = \"api\"\nplain = true\nprivate = [\"127.0.0.1\"]\n\
         document = \"cfg:/api.yaml\"\nbase_url = \"http://127.0.0.1:{port}/api\"\n"
    )
}

/// The output of `alknet config check --json` inside `folder`, and whether it succeeds.
fn check(folder: &Path, arguments: &[&str]) -> (bool, Value) {
    let mut command = Command::new(binary());
    command.args(["config", "check", "--json"]).args(arguments);
    let output = command.current_dir(folder).output();
    let output = output.expect("the binary can be started");
    let said = serde_json::from_slice(&output.stdout).expect("JSON");
    (output.status.success(), said)
}

/// A bare file name is in the process's working folder.
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

    // A mistake of the document itself hides none of the others.
    let document = format!(
        "tls.roots = \"roots.pem\"\n[http.mcp]\ntools = [\"node/inof\"]\n{}",
        importing(1)
    );
    fs::write(folder.join("n2.toml"), document).expect("the folder is ours");
    let (valid, said) = check(folder, &["n2.toml"]);
    let errors = said["errors"].as_array().expect("a list");
    let starts = [
        "line 1, tls.roots: ",
        "http.import[0].document: ",
        "http.mcp.tools[0]: ",
    ];
    assert!(!valid && errors.len() == starts.len(), "{said:#}");
    for (error, start) in errors.iter().zip(starts) {
        let error = error.as_str().expect("a text");
        assert!(error.starts_with(start), "{error}");
    }
    assert!(
        said.to_string().contains("did you mean 'node/info'?"),
        "{said:#}"
    );

    fs::copy(client("api.yaml"), folder.join("api.yaml")).expect("the folder is ours");
    fs::write(&roots, "").expect("the folder is ours");
    let (valid, said) = check(folder, &["n1.toml"]);
    assert!(valid && said["valid"] == true, "{said:#}");
}

/// Without a node, the check knows every operation and every scope of a hub, and reports other
/// names.
#[test]
fn a_check_knows_the_operations_and_scopes_of_a_node() {
    let bench = TestBench::new();
    let hub = bench.host_with("[hub]\nenabled = true\n");
    let listed = hub.call("services/list", &json!({ "limit": 1000 }));
    let operations = listed["operations"].as_array().expect("a list");
    assert!(operations.len() > 50, "{listed}");
    let file = bench.path().join("names.toml");
    let tools_of = |names: &[&str]| {
        let text = format!("[http.mcp]\ntools = {names:?}\n");
        fs::write(&file, text).expect("the folder is ours");
        check(bench.path(), &["names.toml"]).1
    };
    for operation in operations {
        let name = operation["name"].as_str().expect("a name");
        let said = tools_of(&[name]);
        let is_tool = operation["op_type"] != "subscription";
        assert_eq!(said["valid"], is_tool, "{name}: {said}");
        assert_eq!(said["warnings"], json!([]), "{name}: {said}");
        let spec = hub.call("services/schema", &json!({ "name": name }));
        let rule = &spec["access_control"];
        let needed = ["required_scopes", "required_scopes_any"];
        let needed = needed
            .iter()
            .filter_map(|key| rule[*key].as_array())
            .flatten();
        // Only administrators have this scope.
        let mut needed: Vec<_> = needed.filter_map(Value::as_str).collect();
        needed.retain(|scope| *scope != "admin");
        let key = format!("ed25519:{}", "1".repeat(64));
        let peer =
            format!("[[peers]]\npeer_id = \"ada\"\nkeys = [\"{key}\"]\nscopes = {needed:?}\n");
        fs::write(&file, peer).expect("the folder is ours");
        let (valid, said) = check(bench.path(), &["names.toml"]);
        assert!(valid && said["warnings"] == json!([]), "{name}: {said}");
    }
    let said = tools_of(&["node/inof", "notes/add"]);
    assert_eq!(said["errors"].as_array().map(Vec::len), Some(1), "{said}");
    assert_eq!(said["warnings"].as_array().map(Vec::len), Some(1), "{said}");
}

/// No node serves DNS zones, so that such an order could only fail.
#[test]
fn a_check_refuses_what_only_a_dns_zone_proves() {
    let bench = TestBench::new();
    let file = bench.path().join("names.toml");
    let check_of = |acme: &str| {
        fs::write(&file, format!("[tls.acme]\n{acme}\n")).expect("the folder is ours");
        check(bench.path(), &["names.toml"])
    };
    for (acme, key) in [
        (
            "domains = [\"edge.example\"]\nchallenge = \"dns-01\"",
            "tls.acme.challenge: ",
        ),
        (
            "domains = [\"edge.example\", \"*.edge.example\"]",
            "tls.acme.domains[1]: ",
        ),
    ] {
        let (valid, said) = check_of(acme);
        let errors = said["errors"].as_array().expect("a list");
        assert!(!valid && errors.len() == 1, "{said:#}");
        let text = errors[0].as_str().expect("a text");
        assert!(text.starts_with(key), "{text}");
        assert!(text.contains("no node serves one yet"), "{text}");
    }
    let (valid, said) = check_of("domains = [\"edge.example\"]");
    assert!(valid, "{said:#}");
}

/// A node starts with names that match nothing, serves, and reports them.
#[test]
fn a_node_names_tools_and_scopes_that_match_nothing() {
    let bench = TestBench::new();
    let key = format!("ed25519:{}", "1".repeat(64));
    let node = bench.host_with(&format!(
        "[http.mcp]\ntools = [\"node/info\", \"js/later\"]\n[[peers]]\npeer_id = \"ada\"\nkeys = [\"{key}\"]\n\
         scopes = [\"node:raed\", \"node:read\"]\n"
    ));
    let problems = node.call("node/info", &Value::Null)["problems"].take();
    let said = |code: &str| {
        let mut all = problems.as_array().expect("a list").iter();
        let found = all.find(|one| one["code"] == code);
        let text = found.and_then(|one| one["text"].as_str());
        text.unwrap_or_default().to_owned()
    };
    assert!(
        said("mcp-tool-unknown").ends_with(": 'js/later'"),
        "{problems:#}"
    );
    assert!(
        said("scope-unknown").ends_with(": 'node:raed'"),
        "{problems:#}"
    );
    assert_eq!(problems.as_array().map(Vec::len), Some(2), "{problems:#}");
}
