//! MKCOL, COPY, MOVE, DELETE and OPTIONS.

use super::*;

#[test]
fn a_collection_is_made_once_and_in_another_one() {
    let mount = TestMount::new();
    mount.send("MKCOL", "/fs/docs/a/", &[], "").expect(201);
    mount.send("MKCOL", "/fs/docs/a", &[], "").expect(405);
    mount.send("MKCOL", "/fs/docs/b/c", &[], "").expect(409);
    mount.send("MKCOL", "/fs/docs/b", &[], "<x/>").expect(415);
    mount.send("MKCOL", "/fs/docs/", &[], "").expect(405);
    mount.send("PUT", "/fs/docs/a", &[], "x").expect(405);
}

#[test]
fn a_copy_replaces_only_where_it_may() {
    let mount = TestMount::new();
    mount.send("MKCOL", "/fs/docs/a", &[], "").expect(201);
    mount.send("PUT", "/fs/docs/a/f", &[], "text").expect(201);
    let to = |path| [("destination", path)];
    mount
        .send("COPY", "/fs/docs/a", &to("/fs/docs/b"), "")
        .expect(201);
    assert_eq!(mount.send("GET", "/fs/docs/b/f", &[], "").body, "text");
    mount.send("PUT", "/fs/docs/b/g", &[], "more").expect(201);
    let kept = [("destination", "/fs/docs/b"), ("overwrite", "F")];
    mount.send("COPY", "/fs/docs/a", &kept, "").expect(412);
    mount
        .send("COPY", "/fs/docs/a", &to("https://node/fs/docs/b/"), "")
        .expect(204);
    // As if it had been deleted before (RFC 4918 §9.8.4).
    mount.send("GET", "/fs/docs/b/g", &[], "").expect(404);
    let bare = [("destination", "/fs/docs/c"), ("depth", "0")];
    mount.send("COPY", "/fs/docs/a", &bare, "").expect(201);
    mount.send("GET", "/fs/docs/c/f", &[], "").expect(404);
    for (path, status) in [
        ("/fs/docs/a", 403),
        ("/fs/docs/a/x", 403),
        ("/fs/docs/none/x", 409),
        ("https://other/fs/docs/x", 502),
        ("/fs/secret/x", 404),
        ("/fs/docs/", 403),
    ] {
        mount
            .send("COPY", "/fs/docs/a", &to(path), "")
            .expect(status);
    }
    mount
        .send("COPY", "/fs/docs/none", &to("/fs/docs/x"), "")
        .expect(404);
    mount.send("COPY", "/fs/docs/a", &[], "").expect(400);
}

#[test]
fn a_move_takes_everything_along() {
    let mount = TestMount::new();
    mount.send("MKCOL", "/fs/docs/a", &[], "").expect(201);
    mount.send("PUT", "/fs/docs/a/f", &[], "text").expect(201);
    let to = |path| [("destination", path)];
    mount
        .send("MOVE", "/fs/docs/a", &to("/fs/docs/b"), "")
        .expect(201);
    mount.send("GET", "/fs/docs/a/f", &[], "").expect(404);
    assert_eq!(mount.send("GET", "/fs/docs/b/f", &[], "").body, "text");
    mount.send("PUT", "/fs/docs/g", &[], "other").expect(201);
    mount
        .send("MOVE", "/fs/docs/g", &to("/fs/docs/b"), "")
        .expect(204);
    assert_eq!(mount.send("GET", "/fs/docs/b", &[], "").body, "other");
    mount
        .send("MOVE", "/fs/docs/b", &to("/fs/docs/b"), "")
        .expect(403);
    mount
        .send("MOVE", "/fs/docs/", &to("/fs/docs/x"), "")
        .expect(403);
}

#[test]
fn a_deletion_is_of_a_whole_tree() {
    let mount = TestMount::new();
    mount.send("MKCOL", "/fs/docs/a", &[], "").expect(201);
    mount.send("PUT", "/fs/docs/a/f", &[], "text").expect(201);
    mount
        .send("DELETE", "/fs/docs/a", &[("depth", "0")], "")
        .expect(400);
    mount.send("DELETE", "/fs/docs/a", &[], "").expect(204);
    mount.send("DELETE", "/fs/docs/a", &[], "").expect(404);
    mount.send("DELETE", "/fs/docs/", &[], "").expect(403);
}

#[test]
fn the_server_names_its_classes() {
    let mount = TestMount::new();
    let options = mount.send("OPTIONS", "/fs/docs/", &[], "").expect(200);
    assert_eq!(options.header("dav"), "1, 2");
    assert!(options.header("allow").contains("PROPFIND"));
    let other = mount.send("REPORT", "/fs/docs/", &[], "").expect(405);
    assert!(other.header("allow").contains("LOCK"));
}
