//! What comes after a proposal: who may review it, and which commands lead on.

use std::path::Path;

use alknet_core::ScopeSet;
use serde_json::Value;

use super::output;
use super::proposal_list::is_id_or_prefix;
use super::target::NodeRoute;
use super::{CommandError, StateArgs};

/// The scope of those who review.
const SCOPE: &str = "ops:promote";
/// Reviewers that are named.
const NAMES_SHOWN_MAX: usize = 4;
/// Digits of an id that are shown: fewer than a line has, and more than two proposals of a node share.
const ID_SHOWN: usize = 12;

/// The commands that an author copies.
#[derive(Debug)]
pub(super) struct ReviewHint {
    id: String,
    node: String,
    /// The node without a name of this state directory, which another directory does not know.
    nameless: String,
    /// Where a second key is kept.
    reviewer: String,
    /// The option that names the state directory of the user, if it was given.
    state: String,
}

impl ReviewHint {
    /// For the proposal `id` on the node of `route`, by a user with this state directory.
    ///
    /// # Errors
    /// There is no state directory.
    pub(super) fn new(
        route: &NodeRoute,
        id: &str,
        state: &StateArgs,
    ) -> Result<Self, CommandError> {
        let dir = state.dir()?;
        Ok(Self::in_directory(route, id, &dir, state.state.is_some()))
    }

    /// The same, by a user whose state is in `dir`, and who named it if `is_given`.
    fn in_directory(route: &NodeRoute, id: &str, dir: &Path, is_given: bool) -> Self {
        // A hostile node would have a user copy a command of its own.
        let id = match is_id_or_prefix(id) {
            true => id.chars().take(ID_SHOWN).collect(),
            false => "ID".to_owned(),
        };
        let dir = dir.display().to_string();
        Self {
            id,
            node: output::one_line(&route.as_argument()).into_owned(),
            nameless: route.without_names(),
            reviewer: quoted(&format!("{dir}-reviewer")),
            state: match is_given {
                true => format!(" --state {}", quoted(&dir)),
                false => String::new(),
            },
        }
    }

    /// Says what is still missing once `author` proposed an operation. `listed` is who may connect to the node, or
    /// null where the author may not see it.
    pub(super) fn after_proposal(&self, listed: &Value, author: &str) -> String {
        let Self { id, node, .. } = self;
        let decides = format!("alknet ops promote {node} {id}");
        let reviewers = reviewers(listed, author);
        if !reviewers.is_empty() {
            return format!(
                "Next: {} decides by '{decides}', having read 'alknet ops proposals {node} {id}'.",
                reviewers.join(" or ")
            );
        }
        if listed.is_null() {
            return format!(
                "Next: another key with the scope {SCOPE} decides by '{decides}'; if the node has none, an \
                 administrator makes one and decides by it:\n{}",
                self.second_key()
            );
        }
        format!(
            "An author does not review its own bundle, and no other peer of the node has the scope {SCOPE}: an \
             administrator makes a second key and decides by it:\n{}",
            self.second_key()
        )
    }

    /// The commands that make a second key and decide by it.
    fn second_key(&self) -> String {
        let Self {
            id,
            node,
            nameless,
            reviewer,
            state,
        } = self;
        format!(
            "  alknet peer add {node} reviewer --key \"$(alknet identity --state {reviewer})\" --scope {SCOPE}{state}\n  \
             alknet ops promote {nameless} {id} --state {reviewer}"
        )
    }
}

/// Peers other than the author that are let in by a key and may review, a few of them.
fn reviewers(listed: &Value, author: &str) -> Vec<String> {
    let peers = listed["peers"].as_array().into_iter().flatten();
    let may_review = |peer: &&Value| {
        let scopes = peer["scopes"].as_array().into_iter().flatten();
        let scopes: ScopeSet = scopes.filter_map(Value::as_str).collect();
        let has_key = peer["keys"].as_array().is_some_and(|keys| !keys.is_empty());
        has_key && peer["enabled"] == true && scopes.allows(SCOPE)
    };
    let names = peers.filter(may_review);
    let names = names.filter_map(|peer| peer["peer_id"].as_str());
    let names = names.filter(|name| *name != author);
    let names = names.map(|name| format!("'{}'", output::one_line(name)));
    names.take(NAMES_SHOWN_MAX).collect()
}

/// A path as a shell takes it for one word.
fn quoted(path: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@%".contains(c);
    match !path.is_empty() && path.chars().all(is_plain) {
        true => path.to_owned(),
        false => format!("'{}'", path.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &str = "ed25519:19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1";

    fn hint_for(id: &str) -> ReviewHint {
        let target = format!("{KEY}@192.0.2.7:443").parse().expect("a target");
        let route = NodeRoute::behind_hub("attic", target, "kitchen");
        ReviewHint::in_directory(&route, id, Path::new("/home/ada/a state"), true)
    }

    fn hint() -> ReviewHint {
        hint_for(&"3f".repeat(32))
    }

    fn peer(name: &str, scopes: &[&str], enabled: bool) -> Value {
        json!({ "peer_id": name, "kind": "peer", "keys": [KEY], "scopes": scopes, "enabled": enabled })
    }

    #[test]
    fn those_who_may_review_are_named() {
        let mut token = peer("key:monitor0", &["*"], true);
        token["keys"] = Value::Null;
        let listed = json!({ "peers": [
            peer("admin", &["*"], true),
            peer("rev", &["ops:promote"], true),
            peer("all", &["ops:*"], true),
            peer("off", &["ops:promote"], false),
            peer("edge", &["ops:propose"], true),
            token,
        ] });
        let said = hint().after_proposal(&listed, "admin");
        assert_eq!(
            said,
            "Next: 'rev' or 'all' decides by 'alknet ops promote kitchen@attic 3f3f3f3f3f3f', having read \
             'alknet ops proposals kitchen@attic 3f3f3f3f3f3f'."
        );
    }

    /// Another state directory has other names.
    #[test]
    fn a_sole_administrator_reads_the_commands_that_lead_on() {
        let alone = json!({ "peers": [peer("admin", &["*"], true)] });
        for (listed, begins) in [
            (alone, "An author does not review its own bundle"),
            (Value::Null, "Next: another key with the scope ops:promote"),
        ] {
            let said = hint().after_proposal(&listed, "admin");
            assert!(said.starts_with(begins), "{said}");
            let commands: Vec<_> = said.lines().skip(1).map(str::trim).collect();
            let decides = format!(
                "alknet ops promote kitchen@{KEY}@192.0.2.7:443 3f3f3f3f3f3f --state '/home/ada/a state-reviewer'"
            );
            assert_eq!(
                commands,
                [
                    "alknet peer add kitchen@attic reviewer --key \"$(alknet identity --state \
                     '/home/ada/a state-reviewer')\" --scope ops:promote --state '/home/ada/a state'",
                    decides.as_str(),
                ]
            );
        }
    }

    #[test]
    fn a_node_puts_nothing_into_a_command() {
        let said = hint_for("$(rm -rf ~)").after_proposal(&Value::Null, "ada");
        assert!(
            said.contains("ops promote kitchen@attic ID") && !said.contains("rm"),
            "{said}"
        );
    }

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        for (path, word) in [
            (
                "/home/ada/.local/state/alknet",
                "/home/ada/.local/state/alknet",
            ),
            ("/a b", "'/a b'"),
            ("/it's", "'/it'\\''s'"),
            ("/$(x)", "'/$(x)'"),
        ] {
            assert_eq!(quoted(path), word);
        }
    }
}
