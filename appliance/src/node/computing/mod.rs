//! What the node computes for its callers: scripts and shaders in workers, and the tensors that they
//! read.
//!
//! Nothing of a caller's is compiled, run or mapped in the node's own process, and nothing is started
//! before somebody asks.

mod stored;
mod workers;

use std::path::Path;
use std::sync::Arc;

use alknet_call::RegistryBuilder;
use alknet_compute::{Compute, Settings};
use alknet_core::{HandlerRegistry, Metrics};
use alknet_sessions::Sessions;
use alknet_tensor_serve::{Store, StoreOptions, TensorHandler};
use alknet_worker::Workers;
use nix::sys::statvfs::statvfs;
use stored::Stored;

/// Folder of the node's tensors below its state directory.
const STORE_DIR: &str = "tensors";
/// Part of the file system that the tensors may fill: the rest is for whatever else the node keeps.
const STORE_PERCENT: u64 = 50;
/// What scripts of `runtime/eval` may call, as far as whoever runs them may.
const REACH: [&str; 9] = [
    "compute/*",
    "config/*",
    "hub/*",
    "js/*",
    "node/*",
    "ops/*",
    "peer/*",
    "runtime/*",
    "tensor/*",
];
/// Scopes that operations here look for beside those that they declare.
pub(super) const SCOPES: [&str; 2] = ["tensor:read:*", "tensor:write:*"];

/// Everything that computes. Clones share it.
#[derive(Clone)]
pub(super) struct Computing {
    workers: Workers,
    sessions: Arc<Sessions>,
    compute: Compute,
    store: Option<Arc<Store>>,
}

impl Computing {
    /// Opens the store; no worker is started yet.
    ///
    /// # Errors
    /// If the thread that watches over workers cannot be started.
    pub(super) fn new(state_dir: &Path, identity: &str) -> anyhow::Result<Self> {
        let settings = Settings::default();
        let workers = workers::start(&settings)?;
        let store = open_store(state_dir);
        let stored = store.clone().map(|store| Arc::new(Stored::new(store, identity)));
        let config = alknet_sessions::Config {
            files: stored.clone().map(|stored| stored as _),
            ..Default::default()
        };
        let sessions = Sessions::new(workers.clone(), config);
        let compute = match stored {
            Some(stored) => Compute::with_references(workers.clone(), settings, stored),
            None => Compute::new(workers.clone(), settings),
        };
        Ok(Self {
            workers,
            sessions,
            compute,
            store,
        })
    }

    /// Adds the operations to a registry.
    pub(super) fn register(&self, builder: &mut RegistryBuilder) {
        let mut operations = alknet_sessions::operations(&self.sessions, REACH);
        operations.extend(alknet_compute::operations(&self.compute));
        if let Some(store) = &self.store {
            operations.extend(alknet_tensor_serve::operations(store));
        }
        for operation in operations {
            builder.add(operation);
        }
    }

    /// Adds what serves protocols of their own.
    pub(super) fn serve(&self, handlers: &mut HandlerRegistry) -> anyhow::Result<()> {
        if let Some(store) = &self.store {
            handlers.register(Arc::new(TensorHandler::new(Arc::clone(store))))?;
        }
        Ok(())
    }

    /// Adds what was counted.
    pub(super) fn collect(&self, metrics: &mut Metrics) {
        self.sessions.collect(metrics);
    }

    /// Ends every worker.
    pub(super) async fn stop(&self) {
        self.workers.shutdown().await;
    }
}

/// The node's tensors. A node that cannot keep any serves everything else.
fn open_store(state_dir: &Path) -> Option<Arc<Store>> {
    let mut options = StoreOptions::default();
    if let Ok(system) = statvfs(state_dir) {
        let bytes = u128::from(system.blocks()) * u128::from(system.fragment_size());
        let most = bytes * u128::from(STORE_PERCENT) / 100;
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        options.bytes_max = options.bytes_max.min(most);
    }
    let store = Store::open(state_dir.join(STORE_DIR), options);
    store
        .inspect_err(|error| tracing::warn!("tensors are not served: {error}"))
        .ok()
}
