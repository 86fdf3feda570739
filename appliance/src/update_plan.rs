//! The plan of a version: the node answers with it, and the command line shows it.

use alknet_init::control::UpdatePlan;
use alknet_update::AgreedFloor;
use serde_json::{Value, json};

/// The agreement to a plan after whose confirmation the floor is `raised`. `None`: the plan does not raise it.
pub(crate) fn agreed_floor(raised: Option<&str>) -> AgreedFloor {
    // PID 1 writes a version here. To any other text a caller cannot have agreed.
    AgreedFloor::new(raised.and_then(|floor| floor.parse().ok()))
}

/// A plan of PID 1 in an answer, with what `update/apply` takes from a caller that agrees to the plan.
pub(crate) fn shown_plan(plan: &UpdatePlan) -> Value {
    let mut shown = json!(plan);
    shown["agreed_floor"] = json!(agreed_floor(plan.floor.as_deref()));
    shown
}

/// The plan of the version that waits, by the facts in an answer to `update/status`. `None` if no version waits.
///
/// `staged` is the plan that PID 1 made when it staged a version, or null. Without it, or if it is about another version
/// than the one in the slot, the plan has only what PID 1 knows of the slots: both versions, and the SHA-256 and the floor
/// of the program that waits.
pub(crate) fn waiting_plan(status: &Value, staged: Value) -> Option<Value> {
    if status["state"] != "staged" {
        return None;
    }
    let is_current = staged.is_object() && staged["to"] == status["other_version"];
    if is_current {
        return Some(staged);
    }
    let mut plan = json!({
        "from": status["version"], "to": status["other_version"], "sha256": status["other_sha256"],
    });
    // A node of an earlier version says nothing of this floor, and takes no agreement to one.
    if let Some(floor) = status.get("other_floor") {
        plan["floor"] = floor.clone();
        plan["agreed_floor"] = json!(agreed_floor(floor.as_str()));
    }
    Some(plan)
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
        for (floor, agreed) in [
            (json!("1.1.0"), json!("1.1.0")),
            (Value::Null, json!("unchanged")),
        ] {
            status["other_floor"] = floor.clone();
            let mut plan = known.clone();
            plan["floor"] = floor;
            plan["agreed_floor"] = agreed;
            assert_eq!(waiting_plan(&status, Value::Null), Some(plan));
        }
        status["state"] = json!("pending");
        assert_eq!(waiting_plan(&status, whole("1.1.0")), None);
    }

    #[test]
    fn a_plan_in_an_answer_has_what_a_caller_agrees_to() {
        for (floor, agreed) in [(Some("1.1.0"), "1.1.0"), (None, "unchanged")] {
            let plan = UpdatePlan {
                floor: floor.map(str::to_owned),
                ..UpdatePlan::default()
            };
            let shown = shown_plan(&plan);
            assert_eq!(shown["agreed_floor"], agreed);
            assert_eq!(shown["floor"], json!(floor));
        }
        // A floor that is no version is one to which no caller has agreed.
        assert_eq!(agreed_floor(Some("any")), agreed_floor(None));
    }
}
