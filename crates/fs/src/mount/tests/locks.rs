//! LOCK, UNLOCK, and the `If` header.

use super::*;

const LOCK: &str = "<D:lockinfo xmlns:D='DAV:'><D:lockscope><D:exclusive/></D:lockscope>\
     <D:locktype><D:write/></D:locktype><D:owner>me &amp; you</D:owner></D:lockinfo>";

fn lock(mount: &TestMount, path: &str, depth: &str, status: u16) -> String {
    let locked = mount
        .send("LOCK", path, &[("depth", depth)], LOCK)
        .expect(status);
    assert!(locked.body.contains("me &amp; you"), "{}", locked.body);
    let token = locked.header("lock-token").to_owned();
    assert!(token.starts_with("<urn:uuid:"), "{token}");
    token
}

#[test]
fn a_name_is_locked_before_it_exists() {
    let mount = TestMount::new();
    let token = lock(&mount, "/fs/docs/a", "0", 201);
    // davfs2 finds an empty file (RFC 4918 §7.3).
    assert_eq!(
        mount.send("GET", "/fs/docs/a", &[], "").expect(200).body,
        ""
    );
    let refused = mount.send("PUT", "/fs/docs/a", &[], "x").expect(423);
    assert!(
        refused
            .body
            .contains("<D:lock-token-submitted><D:href>/fs/docs/a</D:href>")
    );
    mount
        .send("PUT", "/fs/docs/a", &[("if", &format!("({token})"))], "x")
        .expect(204);
    let other = "<urn:uuid:00010203-0405-4607-8809-0a0b0c0d0e0f>";
    mount
        .send("PUT", "/fs/docs/a", &[("if", &format!("({other})"))], "y")
        .expect(412);
    let either = format!("({other}) (Not <DAV:no-lock>)");
    mount
        .send("PUT", "/fs/docs/a", &[("if", &either)], "y")
        .expect(423);
    assert_eq!(mount.send("GET", "/fs/docs/a", &[], "").body, "x");
    lock_is_shown(&mount, "/fs/docs/a", 1);
    mount
        .send("UNLOCK", "/fs/docs/a", &[("lock-token", other)], "")
        .expect(409);
    mount
        .send("UNLOCK", "/fs/docs/a", &[("lock-token", &token)], "")
        .expect(204);
    lock_is_shown(&mount, "/fs/docs/a", 0);
    mount.send("PUT", "/fs/docs/a", &[], "z").expect(204);
    mount
        .send("LOCK", "/fs/docs/none/a", &[("depth", "0")], LOCK)
        .expect(409);
}

fn lock_is_shown(mount: &TestMount, path: &str, count: usize) {
    let found = mount
        .send("PROPFIND", path, &[("depth", "0")], "")
        .expect(207);
    assert_eq!(
        found.body.matches("<D:activelock>").count(),
        count,
        "{}",
        found.body
    );
}

#[test]
fn a_lock_covers_what_is_below_it() {
    let mount = TestMount::new();
    mount.send("MKCOL", "/fs/docs/d", &[], "").expect(201);
    let token = lock(&mount, "/fs/docs/d", "infinity", 200);
    mount.send("PUT", "/fs/docs/d/a", &[], "x").expect(423);
    let tagged = format!("</fs/docs/d> ({token})");
    mount
        .send("PUT", "/fs/docs/d/a", &[("if", &tagged)], "x")
        .expect(201);
    lock_is_shown(&mount, "/fs/docs/d/a", 1);
    let second = mount
        .send("LOCK", "/fs/docs/d/a", &[("depth", "0")], LOCK)
        .expect(423);
    assert!(
        second
            .body
            .contains("<D:no-conflicting-lock><D:href>/fs/docs/d</D:href>")
    );
    mount.send("DELETE", "/fs/docs/d", &[], "").expect(423);
    let condition = format!("({token})");
    let renewed = [("if", condition.as_str()), ("timeout", "Second-60")];
    let renewed = mount.send("LOCK", "/fs/docs/d/a", &renewed, "").expect(200);
    assert!(
        renewed
            .body
            .contains("<D:lockroot><D:href>/fs/docs/d</D:href>")
    );
    mount.send("LOCK", "/fs/docs/d/a", &[], "").expect(400);
    mount
        .send("DELETE", "/fs/docs/d", &[("if", &format!("({token})"))], "")
        .expect(204);
}

#[test]
fn other_bodies_make_no_lock() {
    let mount = TestMount::new();
    let shared = LOCK.replace("exclusive", "shared");
    mount
        .send("LOCK", "/fs/docs/a", &[("depth", "0")], &shared)
        .expect(403);
    mount
        .send("LOCK", "/fs/docs/a", &[("depth", "1")], LOCK)
        .expect(400);
    mount.send("LOCK", "/fs/docs/a", &[], "<x/>").expect(400);
    mount.send("GET", "/fs/docs/a", &[], "").expect(404);
}
