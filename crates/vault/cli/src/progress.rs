//! That a command is at work, for people whose patience it takes.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long something may take in silence.
const SILENCE: Duration = Duration::from_secs(2);
/// How often it says something from then on.
const EVERY: Duration = Duration::from_secs(1);

/// Says how long something takes, once that is long. Dropping it says nothing more.
pub(crate) struct ProgressMessage(Option<(Sender<()>, JoinHandle<()>)>);

impl ProgressMessage {
    pub(crate) fn new(what: &'static str) -> Self {
        let (end, ended) = channel::<()>();
        let tell = move || {
            let begun = Instant::now();
            let mut wait = SILENCE;
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                // Where standard error is gone, the message has no reader.
                write!(io::stderr(), "\r{what}: {} s", begun.elapsed().as_secs()).ok();
                wait = EVERY;
            }
            if wait == EVERY {
                writeln!(io::stderr()).ok();
            }
        };
        // Without a person, or without a thread, it is done in silence.
        let told = io::stderr().is_terminal();
        let thread = told.then(|| thread::Builder::new().spawn(tell));
        Self(thread.and_then(Result::ok).map(|thread| (end, thread)))
    }
}

impl Drop for ProgressMessage {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.0.take() {
            drop(end);
            thread.join().ok();
        }
    }
}
