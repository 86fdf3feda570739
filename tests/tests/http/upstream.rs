//! Servers of imports that fail: callers over HTTP learn which side failed, and how.

use std::fs;
use std::net::TcpListener;

use alknet_test_support::ReservedPort;
use alknet_tests::tools::client;
use alknet_tests::{HostServer, RelayOperation, TestBench, WebNode, eventually};
use serde_json::{Value, json};

/// An import of the API of the tests, from a server at this port.
fn importing(namespace: &str, port: u16) -> String {
    format!(
        "[[http.import]]\nkind = \"openapi\"\nnamespace = \"{namespace}\"\nplain = true\n\
         private = [\"127.0.0.1\"]\ndocument = \"cfg:/api.yaml\"\n\
         base_url = \"http://127.0.0.1:{port}/api\"\n"
    )
}

/// The node's operation forwards the server's error.
#[test]
fn a_server_that_fails_is_a_bad_gateway_and_not_a_failed_node() {
    let bench = TestBench::new();
    let api = HostServer::api(0, None);
    let gone = ReservedPort::claim().expect("a port");
    // The kernel accepts connections for it, but no process answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent_port = silent.local_addr().expect("an address").port();
    fs::copy(client("api.yaml"), bench.path().join("api.yaml")).expect("the folder is ours");
    let relay = RelayOperation::new(&bench, &["api/*", "gone/*", "silent/*"]);
    let config = [
        relay.configuration(),
        importing("api", api.port()),
        importing("gone", gone.number()),
        importing("silent", silent_port),
    ];
    let web = WebNode::start(&bench, &config.concat());
    relay.promote(web.node.target());
    for there in ["api/getNote", "gone/getNote", "silent/getNote"] {
        eventually(there, || {
            let listed = RelayOperation::list(bench.admin(), web.node.target(), there);
            (listed == json!([there])).then_some(())
        });
    }
    let note = json!({ "id": "a" });
    for (operation, input, limit, status, code, cause) in [
        (
            "gone/getNote",
            note.clone(),
            Value::Null,
            503,
            "UNAVAILABLE",
            "",
        ),
        (
            "silent/getNote",
            note,
            json!(300),
            504,
            "TIMEOUT",
            "no whole answer within",
        ),
        (
            "api/busy/change",
            Value::Null,
            Value::Null,
            503,
            "UNAVAILABLE",
            "503",
        ),
        (
            "api/getNote",
            json!({ "id": "none" }),
            Value::Null,
            502,
            "HTTP_502",
            "no note none",
        ),
    ] {
        let mut asked = RelayOperation::input(operation, &input);
        asked["pass"] = true.into();
        if !limit.is_null() {
            asked["timeoutMs"] = limit;
        }
        let path = format!("/{}", RelayOperation::PATH);
        let body = json!({ "operation": path, "input": asked });
        let told = web.post(&web.admin, "/call", &body.to_string());
        assert_eq!(told.status, status, "{operation}: {told:?}");
        let error = told.json()["error"].take();
        assert_eq!(error["code"], code, "{operation}: {error:#}");
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains(cause), "{operation}: {error:#}");
        assert!(
            !message.contains("the node failed"),
            "{operation}: {error:#}"
        );
        assert_eq!(error["details"]["path"], operation, "{error:#}");
    }
}

/// The attacker may call the operation, and make its servers fail. The attacker must not learn
/// their addresses or their texts.
#[test]
fn a_caller_of_little_right_learns_nothing_of_servers_that_fail() {
    let bench = TestBench::new();
    let api = HostServer::api(0, None);
    let gone = ReservedPort::claim().expect("a port");
    fs::copy(client("api.yaml"), bench.path().join("api.yaml")).expect("the folder is ours");
    let relay = RelayOperation::new(&bench, &["api/*", "gone/*"]);
    let config = [
        relay.configuration(),
        importing("api", api.port()),
        importing("gone", gone.number()),
    ];
    let web = WebNode::start(&bench, &config.concat());
    relay.promote(web.node.target());
    for there in ["api/getNote", "gone/getNote"] {
        eventually(there, || {
            let listed = RelayOperation::list(bench.admin(), web.node.target(), there);
            (listed == json!([there])).then_some(())
        });
    }
    let made = json!({ "scopes": ["call:js:relay"] });
    let made = web.node.call("token/make", &made);
    let caller = made["token"].as_str().expect("a token");
    for (operation, status, how) in [
        ("gone/getNote", 503, "cannot be reached or used now"),
        ("api/getNote", 502, "answered with status 404"),
    ] {
        let mut asked = RelayOperation::input(operation, &json!({ "id": "none" }));
        asked["pass"] = true.into();
        let path = format!("/{}", RelayOperation::PATH);
        let body = json!({ "operation": path, "input": asked });
        let told = web.post(caller, "/call", &body.to_string());
        assert_eq!(told.status, status, "{operation}: {told:?}");
        let error = told.json()["error"].take();
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.ends_with(how), "{operation}: {error:#}");
        assert_eq!(error["details"]["path"], operation, "{error:#}");
        let whole = error.to_string();
        for hidden in ["127.0.0.1", "no note", &gone.number().to_string()] {
            assert!(!whole.contains(hidden), "{operation}: {error:#}");
        }
    }
}

/// The attacker may call the imported operation directly, and through a script.
#[test]
fn a_caller_of_an_import_learns_nothing_of_how_it_is_reached() {
    let bench = TestBench::new();
    let gone = ReservedPort::claim().expect("a port");
    fs::copy(client("api.yaml"), bench.path().join("api.yaml")).expect("the folder is ours");
    let web = WebNode::start(&bench, &importing("gone", gone.number()));
    let token = |scopes: &[&str]| {
        let made = web.node.call("token/make", &json!({ "scopes": scopes }));
        made["token"].as_str().expect("a token").to_owned()
    };
    let ask = |token: &str, operation: &str, input: &Value| {
        let body = json!({ "operation": operation, "input": input });
        web.post(token, "/call", &body.to_string())
    };
    // A change is sent once, and a query three times.
    let note = json!({ "body": { "text": "a" } });
    let scopes = ["import:gone:addNote", "runtime:debug"];
    let (caller, reader) = (token(&scopes), token(&[scopes[0], scopes[1], "node:read"]));
    eventually("the import", || {
        (ask(&caller, "/gone/addNote", &note).status == 503).then_some(())
    });
    let script = "let said; try { await ops.call('gone/addNote', { body: { text: 'a' } }) } catch (e) { said = e.message }
         export default said";
    let script = json!({ "source": script });
    for (who, reads) in [(&caller, false), (&reader, true)] {
        let told = ask(who, "/gone/addNote", &note);
        assert_eq!(told.status, 503, "{told:?}");
        let error = told.json()["error"].take();
        assert_eq!(error["code"], "UNAVAILABLE", "{error:#}");
        let of_script = ask(who, "/runtime/eval", &script).json();
        let [said, of_script] = [&error["message"], &of_script["output"]["value"]]
            .map(|message| message.as_str().unwrap_or_default().to_owned());
        for message in [said, of_script] {
            let is_told = message.contains(&gone.number().to_string());
            assert_eq!(is_told, reads, "{message}");
            let in_own_words = message.ends_with("cannot be reached or used now");
            assert_eq!(in_own_words, !reads, "{message}");
        }
    }
    let all = json!({ "last": 100_000 });
    let log = web.node.try_call("node/log", &all).output;
    assert!(log.contains("a server of an import failed"), "{log}");
}
