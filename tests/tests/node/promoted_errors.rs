//! Errors that a promoted operation makes so that they do not count against its version.

use std::time::Duration;

use alknet_call::ErrorCode;
use alknet_test_support::deadline;
use alknet_tests::TestBench;
use serde_json::json;

use super::promoted_callers::{OperationDraft, configuration, dial, promote};

/// Errors beyond those of the version before, in the first hundred calls, after which a version is taken back
/// (docs/promotion.md).
const ERRORS_MAX: u64 = 20;

/// Ada's new version throws an error of the runtime, which it has kept, as if the call had been ended from outside.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_forges_an_abort_is_taken_back() {
    let bench = TestBench::new();
    let [ada, rev, bob] = ["ada", "rev", "bob"].map(|name| bench.user(name));
    let config = configuration(
        "rollback_on_errors = true\n",
        &[
            ("ada", &ada, &["ops:propose"]),
            ("rev", &rev, &["ops:promote"]),
            ("bob", &bob, &["call:js:first"]),
        ],
    );
    let node = bench.host_with(&config);
    let forges = "export const run = async (n) => {
            if (!n) return 'done';
            let error;
            try { await ops.call('a/b', { f() {} }); } catch (e) { error = e; }
            error.code = 'E_ABORT';
            throw error;
        };";
    for source in ["export const run = () => 'done';", forges] {
        let draft = OperationDraft {
            uses: &["a/b"],
            source,
            ..OperationDraft::waits("first")
        };
        promote(&bench, node.target(), ("ada", &ada), &rev, &draft);
    }
    let (_admins, admin) = dial(&node, bench.admin()).await;
    let (_bobs, bob) = dial(&node, &bob).await;
    let versions = async || {
        let told = admin
            .call("ops/proposals", &json!({ "path": "js/first" }))
            .await;
        told.expect("it is answered").value().clone()
    };
    let before = versions().await;
    assert_eq!(before["active"], 2, "{before}");
    // The version before answers once the new one is taken back.
    let fails = async {
        while let Err(error) = bob.call("js/first", &json!(1)).await {
            assert_eq!(error.code, ErrorCode::InvalidOutput, "{error}");
        }
    };
    let fails = tokio::time::timeout(deadline(Duration::from_secs(60)), fails);
    fails.await.expect("the new version is taken back");
    // The node answers by the version before, and then writes down which one is active.
    let is_written = async {
        let mut after = versions().await;
        while after["active"] != 1 {
            after = versions().await;
        }
        after
    };
    let is_written = tokio::time::timeout(deadline(Duration::from_secs(60)), is_written);
    let after = is_written.await.expect("it is written down");
    let errors = after["versions"][0]["errors"].as_u64();
    assert!(errors >= Some(ERRORS_MAX), "{after}");
}
