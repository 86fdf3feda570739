//! The node on an ordinary host: `alknet serve`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alknet_core::CloseCode;
use alknet_core::config::{ConfigSource, NodeConfig};
use alknet_init::control::MachineDiagnostic;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::facts::{self, NodeDescription};
use super::log::{self, NodeLogRing, StderrFormat};
use super::state_lock::StateLock;
use super::{AlknetNode, ConfigStore, NodeActivity, NodeOptions, config_watch, open_files};
use crate::cli::{CommandError, CommandExit, chain_text};
use crate::credentials::CredentialFolder;

/// Name of the file that a serving node leaves for `alknet status`.
const SERVE_FILE: &str = "serve.json";
/// Close code and reason of the connections that are open when the node stops.
const STOPS: (CloseCode, &str) = (CloseCode::Shutdown, "shutting down");
/// Time that running calls get after the node was asked to stop.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// Where a node of this computer is served. The file exists while the node runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServeFile {
    /// Process id of the node.
    pub(crate) pid: u32,
    /// Target of the node, with the pinned key.
    pub(crate) target: String,
    /// Target of the node over iroh, if it serves iroh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) iroh: Option<String>,
    /// Path of its configuration file, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<PathBuf>,
}

impl ServeFile {
    /// Reads the file that a node with this state directory left.
    ///
    /// # Errors
    /// The file does not exist (`NotFound`), or is not such a file. The error names its path.
    pub(crate) fn read(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(SERVE_FILE);
        let read = std::fs::read(&path);
        read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other))
            .map_err(|error| {
                let text = format!("{} cannot be read: {error}", path.display());
                io::Error::new(error.kind(), text)
            })
    }

    fn write(&self, state_dir: &Path) -> io::Result<ServeFileGuard> {
        let path = state_dir.join(SERVE_FILE);
        std::fs::write(&path, serde_json::to_vec(self)?)?;
        Ok(ServeFileGuard(path))
    }
}

/// Removes the file when the node stops.
struct ServeFileGuard(PathBuf);

impl Drop for ServeFileGuard {
    fn drop(&mut self) {
        // If the removal fails, a client that dials finds out that the file is stale.
        std::fs::remove_file(&self.0).ok();
    }
}

/// Options of the command line. Addresses and the port override every document, and administrators
/// are added to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConfigOverlay {
    /// Administrators besides those of the document.
    pub(crate) admin_keys: Vec<String>,
    /// Addresses to bind in place of the document's, unless empty.
    pub(crate) addrs: Vec<IpAddr>,
    /// Port to bind in place of the document's.
    pub(crate) port: Option<u16>,
}

impl ConfigOverlay {
    /// Overrides the addresses and the port of a document, and adds the administrators.
    pub(crate) fn put_over(&self, config: &mut NodeConfig) {
        for key in &self.admin_keys {
            if !config.node.admin_keys.contains(key) {
                config.node.admin_keys.push(key.clone());
            }
        }
        if !self.addrs.is_empty() {
            config.listen.addrs.clone_from(&self.addrs);
        }
        config.listen.port = self.port.unwrap_or(config.listen.port);
    }
}

/// The configuration with which a node of this host starts.
#[derive(Clone, Debug)]
pub(crate) struct StartupConfig {
    /// The configuration in force, options included.
    pub(crate) config: NodeConfig,
    /// The options of the command line.
    pub(crate) overlay: ConfigOverlay,
    /// Path of the file, if there is one.
    pub(crate) file: Option<PathBuf>,
    /// Content of the file, if it is valid.
    pub(crate) good: Option<Vec<u8>>,
    /// The problems of the file.
    pub(crate) problems: Vec<MachineDiagnostic>,
}

