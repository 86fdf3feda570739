//! The node that serves the one port, under PID 1 or on an ordinary host.

mod capability_store;
mod certificates;
mod computing;
mod condition;
mod config_show;
mod config_store;
mod config_watch;
mod control;
mod dialler;
mod escrow;
mod facts;
mod fault;
mod host;
mod hub;
mod identity_services;
mod imports;
mod join;
mod key_rotation;
mod known_names;
mod log;
mod log_rate;
mod log_ring;
mod memory;
mod metrics;
mod named_files;
mod ops;
mod peer_admin;
mod reload;
mod rotate;
mod self_probe;
mod state_lock;
mod store;
mod stored_files;
mod supervised;
mod tokens;
mod vault;
mod web;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use alknet_call::{CallHandler, Dispatcher, Registry};
use alknet_core::config::{LimitsConfig, NodeConfig, ReloadHandle};
use alknet_core::{
    CloseCode, EncryptedData, HandlerRegistry, Identities, StoredIdentities, SystemClock,
};
use alknet_endpoint::{EndpointLimits, EndpointServer, IrohOptions, ServerOptions};
use alknet_identity_store::IdentityDb;
use alknet_init::control::{InitMessage, MachineDiagnostic, MachineFacts, NodeStatus};
use alknet_page::AdminPage;
use alknet_tls::{NodeDiagnostics, NodeKey};
use arc_swap::ArcSwap;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use capability_store::CapabilityStore;
use certificates::NodeCertificates;
use computing::{ComputingContext, NodeComputing};
use condition::{CertificateHealth, InitProblems, NodeHealth, NodeProblemSource};
use config_store::ConfigStore;
use facts::{NodeDescription, SharedFacts};
use hub::HubContext;
use identity_services::{IdentityServices, SharedServer};
use imports::{DocumentFolders, NodeImports};
use join::{HubConnections, HubMemberships, JoinContext};
use key_rotation::NodeKeyRotation;
use log::NodeLogRing;
use memory::MemoryRelief;
use metrics::NodeMetrics;
use ops::NodeContext;
use reload::Reloader;
use self_probe::{ArrivalHandler, Arrivals, SelfProbe};
use stored_files::StoredFiles;
use vault::NodeVault;
use web::{NodeWeb, WebGateway};

use crate::credentials::CredentialFolder;
use crate::key::KeyFiles;

pub(crate) use capability_store::check_secret;
pub(crate) use computing::tensor_store;
pub(crate) use config_store::{folder_of, read as read_document, read_last_good};
pub(crate) use escrow::run_helper;
pub(crate) use host::{ConfigOverlay, DRAIN, ServeFile, StartupConfig, serve};
pub(crate) use join::problems as join_problems;
pub(crate) use known_names::unknown_names;
pub(crate) use named_files::missing as missing_files;
pub(crate) use reload::refusal;
pub(crate) use state_lock::StateLock;
pub(crate) use supervised::supervised;

/// Folder of TLS files, below the state directory.
const TLS_DIR: &str = "tls";
/// File of the node's key, below its state directory.
const KEY_FILE: &str = "identity/node.key";

