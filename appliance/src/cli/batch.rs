//! `alknet call NODE --batch FILE`: the calls of a file, in as few flights as the node takes.

use std::time::Duration;

use alknet_call::limits::PeerLimits;
use alknet_call::{CallBody, CallError, CallOptions};
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::{read_file, read_stdin};
use super::node_caller::NodeCaller;
use super::target::NodeArgs;
use super::{CommandError, CommandExit, output};

/// One line of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchLine {
    operation: String,
    #[serde(default)]
    input: Value,
    timeout_ms: Option<u64>,
    idempotency_key: Option<String>,
}

/// Makes the calls of `file`. Exits as the first call did that did not end well.
pub(crate) fn run(node: &NodeArgs, file: &str, json: bool) -> Result<CommandExit, CommandError> {
    let timeout = node.dial.timeout;
    let text = match file {
        "-" => read_stdin()?,
        file => read_file(file)?,
    };
    let file = match file {
        "-" => "standard input",
        file => file,
    };
    // All of it before the first call: a mistake in the last line would leave the others made.
    let lines = parse(&text, file)?;
    node.reached(async |node| {
        let mut exit = CommandExit::Ok;
        // The node takes this many requests of one connection at a time, and refuses more.
        for flight in lines.chunks(flight_len(node).await) {
            for (line, outcome) in flight.iter().zip(send(node, flight, timeout).await) {
                let ended = print(line, outcome, json)?;
                // The first failure gives the exit code.
                if exit == CommandExit::Ok {
                    exit = ended;
                }
            }
        }
        Ok(exit)
    })
}

/// The requests in a text. `file` is where it is from, for errors.
fn parse(text: &[u8], file: &str) -> Result<Vec<BatchLine>, CommandError> {
    let lines = text.split(|byte| *byte == b'\n').enumerate();
    // The last line of a file ends with a newline, and so does a line to set others apart.
    let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    lines
        .map(|(n, line)| {
            serde_json::from_slice(line)
                .map_err(|error| CommandError::usage(format!("line {} of {file}: {error}", n + 1)))
        })
        .collect()
}

/// As many calls as the node takes at once; where it does not say, as many as from an unknown peer.
async fn flight_len(node: &NodeCaller) -> usize {
    let fallback = PeerLimits::UNAUTHENTICATED.requests;
    node.requests_max().await.unwrap_or(fallback).max(1)
}

async fn send(
    node: &NodeCaller,
    flight: &[BatchLine],
    timeout: Duration,
) -> Vec<Result<CallBody, CallError>> {
    let calls = flight.iter().map(|line| {
        let options = CallOptions {
            timeout: Some(line.timeout_ms.map_or(timeout, Duration::from_millis)),
            idempotency_key: line.idempotency_key.clone(),
            ..CallOptions::default()
        };
        (line.operation.as_str(), &line.input, options)
    });
    node.call_all(calls).await
}

/// Prints one outcome, good or bad: what belongs together stays together.
fn print(
    line: &BatchLine,
    outcome: Result<CallBody, CallError>,
    json: bool,
) -> Result<CommandExit, CommandError> {
    let operation = line.operation.as_str();
    match outcome {
        Ok(answer) if json => {
            let answer = json!({ "operation": operation, "output": answer.value() });
            output::json_line(&answer)?;
            Ok(CommandExit::Ok)
        }
        Ok(answer) => {
            output::line(&format!("{operation} {}", answer.value()))?;
            Ok(CommandExit::Ok)
        }
        Err(error) => {
            if json {
                output::json_line(&json!({ "operation": operation, "error": error }))?;
            } else {
                output::line(&format!("{operation} {error}"))?;
            }
            Ok(CommandExit::of_code(&error.code))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_no_request_is_named() {
        let good = b"{\"operation\":\"a/b\"}\n\n  \n{\"operation\":\"a/c\",\"input\":[1]}\n";
        let lines = parse(good, "a.jsonl").expect("two lines");
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].input, json!([1]));
        for (text, number) in [
            ("{}", 1),
            ("{\"operation\":\"a/b\"}\nnode/info", 2),
            ("\n{\"operation\":\"a/b\",\"inptu\":1}", 2),
        ] {
            let failure = parse(text.as_bytes(), "a.jsonl").expect_err(text);
            assert_eq!(failure.exit, CommandExit::Usage);
            let named = failure
                .message
                .starts_with(&format!("line {number} of a.jsonl: "));
            assert!(named, "{failure}");
        }
    }
}
