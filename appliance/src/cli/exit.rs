//! Exit codes, and the one error a command ends with.

use std::fmt;

use alknet_call::ErrorCode;

/// Exit codes of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum CommandExit {
    /// It worked.
    Ok = 0,
    /// The operation failed.
    Failed = 1,
    /// The command line or its input is wrong.
    Usage = 2,
    /// The target cannot be reached or does not hold the pinned key.
    Unreachable = 3,
    /// The target refused.
    Denied = 4,
    /// Time ran out.
    Timeout = 5,
    /// Nothing opens the vault here.
    Locked = 10,
    /// The passphrase does not open the vault.
    WrongPassphrase = 11,
    /// Words that are no recovery words.
    BadWords = 12,
    /// A vault is damaged or was changed.
    Corrupt = 13,
    /// Interrupted.
    Aborted = 130,
}

impl CommandExit {
    /// Every exit code.
    const ALL: [Self; 11] = [
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::Unreachable,
        Self::Denied,
        Self::Timeout,
        Self::Locked,
        Self::WrongPassphrase,
        Self::BadWords,
        Self::Corrupt,
        Self::Aborted,
    ];

    /// The exit code for an error code of the call protocol, whose table has it.
    pub(crate) fn of_code(code: &ErrorCode) -> Self {
        let number = code.exit_code();
        let found = Self::ALL.into_iter().find(|exit| *exit as u8 == number);
        found.unwrap_or(Self::Failed)
    }
}

/// Why a command failed: what was wrong, what to do, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandError {
    /// Process exit code.
    pub(crate) exit: CommandExit,
    /// Stable code, as on the call wire or of the command line's own.
    pub(crate) code: String,
    /// One line.
    pub(crate) message: String,
    /// Lines below it: further mistakes, or where a script was.
    pub(crate) further: Vec<String>,
}

impl CommandError {
    /// A failure of the command line itself.
    pub(crate) fn new(exit: CommandExit, code: &str, message: impl fmt::Display) -> Self {
        Self {
            exit,
            code: code.to_owned(),
            message: message.to_string(),
            further: Vec::new(),
        }
    }

    /// The same of several lines. A line break in the text of one line is shown as an escape, so that a node cannot
    /// make two of it.
    pub(crate) fn of_lines(
        exit: CommandExit,
        code: &str,
        lines: impl IntoIterator<Item = String>,
    ) -> Self {
        let mut lines = lines.into_iter();
        Self {
            exit,
            code: code.to_owned(),
            message: lines.next().unwrap_or_default(),
            further: lines.collect(),
        }
    }

    /// Wrong input.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(CommandExit::Usage, "USAGE", message)
    }

    /// Something of this computer failed.
    pub(crate) fn local(message: impl fmt::Display) -> Self {
        Self::new(CommandExit::Failed, "LOCAL", message)
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_protocol_has_its_exit() {
        for code in ErrorCode::table() {
            assert_eq!(
                CommandExit::of_code(&code) as u8,
                code.exit_code(),
                "{code}"
            );
        }
        let own = ErrorCode::from_name("DISK_FULL");
        assert_eq!(CommandExit::of_code(&own), CommandExit::Failed);
    }
}
