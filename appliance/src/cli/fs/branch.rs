//! `alknet fs branch` and `alknet fs merge`: branches of a bucket, and how they come together.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::bucket::{BucketRow, node_and_bucket};
use super::failure::FilesSubject;
use super::list::{PagedList, time};
use crate::cli::duration::{self, Lifetime};
use crate::cli::query::{ask_or_explain, text};
use crate::cli::row_args::{NodeRowArgs, RowWord};
use crate::cli::target::NodeArgs;
use crate::cli::{CommandError, CommandExit, output};

/// The operation that lists branches.
const LIST: &str = "fs/branch/list";
/// The operation that sets when a branch ends, and whether it takes merges only.
const SET: &str = "fs/branch/set";
/// The branch of a command that names none.
const MAIN: &str = "main";

/// The verbs below `alknet fs branch`.
#[derive(Debug, Subcommand)]
pub(crate) enum BranchVerb {
    /// Make a branch from another one. Nothing is copied.
    #[command(
        override_usage = "alknet fs branch add [OPTIONS] [NODE] <BUCKET@BRANCH>",
        after_help = "Examples:\n  alknet fs branch add attic docs@draft\n  \
alknet fs branch add attic docs@spring --from main --at 17 --expires 30d"
    )]
    Add(BranchAddArgs),
    /// End a branch: it takes no changes any more, and can still be read and merged.
    #[command(
        override_usage = "alknet fs branch close [OPTIONS] [NODE] <BUCKET@BRANCH>",
        after_help = "Example:\n  alknet fs branch close attic docs@draft"
    )]
    Close(NodeRowArgs<BranchRow>),
    /// List what a branch has changed in comparison with another one.
    #[command(
        override_usage = "alknet fs branch diff [OPTIONS] [NODE] <BUCKET@BRANCH>",
        after_help = "Examples:\n  alknet fs branch diff attic docs@draft\n  \
alknet fs branch diff attic docs@draft --against spring"
    )]
    Diff(BranchDiffArgs),
    /// List the branches of a bucket.
    #[command(
        override_usage = "alknet fs branch list [OPTIONS] [NODE] <BUCKET>",
        after_help = "Example:\n  alknet fs branch list attic docs"
    )]
    List(NodeRowArgs<BucketRow>),
    /// Take in what the parent of a branch changed since the branch began.
    #[command(
        override_usage = "alknet fs branch rebase [OPTIONS] [NODE] <BUCKET@BRANCH>",
        after_help = "Example:\n  alknet fs branch rebase attic docs@draft"
    )]
    Rebase(NodeRowArgs<BranchRow>),
    /// Delete a branch.
    #[command(
        override_usage = "alknet fs branch remove [OPTIONS] [NODE] <BUCKET@BRANCH>",
        after_help = "Example:\n  alknet fs branch remove attic docs@draft"
    )]
    Remove(BranchRemoveArgs),
    /// Change when a branch may be deleted, and whether it takes merges only.
    #[command(
        override_usage = "alknet fs branch set [OPTIONS] [NODE] <BUCKET@BRANCH>",
        after_help = "Examples:\n  alknet fs branch set attic docs@main --protect\n  \
alknet fs branch set attic docs@draft --expires never"
    )]
    Set(BranchSetArgs),
    /// Show one branch.
    #[command(
        override_usage = "alknet fs branch show [OPTIONS] [NODE] <BUCKET@BRANCH>",
        after_help = "Example:\n  alknet fs branch show attic docs@draft"
    )]
    Show(NodeRowArgs<BranchRow>),
}

/// A branch of a bucket.
pub(crate) enum BranchRow {}

impl RowWord for BranchRow {
    const NAME: &'static str = "BUCKET@BRANCH";
    const HELP: &'static str = "The bucket and the branch, such as docs@draft";
    const FROM: &'static str = "a bucket, '@', and a name of 'alknet fs branch list'";
}

