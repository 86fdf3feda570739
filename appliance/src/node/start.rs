//! Builds the parts of a node, in the order in which they need each other, and starts it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alknet_call::{CallHandler, Dispatcher, Registry};
use alknet_core::config::NodeConfig;
use alknet_core::{EncryptedData, HandlerRegistry, PeerKey};
use alknet_endpoint::{EndpointServer, IrohOptions, ServerOptions};
use alknet_escrow::ShareRegistry;
use alknet_init::control::{InitMessage, MachineDiagnostic, MachineFacts};
use alknet_page::AdminPage;
use alknet_tls::NodeKey;
use arc_swap::ArcSwap;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::capability_store::CapabilityStore;
use super::certificates::NodeCertificates;
use super::computing::{ComputingContext, NodeComputing};
use super::config_store::{ConfigStore, folder_of};
use super::facts::{NodeDescription, SharedFacts};
use super::file_store::NodeFileStore;
use super::health::{CertificateHealth, InitDiagnostics, NodeDiagnosticSource, NodeHealth};
use super::host::ConfigOverlay;
use super::hub::HubContext;
use super::identity_services::IdentityServices;
use super::imports::{DocumentFolders, NodeImports};
use super::join::{HubConnections, HubMemberships, JoinContext};
use super::log::NodeLogRing;
use super::memory::MemoryRelief;
use super::metrics::NodeMetrics;
use super::node_key_rotation::NodeKeyRotation;
use super::ops::NodeContext;
use super::self_call::SelfCaller;
use super::self_probe::{ArrivalHandler, Arrivals, SelfProbe};
use super::storage::NodeStorage;
use super::stored_files::StoredFiles;
use super::update::{NodeUpdates, RequestCount, UpdateClient, UpdateContext};
use super::vault::NodeVault;
use super::web::{NodeWeb, WebGateway};
use super::{
    AlknetNode, NodeOptions, build_identity_services, clock, dialler, escrow, facts, join,
    known_names, limits, make_private_dir, ops, peer_admin, store, tokens,
};
use crate::credentials::CredentialFolder;
use crate::key::KeyFiles;

/// Folder of TLS files, below the state directory.
const TLS_DIR: &str = "tls";
/// File of the node's key, below its state directory.
const KEY_FILE: &str = "identity/node.key";

/// What the caller of a start gives to the node, and every part may use.
struct NodeEnvironment<'a> {
    state_dir: &'a Path,
    /// Folder of TLS files.
    tls_dir: PathBuf,
    /// The vault that derives the key. `None` if the key is in a file.
    vault: Option<NodeVault>,
    role: &'static str,
    ring: NodeLogRing,
    verbose: bool,
    to_init: Option<mpsc::Sender<InitMessage>>,
    update_client: UpdateClient,
}

/// The configuration that a node starts with, and its place.
struct NodeDocument<'a> {
    config: &'a NodeConfig,
    overlay: ConfigOverlay,
    config_store: ConfigStore,
    problems: Vec<MachineDiagnostic>,
}

/// What all other parts rest on.
struct NodeBase {
    state_dir: PathBuf,
    key: NodeKey,
    /// The configuration of the start, with the keys of its join strings.
    config: NodeConfig,
    /// `config` with the paths of stored files, for parts that open paths. The reloader compares documents by their
    /// names of files.
    located: NodeConfig,
    identities: IdentityServices,
    files: StoredFiles,
    facts: SharedFacts,
    metrics: NodeMetrics,
    certificates: NodeCertificates,
}

/// The parts that operations use.
struct NodeParts {
    description: Arc<NodeDescription>,
    reached: HubConnections,
    capabilities: CapabilityStore,
    computing: NodeComputing,
    escrow: Arc<ShareRegistry>,
    file_store: NodeFileStore,
    updates: NodeUpdates,
    storage: NodeStorage,
    /// Problems of what could not be opened.
    unusable: Arc<[MachineDiagnostic]>,
    context: NodeContext,
}

/// What the handlers of the port need.
struct NodeFront {
    hub: Option<HubContext>,
    dispatcher: Arc<Dispatcher>,
    web: NodeWeb,
    /// The connections that arrived for HTTP.
    arrivals: Arc<Arrivals>,
    sent_problems: InitDiagnostics,
}

