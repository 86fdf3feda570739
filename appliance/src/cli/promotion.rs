//! `alknet ops propose`, `proposals`, `promote` and `rollback`.

use std::path::PathBuf;

use alknet_call::{CallOptions, ErrorCode};
use alknet_core::PeerId;
use alknet_promotion::{Blake3Hash, PromotionBundle, read_draft};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::call::{call_error, is_operation};
use super::decision::DecisionNote;
use super::node_caller::NodeCaller;
use super::proposal_list::{
    ProposalChoice, confirm_named, each_proposal, is_id_or_prefix, proposal_named, proposal_word,
};
use super::review::{ReviewHint, has_key, options, quoted, shown_id};
use super::second_key::SecondKey;
use super::target::NodeArgs;
use super::test_report::{case_lines, failed_tests};
use super::{CommandError, CommandExit, DialArgs, output};

/// What is done with operations that scripts offer.
#[derive(Debug, Subcommand)]
pub(crate) enum PromotionVerb {
    /// Sign the operation in a folder, and propose it to a node.
    #[command(
        override_usage = "alknet ops propose [OPTIONS] [NODE] <FOLDER>",
        after_help = "Examples:\n  alknet ops propose attic ./total\n  \
alknet ops propose ed25519:…@192.0.2.7:443 ./total --as ada\n\n\
The folder has operation.json (spec, entry, export, service, tests) and the sources. A hub says to each peer who it \
is, and every node to those with the scope peer:list; for another node --as has the name under which 'alknet peer list' \
of an administrator shows the key of 'alknet identity'. An author does not review its \
own bundle: the command says who may, and what to run if no other key may."
    )]
    Propose(ProposeArgs),
    /// List the proposals of a node, or show one proposal or operation in full.
    #[command(
        after_help = "Examples:\n  alknet ops proposals ed25519:…@192.0.2.7:443\n  \
alknet ops proposals ed25519:…@192.0.2.7:443 3f09\n  \
alknet ops proposals ed25519:…@192.0.2.7:443 js/invoice/total"
    )]
    Proposals(ProposalsArgs),
    /// Promote a proposal of another author to an operation of the node, or reject it.
    #[command(
        visible_alias = "approve",
        override_usage = "alknet ops promote [OPTIONS] [NODE] <PROPOSAL>",
        after_help = "Examples:\n  alknet ops promote attic invoice/total --external\n  \
alknet ops promote ed25519:…@192.0.2.7:443 3f09 --external\n  \
alknet ops promote ed25519:…@192.0.2.7:443 3f09 --reject --reason 'reads too much'\n  \
alknet ops promote attic 3f09 --external --second-key\n\n\
Without --external only operations of the node can call the operation. An author does not review its own bundle: an \
administrator who is alone decides by --second-key. A decision counts from the next start of the node, unless \
promotion.activate is \"live\". Another 'ops promote' of a promoted proposal changes who may call it."
    )]
    Promote(PromoteArgs),
    /// Replace an operation by its earlier version, or remove the operation if it has none.
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
    /// Your peer id on the node: the peer_id that it knows this computer's key by [default: what the node answers]
    #[arg(long = "as", value_name = "PEER")]
    author: Option<PeerId>,
}

/// Arguments of `alknet ops proposals`.
#[derive(Debug, Args)]
pub(crate) struct ProposalsArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The id of a proposal or its first digits, or the name or the path of an operation.
    which: Option<String>,
    /// List only proposals of this state.
    #[arg(long, conflicts_with = "which",
          value_parser = ["promoted", "proposed", "rejected", "retired"])]
    only: Option<String>,
}

/// Arguments of `alknet ops promote`.
#[derive(Debug, Args)]
pub(crate) struct PromoteArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The name of its operation, its id, or enough of the first digits of the id to tell it from the others.
    #[arg(value_name = "PROPOSAL", value_parser = proposal_word)]
    id: Option<String>,
    /// The digest of the proposal that you read, as 'alknet ops proposals ID' shows it: the node refuses the decision if
    /// another proposal of the same code took the place of that one.
    #[arg(long)]
    digest: Option<Blake3Hash>,
    /// Reject the proposal.
    #[arg(long, conflicts_with_all = ["path", "external", "scope"])]
    reject: bool,
    /// The path of the operation [default: js/<name>]
    #[arg(long)]
    path: Option<String>,
    /// Let peers call the operation, not only operations of the node.
    #[arg(long)]
    external: bool,
    /// A scope that peers need for the operation. Repeat the option for more [default: call:<path with colons>]
    #[arg(long, requires = "external")]
    scope: Vec<String>,
    /// Decide by a second key of yours, as an administrator who is alone and wrote the bundle: the command makes the key
    /// in DIR and lets it in, if it is new [default: the state directory with '-reviewer' behind its name]
    #[arg(long, value_name = "DIR", require_equals = true)]
    second_key: Option<Option<PathBuf>>,
    /// Why, for the record.
    #[arg(long, default_value = "")]
    reason: String,
}

