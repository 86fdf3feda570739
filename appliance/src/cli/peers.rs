//! `alknet peer`: who may connect to a node, and who has.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::duration::{self, Lifetime};
use super::hub::invitation_line;
use super::query::{RowQuery, ask, list, show_row, text};
use super::row_args::{NodeRowArgs, RowWord};
use super::target::NodeArgs;
use super::{CommandError, CommandExit, output};

/// The operation that lists the peers.
const LIST: &str = "peer/list";

/// The end of a key that a peer has lost, and that the node knows in order to refuse it.
const LONG_AGO: &str = "1970-01-01T00:00:00Z";

/// The verbs below `alknet peer`.
#[derive(Debug, Subcommand)]
pub(crate) enum PeerVerb {
    /// Let a peer in, by its key, while the node runs.
    #[command(
        override_usage = "alknet peer add [OPTIONS] --key <KEY> [NODE] <PEER>",
        after_help = "Examples:\n  alknet peer add ed25519:…@192.0.2.7:443 ada --key ed25519:… --scope peer:list\n  \
alknet peer add attic reviewer --key \"$(alknet identity --state reviewer)\" --scope ops:promote\n  \
alknet peer add attic bob --key ed25519:… --role user --name \"Bob's laptop\" --expires 30d\n\n\
'alknet identity' prints the key on the peer's machine. Administrators are in node.admin_keys of the configuration."
    )]
    Add(PeerAddArgs),
    /// List who may connect to a node, and who has.
    #[command(
        after_help = "Examples:\n  alknet peer list\n  alknet peer list attic --peer kitchen"
    )]
    List(NodeArgs),
    /// Put a peer out: its connections end, and its keys are not let in any more.
    #[command(
        override_usage = "alknet peer remove [OPTIONS] [NODE] <PEER>",
        after_help = "Example:\n  alknet peer remove attic ada\n\n\
With the text of an invitation that is still open the peer gets in by another key: 'alknet hub list' lists the open \
invitations, and 'alknet hub remove --close-invitations' closes them."
    )]
    Remove(NodeRowArgs<PeerRow>),
    /// Change a peer: its keys, what it may do, its name, whether and until when it is let in.
    #[command(
        override_usage = "alknet peer set [OPTIONS] [NODE] <PEER>",
        after_help = "Examples:\n  alknet peer set attic ada --scope peer:list --scope node:read\n  \
alknet peer set attic ada --key ed25519:…\n  alknet peer set attic ada --disable\n  \
alknet peer set attic ada --enable --expires never\n\n\
What no option names stays as it is. Entries of the configuration are changed there."
    )]
    Set(PeerSetArgs),
    /// Show one of them: where its entry is, its keys, what it may do, and its connections.
    #[command(
        after_help = "Example:\n  alknet peer show attic edge --json",
        override_usage = "alknet peer show [OPTIONS] [NODE] <PEER>"
    )]
    Show(NodeRowArgs<PeerRow>),
}

/// A peer that may connect to a node.
pub(crate) enum PeerRow {}

impl RowWord for PeerRow {
    const NAME: &'static str = "PEER";
    const HELP: &'static str = "The peer, by its id or its name";
    const FROM: &'static str = "an id or a name of 'alknet peer list'";
}

/// A peer that is to be added.
pub(crate) enum NewPeerRow {}

impl RowWord for NewPeerRow {
    const NAME: &'static str = PeerRow::NAME;
    const HELP: &'static str =
        "What the peer is to be called: 1 to 63 of a-z, 0-9, '.', '_' and '-'";
    const FROM: &'static str = "the name that the peer gets here";
}

/// Arguments of `alknet peer add`.
#[derive(Debug, Args)]
pub(crate) struct PeerAddArgs {
    #[command(flatten)]
    row: NodeRowArgs<NewPeerRow>,
    /// A key of the peer, as 'alknet identity' prints it there; can be given several times.
    #[arg(long, required = true, value_name = "KEY")]
    key: Vec<String>,
    /// What it may do, no more than you; can be given several times.
    #[arg(long, value_name = "SCOPE")]
    scope: Vec<String>,
    /// Give it the scopes of this [[hub.role]] of the configuration.
    #[arg(long, conflicts_with = "scope")]
    role: Option<String>,
    /// What people call it.
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// How long it is let in: 90s, 30m, 12h, 30d, a number of seconds, or never to leave the end open.
    #[arg(long, value_name = "TIME", default_value = "never", value_parser = duration::lifetime)]
    expires: Lifetime,
}

