//! `alknet node`: names for nodes, and the node that a command means which names none. The name of the verb alone,
//! without another word, starts the child of PID 1.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::node_book::{NamedNode, NodeAddress, NodeBook, check_name};
use super::target::{NodeNames, worker_of};
use super::{CommandError, CommandExit, StateArgs, output};

/// The verbs below `alknet node`.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// Give a node a name on this computer.
    #[command(
        after_help = "Examples:\n  alknet node add edge-1 ed25519:…@192.0.2.7:443\n  \
alknet node add oven kitchen@attic\n  alknet node add kitchen --via attic\n\nA hub that 'alknet enroll' \
joined has a name already."
    )]
    Add(NodeAddArgs),
    /// List the nodes that have a name on this computer.
    #[command(after_help = "Example:\n  alknet node list")]
    List(StateArgs),
    /// Remove the name of a node. The command does not dial the node.
    #[command(after_help = "Example:\n  alknet node remove edge-1")]
    Remove {
        /// A name of 'alknet node list'.
        name: String,
        #[command(flatten)]
        state: StateArgs,
    },
    /// Show the key and the address behind a name.
    #[command(after_help = "Examples:\n  alknet node show edge-1\n  alknet node show")]
    Show {
        /// The name of the node [default: the node of 'alknet node use']
        name: Option<String>,
        #[command(flatten)]
        state: StateArgs,
    },
    /// Choose the default node: the node of every command that names none.
    #[command(after_help = "Examples:\n  alknet node use edge-1\n  alknet node use --none")]
    Use(NodeUseArgs),
}

/// Arguments of `alknet node add`.
#[derive(Debug, Args)]
pub(crate) struct NodeAddArgs {
    /// The name on this computer: 1 to 63 of a-z, 0-9 and '-', a letter first.
    name: String,
    /// The node: KEY@HOST:PORT as 'alknet serve' and the console of a machine show it, HOST[:PORT] of a node with
    /// a public certificate, or PEER@HUB.
    #[arg(required_unless_present = "via")]
    target: Option<String>,
    /// The hub of which the node is a peer, by its name on this computer. TARGET is then the peer's name on the hub
    /// [default: NAME]
    #[arg(long, value_name = "HUB")]
    via: Option<String>,
    /// Also make this node the default.
    #[arg(long)]
    default: bool,
    #[command(flatten)]
    state: StateArgs,
}

/// Arguments of `alknet node use`.
#[derive(Debug, Args)]
pub(crate) struct NodeUseArgs {
    /// The name of the node that commands without NODE go to.
    #[arg(required_unless_present = "none")]
    name: Option<String>,
    /// Remove the default.
    #[arg(long, conflicts_with = "name")]
    none: bool,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs one of them.
pub(crate) fn run(verb: NodeVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        NodeVerb::Add(args) => add(&args, json),
        NodeVerb::List(state) => list(&state, json),
        NodeVerb::Remove { name, state } => {
            let was_default = NodeBook::change(&state.dir()?, |book| book.remove(&name))?;
            let more = match was_default {
                true => ", which was the default: commands name a node from now on",
                false => "",
            };
            let removed = json!({ "name": name, "was_default": was_default });
            said(&removed, &format!("forgot {name}{more}"), json)
        }
        NodeVerb::Show { name, state } => show(name.as_deref(), &state, json),
        NodeVerb::Use(args) => {
            if let Some(address) = args.name.as_deref().filter(|name| is_address(name)) {
                let text = format!(
                    "'{address}' is no name: give it a name by 'alknet node add NAME {address}', and use that"
                );
                return Err(CommandError::usage(text));
            }
            let dir = args.state.dir()?;
            NodeBook::change(&dir, |book| book.set_default(args.name.as_deref()))?;
            let text = match &args.name {
                Some(name) => format!("commands that name no node mean {name}"),
                None => "no node is the default".to_owned(),
            };
            said(&json!({ "default": args.name }), &text, json)
        }
    }
}

