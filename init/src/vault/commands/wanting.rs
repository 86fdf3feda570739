//! What is asked for a command, and what counts as an answer.

use alknet_tpm::Pin;
use alknet_vault::SecretStr;
use alknet_vault::slots::SlotId;
use zeroize::Zeroizing;

use super::Want;
use crate::console::Question;

/// What somebody types who has the words of the node.
const HAVE_THE_WORDS: &str = "I HAVE THE WORDS";

/// What was typed.
pub(crate) enum Given {
    Confirmed,
    HasWords,
    NewPassphrase(SecretStr),
    NewPin(SecretStr),
    Passphrase(SecretStr),
    /// Passphrase or PIN of this slot; nothing where somebody has none.
    OfSlot(SlotId, Option<SecretStr>),
    Pin(SecretStr),
    /// Nobody waits for other nodes.
    WithoutShares,
    Word(SecretStr),
}

/// Never what it is.
impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Given(..)")
    }
}

/// Something that is asked for.
#[derive(Debug)]
pub(crate) struct Wanting {
    want: Want,
    /// What was typed the first time, where it is typed twice.
    first: Option<SecretStr>,
    /// What was wrong with the last answer.
    note: String,
}

impl Wanting {
    pub(crate) fn new(want: Want, note: String) -> Self {
        Self {
            want,
            first: None,
            note,
        }
    }

    pub(crate) fn question(&self) -> Question {
        let note = Some(self.note.as_str()).filter(|note| !note.is_empty());
        let note = note.into_iter().map(str::to_owned);
        match (&self.want, &self.first) {
            (Want::Confirmation { lines, word }, _) => {
                let lines = lines.iter().cloned().chain(note);
                Question::shown(format!("type {word} to go on")).with_lines(lines)
            }
            (Want::Consent, _) => {
                let told = [
                    "It is the last slot that opens by typing. When the device that opens the",
                    "vault is gone, only the words bring this node back.",
                ];
                let lines = told.map(str::to_owned).into_iter().chain(note);
                Question::shown(format!("type {HAVE_THE_WORDS} if you have them")).with_lines(lines)
            }
            (Want::NewPassphrase, None) => Question::secret("new passphrase").with_lines(note),
            (Want::NewPin, None) => Question::secret("new PIN of the TPM").with_lines(note),
            (Want::NewPassphrase | Want::NewPin, Some(_)) => Question::secret("the same again"),
            (Want::Passphrase, _) => Question::secret("passphrase of the vault").with_lines(note),
            (Want::Share, _) => {
                let told =
                    "Another node is asked for its share of the key, which goes on by itself.";
                Question::shown("Enter goes on without it").with_lines([told])
            }
            (Want::Pin, _) => Question::secret("PIN of the TPM").with_lines(note),
            (Want::Word(at), _) => {
                let told = "This machine opens its vault for anybody: show that it is yours.";
                let lines = Some(told.to_owned()).into_iter().chain(note);
                Question::secret(format!("word {at} of its recovery words")).with_lines(lines)
            }
            (Want::PassphraseOf { id, or_lose }, _) => {
                of_slot("passphrase", *id, *or_lose).with_lines(note)
            }
            (Want::PinOf { id, or_lose }, _) => of_slot("PIN", *id, *or_lose).with_lines(note),
        }
    }

    /// What an answer gives, or nothing: then it is asked again.
    pub(crate) fn answer(&mut self, line: &Zeroizing<String>) -> Option<Given> {
        self.note.clear();
        match &self.want {
            Want::Confirmation { word, .. } if line.trim() == *word => Some(Given::Confirmed),
            Want::Consent if line.trim() == HAVE_THE_WORDS => Some(Given::HasWords),
            Want::Confirmation { .. } | Want::Consent => {
                self.note = "that was another text; Ctrl-C goes back".to_owned();
                None
            }
            Want::NewPassphrase => self.twice(line, passphrase).map(Given::NewPassphrase),
            Want::NewPin => self.twice(line, pin).map(Given::NewPin),
            Want::Passphrase | Want::Pin | Want::Word(_) if line.is_empty() => None,
            Want::Share => Some(Given::WithoutShares),
            Want::Pin => Some(Given::Pin(secret(line))),
            Want::Passphrase => Some(Given::Passphrase(secret(line))),
            Want::Word(_) => {
                let word = Zeroizing::new(line.trim().to_lowercase());
                Some(Given::Word(secret(&word)))
            }
            Want::PassphraseOf { id, .. } | Want::PinOf { id, .. } => {
                let typed = (!line.is_empty()).then(|| secret(line));
                Some(Given::OfSlot(*id, typed))
            }
        }
    }

    /// What is the same twice, after `check` has nothing against it.
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

fn of_slot(what: &str, id: SlotId, or_lose: bool) -> Question {
    let more = if or_lose {
        ", or Enter to lose the slot"
    } else {
        ""
    };
    Question::secret(format!("{what} of slot {id}{more}"))
}

fn passphrase(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("an empty passphrase protects nothing".to_owned());
    }
    Ok(())
}

fn pin(text: &str) -> Result<(), String> {
    Pin::new(SecretStr::from(text))
        .map(drop)
        .map_err(|error| error.to_string())
}

fn secret(line: &Zeroizing<String>) -> SecretStr {
    SecretStr::from(line.as_str())
}
