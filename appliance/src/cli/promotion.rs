//! `alknet ops propose`, `proposals`, `promote` and `rollback`.

use std::path::PathBuf;

use alknet_call::{CallOptions, ErrorCode};
use alknet_core::PeerId;
use alknet_promotion::{Blake3Hash, PromotionBundle, read_draft};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::call::{is_operation, of_call};
use super::caller::NodeCaller;
use super::proposal_list::{each_proposal, ids_with};
use super::target::NodeArgs;
use super::{CommandError, CommandExit, DialArgs, output};

/// Hexadecimal digits of the shortest beginning of an id that is looked for: fewer fit many proposals.
const ID_PREFIX_MIN: usize = 4;
/// Hexadecimal digits of a whole id.
const ID_LEN: usize = 64;
/// Ids that a message lists where a beginning fits several.
const IDS_SHOWN_MAX: usize = 4;

/// What is done with operations that scripts offer.
#[derive(Debug, Subcommand)]
pub(crate) enum PromotionVerb {
    /// Sign the operation in a folder, and propose it to a node.
    #[command(
        override_usage = "alknet ops propose [OPTIONS] [NODE] <FOLDER>",
        after_help = "Example:\n  alknet ops propose ed25519:…@192.0.2.7:443 ./total --as ada\n\n\
The folder has operation.json (spec, entry, export, service, tests) and the sources."
    )]
    Propose(ProposeArgs),
    /// List what was proposed to a node, or show all about one proposal or operation.
    #[command(
        after_help = "Examples:\n  alknet ops proposals ed25519:…@192.0.2.7:443\n  \
alknet ops proposals ed25519:…@192.0.2.7:443 3f…\n  \
alknet ops proposals ed25519:…@192.0.2.7:443 js/invoice/total"
    )]
    Proposals(ProposalsArgs),
    /// Make a proposal of another author an operation of the node, or reject it.
    #[command(
        override_usage = "alknet ops promote [OPTIONS] [NODE] <ID>",
        after_help = "Examples:\n  alknet ops promote ed25519:…@192.0.2.7:443 3f… --external\n  \
alknet ops promote ed25519:…@192.0.2.7:443 3f… --reject --reason 'reads too much'"
    )]
    Promote(PromoteArgs),
    /// Put an earlier version of an operation in place, or take the operation away.
    #[command(
        override_usage = "alknet ops rollback [OPTIONS] [NODE] <PATH>",
        after_help = "Example:\n  alknet ops rollback ed25519:…@192.0.2.7:443 js/invoice/total"
    )]
    Rollback(RollbackArgs),
}

/// Arguments of `alknet ops propose`.
#[derive(Debug, Args)]
pub(crate) struct ProposeArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The folder of the operation.
    folder: Option<PathBuf>,
    /// The peer id that the node knows this computer's key by; a hub is asked.
    #[arg(long = "as", value_name = "PEER")]
    author: Option<PeerId>,
}

/// Arguments of `alknet ops proposals`.
#[derive(Debug, Args)]
pub(crate) struct ProposalsArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The id of a proposal or its first digits, or the path of an operation.
    which: Option<String>,
    /// Only proposals of this state.
    #[arg(long, conflicts_with = "which",
          value_parser = ["promoted", "proposed", "rejected", "retired"])]
    only: Option<String>,
}

/// Arguments of `alknet ops promote`.
#[derive(Debug, Args)]
pub(crate) struct PromoteArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The id of the proposal, or as many of its first digits as no other has.
    #[arg(value_parser = id_or_prefix)]
    id: Option<String>,
    /// Reject it.
    #[arg(long, conflicts_with_all = ["path", "external", "scope"])]
    reject: bool,
    /// What it is called by [default: js/<name>]
    #[arg(long)]
    path: Option<String>,
    /// Let peers call it, and not only operations of the node.
    #[arg(long)]
    external: bool,
    /// A scope that peers need for it; can be given several times [default: call:<path with colons>]
    #[arg(long, requires = "external")]
    scope: Vec<String>,
    /// Why, for the record.
    #[arg(long, default_value = "")]
    reason: String,
}

