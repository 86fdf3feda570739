//! `alknet hub`: invitations, and who has come.

use std::collections::BTreeMap;

use alknet_call::{CallError, ErrorCode};
use alknet_core::PeerId;
use alknet_hub::PeerLabel;
use alknet_init::console::{Charset, qr_code};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::call::call_error;
use super::name_hint::name_list;
use super::node_caller::NodeCaller;
use super::query::{RowQuery, ask, ask_or_explain, list, show_row, text};
use super::row_args::{NodeRowArgs, RowWord};
use super::target::NodeArgs;
use super::{CommandError, CommandExit, duration, output};

/// The operation that lists the peers.
const LIST: &str = "hub/peers";
/// How long an invitation is good at most, in seconds: 30 days.
const INVITATION_S_MAX: u64 = 30 * 86_400;

/// The verbs below `alknet hub`.
#[derive(Debug, Subcommand)]
pub(crate) enum HubVerb {
    /// Make a join string. Every holder of the string may become a peer of the hub: treat it as a password.
    #[command(
        after_help = "Examples:\n  alknet hub invite ed25519:…@192.0.2.7:443 --role worker --ttl 1h\n  \
alknet hub invite ed25519:…@192.0.2.7:443 --role worker --ttl 7d --count 20 --names 'edge-*'\n  \
alknet hub invite ed25519:…@192.0.2.7:443 --role worker --qr"
    )]
    Invite(InviteArgs),
    /// List the peers of a hub, the keys that wait for approval, and the open invitations.
    #[command(
        alias = "peers",
        after_help = "Example:\n  alknet hub list ed25519:…@192.0.2.7:443"
    )]
    List(NodeArgs),
    /// Show one peer of a hub.
    #[command(
        override_usage = "alknet hub show [OPTIONS] [NODE] <PEER>",
        after_help = "Example:\n  alknet hub show attic kitchen --json"
    )]
    Show(NodeRowArgs<HubPeerRow>),
    /// Enrol a key that waits for approval.
    #[command(
        override_usage = "alknet hub approve [OPTIONS] [NODE] <KEY>",
        after_help = "Example:\n  alknet hub approve ed25519:…@192.0.2.7:443 \
lusab-babad-gutih-tugad-bakuh-sojin --role worker"
    )]
    Approve(ApproveArgs),
    /// Change the name or the labels of a peer.
    #[command(
        alias = "label",
        override_usage = "alknet hub set [OPTIONS] [NODE] <PEER> [LABEL]...",
        after_help = "Example:\n  alknet hub set ed25519:…@192.0.2.7:443 kitchen \
pool=indoor --unset board --name cellar"
    )]
    Set(LabelArgs),
    /// Remove a peer: the hub closes the peer's connections, and refuses the peer's keys from then on.
    #[command(
        override_usage = "alknet hub remove [OPTIONS] [NODE] <PEER>",
        after_help = "Examples:\n  alknet hub remove ed25519:…@192.0.2.7:443 kitchen\n  \
alknet hub remove attic kitchen --close-invitations"
    )]
    Remove(RemovePeerArgs),
}

/// A peer of a hub.
pub(crate) enum HubPeerRow {}

impl RowWord for HubPeerRow {
    const NAME: &'static str = "PEER";
    const HELP: &'static str = "The peer, by its id or its name";
    const FROM: &'static str = "an id or a name of 'alknet hub list'";
}

/// A key that waits for approval.
pub(crate) enum WaitingKeyRow {}

impl RowWord for WaitingKeyRow {
    const NAME: &'static str = "KEY";
    const HELP: &'static str = "The key that waits, or its fingerprint";
    const FROM: &'static str = "a key or a fingerprint that waits in 'alknet hub list'";
}

/// Arguments of `alknet hub remove`.
#[derive(Debug, Args)]
pub(crate) struct RemovePeerArgs {
    #[command(flatten)]
    row: NodeRowArgs<HubPeerRow>,
    /// Also close the hub's other open invitations, as far as you may: if the peer has the join string of one, it gets
    /// in by another key.
    #[arg(long)]
    close_invitations: bool,
}

