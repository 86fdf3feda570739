//! Requests of `alknet/tensor`, and the streams that answer them.

use std::io::Cursor;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use alknet_core::{
    AuthContext, Carriage, CloseCode, Identity, IdentityKind, ProtocolHandler, memory_pair,
};
use alknet_tensor::{
    ContainerLimits, ContainerReader, ContainerWriter, Dtype, FieldType, StructField,
    TensorErrorCode, TensorKind,
};
use alknet_tensor_serve::limits::REQUEST_BYTES;
use alknet_tensor_serve::{
    ALPN, Fetch, PartEncoding, PartSelector, StoreOptions, StorePath, TensorFileRef, TensorHandler,
    TensorRequest, TensorStore,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

/// The path of the one file in the store.
const PATH: &str = "a";
/// Room of the store: for that file and for the files of inputs.
const STORE_BYTES: u64 = 1 << 20;
/// Bytes of a request's length.
const LENGTH_BYTES: usize = 4;
/// Codes of this protocol beside those of the format.
const OWN_CODES: [&str; 2] = ["E_BUSY", "E_QUOTA"];

/// Takes the bytes of a peer on one stream, unchanged and as a request with its length put in front: the text up to
/// the first zero byte, and the bytes after it as the content of a put.
pub fn request(data: &[u8]) -> bool {
    // A store for each input would take most of the time.
    static SCENE: OnceLock<Mutex<RequestFixture>> = OnceLock::new();
    let text = data.split(|byte| *byte == 0).next().unwrap_or_default();
    let content = data.get(text.len() + 1..).unwrap_or_default();
    // Inputs are shorter than 4 GiB.
    let mut framed = (text.len() as u32).to_be_bytes().to_vec();
    framed.extend([text, content].concat());
    let scene = SCENE.get_or_init(|| Mutex::new(RequestFixture::new()));
    let mut scene = scene.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = scene.check_answer(data);
    scene.check_answer(&framed) || taken
}

struct RequestFixture {
    runtime: Runtime,
    store: Arc<TensorStore>,
    file: Vec<u8>,
    _folder: TempDir,
}

impl RequestFixture {
    fn new() -> Self {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let folder = tempfile::tempdir().expect("a folder");
        let options = StoreOptions {
            bytes_max: STORE_BYTES,
            ..StoreOptions::default()
        };
        let store = TensorStore::open(folder.path().join("store"), options).expect("a new store");
        let file = file();
        let path = StorePath::parse(PATH).expect("a path");
        store.add(&file[..], Some(path)).expect("a good file");
        Self {
            runtime: runtime.enable_time().build().expect("a runtime"),
            store,
            file,
            _folder: folder,
        }
    }

    /// Compares the answer to a stream with the stream.
    fn check_answer(&mut self, stream: &[u8]) -> bool {
        let (answer, whole) = self.exchange(stream);
        let Some((text, content)) = frame(stream) else {
            assert!(answer.is_empty() && !whole, "no request, and an answer");
            return false;
        };
        let Some(text) = text else {
            refused(&answer, Some(TensorErrorCode::Limit.as_str()));
            return false;
        };
        assert!(whole, "the answer to a whole request has an end");
        match TensorRequest::parse(text) {
            Err(error) => {
                assert!(!error.to_string().contains(char::is_control), "{error}");
                refused(&answer, Some(error.code()));
                false
            }
            Ok(TensorRequest::Fetch(fetch)) => self.fetched(&fetch, &answer),
            Ok(TensorRequest::Put(path)) => self.stored(path.as_ref(), content, &answer),
        }
    }

    /// The answer, and whether the stream ended well.
    fn exchange(&self, stream: &[u8]) -> (Vec<u8>, bool) {
        let handler = Arc::new(TensorHandler::new(Arc::clone(&self.store)));
        self.runtime.block_on(async {
            let (ours, theirs) = memory_pair(ALPN);
            let served = tokio::spawn(handler.handle(theirs, peer()));
            let (mut send, mut recv) = ours.open_bi().await.expect("in memory");
            let write = async {
                // The other side may stop reading.
                let _ = send.write_all(stream).await;
                let _ = send.finish();
            };
            let mut answer = Vec::new();
            let ((), read) = tokio::join!(write, recv.read_to_end(&mut answer));
            let whole = read.is_ok();
            ours.close(CloseCode::Normal, "done");
            let ended = served.await.expect("it does not panic");
            ended.expect("a peer that leaves is no failure");
            (answer, whole)
        })
    }

    fn fetched(&self, fetch: &Fetch, answer: &[u8]) -> bool {
        let (head, bytes) = read_answer(answer);
        if head["ok"] == false {
            refused(answer, None);
            return false;
        }
        assert_eq!(
            head["len"].as_u64(),
            Some(bytes.len() as u64),
            "{fetch:?}: {head}"
        );
        let ours = ContainerReader::open(&self.file[..], &ContainerLimits::default())
            .expect("it was stored");
        let file = |range: &std::ops::Range<u64>| {
            // The file is in memory, so its offsets are indices.
            &self.file[range.start as usize..range.end as usize]
        };
        if let TensorFileRef::Path(path) = &fetch.src {
            assert_eq!(path.as_str(), PATH);
        }
        // The encoding has hashes between the bytes: only its head is compared.
        if fetch.encoding == PartEncoding::Bao16 {
            assert!(head["size"].is_u64() && head["b3"].is_string(), "{head}");
            return true;
        }
        match &fetch.want {
            PartSelector::Header => assert_eq!(bytes, file(&(0..ours.meta().data_start()))),
            PartSelector::Range(None, range) => assert_eq!(bytes, file(range)),
            PartSelector::Range(Some(name), range) => {
                let start = entry_start(&ours, name);
                assert_eq!(bytes, file(&(start + range.start..start + range.end)));
            }
            PartSelector::Tensor(name) => {
                let start = entry_start(&ours, name);
                assert_eq!(bytes, file(&(start..start + bytes.len() as u64)));
            }
            PartSelector::Rows(name, rows) => {
                match ours.tensor(name).expect("it was served").kind() {
                    TensorKind::Blob(_) => assert_eq!(bytes, items(&ours, name, rows)),
                    _ => {
                        let view = ours.rows(name, rows.clone()).expect("they were served");
                        assert_eq!(bytes, view.bytes());
                    }
                }
            }
        }
        true
    }

    fn stored(&mut self, path: Option<&StorePath>, content: &[u8], answer: &[u8]) -> bool {
        let (head, rest) = read_answer(answer);
        if head["ok"] == false {
            refused(answer, None);
            return false;
        }
        assert_eq!(head["go"], true, "{head}");
        let (done, more) = read_answer(rest);
        assert!(more.is_empty());
        if done["ok"] == false {
            refused(rest, None);
            return false;
        }
        let theirs =
            ContainerReader::open(content, &ContainerLimits::default()).expect("it was stored");
        let hash = theirs.hash(0..content.len() as u64).expect("in memory");
        assert_eq!(done["id"].as_str(), Some(&*hash.to_hex()), "{done}");
        let known = path.filter(|path| path.as_str() != PATH);
        match known.map(|path| self.store.remove(path)) {
            Some(removed) => drop(removed.expect("it was stored")),
            // Without a path of its own it can only be removed with the store.
            None => *self = Self::new(),
        }
        true
    }
}

/// A peer that may read and store everything.
fn peer() -> AuthContext {
    let identity = Identity {
        id: "fuzz".parse().expect("a peer id"),
        kind: IdentityKind::Peer,
        scopes: ["*"].into_iter().collect(),
        resources: Default::default(),
        generation: 1,
    };
    AuthContext {
        identity: Some(Arc::new(identity)),
        key: None,
        alpn: ALPN.into(),
        sni: None,
        remote_addr: None,
        carriage: Carriage::Memory,
        early_data: false,
    }
}

/// The request of a stream and the rest; no request where it is longer than the limit.
fn frame(stream: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (len, rest) = stream.split_first_chunk::<LENGTH_BYTES>()?;
    let len = u32::from_be_bytes(*len) as usize;
    if len > REQUEST_BYTES {
        return Some((None, rest));
    }
    let (text, content) = rest.split_at_checked(len)?;
    Some((Some(text), content))
}

/// The frame that an answer begins with, and the rest.
fn read_answer(answer: &[u8]) -> (Value, &[u8]) {
    let (text, rest) = frame(answer).expect("a whole frame");
    let value: Value = serde_json::from_slice(text.expect("not too long")).expect("JSON");
    assert!(value["ok"].is_boolean(), "{value}");
    (value, rest)
}

/// Checks that the answer ends with one refusal, of this code where the caller knows it.
fn refused(answer: &[u8], code: Option<&str>) {
    let mut rest = answer;
    let mut last = Value::Null;
    while !rest.is_empty() {
        (last, rest) = read_answer(rest);
    }
    assert_eq!(last["ok"], false, "{last}");
    let name = last["code"].as_str().expect("a code");
    let known = TensorErrorCode::ALL
        .iter()
        .any(|known| known.as_str() == name);
    assert!(known || OWN_CODES.contains(&name), "{last}");
    let text = last["msg"].as_str().expect("a text");
    assert!(
        !text.is_empty() && !text.contains(char::is_control),
        "{last}"
    );
    if let Some(code) = code {
        assert_eq!(name, code, "{last}");
    }
}

fn entry_start(reader: &ContainerReader<&[u8]>, name: &str) -> u64 {
    let entry = reader.meta().entry(name).expect("it was served");
    entry.file_range().start
}

/// Items in the form of an answer: the offset of each and the end of the last, and then the items.
fn items(reader: &ContainerReader<&[u8]>, name: &str, rows: &std::ops::Range<u64>) -> Vec<u8> {
    let (mut offsets, mut data) = (0_u64.to_le_bytes().to_vec(), Vec::new());
    for at in rows.clone() {
        data.extend_from_slice(&reader.item(name, at).expect("it was served"));
        offsets.extend((data.len() as u64).to_le_bytes());
    }
    offsets.extend(data);
    offsets
}

/// A file with several groups of one tensor, one of another, records, items.
fn file() -> Vec<u8> {
    let large: Vec<u8> = (0..40_000_u32).map(|at| (at * 31 % 251) as u8).collect();
    let fields = vec![StructField::new("/x", FieldType::Float32, 0)];
    let mut writer = ContainerWriter::new(Cursor::new(Vec::new()));
    let add = || {
        writer
            .flat("l", Dtype::U8, &[40, 1000], large.into())?
            .flat("f", Dtype::F4, &[4, 2], vec![1, 2, 3, 4].into())?
            .strukt("s", "#", [3, 4], fields, vec![0; 12].into())?
            .blob("b", "utf8", [3, 0, 5], b"onethree".to_vec().into())?;
        Ok::<(), alknet_tensor::TensorError>(())
    };
    add().expect("it fits");
    writer.finish().expect("memory").1.into_inner()
}
