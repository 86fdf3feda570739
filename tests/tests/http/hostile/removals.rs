//! A peer that is removed, and the tickets that it received before. Here it is a second
//! administrator, because only administrators may follow the log.

use alknet_tests::{RemovedPeerFixture, TestBench, WebNode};
use alknet_tls::NodeKey;
use serde_json::json;
use tokio::task::block_in_place;

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_peer_reads_nothing_more_by_its_tickets() {
    let bench = TestBench::new();
    let key = NodeKey::generate().expect("the system has entropy");
    let admin = bench.admin().identity();
    let both = format!("[node]\nadmin_keys = [\"{admin}\", \"{}\"]\n", key.public());
    let web = WebNode::start(&bench, &both);
    let mut follower = RemovedPeerFixture::begin(&web.target(), &key).await;

    let without = json!({ "document": format!("node.admin_keys = [\"{admin}\"]\n") });
    block_in_place(|| web.node.call("config/apply", &without));
    follower.is_ended().await;

    let refused = block_in_place(|| web.curl(&follower.unused, &[]));
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (401, "UNAUTHENTICATED")
    );
}