/// Arguments of `alknet ops rollback`.
#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The operation.
    path: Option<String>,
    /// The version to put in place [default: the one that the present one replaced]
    #[arg(long, value_name = "VERSION")]
    to: Option<u64>,
    /// Why, for the record.
    #[arg(long, default_value = "")]
    reason: String,
}

pub(crate) fn run(verb: PromotionVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        PromotionVerb::Propose(args) => propose(args, json),
        PromotionVerb::Proposals(args) => proposals(args, json),
        PromotionVerb::Promote(args) => promote(args, json),
        PromotionVerb::Rollback(args) => {
            let (node, path) = args.node.with_word(args.path, "PATH")?;
            let mut input = json!({ "path": path, "reason": args.reason });
            if let Some(version) = args.to {
                input["version"] = version.into();
            }
            node.reached(async |caller| {
                let answer = ask(caller, &node.dial, "ops/rollback", &input).await?;
                decided(&answer, json)
            })
        }
    }
}

fn propose(args: ProposeArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, folder) = args.node.with_word(args.folder, "FOLDER")?;
    if node.dial.anonymous {
        return Err(CommandError::usage(
            "a proposal has an author: leave out --anonymous",
        ));
    }
    let key = node.dial.state.key()?;
    let route = node.route()?;
    super::dial::reached(&route, &node.dial, async |caller| {
        let author = match &args.author {
            Some(author) => author.clone(),
            None => asked(caller, &key.public().to_string()).await?,
        };
        let content = read_draft(&folder, author, key.public()).map_err(CommandError::usage)?;
        let bundle =
            PromotionBundle::sign(&content, |text| key.sign(text)).map_err(CommandError::usage)?;
        let document: Value =
            serde_json::from_str(bundle.document()).map_err(CommandError::local)?;
        let input = json!({ "bundle": document });
        let answer = ask(caller, &node.dial, "ops/propose", &input).await?;
        show(&answer, json)?;
        if !json {
            output::note(&after_proposal(&answer, &route.as_argument()));
        }
        Ok(CommandExit::Ok)
    })
}

/// What is still missing once an operation is proposed.
fn after_proposal(answer: &Value, node: &str) -> String {
    let id = answer["id"].as_str().unwrap_or("ID");
    let id = output::one_line(id);
    format!(
        "Next: another key with the scope ops:promote reads it by 'alknet ops proposals {node} {id}' and \
         decides by 'alknet ops promote {node} {id}'. An author does not review its own bundle: an \
         administrator who is alone makes a second key ('alknet identity --state DIR'), gives it a [[peers]] \
         entry with that scope, and decides with --state DIR."
    )
}

/// Who the node says that the holder of this key is. A hub says it to every peer, and each node to those that may
/// see who is connected.
async fn asked(node: &NodeCaller, key: &str) -> Result<PeerId, CommandError> {
    let of_hub = node.call("hub/whoami", &Value::Null).await;
    let of_hub = of_hub.map(|body| peer_id(&body.value()["peer_id"]));
    if let Ok(Some(name)) = of_hub {
        return Ok(name);
    }
    let listed = node.call("peer/list", &Value::Null).await;
    if let Ok(listed) = &listed
        && let Some(name) = holder(listed.value(), key)
    {
        return Ok(name);
    }
    let said_nothing = [of_hub.err(), listed.err()].into_iter().flatten();
    // These three say only that the caller may not ask there; another error is what went wrong.
    let mut failed = said_nothing.filter(|error| {
        let codes = [
            ErrorCode::Forbidden,
            ErrorCode::NotFound,
            ErrorCode::Unauthenticated,
        ];
        !codes.contains(&error.code)
    });
    if let Some(error) = failed.next() {
        let mut failure = of_call(error);
        failure.message.push_str("; give --as PEER to do without");
        return Err(failure);
    }
    Err(CommandError::usage(
        "the node does not say who this computer is to it: give --as PEER, the peer_id of the [[peers]] \
         entry with the key of 'alknet identity'",
    ))
}

/// The peer that has this key.
fn holder(listed: &Value, key: &str) -> Option<PeerId> {
    let mut peers = listed["peers"].as_array().into_iter().flatten();
    let has_key = |peer: &&Value| {
        let mut keys = peer["keys"].as_array().into_iter().flatten();
        keys.any(|known| known == key)
    };
    peer_id(&peers.find(has_key)?["peer_id"])
}

