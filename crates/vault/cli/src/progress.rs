//! The progress message of a command that takes long.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a command may run before the message appears.
const SILENCE: Duration = Duration::from_secs(2);
/// How often the message is updated after that.
const EVERY: Duration = Duration::from_secs(1);

/// Shows how long a command has run, once that is long. Dropping it ends the message.
pub(crate) struct ProgressMessage(Option<(Sender<()>, JoinHandle<()>)>);

impl ProgressMessage {
    pub(crate) fn new(what: &'static str) -> Self {
        let (end, ended) = channel::<()>();
        let tell = move || {
            let begun = Instant::now();
            let mut wait = SILENCE;
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                // The result is dropped, because an error about standard error cannot be shown.
                write!(io::stderr(), "\r{what}: {} s", begun.elapsed().as_secs()).ok();
                wait = EVERY;
            }
            // The message was shown and does not end yet.
            if wait == EVERY {
                // As above.
                writeln!(io::stderr()).ok();
            }
        };
        // Without a terminal, or if no thread can be started, the command runs silently.
        let is_shown = io::stderr().is_terminal();
        let thread = is_shown.then(|| thread::Builder::new().spawn(tell));
        Self(thread.and_then(Result::ok).map(|thread| (end, thread)))
    }
}

impl Drop for ProgressMessage {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.0.take() {
            drop(end);
            // A thread that panicked has shown that, and the message is no part of the result.
            thread.join().ok();
        }
    }
}
