//! `alknet credential`: secrets towards other servers, for the node that `alknet serve` runs with this state directory.
//! The value comes from standard input, and no verb shows it. The verbs are about the directory, and take no NODE; with
//! `--node` two of them ask a node for its own.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use alknet_core::config::{CredentialConfig, NodeConfig};
use alknet_vault::SecretBytes;
use alknet_vault_cli::{SecretPrompt, TerminalPrompt, VaultCliError};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::call::call_error;
use super::name_hint::{name_list, nearest_name};
use super::query::{RowQuery, show_row, text};
use super::target::{HubPeerArgs, NodeArgs};
use super::vault::of_local;
use super::{CommandError, CommandExit, DialArgs, StateArgs, output};
use crate::credentials::{
    CredentialFolder, LocalCredentials, VALUE_BYTES_MAX, check_name, empty_value, uses,
};
use crate::node::{self, ServeFile};

/// The operation by which an appliance lists its credentials.
const STATUS: &str = "vault/status";
/// The list in its answer, and in ours.
const LIST: &str = "credentials";
/// What a value on the command line is answered with. It repeats no word: one of them may be the value.
const NO_WORDS: &str = "a value comes from standard input, and never from the command line, where every user of this \
computer can read it: if a word behind NAME was the value, replace it at its server. Set a credential on the computer \
that runs 'alknet serve'; for an appliance seal it with 'alknet vault'";

/// The verbs below `alknet credential`.
#[derive(Debug, Subcommand)]
pub(crate) enum CredentialVerb {
    /// List the credentials in the state directory of this computer: names, when each was set, what uses it. No value
    /// is shown.
    #[command(
        override_usage = "alknet credential list [OPTIONS]",
        after_help = "Examples:\n  alknet credential list\n  alknet credential list --config alknet.toml\n  \
alknet credential list --node attic\n\nWithout --node no node is asked, and the default node does not count. An \
appliance has credentials of its own, and lists them to its administrators."
    )]
    List(CredentialListArgs),
    /// Forget the value of a credential in the state directory of this computer.
    #[command(after_help = "Example:\n  alknet credential remove forge")]
    Remove(CredentialRemoveArgs),
    /// Set the value of a credential, which is read from standard input: typed unseen at a terminal, else to the end
    /// of the input, without one line end there.
    #[command(
        after_help = "Examples:\n  alknet credential set forge\n  alknet credential set forge <forge.key\n  \
alknet credential set forge --config alknet.toml <forge.key\n\nA node that runs with this state directory uses it at \
once."
    )]
    Set(CredentialSetArgs),
    /// Show one credential in the state directory of this computer: when it was set, and what uses it. The value is
    /// not shown.
    #[command(
        override_usage = "alknet credential show [OPTIONS] <NAME>",
        after_help = "Examples:\n  alknet credential show forge\n  alknet credential show forge --node attic"
    )]
    Show(CredentialShowArgs),
}

/// Arguments of `alknet credential list`.
#[derive(Debug, Args)]
pub(crate) struct CredentialListArgs {
    /// The node, as scripts may have it from an earlier version.
    #[arg(value_name = "NODE", hide = true, conflicts_with = "node")]
    earlier_node: Option<String>,
    #[command(flatten)]
    source: CredentialSourceArgs,
    #[command(flatten)]
    document: UsingConfigArgs,
}

/// Where credentials are listed: in the state directory, or at a node.
#[derive(Debug, Args)]
pub(crate) struct CredentialSourceArgs {
    /// Ask this node for its own credentials, in the place of the state directory: a name of 'alknet node list',
    /// KEY@HOST:PORT, HOST[:PORT] of a node with a public certificate, or PEER@HUB.
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    #[command(flatten)]
    peer: HubPeerArgs,
    #[command(flatten)]
    dial: DialArgs,
}

impl CredentialSourceArgs {
    /// The node that is asked; `None` if the state directory is meant.
    fn node(&self, earlier: Option<String>) -> Option<NodeArgs> {
        let node = self.node.clone().or(earlier);
        (node.is_some() || self.peer.is_some()).then(|| NodeArgs {
            node,
            peer: self.peer.clone(),
            dial: self.dial.clone(),
            meant: None,
        })
    }
}

/// Arguments of `alknet credential remove`.
#[derive(Debug, Args)]
pub(crate) struct CredentialRemoveArgs {
    /// A name of 'alknet credential list'.
    name: String,
    #[command(flatten)]
    state: StateArgs,
}