/// What a node is made from.
struct NodeOptions<'a> {
    config: &'a NodeConfig,
    /// Options of the command line, which override every document.
    overlay: ConfigOverlay,
    keeper: ConfigStore,
    /// Problems of the configuration that the node starts with.
    problems: Vec<MachineDiagnostic>,
    /// Whether the log shows more than the configuration asks for.
    verbose: bool,
    state_dir: &'a Path,
    facts: MachineFacts,
    role: &'static str,
    ring: NodeLogRing,
    to_init: Option<mpsc::Sender<InitMessage>>,
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
    about: Arc<NodeDescription>,
    facts: SharedFacts,
    people: IdentityServices,
    certificates: Arc<NodeDiagnostics>,
    ring: NodeLogRing,
    verbose: bool,
    hub: Option<HubContext>,
    joins: Arc<HubMemberships>,
    computing: NodeComputing,
    powers: CapabilityStore,
    web: NodeWeb,
    imports: NodeImports,
    files: StoredFiles,
    /// Problems of what could not be opened at the start.
    unusable: Arc<[MachineDiagnostic]>,
    /// The problems that the node last sent to PID 1.
    sent_problems: InitProblems,
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
    /// Loads or makes the key, builds the operations, and binds the port. Must run inside a runtime.
    async fn start(options: NodeOptions<'_>) -> anyhow::Result<Self> {
        let key_path = options.state_dir.join(KEY_FILE);
        let tls_dir = options.state_dir.join(TLS_DIR);
        make_private_dir(&tls_dir)?;
        let key = match &options.vault {
            Some(vault) => vault.identity()?,
            None => key_of_file(&key_path)?,
        };
        let mut config = options.config.clone();
        join::fill_in(&mut config);
        let config = &config;
        let mut problems = options.problems;
        problems.extend(join::problems(config));
        let store = store::open(options.state_dir);
        let people = people(config, options.overlay, options.keeper, problems, store);
        let files = StoredFiles::open(options.state_dir, config, &options.facts);
        people.reloader.know_files(files.clone());
        // These parts open paths. The reloader compares documents by their names of files.
        let located = files.located(config);
        let facts: SharedFacts = Arc::new(ArcSwap::from_pointee(options.facts));
        let meters = NodeMetrics::new(people.clone());
        let certificates =
            NodeCertificates::start(&located, &key, &tls_dir, options.vault.as_ref());
        let served = Arc::clone(&certificates.served.certificates);
        meters.set_certificates(Arc::clone(&served));
        tokio::spawn(dialler::follow(
            Arc::clone(&certificates.dialer),
            Arc::clone(&people.identities),
        ));
        // With port 0, which tests use, the kernel chooses the port at the bind.
        let about = Arc::new(NodeDescription::new(key.public().to_string(), options.role));
        let reached = HubConnections::default();
        let key_files = options.vault.is_none().then(|| KeyFiles::at(key_path));
        let own_key = NodeKeyRotation::new(
            key_files,
            key.clone(),
            people.clone(),
            reached.clone(),
            Arc::clone(&certificates.problems),
        );
        let of_node = options.vault.as_ref().map(NodeVault::vault);
        let powers = match options.credentials {
            Some(folder) => CapabilityStore::of_folder(config, folder),
            None => CapabilityStore::new(config, options.records, of_node),
        };
        powers.follow();
        let computing = NodeComputing::new(&ComputingContext {
            state_dir: options.state_dir,
            identity: about.identity(),
            identities: Arc::clone(&people.identities),
            clock: clock(),
            promotion: &config.promotion,
            runtime: &config.runtime,
            compute: &config.compute,
            capabilities: powers.granted(),
        })?;
        let escrow = escrow::share_registry(options.state_dir, options.vault.as_ref());
        let computings = computing.problems();
        let unusable = computings.iter().cloned();
        let unusable: Arc<[MachineDiagnostic]> = unusable.chain(escrow::problem(&escrow)).collect();
        let store_problems = NodeProblemSource::default();
        let context = NodeContext {
            store_problems: Arc::clone(&store_problems),
            powers: powers.clone(),
            own_key: Arc::new(own_key),
            vault: options.vault.clone(),
            about: Arc::clone(&about),
            facts: Arc::clone(&facts),
            ring: options.ring.clone(),
            to_init: options.to_init.clone(),
            counters: {
                let server = Arc::clone(&people.server);
                Arc::new(move || server.get().map_or(Value::Null, |s| counters_of(s)))
            },
            people: people.clone(),
            meters,
        };
        let hub = HubContext::new(config, &people, &about, &facts, clock());
        let inside = WebGateway::new(config, &key, &people);
        let page = inside.page.as_ref();
        let (mut handlers, dispatcher) = handlers(
            config,
            &context,
            hub.as_ref(),
            &computing,
            &escrow,
            page,
            &files,
        )?;
        let answers = Arc::clone(&certificates.challenges);
        let sent_problems = InitProblems::default();
        let condition = NodeHealth {
            own: Arc::clone(&store_problems),
            facts: Arc::clone(&facts),
            sent_problems: Arc::clone(&sent_problems),
            certified: CertificateHealth {
                names: config.certificate_names(),
                store: Arc::clone(&served),
                clock: clock(),
            },
        };
        let mounts = computing.mounts();
        let web = NodeWeb::new(&located, inside, &dispatcher, answers, condition, mounts)?;
        let arrivals = Arc::<Arrivals>::default();
        if let Some(http) = web.handler() {
            handlers.register(Arc::new(ArrivalHandler::new(http, Arc::clone(&arrivals))))?;
        }
        computing.attach(&dispatcher).await;
        about.set_alpns(handlers.specs().map(alknet_core::AlpnSpec::name).collect());
        let mut server = EndpointServer::bind(
            ServerOptions {
                addrs: config.listen.addrs.clone(),
                port: config.listen.port,
                limits: limits(&config.limits),
                tls: certificates.served,
            },
            &key,
            handlers,
            Arc::clone(&people.identities) as _,
        )?;
        about.set_bound(server.addresses().to_vec());
        if config.iroh.enabled {
            server.add_iroh(&key, &iroh_options(config)).await?;
        }
        about.set_iroh(server.iroh_addresses());
        let server = Arc::new(server);
        people.server.set(Arc::clone(&server)).ok();
        tracing::info!(port = server.port(), "serving {}", about.alpns().join(", "));
        let file = people.reloader.file();
        let folder = file.as_deref().map(|it| folder_of(it).to_owned());
        let folder = folder.unwrap_or_else(|| options.state_dir.join("config"));
        let folders = DocumentFolders {
            beside: folder,
            stored: files.folder().to_owned(),
        };
        let imports =
            NodeImports::start(config, &folders, &dispatcher, &certificates.dialer, &powers);
        let joins = HubMemberships::start(JoinContext {
            reloader: Arc::clone(&people.reloader),
            dispatcher: Arc::clone(&dispatcher),
            dialer: certificates.dialer,
            own: key.public(),
            reached,
            unwanted: Default::default(),
        });
        let relief = Arc::<MemoryRelief>::default();
        let workers = computing.workers().clone();
        tokio::spawn(Arc::clone(&relief).keep(Arc::clone(&server), workers));
        let node = Self {
            hub,
            joins: Arc::new(joins),
            computing,
            powers,
            web,
            imports,
            files,
            unusable,
            sent_problems,
            relief,
            dispatcher,
            server,
            about,
            facts,
            people,
            certificates: certificates.problems,
            ring: options.ring,
            verbose: options.verbose,
        };
        node.tune();
        node.web.serve_port80(config, node.about.port());
        if let Some(http) = node.web.handler() {
            let probe = SelfProbe {
                http,
                h3: config.http.h3,
                reloader: Arc::clone(&node.people.reloader),
                facts: Arc::clone(&node.facts),
                certificates: served,
                arrivals,
                problems: Arc::clone(&node.certificates),
                own: key.public(),
                port: node.about.port(),
                tls_dir,
                clock: clock(),
            };
            tokio::spawn(probe.run());
        }
        let known = node.clone();
        store_problems.get_or_init(|| Box::new(move || known.problems()));
        tokio::spawn(node.clone().keep_tuned(options.to_init));
        tokio::spawn(tokens::keep_uses(Arc::clone(&node.people.identities)));
        Ok(node)
    }

    /// Applies the limits and the log settings of the configuration in force.
    fn tune(&self) {
        let current = self.people.reloader.current();
        self.server.set_limits(limits(&current.config.limits));
        self.ring.tune(&current.config.log, self.verbose);
        self.web.tune(&current.config);
        if let Some(hub) = &self.hub {
            hub.tune(&current.config);
        }
    }

    /// Applies them after every change, and sends PID 1 the new status.
    async fn keep_tuned(self, to_init: Option<mpsc::Sender<InitMessage>>) {
        let mut changes = self.people.reloader.watch();
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
        let admins = self.people.reloader.current().config.node.admin_keys.len();
        NodeStatus {
            identity: self.about.identity().to_owned(),
            enrolment_uri: enrolment_uri(&self.about, &facts),
            port: self.about.port(),
            alpns: self.about.alpns().to_vec(),
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
        let own = self.people.problems().into_iter();
        own.chain(certificates)
            .chain(self.unusable.iter().cloned())
            .chain(self.computing.missing())
            .chain(self.computing.low_sandbox())
            .chain(self.computing.unemptied_log())
            .chain(self.powers.problems())
            .chain(self.web.problems())
            .chain(self.unknown_names())
            .chain(self.imports.problems())
            .chain(self.files.problems(&self.people.reloader.current().config))
            .chain(guesses(&self.server))
            .chain(self.relief.problem())
            .chain(self.joins.problems())
            .map(MachineDiagnostic::shortened)
            .collect()
    }

    /// Names of the configuration in force that the node does not have.
    fn unknown_names(&self) -> Vec<MachineDiagnostic> {
        let current = self.people.reloader.current();
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
        self.joins.stop();
        let drained = self.server.drain_for(deadline, why).await;
        self.computing.stop().await;
        tokens::keep_uses_now(&self.people.identities).await;
        tracing::info!(finished = drained.finished, cut = drained.cut, "drained");
    }
}

