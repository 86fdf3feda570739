//! What a connection costs its server that says nothing. Server and clients are processes of their
//! own: what earlier cases left behind in an allocator would hide half of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};

use clap::ValueEnum;

use super::super::call::measure::failed;
use super::super::call::sides::{BenchKeys, SideRuntimes};
use super::super::rows::{BenchRow, Goal, median};
use super::client::{BenchHttpClient, BenchHttpVersion};
use super::peers::{AxumServer, HttpBenchNode, StaticFiles, WebSocketEcho};
use super::{BENCH, goals, websocket};
use alknet_tasks::failure::Result;

/// Connections that are open before the counting begins, for what a process makes once.
const BEFORE: usize = 50;
/// Connections that say nothing at the same time.
const COUNTED: usize = 500;
/// How often each kind is counted, by new processes; the median counts.
const TIMES: usize = 3;

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IdleServer {
    Alknet,
    Axum,
    Echo,
}

/// What is opened and then left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IdleKind {
    H1,
    H2,
    H3,
    Websocket,
}

/// One of the two processes; it ends with its input.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum IdleProcessRole {
    /// Serves, and prints its address
    Serve { server: IdleServer },
    /// Opens connections, the rest of them once it has read a line, and says when they are open
    Hold { address: SocketAddr, kind: IdleKind },
}

/// Plays a part.
pub(crate) fn play(part: &IdleProcessRole) -> Result<()> {
    match part {
        IdleProcessRole::Serve { server } => serve(*server),
        IdleProcessRole::Hold { address, kind } => hold(*address, *kind),
    }
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    let said = writeln!(out, "{line}").and_then(|()| out.flush());
    said.map_err(failed("telling the benchmark"))
}

/// Until the benchmark closes its end.
fn wait_for_the_end() -> Result<()> {
    let read = std::io::stdin().read_to_end(&mut Vec::new());
    read.map(drop).map_err(failed("waiting for the end"))
}

fn serve(server: IdleServer) -> Result<()> {
    let sides = SideRuntimes::new()?;
    let keys = BenchKeys::new(1)?;
    let files = StaticFiles::make()?;
    match server {
        IdleServer::Alknet => {
            let node = HttpBenchNode::start(&sides, &keys, &files)?;
            say(&node.address().to_string())?;
            wait_for_the_end()
        }
        IdleServer::Axum => {
            let axum = AxumServer::start(&sides, &keys)?;
            say(&axum.address().to_string())?;
            wait_for_the_end()
        }
        IdleServer::Echo => {
            let echo = WebSocketEcho::start(&sides, &keys)?;
            say(&echo.address().to_string())?;
            wait_for_the_end()
        }
    }
}

/// A connection that is kept open.
enum IdleConnection {
    Http(#[expect(dead_code, reason = "it is open as long as it is there")] BenchHttpClient),
    Socket(
        #[expect(dead_code, reason = "it is open as long as it is there")]
        Box<websocket::BenchWebSocket<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>>,
    ),
}

async fn open(address: SocketAddr, kind: IdleKind) -> Result<IdleConnection> {
    let version = match kind {
        IdleKind::H1 => BenchHttpVersion::H1,
        IdleKind::H2 => BenchHttpVersion::H2,
        IdleKind::H3 => BenchHttpVersion::H3,
        IdleKind::Websocket => {
            let stream = BenchHttpClient::tls(address, BenchHttpVersion::H1).await?;
            let authority = address.to_string();
            let socket = websocket::open(stream, &authority, super::peers::TOKEN).await?;
            return Ok(IdleConnection::Socket(Box::new(socket)));
        }
    };
    Ok(IdleConnection::Http(
        BenchHttpClient::asked_once(address, version).await?,
    ))
}

fn hold(address: SocketAddr, kind: IdleKind) -> Result<()> {
    let sides = SideRuntimes::new()?;
    let mut kept = Vec::new();
    for (number, line) in [(BEFORE, "warm"), (COUNTED, "open")] {
        kept.extend(sides.client.block_on(async {
            let mut opened = Vec::new();
            for _ in 0..number {
                opened.push(open(address, kind).await?);
            }
            Ok::<_, alknet_tasks::failure::TaskError>(opened)
        })?);
        say(line)?;
        let mut told = String::new();
        let read = std::io::stdin().read_line(&mut told);
        read.map_err(failed("waiting for the benchmark"))?;
    }
    Ok(())
}

/// One of the processes, ended when dropped.
struct IdleBenchProcess {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl IdleBenchProcess {
    fn start(arguments: &[&str]) -> Result<Self> {
        let this = std::env::current_exe().map_err(failed("finding this program"))?;
        let child = Command::new(this)
            .arg("bench-idle")
            .args(arguments)
            // The allocator returns free memory at once. Else it is counted or not by when the benchmark
            // looks, in steps of half a MiB, which is one KiB for each connection.
            .env("MIMALLOC_PURGE_DELAY", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.map_err(failed("starting a process"))?;
        let lines = child.stdout.take().map(BufReader::new);
        let lines = lines.ok_or_else(|| failed("starting a process")("it has no output"))?;
        Ok(Self { child, lines })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line);
        match read.map_err(failed("hearing of a process"))? {
            0 => Err(failed("hearing of a process")("it ended; see its message")),
            _ => Ok(line.trim().to_owned()),
        }
    }

