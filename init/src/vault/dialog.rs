//! The console's questions to the user about the vault, and the steps that answers lead to. It has no clock and no
//! vault: answers come in, questions and steps come out.

use alknet_tpm::TpmPin;
use alknet_vault::{Entropy, SecretStr};
use zeroize::Zeroizing;

use super::commands::{COMMANDS, CommandPrompt, PromptResponse, PromptText, VaultCommand};
use super::{UnlockPrompt, VaultWait, WordsSource};
use crate::console::{ConsoleInput, ConsoleQuestion};

/// How many words the console asks for, to see whether the user wrote them down.
const CHECKED: usize = 3;
/// Columns in which the words are shown.
const COLUMNS: usize = 4;

/// What an answer leads to.
#[derive(Debug)]
pub(crate) enum DialogStep {
    /// The user drops the command under way.
    Drop,
    /// The user wants the machine as it was when it was new: everything on the data partition is lost.
    FactoryReset,
    /// An answer for the command under way.
    Given(PromptResponse),
    Lock {
        hard: bool,
    },
    /// The next question is ready.
    Next,
    /// Try the slots that need no typed input.
    Retry,
    /// Open the vault, or make it, with this.
    NewPassphrase(SecretStr),
    NewPin(SecretStr),
    Passphrase(SecretStr),
    Pin(SecretStr),
    Run(VaultCommand),
    Words(WordsSource),
    /// The user has written the words down.
    WordsKept,
}

/// A conversation at the console.
#[derive(Debug, Default)]
pub(crate) struct VaultDialog {
    state: DialogState,
    /// A note above the next question.
    note: String,
    /// Whether both a PIN and a passphrase help, so that Enter leads from one question to the other.
    other_way: bool,
    /// Words that wait to be written down while the conversation is about something else.
    deferred_words: Option<(SecretStr, Vec<usize>)>,
}

#[derive(Debug, Default)]
enum DialogState {
    Checking {
        words: SecretStr,
        /// Places, counted from 1, that are still to be typed.
        places: Vec<usize>,
    },
    /// The lines of the last command, if there was one.
    Command(Vec<String>),
    NewPassphrase,
    NewPassphraseAgain(SecretStr),
    NewPin,
    NewPinAgain(SecretStr),
    #[default]
    Nothing,
    Passphrase,
    Pin,
    Reset,
    /// The words of the vault, for a user who asked to see them.
    Shown(SecretStr),
    Wanting(PromptText),
    Words,
}

impl VaultDialog {
    /// Asks for what the vault waits for, or for nothing. A conversation about the same question goes on.
    pub(crate) fn wait_for(&mut self, waiting: Option<&VaultWait>) {
        let other_way = waiting.is_some_and(|waiting| waiting.other_way);
        let is_same_question = |state: &DialogState, ask: UnlockPrompt| match ask {
            // A user who chose the other question keeps it.
            UnlockPrompt::Passphrase | UnlockPrompt::Pin
                if other_way && matches!(state, DialogState::Passphrase | DialogState::Pin) =>
            {
                true
            }
            UnlockPrompt::NewPin => {
                matches!(state, DialogState::NewPin | DialogState::NewPinAgain(_))
            }
            UnlockPrompt::Pin => matches!(
                state,
                DialogState::Pin | DialogState::Command(_) | DialogState::Reset
            ),
            UnlockPrompt::NewPassphrase => {
                matches!(
                    state,
                    DialogState::NewPassphrase | DialogState::NewPassphraseAgain(_)
                )
            }
            UnlockPrompt::Nothing => matches!(
                state,
                DialogState::Nothing | DialogState::Command(_) | DialogState::Reset
            ),
            UnlockPrompt::Passphrase => {
                matches!(
                    state,
                    DialogState::Passphrase | DialogState::Command(_) | DialogState::Reset
                )
            }
            UnlockPrompt::Words => matches!(state, DialogState::Words),
        };
        match waiting {
            None => {
                let is_over = matches!(
                    self.state,
                    DialogState::NewPassphrase
                        | DialogState::NewPassphraseAgain(_)
                        | DialogState::NewPin
                        | DialogState::NewPinAgain(_)
                        | DialogState::Passphrase
                        | DialogState::Pin
                        | DialogState::Words
                );
                // A question of the attempt ends with it. A command that the user is typing does not.
                if is_over {
                    self.state = DialogState::Nothing;
                }
            }
            Some(waiting) if is_same_question(&self.state, waiting.ask) => {}
            Some(waiting) => {
                self.note.clear();
                self.state = match waiting.ask {
                    UnlockPrompt::NewPassphrase => DialogState::NewPassphrase,
                    UnlockPrompt::NewPin => DialogState::NewPin,
                    UnlockPrompt::Nothing => DialogState::Nothing,
                    UnlockPrompt::Passphrase => DialogState::Passphrase,
                    UnlockPrompt::Pin => DialogState::Pin,
                    UnlockPrompt::Words => DialogState::Words,
                };
            }
        }
        self.other_way = other_way;
        if let Some(waiting) = waiting {
            self.note.clone_from(&waiting.problem.text);
        }
    }