/// Arguments of `alknet ops rollback`.
#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The path of the operation.
    path: Option<String>,
    /// The version to go back to [default: the version before the present one]
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
            let from = "an operation of 'alknet ops list'";
            let (node, path) = args.node.with_word(args.path, "PATH", from)?;
            let mut input = json!({ "path": path, "reason": args.reason });
            if let Some(version) = args.to {
                input["version"] = version.into();
            }
            let route = node.route()?;
            super::dial::reached(&route, &node.dial, async |caller| {
                let answer = ask(caller, &node.dial, "ops/rollback", &input).await?;
                let note = DecisionNote {
                    answer: &answer,
                    node: &route.as_argument(),
                    options: &options(&node.dial)?,
                };
                decided(&answer, &note.of_rollback(&path), json)
            })
        }
    }
}

fn propose(args: ProposeArgs, json: bool) -> Result<CommandExit, CommandError> {
    let from = "the folder with operation.json";
    let (node, folder) = args.node.with_word(args.folder, "FOLDER", from)?;
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
            None => fetch_peer_id(caller, &key.public().to_string()).await?,
        };
        let content = read_draft(&folder, author.clone(), key.public());
        let content = content.map_err(CommandError::usage)?;
        let bundle =
            PromotionBundle::sign(&content, |text| key.sign(text)).map_err(CommandError::usage)?;
        let document: Value =
            serde_json::from_str(bundle.document()).map_err(CommandError::local)?;
        let input = json!({ "bundle": document });
        let answer = ask(caller, &node.dial, "ops/propose", &input).await;
        let answer =
            answer.map_err(|failure| if json { failure } else { failed_tests(failure) })?;
        show(&answer, json)?;
        if !json {
            let id = answer["id"].as_str().unwrap_or("ID");
            let hint = ReviewHint::new(&route, id, &node.dial.state)?;
            output::note(&hint.after_proposal(&listed(caller).await, author.as_str()));
        }
        Ok(CommandExit::Ok)
    })
}

/// Who may connect to the node, as far as this key may see it; null where it may not.
async fn listed(node: &NodeCaller) -> Value {
    let listed = node.call("peer/list", &Value::Null).await;
    listed.map_or(Value::Null, |listed| listed.value().clone())
}

/// Who the node says that the holder of this key is. A hub says it to every peer, and each node to those that may
/// see who is connected.
async fn fetch_peer_id(node: &NodeCaller, key: &str) -> Result<PeerId, CommandError> {
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
        let mut failure = call_error(error);
        failure.message.push_str("; give --as PEER to do without");
        return Err(failure);
    }
    Err(CommandError::usage(
        "the node does not say who this computer is to it: give --as PEER, the name under which \
         'alknet peer list' of an administrator shows the key of 'alknet identity'",
    ))
}

/// The peer that has this key.
fn holder(listed: &Value, key: &str) -> Option<PeerId> {
    let mut peers = listed["peers"].as_array().into_iter().flatten();
    peer_id(&peers.find(|peer| has_key(peer, key))?["peer_id"])
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
        if let Some(which) = &args.which {
            return show(&whole(node, dial, which).await?, json);
        }
        let mut input = json!({});
        if let Some(state) = &args.only {
            input["state"] = state.as_str().into();
        }
        let mut is_empty = true;
        each_proposal(node, dial, input, |proposal| {
            is_empty = false;
            match json {
                true => output::json_line(proposal),
                false => output::line(&line(proposal)),
            }
        })
        .await?;
        if is_empty && !json {
            output::note("the node lists no such proposal to you");
        }
        Ok(CommandExit::Ok)
    })
}

/// All about a proposal, or about an operation of this path. What was never promoted may be proposed.
async fn whole(node: &NodeCaller, dial: &DialArgs, which: &str) -> Result<Value, CommandError> {
    let of_proposal = async || {
        let chosen = proposal_named(node, dial, which, ProposalChoice::Any).await?;
        ask(node, dial, "ops/proposals", &json!({ "id": chosen.id })).await
    };
    if is_id_or_prefix(which) {
        return of_proposal().await;
    }
    let path = json!({ "path": which.trim_start_matches('/') });
    match ask(node, dial, "ops/proposals", &path).await {
        Err(unknown) if unknown.code == ErrorCode::NotFound.name() => match of_proposal().await {
            // The first error is about the path, which is what the user wrote.
            Err(error) if error.code == ErrorCode::NotFound.name() => Err(unknown),
            answer => answer,
        },
        answer => answer,
    }
}

