//! sendme, which fetches a file over iroh from the node and from another sendme. It is the same program both times, with a
//! store and a copy of the file of its own, so that only the provider differs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::Instant;

use alknet_core::PeerKey;
use iroh::{EndpointAddr, EndpointId};
use iroh_blobs::ticket::BlobTicket;
use iroh_blobs::{BlobFormat, Hash};
use nix::unistd::geteuid;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::client::{DavClient, UploadBody, noise};
use super::folder::{disk_folder, settle_disk};
use super::node::{FsBenchNode, NodeSetup};
use super::process::{cpu_seconds, run_program};
use super::{BENCH, MIB, count_rounds};
use crate::call::measure::failed;
use crate::child::ChildGuard;
use crate::http::free_port;
use crate::rows::{BenchRow, median};
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::{binary, third_party};

/// Name of the peer in rows.
const PEER: &str = "sendme";

/// Bytes of the file.
const FILE_BYTES: u64 = 1 << 30;

/// The name that the file gets.
const NAME: &str = "large.bin";

/// What `sendme send` says before the ticket.
const TICKET: &str = "sendme receive ";

/// Runs sendme where it finds no name server: it would ask those of its author for peers.
const SCRIPT: &str =
    "test ! -e /etc/resolv.conf || mount --bind \"$RESOLV\" /etc/resolv.conf\nexec \"$@\"\n";

/// Who provides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SendmeProvider {
    Ours,
    Sendme,
}

/// What one fetch took.
#[derive(Clone, Copy, Debug)]
struct SendmeSample {
    mib_s: f64,
    /// Processor time of the provider.
    cpu_s: f64,
}

type Samples = BTreeMap<SendmeProvider, Vec<SendmeSample>>;

/// Measures both providers in turn, as often as asked.
pub(super) fn run(cx: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let port = free_port()?;
    let setup = NodeSetup::make(&binary::plain(cx)?, 1, 1)?.with_iroh(port)?;
    let node = setup.start_with_bucket(cx)?;
    let sendme = SendmeProgram::prepare(cx)?;
    let file = sendme.folder.path().join(NAME);
    let runtime = Runtime::new().map_err(failed("starting a runtime"))?;
    let sequence = runtime.block_on(store_file(&node, &file))?;
    let ours = BlobTicket::new(node_address(&node, port)?, sequence, BlobFormat::HashSeq);
    let theirs = SendmeServer::start(&sendme, &file)?;
    // The key of a peer that may read the bucket, as iroh takes it from the environment. Another sendme asks for none.
    let secret = node.secret(0)?;
    let mut samples = Samples::new();
    for _ in count_rounds(rounds) {
        for side in [SendmeProvider::Ours, SendmeProvider::Sendme] {
            let (ticket, pid) = match side {
                SendmeProvider::Ours => (&ours, node.pid()),
                SendmeProvider::Sendme => (&theirs.ticket, theirs.child.id()),
            };
            settle_disk();
            let before = cpu_seconds(pid)?;
            let seconds = sendme.receive(ticket, &secret)?;
            let sample = SendmeSample {
                mib_s: FILE_BYTES as f64 / MIB / seconds,
                cpu_s: cpu_seconds(pid)? - before,
            };
            samples.entry(side).or_default().push(sample);
        }
    }
    Ok(rows(&samples))
}

/// Stores the file, and what `sendme send` makes of it: the list of its name, and the hashes of both. Writes the same file
/// for the peer. Returns the hash of the last.
async fn store_file(node: &FsBenchNode<'_>, to: &Path) -> Result<Hash> {
    let mut client = DavClient::open(node.root(0)?).await?;
    let block = noise();
    let content = || UploadBody::long(0, FILE_BYTES, &block);
    let mut file = File::create(to).map_err(TaskError::io("make a file"))?;
    let mut hasher = blake3::Hasher::new();
    for piece in content().pieces() {
        hasher.update(&piece);
        let written = file.write_all(&piece);
        written.map_err(TaskError::io("write a file"))?;
    }
    client.put("/large", content()).await?;
    // A collection of iroh-blobs: a mark, the number of names, and each name behind its length (postcard).
    let counts = [1, NAME.len() as u8];
    let names = [&b"CollectionV0."[..], &counts, NAME.as_bytes()].concat();
    let names_hash = blake3::hash(&names);
    let file_hash = hasher.finalize();
    let sequence = [&names_hash.as_bytes()[..], file_hash.as_bytes()].concat();
    let sequence_hash = blake3::hash(&sequence);
    for (path, bytes) in [("/names", names), ("/sequence", sequence)] {
        client.put(path, UploadBody::short(bytes.into())).await?;
    }
    Ok(Hash::from_bytes(*sequence_hash.as_bytes()))
}

