//! Input that breaks a rule: refused by the name of the rule, and nothing is made on the way.

use alknet_store::limits::{COMPONENT_BYTES_MAX, PATH_DEPTH_MAX};
use serde_json::{Value, json};

use crate::scene::{FilesNode, base64, noise};

fn wrong_paths() -> Vec<(String, &'static str)> {
    vec![
        ("docs:/new/../a".to_owned(), "DotDot"),
        ("docs:/new/./a".to_owned(), "Dot"),
        ("docs:/new/a\0b".to_owned(), "Nul"),
        (
            format!("docs:/new/{}", "a".repeat(COMPONENT_BYTES_MAX + 1)),
            "ComponentLength",
        ),
        (format!("docs:/new{}", "/a".repeat(PATH_DEPTH_MAX)), "Depth"),
        (format!("docs:/new/{}", "a/".repeat(3000)), "PathLength"),
        ("docs:/new//a".to_owned(), "EmptyComponent"),
        ("docs:new/a".to_owned(), "Absolute"),
        ("docs".to_owned(), "Separator"),
        ("Docs:/new/a".to_owned(), "BucketName"),
        ("docs@-:/new/a".to_owned(), "BranchName"),
        ("docs#01:/new/a".to_owned(), "Seq"),
        ("docs@main:/.snap/a".to_owned(), "Reserved"),
    ]
}

/// The name of a rule, from that of its variant.
fn rule_name(variant: &str) -> &'static str {
    let rules = alknet_store::PathRule::ALL;
    let rule = rules.iter().find(|rule| format!("{rule:?}") == variant);
    rule.expect("there is such a rule").name()
}

#[tokio::test]
async fn wrong_paths_are_refused_by_their_rule_and_make_nothing() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    for (path, variant) in wrong_paths() {
        let inputs = [
            ("fs/stat", json!({ "path": path })),
            ("fs/list", json!({ "path": path })),
            ("fs/history", json!({ "path": path })),
            ("fs/put", json!({ "path": path, "bytes": base64(b"x") })),
            ("fs/mkdir", json!({ "path": path })),
            ("fs/delete", json!({ "path": path })),
            ("fs/rename", json!({ "path": "docs:/a", "to": path })),
            ("fs/copy", json!({ "path": path, "to": "docs:/b" })),
            ("fs/link", json!({ "path": path, "to": "docs:/b" })),
            ("fs/symlink", json!({ "path": path, "target": "x" })),
            ("fs/setattr", json!({ "path": path, "mode": 1 })),
            ("fs/restore", json!({ "path": path, "seq": 1 })),
            ("fs/write/open", json!({ "path": path })),
            ("fs/notify/lock/take", json!({ "path": path })),
            (
                "fs/batch",
                json!({ "changes": [
                    { "op": "mkdir", "path": "docs:/made" },
                    { "op": "mkdir", "path": path },
                ] }),
            ),
        ];
        for (operation, input) in inputs {
            let (code, details) = admin.code(operation, input).await;
            assert_eq!(code, "INVALID_PATH", "{operation} {path:.60}");
            assert_eq!(
                details,
                json!({ "rule": rule_name(variant) }),
                "{operation} {path:.60}"
            );
        }
        for operation in ["fs/read", "fs/watch"] {
            let ended = admin.broken(operation, json!({ "path": path })).await;
            assert_eq!(
                ended,
                ("INVALID_PATH".to_owned(), 0),
                "{operation} {path:.60}"
            );
        }
    }
    assert_eq!(admin.names("docs:/").await, Vec::<String>::new());
}

#[tokio::test]
async fn names_of_buckets_branches_and_snapshots_have_rules() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    for bucket in ["", "a", "Docs", ".docs", "do/cs", "docs@x", &"a".repeat(64)] {
        let (code, details) = admin
            .code("fs/bucket/create", json!({ "bucket": bucket }))
            .await;
        assert_eq!(code, "INVALID_PATH", "{bucket}");
        assert_eq!(details["rule"], rule_name("BucketName"));
    }
    for name in ["", "-x", "a/b", "a b", &"a".repeat(129)] {
        for operation in ["fs/branch/create", "fs/snapshot/create"] {
            let input = json!({ "bucket": "docs", "name": name });
            let (code, details) = admin.code(operation, input).await;
            assert_eq!(code, "INVALID_PATH", "{operation} {name}");
            assert_eq!(details["rule"], rule_name("BranchName"));
        }
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_with_its_limit() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let most = noise(512 << 10);
    let input = |bytes: &[u8]| json!({ "path": "docs:/a", "bytes": base64(bytes) });
    admin.call("fs/put", input(&most)).await;
    let (code, details) = admin.code("fs/put", input(&noise((512 << 10) + 1))).await;
    assert_eq!(
        (&*code, &details["limit"]),
        ("TOO_LARGE", &json!(512 << 10))
    );
    let open = admin
        .call("fs/write/open", json!({ "path": "docs:/b" }))
        .await;
    let piece = |bytes: usize| json!({ "session": open["session"], "offset": 0, "bytes": base64(&noise(bytes)) });
    admin.call("fs/write/chunk", piece(256 << 10)).await;
    let (code, details) = admin.code("fs/write/chunk", piece((256 << 10) + 1)).await;
    assert_eq!(
        (&*code, &details["limit"]),
        ("TOO_LARGE", &json!(256 << 10))
    );
    let many: Vec<_> = (0..1001)
        .map(|at| json!({ "op": "mkdir", "path": format!("docs:/{at}") }))
        .collect();
    let many = admin.code("fs/batch", json!({ "changes": many })).await;
    assert_eq!(many.0, "INVALID_INPUT");
    for bytes in [json!("no base64!"), json!(7), json!({ "$bin": [0, 99] })] {
        let input = json!({ "path": "docs:/c", "bytes": bytes });
        assert_eq!(admin.code("fs/put", input).await.0, "INVALID_INPUT");
    }
}

