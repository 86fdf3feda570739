//! Contents by their hash over `/iroh-bytes/4`: the node beside iroh-blobs alone, which keeps the same files in its own
//! store and serves them by its own provider behind our endpoint. The getter is iroh-blobs' in both cases: it compares what
//! comes with the hash, and keeps nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use alknet_core::Connection;
use alknet_fs::BLOBS_ALPN;
use iroh_blobs::Hash;
use iroh_blobs::get::fsm::{AtConnected, ConnectedNext, EndBlobNext};
use iroh_blobs::protocol::GetRequest;

use super::client::{DavClient, UploadBody, noise};
use super::folder::disk_folder;
use super::iroh_peer::IrohBlobsPeer;
use super::node::{FsBenchNode, NodeSetup};
use super::stock_streams::stock_streams;
use super::{BENCH, MIB, count_rounds, goals};
use crate::call::measure::{LoadPlan, LoadSample, failed, load};
use crate::call::sides::SideRuntimes;
use crate::rows::{BenchRow, Goal, median};
use alknet_tasks::binary;
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};

/// Name of the peer in rows.
const PEER: &str = "iroh-blobs";

/// Bytes of the long content.
const LONG_BYTES: u64 = 1 << 30;

/// Bytes of a short one. Both stores keep it in a file.
const SHORT_BYTES: u64 = 64 << 10;

/// Number of the short ones.
const SHORT: u64 = 64;

/// Requests for short ones at once, on one connection.
const IN_FLIGHT: usize = 16;

/// How long the short ones are asked for in each round.
const PLAN: LoadPlan = LoadPlan {
    warm_up: Duration::from_millis(200),
    window: Duration::from_secs(2),
};

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum BlobSide {
    Ours,
    IrohBlobs,
}

/// What one side did in one round.
#[derive(Clone, Copy, Debug)]
struct BlobSample {
    long_mib_s: f64,
    /// Processor time of the server.
    long_cpu_s: f64,
    short: LoadSample,
}

type Samples = BTreeMap<BlobSide, Vec<BlobSample>>;

/// Measures both sides in turn, as often as asked.
pub(super) fn run(cx: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let setup = NodeSetup::make(&binary::plain(cx)?, 1, 1)?;
    let node = setup.start_with_bucket(cx)?;
    let folder = disk_folder()?;
    let files = folder.path().join("files");
    std::fs::create_dir(&files).map_err(TaskError::io("make a folder"))?;
    let sides = SideRuntimes::new()?;
    let hashes = sides.client.block_on(store_contents(&node, &files))?;
    let peer = IrohBlobsPeer::start(&files, folder.path())?;
    let mut samples = Samples::new();
    for _ in count_rounds(rounds) {
        for side in [BlobSide::Ours, BlobSide::IrohBlobs] {
            let cpu_seconds = || match side {
                BlobSide::Ours => node.cpu_seconds(),
                BlobSide::IrohBlobs => peer.cpu_seconds(),
            };
            let sample = sides.client.block_on(async {
                // The dialler stays for as long as the connection is used.
                let (_dialer, connection) = match side {
                    BlobSide::Ours => node.dial(0, BLOBS_ALPN).await?,
                    BlobSide::IrohBlobs => peer.dial().await?,
                };
                measure(&connection, &hashes, cpu_seconds).await
            })?;
            samples.entry(side).or_default().push(sample);
        }
    }
    Ok(rows(&samples))
}

/// Hashes of the contents.
struct StoredHashes {
    long: Hash,
    short: Vec<Hash>,
}

/// Stores every content on the node, and in a file for the peer.
async fn store_contents(node: &FsBenchNode<'_>, files: &Path) -> Result<StoredHashes> {
    let mut client = DavClient::open(node.root(0)?).await?;
    let block = noise();
    let mut hashes = Vec::new();
    let sizes = [(0, LONG_BYTES)].into_iter();
    for (number, bytes) in sizes.chain((1..=SHORT).map(|number| (number, SHORT_BYTES))) {
        let content = || UploadBody::long(number, bytes, &block);
        let mut file =
            File::create(files.join(number.to_string())).map_err(TaskError::io("make a file"))?;
        let mut hasher = blake3::Hasher::new();
        for piece in content().pieces() {
            hasher.update(&piece);
            file.write_all(&piece)
                .map_err(TaskError::io("write a file"))?;
        }
        hashes.push(Hash::from_bytes(*hasher.finalize().as_bytes()));
        client.put(&format!("/{number}"), content()).await?;
    }
    let short = hashes.split_off(1);
    Ok(StoredHashes {
        long: hashes[0],
        short,
    })
}

