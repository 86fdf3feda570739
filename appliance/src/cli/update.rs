//! `alknet update` and `alknet rollback`: another version of alknet on an appliance.

mod bounds;
mod fleet;
mod rollback;
mod source;
mod stage;
mod trial;

use std::time::Duration;

use alknet_call::CallOptions;
use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::call::call_error;
use super::dial::CliDialer;
use super::node_caller::NodeCaller;
use super::query::{ask, text};
use super::target::{HubPeerArgs, NodeArgs, NodeNames, NodeRoute, no_node};
use super::{CommandError, CommandExit, DialArgs, confirmation, duration, output, status};
use crate::node::may_end_by_staging;
use crate::update_plan::{agreed_floor, waiting_plan};
pub(crate) use rollback::NodeRollbackArgs;
use source::BundleSource;

/// How long a node may take before its restart: it compares the program with its hash, and prepares its TPM. A slow
/// machine needs more than the usual time of a call.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(300);
/// The operation that tells how updates stand.
const STATUS: &str = "update/status";
/// How long a node may take from its restart until it has confirmed the version or is back on the one before, unless
/// another time is given: three starts that fail, each after ten minutes.
const WAIT: &str = "35m";
/// The longest such time.
const WAIT_MAX: Duration = Duration::from_secs(86_400);
/// What `--at` takes beside times.
const OR_MOMENT: &str = ", or a moment such as 2027-01-31T02:00:00Z";

/// Arguments of `alknet update`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    override_usage = "alknet update [OPTIONS] [NODE]... [SOURCE]\n       \
alknet update --workers [OPTIONS] [HUB] [SOURCE]\n       alknet update <COMMAND>"
)]
pub(crate) struct UpdateArgs {
    #[command(subcommand)]
    verb: Option<UpdateVerb>,
    #[command(flatten)]
    options: UpdateOptions,
}

/// The verbs below `alknet update`.
#[derive(Debug, Subcommand)]
enum UpdateVerb {
    /// Give up the bundle that is under way on a node, also that of another caller.
    #[command(after_help = "Example:\n  alknet update cancel edge-1")]
    Cancel(NodeArgs),
    /// Confirm the version on trial without waiting for the health gate.
    #[command(after_help = "Example:\n  alknet update confirm edge-1")]
    Confirm(NodeArgs),
    /// Print what updates did on a node.
    #[command(after_help = "Examples:\n  alknet update log edge-1\n  alknet update log --json")]
    Log(NodeArgs),
    /// Show the versions of a node, the update under way, and how the last one ended.
    #[command(
        after_help = "Examples:\n  alknet update status edge-1\n  alknet update status kitchen@attic"
    )]
    Status(NodeArgs),
}

/// Which version of alknet where, and when.
#[derive(Debug, Args)]
struct UpdateOptions {
    /// The nodes, one after the other, and SOURCE: a bundle, which is a file or https://…; without it the version that
    /// waits on the node, else the one of the node's channel
    #[arg(id = "what", value_name = "NODE|SOURCE")]
    words: Vec<String>,
    /// Take the bundle from this hub, which has one for its workers.
    #[arg(long, value_name = "HUB")]
    from: Option<String>,
    /// Take the bundle from this channel, and not from the one that the node's configuration names.
    #[arg(long, value_name = "NAME", value_parser = ["beta", "stable"], conflicts_with = "from")]
    channel: Option<String>,
    /// Send the version, and do not start it.
    #[arg(long)]
    stage: bool,
    /// Start it at this moment, such as 2027-01-31T02:00:00Z, or after this time: 90s, 30m, 12h or 30d.
    #[arg(long, value_name = "TIME", value_parser = start_time, conflicts_with = "stage")]
    at: Option<StartTime>,
    /// Verify the bundle and say what would happen; change nothing.
    #[arg(long, conflicts_with_all = ["stage", "at"])]
    dry_run: bool,
    /// Give up the bundle that is under way on a node, also that of another caller.
    #[arg(long)]
    take_over: bool,
    /// Permit this one older version.
    #[arg(long, value_name = "VERSION")]
    downgrade: Option<String>,
    /// Do not ask for confirmation.
    #[arg(long, short)]
    yes: bool,
    /// Give up after this time if a node has not confirmed the version: 90s, 30m or 12h.
    #[arg(long, value_name = "TIME", default_value = WAIT, value_parser = limit)]
    limit: Duration,
    /// NODE is a hub: the hub updates its workers, ring after ring, and stops at the first failure.
    #[arg(long, conflicts_with_all = ["stage", "at", "dry_run", "downgrade", "from", "take_over", "channel"])]
    workers: bool,
    /// How many workers each ring has, such as 1,5,all [default: 1,5,all]
    #[arg(long, value_name = "LIST", requires = "workers", value_delimiter = ',', value_parser = fleet::ring)]
    rings: Vec<fleet::RingArg>,
    /// Update at most N workers at once [default: 4]
    #[arg(long, value_name = "N", requires = "workers", value_parser = clap::value_parser!(u64).range(1..=64))]
    at_once: Option<u64>,
    #[command(flatten)]
    peer: HubPeerArgs,
    #[command(flatten)]
    dial: DialArgs,
}

