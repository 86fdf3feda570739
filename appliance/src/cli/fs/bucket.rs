//! `alknet fs bucket` and `alknet fs quota`: buckets, their settings and what they use.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::failure::FilesSubject;
use super::list::{PagedList, time};
use crate::cli::duration;
use crate::cli::query::{ask_or_explain, text};
use crate::cli::row_args::{NodeRowArgs, RowWord};
use crate::cli::target::NodeArgs;
use crate::cli::{CommandError, CommandExit, confirmation, output};

/// Units of a number of bytes: each is 1,024 times the one before.
const UNITS: [char; 4] = ['K', 'M', 'G', 'T'];
/// What stands for no limit.
const NO_LIMIT: &str = "none";
/// Characters of a column of numbers.
const NUMBER_WIDTH: usize = 15;

/// The verbs below `alknet fs bucket`.
#[derive(Debug, Subcommand)]
pub(crate) enum BucketVerb {
    /// Make a bucket with its branch main. You need the scope fs:admin for the bucket.
    #[command(
        override_usage = "alknet fs bucket add [OPTIONS] [NODE] <BUCKET>",
        after_help = "Examples:\n  alknet fs bucket add attic docs\n  \
alknet fs bucket add attic photos --quota 200G --retention 30d"
    )]
    Add(BucketSettingsRow),
    /// List the buckets in which you have a right.
    #[command(
        after_help = "Examples:\n  alknet fs bucket list attic\n  alknet fs bucket list --json"
    )]
    List(NodeArgs),
    /// Delete a bucket with everything in it: branches, snapshots and former versions.
    #[command(
        override_usage = "alknet fs bucket remove [OPTIONS] [NODE] <BUCKET>",
        after_help = "Example:\n  alknet fs bucket remove attic photos --yes"
    )]
    Remove(BucketRemoveArgs),
    /// Change the settings of a bucket. What no option names stays as it is.
    #[command(
        override_usage = "alknet fs bucket set [OPTIONS] [NODE] <BUCKET>",
        after_help = "Examples:\n  alknet fs bucket set attic docs --quota 20G --retention 90d\n  \
alknet fs bucket set attic docs --freeze\n  \
alknet fs bucket set attic docs --sync on --fetch eager"
    )]
    Set(BucketSetArgs),
    /// Show the settings of one bucket.
    #[command(
        override_usage = "alknet fs bucket show [OPTIONS] [NODE] <BUCKET>",
        after_help = "Example:\n  alknet fs bucket show attic docs"
    )]
    Show(NodeRowArgs<BucketRow>),
}

/// A bucket of a node.
pub(crate) enum BucketRow {}

impl RowWord for BucketRow {
    const NAME: &'static str = "BUCKET";
    const HELP: &'static str =
        "The name of the bucket: 2 to 63 of a-z, 0-9, '.' and '-', a letter or digit first";
    const FROM: &'static str = "a name of 'alknet fs bucket list'";
}

/// Arguments of `alknet fs bucket add`.
#[derive(Debug, Args)]
pub(crate) struct BucketSettingsRow {
    #[command(flatten)]
    row: NodeRowArgs<BucketRow>,
    #[command(flatten)]
    settings: BucketSettingsArgs,
}

/// Arguments of `alknet fs bucket set`.
#[derive(Debug, Args)]
pub(crate) struct BucketSetArgs {
    #[command(flatten)]
    row: NodeRowArgs<BucketRow>,
    #[command(flatten)]
    settings: BucketSettingsArgs,
    /// Take no changes any more.
    #[arg(long)]
    freeze: bool,
    /// Take changes again.
    #[arg(long, conflicts_with = "freeze")]
    unfreeze: bool,
    #[command(flatten)]
    sync: BucketSyncArgs,
}

