//! The log of a node says nothing of the names of its files, whatever happens to them.

use std::fs;
use std::path::PathBuf;

use alknet_tests::{TestBench, WebNode};
use data_encoding::BASE64;
use serde_json::{Value, json};

/// A part of every name in this test, and of nothing else.
const MARK: &str = "xyzzymark";

/// Records of the log that are read: more than a node keeps.
const RECORDS: u64 = 100_000;

/// Bytes of a file whose content has an object of its own.
const LONG_BYTES: usize = 50_000;

/// The body of a LOCK.
const LOCK: &str = "<D:lockinfo xmlns:D='DAV:'><D:lockscope><D:exclusive/></D:lockscope>\
                    <D:locktype><D:write/></D:locktype></D:lockinfo>";

/// A node at whose files everything goes wrong.
struct MarkedFiles {
    web: WebNode,
    token: String,
}

impl MarkedFiles {
    fn start(bench: &TestBench) -> Self {
        let web = WebNode::start(bench, "[log]\nlevel = \"debug\"\n");
        web.node
            .call("fs/bucket/create", &json!({ "bucket": "docs" }));
        let scopes = json!({ "scopes": ["fs:read:docs", "fs:write:docs"] });
        let made = web.node.call("token/make", &scopes);
        let token = made["token"].as_str().expect("a token").to_owned();
        Self { web, token }
    }

    /// The status of a request for a path in the bucket.
    fn http(&self, path: &str, arguments: &[&str]) -> u16 {
        let path = format!("/fs/docs/{path}");
        self.web.curl_as(&self.token, &path, arguments).status
    }

    fn put(&self, path: &str, content: &str, arguments: &[&str]) -> u16 {
        let put = ["--request", "PUT", "--data-binary", content];
        self.http(path, &[&put[..], arguments].concat())
    }

    /// The code with which an operation is refused.
    fn refusal(&self, operation: &str, input: &Value) -> String {
        let output = self.web.node.try_call(operation, input);
        assert_ne!(output.status, 0, "{output:?}");
        output.code()
    }

    /// The file of a content.
    fn object(&self, hash: &str) -> PathBuf {
        let objects = self.web.node.state().join("state/fs/content/objects");
        objects.join(&hash[..2]).join(hash)
    }

    /// All records of the log that the node keeps.
    fn log(&self, bench: &TestBench) -> Vec<String> {
        let past = json!({ "last": RECORDS });
        let target = self.web.node.target();
        let records = bench.admin().subscribe(target, "node/log", &past);
        records.map(|record| record.to_string()).collect()
    }
}

#[test]
fn the_log_has_no_names_of_files() {
    let bench = TestBench::new();
    let files = MarkedFiles::start(&bench);
    let node = &files.web.node;
    let folder = format!("{MARK}-folder");
    let [file, long] = ["file", "long"].map(|name| format!("{folder}/{MARK}-{name}"));
    let address = |path: &str| format!("docs:/{path}");

    // What goes well.
    assert_eq!(files.http(&folder, &["--request", "MKCOL"]), 201);
    assert_eq!(files.put(&file, "content", &[]), 201);
    assert_eq!(files.put(&long, &"x".repeat(LONG_BYTES), &[]), 201);
    assert_eq!(files.http(&file, &[]), 200);
    let lists = ["--request", "PROPFIND", "--header", "Depth: 1"];
    assert_eq!(files.http(&format!("{folder}/"), &lists), 207);
    let stat = node.call("fs/stat", &json!({ "path": address(&long) }));
    let hash = stat["hash"].as_str().expect("a hash").to_owned();
    let copy = json!({ "path": address(&file), "to": address(&format!("{file}-2")) });
    node.call("fs/copy", &copy);

    // What is refused.
    assert_eq!(files.http(&format!("{folder}/{MARK}-none"), &[]), 404);
    assert_eq!(files.http(&format!("{folder}/../{MARK}"), &[]), 400);
    assert_eq!(
        files.put(&format!("{file}/{MARK}"), "below a file", &[]),
        409
    );
    let other = ["--header", "If-Match: \"b3-00\""];
    assert_eq!(files.put(&file, "another version", &other), 412);
    let dotted = json!({ "path": address(&format!("{folder}/../{MARK}")) });
    assert_eq!(files.refusal("fs/stat", &dotted), "INVALID_PATH");
    let below = address(&format!("{file}/{MARK}"));
    let below = json!({ "path": below, "bytes": BASE64.encode(b"below a file") });
    assert_eq!(files.refusal("fs/put", &below), "NOT_DIR");
    let full = json!({ "path": address(&folder) });
    assert_eq!(files.refusal("fs/delete", &full), "NOT_EMPTY");
    let stale = json!({
        "path": address(&file), "bytes": BASE64.encode(b"another"), "if_match": "0".repeat(64),
    });
    assert_eq!(files.refusal("fs/put", &stale), "CONFLICT");
    let lock = ["--request", "LOCK", "--data-binary", LOCK];
    let kind = ["--header", "Content-Type: application/xml"];
    assert_eq!(files.http(&file, &[&lock[..], &kind].concat()), 200);
    assert_eq!(files.put(&file, "without the token", &[]), 423);

    // What the store fails at: a content that another program changed on the disk.
    let object = files.object(&hash);
    let mut bytes = fs::read(&object).expect("a long content has a file");
    bytes[0] ^= 1;
    fs::remove_file(&object).expect("it is ours");
    fs::write(&object, bytes).expect("room");
    let checks = bench
        .admin()
        .subscribe(node.target(), "fs/scrub", &Value::Null);
    let found = checks.filter(|report| report["damaged"] != json!([]));
    assert_eq!(found.count(), 1, "the check finds the content");
    assert_eq!(files.http(&long, &[]), 500);
    let read = json!({ "path": address(&long) });
    // The command prints the error, and no event.
    let read = bench.admin().subscribe(node.target(), "fs/read", &read);
    let events = read.count();
    assert!(events < 2, "{events} events of a damaged content");
    assert_eq!(files.http(&long, &["--request", "DELETE"]), 204);

    let log = files.log(&bench);
    let has = |part: &str| log.iter().any(|record| record.contains(part));
    // The log has what it is for: the requests, and why the store failed.
    assert!(has("http.request") && has("path=/fs/docs/"), "{log:#?}");
    assert!(has("the store of files failed") && has(&hash), "{log:#?}");
    let named = log.iter().filter(|record| record.contains(MARK));
    let named: Vec<_> = named.collect();
    assert!(named.is_empty(), "{named:#?}");
}
