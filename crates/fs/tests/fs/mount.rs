//! Files over the HTTP mount, with the store that the service opens.

use std::sync::Arc;

use alknet_core::BoxError;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::Barrier;

use crate::mount_client::MountClient;
use crate::scene::{FilesNode, noise};

const LOCK: &str = "<D:lockinfo xmlns:D='DAV:'><D:lockscope><D:exclusive/></D:lockscope>\
     <D:locktype><D:write/></D:locktype><D:owner>davfs2</D:owner></D:lockinfo>";

async fn scene() -> (FilesNode, MountClient) {
    let node = FilesNode::new();
    node.admin().await;
    let root = MountClient::new(&node, "root", &["fs:*"]);
    (node, root)
}

#[tokio::test]
async fn a_long_file_comes_back_whole_and_in_ranges() {
    let (_node, root) = scene().await;
    let content = noise(3_000_000);
    let pieces: Vec<Result<Bytes, BoxError>> = content
        .chunks(70_001)
        .map(|it| Ok(Bytes::copy_from_slice(it)))
        .collect();
    let length = content.len().to_string();
    let put = root
        .stream(
            "PUT",
            "/fs/docs/a.bin",
            &[("content-length", &length)],
            stream::iter(pieces),
        )
        .await
        .expect(201);
    let tag = put.header("etag").to_owned();
    assert_eq!(tag.len(), "\"b3-\"".len() + 64, "{tag}");
    let read = root.get("/fs/docs/a.bin").await.expect(200);
    assert!(read.body == content);
    assert_eq!(read.header("etag"), tag);
    let head = root
        .send("HEAD", "/fs/docs/a.bin", &[], "")
        .await
        .expect(200);
    assert_eq!(
        (head.body.len(), head.header("content-length")),
        (0, length.as_str())
    );
    assert_eq!(head.header("accept-ranges"), "bytes");
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=1000000-2000000", 1_000_000, 2_000_001),
        ("bytes=2999999-", 2_999_999, 3_000_000),
        ("bytes=-70000", 2_930_000, 3_000_000),
    ] {
        let part = root
            .send("GET", "/fs/docs/a.bin", &[("range", range)], "")
            .await
            .expect(206);
        assert!(part.body == content[from..to], "{range}");
        let expected = format!("bytes {from}-{}/3000000", to - 1);
        assert_eq!(part.header("content-range"), expected);
    }
    // Ranges of GET only, and of the version that the client has.
    let fields = [("range", "bytes=0-0"), ("if-range", tag.as_str())];
    root.send("HEAD", "/fs/docs/a.bin", &fields, "")
        .await
        .expect(200);
    root.send("GET", "/fs/docs/a.bin", &fields, "")
        .await
        .expect(206);
    let other = [("range", "bytes=0-0"), ("if-range", "\"other\"")];
    root.send("GET", "/fs/docs/a.bin", &other, "")
        .await
        .expect(200);
    root.send("GET", "/fs/docs/a.bin", &[("range", "bytes=3000000-")], "")
        .await
        .expect(416);
    root.send("GET", "/fs/docs/a.bin", &[("if-none-match", &tag)], "")
        .await
        .expect(304);
}

/// The race of the brief's acceptance (b)1: exactly one of two wins, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_writes_at_once_with_one_condition_one_wins() {
    let (_node, root) = scene().await;
    let mut tag = root
        .put("/fs/docs/a", "0")
        .await
        .expect(201)
        .header("etag")
        .to_owned();
    for round in 0..20 {
        let start = Arc::new(Barrier::new(2));
        let write = |name: &'static str| {
            let (client, start, tag) = (root.clone(), Arc::clone(&start), tag.clone());
            tokio::spawn(async move {
                start.wait().await;
                let body = format!("{name} {round}");
                let condition = [("if-match", tag.as_str())];
                let put = client.send("PUT", "/fs/docs/a", &condition, body.clone());
                (put.await, body)
            })
        };
        let (one, two) = tokio::join!(write("one"), write("two"));
        let answers = [one.expect("no panic"), two.expect("no panic")];
        let mut statuses: Vec<_> = answers.iter().map(|(it, _)| it.status.as_u16()).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [204, 412]);
        let won = answers
            .iter()
            .find(|(it, _)| it.status == 204)
            .expect("one");
        let now = root.get("/fs/docs/a").await.expect(200);
        assert_eq!(now.text(), won.1);
        // Whether its condition failed at the beginning or at the commit.
        let lost = answers.iter().find(|(it, _)| it.status == 412);
        assert_eq!(lost.expect("one").0.header("etag"), won.0.header("etag"));
        won.0.header("etag").clone_into(&mut tag);
        assert_eq!(now.header("etag"), tag);
    }
}

/// The same for a name that both find free.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_writes_at_once_of_a_free_name_one_wins() {
    let (_node, root) = scene().await;
    for round in 0..20 {
        let write = |body: &'static str| {
            let client = root.clone();
            let path = format!("/fs/docs/{round}");
            let free = [("if-none-match", "*")];
            tokio::spawn(async move { client.send("PUT", &path, &free, body).await.status })
        };
        let (one, two) = tokio::join!(write("one"), write("two"));
        let mut statuses = [one.expect("no panic"), two.expect("no panic")];
        statuses.sort_unstable();
        assert_eq!(statuses.map(|it| it.as_u16()), [201, 412]);
    }
}