fn promote(args: PromoteArgs, json: bool) -> Result<CommandExit, CommandError> {
    let mut input = decision(&args);
    let again = again(&args);
    let from = "an id or a name of 'alknet ops proposals'";
    let (node, word) = args.node.with_word(args.id, "PROPOSAL", from)?;
    let word = proposal_word(&word).map_err(CommandError::usage)?;
    let (route, dial) = (node.route()?, &node.dial);
    let second = args.second_key.as_ref();
    let second = second.map(|dir| SecondKey::new(dir.as_deref(), &route, dial));
    let second = second.transpose()?;
    super::dial::reached(&route, dial, async |caller| {
        let chosen = proposal_named(caller, dial, &word, ProposalChoice::Waiting).await?;
        confirm_named(&chosen, !args.reject, json).await?;
        chosen.name_in(&mut input, args.digest);
        let id = chosen.id;
        let answer = match &second {
            Some(second) => second.decide(caller, &route, dial, &input).await,
            None => ask(caller, dial, "ops/promote", &input).await,
        };
        let answer = match answer {
            Err(refused) if second.is_none() && refused.code == ErrorCode::Forbidden.name() => {
                let hint = ReviewHint::new(&route, &id, &dial.state)?;
                return Err(with_hint(caller, dial, &id, &hint, refused).await);
            }
            answer => answer?,
        };
        let note = DecisionNote {
            answer: &answer,
            node: &route.as_argument(),
            options: &options(dial)?,
        };
        decided(&answer, &note.of_promotion(&shown_id(&id), &again), json)
    })
}

/// The options with which the same reviewer promotes the same proposal again, each behind a space.
fn again(args: &PromoteArgs) -> String {
    let path = args.path.iter();
    let path = path.map(|path| format!(" --path {}", quoted(path)));
    let second = args.second_key.iter().map(|dir| match dir {
        Some(dir) => format!(" --second-key={}", quoted(&dir.display().to_string())),
        None => " --second-key".to_owned(),
    });
    path.chain(second).collect()
}

/// The refusal of a decision; an author who reviewed its own bundle reads who may do it.
async fn with_hint(
    node: &NodeCaller,
    dial: &DialArgs,
    id: &str,
    hint: &ReviewHint,
    mut refused: CommandError,
) -> CommandError {
    let Ok(key) = dial.state.key() else {
        return refused;
    };
    let proposal = ask(node, dial, "ops/proposals", &json!({ "id": id })).await;
    let author = proposal.map(|whole| whole["proposal"]["author"].clone());
    let own = fetch_peer_id(node, &key.public().to_string()).await;
    if let (Ok(author), Ok(own)) = (author, own)
        && author == own.as_str()
    {
        let step = hint.after_proposal(&listed(node).await, own.as_str());
        refused.further.extend(step.lines().map(str::to_owned));
    }
    refused
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

/// Shows a decision, and what a person reads beside it.
fn decided(answer: &Value, notes: &[String], json: bool) -> Result<CommandExit, CommandError> {
    show(answer, json)?;
    if !json {
        notes.iter().for_each(|note| output::note(note));
    }
    Ok(CommandExit::Ok)
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
    Ok(answer.map_err(call_error)?.value().clone())
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
        // What '--digest' of a decision takes. A node of an earlier version has none.
        if let Some(digest) = answer["proposal"]["digest"].as_str() {
            lines.push(format!("digest: {digest}"));
        }
    }
    for (name, value) in answer.as_object().into_iter().flatten() {
        match (name.as_str(), value) {
            // Each of these has lines of its own below or above.
            ("proposal" | "difference" | "report" | "grants" | "record" | "versions", _) => {}
            (_, Value::Null) => {}
            ("active", Value::Bool(false)) => {
                lines.push("active: false, until the next start of the node".to_owned());
            }
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
    lines.extend(case_lines(&answer["report"]));
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
    if answer["versions"].is_array() && answer["current"] != answer["active"] {
        let runs = match &answer["active"] {
            Value::Null => "no version".to_owned(),
            version => format!("version {version}"),
        };
        lines.push(format!(
            "the node runs {runs} now; the current one counts from its next start"
        ));
    }
    for entry in list("record") {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let said = format!("record: {} {} {}", text("who"), text("did"), text("note"));
        lines.push(said.trim_end().to_owned());
    }
    if let Some(difference) = answer["difference"].as_str() {
        lines.extend(difference.lines().map(of_difference));
    }
    lines
}

/// A line of a unified difference. What has none of the marks that each line of one begins with is no part of it, and
/// could be taken for a line of this program's own.
fn of_difference(line: &str) -> String {
    match line.starts_with(['+', '-', ' ', '@', '\\', '…']) {
        true => line.to_owned(),
        false => format!("? {line}"),
    }
}

#[cfg(test)]
mod tests;
