//! Rights over the mount: they are those of the operations, and a bucket without a right is one that does not exist.

use serde_json::json;

use crate::mount_client::{MountAnswer, MountClient};
use crate::scene::FilesNode;

const LOCK: &str = "<D:lockinfo xmlns:D='DAV:'><D:lockscope><D:exclusive/></D:lockscope>\
     <D:locktype><D:write/></D:locktype></D:lockinfo>";

/// Requests to an entry of a bucket, and requests that name the bucket as a destination or in a condition: the method, the
/// path, one field, and the body.
#[expect(
    clippy::type_complexity,
    reason = "a table that is read where it is written"
)]
fn requests(
    bucket: &str,
) -> Vec<(
    &'static str,
    String,
    [(&'static str, String); 1],
    &'static str,
)> {
    let path = format!("/fs/{bucket}/a");
    let own = "/fs/docs/x".to_owned();
    let token = "<urn:uuid:00010203-0405-4607-8809-0a0b0c0d0e0f>";
    let field = |name, value: &str| [(name, value.to_owned())];
    let depth = || field("depth", "0");
    let update = "<D:propertyupdate xmlns:D='DAV:'/>";
    let mut all = vec![
        ("PROPFIND", path.clone(), depth(), ""),
        ("PROPFIND", format!("/fs/{bucket}/"), depth(), ""),
        ("LOCK", path.clone(), depth(), LOCK),
        ("UNLOCK", path.clone(), field("lock-token", token), ""),
        ("PROPPATCH", path.clone(), depth(), update),
        ("COPY", path.clone(), field("destination", "/fs/docs/b"), ""),
        ("COPY", own.clone(), field("destination", &path), ""),
        ("MOVE", path.clone(), field("destination", "/fs/docs/b"), ""),
        ("MOVE", own, field("destination", &path), ""),
        ("PUT", path.clone(), field("upload-complete", "?0"), "x"),
        ("PUT", path.clone(), field("if-match", "*"), "x"),
        ("PUT", path.clone(), field("if", &format!("({token})")), "x"),
    ];
    for method in ["GET", "HEAD", "PUT", "DELETE", "MKCOL"] {
        all.push((method, path.clone(), field("accept", "*/*"), ""));
    }
    for below in ["@main/a", "@draft/a", "%231/a", "/.snap/monday/a"] {
        let path = format!("/fs/{bucket}{below}");
        all.push(("GET", path, field("accept", "*/*"), ""));
    }
    all
}

async fn answers(client: &MountClient, bucket: &str) -> Vec<(String, MountAnswer)> {
    let mut answers = Vec::new();
    for (method, path, fields, body) in requests(bucket) {
        let fields = fields.each_ref().map(|(name, it)| (*name, it.as_str()));
        let answer = client.send(method, &path, &fields, body).await;
        let asked = format!("{method} {path} {fields:?}");
        answers.push((asked.replace(bucket, "BUCKET"), answer));
    }
    answers
}

#[tokio::test]
async fn a_foreign_bucket_answers_over_http_as_one_that_does_not_exist() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin
        .call("fs/bucket/create", json!({ "bucket": "secret" }))
        .await;
    admin.put("secret:/a", b"secret").await;
    admin.put("docs:/x", b"x").await;
    let eve = MountClient::new(
        &node,
        "eve",
        &["fs:read:docs", "fs:write:docs", "fs:admin:docs"],
    );
    let (foreign, absent) = (answers(&eve, "secret").await, answers(&eve, "absent").await);
    for (foreign, absent) in foreign.into_iter().zip(absent) {
        assert_eq!(foreign, absent);
        assert_eq!(foreign.1.status, 404, "{}", foreign.0);
        assert_eq!(
            foreign.1.text(),
            "the bucket does not exist",
            "{}",
            foreign.0
        );
    }
    // Neither is anything changed.
    assert_eq!(admin.names("secret:/").await, ["/a"]);
    assert_eq!(admin.names("docs:/").await, ["/x"]);
    let root = eve
        .send("PROPFIND", "/fs/", &[("depth", "1")], "")
        .await
        .expect(207);
    assert!(
        root.text().contains("<D:href>/fs/docs/</D:href>"),
        "{}",
        root.text()
    );
    assert!(!root.text().contains("secret"), "{}", root.text());
    let root = eve
        .send("GET", "/fs/", &[("accept", "application/json")], "")
        .await
        .expect(200);
    assert!(
        root.text().contains("docs") && !root.text().contains("secret"),
        "{}",
        root.text()
    );
}

/// A condition on an entry of a foreign bucket tells nothing of it.
#[tokio::test]
async fn a_condition_on_a_foreign_entry_holds_as_for_an_absent_one() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin
        .call("fs/bucket/create", json!({ "bucket": "secret" }))
        .await;
    let writer = MountClient::new(&node, "root", &["fs:*"]);
    let made = writer.put("/fs/secret/a", "secret").await.expect(201);
    let eve = writer.other("eve", &["fs:read:docs", "fs:write:docs"]);
    for bucket in ["secret", "absent"] {
        let tag = made.header("etag");
        for (list, status) in [
            (format!("</fs/{bucket}/a> ([{tag}])"), 412),
            (format!("</fs/{bucket}/a> (Not [{tag}])"), 201),
        ] {
            let put = eve
                .send("PUT", &format!("/fs/docs/{bucket}"), &[("if", &list)], "x")
                .await;
            assert_eq!(put.status, status, "{list}");
        }
    }
}

