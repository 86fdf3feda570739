//! The node that serves the one port, under PID 1 or on an ordinary host.

mod capability_store;
mod certificates;
mod computing;
mod config_show;
mod config_store;
mod config_watch;
mod control;
mod dialler;
mod escrow;
mod facts;
mod fault;
mod file_store;
mod health;
mod host;
mod hub;
mod identity_services;
mod imports;
mod join;
mod known_names;
mod log;
mod log_panic;
mod log_rate;
mod log_ring;
mod memory;
mod metadata;
mod metrics;
mod named_files;
mod node_key_rotation;
mod open_files;
mod ops;
mod peer_admin;
mod peer_key_rotation;
mod reload;
mod self_call;
mod self_probe;
mod start;
mod state_lock;
mod storage;
mod store;
mod stored_files;
mod supervised;
mod tokens;
mod update;
mod vault;
mod web;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use alknet_call::Dispatcher;
use alknet_core::config::{LimitsConfig, NodeConfig, ReloadHandle};
use alknet_core::{CloseCode, EncryptedData, Identities, StoredIdentities, SystemClock};
use alknet_endpoint::{EndpointLimits, EndpointServer};
use alknet_identity_store::IdentityDb;
use alknet_init::control::{InitMessage, MachineDiagnostic, MachineFacts, NodeStatus};
use alknet_tls::NodeDiagnostics;
use tokio::sync::mpsc;

use capability_store::CapabilityStore;
use computing::NodeComputing;
use config_store::ConfigStore;
use facts::{NodeDescription, SharedFacts};
use file_store::NodeFileStore;
use health::InitDiagnostics;
use hub::HubContext;
use identity_services::{IdentityServices, SharedServer};
use imports::NodeImports;
use join::HubMemberships;
use log::NodeLogRing;
use memory::MemoryRelief;
use open_files::FileLimits;
use reload::Reloader;
use self_call::SelfCaller;
use storage::NodeStorage;
use stored_files::StoredFiles;
use update::{NodeUpdates, UpdateStream};
use vault::NodeVault;
use web::NodeWeb;

use crate::credentials::CredentialFolder;

pub(crate) use capability_store::check_secret;
pub(crate) use certificates::unprovable;
pub(crate) use computing::tensor_store;
pub(crate) use config_store::{folder_of, read as read_document, read_last_good};
pub(crate) use escrow::run_helper;
pub(crate) use host::{ConfigOverlay, DRAIN, ServeFile, StartupConfig, serve};
pub(crate) use join::{fill_in as fill_in_hubs, problems as join_problems};
pub(crate) use known_names::{ADMIN, has_operation, scope_of, unknown_names};
pub(crate) use named_files::missing as missing_files;
pub(crate) use reload::refusal;
pub(crate) use state_lock::StateLock;
pub(crate) use supervised::supervised;
pub(crate) use update::{SESSION_TIME_MAX, may_end_by_staging, may_lie_in_delta};

/// What a node is made from.
struct NodeOptions<'a> {
    config: &'a NodeConfig,
    /// Options of the command line, which override every document.
    overlay: ConfigOverlay,
    config_store: ConfigStore,
    /// Problems of the configuration that the node starts with.
    problems: Vec<MachineDiagnostic>,
    /// Whether the log shows more than the configuration asks for.
    verbose: bool,
    state_dir: &'a Path,
    facts: MachineFacts,
    role: &'static str,
    ring: NodeLogRing,
    to_init: Option<mpsc::Sender<InitMessage>>,
    /// The stream on which PID 1 takes bundles.
    update_stream: Option<UpdateStream>,
    /// The vault that derives the key. `None` if the key is in a file.
    vault: Option<NodeVault>,
    /// Credentials that PID 1 keeps, sealed, by their names.
    records: BTreeMap<String, EncryptedData>,
    /// Folder of the credentials of a node on a host, which has no vault.
    credentials: Option<CredentialFolder>,
}

