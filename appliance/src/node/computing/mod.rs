//! What the node computes for its callers: scripts and shaders in workers, and the tensors that they
//! read.
//!
//! A caller's code and data are compiled, run and mapped in workers, never in the node's own
//! process. The first request starts them.

mod promoted;
mod services;
mod stored;
mod workers;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alknet_call::{Dispatcher, RegistryBuilder};
use alknet_compute::limits::REFERENCED_BYTES_MIN;
use alknet_compute::{Compute, ComputeSettings};
use alknet_core::config::{
    Activation, ComputeSection, ImportConfig, PromotionSection, RuntimeSection,
};
use alknet_core::{Capabilities, Clock, HandlerRegistry, HttpMount, Identities, Metrics};
use alknet_init::control::MachineDiagnostic;
use alknet_promotion::{ActivationTime, Promotion, PromotionParts};
use alknet_sessions::ScriptSessions;
use alknet_tensor_serve::{Mirror, ServeError, StoreOptions, TensorHandler, TensorStore};
use alknet_worker::{ConfinementLevel, Workers};
use nix::sys::statvfs::statvfs;
use promoted::PromotionSessions;
use services::PromotedServices;
use stored::TensorStoreView;

use super::facts::memory_total_bytes;

/// Folder of the node's tensors below its state directory.
const STORE_DIR: &str = "state/tensors";
/// File of what was proposed and promoted below it.
const PROMOTION_FILE: &str = "state/promotion/promotion.db";
/// File of how fast this machine computes in which way below it.
const MEASURED_FILE: &str = "state/compute/measured.json";
/// Part of the file system that the tensors may fill: the rest is for whatever else the node keeps.
const STORE_PERCENT: u64 = 50;
/// Part of the machine's memory that copies of stored tensors have, to which requests refer.
const REFERENCED_PART: u64 = 4;
/// What scripts of `runtime/eval` may call, as far as the caller may, beside the namespaces of imports.
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

/// Namespaces of the node's own operations, in which a script's call that names no peer goes to none: an operation may
/// be missing here for a while, and every peer may serve its name.
const OWN: [&str; 16] = [
    "capability",
    "channel",
    "compute",
    "config",
    "escrow",
    "hub",
    "js",
    "node",
    "ops",
    "peer",
    "runtime",
    "services",
    "session",
    "tensor",
    "token",
    "vault",
];

/// Everything that computes. Clones share it.
#[derive(Clone)]
pub(super) struct NodeComputing {
    workers: Workers,
    sessions: Arc<ScriptSessions>,
    compute: Compute,
    store: Option<Arc<TensorStore>>,
    promotion: Option<Arc<Promotion>>,
    services: Arc<PromotedServices>,
    /// The lowest level at which a worker is used.
    minimum: ConfinementLevel,
    problems: Arc<[MachineDiagnostic]>,
}

/// What it needs of the node.
pub(super) struct ComputingContext<'a> {
    pub(super) state_dir: &'a Path,
    /// What the node is called in references to its tensors.
    pub(super) identity: &'a str,
    pub(super) identities: Arc<Identities>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) promotion: &'a PromotionSection,
    pub(super) runtime: &'a RuntimeSection,
    pub(super) compute: &'a ComputeSection,
    /// What operations were given, by their names.
    pub(super) capabilities: &'a BTreeMap<String, Capabilities>,
}

impl NodeComputing {
    /// Opens the store; no worker is started yet.
    ///
    /// # Errors
    /// If the thread that watches over workers cannot be started.
    pub(super) fn new(around: &ComputingContext<'_>) -> anyhow::Result<Self> {
        let mut settings = ComputeSettings::default();
        settings.measured = Some(around.state_dir.join(MEASURED_FILE));
        settings.driver.clone_from(&around.compute.driver);
        settings.host_kernels = around.compute.host_kernels;
        settings.gpu_time = Duration::from_secs(around.compute.gpu_seconds.into());
        settings.referenced_bytes =
            (memory_total_bytes() / REFERENCED_PART).max(REFERENCED_BYTES_MIN);
        let workers = workers::start(&settings, around.runtime.min_sandbox)?;
        let mut problems = Vec::new();
        let store = open_store(around.state_dir, &mut problems);
        let stored = store
            .clone()
            .map(|store| Arc::new(TensorStoreView::new(store, around.identity)));
        let config = alknet_sessions::SessionsConfig {
            files: stored.clone().map(|stored| stored as _),
            ..Default::default()
        };
        let sessions = ScriptSessions::new(workers.clone(), config);
        let compute = match stored {
            Some(stored) => Compute::with_references(workers.clone(), settings, stored),
            None => Compute::new(workers.clone(), settings),
        };
        let services = Arc::new(PromotedServices::new(&sessions));
        let promotion = promotion(around, &sessions, &services, &mut problems)?;
        Ok(Self {
            workers,
            sessions,
            compute,
            store,
            promotion,
            services,
            minimum: workers::level(around.runtime.min_sandbox),
            problems: problems.into(),
        })
    }

