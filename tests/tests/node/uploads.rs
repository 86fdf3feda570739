//! `alknet update NODE FILE` over connections that break, and with several nodes of which the first one fails. The
//! nodes are models, so that no machine is booted.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_tests::{CliRunner, TestBench};
use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::scripted_node::{CUT, ScriptedNode, not_found};

/// Bytes of a piece that the command sends to a node that names no length.
const PIECE_BYTES: usize = 64 << 10;
/// The shortest and the longest piece that it sends, but for the last one.
const PIECE_BYTES_RANGE: [usize; 2] = [16 << 10, 256 << 10];
/// How often the command takes an upload up again without a whole piece in between.
const TRIES_MAX: usize = 5;
/// Answers in a row without a further piece after which the command still sends.
const STALLED_MAX: usize = 8;
/// The only session of a model.
const SESSION: &str = "s1";
/// Exit codes of docs/command-line.md.
const FAILED: i32 = 1;
const UNREACHABLE: i32 = 3;
const DENIED: i32 = 4;

/// Whether the node closes the connection in the place of the answer to its `n`th piece, counted from 0, and if so, how
/// many of the piece's bytes it keeps.
type UploadCut = fn(n: usize, bytes: usize) -> Option<usize>;

/// What a model node has of a bundle.
struct ModelUpload {
    cut: UploadCut,
    /// An operation that the node refuses, and its error.
    refusal: Option<(&'static str, Value)>,
    /// Whether the node restarts with each cut, and so has no session afterwards.
    restarts: bool,
    /// How many bytes it wants in the next piece, if it says so.
    wants: Value,
    /// How many bytes a piece may have, as it says at the begin.
    piece_bytes_max: Value,
    /// How often its status says that it has all bytes and has not ended, while PID 1 verifies them.
    checks: usize,
    bytes: usize,
    received: Vec<u8>,
    /// Bytes of each piece that came.
    pieces: Vec<usize>,
}

impl ModelUpload {
    /// A node that answers everything.
    fn whole() -> Self {
        Self {
            cut: |_, _| None,
            refusal: None,
            restarts: false,
            wants: Value::Null,
            piece_bytes_max: json!(PIECE_BYTES),
            checks: 0,
            bytes: 0,
            received: Vec::new(),
            pieces: Vec::new(),
        }
    }

    fn answer(&mut self, operation: &str, input: &Value) -> Result<Value, Value> {
        if let Some((refused, error)) = &self.refusal
            && *refused == operation
        {
            return Err(error.clone());
        }
        match operation {
            "update/stage" => {
                self.bytes = input["bytes"].as_u64().unwrap_or_default() as usize;
                Ok(json!({
                    "session": SESSION, "bytes": self.bytes, "offset": 0, "piece_bytes_max": self.piece_bytes_max,
                }))
            }
            "update/write" => self.write(input),
            "update/status" => Ok(self.status()),
            _ => Err(not_found()),
        }
    }

    fn write(&mut self, input: &Value) -> Result<Value, Value> {
        let at = self.received.len();
        // A node would name the right offset in its error. This one does not, so that the command has it from
        // `update/status` only.
        if input["session"] != SESSION || input["offset"] != at {
            let text = format!("a piece for {} came at {at}", input["offset"]);
            return Err(error("INTERNAL", &text));
        }
        let data = input["data"].as_str().unwrap_or_default();
        let Ok(data) = BASE64.decode(data.as_bytes()) else {
            return Err(error("INTERNAL", "the piece is no base64"));
        };
        let cut = (self.cut)(self.pieces.len(), data.len());
        self.pieces.push(data.len());
        self.received.extend(&data[..cut.unwrap_or(data.len())]);
        match cut {
            Some(_) => Err(CUT),
            None if self.is_complete() => Ok(json!({ "offset": self.bytes, "plan": plan() })),
            None => Ok(json!({
                "offset": self.received.len(), "piece_bytes": self.wants, "plan": null,
            })),
        }
    }

    fn status(&mut self) -> Value {
        let has_ended = self.is_complete() && self.checks == 0;
        if self.is_complete() {
            self.checks = self.checks.saturating_sub(1);
        }
        match (self.restarts, has_ended) {
            (true, _) => json!({ "session": null, "ended": null }),
            (false, true) => {
                json!({ "session": null, "ended": { "session": SESSION, "plan": plan() } })
            }
            (false, false) => json!({
                "session": {
                    "session": SESSION, "source": "upload", "offset": self.received.len(), "bytes": self.bytes,
                },
                "ended": null,
            }),
        }
    }

