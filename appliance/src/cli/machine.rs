//! `alknet logs`, `alknet reboot` and `alknet poweroff`.

use alknet_call::CallOptions;
use clap::{Args, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::call::{call_error, log_line};
use super::target::{NodeArgs, NodeRoute};
use super::{CommandError, CommandExit, confirmation, dial, duration, output};

/// The operation that reads the log.
const LOG: &str = "node/log";
/// Records from the past that a node sends at most.
const RECORDS_MAX: u32 = 100_000;
/// What `--since` takes beside times.
const OR_MOMENT: &str = ", or a moment such as 2027-01-31T12:00:00Z";
/// Target of the records by which a node says that the reader missed some.
const MISSED: &str = "log";

/// Arguments of `alknet logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Also print each new record, until Ctrl-C.
    #[arg(long, short)]
    follow: bool,
    /// Read the newest N records of the past [default: 100, or all with --since, --level or --grep]
    #[arg(long, short = 'n', value_name = "N",
          value_parser = clap::value_parser!(u32).range(0..=i64::from(RECORDS_MAX)))]
    last: Option<u32>,
    /// Of these, print only records of this level and worse ones.
    #[arg(long, value_name = "LEVEL", value_enum)]
    level: Option<LogsLevel>,
    /// Of these, print only records whose target or message contains this text, as it is written.
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
    /// Print only records since this time: 90s, 30m, 12h or 30d ago, a number of seconds ago, or a moment such as
    /// 2027-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<LogsSince>,
}

/// The level of a record, the worst one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum LogsLevel {
    Error,
    Warn,
    Info,
    Debug,
}

/// From when on records are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogsSince {
    /// This many seconds before now.
    Ago(u64),
    /// This moment.
    At(Timestamp),
}

impl LogsSince {
    /// The moment. A time before the first moment that a clock knows is that moment.
    fn moment(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(moment) => moment,
            Self::Ago(seconds) => {
                let ago = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
                now.checked_sub(ago).unwrap_or(Timestamp::MIN)
            }
        }
    }
}

fn since(text: &str) -> Result<LogsSince, String> {
    if let Some(seconds) = duration::whole_seconds(text) {
        return Ok(LogsSince::Ago(seconds));
    }
    let moment = text.parse().map(LogsSince::At);
    moment.map_err(|_| duration::no_time(text, OR_MOMENT))
}

impl LogsArgs {
    /// Whether it leaves out records for what they say. Nodes do not do so: old ones would refuse to be asked for it.
    const fn selects(&self) -> bool {
        self.level.is_some() || self.grep.is_some()
    }

    /// Whether a record is asked for by its level and its text. A reader always sees that records are missing.
    fn is_wanted(&self, record: &Value) -> bool {
        let text = |member: &str| record[member].as_str().unwrap_or_default();
        if text("target") == MISSED {
            return true;
        }
        // A level that is not known here is that of a newer node.
        let level = LogsLevel::from_str(text("level"), true).ok();
        let is_grave = level.is_none_or(|level| self.level.is_none_or(|least| level <= least));
        let has = |wanted: &String| {
            ["target", "message"]
                .iter()
                .any(|it| text(it).contains(wanted))
        };
        is_grave && self.grep.as_ref().is_none_or(has)
    }
}

