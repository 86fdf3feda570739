//! Eight clients of a machine's files, and what it answered them, with the moment of its disk at each answer.

use std::time::Duration;

use alknet_call::CallConnection;
use alknet_endpoint::EndpointDialer;
use alknet_qemu::DiskRecorder;
use alknet_tests::MachineNode;
use data_encoding::BASE64;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::is_full;

const CLIENTS: usize = 8;
/// Rounds that each client makes in one life of the machine.
const ROUNDS: usize = 5;
const ROUNDS_FULL: usize = 20;
/// Longest wait for all of them.
const WORK_WITHIN: Duration = Duration::from_secs(600);
/// Lengths of contents: of a row, of the shortest object with an outboard, and of some groups.
const LENGTHS: [usize; 3] = [300, 20_000, 90_000];
/// Bytes that a session writes at once.
const PIECE: usize = 64 << 10;
/// Bytes of a tensor.
const TENSOR: usize = 50_000;

/// The bucket that keeps former versions, and the one that keeps none.
pub(super) const KEPT: &str = "kept";
pub(super) const SCRAP: &str = "scrap";

/// What the machine answered, and how many events its disk had had by then.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) moment: usize,
    pub(super) fact: AnsweredFact,
}

/// What holds from an answer on, also after a power cut.
#[derive(Debug)]
pub(super) enum AnsweredFact {
    /// A path of [`SCRAP`] that nothing takes again leads nowhere.
    Removed { path: String },
    /// A file of the tensor store.
    Tensor {
        path: String,
        id: String,
        content: SeededContent,
    },
    /// A version in [`KEPT`], which can be read by its hash.
    Version {
        path: String,
        hash: String,
        content: SeededContent,
        /// Whether the path has no later version.
        is_last: bool,
    },
}

/// A content that is made again from these numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeededContent {
    seed: u64,
    len: usize,
}

impl SeededContent {
    /// The bytes, which no other seed has.
    pub(super) fn bytes(self) -> Vec<u8> {
        let mut state = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut bytes = self.seed.to_le_bytes().to_vec();
        while bytes.len() < self.len {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend(state.to_le_bytes());
        }
        bytes.truncate(self.len);
        bytes
    }

    /// The same as a file of one tensor: the length of the header, the header, the elements.
    pub(super) fn tensor_file(self) -> (Vec<u8>, Vec<u8>) {
        let header = json!({
            "x": { "dtype": "U8", "shape": [self.len], "data_offsets": [0, self.len] },
        });
        let header = header.to_string();
        let mut head = (header.len() as u64).to_le_bytes().to_vec();
        head.extend(header.into_bytes());
        (head, self.bytes())
    }
}

/// What collections of one life of a machine removed, by their last reports.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CollectedCounts {
    /// Versions of entries.
    pub(super) rows: u64,
    pub(super) contents: u64,
}

/// What the clients did in one life of a machine.
pub(super) struct ClientsWork {
    /// In the order of their moments.
    pub(super) answers: Vec<Answer>,
    pub(super) collected: CollectedCounts,
}

struct FileClient<'r> {
    number: usize,
    /// Number of the machine's life.
    life: usize,
    recorder: &'r DiskRecorder,
    connection: CallConnection,
    /// Keeps the connection.
    _dialer: EndpointDialer,
    contents: u64,
    answers: Vec<Answer>,
    collected: CollectedCounts,
}

/// Lets the clients work at the same time.
pub(super) fn work(node: &MachineNode, recorder: &DiskRecorder, life: usize) -> ClientsWork {
    let runtime = Runtime::new().expect("a runtime");
    let work = async {
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let (dialer, connection) = node.client().await.expect("it serves");
            clients.push(FileClient {
                number,
                life,
                recorder,
                connection,
                _dialer: dialer,
                contents: 0,
                answers: Vec::new(),
                collected: CollectedCounts::default(),
            });
        }
        if life == 0 {
            clients[0].make_buckets().await;
        }
        join_all(clients.into_iter().map(FileClient::work)).await
    };
    let limit = node.vm().scale(WORK_WITHIN);
    let worked = runtime.block_on(async { tokio::time::timeout(limit, work).await });
    let worked = worked.unwrap_or_else(|_| panic!("the clients hang\n{}", node.vm().report()));
    let mut work = ClientsWork {
        answers: Vec::new(),
        collected: CollectedCounts::default(),
    };
    for client in worked {
        work.answers.extend(client.answers);
        work.collected.rows += client.collected.rows;
        work.collected.contents += client.collected.contents;
    }
    work.answers.sort_by_key(|answer| answer.moment);
    work
}

