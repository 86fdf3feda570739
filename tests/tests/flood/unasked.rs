//! A node that serves iroh too, and whose administrator configured no other hosts, sends packets
//! only to its clients. Its default route leads to the clients' namespace, which has none of the
//! hosts that iroh might look for.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::{ELSEWHERE, FloodNamespaces, FloodNode, KnownClient, NODE, among, call};

/// Serves iroh, and names no relay.
const CONFIG: &str = "[iroh]\nenabled = true\n";

/// How long the node is idle after its answer. It starts its own activities when it starts.
const LEFT_ALONE: Duration = Duration::from_secs(5);

/// Packets that reached the clients' namespace, which the calling thread has entered, and had
/// another destination.
fn strayed() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").expect("Linux");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = lines.next().zip(lines.next()).expect("names and values");
    let mut counters = names.split(' ').zip(values.split(' '));
    let counted = counters.find(|(name, _)| *name == "InAddrErrors");
    let number = counted.and_then(|(_, value)| value.parse().ok());
    number.expect("the kernel counts them")
}

/// Sends a packet as the node could.
fn stray(lab: &FloodNamespaces) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let namespace = std::fs::File::open(format!("/run/netns/{}", lab.node));
            let namespace = namespace.expect("made just now");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter it");
            let socket = UdpSocket::bind((NODE, 0)).expect("a free port");
            let sent = socket.send_to(b"?", SocketAddr::from((ELSEWHERE, 53)));
            sent.expect("there is a way out");
        });
    });
}

async fn scenario(lab: &FloodNamespaces, admin: &Path, served: &FloodNode) {
    let admin = KnownClient::new(admin, &served.target);
    let lasting = admin.connect().await;
    call(&lasting).await;
    tokio::time::sleep(LEFT_ALONE).await;
    call(&lasting).await;
    assert_eq!(strayed(), 0, "packets left for others");
    // The check detects such a packet.
    stray(lab);
    alknet_test_support::eventually("a packet that strayed", LEFT_ALONE, || strayed() == 1);
}

#[test]
fn a_node_makes_no_unconfigured_discovery() {
    if let Some(lab) = FloodNamespaces::new('u') {
        let bench = alknet_tests::TestBench::new();
        let served = lab.serve(&bench, &NODE.to_string(), CONFIG);
        let admin = bench.admin().state().to_owned();
        among(&lab, scenario(&lab, &admin, &served));
    }
}