/// When a version starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StartTime {
    In(u64),
    At(Timestamp),
}

impl StartTime {
    fn moment(self, now: Timestamp) -> Result<Timestamp, CommandError> {
        match self {
            Self::At(moment) => Ok(moment),
            Self::In(seconds) => {
                let time = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
                let moment = now.checked_add(time);
                moment.map_err(|_| CommandError::usage("--at is too far ahead"))
            }
        }
    }
}

fn start_time(text: &str) -> Result<StartTime, String> {
    if let Some(seconds) = duration::whole_seconds(text) {
        return Ok(StartTime::In(seconds));
    }
    let moment = text.parse().map(StartTime::At);
    moment.map_err(|_| duration::no_time(text, OR_MOMENT))
}

fn limit(text: &str) -> Result<Duration, String> {
    duration::up_to(text, WAIT_MAX)
}

/// `alknet update`
pub(crate) fn run(args: UpdateArgs, json: bool) -> Result<CommandExit, CommandError> {
    match args.verb {
        Some(UpdateVerb::Cancel(node)) => {
            let told = |answer: &Value| vec![cancelled_line(answer).to_owned()];
            ask(&node, "update/cancel", &Value::Null, json, told)
        }
        Some(UpdateVerb::Confirm(node)) => {
            let told = |_: &Value| vec!["the version is confirmed".to_owned()];
            ask(&node, "update/confirm", &Value::Null, json, told)
        }
        Some(UpdateVerb::Log(node)) => ask(&node, "update/log", &Value::Null, json, log_lines),
        Some(UpdateVerb::Status(node)) => ask(&node, STATUS, &Value::Null, json, status_lines),
        None => update(&args.options, json),
    }
}

fn cancelled_line(answer: &Value) -> &'static str {
    match answer["cancelled"] == true {
        true => "the bundle under way was given up",
        false => "no bundle was under way",
    }
}

fn update(options: &UpdateOptions, json: bool) -> Result<CommandExit, CommandError> {
    let names = NodeNames::load(&options.dial.state);
    let (nodes, source) = arranged(&options.words, |word| names.is_node(word))?;
    let mut routes = Vec::with_capacity(nodes.len().max(1));
    for node in nodes {
        routes.push(names.route_to(node, &options.peer)?);
    }
    if routes.is_empty() {
        routes.push(names.route(None, &options.peer)?.ok_or_else(no_node)?);
    }
    let hub = options
        .from
        .as_deref()
        .map(|hub| names.resolve(hub))
        .transpose()?;
    let source = match (source, hub) {
        (Some(_), Some(_)) => {
            return Err(CommandError::usage("give SOURCE or --from HUB, not both"));
        }
        (Some(_), None) if options.channel.is_some() => {
            return Err(CommandError::usage("give SOURCE or --channel, not both"));
        }
        (source, hub) => BundleSource::open(source, hub, options.channel.as_deref())?,
    };
    if options.workers {
        return fleet::run(options, &routes, &source, json);
    }
    // Without a person to ask, nothing restarts that was not asked for.
    if !confirmation::is_person(json) && !options.yes && !options.stage && !options.dry_run {
        let text =
            "with --json or without a terminal the command cannot ask: give --yes, or --stage";
        return Err(CommandError::usage(text));
    }
    // The first failure ends the command: the nodes after it keep their version.
    CliDialer::new(&options.dial)?.run(async |dialer| {
        let several = routes.len() > 1;
        for route in &routes {
            let turn = NodeTurn {
                dialer,
                route,
                options,
                json,
            };
            turn.run(&source).await.map_err(|mut error| {
                if several {
                    error.message = format!("{}: {}", route.as_argument(), error.message);
                }
                error
            })?;
        }
        Ok(CommandExit::Ok)
    })
}

