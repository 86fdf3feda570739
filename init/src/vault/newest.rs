//! Whether the vault on the disk is the newest that this machine had.
//!
//! The encrypted data notes the generation of the vault, so that older copies of the vault that are put back
//! beside it are noticed; and the TPM counts the changes, so that an older disk is noticed that is put back
//! whole. What is older opens only for a person who shows that it is theirs.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use alknet_tpm::{StorageKey, Tpm, TpmError};
use alknet_vault::slots::{Alkv, Found, OpenAlkv, SlotParams, SlotType};
use serde::{Deserialize, Serialize};

use super::open::by_passphrase;
use super::{Ask, Keeper, Offer, Waiting, by_tpm, opening_slot};
use crate::control::Problem;
use crate::log::Log;
use crate::tpm;

/// The note, in the configuration's folder, which is root's.
const NOTE: &str = "vault-newest.json";
/// Bytes of it: three fields of fixed length, and some room.
const NOTE_BYTES_MAX: u64 = 1024;

/// How long the erasure of a disk waits for the TPM: a machine that goes down ends after 25 s, erased or not.
const OUTDATE_MAX: Duration = Duration::from_secs(5);

/// What the newest vault was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    vault: String,
    generation: u64,
    /// How often it was changed, by a TPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    counted: Option<Counted>,
}

/// A TPM's counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counted {
    /// Of the TPM with this storage key.
    tpm: String,
    count: u64,
}

/// What is at the handle of the TPM's counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Index {
    Absent,
    Count(u64),
    /// Another program's, or an attacker's.
    Foreign,
}

/// How a note and a counter fit.
#[derive(Debug, PartialEq, Eq)]
enum Fit {
    /// They say the same.
    Same,
    /// The power went between the two.
    Behind,
    /// The TPM counted a change that the disk does not have, or counts no more what it did.
    Old,
    /// The TPM has no counter, and something else where it would be.
    Unknown,
}

impl Fit {
    /// Of a vault with a slot of this TPM, which was counted when that slot was made. The TPM's owner has no password
    /// here: an attacker can remove the counter, and put something else at its handle.
    fn of(noted: Option<u64>, index: Index) -> Self {
        match (noted, index) {
            (_, Index::Foreign) => Self::Unknown,
            (_, Index::Absent) | (None, Index::Count(_)) => Self::Old,
            (Some(noted), Index::Count(count)) if noted < count => Self::Old,
            (Some(noted), Index::Count(count)) if noted == count => Self::Same,
            (Some(_), Index::Count(_)) => Self::Behind,
        }
    }
}

/// Looks whether the vault of a disk whose data is at `state_dir` is the newest. `made` just now, it is. Answers with
/// the problem where its changes are not counted.
///
/// # Errors
/// It is older, and nothing shows that its owner wants it; what would.
pub(crate) fn check(
    state_dir: &Path,
    open: &OpenAlkv,
    made: bool,
    proof: impl Fn() -> bool,
    log: &Log,
) -> Result<Option<Problem>, Waiting> {
    let alkv = open.alkv();
    let noted = read(state_dir, log).filter(|note| note.vault == alkv.uuid().to_string());
    // The power may have gone in the first boot, between the counter and the first note.
    let made = made || noted.is_none() && open.pending().partition;
    let (mut counter, unread) = match Counter::of(alkv) {
        Ok(counter) => (counter, None),
        Err(error) if made || proof() => {
            let problem = uncounted(&error);
            log.error(&problem.text);
            (None, Some(problem))
        }
        Err(error) => return Err(unknown(&error)),
    };
    let why = match (&noted, &mut counter) {
        (_, _) if made => None,
        (Some(noted), _) if noted.generation > alkv.generation() => {
            Some("the vault is older than the data beside it")
        }
        (noted, Some(counter)) => counter
            .is_old(noted.as_ref())
            .map_err(|error| unknown(&error))?,
        (_, None) => None,
    };
    if let Some(why) = why {
        if !proof() {
            return Err(old(alkv, why));
        }
        log.warn(format_args!(
            "{why}; this copy counts from now on, as its owner wants it"
        ));
    }
    let is_noted = noted.as_ref().is_some_and(|noted| {
        let by = counter.as_ref().map(|counter| counter.key.to_string());
        let counted = noted.counted.as_ref();
        let counts = counted.map(|counted| counted.tpm.clone()) == by;
        counts && noted.generation == alkv.generation()
    });
    if made || why.is_some() || !is_noted {
        // A TPM that cannot be read may have a slot.
        let former = noted.as_ref().filter(|_| unread.is_none());
        let problem = write(state_dir, alkv, counter.as_mut(), former, retire, log);
        return Ok(problem.or(unread));
    }
    Ok(unread)
}

