//! Imports operations of servers that speak another protocol. They are read when the node has
//! started, and again when they may have changed. A problem with one import keeps neither the node
//! nor another import from working.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_call::{Dispatcher, ImportMemory, OperationAdapter, Registration};
use alknet_core::config::{ImportConfig, ImportKind, NodeConfig};
use alknet_core::{Backoff, Capability, DialAllowList, Dialer, PeerAddr};
use alknet_http_client::{ClientOptions, HttpClient};
use alknet_init::control::MachineDiagnostic;
use alknet_mcp::{FromMcp, McpImport};
use alknet_openapi::{FromOpenApi, OpenApiOptions, fetch_document, read_document};
use anyhow::{Context, anyhow};
use bytes::Bytes;
use http::Uri;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::JoinError;

use super::capability_store::CapabilityStore;
use super::facts;
use super::log_rate::IMPORT_TARGET;
use crate::cli::chain_text;

/// First and longest pause before an unreachable server is asked again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Hint for an import that is not tried again.
const CORRECT: &str = "correct [[http.import]] or its document, and restart";
/// Hint for an import that is tried again.
const WAIT: &str = "it is tried again by itself";
/// Hint for tools that are left out.
const PARTLY: &str = "everything else of this server is imported";

/// Tools that a diagnostic names of those that are left out.
const LEFT_OUT_LISTED_MAX: usize = 8;

/// The problems of imports, by the import's namespace.
type ImportDiagnostics = Arc<Mutex<BTreeMap<String, MachineDiagnostic>>>;

/// The imports of a node. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeImports {
    problems: ImportDiagnostics,
}

/// Folders of documents that are files.
#[derive(Clone, Debug)]
pub(crate) struct DocumentFolders {
    /// Folder of the configuration, for `cfg:/`.
    pub(crate) config_dir: PathBuf,
    /// Folder of the stored files, for `store:/`.
    pub(crate) stored: PathBuf,
}

/// Lets one document be read at a time: its tree takes several times the bytes of its text, which the memory of imports
/// does not count, and a node has up to 16 imports, whose servers may all send the longest documents.
#[derive(Clone, Debug, Default)]
struct DocumentTurns(Arc<AsyncMutex<()>>);

impl DocumentTurns {
    /// Runs `read` on a blocking thread, after those that came before.
    async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let turn = Arc::clone(&self.0).lock_owned().await;
        let read = move || {
            // The thread has the turn until it ends, whether or not a task still waits for it.
            let _turn = turn;
            read()
        };
        tokio::task::spawn_blocking(read).await
    }
}

/// What an import needs.
struct ImportContext {
    dispatcher: Arc<Dispatcher>,
    dialer: Arc<dyn Dialer>,
    folders: DocumentFolders,
    capabilities: CapabilityStore,
    problems: ImportDiagnostics,
    documents: DocumentTurns,
    /// Memory that all imported servers together may use in the node.
    memory: ImportMemory,
}

impl NodeImports {
    /// Starts the imports of `config`. Must run inside a runtime.
    pub(crate) fn start(
        config: &NodeConfig,
        folders: &DocumentFolders,
        dispatcher: &Arc<Dispatcher>,
        dialer: &Arc<alknet_endpoint::EndpointDialer>,
        capabilities: &CapabilityStore,
    ) -> Self {
        let imports = Self::default();
        if !config.http.enabled {
            return imports;
        }
        let memory = ImportMemory::for_machine(facts::memory_total_bytes());
        let documents = DocumentTurns::default();
        for import in &config.http.import {
            let means = ImportContext {
                dispatcher: Arc::clone(dispatcher),
                dialer: Arc::clone(dialer) as _,
                folders: folders.clone(),
                capabilities: capabilities.clone(),
                problems: Arc::clone(&imports.problems),
                documents: documents.clone(),
                memory: memory.clone(),
            };
            tokio::spawn(means.follow(import.clone()));
        }
        imports
    }

    /// The problems of the imports.
    pub(crate) fn problems(&self) -> Vec<MachineDiagnostic> {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.values().cloned().collect()
    }
}

impl ImportContext {
    async fn follow(self, import: ImportConfig) {
        let outcome = match import.kind {
            // A document does not change while the node runs. An MCP server says when its list of
            // tools changes.
            ImportKind::OpenApi => self.import_document(&import).await,
            _ => self.follow_server(&import).await,
        };
        if let Err(error) = outcome {
            self.report(&import, &chain_text(&error), CORRECT);
        }
    }

