//! What a call costs, beside tonic; and what our router adds to bare quinn.
//!
//! Every case runs for a moment in each round, one after the other, so that a busy machine disturbs
//! all of them alike. Servers and clients live in this process, each side on a runtime of its own
//! with half of the processors; that is so for every peer. Processor seconds are those of both
//! sides together, kernel included, and disturb less than the clock.

mod grpc;
pub(super) mod measure;
pub(super) mod node;
mod quic;
pub(super) mod sides;

use std::collections::BTreeMap;
use std::time::Duration;

use alknet_core::Carriage;

use self::grpc::{GrpcChannels, TonicServer};
use self::measure::{LoadPlan, LoadSample};
use self::node::{CallBenchNode, CallClients};
use self::quic::{BareQuinn, RouterPeer};
use self::sides::{BenchKeys, SideRuntimes};
use super::rows::{BenchRow, Goal};
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::Result;

/// Name of this benchmark in rows.
const BENCH: &str = "call";

/// What the peers are called in rows.
const TONIC: &str = "tonic over HTTP/2 and TLS 1.3";
const QUINN: &str = "bare quinn";

/// Calls under way at any time.
const IN_FLIGHT: usize = 64;

/// Connections where there are many.
const MANY: usize = 16;

/// What small calls carry, in bytes.
const SIZES: [usize; 2] = [64, 4096];

/// What an event of a stream carries, in bytes.
const ITEM_BYTES: usize = 64;

/// What an event of a large stream carries, in bytes.
const BULK_BYTES: usize = 256 << 10;

/// How long each case is loaded in each round.
const PLAN: LoadPlan = LoadPlan {
    warm_up: Duration::from_millis(150),
    window: Duration::from_millis(600),
};

/// Promised figures; docs/SPECIFICATION.md quotes them.
mod goals {
    /// Calls a second, of tonic's.
    pub(super) const CALLS: f64 = 1.5;
    /// The slowest hundredth, of tonic's.
    pub(super) const P99: f64 = 1.0;
    /// Bulk through the router, of bare quinn's.
    pub(super) const BULK: f64 = 0.97;
    /// Handshakes and streams through the router, of bare quinn's.
    pub(super) const ROUTED: f64 = 0.95;
}

/// Who does the work of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum CallSide {
    Tonic,
    Quic,
    Tcp,
    Bare,
    Routed,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum CallWork {
    Unary { bytes: usize, connections: usize },
    Items,
    Bulk,
    Handshakes,
    Streams,
    Flood,
    Upload,
}

type Samples = BTreeMap<(CallWork, CallSide), Vec<LoadSample>>;

/// Measures every case in turn, as often as asked.
pub(super) fn run(_: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    measure(PLAN, rounds)
}

fn measure(plan: LoadPlan, rounds: usize) -> Result<Vec<BenchRow>> {
    let sides = SideRuntimes::new()?;
    let mut samples = Samples::new();
    let pairs = [1, MANY]
        .into_iter()
        .map(|connections| CallServerPair::start(&sides, connections))
        .collect::<Result<Vec<_>>>()?;
    let keys = BenchKeys::new(1)?;
    let routed = RouterPeer::start(&sides, &keys)?;
    let bare = BareQuinn::start(&sides, &keys)?;
    sides.client.block_on(async {
        for round in 1..=rounds {
            eprintln!("round {round} of {rounds} ...");
            for pair in &pairs {
                pair.round(plan, &mut samples).await?;
            }
            quic_round(&bare, CallSide::Bare, plan, &mut samples).await?;
            quic_round(&routed, CallSide::Routed, plan, &mut samples).await?;
        }
        Ok(rows(&samples))
    })
}

/// Both servers, and connections to them.
struct CallServerPair {
    connections: usize,
    _node: CallBenchNode,
    tonic: GrpcChannels,
    quic: CallClients,
    tcp: CallClients,
}

