//! What the data partition says of the words: that the owner has them, and the file of age with them.
//!
//! Either is the only copy of what it says, so it is on the disk before anything relies on it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::{Keeper, WordsAge, WordsAgeStage};

/// Folder of the state directory that PID 1 alone writes.
const FOLDER: &str = "config";
/// File of that folder that says that the owner has the words.
const KEPT: &str = "words-kept";
/// File of the same folder with the words, encrypted to the recipients that the configuration named.
const AGE: &str = "words.age";
/// Permission bits of both: neither tells a secret.
const MODE: u32 = 0o644;
/// Longest file of age that is read, bytes: what a document of 64 KiB can name recipients for.
const AGE_BYTES_MAX: u64 = 1 << 20;

/// Notes on the disk that the owner has the words. When it returns the note is durable.
///
/// # Errors
/// The data partition cannot be written.
pub(crate) fn note_kept(state_dir: &Path) -> io::Result<()> {
    let path = state_dir.join(FOLDER).join(KEPT);
    if path.try_exists()? {
        return Ok(());
    }
    alknet_durable::replace(&path, b"", MODE)
}

/// Brings `keeper` and the data partition to the same: writes the file of age that was just made, and the note
/// that the owner has the words; reads those of earlier starts.
///
/// # Errors
/// A new file of age cannot be written: the words would be lost.
pub(crate) fn settle(keeper: &Keeper, state_dir: &Path) -> io::Result<()> {
    let path = state_dir.join(FOLDER).join(AGE);
    match keeper.unwritten_age() {
        Some(text) => {
            alknet_durable::replace(&path, text.as_bytes(), MODE)?;
            keeper.age_is_written();
        }
        None => match read(&path) {
            Ok(text) => keeper.recall_age(text),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, path = %path.display(), "it cannot be read"),
        },
    }
    let noted = if keeper.facts().words_kept {
        note_kept(state_dir)
    } else {
        is_noted(state_dir).map(|noted| {
            if noted {
                keeper.words_are_kept();
            }
        })
    };
    // Whether the console asks for proof does not hang on it: the vault itself says that.
    if let Err(error) = noted {
        tracing::warn!(%error, "the note that the words are kept");
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<String> {
    use io::Read;
    let mut text = String::new();
    let file = fs::File::open(path)?;
    file.take(AGE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn is_noted(state_dir: &Path) -> io::Result<bool> {
    state_dir.join(FOLDER).join(KEPT).try_exists()
}

impl Keeper {
    /// The file of age that is in memory only.
    fn unwritten_age(&self) -> Option<String> {
        let state = self.state();
        let age = state.words_age.as_ref()?;
        (age.stage == WordsAgeStage::Made).then(|| age.text.clone())
    }

    fn age_is_written(&self) {
        if let Some(age) = &mut self.state().words_age {
            age.stage = WordsAgeStage::Written;
        }
        self.words_are_kept();
    }

    fn recall_age(&self, text: String) {
        let stage = WordsAgeStage::Shown;
        self.state().words_age = Some(WordsAge { text, stage });
    }
}
