//! GET, HEAD and PUT.

use super::*;

#[test]
fn a_file_comes_back_as_it_was_put() {
    let mount = TestMount::new();
    let made = mount
        .send("PUT", "/fs/docs/a.html", &[], "<script>")
        .expect(201);
    let tag = made.header("etag").to_owned();
    assert!(tag.starts_with("\"b3-"), "{tag}");
    let read = mount.send("GET", "/fs/docs/a.html", &[], "").expect(200);
    assert_eq!(read.body, "<script>");
    assert_eq!(read.header("etag"), tag);
    assert_eq!(read.header("content-length"), "8");
    // A browser neither renders nor runs what was uploaded.
    assert!(read.header("content-security-policy").contains("sandbox"));
    assert_eq!(read.header("content-disposition"), "attachment");
    assert_eq!(read.header("x-content-type-options"), "nosniff");
    let head = mount.send("HEAD", "/fs/docs/a.html", &[], "").expect(200);
    assert_eq!(
        (head.body.as_str(), head.header("content-length")),
        ("", "8")
    );
    mount
        .send("GET", "/fs/docs/a.html", &[("if-none-match", &tag)], "")
        .expect(304);
    mount
        .send("PUT", "/fs/docs/a.html", &[], "second")
        .expect(204);
    assert_eq!(mount.send("GET", "/fs/docs/a.html", &[], "").body, "second");
}

/// Ten thousand small files with five requests each, at the default settings of the server.
#[test]
fn a_client_of_many_small_files_is_within_the_budget() {
    let mount = TestMount::new();
    let budget = mount.mount.request_budget().expect("one of its own");
    assert!(budget.burst >= 5 * 10_000, "{budget:?}");
}

#[test]
fn of_two_writes_with_one_condition_one_is_carried_out() {
    let mount = TestMount::new();
    let made = mount
        .send("PUT", "/fs/docs/a", &[("if-none-match", "*")], "1")
        .expect(201);
    let condition = [("if-match", made.header("etag"))];
    mount
        .send("PUT", "/fs/docs/a", &[("if-none-match", "*")], "x")
        .expect(412);
    mount.send("PUT", "/fs/docs/a", &condition, "2").expect(204);
    mount.send("PUT", "/fs/docs/a", &condition, "3").expect(412);
    assert_eq!(mount.send("GET", "/fs/docs/a", &[], "").body, "2");
    mount
        .send("DELETE", "/fs/docs/a", &condition, "")
        .expect(412);
}

/// The client can decide without a second request. One that may not read the file learns of no version.
#[test]
fn a_failed_condition_names_the_present_version_to_those_who_may_read_it() {
    let mount = TestMount::new();
    let made = mount.send("PUT", "/fs/docs/a", &[], "1").expect(201);
    let tag = made.header("etag");
    let other = ("if-match", "\"b3-00\"");
    let lists = format!("([{}])", other.1);
    for (method, field) in [
        ("GET", other),
        ("HEAD", other),
        ("PUT", other),
        ("PUT", ("if-none-match", "*")),
        ("PUT", ("if", &*lists)),
        ("DELETE", other),
    ] {
        let refused = mount.send(method, "/fs/docs/a", &[field], "").expect(412);
        assert_eq!(refused.header("etag"), tag, "{method} {field:?}");
    }
    for field in [other, ("if-none-match", "*")] {
        let refused = mount.send_as(Some("dave"), ("PUT", "/fs/docs/a"), &[field], Vec::new());
        assert_eq!(refused.expect(412).header("etag"), "", "{field:?}");
    }
    // There is no version of what does not exist, and none of a directory.
    mount.send("MKCOL", "/fs/docs/d", &[], "").expect(201);
    for path in ["/fs/docs/none", "/fs/docs/d"] {
        let refused = mount.send("DELETE", path, &[other], "").expect(412);
        assert_eq!(refused.header("etag"), "", "{path}");
    }
}

#[test]
fn ranges_are_parts_of_a_file() {
    let mount = TestMount::new();
    mount
        .send("PUT", "/fs/docs/a.txt", &[], "0123456789")
        .expect(201);
    let range = |range| mount.send("GET", "/fs/docs/a.txt", &[("range", range)], "");
    let one = range("bytes=2-4").expect(206);
    assert_eq!(
        (one.body.as_str(), one.header("content-range")),
        ("234", "bytes 2-4/10")
    );
    let two = range("bytes=0-0,-1").expect(206);
    assert!(
        two.header("content-type")
            .starts_with("multipart/byteranges")
    );
    assert!(
        two.body.contains("bytes 9-9/10\r\n\r\n9\r\n--"),
        "{}",
        two.body
    );
    assert_eq!(two.header("content-length"), two.body.len().to_string());
    assert_eq!(
        range("bytes=10-").expect(416).header("content-range"),
        "bytes */10"
    );
    let many = vec!["0-0"; 1000].join(",");
    assert_eq!(
        range(&format!("bytes={many}")).expect(200).body,
        "0123456789"
    );
}

#[test]
fn an_upload_that_breaks_off_leaves_the_file() {
    let mount = TestMount::new();
    mount.send("PUT", "/fs/docs/a", &[], "before").expect(201);
    let pieces = vec![
        Ok(Bytes::from(vec![b'x'; 300 << 10])),
        Err(BoxError::from("gone")),
    ];
    mount
        .send_as(Some("alice"), ("PUT", "/fs/docs/a"), &[], pieces)
        .expect(400);
    assert_eq!(mount.send("GET", "/fs/docs/a", &[], "").body, "before");
    // A length that lies, up and down.
    for length in ["3", "30"] {
        let fields = [("content-length", length)];
        let refused = mount.send("PUT", "/fs/docs/a", &fields, "another");
        assert!(refused.status.is_client_error(), "{}", refused.status);
        assert_eq!(mount.send("GET", "/fs/docs/a", &[], "").body, "before");
    }
    let part = [("content-range", "bytes 0-0/6")];
    mount.send("PUT", "/fs/docs/a", &part, "x").expect(400);
}