/// The node's address in iroh's form.
fn node_address(node: &FsBenchNode<'_>, port: u16) -> Result<EndpointAddr> {
    let key: PeerKey = node.identity().parse().map_err(failed("naming the node"))?;
    let PeerKey::Ed25519(key) = key else {
        return Err(failed("naming the node")("iroh has no keys of this kind"));
    };
    let id = EndpointId::from_bytes(&key).map_err(failed("naming the node"))?;
    Ok(EndpointAddr::new(id).with_ip_addr(loopback(port)))
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

/// The pinned program, and a folder on a disk for what it stores.
struct SendmeProgram {
    program: PathBuf,
    folder: TempDir,
}

impl SendmeProgram {
    fn prepare(cx: &XtaskContext) -> Result<Self> {
        let this = Self {
            program: third_party::sendme(cx)?,
            folder: disk_folder()?,
        };
        let written = std::fs::write(this.resolv(), "nameserver 127.0.0.1\n");
        written.map_err(TaskError::io("write a file"))?;
        Ok(this)
    }

    fn resolv(&self) -> PathBuf {
        self.folder.path().join("resolv.conf")
    }

    /// Its command in a mount namespace of its own, and in this folder.
    fn command(&self, within: &Path) -> Command {
        let mut command = Command::new("unshare");
        command.arg("--mount");
        if !geteuid().is_root() {
            // Only root may make a mount namespace by itself.
            command.arg("--map-root-user");
        }
        command
            .args(["sh", "-euc", SCRIPT, "sh"])
            .arg(&self.program)
            .env("RESOLV", self.resolv())
            .env_remove("IROH_SECRET")
            .current_dir(within);
        command
    }

    /// Fetches a file into a new folder. Returns the seconds that the whole command took: it stores what comes, compares
    /// it with its hash and writes the file.
    fn receive(&self, ticket: &BlobTicket, secret: &str) -> Result<f64> {
        let into = TempDir::new_in(self.folder.path()).map_err(TaskError::io("make a folder"))?;
        let mut receive = self.command(into.path());
        receive
            .args(["receive", "--no-progress", "--relay", "disabled"])
            .arg(ticket.to_string())
            .env("IROH_SECRET", secret);
        let begun = Instant::now();
        run_program(&mut receive)?;
        let seconds = begun.elapsed().as_secs_f64();
        let fetched = std::fs::metadata(into.path().join(NAME));
        let bytes = fetched.map_err(TaskError::io("look at a file"))?.len();
        match bytes == FILE_BYTES {
            true => Ok(seconds),
            false => Err(failed("fetching a file")("it has another length")),
        }
    }
}

/// `sendme send`, ended on drop.
struct SendmeServer {
    child: ChildGuard,
    ticket: BlobTicket,
    /// Its output: without a reader it would end at its next line.
    _said: BufReader<ChildStdout>,
}

impl SendmeServer {
    fn start(sendme: &SendmeProgram, file: &Path) -> Result<Self> {
        let port = free_port()?;
        let child = sendme
            .command(sendme.folder.path())
            .args(["send", "--no-progress", "--relay", "disabled"])
            .args(["--magic-ipv4-addr", &loopback(port).to_string()])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = ChildGuard::new(child.map_err(failed("starting sendme"))?);
        let said = child.take_stdout();
        let mut said = BufReader::new(said.ok_or_else(|| failed("starting sendme")("no output"))?);
        // It hashes the file before it says how to get it.
        let ticket = loop {
            let mut line = String::new();
            let read = said
                .read_line(&mut line)
                .map_err(failed("hearing of sendme"))?;
            if read == 0 {
                return Err(failed("starting sendme")("it ended before it had a ticket"));
            }
            if let Some(ticket) = line.trim().strip_prefix(TICKET) {
                break ticket
                    .parse::<BlobTicket>()
                    .map_err(failed("reading a ticket"))?;
            }
        };
        // Its own list of addresses has those of every network here.
        let address = EndpointAddr::new(ticket.addr().id).with_ip_addr(loopback(port));
        Ok(Self {
            child,
            ticket: BlobTicket::new(address, ticket.hash(), ticket.format()),
            _said: said,
        })
    }
}

fn rows(samples: &Samples) -> Vec<BenchRow> {
    let both = |part: fn(&SendmeSample) -> f64| {
        [SendmeProvider::Ours, SendmeProvider::Sendme].map(|side| {
            let all = samples.get(&side).into_iter().flatten();
            median(all.map(part).collect())
        })
    };
    let case = "sendme receive: 1 GiB";
    let [ours, theirs] = both(|sample| sample.mib_s);
    let [cpu, their_cpu] = both(|sample| sample.cpu_s);
    vec![
        BenchRow::higher(BENCH, case, "MiB/s", ours).beside(PEER, theirs),
        BenchRow::lower(BENCH, case, "CPU s/GiB", cpu).beside(PEER, their_cpu),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_stands_beside_the_other_sendme() {
        let sample = |mib_s, cpu_s| vec![SendmeSample { mib_s, cpu_s }];
        let samples = Samples::from([
            (SendmeProvider::Ours, sample(90.0, 3.0)),
            (SendmeProvider::Sendme, sample(100.0, 2.0)),
        ]);
        let ratios: Vec<_> = rows(&samples).iter().map(|row| row.ratio).collect();
        assert_eq!(ratios, [Some(0.9), Some(1.5)]);
    }
}
