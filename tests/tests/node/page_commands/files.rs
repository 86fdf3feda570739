//! The commands of docs/files.md, in the order of the page.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use alknet_tests::HostNode;
use alknet_tests::tools::variable;
use serde_json::{Value, json};

use super::{ReferencePage, address};

const FILES: &str = include_str!("../../../../docs/files.md");

/// Prints the hash of the file as the node has it.
const PRESENT_HASH: &str = "--if-match \"$(alknet fs ls attic docs:/2026/report.txt --json | \
                            python3 -c 'import json, sys; print(json.load(sys.stdin)[\"entries\"][0][\"hash\"])')\"";

/// Prints the share of the page as `remove` takes it.
const PRESENT_SHARE: &str = "\"$(alknet fs share list attic docs | cut -d ' ' -f 1)\"";

/// Makes a certificate for this computer, which rclone trusts.
const CERTIFICATE: &str = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 9 \
                           -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout key.pem -out chain.pem";

/// The first command with rclone.
const RCLONE: &str = "rclone config create";

/// A node with that certificate, and rclone.
fn prepare(page: &mut ReferencePage) -> HostNode {
    page.shell("reader", CERTIFICATE, "");
    let [chain, key] = ["chain.pem", "key.pem"].map(|file| page.work(file).display().to_string());
    let config = format!("[[tls.files]]\nchain = \"{chain}\"\nkey = \"{key}\"\n");
    let node = page.node_with("node", &config);
    let rclone = Path::new(&variable("ALKNET_TEST_WEBDAV")).join("rclone");
    let link = page.bench.path().join("bin/rclone");
    symlink(rclone, link).expect("the folder is ours");
    page.put(RCLONE, format!("export RCLONE_CA_CERT=chain.pem; {RCLONE}"));
    let (_, port) = address(&node).rsplit_once(':').expect("a port");
    let at = format!("https://localhost:{port}/");
    page.put("https://edge.example.org/", at);
    node
}

#[test]
fn the_commands_of_the_page_of_files_work() {
    let mut page = ReferencePage::open(FILES);
    let node = prepare(&mut page);
    let target = node.target();
    page.put("--if-match HASH", PRESENT_HASH);
    page.put("https://192.0.2.7/", format!("https://{}/", address(&node)));
    let guest = page.user("guest").identity();
    page.put("--key ed25519:…", format!("--key {guest}"));
    page.put("docs:SHARE", PRESENT_SHARE);
    page.put("curl …", "curl --fail --insecure --header @node.header");
    page.save_token(&node, "fs:read:docs' --scope 'fs:write:docs");
    let header = fs::read_to_string(page.work("node.header")).expect("it was written");
    page.save("token", header.trim_start_matches("Authorization: Bearer "));
    page.shell("reader", &format!("alknet node add attic {target}"), "");
    page.save("report.txt", "first\n");
    fs::create_dir(page.work("photos")).expect("the folder is ours");
    page.save("photos/a.jpg", "a picture");

    let said = page.follow();
    assert!(said.contains("first\n"), "{said}");
    let copy = fs::read(page.work("copy/a.jpg"));
    assert_eq!(copy.ok(), Some(b"a picture".to_vec()));

    let paths = || {
        let listed = node.call("fs/list", &json!({ "path": "docs:/", "recursive": true }));
        let rows = listed["entries"].as_array().cloned().unwrap_or_default();
        let path = |row: &Value| row["path"].as_str().map(str::to_owned);
        rows.iter().filter_map(path).collect::<Vec<_>>()
    };
    page.save("report.txt", "second\n");
    page.follow();
    assert_eq!(paths(), ["/2026", "/latest.txt", "/2026/report.txt"]);

    let history = node.call("fs/history", &json!({ "path": "docs:/2026/report.txt" }));
    let versions = history["versions"].as_array().expect("a list");
    let oldest = versions.last().expect("it has versions")["seq"].to_string();
    page.put("SEQ", oldest);
    let said = page.follow();
    assert!(said.contains("first\n"), "{said}");
    let now = page_content(&page, "docs:/2026/report.txt");
    assert_eq!(now, "first\n", "it is restored");

    let said = page.follow();
    assert!(said.contains("/2026/report.txt"), "{said}");
    assert_eq!(page_content(&page, "docs:/2026/report.txt"), "better\n");

    let said = page.follow();
    assert!(said.contains("docs:/.snap/monday  main#"), "{said}");

    page.shell("reader", "alknet fs bucket add attic photos", "");
    let said = page.follow();
    assert!(said.contains("of 21474836480"), "{said}");
    let buckets = node.call("fs/bucket/list", &Value::Null);
    assert_eq!(buckets["buckets"].as_array().map(Vec::len), Some(1));

    page.save("report.txt", "by curl\n");
    page.follow();
    let fetched = ["fetched.txt", "begin.txt"].map(|file| fs::read(page.work(file)).ok());
    assert_eq!(
        fetched,
        [Some(b"by curl\n".to_vec()), Some(b"by c".to_vec())]
    );
    assert_eq!(paths(), ["/2026", "/2026/report.txt"]);

    let said = page.follow();
    assert!(said.contains("1 matching files"), "{said}");
    let all = ["/2026", "/photos", "/2026/report.txt", "/photos/a.jpg"];
    assert_eq!(paths(), all);

    let said = page.follow();
    // The command that shares it and the list have the key; the last line is the end of the share.
    assert_eq!(said.matches(&*guest).count(), 2, "{said}");
    assert!(said.contains("  3 requests left"), "{said}");
    assert!(said.ends_with(" has ended\n"), "{said}");
    let shares = node.call("fs/share/list", &json!({ "bucket": "docs" }));
    assert_eq!(shares["shares"], json!([]));

    let said = page.follow();
    assert!(said.contains("0 contents are damaged"), "{said}");
    page.close();
}

/// The content of a file, as `cat` prints it.
fn page_content(page: &ReferencePage, address: &str) -> String {
    page.shell("reader", &format!("alknet fs cat attic {address}"), "")
}