/// Whether a word says where a node is. No name has one of these characters.
fn is_address(word: &str) -> bool {
    word.contains(['@', ':', '.'])
}

fn add(args: &NodeAddArgs, json: bool) -> Result<CommandExit, CommandError> {
    check_name(&args.name)?;
    let names = NodeNames::load(&args.state);
    let node = node_to_add(args, &names)?;
    let row = NodeBook::change(&args.state.dir()?, |book| {
        book.add(&args.name, node)?;
        if args.default {
            book.set_default(Some(&args.name))?;
        }
        row(book, &args.name)
    })?;
    said(&row, &line(&row, args.name.len()), json)
}

/// The node that the words describe.
fn node_to_add(args: &NodeAddArgs, names: &NodeNames) -> Result<NamedNode, CommandError> {
    if let Some(hub) = &args.via {
        let peer = args.target.as_ref().unwrap_or(&args.name);
        return Ok(NamedNode::behind(hub, peer));
    }
    let target = args.target.as_deref().unwrap_or_default();
    if let Some((peer, hub)) = worker_of(target)? {
        if peer.is_empty() || check_name(hub).is_err() {
            let text = format!(
                "'{target}' is no PEER@HUB: the hub has a name here, which 'alknet node add' gives"
            );
            return Err(CommandError::usage(text));
        }
        return Ok(NamedNode::behind(hub, peer));
    }
    let route = names.resolve(target)?;
    if let Some(hint) = route.hint() {
        // A host of one label is written with its port: a word alone is rather a name that was mistyped.
        let text = format!(
            "{hint}; for a host of that name write {}",
            route.target.address()
        );
        return Err(CommandError::usage(text));
    }
    Ok(match &route.peer {
        Some(peer) => NamedNode::behind(&route.name, peer),
        None => NamedNode::direct(&route.target),
    })
}

fn list(state: &StateArgs, json: bool) -> Result<CommandExit, CommandError> {
    let book = NodeBook::load(&state.dir()?)?;
    let rows = book.nodes().map(|(name, _)| row(&book, name));
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    if json {
        output::json_line(&json!({ "default": book.default_name(), "nodes": rows }))?;
        return Ok(CommandExit::Ok);
    }
    if rows.is_empty() {
        output::line("no node has a name here: 'alknet node add NAME KEY@HOST:PORT' gives one")?;
    }
    let width = book.nodes().map(|(name, _)| name.len()).max();
    for row in &rows {
        output::line(&line(row, width.unwrap_or_default()))?;
    }
    Ok(CommandExit::Ok)
}

fn show(name: Option<&str>, state: &StateArgs, json: bool) -> Result<CommandExit, CommandError> {
    let book = NodeBook::load(&state.dir()?)?;
    let name = name.or_else(|| book.default_name()).ok_or_else(|| {
        CommandError::usage(
            "no node is the default: name one, or choose one with 'alknet node use'",
        )
    })?;
    let row = row(&book, name)?;
    said(&row, &line(&row, name.len()), json)
}

/// What is known of a node.
fn row(book: &NodeBook, name: &str) -> Result<Value, CommandError> {
    let node = book.get(name).ok_or_else(|| book.unknown(name))?;
    let is_default = book.default_name() == Some(name);
    let mut row = json!({ "name": name, "default": is_default });
    match &node.at {
        NodeAddress::Direct { target } => row["target"] = json!(target),
        NodeAddress::Behind { hub, peer } => {
            row["hub"] = json!(hub);
            row["peer"] = json!(peer);
        }
    }
    if let Some(peer_id) = &node.peer_id {
        row["own_peer_id"] = json!(peer_id);
    }
    if let Some(peer_name) = &node.peer_name {
        row["own_name"] = json!(peer_name);
    }
    Ok(row)
}