/// How a bucket is synchronised with peers.
#[derive(Debug, Args)]
struct BucketSyncArgs {
    /// Whether the bucket is kept the same as those of peers.
    #[arg(long, value_enum)]
    sync: Option<SwitchArg>,
    /// When contents of names that peers made are fetched: at once, when they are read, or never.
    #[arg(long, value_enum, value_name = "MODE")]
    fetch: Option<FetchArg>,
    /// Whether a file that loses against a change of a peer is also put beside the winner.
    #[arg(long, value_enum)]
    keep_both: Option<SwitchArg>,
    /// Whether each name in the root is synchronised by itself, for more than 200,000 paths. All nodes need the same.
    #[arg(long, value_enum)]
    split: Option<SwitchArg>,
}

/// A setting that is on or off, as the command line spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SwitchArg {
    Off,
    On,
}

/// When contents are fetched, as the command line spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FetchArg {
    Eager,
    Lazy,
    None,
}

/// Arguments of `alknet fs bucket remove`.
#[derive(Debug, Args)]
pub(crate) struct BucketRemoveArgs {
    #[command(flatten)]
    row: NodeRowArgs<BucketRow>,
    /// Do not ask for confirmation.
    #[arg(long, short)]
    yes: bool,
}

/// Settings of a bucket.
#[derive(Debug, Args)]
struct BucketSettingsArgs {
    /// Most bytes of distinct contents, former versions counted: a number, also with K, M, G or T behind it; or none.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    quota: Option<QuotaLimit>,
    /// Most versions of entries: a number, or none.
    #[arg(long, value_name = "N", value_parser = parse_entries)]
    entries: Option<QuotaLimit>,
    /// How long former versions are kept: 90s, 30m, 12h, 30d, or 0.
    #[arg(long, value_name = "TIME", value_parser = parse_retention)]
    retention: Option<RetentionSeconds>,
    /// Whether an answer waits for the disk. With normal, a power cut can take the last acknowledged writes.
    #[arg(long, value_enum)]
    durability: Option<DurabilityArg>,
}

/// A limit of a quota; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct QuotaLimit(Option<u64>);

/// Seconds, of which there may be none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RetentionSeconds(u64);

/// When a write is acknowledged, as the command line spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DurabilityArg {
    Full,
    Normal,
}

fn parse_bytes(word: &str) -> Result<QuotaLimit, String> {
    if word == NO_LIMIT {
        return Ok(QuotaLimit(None));
    }
    let bytes = parse_size(word).map(|bytes| QuotaLimit(Some(bytes)));
    bytes.map_err(|why| format!("{why}, or {NO_LIMIT}"))
}

/// A number of bytes, also with a unit behind it.
///
/// # Errors
/// The text is no such number, or a number that does not fit.
pub(super) fn parse_size(word: &str) -> Result<u64, String> {
    let unit = UNITS.iter().position(|unit| word.ends_with(*unit));
    let (number, factor) = match unit {
        Some(power) => (&word[..word.len() - 1], 1_u64 << (10 * (power + 1))),
        None => (word, 1),
    };
    let bytes = number.parse::<u64>().ok();
    // An overflow must not become a small quota.
    let bytes = bytes.and_then(|number| number.checked_mul(factor));
    bytes.ok_or_else(|| {
        format!("'{word}' is no number of bytes: write a number such as 500M or 20G")
    })
}

fn parse_entries(word: &str) -> Result<QuotaLimit, String> {
    if word == NO_LIMIT {
        return Ok(QuotaLimit(None));
    }
    let number = word.parse().map(|number| QuotaLimit(Some(number)));
    number.map_err(|_| format!("'{word}' is no number: write one, or {NO_LIMIT}"))
}

fn parse_retention(word: &str) -> Result<RetentionSeconds, String> {
    if word == "0" {
        return Ok(RetentionSeconds(0));
    }
    let seconds = duration::whole_seconds(word).map(RetentionSeconds);
    seconds.ok_or_else(|| duration::no_time(word, ", or 0"))
}

impl BucketSettingsArgs {
    /// The members of a request.
    fn members(&self) -> Map<String, Value> {
        let mut members = Map::new();
        let mut add = |name: &str, value: Value| {
            members.insert(name.to_owned(), value);
        };
        if let Some(QuotaLimit(limit)) = self.quota {
            add("quota_bytes", json!(limit));
        }
        if let Some(QuotaLimit(limit)) = self.entries {
            add("quota_entries", json!(limit));
        }
        if let Some(RetentionSeconds(seconds)) = self.retention {
            add("retention_s", seconds.into());
        }
        match self.durability {
            Some(DurabilityArg::Full) => add("durability", "full".into()),
            Some(DurabilityArg::Normal) => add("durability", "normal".into()),
            None => {}
        }
        members
    }
}

