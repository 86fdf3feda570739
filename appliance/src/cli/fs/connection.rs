//! Work that goes on over another connection when one is lost.

use std::time::Duration;

use crate::cli::dial::CliDialer;
use crate::cli::node_caller::NodeCaller;
use crate::cli::target::{NodeArgs, NodeRoute};
use crate::cli::{CommandError, CommandExit};

/// How often work goes on after a lost connection, without an answer in between.
const TRIES_MAX: u32 = 5;
/// The pause before that.
const PAUSE: Duration = Duration::from_secs(2);

/// Work of several requests that remembers which of them were answered.
pub(super) trait ResumableWork {
    /// Grows with each answer that need not be asked for again.
    fn answers(&self) -> u64;

    /// Goes on where the connection before ended.
    ///
    /// # Errors
    /// The node refuses a request, something of this computer fails, or the connection is lost.
    async fn go_on(&mut self, node: &NodeCaller) -> Result<(), CommandError>;
}

/// Does the work, over as many connections as it takes.
///
/// # Errors
/// The errors of the work, of the first dial, and of the last of too many connections in a row that brought no answer.
pub(super) fn finish(node: &NodeArgs, work: &mut impl ResumableWork) -> Result<(), CommandError> {
    let route = node.route()?;
    CliDialer::new(&node.dial)?.run(async |dialer| finish_over(dialer, &route, work).await)
}

async fn finish_over(
    dialer: &CliDialer,
    route: &NodeRoute,
    work: &mut impl ResumableWork,
) -> Result<(), CommandError> {
    let mut failures = 0;
    loop {
        let before = work.answers();
        let reached = dialer.reached(route, async |node| {
            let done = work.go_on(node).await;
            Ok((done, node.has_ended()))
        });
        let reached = reached.await;
        let error = match reached {
            Ok((Ok(()), _)) => return Ok(()),
            // Before the first answer an error is rather that of the node than of the connection.
            Ok((Err(error), has_ended))
                if is_of_connection(&error) && (has_ended || work.answers() > 0) =>
            {
                error
            }
            Ok((Err(error), _)) => return Err(dialer.explained(error)),
            // The first dial fails at once: a mistyped address is likelier than a node that comes back.
            Err(error) if is_of_connection(&error) && work.answers() > 0 => error,
            Err(error) => return Err(error),
        };
        // A connection that brought the work on is no failure, however often one breaks.
        if work.answers() > before {
            failures = 0;
        }
        failures += 1;
        if failures > TRIES_MAX {
            return Err(given_up(error, failures));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether another connection may help.
fn is_of_connection(error: &CommandError) -> bool {
    let is_unreachable = matches!(error.exit, CommandExit::Timeout | CommandExit::Unreachable);
    is_unreachable && error.code != "PIN_MISMATCH"
}

fn given_up(mut error: CommandError, failures: u32) -> CommandError {
    error.message = format!(
        "given up after {failures} failures in a row: {}",
        error.message
    );
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_connections_are_tried_again() {
        let error = |exit, code| CommandError::new(exit, code, "why");
        for (exit, code, expected) in [
            (CommandExit::Unreachable, "UNAVAILABLE", true),
            (CommandExit::Timeout, "TIMEOUT", true),
            (CommandExit::Unreachable, "PIN_MISMATCH", false),
            (CommandExit::Failed, "CONFLICT", false),
            (CommandExit::Denied, "FORBIDDEN", false),
        ] {
            assert_eq!(is_of_connection(&error(exit, code)), expected, "{code}");
        }
    }
}
