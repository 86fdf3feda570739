//! `alknet fs snapshot`: read-only names of versions.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::bucket::{BucketRow, node_and_bucket};
use super::failure::FilesSubject;
use super::list::{PagedList, time};
use crate::cli::query::{ask_or_explain, text};
use crate::cli::row_args::{NodeRowArgs, RowWord};
use crate::cli::target::NodeArgs;
use crate::cli::{CommandError, CommandExit, output};

/// What stands between a bucket and the name of a snapshot in an address.
const BETWEEN: &str = ":/.snap/";

/// The verbs below `alknet fs snapshot`.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotVerb {
    /// Give a version of a branch a name, under which it stays readable.
    #[command(
        override_usage = "alknet fs snapshot add [OPTIONS] [NODE] <SNAPSHOT>",
        after_help = "Examples:\n  alknet fs snapshot add attic docs:/.snap/monday\n  \
alknet fs snapshot add attic docs:/.snap/before --branch draft --at 17"
    )]
    Add(SnapshotAddArgs),
    /// List the snapshots of a bucket, each by the address under which it is read.
    #[command(
        override_usage = "alknet fs snapshot list [OPTIONS] [NODE] <BUCKET>",
        after_help = "Example:\n  alknet fs snapshot list attic docs"
    )]
    List(NodeRowArgs<BucketRow>),
    /// Delete a snapshot. What it named stays until the retention of the bucket is over.
    #[command(
        override_usage = "alknet fs snapshot remove [OPTIONS] [NODE] <SNAPSHOT>",
        after_help = "Example:\n  alknet fs snapshot remove attic docs:/.snap/monday"
    )]
    Remove(NodeRowArgs<SnapshotRow>),
}

/// A snapshot of a bucket.
pub(crate) enum SnapshotRow {}

impl RowWord for SnapshotRow {
    const NAME: &'static str = "SNAPSHOT";
    const HELP: &'static str =
        "The address of the snapshot: BUCKET:/.snap/NAME, such as docs:/.snap/monday";
    const FROM: &'static str =
        "an address of 'alknet fs snapshot list', such as docs:/.snap/monday";
}

/// Arguments of `alknet fs snapshot add`.
#[derive(Debug, Args)]
pub(crate) struct SnapshotAddArgs {
    #[command(flatten)]
    row: NodeRowArgs<SnapshotRow>,
    /// The branch [default: main]
    #[arg(long, value_name = "BRANCH")]
    branch: Option<String>,
    /// The branch as it was after this commit.
    #[arg(long, value_name = "SEQ")]
    at: Option<u64>,
}

/// The bucket and the name of a snapshot.
fn read_snapshot(word: &str) -> Result<(&str, &str), CommandError> {
    let parts = word.split_once(BETWEEN);
    let parts = parts.filter(|(bucket, name)| {
        !bucket.is_empty()
            && !name.is_empty()
            && !bucket.contains(['@', '#'])
            && !name.contains('/')
    });
    parts.ok_or_else(|| {
        CommandError::usage(format!(
            "'{word}' is no snapshot: write BUCKET:/.snap/NAME, such as docs:/.snap/monday"
        ))
    })
}

/// `alknet fs snapshot`
pub(super) fn run(verb: SnapshotVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        SnapshotVerb::Add(args) => {
            let (node, word) = args.row.arranged()?;
            let mut input = json!({});
            if let Some(branch) = args.branch {
                input["branch"] = branch.into();
            }
            if let Some(seq) = args.at {
                input["seq"] = seq.into();
            }
            let bucket = read_snapshot(&word)?.0.to_owned();
            let lines = |row: &Value| vec![line(&bucket, row)];
            change(&node, "fs/snapshot/create", &word, input, json, lines)
        }
        SnapshotVerb::List(row) => list(row, json),
        SnapshotVerb::Remove(row) => {
            let (node, word) = row.arranged()?;
            let lines = |_: &Value| vec![format!("{word} is deleted")];
            change(&node, "fs/snapshot/delete", &word, json!({}), json, lines)
        }
    }
}

fn change(
    node: &NodeArgs,
    operation: &str,
    word: &str,
    mut input: Value,
    json: bool,
    lines: impl Fn(&Value) -> Vec<String>,
) -> Result<CommandExit, CommandError> {
    let (bucket, name) = read_snapshot(word)?;
    input["bucket"] = bucket.into();
    input["name"] = name.into();
    ask_or_explain(node, (operation, &input), json, lines, async |_, error| {
        FilesSubject::new(word, json).error(operation, error)
    })
}

fn list(row: NodeRowArgs<BucketRow>, json: bool) -> Result<CommandExit, CommandError> {
    let (node, bucket) = node_and_bucket(row)?;
    node.reached(async |node| {
        let list = PagedList {
            operation: "fs/snapshot/list",
            rows: "snapshots",
            page: "page",
            subject: FilesSubject::new(&bucket, json),
        };
        let rows = list.all(node, json!({ "bucket": bucket })).await?;
        match json {
            true => output::json_line(&json!({ "snapshots": rows }))?,
            false => rows
                .iter()
                .try_for_each(|row| output::line(&line(&bucket, row)))?,
        }
        Ok(CommandExit::Ok)
    })
}

/// One snapshot: its address, the version, and when it was made.
fn line(bucket: &str, row: &Value) -> String {
    format!(
        "{bucket}{BETWEEN}{}  {}#{}  {}",
        text(&row["name"]),
        row["branch"].as_str().unwrap_or("a deleted branch"),
        row["seq"].as_u64().unwrap_or_default(),
        time(&row["created_ms"])
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_by_its_address() {
        assert_eq!(read_snapshot("docs:/.snap/monday"), Ok(("docs", "monday")));
        for wrong in [
            "docs",
            "docs:/monday",
            "docs:/.snap/",
            "docs:/.snap/a/b",
            "docs@draft:/.snap/a",
            ":/.snap/a",
        ] {
            assert!(read_snapshot(wrong).is_err(), "{wrong}");
        }
        let row = json!({ "name": "monday", "branch": "main", "seq": 3, "created_ms": 0 });
        assert_eq!(
            line("docs", &row),
            "docs:/.snap/monday  main#3  1970-01-01T00:00:00Z"
        );
    }
}
