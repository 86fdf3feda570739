//! Promoted operations that call peers, which may cooperate with their author.

use alknet_call::{ErrorCode, OperationSpec};
use alknet_core::CloseCode;
use alknet_tests::{TestBench, eventually};
use serde_json::json;

use super::manual_peer::{ManualPeer, caller, until_attached};
use super::promoted_callers::{OperationDraft, configuration, promote};

/// Calls of which one more fails than may, if they count.
const FAILING: usize = 21;

/// The new version calls the peer, which never has room, and fails in its own name. A node that
/// accepts the peer's error as an excuse would never roll it back.
#[tokio::test(flavor = "multi_thread")]
async fn the_word_of_a_peer_does_not_keep_a_version_that_fails() {
    let bench = TestBench::new();
    let [ada, mate, rev, eve] = ["ada", "mate", "rev", "eve"].map(|name| bench.user(name));
    let config = configuration(
        "rollback_on_errors = true\n[hub]\nenabled = true\n",
        &[
            ("ada", &ada, &["ops:propose"]),
            ("mate", &mate, &[]),
            ("rev", &rev, &["ops:promote"]),
            ("eve", &eve, &["call:js:first"]),
        ],
    );
    let node = bench.host_with(&config);
    let never = OperationSpec::query("node/never", "Never has room.");
    let mate = ManualPeer::start(&node, &mate, never).await;
    until_attached(&node);
    let asks = "if (n) try { await ops.call('node/never', {}); } catch {}";
    for fails in ["", "if (n) throw new Error('in its own name');"] {
        let source =
            format!("export const run = async (n) => {{ {asks} {fails} return 'done'; }};");
        let draft = OperationDraft {
            uses: &["node/never"],
            source: &source,
            ..OperationDraft::waits("first")
        };
        promote(&bench, node.target(), ("ada", &ada), &rev, &draft);
    }
    let (_dialer, client) = caller(&node, &eve).await;
    for _ in 0..FAILING {
        let failed = client.call("js/first", &json!(1)).await;
        let failed = failed.expect_err("the new version fails");
        assert_ne!(failed.code, ErrorCode::Overloaded, "{failed}");
    }
    assert_eq!(mate.asked("node/never"), FAILING, "it was the peer's word");
    let told = eventually("the new version is taken back", || {
        let told = node.call("ops/proposals", &json!({ "path": "js/first" }));
        (told["active"] == 1).then_some(told)
    });
    assert_eq!(told["versions"][0]["errors"], FAILING, "{told}");
    // The previous version calls the same peer, and does not fail for it.
    let answer = client.call("js/first", &json!(1)).await;
    assert_eq!(answer.expect("it is back").value(), &json!("done"));
    mate.connection.close(CloseCode::Normal, "");
}