fn peer_id(name: &Value) -> Option<PeerId> {
    name.as_str()?.parse().ok()
}

impl ProposalsArgs {
    /// With each word in its place: a single word that is a path or begins an id is no node.
    fn arranged(mut self) -> Self {
        let is_which = |word: &str| is_operation(word) || is_id_or_prefix(word);
        // A node may have a name that looks like the beginning of an id.
        if self.which.is_none() && !self.node.is_known() {
            self.which = self.node.node.take_if(|word| is_which(word));
        }
        self
    }
}

fn proposals(args: ProposalsArgs, json: bool) -> Result<CommandExit, CommandError> {
    let args = args.arranged();
    let dial = &args.node.dial;
    args.node.reached(async |node| {
        let mut input = match &args.which {
            Some(which) if is_id_or_prefix(which) => {
                json!({ "id": whole_id(node, dial, which).await? })
            }
            Some(which) => json!({ "path": which.trim_start_matches('/') }),
            None => json!({}),
        };
        if args.which.is_some() {
            return show(&ask(node, dial, "ops/proposals", &input).await?, json);
        }
        if let Some(state) = &args.only {
            input["state"] = state.as_str().into();
        }
        each_proposal(node, dial, input, |proposal| match json {
            true => output::json_line(proposal),
            false => output::line(&line(proposal)),
        })
        .await?;
        Ok(CommandExit::Ok)
    })
}

/// The id that begins so. A whole one is taken as it is.
async fn whole_id(
    node: &NodeCaller,
    dial: &DialArgs,
    prefix: &str,
) -> Result<String, CommandError> {
    if prefix.parse::<Blake3Hash>().is_ok() {
        return Ok(prefix.to_owned());
    }
    let is_wanted = |id: &str| id.starts_with(prefix) && id.parse::<Blake3Hash>().is_ok();
    the_only(ids_with(node, dial, is_wanted).await?, prefix)
}

/// The one id that was found.
fn the_only(mut found: Vec<String>, prefix: &str) -> Result<String, CommandError> {
    found.sort_unstable();
    found.dedup();
    match found.as_slice() {
        [] => {
            let text = format!("no proposal has an id that begins with '{prefix}'");
            Err(CommandError::new(CommandExit::Failed, "NOT_FOUND", text))
        }
        [_] => Ok(found.swap_remove(0)),
        several => {
            let shown = &several[..several.len().min(IDS_SHOWN_MAX)];
            Err(CommandError::usage(format!(
                "{} proposals have an id that begins with '{prefix}': give more of it ({})",
                several.len(),
                shown.join(", ")
            )))
        }
    }
}

fn is_id_or_prefix(text: &str) -> bool {
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (ID_PREFIX_MIN..=ID_LEN).contains(&text.len()) && text.bytes().all(is_digit)
}

/// An id, or its first digits, as a user may have copied them with a mark that something is left out.
fn id_or_prefix(text: &str) -> Result<String, String> {
    // The examples show an id with this sign at its end, and it is copied with it.
    let text = text.trim_end_matches('…');
    match is_id_or_prefix(text) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "'{text}' is no id: {ID_PREFIX_MIN} to {ID_LEN} digits of 0-9 and a-f"
        )),
    }
}

fn promote(args: PromoteArgs, json: bool) -> Result<CommandExit, CommandError> {
    let mut input = decision(&args);
    let (node, prefix) = args.node.with_word(args.id, "ID")?;
    let prefix = id_or_prefix(&prefix).map_err(CommandError::usage)?;
    node.reached(async |caller| {
        input["id"] = whole_id(caller, &node.dial, &prefix).await?.into();
        let answer = ask(caller, &node.dial, "ops/promote", &input).await?;
        decided(&answer, json)
    })
}

/// What was decided, all but the id.
fn decision(args: &PromoteArgs) -> Value {
    let mut input = json!({ "accept": !args.reject, "reason": args.reason });
    if let Some(path) = &args.path {
        input["path"] = path.as_str().into();
    }
    if args.external {
        input["external"] = true.into();
    }
    if !args.scope.is_empty() {
        input["scopes"] = json!(args.scope);
    }
    input
}

