//! What the node computes for its callers: scripts and shaders in workers, and the tensors that
//! they read.
//!
//! Workers compile, run and map a caller's code and data. The node's own process never does. The
//! first request starts a worker.

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

/// Folder of the node's tensors, below its state directory.
const STORE_DIR: &str = "state/tensors";
/// File of the proposed and promoted operations, below the state directory.
const PROMOTION_FILE: &str = "state/promotion/promotion.db";
/// File of measured kernel timings on this machine, below the state directory.
const MEASURED_FILE: &str = "state/compute/measured.json";
/// Percentage of the file system that tensors may fill. The rest is for everything else that the
/// node stores.
const STORE_PERCENT: u64 = 50;
/// One part in this many of the machine's memory is for copies of stored tensors to which requests
/// refer.
const REFERENCED_PART: u64 = 4;
/// The namespaces that scripts of `runtime/eval` may call, within the rights of their caller,
/// beside the namespaces of imports.
const SCRIPT_NAMESPACES: [&str; 10] = [
    "compute/*",
    "config/*",
    "fs/*",
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
const NODE_NAMESPACES: [&str; 18] = [
    "capability",
    "channel",
    "compute",
    "config",
    "escrow",
    "fs",
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
    "update",
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

/// What `NodeComputing` needs of the node.
pub(super) struct ComputingContext<'a> {
    pub(super) state_dir: &'a Path,
    /// The node's name in references to its tensors.
    pub(super) identity: &'a str,
    pub(super) identities: Arc<Identities>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) promotion: &'a PromotionSection,
    pub(super) runtime: &'a RuntimeSection,
    pub(super) compute: &'a ComputeSection,
    /// The capabilities that operations were granted, by the operation's name.
    pub(super) capabilities: &'a BTreeMap<String, Capabilities>,
}

impl NodeComputing {
    /// Opens the stores. The first request starts the first worker.
    ///
    /// # Errors
    /// The thread that supervises workers cannot be started.
    pub(super) fn new(context: &ComputingContext<'_>) -> anyhow::Result<Self> {
        let mut settings = ComputeSettings::default();
        settings.measured = Some(context.state_dir.join(MEASURED_FILE));
        settings.driver.clone_from(&context.compute.driver);
        settings.host_kernels = context.compute.host_kernels;
        settings.gpu_time = Duration::from_secs(context.compute.gpu_seconds.into());
        settings.referenced_bytes =
            (memory_total_bytes() / REFERENCED_PART).max(REFERENCED_BYTES_MIN);
        let workers = workers::start(&settings, context.runtime.min_sandbox)?;
        let mut problems = Vec::new();
        let store = open_store(context.state_dir, &mut problems);
        let stored = store
            .clone()
            .map(|store| Arc::new(TensorStoreView::new(store, context.identity)));
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
        let promotion = promotion(context, &sessions, &services, &mut problems)?;
        Ok(Self {
            workers,
            sessions,
            compute,
            store,
            promotion,
            services,
            minimum: workers::level(context.runtime.min_sandbox),
            problems: problems.into(),
        })
    }