/// Notes a vault that was changed, and has the TPM count it.
pub(crate) fn note(state_dir: &Path, alkv: &Alkv, log: &Log) {
    match Counter::of(alkv) {
        // It is in the log, and a problem from the next start on.
        Ok(mut counter) => {
            let former = read(state_dir, log);
            drop(write(
                state_dir,
                alkv,
                counter.as_mut(),
                former.as_ref(),
                retire,
                log,
            ));
        }
        Err(error) => log.error(format_args!(
            "the TPM did not count a change of the vault: {error}"
        )),
    }
}

/// The note first: where the power goes before the TPM has counted, the next start does it. Answers with the problem
/// where the TPM cannot count. The TPM of the `former` note, of which the vault has no slot any more, counts for the
/// last time, by `retire`: it would open a disk from before.
fn write(
    state_dir: &Path,
    alkv: &Alkv,
    counter: Option<&mut Counter>,
    former: Option<&Note>,
    retire: impl FnOnce(&Counted) -> Result<(), TpmError>,
    log: &Log,
) -> Option<Problem> {
    let counts = counter.is_some();
    let counted = counter.map(Counter::begin);
    let (counted, problem) = match counted.transpose() {
        Ok(counted) => (counted, None),
        Err(error) => {
            let problem = uncounted(&error);
            log.error(&problem.text);
            (None, Some(problem))
        }
    };
    let mut note = Note {
        vault: alkv.uuid().to_string(),
        generation: alkv.generation(),
        counted: counted.as_ref().map(|(_, counted)| counted.clone()),
    };
    if !counts
        && let Some(former) = former.and_then(|former| former.counted.as_ref())
        && let Err(error) = retire(former)
    {
        log.error(format_args!(
            "the TPM did not count that its last slot was removed; the next start tries again: {error}"
        ));
        note.counted = Some(former.clone());
    }
    let written = serde_json::to_vec(&note).map_err(io::Error::other);
    let folder = state_dir.join("config");
    let path = folder.join(NOTE);
    // At a first boot this is the first file.
    let written = written.and_then(|text| {
        fs::create_dir_all(&folder)?;
        alknet_durable::replace(&path, &text, 0o600)
    });
    if let Err(error) = written {
        log.error(format_args!("{}: {error}", path.display()));
        return problem;
    }
    if let Some((counter, _)) = counted
        && let Err(error) = counter.advance()
    {
        log.error(format_args!(
            "the TPM did not count a change of the vault: {error}"
        ));
    }
    problem
}

fn read(state_dir: &Path, log: &Log) -> Option<Note> {
    let path = state_dir.join("config").join(NOTE);
    let read = || -> io::Result<Option<Note>> {
        let length = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if length > NOTE_BYTES_MAX {
            return Err(io::Error::other("it is too long"));
        }
        Ok(Some(serde_json::from_slice(&fs::read(&path)?)?))
    };
    // Without it the TPM's counter says that the disk is an older one.
    read().unwrap_or_else(|error| {
        log.error(format_args!("{}: {error}", path.display()));
        None
    })
}

/// Whether the TPM was asked to count and has not answered. It may do so at any moment: a counter that a new vault began
/// meanwhile would be ahead of its note then, and the machine would take its own disk for an old one.
static UNANSWERED: AtomicBool = AtomicBool::new(false);

/// Refuses to ask the TPM for its counter while another question about it is open.
fn answered(unanswered: &AtomicBool) -> Result<(), TpmError> {
    match unanswered.load(Ordering::SeqCst) {
        true => Err(TpmError::Transport(io::ErrorKind::TimedOut.into())),
        false => Ok(()),
    }
}