#[tokio::test]
async fn each_right_is_for_its_methods() {
    let node = FilesNode::new();
    node.admin().await;
    let root = MountClient::new(&node, "root", &["fs:*"]);
    root.put("/fs/docs/a", "text").await.expect(201);
    let reader = root.other("ada", &["fs:read:docs"]);
    reader.get("/fs/docs/a").await.expect(200);
    let refused = reader.put("/fs/docs/a", "x").await.expect(403);
    assert!(refused.text().contains("fs:write:"), "{}", refused.text());
    for (method, field) in [
        ("DELETE", ("depth", "infinity")),
        ("MKCOL", ("depth", "0")),
        ("MOVE", ("destination", "/fs/docs/b")),
        ("COPY", ("destination", "/fs/docs/b")),
        ("LOCK", ("depth", "0")),
        ("PROPPATCH", ("depth", "0")),
    ] {
        reader
            .send(method, "/fs/docs/a", &[field], "")
            .await
            .expect(403);
    }
    let writer = root.other("bob", &["fs:write:docs"]);
    writer.get("/fs/docs/a").await.expect(403);
    writer.put("/fs/docs/a", "by bob").await.expect(204);
    writer
        .send("COPY", "/fs/docs/a", &[("destination", "/fs/docs/b")], "")
        .await
        .expect(403);
    // A caller that sees the bucket by any right learns which one is missing, as over the operations.
    let merger = root.other("eve", &["fs:merge:docs"]);
    merger.get("/fs/docs/a").await.expect(403);
    let everywhere = root.other("dan", &["fs:read:*"]);
    assert_eq!(
        everywhere.get("/fs/docs/a").await.expect(200).text(),
        "by bob"
    );
}

#[tokio::test]
async fn a_caller_without_an_identity_is_asked_for_a_token() {
    let node = FilesNode::new();
    node.admin().await;
    let unknown = MountClient::unknown(&node);
    for path in [
        "/fs/",
        "/fs/docs/a",
        "/fs/absent/a",
        "/fs/.blob/00",
        "/fs/docs/../a",
    ] {
        for method in ["GET", "PUT", "PROPFIND", "OPTIONS", "REPORT"] {
            let asked = unknown.send(method, path, &[], "").await.expect(401);
            let schemes: Vec<_> = asked.headers.get_all("www-authenticate").iter().collect();
            assert_eq!(schemes.len(), 2, "{method} {path}");
            assert!(asked.header("www-authenticate").starts_with("Basic "));
        }
    }
}

#[tokio::test]
async fn a_hash_is_no_capability_over_http() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin
        .call("fs/bucket/create", json!({ "bucket": "secret" }))
        .await;
    let root = MountClient::new(&node, "root", &["fs:*"]);
    let made = root.put("/fs/secret/a", "secret").await.expect(201);
    let hash = made
        .header("etag")
        .trim_matches('"')
        .trim_start_matches("b3-")
        .to_owned();
    let (own, random) = (
        format!("/fs/.blob/{hash}"),
        format!("/fs/.blob/{}", "00".repeat(32)),
    );
    let eve = root.other("eve", &["fs:read:docs", "fs:write:docs", "fs:admin:docs"]);
    let tag = format!("\"b3-{hash}\"");
    for method in ["GET", "HEAD"] {
        for field in [
            ("range", "bytes=0-0"),
            ("if-none-match", tag.as_str()),
            ("if-match", "\"x\""),
        ] {
            let foreign = eve.send(method, &own, &[field], "").await;
            let unknown = eve.send(method, &random, &[field], "").await;
            assert_eq!(foreign, unknown, "{method} {field:?}");
            assert_eq!(foreign.status, 404);
        }
    }
    let read = root.get(&own).await.expect(200);
    assert!(read.header("cache-control").contains("immutable"));
    assert_eq!(read.header("etag"), tag);
    // Once a bucket of hers has it as well, it is hers. The right to write in that bucket alone is not enough.
    eve.put("/fs/docs/mine", "secret").await.expect(201);
    assert_eq!(eve.get(&own).await.expect(200).text(), "secret");
    let writer = root.other("bob", &["fs:write:docs"]);
    writer.get(&own).await.expect(404);
}

/// What the mount and the operations serve is one store with one history.
#[tokio::test]
async fn a_change_over_http_is_one_of_its_caller() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let ada = MountClient::new(&node, "ada", &["fs:read:docs", "fs:write:docs"]);
    ada.put("/fs/docs/a", "text").await.expect(201);
    let history = admin.call("fs/history", json!({ "path": "docs:/a" })).await;
    assert_eq!(history["versions"][0]["actor"], "ada", "{history}");
    let (_, bytes) = admin.read(json!({ "path": "docs:/a" })).await;
    assert_eq!(bytes, b"text");
}

#[tokio::test]
async fn files_that_are_not_served_are_so_over_http() {
    let node = FilesNode::new();
    node.admin().await;
    let ada = MountClient::new(&node, "ada", &["fs:read:docs"]);
    node.service.shutdown().await;
    ada.get("/fs/docs/a").await.expect(503);
    ada.send("PROPFIND", "/fs/", &[("depth", "1")], "")
        .await
        .expect(503);
    // Rights are asked before the store.
    ada.get("/fs/secret/a").await.expect(404);
}