    /// Adds the operations to a registry. What comes of `imports` scripts of `runtime/eval` reach.
    pub(super) fn register(&self, builder: &mut RegistryBuilder, imports: &[ImportConfig]) {
        for namespace in OWN {
            builder.keep_for_node(namespace);
        }
        for import in imports {
            // Before a peer attaches: what a script means for the server goes to no peer, also where nothing is
            // imported yet.
            builder.keep_for_server(&import.namespace);
        }
        let own = REACH.into_iter().map(str::to_owned);
        let imported = imports.iter().map(|one| format!("{}/*", one.namespace));
        let mut operations = alknet_sessions::operations(&self.sessions, own.chain(imported));
        operations.extend(alknet_compute::operations(&self.compute));
        if let Some(store) = &self.store {
            operations.extend(alknet_tensor_serve::operations(store));
        }
        if let Some(promotion) = &self.promotion {
            operations.extend(promotion.operations());
        }
        for operation in operations {
            builder.add(operation);
        }
    }

    /// Puts in place what was promoted, before the node serves a client.
    pub(super) async fn attach(&self, dispatcher: &Arc<Dispatcher>) {
        let Some(promotion) = &self.promotion else {
            return;
        };
        match promotion.attach(dispatcher).await {
            Ok(_) => {
                for left in promotion.left_out() {
                    tracing::warn!("not in place: {left:?}");
                }
            }
            Err(error) => tracing::warn!("no promoted operation is in place: {error}"),
        }
    }

    /// Adds what serves protocols of their own.
    pub(super) fn serve(&self, handlers: &mut HandlerRegistry) -> anyhow::Result<()> {
        if let Some(store) = &self.store {
            handlers.register(Arc::new(TensorHandler::new(Arc::clone(store))))?;
        }
        Ok(())
    }

    /// What is seen of it over HTTP.
    pub(super) fn mounts(&self) -> Vec<Arc<dyn HttpMount>> {
        let mirror = |store| -> Arc<dyn HttpMount> { Arc::new(Mirror::new(store)) };
        self.store.clone().map(mirror).into_iter().collect()
    }

    /// The processes that scripts and shaders run in.
    pub(super) fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Adds what was counted.
    pub(super) fn collect(&self, metrics: &mut Metrics) {
        self.sessions.collect(metrics);
    }

    /// What could not be opened.
    pub(super) fn problems(&self) -> Arc<[MachineDiagnostic]> {
        Arc::clone(&self.problems)
    }

    /// That damage to the disk could undo what was decided about promotion.
    pub(super) fn unemptied_log(&self) -> Option<MachineDiagnostic> {
        let why = self.promotion.as_ref()?.unemptied_log()?;
        Some(MachineDiagnostic {
            code: "promotion-write".to_owned(),
            text: format!(
                "what was decided about promotion is kept, and its log cannot be emptied: {why}"
            ),
            hint: "make room on the disk, or replace it: until then damage to the disk can undo the last decisions"
                .to_owned(),
        })
    }

    /// What a worker did not find that the configuration wants.
    pub(super) fn missing(&self) -> Option<MachineDiagnostic> {
        Some(MachineDiagnostic {
            code: "compute-driver-missing".to_owned(),
            text: format!("no shader runs: {}", self.compute.driver_missing()?),
            hint: "name another driver in compute.driver, or leave it out, and restart the node"
                .to_owned(),
        })
    }