    /// Adds the operations to a registry. Scripts of `runtime/eval` can call the operations of
    /// `imports`.
    pub(super) fn register(&self, builder: &mut RegistryBuilder, imports: &[ImportConfig]) {
        for namespace in NODE_NAMESPACES {
            builder.keep_for_node(namespace);
        }
        for import in imports {
            // The namespace is reserved before a peer attaches: a call that a script makes to the
            // imported server never reaches a peer, even before the import has succeeded.
            builder.keep_for_server(&import.namespace);
        }
        let own = SCRIPT_NAMESPACES.into_iter().map(str::to_owned);
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

    /// Installs the promoted operations, before the node serves a client.
    pub(super) async fn attach(&self, dispatcher: &Arc<Dispatcher>) {
        let Some(promotion) = &self.promotion else {
            return;
        };
        match promotion.attach(dispatcher).await {
            Ok(_) => {
                // An operation that cannot be installed does not keep the others from being
                // installed.
                for left in promotion.left_out() {
                    tracing::warn!("not in place: {left:?}");
                }
            }
            Err(error) => tracing::warn!("no promoted operation is in place: {error}"),
        }
    }

    /// Adds the handlers of protocols of their own.
    pub(super) fn serve(&self, handlers: &mut HandlerRegistry) -> anyhow::Result<()> {
        if let Some(store) = &self.store {
            handlers.register(Arc::new(TensorHandler::new(Arc::clone(store))))?;
        }
        Ok(())
    }

    /// The paths that the node serves over HTTP.
    pub(super) fn mounts(&self) -> Vec<Arc<dyn HttpMount>> {
        let mirror = |store| -> Arc<dyn HttpMount> { Arc::new(Mirror::new(store)) };
        self.store.clone().map(mirror).into_iter().collect()
    }

    /// The store of tensors. `None` if it cannot be opened.
    pub(super) fn tensors(&self) -> Option<Arc<TensorStore>> {
        self.store.clone()
    }

    /// The processes that run scripts and shaders.
    pub(super) fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Adds the counters of sessions to the metrics.
    pub(super) fn collect(&self, metrics: &mut Metrics) {
        self.sessions.collect(metrics);
    }

    /// The problems of what could not be opened.
    pub(super) fn problems(&self) -> Arc<[MachineDiagnostic]> {
        Arc::clone(&self.problems)
    }

    /// The problem that a damaged disk could undo decisions about promotion.
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

    /// The problem of a driver that the configuration names and that no worker found.
    pub(super) fn missing(&self) -> Option<MachineDiagnostic> {
        Some(MachineDiagnostic {
            code: "compute-driver-missing".to_owned(),
            text: format!("no shader runs: {}", self.compute.driver_missing()?),
            hint: "name another driver in compute.driver, or leave it out, and restart the node"
                .to_owned(),
        })
    }

    /// That the sandbox level of workers is below the configured one. The node knows it once a worker was started.
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

    /// Ends the services, and then every worker.
    // Each service writes its state from inside its worker, so the workers end last.
    pub(super) async fn stop(&self) {
        self.services.stop().await;
        self.workers.shutdown().await;
    }
}

/// Opens the tensor store of the node with this state directory.
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
    // If this fails, opening the store fails as well, and its error says why.
    let _ = super::make_private_dir(&folder);
    TensorStore::open(folder, options)
}

/// Opens the node's tensor store. A node that cannot open it serves everything else.
fn open_store(state_dir: &Path, problems: &mut Vec<MachineDiagnostic>) -> Option<Arc<TensorStore>> {
    let store = tensor_store(state_dir);
    let unusable = |error: &_| {
        let text = format!("tensors are neither kept nor served: {error}");
        problems.push(problem("tensors-unusable", text));
    };
    store.inspect_err(unusable).ok()
}

/// A problem that goes to the log and to the node's problems.
fn problem(code: &str, text: String) -> MachineDiagnostic {
    let hint = "correct what the text names and restart the node; everything else is served";
    tracing::warn!("{code}: {text}; {hint}");
    MachineDiagnostic {
        code: code.to_owned(),
        text,
        hint: hint.to_owned(),
    }
}

/// Opens promotion. A node that cannot store proposals serves everything else.
fn promotion(
    context: &ComputingContext<'_>,
    sessions: &Arc<ScriptSessions>,
    services: &Arc<PromotedServices>,
    problems: &mut Vec<MachineDiagnostic>,
) -> anyhow::Result<Option<Arc<Promotion>>> {
    let file = context.state_dir.join(PROMOTION_FILE);
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
    } = *context.promotion;
    let promoted = Arc::new(PromotionSessions {
        sessions: Arc::clone(sessions),
        services: Arc::clone(services),
    });
    let parts = PromotionParts {
        store,
        runner: Arc::clone(&promoted) as _,
        invoker: promoted,
        identities: Arc::clone(&context.identities) as _,
        clock: Arc::clone(&context.clock),
        capabilities: context.capabilities.clone(),
        config: alknet_promotion::PromotionConfig {
            activate: match activate {
                Activation::Boot => ActivationTime::Boot,
                Activation::Live => ActivationTime::Live,
            },
            reviews,
            rollback_on_errors,
        },
        recheck: alknet_promotion::RECHECK_PERIOD,
    };
    Ok(Some(Promotion::new(parts)?))
}