/// A running node. Clones share it.
#[derive(Clone)]
struct AlknetNode {
    server: Arc<EndpointServer>,
    self_caller: SelfCaller,
    description: Arc<NodeDescription>,
    facts: SharedFacts,
    identities: IdentityServices,
    certificates: Arc<NodeDiagnostics>,
    ring: NodeLogRing,
    verbose: bool,
    hub: Option<HubContext>,
    joins: Arc<HubMemberships>,
    computing: NodeComputing,
    capabilities: CapabilityStore,
    web: NodeWeb,
    imports: NodeImports,
    files: StoredFiles,
    file_store: NodeFileStore,
    updates: NodeUpdates,
    storage: NodeStorage,
    /// Problems of what could not be opened at the start.
    unusable: Arc<[MachineDiagnostic]>,
    /// The problems that the node last sent to PID 1.
    sent_problems: InitDiagnostics,
    relief: Arc<MemoryRelief>,
    dispatcher: Arc<Dispatcher>,
}

/// What a node still does when it is about to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeActivity {
    /// Number of running calls of its operations.
    pub(crate) calls: usize,
    /// Number of connections to its port.
    pub(crate) connections: usize,
}

impl AlknetNode {
    /// Applies the limits and the log settings of the configuration in force.
    fn tune(&self) {
        let current = self.identities.reloader.current();
        self.server.set_limits(limits(&current.config.limits));
        self.ring.tune(&current.config.log, self.verbose);
        self.web.tune(&current.config);
        if let Some(hub) = &self.hub {
            hub.tune(&current.config);
        }
    }

