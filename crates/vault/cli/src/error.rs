//! Why a command of `alknet vault` failed, with its codes.

use std::io;
use std::path::Path;

use alknet_vault::audit::AuditError;
use alknet_vault::credentials::CredentialsError;
use alknet_vault::slots::SlotError;
use alknet_vault::{MnemonicError, SelfTestFailure, SuccessorError, VaultError};
use thiserror::Error;

/// Why a command failed. Each has the stable code and the exit code that the command line shows.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VaultCliError {
    /// The typed words are no recovery words.
    #[error(transparent)]
    BadMnemonic(MnemonicError),
    /// The reader of standard output closed it, as `| head` does.
    #[error("the reader went away")]
    Closed,
    /// A file is damaged or was changed.
    #[error("{0}")]
    Corrupt(String),
    /// The vault's state or the user's answer forbids the command.
    #[error("{0}")]
    Denied(String),
    /// This computer failed.
    #[error("{0}")]
    Local(String),
    /// No key on this computer opens the vault.
    #[error("{0}")]
    Locked(String),
    /// The vault has no such record.
    #[error("{0}")]
    NotFound(String),
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    /// The arguments contradict each other or have no meaning together.
    #[error("{0}")]
    Usage(String),
    /// The passphrase does not open the slot.
    #[error("wrong passphrase")]
    WrongPassphrase,
}

impl VaultCliError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadMnemonic(_) => "BAD_MNEMONIC",
            Self::Closed => "CLOSED",
            Self::Corrupt(_) => "CORRUPT",
            Self::Denied(_) => "FORBIDDEN",
            Self::Local(_) | Self::Output(_) => "LOCAL",
            Self::Locked(_) => "VAULT_LOCKED",
            Self::NotFound(_) => "NOT_FOUND",
            Self::Usage(_) => "USAGE",
            Self::WrongPassphrase => "WRONG_PASSPHRASE",
        }
    }

    /// The exit code: 0 if the reader of standard output closed it, 1 if this computer failed or
    /// lacks something, 2 for wrong usage, 4 denied, 10 locked, 11 wrong passphrase, 12 wrong
    /// words, 13 corrupt.
    #[must_use]
    pub fn exit(&self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::Local(_) | Self::NotFound(_) | Self::Output(_) => 1,
            Self::Usage(_) => 2,
            Self::Denied(_) => 4,
            Self::Locked(_) => 10,
            Self::WrongPassphrase => 11,
            Self::BadMnemonic(_) => 12,
            Self::Corrupt(_) => 13,
        }
    }

    /// A file cannot be read or written.
    pub(crate) fn file(path: &Path) -> impl Fn(io::Error) -> Self {
        let name = path.display().to_string();
        move |error| Self::Local(format!("{name} cannot be used ({error})"))
    }
}

impl From<io::Error> for VaultCliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Rust ignores SIGPIPE, so that `| head` shows as an error of the write.
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Output(error),
        }
    }
}

impl From<MnemonicError> for VaultCliError {
    fn from(error: MnemonicError) -> Self {
        match error {
            // This error concerns a passphrase, not a word.
            MnemonicError::PassphraseTooLong => Self::Usage(error.to_string()),
            error => Self::BadMnemonic(error),
        }
    }
}

impl From<VaultError> for VaultCliError {
    fn from(error: VaultError) -> Self {
        let text = error.to_string();
        match error {
            VaultError::BadMnemonic(error) => error.into(),
            VaultError::Slot(error) => error.into(),
            VaultError::Locked => Self::Locked(text),
            VaultError::Decrypt | VaultError::Foreign => Self::Corrupt(text),
            VaultError::AlreadyUnlocked | VaultError::NoRandomness => Self::Local(text),
            _ => Self::Usage(text),
        }
    }
}

impl From<SlotError> for VaultCliError {
    fn from(error: SlotError) -> Self {
        let text = error.to_string();
        match error {
            SlotError::Corrupt | SlotError::Form(_) | SlotError::Tampered => Self::Corrupt(text),
            SlotError::Exists | SlotError::LastInteractive(_) | SlotError::LastSlot(_) => {
                Self::Denied(text)
            }
            SlotError::Kek { .. } => Self::Locked(text),
            SlotError::Passphrase(error) => error.into(),
            SlotError::WrongKey(_) => Self::WrongPassphrase,
            SlotError::BadParams(_)
            | SlotError::BadSeedKey
            | SlotError::NoSuchSlot(_)
            | SlotError::Nothing
            | SlotError::OtherVault(_)
            | SlotError::Unnamed(_)
            | SlotError::WrongType(_) => Self::Usage(text),
            _ => Self::Local(text),
        }
    }
}

impl From<CredentialsError> for VaultCliError {
    fn from(error: CredentialsError) -> Self {
        let text = error.to_string();
        match error {
            CredentialsError::Foreign(_) => Self::Corrupt(text),
            CredentialsError::NotFound(_) => Self::NotFound(text),
            CredentialsError::Record {
                source: VaultError::Decrypt | VaultError::Foreign,
                ..
            } => Self::Corrupt(text),
            CredentialsError::Record { .. } | CredentialsError::TooOld { .. } => Self::Usage(text),
            _ => Self::Local(text),
        }
    }
}

impl From<AuditError> for VaultCliError {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Broken { .. } => Self::Corrupt(error.to_string()),
            AuditError::Vault(error) => error.into(),
            _ => Self::Local(error.to_string()),
        }
    }
}

impl From<SuccessorError> for VaultCliError {
    fn from(error: SuccessorError) -> Self {
        Self::Corrupt(error.to_string())
    }
}

impl From<SelfTestFailure> for VaultCliError {
    fn from(error: SelfTestFailure) -> Self {
        Self::Local(error.to_string())
    }
}
