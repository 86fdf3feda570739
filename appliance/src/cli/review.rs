//! What comes after a proposal: who may review it, and which commands lead on.

use std::path::{Path, PathBuf};

use alknet_core::ScopeSet;
use alknet_tls::NodeKey;
use serde_json::Value;

use super::identity::KEY_FILE;
use super::output;
use super::proposal_list::is_id_or_prefix;
use super::target::NodeRoute;
use super::{CommandError, DialArgs, StateArgs};

/// The scope of those who review.
pub(super) const SCOPE: &str = "ops:promote";
/// What a decision without `--external` means.
const INTERNAL: &str = "Without --external only operations of the node can call it.";
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
    is_behind_hub: bool,
    /// Where a second key is kept.
    reviewer: String,
    /// The second key, if there is one.
    second: Option<String>,
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
        let second = second_key_dir(&dir).join(KEY_FILE);
        // A second key that cannot be read changes only the hint, so it is no error of the proposal.
        let second = NodeKey::load(&second).ok().flatten();
        Ok(Self {
            second: second.map(|key| key.public().to_string()),
            ..Self::in_directory(route, id, &dir, state.state.is_some())
        })
    }

    /// Like `new`, by a user whose state is in `dir`, who named it if `is_given`, and who has no second key.
    fn in_directory(route: &NodeRoute, id: &str, dir: &Path, is_given: bool) -> Self {
        Self {
            id: shown_id(id),
            node: output::one_line(&route.as_argument()).into_owned(),
            nameless: route.without_names(),
            is_behind_hub: route.peer.is_some(),
            reviewer: quoted(&second_key_dir(dir).display().to_string()),
            second: None,
            state: state_option(dir, is_given),
        }
    }

    /// Says what is still missing once `author` proposed an operation. `listed` is who may connect to the node, or
    /// null where the author may not see it.
    pub(super) fn after_proposal(&self, listed: &Value, author: &str) -> String {
        let Self { id, nameless, .. } = self;
        let decides = format!("alknet ops promote {nameless} {id} --external");
        let (own, others): (Vec<_>, Vec<_>) = reviewers(listed, author)
            .into_iter()
            .partition(|peer| self.second.as_deref().is_some_and(|key| has_key(peer, key)));
        if !others.is_empty() {
            return format!(
                "Next: {} decides by '{decides}', having read 'alknet ops proposals {nameless} {id}'. {INTERNAL}",
                names(&others)
            );
        }
        let begins = match (listed.is_null(), own.is_empty()) {
            (true, _) => format!(
                "Next: another key with the scope {SCOPE} decides by '{decides}'. If the node has none, an \
                 administrator decides by a second key"
            ),
            (false, true) => format!(
                "An author does not review its own bundle, and no other peer of the node has the scope {SCOPE}: an \
                 administrator decides by a second key"
            ),
            (false, false) => {
                "An author does not review its own bundle: an administrator decides by the second key".to_owned()
            }
        };
        format!("{begins}:\n{}\n{INTERNAL}", self.by_second_key())
    }

    /// What has an administrator decide by a second key. A hub passes on only what its own key may do.
    fn by_second_key(&self) -> String {
        let Self {
            id,
            node,
            nameless,
            reviewer,
            state,
            ..
        } = self;
        if !self.is_behind_hub {
            return format!("  alknet ops promote {node} {id} --second-key --external{state}");
        }
        format!(
            "  alknet peer add {node} reviewer --key \"$(alknet identity --state {reviewer})\" --scope {SCOPE}{state}\n  \
             alknet ops promote {nameless} {id} --external --state {reviewer}"
        )
    }
}

/// The digits of an id that a command gets. A hostile node would have a user copy a command of its own.
pub(super) fn shown_id(id: &str) -> String {
    match is_id_or_prefix(id) {
        true => id.chars().take(ID_SHOWN).collect(),
        false => "ID".to_owned(),
    }
}

/// The option that names a state directory, behind a space; nothing if the user did not give it.
pub(super) fn state_option(dir: &Path, is_given: bool) -> String {
    match is_given {
        true => format!(" --state {}", quoted(&dir.display().to_string())),
        false => String::new(),
    }
}

/// The options that each command of this user needs.
pub(super) fn options(dial: &DialArgs) -> Result<String, CommandError> {
    let dir = dial.state.dir()?;
    Ok(state_option(&dir, dial.state.state.is_some()))
}

