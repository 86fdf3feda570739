//! `alknet ops promote --second-key`: an administrator who is alone decides about a proposal of its own.
//!
//! The node's rule stays: a proposal is reviewed by another peer than its author. The command makes that peer, a second
//! key of the administrator, and decides by it. Where another peer may review, it refuses: then two persons decide.

use std::fs;
use std::path::{Path, PathBuf};

use alknet_core::PeerId;
use alknet_tls::NodeKey;
use serde_json::{Value, json};

use super::dial::CliDialer;
use super::identity::KEY_FILE;
use super::node_caller::NodeCaller;
use super::promotion::ask;
use super::review::{SCOPE, has_key, names, options, reviewers, second_key_dir};
use super::target::NodeRoute;
use super::{CommandError, CommandExit, DialArgs, StateArgs};

/// What the peer of the second key is called, with a number behind it if the name is taken.
const NAME: &str = "reviewer";
/// Numbers that are tried.
const NAMES_TRIED_MAX: u32 = 99;
/// The reason in the record, if the user gives none.
const REASON: &str = "decided by a second key of the author's administrator";

/// The second key of a user.
#[derive(Debug)]
pub(super) struct SecondKey {
    dir: PathBuf,
}

impl SecondKey {
    /// The one in `dir`, or the one beside the state directory of the user.
    ///
    /// # Errors
    /// There is no state directory, or the two are the same; the node is behind a hub, or the user shows no key.
    pub(super) fn new(
        dir: Option<&Path>,
        route: &NodeRoute,
        dial: &DialArgs,
    ) -> Result<Self, CommandError> {
        if let Some(peer) = &route.peer {
            return Err(CommandError::usage(format!(
                "'{peer}' is behind the hub '{}', which does not know the second key: let the key in at both, and \
                 decide with --state",
                route.name
            )));
        }
        if dial.anonymous {
            return Err(CommandError::usage(
                "the first key lets the second one in: leave out --anonymous",
            ));
        }
        let own = dial.state.dir()?;
        let dir = dir.map_or_else(|| second_key_dir(&own), Path::to_owned);
        if dir == own {
            return Err(CommandError::usage(
                "the second key has a directory of its own: name another one",
            ));
        }
        Ok(Self { dir })
    }

    /// Decides by `input`, the input of `ops/promote`. `node` is reached by the first key.
    ///
    /// # Errors
    /// Another peer may review, the first key may not let the second one in, and those of the calls.
    pub(super) async fn decide(
        &self,
        node: &NodeCaller,
        route: &NodeRoute,
        dial: &DialArgs,
        input: &Value,
    ) -> Result<Value, CommandError> {
        let proposal = ask(node, dial, "ops/proposals", &json!({ "id": input["id"] })).await?;
        let author = proposal["proposal"]["author"].as_str().unwrap_or_default();
        let listed = ask(node, dial, "peer/list", &Value::Null).await?;
        // The key is made behind this check: a refusal leaves nothing behind.
        let known = NodeKey::load(&self.dir.join(KEY_FILE)).map_err(CommandError::local)?;
        let known = known.map(|key| key.public().to_string());
        let (own, others): (Vec<_>, Vec<_>) = reviewers(&listed, author)
            .into_iter()
            .partition(|peer| known.as_deref().is_some_and(|key| has_key(peer, key)));
        if !others.is_empty() {
            return Err(not_alone(&others, &route.as_argument(), &options(dial)?));
        }
        let new_name = own.is_empty().then(|| free_name(&listed)).transpose()?;
        // `state.key` makes the directory. After a refusal only one that it made is removed.
        let had_dir = self.dir.exists();
        let state = StateArgs {
            state: Some(self.dir.clone()),
        };
        let key = state.key()?;
        if let Some(name) = new_name {
            let public = key.public().to_string();
            let peer = json!({ "peer_id": name, "keys": [public], "scopes": [SCOPE] });
            if let Err(error) = ask(node, dial, "peer/add", &peer).await {
                // After another error, such as a lost connection, the node may have let the key in.
                if error.exit == CommandExit::Denied && known.is_none() {
                    self.forget(had_dir);
                }
                return Err(error);
            }
        }
        let mut input = input.clone();
        if input["reason"] == "" {
            input["reason"] = REASON.into();
        }
        CliDialer::reached_by(key, route, dial, async |node| {
            ask(node, dial, "ops/promote", &input).await
        })
        .await
    }

