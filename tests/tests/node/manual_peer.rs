//! A peer that uses the protocol by hand, and can claim anything about itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alknet_call::{
    ALPN, CallClient, CallConnection, Envelope, EventKind, FrameBody, FrameReader, OperationSpec,
    encode_event,
};
use alknet_core::{Carriage, Connection, RecvStream, SendStream};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_tests::{CliRunner, HostNode, eventually, wire};
use alknet_tls::NodeKey;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Characters in the answer of `node/long`: nearly the longest result that may be kept.
const LONG: usize = 60_000;
/// Characters in the answer of `node/wide`, which are nearly a frame.
const WIDE: usize = 900 << 10;
/// Values in the answer of `compute/dispatch`, which reports an hour.
const SHORT: usize = 450_000;
/// Values in the details of the errors of `node/fail` and `node/fail-short`. The tree of the second is nearly the
/// largest that a node reads.
const FAILED: usize = 12_000;
const FAILED_SHORT: usize = 1_700;
/// Characters in the details of the errors of `node/late`, which come once the peer was asked this many times.
pub(super) const LATE_CHARACTERS: usize = 900 << 10;
pub(super) const LATE: usize = 24;
/// Numbers in the details of the errors of `node/grow` and `node/grow-little`, each of which has 13 more characters
/// when a node has read and written it. Beside the second list is a text of so many characters, so that the frame is
/// nearly as long as one may be.
const GROWN: usize = 200_000;
const GROWN_LITTLE: usize = 1_500;
const GROWN_BESIDE: usize = 1_030_000;
/// Pause between two looks at the number of requests.
const LOOKS_EVERY: Duration = Duration::from_millis(5);
/// Bytes that the answers of `node/often` and `node/once` point to, the first of them [`OFTEN`]
/// times.
pub(super) const POINTED: usize = 300 << 10;
pub(super) const OFTEN: usize = 2_000;
/// Bytes of binary data in each event of `node/flow`.
const EVENT: usize = 700 << 10;

pub(super) struct ManualPeer {
    _dialer: EndpointDialer,
    served: watch::Sender<Served>,
    pub(super) connection: Connection,
    /// The requests that it got.
    requests: Arc<Mutex<Vec<String>>>,
    /// Whether it reads nothing on new streams.
    deaf: Arc<AtomicBool>,
    /// The tasks that answer, one for each stream.
    answering: Arc<Mutex<JoinSet<()>>>,
}

/// The operations that a peer reports.
#[derive(Clone)]
struct Served {
    specs: Arc<[Value]>,
    /// How often they changed.
    changes: usize,
}

impl Served {
    fn new(specs: Vec<OperationSpec>, changes: usize) -> Self {
        Self {
            specs: specs.into_iter().map(|spec| json!(spec)).collect(),
            changes,
        }
    }

    fn registry(&self) -> String {
        format!("r{}", self.changes)
    }
}

/// A connection to a node, and its dialer.
pub(super) async fn dial(node: &HostNode, who: &CliRunner) -> (EndpointDialer, Connection) {
    dial_over(Carriage::Both, node, who).await
}

/// The same over one carriage.
pub(super) async fn dial_over(
    carriage: Carriage,
    node: &HostNode,
    who: &CliRunner,
) -> (EndpointDialer, Connection) {
    let file = who.state().join("identity.key");
    let (key, _) = NodeKey::load_or_create(&file).expect("a key");
    let dialer = EndpointDialer::new(Some(key));
    let target: Target = node.target().parse().expect("the node's own target");
    let dialled = dialer.dial_over(carriage, &target, ALPN).await;
    (dialer, dialled.expect("it is known"))
}

/// A client's call connection to a node, and its dialer.
pub(super) async fn caller(node: &HostNode, who: &CliRunner) -> (EndpointDialer, CallConnection) {
    let (dialer, connection) = dial(node, who).await;
    let client = CallClient::without_operations().attach(connection, None);
    (dialer, client)
}

impl ManualPeer {
    pub(super) async fn start(hub: &HostNode, who: &CliRunner, spec: OperationSpec) -> Self {
        Self::serving(hub, who, vec![spec]).await
    }

    pub(super) async fn serving(
        hub: &HostNode,
        who: &CliRunner,
        specs: Vec<OperationSpec>,
    ) -> Self {
        Self::on(dial(hub, who).await, specs)
    }