/// Arguments of `alknet hub invite`.
#[derive(Debug, Args)]
pub(crate) struct InviteArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The role of the new peer: a [[hub.role]] of the hub's configuration, or worker.
    #[arg(long, default_value = "worker")]
    role: String,
    /// How long the invitation is valid: 90s, 30m, 1h, 7d, or a number of seconds; at most 30 days.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds)]
    ttl: u64,
    /// How many keys may use the invitation.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// The name of the new peer, or a pattern with * in the place of a number.
    #[arg(long, value_name = "PATTERN")]
    names: Option<String>,
    /// The first and the last number of the names, for example 1-20.
    #[arg(long, value_name = "FIRST-LAST", value_parser = numbers, requires = "names")]
    numbers: Option<(u32, u32)>,
    /// A label of the new peer, NAME=VALUE. Repeat the option for more labels.
    #[arg(long, value_name = "LABEL")]
    label: Vec<PeerLabel>,
    /// An address of the hub, HOST or HOST:PORT. Repeat the option for up to four [default: the hub's domain and
    /// the addresses it listens on]
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<String>,
    /// Also draw the join string as a QR code, on standard error.
    #[arg(long)]
    qr: bool,
}

/// Arguments of `alknet hub approve`.
#[derive(Debug, Args)]
pub(crate) struct ApproveArgs {
    #[command(flatten)]
    row: NodeRowArgs<WaitingKeyRow>,
    /// The role of the new peer.
    #[arg(long, default_value = "worker")]
    role: String,
    /// The name of the new peer [default: the name that the peer asked for]
    #[arg(long)]
    name: Option<String>,
}

/// Arguments of `alknet hub set`.
#[derive(Debug, Args)]
pub(crate) struct LabelArgs {
    #[command(flatten)]
    row: NodeRowArgs<HubPeerRow>,
    /// The labels to set, NAME=VALUE.
    #[arg(value_name = "LABEL")]
    set: Vec<String>,
    /// Remove this label. Repeat the option for more labels.
    #[arg(long, value_name = "NAME")]
    unset: Vec<String>,
    /// The new name of the peer.
    #[arg(long)]
    name: Option<String>,
}

impl LabelArgs {
    /// With each word in its place: labels have a '=', which neither nodes nor peers have.
    fn arranged(mut self) -> Result<(NodeArgs, String, Vec<PeerLabel>), CommandError> {
        // With the peer's name in the place of the node, the first label was taken for the peer.
        if let Some(label) = self.row.word.take_if(|word| word.contains('=')) {
            self.set.insert(0, label);
        }
        let labels = self.set.iter().map(|label| label.parse());
        let labels = labels.collect::<Result<Vec<PeerLabel>, _>>();
        let labels = labels.map_err(CommandError::usage)?;
        let (node, peer) = self.row.arranged()?;
        Ok((node, peer, labels))
    }
}

/// Runs one of them.
pub(crate) fn run(verb: HubVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        HubVerb::Approve(args) => {
            let (node, key) = args.row.arranged()?;
            let input = json!({ "key": key, "role": args.role, "name": args.name });
            change(&node, "hub/peers/approve", &input, json)
        }
        HubVerb::Invite(args) => invite(&args, json),
        HubVerb::List(node) => list(&node, LIST, json, listed),
        HubVerb::Remove(args) => remove(args, json),
        HubVerb::Set(args) => {
            let (name, unset) = (args.name.clone(), args.unset.clone());
            let (node, peer, labels) = args.arranged()?;
            if labels.is_empty() && unset.is_empty() && name.is_none() {
                let text = "nothing to change: give LABEL as NAME=VALUE, --unset or --name";
                return Err(CommandError::usage(text));
            }
            let input = json!({
                "peer": peer, "name": name, "unset": unset, "set": map(&labels),
            });
            let of_label = ("hub/peers/label", &input);
            ask_or_explain(&node, of_label, json, changed, async |hub, error| {
                with_peers(hub, &peer, error).await
            })
        }
        HubVerb::Show(row) => {
            let (node, peer) = row.arranged()?;
            let is_wanted =
                |row: &Value| row["peer_id"] == peer.as_str() || row["name"] == peer.as_str();
            let query = RowQuery {
                operation: LIST,
                list: "peers",
                what: "peer",
                name: &peer,
                lists: "alknet hub list",
            };
            show_row(&node, &query, json, is_wanted, lines)
        }
    }
}

