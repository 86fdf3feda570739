//! Operations of servers that speak something else: read when the node has started, and again when they
//! may be others. Nothing that is wrong with one keeps the node, or another one, from working.

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
use tokio::sync::watch;

use super::capability_store::CapabilityStore;
use super::facts;
use super::log_rate::IMPORT_TARGET;
use crate::cli::chain_text;

/// First pause before a server that could not be asked is asked again, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// What to do about an import that is not tried again.
const CORRECT: &str = "correct [[http.import]] or its document, and restart";
/// What to do about one that is.
const WAIT: &str = "it is tried again by itself";
/// What to do about tools that are left out.
const PARTLY: &str = "everything else of this server is imported";

/// Tools that a diagnostic names of those that are left out.
const LEFT_OUT_LISTED_MAX: usize = 8;

/// What is wrong, by the namespace it is about.
type ImportProblems = Arc<Mutex<BTreeMap<String, MachineDiagnostic>>>;

/// The imports of a node. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeImports {
    problems: ImportProblems,
}

/// Where documents are that are files.
#[derive(Clone, Debug)]
pub(crate) struct DocumentFolders {
    /// The folder of the configuration, for `cfg:/`.
    pub(crate) beside: PathBuf,
    /// The folder of the stored files, for `store:/`.
    pub(crate) stored: PathBuf,
}

/// What an import is made with.
struct ImportContext {
    dispatcher: Arc<Dispatcher>,
    dialer: Arc<dyn Dialer>,
    folders: DocumentFolders,
    powers: CapabilityStore,
    problems: ImportProblems,
    /// What all servers together may make the node keep.
    memory: ImportMemory,
}

impl NodeImports {
    /// Begins those of `config`. Must run inside a runtime.
    pub(crate) fn start(
        config: &NodeConfig,
        folders: &DocumentFolders,
        dispatcher: &Arc<Dispatcher>,
        dialer: &Arc<alknet_endpoint::EndpointDialer>,
        powers: &CapabilityStore,
    ) -> Self {
        let imports = Self::default();
        if !config.http.enabled {
            return imports;
        }
        let memory = ImportMemory::for_machine(facts::memory_total_bytes());
        for import in &config.http.import {
            let means = ImportContext {
                dispatcher: Arc::clone(dispatcher),
                dialer: Arc::clone(dialer) as _,
                folders: folders.clone(),
                powers: powers.clone(),
                problems: Arc::clone(&imports.problems),
                memory: memory.clone(),
            };
            tokio::spawn(means.follow(import.clone()));
        }
        imports
    }

    /// What is wrong with them.
    pub(crate) fn problems(&self) -> Vec<MachineDiagnostic> {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.values().cloned().collect()
    }
}

impl ImportContext {
    async fn follow(self, import: ImportConfig) {
        let outcome = match import.kind {
            // A document does not change while the node runs; a server of tools says when its list does.
            ImportKind::OpenApi => self.once(&import).await,
            _ => self.again_and_again(&import).await,
        };
        if let Err(error) = outcome {
            self.tell(&import, &chain_text(&error), CORRECT);
        }
    }

    /// What a document describes: it is read once.
    async fn once(&self, import: &ImportConfig) -> anyhow::Result<()> {
        let mut options = OpenApiOptions::from_config(import, self.capability(import))?;
        options.memory = self.memory.clone();
        let fetched = match import.document_url() {
            Some(url) => Some(self.fetched(import, url, &options).await),
            None => None,
        };
        let beside = || import.document_path().unwrap_or_default().to_owned();
        let (folder, name) = match import.stored_document() {
            Some(stored) => (self.folders.stored.clone(), stored.to_string()),
            None => (self.folders.beside.clone(), beside()),
        };
        let dialer = Arc::clone(&self.dialer);
        // On a thread of its own: reading a long document would hold up other tasks.
        let read = tokio::task::spawn_blocking(move || -> anyhow::Result<Vec<Registration>> {
            let document = match fetched {
                Some(document) => document,
                None => read_document(&folder, &name)?,
            };
            Ok(FromOpenApi::new(document, options, dialer)?.registrations()?)
        });
        let found = read.await.context("reading was given up")??;
        self.install(import, found, &[]).await
    }

    /// A document that is no file: it is asked for until it comes.
    async fn fetched(&self, import: &ImportConfig, url: &str, options: &OpenApiOptions) -> Bytes {
        let mut pause = Backoff::new(PAUSE.0, PAUSE.1);
        let mut credentials = self.powers.watch();
        loop {
            match fetch_document(url, options, Arc::clone(&self.dialer)).await {
                Ok(document) => return document,
                Err(error) => self.tell(import, &error.to_string(), WAIT),
            }
            rest(&mut pause, &mut credentials).await;
        }
    }

    /// What a server tells: it is asked again when it says so, and after a while anyway.
    async fn again_and_again(&self, import: &ImportConfig) -> anyhow::Result<()> {
        let capability = self.capability(import);
        let client = self.client(import)?;
        let adapter = FromMcp::new(client, asked(import), capability, &self.memory)?;
        let mut pause = Backoff::new(PAUSE.0, PAUSE.1);
        let mut credentials = self.powers.watch();
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
                    self.tell(import, &chain_text(&error), WAIT);
                    rest(&mut pause, &mut credentials).await;
                }
            }
        }
    }

    fn capability(&self, import: &ImportConfig) -> Option<Capability> {
        self.powers.capability(import.credential.as_deref()?)
    }

    fn client(&self, import: &ImportConfig) -> anyhow::Result<HttpClient> {
        let place = place(&import.base_url)?;
        let options = ClientOptions {
            reach: DialAllowList::Public {
                also: import.private.clone(),
            },
            plain: import.plain.then(|| place.clone()).into_iter().collect(),
            pinned: vec![place.with_pins(import.pins.iter().copied())],
            ..ClientOptions::default()
        };
        Ok(HttpClient::new(Arc::clone(&self.dialer), options))
    }

    /// Puts what a server serves in place, for callers that hold the scope of each operation. Whatever the server says
    /// of who may call it counts for nothing: its operations act with the node's credential.
    async fn install(
        &self,
        import: &ImportConfig,
        found: Vec<Registration>,
        left_out: &[String],
    ) -> anyhow::Result<()> {
        let count = found.len();
        let (dispatcher, source) = (Arc::clone(&self.dispatcher), import.namespace.clone());
        // On a thread of its own: long specs take time to be admitted and hashed.
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
            self.tell(import, &listed(left_out), PARTLY);
        }
        Ok(())
    }

    /// Says what is wrong, and what to do, until the next import works.
    fn tell(&self, import: &ImportConfig, what: &str, hint: &str) {
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

/// Waits before a server is asked again. A credential that was set since the server was last asked, or is set meanwhile,
/// may be what the server wants.
async fn rest(pause: &mut Backoff, credentials: &mut watch::Receiver<u64>) {
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

fn asked(import: &ImportConfig) -> McpImport {
    McpImport {
        namespace: import.namespace.clone(),
        url: import.base_url.clone(),
        credential: import.credential.clone(),
        only: import.only.clone(),
    }
}

/// Host and port of an address.
fn place(url: &str) -> anyhow::Result<PeerAddr> {
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
