//! `alknet escrow`: the shares that a node keeps for others.

use std::net::IpAddr;

use alknet_call::ErrorCode;
use clap::Subcommand;
use serde_json::{Value, json};

use super::call::call_error;
use super::query::{RowQuery, ask_or_explain, list, show_row, text};
use super::row_args::{NodeRowArgs, RowWord};
use super::target::NodeArgs;
use super::{CommandError, CommandExit, duration};

/// The operation that lists the shares.
const LIST: &str = "escrow/list";
/// Longest approval, in seconds: a day.
const APPROVAL_S_MAX: u64 = 86_400;

/// The verbs below `alknet escrow`.
#[derive(Debug, Subcommand)]
pub(crate) enum EscrowVerb {
    /// List the shares that a node keeps, and the machines that wait for one.
    #[command(after_help = "Example:\n  alknet escrow list ed25519:…@192.0.2.7:443")]
    List(NodeArgs),
    /// Show one share: where its machine may ask from, and how it was last used.
    #[command(
        after_help = "Example:\n  alknet escrow show attic kitchen-vault",
        override_usage = "alknet escrow show [OPTIONS] [NODE] <SHARE>"
    )]
    Show(NodeRowArgs<EscrowShareRow>),
    /// Approve one release of a share.
    #[command(
        override_usage = "alknet escrow approve [OPTIONS] [NODE] <SHARE>",
        after_help = "Examples:\n  alknet escrow approve ed25519:…@192.0.2.7:443 kitchen-vault\n  \
alknet escrow approve attic 0f3k5v8t2ab1 --at 192.0.2.9 --for 1h"
    )]
    Approve {
        #[command(flatten)]
        which: NodeRowArgs<EscrowShareRow>,
        /// The address that gets the share. Needed if several wait for it.
        #[arg(long, value_name = "ADDRESS")]
        at: Option<IpAddr>,
        /// How long the approval counts: 90s, 30m, 12h, or a number of seconds; at most a day.
        #[arg(long = "for", alias = "seconds", value_name = "TIME", default_value = "10m",
              value_parser = approval)]
        seconds: u64,
    },
    /// Limit a share to addresses, or require an approval of each release.
    #[command(
        alias = "change",
        override_usage = "alknet escrow set [OPTIONS] [NODE] <SHARE>",
        after_help = "Examples:\n  alknet escrow set ed25519:…@192.0.2.7:443 kitchen-vault --approve true\n  \
alknet escrow set attic kitchen-vault --from 192.0.2.0/24 --from 2001:db8::/48"
    )]
    Set {
        #[command(flatten)]
        which: NodeRowArgs<EscrowShareRow>,
        /// Whether each release needs an approval: true or false.
        #[arg(long, value_name = "BOOL")]
        approve: Option<bool>,
        /// Release the share only to addresses of this range, which replaces the earlier ranges. Repeat the option
        /// for more ranges.
        #[arg(long, value_name = "RANGE", conflicts_with = "anywhere")]
        from: Vec<String>,
        /// Release the share to any address.
        #[arg(long)]
        anywhere: bool,
    },
    /// Destroy a share: its machine can no longer open its vault by the share, even if a thief has the machine.
    #[command(
        alias = "revoke",
        override_usage = "alknet escrow remove [OPTIONS] [NODE] <SHARE>",
        after_help = "Example:\n  alknet escrow remove ed25519:…@192.0.2.7:443 kitchen-vault"
    )]
    Remove(NodeRowArgs<EscrowShareRow>),
}

/// A share that a node keeps.
pub(crate) enum EscrowShareRow {}

impl RowWord for EscrowShareRow {
    const NAME: &'static str = "SHARE";
    const HELP: &'static str = "The id of the share, or the name of the peer that deposited it";
    const FROM: &'static str = "an id or a peer of 'alknet escrow list'";
}

