//! The files that a node keeps for its callers, over restarts and damage, and with curl.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use alknet_call::{ALPN, CallClient};
use alknet_core::Carriage;
use alknet_endpoint::{EndpointDialer, Target};
use alknet_test_support::deadline;
use alknet_tests::{CliOutput, CliRunner, Curl, TestBench, WebNode, eventually, health};
use alknet_tls::NodeKey;
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::enrolment::EnrolmentNode;
use super::manual_peer::people;

/// Where SQLite has the `user_version` of a file: four bytes, the highest first.
const USER_VERSION_AT: u64 = 60;
/// A version of a program of years to come.
const LATER_VERSION: u32 = 99;
/// Bytes of a download that is longer than what lies in the buffers between a node and its client.
const DOWNLOAD_BYTES: usize = 64 << 20;

/// A node that the test can stop, on this configuration. It has the same state at each start.
fn start(bench: &TestBench, config: &str) -> EnrolmentNode {
    EnrolmentNode::start(bench, "node", config, "0")
}

/// The file of names of that node.
fn names_file(bench: &TestBench) -> PathBuf {
    bench.user("node").state().join("state/fs/fs.db")
}

/// The file beside it with this suffix.
fn beside(names: &Path, suffix: &str) -> PathBuf {
    let mut name = names.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn ask(who: &CliRunner, node: &EnrolmentNode, operation: &str, input: &Value) -> CliOutput {
    who.call(&node.target, operation, input, &[])
}

/// The output of an operation.
fn call(who: &CliRunner, node: &EnrolmentNode, operation: &str, input: &Value) -> Value {
    ask(who, node, operation, input).json()
}

/// Code and message of an operation's error.
fn refusal(
    who: &CliRunner,
    node: &EnrolmentNode,
    operation: &str,
    input: &Value,
) -> (String, String) {
    let output = ask(who, node, operation, input);
    let error: Value = serde_json::from_str(output.errors.trim()).unwrap_or_default();
    let message = error
        .pointer("/error/message")
        .or_else(|| error.get("message"));
    let message = message.and_then(Value::as_str).unwrap_or_default();
    (output.code(), message.to_owned())
}

/// Makes a bucket `docs`.
fn make_bucket(who: &CliRunner, node: &EnrolmentNode) {
    let made = call(who, node, "fs/bucket/create", &json!({ "bucket": "docs" }));
    assert_eq!(made["name"], "docs", "{made}");
}

/// Puts a content, and returns its hash.
fn put(who: &CliRunner, node: &EnrolmentNode, path: &str, content: &str) -> String {
    let input = json!({ "path": path, "bytes": BASE64.encode(content.as_bytes()) });
    let stored = call(who, node, "fs/put", &input);
    stored["hash"].as_str().expect("a hash").to_owned()
}

/// The paths of a listing.
fn paths(who: &CliRunner, node: &EnrolmentNode, directory: &str) -> Vec<String> {
    let input = json!({ "path": directory, "recursive": true });
    let listed = call(who, node, "fs/list", &input);
    let entries = listed["entries"].as_array().expect("a list").iter();
    let path = |entry: &Value| entry["path"].as_str().map(str::to_owned);
    entries.filter_map(path).collect()
}

/// The content of a file, as a program with the library reads it.
async fn read(who: &CliRunner, node: &EnrolmentNode, path: &str) -> String {
    let (key, _) = NodeKey::load_or_create(&who.state().join("identity.key")).expect("a key");
    let target: Target = node.target.parse().expect("the node's own target");
    let reading = async {
        let dialer = EndpointDialer::new(Some(key));
        let dialled = dialer.dial_over(Carriage::Both, &target, ALPN).await;
        let client = CallClient::without_operations().attach(dialled.expect("it is known"), None);
        let begun = client.subscribe("fs/read", &json!({ "path": path })).await;
        let mut items = begun.expect("it may read");
        let mut content = Vec::new();
        while let Some(item) = items.next().await {
            let item = item.expect("the next bytes");
            let bytes = &item.output.value()["bytes"];
            match item.output.binary(bytes) {
                Some(data) => content.extend(data),
                // The first item has none.
                None => {
                    let text = bytes.as_str().unwrap_or_default();
                    content.extend(BASE64.decode(text.as_bytes()).expect("base64"));
                }
            }
        }
        content
    };
    let content = tokio::time::timeout(deadline(Duration::from_secs(60)), reading).await;
    String::from_utf8(content.expect("it hangs")).expect("text")
}

/// Codes of the node's problems.
fn problems(who: &CliRunner, node: &EnrolmentNode) -> Vec<String> {
    let info = call(who, node, "node/info", &Value::Null);
    let rows = info["problems"].as_array().expect("a list").iter();
    let code = |row: &Value| row["code"].as_str().map(str::to_owned);
    rows.filter_map(code).collect()
}

/// Waits for a problem: the node opens the store in the background.
fn wait_for_problem(who: &CliRunner, node: &EnrolmentNode, code: &str) {
    eventually("the problem is listed", || {
        let known = problems(who, node);
        known.iter().any(|one| one == code).then_some(())
    });
}

/// What does not depend on files works, and no file is served.
fn serves_all_but_files(who: &CliRunner, node: &EnrolmentNode, problem: &str) {
    wait_for_problem(who, node, problem);
    let stat = json!({ "path": "docs:/a" });
    let (code, message) = refusal(who, node, "fs/stat", &stat);
    assert_eq!(code, "UNAVAILABLE");
    assert!(!message.contains("fs.db"), "{message}");
    let made = call(who, node, "token/make", &json!({ "scopes": ["node:read"] }));
    assert!(made["token"].is_string(), "{made}");
    let told = health(&node.target);
    assert_eq!(told.status, 503);
    assert!(told.text().contains(problem), "{}", told.text());
}

/// A watcher that was away over the restart gets each event that it has not seen, and none twice.
#[tokio::test(flavor = "multi_thread")]
async fn files_and_the_cursor_of_a_watch_outlive_a_restart() {
    let bench = TestBench::new();
    let (admin, names) = (bench.admin(), names_file(&bench));
    let node = start(&bench, "");
    assert!(!names.exists(), "nothing is made before the first use");
    make_bucket(admin, &node);
    let mut watch = json!({ "path": "docs:/", "topics": ["fs.put"] });
    let mut events = admin.subscribe(&node.target, "fs/watch", &watch);
    let begins = events.next().expect("where it begins");
    assert_eq!(begins["topic"], "watch.begin", "{begins}");
    let first = put(admin, &node, "docs:/a/one", "first");
    let seen = events.next().expect("an event");
    assert_eq!(
        (&seen["path"], &seen["hash"]),
        (&json!("/a/one"), &json!(first))
    );

    let draft = json!({ "bucket": "docs", "name": "draft" });
    call(admin, &node, "fs/branch/create", &draft);
    put(admin, &node, "docs@draft:/a/two", "second");
    put(admin, &node, "docs:/a/three", "third");
    assert_eq!(paths(admin, &node, "docs:/"), ["/a", "/a/one", "/a/three"]);
    assert_eq!(
        paths(admin, &node, "docs@draft:/"),
        ["/a", "/a/one", "/a/two"]
    );
    // The open subscription does not keep the node from closing the store in order.
    assert_eq!(node.stop(), Some(0));
    drop(events);
    assert!(names.exists() && !beside(&names, "-wal").exists());

    let node = start(&bench, "");
    assert_eq!(read(admin, &node, "docs:/a/one").await, "first");
    assert_eq!(read(admin, &node, "docs@draft:/a/two").await, "second");
    put(admin, &node, "docs:/a/four", "fourth");
    watch["cursor"] = seen["id"].clone();
    let mut events = admin.subscribe(&node.target, "fs/watch", &watch);
    assert_eq!(events.next().expect("where it begins")["id"], seen["id"]);
    let next = [0, 1].map(|_| events.next().expect("an event")["path"].clone());
    assert_eq!(next, [json!("/a/three"), json!("/a/four")]);
    assert!(problems(admin, &node).is_empty());
}

/// A bucket looks to a caller without a scope for it as one that does not exist.
#[test]
fn a_caller_without_a_scope_sees_no_bucket() {
    let bench = TestBench::new();
    let [ada, eve, unknown] = ["ada", "eve", "unknown"].map(|name| bench.user(name));
    let config = people([
        ("ada", &ada, &["fs:read:docs"][..]),
        ("eve", &eve, &["node:read"]),
    ]);
    let node = start(&bench, &config);
    make_bucket(bench.admin(), &node);
    put(bench.admin(), &node, "docs:/a", "secret");
    let stat = |path: &str| json!({ "path": path });
    let list = |who: &CliRunner| {
        let listed = call(who, &node, "fs/bucket/list", &Value::Null);
        let rows = listed["buckets"].as_array().expect("a list").iter();
        rows.map(|row| row["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(call(&ada, &node, "fs/stat", &stat("docs:/a"))["size"], 6);
    assert_eq!(list(&ada), ["docs"]);
    let write = json!({ "path": "docs:/a", "bytes": "" });
    assert_eq!(refusal(&ada, &node, "fs/put", &write).0, "FORBIDDEN");

    assert!(list(&eve).is_empty());
    for operation in ["fs/stat", "fs/list", "fs/history"] {
        let hidden = refusal(&eve, &node, operation, &stat("docs:/a"));
        assert_eq!(hidden.0, "NOT_FOUND", "{operation}");
        let absent = refusal(&eve, &node, operation, &stat("none:/a"));
        assert_eq!(hidden, absent, "{operation}");
    }
    assert_eq!(refusal(&eve, &node, "fs/put", &write).0, "NOT_FOUND");
    let refused = refusal(&unknown, &node, "fs/stat", &stat("docs:/a"));
    assert_eq!(refused.0, "UNAUTHENTICATED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_of_names_stops_the_files_alone_and_is_repaired() {
    let bench = TestBench::new();
    let (admin, names) = (bench.admin(), names_file(&bench));
    let node = start(&bench, "");
    make_bucket(admin, &node);
    // One that lies in the file of names, and one that has a file of its own.
    let long = "kept ".repeat(10_000);
    put(admin, &node, "docs:/a", "kept");
    put(admin, &node, "docs:/long", &long);
    // The node makes one copy a day, and may have made it when there was no bucket yet.
    let copied = call(admin, &node, "fs/backup", &Value::Null);
    let day = copied["day"].as_str().expect("a day");
    let copy = beside(&names, &format!(".copy-{day}"));
    fs::remove_file(&copy).expect("it is there");
    call(admin, &node, "fs/backup", &Value::Null);
    assert!(copy.exists());
    assert_eq!(node.stop(), Some(0));
    let file = OpenOptions::new().write(true).open(&names);
    let file = file.expect("it is there");
    file.write_all_at(&[0xff; 4096], 0).expect("it is ours");

    let node = start(&bench, "");
    serves_all_but_files(admin, &node, "files-damaged");
    assert!(beside(&names, ".damaged-1").exists() && !names.exists());
    let repaired = call(admin, &node, "fs/repair", &Value::Null);
    assert_eq!(repaired["copy"], day, "{repaired}");
    assert_eq!(read(admin, &node, "docs:/a").await, "kept");
    assert!(read(admin, &node, "docs:/long").await == long);
    let known = problems(admin, &node);
    assert!(!known.iter().any(|one| one == "files-damaged"), "{known:?}");
    assert_eq!(health(&node.target).status, 200);
    // From here on contents go that no name leads to; those with a name stay.
    for words in [
        &["fs", "repair", &node.target, "--release-sweep"][..],
        &["fs", "gc", &node.target],
    ] {
        let output = admin.run(admin.command(words));
        assert_eq!(output.status, 0, "{output:?}");
    }
    let kept = call(admin, &node, "fs/stat", &json!({ "path": "docs:/a" }));
    assert_eq!(kept["size"], 4, "{kept}");
}

#[test]
fn a_file_of_a_newer_program_stays_as_it_is() {
    let bench = TestBench::new();
    let (admin, names) = (bench.admin(), names_file(&bench));
    let node = start(&bench, "");
    make_bucket(admin, &node);
    assert_eq!(node.stop(), Some(0));
    let file = OpenOptions::new().write(true).open(&names);
    let file = file.expect("it is there");
    let written = file.write_all_at(&LATER_VERSION.to_be_bytes(), USER_VERSION_AT);
    written.expect("it is ours");
    let before = fs::read(&names).expect("it is there");

    let node = start(&bench, "");
    serves_all_but_files(admin, &node, "files-newer");
    assert_eq!(node.stop(), Some(0));
    assert!(fs::read(&names).expect("it is there") == before);
    assert!(!beside(&names, ".damaged-1").exists());
}

/// The node dials its peer over QUIC, and proves the key with which the peer shared the content.
#[test]
fn a_node_finds_a_content_that_a_peer_shares_with_its_key() {
    let bench = TestBench::new();
    let admin = bench.admin();
    let giver = EnrolmentNode::start(&bench, "giver", "", "0");
    let (key, address) = giver.target.split_once('@').expect("a pinned target");
    let config = format!(
        "[[peers]]\npeer_id = \"giver\"\nkeys = [\"{key}\"]\naddresses = [\"{address}\"]\n"
    );
    let taker = EnrolmentNode::start(&bench, "taker", &config, "0");
    // Longer than what lies in the file of names.
    let content = "x".repeat(20_000);
    let [hash, same] = [&giver, &taker].map(|node| {
        make_bucket(admin, node);
        put(admin, node, "docs:/a", &content)
    });
    assert_eq!(hash, same);
    let providers = || {
        let asked = json!({ "hash": hash });
        call(admin, &taker, "fs/blob/providers", &asked)["providers"].clone()
    };
    let unreachable = json!([{ "peer": "giver", "status": "unreachable" }]);
    assert_eq!(providers(), unreachable, "the peer has no place for it");
    let share = json!({ "bucket": "docs", "hash": hash, "key": taker.key() });
    let shared = call(admin, &giver, "fs/share", &share);
    let has_all = json!([{ "peer": "giver", "status": "complete", "size": 20_000 }]);
    assert_eq!(providers(), has_all);
    let ended = json!({ "bucket": "docs", "share": shared["share"] });
    call(admin, &giver, "fs/share/revoke", &ended);
    assert_eq!(providers(), unreachable);
}

/// A script acts with the rights of its caller.
#[test]
fn a_script_lists_what_its_caller_may_read() {
    let bench = TestBench::new();
    let [ada, eve] = ["ada", "eve"].map(|name| bench.user(name));
    let config = people([
        ("ada", &ada, &["fs:read:docs", "runtime:debug"][..]),
        ("eve", &eve, &["runtime:debug"]),
    ]);
    let node = start(&bench, &config);
    make_bucket(bench.admin(), &node);
    put(bench.admin(), &node, "docs:/a", "x");
    let source = "let told;
        try {
            const { entries } = await ops.call('fs/list', { path: 'docs:/' });
            told = entries.map((entry) => entry.path);
        } catch (error) {
            told = error.code;
        }
        export default told;";
    let run = |who: &CliRunner| {
        let ran = call(who, &node, "runtime/eval", &json!({ "source": source }));
        ran["value"].clone()
    };
    assert_eq!(run(&ada), json!(["/a"]));
    assert_eq!(run(&eve), json!("NOT_FOUND"));
}

#[test]
fn curl_stores_and_fetches_with_a_token() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let bucket = json!({ "bucket": "docs" });
    web.node.call("fs/bucket/create", &bucket);
    let token = |scopes: &[&str]| {
        let made = web.node.call("token/make", &json!({ "scopes": scopes }));
        made["token"].as_str().expect("a token").to_owned()
    };
    let writer = token(&["fs:read:docs", "fs:write:docs"]);
    let reader = token(&["fs:read:docs"]);
    let (path, content) = ("/fs/docs/report.txt", "by curl");
    let put = |token: &str| {
        let arguments = ["--request", "PUT", "--data-binary", content];
        web.curl_as(token, path, &arguments)
    };
    let stored = put(&writer);
    assert_eq!(stored.status, 201, "{}", stored.text());
    let stat = json!({ "path": "docs:/report.txt" });
    let stat = web.node.call("fs/stat", &stat);
    let tag = format!("\"b3-{}\"", stat["hash"].as_str().expect("a hash"));
    assert_eq!(stored.header("etag"), Some(&*tag));
    let fetched = web.curl_as(&reader, path, &[]);
    assert_eq!((fetched.status, &*fetched.text()), (200, content));
    assert_eq!(fetched.header("etag"), Some(&*tag));
    let other = ["--request", "PUT", "--data-binary", "x", "--header"];
    let other = [&other[..], &["If-Match: \"b3-00\""]].concat();
    let refused = web.curl_as(&writer, path, &other);
    assert_eq!((refused.status, refused.header("etag")), (412, Some(&*tag)));
    // As a client sends it that knows no tokens.
    let basic = web.curl(path, &["--user", &format!("me:{reader}")]);
    assert_eq!((basic.status, &*basic.text()), (200, content));
    assert_eq!(put(&reader).status, 403);
    // This token has a scope, and none of files.
    assert_eq!(web.curl_as(&web.reader, path, &[]).status, 404);
    let unknown = web.curl(path, &[]);
    assert_eq!(unknown.status, 401);
    assert!(unknown.header("www-authenticate").is_some());
}

/// The client reads slowly, and has a part of the file when an administrator revokes its token.
#[test]
fn a_download_ends_with_its_token() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    web.node
        .call("fs/bucket/create", &json!({ "bucket": "docs" }));
    let scopes = json!({ "scopes": ["fs:read:docs", "fs:write:docs"] });
    let made = web.node.call("token/make", &scopes);
    let token = made["token"].as_str().expect("a token");
    let (local, copy) = (bench.path().join("local"), bench.path().join("copy"));
    fs::write(&local, vec![7_u8; DOWNLOAD_BYTES]).expect("room");
    let path = "/fs/docs/a";
    let upload = ["--upload-file", local.to_str().expect("UTF-8")];
    assert_eq!(web.curl_as(token, path, &upload).status, 201);
    let (url, bearer) = (web.url(path), format!("Authorization: Bearer {token}"));
    let slowly = ["--http1.1", "--limit-rate", "4M", "--max-time", "120"];
    let output = ["--output", copy.to_str().expect("UTF-8")];
    let fixed = ["--silent", "--insecure", "--header", &bearer, "--url", &url];
    let all = [&slowly[..], &output, &fixed].concat();
    let mut curl = Curl::new(&all).start(Stdio::null());
    let length = || fs::metadata(&copy).map_or(0, |about| about.len());
    eventually("the download has begun", || (length() > 0).then_some(()));
    let revoke = json!({ "key_id": made["key_id"] });
    web.node.call("token/revoke", &revoke);
    let ended = curl.wait().expect("it is our child");
    // Not a clean end either: the client has to know that a part is missing.
    assert!(!ended.success(), "curl takes the part for the whole file");
    assert!(length() < DOWNLOAD_BYTES as u64);
    assert_eq!(web.curl_as(token, path, &[]).status, 401);
}
