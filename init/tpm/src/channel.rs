//! Bytes to a TPM and back: one command, one answer.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::thread;

use zeroize::Zeroizing;

use crate::TpmError;
use crate::codes::rc;
use crate::driver;
use crate::limits::{ATTEMPTS_MAX, MESSAGE_BYTES_MAX, RETRY_WAIT, RETRY_WAIT_MAX};

/// Bytes before the handles: tag, size, code.
pub(crate) const HEADER_BYTES: usize = 10;

/// A device, or a socket to a TPM in software.
#[derive(Debug)]
pub(crate) struct TpmChannel<T>(pub(crate) T);

impl<T: Read + Write> TpmChannel<T> {
    /// Sends a whole command and reads a whole answer. Repeats the command while the TPM is busy.
    pub(crate) fn exchange(&mut self, command: &[u8]) -> Result<TpmResponseFrame, TpmError> {
        let mut wait = RETRY_WAIT;
        for _ in 1..ATTEMPTS_MAX {
            let answer = self.exchange_once(command)?;
            if !rc::is_busy(answer.code) {
                return Ok(answer);
            }
            thread::sleep(wait);
            wait = (wait * 2).min(RETRY_WAIT_MAX);
        }
        self.exchange_once(command)
    }

    fn exchange_once(&mut self, command: &[u8]) -> Result<TpmResponseFrame, TpmError> {
        // The kernel takes a command by one write.
        self.0.write_all(command).map_err(TpmError::Transport)?;
        self.0.flush().map_err(TpmError::Transport)?;
        // Of full length from the start: growing would leave a copy of a secret behind.
        let mut bytes = Zeroizing::new(vec![0; MESSAGE_BYTES_MAX]);
        let mut filled = 0;
        let size = loop {
            if let Some(size) = size_of(&bytes[..filled])?
                && filled >= size
            {
                break size;
            }
            // A socket may give an answer in pieces. The kernel's device gives it at once.
            filled += self.read_some(&mut bytes[filled..])?;
        };
        // A TPM answers one command at a time, so more bytes belong to no command of ours.
        if filled != size {
            return Err(TpmError::Malformed("it is longer than it says"));
        }
        bytes.truncate(size);
        TpmResponseFrame::parse(bytes)
    }

    fn read_some(&mut self, into: &mut [u8]) -> Result<usize, TpmError> {
        loop {
            match self.0.read(into) {
                Ok(0) => {
                    let cut = io::Error::new(ErrorKind::UnexpectedEof, "it closed the connection");
                    return Err(TpmError::Transport(cut));
                }
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(TpmError::Transport(error)),
            }
        }
    }
}

/// The size that an answer states, once the size has arrived.
fn size_of(begun: &[u8]) -> Result<Option<usize>, TpmError> {
    let Some(size) = begun.get(2..6).and_then(|bytes| bytes.first_chunk()) else {
        return Ok(None);
    };
    let size = u32::from_be_bytes(*size) as usize;
    if (HEADER_BYTES..=MESSAGE_BYTES_MAX).contains(&size) {
        return Ok(Some(size));
    }
    Err(TpmError::Malformed("it states a size that no answer has"))
}

/// A whole answer.
pub(crate) struct TpmResponseFrame {
    pub(crate) tag: u16,
    pub(crate) code: u32,
    bytes: Zeroizing<Vec<u8>>,
}

impl TpmResponseFrame {
    fn parse(bytes: Zeroizing<Vec<u8>>) -> Result<Self, TpmError> {
        let short = TpmError::Malformed("it is shorter than a header");
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(short)?;
        let [t0, t1, _, _, _, _, c0, c1, c2, c3] = *header;
        Ok(Self {
            tag: u16::from_be_bytes([t0, t1]),
            code: u32::from_be_bytes([c0, c1, c2, c3]),
            bytes,
        })
    }

    /// The part after the header.
    pub(crate) fn body(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }
}

/// Opens the kernel's device for programs that share the TPM: `tpmrm0` in `dev`, which is `/dev`.
/// `sys` is `/sys`.
pub(crate) fn open(dev: &Path, sys: &Path) -> Result<File, TpmError> {
    let open = |name: &str| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(dev.join(name))
    };
    match open("tpmrm0") {
        Ok(file) => Ok(file),
        Err(error) if is_absent(&error) => {
            // PID 1 must not take this machine for one without a TPM: a thief of the disk could open its vault.
            if driver::has_one(sys) {
                return Err(TpmError::Unanswered);
            }
            if dev.join("tpm0").exists() {
                // The kernel shares only a TPM 2.0.
                return Err(TpmError::Unsupported(
                    "it is a TPM 1.2; a TPM 2.0 is needed",
                ));
            }
            Err(TpmError::Absent)
        }
        Err(error) => Err(TpmError::Transport(error)),
    }
}

/// Whether there is no such node, or a node without a device behind it (ENXIO, ENODEV).
fn is_absent(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || matches!(error.raw_os_error(), Some(6 | 19))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers that come one after the other, whatever the command is, one byte at a time.
    struct ScriptedResponses(Vec<u8>, usize);

    impl Read for ScriptedResponses {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let Some(byte) = self.0.get(self.1) else {
                return Ok(0);
            };
            into[0] = *byte;
            self.1 += 1;
            Ok(1)
        }
    }

    impl Write for ScriptedResponses {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_busy_tpm_is_asked_again_and_answers_may_come_in_pieces() {
        let answer = |code: u32, body: &[u8]| {
            let size = 10 + body.len() as u32;
            [
                &[0x80, 1],
                size.to_be_bytes().as_slice(),
                &code.to_be_bytes(),
                body,
            ]
            .concat()
        };
        // Yielded, testing, retry: each means busy.
        let busy = [0x908, 0x90a, 0x922].map(|code| answer(code, b""));
        let answers = [busy.concat(), answer(0, b"done"), answer(0, b"not read")].concat();
        let mut channel = TpmChannel(ScriptedResponses(answers, 0));
        let done = channel.exchange(b"command").expect("an answer");
        assert_eq!(
            (done.tag, done.code, done.body()),
            (0x8001, 0, b"done".as_slice())
        );
        let next = channel.exchange(b"command").expect("an answer");
        assert_eq!(next.body(), b"not read");
        let end = channel.exchange(b"command");
        assert!(matches!(end, Err(TpmError::Transport(_))));
    }

    #[test]
    fn an_absent_an_old_and_a_failing_device_give_different_errors() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let sys = tempfile::tempdir().expect("a temporary directory");
        let open = || open(dir.path(), sys.path());
        assert!(matches!(open(), Err(TpmError::Absent)));
        std::fs::write(dir.path().join("tpm0"), b"").expect("a writable directory");
        assert!(matches!(open(), Err(TpmError::Unsupported(_))));
        // The kernel gave the TPM up before it was shared.
        let tables = sys.path().join("firmware/acpi/tables");
        std::fs::create_dir_all(&tables).expect("a writable directory");
        std::fs::write(tables.join("TPM2"), b"").expect("a writable directory");
        assert!(matches!(open(), Err(TpmError::Unanswered)));
        std::fs::remove_file(dir.path().join("tpm0")).expect("it is ours");
        assert!(matches!(open(), Err(TpmError::Unanswered)));
        std::fs::create_dir(dir.path().join("tpmrm0")).expect("a writable directory");
        assert!(matches!(open(), Err(TpmError::Transport(_))));
    }
}
