//! What the node of a stateless machine notes of stagings and failures. PID 1 of such a machine keeps no log of updates and
//! no list of the versions that were left, so after a restart of the node these notes alone say whose version waits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_init::control::{
    MachineFacts, UpdateAnswer, UpdateFacts, UpdatePlan, UpdateRecord, UpdateRequest,
};
use serde::{Deserialize, Serialize};

use super::NodeUpdates;
use super::auto::BY;
use super::init_client::UpdateClientError;
use super::session::StagingRequest;

/// The file of the notes, in the state directory. That of a stateless machine is in memory, and outlives the node alone.
const NOTES_FILE: &str = "state/update-notes.json";
/// How PID 1 names the data of a machine that keeps nothing.
const VOLATILE: &str = "volatile";
/// Most versions that are remembered as left. The oldest give way.
const LEFT_MAX: usize = 32;
/// The event of a version that was written to a slot, in the log of updates.
const STAGED: &str = "staged";

/// A version that was staged, and the caller that staged it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StagedNote {
    pub(super) version: String,
    /// SHA-256 of the program, in hex.
    pub(super) sha256: String,
    pub(super) by: String,
    /// The caller may not start versions.
    #[serde(default)]
    pub(super) limited: bool,
}

/// The caller of a bundle of which PID 1 has not said what it made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SenderNote {
    by: String,
    /// The caller may not start versions.
    #[serde(default)]
    limited: bool,
}

/// The notes, as their file has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct UpdateNotes {
    /// What was staged last.
    pub(super) staged: Option<StagedNote>,
    /// Whose bundle is sent, or was sent last and has no answer yet: PID 1 may stage it all the same. `None` for a bundle
    /// of the machine itself.
    sender: Option<SenderNote>,
    /// Versions that failed, or that an administrator took back: the machine does not install them by itself. The last
    /// one is at the end.
    pub(super) left: Vec<String>,
}

impl UpdateNotes {
    /// A version was staged. A caller that may not start versions does not take the program of another one over by
    /// sending it again.
    fn stage(&mut self, new: StagedNote) {
        self.sender = None;
        let is_taken_over =
            |known: &StagedNote| new.limited && !known.limited && known.sha256 == new.sha256;
        if !self.staged.as_ref().is_some_and(is_taken_over) {
            self.staged = Some(new);
        }
    }

    /// The bundle of this caller is sent. One that may not start versions does not take the place of one that may.
    fn send(&mut self, new: SenderNote) {
        let is_kept = |known: &SenderNote| new.limited && !known.limited;
        if !self.sender.as_ref().is_some_and(is_kept) {
            self.sender = Some(new);
        }
    }

    /// Who staged the version that waits, as far as the notes say. PID 1 names no hash of a damaged program.
    fn stager(&self, waiting: &UpdateFacts) -> Option<StagedNote> {
        let sha256 = waiting.other_sha256.as_deref();
        let is_waiting = |note: &&StagedNote| sha256.is_none_or(|sha256| sha256 == note.sha256);
        let staged = self.staged.as_ref().filter(is_waiting);
        // As in `stage`, a caller that may not start versions takes no program over.
        let is_senders = |sender: &&SenderNote| staged.is_none() || !sender.limited;
        match (self.sender.as_ref().filter(is_senders), sha256) {
            (Some(sender), Some(sha256)) => Some(StagedNote {
                version: waiting.other_version.clone().unwrap_or_default(),
                sha256: sha256.to_owned(),
                by: sender.by.clone(),
                limited: sender.limited,
            }),
            _ => staged.cloned(),
        }
    }

    /// The machine does not install this version by itself any more.
    fn leave(&mut self, version: &str) {
        if version.is_empty() || self.left.iter().any(|left| left == version) {
            return;
        }
        let surplus = (self.left.len() + 1).saturating_sub(LEFT_MAX);
        self.left.drain(..surplus);
        self.left.push(version.to_owned());
    }