/// The key in a file. The node makes one if the file does not exist.
fn key_of_file(path: &Path) -> anyhow::Result<NodeKey> {
    make_private_dir(path.parent().unwrap_or_else(|| Path::new(".")))?;
    let (key, made) = NodeKey::load_or_create(path)?;
    if made {
        tracing::info!("made this node's identity {}", key.public());
    }
    Ok(key)
}

/// The identities that the node knows, and the means to change them.
fn people(
    config: &NodeConfig,
    overlay: ConfigOverlay,
    keeper: ConfigStore,
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
        reloader: Arc::new(Reloader::new(handle, keeper, problems)),
        identities,
        store,
        server,
    }
}

fn clock() -> Arc<SystemClock> {
    Arc::new(SystemClock {
        built_s: alknet_init::BUILD_TIME_S,
    })
}

/// The handlers of every protocol of this node, and the dispatcher of its calls.
fn handlers(
    config: &NodeConfig,
    context: &NodeContext,
    hub: Option<&HubContext>,
    computing: &NodeComputing,
    escrow: &Arc<alknet_escrow::ShareRegistry>,
    page: Option<&AdminPage>,
    files: &StoredFiles,
) -> anyhow::Result<(HandlerRegistry, Arc<Dispatcher>)> {
    let mut builder = Registry::builder();
    ops::register(&mut builder, context);
    files.register(&mut builder, &context.people.reloader);
    peer_admin::register(&mut builder, &context.people, hub);
    alknet_escrow::register(&mut builder, escrow, &context.people.identities);
    computing.register(&mut builder, &config.http.import);
    context.meters.set_computing(computing);
    if let Some(hub) = hub {
        hub.register(&mut builder);
    }
    if let Some(page) = page {
        builder.add(page.operation());
    }
    let granted = context.powers.granted();
    builder.equip(|name| granted.get(name).cloned().unwrap_or_default());
    let registry = builder.build_lazily()?;
    let identities = Arc::clone(&context.people.identities);
    let mut dispatcher = Dispatcher::new(registry)
        .with_memory(facts::memory_total_bytes())
        .with_identities(identities)
        .with_node(context.about.identity());
    if hub.is_some() {
        dispatcher = HubContext::routing(&config.hub, dispatcher);
    }
    let dispatcher = Arc::new(dispatcher);
    let serves = Arc::downgrade(&dispatcher);
    let reloader = &context.people.reloader;
    reloader.know_scopes(move || known_names::asked_scopes(serves.upgrade().as_deref()));
    context.meters.set_dispatcher(&dispatcher);
    let mut handlers = HandlerRegistry::new();
    handlers.register(Arc::new(CallHandler::new(Arc::clone(&dispatcher))))?;
    if let Some(hub) = hub {
        hub.attach(&dispatcher);
        handlers.register(Arc::new(hub.handler()))?;
    }
    computing.serve(&mut handlers)?;
    Ok((handlers, dispatcher))
}