/// Runs one of them.
pub(crate) fn run(verb: EscrowVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        EscrowVerb::Approve { which, at, seconds } => {
            let (node, share) = which.arranged()?;
            let mut input = json!({ "share": share, "seconds": seconds });
            // A node of an older version takes no address.
            if let Some(at) = at {
                input["address"] = json!(at);
            }
            change(&node, "escrow/approve", &input, json)
        }
        EscrowVerb::List(node) => list(&node, LIST, json, lines),
        EscrowVerb::Remove(which) => {
            let (node, share) = which.arranged()?;
            change(&node, "escrow/revoke", &json!({ "share": share }), json)
        }
        EscrowVerb::Set {
            which,
            approve,
            from,
            anywhere,
        } => {
            let (node, share) = which.arranged()?;
            // An empty list lifts the bound, and no list leaves it as it is.
            let from = (anywhere || !from.is_empty()).then_some(from);
            if from.is_none() && approve.is_none() {
                return Err(CommandError::usage(
                    "nothing to change: give --from, --anywhere or --approve",
                ));
            }
            let input = json!({ "share": share, "approve": approve, "from": from });
            change(&node, "escrow/change", &input, json)
        }
        EscrowVerb::Show(which) => {
            let (node, share) = which.arranged()?;
            let is_wanted = |row: &Value| row["id"] == share.as_str() || called(row) == share;
            let query = RowQuery {
                operation: LIST,
                list: "shares",
                what: "share",
                name: &share,
                lists: "alknet escrow list",
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
    let told = |answer: &Value| vec![format!("{}  {}", text(&answer["id"]), called(answer))];
    ask_or_explain(node, (operation, input), json, told, async |_, error| {
        let is_unknown = error.code == ErrorCode::NotFound;
        let mut failure = call_error(error);
        // The node does not repeat the word that it did not find.
        if is_unknown {
            failure.message = format!(
                "'{}': {}; 'alknet escrow list' lists the shares",
                text(&input["share"]),
                failure.message
            );
        }
        failure
    })
}

/// How long an approval counts.
fn approval(text: &str) -> Result<u64, String> {
    duration::seconds_up_to(text, APPROVAL_S_MAX)
}

/// One line for each share; a second one for what is special about it.
fn lines(answer: &Value) -> Vec<String> {
    let shares = answer["shares"].as_array().cloned().unwrap_or_default();
    let mut lines = Vec::new();
    for share in &shares {
        let last = share["released"].as_str().unwrap_or("never");
        lines.push(format!(
            "{}  {:8}  {:24}  released {} times, last {last}",
            text(&share["id"]),
            text(&share["state"]),
            called(share),
            share["releases"],
        ));
        lines.extend(bounds(share).map(|bounds| format!("              {bounds}")));
    }
    lines
}

/// What a share is bound to, who waits for it, and how it ended.
fn bounds(share: &Value) -> Option<String> {
    let mut parts = Vec::new();
    let from = share["from"].as_array().into_iter().flatten();
    let from: Vec<_> = from.filter_map(Value::as_str).collect();
    if !from.is_empty() {
        parts.push(format!("only from {}", from.join(", ")));
    }
    if share["approve"] == true {
        parts.push("each release is approved".to_owned());
    }
    if let Some(left) = share["approved_s"].as_u64() {
        parts.push(format!("approved for {left} s more"));
    }
    if share["state"] == "waiting" {
        let all = share["waiting_from"].as_array().into_iter().flatten();
        let all: Vec<_> = all.filter_map(Value::as_str).collect();
        let last = share["waiting_at"].as_str().unwrap_or("an unknown address");
        let at = match all.len() {
            0 | 1 => last.to_owned(),
            _ => all.join(" and "),
        };
        parts.push(format!("waits for {} s, at {at}", share["waiting_s"]));
    }
    if share["state"] == "revoked" {
        let when = share["revoked"].as_str().unwrap_or("at an unknown time");
        parts.push(format!("revoked {when} by {}", text(&share["revoked_by"])));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn called(share: &Value) -> &str {
    let name = share["name"].as_str();
    name.unwrap_or_else(|| text(&share["peer_id"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approval_lasts_a_day_at_most() {
        for (text, read) in duration::samples::TIMES {
            assert_eq!(approval(text), Ok(read), "{text}");
        }
        for (text, read) in [("24h", 86_400), ("1d", 86_400)] {
            assert_eq!(approval(text), Ok(read), "{text}");
        }
        for bad in ["86401", "25h", "2d"] {
            assert!(approval(bad).is_err(), "{bad}");
        }
        duration::samples::refuses_what_is_no_time("", approval);
    }

    #[test]
    fn the_list_reads_well() {
        let answer = json!({ "shares": [
            { "id": "0f3k5v8t2ab1", "state": "waiting", "name": "kitchen-vault", "peer_id": "p1",
              "releases": 3, "released": "2030-01-01T00:00:00Z", "approve": true,
              "from": ["192.0.2.0/24"], "waiting_s": 12, "waiting_at": "192.0.2.9",
              "waiting_from": ["192.0.2.8", "192.0.2.9"] },
            { "id": "1f3k5v8t2ab1", "state": "kept", "name": null, "peer_id": "p2", "releases": 0,
              "released": null, "approve": false, "from": [] },
        ] });
        let lines = lines(&answer);
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("0f3k5v8t2ab1  waiting   kitchen-vault "));
        assert!(lines[0].ends_with("released 3 times, last 2030-01-01T00:00:00Z"));
        assert_eq!(
            lines[1].trim(),
            "only from 192.0.2.0/24; each release is approved; waits for 12 s, \
             at 192.0.2.8 and 192.0.2.9"
        );
        assert!(lines[2].contains("kept      p2 ") && lines[2].ends_with("last never"));
    }
}