/// The nodes, and SOURCE: a last word that is an address or a file, and no name of a node.
fn arranged(
    words: &[String],
    is_node: impl Fn(&str) -> bool,
) -> Result<(&[String], Option<&str>), CommandError> {
    let Some((last, nodes)) = words.split_last() else {
        return Ok((&[], None));
    };
    if let Some(source) = nodes.iter().find(|word| source::is_url(word)) {
        let text = format!("'{source}' is a SOURCE, which comes last");
        return Err(CommandError::usage(text));
    }
    let is_source = source::is_url(last) || (!is_node(last) && source::looks_like_file(last));
    match is_source {
        true => Ok((nodes, Some(last))),
        false => Ok((words, None)),
    }
}

/// The update of one node.
struct NodeTurn<'t> {
    dialer: &'t CliDialer,
    route: &'t NodeRoute,
    options: &'t UpdateOptions,
    json: bool,
}

impl NodeTurn<'_> {
    async fn run(&self, source: &BundleSource) -> Result<(), CommandError> {
        let node = self.route.as_argument();
        let staged = self.staged(source).await?;
        if !self.json {
            for line in plan_lines(&node, &staged) {
                output::line(&line)?;
            }
        }
        if self.options.dry_run {
            return self.done("planned", &staged, json!({}));
        }
        if self.options.stage {
            return self.done("staged", &staged, json!({}));
        }
        let version = staged["to"].as_str().unwrap_or_default();
        let when = self
            .options
            .at
            .map(|at| at.moment(Timestamp::now()))
            .transpose()?;
        let moment = when.map_or_else(|| "now".to_owned(), |at| format!("at {at}"));
        let question = format!("Start {version} on {node} {moment}? The machine restarts. [y/N] ");
        let question = output::one_line(&question).into_owned();
        confirmation::ask_beside_work(self.options.yes, question, self.json).await?;
        let input = start_input(when, &staged)?;
        let answer = self
            .dialer
            .reached(self.route, async |node| {
                let options = options_within(PREPARE_TIMEOUT);
                let called = node.call_with("update/apply", &input, options).await;
                called.map_err(call_error)
            })
            .await?;
        if let Some(at) = answer.value()["scheduled"].as_str() {
            return self.done("scheduled", &staged, json!({ "at": at }));
        }
        trial::confirmed(
            self.dialer,
            self.route,
            version,
            self.options.limit,
            self.json,
        )
        .await?;
        self.done("confirmed", &staged, json!({}))
    }

    /// What waits on the node, or what comes from the source.
    async fn staged(&self, source: &BundleSource) -> Result<Value, CommandError> {
        if let BundleSource::Channel(None) = source
            && !self.options.dry_run
        {
            let waits = self
                .dialer
                .reached(self.route, async |node| waiting(node).await);
            if let Some(waits) = waits.await? {
                return Ok(waits);
            }
        }
        stage::staged(self, source).await
    }

    fn done(&self, outcome: &str, plan: &Value, more: Value) -> Result<(), CommandError> {
        let node = self.route.as_argument();
        if self.json {
            let mut answer = json!({ "node": node, "outcome": outcome, "plan": plan });
            if let (Some(answer), Some(more)) = (answer.as_object_mut(), more.as_object()) {
                answer.extend(more.clone());
            }
            return output::json_line(&answer);
        }
        let version = text(&plan["to"]);
        output::line(&match outcome {
            "confirmed" => format!("{node} runs {version}, and has confirmed it"),
            "scheduled" => format!("{node} starts {version} at {}", text(&more["at"])),
            "staged" => format!("{version} waits on {node}: 'alknet update {node}' starts it"),
            _ => format!("nothing was changed on {node}"),
        })
    }
}

