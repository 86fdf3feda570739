//! `alknet fs share`: contents for the holders of keys that the node does not know.

use alknet_core::PeerKey;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::address::FilesArgs;
use super::bucket::{BucketRow, node_and_bucket, parse_size};
use super::failure::FilesSubject;
use super::list::{content_at, time};
use crate::cli::query::{ask_or_explain, text};
use crate::cli::row_args::{NodeRowArgs, RowWord};
use crate::cli::{CommandError, CommandExit, duration, output};

/// Longest time of a share, in seconds.
const TIME_MAX_S: u64 = 30 * 86_400;
/// Digits of the number of a share.
const ID_DIGITS: usize = 32;

/// The verbs below `alknet fs share`.
#[derive(Debug, Subcommand)]
pub(crate) enum ShareVerb {
    /// Let the holder of a key fetch the content that a file has now, by its hash over /iroh-bytes/4. The key is all that
    /// the other side shows: it needs no entry and no token on the node.
    #[command(
        override_usage = "alknet fs share add [OPTIONS] --key <KEY> [NODE] <ADDRESS>",
        after_help = "Examples:\n  alknet fs share add attic docs:/2026/report.txt --key ed25519:…\n  \
alknet fs share add attic docs:/photos/1.jpg --key ed25519:… --expires 12h --bytes 10G --uses 3"
    )]
    Add(ShareAddArgs),
    /// List the shares of a bucket whose time is not over.
    #[command(
        override_usage = "alknet fs share list [OPTIONS] [NODE] <BUCKET>",
        after_help = "Example:\n  alknet fs share list attic docs"
    )]
    List(NodeRowArgs<BucketRow>),
    /// End a share. A request that is under way breaks off soon.
    #[command(
        override_usage = "alknet fs share remove [OPTIONS] [NODE] <SHARE>",
        after_help = "Example:\n  alknet fs share remove attic docs:af1349b9f5f9a1a6a0404dea36dcc949"
    )]
    Remove(NodeRowArgs<ShareRow>),
}

/// A share of a content.
pub(crate) enum ShareRow {}

impl RowWord for ShareRow {
    const NAME: &'static str = "SHARE";
    const HELP: &'static str = "The bucket and the number of the share, BUCKET:NUMBER, as 'alknet fs share list' prints them";
    const FROM: &'static str = "the first word of a line of 'alknet fs share list'";
}

/// Arguments of `alknet fs share add`.
#[derive(Debug, Args)]
pub(crate) struct ShareAddArgs {
    #[command(flatten)]
    files: FilesArgs,
    /// The key that the TLS client of the other side proves: ed25519:<64 hex>, which 'alknet identity' prints there.
    #[arg(long, value_name = "KEY")]
    key: String,
    /// How long the share lasts: 90s, 30m, 12h or 30d, 30 days at most.
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = parse_time)]
    expires: u64,
    /// Most bytes that all requests together may ask for: a number, also with K, M, G or T behind it.
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    bytes: Option<u64>,
    /// Most requests.
    #[arg(long, value_name = "N")]
    uses: Option<u64>,
}

fn parse_time(word: &str) -> Result<u64, String> {
    duration::seconds_up_to(word, TIME_MAX_S)
}

impl ShareAddArgs {
    /// The members of a request, without the content.
    ///
    /// # Errors
    /// The text is no key.
    fn members(&self) -> Result<Map<String, Value>, CommandError> {
        let key = self.key.parse::<PeerKey>();
        let key = key.map_err(|error| CommandError::usage(format!("--key: {error}")))?;
        let mut members = Map::new();
        members.insert("key".to_owned(), key.to_string().into());
        members.insert("time_s".to_owned(), self.expires.into());
        for (name, limit) in [("bytes_max", self.bytes), ("uses_max", self.uses)] {
            if let Some(limit) = limit {
                members.insert(name.to_owned(), limit.into());
            }
        }
        Ok(members)
    }
}

/// The bucket and the number of a share.
fn read_share(word: &str) -> Result<(&str, &str), CommandError> {
    let parts = word.split_once(':').filter(|(bucket, id)| {
        let is_digits = id.bytes().all(|digit| digit.is_ascii_hexdigit());
        !bucket.is_empty() && id.len() == ID_DIGITS && is_digits
    });
    parts.ok_or_else(|| {
        CommandError::usage(format!(
            "'{word}' is no share: write BUCKET:NUMBER, the first word of a line of 'alknet fs share list'"
        ))
    })
}

/// `alknet fs share`
pub(super) fn run(verb: ShareVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        ShareVerb::Add(args) => add(args, json),
        ShareVerb::List(row) => list(row, json),
        ShareVerb::Remove(row) => remove(row, json),
    }
}