/// Arguments of `alknet credential set`.
#[derive(Debug, Args)]
pub(crate) struct CredentialSetArgs {
    /// Its name in [[credentials]] of the configuration: 1 to 32 of a-z, 0-9 and '-', a letter first.
    name: String,
    /// Taken to be refused with a reason, and without a word of it.
    #[arg(hide = true)]
    words: Vec<String>,
    #[command(flatten)]
    document: UsingConfigArgs,
    #[command(flatten)]
    state: StateArgs,
}

/// Arguments of `alknet credential show`.
#[derive(Debug, Args)]
pub(crate) struct CredentialShowArgs {
    /// A name of 'alknet credential list'.
    #[arg(value_name = "NAME")]
    name: String,
    /// The name behind the node, as scripts may have it from an earlier version.
    #[arg(value_name = "NAME", hide = true, conflicts_with = "node")]
    name_behind_node: Option<String>,
    #[command(flatten)]
    source: CredentialSourceArgs,
    #[command(flatten)]
    document: UsingConfigArgs,
}

impl CredentialShowArgs {
    /// The node that is asked, if one is, and the name.
    fn arranged(&self) -> (Option<NodeArgs>, &str) {
        match &self.name_behind_node {
            Some(name) => (self.source.node(Some(self.name.clone())), name),
            None => (self.source.node(None), &self.name),
        }
    }
}

/// The document that says what uses a credential.
#[derive(Debug, Args)]
pub(crate) struct UsingConfigArgs {
    /// The configuration that says what a credential is for [default: the one of the node that runs with this state
    /// directory, if one does]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs one of them.
pub(crate) fn run(verb: CredentialVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        CredentialVerb::List(args) => list(&args, json),
        CredentialVerb::Remove(args) => remove(&args, json),
        CredentialVerb::Set(args) => set(&args, json),
        CredentialVerb::Show(args) => show(&args, json),
    }
}

fn set(args: &CredentialSetArgs, json: bool) -> Result<CommandExit, CommandError> {
    if !args.words.is_empty() {
        return Err(CommandError::usage(NO_WORDS));
    }
    let name = args.name.as_str();
    // Before a person types a value for nothing.
    check_name(name)?;
    let dir = args.state.dir()?;
    let config = args.document.read(&dir)?;
    let wanted = config.as_ref().and_then(|config| wanted(config, name));
    if wanted.is_some_and(|one| !one.needs_secret()) {
        return Err(CommandError::usage(format!(
            "the credential '{name}' takes no value: its key comes from the vault of an appliance"
        )));
    }
    let value = value(name)?;
    if value.expose().is_empty() {
        return Err(CommandError::usage(empty_value(name)));
    }
    if let Some(one) = wanted {
        node::check_secret(one, value.expose()).map_err(|why| {
            let text = format!(
                "this is no value for a credential of kind {}: {why}",
                one.kind
            );
            CommandError::usage(text)
        })?;
    }
    let now_s = now_s();
    let replaced = CredentialFolder::new(&dir).set(name, value.expose(), now_s)?;
    if json {
        output::json_line(&json!({
            "name": name,
            "set": moment(now_s),
            "replaced": replaced,
            "used_by": config.as_ref().map(|config| uses(config, name)),
        }))?;
        return Ok(CommandExit::Ok);
    }
    let how = if replaced { "replaced" } else { "set" };
    output::line(&format!("{how} {name} in {}", dir.display()))?;
    if let (Some(config), None) = (&config, wanted) {
        output::note(&unused(config, name));
    }
    Ok(CommandExit::Ok)
}

/// What is said of a credential that the configuration does not have: its name may be misspelt.
fn unused(config: &NodeConfig, name: &str) -> String {
    let wanted = config.credentials.iter().filter(|one| one.needs_secret());
    let names: Vec<_> = wanted.map(|one| one.name.as_str()).collect();
    let none = format!(
        "no [[credentials]] of the configuration has the name '{name}': nothing uses it yet"
    );
    if names.is_empty() {
        return none;
    }
    let meant = match nearest_name(names.iter().copied(), name) {
        Some(near) => format!(
            "did you mean '{near}'? 'alknet credential remove {name}' forgets this value. The configuration has"
        ),
        None => "the configuration has".to_owned(),
    };
    format!("{none}; {meant} {}", name_list(names.into_iter()))
}

fn remove(args: &CredentialRemoveArgs, json: bool) -> Result<CommandExit, CommandError> {
    check_name(&args.name)?;
    let dir = args.state.dir()?;
    if !CredentialFolder::new(&dir).remove(&args.name)? {
        return Err(not_found(&args.name, &dir));
    }
    match json {
        true => output::json_line(&json!({ "name": args.name, "removed": true }))?,
        false => output::line(&format!("removed {} from {}", args.name, dir.display()))?,
    }
    Ok(CommandExit::Ok)
}

