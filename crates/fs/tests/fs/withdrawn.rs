//! Rights that are taken away while an operation, a download or an upload is under way: by other scopes, by the end of the
//! identity, or because the bucket is deleted.

use std::sync::Arc;

use alknet_call::CallError;
use alknet_core::BoxError;
use alknet_fs::limits::RIGHT_CHECK_BYTES;
use alknet_store::limits::READ_BLOCK_BYTES;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::mount_client::{MountClient, drain};
use crate::scene::{FilesNode, FilesPeer, ScopeTable, broken_off, bytes_of, hung, next, noise};

/// Bytes of a content that is longer than what a subscription sends ahead and what is read between two looks at the right,
/// together.
const READ_BYTES: usize = 32 << 20;

/// Bytes of a download that are sent at most until the right is looked at again: no block is cut.
const SENT_MAX: usize = RIGHT_CHECK_BYTES as usize + READ_BLOCK_BYTES;

/// Bytes of a content that is longer than that.
const DOWNLOAD_BYTES: usize = 12 << 20;

/// What `ada` has left, and the code with which its subscriptions end.
const ENDS: [(Option<&[&str]>, &str); 3] = [
    (Some(&["fs:read:other"]), "NOT_FOUND"),
    (Some(&["fs:write:docs"]), "FORBIDDEN"),
    (None, "UNAUTHENTICATED"),
];

/// A node with a file in the bucket `docs`, which `ada` may read and write.
struct WithdrawnRights {
    table: Arc<ScopeTable>,
    node: FilesNode,
    root: FilesPeer,
    /// The content of the file.
    content: Vec<u8>,
    hash: String,
}

impl WithdrawnRights {
    async fn new(bytes: usize) -> Self {
        let table = ScopeTable::new();
        table.set("root", Some(&["fs:*"]));
        let node = FilesNode::with_table(&table);
        let root = node.listed_peer(&table, "root");
        let scene = Self {
            table,
            node,
            root,
            content: noise(bytes),
            hash: String::new(),
        };
        let hash = scene.make_bucket().await;
        Self { hash, ..scene }
    }

    /// Makes the bucket with its file, again if it was deleted, and gives `ada` the right.
    async fn make_bucket(&self) -> String {
        self.restore();
        let bucket = json!({ "bucket": "docs" });
        self.root.call("fs/bucket/create", bucket).await;
        let client = MountClient::listed(&self.node, &self.table, "root");
        let put = client.put("/fs/docs/a", self.content.clone()).await;
        let put = put.expect(201);
        let tag = put.header("etag").trim_matches('"');
        tag.trim_start_matches("b3-").to_owned()
    }

    async fn delete_bucket(&self) {
        let bucket = json!({ "bucket": "docs" });
        self.root.call("fs/bucket/delete", bucket).await;
    }

    fn ada(&self) -> FilesPeer {
        self.node.listed_peer(&self.table, "ada")
    }

    fn client(&self) -> MountClient {
        MountClient::listed(&self.node, &self.table, "ada")
    }

    /// Gives `ada` the rights again that were taken away.
    fn restore(&self) {
        self.table
            .set("ada", Some(&["fs:read:docs", "fs:write:docs"]));
    }
}

/// The error of a subscription that never began.
async fn refusal(peer: &FilesPeer, operation: &str, input: Value) -> CallError {
    let mut items = peer.subscribe(operation, input).await;
    broken_off(&mut items).await.0
}

#[tokio::test]
async fn a_read_ends_with_the_right_to_it() {
    let scene = WithdrawnRights::new(READ_BYTES).await;
    for input in [json!({ "path": "docs:/a" }), json!({ "hash": scene.hash })] {
        for (left, code) in ENDS {
            scene.restore();
            let ada = scene.ada();
            let mut items = ada.subscribe("fs/read", input.clone()).await;
            // What it is, and its first block.
            next(&mut items).await;
            next(&mut items).await;
            scene.table.set("ada", left);
            let (error, bytes) = broken_off(&mut items).await;
            assert!(bytes < READ_BYTES, "{input} {left:?}: {bytes}");
            // A hash that is in no bucket of the caller is one that no bucket has.
            let is_by_hash = input.get("hash").is_some() && left.is_some();
            let code = if is_by_hash { "NOT_FOUND" } else { code };
            assert_eq!(error.code.name(), code, "{input} {left:?}: {error}");
        }
    }
}