impl CallServerPair {
    fn start(sides: &SideRuntimes, connections: usize) -> Result<Self> {
        // A peer has its newest connection only: each carriage has keys of its own.
        let (quic, tcp) = (BenchKeys::new(connections)?, BenchKeys::new(connections)?);
        let quic = BenchKeys {
            server: tcp.server.clone(),
            ..quic
        };
        let both = BenchKeys {
            server: tcp.server.clone(),
            clients: [quic.clients.clone(), tcp.clients.clone()].concat(),
        };
        let node = CallBenchNode::start(sides, &both)?;
        let tonic = TonicServer::start(sides, &tcp)?;
        sides.client.block_on(async {
            Ok(Self {
                connections,
                tonic: tonic.connect(&tcp).await?,
                quic: node.connect(&quic, Carriage::Quic).await?,
                tcp: node.connect(&tcp, Carriage::Tcp).await?,
                _node: node,
            })
        })
    }

    async fn round(&self, plan: LoadPlan, samples: &mut Samples) -> Result<()> {
        let connections = self.connections;
        let mut put = |work, side, sample| samples.entry((work, side)).or_default().push(sample);
        for bytes in SIZES {
            let work = CallWork::Unary { bytes, connections };
            put(
                work,
                CallSide::Tonic,
                self.tonic.unary(plan, bytes, IN_FLIGHT).await?,
            );
            put(
                work,
                CallSide::Quic,
                self.quic.unary(plan, bytes, IN_FLIGHT).await?,
            );
            put(
                work,
                CallSide::Tcp,
                self.tcp.unary(plan, bytes, IN_FLIGHT).await?,
            );
        }
        // A stream is on one connection: the pair with many has the same.
        if connections == 1 {
            put(
                CallWork::Items,
                CallSide::Tonic,
                self.tonic.items(plan).await?,
            );
            put(
                CallWork::Items,
                CallSide::Quic,
                self.quic.items(plan).await?,
            );
            put(CallWork::Items, CallSide::Tcp, self.tcp.items(plan).await?);
            put(
                CallWork::Bulk,
                CallSide::Tonic,
                self.tonic.bulk(plan).await?,
            );
            put(CallWork::Bulk, CallSide::Quic, self.quic.bulk(plan).await?);
            put(CallWork::Bulk, CallSide::Tcp, self.tcp.bulk(plan).await?);
        }
        Ok(())
    }
}

async fn quic_round<P: quic::QuicPeer>(
    peer: &P,
    side: CallSide,
    plan: LoadPlan,
    samples: &mut Samples,
) -> Result<()> {
    let mut put = |work, sample| samples.entry((work, side)).or_default().push(sample);
    put(CallWork::Handshakes, quic::handshakes(peer, plan).await?);
    put(
        CallWork::Streams,
        quic::streams(peer, plan, IN_FLIGHT).await?,
    );
    put(CallWork::Flood, quic::bulk(peer, plan).await?);
    put(CallWork::Upload, quic::upload(peer, plan).await?);
    Ok(())
}

/// A worker for each of `workers`, which take turns over `connections`.
fn spread<C, W>(connections: &[C], workers: usize, worker: impl Fn(&C) -> W) -> Vec<W> {
    connections
        .iter()
        .cycle()
        .take(workers)
        .map(worker)
        .collect()
}

/// How a kind of work is shown.
struct CallWorkLabel {
    name: String,
    per_second: &'static str,
    cpu: &'static str,
    /// Units of work in one that is shown.
    of: f64,
    ours: &'static [(CallSide, &'static str)],
    peer: CallSide,
    peer_name: &'static str,
    goal: Option<f64>,
    latency: bool,
}

