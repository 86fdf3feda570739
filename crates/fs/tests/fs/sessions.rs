//! Write sessions.

use alknet_store::limits::SESSIONS_PER_IDENTITY_MAX;
use alknet_store::{FileStoreOptions, WriteSessionOptions};
use serde_json::{Value, json};

use crate::scene::{FilesNode, FilesPeer, base64, noise};

async fn open(peer: &FilesPeer, input: Value) -> Value {
    peer.call("fs/write/open", input).await["session"].clone()
}

fn piece(session: &Value, offset: u64, bytes: &[u8]) -> Value {
    json!({ "session": session, "offset": offset, "bytes": base64(bytes) })
}

#[tokio::test]
async fn readers_see_the_version_of_before_until_the_close() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin.put("docs:/a", b"hello world").await;
    let session = open(&admin, json!({ "path": "docs:/a", "mode": "modify" })).await;
    admin
        .call("fs/write/chunk", piece(&session, 6, b"there"))
        .await;
    let (_, bytes) = admin.read(json!({ "path": "docs:/a" })).await;
    assert_eq!(bytes, b"hello world");
    let closed = admin
        .call("fs/write/close", json!({ "session": session }))
        .await;
    assert_eq!(closed["bytes"], 11);
    let (_, bytes) = admin.read(json!({ "path": "docs:/a" })).await;
    assert_eq!(bytes, b"hello there");
    // It is over.
    let again = admin
        .code("fs/write/close", json!({ "session": session }))
        .await;
    assert_eq!(
        again,
        ("NOT_FOUND".to_owned(), json!({ "object": "write session" }))
    );
}

#[tokio::test]
async fn pieces_come_in_any_order_and_an_end_leaves_the_file() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let content = noise(600_000);
    let session = open(
        &admin,
        json!({ "path": "docs:/a", "mode": "create", "size": 600_000 }),
    )
    .await;
    let (first, second, third) = (
        &content[..200_000],
        &content[200_000..400_000],
        &content[400_000..],
    );
    let pieces = tokio::join!(
        admin.call("fs/write/chunk", piece(&session, 400_000, third)),
        admin.call("fs/write/chunk", piece(&session, 0, first)),
        admin.call("fs/write/chunk", piece(&session, 200_000, second)),
    );
    assert_eq!(pieces, (json!({}), json!({}), json!({})));
    admin
        .call("fs/write/close", json!({ "session": session }))
        .await;
    let (_, bytes) = admin.read(json!({ "path": "docs:/a" })).await;
    assert!(bytes == content);
    let other = open(&admin, json!({ "path": "docs:/a" })).await;
    admin
        .call("fs/write/chunk", piece(&other, 0, b"gone"))
        .await;
    admin
        .call("fs/write/abort", json!({ "session": other }))
        .await;
    let (_, bytes) = admin.read(json!({ "path": "docs:/a" })).await;
    assert!(bytes == content);
}

#[tokio::test]
async fn the_17th_session_is_refused_and_others_go_on() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let ada = node.peer("ada", &["fs:write:docs"]);
    let mut sessions = Vec::new();
    for at in 0..SESSIONS_PER_IDENTITY_MAX {
        sessions.push(open(&ada, json!({ "path": format!("docs:/{at}") })).await);
    }
    let (code, details) = ada
        .code("fs/write/open", json!({ "path": "docs:/more" }))
        .await;
    assert_eq!(code, "QUOTA_EXCEEDED");
    let expected = json!({ "resource": "open write sessions",
                           "limit": SESSIONS_PER_IDENTITY_MAX, "used": SESSIONS_PER_IDENTITY_MAX });
    assert_eq!(details, expected);
    // Another identity, and those that are open.
    open(&admin, json!({ "path": "docs:/admins" })).await;
    ada.call("fs/write/close", json!({ "session": sessions[0] }))
        .await;
    open(&ada, json!({ "path": "docs:/more" })).await;
}

#[tokio::test]
async fn staged_bytes_of_an_identity_have_a_limit() {
    let options = FileStoreOptions {
        sessions: WriteSessionOptions {
            staged_bytes_max: 100_000,
            ..WriteSessionOptions::default()
        },
        ..FileStoreOptions::default()
    };
    let node = FilesNode::with(options);
    let admin = node.admin().await;
    let ada = node.peer("ada", &["fs:write:docs"]);
    let declared = json!({ "path": "docs:/a", "size": 100_001 });
    let (code, details) = ada.code("fs/write/open", declared).await;
    assert_eq!(
        (&*code, &details["limit"]),
        ("QUOTA_EXCEEDED", &json!(100_000))
    );
    let session = open(&ada, json!({ "path": "docs:/a" })).await;
    ada.call("fs/write/chunk", piece(&session, 0, &noise(90_000)))
        .await;
    let more = piece(&session, 90_000, &noise(20_000));
    let (code, details) = ada.code("fs/write/chunk", more).await;
    assert_eq!(
        (&*code, &details["used"]),
        ("QUOTA_EXCEEDED", &json!(90_000))
    );
    // The session goes on within the limit, and another identity has its own.
    ada.call("fs/write/close", json!({ "session": session }))
        .await;
    admin.upload("docs:/b", &noise(95_000)).await;
}