fn change(
    node: &NodeArgs,
    operation: &str,
    input: &Value,
    json: bool,
) -> Result<CommandExit, CommandError> {
    ask(node, operation, input, json, changed)
}

/// The peer that was enrolled or changed.
fn changed(answer: &Value) -> Vec<String> {
    let id = text(&answer["peer_id"]);
    let name = answer["name"].as_str().filter(|name| *name != id);
    vec![name.map_or_else(|| id.to_owned(), |name| format!("{id}  {name}"))]
}

/// The error of a hub. If the hub has no such peer, the error names the peers that have enrolled.
async fn with_peers(hub: &NodeCaller, peer: &str, error: CallError) -> CommandError {
    let is_unknown = error.code == ErrorCode::NotFound;
    let mut failure = call_error(error);
    if is_unknown {
        failure.message = format!("'{peer}': {}", failure.message);
        if let Ok(listed) = hub.call(LIST, &Value::Null).await {
            failure.message.push_str(&enrolled(listed.value()));
        }
    }
    failure
}

/// The peers of a list that an administrator has not removed, as the end of an error.
fn enrolled(answer: &Value) -> String {
    let peers = answer["peers"].as_array().into_iter().flatten();
    let there = peers.filter(|peer| peer["state"] != "removed");
    let names: Vec<_> = there.map(|peer| text(&peer["name"])).collect();
    let mut said = match names.is_empty() {
        true => "; no peer has enrolled".to_owned(),
        false => {
            let names = name_list(names.into_iter());
            format!("; enrolled are {}", output::one_line(&names))
        }
    };
    // A removed peer has lost its name, which another one may have now.
    let peers = answer["peers"].as_array().into_iter().flatten();
    let removed = peers.filter(|peer| peer["state"] == "removed");
    let removed: Vec<_> = removed.map(|peer| text(&peer["peer_id"])).collect();
    if !removed.is_empty() {
        let ids = name_list(removed.into_iter());
        said.push_str(&format!(
            "; removed, and without a name now, are {}",
            output::one_line(&ids)
        ));
    }
    said
}

fn remove(args: RemovePeerArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, peer) = args.row.arranged()?;
    let mut input = json!({ "peer": peer });
    if args.close_invitations {
        // A hub of an earlier version refuses a member that it does not know.
        input["close_invitations"] = true.into();
    }
    let at = node.route()?.as_argument();
    let told = |answer: &Value| removed(answer, args.close_invitations, &at);
    let of_remove = ("hub/peers/remove", &input);
    ask_or_explain(&node, of_remove, json, told, async |hub, error| {
        with_peers(hub, &peer, error).await
    })
}

/// What is said of a removal. `closes_all`: the command closed every invitation that its caller may close; `at`: the hub
/// as a command takes it.
fn removed(answer: &Value, closes_all: bool, at: &str) -> Vec<String> {
    let id = text(&answer["peer_id"]);
    let has_it = match closes_all {
        true => "may have",
        false => "still has",
    };
    let closed = answer["closed"].as_array().into_iter().flatten();
    let closed = closed.map(|token| {
        let token = text(token);
        format!("invitation {token} is closed: the peer {has_it} its join string")
    });
    let open: Vec<&Value> = answer["open"].as_array().into_iter().flatten().collect();
    let mut lines = vec![id.to_owned()];
    lines.extend(closed);
    lines.extend(open.iter().map(|open| invitation_line(open)));
    // An id is a word of a shell. What else a node says is no part of a command.
    if !open.is_empty() && id.parse::<PeerId>().is_ok() {
        let who_closes = match closes_all {
            true => {
                ", called by an administrator, closes them: their roles may do more than you, or they are new."
            }
            false => " closes them.",
        };
        lines.push(format!(
            "If the peer has the join string of an invitation that stays open, it gets in by another key. 'alknet hub \
             remove {at} {id} --close-invitations'{who_closes}"
        ));
    }
    lines
}