/// Prints the log, a record on each line.
pub(crate) fn logs(args: &LogsArgs, json: bool) -> Result<CommandExit, CommandError> {
    let since = args.since.map(|since| since.moment(Timestamp::now()));
    let mut input = json!({ "follow": args.follow });
    match (args.last, since) {
        (Some(last), _) => input["last"] = last.into(),
        // The node counts records and no time: all are asked for, and the older ones left out here.
        (None, Some(_)) => input["last"] = RECORDS_MAX.into(),
        (None, None) if args.selects() => input["last"] = RECORDS_MAX.into(),
        (None, None) => {}
    }
    args.node.reached(async |node| {
        let events = node.subscribe(LOG, &input, CallOptions::default());
        let mut events = events.await.map_err(call_error)?;
        let mut without_time = 0_u64;
        let mut shown = ShownRecords::default();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = tokio::signal::ctrl_c() => return Ok(CommandExit::Aborted),
            };
            let Some(event) = event else {
                break;
            };
            let event = event.map_err(call_error)?;
            let record = event.output.value();
            shown.all += 1;
            if !args.is_wanted(record) {
                continue;
            }
            match since.map_or(RecordAge::Shown, |since| age(record, since)) {
                RecordAge::Shown => {
                    print(record, json)?;
                    shown.printed += 1;
                }
                RecordAge::Older => {}
                RecordAge::Unknown => without_time += 1,
            }
        }
        if without_time > 0 && !json {
            output::note(&format!(
                "{without_time} records have no time, because the clock was not set: they are left out"
            ));
        }
        if let Some(none) = shown.none(args).filter(|_| !json) {
            output::note(&none);
        }
        Ok(CommandExit::Ok)
    })
}

/// How many records the node sent, and how many of them were printed.
#[derive(Debug, Default)]
struct ShownRecords {
    all: u64,
    printed: u64,
}

impl ShownRecords {
    /// What is said where options left out every record: without a word a user takes the log for empty.
    fn none(&self, args: &LogsArgs) -> Option<String> {
        let selects = args.selects() || args.since.is_some();
        (selects && self.printed == 0).then(|| format!("none of {} records matches", self.all))
    }
}

/// How a record compares with what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecordAge {
    Shown,
    Older,
    /// The node wrote it before its clock was set.
    Unknown,
}

fn age(record: &Value, since: Timestamp) -> RecordAge {
    let time = record["time"].as_str().map(str::parse::<Timestamp>);
    match time {
        Some(Ok(time)) if time >= since => RecordAge::Shown,
        Some(Ok(_)) => RecordAge::Older,
        Some(Err(_)) | None => RecordAge::Unknown,
    }
}

fn print(record: &Value, json: bool) -> Result<(), CommandError> {
    if json {
        return output::json_line(record);
    }
    output::line(&log_line(LOG, record).unwrap_or_else(|| record.to_string()))
}

/// Arguments of `alknet reboot` and `alknet poweroff`.
#[derive(Debug, Args)]
pub(crate) struct PowerArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Do not ask for confirmation.
    #[arg(long, short)]
    yes: bool,
}

/// What is done with a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PowerVerb {
    Poweroff,
    Reboot,
}

impl PowerVerb {
    const fn operation(self) -> &'static str {
        match self {
            Self::Poweroff => "node/poweroff",
            Self::Reboot => "node/reboot",
        }
    }

    fn question(self, route: &NodeRoute) -> String {
        let node = output::one_line(&route.as_argument()).into_owned();
        match self {
            Self::Poweroff => {
                format!(
                    "Switch {node} off? It comes back only when its power is switched on. [y/N] "
                )
            }
            Self::Reboot => format!("Restart {node}? [y/N] "),
        }
    }

    const fn done(self) -> &'static str {
        match self {
            Self::Poweroff => "switches itself off",
            Self::Reboot => "restarts",
        }
    }
}