    fn is_complete(&self) -> bool {
        self.received.len() >= self.bytes
    }
}

/// The plan of a whole bundle.
fn plan() -> Value {
    json!({ "from": "1.0.0", "to": "1.1.0", "step": "upgrade", "sha256": "ab".repeat(32) })
}

fn error(code: &str, message: &str) -> Value {
    json!({ "code": code, "message": message, "retryable": false })
}

/// A model node at an address.
struct UploadNode {
    node: ScriptedNode,
    upload: Arc<Mutex<ModelUpload>>,
}

impl UploadNode {
    fn start(upload: ModelUpload) -> Self {
        let upload = Arc::new(Mutex::new(upload));
        let answering = Arc::clone(&upload);
        let node =
            ScriptedNode::start(move |operation, input| lock(&answering).answer(operation, input));
        Self { node, upload }
    }

    fn upload(&self) -> MutexGuard<'_, ModelUpload> {
        lock(&self.upload)
    }
}

fn lock(upload: &Mutex<ModelUpload>) -> MutexGuard<'_, ModelUpload> {
    upload.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file in the folder whose pieces differ, and its content.
fn bundle(folder: &Path, bytes: usize) -> (String, Vec<u8>) {
    // No piece has a length that 251 divides.
    let content: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
    let file = folder.join("bundle.tar");
    fs::write(&file, &content).expect("the folder is ours");
    (file.display().to_string(), content)
}

/// The connection breaks at every second piece, of which the node has nothing, one half or all. This happens more often
/// than the command takes up an upload without a piece in between. After the last piece only the status has the plan.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_after_each_broken_connection() {
    const CUTS: usize = TRIES_MAX + 1;
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    // Three connections bring 4.5 pieces, so that the sixth one ends with the last piece, which is shorter.
    let (file, content) = bundle(folder.path(), 9 * PIECE_BYTES - 3);
    let node = UploadNode::start(ModelUpload {
        cut: |n, bytes| (n % 2 == 1).then_some(bytes * (n / 2 % 3) / 2),
        ..ModelUpload::whole()
    });
    let words = ["update", "@", &file, "--stage", "--json"];
    let staged = node.node.run(&cli, &words).await.json();
    assert_eq!(
        (&staged["outcome"], &staged["plan"]),
        (&json!("staged"), &plan())
    );
    let upload = node.upload();
    assert!(upload.received == content, "other bytes arrived");
    assert_eq!(upload.pieces.len(), 2 * CUTS);
    assert_eq!(node.node.asked_for("update/stage"), 1);
    assert_eq!(node.node.asked_for("update/status"), CUTS);
}

/// The command sends pieces of the length that the node wants, and to a node of an earlier version, which names none
/// after a piece, pieces of the length that it takes. A node that lies about it gets neither endlessly many pieces nor
/// longer ones than a node takes.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_has_pieces_of_the_length_that_the_node_wants() {
    let [least, most] = PIECE_BYTES_RANGE;
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    for (takes, wants, first, expected) in [
        (json!(PIECE_BYTES), json!(40_000), PIECE_BYTES, 40_000),
        (json!(PIECE_BYTES), json!(0), PIECE_BYTES, least),
        (json!(PIECE_BYTES), json!(u64::MAX), PIECE_BYTES, most),
        (json!(PIECE_BYTES), json!(-1), PIECE_BYTES, PIECE_BYTES),
        (json!(PIECE_BYTES), json!("short"), PIECE_BYTES, PIECE_BYTES),
        (json!(most), Value::Null, PIECE_BYTES, most),
        (json!(40_000), Value::Null, 40_000, 40_000),
        (json!(0), Value::Null, least, least),
        (json!(u64::MAX), Value::Null, PIECE_BYTES, most),
        (json!("long"), Value::Null, PIECE_BYTES, PIECE_BYTES),
    ] {
        let case = format!("{takes}, {wants}");
        let (file, content) = bundle(folder.path(), first + 2 * expected);
        let node = UploadNode::start(ModelUpload {
            wants,
            piece_bytes_max: takes,
            ..ModelUpload::whole()
        });
        let words = ["update", "@", &file, "--stage", "--json"];
        let staged = node.node.run(&cli, &words).await.json();
        assert_eq!(staged["outcome"], "staged", "{case}");
        let upload = node.upload();
        assert!(upload.received == content, "{case}: other bytes arrived");
        assert_eq!(upload.pieces, [first, expected, expected], "{case}");
    }
}