/// A client that goes away in the middle leaves the file, and what it sent is freed.
#[tokio::test]
async fn an_upload_that_its_client_leaves_is_given_up() {
    // More than the store stages between two notes of it.
    const SENT: usize = 9 << 20;
    let (node, root) = scene().await;
    let admin = node.peer("root", &["fs:*"]);
    root.put("/fs/docs/a", "before").await.expect(201);
    let first: Result<Bytes, BoxError> = Ok(noise(SENT).into());
    let (sent, mut written) = tokio::sync::mpsc::unbounded_channel();
    let pieces = stream::once(async move { first }).chain(stream::once(async move {
        // The first piece was written when the next one is asked for.
        sent.send(()).expect("the test waits");
        std::future::pending().await
    }));
    let client = root.clone();
    let upload = tokio::spawn(async move { client.stream("PUT", "/fs/docs/a", &[], pieces).await });
    written.recv().await.expect("it came so far");
    let staged = || async {
        let usage = admin
            .call("fs/bucket/usage", json!({ "bucket": "docs" }))
            .await;
        usage["staged"].as_u64().expect("a number")
    };
    assert!(staged().await >= SENT as u64);
    upload.abort();
    let freed = async {
        while staged().await > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::scene::hung(), freed)
        .await
        .expect("it is given up");
    assert_eq!(root.get("/fs/docs/a").await.text(), "before");
}

/// davfs2 locks a name before it exists. The lock is one of the store, which the operations ask as well.
#[tokio::test]
async fn a_lock_of_a_free_name_is_a_row_of_the_store() {
    let (node, root) = scene().await;
    let ada = root.other("ada", &["fs:read:docs", "fs:write:docs"]);
    let locked = ada
        .send(
            "LOCK",
            "/fs/docs/new",
            &[("depth", "0"), ("timeout", "Second-60")],
            LOCK,
        )
        .await
        .expect(201);
    let token = locked.header("lock-token").to_owned();
    let admin = node.peer("root", &["fs:*"]);
    let shown = admin
        .call("fs/notify/lock/show", json!({ "path": "docs:/new" }))
        .await;
    assert_eq!(shown["locks"][0]["owner"], "ada", "{shown}");
    assert_eq!(shown["locks"][0]["kind"], "exclusive", "{shown}");
    assert_eq!(root.get("/fs/docs/new").await.expect(200).text(), "");
    // Of another identity over HTTP, even with the token, and over the operations.
    root.put("/fs/docs/new", "x").await.expect(423);
    let condition = format!("({token})");
    root.send("PUT", "/fs/docs/new", &[("if", &condition)], "x")
        .await
        .expect(423);
    let put = json!({ "path": "docs:/new", "bytes": "" });
    let (code, details) = admin.code("fs/put", put).await;
    assert_eq!(details["reason"], "locked", "{code}");
    ada.send("PUT", "/fs/docs/new", &[("if", &condition)], "mine")
        .await
        .expect(204);
    ada.send("UNLOCK", "/fs/docs/new", &[("lock-token", &token)], "")
        .await
        .expect(204);
    root.put("/fs/docs/new", "x").await.expect(204);
    let shown = admin
        .call("fs/notify/lock/show", json!({ "path": "docs:/new" }))
        .await;
    assert_eq!(shown["locks"], json!([]));
    ada.send("LOCK", "/fs/docs/none/new", &[("depth", "0")], LOCK)
        .await
        .expect(409);
}

#[tokio::test]
async fn a_listing_of_any_depth_is_refused_by_its_condition() {
    let (_node, root) = scene().await;
    for fields in [&[("depth", "infinity")][..], &[]] {
        let refused = root
            .send("PROPFIND", "/fs/docs/", fields, "")
            .await
            .expect(403);
        assert!(
            refused.text().contains("<D:propfind-finite-depth/>"),
            "{}",
            refused.text()
        );
    }
    root.send("PROPFIND", "/fs/docs/", &[("depth", "2")], "")
        .await
        .expect(400);
}

/// A directory of more entries than a page of the store has, in each of the three forms.
#[tokio::test]
async fn a_long_directory_is_listed_whole() {
    const ENTRIES: usize = 2100;
    let (node, root) = scene().await;
    let admin = node.peer("root", &["fs:*"]);
    let all: Vec<Value> = (0..ENTRIES)
        .map(|at| json!({ "op": "mkdir", "path": format!("docs:/many/{at:04}") }))
        .collect();
    for changes in all.chunks(1000) {
        admin.call("fs/batch", json!({ "changes": changes })).await;
    }
    let found = root
        .send("PROPFIND", "/fs/docs/many", &[("depth", "1")], "")
        .await
        .expect(207);
    let text = found.text();
    assert_eq!(text.matches("<D:response>").count(), ENTRIES + 1);
    assert_eq!(text.matches("<D:multistatus").count(), 1);
    assert!(text.trim_end().ends_with("</D:multistatus>"));
    for at in [0, 999, 1000, 1999, 2000, ENTRIES - 1] {
        let href = format!("<D:href>/fs/docs/many/{at:04}/</D:href>");
        assert_eq!(text.matches(&href).count(), 1, "{at}");
    }
    let json = [("accept", "application/json")];
    let listed = root
        .send("GET", "/fs/docs/many/", &json, "")
        .await
        .expect(200);
    let listed: Value = serde_json::from_slice(&listed.body).expect("JSON");
    assert_eq!(listed["entries"].as_array().map(Vec::len), Some(ENTRIES));
    let page = root.get("/fs/docs/many/").await.expect(200);
    assert_eq!(
        page.text().matches("<a href=\"/fs/docs/many/").count(),
        ENTRIES
    );
}