impl FileClient<'_> {
    async fn call(&self, operation: &str, input: Value) -> Value {
        let answer = self.connection.call(operation, &input).await;
        let answer = answer.unwrap_or_else(|error| panic!("{operation}: {error}"));
        answer.value().clone()
    }

    fn note(&mut self, fact: AnsweredFact) {
        let moment = self.recorder.recording().len();
        self.answers.push(Answer { moment, fact });
    }

    /// A content that no other call stores.
    fn content(&mut self, len: usize) -> SeededContent {
        self.contents += 1;
        let client = (self.life * CLIENTS + self.number) as u64;
        let seed = (client << 32) + self.contents;
        SeededContent { seed, len }
    }

    /// The name of what this client makes in a round.
    fn name(&self, round: usize) -> String {
        format!("{}-{}-{round}", self.number, self.life)
    }

    async fn make_buckets(&self) {
        self.call("fs/bucket/create", json!({ "bucket": KEPT }))
            .await;
        let scrap = json!({ "bucket": SCRAP, "retention_s": 0 });
        self.call("fs/bucket/create", scrap).await;
    }

    async fn work(mut self) -> Self {
        let rounds = if is_full() { ROUNDS_FULL } else { ROUNDS };
        for round in 0..rounds {
            let len = LENGTHS[(round + self.number) % LENGTHS.len()];
            let name = self.name(round);
            self.put(&format!("{KEPT}:/put/{name}"), len, true).await;
            let again = format!("{KEPT}:/again/{}", self.number);
            self.put(&again, len, false).await;
            self.upload(&name).await;
            self.merge(&name, len).await;
            self.remove(&name, len).await;
            match self.number {
                0 | 1 => self.collect().await,
                2 | 3 => self.store_tensor(&name).await,
                _ => {}
            }
        }
        self
    }

    /// Puts a content, and returns it with its hash.
    async fn put_at(&mut self, address: &str, len: usize) -> (SeededContent, String) {
        let content = self.content(len);
        let bytes = BASE64.encode(&content.bytes());
        let input = json!({ "path": address, "bytes": bytes });
        let stored = self.call("fs/put", input).await;
        let hash = stored["hash"].as_str().expect("a hash").to_owned();
        (content, hash)
    }

    async fn put(&mut self, address: &str, len: usize, is_last: bool) {
        let (content, hash) = self.put_at(address, len).await;
        self.note_version(address, hash, content, is_last);
    }

    fn note_version(&mut self, address: &str, hash: String, content: SeededContent, is_last: bool) {
        let (_, path) = address.split_once(':').expect("an address");
        self.note(AnsweredFact::Version {
            path: path.to_owned(),
            hash,
            content,
            is_last,
        });
    }

    /// A content in pieces, through a session.
    async fn upload(&mut self, name: &str) {
        let address = format!("{KEPT}:/uploaded/{name}");
        let content = self.content(2 * PIECE + 1);
        let bytes = content.bytes();
        let input = json!({ "path": address, "size": bytes.len() });
        let session = self.call("fs/write/open", input).await["session"].clone();
        for (at, piece) in bytes.chunks(PIECE).enumerate() {
            let piece = json!({
                "session": session, "offset": at * PIECE, "bytes": BASE64.encode(piece),
            });
            self.call("fs/write/chunk", piece).await;
        }
        let closed = self
            .call("fs/write/close", json!({ "session": session }))
            .await;
        let hash = closed["hash"].as_str().expect("a hash").to_owned();
        self.note_version(&address, hash, content, true);
    }

    /// A file that comes to the main branch by a merge.
    async fn merge(&mut self, name: &str, len: usize) {
        let branch = format!("b-{name}");
        self.call(
            "fs/branch/create",
            json!({ "bucket": KEPT, "name": branch }),
        )
        .await;
        let path = format!("/merged/{name}");
        let (content, hash) = self.put_at(&format!("{KEPT}@{branch}:{path}"), len).await;
        let merge = json!({ "bucket": KEPT, "from": branch, "close": true });
        self.call("fs/branch/merge", merge).await;
        self.note_version(&format!("{KEPT}:{path}"), hash, content, true);
    }

    async fn remove(&mut self, name: &str, len: usize) {
        let path = format!("/removed/{name}");
        let address = format!("{SCRAP}:{path}");
        self.put_at(&address, len).await;
        self.call("fs/delete", json!({ "path": address })).await;
        self.note(AnsweredFact::Removed { path });
    }

    async fn collect(&mut self) {
        let begun = self.connection.subscribe("fs/gc", &Value::Null).await;
        let mut reports = begun.unwrap_or_else(|error| panic!("fs/gc: {error}"));
        let mut last = Value::Null;
        while let Some(report) = reports.next().await {
            let report = report.unwrap_or_else(|error| panic!("fs/gc: {error}"));
            last = report.output.value().clone();
        }
        assert_eq!(last["done"], true, "fs/gc: {last}");
        // The numbers of a report count from the beginning of its collection.
        let number = |name: &str| last[name].as_u64().expect("a number");
        self.collected.rows += number("rows");
        self.collected.contents += number("contents");
    }

    async fn store_tensor(&mut self, name: &str) {
        let path = format!("models/{name}");
        let content = self.content(TENSOR);
        let (head, elements) = content.tensor_file();
        let begin = json!({ "header": BASE64.encode(&head), "path": path });
        let upload = self.call("tensor/put", begin).await["upload"].clone();
        let piece = json!({
            "upload": upload, "offset": head.len(), "bytes": BASE64.encode(&elements),
        });
        self.call("tensor/put", piece).await;
        let commit = json!({ "upload": upload, "commit": true });
        let stored = self.call("tensor/put", commit).await;
        let id = stored["id"].as_str().expect("an id").to_owned();
        self.note(AnsweredFact::Tensor { path, id, content });
    }
}
