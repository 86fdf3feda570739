//! Operations that fail again and again, because the servers that they need are gone: the log says why the others fail.

use std::fs;
use std::time::Duration;

use alknet_call::{CallConnection, ErrorCode};
use alknet_test_support::{ReservedPort, deadline};
use alknet_tests::tools::client;
use alknet_tests::{CliSubscription, HostNode, TestBench};
use serde_json::{Value, json};

use super::manual_peer::caller;
use super::promoted_callers::{OperationDraft, configuration, promote};

/// Records that the log takes in a minute of why one operation fails, and of why those of one namespace fail
/// (docs/observability.md). A new minute may begin during the test.
const RECORDS_OF_OPERATION: usize = 10;
const RECORDS_OF_NAMESPACE: usize = 30;
const MINUTES: usize = 2;
/// Calls of each operation by the attacker: more than the records of all operations in a minute.
const FAILING: usize = 70;

/// How long it waits before it asks again.
const AGAIN: Duration = Duration::from_millis(200);

/// The attacker's operations, and that of another author.
const ATTACKERS: [&str; 3] = ["first", "second", "third"];
const OTHER: &str = "pay";

/// An import of the API of the tests, whose server is gone.
fn importing(namespace: &str, port: u16) -> String {
    format!(
        "[[http.import]]\nkind = \"openapi\"\nnamespace = \"{namespace}\"\nplain = true\n\
         private = [\"127.0.0.1\"]\ndocument = \"cfg:/api.yaml\"\n\
         base_url = \"http://127.0.0.1:{port}/api\"\n"
    )
}

/// Calls an operation whose server is gone.
async fn fails(client: &CallConnection, operation: &str, input: &Value) {
    let failed = client.call(operation, input).await;
    let failed = failed.expect_err("its server is gone");
    assert_eq!(failed.code, ErrorCode::Unavailable, "{failed}");
}

/// Waits until the node has imported an operation. Its server is gone all the while.
async fn imported(client: &CallConnection, operation: &str, input: &Value) {
    let failed = async {
        while let Err(error) = client.call(operation, input).await {
            match error.code {
                ErrorCode::NotFound => tokio::time::sleep(AGAIN).await,
                ref code => return assert_eq!(*code, ErrorCode::Unavailable, "{error:?}"),
            }
        }
    };
    let waited = tokio::time::timeout(deadline(Duration::from_secs(60)), failed).await;
    waited.expect("the node imports it");
}

/// Records of why this operation, or one whose name begins so, failed.
fn failures(node: &HostNode, bench: &TestBench, operation: &str) -> usize {
    let past = json!({ "last": 100_000 });
    let log: CliSubscription = bench.admin().subscribe(node.target(), "node/log", &past);
    let field = format!("operation={operation}");
    let is_one = |record: &Value| {
        let text = record["message"].as_str().unwrap_or_default();
        text.contains(&field) && text.contains("a server of an import failed")
    };
    log.filter(is_one).count()
}

/// Each caller may call some of the operations, and not read why they fail.
#[tokio::test(flavor = "multi_thread")]
async fn failures_without_an_end_leave_records_to_others() {
    let bench = TestBench::new();
    let [ada, rev, eve, bob] = ["ada", "rev", "eve", "bob"].map(|name| bench.user(name));
    let gone = ReservedPort::claim().expect("a port");
    fs::copy(client("api.yaml"), bench.path().join("api.yaml")).expect("the folder is ours");
    let of_eve = ATTACKERS.map(|name| format!("call:js:{name}"));
    let of_eve: Vec<&str> = of_eve.iter().map(String::as_str).collect();
    let config = [
        configuration(
            "",
            &[
                ("ada", &ada, &["ops:propose", "import:gone:addNote"]),
                ("rev", &rev, &["ops:promote"]),
                ("eve", &eve, &[&of_eve[..], &["import:gone:*"]].concat()),
                ("bob", &bob, &["call:js:pay", "import:other:addNote"]),
            ],
        ),
        importing("gone", gone.number()),
        importing("other", gone.number()),
    ];
    let node = bench.host_with(&config.concat());
    let note = json!({ "body": { "text": "a" } });
    let source = format!(
        "export const run = async (n) => {{ if (n) await ops.call('gone/addNote', {note}); return 'done'; }};"
    );
    for name in [&ATTACKERS[..], &[OTHER]].concat() {
        let draft = OperationDraft {
            uses: &["gone/addNote"],
            source: &source,
            ..OperationDraft::waits(name)
        };
        promote(&bench, node.target(), ("ada", &ada), &rev, &draft);
    }
    let [(_eves, eve), (_bobs, bob)] = [caller(&node, &eve).await, caller(&node, &bob).await];
    for (client, import) in [(&eve, "gone/addNote"), (&bob, "other/addNote")] {
        imported(client, import, &note).await;
    }
    for name in ATTACKERS {
        let path = format!("js/{name}");
        for _ in 0..2 * RECORDS_OF_OPERATION {
            fails(&eve, &path, &json!(1)).await;
        }
        let records = failures(&node, &bench, &path);
        assert!(
            (1..=MINUTES * RECORDS_OF_OPERATION).contains(&records),
            "{path}: {records}"
        );
    }
    fails(&bob, &format!("js/{OTHER}"), &json!(1)).await;
    assert_eq!(failures(&node, &bench, &format!("js/{OTHER}")), 1);

    let before = failures(&node, &bench, "other/addNote");
    for (import, input) in [("gone/addNote", &note), ("gone/busy/change", &Value::Null)] {
        for _ in 0..FAILING {
            fails(&eve, import, input).await;
        }
    }
    let records = failures(&node, &bench, "gone/");
    assert!(
        (1..=MINUTES * RECORDS_OF_NAMESPACE).contains(&records),
        "{records}"
    );
    fails(&bob, "other/addNote", &note).await;
    assert_eq!(failures(&node, &bench, "other/addNote"), before + 1);
}
