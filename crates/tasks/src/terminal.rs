//! The terminal as the console of a machine: keys go there one by one, and Ctrl-C comes to this
//! program.

use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::termios::{self, LocalFlags, SetArg, SpecialCharacterIndices, Termios};

use crate::failure::{Result, TaskError};

/// Ctrl-C as a byte: the terminal does not make it a signal, which QEMU would get as well.
const CTRL_C: u8 = 3;

/// How often the user asked for the end.
static ENDS_ASKED: AtomicU32 = AtomicU32::new(0);

/// Keyboard and signals of one session. Dropping this restores the terminal.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Option<Termios>,
    keys: Receiver<Vec<u8>>,
}

impl RawTerminal {
    /// Takes over keys and signals.
    pub(crate) fn open() -> Result<Self> {
        for kind in [Signal::SIGINT, Signal::SIGTERM] {
            // SAFETY: the handler only adds to an atomic number, which is safe in a signal.
            unsafe { signal(kind, SigHandler::Handler(count_end)) }
                .map_err(|error| TaskError::io("catch signals")(error.into()))?;
        }
        // Without a terminal, such as in a test, there are no keys to take and nothing to restore.
        let before = if io::stdin().is_terminal() {
            Some(take_keys()?)
        } else {
            None
        };
        let (sender, keys) = mpsc::channel();
        if before.is_some() {
            thread::spawn(move || read_keys(&sender));
        }
        Ok(Self { before, keys })
    }

    /// How often the user asked for the end: once politely, more often at once.
    pub(crate) fn ends_asked() -> u32 {
        ENDS_ASKED.load(Ordering::Relaxed)
    }

    /// Keys pressed since the last call.
    pub(crate) fn keys(&self) -> Vec<u8> {
        self.keys.try_iter().flatten().collect()
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // A terminal that is gone needs no repair.
            let _gone = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, before);
        }
    }
}

extern "C" fn count_end(_: libc::c_int) {
    ENDS_ASKED.fetch_add(1, Ordering::Relaxed);
}

/// Makes the terminal give one key at a time, without echo, and no signals. Returns the former
/// mode.
fn take_keys() -> Result<Termios> {
    let input = io::stdin();
    let io_error = |error: nix::Error| TaskError::io("set the terminal")(error.into());
    let before = termios::tcgetattr(input.as_fd()).map_err(io_error)?;
    let mut mode = before.clone();
    mode.local_flags
        // Ctrl-C then comes as a byte, and is counted here.
        .remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG);
    // termios(3): a read returns with the first byte, and does not wait for more.
    mode.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    mode.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    termios::tcsetattr(input.as_fd(), SetArg::TCSANOW, &mode).map_err(io_error)?;
    Ok(before)
}

fn read_keys(sender: &mpsc::Sender<Vec<u8>>) {
    let mut bytes = [0; 64];
    loop {
        let Ok(read @ 1..) = io::stdin().read(&mut bytes) else {
            return;
        };
        let (ends, keys) = split_keys(&bytes[..read]);
        ENDS_ASKED.fetch_add(ends, Ordering::Relaxed);
        if sender.send(keys).is_err() {
            return;
        }
    }
}

/// The count of Ctrl-C, and everything else.
fn split_keys(bytes: &[u8]) -> (u32, Vec<u8>) {
    let (ends, keys): (Vec<u8>, Vec<u8>) = bytes.iter().partition(|byte| **byte == CTRL_C);
    (u32::try_from(ends.len()).unwrap_or(u32::MAX), keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_c_is_ours_and_the_rest_the_machines() {
        assert_eq!(split_keys(b"l\x03q\x03"), (2, b"lq".to_vec()));
        assert_eq!(split_keys(b""), (0, vec![]));
    }
}
