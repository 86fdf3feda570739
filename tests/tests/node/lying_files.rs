//! What a node that attacks its users' terminals says of files, and the commands that show it.

use alknet_call::{
    CallBody, CallError, ErrorCode, HandlerKind, OperationSpec, Registration, RegistryBuilder,
};
use serde_json::{Value, json};

use super::lying_node::ACTS;

/// A hash that is one.
const HASH: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

/// A key with which a content is shared.
const KEY: &str = "ed25519:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

/// A share of the bucket.
const SHARE: &str = "docs:af1349b9f5f9a1a6a0404dea36dcc949";

/// Command lines for `lying_node.rs`, and whether their output has what the node said. `BRANCH` is a branch, since the sign
/// of one stands for the node.
pub(super) const LINES: [(&[&str], bool); 36] = [
    (&["fs", "ls", "@"], true),
    (&["fs", "ls", "@", "docs:/", "-l"], true),
    (&["fs", "ls", "@", "docs:/", "-r"], true),
    (&["fs", "log", "@", "docs:/a"], true),
    (&["fs", "cat", "@", "docs:/a"], true),
    (&["fs", "get", "@", "docs:/a", "OUTPUT"], true),
    (&["fs", "get", "@", "docs:/dir", "OUTPUT"], true),
    (&["fs", "put", "@", "-", "docs:/a"], true),
    (&["fs", "rm", "@", "docs:/a"], true),
    (&["fs", "mv", "@", "docs:/a", "docs:/b"], true),
    (&["fs", "cp", "@", "docs:/a", "docs:/b"], true),
    (&["fs", "merge", "@", "BRANCH"], true),
    // Numbers alone.
    (&["fs", "quota", "@", "docs"], false),
    (&["fs", "gc", "@"], false),
    (&["fs", "scrub", "@"], true),
    (&["fs", "verify", "@", HASH], true),
    (&["fs", "repair", "@"], true),
    (&["fs", "branch", "add", "@", "BRANCH"], true),
    (&["fs", "branch", "list", "@", "docs"], true),
    (&["fs", "branch", "show", "@", "BRANCH"], true),
    (&["fs", "branch", "set", "@", "BRANCH", "--protect"], true),
    // What was asked for is repeated.
    (&["fs", "branch", "close", "@", "BRANCH"], false),
    (&["fs", "branch", "remove", "@", "BRANCH"], false),
    (&["fs", "branch", "rebase", "@", "BRANCH"], true),
    (&["fs", "branch", "diff", "@", "BRANCH"], true),
    (&["fs", "bucket", "add", "@", "docs"], true),
    (&["fs", "bucket", "list", "@"], true),
    (&["fs", "bucket", "show", "@", "docs"], true),
    (&["fs", "bucket", "set", "@", "docs", "--freeze"], true),
    (&["fs", "bucket", "remove", "@", "docs", "--yes"], false),
    (&["fs", "share", "add", "@", "docs:/a", "--key", KEY], true),
    (&["fs", "share", "list", "@", "docs"], true),
    (&["fs", "share", "remove", "@", SHARE], false),
    (&["fs", "snapshot", "add", "@", "docs:/.snap/a"], true),
    (&["fs", "snapshot", "list", "@", "docs"], true),
    (&["fs", "snapshot", "remove", "@", "docs:/.snap/a"], false),
];

fn says(name: &str, said: Value) -> Registration {
    let handler =
        HandlerKind::once(move |_, _| std::future::ready(Ok::<_, CallError>(said.clone())));
    Registration::new(OperationSpec::query(name, ACTS), handler)
}

fn refusal() -> CallError {
    let details = json!({ "object": ACTS, "reason": ACTS, "hash": ACTS, "path": ACTS });
    CallError::new(ErrorCode::Conflict, ACTS).with_details(details)
}

fn refuses(name: &str) -> Registration {
    let handler = HandlerKind::once(|_, _| std::future::ready(Err::<Value, _>(refusal())));
    Registration::new(OperationSpec::query(name, ACTS), handler)
}

/// A subscription with these events, or with an error.
fn follows(name: &str, said: Option<Value>) -> Registration {
    let handler = HandlerKind::stream(move |_, _| {
        let event = said.clone().ok_or_else(refusal);
        futures_util::stream::iter([event])
    });
    Registration::new(OperationSpec::subscription(name, ACTS), handler)
}

