//! Branches, snapshots and buckets.

use serde_json::{Value, json};

use crate::scene::FilesNode;

#[tokio::test]
async fn a_branch_shows_its_beginning_and_is_merged() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin.put("docs:/a", b"1").await;
    let draft = json!({ "bucket": "docs", "name": "draft" });
    let made = admin.call("fs/branch/create", draft).await;
    assert_eq!(
        (&made["parent"], &made["state"]),
        (&json!("main"), &json!("open"))
    );
    admin.put("docs:/a", b"2").await;
    let (_, bytes) = admin.read(json!({ "path": "docs@draft:/a" })).await;
    assert_eq!(bytes, b"1");
    admin.put("docs@draft:/b", b"b").await;
    let diff = json!({ "bucket": "docs", "from": "main", "to": "draft" });
    let diff = admin.call("fs/branch/diff", diff).await;
    let changes: Vec<_> = diff["changes"].as_array().expect("a list").iter().collect();
    let kinds: Vec<_> = changes.iter().map(|it| it["change"].clone()).collect();
    assert_eq!(kinds, ["changed", "added"]);
    let merge = json!({ "bucket": "docs", "from": "draft", "close": true });
    let merged = admin.call("fs/branch/merge", merge).await;
    assert_eq!(
        (&merged["changed"], &merged["conflicts"]),
        (&json!(1), &json!(0))
    );
    let (_, bytes) = admin.read(json!({ "path": "docs:/b" })).await;
    assert_eq!(bytes, b"b");
    let put = json!({ "path": "docs@draft:/c", "bytes": "" });
    assert_eq!(admin.code("fs/put", put).await.0, "READ_ONLY");
    let listed = admin
        .call("fs/branch/list", json!({ "bucket": "docs" }))
        .await;
    let states: Vec<_> = listed["branches"]
        .as_array()
        .expect("a list")
        .iter()
        .collect();
    assert_eq!(
        (&states[0]["name"], &states[0]["state"]),
        (&json!("draft"), &json!("merged"))
    );
}

#[tokio::test]
async fn a_conflict_is_listed_and_writes_nothing() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin.put("docs:/a", b"base").await;
    let draft = json!({ "bucket": "docs", "name": "draft" });
    admin.call("fs/branch/create", draft).await;
    admin.put("docs@draft:/a", b"theirs").await;
    admin.call("fs/delete", json!({ "path": "docs:/a" })).await;
    let merge = |strategy: &str| json!({ "bucket": "docs", "from": "draft", "strategy": strategy });
    let (code, details) = admin.code("fs/branch/merge", merge("fail")).await;
    assert_eq!(code, "CONFLICT");
    let conflicts = json!([{ "path": "/a", "kind": "deleted-in-target" }]);
    assert_eq!(
        details,
        json!({ "reason": "merge", "total": 1, "conflicts": conflicts })
    );
    assert_eq!(admin.names("docs:/").await, Vec::<String>::new());
    let merged = admin.call("fs/branch/merge", merge("keep-both")).await;
    assert_eq!(merged["decided"], conflicts);
    let names = admin.names("docs:/").await;
    assert_eq!(names.len(), 1, "{names:?}");
    let unknown = admin.code("fs/branch/merge", merge("magic")).await;
    assert_eq!(unknown.0, "INVALID_INPUT");
}

#[tokio::test]
async fn a_protected_branch_takes_merges_by_their_scope_only() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let draft = json!({ "bucket": "docs", "name": "draft" });
    admin.call("fs/branch/create", draft).await;
    admin.put("docs@draft:/a", b"a").await;
    let protect = json!({ "bucket": "docs", "name": "main", "protected": true });
    admin.call("fs/branch/set", protect).await;
    let put = json!({ "path": "docs:/a", "bytes": "" });
    assert_eq!(admin.code("fs/put", put).await.0, "FORBIDDEN");
    let merge = json!({ "bucket": "docs", "from": "draft" });
    let writer = node.peer("ada", &["fs:read:docs", "fs:write:docs"]);
    let refused = writer.refused("fs/branch/merge", merge.clone()).await;
    assert_eq!(refused.code, "FORBIDDEN");
    assert!(refused.message.contains("fs:merge:"), "{}", refused.message);
    let merger = node.peer("eve", &["fs:read:docs", "fs:merge:docs"]);
    merger.call("fs/branch/merge", merge).await;
    assert_eq!(admin.names("docs:/").await, ["/a"]);
    // The creation of a protected branch is for an administrator.
    let protected = json!({ "bucket": "docs", "name": "release", "protected": true });
    assert_eq!(
        writer.code("fs/branch/create", protected).await.0,
        "FORBIDDEN"
    );
}

