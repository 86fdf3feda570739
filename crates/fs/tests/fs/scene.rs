//! A node with files, and peers that are connected in this process.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alknet_call::{
    ALPN, CallClient, CallConnection, CallError, CallHandler, CallOptions, Dispatcher, Registry,
    Subscription, SubscriptionEvent,
};
use alknet_core::{
    AuthContext, AuthToken, Carriage, Identity, IdentityKind, IdentityProvider, PeerId, PeerKey,
    ProtocolHandler, memory_pair,
};
use alknet_fs::{FsService, operations};
use alknet_store::FileStoreOptions;
use alknet_test_support::deadline;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

/// How long anything may take before a test calls it hung.
pub(crate) fn hung() -> Duration {
    deadline(Duration::from_secs(60))
}

/// A node whose files lie in a folder that goes away.
pub(crate) struct FilesNode {
    pub(crate) service: FsService,
    handler: Arc<CallHandler>,
    /// Removed last.
    folder: Arc<TempDir>,
}

impl FilesNode {
    pub(crate) fn new() -> Self {
        Self::with(FileStoreOptions::default())
    }

    /// A node whose contents count as checked, so that its chores read none that a test damages.
    pub(crate) fn checked() -> Self {
        let node = Self::new();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.expect("after 1970").as_secs().to_string();
        std::fs::create_dir_all(node.service.folder()).expect("writable");
        std::fs::write(node.path("scrubbed"), now).expect("writable");
        node
    }

    pub(crate) fn with(options: FileStoreOptions) -> Self {
        let folder = tempfile::tempdir().expect("writable");
        Self::within(Arc::new(folder), options)
    }

    /// A node that looks its callers up in a table.
    pub(crate) fn with_table(table: &Arc<ScopeTable>) -> Self {
        let folder = tempfile::tempdir().expect("writable");
        let options = FileStoreOptions::default();
        Self::make(Arc::new(folder), options, |dispatcher| {
            dispatcher.with_identities(Arc::clone(table) as _)
        })
    }

    fn within(folder: Arc<TempDir>, options: FileStoreOptions) -> Self {
        Self::make(folder, options, |dispatcher| dispatcher)
    }

    fn make(
        folder: Arc<TempDir>,
        options: FileStoreOptions,
        change: impl FnOnce(Dispatcher) -> Dispatcher,
    ) -> Self {
        let service = FsService::new(&folder.path().join("fs"), options);
        let mut builder = Registry::builder();
        for operation in operations(&service) {
            builder.add(operation);
        }
        let registry = builder.build().expect("no rule is broken");
        let dispatcher = Arc::new(change(Dispatcher::new(registry)));
        Self {
            service,
            handler: Arc::new(CallHandler::new(dispatcher)),
            folder,
        }
    }

    /// The same node after an orderly end.
    pub(crate) async fn restarted(self) -> Self {
        self.service.shutdown().await;
        Self::within(self.folder, FileStoreOptions::default())
    }

    /// The same node after an end and what is done to its files meanwhile.
    pub(crate) async fn restarted_after(self, meanwhile: impl FnOnce(PathBuf)) -> Self {
        self.service.shutdown().await;
        meanwhile(self.folder.path().join("fs"));
        Self::within(self.folder, FileStoreOptions::default())
    }