impl BucketSyncArgs {
    /// Adds the members of a request.
    fn add_to(&self, members: &mut Map<String, Value>) {
        let switches = [
            ("synced", self.sync),
            ("keep_both", self.keep_both),
            ("split", self.split),
        ];
        for (name, switch) in switches {
            if let Some(switch) = switch {
                members.insert(name.to_owned(), (switch == SwitchArg::On).into());
            }
        }
        let mode = self.fetch.map(|mode| match mode {
            FetchArg::Eager => "eager",
            FetchArg::Lazy => "lazy",
            FetchArg::None => "none",
        });
        if let Some(mode) = mode {
            members.insert("fetch".to_owned(), mode.into());
        }
    }
}

/// `alknet fs bucket`
pub(super) fn run(verb: BucketVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        BucketVerb::Add(BucketSettingsRow { row, settings }) => {
            let (node, bucket) = node_and_bucket(row)?;
            let input = settings.members();
            change(&node, "fs/bucket/create", &bucket, input, json)
        }
        BucketVerb::List(node) => list(&node, json),
        BucketVerb::Remove(args) => remove(args, json),
        BucketVerb::Set(args) => set(args, json),
        BucketVerb::Show(row) => {
            let (node, bucket) = node_and_bucket(row)?;
            show(&node, &bucket, json)
        }
    }
}

/// Lists the buckets that the caller sees.
pub(super) fn list(node: &NodeArgs, json: bool) -> Result<CommandExit, CommandError> {
    node.reached(async |node| {
        let rows = all_buckets(json).all(node, json!({})).await?;
        if json {
            output::json_line(&json!({ "buckets": rows }))?;
            return Ok(CommandExit::Ok);
        }
        if rows.is_empty() {
            output::note("There is no bucket in which you have a right.");
        }
        let width = output::column(rows.iter().map(|row| text(&row["name"])));
        for row in &rows {
            output::line(&line(row, width))?;
        }
        Ok(CommandExit::Ok)
    })
}

const fn all_buckets(json: bool) -> PagedList<'static> {
    PagedList {
        operation: "fs/bucket/list",
        rows: "buckets",
        page: "page",
        subject: FilesSubject::new("the buckets", json),
    }
}

fn line(row: &Value, width: usize) -> String {
    let quota = match row["quota_bytes"].as_u64() {
        Some(bytes) => format!("{bytes} bytes"),
        None => "no quota".to_owned(),
    };
    let mut line = format!(
        "{:width$}  {}  {quota}  keeps {}",
        text(&row["name"]),
        text(&row["owner"]),
        duration_text(&row["retention_s"])
    );
    if row["state"] == "frozen" {
        line.push_str("  frozen");
    }
    if row["synced"] == true {
        line.push_str("  synchronised");
    }
    line
}

/// A number of seconds, in days where it is a whole number of them.
fn duration_text(seconds: &Value) -> String {
    const DAY: u64 = 86_400;
    match seconds.as_u64().unwrap_or_default() {
        0 => "no former versions".to_owned(),
        seconds if seconds.is_multiple_of(DAY) => format!("{} d", seconds / DAY),
        seconds => format!("{seconds} s"),
    }
}

fn show(node: &NodeArgs, bucket: &str, json: bool) -> Result<CommandExit, CommandError> {
    node.reached(async |node| {
        let mut found = None;
        let take = |rows: &[Value]| -> Result<bool, CommandError> {
            found = rows.iter().find(|row| row["name"] == bucket).cloned();
            // No operation describes one bucket: the pages are read until it comes.
            Ok(found.is_none())
        };
        all_buckets(json).read(node, json!({}), take).await?;
        let Some(row) = found else {
            let text = format!(
                "{bucket}: the bucket does not exist; 'alknet fs bucket list' lists the buckets in which you have a right"
            );
            return Err(CommandError::new(CommandExit::Failed, "NOT_FOUND", text));
        };
        match json {
            true => output::json_line(&row)?,
            false => settings_lines(&row)
                .iter()
                .try_for_each(|line| output::line(line))?,
        }
        Ok(CommandExit::Ok)
    })
}

