//! The sources of secrets: a person at a terminal, or lines of standard input. Secrets never come from the command
//! line, which every process of the computer can read, or from the environment.

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

/// Longest line that is read, in bytes.
const LINE_BYTES_MAX: usize = if MAX_PHRASE_BYTES > MAX_PASSPHRASE_BYTES {
    MAX_PHRASE_BYTES
} else {
    MAX_PASSPHRASE_BYTES
};

/// The beginning of the error of a command that has to ask and finds no person. Every verb that asks has this option.
pub(crate) const NO_TERMINAL: &str = "there is no terminal to ask at; say --passphrase-stdin";

/// The byte of Ctrl-C in a terminal that raises no signal for it.
const CTRL_C: u8 = 3;

/// Asks for the inputs of a command.
pub trait SecretPrompt {
    /// Makes secrets come from lines of standard input from now on.
    fn use_stdin(&mut self);

    /// Whether a person answers, who can be asked again.
    fn is_person(&self) -> bool;

    /// Reads one line, which the terminal does not show.
    ///
    /// # Errors
    /// There is no terminal, or the line is too long or not UTF-8.
    fn secret(&mut self, what: &str) -> Result<SecretStr, VaultCliError>;

    /// Reads one line, which the terminal shows.
    ///
    /// # Errors
    /// The errors of [`SecretPrompt::secret`].
    fn line(&mut self, what: &str) -> Result<String, VaultCliError>;

    /// Reads the rest of standard input, up to `most` bytes.
    ///
    /// # Errors
    /// Standard input has more bytes, or cannot be read.
    fn rest(&mut self, most: usize) -> Result<SecretBytes, VaultCliError>;

    /// Shows the user a message that is not a part of the result.
    fn tell(&mut self, what: &str);

    /// Waits after a wrong passphrase.
    fn pause(&mut self, time: Duration);
}

/// Asks at the terminal, or reads standard input, of this process.
#[derive(Debug, Default)]
pub struct TerminalPrompt {
    lines: bool,
}

impl TerminalPrompt {
    /// Asks at the terminal until the caller calls [`use_stdin`](SecretPrompt::use_stdin).
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
        // The terminal itself is used, so that a redirected standard output does not matter.
        if stdin.is_terminal() {
            return Ok((own().map_err(unreadable)?, true));
        }
        // Standard input may be the data to seal, so the question goes to the terminal itself.
        let terminal = OpenOptions::new().read(true).open("/dev/tty");
        let terminal = terminal
            .map_err(|_| VaultCliError::Usage(format!("{NO_TERMINAL} or --mnemonic-stdin")));
        Ok((terminal?, true))
    }

    fn read(&self, what: &str, shown: bool) -> Result<SecretStr, VaultCliError> {
        let (mut from, person) = self.source()?;
        if !person {
            return line(&mut from, false);
        }
        // The question goes to standard error, because standard output is the result and may go into a file.
        eprint!("{what}: ");
        // A person without the question still has the cursor.
        io::stderr().flush().ok();
        if shown {
            return line(&mut from, false);
        }
        let quiet = EchoOff::make(&from)?;
        let typed = line(&mut from, true);
        drop(quiet);
        let gives_up = |text: &SecretStr| text.expose().as_bytes().ends_with(&[CTRL_C]);
        if typed.as_ref().is_ok_and(gives_up) {
            // The signal is raised after the echo is restored, so the process ends as with any Ctrl-C. If the signal
            // is ignored, the question counts as unanswered.
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
        // The buffer has one byte more than the limit, to notice longer input, and its full size from the beginning,
        // so that the secret is never moved.
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
        // The result is dropped, because an error about standard error cannot be shown.
        writeln!(io::stderr(), "{what}").ok();
    }

    fn pause(&mut self, time: Duration) {
        thread::sleep(time);
    }
}

/// A terminal that does not show input; dropping this restores it.
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
        // ECHONL shows the newline, or the next text would follow the question on its line (termios(3)).
        quiet.local_flags.insert(LocalFlags::ECHONL);
        // Without ISIG, Ctrl-C ends the line instead of ending the process before the terminal is restored.
        quiet.local_flags.remove(LocalFlags::ISIG);
        quiet.control_chars[SpecialCharacterIndices::VEOL as usize] = CTRL_C;
        // TCSAFLUSH discards input that was typed before, while the terminal still showed it (termios(3)).
        tcsetattr(&terminal, SetArg::TCSAFLUSH, &quiet).map_err(failed)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before).ok();
    }
}

/// Reads one line byte by byte: the bytes after it stay in the source, and no buffer keeps a copy. If `can_stop` is
/// true, Ctrl-C ends the line as its last byte.
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
    // The last byte may be a part of the secret.
    byte.zeroize();
    // Files from Windows end lines with CR LF.
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    let text = String::from_utf8(std::mem::take(&mut *bytes)).map_err(|error| {
        // The bytes are a secret even if they are not text.
        error.into_bytes().zeroize();
        VaultCliError::Usage("a line that is no UTF-8".to_owned())
    });
    Ok(SecretStr::from_string(text?))
}

fn unreadable(error: io::Error) -> VaultCliError {
    VaultCliError::Local(format!("what is typed cannot be read ({error})"))
}