    fn go_on(&mut self) -> Result<()> {
        let input = self.child.stdin.as_mut();
        let input = input.ok_or_else(|| failed("telling a process")("it has no input"))?;
        input.write_all(b"\n").map_err(failed("telling a process"))
    }

    /// Anonymous memory that is resident, in bytes: no other process has it as well.
    fn resident(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(path).map_err(failed("reading memory"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.map(|kib| kib << 10)
            .ok_or_else(|| failed("reading memory")("the kernel does not say"))
    }
}

impl Drop for IdleBenchProcess {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It ends with its input; nothing is left to do about one that failed.
        let _ = self.child.wait();
    }
}

fn name<T: ValueEnum>(value: T) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Memory of one connection at its server, in KiB.
fn kib(server: IdleServer, kind: IdleKind) -> Result<f64> {
    let counts = (0..TIMES).map(|_| once(server, kind));
    Ok(median(counts.collect::<Result<_>>()?))
}

fn once(server: IdleServer, kind: IdleKind) -> Result<f64> {
    let mut server = IdleBenchProcess::start(&["serve", &name(server)])?;
    let address = server.line()?;
    let mut clients = IdleBenchProcess::start(&["hold", &address, &name(kind)])?;
    clients.line()?;
    let before = server.resident()?;
    clients.go_on()?;
    clients.line()?;
    // An allocator may give pages back between the two looks.
    let more = server.resident()?.saturating_sub(before);
    drop(clients);
    Ok(more as f64 / COUNTED as f64 / 1024.0)
}

/// Every kind, beside a peer where there is one.
pub(super) fn rows() -> Result<Vec<BenchRow>> {
    let row = |kind,
               what: &str,
               peer: Option<(IdleServer, &str)>,
               goal: Option<f64>|
     -> Result<BenchRow> {
        let case = format!("{what} that says nothing, at its server");
        let mut row = BenchRow::lower(BENCH, case, "KiB", kib(IdleServer::Alknet, kind)?);
        if let Some((server, name)) = peer {
            row = row.beside(name, kib(server, kind)?);
        }
        Ok(match goal {
            Some(goal) => row.goal(Goal::Ours(goal)),
            None => row,
        })
    };
    let axum = Some((IdleServer::Axum, super::HttpBenchServer::Axum.name()));
    let echo = Some((IdleServer::Echo, websocket::PEER));
    Ok(vec![
        row(IdleKind::H1, "HTTP/1.1: a connection", axum, None)?,
        row(IdleKind::H2, "HTTP/2: a connection", axum, None)?,
        row(
            IdleKind::H3,
            "HTTP/3: a connection",
            None,
            Some(goals::IDLE_H3_KIB),
        )?,
        row(
            IdleKind::Websocket,
            "WebSocket: one",
            echo,
            Some(goals::IDLE_SOCKET_KIB),
        )?,
    ])
}