/// Like `row`, for people. A star marks the default.
fn line(row: &Value, width: usize) -> String {
    let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let mark = if row["default"] == true { '*' } else { ' ' };
    let place = match row["target"].as_str() {
        Some(target) => target.to_owned(),
        None => format!("{}@{}", text("peer"), text("hub")),
    };
    let own = match (text("own_name"), text("own_peer_id")) {
        (_, id) if id.is_empty() => String::new(),
        (name, id) => format!("  a hub, where this computer is {name} ({id})"),
    };
    format!("{mark} {:width$}  {place}{own}", text("name"))
}

fn said(value: &Value, text: &str, json: bool) -> Result<CommandExit, CommandError> {
    match json {
        true => output::json_line(value)?,
        false => output::line(text)?,
    }
    Ok(CommandExit::Ok)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct NodeTestCli {
        #[command(subcommand)]
        verb: NodeVerb,
    }

    /// Runs a verb on the names of a folder, and says what would be printed of them.
    fn node(dir: &Path, words: &str) -> Result<Vec<String>, CommandError> {
        let state = dir.to_str().expect("UTF-8");
        let words = ["node"].into_iter().chain(words.split_whitespace());
        let words = words.chain(["--state", state]);
        let parsed = NodeTestCli::try_parse_from(words).map_err(CommandError::usage)?;
        run(parsed.verb, true)?;
        let book = NodeBook::load(dir)?;
        let rows = book.nodes().map(|(name, _)| row(&book, name));
        rows.map(|row| Ok(line(&row?, 6))).collect()
    }

    const KEY: &str = "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    #[test]
    fn names_are_given_listed_chosen_and_forgotten() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path();
        let at = format!("{KEY}@192.0.2.7:443");
        let attic = format!("  attic   {at}");
        assert_eq!(
            node(dir, &format!("add attic {at}")),
            Ok(vec![attic.clone()])
        );
        let oven = "  oven    kitchen@attic".to_owned();
        let both = Ok(vec![attic.clone(), oven.clone()]);
        assert_eq!(node(dir, "add oven kitchen@attic"), both);
        let hall = "  hall    hall@attic".to_owned();
        let all = vec![attic.clone(), hall, oven.clone()];
        assert_eq!(node(dir, "add hall --via attic"), Ok(all));
        assert_eq!(node(dir, "remove hall"), both);
        let chosen = node(dir, "use oven").expect("it has a name");
        assert_eq!(chosen[1], "* oven    kitchen@attic");
        for good in ["show", "show attic", "list"] {
            assert_eq!(node(dir, good), Ok(chosen.clone()), "{good}");
        }
        assert_eq!(node(dir, "use --none"), both);
        let added = node(dir, "add box example.org --default").expect("a host");
        assert_eq!(added[1], "* box     example.org:443");
        assert_eq!(node(dir, "remove box"), both);
    }

    #[test]
    fn what_is_no_node_gets_no_name() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path();
        node(dir, &format!("add attic {KEY}@192.0.2.7:443")).expect("a node");
        for bad in [
            "add",
            "add edge",
            "add edge atic",
            "add edge kitchen@cellar",
            "add edge @attic",
            "add edge kitchen@192.0.2.7:443",
            "add edge --via cellar",
            "add Edge 192.0.2.7:443",
            "add list example.org",
            "use cellar",
            "use",
            "show",
            "show cellar",
            "remove cellar",
        ] {
            let refused = node(dir, bad).expect_err(bad);
            assert_eq!(refused.exit, CommandExit::Usage, "{bad}: {refused}");
        }
        let address = node(dir, "use 192.0.2.7:443")
            .expect_err("an address")
            .message;
        assert!(address.contains("'alknet node add NAME 192.0.2.7:443'"));
        let mistyped = node(dir, "add edge atic")
            .expect_err("no such node")
            .message;
        assert!(mistyped.contains("did you mean 'attic'?") && mistyped.contains("atic:443"));
    }
}
