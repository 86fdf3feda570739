//! Names and contents: put, read, list, change, history.

use serde_json::{Value, json};

use crate::scene::{FilesNode, base64, noise};

#[tokio::test]
async fn what_is_put_is_described_and_read() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let input = json!({
        "path": "docs:/2026/report.txt", "bytes": base64(b"hello"), "mode": 0o600, "mtime_ms": 1_700_000_000_000_u64,
    });
    let put = admin.call("fs/put", input).await;
    assert_eq!(put["bytes"], 5);
    let entry = admin
        .call("fs/stat", json!({ "path": "docs:/2026/report.txt" }))
        .await;
    let expected = json!({
        "kind": "file", "mode": 0o600, "mtime_ms": 1_700_000_000_000_u64,
        "hash": put["hash"], "size": 5, "path": "/2026/report.txt", "seq": put["seq"],
    });
    assert_eq!(entry, expected);
    let (head, bytes) = admin.read(json!({ "path": "docs:/2026/report.txt" })).await;
    assert_eq!((&head["hash"], &head["size"]), (&put["hash"], &json!(5)));
    assert_eq!(head["entry"], entry);
    assert_eq!(bytes, b"hello");
    let directory = admin.call("fs/stat", json!({ "path": "docs:/2026" })).await;
    assert_eq!(directory["kind"], "directory");
}

#[tokio::test]
async fn ranges_and_hashes_are_read() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let content = noise(700_000);
    let closed = admin.upload("docs:/large", &content).await;
    assert_eq!(closed["bytes"], content.len());
    let (head, bytes) = admin.read(json!({ "hash": closed["hash"] })).await;
    assert_eq!(head["entry"], Value::Null);
    assert!(bytes == content);
    let read = |offset: u64, length: u64| json!({ "path": "docs:/large", "offset": offset, "length": length });
    let (head, bytes) = admin.read(read(300_001, 100)).await;
    assert_eq!(
        (&head["offset"], &head["length"]),
        (&json!(300_001), &json!(100))
    );
    assert!(bytes == content[300_001..300_101]);
    // What lies behind the end is left out.
    let (head, bytes) = admin.read(read(699_999, 100)).await;
    assert_eq!((head["length"].as_u64(), bytes.len()), (Some(1), 1));
    let (head, bytes) = admin.read(read(1 << 40, 100)).await;
    assert_eq!((head["length"].as_u64(), bytes.len()), (Some(0), 0));
}

#[tokio::test]
async fn a_listing_has_pages() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    for name in ["a", "b", "c/d", "c/e"] {
        admin.put(&format!("docs:/{name}"), name.as_bytes()).await;
    }
    assert_eq!(admin.names("docs:/").await, ["/a", "/b", "/c"]);
    let mut paths = Vec::new();
    let mut page = Value::Null;
    for _ in 0..5 {
        let mut input = json!({ "path": "docs:/", "recursive": true, "limit": 1 });
        if !page.is_null() {
            input["page"] = page.clone();
        }
        let listed = admin.call("fs/list", input).await;
        paths.push(listed["entries"][0]["path"].clone());
        page = listed["next"].clone();
    }
    assert_eq!(paths, ["/a", "/b", "/c", "/c/d", "/c/e"]);
    assert_eq!(page, Value::Null);
}

/// Names of 4 KB in each of 1,000 entries would not fit into a frame.
#[tokio::test]
async fn a_page_ends_where_an_answer_is_full() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let deep = format!("docs:{}", format!("/{}", "a".repeat(250)).repeat(14));
    for from in [0, 100, 200] {
        let changes: Vec<_> = (from..from + 100)
            .map(|at| json!({ "op": "symlink", "path": format!("{deep}/{at}"), "target": "x" }))
            .collect();
        admin.call("fs/batch", json!({ "changes": changes })).await;
    }
    let first = admin.call("fs/list", json!({ "path": deep })).await;
    let shown = first["entries"].as_array().expect("a list").len();
    assert!(shown < 300, "{shown}");
    assert!(first.to_string().len() < 1 << 20);
    let rest = json!({ "path": deep, "page": first["next"] });
    let rest = admin.call("fs/list", rest).await;
    let rest = rest["entries"].as_array().expect("a list").len();
    assert!(rest > 0 && shown + rest <= 300);
}