fn add(args: ShareAddArgs, json: bool) -> Result<CommandExit, CommandError> {
    // A wrong key is refused before a node is asked.
    let mut input = args.members()?;
    let (node, address) = args.files.single()?;
    node.reached(async |node| {
        let operation = "fs/share";
        // A share is of a content: a later version of the file is not shared by it.
        let content = content_at(node, &address, json).await?;
        input.insert("bucket".to_owned(), address.bucket().into());
        input.insert("hash".to_owned(), content.hash.into());
        let answer = node.call(operation, &Value::Object(input)).await;
        let what = address.to_string();
        let subject = FilesSubject::new(&what, json);
        let answer = answer.map_err(|error| subject.error(operation, error))?;
        match json {
            true => output::json_line(answer.value())?,
            false => output::line(&line(address.bucket(), answer.value()))?,
        }
        Ok(CommandExit::Ok)
    })
}

fn list(row: NodeRowArgs<BucketRow>, json: bool) -> Result<CommandExit, CommandError> {
    let (node, bucket) = node_and_bucket(row)?;
    let operation = "fs/share/list";
    let input = json!({ "bucket": bucket });
    let lines = |answer: &Value| {
        let rows = answer["shares"].as_array().into_iter().flatten();
        rows.map(|row| line(&bucket, row)).collect()
    };
    let asked = (operation, &input);
    ask_or_explain(&node, asked, json, lines, async |_, error| {
        FilesSubject::new(&bucket, json).error(operation, error)
    })
}

fn remove(row: NodeRowArgs<ShareRow>, json: bool) -> Result<CommandExit, CommandError> {
    let (node, word) = row.arranged()?;
    let (bucket, id) = read_share(&word)?;
    let operation = "fs/share/revoke";
    let input = json!({ "bucket": bucket, "share": id });
    let lines = |_: &Value| vec![format!("{word} has ended")];
    let asked = (operation, &input);
    ask_or_explain(&node, asked, json, lines, async |_, error| {
        FilesSubject::new(&word, json).error(operation, error)
    })
}

/// One share: the word by which it is removed, the content, the key, the end, and what is left of its limits.
fn line(bucket: &str, row: &Value) -> String {
    let mut line = format!(
        "{bucket}:{}  {}  {}  until {}",
        text(&row["share"]),
        text(&row["hash"]),
        text(&row["key"]),
        time(&row["until_ms"])
    );
    for (name, unit) in [("bytes_left", "bytes"), ("uses_left", "requests")] {
        if let Some(left) = row[name].as_u64() {
            line.push_str(&format!("  {left} {unit} left"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct ShareTestCli {
        #[command(subcommand)]
        verb: ShareVerb,
    }

    fn parsed(line: &str) -> Result<ShareVerb, clap::Error> {
        let words = std::iter::once("share").chain(line.split_whitespace());
        ShareTestCli::try_parse_from(words).map(|cli| cli.verb)
    }

    fn members(line: &str) -> Result<Value, CommandError> {
        match parsed(line).expect(line) {
            ShareVerb::Add(args) => args.members().map(Value::Object),
            _ => panic!("{line}"),
        }
    }

    #[test]
    fn limits_of_a_share_are_read_with_their_units() {
        let key = PeerKey::Ed25519([7; 32]);
        assert_eq!(
            members(&format!("add docs:/a --key {key}")),
            Ok(json!({ "key": key.to_string(), "time_s": 86_400 }))
        );
        assert_eq!(
            members(&format!(
                "add attic docs:/a --key {key} --expires 12h --bytes 2K --uses 3"
            )),
            Ok(
                json!({ "key": key.to_string(), "time_s": 43_200, "bytes_max": 2048, "uses_max": 3 })
            )
        );
        for wrong in [
            "add docs:/a",
            "add docs:/a --key KEY --expires 31d",
            "add docs:/a --key KEY --expires never",
            "add docs:/a --key KEY --bytes none",
            "add docs:/a --key KEY --uses few",
        ] {
            let line = wrong.replace("KEY", &key.to_string());
            assert!(parsed(&line).is_err(), "{line}");
        }
        let refused = members("add docs:/a --key ed25519:00").expect_err("too short");
        assert_eq!(refused.exit, CommandExit::Usage);
        assert!(refused.message.starts_with("--key: "), "{refused}");
    }

    #[test]
    fn a_share_is_named_with_its_bucket() {
        let id = "af1349b9f5f9a1a6a0404dea36dcc949";
        let row = json!({ "share": id, "hash": "HASH", "key": "KEY", "until_ms": 0, "bytes_left": 5, "uses_left": 2 });
        let line = line("docs", &row);
        assert_eq!(
            line,
            format!(
                "docs:{id}  HASH  KEY  until 1970-01-01T00:00:00Z  5 bytes left  2 requests left"
            )
        );
        let word = line.split(' ').next().expect("a word");
        assert_eq!(read_share(word), Ok(("docs", id)));
        for wrong in [
            id.to_owned(),
            format!(":{id}"),
            format!("docs:/{id}"),
            format!("docs:{}", &id[1..]),
            format!("docs:{}x", &id[1..]),
        ] {
            let refused = read_share(&wrong).expect_err(&wrong);
            assert_eq!(refused.exit, CommandExit::Usage, "{wrong}");
        }
    }
}