impl AlknetNode {
    /// Loads or makes the key, builds the operations, and binds the port. Must run inside a runtime.
    pub(super) async fn start(options: NodeOptions<'_>) -> anyhow::Result<Self> {
        let environment = NodeEnvironment {
            state_dir: options.state_dir,
            tls_dir: options.state_dir.join(TLS_DIR),
            vault: options.vault,
            role: options.role,
            ring: options.ring,
            verbose: options.verbose,
            update_client: UpdateClient::new(options.to_init.clone(), options.update_stream),
            to_init: options.to_init,
        };
        let document = NodeDocument {
            config: options.config,
            overlay: options.overlay,
            config_store: options.config_store,
            problems: options.problems,
        };
        let base = NodeBase::prepare(&environment, document, options.facts)?;
        let parts = NodeParts::make(&environment, &base, options.records, options.credentials)?;
        let (front, handlers) = NodeFront::build(&base, &parts).await?;
        let server = bind(&base, &parts.description, handlers).await?;
        let arrivals = Arc::clone(&front.arrivals);
        let store_problems = Arc::clone(&parts.context.store_problems);
        let node = Self::assemble(&environment, &base, parts, front, server);
        node.tune();
        node.web.serve_port80(&base.config, node.description.port());
        if let Some(probe) = node.self_probe(&environment, &base, arrivals) {
            tokio::spawn(probe.run());
        }
        let known = node.clone();
        store_problems.get_or_init(|| Box::new(move || known.problems()));
        tokio::spawn(node.clone().keep_tuned(environment.to_init));
        tokio::spawn(tokens::keep_uses(Arc::clone(&node.identities.identities)));
        tokio::spawn(node.updates.clone().keep_updated());
        tokio::spawn(node.storage.clone().keep_checked());
        node.file_store.start();
        tokio::spawn(node.file_store.clone().keep_counted());
        tokio::spawn(node.file_store.clone().keep_synced());
        Ok(node)
    }

    /// Starts what reaches other nodes and servers and what watches the memory, and puts all parts together.
    fn assemble(
        environment: &NodeEnvironment<'_>,
        base: &NodeBase,
        parts: NodeParts,
        front: NodeFront,
        server: Arc<EndpointServer>,
    ) -> Self {
        let (dispatcher, dialer) = (front.dispatcher, &base.certificates.dialer);
        let folders = document_folders(environment, base);
        let imports = NodeImports::start(
            &base.config,
            &folders,
            &dispatcher,
            dialer,
            &parts.capabilities,
        );
        let joins = HubMemberships::start(JoinContext {
            reloader: Arc::clone(&base.identities.reloader),
            dispatcher: Arc::clone(&dispatcher),
            dialer: Arc::clone(dialer) as _,
            own: base.own(),
            reached: parts.reached,
            unwanted: Default::default(),
        });
        let relief = Arc::<MemoryRelief>::default();
        let workers = parts.computing.workers().clone();
        tokio::spawn(Arc::clone(&relief).run(Arc::clone(&server), workers));
        Self {
            hub: front.hub,
            joins: Arc::new(joins),
            computing: parts.computing,
            capabilities: parts.capabilities,
            web: front.web,
            imports,
            files: base.files.clone(),
            file_store: parts.file_store,
            updates: parts.updates,
            storage: parts.storage,
            unusable: parts.unusable,
            sent_problems: front.sent_problems,
            relief,
            dispatcher,
            self_caller: SelfCaller::new(Arc::clone(&server), base.key.clone()),
            server,
            description: parts.description,
            facts: Arc::clone(&base.facts),
            identities: base.identities.clone(),
            certificates: Arc::clone(&base.certificates.problems),
            ring: environment.ring.clone(),
            verbose: environment.verbose,
        }
    }

    /// The node's look at itself from outside. `None` on a node without HTTP.
    fn self_probe(
        &self,
        environment: &NodeEnvironment<'_>,
        base: &NodeBase,
        arrivals: Arc<Arrivals>,
    ) -> Option<SelfProbe> {
        Some(SelfProbe {
            http: self.web.handler()?,
            h3: base.config.http.h3,
            reloader: Arc::clone(&self.identities.reloader),
            facts: Arc::clone(&self.facts),
            certificates: Arc::clone(&base.certificates.served.certificates),
            arrivals,
            problems: Arc::clone(&self.certificates),
            own: base.own(),
            port: self.description.port(),
            tls_dir: environment.tls_dir.clone(),
            clock: clock(),
        })
    }
}

