//! What verbs share that ask a node one thing and print what it answers.

use alknet_call::CallError;
use serde_json::Value;

use super::call::call_error;
use super::node_caller::NodeCaller;
use super::target::NodeArgs;
use super::{CommandError, CommandExit, output};

/// Calls an operation, and prints its answer: whole as JSON, else the lines that `lines` makes of it.
pub(super) fn ask(
    node: &NodeArgs,
    operation: &str,
    input: &Value,
    json: bool,
    lines: impl Fn(&Value) -> Vec<String>,
) -> Result<CommandExit, CommandError> {
    ask_or_explain(node, (operation, input), json, lines, async |_, error| {
        call_error(error)
    })
}

/// Like `ask`, with an error that `explain` makes of the node's.
pub(super) fn ask_or_explain(
    node: &NodeArgs,
    (operation, input): (&str, &Value),
    json: bool,
    lines: impl Fn(&Value) -> Vec<String>,
    explain: impl AsyncFnOnce(&NodeCaller, CallError) -> CommandError,
) -> Result<CommandExit, CommandError> {
    node.reached(async |node| {
        let answer = match node.call(operation, input).await {
            Ok(answer) => answer,
            Err(error) => return Err(explain(node, error).await),
        };
        if json {
            output::json_line(answer.value())?;
        } else {
            for line in lines(answer.value()) {
                output::line(&line)?;
            }
            warn(answer.value());
        }
        Ok(CommandExit::Ok)
    })
}

/// Prints on standard error what an answer warns of: what was allowed, and is probably not meant.
pub(super) fn warn(answer: &Value) {
    for warning in answer["warnings"].as_array().into_iter().flatten() {
        let (id, what) = (text(&warning["id"]), text(&warning["what"]));
        // A node that lies gets no second line out of one warning.
        output::note(&output::one_line(&format!("warning: {id}: {what}")));
    }
}

/// Like `ask`, for an operation that takes no input.
pub(super) fn list(
    node: &NodeArgs,
    operation: &str,
    json: bool,
    lines: impl Fn(&Value) -> Vec<String>,
) -> Result<CommandExit, CommandError> {
    ask(node, operation, &Value::Null, json, lines)
}

/// What a user looks for in a list of a node.
pub(super) struct RowQuery<'q> {
    /// The operation that lists.
    pub(super) operation: &'static str,
    /// The member of its answer that has the rows.
    pub(super) list: &'static str,
    /// What a row is, for errors.
    pub(super) what: &'static str,
    /// What the user calls the row.
    pub(super) name: &'q str,
    /// The command that lists all.
    pub(super) lists: &'static str,
}

impl RowQuery<'_> {
    /// The error of a node that has no such row.
    fn not_found(&self) -> CommandError {
        let Self {
            what, name, lists, ..
        } = self;
        let text = format!("the node has no {what} '{name}'; '{lists}' lists what it has");
        CommandError::new(CommandExit::Failed, "NOT_FOUND", text)
    }
}

/// Prints the one row of a list for which `is_wanted` holds: whole as JSON, else by `lines`, which get the list
/// with that row alone.
pub(super) fn show_row(
    node: &NodeArgs,
    query: &RowQuery<'_>,
    json: bool,
    is_wanted: impl Fn(&Value) -> bool,
    lines: impl Fn(&Value) -> Vec<String>,
) -> Result<CommandExit, CommandError> {
    node.reached(async |node| {
        let answer = node.call(query.operation, &Value::Null).await;
        let answer = answer.map_err(call_error)?;
        let rows = answer.value()[query.list].as_array();
        let row = rows.into_iter().flatten().find(|row| is_wanted(row));
        let row = row.ok_or_else(|| query.not_found())?;
        if json {
            output::json_line(row)?;
            return Ok(CommandExit::Ok);
        }
        let alone = serde_json::json!({ (query.list): [row] });
        lines(&alone)
            .iter()
            .try_for_each(|line| output::line(line))?;
        Ok(CommandExit::Ok)
    })
}

/// A member of an answer that is a text.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