/// The first piece arrives, and every later one breaks the connection.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_given_up_after_attempts_without_a_piece() {
    let cut: UploadCut = |n, _| (n > 0).then_some(0);
    let node = assert_given_up(cut, PIECE_BYTES).await;
    assert_eq!(node.upload().pieces.len(), TRIES_MAX + 2);
}

/// The attack: the node keeps one byte of each piece and breaks the connection, so that its offset is higher after each
/// attempt. Later the node takes all, and a command that is still there stages the bundle.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_given_up_after_attempts_that_bring_a_byte_each() {
    let cut: UploadCut = |n, _| (n < 2 * TRIES_MAX).then_some(1);
    let node = assert_given_up(cut, TRIES_MAX).await;
    assert_eq!(node.upload().pieces.len(), TRIES_MAX + 1);
}

/// Sends a bundle of three pieces to a node with these cuts, and compares the error of the command, which has to end at
/// this offset after the last attempt.
async fn assert_given_up(cut: UploadCut, offset: usize) -> UploadNode {
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    let (file, content) = bundle(folder.path(), 3 * PIECE_BYTES);
    let node = UploadNode::start(ModelUpload {
        cut,
        ..ModelUpload::whole()
    });
    let words = ["update", "@", &file, "--stage"];
    let refused = node.node.run(&cli, &words).await;
    assert_eq!(refused.status, UNREACHABLE, "{refused:?}");
    assert_eq!(refused.errors.lines().count(), 1, "{refused:?}");
    let given_up = format!(
        "alknet: UNAVAILABLE: the upload was given up at {offset} of {} bytes, after {} failures in a row: the ",
        content.len(),
        TRIES_MAX + 1
    );
    assert!(refused.errors.starts_with(&given_up), "{refused:?}");
    assert!(refused.errors.trim_end().ends_with(" ended"), "{refused:?}");
    assert!(refused.output.is_empty(), "{refused:?}");
    assert_eq!(node.node.asked_for("update/status"), TRIES_MAX);
    node
}

/// The attack: the node takes the first piece, and then names the offset before it, again and again; or each of its
/// offsets is one byte higher than the last. After many pieces the node answers with a plan, so that a command that
/// still sends then stages the bundle.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_to_a_node_that_takes_pieces_back_is_ended() {
    /// Pieces after which the command counts as endless.
    const ENDLESS: usize = 10 * STALLED_MAX;
    /// The answer to a piece at an offset.
    type PieceAnswer = fn(offset: u64) -> Result<Value, Value>;
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    let (file, _) = bundle(folder.path(), 3 * PIECE_BYTES);
    let attacks: [(&str, PieceAnswer, usize); 2] = [
        // The answer to the first piece is progress.
        ("CONFLICT", take_back, STALLED_MAX + 2),
        ("PROTOCOL", take_a_byte, STALLED_MAX + 1),
    ];
    for (code, answer, pieces) in attacks {
        let taken = AtomicUsize::new(0);
        let node = ScriptedNode::start(move |operation, input| match operation {
            "update/stage" => {
                Ok(json!({ "session": SESSION, "bytes": input["bytes"], "offset": 0 }))
            }
            "update/write" if taken.fetch_add(1, Ordering::SeqCst) >= ENDLESS => {
                Ok(json!({ "plan": plan() }))
            }
            "update/write" => answer(input["offset"].as_u64().unwrap_or_default()),
            _ => Err(not_found()),
        });
        let refused = node
            .run(&cli, &["--json", "update", "@", &file, "--stage"])
            .await;
        assert_eq!(refused.status, FAILED, "{code}: {refused:?}");
        assert_eq!(refused.code(), code, "{refused:?}");
        assert_eq!(node.asked_for("update/write"), pieces, "{code}");
    }
}

