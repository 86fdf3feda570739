//! 1 GiB up and down: over HTTP beside nginx and rclone by one client, and by the command line beside scp.
//!
//! Ours is durable when it is acknowledged, and no other server syncs. So nginx's upload is also measured together with a
//! sync of its file.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use super::client::{DavClient, DavRoot, UploadBody, noise};
use super::folder::{disk_folder, settle_disk, sync_file};
use super::node::{BUCKET, FsBenchNode, NodeSetup};
use super::peers::{DavPeer, DavPeers};
use super::process::run_program;
use super::ssh::SshServer;
use super::{BENCH, count_rounds, goals, promised};
use crate::call::measure::failed;
use crate::call::sides::SideRuntimes;
use crate::rows::{BenchRow, median};
use crate::work_cost::WorkCost;
use alknet_tasks::binary;
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};

/// Bytes of the file.
const FILE_BYTES: u64 = 1 << 30;

/// Most rounds: in each, every server writes the file.
const BULK_ROUNDS_MAX: usize = 3;

/// The file over HTTP.
const PATH: &str = "/long";

const MEGA: f64 = 1e6;
const GIGA: f64 = 1e9;

/// Who moves the file, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum BulkSide {
    Ours,
    Peer(DavPeer),
    /// nginx, and then a sync of its file.
    NginxSynced,
    /// `alknet fs put` and `alknet fs get`.
    CommandLine,
    Scp,
}

impl BulkSide {
    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "alknet",
            Self::Peer(peer) => peer.name(),
            Self::NginxSynced => "nginx, synced",
            Self::CommandLine => "alknet fs",
            Self::Scp => "scp",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum BulkDirection {
    Down,
    Up,
}

/// What one transfer cost: by the clock, and in time of processors.
///
/// Over HTTP that is the server's. Where programs are compared, it is the server's and the program's.
type Samples = BTreeMap<(BulkDirection, BulkSide), Vec<WorkCost>>;

/// Measures; a round has a node of its own, so that the disk holds one round.
pub(super) fn run(cx: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let program = binary::plain(cx)?;
    let bench = BulkBench {
        peers: DavPeers::start(cx)?,
        ssh: SshServer::start(cx)?,
        sides: SideRuntimes::new()?,
    };
    let mut samples = Samples::new();
    for round in count_rounds(rounds.min(BULK_ROUNDS_MAX)) {
        let setup = NodeSetup::make(&program, 1, 0)?;
        let node = setup.start_with_bucket(cx)?;
        let mut add = |(direction, side), cost: WorkCost| {
            samples.entry((direction, side)).or_default().push(cost);
        };
        bench.over_http(&node, round as u64, &mut add)?;
        bench.by_programs(&node, &mut add)?;
    }
    Ok(rows(&samples))
}

struct BulkBench {
    peers: DavPeers,
    ssh: SshServer,
    sides: SideRuntimes,
}

impl BulkBench {
    fn over_http(
        &self,
        node: &FsBenchNode<'_>,
        round: u64,
        add: &mut impl FnMut((BulkDirection, BulkSide), WorkCost),
    ) -> Result<()> {
        let block = noise();
        let upload = |root: DavRoot| {
            // The node would know the content of the round before.
            let content = UploadBody::long(round, FILE_BYTES, &block);
            self.sides.client.block_on(async {
                let mut client = DavClient::open(root).await?;
                client.put(PATH, content).await
            })
        };
        let ours = || node.cpu_seconds();
        let (up, down) = (BulkDirection::Up, BulkDirection::Down);
        settle_disk();
        let cost = served(ours, || upload(node.root(0)?))?;
        add((up, BulkSide::Ours), cost);
        for peer in DavPeer::ALL {
            let theirs = || self.peers.cpu_seconds(peer);
            settle_disk();
            let uploaded = served(theirs, || upload(self.peers.root(peer)))?;
            add((up, BulkSide::Peer(peer)), uploaded);
            if peer == DavPeer::Nginx {
                let file = self.peers.file(peer, PATH);
                let synced = served(theirs, || sync_file(&file))?;
                add((up, BulkSide::NginxSynced), uploaded.and(synced));
            }
        }
        settle_disk();
        add(
            (down, BulkSide::Ours),
            served(ours, || self.download(node.root(0)?))?,
        );
        for peer in DavPeer::ALL {
            let theirs = || self.peers.cpu_seconds(peer);
            let cost = served(theirs, || self.download(self.peers.root(peer)))?;
            add((down, BulkSide::Peer(peer)), cost);
        }
        Ok(())
    }

    fn download(&self, root: DavRoot) -> Result<()> {
        let read = self.sides.client.block_on(async {
            let mut client = DavClient::open(root).await?;
            client.get(PATH).await
        })?;
        match read == FILE_BYTES {
            true => Ok(()),
            false => Err(failed("reading the file")(format!("{read} bytes came"))),
        }
    }

