//! The words of a new vault at the console: shown at one console, and asked for there.

use alknet_vault::SecretStr;
use zeroize::Zeroizing;

use crate::console::{ConsoleId, ConsoleQuestion};

/// How many words the console asks for, to see whether the user wrote them down.
pub(super) const CHECKED: usize = 3;
/// Columns in which the words are shown.
const COLUMNS: usize = 4;

/// Words that the user has to write down.
#[derive(Debug)]
pub(super) struct NewWords {
    /// The one console that shows them. `None` until a user asks for them at a console.
    pub(super) console: Option<ConsoleId>,
    words: SecretStr,
    /// Positions, counted from 1, that are still to be typed.
    positions: Vec<usize>,
    /// Why the last answer was not accepted.
    note: String,
}

impl NewWords {
    pub(super) fn new(words: SecretStr, positions: Vec<usize>, console: Option<ConsoleId>) -> Self {
        Self {
            console,
            words,
            positions,
            note: String::new(),
        }
    }

    /// What `console` asks about them. `None` if another console shows them.
    pub(super) fn question(&self, console: ConsoleId) -> Option<ConsoleQuestion> {
        match self.console {
            None => Some(ConsoleQuestion::on_request([
                "This machine has made its words, which are this node.",
                "Press Enter to read and write them down at this console; no other console shows them then.",
            ])),
            Some(shows) if shows == console => Some(self.check_question()),
            Some(_) => None,
        }
    }

    fn check_question(&self) -> ConsoleQuestion {
        let mut lines = vec![
            "These words are this node. Write them down; they are shown this once.".to_owned(),
            String::new(),
        ];
        lines.extend(table(&self.words));
        lines.push(String::new());
        lines.extend(Some(self.note.clone()).filter(|note| !note.is_empty()));
        ConsoleQuestion::shown(format!("word {}", self.position()))
            .with_lines(lines)
            .private()
    }

    /// The position of the word that is asked for.
    fn position(&self) -> usize {
        self.positions.first().copied().unwrap_or(1)
    }

    /// Takes a word that the user typed. Returns whether it was the last.
    pub(super) fn check(&mut self, line: &str) -> bool {
        let number = self.position();
        let expected = self.words.expose().split(' ').nth(number.saturating_sub(1));
        // The words of BIP 39 are in lower case. Phones and habit capitalise the first letter.
        let typed = Zeroizing::new(line.trim().to_lowercase());
        if expected == Some(typed.as_str()) {
            self.note.clear();
            if !self.positions.is_empty() {
                self.positions.remove(0);
            }
            return self.positions.is_empty();
        }
        self.note = format!("word {number} is another one");
        false
    }
}

/// Three different positions of `count`, drawn by `random`.
pub(crate) fn positions(count: usize, mut random: impl FnMut() -> u64) -> Vec<usize> {
    let mut positions = Vec::new();
    while positions.len() < CHECKED.min(count) {
        let mut drawn = usize::try_from(random() % count.max(1) as u64).unwrap_or(0) + 1;
        // Takes the next free position, so that the loop ends whatever `random` draws.
        while positions.contains(&drawn) {
            drawn = drawn % count + 1;
        }
        positions.push(drawn);
    }
    positions
}

/// The words with their numbers, down the columns.
pub(super) fn table(words: &SecretStr) -> Vec<String> {
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
