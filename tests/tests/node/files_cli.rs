//! `alknet fs`: the commands for the files of a node, against a node that runs, a node that is killed, and nodes that
//! break connections and lie.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use alknet_tests::{CliOutput, CliRunner, HostNode, TestBench, binary, eventually};
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::enrolment::EnrolmentNode;
use super::manual_peer::people;
use super::scripted_node::{CUT, ScriptedNode, not_found};

/// Bytes of a piece of an upload.
const PIECE_BYTES: usize = 256 << 10;
/// Exit codes of docs/command-line.md.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const DENIED: i32 = 4;

/// Bytes of which no two pieces are alike.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// Runs `alknet fs` with `--json`.
pub(super) fn run(cli: &CliRunner, words: &[&str]) -> CliOutput {
    cli.run(cli.command(&[&["fs"], words].concat()))
}

/// Runs it as a person does.
pub(super) fn run_plain(cli: &CliRunner, words: &[&str]) -> CliOutput {
    let mut command = Command::new(binary());
    command
        .arg("fs")
        .args(words)
        .arg("--state")
        .arg(cli.state())
        .stdin(Stdio::null());
    cli.run(command)
}

/// A node with the bucket `docs`.
fn host(bench: &TestBench) -> HostNode {
    let node = bench.host();
    let made = run(bench.admin(), &["bucket", "add", node.target(), "docs"]);
    assert_eq!(made.json()["name"], "docs");
    node
}

/// The values that a command printed, one a line.
fn rows(output: &CliOutput) -> Vec<Value> {
    assert_eq!(output.status, 0, "{output:?}");
    let lines = output.output.lines();
    let rows = lines.map(|line| serde_json::from_str(line).expect("JSON"));
    rows.collect()
}

/// Each entry below a folder by its path: the bytes of a file, and whether it can be executed.
fn tree(folder: &Path) -> BTreeMap<String, Option<(Vec<u8>, bool)>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at).expect("a folder") {
            let path = entry.expect("readable").path();
            let name = path.strip_prefix(folder).expect("it is below");
            let name = name.to_str().expect("UTF-8").to_owned();
            let about = fs::symlink_metadata(&path).expect("readable");
            let is_program = about.permissions().mode() & 0o100 != 0;
            let file = about.is_file().then(|| fs::read(&path).expect("readable"));
            found.insert(name, file.map(|bytes| (bytes, is_program)));
            folders.extend(about.is_dir().then_some(path));
        }
    }
    found
}

/// A folder with an empty file, a long one, a program, an empty folder, and names that are hard to write.
fn make_tree(folder: &Path) {
    for made in ["deep/er/est", "empty", "with space"] {
        fs::create_dir_all(folder.join(made)).expect("the folder is ours");
    }
    for (name, bytes) in [
        ("nothing", Vec::new()),
        ("deep/er/est/note.txt", b"hello\n".to_vec()),
        ("deep/large.bin", noise(3 * (1 << 20) + 7)),
        ("deep/limit.bin", noise(512 << 10)),
        ("deep/over.bin", noise((512 << 10) + 1)),
        ("with space/d:e@f#g", b"signs of addresses".to_vec()),
        (
            "with space/\u{e4}\u{65e5}\u{1b}[2J",
            b"a name with an escape".to_vec(),
        ),
        ("run.sh", b"#!/bin/sh\n".to_vec()),
    ] {
        fs::write(folder.join(name), bytes).expect("the folder is ours");
    }
    let program = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder.join("run.sh"), program).expect("it is ours");
}