/// The plan of the version that waits on a node, or what its status says of that version.
async fn waiting(node: &NodeCaller) -> Result<Option<Value>, CommandError> {
    let status = node.call(STATUS, &Value::Null).await.map_err(call_error)?;
    let status = status.value();
    // A node of before 2026-11-29 answers without a plan if it restarted since the version was staged.
    Ok(waiting_plan(status, status["plan"].clone()))
}

/// The input of `update/apply` for the program and the floor of the plan that was shown: another caller may have staged
/// another program since, or the same one with a higher floor.
fn start_input(at: Option<Timestamp>, plan: &Value) -> Result<Value, CommandError> {
    match plan["sha256"].as_str() {
        Some(sha256) if !sha256.is_empty() => {
            let at = at.map(|at| at.to_string());
            let mut input = json!({ "at": at, "sha256": sha256 });
            // A node of an earlier version refuses a member that it does not know, and its plans do not have this one.
            if plan["agreed_floor"].is_string() {
                input["agreed_floor"] = json!(agreed_floor(plan["floor"].as_str()));
            }
            Ok(input)
        }
        _ => {
            let text = "the node does not say which program waits there, and another one could start: send the version \
                        again, by SOURCE or --channel";
            Err(CommandError::new(CommandExit::Failed, "CONFLICT", text))
        }
    }
}

/// `alknet rollback`
pub(crate) fn rollback(args: &NodeRollbackArgs, json: bool) -> Result<CommandExit, CommandError> {
    rollback::run(args, json)
}

/// The options of a call that may take this long.
fn options_within(limit: Duration) -> CallOptions {
    CallOptions {
        timeout: Some(limit),
        ..CallOptions::default()
    }
}

/// What an update does, for a person.
fn plan_lines(node: &str, plan: &Value) -> Vec<String> {
    let (from, to) = (text(&plan["from"]), text(&plan["to"]));
    let mut lines = vec![format!("{node}: {from} → {to}")];
    if plan["step"] == "downgrade" {
        lines.push("  this is an older version".to_owned());
    }
    if plan["step"] == "same" {
        lines.push("  this version runs already".to_owned());
    }
    if let Some(bytes) = plan["bytes"].as_u64().filter(|bytes| *bytes > 0) {
        let mib = (bytes as f64) / f64::from(1 << 20);
        lines.push(format!("  size     {mib:.1} MiB"));
    }
    if let Some(bytes) = plan["delta_bytes"].as_u64() {
        let mib = (bytes as f64) / f64::from(1 << 20);
        lines.push(format!(
            "  sends    {mib:.1} MiB, the differences from the program that runs"
        ));
    }
    let changes = text(&plan["changes"]);
    for (n, line) in changes.lines().enumerate() {
        let head = if n == 0 { "changes" } else { "" };
        lines.push(format!("  {head:8} {line}"));
    }
    if let Some(floor) = plan["floor"].as_str() {
        lines.push(format!(
            "  floor    no version before {floor} runs here afterwards"
        ));
    }
    if let Some(what) = plan["needs_person"].as_str() {
        lines.push(format!(
            "  person   its start needs a person at the machine: {what}"
        ));
    }
    if plan["time_known"] == false {
        lines.push(
            "  time     the machine does not know the time: it cannot tell an expired bundle"
                .to_owned(),
        );
    }
    lines
}