/// The attack: the connection breaks when the node has the whole bundle, and PID 1 verifies it for a while before the
/// status has the plan. A command that sent the next piece would find none in its file, and say that the file became
/// shorter.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_last_answer_is_lost_waits_for_the_plan() {
    const CHECKS: usize = 2;
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    let (file, content) = bundle(folder.path(), 2 * PIECE_BYTES - 3);
    let node = UploadNode::start(ModelUpload {
        cut: |n, bytes| (n == 1).then_some(bytes),
        checks: CHECKS,
        ..ModelUpload::whole()
    });
    let words = ["update", "@", &file, "--stage", "--json"];
    let staged = node.node.run(&cli, &words).await.json();
    assert_eq!(
        (&staged["outcome"], &staged["plan"]),
        (&json!("staged"), &plan())
    );
    assert!(node.upload().received == content, "other bytes arrived");
    assert_eq!(node.upload().pieces.len(), 2, "nothing was sent again");
    assert_eq!(node.node.asked_for("update/status"), CHECKS + 1);
}

/// The attack: the node says, in its status or in the answer to a piece, that it has more bytes than the bundle.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_more_than_the_bundle_gets_no_further_piece() {
    const BYTES: usize = 2 * PIECE_BYTES;
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    let (file, _) = bundle(folder.path(), BYTES);
    for (offset, is_status) in [
        (BYTES as u64 + 1, true),
        (u64::MAX, true),
        (BYTES as u64 + 1, false),
        (u64::MAX, false),
    ] {
        let node = ScriptedNode::start(move |operation, input| match operation {
            "update/stage" => {
                Ok(json!({ "session": SESSION, "bytes": input["bytes"], "offset": 0 }))
            }
            "update/write" if is_status => Err(CUT),
            "update/write" => Ok(json!({ "offset": offset, "plan": null })),
            "update/status" => Ok(json!({
                "session": { "session": SESSION, "source": "upload", "offset": offset, "bytes": BYTES },
                "ended": null,
            })),
            _ => Err(not_found()),
        });
        let words = ["--json", "update", "@", &file, "--stage"];
        let refused = node.run(&cli, &words).await;
        assert_eq!(refused.status, FAILED, "{offset}: {refused:?}");
        assert_eq!(refused.code(), "PROTOCOL", "{offset}: {refused:?}");
        assert_eq!(node.asked_for("update/write"), 1, "{offset}");
    }
}

/// Takes a piece at the beginning, and instead of a later one asks for it again.
fn take_back(offset: u64) -> Result<Value, Value> {
    match offset {
        0 => Ok(json!({ "offset": PIECE_BYTES, "plan": null })),
        _ => {
            let mut refusal = error("CONFLICT", "the next piece begins at 0");
            refusal["details"] = json!({ "code": "offset", "offset": 0 });
            Err(refusal)
        }
    }
}

/// Takes the first byte of a piece.
fn take_a_byte(offset: u64) -> Result<Value, Value> {
    Ok(json!({ "offset": offset + 1, "plan": null }))
}

/// The connection between a hub and its worker breaks in the middle of an upload, and the worker dials again. Until it
/// has, the hub knows no way to it, and shows its peers or refuses to.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_through_a_hub_waits_for_a_worker_that_dials_again() {
    /// Calls that the hub cannot pass on: of a piece, and of the question how much the worker has.
    const AWAY: usize = 2;
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    let (file, content) = bundle(folder.path(), 3 * PIECE_BYTES);
    for (shows_peers, before) in [(true, 1), (false, 1), (true, 0)] {
        let upload = Arc::new(Mutex::new(ModelUpload::whole()));
        let (worker, away) = (Arc::clone(&upload), AtomicUsize::new(AWAY));
        let hub = ScriptedNode::start(move |operation, input| match operation {
            "hub/whoami" => Ok(json!({})),
            "services/list-peers" if shows_peers => Ok(json!({ "peers": [] })),
            "services/list-peers" => Err(error("FORBIDDEN", "it is not yours")),
            operation if operation.starts_with("update/") => {
                let mut upload = lock(&worker);
                let is_away = upload.pieces.len() == before
                    && away
                        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                            left.checked_sub(1)
                        })
                        .is_ok();
                match is_away {
                    true => Err(not_attached()),
                    false => upload.answer(operation, input),
                }
            }
            _ => Err(not_found()),
        });
        let behind = format!("kitchen@{}", hub.target());
        let words = ["--json", "update", &behind, &file, "--stage"];
        let staged = hub.run(&cli, &words).await;
        // Before the upload has begun nothing is lost by the error.
        let expected = if before == 0 { FAILED } else { 0 };
        assert_eq!(staged.status, expected, "{staged:?}");
        let upload = lock(&upload);
        let pieces = if before == 0 { 0 } else { 3 };
        assert_eq!(upload.pieces.len(), pieces, "{staged:?}");
        assert_eq!(upload.received == content, before > 0, "{staged:?}");
        assert_eq!(hub.asked_for("update/status"), AWAY * before, "{staged:?}");
    }
}