fn settings_lines(row: &Value) -> Vec<String> {
    let limit = |name: &str| match row[name].as_u64() {
        Some(limit) => limit.to_string(),
        None => NO_LIMIT.to_owned(),
    };
    [
        ("name", text(&row["name"]).to_owned()),
        ("kind", text(&row["kind"]).to_owned()),
        ("owner", text(&row["owner"]).to_owned()),
        ("made", time(&row["created_ms"])),
        ("state", text(&row["state"]).to_owned()),
        ("quota", limit("quota_bytes")),
        ("entries", limit("quota_entries")),
        ("retention", duration_text(&row["retention_s"])),
        ("durability", text(&row["durability"]).to_owned()),
        ("sync", sync_text(row)),
    ]
    .map(|(name, value)| format!("{name:<12}{value}"))
    .to_vec()
}

/// How a bucket is synchronised, in words such as `on, fetch lazy, split`.
fn sync_text(row: &Value) -> String {
    let is_on = |name: &str| row[name] == true;
    if !is_on("synced") {
        return "off".to_owned();
    }
    let mut text = format!("on, fetch {}", text(&row["fetch"]));
    for (name, word) in [("keep_both", ", keep both"), ("split", ", split")] {
        if is_on(name) {
            text.push_str(word);
        }
    }
    text
}

fn set(args: BucketSetArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, bucket) = node_and_bucket(args.row)?;
    let mut input = args.settings.members();
    if args.freeze || args.unfreeze {
        input.insert("frozen".to_owned(), args.freeze.into());
    }
    args.sync.add_to(&mut input);
    if input.is_empty() {
        let text = "nothing is changed: give --quota, --entries, --retention, --durability, --freeze, --unfreeze, --sync, \
                    --fetch, --keep-both or --split";
        return Err(CommandError::usage(text));
    }
    change(&node, "fs/bucket/set", &bucket, input, json)
}

/// Calls an operation that answers with the settings of a bucket.
fn change(
    node: &NodeArgs,
    operation: &str,
    bucket: &str,
    mut input: Map<String, Value>,
    json: bool,
) -> Result<CommandExit, CommandError> {
    input.insert("bucket".to_owned(), bucket.into());
    let input = Value::Object(input);
    let asked = (operation, &input);
    ask_or_explain(node, asked, json, settings_lines, async |_, error| {
        FilesSubject::new(bucket, json).error(operation, error)
    })
}

fn remove(args: BucketRemoveArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, bucket) = node_and_bucket(args.row)?;
    let question = format!(
        "Delete the bucket {bucket} with its branches, snapshots and former versions? [y/N] "
    );
    confirmation::ask_unless(args.yes, &question, json)?;
    let operation = "fs/bucket/delete";
    let input = json!({ "bucket": bucket });
    let lines = |_: &Value| vec![format!("{bucket} is deleted")];
    let asked = (operation, &input);
    ask_or_explain(&node, asked, json, lines, async |_, error| {
        FilesSubject::new(&bucket, json).error(operation, error)
    })
}

/// `alknet fs quota`
pub(super) fn quota(row: NodeRowArgs<BucketRow>, json: bool) -> Result<CommandExit, CommandError> {
    let (node, bucket) = node_and_bucket(row)?;
    let operation = "fs/bucket/usage";
    let input = json!({ "bucket": bucket });
    let asked = (operation, &input);
    ask_or_explain(&node, asked, json, usage_lines, async |_, error| {
        FilesSubject::new(&bucket, json).error(operation, error)
    })
}