    /// A path below the folder of the store.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("fs").join(name)
    }

    /// A connected peer with these scopes.
    pub(crate) fn peer(&self, name: &str, scopes: &[&str]) -> FilesPeer {
        FilesPeer(self.connect(Some(identity(name, scopes))))
    }

    /// A connected peer with the scopes that a table has for it.
    pub(crate) fn listed_peer(&self, table: &ScopeTable, name: &str) -> FilesPeer {
        FilesPeer(self.connect(table.find(name)))
    }

    /// A connected peer that the node does not know.
    pub(crate) fn unknown_peer(&self) -> FilesPeer {
        FilesPeer(self.connect(None))
    }

    /// A peer that may do everything, and a bucket `docs`.
    pub(crate) async fn admin(&self) -> FilesPeer {
        let admin = self.peer("root", &["fs:*"]);
        admin
            .call("fs/bucket/create", json!({ "bucket": "docs" }))
            .await;
        admin
    }

    fn connect(&self, identity: Option<Arc<Identity>>) -> CallConnection {
        let (ours, theirs) = memory_pair(ALPN);
        let auth = AuthContext {
            identity,
            key: None,
            alpn: ALPN.into(),
            sni: None,
            remote_addr: None,
            carriage: Carriage::Memory,
            early_data: false,
        };
        tokio::spawn(Arc::clone(&self.handler).handle(theirs, auth));
        CallClient::without_operations().attach(ours, None)
    }
}

pub(crate) fn identity(name: &str, scopes: &[&str]) -> Arc<Identity> {
    Arc::new(Identity {
        id: name.parse().expect("a peer id"),
        kind: IdentityKind::Peer,
        scopes: scopes.iter().collect(),
        resources: Default::default(),
        generation: 1,
    })
}

/// Identities whose scopes a test changes while they do something. Each change makes a further table.
#[derive(Debug)]
pub(crate) struct ScopeTable {
    number: watch::Sender<u64>,
    scopes: Mutex<HashMap<String, Vec<&'static str>>>,
}

impl ScopeTable {
    /// A table without identities.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            number: watch::channel(1).0,
            scopes: Mutex::default(),
        })
    }

    /// Gives an identity these scopes and no others; without any, the node does not know it.
    pub(crate) fn set(&self, name: &str, scopes: Option<&[&'static str]>) {
        let mut table = self.scopes.lock().expect("no panic");
        match scopes {
            Some(scopes) => drop(table.insert(name.to_owned(), scopes.to_vec())),
            None => drop(table.remove(name)),
        }
        drop(table);
        self.number.send_modify(|number| *number += 1);
    }

    /// An identity as it is by now.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Identity>> {
        let generation = *self.number.borrow();
        let table = self.scopes.lock().expect("no panic");
        let known = identity(name, table.get(name)?);
        Some(Arc::new(Identity {
            generation,
            ..Identity::clone(&known)
        }))
    }
}

impl IdentityProvider for ScopeTable {
    fn by_key(&self, _: &PeerKey) -> Option<Arc<Identity>> {
        None
    }

    fn by_token(&self, _: &AuthToken) -> Option<Arc<Identity>> {
        None
    }

    fn by_id(&self, id: &PeerId) -> Option<Arc<Identity>> {
        self.find(id.as_str())
    }

    fn table(&self) -> Option<u64> {
        Some(*self.number.borrow())
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.number.subscribe()
    }
}

/// A connected peer.
pub(crate) struct FilesPeer(CallConnection);

/// Why a call was refused.
#[derive(Debug, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) details: Value,
}

impl FilesPeer {
    /// The answer of a call.
    pub(crate) async fn call(&self, operation: &str, input: Value) -> Value {
        let answer = self.0.call(operation, &input).await;
        match answer {
            Ok(answer) => answer.value().clone(),
            Err(error) => panic!("{operation} {input}: {error} {:?}", error.details),
        }
    }

    /// The answer of a call that is made once however often it is repeated with this key.
    pub(crate) async fn keyed(&self, operation: &str, input: Value, key: &str) -> Value {
        let options = CallOptions {
            idempotency_key: Some(key.to_owned()),
            ..CallOptions::default()
        };
        let answer = self.0.call_with(operation, &input, &options).await;
        answer.expect("it is allowed").value().clone()
    }

    /// The error of a call.
    pub(crate) async fn refused(&self, operation: &str, input: Value) -> Refusal {
        let error = match self.0.call(operation, &input).await {
            Ok(answer) => panic!("{operation} {input}: {}", answer.value()),
            Err(error) => error,
        };
        Refusal {
            code: error.code.name().to_owned(),
            message: error.message,
            details: error.details.map(|details| *details).unwrap_or_default(),
        }
    }