/// Where the second key of a user with this state directory is, unless the user says otherwise.
pub(super) fn second_key_dir(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push("-reviewer");
    name.into()
}

/// Peers other than the author that are let in by a key and may review.
pub(super) fn reviewers<'l>(listed: &'l Value, author: &str) -> Vec<&'l Value> {
    let peers = listed["peers"].as_array().into_iter().flatten();
    let may_review = |peer: &&Value| {
        let scopes = peer["scopes"].as_array().into_iter().flatten();
        let scopes: ScopeSet = scopes.filter_map(Value::as_str).collect();
        let has_keys = peer["keys"].as_array().is_some_and(|keys| !keys.is_empty());
        has_keys && peer["enabled"] == true && scopes.allows(SCOPE) && peer["peer_id"] != author
    };
    peers.filter(may_review).collect()
}

/// Whether a peer of a list has this key.
pub(super) fn has_key(peer: &Value, key: &str) -> bool {
    let mut keys = peer["keys"].as_array().into_iter().flatten();
    keys.any(|known| known == key)
}

/// The names of peers, a few of them.
pub(super) fn names(peers: &[&Value]) -> String {
    let names = peers.iter().filter_map(|peer| peer["peer_id"].as_str());
    let names = names.map(|name| format!("'{}'", output::one_line(name)));
    let names: Vec<_> = names.take(NAMES_SHOWN_MAX).collect();
    names.join(" or ")
}

/// A path as a shell takes it for one word.
pub(super) fn quoted(path: &str) -> String {
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
        let route = NodeRoute::by_name("attic", target);
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
        // The reviewers have no name of this state directory.
        let said = hint().after_proposal(&listed, "admin");
        assert_eq!(
            said,
            format!(
                "Next: 'rev' or 'all' decides by 'alknet ops promote {KEY}@192.0.2.7:443 3f3f3f3f3f3f --external', \
                 having read 'alknet ops proposals {KEY}@192.0.2.7:443 3f3f3f3f3f3f'. {INTERNAL}"
            )
        );
    }

    /// The lines of a text that are commands.
    fn commands(said: &str) -> Vec<&str> {
        let lines = said.lines().map(str::trim);
        lines.filter(|line| line.starts_with("alknet ")).collect()
    }

    #[test]
    fn a_sole_administrator_reads_the_command_that_leads_on() {
        let alone = json!({ "peers": [peer("admin", &["*"], true)] });
        let mut second = peer("reviewer", &["ops:promote"], true);
        second["keys"] = json!(["ed25519:02"]);
        let with_second = json!({ "peers": [peer("admin", &["*"], true), second] });
        let hint = ReviewHint {
            second: Some("ed25519:02".to_owned()),
            ..hint()
        };
        for (listed, begins) in [
            (
                alone,
                "An author does not review its own bundle, and no other",
            ),
            (with_second, "An author does not review its own bundle: an"),
            (Value::Null, "Next: another key with the scope ops:promote"),
        ] {
            let said = hint.after_proposal(&listed, "admin");
            assert!(said.starts_with(begins), "{said}");
            assert_eq!(
                commands(&said),
                [
                    "alknet ops promote attic 3f3f3f3f3f3f --second-key --external --state '/home/ada/a state'"
                ]
            );
        }
    }

    /// A hub does not know the second key. Another state directory has other names.
    #[test]
    fn behind_a_hub_two_commands_lead_on() {
        let target = format!("{KEY}@192.0.2.7:443").parse().expect("a target");
        let route = NodeRoute::behind_hub("attic", target, "kitchen");
        let (id, dir) = ("3f".repeat(32), Path::new("/home/ada/a state"));
        let hint = ReviewHint::in_directory(&route, &id, dir, true);
        let said = hint.after_proposal(&Value::Null, "admin");
        let decides = format!(
            "alknet ops promote kitchen@{KEY}@192.0.2.7:443 3f3f3f3f3f3f --external --state '/home/ada/a state-reviewer'"
        );
        assert_eq!(
            commands(&said),
            [
                "alknet peer add kitchen@attic reviewer --key \"$(alknet identity --state \
                 '/home/ada/a state-reviewer')\" --scope ops:promote --state '/home/ada/a state'",
                decides.as_str(),
            ]
        );
    }

    #[test]
    fn a_node_puts_nothing_into_a_command() {
        let said = hint_for("$(rm -rf ~)").after_proposal(&Value::Null, "ada");
        assert!(
            said.contains("ops promote attic ID") && !said.contains("rm"),
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