/// Arguments of `alknet fs branch add`.
#[derive(Debug, Args)]
pub(crate) struct BranchAddArgs {
    #[command(flatten)]
    row: NodeRowArgs<BranchRow>,
    /// The branch from which it is made [default: main]
    #[arg(long, value_name = "BRANCH")]
    from: Option<String>,
    /// Make it from that branch as it was after this commit.
    #[arg(long, value_name = "SEQ")]
    at: Option<u64>,
    /// The node may delete it after this time: 90s, 30m, 12h, 30d, or never.
    #[arg(long, value_name = "TIME", value_parser = duration::lifetime)]
    expires: Option<Lifetime>,
    /// It takes merges only.
    #[arg(long)]
    protect: bool,
}

/// Arguments of `alknet fs branch diff`.
#[derive(Debug, Args)]
pub(crate) struct BranchDiffArgs {
    #[command(flatten)]
    row: NodeRowArgs<BranchRow>,
    /// The branch that it is compared with [default: main]
    #[arg(long, value_name = "BRANCH")]
    against: Option<String>,
}

/// Arguments of `alknet fs branch remove`.
#[derive(Debug, Args)]
pub(crate) struct BranchRemoveArgs {
    #[command(flatten)]
    row: NodeRowArgs<BranchRow>,
    /// Delete its snapshots as well, and give its child branches copies of what they show of it.
    #[arg(long)]
    force: bool,
}

/// Arguments of `alknet fs branch set`.
#[derive(Debug, Args)]
pub(crate) struct BranchSetArgs {
    #[command(flatten)]
    row: NodeRowArgs<BranchRow>,
    /// It takes merges only.
    #[arg(long)]
    protect: bool,
    /// It takes every change.
    #[arg(long, conflicts_with = "protect")]
    unprotect: bool,
    /// The node may delete it after this time: 90s, 30m, 12h, 30d, or never.
    #[arg(long, value_name = "TIME", value_parser = duration::lifetime)]
    expires: Option<Lifetime>,
}

/// Arguments of `alknet fs merge`.
#[derive(Debug, Args)]
pub(crate) struct BranchMergeArgs {
    #[command(flatten)]
    row: NodeRowArgs<BranchRow>,
    /// The branch that takes the changes in [default: main]
    #[arg(long, value_name = "BRANCH")]
    into: Option<String>,
    /// What happens to a path that both branches changed.
    #[arg(long, value_enum, default_value = "fail")]
    strategy: MergeStrategyArg,
    /// Close the branch that is merged.
    #[arg(long)]
    close: bool,
    /// A text for the history.
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
}

/// How conflicts of a merge are decided, as the command line spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MergeStrategyArg {
    /// Nothing is changed, and the conflicts are listed.
    Fail,
    /// The version of the branch that takes the changes in.
    Ours,
    /// The version of the branch that is merged.
    Theirs,
    /// The version that was written last.
    Latest,
    /// Both: the second one gets a name with '.conflict'.
    KeepBoth,
}

impl MergeStrategyArg {
    const fn name(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Ours => "ours",
            Self::Theirs => "theirs",
            Self::Latest => "latest",
            Self::KeepBoth => "keep-both",
        }
    }
}

/// A branch, as the word of a command names it.
#[derive(Debug, PartialEq, Eq)]
struct NamedBranch {
    bucket: String,
    name: String,
}

impl NamedBranch {
    fn read(word: &str) -> Result<Self, CommandError> {
        let is_name = |part: &str| !part.is_empty() && !part.contains(['@', ':', '/', '#']);
        let parts = word.split_once('@');
        let parts = parts.filter(|(bucket, name)| is_name(bucket) && is_name(name));
        let (bucket, name) = parts.ok_or_else(|| {
            CommandError::usage(format!(
                "'{word}' is no branch: write BUCKET@BRANCH, such as docs@draft"
            ))
        })?;
        Ok(Self {
            bucket: bucket.to_owned(),
            name: name.to_owned(),
        })
    }

    fn shown(&self) -> String {
        format!("{}@{}", self.bucket, self.name)
    }
}

