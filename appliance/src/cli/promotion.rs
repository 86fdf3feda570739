//! `alknet ops propose`, `proposals`, `promote` and `rollback`.

use std::path::PathBuf;

use alknet_call::{CallConnection, CallOptions, ErrorCode};
use alknet_core::PeerId;
use alknet_promotion::{Blake3Hash, PromotionBundle, read_draft};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::call::{connected, of_call};
use super::{CommandError, CommandExit, DialArgs, output};

/// What is done with operations that scripts offer.
#[derive(Debug, Subcommand)]
pub(crate) enum PromotionVerb {
    /// Sign the operation in a folder, and propose it to a node.
    #[command(
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
        after_help = "Examples:\n  alknet ops promote ed25519:…@192.0.2.7:443 3f… --external\n  \
alknet ops promote ed25519:…@192.0.2.7:443 3f… --reject --reason 'reads too much'"
    )]
    Promote(PromoteArgs),
    /// Put an earlier version of an operation in place, or take the operation away.
    #[command(
        after_help = "Example:\n  alknet ops rollback ed25519:…@192.0.2.7:443 js/invoice/total"
    )]
    Rollback(RollbackArgs),
}

/// Arguments of `alknet ops propose`.
#[derive(Debug, Args)]
pub(crate) struct ProposeArgs {
    /// The node.
    target: String,
    /// The folder of the operation.
    folder: PathBuf,
    /// The peer id that the node knows this computer's key by; a hub is asked.
    #[arg(long = "as", value_name = "PEER")]
    author: Option<PeerId>,
    #[command(flatten)]
    dial: DialArgs,
}

/// Arguments of `alknet ops proposals`.
#[derive(Debug, Args)]
pub(crate) struct ProposalsArgs {
    /// The node.
    target: String,
    /// The id of a proposal, or the path of an operation.
    which: Option<String>,
    /// Only proposals of this state.
    #[arg(long, conflicts_with = "which",
          value_parser = ["promoted", "proposed", "rejected", "retired"])]
    only: Option<String>,
    #[command(flatten)]
    dial: DialArgs,
}

/// Arguments of `alknet ops promote`.
#[derive(Debug, Args)]
pub(crate) struct PromoteArgs {
    /// The node.
    target: String,
    /// The id of the proposal.
    id: Blake3Hash,
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
    #[command(flatten)]
    dial: DialArgs,
}

/// Arguments of `alknet ops rollback`.
#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// The node.
    target: String,
    /// The operation.
    path: String,
    /// The version to put in place [default: the one that the present one replaced]
    #[arg(long, value_name = "VERSION")]
    to: Option<u64>,
    /// Why, for the record.
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    dial: DialArgs,
}

pub(crate) fn run(verb: PromotionVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        PromotionVerb::Propose(args) => propose(&args, json),
        PromotionVerb::Proposals(args) => proposals(&args, json),
        PromotionVerb::Promote(args) => promote(args, json),
        PromotionVerb::Rollback(args) => {
            let mut input = json!({ "path": args.path, "reason": args.reason });
            if let Some(version) = args.to {
                input["version"] = version.into();
            }
            tell(&args.target, &args.dial, "ops/rollback", &input, json)
        }
    }
}

fn propose(args: &ProposeArgs, json: bool) -> Result<CommandExit, CommandError> {
    if args.dial.anonymous {
        return Err(CommandError::usage(
            "a proposal has an author: leave out --anonymous",
        ));
    }
    let key = args.dial.state.key()?;
    connected(&args.target, &args.dial, async |client| {
        let author = match &args.author {
            Some(author) => author.clone(),
            None => asked(client).await?,
        };
        let content =
            read_draft(&args.folder, author, key.public()).map_err(CommandError::usage)?;
        let bundle =
            PromotionBundle::sign(&content, |text| key.sign(text)).map_err(CommandError::usage)?;
        let document: Value =
            serde_json::from_str(bundle.document()).map_err(CommandError::local)?;
        let input = json!({ "bundle": document });
        show(&ask(client, &args.dial, "ops/propose", &input).await?, json)
    })
}

/// Who the node says that we are, where it is a hub.
async fn asked(client: &CallConnection) -> Result<PeerId, CommandError> {
    let name = match client.call("hub/whoami", &Value::Null).await {
        Ok(body) => {
            let name = body.value()["peer_id"].as_str();
            name.and_then(|name| name.parse().ok())
        }
        Err(error) if error.code == ErrorCode::NotFound => None,
        Err(error) => {
            let mut failure = of_call(error);
            failure.message.push_str("; give --as PEER to do without");
            return Err(failure);
        }
    };
    let why = "the node does not say who this computer is to it: give --as PEER";
    name.ok_or_else(|| CommandError::usage(why))
}

fn proposals(args: &ProposalsArgs, json: bool) -> Result<CommandExit, CommandError> {
    let mut input = match &args.which {
        Some(which) if which.parse::<Blake3Hash>().is_ok() => json!({ "id": which }),
        Some(which) => json!({ "path": which.trim_start_matches('/') }),
        None => json!({}),
    };
    if let Some(state) = &args.only {
        input["state"] = state.as_str().into();
    }
    let listing = args.which.is_none();
    connected(&args.target, &args.dial, async |client| {
        loop {
            let answer = ask(client, &args.dial, "ops/proposals", &input).await?;
            if !listing {
                return show(&answer, json);
            }
            for proposal in answer["proposals"].as_array().unwrap_or(&Vec::new()) {
                match json {
                    true => output::json_line(proposal)?,
                    false => output::line(&line(proposal))?,
                }
            }
            match &answer["next"] {
                Value::Null => return Ok(CommandExit::Ok),
                next => input["cursor"] = next.clone(),
            }
        }
    })
}

fn promote(args: PromoteArgs, json: bool) -> Result<CommandExit, CommandError> {
    let input = decision(&args);
    tell(&args.target, &args.dial, "ops/promote", &input, json)
}

fn decision(args: &PromoteArgs) -> Value {
    let mut input = json!({ "id": args.id, "accept": !args.reject, "reason": args.reason });
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

fn tell(
    target: &str,
    dial: &DialArgs,
    operation: &str,
    input: &Value,
    json: bool,
) -> Result<CommandExit, CommandError> {
    connected(target, dial, async |client| {
        show(&ask(client, dial, operation, input).await?, json)
    })
}

async fn ask(
    client: &CallConnection,
    dial: &DialArgs,
    operation: &str,
    input: &Value,
) -> Result<Value, CommandError> {
    let options = CallOptions {
        timeout: Some(dial.timeout),
        ..CallOptions::default()
    };
    let answer = client.call_with(operation, input, &options).await;
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
        assert_eq!(
            input(&[]),
            Some(json!({ "id": id, "accept": true, "reason": "" }))
        );
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
                "id": id, "accept": true, "reason": "good", "path": "a/b", "external": true,
                "scopes": ["a:b"],
            }))
        );
        assert_eq!(
            input(&["--reject"]),
            Some(json!({ "id": id, "accept": false, "reason": "" }))
        );
        for bad in [&["--reject", "--external"][..], &["--scope", "a"]] {
            assert_eq!(input(bad), None, "{bad:?}");
        }
        assert!(parsed(&["promote", "node", "xyz"]).is_err(), "no id");
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
