//! What an attempt to open or to make the vault waits for, and what a person gives it.

use alknet_provisioning::{ConsoleDocument, MetadataService};
use alknet_vault::{Entropy, SecretStr};

use crate::control::MachineDiagnostic;

/// What only a user at the console, or an administrator, can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnlockPrompt {
    /// A passphrase for the vault that is to be made.
    NewPassphrase,
    /// A PIN for its TPM.
    NewPin,
    /// Nothing that can be typed: a medium, or a corrected configuration.
    Nothing,
    /// The passphrase of the vault.
    Passphrase,
    /// The PIN of its TPM.
    Pin,
    /// The words of an earlier node, or none.
    Words,
}

/// Why the vault is not open yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VaultWait {
    /// What would help.
    pub(crate) ask: UnlockPrompt,
    /// The problem of the node that says so.
    pub(crate) problem: MachineDiagnostic,
    /// Whether something may come without a user: a medium, or a corrected configuration.
    pub(crate) retries: bool,
    /// Whether both a PIN and a passphrase help: a user who is asked for one may want to type the other.
    pub(crate) other_way: bool,
    /// The metadata service whose answer decides how the vault is made.
    pub(crate) asks: Option<MetadataService>,
}

impl VaultWait {
    pub(crate) fn new(ask: UnlockPrompt, code: &str, text: impl Into<String>, hint: &str) -> Self {
        Self {
            ask,
            retries: ask == UnlockPrompt::Nothing,
            other_way: false,
            asks: None,
            problem: MachineDiagnostic {
                code: code.to_owned(),
                text: text.into(),
                hint: hint.to_owned(),
            },
        }
    }

    /// Makes a wait for a problem that no input mends, and that may go away without one.
    pub(crate) fn from_diagnostic(problem: MachineDiagnostic) -> Self {
        Self {
            ask: UnlockPrompt::Nothing,
            retries: true,
            other_way: false,
            asks: None,
            problem,
        }
    }

    /// A wait for the answer of a metadata service, which may have the configuration.
    pub(crate) fn for_cloud(service: MetadataService) -> Self {
        let text = format!("the metadata service of {service} is being asked for a configuration");
        let hint = "nothing: the machine goes on after 3 seconds at the latest";
        Self {
            asks: Some(service),
            // The answer makes the next attempt.
            retries: false,
            ..Self::new(UnlockPrompt::Nothing, "vault-waits", text, hint)
        }
    }

    /// Lets the user type a passphrase at the question for a PIN, or the other way round.
    pub(crate) fn with_other_way(self) -> Self {
        Self {
            other_way: true,
            ..self
        }
    }

    /// Stops the repeated attempts: only a user at the machine can change the reason.
    pub(crate) fn for_good(self) -> Self {
        Self {
            retries: false,
            ..self
        }
    }
}

/// What the user typed, for one attempt.
#[derive(Debug, Default)]
pub(crate) struct UnlockCredentials {
    pub(crate) passphrase: Option<SecretStr>,
    pub(crate) new_passphrase: Option<SecretStr>,
    pub(crate) pin: Option<SecretStr>,
    /// Whether the console had said that the vault is an older copy when the user typed passphrase or PIN.
    pub(crate) knows_of_age: bool,
    pub(crate) new_pin: Option<SecretStr>,
    pub(crate) words: Option<WordsSource>,
    /// A configuration, which may have words as well.
    pub(crate) pasted: Option<ConsoleDocument>,
}

impl UnlockCredentials {
    /// Takes back the secrets of an attempt that needs more: the console asks for the parts of a new vault one
    /// after the other. A secret that was to open a vault is not tried again.
    pub(crate) fn take_back(&mut self, tried: Self) {
        self.passphrase = None;
        self.pin = None;
        self.knows_of_age = false;
        self.new_passphrase = self.new_passphrase.take().or(tried.new_passphrase);
        self.new_pin = self.new_pin.take().or(tried.new_pin);
        self.words = self.words.take().or(tried.words);
        self.pasted = self.pasted.take().or(tried.pasted);
    }

    /// Forgets what was typed for a new vault. Returns whether there was anything.
    pub(crate) fn forget_new(&mut self) -> bool {
        let secrets = [self.new_passphrase.take(), self.new_pin.take()];
        let words = self.words.take();
        words.is_some() || secrets.iter().any(Option::is_some)
    }
}

/// The words for the new vault.
#[derive(Debug)]
pub(crate) enum WordsSource {
    /// New ones.
    Make,
    /// Words that the owner brought.
    These(Entropy),
}