#[tokio::test]
async fn a_declared_size_that_lies_is_refused_and_the_target_stays() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin.put("docs:/a", b"before").await;
    // Up: noticed at the close.
    let session = open(&admin, json!({ "path": "docs:/a", "size": 10 })).await;
    admin
        .call("fs/write/chunk", piece(&session, 0, b"short"))
        .await;
    let (code, details) = admin
        .code("fs/write/close", json!({ "session": session }))
        .await;
    assert_eq!(code, "CONFLICT");
    assert_eq!(
        details,
        json!({ "reason": "size", "known": 5, "given": 10 })
    );
    // Down: noticed with the write behind it.
    let session = open(&admin, json!({ "path": "docs:/a", "size": 4 })).await;
    let (code, details) = admin
        .code("fs/write/chunk", piece(&session, 0, b"longer"))
        .await;
    assert_eq!((&*code, &details["reason"]), ("CONFLICT", &json!("size")));
    let gone = admin
        .code("fs/write/close", json!({ "session": session }))
        .await;
    assert_eq!(gone.0, "NOT_FOUND");
    let (_, bytes) = admin.read(json!({ "path": "docs:/a" })).await;
    assert_eq!(bytes, b"before");
    let usage = admin
        .call("fs/bucket/usage", json!({ "bucket": "docs" }))
        .await;
    assert_eq!(usage["staged"], 0);
    // 65 GiB are more than any file has.
    let huge = json!({ "path": "docs:/a", "size": 65_u64 << 30 });
    assert_eq!(admin.code("fs/write/open", huge).await.0, "INVALID_INPUT");
}

#[tokio::test]
async fn a_session_is_its_owners_alone() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let session = open(&admin, json!({ "path": "docs:/a" })).await;
    let eve = node.peer("eve", &["fs:write:docs"]);
    let unknown = json!("00000000000000000000000000000000");
    for operation in ["fs/write/close", "fs/write/abort"] {
        let theirs = eve.refused(operation, json!({ "session": session })).await;
        let none = eve.refused(operation, json!({ "session": unknown })).await;
        assert_eq!(theirs, none, "{operation}");
        assert_eq!(theirs.code, "NOT_FOUND");
    }
    let theirs = eve
        .refused("fs/write/chunk", piece(&session, 0, b"x"))
        .await;
    assert_eq!(
        theirs,
        eve.refused("fs/write/chunk", piece(&unknown, 0, b"x"))
            .await
    );
    admin
        .call("fs/write/close", json!({ "session": session }))
        .await;
}

/// A right that was taken between the opening and the close.
#[tokio::test]
async fn the_right_to_write_is_asked_again_at_the_close() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let before = node.peer("ada", &["fs:write:docs", "fs:read:docs"]);
    let session = open(&before, json!({ "path": "docs:/a" })).await;
    before
        .call("fs/write/chunk", piece(&session, 0, b"x"))
        .await;
    let after = node.peer("ada", &["fs:read:docs"]);
    let refused = after
        .code("fs/write/close", json!({ "session": session }))
        .await;
    assert_eq!(refused.0, "FORBIDDEN");
    assert_eq!(admin.names("docs:/").await, Vec::<String>::new());
    let over = before
        .code("fs/write/close", json!({ "session": session }))
        .await;
    assert_eq!(over.0, "NOT_FOUND");
}

#[tokio::test]
async fn a_close_with_another_version_is_a_conflict() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let input = json!({ "path": "docs:/a", "bytes": base64(b"1") });
    let base = admin.call("fs/put", input).await["hash"].clone();
    let session = open(&admin, json!({ "path": "docs:/a", "if_match": base })).await;
    admin
        .call("fs/write/chunk", piece(&session, 0, b"mine"))
        .await;
    let input = json!({ "path": "docs:/a", "bytes": base64(b"2") });
    let present = admin.call("fs/put", input).await["hash"].clone();
    let (code, details) = admin
        .code("fs/write/close", json!({ "session": session }))
        .await;
    assert_eq!(code, "CONFLICT");
    assert_eq!(
        details,
        json!({ "reason": "precondition", "hash": present })
    );
}

#[tokio::test]
async fn the_eleventh_mebibyte_of_a_quota_of_ten_is_refused() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let quota = json!({ "bucket": "docs", "quota_bytes": 10 << 20 });
    admin.call("fs/bucket/set", quota).await;
    let session = open(&admin, json!({ "path": "docs:/a" })).await;
    let block = noise(256 << 10);
    for at in 0..40_u64 {
        admin
            .call("fs/write/chunk", piece(&session, at * (256 << 10), &block))
            .await;
    }
    let (code, details) = admin
        .code("fs/write/chunk", piece(&session, 10 << 20, &block))
        .await;
    assert_eq!(code, "QUOTA_EXCEEDED");
    assert_eq!(
        (&details["resource"], &details["limit"]),
        (&json!("bytes"), &json!(10 << 20))
    );
    let usage = admin
        .call("fs/bucket/usage", json!({ "bucket": "docs" }))
        .await;
    assert_eq!((&usage["staged"], &usage["bytes"]), (&json!(0), &json!(0)));
    let large = json!({ "path": "docs:/b", "size": 11 << 20 });
    assert_eq!(admin.code("fs/write/open", large).await.0, "QUOTA_EXCEEDED");
}