fn list(args: &CredentialListArgs, json: bool) -> Result<CommandExit, CommandError> {
    if let Some(node) = args.source.node(args.earlier_node.clone()) {
        args.document.refuse_with_node()?;
        return node.reached(async |node| {
            let answer = node.call(STATUS, &Value::Null).await;
            let answer = answer.map_err(call_error)?;
            let rows = json!({ LIST: answer.value()[LIST] });
            printed(&rows, json, node_lines)
        });
    }
    let rows = json!({ LIST: local_rows(&args.source.dial.state, &args.document)? });
    printed(&rows, json, local_lines)
}

fn show(args: &CredentialShowArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, name) = args.arranged();
    if let Some(node) = node {
        args.document.refuse_with_node()?;
        let is_wanted = |row: &Value| row["name"] == name;
        let query = RowQuery {
            operation: STATUS,
            list: LIST,
            what: "credential",
            name,
            lists: "alknet credential list --node NODE",
        };
        return show_row(&node, &query, json, is_wanted, node_lines);
    }
    check_name(name)?;
    let state = &args.source.dial.state;
    let rows = local_rows(state, &args.document)?;
    let row = rows.into_iter().find(|row| row["name"] == name);
    let Some(row) = row else {
        return Err(not_found(name, &state.dir()?));
    };
    if json {
        output::json_line(&row)?;
        return Ok(CommandExit::Ok);
    }
    printed(&json!({ LIST: [row] }), false, local_lines)
}

fn printed(
    rows: &Value,
    json: bool,
    lines: impl Fn(&Value) -> Vec<String>,
) -> Result<CommandExit, CommandError> {
    match json {
        true => output::json_line(rows)?,
        false => lines(rows).iter().try_for_each(|line| output::line(line))?,
    }
    Ok(CommandExit::Ok)
}

/// A row for each credential that the state directory has, or that the configuration wants.
fn local_rows(state: &StateArgs, document: &UsingConfigArgs) -> Result<Vec<Value>, CommandError> {
    let dir = state.dir()?;
    let config = document.read(&dir)?;
    let found = CredentialFolder::new(&dir).read()?;
    Ok(rows(&found, config.as_ref()))
}

fn rows(found: &LocalCredentials, config: Option<&NodeConfig>) -> Vec<Value> {
    let set = found.entries().map(|(name, _)| name);
    let listed = config.into_iter().flat_map(|config| &config.credentials);
    let listed = listed.filter(|one| one.needs_secret());
    let mut names: Vec<&str> = set.chain(listed.map(|one| one.name.as_str())).collect();
    names.sort_unstable();
    // A credential that is set and configured is in both lists.
    names.dedup();
    let row = |name: &str| {
        let set_s = found.entries().find(|(one, _)| *one == name);
        let state = match found.open(name) {
            None => "missing",
            Some(Err(_)) => "damaged",
            Some(Ok(_)) => "set",
        };
        let kind = config.and_then(|config| wanted(config, name));
        json!({
            "name": name,
            "state": state,
            "set": set_s.map(|(_, set_s)| moment(set_s)),
            "kind": kind.map(|one| one.kind),
            "used_by": config.map(|config| uses(config, name)),
        })
    };
    names.into_iter().map(row).collect()
}

fn local_lines(rows: &Value) -> Vec<String> {
    lines(rows, |row| {
        let name = text(&row["name"]);
        let state = match text(&row["state"]) {
            "set" => format!("set {}", text(&row["set"])),
            "missing" => format!("NOT SET: 'alknet credential set {name}'"),
            _ => format!("DAMAGED: set it again by 'alknet credential set {name}'"),
        };
        (state, row["used_by"].as_array())
    })
}

/// What a node tells of its own.
fn node_lines(rows: &Value) -> Vec<String> {
    lines(rows, |row| {
        (text(&row["state"]).to_owned(), row["operations"].as_array())
    })
}

