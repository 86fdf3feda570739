//! The plan of the version that waits for its start: the node answers with it, and the command line shows it.

use serde_json::{Value, json};

/// The plan of the version that waits, by the facts in an answer to `update/status`. `None` if no version waits.
///
/// `staged` is the plan that PID 1 made when it staged a version, or null. Without it, or if it is about another version
/// than the one in the slot, the plan has only what PID 1 knows of the slots: both versions, and the SHA-256 of the
/// program that waits.
pub(crate) fn waiting_plan(status: &Value, staged: Value) -> Option<Value> {
    if status["state"] != "staged" {
        return None;
    }
    let is_current = staged.is_object() && staged["to"] == status["other_version"];
    Some(match is_current {
        true => staged,
        false => json!({
            "from": status["version"], "to": status["other_version"], "sha256": status["other_sha256"],
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_plan_of_the_version_in_the_slot_counts() {
        let mut status = json!({
            "state": "staged", "version": "1.0.0", "other_version": "1.1.0", "other_sha256": "a1",
        });
        let known = json!({ "from": "1.0.0", "to": "1.1.0", "sha256": "a1" });
        let whole =
            |to: &str| json!({ "from": "1.0.0", "to": to, "sha256": "b2", "step": "upgrade" });
        assert_eq!(
            waiting_plan(&status, whole("1.1.0")),
            Some(whole("1.1.0")),
            "PID 1 needs a moment to read the slots, so the hash of the plan may be newer"
        );
        for outdated in [whole("1.2.0"), Value::Null] {
            assert_eq!(waiting_plan(&status, outdated), Some(known.clone()));
        }
        status["state"] = json!("pending");
        assert_eq!(waiting_plan(&status, whole("1.1.0")), None);
    }
}