fn log_lines(answer: &Value) -> Vec<String> {
    let records = answer["records"].as_array().into_iter().flatten();
    let line = |record: &Value| {
        let time = record["time"].as_str().unwrap_or("no clock");
        let (event, version, by) = (
            text(&record["event"]),
            text(&record["version"]),
            text(&record["by"]),
        );
        match text(&record["reason"]) {
            "" => format!("{time}  {event} {version} by {by}"),
            reason => format!("{time}  {event} {version} by {by}: {reason}"),
        }
    };
    let lines: Vec<_> = records.map(line).collect();
    match lines.is_empty() {
        true => vec!["no update was tried".to_owned()],
        false => lines,
    }
}

fn status_lines(answer: &Value) -> Vec<String> {
    let row = |name: &str, value: &str| format!("{name:10} {value}");
    let mut lines = vec![row("version", text(&answer["version"]))];
    match status::update_line(answer) {
        Some(line) => lines.push(row("update", &line)),
        None => lines.push(row(
            "update",
            &format!("no boot slots: {}", text(&answer["detail"])),
        )),
    }
    if let Some(floor) = answer["floor"].as_str() {
        lines.push(row("floor", floor));
    }
    lines.push(row("keys", text(&answer["keys"])));
    let foreign = &answer["foreign_files"];
    if let Some(files) = foreign["files"].as_u64().filter(|files| *files > 0) {
        let bytes = &foreign["bytes"];
        lines.push(row(
            "foreign",
            &format!("files of others on the boot partition: {files}, of {bytes} bytes"),
        ));
    }
    let session = &answer["session"];
    if session.is_object() {
        let (offset, bytes) = (&session["offset"], &session["bytes"]);
        let from = text(&session["source"]);
        lines.push(row(
            "sending",
            &format!("{offset} of {bytes} bytes, {from}"),
        ));
        // While PID 1 applies a delta, nothing more is sent.
        if let Some(written) = session["written"].as_u64() {
            let whole = &session["program_bytes"];
            lines.push(row(
                "writing",
                &format!("{written} of {whole} bytes of the program"),
            ));
        }
    }
    if let Some(at) = answer["scheduled"].as_str() {
        lines.push(row("starts", at));
    }
    let not_started = not_started_line(&answer["not_started"]);
    lines.extend(not_started.map(|line| row("planned", &line)));
    let auto = &answer["auto"];
    let mode = text(&auto["mode"]);
    let next = match auto["at"].as_str() {
        Some(at) => format!("{mode}; next: {} at {at}", text(&auto["next"])),
        None => format!("{mode}; next: {}", text(&auto["next"])),
    };
    lines.push(row("by itself", &next));
    let refusal = auto["refusal"]["text"].as_str();
    let does = what_to_do(auto);
    let error = auto["error"].as_str().filter(|it| refusal != Some(*it));
    let blocked = auto["blocked"]["text"].as_str();
    // The reason comes before what to do about it.
    let details = [refusal, does, blocked, error].into_iter().flatten();
    lines.extend(details.map(|line| row("", line)));
    lines
}

/// What a status says of a planned start that does not happen.
fn not_started_line(start: &Value) -> Option<String> {
    let (version, at) = (start["version"].as_str()?, start["at"].as_str()?);
    let reason = text(&start["reason"]);
    Some(format!("no start of {version} at {at}: {reason}"))
}

/// What an administrator does where the machine does nothing by itself.
fn what_to_do(auto: &Value) -> Option<&'static str> {
    let code = auto["refusal"]["code"].as_str();
    Some(match auto["next"].as_str()? {
        "failed-before" => {
            "the version failed here; 'alknet update NODE' tries it again, and a later one is tried by itself"
        }
        "left-before" => {
            "an administrator left the version; 'alknet update NODE' installs it, and a later one is installed by itself"
        }
        "no-clock" => "the machine does not know the time",
        "start-refused" if !code.is_some_and(may_end_by_staging) => {
            "do what the reason says; the machine tries the start again, and installs a later version by itself"
        }
        "start-refused" => {
            "the machine tries the start again, and installs a later version by itself; 'alknet update NODE BUNDLE' sends \
             this version again and starts it"
        }
        "waits-for-administrator" => {
            "'alknet update NODE' starts the version, and 'alknet rollback NODE' takes it back"
        }
        "waits-for-person" => "start it by 'alknet update NODE' when a person is at the machine",
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