    /// Shows `words`, and asks for the words at `places`.
    pub(crate) fn show(&mut self, words: SecretStr, places: Vec<usize>) {
        self.note.clear();
        self.state = DialogState::Checking { words, places };
    }

    /// Shows words to a user who asked for them, until the user ends that.
    pub(crate) fn reveal(&mut self, words: SecretStr) {
        self.note.clear();
        self.state = DialogState::Shown(words);
    }

    /// Asks for what a command waits for.
    pub(crate) fn want(&mut self, want: CommandPrompt, note: String) {
        self.state = DialogState::Wanting(PromptText::new(want, note));
    }

    /// Shows the result of a command, and asks for the next.
    pub(crate) fn tell(&mut self, lines: Vec<String>) {
        self.note.clear();
        self.state = DialogState::Command(lines);
    }

    /// Whether the console asks nothing.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, DialogState::Nothing)
    }

    /// Shows the words again that were put aside for something else.
    pub(crate) fn resume(&mut self) {
        if self.is_idle()
            && let Some((words, places)) = self.deferred_words.take()
        {
            self.state = DialogState::Checking { words, places };
        }
    }

    /// Forgets words that were not written down.
    pub(crate) fn forget_words(&mut self) {
        self.deferred_words = None;
        if matches!(self.state, DialogState::Checking { .. }) {
            self.end();
        }
    }

    /// Ends the conversation, and forgets words that were shown.
    pub(crate) fn end(&mut self) {
        self.deferred_words = None;
        self.leave();
    }

    fn leave(&mut self) {
        self.note.clear();
        self.state = DialogState::Nothing;
    }

    /// The present question.
    pub(crate) fn question(&self) -> Option<ConsoleQuestion> {
        let note = [self.note.as_str()]
            .into_iter()
            .filter(|note| !note.is_empty());
        Some(match &self.state {
            DialogState::Nothing => return None,
            DialogState::Passphrase if self.other_way => {
                ConsoleQuestion::secret("passphrase of the vault, or Enter for the PIN").with_lines(note)
            }
            DialogState::Passphrase => {
                ConsoleQuestion::secret("passphrase of the vault, or Enter where it opens by itself").with_lines(note)
            }
            DialogState::Pin if self.other_way => {
                ConsoleQuestion::secret("PIN of the TPM, or Enter for the passphrase").with_lines(note)
            }
            DialogState::Pin => ConsoleQuestion::secret("PIN of the TPM").with_lines(note),
            DialogState::NewPin => {
                let notice = "This machine's vault is about to be made. The PIN is asked at every boot; \
                            the TPM counts wrong ones.";
                ConsoleQuestion::secret("new PIN of the TPM").with_lines(note.chain([notice]))
            }
            DialogState::NewPassphrase => {
                let notice = "This machine's vault is about to be made. Its passphrase is asked at every boot.";
                ConsoleQuestion::secret("new passphrase").with_lines(note.chain([notice]))
            }
            DialogState::NewPassphraseAgain(_) | DialogState::NewPinAgain(_) => ConsoleQuestion::secret("the same again"),
            DialogState::Words => {
                let notice = "The words of an earlier node bring it back here, all on one line.";
                ConsoleQuestion::shown("the words, or Enter for new ones").with_lines(note.chain([notice]))
            }
            DialogState::Command(said) if said.is_empty() => {
                ConsoleQuestion::shown("vault").with_lines(note.chain(COMMANDS))
            }
            DialogState::Command(said) => {
                ConsoleQuestion::shown("vault").with_lines(note.chain(said.iter().map(String::as_str)))
            }
            DialogState::Reset => ConsoleQuestion::shown("type RESET to go on").with_lines([
                "Everything on the data partition, the vault and its keys included, is lost for ever.",
                "The words, if you have them, make the same node again. Ctrl-C goes back.",
            ]),
            DialogState::Wanting(wanting) => wanting.question(),
            DialogState::Shown(words) => {
                let notice = "These words are this node. Only you may see them.".to_owned();
                let lines = [notice, String::new()].into_iter().chain(table(words));
                ConsoleQuestion::shown("Enter wipes them").with_lines(lines).private()
            }
            DialogState::Checking { words, places } => {
                let mut lines = vec![
                    "These words are this node. Write them down; they are shown this once.".to_owned(),
                    String::new(),
                ];
                lines.extend(table(words));
                lines.push(String::new());
                lines.extend(note.map(str::to_owned));
                let number = places.first().copied().unwrap_or(1);
                ConsoleQuestion::shown(format!("word {number}")).with_lines(lines).private()
            }
        })
    }

    /// Handles an input.
    pub(crate) fn answer(&mut self, answer: ConsoleInput) -> DialogStep {
        let line = match answer {
            // A user who has forgotten what opens the vault may want to reset the machine.
            ConsoleInput::Begin
                if matches!(
                    self.state,
                    DialogState::Nothing | DialogState::Passphrase | DialogState::Pin
                ) =>
            {
                self.tell(Vec::new());
                return DialogStep::Next;
            }
            ConsoleInput::Begin => {
                match std::mem::take(&mut self.state) {
                    DialogState::Checking { words, places } => {
                        self.deferred_words = Some((words, places));
                        self.tell(Vec::new());
                    }
                    other => self.state = other,
                }
                return DialogStep::Next;
            }
            ConsoleInput::Cancel => return self.cancel(),
            // The machine handles it before it comes here.
            ConsoleInput::Pasted(_) => return DialogStep::Next,
            ConsoleInput::Line(line) => line,
        };
        self.note.clear();
        match std::mem::take(&mut self.state) {
            DialogState::Nothing => DialogStep::Next,
            DialogState::Passphrase => {
                if line.is_empty() {
                    self.state = match self.other_way {
                        true => DialogState::Pin,
                        false => DialogState::Passphrase,
                    };
                    // Enter alone: a slot that needs no input may open by now, for example by a medium that was
                    // attached.
                    return DialogStep::Retry;
                }
                self.state = DialogState::Passphrase;
                DialogStep::Passphrase(secret(&line))
            }
            DialogState::Pin if line.is_empty() && self.other_way => {
                self.state = DialogState::Passphrase;
                DialogStep::Next
            }
            DialogState::Pin if line.is_empty() => {
                self.state = DialogState::Pin;
                DialogStep::Retry
            }
            DialogState::Pin => {
                self.state = DialogState::Pin;
                match self.pin(&line) {
                    Some(pin) => DialogStep::Pin(pin),
                    None => DialogStep::Next,
                }
            }
            DialogState::NewPin => {
                self.state = match self.pin(&line) {
                    Some(pin) => DialogState::NewPinAgain(pin),
                    None => DialogState::NewPin,
                };
                DialogStep::Next
            }
            DialogState::NewPinAgain(first) if first.expose() == line.as_str() => {
                DialogStep::NewPin(first)
            }
            DialogState::NewPinAgain(_) => {
                self.note = "the two differ".to_owned();
                self.state = DialogState::NewPin;
                DialogStep::Next
            }
            DialogState::NewPassphrase if line.is_empty() => {
                self.note = "an empty passphrase protects nothing".to_owned();
                self.state = DialogState::NewPassphrase;
                DialogStep::Next
            }
            DialogState::NewPassphrase => {
                self.state = DialogState::NewPassphraseAgain(secret(&line));
                DialogStep::Next
            }
            DialogState::NewPassphraseAgain(first) if first.expose() == line.as_str() => {
                DialogStep::NewPassphrase(first)
            }
            DialogState::NewPassphraseAgain(_) => {
                self.note = "the two differ".to_owned();
                self.state = DialogState::NewPassphrase;
                DialogStep::Next
            }
            DialogState::Words => self.words(&line),
            DialogState::Command(_) => self.command(&line),
            DialogState::Reset if line.as_str() == "RESET" => DialogStep::FactoryReset,
            DialogState::Reset => {
                self.state = DialogState::Command(Vec::new());
                DialogStep::Next
            }
            DialogState::Shown(_) => DialogStep::Next,
            DialogState::Wanting(mut wanting) => match wanting.answer(&line) {
                Some(given) => DialogStep::Given(given),
                None => {
                    self.state = DialogState::Wanting(wanting);
                    DialogStep::Next
                }
            },
            DialogState::Checking { words, places } => self.check(words, places, &line),
        }
    }

    /// Checks that a TPM can have this PIN. An impossible PIN costs no attempt.
    fn pin(&mut self, line: &Zeroizing<String>) -> Option<SecretStr> {
        match TpmPin::new(secret(line)) {
            Ok(_) => Some(secret(line)),
            Err(error) => {
                self.note = error.to_string();
                None
            }
        }
    }

    fn words(&mut self, line: &Zeroizing<String>) -> DialogStep {
        if line.trim().is_empty() {
            return DialogStep::Words(WordsSource::Make);
        }
        match Entropy::parse(line) {
            Ok(words) => DialogStep::Words(WordsSource::These(words)),
            Err(error) => {
                self.note = error.to_string();
                self.state = DialogState::Words;
                DialogStep::Next
            }
        }
    }

    fn command(&mut self, line: &Zeroizing<String>) -> DialogStep {
        if line.trim().is_empty() {
            return DialogStep::Next;
        }
        match VaultCommand::parse(line) {
            Ok(VaultCommand::FactoryReset) => {
                self.state = DialogState::Reset;
                DialogStep::Next
            }
            Ok(VaultCommand::Lock { hard }) => DialogStep::Lock { hard },
            Ok(command) => DialogStep::Run(command),
            Err(error) => {
                self.note = error;
                self.state = DialogState::Command(Vec::new());
                DialogStep::Next
            }
        }
    }

    fn cancel(&mut self) -> DialogStep {
        match self.state {
            DialogState::Command(_) | DialogState::Reset | DialogState::Shown(_) => {
                self.leave();
                DialogStep::Next
            }
            DialogState::Wanting(_) => {
                self.leave();
                DialogStep::Drop
            }
            // The console asks for what opens or makes the vault until it is answered.
            _ => DialogStep::Next,
        }
    }

    fn check(&mut self, words: SecretStr, mut places: Vec<usize>, line: &str) -> DialogStep {
        let number = places.first().copied().unwrap_or(1);
        let expected = words.expose().split(' ').nth(number.saturating_sub(1));
        // The words of BIP 39 are in lower case. Phones and habit capitalise the first letter.
        let typed = Zeroizing::new(line.trim().to_lowercase());
        if expected == Some(typed.as_str()) {
            places.remove(0);
            if places.is_empty() {
                return DialogStep::WordsKept;
            }
        } else {
            self.note = format!("word {number} is another one");
        }
        self.state = DialogState::Checking { words, places };
        DialogStep::Next
    }
}

/// Three different places of `count`, drawn by `random`.
pub(crate) fn places(count: usize, mut random: impl FnMut() -> u64) -> Vec<usize> {
    let mut places = Vec::new();
    while places.len() < CHECKED.min(count) {
        let mut drawn = usize::try_from(random() % count.max(1) as u64).unwrap_or(0) + 1;
        // Takes the next free place, so that the loop ends whatever `random` draws.
        while places.contains(&drawn) {
            drawn = drawn % count + 1;
        }
        places.push(drawn);
    }
    places
}

/// The words with their numbers, down the columns.
fn table(words: &SecretStr) -> Vec<String> {
    let words: Vec<&str> = words.expose().split(' ').collect();
    let rows = words.len().div_ceil(COLUMNS);
    let cell = |at: usize| {
        words
            .get(at)
            .map(|word| format!("{:>3} {word:<12}", at + 1))
    };
    let row = |row: usize| (0..COLUMNS).filter_map(move |column| cell(column * rows + row));
    (0..rows).map(|n| row(n).collect::<String>()).collect()
}

fn secret(line: &Zeroizing<String>) -> SecretStr {
    SecretStr::from(line.as_str())
}

#[cfg(test)]
mod tests;
