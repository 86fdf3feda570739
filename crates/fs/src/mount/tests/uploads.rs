//! Uploads that can be resumed.

use super::*;
use crate::dav::DavTarget;

fn begin(mount: &TestMount, path: &str, fields: &[(&str, &str)]) -> String {
    let mut all = vec![("upload-complete", "?0")];
    all.extend_from_slice(fields);
    let made = mount.send("PUT", path, &all, "").expect(202);
    assert_eq!(made.header("upload-offset"), "0");
    made.header("location").to_owned()
}

#[test]
fn an_upload_goes_on_after_its_connection_broke() {
    let mount = TestMount::new();
    mount.send("PUT", "/fs/docs/a", &[], "before").expect(201);
    let upload = begin(&mount, "/fs/docs/a", &[("upload-length", "6")]);
    let first = [("upload-offset", "0"), ("upload-complete", "?1")];
    let pieces = vec![Ok(Bytes::from("012")), Err(BoxError::from("gone"))];
    let broken = mount.send_as(Some("alice"), ("PATCH", &upload), &first, pieces);
    broken.expect(400);
    assert_eq!(
        mount
            .send("HEAD", &upload, &[], "")
            .expect(204)
            .header("upload-offset"),
        "3"
    );
    assert_eq!(mount.send("GET", "/fs/docs/a", &[], "").body, "before");
    let wrong = mount.send("PATCH", &upload, &first, "345").expect(409);
    assert_eq!(wrong.header("upload-offset"), "3");
    let rest = [("upload-offset", "3"), ("upload-complete", "?1")];
    let done = mount.send("PATCH", &upload, &rest, "345").expect(204);
    assert!(done.header("etag").starts_with("\"b3-"));
    assert_eq!(mount.send("GET", "/fs/docs/a", &[], "").body, "012345");
    mount.send("HEAD", &upload, &[], "").expect(404);
}

#[test]
fn an_upload_whose_file_was_changed_names_the_present_version() {
    let mount = TestMount::new();
    let made = mount.send("PUT", "/fs/docs/a", &[], "1").expect(201);
    let condition = [("if-match", made.header("etag"))];
    let upload = begin(&mount, "/fs/docs/a", &condition);
    let now = mount.send("PUT", "/fs/docs/a", &[], "2").expect(204);
    let all = [("upload-offset", "0"), ("upload-complete", "?1")];
    let late = mount.send("PATCH", &upload, &all, "3").expect(412);
    assert_eq!(late.header("etag"), now.header("etag"));
    assert_eq!(mount.send("GET", "/fs/docs/a", &[], "").body, "2");
}

#[test]
fn an_upload_is_of_its_identity_and_can_be_given_up() {
    let mount = TestMount::new();
    let upload = begin(&mount, "/fs/docs/a", &[]);
    for identity in ["bob", "carol"] {
        mount
            .send_as(Some(identity), ("HEAD", &upload), &[], Vec::new())
            .expect(404);
    }
    mount.send("GET", &upload, &[], "").expect(405);
    mount.send("DELETE", &upload, &[], "").expect(204);
    mount.send("HEAD", &upload, &[], "").expect(404);
    mount.send("GET", "/fs/docs/a", &[], "").expect(404);
}

#[test]
fn an_upload_with_another_length_makes_no_file() {
    let mount = TestMount::new();
    for body in ["01", "0123"] {
        let upload = begin(&mount, "/fs/docs/a", &[("upload-length", "3")]);
        let fields = [("upload-offset", "0"), ("upload-complete", "?1")];
        mount.send("PATCH", &upload, &fields, body).expect(400);
        mount.send("HEAD", &upload, &[], "").expect(404);
        mount.send("GET", "/fs/docs/a", &[], "").expect(404);
    }
}

/// The operation that ends a session knows nothing of the uploads of the mount.
#[test]
fn an_upload_goes_on_beside_many_that_their_caller_ended() {
    const ROUNDS: usize = 100;
    let mount = TestMount::new();
    let ours = begin(&mount, "/fs/docs/a", &[("upload-length", "3")]);
    for _ in 0..ROUNDS {
        let fields = [("upload-complete", "?0")];
        let begun = mount.send_as(Some("dan"), ("PUT", "/fs/docs/b"), &fields, Vec::new());
        let begun = begun.expect(202);
        let DavTarget::Upload(id) = DavTarget::parse(begun.header("location")).expect("a path")
        else {
            panic!("{:?}", begun.headers);
        };
        let ended = mount.mount.files.0.sessions().abort(id, "dan");
        ended.expect("its own session");
        assert!(!mount.mount.files.0.sessions().is_open(id));
    }
    let rest = [("upload-offset", "0"), ("upload-complete", "?1")];
    mount.send("PATCH", &ours, &rest, "012").expect(201);
    assert_eq!(mount.send("GET", "/fs/docs/a", &[], "").body, "012");
}
