//! `alknet peer`: who may connect to a node, and who has.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::query::{list, show_row, text};
use super::target::NodeArgs;
use super::{CommandError, CommandExit, output};

/// The operation behind all of this.
const LIST: &str = "peer/list";

/// The verbs below `alknet peer`.
#[derive(Debug, Subcommand)]
pub(crate) enum PeerVerb {
    /// List who may connect to a node, and who has.
    #[command(
        after_help = "Examples:\n  alknet peer list\n  alknet peer list attic --peer kitchen"
    )]
    List(PeersArgs),
    /// Show one of them: where its entry is, what it may do, and its connections.
    #[command(
        after_help = "Example:\n  alknet peer show attic edge --json",
        override_usage = "alknet peer show [OPTIONS] [NODE] <PEER>"
    )]
    Show {
        #[command(flatten)]
        node: NodeArgs,
        /// Its id.
        #[arg(value_name = "PEER")]
        shown: Option<String>,
    },
}

/// Arguments of `alknet peer list`.
#[derive(Debug, Args)]
pub(crate) struct PeersArgs {
    #[command(flatten)]
    node: NodeArgs,
}

/// Runs one of them.
pub(crate) fn run_verb(verb: PeerVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        PeerVerb::List(args) => run(&args, json),
        PeerVerb::Show { node, shown } => {
            let (node, peer) = node.with_word(shown, "PEER")?;
            let is_wanted = |row: &Value| row["peer_id"] == peer.as_str();
            show_row(&node, LIST, ("peers", "peer"), json, is_wanted, lines)
        }
    }
}

/// Prints one line for each, with where its entry is, and one for each of its connections.
pub(crate) fn run(args: &PeersArgs, json: bool) -> Result<CommandExit, CommandError> {
    list(&args.node, LIST, json, lines)
}

fn lines(answer: &Value) -> Vec<String> {
    let peers = answer["peers"].as_array().map_or(&[][..], Vec::as_slice);
    let width = output::column(peers.iter().map(|peer| text(&peer["peer_id"])));
    let mut lines = Vec::new();
    for peer in peers {
        let connections = peer["connections"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let state = match (peer["enabled"] == false, connections.len()) {
            (true, _) => "disabled".to_owned(),
            (false, 0) => "-".to_owned(),
            (false, 1) => "1 connection".to_owned(),
            (false, n) => format!("{n} connections"),
        };
        let line = format!(
            "{:width$}  {:7}  {:6}  {state:14}  {}",
            text(&peer["peer_id"]),
            text(&peer["kind"]).replace('_', " "),
            text(&peer["source"]),
            text(&peer["display_name"])
        );
        lines.push(line.trim_end().to_owned());
        lines.extend(connections.iter().map(connection));
    }
    if answer["strangers"].as_u64() > Some(0) {
        lines.push(format!(
            "connections of unknown peers: {}",
            answer["strangers"]
        ));
    }
    lines
}

fn connection(one: &Value) -> String {
    format!(
        "  {} over {} from {} for {} s",
        text(&one["alpn"]),
        text(&one["carriage"]),
        one["addr"].as_str().unwrap_or("nowhere"),
        one["seconds"]
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn peers_and_their_connections_read_well() {
        let answer = json!({ "strangers": 2, "peers": [
            { "peer_id": "admin", "kind": "admin", "source": "config", "enabled": true,
              "connections": [
                { "alpn": "alknet/call", "carriage": "quic", "addr": "192.0.2.1:50000",
                  "seconds": 3 },
            ] },
            { "peer_id": "edge", "kind": "peer", "source": "store", "enabled": false,
              "connections": [] },
            { "peer_id": "key:monitor0", "kind": "api_key", "source": "config",
              "display_name": "metrics", "enabled": true, "connections": [] },
        ] });
        assert_eq!(
            lines(&answer),
            [
                "admin         admin    config  1 connection",
                "  alknet/call over quic from 192.0.2.1:50000 for 3 s",
                "edge          peer     store   disabled",
                "key:monitor0  api key  config  -               metrics",
                "connections of unknown peers: 2",
            ]
        );
        assert!(lines(&json!({})).is_empty());
    }
}