impl NodeBase {
    /// Loads or makes the key, opens the stores of peers and files, and starts the certificates and the dialler.
    fn prepare(
        environment: &NodeEnvironment<'_>,
        document: NodeDocument<'_>,
        facts: MachineFacts,
    ) -> anyhow::Result<Self> {
        make_private_dir(&environment.tls_dir)?;
        let key = match &environment.vault {
            Some(vault) => vault.identity()?,
            None => key_of_file(&environment.state_dir.join(KEY_FILE))?,
        };
        let mut config = document.config.clone();
        join::fill_in(&mut config);
        let mut problems = document.problems;
        problems.extend(join::problems(&config));
        let store = store::open(environment.state_dir);
        let (overlay, config_store) = (document.overlay, document.config_store);
        let identity_services =
            build_identity_services(&config, overlay, config_store, problems, store);
        let files = StoredFiles::open(environment.state_dir, &config, &facts);
        identity_services.reloader.know_files(files.clone());
        let located = files.located(&config);
        let facts: SharedFacts = Arc::new(ArcSwap::from_pointee(facts));
        let metrics = NodeMetrics::new(identity_services.clone());
        let vault = environment.vault.as_ref();
        let certificates = NodeCertificates::start(&located, &key, &environment.tls_dir, vault);
        metrics.set_certificates(Arc::clone(&certificates.served.certificates));
        tokio::spawn(dialler::follow(
            Arc::clone(&certificates.dialer),
            Arc::clone(&identity_services.identities),
        ));
        Ok(Self {
            state_dir: environment.state_dir.to_owned(),
            key,
            config,
            located,
            identities: identity_services,
            files,
            facts,
            metrics,
            certificates,
        })
    }

    /// The key that the node proves to its peers.
    fn own(&self) -> PeerKey {
        self.key.public()
    }
}

impl NodeParts {
    /// Opens the node's secrets, the stores of what computes, and the shares of other nodes' vaults.
    fn make(
        environment: &NodeEnvironment<'_>,
        base: &NodeBase,
        records: BTreeMap<String, EncryptedData>,
        credentials: Option<CredentialFolder>,
    ) -> anyhow::Result<Self> {
        let (config, vault) = (&base.config, environment.vault.as_ref());
        // With port 0, which tests use, the kernel chooses the port at the bind.
        let description = Arc::new(NodeDescription::new(
            base.own().to_string(),
            environment.role,
        ));
        let reached = base.identities.hubs.clone();
        let key_rotation = key_rotation(environment, base, &reached);
        let capabilities = match credentials {
            Some(folder) => CapabilityStore::of_folder(config, folder),
            None => CapabilityStore::new(config, records, vault.map(NodeVault::vault)),
        };
        capabilities.follow();
        let computing = NodeComputing::new(&ComputingContext {
            state_dir: environment.state_dir,
            identity: description.identity(),
            identities: Arc::clone(&base.identities.identities),
            clock: clock(),
            promotion: &config.promotion,
            runtime: &config.runtime,
            compute: &config.compute,
            capabilities: capabilities.granted(),
        })?;
        let escrow = escrow::share_registry(environment.state_dir, vault);
        let computings = computing.problems();
        let unusable = computings.iter().cloned();
        let unusable = unusable.chain(escrow::problem(&escrow)).collect();
        let context = node_context(
            environment,
            base,
            &description,
            key_rotation,
            capabilities.clone(),
        );
        let updates = node_updates(environment, base);
        let storage = node_storage(environment, base, &computing);
        let file_store = node_file_store(environment, base);
        Ok(Self {
            description,
            reached,
            capabilities,
            computing,
            escrow,
            file_store,
            updates,
            storage,
            unusable,
            context,
        })
    }
}

/// The node's key and its rotation.
fn key_rotation(
    environment: &NodeEnvironment<'_>,
    base: &NodeBase,
    reached: &HubConnections,
) -> NodeKeyRotation {
    let path = environment.state_dir.join(KEY_FILE);
    let key_files = environment.vault.is_none().then(|| KeyFiles::at(path));
    NodeKeyRotation::new(
        key_files,
        base.key.clone(),
        base.identities.clone(),
        reached.clone(),
        Arc::clone(&base.certificates.problems),
    )
}

