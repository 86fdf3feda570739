//! What the node of a stateless machine notes of versions that failed or were taken back: PID 1 of such a machine keeps no
//! list of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use alknet_init::control::MachineFacts;
use serde::{Deserialize, Serialize};

use super::NodeUpdates;
use super::waiting::waiting_version;

/// The file of the notes, in the state directory. That of a stateless machine is in memory, and outlives the node alone.
const NOTES_FILE: &str = "state/update-notes.json";
/// How PID 1 names the data of a machine that keeps nothing.
const VOLATILE: &str = "volatile";
/// Most versions that are remembered as left. The oldest give way.
const LEFT_MAX: usize = 32;

/// The notes, as their file has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct UpdateNotes {
    /// Versions that failed, or that an administrator took back: the machine does not install them by itself. The last
    /// one is at the end.
    pub(super) left: Vec<String>,
}

impl UpdateNotes {
    /// The machine does not install this version by itself any more.
    fn leave(&mut self, version: &str) {
        if version.is_empty() || self.left.iter().any(|left| left == version) {
            return;
        }
        let surplus = (self.left.len() + 1).saturating_sub(LEFT_MAX);
        self.left.drain(..surplus);
        self.left.push(version.to_owned());
    }
}

/// The notes in memory, and in their file.
pub(super) struct UpdateNotesStore {
    file: PathBuf,
    notes: Mutex<UpdateNotes>,
}

impl UpdateNotesStore {
    /// The notes of an earlier process of the node, if it has left some.
    pub(super) fn open(state_dir: &Path) -> Self {
        let file = state_dir.join(NOTES_FILE);
        let notes = read(&file).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %file.display(), "the notes about updates cannot be read");
            UpdateNotes::default()
        });
        Self {
            file,
            notes: Mutex::new(notes),
        }
    }

    /// The notes as they stand.
    pub(super) fn current(&self) -> UpdateNotes {
        self.lock().clone()
    }

    /// Changes the notes, and their file if they are other ones then.
    fn change(&self, change: impl FnOnce(&mut UpdateNotes)) {
        let mut notes = self.lock();
        let before = notes.clone();
        change(&mut notes);
        if *notes == before {
            return;
        }
        if let Err(error) = self.write(&notes) {
            // This process has them all the same.
            tracing::warn!(%error, path = %self.file.display(), "the notes about updates are not written");
        }
    }

    fn write(&self, notes: &UpdateNotes) -> io::Result<()> {
        let text = serde_json::to_vec(notes).map_err(io::Error::other)?;
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder)?;
        }
        alknet_durable::replace(&self.file, &text, 0o600)
    }

    fn lock(&self) -> MutexGuard<'_, UpdateNotes> {
        // Each change leaves them whole.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a file of notes says. One that is not there says nothing.
fn read(file: &Path) -> io::Result<UpdateNotes> {
    match fs::read(file) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(UpdateNotes::default()),
        Err(error) => Err(error),
    }
}

/// Whether the machine keeps no data, and so PID 1 no list of versions that were left.
pub(super) fn is_stateless(facts: &MachineFacts) -> bool {
    facts.data.mode == VOLATILE
}

impl NodeUpdates {
    /// Notes a version whose trial failed, by what PID 1 says now. Before each session, because PID 1 forgets the failure
    /// once another version is staged, and the node decides only a minute after its start.
    pub(super) fn note_failure_before_session(&self) {
        self.note_failure(&self.0.facts.load());
    }

    /// Notes a version whose trial failed: PID 1 forgets it once another one is staged.
    pub(super) fn note_failure(&self, facts: &MachineFacts) {
        let last = facts.update.last.as_ref();
        let failed = last.filter(|last| last.outcome != "confirmed");
        if let Some(failed) = failed.filter(|_| is_stateless(facts)) {
            self.0.notes.change(|notes| notes.leave(&failed.version));
        }
    }

    /// The versions that the machine does not install by itself, by its notes. None on a machine with data: PID 1 has the
    /// list there, and takes a version out of it once an administrator has confirmed it.
    pub(super) fn noted_left(&self) -> Vec<String> {
        match is_stateless(&self.0.facts.load()) {
            true => self.0.notes.current().left,
            false => Vec::new(),
        }
    }

    /// The version that a rollback leaves, for the notes. None on a machine with data, as in [`noted_left`](Self::noted_left).
    pub(super) async fn version_to_leave(&self) -> Option<String> {
        if !is_stateless(&self.0.facts.load()) {
            return None;
        }
        // PID 1 refuses a rollback beside a session.
        if self.0.sessions.current().is_none() {
            self.wait_for_facts().await;
        }
        let facts = self.0.facts.load();
        let update = &facts.update;
        match update.outdated {
            false if update.state == "staged" => waiting_version(update).map(str::to_owned),
            false => None,
            true => self.0.sessions.staged().map(|plan| plan.to),
        }
    }

    /// Notes that this version, which waited, was taken back.
    pub(super) fn note_taken_back(&self, version: Option<String>) {
        if let Some(version) = version {
            self.0.notes.change(|notes| notes.leave(&version));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_that_were_left_last_are_remembered_once_each() {
        let mut notes = UpdateNotes::default();
        notes.leave("");
        assert_eq!(notes, UpdateNotes::default());
        for minor in 0..=LEFT_MAX {
            let version = format!("1.{minor}.0");
            notes.leave(&version);
            notes.leave(&version);
        }
        assert_eq!(notes.left.len(), LEFT_MAX);
        assert_eq!(notes.left.first().map(String::as_str), Some("1.1.0"));
    }

    #[test]
    fn notes_are_read_back_and_a_damaged_file_says_nothing() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let store = UpdateNotesStore::open(folder.path());
        assert_eq!(store.current(), UpdateNotes::default());
        store.change(|_| {});
        let file = folder.path().join(NOTES_FILE);
        assert!(!file.exists(), "nothing was to note");
        store.change(|notes| notes.leave("1.1.0"));
        let again = UpdateNotesStore::open(folder.path());
        assert_eq!(again.current(), store.current());
        fs::write(&file, "no JSON").expect("writable");
        let damaged = UpdateNotesStore::open(folder.path());
        assert_eq!(damaged.current(), UpdateNotes::default());
    }

    /// What the first version stored, with a member that a later version may add. This version has no use for `staged`.
    #[test]
    fn the_first_format_of_notes_is_read() {
        const SAMPLE: &str = r#"{"staged":{"version":"1.1.0","sha256":"a1","by":"eve","limited":true,"later":1},"left":["1.0.9"],"later":1}"#;
        let folder = tempfile::tempdir().expect("a temporary directory");
        let file = folder.path().join(NOTES_FILE);
        fs::create_dir_all(folder.path().join("state")).expect("writable");
        fs::write(file, SAMPLE).expect("writable");
        let expected = UpdateNotes {
            left: vec!["1.0.9".to_owned()],
        };
        assert_eq!(UpdateNotesStore::open(folder.path()).current(), expected);
    }
}