/// Arguments of `alknet peer set`.
#[derive(Debug, Args)]
pub(crate) struct PeerSetArgs {
    #[command(flatten)]
    row: NodeRowArgs<PeerRow>,
    /// A key that it has from now on, in the place of those that it had; can be given several times.
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
    /// What it may do from now on, in the place of what it might; can be given several times.
    #[arg(long, value_name = "SCOPE")]
    scope: Vec<String>,
    /// Take every scope from it.
    #[arg(long, conflicts_with = "scope")]
    no_scopes: bool,
    /// Give it the scopes of this [[hub.role]] of the configuration.
    #[arg(long, conflicts_with_all = ["scope", "no_scopes"])]
    role: Option<String>,
    /// What people call it from now on.
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Take the name for people from it.
    #[arg(long, conflicts_with = "name")]
    no_name: bool,
    /// Let it in again.
    #[arg(long)]
    enable: bool,
    /// Let it in no more, and keep its entry: its connections end.
    #[arg(long, conflicts_with = "enable")]
    disable: bool,
    /// How long it is let in from now: 90s, 30m, 12h, 30d, a number of seconds, or never to leave the end open.
    #[arg(long, value_name = "TIME", value_parser = duration::lifetime)]
    expires: Option<Lifetime>,
}

/// Runs one of them.
pub(crate) fn run_verb(verb: PeerVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        PeerVerb::Add(args) => {
            let (node, peer) = args.row.arranged()?;
            let mut input = json!({
                "peer_id": peer, "keys": args.key, "display_name": args.name,
                "ttl_s": args.expires.seconds(),
            });
            match args.role {
                Some(role) => input["role"] = role.into(),
                None => input["scopes"] = json!(args.scope),
            }
            ask(&node, "peer/add", &input, json, row_lines)
        }
        PeerVerb::List(node) => run(&node, json),
        PeerVerb::Remove(row) => {
            let (node, peer) = row.arranged()?;
            ask(
                &node,
                "peer/remove",
                &json!({ "peer": peer }),
                json,
                removed,
            )
        }
        PeerVerb::Set(args) => {
            let changes = changes(&args)?;
            let (node, peer) = args.row.arranged()?;
            let mut input = Value::Object(changes);
            input["peer"] = peer.into();
            ask(&node, "peer/set", &input, json, |answer| {
                [row_lines(answer), closed(answer)].concat()
            })
        }
        PeerVerb::Show(row) => {
            let (node, peer) = row.arranged()?;
            let is_wanted = |row: &Value| {
                row["peer_id"] == peer.as_str() || row["display_name"] == peer.as_str()
            };
            let shown = |answer: &Value| {
                let rows = answer["peers"].as_array().into_iter().flatten();
                rows.flat_map(row_lines).collect()
            };
            let query = RowQuery {
                operation: LIST,
                list: "peers",
                what: "peer",
                name: &peer,
                lists: "alknet peer list",
            };
            show_row(&node, &query, json, is_wanted, shown)
        }
    }
}

/// What is to change of a peer.
///
/// # Errors
/// Nothing is.
fn changes(args: &PeerSetArgs) -> Result<Map<String, Value>, CommandError> {
    let mut changes = Map::new();
    let mut change = |name: &str, value: Value| changes.insert(name.to_owned(), value);
    if !args.key.is_empty() {
        change("keys", json!(args.key));
    }
    if args.no_scopes || !args.scope.is_empty() {
        change("scopes", json!(args.scope));
    }
    if let Some(role) = &args.role {
        change("role", json!(role));
    }
    if args.no_name || args.name.is_some() {
        change("display_name", json!(args.name));
    }
    if args.enable || args.disable {
        change("enabled", json!(args.enable));
    }
    if let Some(expires) = args.expires {
        change("ttl_s", json!(expires.seconds()));
    }
    if changes.is_empty() {
        return Err(CommandError::usage(
            "nothing to change: give --key, --scope, --no-scopes, --role, --name, --no-name, --enable, --disable or \
             --expires",
        ));
    }
    Ok(changes)
}

/// Prints one line for each, with where its entry is, and one for each of its connections.
pub(crate) fn run(node: &NodeArgs, json: bool) -> Result<CommandExit, CommandError> {
    list(node, LIST, json, lines)
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
            // The node dialled this hub itself, and lists only connections that others made.
            (false, 0) if peer["dialled"] == true => "connected".to_owned(),
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
    // A node of an earlier version uses the former name.
    let unknown_peers = answer
        .get("unknown_peers")
        .or_else(|| answer.get("strangers"));
    if let Some(count) = unknown_peers.and_then(Value::as_u64).filter(|n| *n > 0) {
        lines.push(format!("connections of unknown peers: {count}"));
    }
    lines
}

/// All about one peer: its line, its keys, what it may do, its end, and its connections.
fn row_lines(row: &Value) -> Vec<String> {
    let mut all = lines(&json!({ "peers": [row] }));
    let texts = |name: &str| {
        let texts = row[name].as_array().into_iter().flatten();
        texts.filter_map(Value::as_str).collect::<Vec<_>>()
    };
    let mut about: Vec<_> = texts("keys")
        .iter()
        .map(|key| match row["key_ends"][*key].as_str() {
            Some(LONG_AGO) => format!("  key {key} is refused: the peer lost it"),
            Some(end) => format!("  key {key} until {end}"),
            None => format!("  key {key}"),
        })
        .collect();
    let scopes = texts("scopes");
    about.push(match scopes.is_empty() {
        true => "  no scopes".to_owned(),
        false => format!("  scopes {}", scopes.join(" ")),
    });
    if let Some(end) = row["expires"].as_str() {
        about.push(format!("  until {end}"));
    }
    // Behind the line of the peer, and before those of its connections.
    drop(all.splice(1..1, about));
    all
}