    /// Imports what a document describes. The document is read once.
    async fn import_document(&self, import: &ImportConfig) -> anyhow::Result<()> {
        let mut options = OpenApiOptions::from_config(import, self.capability(import))?;
        options.memory = self.memory.clone();
        let fetched = match import.document_url() {
            Some(url) => Some(self.fetched(import, url, &options).await),
            None => None,
        };
        let beside = || import.document_path().unwrap_or_default().to_owned();
        let (folder, name) = match import.stored_document() {
            Some(stored) => (self.folders.stored.clone(), stored.to_string()),
            None => (self.folders.config_dir.clone(), beside()),
        };
        let dialer = Arc::clone(&self.dialer);
        // This runs on a blocking thread: reading a long document would hold up other tasks.
        let read = move || -> anyhow::Result<Vec<Registration>> {
            let document = match fetched {
                Some(document) => document,
                None => read_document(&folder, &name)?,
            };
            Ok(FromOpenApi::new(document, options, dialer)?.registrations()?)
        };
        let read = self.documents.run(read).await;
        let found = read.context("reading was given up")??;
        self.install(import, found, &[]).await
    }

    /// Fetches a document over HTTP. It tries again until the document is there.
    async fn fetched(&self, import: &ImportConfig, url: &str, options: &OpenApiOptions) -> Bytes {
        let mut pause = Backoff::new(PAUSE.0, PAUSE.1);
        let mut credentials = self.capabilities.watch();
        loop {
            match fetch_document(url, options, Arc::clone(&self.dialer)).await {
                Ok(document) => return document,
                Err(error) => self.report(import, &error.to_string(), WAIT),
            }
            rest(&mut pause, &mut credentials).await;
        }
    }

    /// Imports what a server lists. The server is asked again when it says that its list has
    /// changed, and after a while anyway.
    async fn follow_server(&self, import: &ImportConfig) -> anyhow::Result<()> {
        let capability = self.capability(import);
        let client = self.client(import)?;
        let adapter = FromMcp::new(client, mcp_import(import), capability, &self.memory)?;
        let mut pause = Backoff::new(PAUSE.0, PAUSE.1);
        let mut credentials = self.capabilities.watch();
        loop {
            let outcome = match adapter.import().await {
                Ok(registrations) => {
                    self.install(import, registrations, &adapter.left_out())
                        .await
                }
                Err(error) => Err(error.into()),
            };
            match outcome {
                Ok(()) => {
                    pause.reset();
                    adapter.changed().await;
                }
                Err(error) => {
                    // A server may start after the node, or be away for a time.
                    self.report(import, &chain_text(&error), WAIT);
                    rest(&mut pause, &mut credentials).await;
                }
            }
        }
    }

    fn capability(&self, import: &ImportConfig) -> Option<Capability> {
        self.capabilities.capability(import.credential.as_deref()?)
    }

    fn client(&self, import: &ImportConfig) -> anyhow::Result<HttpClient> {
        let host_and_port = host_and_port(&import.base_url)?;
        let options = ClientOptions {
            reach: DialAllowList::Public {
                also: import.private.clone(),
            },
            plain: import
                .plain
                .then(|| host_and_port.clone())
                .into_iter()
                .collect(),
            pinned: vec![host_and_port.with_pins(import.pins.iter().copied())],
            ..ClientOptions::default()
        };
        Ok(HttpClient::new(Arc::clone(&self.dialer), options))
    }

    /// Installs the operations of a server, for callers that have the scope of each operation. What
    /// the server says about access does not count: its operations use the node's credential.
    async fn install(
        &self,
        import: &ImportConfig,
        found: Vec<Registration>,
        left_out: &[String],
    ) -> anyhow::Result<()> {
        let count = found.len();
        let (dispatcher, source) = (Arc::clone(&self.dispatcher), import.namespace.clone());
        // This runs on a blocking thread: admitting and hashing long specifications takes time.
        let installed = tokio::task::spawn_blocking(move || {
            let offered = found.into_iter().map(Registration::with_import_scope);
            dispatcher.import(&source, offered.collect())
        });
        installed.await.context("importing was given up")??;
        tracing::info!(target: IMPORT_TARGET, import = import.namespace, operations = count, "imported {}", import.namespace);
        if left_out.is_empty() {
            // What failed before is over.
            self.lock().remove(&import.namespace);
        } else {
            self.report(import, &listed(left_out), PARTLY);
        }
        Ok(())
    }