/// The updates of the machine.
fn node_updates(environment: &NodeEnvironment<'_>, base: &NodeBase) -> NodeUpdates {
    let metrics = base.metrics.clone();
    let updates = NodeUpdates::new(UpdateContext {
        init: environment.update_client.clone(),
        dialer: Arc::clone(&base.certificates.dialer) as _,
        facts: Arc::clone(&base.facts),
        reloader: Arc::clone(&base.identities.reloader),
        identity: base.own().to_string(),
        clock: clock(),
        identities: Arc::clone(&base.identities.identities) as _,
        request_count: RequestCount::new(move || metrics.requests()),
        state_dir: environment.state_dir.to_owned(),
    });
    base.metrics.set_updates(&updates);
    updates
}

/// The care of what is stored.
fn node_storage(
    environment: &NodeEnvironment<'_>,
    base: &NodeBase,
    computing: &NodeComputing,
) -> NodeStorage {
    let facts = Arc::clone(&base.facts);
    let storage = NodeStorage::new(environment.to_init.clone(), facts, computing.tensors());
    base.metrics.set_storage(&storage);
    storage
}

/// The files that the node keeps for its callers, and the peers from which it fetches contents of them.
fn node_file_store(environment: &NodeEnvironment<'_>, base: &NodeBase) -> NodeFileStore {
    let file_store = NodeFileStore::new(environment.state_dir, &base.config.fs, base.own());
    file_store.set_peers(&base.identities.identities, &base.certificates.dialer);
    base.metrics.set_file_store(&file_store);
    file_store
}

/// What the node's own operations use.
fn node_context(
    environment: &NodeEnvironment<'_>,
    base: &NodeBase,
    description: &Arc<NodeDescription>,
    key_rotation: NodeKeyRotation,
    capabilities: CapabilityStore,
) -> NodeContext {
    let server = Arc::clone(&base.identities.server);
    NodeContext {
        store_problems: NodeDiagnosticSource::default(),
        capabilities,
        key_rotation: Arc::new(key_rotation),
        vault: environment.vault.clone(),
        description: Arc::clone(description),
        facts: Arc::clone(&base.facts),
        ring: environment.ring.clone(),
        to_init: environment.to_init.clone(),
        counters: Arc::new(move || server.get().map_or(Value::Null, |s| counters_of(s))),
        identities: base.identities.clone(),
        metrics: base.metrics.clone(),
    }
}

impl NodeFront {
    /// Builds the handlers of every protocol, HTTP last, and says in the node's description which these are.
    async fn build(base: &NodeBase, parts: &NodeParts) -> anyhow::Result<(Self, HandlerRegistry)> {
        let (config, identity_services, description) =
            (&base.config, &base.identities, &parts.description);
        let state_dir = &base.state_dir;
        let hub = HubContext::new(
            config,
            identity_services,
            description,
            &base.facts,
            clock(),
            state_dir,
        );
        let inside = WebGateway::new(config, &base.key, identity_services);
        base.metrics.set_gateway(&inside.gateway);
        let page = inside.page.as_ref();
        let (mut handlers, dispatcher) = handlers(base, parts, hub.as_ref(), page)?;
        let answers = Arc::clone(&base.certificates.challenges);
        let sent_problems = InitDiagnostics::default();
        let condition = NodeHealth {
            own: Arc::clone(&parts.context.store_problems),
            facts: Arc::clone(&base.facts),
            sent_problems: Arc::clone(&sent_problems),
            certified: CertificateHealth {
                names: config.certificate_names(),
                store: Arc::clone(&base.certificates.served.certificates),
                clock: clock(),
            },
        };
        let mut mounts = parts.computing.mounts();
        mounts.extend(parts.file_store.mounts());
        let web = NodeWeb::new(
            &base.located,
            inside,
            &dispatcher,
            answers,
            condition,
            mounts,
        )?;
        let arrivals = Arc::<Arrivals>::default();
        if let Some(http) = web.handler() {
            handlers.register(Arc::new(ArrivalHandler::new(http, Arc::clone(&arrivals))))?;
        }
        parts.computing.attach(&dispatcher).await;
        description.set_alpns(handlers.specs().map(alknet_core::AlpnSpec::name).collect());
        let front = Self {
            hub,
            dispatcher,
            web,
            arrivals,
            sent_problems,
        };
        Ok((front, handlers))
    }
}