#[test]
fn a_folder_comes_back_byte_for_byte() {
    let bench = TestBench::new();
    let (admin, node) = (bench.admin(), host(&bench));
    let at = |name: &str| bench.path().join(name);
    let [source, back, into] =
        ["source", "back", "back/empty/"].map(|name| at(name).display().to_string());
    make_tree(&at("source"));
    let put = run(admin, &["put", node.target(), &source, "docs:/a/tree"]);
    assert_eq!(rows(&put).len(), 8, "{put:?}");
    let get = ["get", node.target(), "docs:/a/tree", &back];
    assert_eq!(rows(&run(admin, &get)).len(), 8);
    assert!(
        tree(&at("back")) == tree(&at("source")),
        "the folders differ"
    );
    // Each file has a name of its own until it is whole, and none of these names stays.
    assert!(!tree(&at("back")).keys().any(|name| name.contains(".part")));

    // What is there is written over only if the user says so.
    fs::write(at("back/run.sh"), "mine").expect("it is ours");
    let refused = run(admin, &get);
    assert_eq!((refused.status, &*refused.code()), (USAGE, "USAGE"));
    assert_eq!(fs::read(at("back/run.sh")).ok(), Some(b"mine".to_vec()));
    let forced = run(admin, &[&get[..], &["--force"]].concat());
    assert_eq!(rows(&forced).len(), 8);
    assert!(
        tree(&at("back")) == tree(&at("source")),
        "the folders differ"
    );

    // One file into a folder, under its own name.
    let one = ["get", node.target(), "docs:/a/tree/run.sh", &into];
    assert_eq!(rows(&run(admin, &one)).len(), 1);
    assert_eq!(
        fs::read(at("back/empty/run.sh")).ok(),
        Some(b"#!/bin/sh\n".to_vec())
    );
    // No name of a node acts on the terminal of its reader.
    let listed = run_plain(admin, &["ls", node.target(), "docs:/a/tree", "-r", "-l"]);
    assert_eq!(listed.status, 0, "{listed:?}");
    assert!(listed.output.contains("\\u{1b}[2J") && !listed.output.contains('\u{1b}'));
    let names = listed.output.lines().count();
    assert_eq!(names, tree(&at("source")).len(), "{listed:?}");
}

#[test]
fn a_file_is_printed_as_it_is() {
    let bench = TestBench::new();
    let (admin, node) = (bench.admin(), host(&bench));
    let content = noise(700_000);
    let file = bench.path().join("file");
    fs::write(&file, &content).expect("the folder is ours");
    let file = file.display().to_string();
    let put = run(admin, &["put", node.target(), &file, "docs:/file"]).json();
    let mut cat = Command::new(binary());
    cat.args(["fs", "cat", node.target(), "docs:/file", "--state"]);
    let printed = cat.arg(admin.state()).output().expect("the binary runs");
    assert!(printed.status.success() && printed.stdout == content);
    let value = run(admin, &["cat", node.target(), "docs:/file"]).json();
    assert_eq!(value["hash"], put["hash"]);
    assert_eq!(value["bytes"], BASE64.encode(&content));
    let verified = run(admin, &["verify", node.target(), "docs:/file"]).json();
    assert_eq!(verified["hash"], put["hash"]);
}