    /// Reports what is wrong and what to do, until the next import succeeds.
    fn report(&self, import: &ImportConfig, what: &str, hint: &str) {
        let problem = MachineDiagnostic {
            code: "import-failed".to_owned(),
            text: format!("import {}: {what}", import.namespace),
            hint: hint.to_owned(),
        };
        let problem = problem.shortened();
        let before = self
            .lock()
            .insert(import.namespace.clone(), problem.clone());
        // A server decides how often it is asked and how it fails. What is wrong still needs no second record.
        if before.as_ref() != Some(&problem) {
            tracing::warn!(target: IMPORT_TARGET, import = import.namespace, "{}", problem.text);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, MachineDiagnostic>> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits before a server is asked again. A credential that was set since the last attempt, or is
/// set meanwhile, ends the wait: the server may have refused for the lack of it.
async fn rest(pause: &mut Backoff, credentials: &mut watch::Receiver<u64>) {
    // Without randomness the pause is at its longest, which is safe.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    tokio::select! {
        () = tokio::time::sleep(pause.next(random)) => {}
        Ok(()) = credentials.changed() => pause.reset(),
    }
}

/// The first of what was left out, and how many more there are: the server decides how many that is.
fn listed(left_out: &[String]) -> String {
    let (first, more) = left_out.split_at(left_out.len().min(LEFT_OUT_LISTED_MAX));
    let mut text = first.join("; ");
    if !more.is_empty() {
        text.push_str(&format!("; and {} more", more.len()));
    }
    text
}

fn mcp_import(import: &ImportConfig) -> McpImport {
    McpImport {
        namespace: import.namespace.clone(),
        url: import.base_url.clone(),
        credential: import.credential.clone(),
        only: import.only.clone(),
    }
}

/// Host and port of a URL.
fn host_and_port(url: &str) -> anyhow::Result<PeerAddr> {
    let uri: Uri = url
        .parse()
        .with_context(|| format!("'{url}' is no address"))?;
    let host = uri.host().ok_or_else(|| anyhow!("'{url}' names no host"))?;
    let usual = if uri.scheme_str() == Some("http") {
        80
    } else {
        443
    };
    let port = uri.port_u16().unwrap_or(usual);
    Ok(format!("{host}:{port}").parse()?)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;

    /// The longest documents of all imports together would take more memory than a small machine has.
    #[tokio::test(flavor = "multi_thread")]
    async fn one_document_is_read_at_a_time() {
        const DOCUMENTS: usize = 8;
        let turns = DocumentTurns::default();
        let reading = Arc::new(AtomicUsize::new(0));
        let documents = (0..DOCUMENTS).map(|_| {
            let (turns, reading) = (turns.clone(), Arc::clone(&reading));
            tokio::spawn(async move {
                let read = move || {
                    let beside = reading.fetch_add(1, Ordering::SeqCst);
                    // Long enough for the others to begin if they could.
                    std::thread::sleep(Duration::from_millis(5));
                    reading.fetch_sub(1, Ordering::SeqCst);
                    beside
                };
                turns.run(read).await.expect("no panic")
            })
        });
        for beside in join_all(documents).await {
            assert_eq!(beside.expect("no panic"), 0);
        }
    }

    /// An import that is given up does not let the next one begin before its thread has ended.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_document_that_is_given_up_has_its_turn_to_the_end() {
        let turns = DocumentTurns::default();
        let (began, begins) = std::sync::mpsc::channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let first = tokio::spawn({
            let turns = turns.clone();
            async move {
                let read = move || {
                    began.send(()).expect("the test waits");
                    ends.recv().is_ok()
                };
                turns.run(read).await
            }
        });
        tokio::task::block_in_place(|| begins.recv().expect("it begins"));
        first.abort();
        assert!(first.await.is_err());
        assert!(turns.0.try_lock().is_err());
        end.send(()).expect("it waits");
        assert_eq!(turns.run(|| 7).await.expect("no panic"), 7);
    }
}