    /// Applies them after every change, and sends PID 1 the new status.
    async fn keep_tuned(self, to_init: Option<mpsc::Sender<InitMessage>>) {
        let mut changes = self.identities.reloader.watch();
        let mut certificate_changes = self.certificates.watch();
        loop {
            let changed = tokio::select! {
                changed = changes.changed() => changed,
                changed = certificate_changes.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            self.tune();
            if let Some(to_init) = &to_init {
                let status = self.status_for_init();
                // If PID 1 is gone, this process is about to end, too.
                to_init.send(InitMessage::Status { status }).await.ok();
            }
        }
    }

    /// The status that the console shows.
    fn status(&self) -> NodeStatus {
        let facts = self.facts.load();
        let admins = self
            .identities
            .reloader
            .current()
            .config
            .node
            .admin_keys
            .len();
        NodeStatus {
            identity: self.description.identity().to_owned(),
            enrolment_uri: enrolment_uri(&self.description, &facts),
            port: self.description.port(),
            alpns: self.description.alpns().to_vec(),
            admins: u32::try_from(admins).unwrap_or(u32::MAX),
            problems: self.problems(),
        }
    }

    /// The status for PID 1, which repeats the problems as if it had found them.
    fn status_for_init(&self) -> NodeStatus {
        let status = self.status();
        self.sent_problems.store(Arc::new(status.problems.clone()));
        status
    }

    /// The problems that only the node knows.
    fn problems(&self) -> Vec<MachineDiagnostic> {
        let certificates = certificates::problems(&self.certificates);
        let own = self.identities.problems().into_iter();
        own.chain(certificates)
            .chain(self.unusable.iter().cloned())
            .chain(self.computing.missing())
            .chain(self.computing.low_sandbox())
            .chain(self.computing.unemptied_log())
            .chain(self.capabilities.problems())
            .chain(self.web.problems())
            .chain(self.unknown_names())
            .chain(self.imports.problems())
            .chain(
                self.files
                    .problems(&self.identities.reloader.current().config),
            )
            .chain(guesses(&self.server))
            .chain(self.relief.problem())
            .chain(self.joins.problems())
            .chain(self.updates.problems())
            .chain(self.storage.problems())
            .chain(self.file_store.problems())
            .map(MachineDiagnostic::shortened)
            .collect()
    }

    /// Names of the configuration in force that the node does not have.
    fn unknown_names(&self) -> Vec<MachineDiagnostic> {
        let current = self.identities.reloader.current();
        known_names::problems(&current.config, self.dispatcher.registry())
    }

    /// What the node would have to wait for if it stopped now.
    fn activity(&self) -> NodeActivity {
        NodeActivity {
            calls: self.dispatcher.running(),
            connections: self.server.connections().len(),
        }
    }

    /// Finishes running calls, refuses new ones, and closes the rest.
    async fn drain(&self, deadline: Duration, why: (CloseCode, &'static str)) {
        // This comes first: a node that is about to stop must not dial a hub again.
        self.joins.stop();
        let drained = self.server.drain_for(deadline, why).await;
        self.computing.stop().await;
        // After the scripts, which may use files until they end.
        self.file_store.stop().await;
        // Otherwise the days of last use since the last hour would be lost.
        tokens::keep_uses_now(&self.identities.identities).await;
        tracing::info!(finished = drained.finished, cut = drained.cut, "drained");
    }
}

/// The identities that the node knows, and the means to change them.
fn build_identity_services(
    config: &NodeConfig,
    overlay: ConfigOverlay,
    config_store: ConfigStore,
    problems: Vec<MachineDiagnostic>,
    (store, stored): (IdentityDb, StoredIdentities),
) -> IdentityServices {
    let entries = config.entries();
    let keeping = Arc::new(store.clone());
    let identities = Identities::with_store(entries.clone(), stored, keeping, clock());
    for (id, what) in identities.hidden_by(&entries) {
        tracing::warn!("{id}: {what}; the configuration wins");
    }
    let identities = Arc::new(identities);
    let handle =
        ReloadHandle::new(config.clone(), Arc::clone(&identities)).with_overlay(move |config| {
            overlay.put_over(config);
            join::fill_in(config);
        });
    let server: SharedServer = Arc::new(OnceLock::new());
    IdentityServices {
        reloader: Arc::new(Reloader::new(handle, config_store, problems)),
        identities,
        store,
        server,
        hubs: join::HubConnections::default(),
    }
}

fn clock() -> Arc<SystemClock> {
    Arc::new(SystemClock {
        built_s: alknet_init::BUILD_TIME_S,
    })
}

/// The configured limits, with defaults for this machine's memory. There are no more connections than files for them.
fn limits(table: &LimitsConfig) -> EndpointLimits {
    let own = EndpointLimits::for_memory(facts::memory_total_bytes());
    let files = FileLimits::now();
    EndpointLimits {
        connections_max: table
            .connections
            .unwrap_or(own.connections_max)
            .min(files.connections),
        tcp_handshakes_max: own.tcp_handshakes_max.min(files.handshakes),
        per_address_max: table.connections_per_address.unwrap_or(own.per_address_max),
        per_peer_max: table.connections_per_peer.unwrap_or(own.per_peer_max),
        handshake_burst: table.handshake_burst.unwrap_or(own.handshake_burst),
        handshakes_per_second: table
            .handshakes_per_second
            .unwrap_or(own.handshakes_per_second),
        failures_per_minute_max: table
            .failures_per_minute
            .unwrap_or(own.failures_per_minute_max),
        ..own
    }
}

/// Code of the problem that clients guess tokens or keys.
pub(crate) const FAILED_LOGINS: &str = "failed-logins";

/// Maximum number of networks that the problem names.
const NETWORKS_NAMED: usize = 8;

/// The problem of networks from which clients guess tokens or keys.
fn guesses(server: &EndpointServer) -> Option<MachineDiagnostic> {
    let mut networks: Vec<_> = server.penalties().into_iter().map(|(who, _)| who).collect();
    networks.sort_unstable();
    let named = networks
        .iter()
        .take(NETWORKS_NAMED)
        .map(ToString::to_string);
    let named = named.collect::<Vec<_>>().join(", ");
    let more = networks.len().saturating_sub(NETWORKS_NAMED);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    (!networks.is_empty()).then(|| MachineDiagnostic {
        code: FAILED_LOGINS.to_owned(),
        text: format!("too many wrong tokens or unknown keys came from {named}{more}"),
        hint: "wrong ones from there are refused for a while, right ones are not; if it is one of your \
               programs, give it a token that is good"
            .to_owned(),
    })
}

/// `alknet:` and the target with the first address that another machine can reach.
fn enrolment_uri(description: &NodeDescription, facts: &MachineFacts) -> String {
    let is_loopback = |text: &String| text.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    let mut addresses = description.addresses(facts).into_iter();
    let address = addresses.find(|address| !is_loopback(address));
    let host = match address {
        Some(v6) if v6.contains(':') => format!("[{v6}]"),
        Some(v4) => v4,
        None => return String::new(),
    };
    format!(
        "alknet:{}@{host}:{}",
        description.identity(),
        description.port()
    )
}

fn make_private_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

/// A runtime that fits the machine, with at least two threads: a handler that computes for ever must stop neither
/// other connections nor the answer to PID 1's health question.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.max(2))
        .thread_name("alknet")
        .on_thread_park(crate::memory::give_back)
        .enable_all()
        .build()
}
