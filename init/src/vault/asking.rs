//! What the console asks somebody about the vault, and what comes of the answers. No clock, no
//! vault: answers come in, questions and steps come out.

use alknet_tpm::Pin;
use alknet_vault::{Entropy, SecretStr};
use zeroize::Zeroizing;

use super::commands::{COMMANDS, Command, Given, Want, Wanting};
use super::{Ask, Waiting, Words};
use crate::console::{Answer, Question};

/// Words that somebody is asked for to see whether they were written down.
const CHECKED: usize = 3;
/// Columns in which the words are shown.
const COLUMNS: usize = 4;

/// What an answer leads to.
#[derive(Debug)]
pub(crate) enum Step {
    /// The command that is under way is not wanted any more.
    Drop,
    /// Somebody wants the machine back as it came: everything on the data partition is lost.
    FactoryReset,
    /// What the command under way waits for.
    Given(Given),
    Lock {
        hard: bool,
    },
    /// The next question stands.
    Next,
    /// Try whatever needs nothing typed.
    Retry,
    /// Open the vault, or make it, with this.
    NewPassphrase(SecretStr),
    NewPin(SecretStr),
    Passphrase(SecretStr),
    Pin(SecretStr),
    Run(Command),
    Words(Words),
    /// The words that were shown are written down.
    WordsKept,
}

/// A conversation at the console.
#[derive(Debug, Default)]
pub(crate) struct Asking {
    state: State,
    /// Something the person should know, above the next question.
    note: String,
    /// Both a PIN and a passphrase help: Enter leads from one question to the other.
    other_way: bool,
    /// Words that wait to be written down while something else is talked about.
    aside: Option<(SecretStr, Vec<usize>)>,
}

#[derive(Debug, Default)]
enum State {
    Checking {
        words: SecretStr,
        /// Places, counted from 1, that are still to be typed.
        places: Vec<usize>,
    },
    /// What the last command said, if there was one.
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
    /// The words of the vault, for somebody who asked.
    Shown(SecretStr),
    Wanting(Wanting),
    Words,
}