fn invite(args: &InviteArgs, json: bool) -> Result<CommandExit, CommandError> {
    let input = json!({
        "role": args.role,
        "ttl_s": args.ttl,
        "count": args.count,
        "names": args.names,
        "numbers": args.numbers,
        "labels": map(&args.label),
        "addresses": args.address,
    });
    args.node.reached(async |node| {
        let answer = node.call("hub/invite", &input).await.map_err(call_error)?;
        let answer = answer.value();
        if json {
            output::json_line(answer)?;
            return Ok(CommandExit::Ok);
        }
        // The join string alone is the result: a script takes it as it is.
        let join = text(&answer["join"]);
        output::line(join)?;
        // The code goes to standard error, because a script reads the join string from standard output.
        if args.qr {
            let code = qr_code(join, Charset::Utf8).unwrap_or_default();
            output::note(&code.join("\n"));
        }
        output::note(&output::one_line(&good_for(answer)));
        Ok(CommandExit::Ok)
    })
}

/// For how many keys, and until when, an invitation is good.
fn good_for(answer: &Value) -> String {
    let role = text(&answer["role"]);
    let keys = match answer["count"].as_u64() {
        Some(1) | None => format!("one {role}"),
        Some(n) => format!("{n} keys as {role}"),
    };
    format!(
        "Good for {keys} until {}: 'alknet enroll' with it, or [[join]] code = \"…\" in a node's configuration.",
        text(&answer["expires"])
    )
}

fn map(labels: &[PeerLabel]) -> BTreeMap<&str, &str> {
    labels
        .iter()
        .map(|label| (label.name.as_str(), label.value.as_str()))
        .collect()
}

/// The whole list. One without a line says how a peer gets into it.
fn listed(answer: &Value) -> Vec<String> {
    let lines = lines(answer);
    match lines.is_empty() {
        true => vec![
            "no peer has enrolled, and no invitation is open: 'alknet hub invite' makes one"
                .to_owned(),
        ],
        false => lines,
    }
}

fn lines(answer: &Value) -> Vec<String> {
    let list = |key: &str| answer[key].as_array().cloned().unwrap_or_default();
    let mut lines = Vec::new();
    for peer in list("peers") {
        let line = format!(
            "{:20}  {:11}  {:27}  {}",
            text(&peer["name"]),
            text(&peer["state"]),
            text(&peer["peer_id"]),
            labels(&peer["labels"])
        );
        lines.push(line.trim_end().to_owned());
    }
    for waiting in list("waiting") {
        let name = waiting["name"].as_str().unwrap_or("-");
        let from = waiting["addr"].as_str().unwrap_or("nowhere");
        let words = text(&waiting["fingerprint"]);
        lines.push(format!("waiting: {words}  {name}  from {from}"));
    }
    lines.extend(list("invitations").iter().map(invitation_line));
    lines
}

/// An open invitation.
pub(super) fn invitation_line(open: &Value) -> String {
    format!(
        "invitation {}: {} for {} until {}",
        text(&open["key_id"]),
        open["left"],
        text(&open["role"]),
        text(&open["expires"])
    )
}

fn labels(of: &Value) -> String {
    let pairs = of.as_object().into_iter().flatten();
    let pairs: Vec<_> = pairs
        .map(|(name, value)| format!("{name}={}", text(value)))
        .collect();
    pairs.join(" ")
}

/// How long an invitation is good.
fn seconds(text: &str) -> Result<u64, String> {
    duration::seconds_up_to(text, INVITATION_S_MAX)
}

