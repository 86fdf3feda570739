//! What HTTP costs: calls beside a bare axum handler that does the same work, and static files beside
//! nginx and Caddy.
//!
//! One client, ours and in this process, loads every server in turn, over the same TLS on loopback, for
//! a moment in each round, so that a busy machine disturbs all of them alike. Our node and axum run in
//! this process, on a runtime of their own; nginx and Caddy are processes of one worker for each
//! processor.

mod client;
mod idle;
mod peers;
mod websocket;

pub(crate) use self::client::{BenchHttpClient, BenchHttpVersion};
pub(crate) use self::idle::{IdleProcessRole as IdlePart, play as idle};
pub(crate) use self::peers::{PeerProcess, free_port, pinned_program};

use std::collections::BTreeMap;
use std::time::Duration;

use self::client::HttpLoad;
use self::peers::{AxumServer, CaddyServer, HttpBenchNode, NginxServer, PeerPrograms, StaticFiles};
use super::call::measure::{LoadPlan, LoadSample};
use super::call::sides::{BenchKeys, SideRuntimes};
use super::rows::{BenchRow, Goal, median};
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::Result;

/// Name of this benchmark in rows.
const BENCH: &str = "http";

/// Requests under way at any time.
const IN_FLIGHT: usize = 32;

/// Connections that they travel on.
const CONNECTIONS: usize = 4;

/// Calls of a batch, which has no more.
const BATCH: usize = 64;

/// How long each case is loaded in each round.
const PLAN: LoadPlan = LoadPlan {
    warm_up: Duration::from_millis(150),
    window: Duration::from_millis(600),
};

/// Promised figures; docs/SPECIFICATION.md quotes them.
mod goals {
    /// Calls a second, of bare axum's.
    pub(super) const CALLS: f64 = 0.95;
    /// Files a second, of Caddy's.
    pub(super) const FILES: f64 = 1.0;
    /// Calls a second in batches, of those that are made one after another.
    pub(super) const BATCH: f64 = 10.0;
    /// Memory of an idle connection of HTTP/3, in KiB.
    pub(super) const IDLE_H3_KIB: f64 = 80.0;
    /// Memory of a WebSocket that says nothing, in KiB.
    pub(super) const IDLE_SOCKET_KIB: f64 = 40.0;
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum HttpBenchServer {
    Ours,
    Axum,
    Caddy,
    Nginx,
}

impl HttpBenchServer {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "alknet",
            Self::Axum => "bare axum",
            Self::Caddy => "Caddy",
            Self::Nginx => "nginx",
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum HttpWork {
    Call,
    Small,
    Large,
}

impl HttpWork {
    fn name(self) -> &'static str {
        match self {
            Self::Call => "/call, 64 B",
            Self::Small => "file of 1 KiB",
            Self::Large => "file of 1 MiB",
        }
    }
}

type Case = (HttpWork, BenchHttpVersion, HttpBenchServer);
type Samples = BTreeMap<Case, Vec<LoadSample>>;

/// Measures every case in turn, as often as asked.
pub(super) fn run(cx: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let programs = PeerPrograms::obtain(cx)?;
    measure(&programs, PLAN, rounds)
}

fn measure(programs: &PeerPrograms, plan: LoadPlan, rounds: usize) -> Result<Vec<BenchRow>> {
    let sides = SideRuntimes::new()?;
    let keys = BenchKeys::new(1)?;
    let files = StaticFiles::make()?;
    let node = HttpBenchNode::start(&sides, &keys, &files)?;
    let axum = AxumServer::start(&sides, &keys)?;
    let nginx = NginxServer::start(&programs.nginx, &files)?;
    let caddy = CaddyServer::start(&programs.caddy, &files)?;
    let address = |server| match server {
        HttpBenchServer::Ours => node.address(),
        HttpBenchServer::Axum => axum.address(),
        HttpBenchServer::Caddy => caddy.address(),
        HttpBenchServer::Nginx => nginx.address(),
    };
    let mut samples = Samples::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds} ...");
        for case in cases() {
            let (work, version, server) = case;
            let load = HttpLoad {
                address: address(server),
                version,
                call: (work == HttpWork::Call).then(|| node.token().to_owned()),
                calls: 1,
                path: files.path(work == HttpWork::Large).to_owned(),
            };
            let sample = sides
                .client
                .block_on(load.run(plan, CONNECTIONS, IN_FLIGHT))?;
            samples.entry(case).or_default().push(sample);
        }
    }
    let mut rows = rows(&samples);
    rows.push(batches(plan, &sides, &node, rounds)?);
    rows.push(sockets(plan, &sides, &node, &keys, rounds)?);
    rows.extend(idle::rows()?);
    Ok(rows)
}

