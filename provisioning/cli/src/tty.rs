//! The terminal of this process, whatever standard input and output are.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use zeroize::Zeroizing;

use crate::WordsTerminal;

/// Longest line that is listened to.
const LINE_BYTES_MAX: usize = 1024;

/// `/dev/tty`.
#[derive(Debug)]
pub struct ControllingTerminal(File);

impl ControllingTerminal {
    /// Opens it; nothing where the process has none.
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

    /// Byte by byte, so that nothing of a secret waits in a buffer.
    fn line(&mut self) -> io::Result<Option<Zeroizing<String>>> {
        let mut line = Zeroizing::new(Vec::with_capacity(LINE_BYTES_MAX));
        let mut byte = [0];
        loop {
            // Byte by byte: a larger read could take what is typed for the next question.
            if self.0.read(&mut byte)? == 0 {
                return Ok(None);
            }
            if byte[0] == b'\n' {
                break;
            }
            // What is too long is read to its end all the same, so that the rest is not taken for the next answer.
            if line.len() < LINE_BYTES_MAX {
                line.push(byte[0]);
            }
        }
        let text = String::from_utf8_lossy(&line);
        Ok(Some(Zeroizing::new(text.into_owned())))
    }
}
