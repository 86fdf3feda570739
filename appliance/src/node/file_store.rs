//! The files that the node keeps for its callers: the operations `fs/*`, the view over HTTP at `/fs`, contents by their hash
//! over `/iroh-bytes/4`, and names that are synchronised with peers over `alknet/fs-sync`.

mod peers;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use alknet_call::RegistryBuilder;
use alknet_core::config::FsSection;
use alknet_core::{HandlerRegistry, HttpMount, Identities, Metrics, PeerKey};
use alknet_endpoint::EndpointDialer;
use alknet_fs::sync::{
    PeerContentFetcher, SyncDialer, SyncOptions, SyncRecord, SyncService, SyncTarget,
};
use alknet_fs::{BlobHandler, BlobOptions, DavMount, FsFigures, FsService};
use alknet_init::control::MachineDiagnostic;
use alknet_store::{FileStoreOptions, WriteSessionOptions};
use peers::ContentPeers;

/// Code of the problem that a bucket cannot be synchronised with a peer before a person changes something.
pub(crate) const FILES_NOT_SYNCED: &str = "files-not-synced";
/// Folder of the store, below the node's state directory.
const STORE_DIR: &str = "state/fs";
/// Pause between two counts for the metrics. A count reads a row of each bucket.
const COUNT_EVERY: Duration = Duration::from_secs(30);
/// Failures in a row after which a synchronisation that a person has to see to is a problem of the node. One can be the
/// fault of a moment, such as a full disk.
const FAILURES_SHOWN: u32 = 3;
/// Synchronisations that a problem names.
const FAILED_NAMED_MAX: usize = 4;

/// The store of files of this node. Clones share it.
#[derive(Clone)]
pub(crate) struct NodeFileStore(Arc<NodeFileStoreInner>);

struct NodeFileStoreInner {
    /// `None` if the configuration wants no files.
    service: Option<FsService>,
    /// The synchronisation of names with peers. `None` without files.
    sync: Option<SyncService>,
    /// The pause between two synchronisations in which nothing is new.
    sync_pause: Duration,
    /// How contents are served by their hash.
    blobs: BlobOptions,
    /// The peers with which names are synchronised.
    peers: OnceLock<Arc<ContentPeers>>,
    /// The last count. `None` while the store is not open.
    figures: Mutex<Option<FsFigures>>,
}

impl NodeFileStore {
    /// Opens nothing: the first request does.
    pub(crate) fn new(state_dir: &Path, section: &FsSection, own: PeerKey) -> Self {
        let service = section
            .enabled
            .then(|| FsService::new(&state_dir.join(STORE_DIR), options(section)));
        let sync = service.as_ref().map(|service| {
            service.set_fetch_time(Duration::from_secs(section.fetch_seconds.into()));
            let mut options = SyncOptions::new(own);
            options.fetcher = Some(Arc::new(PeerContentFetcher::new(service.clone())));
            SyncService::new(service.clone(), options)
        });
        Self(Arc::new(NodeFileStoreInner {
            service,
            sync,
            sync_pause: Duration::from_secs(section.sync_seconds.into()),
            blobs: blob_options(section),
            peers: OnceLock::new(),
            figures: Mutex::default(),
        }))
    }

    /// Adds the operations to a registry.
    pub(crate) fn register(&self, builder: &mut RegistryBuilder) {
        let operations = self.0.service.iter().flat_map(alknet_fs::operations);
        for operation in operations {
            builder.add(operation);
        }
    }

    /// Adds the protocols that serve contents by their hash, and names to peers that may synchronise them.
    pub(crate) fn serve(&self, handlers: &mut HandlerRegistry) -> anyhow::Result<()> {
        if let Some(service) = &self.0.service {
            handlers.register(Arc::new(BlobHandler::new(service, self.0.blobs)))?;
        }
        if let Some(sync) = &self.0.sync {
            handlers.register(Arc::new(sync.clone()))?;
        }
        Ok(())
    }

    /// Gives the store the peers from which it fetches contents and with which it synchronises names. The first call counts.
    pub(crate) fn set_peers(&self, identities: &Arc<Identities>, dialer: &Arc<EndpointDialer>) {
        if let Some(service) = &self.0.service {
            let peers = Arc::new(ContentPeers::new(identities, dialer));
            service.set_peers(Arc::clone(&peers) as _);
            self.0.peers.get_or_init(|| peers);
        }
    }

    /// Synchronises names with peers until the node stops.
    pub(crate) async fn keep_synced(self) {
        if let (Some(sync), Some(peers)) = (&self.0.sync, self.0.peers.get()) {
            let dialer: Arc<dyn SyncDialer> = Arc::clone(peers) as _;
            sync.keep_synced(dialer, self.0.sync_pause).await;
        }
    }

    /// The path that the node serves over HTTP.
    pub(crate) fn mounts(&self) -> Vec<Arc<dyn HttpMount>> {
        let mount = |service: &FsService| -> Arc<dyn HttpMount> {
            Arc::new(DavMount::new(Arc::new(service.clone())))
        };
        self.0.service.iter().map(mount).collect()
    }

    /// Opens a store that earlier runs of the node have made, in the background.
    pub(crate) fn start(&self) {
        if let Some(service) = &self.0.service {
            service.start();
        }
    }

    /// What keeps the files from being served, and from being synchronised.
    pub(crate) fn problems(&self) -> Vec<MachineDiagnostic> {
        let found = self.0.service.iter().flat_map(FsService::problems);
        let shown = found.map(|problem| MachineDiagnostic {
            code: problem.code.to_owned(),
            text: problem.text,
            hint: problem.hint.to_owned(),
        });
        let records = self.0.sync.as_ref().map(SyncService::list_records);
        shown
            .chain(unsynced(&records.unwrap_or_default()))
            .collect()
    }