    /// On an open connection of any kind.
    pub(super) fn on(
        (dialer, connection): (EndpointDialer, Connection),
        specs: Vec<OperationSpec>,
    ) -> Self {
        let (requests, deaf) = (Arc::default(), Arc::<AtomicBool>::default());
        let answering = Arc::<Mutex<JoinSet<()>>>::default();
        // Before any request is answered: the node may ask in the first millisecond.
        let (served, serves) = watch::channel(Served::new(specs, 1));
        let is_multi = connection.is_multi();
        let (incoming, note, is_deaf) =
            (connection.clone(), Arc::clone(&requests), Arc::clone(&deaf));
        let answers = Arc::clone(&answering);
        tokio::spawn(async move {
            let mut unread = Vec::new();
            while let Ok((send, recv)) = incoming.accept_bi().await {
                if is_deaf.load(Ordering::SeqCst) {
                    unread.push((send, recv));
                } else {
                    let answer = answer((send, recv), is_multi, serves.clone(), Arc::clone(&note));
                    answers.lock().expect("no panic").spawn(answer);
                }
            }
        });
        Self {
            _dialer: dialer,
            served,
            connection,
            requests,
            deaf,
            answering,
        }
    }

    /// From now on it serves these operations, and informs watchers on a separate stream.
    pub(super) fn serves(&self, specs: Vec<OperationSpec>) {
        self.served.send_modify(|served| {
            *served = Served::new(specs, served.changes + 1);
        });
    }

    /// How many requests for an operation it got.
    ///
    /// # Panics
    /// The node sent something outside the protocol.
    pub(super) fn asked(&self, operation: &str) -> usize {
        self.was_well_asked();
        let requests = self.requests.lock().expect("no panic");
        requests.iter().filter(|one| *one == operation).count()
    }

    /// From now on it reads only the existing streams.
    pub(super) fn falls_deaf(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }

    /// None of its answers so far ended in a panic.
    fn was_well_asked(&self) {
        let mut answering = self.answering.lock().expect("no panic");
        let ended: Vec<_> = std::iter::from_fn(|| answering.try_join_next()).collect();
        drop(answering);
        for answer in ended {
            answer.expect("a good node");
        }
    }
}

impl Drop for ManualPeer {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.was_well_asked();
        }
    }
}

/// A row of `services/list`.
fn listed(spec: &Value) -> Value {
    json!({ "name": spec["name"], "namespace": spec["namespace"], "op_type": spec["op_type"] })
}

/// The operations that a request names.
fn asked_for(specs: &[Value], input: &Value) -> Value {
    let names = input["names"].as_array();
    let is_named = |spec: &&Value| names.is_none_or(|names| names.contains(&spec["name"]));
    specs.iter().filter(is_named).cloned().collect()
}

/// An event with binary data after its text.
fn mixed(id: &str, output: &Value, data: &[u8]) -> Bytes {
    let payload = json!({ "output": output });
    let text = json!({ "type": "call.responded", "id": id, "payload": payload }).to_string();
    let len = u32::try_from(text.len()).expect("a short text");
    let body = [&[1], &len.to_be_bytes()[..], text.as_bytes(), data].concat();
    wire::frame(&body).into()
}

/// An error with a list of short values, whose tree has 36 times the bytes of its text.
fn failed(id: &str, values: usize) -> Bytes {
    failed_with(id, &json!(vec![0; values]).to_string())
}

