//! The prompts of a command, and the answers that count.

use alknet_tpm::TpmPin;
use alknet_vault::SecretStr;
use alknet_vault::slots::SlotId;
use zeroize::Zeroizing;

use super::CommandPrompt;
use crate::console::ConsoleQuestion;

/// The line that a user types who has the words of the node at hand.
const HAVE_THE_WORDS: &str = "I HAVE THE WORDS";

/// An answer of the user.
pub(crate) enum PromptResponse {
    Confirmed,
    HasWords,
    NewPassphrase(SecretStr),
    NewPin(SecretStr),
    Passphrase(SecretStr),
    /// Passphrase or PIN of this slot. `None` if the user has none.
    OfSlot(SlotId, Option<SecretStr>),
    Pin(SecretStr),
    /// The user does not wait for other nodes.
    WithoutShares,
    Word(SecretStr),
}

/// Does not show the answer.
impl std::fmt::Debug for PromptResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PromptResponse(..)")
    }
}

/// A prompt at the console.
#[derive(Debug)]
pub(crate) struct PromptText {
    want: CommandPrompt,
    /// The first input, if the user types it twice.
    first: Option<SecretStr>,
    /// Why the last answer was not accepted.
    note: String,
}

impl PromptText {
    pub(crate) fn new(want: CommandPrompt, note: String) -> Self {
        Self {
            want,
            first: None,
            note,
        }
    }

    pub(crate) fn question(&self) -> ConsoleQuestion {
        let note = Some(self.note.as_str()).filter(|note| !note.is_empty());
        let note = note.into_iter().map(str::to_owned);
        match (&self.want, &self.first) {
            (CommandPrompt::Confirmation { lines, word }, _) => {
                let lines = lines.iter().cloned().chain(note);
                ConsoleQuestion::shown(format!("type {word} to go on")).with_lines(lines)
            }
            (CommandPrompt::Consent, _) => {
                let notice = [
                    "It is the last slot that opens by typing. When the device that opens the",
                    "vault is gone, only the words bring this node back.",
                ];
                let lines = notice.map(str::to_owned).into_iter().chain(note);
                ConsoleQuestion::shown(format!("type {HAVE_THE_WORDS} if you have them"))
                    .with_lines(lines)
            }
            (CommandPrompt::NewPassphrase, None) => {
                ConsoleQuestion::secret("new passphrase").with_lines(note)
            }
            (CommandPrompt::NewPin, None) => {
                ConsoleQuestion::secret("new PIN of the TPM").with_lines(note)
            }
            (CommandPrompt::NewPassphrase | CommandPrompt::NewPin, Some(_)) => {
                ConsoleQuestion::secret("the same again")
            }
            (CommandPrompt::Passphrase, _) => {
                ConsoleQuestion::secret("passphrase of the vault").with_lines(note)
            }
            (CommandPrompt::Share, _) => {
                let notice =
                    "Another node is asked for its share of the key, which goes on by itself.";
                ConsoleQuestion::shown("Enter goes on without it").with_lines([notice])
            }
            (CommandPrompt::Pin, _) => ConsoleQuestion::secret("PIN of the TPM").with_lines(note),
            (CommandPrompt::Word(at), _) => {
                let notice =
                    "This machine opens its vault without a secret: show that it is yours.";
                let lines = Some(notice.to_owned()).into_iter().chain(note);
                ConsoleQuestion::secret(format!("word {at} of its recovery words"))
                    .with_lines(lines)
            }
            (CommandPrompt::PassphraseOf { id, or_lose }, _) => {
                of_slot("passphrase", *id, *or_lose).with_lines(note)
            }
            (CommandPrompt::PinOf { id, or_lose }, _) => {
                of_slot("PIN", *id, *or_lose).with_lines(note)
            }
        }
    }

    /// Parses an answer. `None` if the console has to ask again.
    pub(crate) fn answer(&mut self, line: &Zeroizing<String>) -> Option<PromptResponse> {
        self.note.clear();
        match &self.want {
            CommandPrompt::Confirmation { word, .. } if line.trim() == *word => {
                Some(PromptResponse::Confirmed)
            }
            CommandPrompt::Consent if line.trim() == HAVE_THE_WORDS => {
                Some(PromptResponse::HasWords)
            }
            CommandPrompt::Confirmation { .. } | CommandPrompt::Consent => {
                self.note = "that was another text; Ctrl-C goes back".to_owned();
                None
            }
            CommandPrompt::NewPassphrase => self
                .twice(line, passphrase)
                .map(PromptResponse::NewPassphrase),
            CommandPrompt::NewPin => self.twice(line, pin).map(PromptResponse::NewPin),
            CommandPrompt::Passphrase | CommandPrompt::Pin | CommandPrompt::Word(_)
                if line.is_empty() =>
            {
                None
            }
            CommandPrompt::Share => Some(PromptResponse::WithoutShares),
            CommandPrompt::Pin => Some(PromptResponse::Pin(secret(line))),
            CommandPrompt::Passphrase => Some(PromptResponse::Passphrase(secret(line))),
            CommandPrompt::Word(_) => {
                let word = Zeroizing::new(line.trim().to_lowercase());
                Some(PromptResponse::Word(secret(&word)))
            }
            CommandPrompt::PassphraseOf { id, .. } | CommandPrompt::PinOf { id, .. } => {
                let typed = (!line.is_empty()).then(|| secret(line));
                Some(PromptResponse::OfSlot(*id, typed))
            }
        }
    }

    /// Returns an input that the user typed twice and `check` accepts.
    fn twice(
        &mut self,
        line: &Zeroizing<String>,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Option<SecretStr> {
        match self.first.take() {
            None => match check(line) {
                Ok(()) => self.first = Some(secret(line)),
                Err(why) => self.note = why,
            },
            Some(first) if first.expose() == line.as_str() => return Some(first),
            Some(_) => self.note = "the two differ".to_owned(),
        }
        None
    }
}

fn of_slot(what: &str, id: SlotId, or_lose: bool) -> ConsoleQuestion {
    let more = if or_lose {
        ", or Enter to lose the slot"
    } else {
        ""
    };
    ConsoleQuestion::secret(format!("{what} of slot {id}{more}"))
}

fn passphrase(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("an empty passphrase protects nothing".to_owned());
    }
    Ok(())
}

fn pin(text: &str) -> Result<(), String> {
    TpmPin::new(SecretStr::from(text))
        .map(drop)
        .map_err(|error| error.to_string())
}

fn secret(line: &Zeroizing<String>) -> SecretStr {
    SecretStr::from(line.as_str())
}