#[tokio::test]
async fn versions_and_snapshots_take_no_changes() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let seq = admin.put("docs:/a", b"a").await;
    let snapshot = json!({ "bucket": "docs", "name": "monday" });
    admin.call("fs/snapshot/create", snapshot).await;
    for path in [format!("docs#{seq}:/a"), "docs:/.snap/monday/a".to_owned()] {
        let inputs = [
            ("fs/put", json!({ "path": path, "bytes": "" })),
            ("fs/delete", json!({ "path": path })),
            ("fs/write/open", json!({ "path": path })),
            ("fs/notify/lock/take", json!({ "path": path })),
        ];
        for (operation, input) in inputs {
            let (code, _) = admin.code(operation, input).await;
            assert_eq!(code, "READ_ONLY", "{operation} {path}");
        }
        let watch = admin.broken("fs/watch", json!({ "path": path })).await;
        assert_eq!(watch.0, "INVALID_INPUT");
    }
    let freeze = json!({ "bucket": "docs", "frozen": true });
    admin.call("fs/bucket/set", freeze).await;
    let put = json!({ "path": "docs:/a", "bytes": "" });
    assert_eq!(admin.code("fs/put", put).await.0, "READ_ONLY");
}

/// The lock of another identity forbids a write, and its token is not seen by others.
#[tokio::test]
async fn a_lock_of_another_identity_is_a_conflict() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let ada = node.peer("ada", &["fs:write:docs", "fs:read:docs"]);
    let take = json!({ "path": "docs:/a", "kind": "exclusive" });
    let lock = ada.call("fs/notify/lock/take", take).await;
    assert!(lock["made_seq"].is_u64(), "{lock}");
    let put = json!({ "path": "docs:/a", "bytes": base64(b"x") });
    let (code, details) = admin.code("fs/put", put.clone()).await;
    assert_eq!(code, "CONFLICT");
    assert_eq!(details, json!({ "reason": "locked", "path": "/a" }));
    let mut stolen = put.clone();
    stolen["lock_tokens"] = json!([lock["token"]]);
    assert_eq!(admin.code("fs/put", stolen.clone()).await.0, "CONFLICT");
    ada.call("fs/put", stolen).await;
    let shown = admin
        .call("fs/notify/lock/show", json!({ "path": "docs:/a" }))
        .await;
    assert_eq!(shown["locks"][0]["owner"], "ada");
    assert_eq!(shown["locks"][0]["token"], Value::Null);
    let release = json!({ "path": "docs:/a", "token": lock["token"] });
    let refused = admin.code("fs/notify/lock/release", release.clone()).await;
    assert_eq!(refused.0, "NOT_FOUND");
    ada.call("fs/notify/lock/release", release).await;
    admin.call("fs/put", put).await;
}

/// A file that was changed in the folder of the store: no wrong byte is sent.
#[tokio::test]
async fn a_content_that_was_changed_on_the_disk_is_missing() {
    let node = FilesNode::checked();
    let admin = node.admin().await;
    let content = noise(1 << 20);
    let closed = admin.upload("docs:/a", &content).await;
    let hash = closed["hash"].as_str().expect("a hash");
    let object = node.path("content/objects").join(&hash[..2]).join(hash);
    let mut bytes = std::fs::read(&object).expect("it lies there");
    bytes[700_000] ^= 1;
    std::fs::remove_file(&object).expect("writable");
    std::fs::write(&object, &bytes).expect("writable");
    let (code, sent) = admin.broken("fs/read", json!({ "path": "docs:/a" })).await;
    assert_eq!(code, "CONTENT_MISSING");
    // Everything before the damaged group, and nothing of it.
    assert_eq!(sent, 700_000 / (16 << 10) * (16 << 10));
    let again = admin.broken("fs/read", json!({ "hash": hash })).await;
    assert_eq!(again, ("CONTENT_MISSING".to_owned(), 0));
    let status = admin.call("fs/blob/status", json!({ "hash": hash })).await;
    assert_eq!(status["status"], "bad");
    let verified = admin
        .broken("fs/blob/verify", json!({ "hash": hash }))
        .await;
    assert_eq!(verified.0, "CONTENT_MISSING");
    // Storing it again mends it.
    admin.upload("docs:/b", &content).await;
    let (_, read) = admin.read(json!({ "path": "docs:/a" })).await;
    assert!(read == content);
}
