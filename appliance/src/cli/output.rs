//! Printing results and errors, for a person or for a program.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::json;

use super::{Exit, Failure};

/// Prints the one error of a command on standard error.
pub(crate) fn failure(failure: &Failure, json: bool) {
    failure_of(None, failure, json);
}

/// Prints an error on standard error, naming the node where there are several.
pub(crate) fn failure_of(target: Option<&str>, failure: &Failure, json: bool) {
    let text = if json {
        let error = json!({ "code": failure.code, "message": failure.message });
        match target {
            Some(target) => json!({ "target": target, "error": error }).to_string(),
            None => json!({ "error": error }).to_string(),
        }
    } else {
        match target {
            Some(target) => format!("alknet: {target}: {failure}"),
            None => format!("alknet: {failure}"),
        }
    };
    // Where standard error is gone there is nobody left to tell.
    writeln!(io::stderr(), "{text}").ok();
}

/// Prints `value` as one line of JSON.
///
/// # Errors
/// Standard output is gone.
pub(crate) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(Failure::local)?;
    line(&text)
}

/// Prints one line.
///
/// # Errors
/// Standard output is gone, which ends a stream the way `head` expects.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::new(Exit::Ok, "CLOSED", "the reader went away"),
            _ => Failure::local(format!("cannot write to standard output: {error}")),
        })
}
