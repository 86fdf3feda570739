//! Completion in a shell. The script asks this program for the words that fit at the cursor, so they include the names of
//! nodes, and leave out the spellings that help leaves out.

use std::ffi::OsStr;

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

/// Values that are a node: how the help calls them.
const NODE_VALUES: [&str; 3] = ["NODE", "NODE|SOURCE", "HUB"];

/// The value that is a node or a file.
const NODE_OR_FILE: &str = "NODE|SOURCE";

/// Prints the words that fit, and ends the process, if the script of a shell asks for them.
pub(crate) fn answer_shell() {
    let asks = CompleteEnv::with_factory(|| with_node_names(help::command()));
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

/// The command line, whose values that are nodes are completed by their names.
fn with_node_names(command: Command) -> Command {
    let command = command.mut_args(|arg| match value_name(&arg) {
        Some(NODE_OR_FILE) => arg.add(ArgValueCompleter::new(nodes_and_files)),
        Some(name) if NODE_VALUES.contains(&name) => arg.add(ArgValueCompleter::new(nodes)),
        _ => arg,
    });
    command.mut_subcommands(with_node_names)
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

fn nodes_and_files(current: &OsStr) -> Vec<CompletionCandidate> {
    let mut found = nodes(current);
    found.extend(PathCompleter::any().complete(current));
    found
}