fn node_and_branch(row: NodeRowArgs<BranchRow>) -> Result<(NodeArgs, NamedBranch), CommandError> {
    let (node, word) = row.arranged()?;
    Ok((node, NamedBranch::read(&word)?))
}

/// `alknet fs branch`
pub(super) fn run(verb: BranchVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        BranchVerb::Add(args) => add(args, json),
        BranchVerb::Close(row) => {
            let (node, branch) = node_and_branch(row)?;
            let shown = branch.shown();
            let lines = |_: &Value| vec![format!("{shown} takes no changes any more")];
            change(&node, "fs/branch/close", &branch, json!({}), json, lines)
        }
        BranchVerb::Diff(args) => diff(args, json),
        BranchVerb::List(row) => list(row, json),
        BranchVerb::Rebase(row) => {
            let (node, branch) = node_and_branch(row)?;
            change(
                &node,
                "fs/branch/rebase",
                &branch,
                json!({}),
                json,
                merge_lines,
            )
        }
        BranchVerb::Remove(args) => {
            let (node, branch) = node_and_branch(args.row)?;
            let shown = branch.shown();
            let lines = |_: &Value| vec![format!("{shown} is deleted")];
            let input = json!({ "force": args.force });
            change(&node, "fs/branch/delete", &branch, input, json, lines)
        }
        BranchVerb::Set(args) => set(args, json),
        BranchVerb::Show(row) => show(row, json),
    }
}

/// Calls an operation about one branch, and prints its answer.
fn change(
    node: &NodeArgs,
    operation: &str,
    branch: &NamedBranch,
    mut input: Value,
    json: bool,
    lines: impl Fn(&Value) -> Vec<String>,
) -> Result<CommandExit, CommandError> {
    input["bucket"] = branch.bucket.as_str().into();
    input["name"] = branch.name.as_str().into();
    let shown = branch.shown();
    ask_or_explain(node, (operation, &input), json, lines, async |_, error| {
        FilesSubject::new(&shown, json).error(operation, error)
    })
}

fn add(args: BranchAddArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, branch) = node_and_branch(args.row)?;
    let mut input = json!({ "protected": args.protect });
    if let Some(from) = args.from {
        input["from"] = from.into();
    }
    if let Some(seq) = args.at {
        input["seq"] = seq.into();
    }
    if let Some(end) = args.expires.and_then(end_ms) {
        input["expires_ms"] = end.into();
    }
    let lines = |row: &Value| vec![line(row)];
    change(&node, "fs/branch/create", &branch, input, json, lines)
}

/// The end of a lifetime that begins now, in milliseconds since 1970; `None` is never.
fn end_ms(lifetime: Lifetime) -> Option<u64> {
    let seconds = lifetime.seconds()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_s = now.map_or(0, |now| now.as_secs());
    Some(now_s.saturating_add(seconds).saturating_mul(1000))
}

