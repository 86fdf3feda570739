//! Exit codes, and the one error a command ends with.

use std::fmt;

use alknet_call::ErrorCode;
use serde_json::Value;

/// Exit codes of every command. `alknet help` and docs/command-line.md have them from here.
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
    /// Interrupted by Ctrl-C or a signal.
    Aborted = 130,
}

impl CommandExit {
    /// Every exit code, in rising order.
    pub(crate) const ALL: [Self; 11] = [
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

    /// The meaning, as help and docs/command-line.md have it.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "it worked",
            Self::Failed => "the operation failed",
            Self::Usage => "the command line or the input is wrong",
            Self::Unreachable => "the node cannot be reached, or does not prove the pinned key",
            Self::Denied => "refused",
            Self::Timeout => "time ran out",
            Self::Locked => "nothing here opens the vault",
            Self::WrongPassphrase => "the passphrase does not open the vault",
            Self::BadWords => "the words are not recovery words",
            Self::Corrupt => "the vault is damaged or was changed",
            Self::Aborted => "interrupted, or not confirmed",
        }
    }

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
    /// What the node says besides, as the details of its error have it.
    pub(crate) details: Option<Box<Value>>,
}

impl CommandError {
    /// A failure of the command line itself.
    pub(crate) fn new(exit: CommandExit, code: &str, message: impl fmt::Display) -> Self {
        Self {
            exit,
            code: code.to_owned(),
            message: message.to_string(),
            further: Vec::new(),
            details: None,
        }
    }

    /// Like `new`, of several lines. A line break in the text of one line is shown as an escape, so that a node cannot
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
            details: None,
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

/// An error and what it comes of, on one line. A cause that the text before it has already is not said twice.
pub(crate) fn chain_text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let said = cause.to_string();
        if text.contains(&said) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&said);
    }
    text
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        match &self.details {
            Some(details) => write!(f, " {details}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use alknet_vault_cli::VaultCliError;

    use super::*;

    /// Rows of the table on docs/command-line.md: exit code, meaning, codes of errors.
    fn page_rows() -> Vec<(u8, String, Vec<String>)> {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/command-line.md");
        let page = fs::read_to_string(page).expect("the page exists");
        let section = page
            .split("\n## ")
            .find(|it| it.starts_with("Exit codes\n"));
        let rows = section.expect("the section").lines();
        let rows = rows.filter_map(|row| {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let [_, code, meaning, errors, _] = cells.as_slice() else {
                return None;
            };
            // The head of the table has no number.
            let code = code.parse().ok()?;
            let errors = errors.split('`').skip(1).step_by(2);
            let errors = errors.map(str::to_owned).collect();
            Some((code, (*meaning).to_owned(), errors))
        });
        rows.collect()
    }

    #[test]
    fn the_page_has_every_exit_code_with_its_meaning() {
        let page = page_rows();
        let codes: Vec<u8> = page.iter().map(|(code, ..)| *code).collect();
        let known = CommandExit::ALL.map(|exit| exit as u8);
        assert_eq!(codes, known, "docs/command-line.md");
        assert!(known.is_sorted(), "{known:?}");
        for (exit, (_, meaning, _)) in CommandExit::ALL.into_iter().zip(&page) {
            let first = meaning.split(';').next().unwrap_or_default();
            assert_eq!(first, exit.meaning(), "docs/command-line.md: {exit:?}");
        }
    }

    #[test]
    fn the_page_has_every_error_code_beside_its_exit_code() {
        let own = [
            ("LOCAL", CommandError::local("").exit as u8),
            ("USAGE", CommandError::usage("").exit as u8),
        ];
        let own = own.map(|(code, exit)| (code.to_owned(), exit));
        let protocol = ErrorCode::table().map(|code| (code.name().to_owned(), code.exit_code()));
        let text = String::new;
        let vault = [
            VaultCliError::Corrupt(text()),
            VaultCliError::Denied(text()),
            VaultCliError::Locked(text()),
            VaultCliError::NotFound(text()),
            VaultCliError::WrongPassphrase,
        ];
        let vault = vault.map(|error| (error.code().to_owned(), error.exit()));
        let page = page_rows();
        for (code, exit) in own.into_iter().chain(protocol).chain(vault) {
            let rows = page.iter().filter(|(_, _, errors)| errors.contains(&code));
            let rows: Vec<u8> = rows.map(|(row, ..)| *row).collect();
            assert_eq!(rows, [exit], "docs/command-line.md: rows of {code}");
        }
    }

    #[test]
    fn no_cause_of_an_error_is_said_twice() {
        let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let tensor = alknet_tensor::TensorError::io("open a.mt", gone());
        let error = anyhow::Error::new(tensor).context("cannot serve");
        let text = chain_text(&error);
        let cause = gone().to_string();
        assert_eq!(text, format!("cannot serve: E_IO: open a.mt: {cause}"));
        // The error itself says nothing of its cause here.
        let error = anyhow::Error::new(gone()).context("cannot serve");
        assert_eq!(chain_text(&error), format!("cannot serve: {cause}"));
    }

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
