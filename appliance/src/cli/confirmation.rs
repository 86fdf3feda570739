//! Questions that a person answers at a terminal before a command changes something.

use std::io::{self, BufRead, IsTerminal, Read};

use super::{CommandError, CommandExit, output};

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 64;

/// Whether a person can be asked: `--json` and a pipe mean a program, which would wait for an answer that it does not
/// know of.
pub(super) fn is_person(json: bool) -> bool {
    !json && output::is_terminal() && io::stdin().is_terminal()
}

/// Asks a person, unless `--yes` answers.
///
/// # Errors
/// `USAGE` where there is no person to ask, and `ABORTED` unless the person says yes.
pub(super) fn ask_unless(yes: bool, question: &str, json: bool) -> Result<(), CommandError> {
    if yes {
        return Ok(());
    }
    if !is_person(json) {
        let text = "with --json or without a terminal the command cannot ask: give --yes";
        return Err(CommandError::usage(text));
    }
    ask(question)
}

/// Like [`ask_unless`], on a thread of its own: while the person thinks, connections are kept, and Ctrl-C ends the
/// command.
///
/// # Errors
/// The errors of [`ask_unless`].
pub(super) async fn ask_beside_work(
    yes: bool,
    question: String,
    json: bool,
) -> Result<(), CommandError> {
    let asks = tokio::task::spawn_blocking(move || ask_unless(yes, &question, json));
    asks.await.map_err(CommandError::local)?
}

/// Asks the person at the terminal, and waits for the answer.
///
/// # Errors
/// `ABORTED` unless the person says yes.
fn ask(question: &str) -> Result<(), CommandError> {
    output::prompt(question);
    match is_yes(&mut io::stdin().lock())? {
        true => Ok(()),
        false => Err(CommandError::new(
            CommandExit::Aborted,
            "ABORTED",
            "not confirmed",
        )),
    }
}

/// Whether a person typed yes.
pub(super) fn is_yes(input: &mut impl BufRead) -> Result<bool, CommandError> {
    let mut line = String::new();
    // A stream without an end of line would fill the memory.
    let mut limited = input.take(ANSWER_BYTES_MAX);
    let read = limited.read_line(&mut line);
    read.map_err(|error| CommandError::usage(format!("cannot read the answer: {error}")))?;
    let line = line.trim();
    Ok(["y", "yes"]
        .iter()
        .any(|yes| line.eq_ignore_ascii_case(yes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_one() {
        for (typed, yes) in [
            ("y\n", true),
            ("Yes\n", true),
            (" y \n", true),
            ("\n", false),
            ("", false),
            ("no\n", false),
            ("yesterday\n", false),
            ("n\ny\n", false),
        ] {
            assert_eq!(is_yes(&mut typed.as_bytes()), Ok(yes), "{typed:?}");
        }
    }
}