/// A file whose hash and names are wrong, and a directory.
fn describes() -> Registration {
    let handler = HandlerKind::once(|input: CallBody, _| {
        let path = input.value()["path"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let is_directory = path.ends_with("dir");
        let kind = if is_directory { "directory" } else { "file" };
        let said = json!({ "path": ACTS, "kind": kind, "hash": HASH, "size": 1, "mode": 0o644, "mtime_ms": 0 });
        std::future::ready(Ok::<_, CallError>(said))
    });
    Registration::new(OperationSpec::query("fs/stat", ACTS), handler)
}

/// Adds the operations of files.
pub(super) fn with_files(builder: RegistryBuilder) -> RegistryBuilder {
    let path = format!("/{ACTS}");
    let entry = json!({
        "path": path, "kind": ACTS, "hash": ACTS, "size": ACTS, "mode": ACTS, "mtime_ms": ACTS,
        "target": ACTS, "seq": ACTS,
    });
    let mut version = entry.clone();
    for name in ["op", "actor", "message", "time_ms"] {
        version[name] = ACTS.into();
    }
    let branch = json!({ "name": "draft", "parent": ACTS, "base_seq": 1, "head_seq": 2, "protected": true,
                         "expires_ms": ACTS, "state": ACTS });
    let bucket = json!({ "name": "docs", "kind": ACTS, "owner": ACTS, "state": ACTS, "durability": ACTS,
                         "created_ms": ACTS, "retention_s": ACTS, "synced": true, "fetch": ACTS });
    let snapshot = json!({ "name": ACTS, "branch": ACTS, "seq": 1, "created_ms": 0 });
    let share =
        json!({ "share": ACTS, "hash": ACTS, "key": ACTS, "until_ms": 0, "bytes_left": ACTS });
    let outcome = json!({ "seq": 1, "changed": 1, "conflicts": 1, "decided": [{ "path": ACTS, "kind": ACTS }] });
    let change = json!({ "change": ACTS, "before": entry.clone(), "after": version.clone() });
    let lost = json!([{ "topic": ACTS, "address": ACTS, "reason": ACTS }]);
    let repaired = json!({ "copy": ACTS, "recovered": 1, "lost": 1, "lost_events": lost });
    builder
        .with(describes())
        .with(says("fs/list", json!({ "entries": [entry] })))
        .with(says("fs/history", json!({ "versions": [version] })))
        .with(follows("fs/read", None))
        .with(refuses("fs/put"))
        .with(refuses("fs/delete"))
        .with(refuses("fs/rename"))
        .with(refuses("fs/copy"))
        .with(says("fs/branch/create", branch.clone()))
        .with(says("fs/branch/set", branch.clone()))
        .with(says("fs/branch/list", json!({ "branches": [branch] })))
        .with(says("fs/branch/close", json!({})))
        .with(says("fs/branch/delete", json!({})))
        .with(says("fs/branch/rebase", outcome.clone()))
        .with(says("fs/branch/merge", outcome))
        .with(says("fs/branch/diff", json!({ "changes": [change] })))
        .with(says("fs/bucket/create", bucket.clone()))
        .with(says("fs/bucket/set", bucket.clone()))
        .with(says("fs/bucket/list", json!({ "buckets": [bucket] })))
        .with(says("fs/bucket/delete", json!({})))
        .with(says(
            "fs/bucket/usage",
            json!({ "bytes": ACTS, "quota_bytes": ACTS }),
        ))
        .with(says("fs/snapshot/create", snapshot.clone()))
        .with(says("fs/snapshot/list", json!({ "snapshots": [snapshot] })))
        .with(says("fs/snapshot/delete", json!({})))
        .with(says("fs/share", share.clone()))
        .with(says("fs/share/list", json!({ "shares": [share] })))
        .with(says("fs/share/revoke", json!({})))
        .with(follows("fs/blob/verify", None))
        .with(follows(
            "fs/gc",
            Some(json!({ "rows": ACTS, "done": true })),
        ))
        .with(follows(
            "fs/scrub",
            Some(json!({ "damaged": [ACTS], "done": true })),
        ))
        .with(says("fs/repair", repaired))
}