/// The error is the one for a bucket, or a hash, that does not exist.
#[tokio::test]
async fn a_read_without_its_right_ends_as_one_of_what_does_not_exist() {
    let scene = WithdrawnRights::new(READ_BYTES).await;
    let unknown = "00".repeat(32);
    for (input, absent) in [
        (json!({ "path": "docs:/a" }), json!({ "path": "absent:/a" })),
        (json!({ "hash": scene.hash }), json!({ "hash": unknown })),
    ] {
        scene.restore();
        let ada = scene.ada();
        let mut items = ada.subscribe("fs/read", input).await;
        next(&mut items).await;
        scene.table.set("ada", Some(&["fs:read:other"]));
        let (error, _) = broken_off(&mut items).await;
        assert_eq!(error, refusal(&ada, "fs/read", absent).await);
    }
}

#[tokio::test]
async fn a_read_ends_with_its_bucket() {
    let scene = WithdrawnRights::new(READ_BYTES).await;
    for by_hash in [false, true] {
        let (input, absent) = match by_hash {
            false => (json!({ "path": "docs:/a" }), json!({ "path": "docs:/a" })),
            true => (
                json!({ "hash": scene.hash }),
                json!({ "hash": "00".repeat(32) }),
            ),
        };
        let ada = scene.ada();
        let mut items = ada.subscribe("fs/read", input).await;
        next(&mut items).await;
        scene.delete_bucket().await;
        let (error, bytes) = broken_off(&mut items).await;
        assert!(bytes < READ_BYTES, "{bytes}");
        assert_eq!(error, refusal(&ada, "fs/read", absent).await);
        scene.make_bucket().await;
    }
}

/// Neither changes of others nor a further right end it, and the node looks at the right several times.
#[tokio::test]
async fn a_read_goes_on_with_the_right_that_is_left() {
    let scene = WithdrawnRights::new(READ_BYTES).await;
    let ada = scene.ada();
    let mut items = ada.subscribe("fs/read", json!({ "path": "docs:/a" })).await;
    next(&mut items).await;
    scene.table.set("bob", Some(&["fs:read:docs"]));
    scene.table.set("ada", Some(&["fs:read:*"]));
    let mut bytes = 0;
    while let Some(item) = items.next().await {
        bytes += bytes_of(&item.expect("a block")).len();
    }
    assert_eq!(bytes, READ_BYTES);
}

/// It does not wait for the next event, which would tell that there was one.
#[tokio::test]
async fn a_watch_that_waits_ends_with_the_right_to_it() {
    let scene = WithdrawnRights::new(1).await;
    for (left, code) in ENDS {
        scene.restore();
        let ada = scene.ada();
        let input = json!({ "path": "docs:/" });
        let mut events = ada.subscribe("fs/watch", input).await;
        next(&mut events).await;
        scene.table.set("ada", left);
        let end = tokio::time::timeout(hung(), events.next()).await;
        let end = end.expect("without an event").expect("an end");
        let error = end.expect_err("no event");
        assert_eq!(error.code.name(), code, "{left:?}: {error}");
    }
}

#[tokio::test]
async fn no_event_comes_after_the_right_was_taken_away() {
    let scene = WithdrawnRights::new(1).await;
    let ada = scene.ada();
    let input = json!({ "path": "docs:/", "topics": ["fs.put"] });
    let mut events = ada.subscribe("fs/watch", input).await;
    next(&mut events).await;
    scene.root.put("docs:/before", b"x").await;
    assert_eq!(next(&mut events).await.output.value()["path"], "/before");
    scene.table.set("ada", Some(&["fs:read:other"]));
    scene.root.put("docs:/after", b"x").await;
    let end = events.next().await.expect("an end").expect_err("no event");
    let absent = refusal(&ada, "fs/watch", json!({ "path": "absent:/" })).await;
    assert_eq!(end, absent);
}

