//! A bucket in which the caller has no right is one that does not exist, on every operation.

use serde_json::{Value, json};

use crate::scene::{FilesNode, base64};

/// Every operation that names a bucket, asked about this one.
fn inputs(bucket: &str) -> Vec<(&'static str, Value)> {
    let path = format!("{bucket}:/a");
    let claim = json!({ "bucket": bucket, "queue": "q", "id": 1, "tries": 1, "lease_until_ms": 1 });
    let consumer = json!({ "bucket": bucket, "consumer": "c" });
    let named = json!({ "bucket": bucket, "name": "x" });
    let token = "urn:uuid:00112233-4455-4677-8899-aabbccddeeff";
    vec![
        ("fs/stat", json!({ "path": path })),
        ("fs/list", json!({ "path": format!("{bucket}:/") })),
        ("fs/history", json!({ "path": path })),
        ("fs/put", json!({ "path": path, "bytes": base64(b"x") })),
        ("fs/mkdir", json!({ "path": path })),
        ("fs/rename", json!({ "path": path, "to": path })),
        ("fs/copy", json!({ "path": path, "to": "docs:/x" })),
        ("fs/link", json!({ "path": path, "to": "docs:/x" })),
        ("fs/copy", json!({ "path": "docs:/x", "to": path })),
        ("fs/delete", json!({ "path": path })),
        ("fs/symlink", json!({ "path": path, "target": "x" })),
        ("fs/setattr", json!({ "path": path, "mode": 1 })),
        ("fs/restore", json!({ "path": path, "seq": 1 })),
        (
            "fs/batch",
            json!({ "changes": [{ "op": "mkdir", "path": path }] }),
        ),
        ("fs/write/open", json!({ "path": path })),
        ("fs/branch/create", named.clone()),
        ("fs/branch/list", json!({ "bucket": bucket })),
        (
            "fs/branch/set",
            json!({ "bucket": bucket, "name": "x", "protected": true }),
        ),
        ("fs/branch/merge", json!({ "bucket": bucket, "from": "x" })),
        ("fs/branch/diff", json!({ "bucket": bucket, "to": "main" })),
        ("fs/branch/rebase", named.clone()),
        ("fs/branch/close", named.clone()),
        ("fs/branch/delete", named.clone()),
        ("fs/snapshot/create", named.clone()),
        ("fs/snapshot/list", json!({ "bucket": bucket })),
        ("fs/snapshot/delete", named),
        ("fs/bucket/create", json!({ "bucket": bucket })),
        ("fs/bucket/set", json!({ "bucket": bucket })),
        ("fs/bucket/delete", json!({ "bucket": bucket })),
        ("fs/bucket/usage", json!({ "bucket": bucket })),
        ("fs/sync/status", json!({ "bucket": bucket })),
        ("fs/notify/add", consumer.clone()),
        ("fs/notify/claim", consumer.clone()),
        ("fs/notify/events", consumer.clone()),
        ("fs/notify/release", consumer.clone()),
        ("fs/notify/remove", consumer),
        (
            "fs/notify/ack",
            json!({ "bucket": bucket, "consumer": "c", "id": 1 }),
        ),
        (
            "fs/notify/reset",
            json!({ "bucket": bucket, "consumer": "c", "start": "now" }),
        ),
        (
            "fs/notify/queue/enqueue",
            json!({ "bucket": bucket, "queue": "q", "payload": "x" }),
        ),
        (
            "fs/notify/queue/claim",
            json!({ "bucket": bucket, "queue": "q" }),
        ),
        ("fs/notify/queue/ack", claim.clone()),
        ("fs/notify/queue/renew", claim.clone()),
        ("fs/notify/queue/retry", claim),
        (
            "fs/notify/queue/usage",
            json!({ "bucket": bucket, "queue": "q" }),
        ),
        (
            "fs/notify/queue/dead",
            json!({ "bucket": bucket, "queue": "q" }),
        ),
        (
            "fs/notify/queue/requeue",
            json!({ "bucket": bucket, "queue": "q", "id": 1 }),
        ),
        (
            "fs/notify/queue/remove",
            json!({ "bucket": bucket, "queue": "q", "id": 1 }),
        ),
        (
            "fs/share",
            json!({ "bucket": bucket, "hash": "00".repeat(32), "key": format!("ed25519:{}", "00".repeat(32)) }),
        ),
        ("fs/share/list", json!({ "bucket": bucket })),
        (
            "fs/share/revoke",
            json!({ "bucket": bucket, "share": "00".repeat(16) }),
        ),
        ("fs/notify/lock/take", json!({ "path": path })),
        (
            "fs/notify/lock/renew",
            json!({ "path": path, "token": token }),
        ),
        (
            "fs/notify/lock/release",
            json!({ "path": path, "token": token }),
        ),
        ("fs/notify/lock/show", json!({ "path": path })),
    ]
}