/// A branch takes merges only so that its changes are looked at. A writer who could rebase or end it would go around that.
#[tokio::test]
async fn a_protected_branch_is_changed_and_ended_by_the_right_to_merge_only() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let writer = node.peer("ada", &["fs:read:docs", "fs:write:docs"]);
    let merger = node.peer("eve", &["fs:read:docs", "fs:write:docs", "fs:merge:docs"]);
    let owner = node.peer("ivy", &["fs:read:docs", "fs:write:docs", "fs:admin:docs"]);
    for (number, name) in ["rebased", "closed", "merged", "deleted", "owned"]
        .into_iter()
        .enumerate()
    {
        let made = json!({ "bucket": "docs", "name": name, "protected": true });
        admin.call("fs/branch/create", made).await;
        // The parent has something new for each of them.
        admin.put(&format!("docs:/{number}"), b"new").await;
    }
    let merge = json!({ "bucket": "docs", "from": "merged", "close": true });
    let requests = [
        (&merger, "fs/branch/rebase", branch_input("rebased")),
        (&merger, "fs/branch/close", branch_input("closed")),
        (&merger, "fs/branch/merge", merge),
        (&merger, "fs/branch/delete", branch_input("deleted")),
        (&owner, "fs/branch/delete", branch_input("owned")),
    ];
    for (allowed, operation, input) in requests {
        let refused = writer.code(operation, input.clone()).await;
        assert_eq!(refused.0, "FORBIDDEN", "{operation}");
        allowed.call(operation, input).await;
    }
    let listed = admin
        .call("fs/branch/list", json!({ "bucket": "docs" }))
        .await;
    let branches = listed["branches"].as_array().expect("a list");
    let states: Vec<_> = branches
        .iter()
        .map(|branch| {
            let text = |member: &str| branch[member].as_str().expect("a text").to_owned();
            (text("name"), text("state"))
        })
        .collect();
    let expected = [
        ("closed", "closed"),
        ("main", "open"),
        ("merged", "merged"),
        ("rebased", "open"),
    ];
    assert_eq!(
        states,
        expected.map(|(name, state)| (name.to_owned(), state.to_owned()))
    );
    assert!(
        admin
            .names("docs@rebased:/")
            .await
            .contains(&"/0".to_owned())
    );
}

fn branch_input(name: &str) -> Value {
    json!({ "bucket": "docs", "name": name })
}

#[tokio::test]
async fn branches_are_rebased_closed_and_deleted() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let draft = json!({ "bucket": "docs", "name": "draft" });
    admin.call("fs/branch/create", draft.clone()).await;
    admin.put("docs:/a", b"a").await;
    let rebased = admin.call("fs/branch/rebase", draft.clone()).await;
    assert_eq!(rebased["changed"], 1);
    assert_eq!(admin.names("docs@draft:/").await, ["/a"]);
    let child = json!({ "bucket": "docs", "name": "child", "from": "draft" });
    admin.call("fs/branch/create", child).await;
    admin.call("fs/branch/close", draft.clone()).await;
    let (code, details) = admin.code("fs/branch/delete", draft.clone()).await;
    assert_eq!((&*code, &details["children"]), ("NOT_EMPTY", &json!(1)));
    let mut force = draft.clone();
    force["force"] = json!(true);
    admin.call("fs/branch/delete", force).await;
    assert_eq!(admin.names("docs@child:/").await, ["/a"]);
    let gone = admin
        .code("fs/list", json!({ "path": "docs@draft:/" }))
        .await;
    assert_eq!(
        gone,
        ("NOT_FOUND".to_owned(), json!({ "object": "branch" }))
    );
}

#[tokio::test]
async fn a_snapshot_stays_what_it_was() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin.put("docs:/a", b"monday").await;
    let monday = json!({ "bucket": "docs", "name": "monday" });
    let made = admin.call("fs/snapshot/create", monday.clone()).await;
    assert_eq!(made["branch"], "main");
    admin.put("docs:/a", b"tuesday").await;
    let (_, bytes) = admin.read(json!({ "path": "docs:/.snap/monday/a" })).await;
    assert_eq!(bytes, b"monday");
    let listed = admin
        .call("fs/snapshot/list", json!({ "bucket": "docs" }))
        .await;
    assert_eq!(listed["snapshots"], json!([made]));
    let again = admin.code("fs/snapshot/create", monday.clone()).await;
    assert_eq!(
        again,
        ("EXISTS".to_owned(), json!({ "object": "snapshot" }))
    );
    admin.call("fs/snapshot/delete", monday).await;
    let gone = admin
        .code("fs/stat", json!({ "path": "docs:/.snap/monday/a" }))
        .await;
    assert_eq!(
        gone,
        ("NOT_FOUND".to_owned(), json!({ "object": "snapshot" }))
    );
}

#[tokio::test]
async fn a_bucket_has_settings_and_goes() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let set = json!({ "bucket": "docs", "quota_entries": 2, "quota_bytes": null,
                      "retention_s": 0, "durability": "normal" });
    let bucket = admin.call("fs/bucket/set", set).await;
    assert_eq!(
        (&bucket["quota_entries"], &bucket["quota_bytes"]),
        (&json!(2), &Value::Null)
    );
    assert_eq!(
        (&bucket["retention_s"], &bucket["durability"]),
        (&json!(0), &json!("normal"))
    );
    admin.put("docs:/a", b"a").await;
    admin.put("docs:/b", b"b").await;
    let third = json!({ "path": "docs:/c", "bytes": "" });
    let (code, details) = admin.code("fs/put", third).await;
    assert_eq!(code, "QUOTA_EXCEEDED");
    assert_eq!(
        details,
        json!({ "resource": "entries", "limit": 2, "used": 2 })
    );
    // A member that is left out stays as it is.
    let same = admin
        .call("fs/bucket/set", json!({ "bucket": "docs" }))
        .await;
    assert_eq!(same["quota_entries"], 2);
    let taken = admin
        .code("fs/bucket/create", json!({ "bucket": "docs" }))
        .await;
    assert_eq!(taken, ("EXISTS".to_owned(), json!({ "object": "bucket" })));
    let system = json!({ "bucket": "own", "kind": "system" });
    assert_eq!(
        admin.code("fs/bucket/create", system).await.0,
        "INVALID_INPUT"
    );
    admin
        .call("fs/bucket/delete", json!({ "bucket": "docs" }))
        .await;
    assert_eq!(
        admin.code("fs/list", json!({ "path": "docs:/" })).await.0,
        "NOT_FOUND"
    );
    admin
        .call("fs/bucket/create", json!({ "bucket": "docs" }))
        .await;
    assert_eq!(admin.names("docs:/").await, Vec::<String>::new());
}