/// Shows a decision, and what is still missing for it to count.
fn decided(answer: &Value, json: bool) -> Result<CommandExit, CommandError> {
    show(answer, json)?;
    if let Some(missing) = still_missing(answer).filter(|_| !json) {
        output::note(&missing);
    }
    Ok(CommandExit::Ok)
}

/// What has to happen before a decision counts.
fn still_missing(answer: &Value) -> Option<String> {
    if let Some(needed) = answer["needed"].as_u64() {
        let agree = answer["reviews"].as_u64().unwrap_or_default();
        return Some(format!(
            "Not in place yet: {agree} of {needed} reviewers accepted it with this path, visibility and scopes."
        ));
    }
    (answer["active"] == false).then(|| {
        "Not in force yet: it counts from the next start of the node. With promotion.activate = \"live\" \
         in the configuration, decisions count at once."
            .to_owned()
    })
}

/// What an operation about promotion answers, within the time of the arguments.
pub(super) async fn ask(
    node: &NodeCaller,
    dial: &DialArgs,
    operation: &str,
    input: &Value,
) -> Result<Value, CommandError> {
    let options = CallOptions {
        timeout: Some(dial.timeout),
        ..CallOptions::default()
    };
    let answer = node.call_with(operation, input, options).await;
    Ok(answer.map_err(of_call)?.value().clone())
}

fn show(answer: &Value, json: bool) -> Result<CommandExit, CommandError> {
    match json {
        true => output::json_line(answer)?,
        false => lines(answer)
            .iter()
            .try_for_each(|line| output::line(line))?,
    }
    Ok(CommandExit::Ok)
}

/// One proposal of a listing.
fn line(proposal: &Value) -> String {
    let text = |name: &str| proposal[name].as_str().unwrap_or_default();
    format!(
        "{}  {:8}  {:16}  {}",
        text("id"),
        text("state"),
        text("author"),
        text("name")
    )
}