/// Restarts a machine or switches it off, after a question where a person sits at a terminal.
pub(crate) fn power(
    verb: PowerVerb,
    args: &PowerArgs,
    json: bool,
) -> Result<CommandExit, CommandError> {
    let route = args.node.route()?;
    confirmation::ask_unless(args.yes, &verb.question(&route), json)?;
    dial::reached(&route, &args.node.dial, async |node| {
        let answer = node.call(verb.operation(), &Value::Null).await;
        let answer = answer.map_err(call_error)?;
        match json {
            true => output::json_line(answer.value())?,
            false => output::line(&format!("{} {}", route.as_argument(), verb.done()))?,
        }
        Ok(CommandExit::Ok)
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_time_is_read_as_an_age_or_a_moment() {
        assert_eq!(since("90s"), Ok(LogsSince::Ago(90)));
        assert_eq!(since("90"), Ok(LogsSince::Ago(90)));
        assert_eq!(since("2d"), Ok(LogsSince::Ago(172_800)));
        let moment: Timestamp = "2027-01-31T12:00:00Z".parse().expect("a time");
        assert_eq!(since("2027-01-31T12:00:00Z"), Ok(LogsSince::At(moment)));
        assert!(since("yesterday").is_err());
        duration::samples::refuses_what_is_no_time(OR_MOMENT, since);
        let hour = LogsSince::Ago(3600).moment(moment);
        assert_eq!(hour.to_string(), "2027-01-31T11:00:00Z");
        assert_eq!(LogsSince::Ago(u64::MAX).moment(moment), Timestamp::MIN);
    }

    #[test]
    fn a_record_is_compared_by_its_time() {
        let since: Timestamp = "2027-01-31T12:00:00Z".parse().expect("a time");
        for (time, expected) in [
            (json!("2027-01-31T12:00:00.000Z"), RecordAge::Shown),
            (json!("2027-01-31T12:00:01Z"), RecordAge::Shown),
            (json!("2027-01-31T11:59:59.999Z"), RecordAge::Older),
            (json!("now"), RecordAge::Unknown),
            (Value::Null, RecordAge::Unknown),
        ] {
            let record = json!({ "time": time, "message": "" });
            assert_eq!(age(&record, since), expected, "{record}");
        }
    }

    #[derive(Debug, clap::Parser)]
    struct LogsCommand {
        #[command(flatten)]
        args: LogsArgs,
    }

    #[test]
    fn records_are_chosen_by_level_and_text() {
        let record = |level: &str, target: &str, message: &str| json!({ "level": level, "target": target, "message": message });
        let records = [
            record("error", "endpoint", "no port"),
            record("warn", "alknet::imports", "import api: gone"),
            record("info", "conn", "conn.open peer=ada"),
            record("debug", "conn", "a datagram"),
            record("grave", "conn", "of a newer node"),
            record("warn", MISSED, "3 records were lost"),
        ];
        let shown = |more: &[&str]| {
            let words = [&["logs", "node"], more].concat();
            let args = LogsCommand::try_parse_from(words).expect("a command").args;
            assert_eq!(args.selects(), !more.is_empty());
            let wanted = records
                .iter()
                .enumerate()
                .filter(|(_, it)| args.is_wanted(it));
            wanted.map(|(n, _)| n).collect::<Vec<_>>()
        };
        assert_eq!(shown(&[]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(shown(&["--level", "error"]), [0, 4, 5]);
        assert_eq!(shown(&["--level", "warn"]), [0, 1, 4, 5]);
        assert_eq!(shown(&["--level", "info"]), [0, 1, 2, 4, 5]);
        assert_eq!(shown(&["--level", "debug"]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(shown(&["--grep", "import"]), [1, 5]);
        assert_eq!(shown(&["--grep", "peer=ada"]), [2, 5]);
        assert_eq!(shown(&["--grep", "Import"]), [5], "as it is written");
        assert_eq!(shown(&["--grep", "conn", "--level", "warn"]), [4, 5]);
    }

    #[test]
    fn a_log_without_a_match_says_so() {
        let said = |more: &[&str], printed| {
            let words = [&["logs", "node"], more].concat();
            let args = LogsCommand::try_parse_from(words).expect("a command").args;
            ShownRecords { all: 40, printed }.none(&args)
        };
        let none = Some("none of 40 records matches".to_owned());
        for words in [["--grep", "x"], ["--level", "error"], ["--since", "1h"]] {
            assert_eq!(said(&words, 0), none, "{words:?}");
            assert_eq!(said(&words, 1), None, "{words:?}");
        }
        assert_eq!(said(&[], 0), None);
    }
}