impl Asking {
    /// Asks for what the vault waits for, or for nothing. A conversation about the same goes on.
    pub(crate) fn wait_for(&mut self, waiting: Option<&Waiting>) {
        let other_way = waiting.is_some_and(|waiting| waiting.other_way);
        let fits = |state: &State, ask: Ask| match ask {
            // Whoever chose the other question is left with it.
            Ask::Passphrase | Ask::Pin
                if other_way && matches!(state, State::Passphrase | State::Pin) =>
            {
                true
            }
            Ask::NewPin => matches!(state, State::NewPin | State::NewPinAgain(_)),
            Ask::Pin => matches!(state, State::Pin | State::Command(_) | State::Reset),
            Ask::NewPassphrase => {
                matches!(state, State::NewPassphrase | State::NewPassphraseAgain(_))
            }
            Ask::Nothing => matches!(state, State::Nothing | State::Command(_) | State::Reset),
            Ask::Passphrase => {
                matches!(state, State::Passphrase | State::Command(_) | State::Reset)
            }
            Ask::Words => matches!(state, State::Words),
        };
        match waiting {
            None => {
                let is_over = matches!(
                    self.state,
                    State::NewPassphrase
                        | State::NewPassphraseAgain(_)
                        | State::NewPin
                        | State::NewPinAgain(_)
                        | State::Passphrase
                        | State::Pin
                        | State::Words
                );
                if is_over {
                    self.state = State::Nothing;
                }
            }
            Some(waiting) if fits(&self.state, waiting.ask) => {}
            Some(waiting) => {
                self.note.clear();
                self.state = match waiting.ask {
                    Ask::NewPassphrase => State::NewPassphrase,
                    Ask::NewPin => State::NewPin,
                    Ask::Nothing => State::Nothing,
                    Ask::Passphrase => State::Passphrase,
                    Ask::Pin => State::Pin,
                    Ask::Words => State::Words,
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
        self.state = State::Checking { words, places };
    }

    /// Shows words to somebody who asked for them, until they say that it is enough.
    pub(crate) fn reveal(&mut self, words: SecretStr) {
        self.note.clear();
        self.state = State::Shown(words);
    }

    /// Asks for what a command waits for.
    pub(crate) fn want(&mut self, want: Want, note: String) {
        self.state = State::Wanting(Wanting::new(want, note));
    }

    /// Shows what came of a command, and asks for the next.
    pub(crate) fn tell(&mut self, lines: Vec<String>) {
        self.note.clear();
        self.state = State::Command(lines);
    }

    /// Whether nobody is asked for anything.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Nothing)
    }

    /// Shows again what was put aside for something else.
    pub(crate) fn resume(&mut self) {
        if self.is_idle()
            && let Some((words, places)) = self.aside.take()
        {
            self.state = State::Checking { words, places };
        }
    }

    /// Words that nobody wrote down are forgotten.
    pub(crate) fn forget_words(&mut self) {
        self.aside = None;
        if matches!(self.state, State::Checking { .. }) {
            self.end();
        }
    }

    /// Nothing is asked any more, and shown words are forgotten.
    pub(crate) fn end(&mut self) {
        self.aside = None;
        self.leave();
    }

    fn leave(&mut self) {
        self.note.clear();
        self.state = State::Nothing;
    }

    /// What is asked now.
    pub(crate) fn question(&self) -> Option<Question> {
        let note = [self.note.as_str()]
            .into_iter()
            .filter(|note| !note.is_empty());
        Some(match &self.state {
            State::Nothing => return None,
            State::Passphrase if self.other_way => {
                Question::secret("passphrase of the vault, or Enter for the PIN").with_lines(note)
            }
            State::Passphrase => {
                Question::secret("passphrase of the vault, or Enter where it opens by itself").with_lines(note)
            }
            State::Pin if self.other_way => {
                Question::secret("PIN of the TPM, or Enter for the passphrase").with_lines(note)
            }
            State::Pin => Question::secret("PIN of the TPM").with_lines(note),
            State::NewPin => {
                let told = "This machine's vault is about to be made. The PIN is asked at every boot; \
                            the TPM counts wrong ones.";
                Question::secret("new PIN of the TPM").with_lines(note.chain([told]))
            }
            State::NewPassphrase => {
                let told = "This machine's vault is about to be made. Its passphrase is asked at every boot.";
                Question::secret("new passphrase").with_lines(note.chain([told]))
            }
            State::NewPassphraseAgain(_) | State::NewPinAgain(_) => Question::secret("the same again"),
            State::Words => {
                let told = "The words of an earlier node bring it back here, all on one line.";
                Question::shown("the words, or Enter for new ones").with_lines(note.chain([told]))
            }
            State::Command(said) if said.is_empty() => {
                Question::shown("vault").with_lines(note.chain(COMMANDS))
            }
            State::Command(said) => {
                Question::shown("vault").with_lines(note.chain(said.iter().map(String::as_str)))
            }
            State::Reset => Question::shown("type RESET to go on").with_lines([
                "Everything on the data partition, the vault and its keys included, is lost for ever.",
                "The words, if you have them, make the same node again. Ctrl-C goes back.",
            ]),
            State::Wanting(wanting) => wanting.question(),
            State::Shown(words) => {
                let told = "These words are this node. Nobody else may see them.".to_owned();
                let lines = [told, String::new()].into_iter().chain(table(words));
                Question::shown("Enter wipes them").with_lines(lines).private()
            }
            State::Checking { words, places } => {
                let mut lines = vec![
                    "These words are this node. Write them down; they are shown this once.".to_owned(),
                    String::new(),
                ];
                lines.extend(table(words));
                lines.push(String::new());
                lines.extend(note.map(str::to_owned));
                let place = places.first().copied().unwrap_or(1);
                Question::shown(format!("word {place}")).with_lines(lines).private()
            }
        })
    }

    /// Takes an answer.
    pub(crate) fn answer(&mut self, answer: Answer) -> Step {
        let line = match answer {
            // Whoever has forgotten what opens it may want to begin anew.
            Answer::Begin
                if matches!(self.state, State::Nothing | State::Passphrase | State::Pin) =>
            {
                self.tell(Vec::new());
                return Step::Next;
            }
            Answer::Begin => {
                match std::mem::take(&mut self.state) {
                    State::Checking { words, places } => {
                        self.aside = Some((words, places));
                        self.tell(Vec::new());
                    }
                    other => self.state = other,
                }
                return Step::Next;
            }
            Answer::Cancel => return self.cancel(),
            // The machine takes it before it comes here.
            Answer::Pasted(_) => return Step::Next,
            Answer::Line(line) => line,
        };
        self.note.clear();
        match std::mem::take(&mut self.state) {
            State::Nothing => Step::Next,
            State::Passphrase => {
                if line.is_empty() {
                    self.state = match self.other_way {
                        true => State::Pin,
                        false => State::Passphrase,
                    };
                    return Step::Retry;
                }
                self.state = State::Passphrase;
                Step::Passphrase(secret(&line))
            }
            State::Pin if line.is_empty() && self.other_way => {
                self.state = State::Passphrase;
                Step::Next
            }
            State::Pin if line.is_empty() => {
                self.state = State::Pin;
                Step::Retry
            }
            State::Pin => {
                self.state = State::Pin;
                match self.pin(&line) {
                    Some(pin) => Step::Pin(pin),
                    None => Step::Next,
                }
            }
            State::NewPin => {
                self.state = match self.pin(&line) {
                    Some(pin) => State::NewPinAgain(pin),
                    None => State::NewPin,
                };
                Step::Next
            }
            State::NewPinAgain(first) if first.expose() == line.as_str() => Step::NewPin(first),
            State::NewPinAgain(_) => {
                self.note = "the two differ".to_owned();
                self.state = State::NewPin;
                Step::Next
            }
            State::NewPassphrase if line.is_empty() => {
                self.note = "an empty passphrase protects nothing".to_owned();
                self.state = State::NewPassphrase;
                Step::Next
            }
            State::NewPassphrase => {
                self.state = State::NewPassphraseAgain(secret(&line));
                Step::Next
            }
            State::NewPassphraseAgain(first) if first.expose() == line.as_str() => {
                Step::NewPassphrase(first)
            }
            State::NewPassphraseAgain(_) => {
                self.note = "the two differ".to_owned();
                self.state = State::NewPassphrase;
                Step::Next
            }
            State::Words => self.words(&line),
            State::Command(_) => self.command(&line),
            State::Reset if line.as_str() == "RESET" => Step::FactoryReset,
            State::Reset => {
                self.state = State::Command(Vec::new());
                Step::Next
            }
            State::Shown(_) => Step::Next,
            State::Wanting(mut wanting) => match wanting.answer(&line) {
                Some(given) => Step::Given(given),
                None => {
                    self.state = State::Wanting(wanting);
                    Step::Next
                }
            },
            State::Checking { words, places } => self.check(words, places, &line),
        }
    }

    /// A PIN that a TPM can have: what cannot be one costs no attempt.
    fn pin(&mut self, line: &Zeroizing<String>) -> Option<SecretStr> {
        match Pin::new(secret(line)) {
            Ok(_) => Some(secret(line)),
            Err(error) => {
                self.note = error.to_string();
                None
            }
        }
    }

    fn words(&mut self, line: &Zeroizing<String>) -> Step {
        if line.trim().is_empty() {
            return Step::Words(Words::Make);
        }
        match Entropy::parse(line) {
            Ok(words) => Step::Words(Words::These(words)),
            Err(error) => {
                self.note = error.to_string();
                self.state = State::Words;
                Step::Next
            }
        }
    }

    fn command(&mut self, line: &Zeroizing<String>) -> Step {
        if line.trim().is_empty() {
            return Step::Next;
        }
        match Command::parse(line) {
            Ok(Command::FactoryReset) => {
                self.state = State::Reset;
                Step::Next
            }
            Ok(Command::Lock { hard }) => Step::Lock { hard },
            Ok(command) => Step::Run(command),
            Err(wrong) => {
                self.note = wrong;
                self.state = State::Command(Vec::new());
                Step::Next
            }
        }
    }

    fn cancel(&mut self) -> Step {
        match self.state {
            State::Command(_) | State::Reset | State::Shown(_) => {
                self.leave();
                Step::Next
            }
            State::Wanting(_) => {
                self.leave();
                Step::Drop
            }
            _ => Step::Next,
        }
    }

    fn check(&mut self, words: SecretStr, mut places: Vec<usize>, line: &str) -> Step {
        let place = places.first().copied().unwrap_or(1);
        let wanted = words.expose().split(' ').nth(place.saturating_sub(1));
        let typed = Zeroizing::new(line.trim().to_lowercase());
        if wanted == Some(typed.as_str()) {
            places.remove(0);
            if places.is_empty() {
                return Step::WordsKept;
            }
        } else {
            self.note = format!("word {place} is another one");
        }
        self.state = State::Checking { words, places };
        Step::Next
    }
}

/// Three different places of `count`, drawn by `random`.
pub(crate) fn places(count: usize, mut random: impl FnMut() -> u64) -> Vec<usize> {
    let mut places = Vec::new();
    while places.len() < CHECKED.min(count) {
        let mut drawn = usize::try_from(random() % count.max(1) as u64).unwrap_or(0) + 1;
        // The next that is free, so that it ends whatever is drawn.
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
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn line(text: &str) -> Answer {
        Answer::Line(Zeroizing::new(text.to_owned()))
    }

    fn waits(ask: Ask) -> Waiting {
        Waiting::new(ask, "vault-locked", "the vault is locked", "")
    }

    #[test]
    fn a_new_passphrase_is_typed_twice() {
        let mut asking = Asking::default();
        asking.wait_for(Some(&waits(Ask::NewPassphrase)));
        for answer in ["", "one", "two"] {
            assert!(matches!(asking.answer(line(answer)), Step::Next));
        }
        assert!(matches!(asking.answer(line("three")), Step::Next));
        // The same question asked again does not begin anew.
        asking.wait_for(Some(&waits(Ask::NewPassphrase)));
        assert!(matches!(
            asking.answer(line("three")),
            Step::NewPassphrase(_)
        ));
    }

    #[test]
    fn a_new_pin_is_one_that_a_tpm_can_have_typed_twice() {
        let mut asking = Asking::default();
        asking.wait_for(Some(&waits(Ask::NewPin)));
        let longer = "1".repeat(33);
        for answer in ["", longer.as_str(), "schlüssel", "1234", "1235", "1234"] {
            assert!(
                matches!(asking.answer(line(answer)), Step::Next),
                "{answer}"
            );
            asking.wait_for(Some(&waits(Ask::NewPin)));
        }
        let Step::NewPin(pin) = asking.answer(line("1234")) else {
            panic!("the same twice");
        };
        assert_eq!(pin.expose(), "1234");
    }

    #[test]
    fn enter_leads_from_the_pin_to_the_passphrase_and_back() {
        let mut asking = Asking::default();
        let both = |ask| waits(ask).with_other_way();
        let prompt = |asking: &Asking| format!("{:?}", asking.question());
        asking.wait_for(Some(&both(Ask::Pin)));
        assert!(prompt(&asking).contains("\"PIN of the TPM, or Enter for the passphrase"));
        assert!(matches!(asking.answer(line("")), Step::Next));
        // An attempt that was made by itself does not take a question away that somebody chose.
        asking.wait_for(Some(&both(Ask::Pin)));
        assert!(prompt(&asking).contains("\"passphrase of the vault, or Enter for the PIN"));
        assert!(matches!(asking.answer(line("right")), Step::Passphrase(_)));
        asking.wait_for(Some(&both(Ask::Passphrase)));
        assert!(matches!(asking.answer(line("")), Step::Retry));
        asking.wait_for(Some(&both(Ask::Pin)));
        assert!(matches!(asking.answer(line("1234")), Step::Pin(_)));
        // The TPM is locked: only the passphrase is left.
        asking.wait_for(Some(&waits(Ask::Passphrase)));
        assert!(prompt(&asking).contains("or Enter where it opens by itself"));
        asking.wait_for(Some(&waits(Ask::Pin)));
        assert!(matches!(asking.answer(line("")), Step::Retry));
        assert!(matches!(asking.answer(line("not ascii: ä")), Step::Next));
        assert!(prompt(&asking).contains("\"PIN of the TPM\""));
    }

    #[test]
    fn words_are_checked_before_they_are_taken() {
        let mut asking = Asking::default();
        asking.wait_for(Some(&waits(Ask::Words)));
        assert!(matches!(asking.answer(line("abandon abandon")), Step::Next));
        assert!(asking.question().is_some());
        let phrase = format!("{}about", "abandon ".repeat(11));
        assert!(matches!(
            asking.answer(line(&phrase)),
            Step::Words(Words::These(_))
        ));
        asking.wait_for(Some(&waits(Ask::Words)));
        assert!(matches!(asking.answer(line(" ")), Step::Words(Words::Make)));
    }

    #[test]
    fn three_words_show_that_they_were_written_down() {
        let words: Vec<String> = (1..=24).map(|n| format!("word{n}")).collect();
        let mut asking = Asking::default();
        asking.show(SecretStr::from(words.join(" ").as_str()), vec![3, 24, 1]);
        assert!(asking.question().is_some());
        for (typed, goes_on) in [("word4", true), (" WORD3 ", true), ("word24", true)] {
            assert_eq!(matches!(asking.answer(line(typed)), Step::Next), goes_on);
        }
        // Something else may be talked about meanwhile.
        asking.answer(Answer::Begin);
        assert!(matches!(asking.answer(line("status")), Step::Run(_)));
        asking.resume();
        assert!(matches!(asking.answer(line("word1")), Step::WordsKept));
        assert!(asking.question().is_none());
    }

    #[test]
    fn a_reset_needs_its_word_and_can_be_left() {
        let mut asking = Asking::default();
        assert!(matches!(asking.answer(Answer::Begin), Step::Next));
        assert!(matches!(asking.answer(line("factory-reset")), Step::Next));
        assert!(matches!(asking.answer(line("reset")), Step::Next));
        assert!(matches!(asking.answer(line("factory-reset")), Step::Next));
        assert!(matches!(asking.answer(line("RESET")), Step::FactoryReset));
        assert!(matches!(asking.answer(Answer::Begin), Step::Next));
        asking.answer(Answer::Cancel);
        assert!(asking.question().is_none());
    }

    #[test]
    fn a_command_is_told_apart_and_what_it_wants_is_asked() {
        let mut asking = Asking::default();
        asking.answer(Answer::Begin);
        assert!(matches!(asking.answer(line("slot add x")), Step::Next));
        assert!(asking.question().is_some(), "the mistake is told");
        assert!(matches!(
            asking.answer(line("passwd")),
            Step::Run(Command::Passwd)
        ));
        assert!(asking.is_idle());
        asking.want(Want::NewPassphrase, String::new());
        for typed in ["", "one", "two", "one"] {
            assert!(matches!(asking.answer(line(typed)), Step::Next), "{typed}");
        }
        assert!(matches!(
            asking.answer(line("one")),
            Step::Given(Given::NewPassphrase(_))
        ));
        asking.want(Want::Consent, String::new());
        assert!(matches!(asking.answer(line("yes")), Step::Next));
        // What was locked meanwhile asks for its passphrase, and not for the command's.
        asking.wait_for(Some(&waits(Ask::Passphrase)));
        assert!(matches!(asking.answer(line("one")), Step::Passphrase(_)));
    }

    #[test]
    fn shown_words_go_with_the_next_line_and_a_command_can_be_dropped() {
        let mut asking = Asking::default();
        asking.reveal(SecretStr::from("one two three"));
        assert!(matches!(asking.answer(line("")), Step::Next));
        assert!(asking.is_idle());
        asking.want(Want::Passphrase, String::new());
        assert!(matches!(asking.answer(Answer::Cancel), Step::Drop));
        assert!(asking.is_idle());
        // Somebody who is asked for a passphrase that is forgotten can reset the machine.
        asking.wait_for(Some(&waits(Ask::Passphrase)));
        asking.answer(Answer::Begin);
        assert!(matches!(asking.answer(line("factory-reset")), Step::Next));
        assert!(matches!(asking.answer(line("RESET")), Step::FactoryReset));
    }

    #[test]
    fn places_differ_and_the_table_has_every_word() {
        let mut n = 0;
        let drawn = places(24, || {
            n += 1;
            n / 2
        });
        assert_eq!(drawn.len(), CHECKED);
        assert!(drawn.iter().all(|place| (1..=24).contains(place)));
        let different: BTreeSet<_> = drawn.iter().collect();
        assert_eq!(different.len(), CHECKED, "{drawn:?}");
        let words: Vec<String> = (1..=24).map(|n| format!("w{n}")).collect();
        let table = table(&SecretStr::from(words.join(" ").as_str()));
        assert_eq!(table.len(), 6);
        assert!(table[0].starts_with("  1 w1 ") && table[0].contains(" 19 w19"));
    }
}