/// An answer for people: what a reviewer reads, in the order in which it is read.
fn lines(answer: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    if answer["proposal"].is_object() {
        lines.push(line(&answer["proposal"]));
    }
    for (name, value) in answer.as_object().into_iter().flatten() {
        match (name.as_str(), value) {
            // Each of these has lines of its own below or above.
            ("proposal" | "difference" | "report" | "grants" | "record" | "versions", _) => {}
            (_, Value::Null) => {}
            (name, Value::String(text)) => lines.push(format!("{name}: {text}")),
            (name, value) => lines.push(format!("{name}: {value}")),
        }
    }
    let list = |name: &str| answer[name].as_array().cloned().unwrap_or_default();
    for grant in list("grants") {
        lines.push(format!(
            "grant: {}",
            grant["text"].as_str().unwrap_or_default()
        ));
    }
    for case in answer["report"]["cases"].as_array().unwrap_or(&Vec::new()) {
        let name = case["name"].as_str().unwrap_or_default();
        let passed = if case["passed"] == true {
            "passed"
        } else {
            "failed"
        };
        lines.push(format!("test {passed}: {name} ({} ticks)", case["fuel"]));
    }
    for version in list("versions") {
        let mark = if version["current"] == true {
            " current"
        } else {
            ""
        };
        lines.push(format!(
            "version {}{mark}: {} in generation {}",
            version["version"],
            version["id"].as_str().unwrap_or_default(),
            version["generation"]
        ));
    }
    for entry in list("record") {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let said = format!("record: {} {} {}", text("who"), text("did"), text("note"));
        lines.push(said.trim_end().to_owned());
    }
    if let Some(difference) = answer["difference"].as_str() {
        lines.extend(difference.lines().map(str::to_owned));
    }
    lines
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct PromotionTestCli {
        #[command(subcommand)]
        verb: PromotionVerb,
    }

    fn parsed(words: &[&str]) -> Result<PromotionVerb, clap::Error> {
        let all = ["ops"].iter().chain(words);
        PromotionTestCli::try_parse_from(all).map(|alone| alone.verb)
    }

    #[test]
    fn a_decision_says_what_was_asked_for() {
        let id = "3f".repeat(32);
        let input = |words: &[&str]| {
            let all: Vec<_> = ["promote", "node", &id]
                .iter()
                .chain(words)
                .copied()
                .collect();
            match parsed(&all) {
                Ok(PromotionVerb::Promote(args)) => Some(decision(&args)),
                _ => None,
            }
        };
        assert_eq!(input(&[]), Some(json!({ "accept": true, "reason": "" })));
        assert_eq!(
            input(&[
                "--external",
                "--scope",
                "a:b",
                "--path",
                "a/b",
                "--reason",
                "good"
            ]),
            Some(json!({
                "accept": true, "reason": "good", "path": "a/b", "external": true,
                "scopes": ["a:b"],
            }))
        );
        assert_eq!(
            input(&["--reject"]),
            Some(json!({ "accept": false, "reason": "" }))
        );
        for bad in [&["--reject", "--external"][..], &["--scope", "a"]] {
            assert_eq!(input(bad), None, "{bad:?}");
        }
        assert!(parsed(&["promote", "node", "xyz"]).is_err(), "no id");
    }

    #[test]
    fn an_id_may_be_cut_as_long_as_it_is_the_only_one() {
        for good in ["3f00", "3f00…", &"ab".repeat(32)] {
            assert!(id_or_prefix(good).is_ok(), "{good}");
        }
        for bad in ["3f0", "3F00", "js/a", "xyz0", "", &"a".repeat(65)] {
            assert!(id_or_prefix(bad).is_err(), "{bad}");
        }
        let [one, two] = ["1", "2"].map(|end| format!("{}{end}", "a".repeat(63)));
        assert_eq!(the_only(vec![one.clone()], "aaaa"), Ok(one.clone()));
        assert_eq!(
            the_only(vec![one.clone(), one.clone()], "aaaa"),
            Ok(one.clone())
        );
        let none = the_only(Vec::new(), "aaaa").expect_err("nothing was found");
        assert_eq!(none.code, "NOT_FOUND");
        let both = the_only(vec![two, one.clone()], "aaaa").expect_err("two were found");
        assert!(both.message.starts_with("2 proposals") && both.message.contains(&one));
    }

    #[test]
    fn an_author_is_known_by_its_key() {
        let listed = json!({ "peers": [
            { "peer_id": "edge", "keys": ["ed25519:01"] },
            { "peer_id": "admin", "keys": ["ed25519:02", "ed25519:03"] },
            { "peer_id": "key:monitor0" },
        ] });
        let name = |key| holder(&listed, key).map(|id| id.to_string());
        assert_eq!(name("ed25519:03").as_deref(), Some("admin"));
        assert_eq!(name("ed25519:04"), None);
    }

    #[test]
    fn what_is_missing_is_said() {
        let active = |active: bool| json!({ "path": "js/a", "version": 1, "active": active });
        assert_eq!(still_missing(&active(true)), None);
        let waits = still_missing(&active(false)).expect("it is not in force");
        assert!(waits.contains("next start"), "{waits}");
        let reviews = json!({ "id": "3f", "state": "proposed", "reviews": 1, "needed": 2 });
        let waits = still_missing(&reviews).expect("another has to agree");
        assert!(waits.contains("1 of 2 reviewers"), "{waits}");
        let next = after_proposal(&json!({ "id": "3f00" }), "attic");
        for said in [
            "ops promote attic 3f00",
            "ops:promote",
            "identity --state DIR",
        ] {
            assert!(next.contains(said), "{said}: {next}");
        }
    }

    #[test]
    fn a_reviewer_reads_grants_tests_record_and_difference() {
        let answer = json!({
            "proposal": { "id": "3f", "name": "a/b", "author": "ada", "state": "proposed" },
            "description": "Adds.",
            "grants": [{ "text": "calls 'fs/read'" }],
            "report": { "cases": [{ "name": "two", "passed": true, "fuel": 3 }] },
            "against": null,
            "difference": "-a\n+b\n",
            "needed": 1,
            "record": [{ "who": "ada", "did": "propose", "note": "" }],
        });
        assert_eq!(
            lines(&answer),
            [
                "3f  proposed  ada               a/b",
                "description: Adds.",
                "needed: 1",
                "grant: calls 'fs/read'",
                "test passed: two (3 ticks)",
                "record: ada propose",
                "-a",
                "+b",
            ]
        );
    }
}
