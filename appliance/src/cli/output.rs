//! Printing results and errors, for a person or for a program.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::json;

use super::{Exit, Failure};

/// Prints the one error of a command on standard error.
pub(crate) fn failure(failure: &Failure, json: bool) {
    let text = if json {
        json!({ "error": { "code": failure.code, "message": failure.message } }).to_string()
    } else {
        format!("alknet: {failure}")
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
