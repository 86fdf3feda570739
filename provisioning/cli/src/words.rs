//! Makes or reads the words, and checks that the user wrote them down. Reads the credentials too.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use alknet_core::config::{CredentialConfig, NodeConfig, VaultInit};
use alknet_vault::{Entropy, SecretStr, WordCount};
use zeroize::Zeroizing;

use crate::{ProvisionArgs, ProvisionError, ProvisionHost};

/// Longest file of words, of a passphrase or of a credential.
const FILE_BYTES_MAX: usize = 4096;
/// Permission bits of a file of new words.
const WORDS_FILE_MODE: u32 = 0o600;
/// How many words are asked for.
const QUESTIONS: usize = 3;
/// How often all words are shown.
const ROUNDS_MAX: usize = 5;
/// Escape sequences that clear the screen and its scroll-back.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// A terminal with a user who reads and types.
pub trait WordsTerminal {
    /// Shows a text.
    ///
    /// # Errors
    /// The terminal is closed.
    fn show(&mut self, text: &str) -> io::Result<()>;

    /// A line that the user typed. `None` if the user left.
    ///
    /// # Errors
    /// The terminal is closed.
    fn line(&mut self) -> io::Result<Option<Zeroizing<String>>>;
}

/// The words of this node, from the options.
pub(crate) fn obtain(
    args: &ProvisionArgs,
    host: &mut dyn ProvisionHost,
) -> Result<(Entropy, SecretStr), ProvisionError> {
    let passphrase = match &args.passphrase_file {
        Some(file) => {
            let text = read(file, host)?;
            // Only the line end is removed, because spaces may belong to the passphrase.
            SecretStr::from(text.trim_end_matches(['\r', '\n']))
        }
        None => SecretStr::empty(),
    };
    if let Some(file) = &args.words_file {
        return Ok((Entropy::parse(&read(file, host)?)?, passphrase));
    }
    let count = match args.words.as_str() {
        "12" => WordCount::Twelve,
        _ => WordCount::TwentyFour,
    };
    if let Some(file) = &args.words_out {
        let entropy = Entropy::generate(count)?;
        // Stored before anything else is made, since lost words would lock the node for ever.
        write_words(&entropy, file)?;
        return Ok((entropy, passphrase));
    }
    if args.show_words {
        return Ok((Entropy::generate(count)?, passphrase));
    }
    let mut terminal = host.terminal().ok_or_else(|| {
        ProvisionError::usage(
            "new words are shown on a terminal, and this host has none: add --words-out words.txt to keep \
             them in a file",
        )
    })?;
    let entropy = Entropy::generate(count)?;
    confirm(&entropy, &mut *terminal)?;
    Ok((entropy, passphrase))
}

/// Writes new words to a new file, before anything that depends on them. A node whose words are
/// lost cannot be recovered.
fn write_words(entropy: &Entropy, path: &Path) -> Result<(), ProvisionError> {
    let made = OpenOptions::new()
        .write(true)
        // An existing file is never overwritten, because it may contain another node's words.
        .create_new(true)
        .mode(WORDS_FILE_MODE)
        .open(path);
    let mut file = made.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => ProvisionError::usage(format!(
            "{} is there already: name a new file for the words",
            path.display()
        )),
        _ => ProvisionError::write(path)(error),
    })?;
    let phrase = entropy.phrase();
    let written = file
        .write_all(phrase.expose().as_bytes())
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all());
    written.map_err(ProvisionError::write(path))
}