/// The error of a hub for a worker that it knows, and that is not connected.
fn not_attached() -> Value {
    let mut refusal = error(
        "NOT_FOUND",
        "the peer 'kitchen' is not attached to this node",
    );
    refusal["details"] = json!({ "reason": "peer_not_attached" });
    refusal
}

/// The attack: a hub gives its bundle a byte at a time, or in pieces that no node takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_of_a_hub_in_pieces_of_a_wrong_length_is_not_passed_on() {
    let [least, most] = PIECE_BYTES_RANGE;
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    let bytes = 2 * most + 3;
    for (length, is_taken) in [
        (1, false),
        (least - 1, false),
        (most + 1, false),
        (least, true),
        (most, true),
    ] {
        let hub = ScriptedNode::start(move |operation, input| match operation {
            "hub/update_read" => {
                let left = bytes - input["offset"].as_u64().unwrap_or_default() as usize;
                let data = BASE64.encode(&vec![7; length.min(left)]);
                Ok(json!({ "bytes": bytes, "version": "1.1.0", "data": data }))
            }
            _ => Err(not_found()),
        });
        let node = UploadNode::start(ModelUpload::whole());
        let from = hub.target();
        let words = ["--json", "update", "@", "--from", &from, "--stage"];
        let ended = node.node.run(&cli, &words).await;
        let upload = node.upload();
        match is_taken {
            true => {
                assert_eq!(ended.json()["outcome"], "staged", "{length}");
                assert!(
                    upload.received == vec![7; bytes],
                    "{length}: other bytes arrived"
                );
            }
            false => {
                assert_eq!(ended.code(), "INVALID_OUTPUT", "{length}: {ended:?}");
                assert!(upload.pieces.is_empty(), "{length}: {:?}", upload.pieces);
            }
        }
    }
}

/// The attack: a hub takes one byte of each piece, or says that it has more than the bundle. After many pieces it has
/// all, so that a command that still sends then starts the update.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_for_workers_that_its_hub_takes_byte_by_byte_is_ended() {
    /// Pieces after which the command counts as endless.
    const ENDLESS: usize = 10 * STALLED_MAX;
    const BYTES: usize = 3 * PIECE_BYTES;
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    let (file, _) = bundle(folder.path(), BYTES);
    for (more, pieces) in [(1, STALLED_MAX + 1), (BYTES as u64 + 1, 1), (u64::MAX, 1)] {
        let taken = AtomicUsize::new(0);
        let hub = ScriptedNode::start(move |operation, input| match operation {
            "hub/update" if input["offset"].is_u64() => {
                let offset = input["offset"].as_u64().unwrap_or_default();
                match taken.fetch_add(1, Ordering::SeqCst) >= ENDLESS {
                    true => Ok(json!({ "offset": BYTES, "version": "9.9.9" })),
                    false => Ok(json!({ "offset": offset.saturating_add(more) })),
                }
            }
            "hub/update" => Ok(json!({ "offset": 0, "workers": 0 })),
            "hub/update_status" => Ok(json!({
                "bundle": { "version": "9.9.9" }, "rollout": { "state": "done", "workers": [] },
            })),
            _ => Err(not_found()),
        });
        let words = ["--json", "update", "--workers", "@", &file, "--yes"];
        let refused = hub.run(&cli, &words).await;
        assert_eq!(refused.status, FAILED, "{more}: {refused:?}");
        assert_eq!(refused.code(), "PROTOCOL", "{more}: {refused:?}");
        // The first call began the upload.
        assert_eq!(hub.asked_for("hub/update"), pieces + 1, "{more}");
        assert_eq!(hub.asked_for("hub/update_status"), 0, "{more}");
    }
}