fn numbers(text: &str) -> Result<(u32, u32), String> {
    let parse = |n: &str| n.parse().ok();
    text.split_once('-')
        .and_then(|(first, last)| Some((parse(first)?, parse(last)?)))
        .ok_or_else(|| format!("'{text}' is no range: write 1-20"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct HubTestCli {
        #[command(subcommand)]
        verb: HubVerb,
    }

    #[test]
    fn a_change_of_nothing_is_refused_before_the_hub_is_dialled() {
        let words = ["hub", "set", "127.0.0.1:1", "kitchen"];
        let parsed = HubTestCli::try_parse_from(words).expect("a hub and a peer");
        let refused = run(parsed.verb, false).expect_err("nothing to change");
        assert_eq!(refused.exit, CommandExit::Usage);
        assert!(
            refused.message.starts_with("nothing to change"),
            "{refused}"
        );
    }

    #[test]
    fn times_and_ranges_are_read() {
        for (text, read) in duration::samples::TIMES {
            assert_eq!(seconds(text), Ok(read));
        }
        assert_eq!(seconds("30d"), Ok(2_592_000));
        assert!(seconds("31d").is_err());
        duration::samples::refuses_what_is_no_time("", seconds);
        assert_eq!(numbers("1-20"), Ok((1, 20)));
        for bad in ["", "1", "-", "1-", "a-b"] {
            assert!(numbers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_removal_names_what_stays_open_and_what_closes_it() {
        let answer = json!({
            "peer_id": "p1", "closed": ["abcd0123"],
            "open": [{ "key_id": "efgh4567", "left": 4, "role": "worker",
                       "expires": "2030-01-01T00:00:00Z" }],
        });
        let said = removed(&answer, false, "attic");
        assert_eq!(
            said[..3],
            [
                "p1",
                "invitation abcd0123 is closed: the peer still has its join string",
                "invitation efgh4567: 4 for worker until 2030-01-01T00:00:00Z",
            ]
        );
        assert!(said[3].contains("'alknet hub remove attic p1 --close-invitations'"));
        let said = removed(&answer, true, "attic");
        assert!(said[3].contains("called by an administrator"), "{said:?}");
        // An earlier version says nothing of them.
        let said = removed(&json!({ "peer_id": "p1", "closed": [] }), true, "attic");
        assert_eq!(said, ["p1"]);
        let lie = json!({ "peer_id": "p1; reboot", "closed": [], "open": [{}] });
        assert!(!removed(&lie, false, "attic").concat().contains("remove"));
    }

    #[test]
    fn an_unknown_peer_gets_the_names_of_those_that_enrolled() {
        let peers = json!({ "peers": [
            { "name": "hall", "state": "offline" },
            { "name": "p7", "peer_id": "p7", "state": "removed" },
            { "name": "kitchen", "state": "ready" },
        ] });
        assert_eq!(
            enrolled(&peers),
            "; enrolled are hall, kitchen; removed, and without a name now, are p7"
        );
        assert_eq!(enrolled(&json!({ "peers": [] })), "; no peer has enrolled");
    }

    #[test]
    fn a_list_of_nothing_names_the_next_step() {
        let said = listed(&json!({ "peers": [], "waiting": [], "invitations": [] }));
        assert!(said.concat().contains("'alknet hub invite'"), "{said:?}");
        let said = listed(&json!({ "peers": [{ "name": "kitchen", "state": "ready" }] }));
        assert!(!said.concat().contains("invite"), "{said:?}");
    }

    #[test]
    fn the_list_reads_well() {
        let answer = json!({
            "peers": [{ "peer_id": "p1", "name": "kitchen", "state": "ready",
                        "labels": { "pool": "edge", "role": "worker" } }],
            "waiting": [{ "fingerprint": "lusab-babad", "name": null, "addr": "192.0.2.1:5" }],
            "invitations": [{ "key_id": "abcd0123", "left": 2, "role": "worker",
                              "expires": "2030-01-01T00:00:00Z" }],
        });
        let lines = lines(&answer);
        assert!(lines[0].starts_with("kitchen ") && lines[0].ends_with("pool=edge role=worker"));
        assert_eq!(lines[1], "waiting: lusab-babad  -  from 192.0.2.1:5");
        assert_eq!(
            lines[2],
            "invitation abcd0123: 2 for worker until 2030-01-01T00:00:00Z"
        );
    }
}