#[test]
fn what_a_caller_may_not_see_does_not_exist() {
    let mount = TestMount::new();
    mount.send("PUT", "/fs/docs/a", &[], "text").expect(201);
    let unknown = mount
        .send_as(None, ("GET", "/fs/docs/a"), &[], Vec::new())
        .expect(401);
    let schemes: Vec<_> = unknown.headers.get_all("www-authenticate").iter().collect();
    assert_eq!(schemes.len(), 2);
    for path in ["/fs/docs/a", "/fs/docs/b", "/fs/none/a"] {
        for method in ["GET", "PUT", "DELETE", "PROPFIND", "LOCK"] {
            let fields = [("depth", "0")];
            let refused = mount.send_as(Some("bob"), (method, path), &fields, Vec::new());
            assert_eq!(
                refused.expect(404).body,
                "the bucket does not exist",
                "{method} {path}"
            );
        }
    }
    let read = mount.send_as(Some("carol"), ("GET", "/fs/docs/a"), &[], Vec::new());
    read.expect(200);
    mount
        .send_as(Some("carol"), ("PUT", "/fs/docs/a"), &[], Vec::new())
        .expect(403);
    let secret = mount.send("GET", "/fs/secret/a", &[], "");
    secret.expect(404);
}

#[test]
fn a_content_is_found_by_its_hash() {
    let mount = TestMount::new();
    let made = mount.send("PUT", "/fs/docs/a", &[], "text").expect(201);
    let hash = made
        .header("etag")
        .trim_matches('"')
        .trim_start_matches("b3-")
        .to_owned();
    let path = format!("/fs/.blob/{hash}");
    let read = mount.send("GET", &path, &[], "").expect(200);
    assert_eq!(read.body, "text");
    assert!(read.header("cache-control").contains("immutable"));
    let unknown = format!("/fs/.blob/{}", "0".repeat(64));
    let missing = mount.send("GET", &unknown, &[], "").expect(404);
    let hidden = mount
        .send_as(Some("bob"), ("GET", &path), &[], Vec::new())
        .expect(404);
    assert_eq!(hidden.body, missing.body);
    mount.send("PUT", &path, &[], "x").expect(405);
}

#[test]
fn directories_are_listed_for_people_and_for_programs() {
    let mount = TestMount::new();
    mount.send("MKCOL", "/fs/docs/d", &[], "").expect(201);
    mount
        .send("PUT", "/fs/docs/d/%3Cb%3E.txt", &[], "text")
        .expect(201);
    let moved = mount.send("GET", "/fs/docs/d", &[], "").expect(308);
    assert_eq!(moved.header("location"), "/fs/docs/d/");
    let page = mount.send("GET", "/fs/docs/d/", &[], "").expect(200);
    assert!(page.header("content-security-policy").contains("sandbox"));
    assert!(
        page.body
            .contains("<a href=\"/fs/docs/d/%3Cb%3E.txt\">&lt;b&gt;.txt</a>")
    );
    let json = [("accept", "application/json")];
    let object = mount.send("GET", "/fs/docs/d/", &json, "").expect(200);
    let object: serde_json::Value = serde_json::from_str(&object.body).expect("JSON");
    assert_eq!(object["entries"][0]["name"], "<b>.txt");
    assert_eq!(object["entries"][0]["size"], 4);
    let buckets = mount.send("GET", "/fs/", &json, "").expect(200);
    let buckets: serde_json::Value = serde_json::from_str(&buckets.body).expect("JSON");
    assert_eq!(buckets["entries"].as_array().map(Vec::len), Some(1));
}

#[test]
fn wrong_paths_are_refused_by_their_rule() {
    let mount = TestMount::new();
    mount.send("PUT", "/fs/docs/kept", &[], "x").expect(201);
    let long = format!("/fs/docs/{}", "a".repeat(300));
    let deep = format!("/fs/docs{}", "/a".repeat(65));
    for path in [
        "/fs/docs/../a",
        "/fs/docs/%00",
        "/fs/docs/a//b",
        "/fs/docs/a%2fb",
        &long,
        &deep,
    ] {
        for method in ["PUT", "GET", "DELETE", "PROPFIND", "LOCK"] {
            let fields = [("depth", "0")];
            let refused = mount.send(method, path, &fields, "");
            assert_eq!(refused.status, 400, "{method} {path:.60}");
        }
        mount.send("MKCOL", path, &[], "").expect(400);
        mount.send("PUT", path, &[], "x").expect(400);
        for method in ["COPY", "MOVE"] {
            let to = [("destination", path)];
            let refused = mount.send(method, "/fs/docs/kept", &to, "");
            assert_eq!(refused.status, 400, "{method} {path:.60}");
        }
    }
    mount.send("PUT", "/fs/docs/a/b", &[], "x").expect(409);
    mount.send("PUT", "/fs/docs/", &[], "x").expect(405);
    mount.send("PUT", "/fs/docs%23/a", &[], "x").expect(400);
    let listed = mount
        .send("PROPFIND", "/fs/docs/", &[("depth", "1")], "")
        .expect(207);
    assert_eq!(
        listed.body.matches("<D:response>").count(),
        2,
        "nothing was made on the way"
    );
}
