//! Attacks on the node: each ends with its documented code, and a legitimate caller is served
//! meanwhile.

mod callers;
mod crowds;
mod files;
mod forged;
mod frames;
mod shortage;
mod silence;
mod windows;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use alknet_core::{Carriage, Connection, StreamError};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_test_support::{deadline, is_campaign};
use alknet_tests::{CliRunner, HostNode, TestBench, wire};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::task::block_in_place;

/// How long anything may take before a test counts as hung. Guests may run in emulation.
fn hung() -> Duration {
    deadline(Duration::from_secs(120))
}

/// How long a handshake may take, as in docs/endpoint.md.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// Codes of docs/endpoint.md, of a connection and of a stream.
const PROTOCOL: u64 = 5;
const TIMEOUT: u64 = 8;

/// How long a caller waits before it reads the node's counters again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

const CALL: &[u8] = b"alknet/call";

const CARRIAGES: [Carriage; 2] = [Carriage::Quic, Carriage::Tcp];

/// Campaigns have higher counts than continuous integration has time for.
fn count(few: usize, many: usize) -> usize {
    if is_campaign() { many } else { few }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(hung(), work).await.expect("it hangs")
}

/// A node under attack, and its administrator, who is a legitimate caller.
struct AttackedNode<'a> {
    admin: &'a CliRunner,
    target: String,
}

impl<'a> AttackedNode<'a> {
    /// A node on this host. It ends when the first of the two is dropped.
    fn on_host(bench: &'a TestBench) -> (HostNode, Self) {
        let node = bench.host();
        let site = Self {
            admin: bench.admin(),
            target: node.target().to_owned(),
        };
        (node, site)
    }

    async fn dial(&self, dialer: &EndpointDialer, carriage: Carriage) -> Connection {
        let dialled = dialer.dial_over(carriage, &self.parsed(), CALL).await;
        dialled.expect("every client may connect")
    }

    fn parsed(&self) -> Target {
        self.target.parse().expect("the node's own target")
    }

    fn address(&self) -> SocketAddr {
        self.parsed()
            .address()
            .parse()
            .expect("an address, not a name")
    }

    /// `node/info` for the legitimate caller.
    fn info(&self, more: &[&str]) -> Value {
        block_in_place(|| {
            self.admin
                .call(&self.target, "node/info", &Value::Null, more)
                .json()
        })
    }

    fn serves(&self) {
        for carriage in ["quic", "tcp"] {
            let info = self.info(&["--carriage", carriage]);
            assert_eq!(info["problems"], json!([]), "{info}");
        }
    }

    /// Calls until all `many` handshakes since `began` have ended, except those that may be in
    /// progress at once, either by the node's limits or by timeout. Each of these calls is served
    /// too. In each [`HANDSHAKE_TIME`], at most as many time out as may be in progress. If the
    /// crowd comes within one, the limits ended all others.
    async fn served_until_handshakes_end(
        &self,
        before: &Value,
        many: usize,
        under_way_max: usize,
        began: Instant,
    ) {
        let since = |now: &Value, ends: &[&str]| ended(now, ends) - ended(before, ends);
        let until = Instant::now() + hung();
        loop {
            let now = &self.info(&[])["endpoint"];
            let timed_out = since(now, &["timeout"]);
            let periods = began.elapsed().as_secs() / HANDSHAKE_TIME.as_secs();
            let timed_out_max = under_way_max * usize::try_from(periods).expect("few");
            assert!(
                timed_out <= timed_out_max,
                "{timed_out} ran out of time in {periods} periods, from {before} to {now}"
            );
            if since(now, &BY_LIMITS) + timed_out >= many.saturating_sub(under_way_max) {
                return;
            }
            assert!(
                Instant::now() < until,
                "less than {many} from {before} to {now}"
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// How handshakes end that exceed a limit or must first prove their address. Those that time out
/// would end without any limit.
const BY_LIMITS: [&str; 4] = ["evicted", "ignored", "refused", "retried"];

/// Handshakes that ended this way.
fn ended(counters: &Value, ends: &[&str]) -> usize {
    let count = |end| counters[format!("handshakes_{end}")].as_u64();
    ends.iter().filter_map(count).sum::<u64>() as usize
}

fn key() -> NodeKey {
    NodeKey::generate().expect("the system has entropy")
}

fn key_of(cli: &CliRunner) -> NodeKey {
    cli.identity();
    let path = cli.state().join("identity.key");
    NodeKey::load_or_create(&path)
        .expect("the key was just made")
        .0
}

/// How a stream ended for its peer.
#[derive(Debug, PartialEq, Eq)]
enum AttackedStreamEnd {
    /// The connection ended with it, because there is no other stream.
    Closed,
    /// Only the stream.
    Reset(u64),
}

impl AttackedStreamEnd {
    /// How `code` appears outside on this carriage.
    fn by(code: u64, connection: &Connection) -> Self {
        if connection.is_multi() {
            Self::Reset(code)
        } else {
            Self::Closed
        }
    }
}

/// Sends `bytes` on a separate stream, keeps it open unless `finish`, and waits for its end.
async fn send(connection: &Connection, bytes: &[u8], finish: bool) -> AttackedStreamEnd {
    let (mut send, mut recv) = wire::stream(connection).await.expect("it is connected");
    // The node may have ended the stream before it received everything.
    send.write_chunk(bytes.to_vec().into()).await.ok();
    if finish {
        send.finish().ok();
    }
    loop {
        match recv.read_chunk(usize::MAX).await {
            Ok(Some(_)) => {}
            Ok(None) | Err(StreamError::Closed(_)) => return AttackedStreamEnd::Closed,
            Err(StreamError::Reset(code)) => return AttackedStreamEnd::Reset(code),
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn answers(connection: &Connection) {
    let (mut send, mut recv) = wire::stream(connection).await.expect("it is connected");
    let request = wire::request("1", "services/list", &Value::Null);
    send.write_chunk(request.into())
        .await
        .expect("the node reads");
    let event = within(wire::event(&mut recv)).await.expect("an answer");
    assert_eq!(event["type"], "call.responded", "{event}");
}