#[tokio::test]
async fn entries_are_moved_copied_linked_and_deleted() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin.put("docs:/a/one", b"1").await;
    let move_a = json!({ "path": "docs:/a", "to": "docs:/b" });
    admin.call("fs/rename", move_a).await;
    assert_eq!(admin.names("docs:/b").await, ["/b/one"]);
    let copy = json!({ "path": "docs:/b", "to": "docs:/c", "recursive": true });
    admin.call("fs/copy", copy).await;
    let link = json!({ "path": "docs:/c/one", "to": "docs:/latest" });
    admin.call("fs/link", link).await;
    let directory = json!({ "path": "docs:/c", "to": "docs:/d" });
    assert_eq!(admin.code("fs/link", directory).await.0, "IS_DIR");
    let symlink = json!({ "path": "docs:/link", "target": "b/one" });
    admin.call("fs/symlink", symlink).await;
    let shown = admin.call("fs/stat", json!({ "path": "docs:/link" })).await;
    assert_eq!(
        (&shown["kind"], &shown["target"]),
        (&json!("symlink"), &json!("b/one"))
    );
    let through = admin
        .broken("fs/read", json!({ "path": "docs:/link" }))
        .await;
    assert_eq!(through, ("INVALID_INPUT".to_owned(), 0));
    let full = json!({ "path": "docs:/b" });
    assert_eq!(admin.code("fs/delete", full).await.0, "NOT_EMPTY");
    let all = json!({ "path": "docs:/b", "recursive": true });
    admin.call("fs/delete", all).await;
    admin.call("fs/mkdir", json!({ "path": "docs:/b/x" })).await;
    let again = admin.code("fs/mkdir", json!({ "path": "docs:/b/x" })).await;
    assert_eq!(again.0, "EXISTS");
    admin
        .call(
            "fs/setattr",
            json!({ "path": "docs:/latest", "mode": 0o755 }),
        )
        .await;
    let latest = admin
        .call("fs/stat", json!({ "path": "docs:/latest" }))
        .await;
    assert_eq!(latest["mode"], 0o755);
    assert_eq!(
        admin.names("docs:/").await,
        ["/b", "/c", "/latest", "/link"]
    );
}

#[tokio::test]
async fn a_batch_is_one_commit_or_none() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let changes = json!({ "message": "a beginning", "changes": [
        { "op": "mkdir", "path": "docs:/new" },
        { "op": "put", "path": "docs:/new/a", "bytes": base64(b"a") },
        { "op": "rename", "path": "docs:/new/a", "to": "docs:/new/b" },
        { "op": "copy", "path": "docs:/new/b", "to": "docs:/c" },
    ] });
    let made = admin.call("fs/batch", changes).await;
    let entry = admin.call("fs/stat", json!({ "path": "docs:/c" })).await;
    assert_eq!(entry["seq"], made["seq"]);
    let history = admin.call("fs/history", json!({ "path": "docs:/c" })).await;
    let version = &history["versions"][0];
    assert_eq!(
        (&version["op"], &version["message"]),
        (&json!("batch"), &json!("a beginning"))
    );
    let wrong = json!({ "changes": [
        { "op": "delete", "path": "docs:/c" },
        { "op": "delete", "path": "docs:/missing" },
    ] });
    assert_eq!(admin.code("fs/batch", wrong).await.0, "NOT_FOUND");
    assert_eq!(admin.names("docs:/").await, ["/c", "/new"]);
    admin
        .call(
            "fs/branch/create",
            json!({ "bucket": "docs", "name": "draft" }),
        )
        .await;
    let two = json!({ "changes": [
        { "op": "delete", "path": "docs:/c" },
        { "op": "delete", "path": "docs@draft:/c" },
    ] });
    assert_eq!(admin.code("fs/batch", two).await.0, "INVALID_INPUT");
}