fn branch_list(subject: FilesSubject<'_>) -> PagedList<'_> {
    PagedList {
        operation: LIST,
        rows: "branches",
        page: "page",
        subject,
    }
}

fn list(row: NodeRowArgs<BucketRow>, json: bool) -> Result<CommandExit, CommandError> {
    let (node, bucket) = node_and_bucket(row)?;
    node.reached(async |node| {
        let list = branch_list(FilesSubject::new(&bucket, json));
        let rows = list.all(node, json!({ "bucket": bucket })).await?;
        match json {
            true => output::json_line(&json!({ "branches": rows }))?,
            false => rows.iter().try_for_each(|row| output::line(&line(row)))?,
        }
        Ok(CommandExit::Ok)
    })
}

/// One branch: its name, the number of its last commit, and from where it was made.
fn line(row: &Value) -> String {
    let mut line = format!(
        "{}  {}",
        text(&row["name"]),
        row["head_seq"].as_u64().unwrap_or_default()
    );
    if let (Some(parent), Some(seq)) = (row["parent"].as_str(), row["base_seq"].as_u64()) {
        line.push_str(&format!("  from {parent}#{seq}"));
    }
    if row["protected"] == true {
        line.push_str("  protected");
    }
    if row["expires_ms"].is_u64() {
        line.push_str(&format!("  until {}", time(&row["expires_ms"])));
    }
    // Most branches are open, so that only the others say it.
    if row["state"] != "open" {
        line.push_str(&format!("  {}", text(&row["state"])));
    }
    line
}

fn show(row: NodeRowArgs<BranchRow>, json: bool) -> Result<CommandExit, CommandError> {
    let (node, branch) = node_and_branch(row)?;
    let shown = branch.shown();
    node.reached(async |node| {
        let list = branch_list(FilesSubject::new(&shown, json));
        let mut found = None;
        let take = |rows: &[Value]| -> Result<bool, CommandError> {
            found = rows.iter().find(|row| row["name"] == *branch.name).cloned();
            // No operation describes one branch: the pages are read until it comes.
            Ok(found.is_none())
        };
        list.read(node, json!({ "bucket": branch.bucket }), take)
            .await?;
        let row = found.ok_or_else(|| no_branch(&shown))?;
        match json {
            true => output::json_line(&row)?,
            false => output::line(&line(&row))?,
        }
        Ok(CommandExit::Ok)
    })
}

fn no_branch(shown: &str) -> CommandError {
    let text = format!(
        "{shown}: the branch does not exist; 'alknet fs branch list' lists the branches of the bucket"
    );
    CommandError::new(CommandExit::Failed, "NOT_FOUND", text)
}

fn set(args: BranchSetArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, branch) = node_and_branch(args.row)?;
    let is_protected = (args.protect || args.unprotect).then_some(args.protect);
    if is_protected.is_none() && args.expires.is_none() {
        let text = "nothing is changed: give --protect, --unprotect or --expires";
        return Err(CommandError::usage(text));
    }
    let shown = branch.shown();
    node.reached(async |node| {
        let subject = FilesSubject::new(&shown, json);
        // The operation sets both, so that what no option names is read first.
        let list = branch_list(subject);
        let rows = list.all(node, json!({ "bucket": branch.bucket })).await?;
        let before = rows.iter().find(|row| row["name"] == *branch.name);
        let before = before.ok_or_else(|| no_branch(&shown))?;
        let is_protected = is_protected.unwrap_or_else(|| before["protected"] == true);
        let end = match args.expires {
            Some(expires) => end_ms(expires),
            None => before["expires_ms"].as_u64(),
        };
        let mut input = json!({
            "bucket": branch.bucket, "name": branch.name, "protected": is_protected,
        });
        if let Some(end) = end {
            input["expires_ms"] = end.into();
        }
        let answer = node.call(SET, &input).await;
        let answer = answer.map_err(|error| subject.error(SET, error))?;
        match json {
            true => output::json_line(answer.value())?,
            false => output::line(&line(answer.value()))?,
        }
        Ok(CommandExit::Ok)
    })
}

fn diff(args: BranchDiffArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, branch) = node_and_branch(args.row)?;
    let against = args.against.as_deref().unwrap_or(MAIN);
    let shown = branch.shown();
    node.reached(async |node| {
        let list = PagedList {
            operation: "fs/branch/diff",
            rows: "changes",
            page: "page",
            subject: FilesSubject::new(&shown, json),
        };
        let input = json!({ "bucket": branch.bucket, "from": against, "to": branch.name });
        let mut all = Vec::new();
        let take = |rows: &[Value]| -> Result<bool, CommandError> {
            match json {
                true => all.extend_from_slice(rows),
                false => rows
                    .iter()
                    .try_for_each(|row| output::line(&change_line(row)))?,
            }
            Ok(true)
        };
        list.read(node, input, take).await?;
        if json {
            output::json_line(&json!({ "changes": all }))?;
        }
        Ok(CommandExit::Ok)
    })
}