/// The credentials for the seed.
pub(crate) fn credentials(
    args: &ProvisionArgs,
    config: &NodeConfig,
    host: &mut dyn ProvisionHost,
) -> Result<Vec<(String, SecretStr)>, ProvisionError> {
    let mut all: Vec<(String, SecretStr)> = Vec::new();
    for given in &args.credential {
        let Some((name, file)) = given.split_once('=') else {
            // Not quoted, because it may be the secret itself.
            let text = "--credential is NAME=FILE: the secret is in a file";
            return Err(ProvisionError::usage(text));
        };
        let wanted = |one: &&CredentialConfig| one.needs_secret() && one.record.is_none();
        let mut entries = config.credentials.iter().filter(wanted);
        if entries.all(|one| one.name != name) || all.iter().any(|(known, _)| known == name) {
            return Err(ProvisionError::usage(
                "--credential: each name is once there, and has a [[credentials]] entry in the document \
                 that takes a secret and has no record",
            ));
        }
        let secret = read(Path::new(file), host)?;
        // An empty file is usually the wrong file, and an empty secret opens nothing.
        if secret.is_empty() {
            return Err(ProvisionError::usage(format!(
                "{file}: there is nothing in it"
            )));
        }
        all.push((name.to_owned(), SecretStr::from(secret.as_str())));
    }
    // Credentials are kept in the vault, and this node has none.
    if !all.is_empty() && config.vault.init == VaultInit::Off {
        let text = "--credential needs a vault: leave --init off out";
        return Err(ProvisionError::usage(text));
    }
    Ok(all)
}

fn read(file: &Path, host: &mut dyn ProvisionHost) -> Result<Zeroizing<String>, ProvisionError> {
    let name = file.display();
    let bytes = if file.as_os_str() == "-" {
        host.stdin(FILE_BYTES_MAX + 1)
    } else {
        std::fs::read(file)
    };
    let bytes =
        bytes.map_err(|error| ProvisionError::usage(format!("cannot read {name}: {error}")))?;
    let bytes = Zeroizing::new(bytes);
    if bytes.len() > FILE_BYTES_MAX {
        let text = format!("{name}: longer than {FILE_BYTES_MAX} bytes");
        return Err(ProvisionError::usage(text));
    }
    let text = std::str::from_utf8(&bytes);
    let text = text.map_err(|_| ProvisionError::usage(format!("{name}: this is no text")))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    Ok(Zeroizing::new(text.to_owned()))
}

/// Shows the words once, and asks for some of them. The screen is cleared at the end.
fn confirm(entropy: &Entropy, terminal: &mut dyn WordsTerminal) -> Result<(), ProvisionError> {
    let gone = |error: io::Error| ProvisionError::Local(format!("the terminal: {error}"));
    let phrase = entropy.phrase();
    let words: Vec<_> = phrase.expose().split(' ').collect();
    let mut remark = String::new();
    for _ in 0..ROUNDS_MAX {
        terminal.show(&sheet(&words, &remark)).map_err(gone)?;
        let read = terminal.line().map_err(gone)?;
        // The words are cleared from the screen and its scroll-back before some are asked for.
        terminal.show(CLEAR).map_err(gone)?;
        if read.is_none() {
            return Err(ProvisionError::Aborted);
        }
        let Some(number) = ask(&words, terminal)? else {
            terminal.show(CLEAR).map_err(gone)?;
            return Ok(());
        };
        remark = format!("Word {number} was another one. Here they are again.\n\n");
    }
    terminal.show(CLEAR).map_err(gone)?;
    Err(ProvisionError::Aborted)
}