    /// Both read a file of this disk, and write one.
    fn by_programs(
        &self,
        node: &FsBenchNode<'_>,
        add: &mut impl FnMut((BulkDirection, BulkSide), WorkCost),
    ) -> Result<()> {
        let folder = disk_folder()?;
        let (file, back) = (folder.path().join("file"), folder.path().join("back"));
        // Another content than over HTTP: the node would have that already.
        write_content(&file, u64::MAX)?;
        let target = node.target_word();
        let address = format!("{BUCKET}:/copied");
        let [node_word, address] = [&target, &address].map(OsStr::new);
        let mut put = node.command([OsStr::new("put"), node_word, file.as_os_str(), address]);
        let mut get = node.command([OsStr::new("get"), node_word, address, back.as_os_str()]);
        let (up, down) = (BulkDirection::Up, BulkDirection::Down);
        let ours = || node.cpu_seconds();
        let theirs = || self.ssh.cpu_seconds();
        settle_disk();
        add(
            (up, BulkSide::CommandLine),
            with_program(ours, || run_program(&mut put))?,
        );
        settle_disk();
        let mut upload = self.ssh.upload(&file);
        add(
            (up, BulkSide::Scp),
            with_program(theirs, || run_program(&mut upload))?,
        );
        settle_disk();
        add(
            (down, BulkSide::CommandLine),
            with_program(ours, || run_program(&mut get))?,
        );
        // The command writes over nothing.
        std::fs::remove_file(&back).map_err(TaskError::io("remove a file"))?;
        settle_disk();
        let mut download = self.ssh.download(&back);
        add(
            (down, BulkSide::Scp),
            with_program(theirs, || run_program(&mut download))?,
        );
        Ok(())
    }
}

/// Does work that a server does, and measures its time by the clock, and the server's time of processors.
fn served(
    cpu_seconds: impl Fn() -> Result<f64>,
    work: impl FnOnce() -> Result<()>,
) -> Result<WorkCost> {
    // The client runs in this process, so that its processor time is left out.
    let (begun, before) = (Instant::now(), cpu_seconds()?);
    work()?;
    Ok(WorkCost {
        wall_s: begun.elapsed().as_secs_f64(),
        cpu_s: cpu_seconds()? - before,
    })
}

/// The same with the time of the programs that the work ran.
fn with_program(
    cpu_seconds: impl Fn() -> Result<f64>,
    work: impl FnOnce() -> Result<()>,
) -> Result<WorkCost> {
    let before = cpu_seconds()?;
    let ((), own) = WorkCost::measure(work)?;
    Ok(WorkCost {
        cpu_s: own.cpu_s + cpu_seconds()? - before,
        ..own
    })
}

fn write_content(path: &Path, number: u64) -> Result<()> {
    let what = || TaskError::io(format!("write {}", path.display()));
    let mut file = File::create(path).map_err(what())?;
    for piece in UploadBody::long(number, FILE_BYTES, &noise()).pieces() {
        file.write_all(&piece).map_err(what())?;
    }
    Ok(())
}

fn rows(samples: &Samples) -> Vec<BenchRow> {
    let nginx = BulkSide::Peer(DavPeer::Nginx);
    let rclone = BulkSide::Peer(DavPeer::Rclone);
    let (ours, up, down) = (BulkSide::Ours, BulkDirection::Up, BulkDirection::Down);
    [
        (up, ours, nginx, Some(goals::BULK)),
        (up, ours, BulkSide::NginxSynced, None),
        (up, ours, rclone, None),
        (up, BulkSide::CommandLine, BulkSide::Scp, None),
        (down, ours, nginx, Some(goals::BULK)),
        (down, ours, rclone, None),
        (down, BulkSide::CommandLine, BulkSide::Scp, None),
    ]
    .into_iter()
    .flat_map(|(direction, side, peer, bound)| {
        let of = |side, part: fn(&WorkCost) -> f64| {
            let all = samples.get(&(direction, side)).into_iter().flatten();
            median(all.map(part).collect())
        };
        let both = |part: fn(&WorkCost) -> f64| [side, peer].map(|side| of(side, part));
        let way = match direction {
            BulkDirection::Down => "down",
            BulkDirection::Up => "up",
        };
        let case = format!("1 GiB {way}, {}: {}", side.name(), peer.name());
        let [speed, theirs] = both(|cost| FILE_BYTES as f64 / cost.wall_s / MEGA);
        let row = BenchRow::higher(BENCH, &case, "MB/s", speed).beside(peer.name(), theirs);
        let [cpu, their_cpu] = both(|cost| cost.cpu_s / (FILE_BYTES as f64 / GIGA));
        let cpu = BenchRow::lower(BENCH, &case, "CPU s/GB", cpu).beside(peer.name(), their_cpu);
        [promised(row, bound), cpu]
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_is_held_against_nginx_in_both_directions() {
        let cost = |wall_s| WorkCost { wall_s, cpu_s: 1.0 };
        let mut samples = Samples::new();
        for direction in [BulkDirection::Up, BulkDirection::Down] {
            samples.insert((direction, BulkSide::Ours), vec![cost(2.0)]);
            samples.insert((direction, BulkSide::Peer(DavPeer::Nginx)), vec![cost(1.0)]);
        }
        let rows = rows(&samples);
        assert_eq!(rows.len(), 14);
        let held: Vec<_> = rows.iter().filter_map(BenchRow::held).collect();
        assert_eq!(held, [0.5, 0.5]);
    }
}