/// Everything that is measured: nginx of Debian 12 speaks no HTTP/3.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for version in BenchHttpVersion::ALL {
        cases.push((HttpWork::Call, version, HttpBenchServer::Ours));
        cases.push((HttpWork::Call, version, HttpBenchServer::Axum));
        for work in [HttpWork::Small, HttpWork::Large] {
            cases.push((work, version, HttpBenchServer::Ours));
            cases.push((work, version, HttpBenchServer::Caddy));
            if version != BenchHttpVersion::H3 {
                cases.push((work, version, HttpBenchServer::Nginx));
            }
        }
    }
    // A bare handler has no HTTP/3: that is a part of ours.
    cases.retain(|case| *case != (HttpWork::Call, BenchHttpVersion::H3, HttpBenchServer::Axum));
    cases
}

fn rows(samples: &Samples) -> Vec<BenchRow> {
    let figure = |case: &Case| samples.get(case).map(|all| LoadSample::median(all));
    let mut rows = Vec::new();
    for case in samples
        .keys()
        .filter(|(_, _, server)| *server == HttpBenchServer::Ours)
    {
        let (work, version, _) = *case;
        let Some(ours) = figure(case) else { continue };
        let name = |what: &str| format!("{} {}{what}", version.name(), work.name());
        let mut beside = false;
        for server in [
            HttpBenchServer::Axum,
            HttpBenchServer::Caddy,
            HttpBenchServer::Nginx,
        ] {
            let Some(peer) = figure(&(work, version, server)) else {
                continue;
            };
            beside = true;
            let row = BenchRow::higher(BENCH, name(""), "requests/s", ours.per_second);
            let row = row.beside(server.name(), peer.per_second);
            rows.push(match server {
                HttpBenchServer::Axum => row.goal(Goal::Ratio(goals::CALLS)),
                HttpBenchServer::Caddy => row.goal(Goal::Ratio(goals::FILES)),
                _ => row,
            });
            let row = BenchRow::lower(BENCH, name(""), "us p99", ours.p99_us);
            rows.push(row.beside(server.name(), peer.p99_us));
        }
        // Calls over HTTP/3 have no peer, and are shown alone.
        if !beside {
            rows.push(BenchRow::higher(
                BENCH,
                name(""),
                "requests/s",
                ours.per_second,
            ));
            rows.push(BenchRow::lower(BENCH, name(""), "us p99", ours.p99_us));
        }
    }
    rows
}

/// Calls in batches, beside as many one after another on the same connection.
fn batches(
    plan: LoadPlan,
    sides: &SideRuntimes,
    node: &HttpBenchNode,
    rounds: usize,
) -> Result<BenchRow> {
    let (mut together, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (calls, all) in [(BATCH, &mut together), (1, &mut alone)] {
            let load = HttpLoad {
                address: node.address(),
                version: BenchHttpVersion::H1,
                call: Some(node.token().to_owned()),
                calls,
                path: String::new(),
            };
            all.push(sides.client.block_on(load.run(plan, 1, 1))?);
        }
    }
    let per_second = |all: &[LoadSample]| LoadSample::median(all).per_second;
    let case = format!("one connection: /batch of {BATCH} calls, 64 B");
    let row = BenchRow::higher(BENCH, case, "calls/s", per_second(&together));
    let row = row.beside("a /call for each", per_second(&alone));
    Ok(row.goal(Goal::Ratio(goals::BATCH)))
}

/// A call over WebSocket, beside an echo of the same library.
fn sockets(
    plan: LoadPlan,
    sides: &SideRuntimes,
    node: &HttpBenchNode,
    keys: &BenchKeys,
    rounds: usize,
) -> Result<BenchRow> {
    let echo = peers::WebSocketEcho::start(sides, keys)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let authority = node.address().to_string();
    sides.client.block_on(async {
        for _ in 0..rounds {
            for (address, all) in [(node.address(), &mut ours), (echo.address(), &mut theirs)] {
                let stream = BenchHttpClient::tls(address, BenchHttpVersion::H1).await?;
                let mut socket = websocket::open(stream, &authority, node.token()).await?;
                all.push(websocket::round_trip(&mut socket, peers::ECHO, plan.window).await?);
            }
        }
        Ok(websocket::row(median(ours), median(theirs)))
    })
}
