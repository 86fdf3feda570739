//! The node on an ordinary host: `alknet serve`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_core::config::NodeConfig;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::log::{self, LogRing, Stderr};
use super::{Node, Options, facts};
use crate::cli::{Exit, Failure};

/// Name of the file a serving node leaves for `alknet status`.
const SERVE_FILE: &str = "serve.json";
/// Time running calls get when the node is asked to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Where a node of this computer is served; present while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServeFile {
    /// Its process.
    pub(crate) pid: u32,
    /// Its target, with the pinned key.
    pub(crate) target: String,
}

impl ServeFile {
    /// Reads what a node with this state directory left.
    ///
    /// # Errors
    /// There is no such file, or it is no such file.
    pub(crate) fn read(state_dir: &Path) -> io::Result<Self> {
        let bytes = std::fs::read(state_dir.join(SERVE_FILE))?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    fn write(&self, state_dir: &Path) -> io::Result<Guard> {
        let path = state_dir.join(SERVE_FILE);
        std::fs::write(&path, serde_json::to_vec(self)?)?;
        Ok(Guard(path))
    }
}

/// Removes the file when the node stops.
struct Guard(PathBuf);

impl Drop for Guard {
    fn drop(&mut self) {
        // A stale file is found out by whoever dials.
        std::fs::remove_file(&self.0).ok();
    }
}

/// Serves until SIGINT or SIGTERM; `started` is told where.
///
/// # Errors
/// The port, the key or the state directory cannot be had.
pub(crate) fn serve(
    config: &NodeConfig,
    state_dir: &Path,
    verbose: bool,
    started: impl FnOnce(&ServeFile) -> Result<(), Failure>,
) -> Result<Exit, Failure> {
    let ring = LogRing::new();
    let level = if verbose {
        tracing::Level::DEBUG
    } else {
        tracing::Level::INFO
    };
    log::install(&ring, Stderr::Plain, level);
    let runtime = super::runtime()
        .map_err(|error| Failure::local(format!("cannot start the runtime: {error}")))?;
    runtime.block_on(async {
        let mut facts = facts::of_host(state_dir);
        if let Some(name) = &config.node.name {
            facts.hostname.clone_from(name);
        }
        let options = Options {
            config,
            state_dir,
            facts,
            role: "host",
            ring,
            to_init: None,
        };
        let node = Node::start(options).map_err(|error| Failure::local(format!("{error:#}")))?;
        let file = ServeFile {
            pid: std::process::id(),
            target: format!("{}@127.0.0.1:{}", node.about.identity(), node.about.port()),
        };
        let _guard = file.write(state_dir).map_err(|error| {
            Failure::local(format!("cannot write to {}: {error}", state_dir.display()))
        })?;
        // Before anybody hears that this process runs and may be stopped.
        let mut signals = Signals::listen()?;
        started(&file)?;
        signals.stop().await;
        tokio::select! {
            () = node.drain(DRAIN) => {}
            () = signals.stop() => {}
        }
        Ok(Exit::Ok)
    })
}

/// SIGINT and SIGTERM.
struct Signals {
    int: Signal,
    term: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|e| Failure::local(format!("no signals: {e}")));
        Ok(Self {
            int: listen(SignalKind::interrupt())?,
            term: listen(SignalKind::terminate())?,
        })
    }

    /// Resolves with the next one.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}
