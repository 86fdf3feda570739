//! What the data partition says of the words: whether the owner has them, and the file of age with
//! them.
//!
//! Either is the only copy of its fact, so it is on the disk before anything relies on it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::{VaultHandle, WordsAge, WordsAgeStage};

/// Folder of the state directory that only PID 1 writes.
const FOLDER: &str = "config";
/// File of that folder that says that the owner has the words.
const KEPT: &str = "words-kept";
/// File of that folder that says that the console has reminded the owner of unconfirmed words. The
/// vault says so as well, if it can be opened for that without typing and without another node.
const REMINDED: &str = "words-reminded";
/// File of the same folder with the words, encrypted to the recipients that the configuration
/// named.
const AGE: &str = "words.age";
/// Permission bits of all three files: none has a secret.
const MODE: u32 = 0o644;
/// Longest file of age that PID 1 reads, bytes: enough for the recipients that a document of 64 KiB
/// can name.
const AGE_BYTES_MAX: u64 = 1 << 20;

/// Notes on the disk that the owner has the words. The note is durable when this returns.
///
/// # Errors
/// The data partition cannot be written.
pub(crate) fn note_kept(state_dir: &Path) -> io::Result<()> {
    note(state_dir, KEPT)
}

/// Notes on the disk that the console has reminded the owner of unconfirmed words. The note is
/// durable when this returns.
///
/// # Errors
/// The data partition cannot be written.
pub(crate) fn note_reminder(state_dir: &Path) -> io::Result<()> {
    note(state_dir, REMINDED)
}

fn note(state_dir: &Path, name: &str) -> io::Result<()> {
    let path = state_dir.join(FOLDER).join(name);
    if path.try_exists()? {
        return Ok(());
    }
    alknet_durable::replace(&path, b"", MODE)
}

/// Makes `vault` and the data partition say the same: writes the file of age that was just made,
/// and the note that the owner has the words, and reads those of earlier starts.
///
/// # Errors
/// A new file of age cannot be written: the words would be lost.
pub(crate) fn settle(vault: &VaultHandle, state_dir: &Path) -> io::Result<()> {
    let path = state_dir.join(FOLDER).join(AGE);
    match vault.unwritten_age() {
        Some(text) => {
            alknet_durable::replace(&path, text.as_bytes(), MODE)?;
            vault.age_is_written();
        }
        None => match read(&path) {
            Ok(text) => vault.recall_age(text),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // The console can show the words again while the vault permits it, so no start may fail
            // for this copy.
            Err(error) => tracing::warn!(%error, path = %path.display(), "it cannot be read"),
        },
    }
    let noted = if vault.facts().words_kept {
        note_kept(state_dir)
    } else {
        is_noted(state_dir, KEPT).map(|noted| {
            if noted {
                vault.words_are_kept();
            }
        })
    };
    // This note does not decide whether the console asks for proof: the vault itself says that.
    if let Err(error) = noted {
        tracing::warn!(%error, "the note that the words are kept");
    }
    match is_noted(state_dir, REMINDED) {
        Ok(false) => {}
        Ok(true) => vault.withhold_words(),
        Err(error) => {
            tracing::warn!(%error, "the note that the owner was reminded of the words");
            // An unreadable note counts as there: the console must not show the words to an
            // attacker who spoils the note.
            vault.withhold_words();
        }
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

fn is_noted(state_dir: &Path, name: &str) -> io::Result<bool> {
    state_dir.join(FOLDER).join(name).try_exists()
}

impl VaultHandle {
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

#[cfg(test)]
mod tests {
    use alknet_vault::slots::{FirstBootPermissions, NewSlot, NewVault, OpenAlkv};
    use alknet_vault::{Entropy, WordCount};

    use super::*;

    /// PID 1 cannot change a vault that opens by another node's share or by typing in the ten
    /// minutes after its first start.
    #[test]
    fn words_want_proof_after_a_reminder_whatever_the_vault_permits() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join(FOLDER)).expect("writable");
        let words = Entropy::generate(WordCount::TwentyFour).expect("random bytes");
        let vault = NewVault {
            pending: FirstBootPermissions::ALL,
            ..NewVault::new(words, 0)
        };
        let permits = OpenAlkv::create(vault, NewSlot::None).expect("made");
        let started = || {
            let vault_handle = VaultHandle::new().expect("memory");
            vault_handle.admit(&permits).expect("it has a place");
            settle(&vault_handle, dir.path()).expect("readable");
            vault_handle
        };
        assert!(started().shows_words(), "the owner was not reminded yet");
        note_reminder(dir.path()).expect("writable");
        let vault_handle = started();
        assert!(!vault_handle.shows_words());
        vault_handle.lock();
        vault_handle.begin_attempt();
        vault_handle.admit(&permits).expect("it was locked");
        assert!(!vault_handle.shows_words());
    }
}