/// Asks for some words. Returns the number of a wrong one.
fn ask(words: &[&str], terminal: &mut dyn WordsTerminal) -> Result<Option<usize>, ProvisionError> {
    let gone = |error: io::Error| ProvisionError::Local(format!("the terminal: {error}"));
    for at in positions(words.len())? {
        let number = at + 1;
        terminal.show(&format!("Word {number}: ")).map_err(gone)?;
        let Some(typed) = terminal.line().map_err(gone)? else {
            terminal.show(CLEAR).map_err(gone)?;
            return Err(ProvisionError::Aborted);
        };
        if !typed.trim().eq_ignore_ascii_case(words[at]) {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

fn sheet(words: &[&str], remark: &str) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(4096));
    text.push_str(CLEAR);
    text.push_str(remark);
    text.push_str(
        "These words are the node: a person who has them can make it again, exactly.\n\
         Write them on paper, in this order. They are shown nowhere else.\n\n",
    );
    let rows = words.len().div_ceil(4);
    for row in 0..rows {
        for at in (row..words.len()).step_by(rows) {
            text.push_str(&format!("{:>4}  {:<10}", at + 1, words[at]));
        }
        text.push('\n');
    }
    text.push_str("\nEnter, when you have them; the screen is cleared, and some are asked back. ");
    text
}

/// Different positions in ascending order.
fn positions(words: usize) -> Result<BTreeSet<usize>, ProvisionError> {
    let mut positions = BTreeSet::new();
    while positions.len() < QUESTIONS {
        let mut byte = [0];
        let no_luck = |error| ProvisionError::Local(format!("no random bytes: {error}"));
        getrandom::fill(&mut byte).map_err(no_luck)?;
        let byte = usize::from(byte[0]);
        // Higher numbers are discarded, because some remainders would be more likely.
        if byte < 256 / words * words {
            positions.insert(byte % words);
        }
    }
    Ok(positions)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A person who reads the sheet and answers what is asked.
    struct ScriptedReader {
        seen: String,
        /// Answers wrongly so many times.
        wrong: usize,
        leaves: bool,
    }

    impl WordsTerminal for ScriptedReader {
        fn show(&mut self, text: &str) -> io::Result<()> {
            self.seen.push_str(text);
            Ok(())
        }

        fn line(&mut self) -> io::Result<Option<Zeroizing<String>>> {
            if self.leaves {
                return Ok(None);
            }
            let last = self.seen.lines().last().unwrap_or_default();
            let Some(number) = last.rsplit_once("Word ").map(|(_, it)| it) else {
                return Ok(Some(Zeroizing::default()));
            };
            if self.wrong > 0 {
                self.wrong -= 1;
                return Ok(Some(Zeroizing::new("wrong".to_owned())));
            }
            let number = number.trim_end_matches(": ");
            let mut on_sheet = self.seen.split_whitespace();
            on_sheet.find(|word| *word == number);
            let word = on_sheet.next().unwrap_or_default().to_uppercase();
            Ok(Some(Zeroizing::new(word + "\n")))
        }
    }

    fn confirmed(wrong: usize, leaves: bool) -> (Result<(), ProvisionError>, String) {
        let entropy = Entropy::from_bytes(&[7; 32]).expect("32 bytes");
        let mut reader = ScriptedReader {
            seen: String::new(),
            wrong,
            leaves,
        };
        let result = confirm(&entropy, &mut reader);
        (result, reader.seen)
    }

    #[test]
    fn an_owner_who_repeats_the_words_goes_on() {
        for wrong in [0, 1, 4] {
            let (result, seen) = confirmed(wrong, false);
            assert!(result.is_ok(), "{wrong}");
            assert_eq!(seen.matches("These words are the node").count(), wrong + 1);
            assert!(seen.ends_with(CLEAR));
        }
    }

    #[test]
    fn an_owner_who_cannot_repeat_them_gets_nothing_and_the_screen_is_cleared() {
        for (wrong, leaves) in [(ROUNDS_MAX, false), (0, true)] {
            let (result, seen) = confirmed(wrong, leaves);
            assert!(matches!(result, Err(ProvisionError::Aborted)));
            assert!(seen.ends_with(CLEAR));
        }
    }

    #[test]
    fn every_word_is_on_the_sheet_behind_its_number() {
        let words: Vec<String> = (1..=24).map(|n| format!("w{n}")).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let sheet = sheet(&words, "");
        let on_sheet: Vec<_> = sheet.split_whitespace().collect();
        for n in 1..=24 {
            let word = format!("w{n}");
            let at = on_sheet.iter().position(|it| **it == word).expect("on it");
            assert_eq!(on_sheet[at - 1], n.to_string());
        }
        assert!(
            sheet
                .lines()
                .all(|line| line.trim_start_matches(CLEAR).len() <= 85)
        );
        let places = positions(12).expect("random bytes");
        assert!(places.len() == 3 && places.iter().all(|at| *at < 12));
    }
}