    /// Counts for the metrics now and then, until the node ends.
    pub(crate) async fn keep_counted(self) {
        let Some(service) = &self.0.service else {
            return;
        };
        loop {
            self.count(service).await;
            tokio::time::sleep(COUNT_EVERY).await;
        }
    }

    async fn count(&self, service: &FsService) {
        match service.measure().await {
            Ok(figures) => *self.figures() = figures,
            // The numbers of before stay: a busy store has not lost what it had.
            Err(error) => tracing::debug!(%error, "the files were not counted"),
        }
    }

    /// Adds counts and bytes. A node whose files no request has used has no such series.
    pub(crate) fn collect(&self, into: &mut Metrics) {
        let Some(figures) = *self.figures() else {
            return;
        };
        let numbers = [
            ("alknet_fs_buckets", "Buckets of files.", figures.buckets),
            (
                "alknet_fs_entries",
                "Versions of files, directories and links in all buckets.",
                figures.entries,
            ),
            (
                "alknet_fs_content_bytes",
                "Bytes of the contents of all buckets, as their quotas count them.",
                figures.content_bytes,
            ),
            (
                "alknet_fs_staged_bytes",
                "Bytes of open uploads, as the quotas count them.",
                figures.staged_bytes,
            ),
            ("alknet_fs_sessions", "Open uploads.", figures.sessions),
            (
                "alknet_fs_watches",
                "Open subscriptions to events of files.",
                figures.watches,
            ),
        ];
        for (name, help, number) in numbers {
            into.gauge(name, help, &[], number as f64);
        }
        if let Some(sync) = &self.0.sync {
            collect_sync(sync, into);
        }
    }

    /// Closes the store in order, so that the next start has nothing to check.
    pub(crate) async fn stop(&self) {
        if let Some(service) = &self.0.service {
            service.shutdown().await;
        }
    }

    /// A whole value is behind this lock after any panic.
    fn figures(&self) -> MutexGuard<'_, Option<FsFigures>> {
        self.0
            .figures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The problem of branches that cannot be synchronised before a person changes something. It names no files.
fn unsynced(records: &[(SyncTarget, SyncRecord)]) -> Option<MachineDiagnostic> {
    let is_shown = |record: &SyncRecord| record.is_lasting && record.failures >= FAILURES_SHOWN;
    let failed: Vec<_> = records.iter().filter(|(_, it)| is_shown(it)).collect();
    let texts = failed
        .iter()
        .take(FAILED_NAMED_MAX)
        .map(|(target, record)| {
            let SyncTarget {
                bucket,
                branch,
                peer,
            } = target;
            let code = record.failure.unwrap_or_default();
            let count = record.failures;
            format!("{bucket}@{branch} with {peer} ({code}, {count} times in a row)")
        });
    let texts = texts.collect::<Vec<_>>().join(", ");
    let more = failed.len().saturating_sub(FAILED_NAMED_MAX);
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!failed.is_empty()).then(|| MachineDiagnostic {
        code: FILES_NOT_SYNCED.to_owned(),
        text: format!("files are not synchronised: {texts}{more}"),
        hint: "look up the code in docs/sync.md; fs/sync/status of the bucket has more; the node goes on trying, \
               and everything is served"
            .to_owned(),
    })
}

/// Adds what the synchronisation did, and what fails now.
fn collect_sync(sync: &SyncService, into: &mut Metrics) {
    let counters = sync.counters();
    let counts = [
        (
            "alknet_fs_sync_sessions_total",
            "Sessions of the synchronisation of files with peers.",
            &counters.sessions,
        ),
        (
            "alknet_fs_sync_sessions_failed_total",
            "Sessions that ended with an error.",
            &counters.failed_sessions,
        ),
        (
            "alknet_fs_sync_sessions_refused_total",
            "Sessions that the node refused to a peer.",
            &counters.refused_sessions,
        ),
        (
            "alknet_fs_sync_merges_total",
            "Messages of peers that were merged.",
            &counters.merges,
        ),
        (
            "alknet_fs_sync_merges_failed_total",
            "Messages of peers whose merge failed.",
            &counters.failed_merges,
        ),
        (
            "alknet_fs_sync_entries_refused_total",
            "Entries of peers that were left out because they break a rule.",
            &counters.refused_entries,
        ),
    ];
    for (name, help, count) in counts {
        into.counter(name, help, &[], count.get());
    }
    // Without names of peers, of which a label says nothing. `fs/sync/status` has them.
    let records = sync.list_records();
    let failing = records.iter().filter(|(_, record)| record.failures > 0);
    let gauges = [
        (
            "alknet_fs_sync_pairs",
            "Branches with a peer with which the node had a session.",
            records.len(),
        ),
        (
            "alknet_fs_sync_failing",
            "Those of them whose last session failed.",
            failing.count(),
        ),
    ];
    for (name, help, number) in gauges {
        into.gauge(name, help, &[], number as f64);
    }
}

/// The options of the store by the configuration.
fn options(section: &FsSection) -> FileStoreOptions {
    let bytes = |mib: u32| u64::from(mib) << 20;
    FileStoreOptions {
        sessions: WriteSessionOptions {
            staged_bytes_max: bytes(section.staging_mib),
            ttl_ms: u64::from(section.session_seconds) * 1000,
        },
        boot_verify_bytes: bytes(section.boot_verify_mib),
        ..FileStoreOptions::default()
    }
}

/// The options of the protocol for contents by the configuration.
fn blob_options(section: &FsSection) -> BlobOptions {
    BlobOptions {
        bytes_per_second: u64::from(section.blob_rate) << 20,
        ..BlobOptions::default()
    }
}