/// Binds the port, over iroh as well where the configuration has it, and notes the addresses.
async fn bind(
    base: &NodeBase,
    description: &NodeDescription,
    handlers: HandlerRegistry,
) -> anyhow::Result<Arc<EndpointServer>> {
    let config = &base.config;
    let mut server = EndpointServer::bind(
        ServerOptions {
            addrs: config.listen.addrs.clone(),
            port: config.listen.port,
            limits: limits(&config.limits),
            tls: base.certificates.served.clone(),
        },
        &base.key,
        handlers,
        Arc::clone(&base.identities.identities) as _,
    )?;
    description.set_bound(server.addresses().to_vec());
    if config.iroh.enabled {
        server.add_iroh(&base.key, &iroh_options(config)).await?;
    }
    description.set_iroh(server.iroh_addresses());
    let server = Arc::new(server);
    // Only this function fills the cell, once for each node.
    base.identities.server.set(Arc::clone(&server)).ok();
    tracing::info!(
        port = server.port(),
        "serving {}",
        description.alpns().join(", ")
    );
    Ok(server)
}

/// Where imports find the files that the configuration names.
fn document_folders(environment: &NodeEnvironment<'_>, base: &NodeBase) -> DocumentFolders {
    let file = base.identities.reloader.file();
    let folder = file.as_deref().map(|it| folder_of(it).to_owned());
    DocumentFolders {
        config_dir: folder.unwrap_or_else(|| environment.state_dir.join("config")),
        stored: base.files.folder().to_owned(),
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

/// The handlers of every protocol of this node, and the dispatcher of its calls.
fn handlers(
    base: &NodeBase,
    parts: &NodeParts,
    hub: Option<&HubContext>,
    page: Option<&AdminPage>,
) -> anyhow::Result<(HandlerRegistry, Arc<Dispatcher>)> {
    let NodeBase { config, files, .. } = base;
    let NodeParts {
        context,
        computing,
        escrow,
        file_store,
        updates,
        storage,
        ..
    } = parts;
    let mut builder = Registry::builder();
    ops::register(&mut builder, context, escrow);
    files.register(&mut builder, &context.identities.reloader);
    updates.register(&mut builder);
    storage.register(&mut builder);
    peer_admin::register(&mut builder, &context.identities, hub);
    alknet_escrow::register(&mut builder, escrow, &context.identities.identities);
    computing.register(&mut builder, &config.http.import);
    file_store.register(&mut builder);
    context.metrics.set_computing(computing);
    if let Some(hub) = hub {
        hub.register(&mut builder);
    }
    if let Some(page) = page {
        builder.add(page.operation());
    }
    let granted = context.capabilities.granted();
    builder.equip(|name| granted.get(name).cloned().unwrap_or_default());
    let registry = builder.build_lazily()?;
    let identities = Arc::clone(&context.identities.identities);
    let mut dispatcher = Dispatcher::new(registry)
        .with_memory(facts::memory_total_bytes())
        .with_identities(identities)
        .with_node(context.description.identity());
    if hub.is_some() {
        dispatcher = HubContext::routing(&config.hub, dispatcher);
    }
    let dispatcher = Arc::new(dispatcher);
    // A weak reference, because operations of the dispatcher hold the reloader.
    let serves = Arc::downgrade(&dispatcher);
    let reloader = &context.identities.reloader;
    reloader.know_scopes(move || known_names::requested_scopes(serves.upgrade().as_deref()));
    context.metrics.set_dispatcher(&dispatcher);
    let mut handlers = HandlerRegistry::new();
    handlers.register(Arc::new(CallHandler::new(Arc::clone(&dispatcher))))?;
    if let Some(hub) = hub {
        hub.attach(&dispatcher);
        handlers.register(Arc::new(hub.handler()))?;
    }
    computing.serve(&mut handlers)?;
    file_store.serve(&mut handlers)?;
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

fn counters_of(server: &EndpointServer) -> Value {
    let mut map: Map<String, Value> = server
        .counters()
        .iter()
        .map(|(name, n)| (name.to_owned(), n.into()))
        .collect();
    map.insert("connections".to_owned(), server.connections().len().into());
    Value::Object(map)
}
