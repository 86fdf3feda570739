//! The node: what serves the one port, under PID 1 or on an ordinary host.

mod certificates;
mod control;
mod facts;
mod fault;
mod host;
mod log;
mod ops;
mod supervised;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alknet_call::{CallHandler, Dispatcher, Registry};
use alknet_core::HandlerRegistry;
use alknet_core::config::{ConfigIdentities, NodeConfig};
use alknet_endpoint::{Limits, Server, ServerOptions};
use alknet_init::control::{MachineFacts, NodeStatus, ToInit};
use alknet_tls::NodeKey;
use arc_swap::ArcSwap;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use facts::{About, SharedFacts};
use log::LogRing;
use ops::NodeContext;

pub(crate) use host::{ServeFile, serve};
pub(crate) use supervised::supervised;

/// Folder of what TLS keeps below the state directory.
const TLS_DIR: &str = "tls";
/// File of the node's key below its state directory.
const KEY_FILE: &str = "identity/node.key";

/// What a node is made from.
struct Options<'a> {
    config: &'a NodeConfig,
    state_dir: &'a Path,
    facts: MachineFacts,
    role: &'static str,
    ring: LogRing,
    to_init: Option<mpsc::Sender<ToInit>>,
}

/// A node that serves.
struct Node {
    server: Arc<Server>,
    about: Arc<About>,
    facts: SharedFacts,
    admins: u32,
}

impl Node {
    /// Loads or makes the key, builds the operations, and binds the port.
    fn start(options: Options<'_>) -> anyhow::Result<Self> {
        let key_path = options.state_dir.join(KEY_FILE);
        let tls_dir = options.state_dir.join(TLS_DIR);
        make_private_dir(key_path.parent().unwrap_or(options.state_dir))?;
        make_private_dir(&tls_dir)?;
        let (key, made) = NodeKey::load_or_create(&key_path)?;
        if made {
            tracing::info!("made this node's identity {}", key.public());
        }
        let config = options.config;
        let identities = Arc::new(ConfigIdentities::new(config, 1));
        let facts: SharedFacts = Arc::new(ArcSwap::from_pointee(options.facts));
        // The port is known before it is bound, unless it is 0 (tests): then the server tells.
        let counters: Arc<std::sync::OnceLock<Arc<Server>>> = Arc::default();
        let about = Arc::new(About::new(key.public().to_string(), options.role));
        let context = NodeContext {
            about: Arc::clone(&about),
            facts: Arc::clone(&facts),
            ring: options.ring,
            to_init: options.to_init,
            counters: {
                let server = Arc::clone(&counters);
                Arc::new(move || server.get().map_or(Value::Null, |s| counters_of(s)))
            },
        };
        let handlers = handlers(&context, &identities)?;
        about.set_alpns(handlers.specs().map(alknet_core::AlpnSpec::name).collect());
        let server = Server::bind(
            ServerOptions {
                addrs: config.listen.addrs.clone(),
                port: config.listen.port,
                limits: Limits::for_memory(facts::memory_total_bytes()),
                tls: certificates::start(config, &tls_dir),
            },
            &key,
            handlers,
            identities,
        )?;
        about.set_port(server.port());
        let server = Arc::new(server);
        counters.set(Arc::clone(&server)).ok();
        let admins = u32::try_from(config.node.admin_keys.len()).unwrap_or(u32::MAX);
        tracing::info!(port = server.port(), "serving {}", about.alpns().join(", "));
        Ok(Self {
            server,
            about,
            facts,
            admins,
        })
    }

    /// What the console shows.
    fn status(&self) -> NodeStatus {
        let facts = self.facts.load();
        NodeStatus {
            identity: self.about.identity().to_owned(),
            enrolment_uri: enrolment_uri(&self.about, &facts),
            port: self.about.port(),
            alpns: self.about.alpns().to_vec(),
            admins: self.admins,
        }
    }

    /// Finishes what runs, refuses what is new, closes the rest.
    async fn drain(&self, deadline: Duration) {
        let drained = self.server.drain(deadline).await;
        tracing::info!(finished = drained.finished, cut = drained.cut, "drained");
    }
}

/// Every protocol of this node.
fn handlers(
    context: &NodeContext,
    identities: &Arc<ConfigIdentities>,
) -> anyhow::Result<HandlerRegistry> {
    let mut builder = Registry::builder();
    ops::register(&mut builder, context);
    let identities = Arc::clone(identities) as Arc<dyn alknet_core::IdentityProvider>;
    let dispatcher = Dispatcher::new(builder.build_lazily()?)
        .with_identities(identities)
        .with_node(context.about.identity());
    let mut handlers = HandlerRegistry::new();
    handlers.register(Arc::new(CallHandler::new(Arc::new(dispatcher))))?;
    Ok(handlers)
}

fn counters_of(server: &Server) -> Value {
    let mut map: Map<String, Value> = server
        .counters()
        .iter()
        .map(|(name, n)| (name.to_owned(), n.into()))
        .collect();
    map.insert("connections".to_owned(), server.connections().len().into());
    Value::Object(map)
}

/// `alknet:` and the target a client dials; the first address that leaves the machine.
fn enrolment_uri(about: &About, facts: &MachineFacts) -> String {
    let address = facts::addresses(facts).into_iter().next();
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

/// A runtime whose size fits the machine. Two threads at least: one handler that computes for
/// ever must not stop the other connections, nor the answer to PID 1's question after health.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.max(2))
        .thread_name("alknet")
        .enable_all()
        .build()
}
