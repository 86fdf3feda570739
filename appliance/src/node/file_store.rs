//! The files that the node keeps for its callers: the operations `fs/*`, the view over HTTP at `/fs`, and contents by their
//! hash over `/iroh-bytes/4`.

mod peers;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_call::RegistryBuilder;
use alknet_core::config::FsSection;
use alknet_core::{HandlerRegistry, HttpMount, Identities, Metrics};
use alknet_endpoint::EndpointDialer;
use alknet_fs::{BlobHandler, BlobOptions, DavMount, FsFigures, FsService};
use alknet_init::control::MachineDiagnostic;
use alknet_store::{FileStoreOptions, WriteSessionOptions};
use peers::ContentPeers;

/// Folder of the store, below the node's state directory.
const STORE_DIR: &str = "state/fs";
/// Pause between two counts for the metrics. A count reads a row of each bucket.
const COUNT_EVERY: Duration = Duration::from_secs(30);

/// The store of files of this node. Clones share it.
#[derive(Clone)]
pub(crate) struct NodeFileStore(Arc<NodeFileStoreInner>);

struct NodeFileStoreInner {
    /// `None` if the configuration wants no files.
    service: Option<FsService>,
    /// How contents are served by their hash.
    blobs: BlobOptions,
    /// The last count. `None` while the store is not open.
    figures: Mutex<Option<FsFigures>>,
}

impl NodeFileStore {
    /// Opens nothing: the first request does.
    pub(crate) fn new(state_dir: &Path, section: &FsSection) -> Self {
        let service = section
            .enabled
            .then(|| FsService::new(&state_dir.join(STORE_DIR), options(section)));
        Self(Arc::new(NodeFileStoreInner {
            service,
            blobs: blob_options(section),
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

    /// Adds the protocol that serves contents by their hash.
    pub(crate) fn serve(&self, handlers: &mut HandlerRegistry) -> anyhow::Result<()> {
        if let Some(service) = &self.0.service {
            handlers.register(Arc::new(BlobHandler::new(service, self.0.blobs)))?;
        }
        Ok(())
    }

    /// Gives the store the peers from which it fetches contents. The first call counts.
    pub(crate) fn set_peers(&self, identities: &Arc<Identities>, dialer: &Arc<EndpointDialer>) {
        if let Some(service) = &self.0.service {
            service.set_peers(Arc::new(ContentPeers::new(identities, dialer)));
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

    /// What keeps the files from being served.
    pub(crate) fn problems(&self) -> Vec<MachineDiagnostic> {
        let found = self.0.service.iter().flat_map(FsService::problems);
        let shown = found.map(|problem| MachineDiagnostic {
            code: problem.code.to_owned(),
            text: problem.text,
            hint: problem.hint.to_owned(),
        });
        shown.collect()
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