    /// That workers are walled in less than the configuration wants. It is known once one was started.
    pub(super) fn low_sandbox(&self) -> Option<MachineDiagnostic> {
        let stats = self.workers.stats();
        let mut roles = stats.sandbox.iter();
        let (role, sandbox) = roles.find(|(_, sandbox)| sandbox.level < self.minimum)?;
        let missing: Vec<_> = sandbox.gaps.iter().map(|gap| gap.why.as_str()).collect();
        Some(MachineDiagnostic {
            code: "sandbox-low".to_owned(),
            text: format!(
                "no worker of role {role} is used: its sandbox is {} where at least {} is required: {}",
                sandbox.level,
                self.minimum,
                missing.join("; ")
            ),
            hint: "use a kernel and an account that can give what is missing, or lower runtime.min_sandbox, and restart the node"
                .to_owned(),
        })
    }

    /// Lets the services leave, then ends every worker.
    pub(super) async fn stop(&self) {
        self.services.stop().await;
        self.workers.shutdown().await;
    }
}

/// The store of the node with this state directory.
pub(crate) fn tensor_store(state_dir: &Path) -> Result<Arc<TensorStore>, ServeError> {
    let mut options = StoreOptions::default();
    if let Ok(system) = statvfs(state_dir) {
        let bytes = u128::from(system.blocks()) * u128::from(system.fragment_size());
        // The rest of the disk is for the configuration, the log and the promoted operations.
        let most = bytes * u128::from(STORE_PERCENT) / 100;
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        options.bytes_max = options.bytes_max.min(most);
    }
    let folder = state_dir.join(STORE_DIR);
    // Where this fails, opening says why.
    let _ = super::make_private_dir(&folder);
    TensorStore::open(folder, options)
}

/// The node's tensors. A node that cannot keep any serves everything else.
fn open_store(state_dir: &Path, problems: &mut Vec<MachineDiagnostic>) -> Option<Arc<TensorStore>> {
    let store = tensor_store(state_dir);
    let unusable = |error: &_| {
        let text = format!("tensors are neither kept nor served: {error}");
        problems.push(problem("tensors-unusable", text));
    };
    store.inspect_err(unusable).ok()
}

/// Something that is said in the log and among the node's problems.
fn problem(code: &str, text: String) -> MachineDiagnostic {
    let hint = "correct what the text names and restart the node; everything else is served";
    tracing::warn!("{code}: {text}; {hint}");
    MachineDiagnostic {
        code: code.to_owned(),
        text,
        hint: hint.to_owned(),
    }
}

/// Promotion. A node that cannot keep what is proposed serves everything else.
fn promotion(
    around: &ComputingContext<'_>,
    sessions: &Arc<ScriptSessions>,
    services: &Arc<PromotedServices>,
    problems: &mut Vec<MachineDiagnostic>,
) -> anyhow::Result<Option<Arc<Promotion>>> {
    let file = around.state_dir.join(PROMOTION_FILE);
    let opened = match file.parent().map(super::make_private_dir) {
        Some(Err(error)) => Err(error.to_string()),
        _ => alknet_promotion::PromotionStore::open(&file).map_err(|error| error.to_string()),
    };
    let store = match opened {
        Ok(store) => store,
        Err(error) => {
            let text = format!("nothing is promoted and nothing can be: {error}");
            problems.push(problem("promotion-unusable", text));
            return Ok(None);
        }
    };
    let PromotionSection {
        activate,
        reviews,
        rollback_on_errors,
    } = *around.promotion;
    let promoted = Arc::new(PromotionSessions {
        sessions: Arc::clone(sessions),
        services: Arc::clone(services),
    });
    let parts = PromotionParts {
        store,
        runner: Arc::clone(&promoted) as _,
        invoker: promoted,
        identities: Arc::clone(&around.identities) as _,
        clock: Arc::clone(&around.clock),
        capabilities: around.capabilities.clone(),
        config: alknet_promotion::PromotionConfig {
            activate: match activate {
                Activation::Boot => ActivationTime::Boot,
                Activation::Live => ActivationTime::Live,
            },
            reviews,
            rollback_on_errors,
        },
    };
    Ok(Some(Promotion::new(parts)?))
}
