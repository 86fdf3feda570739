//! Attacks over HTTP: memory stays bounded, and others are served.

mod answers;
mod bodies;
mod frames;
mod guesses;
mod heads;
mod log;
mod removals;
mod shares;
mod sockets;

use alknet_tests::{WebNode, eventually};
use serde_json::Value;
use tokio::task::block_in_place;

/// How much an attack may make the node's memory grow, with what the allocator keeps.
const GROWTH_BYTES: u64 = 48 << 20;

fn resident(web: &WebNode) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", web.node.pid()));
    let text = text.expect("the node runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .expect("a number")
        << 10
}

/// Resets [`peak`].
fn forget_peak(web: &WebNode) {
    let file = format!("/proc/{}/clear_refs", web.node.pid());
    std::fs::write(file, "5").expect("it is our process");
}

/// The most memory that the node has used so far.
fn peak(web: &WebNode) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", web.node.pid()));
    let text = text.expect("the node runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .expect("a number")
        << 10
}

/// Bytes of requests and answers over HTTP, by the node's own count: those under way, and the most
/// at once so far.
fn http_bytes(web: &WebNode) -> [u64; 2] {
    let told = block_in_place(|| web.node.call("node/metrics", &Value::Null));
    ["alknet_http_bytes", "alknet_http_peak_bytes"].map(|name| {
        let bytes = told["values"][name].as_f64();
        bytes.unwrap_or_else(|| panic!("no {name}: {told:#}")) as u64
    })
}

/// Waits until the node counts exactly so many bytes under way: it has read the first bytes of every
/// body, and has refused none of the requests, because a refused one does not count.
fn until_counted(web: &WebNode, bytes: u64) {
    block_in_place(|| {
        eventually(&format!("{bytes} bytes are counted"), || {
            (http_bytes(web)[0] == bytes).then_some(())
        });
    });
}

/// The node answers others, and has not grown.
fn survives(web: &WebNode, before: u64) {
    let told = block_in_place(|| web.curl("/healthz", &["--http2"]));
    assert_eq!(told.status, 200);
    let now = resident(web);
    assert!(now < before + GROWTH_BYTES, "{before} became {now}");
}

/// Bytes of requests that one identity may have in progress, as in docs/http.md, and of incomplete
/// frames and unread answers, as in docs/protocol.md.
fn share() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").expect("the kernel says");
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let part = (kib.expect("a number") << 10) / 8;
    part.clamp(4 << 20, 256 << 20) / 2
}