/// Serves until SIGINT or SIGTERM, in a folder that this process has locked. `started` gets the
/// file that says where the node is served. After the first signal, `stopping` gets the activity
/// that the node waits for, if there is any. A second signal ends the node at once.
///
/// # Errors
/// The port, the key or the state directory is not available.
pub(crate) fn serve(
    configured: StartupConfig,
    (state_dir, _lock): (&Path, StateLock),
    verbose: bool,
    started: impl FnOnce(&ServeFile) -> Result<(), CommandError>,
    stopping: impl FnOnce(NodeActivity),
) -> Result<CommandExit, CommandError> {
    open_files::raise();
    let ring = NodeLogRing::new();
    ring.tune(&configured.config.log, verbose);
    log::install(&ring, StderrFormat::Plain);
    let runtime = super::runtime()
        .map_err(|error| CommandError::local(format!("cannot start the runtime: {error}")))?;
    // The commands that read the file may run in another folder, so the path is absolute.
    let config = configured.file.as_deref();
    let config = config.and_then(|file| std::path::absolute(file).ok());
    let ended: Result<CommandExit, CommandError> = runtime.block_on(async {
        let node = start(configured, state_dir, verbose, ring).await?;
        let file = ServeFile {
            pid: std::process::id(),
            target: format!(
                "{}@{}",
                node.description.identity(),
                node.description.local_address()
            ),
            iroh: iroh_target(&node.description),
            config,
        };
        let _guard = file.write(state_dir).map_err(|error| {
            CommandError::local(format!("cannot write to {}: {error}", state_dir.display()))
        })?;
        // The handlers are installed before another process can learn that this node runs and stop
        // it.
        let mut signals = HostSignals::listen()?;
        tokio::spawn(config_watch::follow(Arc::clone(&node.identities.reloader)));
        started(&file)?;
        while let SignalRequest::ReadAgain = signals.next().await {
            node.identities
                .reloader
                .read_again(ConfigSource::Signal)
                .await;
            node.capabilities.refresh();
        }
        let activity = node.activity();
        if activity != NodeActivity::default() {
            stopping(activity);
        }
        Ok(tokio::select! {
            () = node.drain(DRAIN, STOPS) => CommandExit::Ok,
            () = signals.stop() => {
                // Over UDP a client whose connection is not closed would wait until its own time is over.
                node.server.end_now(STOPS).await;
                CommandExit::Aborted
            }
        })
    });
    if matches!(ended, Ok(CommandExit::Aborted)) {
        // A normal end of the runtime would wait for blocking work, which cannot be interrupted.
        runtime.shutdown_background();
    }
    ended
}

/// The target at which a program of this computer reaches the node with iroh.
fn iroh_target(description: &NodeDescription) -> Option<String> {
    let addresses = description.iroh();
    let v4 = addresses.iter().find(|address| address.is_ipv4());
    let mut address = *v4.or_else(|| addresses.first())?;
    // The unspecified address is no destination (RFC 4291, 2.5.2 for IPv6).
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Some(format!("{}@{address}", description.identity()))
}

async fn start(
    configured: StartupConfig,
    state_dir: &Path,
    verbose: bool,
    ring: NodeLogRing,
) -> Result<AlknetNode, CommandError> {
    let mut facts = facts::of_host(state_dir);
    if let Some(name) = &configured.config.node.name {
        facts.hostname.clone_from(name);
    }
    if let Some(file) = &configured.file {
        facts.config_source = file.display().to_string();
    }
    for problem in &configured.problems {
        tracing::warn!("{}: {}; {}", problem.code, problem.text, problem.hint);
    }
    // A failed copy does not keep the node from serving: only a later start with a damaged file
    // misses it.
    let config_store = configured
        .file
        .map_or_else(ConfigStore::nowhere, ConfigStore::file_at);
    if let Some(Err(error)) = configured
        .good
        .map(|good| config_store.keep_last_good(&good))
    {
        tracing::warn!("no copy of the configuration for bad days: {error}");
    }
    AlknetNode::start(NodeOptions {
        config: &configured.config,
        overlay: configured.overlay,
        config_store,
        problems: configured.problems,
        verbose,
        state_dir,
        facts,
        role: "host",
        ring,
        to_init: None,
        update_stream: None,
        vault: None,
        records: Default::default(),
        credentials: Some(CredentialFolder::new(state_dir)),
    })
    .await
    .map_err(|error| CommandError::local(chain_text(&error)))
}

/// The request that a signal stands for.
enum SignalRequest {
    ReadAgain,
    Stop,
}

/// The handlers of SIGHUP, SIGINT and SIGTERM.
struct HostSignals {
    hup: Signal,
    int: Signal,
    term: Signal,
}

impl HostSignals {
    fn listen() -> Result<Self, CommandError> {
        let listen =
            |kind| signal(kind).map_err(|e| CommandError::local(format!("no signals: {e}")));
        Ok(Self {
            hup: listen(SignalKind::hangup())?,
            int: listen(SignalKind::interrupt())?,
            term: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for the next signal.
    async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            _ = self.hup.recv() => SignalRequest::ReadAgain,
            _ = self.int.recv() => SignalRequest::Stop,
            _ = self.term.recv() => SignalRequest::Stop,
        }
    }

    /// Waits for the next signal that asks to stop.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}