fn lines<'r>(
    rows: &'r Value,
    told: impl Fn(&'r Value) -> (String, Option<&'r Vec<Value>>),
) -> Vec<String> {
    let rows = rows[LIST].as_array().map_or(&[][..], Vec::as_slice);
    if rows.is_empty() {
        return vec!["there are no credentials".to_owned()];
    }
    let width = |key: &str| output::column(rows.iter().map(|row| text(&row[key])));
    let [names, kinds] = ["name", "kind"].map(width);
    let line = |row: &'r Value| {
        let (state, used_by) = told(row);
        let used_by = used_by.map(|all| {
            let all: Vec<_> = all.iter().filter_map(Value::as_str).collect();
            match all.is_empty() {
                true => "  nothing uses it".to_owned(),
                false => format!("  used by {}", all.join(", ")),
            }
        });
        let (name, kind) = (text(&row["name"]), text(&row["kind"]));
        let used_by = used_by.unwrap_or_default();
        format!("{name:names$}  {kind:kinds$}  {state}{used_by}")
    };
    rows.iter().map(line).collect()
}

impl UsingConfigArgs {
    /// Refuses the option in a command that asks a node: the node has its own configuration.
    fn refuse_with_node(&self) -> Result<(), CommandError> {
        match &self.config {
            None => Ok(()),
            Some(file) => Err(CommandError::usage(format!(
                "a node says itself what uses its credentials: leave out --config {}",
                file.display()
            ))),
        }
    }

    /// The document that is named, or the one of the node that runs with this state directory. The latter may be in
    /// another state now than when the node read it: what is wrong with it is no error here.
    fn read(&self, state_dir: &Path) -> Result<Option<NodeConfig>, CommandError> {
        let Some(file) = &self.config else {
            let file = ServeFile::read(state_dir).ok().and_then(|it| it.config);
            return Ok(file.and_then(|file| parsed(&file).ok()));
        };
        parsed(file).map(Some)
    }
}

fn parsed(file: &Path) -> Result<NodeConfig, CommandError> {
    let name = file.display();
    let document = node::read_document(file).map_err(|error| vec![error]);
    let config = document.and_then(|document| NodeConfig::parse(&document));
    config.map_err(|errors| {
        let lines = errors.iter().map(|it| format!("{name}: {it}"));
        CommandError::of_lines(CommandExit::Usage, "USAGE", lines)
    })
}

/// What the configuration says of a credential.
fn wanted<'c>(config: &'c NodeConfig, name: &str) -> Option<&'c CredentialConfig> {
    config.credentials.iter().find(|one| one.name == name)
}

/// Takes the value from standard input, without one line end behind it.
fn value(name: &str) -> Result<SecretBytes, CommandError> {
    let mut prompt = TerminalPrompt::new();
    if io::stdin().is_terminal() {
        let typed = prompt.secret(&format!("value of {name}"));
        let typed = typed.map_err(|error| of_local(&error))?;
        return Ok(SecretBytes::copy_of(typed.expose().as_bytes()));
    }
    // A line end is no part of the value.
    let read = prompt
        .rest(VALUE_BYTES_MAX + 1)
        .map_err(|error| match error {
            VaultCliError::Usage(_) => {
                CommandError::usage(format!("the value is longer than {VALUE_BYTES_MAX} bytes"))
            }
            other => of_local(&other),
        })?;
    let bytes = read.expose();
    Ok(SecretBytes::copy_of(
        bytes.strip_suffix(b"\n").unwrap_or(bytes),
    ))
}

fn not_found(name: &str, dir: &Path) -> CommandError {
    let text = format!(
        "there is no credential '{name}' in {}; 'alknet credential list' lists what there is",
        dir.display()
    );
    CommandError::new(CommandExit::Failed, "NOT_FOUND", text)
}