    /// Removes the key that this command made, and its directory unless that was there before.
    fn forget(&self, had_dir: bool) {
        // The refusal is what the user reads. A key that stays is used by the next attempt.
        fs::remove_file(self.dir.join(KEY_FILE)).ok();
        if !had_dir {
            fs::remove_dir(&self.dir).ok();
        }
    }
}

/// The refusal where `others` may review. If earlier runs of this command let all of them in, their keys may be lost:
/// then the error has the commands that remove them at `node`, with `options`.
fn not_alone(others: &[&Value], node: &str, options: &str) -> CommandError {
    let text = format!(
        "{} may review this: --second-key is for an administrator who is alone",
        names(others)
    );
    let mut refused = CommandError::new(CommandExit::Denied, "FORBIDDEN", text);
    let made = others.iter().map(|peer| made_here(&peer["peer_id"]));
    if let Some(made) = made.collect::<Option<Vec<_>>>() {
        let removals = made
            .iter()
            .map(|name| format!("alknet peer remove {node} {name}{options}"));
        refused.further.push(
            "If that is a second key of yours that you do not have here any more, remove it, and promote again:"
                .to_owned(),
        );
        refused.further.extend(removals);
    }
    refused
}

/// The name of a peer, if it is one under which this command lets a second key in.
fn made_here(name: &Value) -> Option<&str> {
    let name = name.as_str()?;
    let number = name.strip_prefix(NAME)?;
    let is_number = |digits: &str| digits.parse().is_ok_and(|n: u32| n <= NAMES_TRIED_MAX);
    let is_ours = number.is_empty() || number.strip_prefix('-').is_some_and(is_number);
    is_ours.then_some(name)
}

/// A name that no peer of the list has.
///
/// # Errors
/// All are taken.
fn free_name(listed: &Value) -> Result<PeerId, CommandError> {
    let peers = listed["peers"].as_array().map_or(&[][..], Vec::as_slice);
    let is_taken = |name: &str| {
        let mut peers = peers.iter();
        peers.any(|peer| peer["peer_id"] == name || peer["display_name"] == name)
    };
    let mut names = (1..=NAMES_TRIED_MAX).map(|n| match n {
        1 => NAME.to_owned(),
        n => format!("{NAME}-{n}"),
    });
    let free = names.find(|name| !is_taken(name));
    free.and_then(|name| name.parse().ok()).ok_or_else(|| {
        let text = format!("the node has too many peers called '{NAME}': remove unused ones");
        CommandError::new(CommandExit::Failed, "CONFLICT", text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_key_has_a_name_that_no_peer_has() {
        let listed = json!({ "peers": [
            { "peer_id": "reviewer", "display_name": null }, { "peer_id": "p1", "display_name": "reviewer-2" },
        ] });
        let name = free_name(&listed).map(|name| name.to_string());
        assert_eq!(name.as_deref(), Ok("reviewer-3"));
        let name = free_name(&Value::Null).map(|name| name.to_string());
        assert_eq!(name.as_deref(), Ok(NAME));
        let all: Vec<_> = (1..=NAMES_TRIED_MAX)
            .map(|n| json!({ "peer_id": if n == 1 { NAME.to_owned() } else { format!("{NAME}-{n}") } }))
            .collect();
        assert!(free_name(&json!({ "peers": all })).is_err());
    }

    #[test]
    fn a_lost_second_key_can_be_removed() {
        let (lost, other) = (
            json!({ "peer_id": "reviewer-2" }),
            json!({ "peer_id": "ada" }),
        );
        let refused = not_alone(&[&lost], "attic", " --state here");
        assert!(refused.message.starts_with("'reviewer-2' may review this"));
        assert_eq!(
            refused.further.last().map(String::as_str),
            Some("alknet peer remove attic reviewer-2 --state here")
        );
        // While another person may review, a removal changes nothing.
        assert!(not_alone(&[&lost, &other], "attic", "").further.is_empty());
        for odd in ["reviewers", "reviewer-x; reboot", "reviewer-100"] {
            assert_eq!(made_here(&json!(odd)), None, "{odd}");
        }
    }
}