/// What came of a removal.
fn removed(answer: &Value) -> Vec<String> {
    let mut lines = vec![format!(
        "{} is not let in any more",
        text(&answer["peer_id"])
    )];
    if answer["known"] == true {
        lines.push(
            "its keys stay known and refused, so that no older invitation lets them in".to_owned(),
        );
    }
    lines.extend(closed(answer));
    let open: Vec<_> = answer["open"].as_array().into_iter().flatten().collect();
    lines.extend(open.iter().map(|open| invitation_line(open)));
    if !open.is_empty() {
        lines.push(
            "with the join string of an invitation that stays open, the peer gets in by another key: 'alknet hub \
             remove --close-invitations' closes them"
                .to_owned(),
        );
    }
    lines
}

/// Invitations that ended with what the peer may do.
fn closed(answer: &Value) -> Vec<String> {
    let closed = answer["closed"].as_array().into_iter().flatten();
    let line = |token: &Value| format!("invitation {} is closed", text(token));
    closed.map(line).collect()
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
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct PeerTestCli {
        #[command(subcommand)]
        verb: PeerVerb,
    }

    /// What `alknet peer set ada` with these words changes.
    fn changed(words: &str) -> Option<Value> {
        let all = ["peer", "set", "ada"].into_iter();
        let parsed = PeerTestCli::try_parse_from(all.chain(words.split_whitespace()));
        match parsed.ok()?.verb {
            PeerVerb::Set(args) => changes(&args).ok().map(Value::Object),
            _ => None,
        }
    }

    #[test]
    fn a_change_has_what_is_asked_for_and_nothing_else() {
        for (words, expected) in [
            ("--disable", json!({ "enabled": false })),
            (
                "--enable --key a --key b",
                json!({ "enabled": true, "keys": ["a", "b"] }),
            ),
            (
                "--no-scopes --no-name",
                json!({ "scopes": [], "display_name": null }),
            ),
            (
                "--scope a:b --name Ada",
                json!({ "scopes": ["a:b"], "display_name": "Ada" }),
            ),
            (
                "--role user --expires 1h",
                json!({ "role": "user", "ttl_s": 3600 }),
            ),
            ("--expires never", json!({ "ttl_s": null })),
        ] {
            assert_eq!(changed(words), Some(expected), "{words}");
        }
        for words in [
            "",
            "--enable --disable",
            "--scope a --role b",
            "--scope a --no-scopes",
        ] {
            assert_eq!(changed(words), None, "{words}");
        }
    }

    #[test]
    fn one_peer_is_shown_with_its_keys_and_scopes() {
        let row = json!({
            "peer_id": "edge", "kind": "peer", "source": "store", "enabled": true,
            "keys": ["ed25519:01", "ed25519:02", "ed25519:03"],
            "key_ends": { "ed25519:01": "2030-01-01T00:00:00Z", "ed25519:03": "1970-01-01T00:00:00Z" },
            "scopes": ["a:b", "c:*"], "expires": "2031-01-01T00:00:00Z", "closed": ["abcd0123"],
            "connections": [{ "alpn": "h2", "carriage": "tcp", "addr": null, "seconds": 1 }],
        });
        assert_eq!(
            row_lines(&row),
            [
                "edge  peer     store   1 connection",
                "  key ed25519:01 until 2030-01-01T00:00:00Z",
                "  key ed25519:02",
                "  key ed25519:03 is refused: the peer lost it",
                "  scopes a:b c:*",
                "  until 2031-01-01T00:00:00Z",
                "  h2 over tcp from nowhere for 1 s",
            ]
        );
        assert_eq!(closed(&row), ["invitation abcd0123 is closed"]);
        assert_eq!(
            removed(&json!({ "peer_id": "ada", "known": false, "closed": [] })),
            ["ada is not let in any more"]
        );
        let open = json!({ "key_id": "efgh4567", "left": 4, "role": "worker",
                           "expires": "2030-01-01T00:00:00Z" });
        let said =
            removed(&json!({ "peer_id": "ada", "known": false, "closed": [], "open": [open] }));
        assert_eq!(
            said[1],
            "invitation efgh4567: 4 for worker until 2030-01-01T00:00:00Z"
        );
        assert!(said[2].contains("--close-invitations"), "{said:?}");
    }

    #[test]
    fn peers_and_their_connections_read_well() {
        let answer = json!({ "unknown_peers": 2, "peers": [
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
        assert_eq!(
            lines(&json!({ "strangers": 3 })),
            ["connections of unknown peers: 3"]
        );
        assert!(lines(&json!({ "unknown_peers": 0 })).is_empty());
        assert!(lines(&json!({})).is_empty());
        let hub = json!({ "peer_id": "hub", "kind": "peer", "source": "config", "dialled": true });
        assert_eq!(
            lines(&json!({ "peers": [hub] })),
            ["hub  peer     config  connected"]
        );
    }
}