/// The attack: a hub answers with more workers than it can have, at the start or in its status.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_more_workers_than_a_hub_has_is_left() {
    /// Most workers of an update.
    const ROWS_MAX: usize = 4096;
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    for (count, rows, code) in [
        (ROWS_MAX, ROWS_MAX, None),
        (ROWS_MAX + 1, 0, Some("INVALID_OUTPUT")),
        (1, ROWS_MAX + 1, Some("INVALID_OUTPUT")),
    ] {
        let row = |n: usize| json!({ "peer": format!("p{n}"), "name": "w", "ring": 1, "state": "confirmed" });
        let workers: Vec<_> = (0..rows).map(row).collect();
        let hub = ScriptedNode::start(move |operation, _| match operation {
            "hub/update" => Ok(json!({ "workers": count })),
            "hub/update_status" => Ok(json!({
                "bundle": { "version": "9.9.9" }, "rollout": { "state": "done", "workers": workers },
            })),
            _ => Err(not_found()),
        });
        let words = ["--json", "update", "--workers", "@", "--yes"];
        let ended = hub.run(&cli, &words).await;
        match code {
            None => assert_eq!(ended.json()["state"], "done", "{count}"),
            Some(code) => assert_eq!(ended.code(), code, "{count}: {}", ended.errors),
        }
    }
}

/// The node has no session after its restart, so that nothing is sent to it again.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_ends_with_the_restart_of_its_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    let (file, _) = bundle(folder.path(), 3 * PIECE_BYTES);
    let node = UploadNode::start(ModelUpload {
        cut: |n, bytes| (n == 1).then_some(bytes),
        restarts: true,
        ..ModelUpload::whole()
    });
    let words = ["update", "@", &file, "--stage"];
    let refused = node.node.run(&cli, &words).await;
    assert_eq!(refused.status, FAILED, "{refused:?}");
    let said = "alknet: CONFLICT: the node forgot the bundle: it restarted, or another one began\n";
    assert_eq!(refused.errors, said);
    assert_eq!(node.upload().pieces.len(), 2);
}

/// The first node is a host, or refuses a piece or the start, and the second one gets no call. The last run, with two
/// good nodes, shows that the second one would get the bundle.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_several_nodes_stops_at_the_first_failure() {
    let bench = TestBench::new();
    let cli = bench.admin();
    let (file, content) = bundle(bench.path(), PIECE_BYTES + 1);
    let host = bench.host();
    let second = UploadNode::start(ModelUpload::whole());
    let refusing = |operation, code| {
        UploadNode::start(ModelUpload {
            refusal: Some((operation, error(code, "the model says no"))),
            ..ModelUpload::whole()
        })
    };
    let (of_piece, of_start) = (
        refusing("update/write", "FORBIDDEN"),
        refusing("update/apply", "CONFLICT"),
    );
    for (first, code, status, why) in [
        (
            host.target().to_owned(),
            "UNAVAILABLE",
            UNREACHABLE,
            "ordinary host",
        ),
        (of_piece.node.target(), "FORBIDDEN", DENIED, "says no"),
        (of_start.node.target(), "CONFLICT", FAILED, "says no"),
    ] {
        let words = ["update", &first, "@", &file, "--yes", "--json"];
        let refused = second.node.run(cli, &words).await;
        assert_eq!(refused.status, status, "{refused:?}");
        assert_eq!(refused.code(), code, "{refused:?}");
        let message = format!("{first}: ");
        for text in [message.as_str(), why] {
            assert!(refused.errors.contains(text), "{text}: {refused:?}");
        }
        let requests = second.node.requests();
        assert!(requests.is_empty(), "{first}: {requests:?}");
    }
    assert!(
        of_start.upload().received == content,
        "it was to be started"
    );

    let first = UploadNode::start(ModelUpload::whole());
    let target = first.node.target();
    let words = ["update", &target, "@", &file, "--stage", "--json"];
    let staged = second.node.run(cli, &words).await;
    assert_eq!(staged.status, 0, "{staged:?}");
    assert_eq!(staged.output.lines().count(), 2, "{staged:?}");
    for node in [&first, &second] {
        assert!(node.upload().received == content, "{staged:?}");
    }
}
