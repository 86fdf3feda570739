//! Unknown peers that together use more memory than there is, each within its limits.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use alknet_core::{Carriage, Connection, SendStream};
use alknet_endpoint::EndpointDialer;
use alknet_tests::{HostNode, TestBench};
use bytes::Bytes;
use serde_json::Value;
use tokio::task::block_in_place;

use super::{AttackedNode, LOOK_AGAIN, answers, crowds::is_answered, key_of, within};
use crate::unread::memory;

/// The machine's memory, and how much of it the attackers may use before memory is short. The node
/// acts when less than a sixteenth is available.
const MACHINE: u64 = 256 << 20;
const ROOM: u64 = 24 << 20;
const LEFT_PART: u64 = 16;

/// Connections that they try. They would use several times the memory that is left then.
const CONNECTIONS: usize = 1000;
const AT_ONCE: usize = 16;

/// Streams that are not read, and bytes on each of them.
const STREAMS: usize = 3;
const STREAM_BYTES: usize = 20 << 10;

/// How often that machine's kernel would update its numbers.
const TICK: Duration = Duration::from_millis(10);

/// Unlimited, because the limits of one network are tested elsewhere.
const LIMITS: &str = "[limits]\nconnections_per_address = 4096\nhandshake_burst = 10000\n\
                      handshakes_per_second = 10000\n";

/// All lines have the same length, because the file is read while it is written.
fn meminfo(available: u64) -> String {
    let line = |name: &str, bytes: u64| format!("{name}: {:>12} kB\n", bytes >> 10);
    let (total, available) = (line("MemTotal", MACHINE), line("MemAvailable", available));
    total + &available
}

/// Writes the machine's available memory, as the node grows and shrinks, until it is dropped.
struct MemoryMonitor {
    ends: Arc<AtomicBool>,
    /// The least memory that was available.
    least: Arc<AtomicU64>,
    writes: Option<JoinHandle<()>>,
}

impl MemoryMonitor {
    /// Other programs use everything except `ROOM`, the node's memory now, and the reserve.
    fn watch(node: &HostNode, says: &Path) -> Self {
        let file = File::options().write(true).open(says);
        let file = file.expect("the node was started on it");
        file.set_len(0).expect("room");
        let (ends, least) = (
            Arc::<AtomicBool>::default(),
            Arc::new(AtomicU64::new(MACHINE)),
        );
        let all = memory(node, "VmRSS:") + ROOM + MACHINE / LEFT_PART;
        let status = format!("/proc/{}/status", node.pid());
        let write = {
            let (ends, least) = (Arc::clone(&ends), Arc::clone(&least));
            move || {
                while !ends.load(Ordering::SeqCst) {
                    let text = fs::read_to_string(&status).unwrap_or_default();
                    let line = text.lines().find_map(|it| it.strip_prefix("VmRSS:"));
                    let kib = line.and_then(|it| it.split_whitespace().next()?.parse().ok());
                    let left = all.saturating_sub(kib.unwrap_or(0_u64) << 10);
                    least.fetch_min(left, Ordering::SeqCst);
                    let text = meminfo(left);
                    file.write_all_at(text.as_bytes(), 0).expect("room");
                    thread::sleep(TICK);
                }
            }
        };
        Self {
            ends,
            least,
            writes: Some(thread::spawn(write)),
        }
    }

    fn least(&self) -> u64 {
        self.least.load(Ordering::SeqCst)
    }
}

impl Drop for MemoryMonitor {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        self.writes.take().map(JoinHandle::join);
    }
}

/// Connects, and sends nearly as much as an unknown peer may on streams that are not read. `None`
/// if it is refused.
async fn fill(
    unknown_peer: &EndpointDialer,
    site: &AttackedNode<'_>,
) -> Option<(Connection, Vec<SendStream>)> {
    let target = site.parsed();
    let dialled = within(unknown_peer.dial_over(Carriage::Quic, &target, super::CALL)).await;
    let connection = dialled.ok()?;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = within(connection.open_uni()).await.ok()?;
        let piece = Bytes::from(vec![7; STREAM_BYTES]);
        within(stream.write_chunk(piece)).await.ok()?;
        streams.push(stream);
    }
    Some((connection, streams))
}

fn relieved(info: &Value) -> u64 {
    info["endpoint"]["relieved"].as_u64().expect("a counter")
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_peers_who_take_all_memory_end_and_others_are_served() {
    let bench = TestBench::new();
    if let Some(node) = block_in_place(|| bench.host_on(MACHINE, LIMITS)) {
        let site = AttackedNode {
            admin: bench.admin(),
            target: node.target().to_owned(),
        };
        let admin = EndpointDialer::new(Some(key_of(bench.admin())));
        let admin = site.dial(&admin, Carriage::Quic).await;
        answers(&admin).await;
        let machine = MemoryMonitor::watch(&node, &bench.path().join("host.meminfo"));
        assert_eq!(relieved(&site.info(&[])), 0);

        let unknown_peer = EndpointDialer::new(None);
        let mut held = Vec::new();
        let mut tried = 0;
        while tried < CONNECTIONS {
            let fills = (0..AT_ONCE).map(|_| fill(&unknown_peer, &site));
            held.extend(
                futures_util::future::join_all(fills)
                    .await
                    .into_iter()
                    .flatten(),
            );
            tried += AT_ONCE;
            // The node answers known peers meanwhile.
            answers(&admin).await;
        }
        let info = site.info(&[]);
        println!(
            "figure {} connections were let in, {} ended, at least {} KiB were left",
            held.len(),
            relieved(&info),
            machine.least() >> 10
        );
        assert!(relieved(&info) > 0, "{info}");
        assert!(machine.least() > 0, "the kernel would have ended the node");
        let problems = info["problems"].as_array().expect("a list");
        let told = problems.iter().any(|it| it["code"] == "memory-short");
        assert!(told, "{info}");

        // After they are gone, other unknown peers are served again.
        drop(held);
        let again = async {
            let target = site.parsed();
            let served = async || match unknown_peer
                .dial_over(Carriage::Quic, &target, super::CALL)
                .await
            {
                Ok(connection) => is_answered(&connection).await,
                Err(_) => false,
            };
            while !served().await {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        within(again).await;
        answers(&admin).await;
    }
}
