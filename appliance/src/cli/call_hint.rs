//! What the error of a call leaves out, as far as the node tells it to this key.

use alknet_call::{CallError, ErrorCode};
use serde_json::Value;

use super::CommandError;
use super::call::call_error;
use super::node_caller::NodeCaller;
use super::output::one_line;
use super::query::text;

/// The reason of a call that needs a credential which is not set.
const REASON_MISSING: &str = "credential_missing";
/// The code of the problem of a node with such a credential.
const PROBLEM: &str = "credential-missing";

/// The error of a call, with what to do about it.
pub(super) async fn explained(
    node: &NodeCaller,
    operation: &str,
    error: CallError,
) -> CommandError {
    let reason = error.details.as_ref().and_then(|it| it["reason"].as_str());
    let is_missing = reason == Some(REASON_MISSING);
    let is_misfit = error.code == ErrorCode::InvalidInput;
    let mut failure = call_error(error);
    if is_misfit {
        failure.further.push(input_hint(operation, node.hub()));
    }
    if is_missing {
        // The names of credentials are for those who may read the node's problems: another caller gets no answer.
        let info = node.call("node/info", &Value::Null).await.ok();
        failure.further.extend(credential_hints(
            operation,
            info.as_ref().map(|it| it.value()),
        ));
    }
    failure
}

/// Where a user reads what an operation takes. A hub does not describe the operations of its peers.
fn input_hint(operation: &str, hub: Option<&str>) -> String {
    match hub {
        None => format!("'alknet ops show {operation}' prints what the operation takes"),
        Some(hub) => format!(
            "'alknet ops show {operation}' prints what the operation takes, if you ask the node itself and not '{hub}'"
        ),
    }
}

/// The credentials that are not set and that the operation uses; if the node says of none that the operation uses it,
/// all that are not set.
fn credential_hints(operation: &str, info: Option<&Value>) -> Vec<String> {
    let Some(info) = info else {
        let text = "The credential that the operation uses is not set; an administrator reads in 'alknet status' which \
                    one it is and which command sets it";
        return vec![text.to_owned()];
    };
    let namespace = operation.split('/').next().unwrap_or_default();
    let users = [
        format!("import {namespace}"),
        format!("operation {operation}"),
    ];
    let uses_it = |problem: &&&Value| {
        let (_, used) = text(&problem["text"]).rsplit_once("; ").unwrap_or_default();
        let mut used = used
            .split(", ")
            .map(|user| user.trim_end_matches(" uses it"));
        used.any(|user| users.iter().any(|it| it == user))
    };
    let problems = info["problems"].as_array().into_iter().flatten();
    let missing: Vec<_> = problems.filter(|it| it["code"] == PROBLEM).collect();
    let own: Vec<_> = missing.iter().filter(uses_it).copied().collect();
    let meant = if own.is_empty() { missing } else { own };
    let line = |problem: &Value| {
        let (what, hint) = (text(&problem["text"]), text(&problem["hint"]));
        one_line(&format!("{what}; {hint}")).into_owned()
    };
    meant.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_credential_that_is_not_set_is_named_to_those_who_may_know_it() {
        let problem =
            |text: &str, hint: &str| json!({ "code": PROBLEM, "text": text, "hint": hint });
        let info = json!({ "problems": [
            { "code": "clock-not-set", "text": "no clock; import notes uses it", "hint": "wait" },
            problem("credential a: it is not set; import mail, import notes uses it", "set a"),
            problem("credential b: it is not set; operation js/mint uses it", "set b"),
            problem("credential c: it is not set; import note uses it", "set c"),
        ] });
        let hints = |operation: &str| credential_hints(operation, Some(&info));
        assert_eq!(
            hints("notes/list"),
            ["credential a: it is not set; import mail, import notes uses it; set a"]
        );
        assert_eq!(
            hints("js/mint"),
            ["credential b: it is not set; operation js/mint uses it; set b"]
        );
        assert_eq!(hints("other/op").len(), 3);
        let refused = credential_hints("notes/list", None);
        assert!(refused[0].contains("'alknet status'"), "{refused:?}");
    }

    #[test]
    fn a_wrong_input_is_answered_with_the_command_that_describes_the_right_one() {
        let said = input_hint("node/log", None);
        assert_eq!(
            said,
            "'alknet ops show node/log' prints what the operation takes"
        );
        let behind = input_hint("node/log", Some("attic"));
        assert!(behind.contains("not 'attic'"), "{behind}");
    }
}