/// The command sends from a pipe that stays open, so that the node is killed in the middle of the upload.
#[test]
fn a_put_that_its_node_does_not_outlive_leaves_the_file_as_it_was() {
    let bench = TestBench::new();
    let admin = bench.admin();
    let node = host(&bench);
    let target = node.target().to_owned();
    let before = bench.path().join("before");
    fs::write(&before, "the version of before").expect("the folder is ours");
    let before = before.display().to_string();
    let put = run(admin, &["put", &target, &before, "docs:/file"]);
    assert_eq!(put.status, 0, "{put:?}");

    let mut command = admin.command(&["fs", "put", &target, "-", "docs:/file"]);
    // The end of a process ends its TCP connections at once.
    command
        .args(["--carriage", "tcp"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut upload = command.spawn().expect("the binary runs");
    let mut source = upload.stdin.take().expect("it was asked for above");
    let written = source.write_all(&noise(40 * PIECE_BYTES));
    written.expect("the command reads");
    eventually("the node has a part of the upload", || {
        let usage = node.call("fs/bucket/usage", &json!({ "bucket": "docs" }));
        let staged = usage["staged"].as_u64().unwrap_or_default();
        (staged > 0).then_some(())
    });
    let port = target.rsplit_once(':').expect("a port").1;
    let port = port.parse().expect("a number");
    // The node gets SIGKILL.
    drop(node);
    let node = bench.host_at(port, "");
    drop(source);
    let ended = upload.wait_with_output().expect("it is our child");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(FAILED), "{said}");
    assert!(said.contains("as before: put it again"), "{said}");
    let now = run_plain(admin, &["cat", node.target(), "docs:/file"]);
    assert_eq!(now.output, "the version of before");
    let usage = node.call("fs/bucket/usage", &json!({ "bucket": "docs" }));
    assert_eq!(usage["staged"], 0, "{usage}");
}

/// What a model node has of an upload.
#[derive(Default)]
struct ModelFile {
    pieces: BTreeMap<u64, Vec<u8>>,
    requests: usize,
    opened: usize,
    closed: usize,
}

impl ModelFile {
    /// Breaks every fifth request off: of a piece after it was stored or before, of a close after it was made.
    fn answer(&mut self, operation: &str, input: &Value, hash: &str) -> Result<Value, Value> {
        self.requests += 1;
        let is_cut = self.requests.is_multiple_of(5);
        match operation {
            "fs/write/open" => {
                self.opened += 1;
                Ok(json!({ "session": "00112233445566778899aabbccddeeff" }))
            }
            "fs/write/chunk" => {
                let offset = input["offset"].as_u64().unwrap_or_default();
                let bytes = input["bytes"].as_str().unwrap_or_default();
                let piece = BASE64.decode(bytes.as_bytes()).unwrap_or_default();
                let is_stored = !is_cut || self.requests.is_multiple_of(2);
                if is_stored {
                    self.pieces.insert(offset, piece);
                }
                if is_cut { Err(CUT) } else { Ok(json!({})) }
            }
            "fs/write/close" => {
                self.closed += 1;
                let bytes: usize = self.pieces.values().map(Vec::len).sum();
                match self.closed {
                    // The first answer is lost with its connection.
                    1 => Err(CUT),
                    _ => Ok(json!({ "hash": hash, "bytes": bytes, "seq": 1 })),
                }
            }
            _ => Err(not_found()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_goes_on_after_each_broken_connection() {
    let bench = TestBench::new();
    let content = noise(10 * PIECE_BYTES - 3);
    let file = bench.path().join("large");
    fs::write(&file, &content).expect("the folder is ours");
    let file = file.display().to_string();
    // A real node says what the hash of the content is.
    let hash = tokio::task::block_in_place(|| {
        let node = host(&bench);
        let put = run(bench.admin(), &["put", node.target(), &file, "docs:/large"]);
        put.json()["hash"].as_str().expect("a hash").to_owned()
    });
    let model = Arc::new(Mutex::new(ModelFile::default()));
    let (answering, known) = (Arc::clone(&model), hash.clone());
    let node = ScriptedNode::start(move |operation, input| {
        let mut model = answering.lock().unwrap_or_else(PoisonError::into_inner);
        model.answer(operation, input, &known)
    });
    let words = ["--json", "fs", "put", "@", &file, "docs:/large"];
    let put = node.run(bench.admin(), &words).await.json();
    assert_eq!(put["hash"], *hash);
    let model = model.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(
        model.pieces.values().flatten().eq(&content),
        "other bytes arrived"
    );
    assert_eq!((model.opened, model.closed), (1, 2));
}

#[test]
fn a_put_of_an_old_version_is_refused() {
    let bench = TestBench::new();
    let (admin, node) = (bench.admin(), host(&bench));
    let file = bench.path().join("file");
    let put = |content: &str, more: &[&str]| {
        fs::write(&file, content).expect("the folder is ours");
        let file = file.display().to_string();
        let words = ["put", node.target(), &file, "docs:/file"];
        (
            run(admin, &[&words[..], more].concat()),
            run_plain(admin, &[&words[..], more].concat()),
        )
    };
    let (first, _) = put("first", &[]);
    let first = first.json()["hash"].as_str().expect("a hash").to_owned();
    let (second, _) = put("second", &[]);
    let second = second.json()["hash"].as_str().expect("a hash").to_owned();
    let (refused, plain) = put("third", &["--if-match", &first]);
    assert_eq!((refused.status, &*refused.code()), (FAILED, "CONFLICT"));
    assert_eq!(plain.status, FAILED);
    let said = format!("its hash is {second} now, and nothing was changed");
    assert!(plain.errors.contains(&said), "{plain:?}");
    assert_eq!(plain.errors.lines().count(), 1, "{plain:?}");
    let now = run_plain(admin, &["cat", node.target(), "docs:/file"]);
    assert_eq!(now.output, "second");
    let (refused, _) = put("third", &["--if-absent"]);
    assert_eq!(refused.code(), "CONFLICT");
    let (wrong, _) = put("third", &["--if-match", "0123"]);
    assert_eq!((wrong.status, &*wrong.code()), (USAGE, "USAGE"));
    // The first of these two makes the present version another one.
    let (stored, refused) = put("third", &["--if-match", &second]);
    assert_eq!((stored.status, refused.status), (0, FAILED), "{refused:?}");
}

#[test]
fn an_error_says_what_is_missing() {
    let bench = TestBench::new();
    let (admin, node) = (bench.admin(), host(&bench));
    let input = json!({ "path": "docs:/folder/file", "bytes": "aGVsbG8K" });
    node.call("fs/put", &input);
    let target = node.target();
    let file = bench.path().join("file");
    fs::write(&file, "x").expect("the folder is ours");
    let file = file.display().to_string();
    for (words, status, code, said) in [
        (
            &["cat", target, "docs:/gone"][..],
            FAILED,
            "NOT_FOUND",
            "docs:/gone: the entry does not exist; 'alknet fs ls' lists",
        ),
        (
            &["cat", target, "docs:/folder"],
            FAILED,
            "IS_DIR",
            "'alknet fs get' fetches a directory",
        ),
        (
            &["rm", target, "docs:/folder"],
            FAILED,
            "NOT_EMPTY",
            "--recursive deletes everything below it",
        ),
        (
            &["put", target, &file, "docs#1:/file"],
            FAILED,
            "READ_ONLY",
            "docs#1:/file: ",
        ),
        (
            &["ls", target, "docs@gone:/"],
            FAILED,
            "NOT_FOUND",
            "'alknet fs branch list' lists",
        ),
        (
            &["cat", target, "folder/file"],
            USAGE,
            "USAGE",
            "is no address",
        ),
        (
            &["mv", target, "docs:/a", "docs@b:/a"],
            USAGE,
            "USAGE",
            "not on one branch",
        ),
        (
            &["bucket", "remove", target, "docs"],
            USAGE,
            "USAGE",
            "give --yes",
        ),
        (
            &["bucket", "show", target, "gone"],
            FAILED,
            "NOT_FOUND",
            "gone: the bucket does not exist",
        ),
    ] {
        let refused = run(admin, words);
        let plain = run_plain(admin, words);
        assert_eq!(
            (refused.status, &*refused.code()),
            (status, code),
            "{refused:?}"
        );
        assert_eq!(plain.errors.lines().count(), 1, "{plain:?}");
        assert!(plain.errors.contains(said), "{plain:?}");
    }
    // A file is listed as itself.
    let listed = run_plain(admin, &["ls", target, "docs:/folder/file"]);
    assert_eq!(listed.output, "file\n", "{listed:?}");
    let removed = run(admin, &["rm", target, "docs:/folder", "--recursive"]);
    assert_eq!(removed.status, 0, "{removed:?}");
    let listed = run(admin, &["ls", target, "docs:/"]).json();
    assert_eq!(listed["entries"], json!([]));
}

/// The answer is that for a bucket that does not exist.
#[test]
fn a_bucket_without_a_scope_is_no_bucket() {
    let bench = TestBench::new();
    let [ada, eve] = ["ada", "eve"].map(|name| bench.user(name));
    let config = people([
        ("ada", &ada, &["fs:read:docs"][..]),
        ("eve", &eve, &["node:read"]),
    ]);
    let node = EnrolmentNode::start(&bench, "node", &config, "0");
    let target = node.target.as_str();
    let made = run(bench.admin(), &["bucket", "add", target, "docs"]);
    assert_eq!(made.status, 0, "{made:?}");
    let file = bench.path().join("file");
    fs::write(&file, "x").expect("the folder is ours");
    let file = file.display().to_string();
    for verb in [
        &["ls", target, "BUCKET:/"][..],
        &["cat", target, "BUCKET:/a"],
        &["get", target, "BUCKET:/a", "./out"],
        &["put", target, &file, "BUCKET:/a"],
        &["rm", target, "BUCKET:/a"],
        &["quota", target, "BUCKET"],
        &["branch", "list", target, "BUCKET"],
        &["bucket", "show", target, "BUCKET"],
    ] {
        let [hidden, absent] = ["docs", "none"].map(|bucket| {
            let words: Vec<_> = verb
                .iter()
                .map(|word| word.replace("BUCKET", bucket))
                .collect();
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            let refused = run_plain(&eve, &words);
            (refused.status, refused.errors.replace(bucket, "BUCKET"))
        });
        assert_eq!(hidden, absent, "{verb:?}");
        assert_eq!(hidden.0, FAILED, "{verb:?}: {}", hidden.1);
        assert!(
            hidden.1.contains("the bucket does not exist"),
            "{}",
            hidden.1
        );
    }
    let listed = run(&eve, &["ls", target]).json();
    assert_eq!(listed["buckets"], json!([]));
    let listed = run(&ada, &["ls", target]).json();
    assert_eq!(listed["buckets"][0]["name"], "docs");
    let refused = run_plain(&ada, &["put", target, &file, "docs:/a"]);
    assert_eq!(refused.status, DENIED, "{refused:?}");
    assert!(
        refused.errors.contains("the scope 'fs:write:docs'"),
        "{refused:?}"
    );
    let unknown = run(&bench.user("unknown"), &["ls", target, "docs:/"]);
    assert_eq!(
        (unknown.status, &*unknown.code()),
        (DENIED, "UNAUTHENTICATED")
    );
}

/// A node that names entries outside of the directory, and a link in the folder of the user.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_lying_node_names_stays_in_the_folder() {
    let bench = TestBench::new();
    let at = |name: &str| bench.path().join(name);
    for made in ["in", "out"] {
        fs::create_dir(at(made)).expect("the folder is ours");
    }
    std::os::unix::fs::symlink(at("out"), at("in/link")).expect("the folder is ours");
    let folder = at("in").display().to_string();
    for (path, code) in [
        ("/dir/../../evil", "PROTOCOL"),
        ("/dir/..", "PROTOCOL"),
        ("/dir//evil", "PROTOCOL"),
        ("/dir/a\u{0}b", "PROTOCOL"),
        ("/evil", "PROTOCOL"),
        ("evil", "PROTOCOL"),
        ("/dir/link/evil", "USAGE"),
    ] {
        let node = ScriptedNode::start(move |operation, _| match operation {
            "fs/stat" => {
                Ok(json!({ "path": "/dir", "kind": "directory", "mode": 0, "mtime_ms": 0 }))
            }
            "fs/list" => Ok(json!({ "entries": [{
                "path": path, "kind": "file", "hash": "ab".repeat(32), "size": 5, "mode": 0o755,
                "mtime_ms": 0,
            }] })),
            _ => Err(not_found()),
        });
        // What is in the directory goes into the folder in which the link lies.
        let words = ["--json", "fs", "get", "@", "docs:/dir", &folder];
        let refused = node.run(bench.admin(), &words).await;
        assert_eq!(refused.code(), code, "{path:?}: {refused:?}");
        assert_eq!(node.asked_for("fs/read"), 0, "{path:?}");
        let left = tree(&at("in"));
        assert_eq!(left.keys().collect::<Vec<_>>(), ["link"], "{path:?}");
        assert!(tree(&at("out")).is_empty(), "{path:?}");
    }
    assert!(!at("evil").exists());
}

/// The list has new entries on every page, or the same ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_goes_round_is_ended() {
    let bench = TestBench::new();
    let node = ScriptedNode::start(|operation, _| match operation {
        "fs/list" => Ok(json!({ "entries": [], "next": "/a" })),
        _ => Err(not_found()),
    });
    let words = ["--json", "fs", "ls", "@", "docs:/"];
    let ended = node.run(bench.admin(), &words).await;
    assert_eq!(ended.code(), "INVALID_OUTPUT", "{ended:?}");
    assert_eq!(node.asked_for("fs/list"), 2);
}