/// The TPM of this machine with its storage key; none where what it says counts for nothing.
fn chip() -> Result<Option<(Tpm<fs::File>, StorageKey)>, TpmError> {
    answered(&UNANSWERED)?;
    let mut tpm = match tpm::connect() {
        Ok(tpm) => tpm,
        Err(TpmError::Absent | TpmError::Unsupported(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    match tpm.storage_key() {
        Ok(key) => Ok(Some((tpm, key))),
        // The image is for another machine.
        Err(TpmError::ForeignStorageKey) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Has this machine's TPM count once more, if it is the one that did.
fn retire(counted: &Counted) -> Result<(), TpmError> {
    let Some((tpm, key)) = chip()? else {
        return Ok(());
    };
    if key.to_string() != counted.tpm {
        return Ok(());
    }
    tpm.require(key).outrun_notes()
}

/// Has this machine's TPM count on, if it counts, without a disk that notes it: each copy of a disk from before is an
/// older one. `has_to`, where a slot of the vault was of a TPM.
///
/// # Errors
/// The TPM cannot, or does not answer within [`OUTDATE_MAX`].
pub(crate) fn outdate(has_to: bool) -> Result<(), TpmError> {
    within(OUTDATE_MAX, &UNANSWERED, move || {
        let counted = tpm::connect().and_then(|mut tpm| tpm.outrun_notes());
        unless_none_has_to(counted, has_to)
    })
}

/// A machine without a TPM, or with one that the image is not for, counts nothing: there is nothing to count where no
/// slot was of a TPM.
fn unless_none_has_to(counted: Result<(), TpmError>, has_to: bool) -> Result<(), TpmError> {
    match counted {
        Err(TpmError::Absent | TpmError::Unsupported(_) | TpmError::ForeignStorageKey)
            if !has_to =>
        {
            Ok(())
        }
        counted => counted,
    }
}

/// Asks a TPM on a thread of its own: the kernel waits minutes for one that hangs. `unanswered` until it has answered,
/// or the machine restarts.
fn within(
    most: Duration,
    unanswered: &'static AtomicBool,
    ask: impl FnOnce() -> Result<(), TpmError> + Send + 'static,
) -> Result<(), TpmError> {
    if unanswered.swap(true, Ordering::SeqCst) {
        return Err(TpmError::Transport(io::ErrorKind::TimedOut.into()));
    }
    let (say, heard) = mpsc::channel();
    let spawned = thread::Builder::new()
        .name("tpm".to_owned())
        .spawn(move || {
            let answer = ask();
            unanswered.store(false, Ordering::SeqCst);
            // Nobody may wait any more.
            drop(say.send(answer));
        });
    if let Err(error) = spawned {
        unanswered.store(false, Ordering::SeqCst);
        return Err(TpmError::Transport(error));
    }
    heard
        .recv_timeout(most)
        .unwrap_or_else(|_| Err(TpmError::Transport(io::ErrorKind::TimedOut.into())))
}

/// The counter of this machine's TPM, for a vault that has a slot of it.
struct Counter {
    tpm: Tpm<fs::File>,
    key: StorageKey,
    index: Index,
}

impl Counter {
    /// `None` for a vault without such a slot: of another machine's disk nothing was counted here.
    fn of(alkv: &Alkv) -> Result<Option<Self>, TpmError> {
        let slots = alkv.slots().iter();
        let mut of_tpms = slots.filter_map(|slot| match slot.params() {
            SlotParams::Tpm2(params) => StorageKey::of(params).ok(),
            _ => None,
        });
        let Some(first) = of_tpms.next() else {
            return Ok(None);
        };
        let Some((tpm, key)) = chip()? else {
            return Ok(None);
        };
        if key != first && !of_tpms.any(|other| other == key) {
            return Ok(None);
        }
        // What answers from here on has that key.
        let mut tpm = tpm.require(key);
        let index = match tpm.counter() {
            Ok(Some(count)) => Index::Count(count),
            Ok(None) => Index::Absent,
            // No reason to look no further: an attacker can put it there.
            Err(TpmError::CounterForeign(_)) => Index::Foreign,
            Err(error) => return Err(error),
        };
        Ok(Some(Self { tpm, key, index }))
    }

    /// Why a disk with this note is an older one.
    fn is_old(&mut self, noted: Option<&Note>) -> Result<Option<&'static str>, TpmError> {
        let counted = noted.and_then(|noted| noted.counted.as_ref());
        let own = counted.filter(|counted| counted.tpm == self.key.to_string());
        let noted = own.map(|counted| counted.count);
        match Fit::of(noted, self.index) {
            Fit::Same => Ok(None),
            Fit::Behind => {
                self.advance()?;
                Ok(None)
            }
            Fit::Old => Ok(Some(
                "the disk is older than the last change that the TPM counted",
            )),
            Fit::Unknown => Ok(Some(
                "something else is in the place of the TPM's counter, which says how old the disk is",
            )),
        }
    }

    /// What the counter will be.
    fn begin(&mut self) -> Result<(&mut Self, Counted), TpmError> {
        let count = match self.index {
            Index::Count(count) => count,
            Index::Absent | Index::Foreign => self.tpm.make_counter()?,
        };
        self.index = Index::Count(count);
        let counted = Counted {
            tpm: self.key.to_string(),
            count: count + 1,
        };
        Ok((self, counted))
    }

    fn advance(&mut self) -> Result<(), TpmError> {
        self.index = Index::Count(self.tpm.advance_counter()?);
        Ok(())
    }
}

/// Whether a person at the machine, or a medium with the words, shows that the vault's owner opens it.
pub(crate) fn is_proven(
    found: &Found,
    open: &OpenAlkv,
    offer: &Offer,
    keeper: &Keeper,
    medium_has_words: impl FnOnce() -> bool,
) -> bool {
    let by = opening_slot(open);
    let slots = open.alkv().slots().iter();
    let by_typing = by.is_some_and(|by| {
        let mut slots = slots.filter(|slot| slot.id() == by.id);
        by.kind == SlotType::Passphrase || slots.any(by_tpm::wants_pin)
    });
    // What needs nobody is tried first: the passphrase may have had no turn.
    let passphrase = || {
        let typed = offer.passphrase.as_ref();
        typed.is_some_and(|typed| by_passphrase(found, typed, keeper).is_ok())
    };
    let pin = || {
        let typed = offer.pin.as_ref();
        typed.is_some_and(|typed| by_tpm::with_pin(found, typed).is_ok())
    };
    by_typing || passphrase() || pin() || medium_has_words()
}

fn old(alkv: &Alkv, why: &str) -> Waiting {
    let slots = alkv.slots();
    let ask = if slots.iter().any(by_tpm::wants_pin) {
        Ask::Pin
    } else if slots.iter().any(|slot| slot.kind() == SlotType::Passphrase) {
        Ask::Passphrase
    } else {
        Ask::Nothing
    };
    let hint = match ask {
        Ask::Nothing => {
            "put the newest disk back; or attach a medium with the words of this node (vault.words) \
             and restart, if this one is to count"
        }
        _ => "put the newest disk back; or type what opens the vault, if this one is to count",
    };
    let text = format!("the vault stays closed: {why}");
    Waiting::new(ask, "vault-old", text, hint).for_good()
}

fn unknown(error: &TpmError) -> Waiting {
    let text = format!("whether the disk is the newest one is not known: {error}");
    Waiting::new(Ask::Nothing, "vault-old", text, "it is tried again")
}

/// The TPM takes no counter: each later start asks for the owner.
fn uncounted(error: &TpmError) -> Problem {
    let hint = match error {
        TpmError::CounterForeign(_) => {
            "remove what is in the place of the counter (tpm2_nvundefine 0x180414c); until then each start asks for \
             what only the owner has"
        }
        _ => "until the TPM takes a counter each start asks for what only the owner has",
    };
    Problem {
        code: "vault-uncounted".to_owned(),
        text: format!("the TPM counts no changes of the vault: {error}"),
        hint: hint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_the_disk_does_not_have_makes_it_old() {
        for (noted, index, fit) in [
            (Some(7), Index::Count(7), Fit::Same),
            (Some(8), Index::Count(7), Fit::Behind),
            (Some(6), Index::Count(7), Fit::Old),
            (None, Index::Count(7), Fit::Old),
            (Some(7), Index::Absent, Fit::Old),
        ] {
            assert_eq!(Fit::of(noted, index), fit, "{noted:?} {index:?}");
        }
    }

    /// An attacker needs no secret to undefine the index of the counter and to define another at its handle.
    #[test]
    fn without_a_counter_no_disk_is_the_newest() {
        for (noted, index, fit) in [
            (None, Index::Absent, Fit::Old),
            (None, Index::Foreign, Fit::Unknown),
            (Some(7), Index::Foreign, Fit::Unknown),
        ] {
            assert_eq!(Fit::of(noted, index), fit, "{noted:?} {index:?}");
        }
    }

    /// The owner removes the last slot of the TPM, and an attacker puts a copy of the disk from before back.
    #[test]
    fn a_removal_of_the_last_slot_of_the_tpm_is_counted() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = Log::default();
        let vault = crate::data::keyslot_tests::vault();
        let counter = std::cell::Cell::new(7);
        let before = Note {
            vault: vault.alkv().uuid().to_string(),
            generation: vault.alkv().generation(),
            counted: Some(Counted {
                tpm: "ab".repeat(32),
                count: counter.get(),
            }),
        };
        let noted = |former: &Note, answers: bool| {
            let retire = |_: &Counted| {
                counter.set(counter.get() + u64::from(answers));
                answers.then_some(()).ok_or(TpmError::Absent)
            };
            let problem = write(dir.path(), vault.alkv(), None, Some(former), retire, &log);
            assert_eq!(problem, None);
            read(dir.path(), &log).expect("it was written")
        };
        // As long as the TPM has not counted it, the next start tries.
        let unanswered = noted(&before, false);
        assert_eq!(unanswered.counted, before.counted);
        let after = noted(&unanswered, true);
        assert_eq!(after.counted, None);
        let of_copy = before.counted.as_ref().map(|counted| counted.count);
        let index = Index::Count(counter.get());
        assert_eq!(Fit::of(of_copy, index), Fit::Old);
        noted(&after, true);
        assert_eq!(counter.get(), 8, "once");
    }

    /// The power may have gone between the note of a copy and the counter: it says one more than the TPM did then.
    #[test]
    fn a_copy_from_before_a_reset_is_old_even_where_it_is_one_ahead() {
        let (before, after) = (7, 7 + 2);
        for noted in [before, before + 1] {
            assert_eq!(Fit::of(Some(noted), Index::Count(after)), Fit::Old);
        }
    }

    /// And nothing counts beside it: a new vault's counter would rise behind the back of its note when it answers.
    #[test]
    fn a_tpm_that_hangs_holds_no_erasure_up() {
        static UNANSWERED: AtomicBool = AtomicBool::new(false);
        let (end, ended) = mpsc::channel::<()>();
        let hangs = move || {
            let _ = ended.recv();
            Ok(())
        };
        let asked = within(Duration::from_millis(1), &UNANSWERED, hangs);
        assert!(matches!(asked, Err(TpmError::Transport(_))), "{asked:?}");
        let most = alknet_test_support::deadline(Duration::from_secs(60));
        let again = within(most, &UNANSWERED, || unreachable!("one question at a time"));
        assert!(matches!(again, Err(TpmError::Transport(_))), "{again:?}");
        assert!(answered(&UNANSWERED).is_err());
        drop(end);
        alknet_test_support::eventually("the TPM answers", most, || answered(&UNANSWERED).is_ok());
        assert!(within(most, &UNANSWERED, || Ok(())).is_ok());
        assert!(answered(&UNANSWERED).is_ok());
    }

    /// An attacker with a copy of the disk takes the TPM away for the time of the reset.
    #[test]
    fn a_tpm_that_is_absent_has_not_counted_a_vault_that_it_opened() {
        for none in [
            || TpmError::Absent,
            || TpmError::Unsupported("1.2"),
            || TpmError::ForeignStorageKey,
        ] as [fn() -> TpmError; 3]
        {
            assert!(unless_none_has_to(Err(none()), false).is_ok());
            assert!(unless_none_has_to(Err(none()), true).is_err());
        }
        let silent = || Err(TpmError::Transport(io::ErrorKind::TimedOut.into()));
        assert!(unless_none_has_to(silent(), false).is_err());
        assert!(unless_none_has_to(Ok(()), true).is_ok());
    }

    #[test]
    fn a_note_is_read_as_it_was_written_and_anything_else_is_none() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = Log::default();
        assert_eq!(read(dir.path(), &log), None);
        let note = Note {
            vault: "of this".to_owned(),
            generation: 7,
            counted: Some(Counted {
                tpm: "ab".repeat(32),
                count: u64::MAX,
            }),
        };
        let path = dir.path().join("config").join(NOTE);
        fs::create_dir(dir.path().join("config")).expect("writable");
        let text = serde_json::to_vec(&note).expect("plain values");
        assert!(text.len() as u64 <= NOTE_BYTES_MAX);
        fs::write(&path, &text).expect("writable");
        assert_eq!(read(dir.path(), &log), Some(note));
        let long = vec![b' '; NOTE_BYTES_MAX as usize + 1];
        for bad in [&text[1..], b"", &long] {
            fs::write(&path, bad).expect("writable");
            assert_eq!(read(dir.path(), &log), None);
        }
    }
}