    /// What was staged last was taken back.
    fn take_back(&mut self) {
        if let Some(staged) = self.staged.take() {
            self.leave(&staged.version);
        }
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

/// Whether the machine keeps no data, and so PID 1 no log of updates.
fn is_stateless(facts: &MachineFacts) -> bool {
    facts.data.mode == VOLATILE
}

impl NodeUpdates {
    /// Notes that this caller has staged a version.
    pub(super) fn note_stager(&self, plan: &UpdatePlan, by: &str, limited: bool) {
        if is_stateless(&self.0.facts.load()) {
            let note = StagedNote {
                version: plan.to.clone(),
                sha256: plan.sha256.clone(),
                by: by.to_owned(),
                limited,
            };
            self.0.notes.change(|notes| notes.stage(note));
        }
    }

    /// Notes whose bundle is about to be sent, other than one of the machine itself.
    pub(super) fn note_sender(&self, request: &StagingRequest) {
        if request.by != BY && !request.dry_run && is_stateless(&self.0.facts.load()) {
            let sender = SenderNote {
                by: request.by.clone(),
                limited: request.limited,
            };
            self.0.notes.change(|notes| notes.send(sender));
        }
    }

    /// Notes that PID 1 has staged nothing of a bundle. One of the machine itself says nothing of an earlier one.
    pub(super) fn note_answered(&self, request: &StagingRequest) {
        if request.by != BY && !request.dry_run && is_stateless(&self.0.facts.load()) {
            self.0.notes.change(|notes| notes.sender = None);
        }
    }

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

    /// Notes that the version that waited was taken back.
    pub(super) fn note_taken_back(&self) {
        if is_stateless(&self.0.facts.load()) {
            self.0.notes.change(UpdateNotes::take_back);
        }
    }

    /// What the log says about the version that was staged last, or without such a record what the node remembers. `None`
    /// if PID 1 does not answer.
    pub(super) async fn logged_staging(&self) -> Option<Option<UpdateRecord>> {
        let Ok(UpdateAnswer::Log { records }) = self.ask_log(BY).await else {
            return None;
        };
        let mut records = records.into_iter().rev();
        let logged = records.find(|record| record.event == STAGED);
        Some(logged.or_else(|| self.remembered_staging()))
    }

    /// What the node knows about the version that was staged last: this process, or an earlier one.
    fn remembered_staging(&self) -> Option<UpdateRecord> {
        let sessions = &self.0.sessions;
        let (version, by, limited) = match (sessions.staged(), sessions.staged_by()) {
            (Some(plan), Some(request)) => (plan.to, request.by, request.limited),
            _ => {
                let facts = self.0.facts.load();
                let note = self.0.notes.current().stager(&facts.update)?;
                (note.version, note.by, note.limited)
            }
        };
        Some(UpdateRecord {
            event: STAGED.to_owned(),
            version,
            by,
            limited,
            ..UpdateRecord::default()
        })
    }

    /// Whether what waits was staged before this start of the machine, which has forgotten which programs it verified. PID 1
    /// starts only what it has staged since. The node would remember that, unless its note could not be written; PID 1 then
    /// still names the SHA-256 of the program.
    pub(super) fn has_forgotten_staging(&self) -> bool {
        let facts = self.0.facts.load();
        is_stateless(&facts)
            && facts.update.state == "staged"
            && facts.update.other_sha256.is_none()
            && self.remembered_staging().is_none()
    }

    /// Asks PID 1 for the log of updates. PID 1 answers one such question at a time and refuses a second one, so each caller
    /// waits here for its turn: those that ask for the log again and again must not keep it from the machine itself.
    pub(super) async fn ask_log(&self, by: &str) -> Result<UpdateAnswer, UpdateClientError> {
        let turn = Arc::clone(&self.0.log_turn).lock_owned().await;
        let (init, by) = (self.0.init.clone(), by.to_owned());
        // A task of its own: if the caller goes away, PID 1 still answers before the next question.
        let asked = tokio::spawn(async move {
            let answer = init.ask(UpdateRequest::Log, &by).await;
            drop(turn);
            answer
        });
        asked.await.unwrap_or(Err(UpdateClientError::Broken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(sha256: &str, by: &str, limited: bool) -> StagedNote {
        StagedNote {
            version: "1.1.0".to_owned(),
            sha256: sha256.to_owned(),
            by: by.to_owned(),
            limited,
        }
    }

    #[test]
    fn a_caller_that_may_only_stage_takes_no_program_over() {
        let mut notes = UpdateNotes::default();
        let by = |notes: &UpdateNotes| notes.staged.clone().map(|it| it.by);
        for (new, expected) in [
            (note("a1", BY, false), BY),
            (note("a1", "eve", true), BY),
            (note("b2", "eve", true), "eve"),
            (note("b2", "ada", false), "ada"),
            (note("a1", "eve", true), "eve"),
        ] {
            notes.stage(new);
            assert_eq!(by(&notes).as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_bundle_without_an_answer_counts_as_staged_if_another_program_waits() {
        let waiting = |sha256: Option<&str>| UpdateFacts {
            other_version: Some("1.2.0".to_owned()),
            other_sha256: sha256.map(str::to_owned),
            ..UpdateFacts::default()
        };
        for (limited, sha256, expected) in [
            (true, Some("b2"), "eve"),
            (false, Some("b2"), "eve"),
            // The program of the earlier caller: an administrator takes it over, and a client does not.
            (true, Some("a1"), BY),
            (false, Some("a1"), "eve"),
            (true, None, BY),
        ] {
            let notes = UpdateNotes {
                staged: Some(note("a1", BY, false)),
                sender: Some(SenderNote {
                    by: "eve".to_owned(),
                    limited,
                }),
                left: Vec::new(),
            };
            let stager = notes.stager(&waiting(sha256)).expect("it is known");
            assert_eq!(stager.by, expected, "{limited} {sha256:?}");
            assert_eq!(stager.limited, limited && expected == "eve");
        }
        let mut notes = UpdateNotes::default();
        assert_eq!(notes.stager(&waiting(Some("b2"))), None);
        notes.stage(note("a1", BY, false));
        assert_eq!(notes.stager(&waiting(Some("b2"))), None);
    }

    #[test]
    fn the_versions_that_were_left_last_are_remembered_once_each() {
        let mut notes = UpdateNotes::default();
        notes.take_back();
        notes.leave("");
        assert_eq!(notes, UpdateNotes::default());
        for minor in 0..=LEFT_MAX {
            let version = format!("1.{minor}.0");
            notes.leave(&version);
            notes.leave(&version);
        }
        assert_eq!(notes.left.len(), LEFT_MAX);
        assert_eq!(notes.left.first().map(String::as_str), Some("1.1.0"));
        notes.stage(StagedNote {
            version: "2.0.0".to_owned(),
            ..note("a1", BY, false)
        });
        notes.take_back();
        assert_eq!(notes.staged, None);
        assert_eq!(notes.left.last().map(String::as_str), Some("2.0.0"));
    }

    #[test]
    fn notes_are_read_back_and_a_damaged_file_says_nothing() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let store = UpdateNotesStore::open(folder.path());
        assert_eq!(store.current(), UpdateNotes::default());
        store.change(|_| {});
        let file = folder.path().join(NOTES_FILE);
        assert!(!file.exists(), "nothing was to note");
        store.change(|notes| notes.stage(note("a1", "ada", false)));
        let again = UpdateNotesStore::open(folder.path());
        assert_eq!(again.current(), store.current());
        fs::write(&file, "no JSON").expect("writable");
        let damaged = UpdateNotesStore::open(folder.path());
        assert_eq!(damaged.current(), UpdateNotes::default());
    }

    /// What the first version stored, with a member that a later version may add.
    #[test]
    fn the_first_format_of_notes_is_read() {
        const SAMPLE: &str = r#"{"staged":{"version":"1.1.0","sha256":"a1","by":"eve","limited":true,"later":1},"left":["1.0.9"],"later":1}"#;
        let folder = tempfile::tempdir().expect("a temporary directory");
        let file = folder.path().join(NOTES_FILE);
        fs::create_dir_all(folder.path().join("state")).expect("writable");
        fs::write(file, SAMPLE).expect("writable");
        let expected = UpdateNotes {
            staged: Some(note("a1", "eve", true)),
            sender: None,
            left: vec!["1.0.9".to_owned()],
        };
        assert_eq!(UpdateNotesStore::open(folder.path()).current(), expected);
    }
}
