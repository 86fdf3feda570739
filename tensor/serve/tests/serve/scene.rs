//! A store, its handler, and peers that are connected in this process.

use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{
    AuthContext, Carriage, Connection, Identity, IdentityKind, ProtocolHandler, RecvStream,
    SendStream, memory_pair,
};
use alknet_tensor::{ContainerWriter, Dtype, FieldType, FileId, StructField};
use alknet_tensor_serve::{
    ALPN, ServeTimeouts, StoreOptions, StorePath, TensorClient, TensorFileRef, TensorHandler,
    TensorStore,
};
use alknet_test_support::deadline;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long anything may take before a test calls it hung.
pub(crate) fn hung() -> Duration {
    deadline(Duration::from_secs(60))
}
/// Bytes of the largest tensor of [`file`].
pub(crate) const LARGE: usize = 1_000_000;

/// The layout of the records of [`file`].
const SCHEMA: &str = r#"{"$defs":{"Point":{"TypeDef:Struct":{"fields":["x","n"]},"properties":{
    "x":{"TypeDef:Float32":true},"n":{"TypeDef:Uint32":true}}}}}"#;

/// What the large tensor holds.
pub(crate) fn large() -> Vec<u8> {
    (0..LARGE).map(|at| (at * 31 % 251) as u8).collect()
}

/// A container: much of one type, records, items.
pub(crate) fn file() -> Vec<u8> {
    let mut writer = ContainerWriter::new(Cursor::new(Vec::new())).with_schema(SCHEMA);
    let fields = vec![
        StructField::new("/x", FieldType::Float32, 0),
        StructField::new("/n", FieldType::Uint32, 4),
    ];
    let add = || {
        writer
            .flat("large", Dtype::U8, &[LARGE as u64], large().into())?
            .flat("small", Dtype::U8, &[2, 3], vec![1, 2, 3, 4, 5, 6].into())?
            .strukt(
                "points",
                "#/$defs/Point",
                [2, 8],
                fields,
                vec![0; 16].into(),
            )?
            .blob("names", "utf8", [3, 0, 5], b"onethree".to_vec().into())?
            .metadata("format", "pt")?;
        Ok::<(), alknet_tensor::TensorError>(())
    };
    add().expect("it fits");
    writer.finish().expect("memory").1.into_inner()
}

/// A store in a folder that goes away.
pub(crate) struct StoreScene {
    pub(crate) store: Arc<TensorStore>,
    pub(crate) folder: tempfile::TempDir,
    patience: ServeTimeouts,
}

impl StoreScene {
    pub(crate) fn new() -> Self {
        Self::with(StoreOptions::default())
    }

    pub(crate) fn with(options: StoreOptions) -> Self {
        let folder = tempfile::tempdir().expect("writable");
        let store = TensorStore::open(folder.path().join("store"), options).expect("writable");
        Self {
            store,
            folder,
            patience: ServeTimeouts::default(),
        }
    }

    /// Waits for a peer no longer than a moment.
    pub(crate) fn impatient(mut self) -> Self {
        let moment = deadline(Duration::from_millis(50));
        self.patience = ServeTimeouts {
            header: ServeTimeouts::default().header,
            request: moment,
            stalled: moment,
        };
        self
    }

    /// With [`file`] in it under this path.
    pub(crate) fn holding(path: &str) -> (Self, FileId) {
        let scene = Self::new();
        let id = scene.add(path, &file());
        (scene, id)
    }

    pub(crate) fn add(&self, path: &str, file: &[u8]) -> FileId {
        let path = StorePath::parse(path).expect("a path");
        self.store.add(file, Some(path)).expect("a good file")
    }

    /// Where a file lies.
    pub(crate) fn object(&self, id: FileId) -> PathBuf {
        let hex = id.to_string();
        self.path("store/objects").join(&hex[..2]).join(hex)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Files below a folder of the store.
    pub(crate) fn count(&self, folder: &str) -> usize {
        let entries = std::fs::read_dir(self.path("store").join(folder)).expect("readable");
        entries.count()
    }

    /// A peer with these scopes, connected.
    pub(crate) fn peer(&self, name: &str, scopes: &[&str]) -> Connection {
        self.peer_through(name, scopes, |theirs| theirs)
    }

    /// The same with something in front of the handler.
    pub(crate) fn peer_through(
        &self,
        name: &str,
        scopes: &[&str],
        front: impl FnOnce(Connection) -> Connection,
    ) -> Connection {
        let handler = TensorHandler::new(Arc::clone(&self.store)).with_patience(self.patience);
        let (ours, theirs) = memory_pair(ALPN);
        let auth = AuthContext {
            identity: Some(identity(name, scopes)),
            key: None,
            alpn: ALPN.into(),
            sni: None,
            remote_addr: None,
            carriage: Carriage::Memory,
            early_data: false,
        };
        tokio::spawn(Arc::new(handler).handle(front(theirs), auth));
        ours
    }

    pub(crate) fn client(&self, scopes: &[&str]) -> TensorClient {
        TensorClient::new(self.peer("ada", scopes))
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

pub(crate) fn at(path: &str) -> TensorFileRef {
    TensorFileRef::Path(StorePath::parse(path).expect("a path"))
}

/// Asks by hand: what is said first, and the stream behind it.
pub(crate) async fn ask(connection: &Connection, request: &Value) -> (Value, RecvStream) {
    let text = request.to_string();
    let (mut send, recv) = connection.open_bi().await.expect("connected");
    say(&mut send, text.as_bytes()).await;
    send.finish().expect("open");
    answer(recv).await
}

pub(crate) async fn say(send: &mut SendStream, text: &[u8]) {
    let len = u32::try_from(text.len()).expect("short");
    send.write_all(&len.to_be_bytes()).await.expect("taken");
    send.write_all(text).await.expect("taken");
}

pub(crate) async fn answer(mut recv: RecvStream) -> (Value, RecvStream) {
    let read = async {
        let len = recv.read_u32().await.expect("an answer");
        let mut text = vec![0; len as usize];
        recv.read_exact(&mut text).await.expect("a whole answer");
        serde_json::from_slice(&text).expect("JSON")
    };
    let said = tokio::time::timeout(hung(), read).await.expect("in time");
    (said, recv)
}

/// Asks, and reads all that is sent.
pub(crate) async fn fetch(connection: &Connection, mut request: Value) -> (Value, Vec<u8>) {
    request["v"] = json!(1);
    let (said, mut recv) = ask(connection, &request).await;
    let mut bytes = Vec::new();
    recv.read_to_end(&mut bytes).await.expect("to the end");
    (said, bytes)
}

/// The code of a request that is refused.
pub(crate) async fn refused(connection: &Connection, request: Value) -> String {
    let (said, bytes) = fetch(connection, request).await;
    assert_eq!(said["ok"], false, "{said}");
    assert!(bytes.is_empty());
    let msg = said["msg"].as_str().expect("a text");
    assert!(!msg.is_empty() && !msg.contains('\n'), "{msg}");
    said["code"].as_str().expect("a code").to_owned()
}

/// Bytes of the disk that the store counts for a file of this length: whole blocks, its entry and its inode.
pub(crate) const fn on_disk(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(4 << 10) + (20 << 10)
}

/// The same for a path of one segment, or for a further folder of a path.
pub(crate) const NAME: u64 = 24 << 10;
