//! Values of the store as JSON.

use alknet_store::{
    Branch, Bucket, ContentStatus, Entry, EntryState, EntryVersion, Snapshot, StoreEvent,
    TreeDifference,
};
use serde_json::{Value, json};

use crate::limits::PAGE_BYTES_MAX;

/// Nanoseconds of a millisecond.
pub(super) const NS_PER_MS: i64 = 1_000_000;

pub(super) fn entry(entry: &Entry) -> Value {
    let mut shown = state(&entry.state);
    shown["path"] = entry.path.as_str().into();
    shown["seq"] = entry.seq.into();
    shown
}

pub(super) fn state(state: &EntryState) -> Value {
    let mut shown = json!({
        "kind": state.kind.name(),
        "mode": state.mode,
        // A number of JSON holds no nanoseconds of our time.
        "mtime_ms": state.mtime_ns.div_euclid(NS_PER_MS),
    });
    if let Some(hash) = state.hash {
        shown["hash"] = hash.to_string().into();
        shown["size"] = state.size.into();
    }
    if let Some(target) = &state.target {
        shown["target"] = target.as_str().into();
    }
    shown
}

pub(super) fn version(version: &EntryVersion) -> Value {
    let mut shown = state(&version.state);
    shown["seq"] = version.seq.into();
    shown["time_ms"] = version.unix_ms.into();
    shown["actor"] = version.actor.as_str().into();
    shown["op"] = version.op.as_str().into();
    if let Some(message) = &version.message {
        shown["message"] = message.as_str().into();
    }
    shown
}

/// A branch. `parent` is the name of the branch that it was made from.
pub(super) fn branch(branch: &Branch, parent: Option<&str>) -> Value {
    json!({
        "name": branch.name.as_str(),
        "parent": parent,
        "base_seq": branch.base_seq,
        "head_seq": branch.head_seq,
        "created_ms": branch.created_ms,
        "expires_ms": branch.expires_ms,
        "protected": branch.is_protected,
        "state": branch.state.name(),
    })
}

pub(super) fn snapshot(snapshot: &Snapshot, branch: Option<&str>) -> Value {
    json!({
        "name": snapshot.name.as_str(),
        "branch": branch,
        "seq": snapshot.seq,
        "created_ms": snapshot.created_ms,
    })
}

pub(super) fn bucket(bucket: &Bucket) -> Value {
    json!({
        "name": bucket.name.as_str(),
        "kind": bucket.kind.name(),
        "owner": bucket.owner,
        "created_ms": bucket.created_ms,
        "quota_bytes": bucket.quota_bytes,
        "quota_entries": bucket.quota_entries,
        "retention_s": bucket.retention_s,
        "synced": bucket.sync.is_on,
        "fetch": bucket.sync.fetch.name(),
        "keep_both": bucket.sync.keeps_both,
        "split": bucket.sync.is_split,
        "state": bucket.state.name(),
        "durability": bucket.durability.name(),
    })
}

pub(super) fn difference(difference: &TreeDifference) -> Value {
    match difference {
        TreeDifference::Added(after) => json!({ "change": "added", "after": entry(after) }),
        TreeDifference::Removed(before) => json!({ "change": "removed", "before": entry(before) }),
        TreeDifference::Changed { before, after } => {
            json!({ "change": "changed", "before": entry(before), "after": entry(after) })
        }
        TreeDifference::Renamed { before, after } => {
            json!({ "change": "renamed", "before": entry(before), "after": entry(after) })
        }
    }
}

pub(super) fn event(event: &StoreEvent) -> Value {
    // The payload is plain text and numbers, which always have a JSON form.
    let mut shown = serde_json::to_value(&event.payload).unwrap_or_else(|_| json!({}));
    shown["id"] = event.id.into();
    shown["topic"] = event.topic.name().into();
    shown["time_ms"] = event.ts_ms.into();
    shown
}

/// `None` for a content that is not known.
pub(super) fn status(status: ContentStatus) -> Option<Value> {
    let (name, size) = match status {
        ContentStatus::Missing => return None,
        ContentStatus::Wanted { size } => ("wanted", size),
        ContentStatus::Partial { size } => ("partial", size),
        ContentStatus::Complete { size } => ("complete", size),
        ContentStatus::Bad { size } => ("bad", size),
    };
    Some(json!({ "status": name, "size": size }))
}

/// The first rows, as many as an answer can hold, and at least one.
pub(super) fn within_page(rows: impl Iterator<Item = Value>) -> Vec<Value> {
    let mut bytes = 0;
    let mut page = Vec::new();
    for row in rows {
        bytes += row.to_string().len();
        page.push(row);
        if bytes >= PAGE_BYTES_MAX {
            break;
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_with_the_row_that_reaches_the_limit() {
        let row = || json!("x".repeat(PAGE_BYTES_MAX / 4));
        let rows = std::iter::repeat_with(row).take(10);
        assert_eq!(within_page(rows).len(), 4);
        let large = std::iter::repeat_with(|| json!("x".repeat(2 * PAGE_BYTES_MAX))).take(2);
        assert_eq!(within_page(large).len(), 1);
        assert!(within_page(std::iter::empty()).is_empty());
    }
}
