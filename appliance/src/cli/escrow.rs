//! `alknet escrow`: the shares that a node keeps for others.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::query::{ask, list, text};
use super::{CommandError, CommandExit, DialArgs};

/// Longest approval, in seconds: a day.
const APPROVAL_S_MAX: u64 = 86_400;

/// The verbs below `alknet escrow`.
#[derive(Debug, Subcommand)]
pub(crate) enum EscrowVerb {
    /// List the shares, and who waits for one.
    #[command(after_help = "Example:\n  alknet escrow list ed25519:…@192.0.2.7:443")]
    List {
        /// The node that keeps them.
        target: String,
        #[command(flatten)]
        dial: DialArgs,
    },
    /// Let a share be released for a time.
    #[command(
        after_help = "Examples:\n  alknet escrow approve ed25519:…@192.0.2.7:443 kitchen-vault\n  \
alknet escrow approve ed25519:…@192.0.2.7:443 0f3k5v8t2ab1 --seconds 3600"
    )]
    Approve {
        #[command(flatten)]
        which: EscrowShareArgs,
        /// How long, in seconds; at most a day.
        #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=APPROVAL_S_MAX))]
        seconds: u64,
    },
    /// Bind a share to addresses, or to an approval of each release.
    #[command(
        after_help = "Examples:\n  alknet escrow change ed25519:…@192.0.2.7:443 kitchen-vault --approve true\n  \
alknet escrow change ed25519:…@192.0.2.7:443 kitchen-vault --from 192.0.2.0/24 --from 2001:db8::/48"
    )]
    Change {
        #[command(flatten)]
        which: EscrowShareArgs,
        /// Whether each release waits for an approval.
        #[arg(long, value_name = "BOOL")]
        approve: Option<bool>,
        /// From where it may be asked for, in the place of what was; can be given several times.
        #[arg(long, value_name = "RANGE", conflicts_with = "anywhere")]
        from: Vec<String>,
        /// It may be asked for from anywhere.
        #[arg(long)]
        anywhere: bool,
    },
    /// Destroy a share: its machine no longer opens by it, even for a thief who has the machine.
    #[command(
        after_help = "Example:\n  alknet escrow revoke ed25519:…@192.0.2.7:443 kitchen-vault"
    )]
    Revoke {
        #[command(flatten)]
        which: EscrowShareArgs,
    },
}

/// Which share of which node.
#[derive(Debug, Args)]
pub(crate) struct EscrowShareArgs {
    /// The node that keeps it.
    target: String,
    /// The share, by its id, or by the name of the peer that deposited it.
    share: String,
    #[command(flatten)]
    dial: DialArgs,
}

/// Runs one of them.
pub(crate) fn run(verb: EscrowVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        EscrowVerb::Approve { which, seconds } => {
            let input = json!({ "share": which.share, "seconds": seconds });
            change(&which, "escrow/approve", &input, json)
        }
        EscrowVerb::Change {
            which,
            approve,
            from,
            anywhere,
        } => {
            let from = (anywhere || !from.is_empty()).then_some(from);
            if from.is_none() && approve.is_none() {
                return Err(CommandError::usage(
                    "nothing to change: give --from, --anywhere or --approve",
                ));
            }
            let input = json!({ "share": which.share, "approve": approve, "from": from });
            change(&which, "escrow/change", &input, json)
        }
        EscrowVerb::List { target, dial } => list(&target, &dial, "escrow/list", json, lines),
        EscrowVerb::Revoke { which } => {
            let input = json!({ "share": which.share });
            change(&which, "escrow/revoke", &input, json)
        }
    }
}

fn change(
    which: &EscrowShareArgs,
    operation: &str,
    input: &Value,
    json: bool,
) -> Result<CommandExit, CommandError> {
    let told = |answer: &Value| vec![format!("{}  {}", text(&answer["id"]), called(answer))];
    ask(&which.target, &which.dial, operation, input, json, told)
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
        let at = share["waiting_at"].as_str().unwrap_or("an unknown address");
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
    fn the_list_reads_well() {
        let answer = json!({ "shares": [
            { "id": "0f3k5v8t2ab1", "state": "waiting", "name": "kitchen-vault", "peer_id": "p1",
              "releases": 3, "released": "2030-01-01T00:00:00Z", "approve": true,
              "from": ["192.0.2.0/24"], "waiting_s": 12, "waiting_at": "192.0.2.9" },
            { "id": "1f3k5v8t2ab1", "state": "kept", "name": null, "peer_id": "p2", "releases": 0,
              "released": null, "approve": false, "from": [] },
        ] });
        let lines = lines(&answer);
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("0f3k5v8t2ab1  waiting   kitchen-vault "));
        assert!(lines[0].ends_with("released 3 times, last 2030-01-01T00:00:00Z"));
        assert_eq!(
            lines[1].trim(),
            "only from 192.0.2.0/24; each release is approved; waits for 12 s, at 192.0.2.9"
        );
        assert!(lines[2].contains("kept      p2 ") && lines[2].ends_with("last never"));
    }
}
