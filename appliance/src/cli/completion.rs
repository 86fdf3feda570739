//! Completion in a shell. The script asks this program for the words that fit at the cursor, so they include the names of
//! nodes, and leave out the spellings that help leaves out.

use std::ffi::OsStr;

use clap::builder::Resettable;
use clap::{Arg, Command};
use clap_complete::Shell;
use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use clap_complete::env::{CompleteEnv, Shells};
use serde_json::json;

use super::node_book::NodeBook;
use super::{CommandError, CommandExit, StateArgs, help, output};

/// The variable by which the script of a shell asks for words. It has the name of the shell.
const SHELL_VARIABLE: &str = "ALKNET_COMPLETE";

/// The program's name in a shell.
const PROGRAM: &str = "alknet";

/// Positional values that are a file of this computer: how the help calls them.
const FILE_VALUES: [&str; 4] = ["FILE", "FOLDER", "OUTPUT", "PATH"];

/// The noun whose verbs take the name of a node as NAME, and the one of them that gives a new name.
const NODE_NOUN: &str = "node";
const NEW_NAME_VERB: &str = "add";

/// The name of hidden verbs here: no word that a user types begins another one with it.
const NO_WORD: &str = "";

/// What completes a value.
type ValueNames = fn(&OsStr) -> Vec<CompletionCandidate>;

/// Prints the words that fit, and ends the process, if the script of a shell asks for them.
pub(crate) fn answer_shell() {
    let asks = CompleteEnv::with_factory(|| with_values(help::command(), ""));
    asks.var(SHELL_VARIABLE).complete();
}

/// Prints the script for a shell.
pub(crate) fn run(shell: Shell, json: bool) -> Result<CommandExit, CommandError> {
    let name = shell.to_string();
    let shells = Shells::builtins();
    let Some(writer) = shells.completer(&name) else {
        let text = format!("there is no completion for {name}");
        return Err(CommandError::usage(text));
    };
    let mut script = Vec::new();
    writer
        .write_registration(SHELL_VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script)
        .map_err(|error| CommandError::local(format!("cannot write the script: {error}")))?;
    let script = String::from_utf8_lossy(&script);
    match json {
        true => output::json_line(&json!({ "script": script }))?,
        false => output::text(script.trim_end())?,
    }
    Ok(CommandExit::Ok)
}

/// The command line for completion: without earlier spellings and hidden verbs, which the engine offers where nothing else
/// fits, and with what completes the values that the engine does not know. `noun` is the verb above.
fn with_values(command: Command, noun: &str) -> Command {
    // Also those that help lists: a shell would offer them in the place of the name.
    let command = command.alias(Resettable::Reset);
    let verb = command.get_name().to_owned();
    let takes_file = command.get_positionals().any(is_file);
    let command = command.mut_args(|arg| match value_names(&arg, noun, &verb, takes_file) {
        Some(names) => arg.add(ArgValueCompleter::new(names)),
        None => arg,
    });
    command.mut_subcommands(|below| match below.is_hide_set() {
        true => below.name(NO_WORD).alias(Resettable::Reset),
        false => with_values(below, &verb),
    })
}

fn value_names(arg: &Arg, noun: &str, verb: &str, takes_file: bool) -> Option<ValueNames> {
    Some(match value_name(arg)? {
        // A user may leave the node out, and begin with the file.
        "NODE" if takes_file && arg.is_positional() => nodes_and_files,
        "NODE" | "HUB" => nodes,
        "NODE|SOURCE" | "WHAT" => nodes_and_files,
        "NAME" if noun == NODE_NOUN && verb != NEW_NAME_VERB => nodes,
        "VERB" => verbs,
        _ if is_file(arg) => files,
        _ => return None,
    })
}

fn is_file(arg: &Arg) -> bool {
    arg.is_positional() && value_name(arg).is_some_and(|name| FILE_VALUES.contains(&name))
}

/// How the help calls the first value of an argument.
fn value_name(arg: &Arg) -> Option<&str> {
    arg.get_value_names()
        .and_then(|names| names.first())
        .map(|name| name.as_str())
}

/// The names of nodes that begin with `current`. There is no error, which the shell would show in the line that the user
/// types: a state directory that cannot be read has no names.
fn nodes(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else {
        return Vec::new();
    };
    let dir = StateArgs { state: None }.dir();
    let book = dir.and_then(|dir| NodeBook::load(&dir)).unwrap_or_default();
    book.nodes()
        .filter(|(name, _)| name.starts_with(current))
        .map(|(name, _)| CompletionCandidate::new(name))
        .collect()
}

fn files(current: &OsStr) -> Vec<CompletionCandidate> {
    PathCompleter::any().complete(current)
}

fn nodes_and_files(current: &OsStr) -> Vec<CompletionCandidate> {
    let mut found = nodes(current);
    found.extend(files(current));
    found
}

/// The verbs that help lists.
fn verbs(current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    help::command()
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set() && verb.get_name().starts_with(&*current))
        .map(|verb| CompletionCandidate::new(verb.get_name()))
        .collect()
}