/// Seconds since 1970 on this computer.
fn now_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// A moment as RFC 3339 writes it; `None` of one that no calendar has.
pub(super) fn moment(at_s: u64) -> Option<String> {
    let at = i64::try_from(at_s).ok()?;
    Some(Timestamp::from_second(at).ok()?.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct CredentialTestCli {
        #[command(subcommand)]
        verb: CredentialVerb,
    }

    fn read(line: &str) -> CredentialVerb {
        let words = line.split_whitespace();
        let parsed = CredentialTestCli::try_parse_from(words);
        parsed
            .unwrap_or_else(|error| panic!("{line}: {error}"))
            .verb
    }

    #[test]
    fn words_behind_the_name_are_refused_and_not_repeated() {
        for line in [
            "credential set forge hush-hush",
            "credential set forge attic hush-hush",
        ] {
            let CredentialVerb::Set(args) = read(line) else {
                panic!("{line}");
            };
            let error = set(&args, false).expect_err("they are no NAME");
            assert_eq!(error.code, "USAGE");
            assert!(error.message.contains("standard input"), "{error}");
            assert!(!error.message.contains("hush"), "{error}");
        }
    }

    #[test]
    fn a_document_of_this_computer_is_refused_beside_a_node() {
        for line in [
            "credential list --node 127.0.0.1:1 --config a.toml",
            "credential show forge --node 127.0.0.1:1 --config a.toml",
        ] {
            let refused = run(read(line), false).expect_err(line);
            assert_eq!(refused.exit, CommandExit::Usage, "{line}");
            assert!(refused.message.contains("--config a.toml"), "{refused}");
        }
    }

    #[test]
    fn a_node_is_asked_only_if_the_command_line_names_one() {
        let shown = |line: &str| {
            let CredentialVerb::Show(args) = read(line) else {
                panic!("it is show");
            };
            let (node, name) = args.arranged();
            (node.map(|node| node.node), name.to_owned())
        };
        let attic = Some(Some("attic".to_owned()));
        let forge = "forge".to_owned();
        let local = (None, forge.clone());
        assert_eq!(shown("credential show forge"), local);
        // The second line is of an earlier version.
        for line in [
            "credential show forge --node attic",
            "credential show attic forge",
        ] {
            assert_eq!(shown(line), (attic.clone(), forge.clone()), "{line}");
        }
        let listed = |line: &str| {
            let CredentialVerb::List(args) = read(line) else {
                panic!("it is list");
            };
            let node = args.source.node(args.earlier_node.clone());
            (node.map(|node| node.node), args)
        };
        let (node, args) = listed("credential list --state /s --config a.toml");
        assert_eq!(node, None);
        assert_eq!(
            args.source.dial.state.state.as_deref(),
            Some(Path::new("/s"))
        );
        assert_eq!(args.document.config.as_deref(), Some(Path::new("a.toml")));
        for line in ["credential list --node attic", "credential list attic"] {
            assert_eq!(listed(line).0, attic, "{line}");
        }
        let behind_default = listed("credential list --peer kitchen").0;
        assert_eq!(behind_default, Some(None));
    }

    #[test]
    fn a_name_that_the_configuration_does_not_have_is_answered_with_those_that_it_has() {
        let config = |text: &str| NodeConfig::parse(text.as_bytes()).expect("a correct document");
        let two = config(
            "[[credentials]]\nname = \"notes\"\nkind = \"bearer\"\n\
             [[credentials]]\nname = \"mail\"\nkind = \"bearer\"\n\
             [[credentials]]\nname = \"box\"\nkind = \"aead\"\n",
        );
        let misspelt = unused(&two, "noets");
        assert!(
            misspelt.ends_with(
                "nothing uses it yet; did you mean 'notes'? 'alknet credential remove noets' forgets this value. The \
                 configuration has notes, mail"
            ),
            "{misspelt}"
        );
        let other = unused(&two, "forge");
        assert!(
            other.ends_with("; the configuration has notes, mail"),
            "{other}"
        );
        let alone = unused(&config(""), "forge");
        assert!(alone.ends_with("nothing uses it yet"), "{alone}");
    }

    #[test]
    fn the_list_says_what_is_set_what_is_not_and_what_uses_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let folder = CredentialFolder::new(dir.path());
        folder.set("forge", b"hush-hush", 0).expect("room");
        folder.set("old", b"hush-hush", 86_400).expect("room");
        let found = folder.read().expect("readable");
        let text = "[[credentials]]\nname = \"forge\"\nkind = \"bearer\"\n\
                    [[credentials]]\nname = \"mail\"\nkind = \"api-key\"\nheader = \"x-key\"\n\
                    [[credentials]]\nname = \"box\"\nkind = \"aead\"\n\
                    [[http.import]]\nkind = \"mcp\"\nnamespace = \"tools\"\n\
                    url = \"https://tools.example/mcp\"\ncredential = \"forge\"\n";
        let config = NodeConfig::parse(text.as_bytes()).expect("a correct document");
        let all = json!({ LIST: rows(&found, Some(&config)) });
        assert_eq!(
            local_lines(&all),
            [
                "forge  bearer   set 1970-01-01T00:00:00Z  used by import tools",
                "mail   api-key  NOT SET: 'alknet credential set mail'  nothing uses it",
                "old             set 1970-01-02T00:00:00Z  nothing uses it",
            ]
        );
        assert!(!all.to_string().contains("hush"), "{all}");
        let alone = json!({ LIST: rows(&found, None) });
        assert_eq!(local_lines(&alone)[0], "forge    set 1970-01-01T00:00:00Z");
        assert_eq!(
            local_lines(&json!({ LIST: [] })),
            ["there are no credentials"]
        );
    }
}