    /// Code and details of the error of a call.
    pub(crate) async fn code(&self, operation: &str, input: Value) -> (String, Value) {
        let refusal = self.refused(operation, input).await;
        (refusal.code, refusal.details)
    }

    pub(crate) async fn subscribe(&self, operation: &str, input: Value) -> Subscription {
        let begun = self.0.subscribe(operation, &input).await;
        begun.unwrap_or_else(|error| panic!("{operation} {input}: {error}"))
    }

    /// The head of a content, and its bytes.
    pub(crate) async fn read(&self, input: Value) -> (Value, Vec<u8>) {
        let mut items = self.subscribe("fs/read", input).await;
        let head = next(&mut items).await.output.value().clone();
        let mut bytes = Vec::new();
        while let Some(item) = items.next().await {
            bytes.extend(bytes_of(&item.expect("bytes")));
        }
        (head, bytes)
    }

    /// The code with which a subscription ends, and the bytes that came before.
    pub(crate) async fn broken(&self, operation: &str, input: Value) -> (String, usize) {
        let mut items = self.subscribe(operation, input).await;
        let (error, bytes) = broken_off(&mut items).await;
        (error.code.name().to_owned(), bytes)
    }

    /// Puts a short content, and returns the number of the commit.
    pub(crate) async fn put(&self, path: &str, content: &[u8]) -> u64 {
        let input = json!({ "path": path, "bytes": base64(content) });
        let put = self.call("fs/put", input).await;
        put["seq"].as_u64().expect("a number")
    }

    /// Puts a content of any size through a session.
    pub(crate) async fn upload(&self, path: &str, content: &[u8]) -> Value {
        let input = json!({ "path": path, "size": content.len() });
        let session = self.call("fs/write/open", input).await["session"].clone();
        for (at, piece) in content.chunks(256 << 10).enumerate() {
            let offset = at * (256 << 10);
            let piece = json!({ "session": session, "offset": offset, "bytes": base64(piece) });
            self.call("fs/write/chunk", piece).await;
        }
        let close = json!({ "session": session });
        self.call("fs/write/close", close).await
    }

    /// The names in a directory.
    pub(crate) async fn names(&self, path: &str) -> Vec<String> {
        let listed = self.call("fs/list", json!({ "path": path })).await;
        let entries = listed["entries"].as_array().expect("a list");
        let paths = entries
            .iter()
            .map(|entry| entry["path"].as_str().expect("a path"));
        paths.map(str::to_owned).collect()
    }
}

/// The next item of a subscription.
pub(crate) async fn next(items: &mut Subscription) -> SubscriptionEvent {
    let item = tokio::time::timeout(hung(), items.next()).await;
    item.expect("in time").expect("an item").expect("an item")
}

/// The error with which a subscription ends, and the bytes that come before it.
pub(crate) async fn broken_off(items: &mut Subscription) -> (CallError, usize) {
    let read = async {
        let mut bytes = 0;
        loop {
            match items.next().await.expect("an error ends it") {
                Ok(item) => bytes += bytes_of(&item).len(),
                Err(error) => break (error, bytes),
            }
        }
    };
    tokio::time::timeout(hung(), read).await.expect("in time")
}

/// The bytes of an item of a read.
pub(crate) fn bytes_of(item: &SubscriptionEvent) -> Vec<u8> {
    let value = item.output.value();
    let said = &value["bytes"];
    match item.output.binary(said) {
        Some(bytes) => bytes.to_vec(),
        // A head has none.
        None => STANDARD
            .decode(said.as_str().unwrap_or_default())
            .expect("base64"),
    }
}

pub(crate) fn base64(content: &[u8]) -> String {
    STANDARD.encode(content)
}

/// Bytes without a pattern that a mistake of a whole block would hide.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 % 251) as u8).collect()
}
