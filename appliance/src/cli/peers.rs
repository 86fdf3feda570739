//! `alknet peers`: who may connect to a node, and who has.

use clap::Args;
use serde_json::Value;

use super::query::{list, text};
use super::{CommandError, CommandExit, DialArgs};

/// Arguments of `alknet peers`.
#[derive(Debug, Args)]
pub(crate) struct PeersArgs {
    /// The node.
    target: String,
    #[command(flatten)]
    dial: DialArgs,
}

/// Prints one line for each, with where its entry is, and one for each of its connections.
pub(crate) fn run(args: &PeersArgs, json: bool) -> Result<CommandExit, CommandError> {
    list(&args.target, &args.dial, "peer/list", json, lines)
}

fn lines(answer: &Value) -> Vec<String> {
    let peers = answer["peers"].as_array().map_or(&[][..], Vec::as_slice);
    let width = peers.iter().map(|peer| text(&peer["peer_id"]).len()).max();
    let width = width.unwrap_or_default();
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
