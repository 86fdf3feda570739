//! Durable puts of 4 KiB by 1, 16 and 64 clients: ours over HTTP, nginx and rclone over HTTP, which sync nothing, and a
//! program that writes, syncs and renames each file, and syncs its folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::client::{DavClient, DavRoot, UploadBody};
use super::folder::settle_disk;
use super::node::{FsBenchNode, NodeSetup};
use super::peers::{DavPeer, DavPeers};
use super::{BENCH, count_rounds, goals, promised};
use crate::call::measure::{LoadPlan, LoadSample, failed, load};
use crate::call::sides::SideRuntimes;
use crate::rows::{BenchRow, median};
use alknet_tasks::binary;
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};

/// Bytes of a file.
const FILE_BYTES: usize = 4 << 10;

/// Clients at once.
const CLIENTS: [usize; 3] = [1, 16, 64];

/// Clients with which the bound is held.
const BOUND_CLIENTS: usize = 16;

/// How long each case is loaded in each round.
const PLAN: LoadPlan = LoadPlan {
    warm_up: Duration::from_millis(300),
    window: Duration::from_secs(3),
};

/// Who stores the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PutSide {
    Ours,
    Peer(DavPeer),
    Program,
}

impl PutSide {
    const ALL: [Self; 4] = [
        Self::Ours,
        Self::Program,
        Self::Peer(DavPeer::Nginx),
        Self::Peer(DavPeer::Rclone),
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "alknet",
            Self::Peer(DavPeer::Nginx) => "nginx, unsynced",
            Self::Peer(DavPeer::Rclone) => "rclone, unsynced",
            Self::Program => "a sync for each",
        }
    }
}

/// What one case did in one round.
struct PutSample {
    load: LoadSample,
    /// Processor time of the server for a file, in microseconds. Of the program, its own.
    cpu_us: f64,
}

type Samples = BTreeMap<(usize, PutSide), Vec<PutSample>>;

/// Measures every case in turn, as often as asked.
pub(super) fn run(cx: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let most = CLIENTS.into_iter().max().unwrap_or(1);
    let setup = NodeSetup::make(&binary::plain(cx)?, most, 0)?;
    let bench = PutBench {
        node: setup.start_with_bucket(cx)?,
        peers: DavPeers::start(cx)?,
        sides: SideRuntimes::new()?,
    };
    let mut samples = Samples::new();
    for round in count_rounds(rounds) {
        for clients in CLIENTS {
            for side in PutSide::ALL {
                settle_disk();
                let sample = bench.load(side, clients, round)?;
                samples.entry((clients, side)).or_default().push(sample);
            }
        }
    }
    Ok(CLIENTS
        .into_iter()
        .flat_map(|clients| rows(clients, &samples))
        .collect())
}

struct PutBench<'a> {
    node: FsBenchNode<'a>,
    peers: DavPeers,
    sides: SideRuntimes,
}

impl PutBench<'_> {
    fn load(&self, side: PutSide, clients: usize, round: usize) -> Result<PutSample> {
        let put = Arc::new(AtomicU64::new(0));
        let name = |client: usize| format!("round{round}-of{clients}-{client}");
        match side {
            PutSide::Program => {
                let writer = |client| SyncedWriter::new(&self.peers.folder().join(name(client)));
                let writers = (0..clients).map(writer).collect::<Result<Vec<_>>>()?;
                let load = self.sides.client.block_on(load(PLAN, writers, write_one))?;
                Ok(PutSample {
                    // A second for a million files is a microsecond for each.
                    cpu_us: load.cpu_s_per_million,
                    load,
                })
            }
            PutSide::Ours => {
                let root = |client| self.node.root(client);
                let before = self.node.cpu_seconds()?;
                let load = self.load_server(root, clients, name, &put)?;
                PutSample::new(load, self.node.cpu_seconds()? - before, &put)
            }
            PutSide::Peer(peer) => {
                let root = |_| Ok(self.peers.root(peer));
                let before = self.peers.cpu_seconds(peer)?;
                let load = self.load_server(root, clients, name, &put)?;
                PutSample::new(load, self.peers.cpu_seconds(peer)? - before, &put)
            }
        }
    }

    /// Each client has a connection and a collection of its own.
    fn load_server(
        &self,
        root: impl Fn(usize) -> Result<DavRoot>,
        clients: usize,
        name: impl Fn(usize) -> String,
        put: &Arc<AtomicU64>,
    ) -> Result<LoadSample> {
        self.sides.client.block_on(async {
            let mut uploaders = Vec::new();
            for client in 0..clients {
                let collection = format!("/{}/", name(client));
                let mut connection = DavClient::open(root(client)?).await?;
                connection.make_collection(&collection).await?;
                uploaders.push(DavUploader {
                    client: connection,
                    contents: NumberedContents::new(&collection),
                    put: Arc::clone(put),
                });
            }
            load(PLAN, uploaders, upload_one).await
        })
    }
}

impl PutSample {
    /// `cpu_s` and `put` are of the whole load, the warm-up included.
    fn new(load: LoadSample, cpu_s: f64, put: &AtomicU64) -> Result<Self> {
        match put.load(Ordering::Relaxed) {
            0 => Err(failed("measuring")("no file was stored")),
            files => Ok(Self {
                load,
                cpu_us: cpu_s * 1e6 / files as f64,
            }),
        }
    }
}

