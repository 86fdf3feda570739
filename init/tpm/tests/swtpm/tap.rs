//! Connections that listen, or change answers.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use alknet_test_support::deadline;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// The messages of each direction.
#[derive(Default)]
pub(crate) struct RecordedTraffic {
    pub(crate) commands: Vec<Vec<u8>>,
    pub(crate) answers: Vec<Vec<u8>>,
}

impl RecordedTraffic {
    pub(crate) fn all(&self) -> Vec<u8> {
        [self.commands.concat(), self.answers.concat()].concat()
    }
}

/// A connection that records, or changes one byte of an answer.
pub(crate) struct TpmTap {
    io: UnixStream,
    pub(crate) heard: Rc<RefCell<RecordedTraffic>>,
    /// The number of the answer, the position of its byte, and the change.
    pub(crate) change: Option<(usize, usize, u8)>,
}

impl TpmTap {
    pub(crate) fn new(io: UnixStream) -> Self {
        // A reader that expects more than was sent would wait for ever. The kernel's device reports
        // that there is no more.
        io.set_read_timeout(Some(deadline(PATIENCE)))
            .expect("a socket");
        Self {
            io,
            heard: Rc::default(),
            change: None,
        }
    }
}

impl Read for TpmTap {
    /// swtpm writes an answer at once, so one read is one answer.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.io.read(into)?;
        let mut heard = self.heard.borrow_mut();
        if let Some((answer, byte, add)) = self.change
            && answer == heard.answers.len()
            && let Some(byte) = into[..count].get_mut(byte)
        {
            *byte = byte.wrapping_add(add);
        }
        heard.answers.push(into[..count].to_vec());
        Ok(count)
    }
}

impl Write for TpmTap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.io.write_all(bytes)?;
        self.heard.borrow_mut().commands.push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.io.flush()
    }
}

/// No TPM: answers from a list, then the end.
pub(crate) struct ScriptedTpm {
    answers: Vec<u8>,
    at: usize,
}

impl ScriptedTpm {
    pub(crate) fn new(answers: Vec<u8>) -> Self {
        Self { answers, at: 0 }
    }
}

impl Read for ScriptedTpm {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = &self.answers[self.at..];
        let count = left.len().min(into.len());
        into[..count].copy_from_slice(&left[..count]);
        self.at += count;
        Ok(count)
    }
}

impl Write for ScriptedTpm {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
