//! Where secrets come from: a person at a terminal, or lines of standard input. Never from the command
//! line, which every process of the computer reads, nor from the environment.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

use alknet_vault::limits::{MAX_PASSPHRASE_BYTES, MAX_PHRASE_BYTES};
use alknet_vault::{SecretBytes, SecretStr};
use nix::sys::signal::{Signal, raise};
use nix::sys::termios::{
    LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};
use zeroize::{Zeroize as _, Zeroizing};

use crate::VaultCliError;

/// Bytes of a line that is read.
const LINE_BYTES_MAX: usize = if MAX_PHRASE_BYTES > MAX_PASSPHRASE_BYTES {
    MAX_PHRASE_BYTES
} else {
    MAX_PASSPHRASE_BYTES
};

/// Ctrl-C as it is typed where the terminal makes no signal of it.
const CTRL_C: u8 = 3;

/// What a command asks.
pub trait SecretPrompt {
    /// From now on, secrets are lines of standard input.
    fn use_stdin(&mut self);

    /// Whether a person answers, who may be asked again.
    fn is_person(&self) -> bool;

    /// One line that is not shown while it is typed.
    ///
    /// # Errors
    /// There is no terminal to ask at, or the line is too long or no text.
    fn secret(&mut self, what: &str) -> Result<SecretStr, VaultCliError>;

    /// One line that may be seen.
    ///
    /// # Errors
    /// As above.
    fn line(&mut self, what: &str) -> Result<String, VaultCliError>;

    /// All that standard input still has, up to `most` bytes.
    ///
    /// # Errors
    /// It has more, or cannot be read.
    fn rest(&mut self, most: usize) -> Result<SecretBytes, VaultCliError>;

    /// Shows the user a message that is no result.
    fn tell(&mut self, what: &str);

    /// Lets time pass after a wrong passphrase.
    fn pause(&mut self, time: Duration);
}

/// The terminal and standard input of this process.
#[derive(Debug, Default)]
pub struct TerminalPrompt {
    lines: bool,
}

impl TerminalPrompt {
    /// Asks at the terminal until [`use_stdin`](SecretPrompt::use_stdin) is called.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn source(&self) -> Result<(File, bool), VaultCliError> {
        let stdin = io::stdin();
        let own = || stdin.as_fd().try_clone_to_owned().map(File::from);
        if self.lines {
            return Ok((own().map_err(unreadable)?, false));
        }
        if stdin.is_terminal() {
            return Ok((own().map_err(unreadable)?, true));
        }
        // Standard input may be the data that are to be sealed: the question goes to the terminal itself.
        let terminal = OpenOptions::new().read(true).open("/dev/tty");
        let terminal = terminal.map_err(|_| {
            let text = "there is no terminal to ask at; say --passphrase-stdin or --mnemonic-stdin";
            VaultCliError::Usage(text.to_owned())
        });
        Ok((terminal?, true))
    }

    fn read(&self, what: &str, shown: bool) -> Result<SecretStr, VaultCliError> {
        let (mut from, person) = self.source()?;
        if !person {
            return line(&mut from, false);
        }
        // On standard error: standard output is the result, and may go into a file.
        eprint!("{what}: ");
        io::stderr().flush().ok();
        if shown {
            return line(&mut from, false);
        }
        let quiet = EchoOff::make(&from)?;
        let typed = line(&mut from, true);
        drop(quiet);
        let gives_up = |text: &SecretStr| text.expose().as_bytes().ends_with(&[CTRL_C]);
        if typed.as_ref().is_ok_and(gives_up) {
            // Ends the process as Ctrl-C does anywhere, but with a terminal that shows again what is
            // typed. Where the signal is ignored, the question counts as not answered.
            raise(Signal::SIGINT).map_err(|errno| unreadable(errno.into()))?;
            return Err(VaultCliError::Denied("interrupted".to_owned()));
        }
        typed
    }
}

impl SecretPrompt for TerminalPrompt {
    fn use_stdin(&mut self) {
        self.lines = true;
    }

    fn is_person(&self) -> bool {
        self.source().is_ok_and(|(_, person)| person)
    }

    fn secret(&mut self, what: &str) -> Result<SecretStr, VaultCliError> {
        self.read(what, false)
    }

    fn line(&mut self, what: &str) -> Result<String, VaultCliError> {
        Ok(self.read(what, true)?.expose().to_owned())
    }

    fn rest(&mut self, most: usize) -> Result<SecretBytes, VaultCliError> {
        let stdin = io::stdin().as_fd().try_clone_to_owned();
        let mut stdin = File::from(stdin.map_err(unreadable)?);
        // One more than may be, so that more is noticed; at its full size, so that it never moves.
        let mut bytes = Zeroizing::new(vec![0; most + 1]);
        let mut len = 0;
        while len <= most {
            match stdin.read(&mut bytes[len..]) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
        if len > most {
            return Err(VaultCliError::Usage(format!("more than {most} bytes")));
        }
        Ok(SecretBytes::copy_of(&bytes[..len]))
    }

    fn tell(&mut self, what: &str) {
        // Where standard error is gone, the message has no reader.
        writeln!(io::stderr(), "{what}").ok();
    }

    fn pause(&mut self, time: Duration) {
        thread::sleep(time);
    }
}

/// A terminal that does not show what is typed, until this is dropped.
struct EchoOff {
    terminal: File,
    before: Termios,
}

impl EchoOff {
    fn make(terminal: &File) -> Result<Self, VaultCliError> {
        let failed = |errno: nix::Error| unreadable(errno.into());
        let terminal = terminal.try_clone().map_err(unreadable)?;
        let before = tcgetattr(&terminal).map_err(failed)?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        // The end of the line is shown, or the next text would stand behind the question.
        quiet.local_flags.insert(LocalFlags::ECHONL);
        // A signal would end the process before the terminal is as it was: Ctrl-C ends the line instead.
        quiet.local_flags.remove(LocalFlags::ISIG);
        quiet.control_chars[SpecialCharacterIndices::VEOL as usize] = CTRL_C;
        // TCSAFLUSH drops what was typed before, while it was still shown.
        tcsetattr(&terminal, SetArg::TCSAFLUSH, &quiet).map_err(failed)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before).ok();
    }
}

/// One line, read byte by byte: what follows stays where it is, and no buffer keeps a copy. Ctrl-C is
/// its last byte where it `can_stop` the line.
fn line(from: &mut File, can_stop: bool) -> Result<SecretStr, VaultCliError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(LINE_BYTES_MAX + 1));
    let mut byte = [0];
    loop {
        match from.read(&mut byte) {
            Ok(0) if bytes.is_empty() => {
                let text = "standard input ended before every secret was read";
                return Err(VaultCliError::Usage(text.to_owned()));
            }
            Ok(0) => break,
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) if can_stop && byte[0] == CTRL_C => {
                bytes.push(CTRL_C);
                break;
            }
            Ok(_) if bytes.len() == LINE_BYTES_MAX => {
                return Err(VaultCliError::Usage(format!(
                    "a line of more than {LINE_BYTES_MAX} bytes"
                )));
            }
            Ok(_) => bytes.push(byte[0]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    byte.zeroize();
    // Files that were written on Windows end lines with two bytes.
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    let text = String::from_utf8(std::mem::take(&mut *bytes)).map_err(|error| {
        error.into_bytes().zeroize();
        VaultCliError::Usage("a line that is no UTF-8".to_owned())
    });
    Ok(SecretStr::from_string(text?))
}

fn unreadable(error: io::Error) -> VaultCliError {
    VaultCliError::Local(format!("what is typed cannot be read ({error})"))
}