/// The configured options of iroh endpoints.
fn iroh_options(config: &NodeConfig) -> IrohOptions {
    IrohOptions {
        addrs: config.listen.addrs.clone(),
        port: config.iroh.port.unwrap_or_default(),
        relays: config.iroh.relays.clone(),
    }
}

/// The configured limits, with defaults for this machine's memory.
fn limits(table: &LimitsConfig) -> EndpointLimits {
    let own = EndpointLimits::for_memory(facts::memory_total_bytes());
    EndpointLimits {
        connections_max: table.connections.unwrap_or(own.connections_max),
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

fn counters_of(server: &EndpointServer) -> Value {
    let mut map: Map<String, Value> = server
        .counters()
        .iter()
        .map(|(name, n)| (name.to_owned(), n.into()))
        .collect();
    map.insert("connections".to_owned(), server.connections().len().into());
    Value::Object(map)
}

/// `alknet:` and the target with the first address that another machine can reach.
fn enrolment_uri(about: &NodeDescription, facts: &MachineFacts) -> String {
    let is_loopback = |text: &String| text.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    let mut addresses = about.addresses(facts).into_iter();
    let address = addresses.find(|address| !is_loopback(address));
    let host = match address {
        Some(v6) if v6.contains(':') => format!("[{v6}]"),
        Some(v4) => v4,
        None => return String::new(),
    };
    format!("alknet:{}@{host}:{}", about.identity(), about.port())
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