#[tokio::test]
async fn a_foreign_bucket_answers_as_one_that_does_not_exist() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin
        .call("fs/bucket/create", json!({ "bucket": "secret" }))
        .await;
    admin.put("secret:/a", b"secret").await;
    admin.put("docs:/x", b"x").await;
    let eve = node.peer("eve", &["fs:read:docs", "fs:write:docs", "fs:admin:docs"]);
    for (there, missing) in inputs("secret").into_iter().zip(inputs("absent")) {
        let (operation, input) = there;
        let foreign = eve.refused(operation, input).await;
        let absent = eve.refused(operation, missing.1).await;
        assert_eq!(foreign, absent, "{operation}");
        assert_eq!(foreign.code, "NOT_FOUND", "{operation}");
        assert_eq!(
            foreign.details,
            json!({ "object": "bucket" }),
            "{operation}"
        );
    }
    for operation in ["fs/read", "fs/watch", "fs/blob/fetch"] {
        let asked = |bucket: &str| match operation {
            "fs/blob/fetch" => json!({ "bucket": bucket, "hash": "00".repeat(32) }),
            _ => json!({ "path": format!("{bucket}:/a") }),
        };
        let foreign = eve.broken(operation, asked("secret")).await;
        let absent = eve.broken(operation, asked("absent")).await;
        assert_eq!(foreign, absent, "{operation}");
        assert_eq!(foreign.0, "NOT_FOUND");
    }
    let listed = eve.call("fs/bucket/list", Value::Null).await;
    let names: Vec<_> = listed["buckets"]
        .as_array()
        .expect("a list")
        .iter()
        .collect();
    assert_eq!(names.len(), 1);
    assert_eq!(names[0]["name"], "docs");
}

#[tokio::test]
async fn a_hash_is_no_capability() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin
        .call("fs/bucket/create", json!({ "bucket": "secret" }))
        .await;
    let put = json!({ "path": "secret:/a", "bytes": base64(b"secret") });
    let hash = admin.call("fs/put", put).await["hash"].clone();
    let random = json!("00".repeat(32));
    let eve = node.peer(
        "eve",
        &[
            "fs:read:docs",
            "fs:write:docs",
            "fs:admin:docs",
            "fs:sync:docs",
        ],
    );
    for operation in ["fs/blob/status", "fs/blob/pin", "fs/blob/providers"] {
        let foreign = eve.refused(operation, json!({ "hash": hash })).await;
        let unknown = eve.refused(operation, json!({ "hash": random })).await;
        assert_eq!(foreign, unknown, "{operation}");
        assert_eq!(foreign.code, "NOT_FOUND");
    }
    for operation in ["fs/read", "fs/blob/verify", "fs/blob/fetch"] {
        // A fetch names a bucket of hers that does not refer to the content.
        let asked = |hash: &Value| match operation {
            "fs/blob/fetch" => json!({ "bucket": "docs", "hash": hash }),
            _ => json!({ "hash": hash }),
        };
        let foreign = eve.broken(operation, asked(&hash)).await;
        let unknown = eve.broken(operation, asked(&random)).await;
        assert_eq!(foreign, unknown, "{operation}");
        assert_eq!(foreign.0, "NOT_FOUND");
    }
    // Once a bucket of hers has it as well, it is hers.
    let put = json!({ "path": "docs:/mine", "bytes": base64(b"secret") });
    eve.call("fs/put", put).await;
    let (_, bytes) = eve.read(json!({ "hash": hash })).await;
    assert_eq!(bytes, b"secret");
}

/// Who sees a bucket learns which right is missing, whether or not the bucket exists.
#[tokio::test]
async fn a_missing_right_is_named_without_a_look() {
    let node = FilesNode::new();
    node.admin().await;
    let reader = node.peer("ada", &["fs:read:docs", "fs:read:absent"]);
    for bucket in ["docs", "absent"] {
        let put = json!({ "path": format!("{bucket}:/a"), "bytes": "" });
        let refusal = reader.refused("fs/put", put).await;
        assert_eq!(refusal.code, "FORBIDDEN");
        assert!(refusal.message.contains("fs:write:"), "{}", refusal.message);
    }
    let writer = node.peer("eve", &["fs:write:docs"]);
    assert_eq!(
        writer.code("fs/list", json!({ "path": "docs:/" })).await.0,
        "FORBIDDEN"
    );
    let force = json!({ "bucket": "docs", "name": "x", "force": true });
    assert_eq!(writer.code("fs/branch/delete", force).await.0, "FORBIDDEN");
    for operation in ["fs/repair", "fs/backup"] {
        let one = node.peer("bob", &["fs:admin:docs"]);
        assert_eq!(one.code(operation, json!({})).await.0, "FORBIDDEN");
    }
    for operation in ["fs/gc", "fs/scrub"] {
        let one = node.peer("bob", &["fs:admin:docs"]);
        assert_eq!(one.broken(operation, json!({})).await.0, "FORBIDDEN");
    }
    let unknown = node.unknown_peer();
    let stat = unknown.code("fs/stat", json!({ "path": "docs:/" })).await;
    assert_eq!(stat.0, "UNAUTHENTICATED");
}