async fn measure(
    connection: &Connection,
    hashes: &StoredHashes,
    cpu_seconds: impl Fn() -> Result<f64>,
) -> Result<BlobSample> {
    // Brings the bytes of a side into the cache of the system: the disk is the same for both.
    get(connection, hashes.long).await?;
    let (begun, before) = (Instant::now(), cpu_seconds()?);
    let bytes = get(connection, hashes.long).await?;
    let long_s = begun.elapsed().as_secs_f64();
    let long_cpu_s = cpu_seconds()? - before;
    let workers = (0..IN_FLIGHT).map(|worker| ShortGetter {
        connection: connection.clone(),
        hashes: hashes.short.clone(),
        next: worker,
    });
    let short = load(PLAN, workers.collect(), ShortGetter::get_next).await?;
    Ok(BlobSample {
        long_mib_s: bytes as f64 / MIB / long_s,
        long_cpu_s,
        short,
    })
}

/// Asks for one short content after the other.
struct ShortGetter {
    connection: Connection,
    hashes: Vec<Hash>,
    next: usize,
}

impl ShortGetter {
    async fn get_next(mut self) -> Result<(Self, u64)> {
        let hash = self.hashes[self.next % self.hashes.len()];
        self.next += 1;
        get(&self.connection, hash).await?;
        Ok((self, 1))
    }
}

/// Gets a content by the getter of iroh-blobs. Returns its bytes, all of which were compared with the hash.
async fn get(connection: &Connection, hash: Hash) -> Result<u64> {
    let (send, recv) = connection.open_bi().await.map_err(failed("a stream"))?;
    let (reader, writer) = stock_streams(send, recv);
    let (begun, request) = (tokio::time::Instant::now(), GetRequest::blob(hash));
    let connected = AtConnected::new(begun, reader, writer, request, Default::default());
    let next = connected.next().await.map_err(failed("asking"))?;
    let ConnectedNext::StartRoot(root) = next else {
        return Err(failed("asking")("another content comes"));
    };
    let (content, size) = root.next().next().await.map_err(failed("reading"))?;
    let end = content.drain().await.map_err(failed("reading"))?;
    let EndBlobNext::Closing(closing) = end.next() else {
        return Err(failed("reading")("more than one content comes"));
    };
    closing.next().await.map_err(failed("reading"))?;
    Ok(size)
}

fn rows(samples: &Samples) -> Vec<BenchRow> {
    let both = |part: fn(&BlobSample) -> f64| {
        [BlobSide::Ours, BlobSide::IrohBlobs].map(|side| {
            let all = samples.get(&side).into_iter().flatten();
            median(all.map(part).collect())
        })
    };
    let (long, short) = ("by hash: 1 GiB", "by hash: 64 KiB, 16 at once");
    let goal = Goal::Ratio(goals::BLOBS);
    let [ours, theirs] = both(|sample| sample.long_mib_s);
    let [cpu, their_cpu] = both(|sample| sample.long_cpu_s);
    let [files, their_files] = both(|sample| sample.short.per_second);
    let [p99, their_p99] = both(|sample| sample.short.p99_us);
    vec![
        BenchRow::higher(BENCH, long, "MiB/s", ours)
            .beside(PEER, theirs)
            .goal(goal),
        BenchRow::lower(BENCH, long, "CPU s/GiB", cpu).beside(PEER, their_cpu),
        BenchRow::higher(BENCH, short, "contents/s", files)
            .beside(PEER, their_files)
            .goal(goal),
        BenchRow::lower(BENCH, short, "us p99", p99).beside(PEER, their_p99),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_contents_are_held_against_iroh_blobs() {
        let sample = |rate: f64| BlobSample {
            long_mib_s: rate,
            long_cpu_s: 1.0,
            short: LoadSample {
                per_second: rate,
                cpu_s_per_million: 1.0,
                p50_us: 1.0,
                p99_us: 1.0,
            },
        };
        let samples = Samples::from([
            (BlobSide::Ours, vec![sample(90.0)]),
            (BlobSide::IrohBlobs, vec![sample(100.0)]),
        ]);
        let held: Vec<_> = rows(&samples).iter().filter_map(BenchRow::held).collect();
        assert_eq!(held, [0.9, 0.9]);
    }
}
