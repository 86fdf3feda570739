//! Our side: the built binary as `alknet serve`, with limits that one client on the same machine does not reach.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_call::{ALPN, CallClient, CallConnection};
use alknet_core::{AuthToken, Carriage, Connection};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_tls::NodeKey;
use data_encoding::HEXLOWER;
use tempfile::TempDir;

use super::client::DavRoot;
use super::folder::disk_folder;
use super::process::cpu_seconds;
use crate::call::measure::failed;
use crate::child::{ChildGuard, start_node};
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::node::{NodeCli, ReachableNode};

/// The bucket of the benchmark.
pub(super) const BUCKET: &str = "bench";

/// Path of the bucket over HTTP.
const PREFIX: &str = "/fs/bench";

/// What a client here may do.
const SCOPES: &str = r#"["fs:admin:*", "fs:read:*", "fs:sync:*", "fs:write:*", "node:read"]"#;

/// Limits on what one machine may ask for. Durability and bounds of memory are as in every node.
const LIMITS: &str = "[limits]\nconnections_per_address = 4096\nconnections_per_peer = 64\n\
handshake_burst = 10000\nhandshakes_per_second = 10000\n\
[http]\nrequests_per_second = 1000000\nrequests_burst = 1000000\n\
[fs]\nstaging_mib = 16384\nblob_rate = 1048576\n";

/// The state of a node that is not running, of its administrator and of its clients.
pub(super) struct NodeSetup {
    program: PathBuf,
    folder: TempDir,
    tokens: Vec<AuthToken>,
    keys: Vec<NodeKey>,
}

impl NodeSetup {
    /// For so many clients with a token, and so many with a key.
    pub(super) fn make(program: &Path, tokens: usize, keys: usize) -> Result<Self> {
        let token = |_| AuthToken::generate().map_err(failed("making a token"));
        let key = |_| NodeKey::generate().map_err(failed("making a key"));
        // Made before the clock runs: neither tokens nor keys are what is measured.
        let setup = Self {
            program: program.to_owned(),
            folder: disk_folder()?,
            tokens: (0..tokens).map(token).collect::<Result<_>>()?,
            keys: (0..keys).map(key).collect::<Result<_>>()?,
        };
        let written = fs::write(setup.config(), setup.document()?);
        written.map_err(TaskError::io("write a configuration"))?;
        Ok(setup)
    }

    /// The same with a UDP port for clients of iroh.
    pub(super) fn with_iroh(self, port: u16) -> Result<Self> {
        let document = self.document()? + &format!("[iroh]\nenabled = true\nport = {port}\n");
        let written = fs::write(self.config(), document);
        written.map_err(TaskError::io("write a configuration"))?;
        Ok(self)
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("alknet.toml")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("node")
    }

    /// The folder in which the node keeps files.
    pub(super) fn store(&self) -> PathBuf {
        self.state().join("state/fs")
    }

    fn document(&self) -> Result<String> {
        let tokens = self.tokens.iter().map(|token| {
            let hash = token.hash().map_err(failed("making a token"))?.to_string();
            let (id, sha256) = hash
                .split_once(':')
                .ok_or_else(|| failed("making a token")("its hash has no name"))?;
            Ok(format!(
                "[[api_keys]]\nkey_id = \"{id}\"\nsha256 = \"{sha256}\"\nscopes = {SCOPES}\n"
            ))
        });
        let peers = self.keys.iter().enumerate().map(|(number, key)| {
            let key = key.public();
            Ok(format!(
                "[[peers]]\npeer_id = \"bench{number}\"\nkeys = [\"{key}\"]\nscopes = {SCOPES}\n"
            ))
        });
        let parts = tokens.chain(peers).collect::<Result<Vec<_>>>()?;
        Ok(LIMITS.to_owned() + &parts.concat())
    }

    /// Starts the node. A second start has the files of the first.
    pub(super) fn start(&self) -> Result<FsBenchNode<'_>> {
        let admin = self.folder.path().join("admin");
        let identity = NodeCli::at(&self.program, &admin).identity()?;
        let mut serve = NodeCli::at(&self.program, &self.state()).command("serve");
        serve.args(["--json", "--port", "0", "--listen", "127.0.0.1"]);
        serve
            .args(["--admin", &identity, "--config"])
            .arg(self.config());
        let (child, node) = start_node(serve)?;
        Ok(FsBenchNode {
            setup: self,
            child,
            node,
            admin,
        })
    }

    /// Starts the node for the first time, and makes its bucket without a quota.
    pub(super) fn start_with_bucket(&self, cx: &XtaskContext) -> Result<FsBenchNode<'_>> {
        let node = self.start()?;
        let target = node.target_word();
        // A quota would end the larger cases.
        let unlimited = ["--quota", "none", "--entries", "none"];
        let words = ["bucket", "add", &target, BUCKET];
        let mut make = node.command(words.into_iter().chain(unlimited));
        cx.run(&mut make, "make a bucket", "fs-bucket")?;
        Ok(node)
    }
}

/// A node that runs. It is ended on drop.
pub(super) struct FsBenchNode<'a> {
    setup: &'a NodeSetup,
    child: ChildGuard,
    node: ReachableNode,
    admin: PathBuf,
}

impl FsBenchNode<'_> {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.pid())
    }

    /// `alknet fs` as the administrator. The node follows the verb in `words`.
    pub(super) fn command<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Command {
        let mut command = Command::new(&self.setup.program);
        command
            .arg("fs")
            .args(words)
            .arg("--state")
            .arg(&self.admin);
        command
    }

    /// The node, as the command line takes it.
    pub(super) fn target_word(&self) -> String {
        self.node.target()
    }

    /// The key of the node as text.
    pub(super) fn identity(&self) -> &str {
        &self.node.identity
    }

    /// The secret key of this client, as iroh takes it from the environment.
    pub(super) fn secret(&self, client: usize) -> Result<String> {
        let key = self.setup.keys.get(client);
        let key = key.ok_or_else(|| failed("opening a client")("it has no key"))?;
        Ok(HEXLOWER.encode(key.seed()))
    }

    /// The bucket over HTTP, for a client with a token of its own: one identity may have few uploads at once.
    pub(super) fn root(&self, client: usize) -> Result<DavRoot> {
        let token = self.setup.tokens.get(client);
        let token = token.ok_or_else(|| failed("opening a client")("it has no token"))?;
        Ok(DavRoot {
            address: self.node.address,
            prefix: PREFIX,
            token: Some(token.expose().to_owned()),
        })
    }

    /// Connects with the key of this client. The dialler keeps the connection.
    pub(super) async fn dial(
        &self,
        client: usize,
        alpn: &[u8],
    ) -> Result<(EndpointDialer, Connection)> {
        let key = self.setup.keys.get(client).cloned();
        let key = key.ok_or_else(|| failed("opening a client")("it has no key"))?;
        let target: Target = self
            .node
            .target()
            .parse()
            .map_err(failed("naming the node"))?;
        let dialer = EndpointDialer::new(Some(key));
        let dialled = dialer.dial_over(Carriage::Quic, &target, alpn).await;
        let connection = dialled.map_err(failed("dialling the node"))?;
        Ok((dialer, connection))
    }

    /// The same for calls.
    pub(super) async fn caller(&self, client: usize) -> Result<(EndpointDialer, CallConnection)> {
        let (dialer, connection) = self.dial(client, ALPN).await?;
        let caller = CallClient::without_operations().attach(connection, None);
        Ok((dialer, caller))
    }
}
