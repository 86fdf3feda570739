//! iroh-blobs alone: its store of files and its provider behind our endpoint, in a process of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use alknet_core::{
    AlpnSpec, AuthContext, AuthNeed, BoxFuture, Carriage, Connection, HandlerError,
    HandlerRegistry, ProtocolHandler, StreamBudget, StreamError,
};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_fs::BLOBS_ALPN;
use alknet_fs::limits::BLOB_STREAM_WINDOW_BYTES;
use alknet_tls::NodeKey;
use iroh_blobs::BlobFormat;
use iroh_blobs::api::Store;
use iroh_blobs::api::blobs::{AddPathOptions, ImportMode};
use iroh_blobs::provider::events::EventSender;
use iroh_blobs::provider::{StreamPair, handle_stream};
use iroh_blobs::store::fs::FsStore;
use tokio::runtime::Runtime;

use super::process::cpu_seconds;
use super::stock_streams::stock_streams;
use crate::call::measure::failed;
use crate::call::node::bind;
use crate::call::sides::{BenchKeys, HOST, SideRuntimes};
use crate::child::ChildGuard;
use alknet_tasks::failure::{Result, TaskError};

/// The name of this part of the benchmark on its command line.
const COMMAND: &str = "bench-fs";

/// Bytes in flight on a connection, as our handler grants them.
const BUDGET: StreamBudget = StreamBudget {
    stream_window_bytes: BLOB_STREAM_WINDOW_BYTES,
    ..StreamBudget::AUTHENTICATED
};

/// A process of the benchmark of files; it ends with its input.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum FsBenchProcessRole {
    /// Serves the files of a folder by iroh-blobs to the holder of a key, and prints its target
    IrohBlobs {
        /// Folder of its store
        store: PathBuf,
        /// Folder with the files
        files: PathBuf,
        /// File with the key of the client
        client: PathBuf,
    },
}

/// Plays a part.
pub(crate) fn play(role: &FsBenchProcessRole) -> Result<()> {
    match role {
        FsBenchProcessRole::IrohBlobs {
            store,
            files,
            client,
        } => serve(store, files, client),
    }
}

fn serve(store: &Path, files: &Path, client: &Path) -> Result<()> {
    // The whole machine is for the one server, as it is for a node.
    let runtime = || Runtime::new().map_err(failed("starting a runtime"));
    let sides = SideRuntimes {
        server: runtime()?,
        client: runtime()?,
    };
    let store = sides.server.block_on(import(store, files))?;
    let (client, _) = NodeKey::load_or_create(client).map_err(failed("reading a key"))?;
    let keys = BenchKeys {
        clients: vec![client],
        ..BenchKeys::new(0)?
    };
    let mut handlers = HandlerRegistry::new();
    handlers
        .register(Arc::new(IrohBlobsHandler::new(&store)))
        .map_err(failed("assembling the server"))?;
    let server = bind(&sides, &keys, handlers)?;
    let target = format!("{}@{HOST}:{}", keys.server.public(), server.port());
    let mut out = std::io::stdout();
    let said = writeln!(out, "{target}").and_then(|()| out.flush());
    said.map_err(failed("telling the benchmark"))?;
    let read = std::io::stdin().read_to_end(&mut Vec::new());
    read.map_err(failed("waiting for the end"))?;
    let shut = sides.server.block_on(store.shutdown());
    shut.map_err(failed("closing the store"))
}

/// References the files, as `sendme` does: their bytes stay where they are.
async fn import(store: &Path, files: &Path) -> Result<FsStore> {
    let loaded = FsStore::load(store).await;
    let store = loaded.map_err(failed("opening the store"))?;
    let listed = std::fs::read_dir(files).map_err(TaskError::io("list the files"))?;
    for file in listed {
        let file = file.map_err(TaskError::io("list the files"))?;
        let options = AddPathOptions {
            path: file.path(),
            format: BlobFormat::Raw,
            mode: ImportMode::TryReference,
        };
        let added = store.blobs().add_path_with_opts(options).await;
        added.map_err(failed("adding a file"))?;
    }
    Ok(store)
}

struct IrohBlobsHandler {
    store: Store,
    alpns: [AlpnSpec; 1],
}

impl IrohBlobsHandler {
    fn new(store: &Store) -> Self {
        Self {
            store: store.clone(),
            alpns: [AlpnSpec {
                carriage: Carriage::Quic,
                auth: AuthNeed::Tls,
                limits: BUDGET,
                ..AlpnSpec::new(BLOBS_ALPN)
            }],
        }
    }
}

impl ProtocolHandler for IrohBlobsHandler {
    fn alpns(&self) -> &[AlpnSpec] {
        &self.alpns
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        _: AuthContext,
    ) -> BoxFuture<'static, std::result::Result<(), HandlerError>> {
        Box::pin(async move {
            connection.raise_budget(BUDGET);
            loop {
                match connection.accept_bi().await {
                    Ok((send, recv)) => {
                        let (reader, writer) = stock_streams(send, recv);
                        let pair = StreamPair::new(0, reader, writer, EventSender::DEFAULT);
                        tokio::spawn(handle_stream(pair, self.store.clone()));
                    }
                    Err(StreamError::Closed(_) | StreamError::Timeout) => return Ok(()),
                    // The other streams still work.
                    Err(_) => {}
                }
            }
        })
    }
}

/// The process, ended on drop.
pub(super) struct IrohBlobsPeer {
    child: ChildGuard,
    target: Target,
    client: NodeKey,
}

impl IrohBlobsPeer {
    /// Starts it on the files of a folder, with its store beside them.
    pub(super) fn start(files: &Path, beside: &Path) -> Result<Self> {
        let key = beside.join("client.key");
        let (client, _) = NodeKey::load_or_create(&key).map_err(failed("making a key"))?;
        let this = std::env::current_exe().map_err(failed("finding this program"))?;
        let child = Command::new(this)
            .args([COMMAND, "iroh-blobs"])
            .arg(beside.join("iroh-blobs"))
            .args([files, &key])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = ChildGuard::new(child.map_err(failed("starting a process"))?);
        let mut line = String::new();
        if let Some(said) = child.take_stdout() {
            let read = BufReader::new(said).read_line(&mut line);
            read.map_err(failed("hearing of a process"))?;
        }
        let target: Target = line.trim().parse().map_err(failed("naming the server"))?;
        Ok(Self {
            child,
            target,
            client,
        })
    }

    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.child.id())
    }

    /// Connects. The dialler keeps the connection.
    pub(super) async fn dial(&self) -> Result<(EndpointDialer, Connection)> {
        let dialer = EndpointDialer::new(Some(self.client.clone()));
        let dialled = dialer
            .dial_over(Carriage::Quic, &self.target, BLOBS_ALPN)
            .await;
        let connection = dialled.map_err(failed("dialling iroh-blobs"))?;
        Ok((dialer, connection))
    }
}
