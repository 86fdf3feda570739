//! PROPFIND and PROPPATCH.

use super::*;
use crate::dav::XmlElement;

#[test]
fn the_members_of_a_collection_are_found() {
    let mount = TestMount::new();
    mount.send("MKCOL", "/fs/docs/d", &[], "").expect(201);
    mount
        .send("PUT", "/fs/docs/d/a%26b", &[], "text")
        .expect(201);
    let deep = mount
        .send("PROPFIND", "/fs/docs/d", &[("depth", "1")], "")
        .expect(207);
    let root = XmlElement::parse(deep.body.as_bytes()).expect("well-formed");
    assert_eq!(root.elements().count(), 2);
    for text in [
        "<D:href>/fs/docs/d/</D:href>",
        "<D:href>/fs/docs/d/a%26b</D:href>",
        "<D:getcontentlength>4</D:getcontentlength>",
        "<D:displayname>a&amp;b</D:displayname>",
    ] {
        assert!(deep.body.contains(text), "{text}: {}", deep.body);
    }
    let flat = mount
        .send("PROPFIND", "/fs/docs/d", &[("depth", "0")], "")
        .expect(207);
    assert_eq!(flat.body.matches("<D:response>").count(), 1);
    let infinite = mount.send("PROPFIND", "/fs/docs/d", &[], "").expect(403);
    assert!(infinite.body.contains("<D:propfind-finite-depth/>"));
    mount
        .send("PROPFIND", "/fs/docs/none", &[("depth", "0")], "")
        .expect(404);
    let buckets = mount
        .send("PROPFIND", "/fs/", &[("depth", "1")], "")
        .expect(207);
    assert!(buckets.body.contains("/fs/docs/") && !buckets.body.contains("secret"));
}

#[test]
fn hostile_bodies_are_refused() {
    let mount = TestMount::new();
    let entities = "<!DOCTYPE a [<!ENTITY b 'c'>]><D:propfind xmlns:D='DAV:'>&b;</D:propfind>";
    let deep = "<a>".repeat(1000);
    let huge = " ".repeat(10 << 20);
    for (body, status) in [(entities, 400), (deep.as_str(), 400), (huge.as_str(), 413)] {
        mount
            .send("PROPFIND", "/fs/docs/", &[("depth", "0")], body)
            .expect(status);
    }
}

/// A caller without a right must not make the node read a body, let alone parse it.
#[test]
fn a_right_is_asked_before_a_body_is_read() {
    let mount = TestMount::new();
    let bomb = format!(
        "<D:propfind xmlns:D='DAV:' xmlns:a='{}'>{}</D:propfind>",
        "n".repeat(230 << 10),
        "<a:b/>".repeat(4000)
    );
    for (method, body) in [
        ("PROPFIND", bomb.as_str()),
        ("PROPPATCH", "<"),
        ("LOCK", "<"),
        ("MKCOL", "<"),
        ("PUT", "<"),
    ] {
        for bucket in ["secret", "absent"] {
            let path = format!("/fs/{bucket}/a");
            // The second piece fails, which is another answer if it is read.
            let pieces = vec![
                Ok(Bytes::copy_from_slice(body.as_bytes())),
                Err(BoxError::from("read")),
            ];
            let fields = [("depth", "0")];
            let refused = mount.send_as(Some("bob"), (method, &path), &fields, pieces);
            let refused = refused.expect(404);
            assert_eq!(refused.body, "the bucket does not exist", "{method}");
        }
    }
    // With the right, the body is read and refused.
    let fields = [("depth", "0")];
    let refused = mount.send("PROPFIND", "/fs/docs/", &fields, &bomb);
    refused.expect(413);
    mount.send("PROPFIND", "/fs/", &fields, &bomb).expect(413);
}

#[test]
fn dead_properties_are_kept_and_go_along() {
    let mount = TestMount::new();
    mount.send("PUT", "/fs/docs/a", &[], "text").expect(201);
    let patch = "<D:propertyupdate xmlns:D='DAV:'><D:set><D:prop><p:x xmlns:p='urn:p'>1 &lt; 2</p:x></D:prop></D:set></D:propertyupdate>";
    let set = mount
        .send("PROPPATCH", "/fs/docs/a", &[], patch)
        .expect(207);
    assert!(set.body.contains("HTTP/1.1 200 OK"), "{}", set.body);
    let to = [("destination", "/fs/docs/b")];
    mount.send("COPY", "/fs/docs/a", &to, "").expect(201);
    let ask =
        "<D:propfind xmlns:D='DAV:'><D:prop><x xmlns='urn:p'/><D:getetag/></D:prop></D:propfind>";
    for path in ["/fs/docs/a", "/fs/docs/b"] {
        let found = mount
            .send("PROPFIND", path, &[("depth", "0")], ask)
            .expect(207);
        assert!(
            found.body.contains("<x xmlns=\"urn:p\">1 &lt; 2</x>"),
            "{}",
            found.body
        );
    }
    // In a listing as well.
    let listed = mount
        .send("PROPFIND", "/fs/docs/", &[("depth", "1")], ask)
        .expect(207);
    assert_eq!(
        listed.body.matches("1 &lt; 2").count(),
        2,
        "{}",
        listed.body
    );
    let protected = patch.replace("<p:x xmlns:p='urn:p'>1 &lt; 2</p:x>", "<D:getetag/>");
    let refused = mount
        .send("PROPPATCH", "/fs/docs/a", &[], &protected)
        .expect(207);
    assert!(
        refused.body.contains("cannot-modify-protected-property"),
        "{}",
        refused.body
    );
    let remove = patch.replace("D:set>", "D:remove>");
    mount
        .send("PROPPATCH", "/fs/docs/a", &[], &remove)
        .expect(207);
    let gone = mount
        .send("PROPFIND", "/fs/docs/a", &[("depth", "0")], ask)
        .expect(207);
    assert!(
        gone.body.contains("HTTP/1.1 404 Not Found"),
        "{}",
        gone.body
    );
}
