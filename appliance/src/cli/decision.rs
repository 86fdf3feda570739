//! What a reviewer reads after a decision about an operation: who can call it now, what is left of it, and what is still
//! missing.

use alknet_call::is_operation_name;
use serde_json::Value;

use super::output;

/// Scopes of an operation that are named.
const SCOPES_SHOWN_MAX: usize = 4;

/// A decision, and how the commands begin and end that lead on.
#[derive(Debug)]
pub(super) struct DecisionNote<'d> {
    /// What the node answered.
    pub(super) answer: &'d Value,
    /// The node, as the command line takes it.
    pub(super) node: &'d str,
    /// Options that each command of this user needs, each behind a space.
    pub(super) options: &'d str,
}

impl DecisionNote<'_> {
    /// After `ops promote` of the proposal `id`. `again` are the options that another `ops promote` of it needs.
    pub(super) fn of_promotion(&self, id: &str, again: &str) -> Vec<String> {
        self.callers_note(id, again)
            .into_iter()
            .chain(self.missing())
            .collect()
    }

    /// After `ops rollback` of the operation `path`.
    pub(super) fn of_rollback(&self, path: &str) -> Vec<String> {
        let what = match self.answer["version"].as_u64() {
            Some(version) => Some(self.restored(path, version)),
            None => self.gone(path),
        };
        what.into_iter().chain(self.missing()).collect()
    }

    /// Who can call what was promoted. A node names no path that would be another word of a command.
    fn callers_note(&self, id: &str, again: &str) -> Option<String> {
        let Self { node, options, .. } = self;
        let path = self.answer["path"].as_str();
        let path = path.filter(|path| is_operation_name(path))?;
        if self.answer["external"] == true {
            let who = self.callers();
            return Some(format!(
                "{path} is external: {who} can call it by 'alknet call {node} {path}{options}'."
            ));
        }
        Some(format!(
            "{path} is internal: only operations of the node can call it that name it in their 'uses'. For every other \
             caller it does not exist (NOT_FOUND). To let peers call it:\n  \
             alknet ops promote {node} {id} --external{again}{options}"
        ))
    }

    /// Those who can call an external operation.
    fn callers(&self) -> String {
        let scopes = self.answer["scopes"].as_array().into_iter().flatten();
        let scopes: Vec<_> = scopes.filter_map(Value::as_str).collect();
        let shown = scopes.iter().take(SCOPES_SHOWN_MAX);
        let shown: Vec<_> = shown.map(|scope| output::one_line(scope)).collect();
        let more = match scopes.len() > shown.len() {
            true => format!(" and {} more", scopes.len() - shown.len()),
            false => String::new(),
        };
        match shown.as_slice() {
            [] => "each peer and token that the node knows".to_owned(),
            [one] => format!("a peer or token with the scope {one}"),
            _ => format!("a peer or token with the scopes {}{more}", shown.join(", ")),
        }
    }

    fn restored(&self, path: &str, version: u64) -> String {
        let before = match self.answer["replaced"].as_u64() {
            Some(replaced) => format!(", in the place of version {replaced}"),
            None => String::new(),
        };
        let who = match self.answer["external"].as_bool() {
            Some(true) => format!("; {} can call it", self.callers()),
            Some(false) => "; only operations of the node can call it".to_owned(),
            None => String::new(),
        };
        format!("{path} is version {version} again{before}{who}.")
    }

    /// The operation has no version any more.
    fn gone(&self, path: &str) -> Option<String> {
        let Self { node, options, .. } = self;
        // Of an older node that does not say it.
        let version = self.answer["replaced"].as_u64()?;
        Some(format!(
            "Version {version} was the only one: {path} is no operation of the node any more. Callers, and operations \
             that use it, get NOT_FOUND. The node keeps the version, and this puts it back:\n  \
             alknet ops rollback {node} {path} --to {version}{options}"
        ))
    }

    /// What has to happen before a decision counts.
    fn missing(&self) -> Option<String> {
        let Self { answer, node, .. } = self;
        if let Some(needed) = answer["needed"].as_u64() {
            let agree = answer["reviews"].as_u64().unwrap_or_default();
            return Some(format!(
                "Not in place yet: {agree} of {needed} reviewers accepted it with this path, visibility and scopes."
            ));
        }
        (answer["active"] == false).then(|| {
            format!(
                "Not in force yet: it counts from the next start of the node ('alknet reboot {node}' for a machine; \
                 stop and start 'alknet serve' on a host). If the configuration then has promotion.activate = \
                 \"live\", later decisions count at once."
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn note(answer: &Value) -> DecisionNote<'_> {
        DecisionNote {
            answer,
            node: "attic",
            options: " --state /s",
        }
    }

    fn promoted(answer: &Value) -> Vec<String> {
        note(answer).of_promotion("3f3f", " --path a/b")
    }

    #[test]
    fn what_is_internal_says_so_and_how_peers_reach_it() {
        let answer = json!({ "path": "a/b", "version": 1, "external": false, "scopes": [] });
        let said = promoted(&answer);
        let [said] = said.as_slice() else {
            panic!("{said:?}");
        };
        assert!(said.starts_with("a/b is internal: "), "{said}");
        let command = said.lines().last().expect("a command");
        assert_eq!(
            command.trim(),
            "alknet ops promote attic 3f3f --external --path a/b --state /s"
        );
        for (scopes, who) in [
            (json!([]), "each peer and token that the node knows"),
            (json!(["call:a:b"]), "with the scope call:a:b"),
            (
                json!(["a", "b", "c", "d", "e"]),
                "scopes a, b, c, d and 1 more",
            ),
        ] {
            let answer = json!({ "path": "a/b", "external": true, "scopes": scopes });
            let said = promoted(&answer).concat();
            assert!(said.contains(who), "{said}");
            assert!(
                said.contains("'alknet call attic a/b --state /s'"),
                "{said}"
            );
        }
    }

    #[test]
    fn what_is_left_after_a_rollback_is_said() {
        let rolled = |answer: Value| note(&answer).of_rollback("js/a").join("\n");
        let said = rolled(json!({ "version": null, "replaced": 3, "active": true }));
        for part in ["Version 3", "NOT_FOUND", "no operation"] {
            assert!(said.contains(part), "{said}");
        }
        let command = said.lines().last().expect("a command");
        assert_eq!(
            command.trim(),
            "alknet ops rollback attic js/a --to 3 --state /s"
        );
        let said = rolled(json!({
            "version": 1, "replaced": 2, "active": false, "external": true, "scopes": ["call:js:a"],
        }));
        let first = "js/a is version 1 again, in the place of version 2; \
                     a peer or token with the scope call:js:a can call it.";
        assert_eq!(said.lines().next(), Some(first));
        assert!(said.contains("next start"), "{said}");
    }

    #[test]
    fn what_is_missing_is_said() {
        let waits = promoted(&json!({ "version": 1, "active": false })).concat();
        for said in ["next start", "'alknet reboot attic'", "promotion.activate"] {
            assert!(waits.contains(said), "{said}: {waits}");
        }
        let reviews = json!({ "id": "3f", "state": "proposed", "reviews": 1, "needed": 2 });
        let waits = promoted(&reviews).concat();
        assert!(waits.contains("1 of 2 reviewers"), "{waits}");
        assert!(promoted(&json!({ "version": 1, "active": true })).is_empty());
    }

    #[test]
    fn a_node_puts_nothing_into_a_command() {
        let hostile = json!({ "path": "$(rm -rf ~)", "version": 1, "external": false });
        assert!(promoted(&hostile).is_empty());
        let scopes = json!(["a\nhealth     ok"]);
        let hostile = json!({ "path": "a/b", "external": true, "scopes": scopes });
        let said = promoted(&hostile).concat();
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
