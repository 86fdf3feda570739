//! Unknown peers that open as many TCP connections as the node has files for.

use std::net::Ipv4Addr;

use alknet_tests::{RawTcpConnection, TestBench, wire};
use serde_json::json;
use tokio::task::block_in_place;

use super::{AttackedNode, CALL};

/// Files that the node may have open. The kernel's default is 1,024, and the test is quicker with fewer.
const FILES: u64 = 300;

/// Networks of the attackers, and connections from each of them: the unknown peers of one network have 64.
const NETWORKS: u8 = 8;
const FROM_EACH: usize = 64;

const LIMITS: &str = "[limits]\nhandshake_burst = 10000\nhandshakes_per_second = 10000\n";

/// Each keeps its connection by a request. Without a limit that leaves files, the node could accept no connection of its
/// administrator.
#[tokio::test(flavor = "multi_thread")]
async fn connections_leave_files_for_others() {
    let bench = TestBench::new();
    let node = bench.host_with_files(FILES, LIMITS);
    let site = AttackedNode {
        admin: bench.admin(),
        target: node.target().to_owned(),
    };
    let target = &site.parsed();
    block_in_place(|| {
        let mut held = Vec::new();
        let mut refused = 0;
        for network in 1..=NETWORKS {
            for _ in 0..FROM_EACH {
                let from = Ipv4Addr::new(127, 0, network, 1);
                let ask = wire::request("1", "services/list", &json!({ "limit": 1 }));
                let opened = RawTcpConnection::connect(target, from, None, CALL);
                match opened.and_then(|mut peer| peer.say(&ask).map(|()| peer)) {
                    Ok(peer) => held.push(peer),
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(
            held.len() + refused > FILES as usize,
            "too few for an attack"
        );
        // A new connection of a known peer, while the others are open.
        let info = site.info(&[]);
        let open = info["endpoint"]["connections_open"].as_u64();
        assert!(open <= Some(FILES / 2), "{info:#}");
        drop(held);
    });
    site.serves();
}