impl CallWork {
    fn shown(self) -> CallWorkLabel {
        let beside_tonic = CallWorkLabel {
            name: String::new(),
            per_second: "calls/s",
            cpu: "CPU s/M calls",
            of: 1.0,
            ours: &[(CallSide::Quic, ", QUIC"), (CallSide::Tcp, ", TLS/TCP")],
            peer: CallSide::Tonic,
            peer_name: TONIC,
            goal: None,
            latency: false,
        };
        let beside_quinn = || CallWorkLabel {
            name: String::new(),
            per_second: "MB/s",
            cpu: "CPU s/TB",
            of: 1e6,
            ours: &[(CallSide::Routed, "")],
            peer: CallSide::Bare,
            peer_name: QUINN,
            goal: Some(goals::ROUTED),
            latency: false,
        };
        match self {
            Self::Unary { bytes, connections } => CallWorkLabel {
                name: match connections {
                    1 => format!("unary {bytes} B, 1 connection"),
                    many => format!("unary {bytes} B, {many} connections"),
                },
                goal: Some(goals::CALLS),
                latency: true,
                ..beside_tonic
            },
            Self::Items => CallWorkLabel {
                name: format!("server stream, {ITEM_BYTES} B"),
                per_second: "items/s",
                cpu: "CPU s/M items",
                ..beside_tonic
            },
            Self::Bulk => CallWorkLabel {
                name: format!("bulk, {} KiB", BULK_BYTES >> 10),
                per_second: "MB/s",
                cpu: "CPU s/TB",
                of: 1e6,
                ..beside_tonic
            },
            Self::Handshakes => CallWorkLabel {
                name: "router: handshakes".to_owned(),
                per_second: "handshakes/s",
                cpu: "CPU s/M",
                of: 1.0,
                ..beside_quinn()
            },
            Self::Streams => CallWorkLabel {
                name: format!("router: streams of 64 B, {IN_FLIGHT} at once"),
                per_second: "streams/s",
                cpu: "CPU s/M",
                of: 1.0,
                ..beside_quinn()
            },
            Self::Flood => CallWorkLabel {
                name: "router: bulk".to_owned(),
                goal: Some(goals::BULK),
                ..beside_quinn()
            },
            Self::Upload => CallWorkLabel {
                name: "router: upload".to_owned(),
                goal: None,
                ..beside_quinn()
            },
        }
    }
}

fn rows(samples: &Samples) -> Vec<BenchRow> {
    let works: std::collections::BTreeSet<CallWork> =
        samples.keys().map(|(work, _)| *work).collect();
    works
        .into_iter()
        .flat_map(|work| work_rows(work, samples))
        .collect()
}

fn work_rows(work: CallWork, samples: &Samples) -> Vec<BenchRow> {
    let shown = work.shown();
    let of = |side| {
        samples
            .get(&(work, side))
            .map(|all| LoadSample::median(all))
    };
    let Some(peer) = of(shown.peer) else {
        return Vec::new();
    };
    let mut rows = Vec::new();
    for (side, suffix) in shown.ours {
        let Some(ours) = of(*side) else { continue };
        let case = format!("{}{suffix}", shown.name);
        let mut speed =
            BenchRow::higher(BENCH, &case, shown.per_second, ours.per_second / shown.of)
                .beside(shown.peer_name, peer.per_second / shown.of);
        if let Some(goal) = shown.goal {
            speed = speed.goal(Goal::Ratio(goal));
        }
        rows.push(speed);
        rows.push(
            BenchRow::lower(BENCH, &case, shown.cpu, ours.cpu_s_per_million * shown.of)
                .beside(shown.peer_name, peer.cpu_s_per_million * shown.of),
        );
        if shown.latency {
            let latency =
                |unit, ours, peer| BenchRow::lower(BENCH, &case, unit, ours).beside(TONIC, peer);
            rows.push(latency("us p50", ours.p50_us, peer.p50_us));
            let p99 = latency("us p99", ours.p99_us, peer.p99_us);
            rows.push(p99.goal(Goal::Ratio(goals::P99)));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Most tries until every side did something.
    const TRIES: u32 = 4;

    /// The figures of so short a time mean nothing; that there are any shows that every side works.
    #[test]
    fn every_case_is_measured() {
        let plan = LoadPlan {
            warm_up: alknet_test_support::deadline(Duration::from_millis(20)),
            window: alknet_test_support::deadline(Duration::from_millis(50)),
        };
        // On a busy machine a side may do nothing in its short time.
        let mut tries = (0..TRIES).map(|_| measure(plan, 1));
        let rows = tries.find_map(Result::ok).expect("loopback works");
        let cases: std::collections::BTreeSet<_> = rows.iter().map(|row| &row.case).collect();
        assert_eq!(cases.len(), 2 * 4 + 2 * 2 + 4, "{cases:?}");
        for row in rows {
            assert!(row.ratio.is_some(), "{row:?}");
        }
    }
}
