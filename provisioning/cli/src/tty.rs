//! The terminal of this process, even if standard input and output are something else.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use zeroize::Zeroizing;

use crate::WordsTerminal;

/// Longest line that is read.
const LINE_BYTES_MAX: usize = 1024;

/// `/dev/tty`.
#[derive(Debug)]
pub struct ControllingTerminal(File);

impl ControllingTerminal {
    /// Opens it. `None` if the process has no terminal.
    #[must_use]
    pub fn open() -> Option<Self> {
        let opened = OpenOptions::new().read(true).write(true).open("/dev/tty");
        opened.ok().map(Self)
    }

    /// Any other terminal.
    #[must_use]
    pub fn over(terminal: File) -> Self {
        Self(terminal)
    }
}

impl WordsTerminal for ControllingTerminal {
    fn show(&mut self, text: &str) -> io::Result<()> {
        self.0.write_all(text.as_bytes())?;
        self.0.flush()
    }

    /// Reads byte by byte, so that no part of a secret stays in a buffer.
    fn line(&mut self) -> io::Result<Option<Zeroizing<String>>> {
        let mut line = Zeroizing::new(Vec::with_capacity(LINE_BYTES_MAX));
        let mut byte = [0];
        loop {
            // A larger read could take what the user types for the next question.
            if self.0.read(&mut byte)? == 0 {
                return Ok(None);
            }
            if byte[0] == b'\n' {
                break;
            }
            // A line that is too long is read to its end, so that the rest does not become the next
            // answer.
            if line.len() < LINE_BYTES_MAX {
                line.push(byte[0]);
            }
        }
        let text = String::from_utf8_lossy(&line);
        Ok(Some(Zeroizing::new(text.into_owned())))
    }
}
