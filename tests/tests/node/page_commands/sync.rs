//! The commands of docs/sync.md, in the order of the page.

use serde_json::{Value, json};

use super::{ReferencePage, address};

const SYNC: &str = include_str!("../../../../docs/sync.md");

/// The keys of the page.
const EDGE_KEY: &str = "ed25519:1f2e3d4c5b6a79880716253443526170809f8e7d6c5b4a39281706f5e4d3c2b1";
const ATTIC_KEY: &str = "ed25519:b1c2d3e4f506172839a4b5c6d7e8f90807162534435261708998a7b6c5d4e3f2";

#[test]
fn the_commands_of_the_page_of_sync_work() {
    let mut page = ReferencePage::open(SYNC);
    // The file of a node is not the one that the reader applies.
    let [attic, edge] = [("attic", "first"), ("edge-1", "second")].map(|(name, file)| {
        let node = page.node_with(file, "[fs]\nsync_seconds = 1\n");
        page.shell(
            "reader",
            &format!("alknet node add {name} {}", node.target()),
            "",
        );
        node
    });
    let key = |target: &str| target.split_once('@').map(|(key, _)| key.to_owned());
    page.put(EDGE_KEY, key(edge.target()).expect("a pinned target"));
    page.put(ATTIC_KEY, key(attic.target()).expect("a pinned target"));
    page.put("192.0.2.8:443", address(&edge));
    page.put("192.0.2.7:443", address(&attic));
    page.follow();

    // Each node has its own document, in which the page adds an entry.
    for name in ["attic", "edge-1"] {
        let entry = page.next_block("toml");
        page.save(
            &format!("{name}.toml"),
            format!("[fs]\nsync_seconds = 1\n{entry}"),
        );
    }
    page.follow();
    let again = page.next_block("sh again");
    let until = format!("until {}; do sleep 0.2; done", again.trim_end());
    let said = page.shell("reader", &until, "");
    assert!(said.ends_with("hello\n"), "{said}");

    let said = page.follow();
    assert!(
        said.contains("on, fetch lazy") && said.contains("edge-1"),
        "{said}"
    );
    let status = edge.call("fs/sync/status", &json!({ "bucket": "docs" }));
    assert_eq!(status["peers"][0]["failures"], 0, "{status}");

    // The page has a second bucket for a larger tree.
    for name in ["attic", "edge-1"] {
        page.shell("reader", &format!("alknet fs bucket add {name} photos"), "");
    }
    page.follow();
    for node in [&attic, &edge] {
        let listed = node.call("fs/bucket/list", &Value::Null);
        let mut rows = listed["buckets"].as_array().expect("a list").iter();
        let photos = rows.find(|row| row["name"] == "photos");
        assert_eq!(
            photos.map(|row| &row["split"]),
            Some(&json!(true)),
            "{listed}"
        );
    }
    page.close();
}