/// An error with details of this text.
fn failed_with(id: &str, details: &str) -> Bytes {
    let error = format!(r#"{{"code":"CONFLICT","retryable":false,"details":{details}}}"#);
    encode_event(EventKind::Error, id, &error)
}

/// Numbers that are longer when a node has read and written them.
fn growing(count: usize) -> String {
    vec!["1e15"; count].join(",")
}

/// Waits until the peer was asked for an operation so many times.
async fn until_asked(requests: &Mutex<Vec<String>>, operation: &str, times: usize) {
    let is_asked = || {
        let requests = requests.lock().expect("no panic");
        requests.iter().filter(|one| *one == operation).count() >= times
    };
    while !is_asked() {
        tokio::time::sleep(LOOKS_EVERY).await;
    }
}

async fn answer(
    (mut send, mut recv): (SendStream, RecvStream),
    is_multi: bool,
    mut served: watch::Receiver<Served>,
    requests: Arc<Mutex<Vec<String>>>,
) {
    let mut frames = FrameReader::new();
    while let Ok(Some(chunk)) = recv.read_chunk(64 << 10).await {
        frames.push(chunk);
        while let Some(frame) = frames.next_frame(64 << 20).expect("a good node") {
            let body = FrameBody::parse(frame).expect("a good node");
            let event = Envelope::parse(&body.envelope, 64).expect("a good node");
            if event.kind != EventKind::Requested {
                continue;
            }
            let payload: Value = serde_json::from_str(event.payload).expect("JSON");
            let operation = payload["operationId"].as_str().unwrap_or_default();
            let operation = operation.trim_start_matches('/').to_owned();
            let is_first = {
                let mut requests = requests.lock().expect("no panic");
                let is_first = !requests.contains(&operation);
                requests.push(operation.clone());
                is_first
            };
            let pointer = json!({ "$bin": [0, POINTED] });
            let bytes = match operation.as_str() {
                // It holds the request, as it should.
                "node/hold" => continue,
                "services/watch" => {
                    // Other requests come on the same stream if there is no other.
                    if !is_multi {
                        continue;
                    }
                    return tell(send, &event.id, &mut served).await;
                }
                "node/full" | "node/never" if is_first || operation == "node/never" => {
                    let error = json!({ "code": "OVERLOADED", "retryable": true });
                    encode_event(EventKind::Error, &event.id, &error.to_string())
                }
                "node/fail" => failed(&event.id, FAILED),
                "node/fail-short" => failed(&event.id, FAILED_SHORT),
                "node/late" => {
                    until_asked(&requests, &operation, LATE).await;
                    let details = json!("x".repeat(LATE_CHARACTERS));
                    failed_with(&event.id, &details.to_string())
                }
                "node/grow" => failed_with(&event.id, &format!("[{}]", growing(GROWN))),
                "node/grow-little" => {
                    let (beside, numbers) = ("x".repeat(GROWN_BESIDE), growing(GROWN_LITTLE));
                    failed_with(&event.id, &format!("[\"{beside}\",{numbers}]"))
                }
                "node/once" => mixed(&event.id, &pointer, &[7; POINTED]),
                "node/often" => mixed(&event.id, &json!(vec![pointer; OFTEN]), &[7; POINTED]),
                "node/flow" => {
                    let one = mixed(&event.id, &json!({ "$bin": [0, EVENT] }), &[7; EVENT]);
                    while send.write_chunk(one.clone()).await.is_ok() {}
                    return;
                }
                _ => {
                    let output = output(&operation, &served, &payload["input"]);
                    let payload = json!({ "output": output }).to_string();
                    encode_event(EventKind::Responded, &event.id, &payload)
                }
            };
            if send.write_chunk(bytes).await.is_err() {
                return;
            }
        }
    }
}

/// Sends the set's current name, and again after each change.
async fn tell(mut send: SendStream, id: &str, served: &mut watch::Receiver<Served>) {
    loop {
        let registry = served.borrow_and_update().registry();
        let change = json!({ "registry": registry, "added": [], "removed": [] });
        let payload = json!({ "output": change }).to_string();
        let event = encode_event(EventKind::Responded, id, &payload);
        if send.write_chunk(event).await.is_err() || served.changed().await.is_err() {
            return;
        }
    }
}

fn output(operation: &str, served: &watch::Receiver<Served>, input: &Value) -> Value {
    match operation {
        "services/list" => {
            let served = served.borrow();
            let all: Value = served.specs.iter().map(listed).collect();
            json!({ "operations": all, "registry": served.registry() })
        }
        "services/schema" => json!({ "specs": asked_for(&served.borrow().specs, input) }),
        "node/long" => json!("x".repeat(LONG)),
        "node/wide" => json!("x".repeat(WIDE)),
        "compute/dispatch" => {
            json!({ "outputs": vec![0; SHORT], "gpu_ms": 3_600_000, "jit_ms": 0 })
        }
        _ => json!("done"),
    }
}

/// Entries of a configuration for users with these scopes.
pub(super) fn people<'a>(
    people: impl IntoIterator<Item = (&'a str, &'a CliRunner, &'a [&'a str])>,
) -> String {
    let entry = |(name, who, scopes): (&str, &CliRunner, &[&str])| {
        let key = who.identity();
        format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\nscopes = {scopes:?}\n")
    };
    people.into_iter().map(entry).collect()
}

/// Waits until an operation of a peer exists.
pub(super) fn until_attached(hub: &HostNode) {
    eventually("the peer is attached", || {
        let listed = hub.call("services/list-peers", &Value::Null);
        let peers = listed["peers"].as_array()?.iter();
        let operations = peers.filter_map(|peer| peer["operations"].as_array());
        operations.flatten().next().map(drop)
    });
}
