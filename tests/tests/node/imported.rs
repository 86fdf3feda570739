//! Operations that a worker imported from a server, called through its hub. The worker grants the
//! hub the scope of an operation, and the hub's clients need the same scope there. And a worker that
//! serves an operation by the name of one that its hub is about to import.

use std::fs;

use alknet_call::OperationSpec;
use alknet_core::CloseCode;
use alknet_test_support::ReservedPort;
use alknet_tests::tools::client;
use alknet_tests::{CliRunner, HostNode, HostServer, TestBench, curl, eventually};
use serde_json::{Value, json};

use crate::enrolment::{EnrolmentNode, hub_config, invite, peer, run};
use crate::manual_peer::{ManualPeer, people, until_attached};

/// A role whose holders may call one operation of the API through the hub.
const NOTERS: &str = r#"
[[hub.role]]
name = "noter"
scopes = ["peer:route:*", "import:api:getNote"]
"#;

/// The worker, which lets its hub call two operations of the API.
fn worker(join: &str, port: u16) -> String {
    format!(
        "[node]\nname = \"kitchen\"\n\
         [[join]]\ncode = \"{join}\"\n\
         scopes = [\"node:read\", \"import:api:getNote\", \"import:api:me\"]\n\
         [[http.import]]\nkind = \"openapi\"\nnamespace = \"api\"\nplain = true\n\
         private = [\"127.0.0.1\"]\ndocument = \"cfg:/api.yaml\"\n\
         base_url = \"http://127.0.0.1:{port}/api\"\n"
    )
}

/// Paths that the API got requests for.
fn asked(api: &HostServer) -> Vec<String> {
    let all = curl(&api.url("/told"), &[]).json();
    let paths = all.as_array().expect("a list").iter();
    let paths = paths.filter_map(|one| one["path"].as_str().map(str::to_owned));
    paths.collect()
}

#[test]
fn an_import_of_a_worker_is_called_through_its_hub_by_its_scope_on_both() {
    let bench = TestBench::new();
    let api = HostServer::api(0, None);
    fs::copy(client("api.yaml"), bench.path().join("api.yaml")).expect("the folder is ours");
    let hub = EnrolmentNode::start(&bench, "hub", &format!("{}{NOTERS}", hub_config()), "0");
    let join = invite(&bench, &hub, &["--role", "worker"]);
    let _worker = EnrolmentNode::start(&bench, "worker", &worker(&join, api.port()), "0");
    peer(&bench, &hub, "kitchen", "ready");
    let enrolled = |name: &str, role: &str| {
        let who = bench.user(name);
        let join = invite(&bench, &hub, &["--role", role]);
        run(&who, &["enroll", &join, "--hub", "attic"]).json();
        who
    };
    let (noter, user) = (enrolled("noter", "noter"), enrolled("user", "user"));
    let (input, note) = (
        json!({ "id": "a" }),
        json!({ "id": 1, "text": "a", "lang": null }),
    );
    let through = |who: &CliRunner, operation: &str| {
        who.call(&hub.target, operation, &input, &["--peer", "kitchen"])
    };
    // The hub reads the worker's operations again after the worker has imported them.
    let answer = eventually("the import of the worker", || {
        let answer = through(&noter, "api/getNote");
        (answer.status == 0).then(|| answer.json())
    });
    assert_eq!(answer, note);
    let words = input.to_string();
    let via = ["call", "kitchen", "--via", "attic", "api/getNote", &words];
    assert_eq!(run(&noter, &via).json(), note);
    assert_eq!(asked(&api), ["/api/notes/a", "/api/notes/a"]);

    // A client of the hub needs the scope there, and the hub needs it on the worker.
    let refused = through(&user, "api/getNote");
    assert_eq!((refused.status, refused.code().as_str()), (4, "FORBIDDEN"));
    assert!(
        refused.errors.contains("'import:api:getNote'"),
        "{refused:?}"
    );
    let refused = through(&noter, "api/me");
    assert_eq!(refused.code(), "FORBIDDEN", "{refused:?}");
    assert!(refused.errors.contains("'import:api:me'"), "{refused:?}");
    let refused = through(bench.admin(), "api/addNote");
    assert_eq!(refused.code(), "NOT_FOUND", "{refused:?}");
    // The import belongs to the worker, not to the hub.
    let own = noter.call("attic", "api/getNote", &input, &[]);
    assert_eq!(own.code(), "NOT_FOUND", "{own:?}");
    let listed = run(&noter, &["ops", "list", "attic"]).json();
    let mut all = listed.as_array().expect("a list").iter();
    let is_imported = |one: &Value| {
        one["name"]
            .as_str()
            .is_some_and(|it| it.starts_with("api/"))
    };
    assert!(!all.any(is_imported), "{listed:#}");
    assert_eq!(asked(&api).len(), 2, "no refused call reached the server");
}