#[tokio::test]
async fn a_watch_ends_with_its_bucket() {
    let scene = WithdrawnRights::new(1).await;
    let ada = scene.ada();
    let input = json!({ "path": "docs:/", "topics": ["fs.put"] });
    let mut events = ada.subscribe("fs/watch", input.clone()).await;
    next(&mut events).await;
    scene.delete_bucket().await;
    let end = tokio::time::timeout(hung(), events.next()).await;
    let end = end.expect("without an event").expect("an end");
    let absent = refusal(&ada, "fs/watch", input).await;
    assert_eq!(end.expect_err("no event"), absent);
}

#[tokio::test]
async fn a_download_breaks_off_with_the_right_to_it() {
    let scene = WithdrawnRights::new(DOWNLOAD_BYTES).await;
    let by_hash = format!("/fs/.blob/{}", scene.hash);
    for path in ["/fs/docs/a", by_hash.as_str()] {
        // Whole, a long range, and several ranges.
        for range in ["all", "bytes=1-", "bytes=0-999999,2000000-"] {
            for (left, _) in ENDS {
                scene.restore();
                let mut body = scene.client().begin_range(path, range).await;
                let first = body.frame().await.expect("a frame").expect("whole");
                scene.table.set("ada", left);
                let (bytes, is_whole) = drain(body).await;
                assert!(!is_whole, "{path} {range} {left:?}");
                let sent = bytes + first.into_data().map_or(0, |data| data.len());
                // Between two ranges stands a short text.
                assert!(sent <= SENT_MAX + 1024, "{path} {range} {left:?}: {sent}");
            }
        }
    }
}

#[tokio::test]
async fn a_download_breaks_off_with_its_bucket() {
    let scene = WithdrawnRights::new(DOWNLOAD_BYTES).await;
    let by_hash = format!("/fs/.blob/{}", scene.hash);
    for path in ["/fs/docs/a", by_hash.as_str()] {
        let mut body = scene.client().begin(path).await;
        body.frame().await.expect("a frame").expect("whole");
        scene.delete_bucket().await;
        let (bytes, is_whole) = drain(body).await;
        assert!(!is_whole && bytes <= SENT_MAX, "{path}: {bytes}");
        scene.make_bucket().await;
    }
}

#[tokio::test]
async fn a_download_goes_on_with_the_right_that_is_left() {
    let scene = WithdrawnRights::new(DOWNLOAD_BYTES).await;
    let body = scene.client().begin("/fs/docs/a").await;
    scene.table.set("bob", Some(&["fs:read:docs"]));
    scene.table.set("ada", Some(&["fs:read:*"]));
    assert_eq!(drain(body).await, (DOWNLOAD_BYTES, true));
}

/// The body of an upload, whose caller loses its right before the last piece comes.
fn pieces(
    table: &Arc<ScopeTable>,
    left: Option<&'static [&'static str]>,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    let table = Arc::clone(table);
    stream::iter(0..3).map(move |number| {
        if number == 2 {
            table.set("ada", left);
        }
        Ok(Bytes::from(noise(1000)))
    })
}

#[tokio::test]
async fn an_upload_makes_no_file_without_the_right_to_it() {
    let scene = WithdrawnRights::new(1).await;
    let ends: [(Option<&[&str]>, u16); 3] = [
        (Some(&["fs:read:other"]), 404),
        (Some(&["fs:read:docs"]), 403),
        (None, 404),
    ];
    for (left, status) in ends {
        scene.restore();
        let client = scene.client();
        let path = "/fs/docs/new";
        let body = pieces(&scene.table, left);
        let refused = client.stream("PUT", path, &[], body).await;
        assert_eq!(refused.status, status, "{left:?}");

        // One that could go on later is given up.
        scene.restore();
        let open = [("upload-complete", "?0")];
        let opened = client.send("PUT", path, &open, "").await.expect(202);
        let upload = opened.header("location").to_owned();
        let rest = [("upload-offset", "0"), ("upload-complete", "?1")];
        let body = pieces(&scene.table, left);
        let refused = client.stream("PATCH", &upload, &rest, body).await;
        assert_eq!(refused.status, status, "{left:?}");
        scene.restore();
        client.send("HEAD", &upload, &[], "").await.expect(404);
    }
    assert_eq!(scene.root.names("docs:/").await, ["/a"]);
}