fn usage_lines(answer: &Value) -> Vec<String> {
    let number = |name: &str| answer[name].as_u64();
    let used_of = |name: &str, limit: &str| {
        let used = number(name).unwrap_or_default();
        match number(limit) {
            Some(limit) => format!("{name:<8}{used:>NUMBER_WIDTH$} of {limit}"),
            None => format!("{name:<8}{used:>NUMBER_WIDTH$}"),
        }
    };
    let mut lines = vec![
        used_of("bytes", "quota_bytes"),
        used_of("entries", "quota_entries"),
    ];
    lines.push(used_of("staged", ""));
    lines
}

/// The node, and the bucket that a verb is about.
///
/// # Errors
/// The word is missing, or is no bucket.
pub(super) fn node_and_bucket(
    row: NodeRowArgs<BucketRow>,
) -> Result<(NodeArgs, String), CommandError> {
    let (node, bucket) = row.arranged()?;
    check_bucket(&bucket)?;
    Ok((node, bucket))
}

/// Refuses a word that is an address and no bucket, before a node is called.
fn check_bucket(word: &str) -> Result<(), CommandError> {
    match word.is_empty() || word.contains([':', '/', '@', '#']) {
        false => Ok(()),
        true => Err(CommandError::usage(format!(
            "'{word}' is no bucket: write its name alone, such as docs"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct BucketTestCli {
        #[command(subcommand)]
        verb: BucketVerb,
    }

    fn members(line: &str) -> Value {
        let words = std::iter::once("bucket").chain(line.split_whitespace());
        match BucketTestCli::try_parse_from(words).expect(line).verb {
            BucketVerb::Add(args) => Value::Object(args.settings.members()),
            BucketVerb::Set(args) => {
                let mut members = args.settings.members();
                args.sync.add_to(&mut members);
                Value::Object(members)
            }
            _ => panic!("{line}"),
        }
    }

    #[test]
    fn settings_are_read_with_their_units() {
        assert_eq!(members("add docs"), json!({}));
        assert_eq!(
            members("add docs --quota 20G --entries 5 --retention 30d --durability normal"),
            json!({ "quota_bytes": 20_u64 << 30, "quota_entries": 5, "retention_s": 2_592_000,
                    "durability": "normal" })
        );
        assert_eq!(
            members("add docs --quota none --entries none --retention 0"),
            json!({ "quota_bytes": null, "quota_entries": null, "retention_s": 0 })
        );
        assert_eq!(
            members("set docs --sync on --fetch eager --keep-both on --split off"),
            json!({ "synced": true, "fetch": "eager", "keep_both": true, "split": false })
        );
        for wrong in ["", "G", "-1", "1.5G", "20GB", "99999999T", "1k"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_bytes("4096"), Ok(QuotaLimit(Some(4096))));
        assert!(parse_retention("never").is_err());
    }

    #[test]
    fn a_bucket_is_deleted_without_a_question_only_if_the_user_says_so() {
        let parsed =
            BucketTestCli::try_parse_from(["bucket", "remove", "docs"]).expect("a command");
        let refused = run(parsed.verb, true).expect_err("a program cannot be asked");
        assert_eq!(refused.exit, CommandExit::Usage);
        assert!(refused.message.contains("--yes"));
    }

    #[test]
    fn the_lists_read_well() {
        let row = json!({ "name": "docs", "owner": "ada", "quota_bytes": 10, "retention_s": 604_800,
                          "state": "frozen" });
        assert_eq!(line(&row, 6), "docs    ada  10 bytes  keeps 7 d  frozen");
        assert_eq!(sync_text(&row), "off");
        let row = json!({ "synced": true, "fetch": "lazy", "keep_both": false, "split": true });
        assert_eq!(sync_text(&row), "on, fetch lazy, split");
        let usage = json!({ "bytes": 5, "entries": 2, "staged": 0, "quota_bytes": 10 });
        let lines = usage_lines(&usage);
        assert_eq!(lines[0], "bytes                 5 of 10");
        assert_eq!(lines.len(), 3);
        assert!(check_bucket("docs").is_ok());
        for wrong in ["docs:/", "docs@draft", ""] {
            let refused = check_bucket(wrong).expect_err(wrong);
            assert_eq!(refused.exit, CommandExit::Usage, "{wrong}");
        }
    }
}
