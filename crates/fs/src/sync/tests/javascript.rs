//! A peer whose document the JavaScript package of automerge has: both sides take in what the other one wrote.
//!
//! The package (npm `@automerge/automerge`) is fetched by `cargo xtask test`, which names its folder in
//! `ALKNET_TEST_AUTOMERGE`; `crates/tasks/sources.toml` pins it. Node comes with the set-up.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use alknet_core::memory_pair;
use alknet_store::{EntryKind, EntryState, HybridTimestamp};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::scene::{MAY_SYNC, SyncNode, hash, hung, identity, serve};
use crate::sync::limits::PART_BYTES_MAX;
use crate::sync::message::{read_message, write_message};
use crate::sync::{
    ByeCode, PROTOCOL_VERSION, SYNC_ALPN, SyncError, SyncHello, SyncMessage, SyncPart, SyncedEntry,
};

/// The time of the nodes of tests.
const NOW_MS: u64 = 1_800_000_000_000;

/// The writer of the document: 24 bytes, as the nodes have them.
const WRITER: [u8; 24] = [0xaa; 24];

/// A document in a process of Node.
struct ScriptDocument {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl ScriptDocument {
    fn start() -> Self {
        let folder = std::env::var_os("ALKNET_TEST_AUTOMERGE")
            .expect("ALKNET_TEST_AUTOMERGE names the package's folder; cargo xtask test sets it");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sync/tests/javascript.cjs");
        let writer: String = WRITER.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut child = Command::new("node")
            .arg(script)
            .arg(folder)
            .arg(writer)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node runs");
        let input = child.stdin.take().expect("a pipe");
        let output = child.stdout.take().expect("a pipe");
        Self {
            child,
            input,
            output: BufReader::new(output),
        }
    }

    /// Asks the script. It answers by itself, without the node, so that the thread may wait.
    fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.input, "{request}").expect("the script reads");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("UTF-8");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{request}: {error} in {line:?}"))
    }

    fn put(&mut self, entries: &[(&str, &SyncedEntry)]) {
        let entries: BTreeMap<_, _> = entries
            .iter()
            .map(|(path, entry)| (*path, STANDARD.encode(entry.encode().expect("valid"))))
            .collect();
        self.ask(&json!({ "do": "put", "entries": entries }));
    }

    /// The versions of each path that the document has, the latest last.
    fn entries(&mut self) -> BTreeMap<String, Vec<SyncedEntry>> {
        let shown = self.ask(&json!({ "do": "show" }));
        let shown: BTreeMap<String, Vec<String>> =
            serde_json::from_value(shown["entries"].clone()).expect("lists of texts");
        let entry = |text: &String| {
            let bytes = STANDARD.decode(text).expect("base64");
            SyncedEntry::decode(&bytes).expect("a value of a node or of the test")
        };
        let shown = shown.into_iter().map(|(path, values)| {
            let mut entries: Vec<_> = values.iter().map(entry).collect();
            entries.sort_by_key(|entry| entry.timestamp);
            (path, entries)
        });
        shown.collect()
    }

    /// Synchronises with a node, on a connection of its own, until both have the same.
    async fn exchange(&mut self, node: &SyncNode) -> Result<(), SyncError> {
        let (here, there) = memory_pair(SYNC_ALPN);
        serve(node, there, Some(identity("script", &[MAY_SYNC])));
        let (mut send, mut recv) = here.open_bi().await.expect("a stream");
        send.write_u8(PROTOCOL_VERSION).await?;
        let hello = SyncHello {
            bucket: "docs".parse().expect("a name"),
            branch: "main".parse().expect("a name"),
            part: SyncPart::Whole,
            heads: Vec::new(),
        };
        write_message(&mut send, &SyncMessage::Hello(hello).encode()?).await?;
        assert_eq!(recv.read_u8().await?, PROTOCOL_VERSION);
        let hello = read_message(&mut recv).await?;
        assert!(matches!(hello, SyncMessage::Hello(_)), "{hello:?}");
        self.ask(&json!({ "do": "reconnect" }));
        loop {
            let next = self.ask(&json!({ "do": "generate" }));
            if let Some(message) = next["message"].as_str() {
                let bytes = STANDARD.decode(message).expect("base64");
                let mut parts = bytes.chunks(PART_BYTES_MAX).peekable();
                while let Some(part) = parts.next() {
                    let is_last = parts.peek().is_none();
                    let bytes = part.to_vec();
                    let part = SyncMessage::Sync { is_last, bytes };
                    write_message(&mut send, &part.encode()?).await?;
                }
            } else if next["equal"] == json!(true) {
                break;
            }
            let mut whole = Vec::new();
            loop {
                match read_message(&mut recv).await? {
                    SyncMessage::Sync { is_last, bytes } => {
                        whole.extend(bytes);
                        if is_last {
                            break;
                        }
                    }
                    SyncMessage::Bye(code) => return Err(SyncError::Ended(code)),
                    other => panic!("{other:?}"),
                }
            }
            self.ask(&json!({ "do": "receive", "message": STANDARD.encode(whole) }));
        }
        let bye = SyncMessage::Bye(ByeCode::Done).encode()?;
        write_message(&mut send, &bye).await?;
        Ok(())
    }

    async fn sync(&mut self, node: &SyncNode) {
        let exchanged = tokio::time::timeout(hung(), self.exchange(node)).await;
        exchanged.expect("in time").expect("a session");
    }
}