fn change_line(row: &Value) -> String {
    let path = |side: &str| row[side]["path"].as_str();
    let change = text(&row["change"]);
    match (path("before"), path("after")) {
        // Only an entry that moved has two paths.
        (Some(before), Some(after)) if before != after => {
            format!("{change:<8}  {before} -> {after}")
        }
        (before, after) => format!("{change:<8}  {}", after.or(before).unwrap_or_default()),
    }
}

/// `alknet fs merge`
pub(super) fn merge(args: BranchMergeArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, branch) = node_and_branch(args.row)?;
    let mut input = json!({
        "bucket": branch.bucket, "from": branch.name, "strategy": args.strategy.name(),
        "close": args.close,
    });
    if let Some(into) = args.into {
        input["into"] = into.into();
    }
    if let Some(message) = args.message {
        input["message"] = message.into();
    }
    let operation = "fs/branch/merge";
    let shown = branch.shown();
    let asked = (operation, &input);
    ask_or_explain(&node, asked, json, merge_lines, async |_, error| {
        FilesSubject::new(&shown, json).error(operation, error)
    })
}

fn merge_lines(answer: &Value) -> Vec<String> {
    let Some(seq) = answer["seq"].as_u64() else {
        return vec!["there was nothing to take in".to_owned()];
    };
    let number = |name: &str| answer[name].as_u64().unwrap_or_default();
    let mut lines = vec![format!(
        "{} paths changed, in commit {seq}",
        number("changed")
    )];
    let conflicts = number("conflicts");
    if conflicts > 0 {
        lines.push(format!("{conflicts} conflicts were decided:"));
        let decided = answer["decided"].as_array().into_iter().flatten();
        lines
            .extend(decided.map(|row| format!("  {}: {}", text(&row["path"]), text(&row["kind"]))));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_is_named_with_its_bucket() {
        let branch = NamedBranch::read("docs@draft").expect("a branch");
        assert_eq!((&*branch.bucket, &*branch.name), ("docs", "draft"));
        assert_eq!(branch.shown(), "docs@draft");
        for wrong in [
            "docs",
            "docs@",
            "@draft",
            "docs@draft:/a",
            "docs@a@b",
            "docs#3@a",
        ] {
            let refused = NamedBranch::read(wrong).expect_err(wrong);
            assert_eq!(refused.exit, CommandExit::Usage, "{wrong}");
        }
    }

    #[test]
    fn strategies_have_the_names_of_the_operation() {
        for strategy in MergeStrategyArg::value_variants() {
            let spelled = strategy.to_possible_value().expect("none is hidden");
            assert_eq!(spelled.get_name(), strategy.name());
        }
    }

    #[test]
    fn the_lists_read_well() {
        let row = json!({ "name": "draft", "head_seq": 9, "parent": "main", "base_seq": 7,
                          "protected": true, "expires_ms": 0, "state": "merged" });
        assert_eq!(
            line(&row),
            "draft  9  from main#7  protected  until 1970-01-01T00:00:00Z  merged"
        );
        let main = json!({ "name": "main", "head_seq": 7, "parent": null, "base_seq": null,
                           "protected": false, "expires_ms": null, "state": "open" });
        assert_eq!(line(&main), "main  7");
        let renamed =
            json!({ "change": "renamed", "before": { "path": "/a" }, "after": { "path": "/b" } });
        assert_eq!(change_line(&renamed), "renamed   /a -> /b");
        let added = json!({ "change": "added", "after": { "path": "/c" } });
        assert_eq!(change_line(&added), "added     /c");
    }

    #[test]
    fn a_merge_says_what_it_decided() {
        let nothing = json!({ "seq": null, "changed": 0, "conflicts": 0, "decided": [] });
        assert_eq!(merge_lines(&nothing), ["there was nothing to take in"]);
        let decided = json!({ "seq": 4, "changed": 2, "conflicts": 1,
                              "decided": [{ "path": "/a", "kind": "both-changed" }] });
        assert_eq!(
            merge_lines(&decided),
            [
                "2 paths changed, in commit 4",
                "1 conflicts were decided:",
                "  /a: both-changed"
            ]
        );
    }
}
