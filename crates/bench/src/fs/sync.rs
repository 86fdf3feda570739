//! A first synchronisation of 100,000 paths, by the library: two services in this process, over QUIC. The receiving one
//! begins with an empty branch.

use std::path::Path;
use std::sync::Arc;

use alknet_core::{Carriage, HandlerRegistry, Identity, IdentityKind, PeerKey};
use alknet_endpoint::EndpointDialer;
use alknet_fs::FsService;
use alknet_fs::sync::{SYNC_ALPN, SyncOptions, SyncService};
use alknet_store::{
    BranchName, BucketName, BucketSettings, EntryPath, FileStoreOptions, ListRequest, MAIN_BRANCH,
    Store,
};
use alknet_tls::NodeKey;
use tempfile::TempDir;

use super::folder::disk_folder;
use super::node::BUCKET;
use super::process::{forget_peak, peak_mib, resident_mib};
use super::tree::{ACTOR, fill, make_bucket, store_failed, tree_path};
use super::{BENCH, count_rounds, goals};
use crate::call::measure::failed;
use crate::call::node::bind;
use crate::call::sides::{BenchKeys, SideRuntimes};
use crate::rows::{BenchRow, Goal, median};
use crate::work_cost::WorkCost;
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::Result;

/// Paths that are synchronised.
const PATHS: usize = 100_000;

/// What one synchronisation cost.
struct SyncSample {
    /// Both nodes together.
    cost: WorkCost,
    /// Memory of both nodes at its peak, over that of before.
    more_mib: f64,
}

/// Measures as often as asked, each time between new nodes.
pub(super) fn run(_: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let samples = count_rounds(rounds).map(|_| measure(&disk_folder()?, PATHS));
    let samples = samples.collect::<Result<Vec<_>>>()?;
    let of = |part: fn(&SyncSample) -> f64| median(samples.iter().map(part).collect());
    let case = "library: first sync of 100,000 paths, QUIC";
    Ok(vec![
        BenchRow::lower(BENCH, case, "s", of(|sample| sample.cost.wall_s))
            .goal(Goal::Ours(goals::SYNC_S)),
        BenchRow::lower(BENCH, case, "CPU s", of(|sample| sample.cost.cpu_s)),
        // Both nodes are in this process, and the goal is that of one: the row is the stricter one.
        BenchRow::lower(BENCH, case, "MiB, both", of(|sample| sample.more_mib))
            .goal(Goal::Ours(goals::SYNC_MIB)),
    ])
}

fn measure(folder: &TempDir, paths: usize) -> Result<SyncSample> {
    let [full, empty] = ["full", "empty"].map(|name| folder.path().join(name));
    make_store(&full, paths)?;
    make_store(&empty, 0)?;
    let sides = SideRuntimes::new()?;
    let keys = BenchKeys::new(1)?;
    let pid = std::process::id();
    forget_peak(pid)?;
    // Behind the making of the stores, whose memory is not that of the synchronisation.
    let before = resident_mib(pid)?;
    let sender = service(&full, keys.clients.first().map(NodeKey::public))?;
    let receiver = service(&empty, Some(keys.server.public()))?;
    let mut handlers = HandlerRegistry::new();
    handlers
        .register(Arc::new(receiver.sync))
        .map_err(failed("assembling the node"))?;
    let server = bind(&sides, &keys, handlers)?;
    let target = keys.target(server.port())?;
    let dialer = EndpointDialer::new(keys.clients.first().cloned());
    let synchronise = async {
        let dialled = dialer.dial_over(Carriage::Quic, &target, SYNC_ALPN).await;
        let connection = dialled.map_err(failed("dialling the node"))?;
        // The server resolves its peer by itself; the dialler has no table of peers here.
        let known = connection.set_identity(peer()?);
        known.map_err(failed("naming the peer"))?;
        let bucket: BucketName = BUCKET.parse().map_err(failed("naming a bucket"))?;
        let branch: BranchName = MAIN_BRANCH.parse().map_err(failed("naming a branch"))?;
        let ended = sender.sync.sync_once(&connection, &bucket, &branch).await;
        ended.map_err(failed("synchronising"))
    };
    let ((), cost) = WorkCost::measure(|| sides.client.block_on(synchronise))?;
    let more_mib = peak_mib(pid)? - before;
    let received = sides.client.block_on(count_files(&receiver.files))?;
    // A store that stays open keeps its threads in the next round.
    sides.client.block_on(async {
        sender.files.shutdown().await;
        receiver.files.shutdown().await;
    });
    // A figure of a part of the paths would be no figure.
    match received == paths {
        true => Ok(SyncSample { cost, more_mib }),
        false => Err(failed("synchronising")(format!("{received} paths came"))),
    }
}

/// Makes a store with a synchronised bucket of so many files.
fn make_store(folder: &Path, files: usize) -> Result<()> {
    let opened = Store::open(folder, FileStoreOptions::default());
    let store = opened.map_err(failed("opening a store"))?;
    let main = make_bucket(store.db(), BUCKET)?;
    let settings = BucketSettings {
        is_synced: Some(true),
        ..BucketSettings::default()
    };
    let set = store.write(move |tx| {
        let bucket = tx.branch(main)?.bucket;
        tx.set_bucket(bucket, &settings, ACTOR)
    });
    set.wait().map_err(store_failed)?;
    fill(store.db(), main, (0..files).map(tree_path))
}

/// A node, as far as synchronisation needs one.
struct SyncedService {
    files: FsService,
    sync: SyncService,
}

fn service(folder: &Path, key: Option<PeerKey>) -> Result<SyncedService> {
    let key = key.ok_or_else(|| failed("making a node")("it has no key"))?;
    let files = FsService::new(folder, FileStoreOptions::default());
    let sync = SyncService::new(files.clone(), SyncOptions::new(key));
    Ok(SyncedService { files, sync })
}

/// The node that is dialled, with its rights here.
fn peer() -> Result<Arc<Identity>> {
    Ok(Arc::new(Identity {
        id: "receiver".parse().map_err(failed("naming the peer"))?,
        kind: IdentityKind::Peer,
        scopes: ["fs:sync:*"].into_iter().collect(),
        resources: Default::default(),
        generation: 0,
    }))
}

/// Counts the files of the branch.
async fn count_files(files: &FsService) -> Result<usize> {
    let store = files.lease().await.map_err(failed("opening the store"))?;
    let counted = store.read(|tx| {
        let bucket = tx.bucket_by_name(&BUCKET.parse()?)?;
        let branch = tx.branch_by_name(bucket.id, &MAIN_BRANCH.parse()?)?;
        let view = tx.view(branch.id, None)?;
        let mut request = ListRequest {
            is_recursive: true,
            ..ListRequest::new(EntryPath::root())
        };
        let mut found = 0;
        loop {
            let page = tx.list(&view, &request)?;
            let entries = page.entries.iter();
            found += entries.filter(|it| !it.state.is_directory()).count();
            if page.next.is_none() {
                break Ok(found);
            }
            request.after = page.next;
        }
    });
    counted.await.map_err(store_failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_arrives() {
        // Nothing is timed, so that memory will do.
        let folder = tempfile::tempdir().expect("a temporary folder");
        let sample = measure(&folder, 300).expect("loopback works");
        assert!(sample.cost.wall_s > 0.0 && sample.more_mib.is_finite());
    }
}