/// The answer, or the code of the error, of the call of `who`'s script to an operation. `more` are
/// further arguments of the call.
fn called(hub: &HostNode, who: &CliRunner, operation: &str, more: &str) -> Value {
    let source = format!(
        "let told;
         try {{ told = await ops.call('{operation}', {{ id: 'a' }}{more}); }}
         catch (error) {{ told = error.code; }}
         export default told"
    );
    let input = json!({ "source": source });
    who.call(hub.target(), "runtime/eval", &input, &[]).json()["value"].take()
}

/// The worker serves the operation without a rule, and another one in the same namespace whose name
/// a script may misspell. The server of the import is not there yet. A script that names no worker
/// means the server: the worker would get the input, and forge the answer. A script reaches the
/// worker by its name only if its caller may go there.
#[tokio::test(flavor = "multi_thread")]
async fn no_worker_takes_the_place_of_a_server_that_comes_late() {
    let bench = TestBench::new();
    let reserved = ReservedPort::claim().expect("a port");
    let port = reserved.number();
    let (admin, [worker, caller]) = (
        bench.admin(),
        ["kitchen", "dev"].map(|name| bench.user(name)),
    );
    let none: &[&str] = &[];
    let scopes: &[&str] = &["runtime:debug", "import:api:getNote"];
    let config = [
        "[hub]\nenabled = true\n".to_owned(),
        people([("kitchen", &worker, none), ("dev", &caller, scopes)]),
        format!(
            "[[http.import]]\nkind = \"openapi\"\nnamespace = \"api\"\nplain = true\n\
             private = [\"127.0.0.1\"]\ndocument = \"http://127.0.0.1:{port}/api.yaml\"\n\
             base_url = \"http://127.0.0.1:{port}/api\"\n"
        ),
    ];
    let hub = bench.host_with(&config.concat());
    let (right, misspelt) = ("api/getNote", "api/getNode");
    let served = [right, misspelt].map(|name| OperationSpec::query(name, "Gives a note."));
    let peer = ManualPeer::serving(&hub, &worker, served.into()).await;
    until_attached(&hub);
    let there = ", { peer: 'kitchen' }";
    for name in [right, misspelt] {
        assert_eq!(called(&hub, admin, name, ""), "NOT_FOUND", "{name}");
        assert_eq!(peer.asked(name), 0, "{name}");
        // A script that names the worker means the worker, which serves it.
        assert_eq!(called(&hub, admin, name, there), "done");
        assert_eq!(peer.asked(name), 1, "{name}");
    }
    assert_eq!(called(&hub, &caller, right, there), "FORBIDDEN");

    let _api = HostServer::api(port, None);
    let note = json!({ "id": 1, "text": "a", "lang": null });
    eventually("the import", || {
        (called(&hub, admin, right, "") == note).then_some(())
    });
    assert_eq!(called(&hub, admin, misspelt, ""), "NOT_FOUND");
    let asked = [right, misspelt].map(|name| peer.asked(name));
    assert_eq!(asked, [1, 1], "calls that named no worker");
    peer.connection.close(CloseCode::Normal, "");
}