#[tokio::test]
async fn former_versions_are_listed_read_and_restored() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let first = admin.put("docs:/a", b"first").await;
    let second = admin.put("docs:/a", b"second").await;
    let delete = admin.call("fs/delete", json!({ "path": "docs:/a" })).await;
    let listed = admin
        .call("fs/history", json!({ "path": "docs:/a", "limit": 2 }))
        .await;
    let seqs: Vec<_> = (0..2)
        .map(|at| listed["versions"][at]["seq"].clone())
        .collect();
    assert_eq!(seqs, [delete["seq"].clone(), json!(second)]);
    assert_eq!(listed["versions"][0]["kind"], "deleted");
    assert_eq!(listed["versions"][1]["actor"], "root");
    assert_eq!(listed["next"], second);
    let (_, bytes) = admin
        .read(json!({ "path": format!("docs#{first}:/a") }))
        .await;
    assert_eq!(bytes, b"first");
    let (_, bytes) = admin
        .read(json!({ "path": "docs:/a", "as_of": second }))
        .await;
    assert_eq!(bytes, b"second");
    let twice = json!({ "path": format!("docs#{first}:/a"), "as_of": second });
    assert_eq!(admin.code("fs/stat", twice).await.0, "INVALID_INPUT");
    admin
        .call("fs/restore", json!({ "path": "docs:/a", "seq": first }))
        .await;
    let (_, bytes) = admin.read(json!({ "path": "docs:/a" })).await;
    assert_eq!(bytes, b"first");
}

#[tokio::test]
async fn a_write_happens_only_where_the_caller_expects_it() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let put = |content: &[u8], condition: Value| {
        let mut input = json!({ "path": "docs:/a", "bytes": base64(content) });
        for (name, value) in condition.as_object().expect("members") {
            input[name] = value.clone();
        }
        input
    };
    let any = put(b"x", json!({ "if_match": "*" }));
    let (code, details) = admin.code("fs/put", any).await;
    assert_eq!((&*code, &details["hash"]), ("CONFLICT", &Value::Null));
    let made = admin
        .call("fs/put", put(b"1", json!({ "if_none_match": "*" })))
        .await;
    let again = admin
        .code("fs/put", put(b"2", json!({ "if_none_match": "*" })))
        .await;
    assert_eq!(again.0, "CONFLICT");
    // Of two writers who saw the same version, one wins, and the other one learns the present hash.
    let hash = made["hash"].clone();
    let second = admin
        .call("fs/put", put(b"2", json!({ "if_match": hash })))
        .await;
    let (code, details) = admin
        .code("fs/put", put(b"3", json!({ "if_match": hash })))
        .await;
    assert_eq!(code, "CONFLICT");
    assert_eq!(
        details,
        json!({ "reason": "precondition", "hash": second["hash"] })
    );
    let both = put(b"4", json!({ "if_match": "*", "if_none_match": "*" }));
    assert_eq!(admin.code("fs/put", both).await.0, "INVALID_INPUT");
    let (_, bytes) = admin.read(json!({ "path": "docs:/a" })).await;
    assert_eq!(bytes, b"2");
}

#[tokio::test]
async fn a_copy_from_another_bucket_needs_the_right_to_read_it() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin
        .call("fs/bucket/create", json!({ "bucket": "other" }))
        .await;
    admin.put("other:/a", b"theirs").await;
    let copy = json!({ "path": "other:/a", "to": "docs:/a" });
    let ada = node.peer("ada", &["fs:write:docs", "fs:read:docs"]);
    assert_eq!(ada.code("fs/copy", copy.clone()).await.0, "NOT_FOUND");
    let eve = node.peer("eve", &["fs:write:*", "fs:read:other"]);
    eve.call("fs/copy", copy).await;
    let (_, bytes) = ada.read(json!({ "path": "docs:/a" })).await;
    assert_eq!(bytes, b"theirs");
    let across = json!({ "path": "other:/a", "to": "docs:/b" });
    assert_eq!(eve.code("fs/rename", across).await.0, "INVALID_INPUT");
}