/// Files of one client: no two have the same content, as a store of contents would keep that once.
struct NumberedContents {
    folder: String,
    next: u64,
}

impl NumberedContents {
    fn new(folder: &str) -> Self {
        Self {
            folder: folder.to_owned(),
            next: 0,
        }
    }

    /// The name and the content of the next file.
    fn take(&mut self) -> (String, Vec<u8>) {
        self.next += 1;
        let name = format!("{:08}", self.next);
        let mut content = vec![0; FILE_BYTES];
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.folder.as_bytes());
        hasher.update(name.as_bytes());
        hasher.finalize_xof().fill(&mut content);
        (name, content)
    }
}

struct DavUploader {
    client: DavClient,
    contents: NumberedContents,
    put: Arc<AtomicU64>,
}

async fn upload_one(mut uploader: DavUploader) -> Result<(DavUploader, u64)> {
    let (name, content) = uploader.contents.take();
    let path = format!("{}{name}", uploader.contents.folder);
    let content = UploadBody::short(content.into());
    uploader.client.put(&path, content).await?;
    uploader.put.fetch_add(1, Ordering::Relaxed);
    Ok((uploader, 1))
}

/// The program that makes each file durable by itself.
struct SyncedWriter {
    folder: PathBuf,
    contents: NumberedContents,
}

impl SyncedWriter {
    fn new(folder: &Path) -> Result<Self> {
        fs::create_dir(folder).map_err(TaskError::io("make a folder"))?;
        Ok(Self {
            contents: NumberedContents::new(&folder.display().to_string()),
            folder: folder.to_owned(),
        })
    }

    fn write(&mut self) -> io::Result<()> {
        let (name, content) = self.contents.take();
        let fresh = self.folder.join(format!("{name}.new"));
        let mut file = File::create(&fresh)?;
        file.write_all(&content)?;
        file.sync_all()?;
        fs::rename(&fresh, self.folder.join(name))?;
        File::open(&self.folder)?.sync_all()
    }
}

async fn write_one(mut writer: SyncedWriter) -> Result<(SyncedWriter, u64)> {
    let written = tokio::task::spawn_blocking(move || {
        writer.write().map_err(TaskError::io("write a file"))?;
        Ok::<_, TaskError>((writer, 1))
    });
    written.await.map_err(failed("writing"))?
}

fn rows(clients: usize, samples: &Samples) -> Vec<BenchRow> {
    let of = |side, part: fn(&PutSample) -> f64| {
        let all = samples.get(&(clients, side)).into_iter().flatten();
        median(all.map(part).collect())
    };
    let mut rows = Vec::new();
    for peer in PutSide::ALL {
        if peer == PutSide::Ours {
            continue;
        }
        let case = format!("puts of 4 KiB, {clients} at once: {}", peer.name());
        let both = |part: fn(&PutSample) -> f64| [PutSide::Ours, peer].map(|side| of(side, part));
        let bound = (peer == PutSide::Program && clients == BOUND_CLIENTS).then_some(goals::PUTS);
        let [ours, theirs] = both(|sample| sample.load.per_second);
        let row = BenchRow::higher(BENCH, &case, "files/s", ours).beside(peer.name(), theirs);
        rows.push(promised(row, bound));
        let [ours, theirs] = both(|sample| sample.load.p99_us);
        rows.push(BenchRow::lower(BENCH, &case, "us p99", ours).beside(peer.name(), theirs));
        let [ours, theirs] = both(|sample| sample.cpu_us);
        rows.push(BenchRow::lower(BENCH, &case, "CPU us/file", ours).beside(peer.name(), theirs));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(per_second: f64) -> PutSample {
        let load = LoadSample {
            per_second,
            cpu_s_per_million: 1.0,
            p50_us: 1.0,
            p99_us: 2.0,
        };
        PutSample { load, cpu_us: 3.0 }
    }

    #[test]
    fn sixteen_clients_are_held_against_a_sync_for_each() {
        let mut samples = Samples::new();
        for clients in CLIENTS {
            samples.insert((clients, PutSide::Ours), vec![sample(300.0)]);
            samples.insert((clients, PutSide::Program), vec![sample(100.0)]);
        }
        let rows: Vec<_> = CLIENTS
            .into_iter()
            .flat_map(|clients| rows(clients, &samples))
            .collect();
        assert_eq!(rows.len(), CLIENTS.len() * (PutSide::ALL.len() - 1) * 3);
        let held: Vec<_> = rows.iter().filter_map(BenchRow::held).collect();
        assert_eq!(held, [3.0]);
    }

    #[test]
    fn the_program_leaves_whole_files_with_different_contents() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("files");
        let mut writer = SyncedWriter::new(&folder).expect("writable");
        writer.write().expect("writable");
        writer.write().expect("writable");
        let read = |name: &str| fs::read(folder.join(name)).expect("renamed");
        assert_eq!(read("00000001").len(), FILE_BYTES);
        assert_ne!(read("00000001"), read("00000002"));
        assert_eq!(fs::read_dir(&folder).expect("readable").count(), 2);
    }
}