impl Drop for ScriptDocument {
    fn drop(&mut self) {
        // It ends with its input too; a failed test must not wait for it.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn entry(kind: EntryKind, number: u64, ms: u64) -> SyncedEntry {
    let is_file = kind == EntryKind::File;
    SyncedEntry {
        state: EntryState {
            kind,
            hash: is_file.then(|| hash(number)),
            size: if is_file { number } else { 0 },
            mode: if is_file { 0o644 } else { 0 },
            mtime_ns: 0,
            target: None,
            xattr: None,
        },
        timestamp: HybridTimestamp::new(ms, 0, [66; 8]),
    }
}

fn file(number: u64, ms: u64) -> SyncedEntry {
    entry(EntryKind::File, number, ms)
}

/// Compares the tree of a node with what the document of the script says of it.
async fn agree(script: &mut ScriptDocument, node: &SyncNode) {
    let tree = node.tree().await;
    let mut files: Vec<_> = tree
        .iter()
        .filter(|(_, row)| row.0 == EntryKind::File)
        .map(|(path, row)| (path.clone(), row.1, row.2))
        .collect();
    let mut latest: Vec<_> = script
        .entries()
        .into_iter()
        .filter_map(|(path, versions)| {
            let state = versions.into_iter().next_back()?.state;
            (state.kind == EntryKind::File).then_some((path, state.hash, state.size))
        })
        .collect();
    files.sort();
    latest.sort();
    assert_eq!(files, latest);
}

#[tokio::test]
async fn a_document_of_the_javascript_package_and_a_node_become_the_same() {
    let node = SyncNode::new("node").await;
    let mut script = ScriptDocument::start();
    node.put("/ours", 1).await;
    node.put("/d/ours", 2).await;
    // More than one change, and in one of them more than a message of a node has in a part.
    script.put(&[("/theirs", &file(3, NOW_MS))]);
    let many: Vec<_> = (0..3000)
        .map(|number| format!("/many/{number:04}"))
        .collect();
    let files: Vec<_> = (0..3000).map(|number| file(100 + number, NOW_MS)).collect();
    let entries: Vec<_> = many.iter().map(String::as_str).zip(&files).collect();
    script.put(&entries);
    script.sync(&node).await;
    agree(&mut script, &node).await;
    let paths = node.paths().await;
    assert!(paths.len() > 3000 && paths.contains(&"/theirs".to_owned()));
    let shown = script.entries();
    assert!(shown.contains_key("/ours") && shown.contains_key("/d/ours"));
    // Changes of both sides after that, over another connection, and after the package has read its own file.
    node.put("/ours", 4).await;
    node.delete("/many/0001").await;
    script.put(&[
        ("/theirs", &file(5, NOW_MS + 1)),
        ("/many/0000", &entry(EntryKind::Deleted, 0, NOW_MS + 1)),
    ]);
    script.ask(&json!({ "do": "reload" }));
    script.sync(&node).await;
    agree(&mut script, &node).await;
    let paths = node.paths().await;
    for gone in ["/many/0000", "/many/0001"] {
        assert!(!paths.contains(&gone.to_owned()), "{gone}");
    }
    assert_eq!(
        node.history("/theirs").await,
        [Some(hash(5)), Some(hash(3))]
    );
    // A third one that never met the script gets all of it from the node.
    let third = SyncNode::new("third").await;
    third.sync(&node).await.expect("a session");
    agree(&mut script, &third).await;
}

#[tokio::test]
async fn versions_of_both_sides_of_one_path_are_kept_and_the_latest_counts() {
    let node = SyncNode::new("node").await;
    let mut script = ScriptDocument::start();
    node.clock.advance(1000);
    node.put("/later-here", 1).await;
    node.put("/later-there", 2).await;
    script.put(&[
        ("/later-here", &file(3, NOW_MS + 500)),
        ("/later-there", &file(4, NOW_MS + 1500)),
    ]);
    script.sync(&node).await;
    agree(&mut script, &node).await;
    let content = |tree: &BTreeMap<_, _>, path: &str| {
        let row: &super::scene::TreeRow = &tree[path];
        row.1
    };
    let tree = node.tree().await;
    assert_eq!(content(&tree, "/later-here"), Some(hash(1)));
    assert_eq!(content(&tree, "/later-there"), Some(hash(4)));
    // The document of the package has both versions of each, and the node those that lost in its history.
    let shown = script.entries();
    for (path, hashes) in [("/later-here", [3, 1]), ("/later-there", [2, 4])] {
        let found: Vec<_> = shown[path].iter().map(|entry| entry.state.hash).collect();
        assert_eq!(found, hashes.map(|number| Some(hash(number))), "{path}");
        let history = node.history(path).await;
        assert!(
            history.contains(&Some(hash(hashes[0]))),
            "{path}: {history:?}"
        );
    }
}
