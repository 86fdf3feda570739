//! What verbs share that ask a node one thing and print what it answers.

use serde_json::Value;

use super::call::{connected, of_call};
use super::{CommandError, CommandExit, DialArgs, output};

/// Calls an operation, and prints its answer: whole as JSON, else the lines that `lines` makes of it.
pub(super) fn ask(
    target: &str,
    dial: &DialArgs,
    operation: &str,
    input: &Value,
    json: bool,
    lines: impl Fn(&Value) -> Vec<String>,
) -> Result<CommandExit, CommandError> {
    connected(target, dial, async |client| {
        let answer = client.call(operation, input).await.map_err(of_call)?;
        if json {
            output::json_line(answer.value())?;
        } else {
            for line in lines(answer.value()) {
                output::line(&line)?;
            }
        }
        Ok(CommandExit::Ok)
    })
}

/// The same for what takes no input.
pub(super) fn list(
    target: &str,
    dial: &DialArgs,
    operation: &str,
    json: bool,
    lines: impl Fn(&Value) -> Vec<String>,
) -> Result<CommandExit, CommandError> {
    ask(target, dial, operation, &Value::Null, json, lines)
}

/// A member of an answer that is a text.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Seconds of a time as people write it: 90s, 30m, 12h, 30d.
pub(super) fn time_s(text: &str) -> Option<u64> {
    let split = text.len() - usize::from(text.ends_with(|c: char| c.is_ascii_alphabetic()));
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let seconds = number.parse::<u64>().ok()?.checked_mul(unit)?;
    (seconds > 0).then_some(seconds)
}