#[tokio::test]
async fn entries_are_copied_moved_and_deleted() {
    let (node, root) = scene().await;
    let admin = node.peer("root", &["fs:*"]);
    admin
        .call("fs/bucket/create", json!({ "bucket": "archive" }))
        .await;
    root.send("MKCOL", "/fs/docs/d", &[], "").await.expect(201);
    root.put("/fs/docs/d/a", "text").await.expect(201);
    let to = |path| [("destination", path)];
    root.send("COPY", "/fs/docs/d", &to("/fs/docs/e"), "")
        .await
        .expect(201);
    root.send("MOVE", "/fs/docs/d/a", &to("/fs/docs/e/b"), "")
        .await
        .expect(201);
    assert_eq!(admin.names("docs:/e").await, ["/e/a", "/e/b"]);
    assert_eq!(admin.names("docs:/d").await, [""; 0]);
    // A copy leads into another bucket, and a move does not (RFC 4918 §9.9.4).
    root.send("COPY", "/fs/docs/e", &to("/fs/archive/e"), "")
        .await
        .expect(201);
    assert_eq!(root.get("/fs/archive/e/b").await.expect(200).text(), "text");
    root.send("MOVE", "/fs/docs/e", &to("/fs/archive/f"), "")
        .await
        .expect(502);
    root.send("DELETE", "/fs/docs/e", &[], "").await.expect(204);
    root.get("/fs/docs/e/a").await.expect(404);
    // What was deleted is in the history still, which takes no changes.
    let history = admin
        .call("fs/history", json!({ "path": "docs:/e/b" }))
        .await;
    let seq = history["versions"][1]["seq"].as_u64().expect("a number");
    let before = format!("/fs/docs%23{seq}/e/b");
    assert_eq!(root.get(&before).await.expect(200).text(), "text");
    root.put(&before, "x").await.expect(405);
    root.send("DELETE", &before, &[], "").await.expect(405);
    root.send("COPY", &before, &to("/fs/docs/again"), "")
        .await
        .expect(201);
    assert_eq!(root.get("/fs/docs/again").await.text(), "text");
}

/// Over HTTP/3, and in chunks, a request says only at its end that it has no body.
#[tokio::test]
async fn a_collection_is_made_by_a_request_whose_body_ends_late() {
    let (_node, root) = scene().await;
    let none = || stream::iter(Vec::<Result<Bytes, BoxError>>::new());
    root.stream("MKCOL", "/fs/docs/d", &[], none())
        .await
        .expect(201);
    let empty = stream::iter([Ok(Bytes::new()), Ok(Bytes::new())]);
    root.stream("MKCOL", "/fs/docs/e", &[], empty)
        .await
        .expect(201);
    let late = stream::iter([Ok(Bytes::new()), Ok(Bytes::from("x"))]);
    root.stream("MKCOL", "/fs/docs/f", &[], late)
        .await
        .expect(415);
    root.stream("DELETE", "/fs/docs/d", &[], none())
        .await
        .expect(204);
}

#[tokio::test]
async fn a_protected_branch_takes_no_request_that_changes_it() {
    let (node, root) = scene().await;
    let admin = node.peer("root", &["fs:*"]);
    root.put("/fs/docs/a", "text").await.expect(201);
    let protect = json!({ "bucket": "docs", "name": "main", "protected": true });
    admin.call("fs/branch/set", protect).await;
    root.put("/fs/docs/a", "x").await.expect(403);
    root.send("DELETE", "/fs/docs/a", &[], "").await.expect(403);
    root.send("MKCOL", "/fs/docs/d", &[], "").await.expect(403);
    assert_eq!(root.get("/fs/docs/a").await.expect(200).text(), "text");
}

#[tokio::test]
async fn a_full_bucket_says_so_by_its_condition() {
    let (node, root) = scene().await;
    let admin = node.peer("root", &["fs:*"]);
    admin
        .call(
            "fs/bucket/set",
            json!({ "bucket": "docs", "quota_bytes": 1000 }),
        )
        .await;
    let refused = root.put("/fs/docs/a", noise(1001)).await.expect(507);
    assert!(
        refused.text().contains("<D:quota-not-exceeded/>"),
        "{}",
        refused.text()
    );
    root.put("/fs/docs/a", noise(1000)).await.expect(201);
}
