//! Connections that listen, or do worse.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use alknet_test_support::deadline;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// What went each way, message by message.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) commands: Vec<Vec<u8>>,
    pub(crate) answers: Vec<Vec<u8>>,
}

impl Heard {
    pub(crate) fn all(&self) -> Vec<u8> {
        [self.commands.concat(), self.answers.concat()].concat()
    }
}

/// A connection that somebody listens to, or changes one byte of.
pub(crate) struct Tap {
    io: UnixStream,
    pub(crate) heard: Rc<RefCell<Heard>>,
    /// Which answer, which byte of it, what is added.
    pub(crate) change: Option<(usize, usize, u8)>,
}

impl Tap {
    pub(crate) fn new(io: UnixStream) -> Self {
        // Whoever is told to wait for more than was sent would wait for ever; the kernel's device says
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

impl Read for Tap {
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

impl Write for Tap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.io.write_all(bytes)?;
        self.heard.borrow_mut().commands.push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.io.flush()
    }
}

/// Nobody: answers from a list, then the end.
pub(crate) struct Script {
    answers: Vec<u8>,
    at: usize,
}

impl Script {
    pub(crate) fn new(answers: Vec<u8>) -> Self {
        Self { answers, at: 0 }
    }
}

impl Read for Script {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = &self.answers[self.at..];
        let count = left.len().min(into.len());
        into[..count].copy_from_slice(&left[..count]);
        self.at += count;
        Ok(count)
    }
}

impl Write for Script {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
