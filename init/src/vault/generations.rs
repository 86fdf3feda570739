//! Decides whether the vault on the disk is the newest that this machine had.
//!
//! The encrypted data note the generation of the vault, so that PID 1 notices an older copy of the vault beside
//! them. The TPM counts the changes, so that PID 1 notices an older copy of the whole disk. An older copy opens
//! only for a person who proves to be its owner. A change that a TPM did not count is owed: PID 1 reports it, and
//! each later start tries again.

mod note;
mod proof;
mod tpm;

use std::fs::File;
use std::path::Path;

use alknet_tpm::{StorageKey, Tpm, TpmError};
use alknet_vault::slots::{Alkv, FirstCount, OpenAlkv, SlotParams, SlotType};
use data_encoding::HEXLOWER;

use super::{VaultHandle, VaultWait, opening_slot};
use crate::control::MachineDiagnostic;
use crate::data;
use crate::log::InitLog;
use note::{GenerationNote, PendingTpmCount, TpmCount};
use proof::{old, unknown};
use tpm::{chip, is_absent, retire};

pub(crate) use proof::{VAULT_OLD, is_proven, unproven};
pub(crate) use tpm::outdate;

/// How often the counter may rise in a first boot before there is a note beside the data. If the erasure of the
/// disk before was not counted, the counter rises before the note is written. In a first boot that has ended it
/// rose twice.
const FIRST_NOTE_RISES_MAX: u64 = 1;
/// The reason if nothing says how old the disk is.
const FOREIGN: &str =
    "something else is in the place of the TPM's counter, which says how old the disk is";
/// The reason why a vault that permits its first boot is an older copy.
const PAST: &str =
    "it is a copy from its first boot, and the TPM has counted changes of the vault since";
/// The reason why it is unknown whether it is one.
const ELSEWHERE: &str = "it permits what its first boot does, and the TPM that can say whether that has ended is not in \
                         this machine, or switched off";

/// The content of the handle of the TPM's counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TpmCounterIndex {
    Absent,
    Count(u64),
    /// Another program's index, or an attacker's.
    Foreign,
}

/// How a note compares with a counter.
#[derive(Debug, PartialEq, Eq)]
enum NoteFit {
    /// Both say the same.
    Same,
    /// The power failed between the two.
    Behind,
    /// The TPM counted a change that the disk does not have, or no longer counts what it did.
    Old,
    /// The TPM has no counter, and something else at its handle.
    Unknown,
}

impl NoteFit {
    /// Compares for a vault with a slot of this TPM, which counted when that slot was made. The TPM's owner
    /// hierarchy has no password here: an attacker can remove the counter, and put something else at its handle.
    fn compare(noted: Option<u64>, index: TpmCounterIndex) -> Self {
        match (noted, index) {
            (_, TpmCounterIndex::Foreign) => Self::Unknown,
            (_, TpmCounterIndex::Absent) | (None, TpmCounterIndex::Count(_)) => Self::Old,
            (Some(noted), TpmCounterIndex::Count(count)) if noted < count => Self::Old,
            (Some(noted), TpmCounterIndex::Count(count)) if noted == count => Self::Same,
            (Some(_), TpmCounterIndex::Count(_)) => Self::Behind,
        }
    }
}

/// The note and the counter of the newest vault of a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GenerationLedger<'a> {
    /// The device of the sealed partition.
    pub(crate) device: &'a Path,
    /// Holds the problems of uncounted changes.
    pub(crate) vault: &'a VaultHandle,
    pub(crate) log: &'a InitLog,
    /// The folder where its data are mounted.
    pub(crate) state_dir: &'a Path,
}

impl GenerationLedger<'_> {
    /// Checks whether the vault of a disk is the newest. A vault that was just `made` is.
    ///
    /// # Errors
    /// The vault is older, and nothing proves that its owner wants it. The error says what would prove that.
    pub(crate) fn check(
        &self,
        open: &OpenAlkv,
        made: bool,
        proof: impl Fn() -> bool,
    ) -> Result<(), VaultWait> {
        let alkv = open.alkv();
        let read = note::read(self.state_dir);
        // An attacker who can write to the disk can spoil the note without a key, and put an older vault beside it.
        let spoilt = read.as_ref().err().map(|error| {
            format!(
                "{}, which says which vault is the newest, cannot be read ({error})",
                note::path(self.state_dir).display()
            )
        });
        let former = read.unwrap_or_default();
        let of_vault = |note: &&GenerationNote| note.vault == alkv.uuid().to_string();
        let noted = former.as_ref().filter(of_vault);
        // The power may have failed in the first boot, between the counter and the first note. Data with a note, of
        // whichever vault, had their first boot.
        let is_first = !made && spoilt.is_none() && former.is_none() && open.pending().partition;
        let needs_count = !made && (!is_first || open.first_count().is_some());
        let tpms = tpms_of(alkv);
        let probed = TpmPresence::probe(&tpms).and_then(|found| found.unless_it_opened(open));
        let (mut presence, unread) = match probed {
            Ok(presence) => (presence, None),
            Err(error) if !needs_count || proof() => {
                let problem = uncounted(&error);
                (TpmPresence::Away(error), Some(problem))
            }
            Err(error) => return Err(unknown(open, &error)),
        };
        let why = match (noted, &mut presence) {
            (_, _) if made => None,
            (_, presence) if is_first => presence.is_past(open.first_count(), FIRST_NOTE_RISES_MAX),
            (_, _) if spoilt.is_some() => spoilt.as_deref(),
            (None, _) if former.is_some() => Some("the data beside the vault are of another one"),
            (Some(noted), _) if noted.generation > alkv.generation() => {
                Some("the vault is older than the data beside it")
            }
            (noted, TpmPresence::Here(counter)) => counter
                .is_old(noted)
                .map_err(|error| unknown(open, &error))?,
            (_, TpmPresence::Away(_) | TpmPresence::Unbound) => None,
        };
        if let Some(why) = why {
            if !proof() {
                return Err(old(open, why));
            }
            self.log.warn(format_args!(
                "{why}; this copy counts from now on, as its owner wants it"
            ));
        }
        let settled = noted.filter(|noted| {
            !made && why.is_none() && self.is_settled(noted, alkv, &tpms, &presence)
        });
        let mut problems: Vec<_> = unread.into_iter().collect();
        problems.extend(match settled {
            Some(noted) => owing(noted),
            None => self.write(alkv, &tpms, &mut presence, former.as_ref(), retire),
        });
        self.tell(problems);
        Ok(())
    }

    /// Notes a changed vault that is on the disk, and makes the TPM count it. No older vault opens while this
    /// machine runs.
    pub(crate) fn note(&self, open: &OpenAlkv) {
        self.vault.is_now(open);
        let alkv = open.alkv();
        let tpms = tpms_of(alkv);
        let mut presence = TpmPresence::probe(&tpms).unwrap_or_else(TpmPresence::Away);
        let former = note::read_if_whole(self.state_dir, self.log);
        let problems = self.write(alkv, &tpms, &mut presence, former.as_ref(), retire);
        self.tell(problems);
    }

    /// TPMs that have not counted, and that the vault has no slot of.
    pub(crate) fn owed_without_slot(&self, alkv: &Alkv) -> Vec<String> {
        let tpms = tpms_of(alkv);
        let note = note::read_if_whole(self.state_dir, self.log);
        let owed = note.into_iter().flat_map(|note| note.owed);
        let owed = owed.map(|owed| owed.tpm);
        owed.filter(|tpm| !tpms.contains(tpm)).collect()
    }

    /// Forgets these TPMs: neither a later start nor a factory reset expects that they count.
    ///
    /// # Errors
    /// The note cannot be written.
    pub(crate) fn forget_owed(&self, alkv: &Alkv) -> Result<(), String> {
        let tpms = tpms_of(alkv);
        let former = note::read_if_whole(self.state_dir, self.log);
        let Some(mut note) = former.clone() else {
            return Ok(());
        };
        note.owed.retain(|owed| tpms.contains(&owed.tpm));
        let kept = self.write_note_and_memo(&note, former.as_ref());
        kept.map_err(|problem| problem.text)?;
        self.tell(owing(&note));
        Ok(())
    }

    fn tell(&self, problems: Vec<MachineDiagnostic>) {
        for MachineDiagnostic { code, text, .. } in &problems {
            self.log.error(format_args!("{code}: {text}"));
        }
        self.vault.set_uncounted(problems);
    }

    /// Whether a note of a vault with slots of these TPMs would be the same if it were written again.
    fn is_settled(
        &self,
        noted: &GenerationNote,
        alkv: &Alkv,
        tpms: &[String],
        presence: &TpmPresence,
    ) -> bool {
        let own = match presence {
            TpmPresence::Here(counter) => Some(counter.key.to_string()),
            TpmPresence::Away(_) | TpmPresence::Unbound => None,
        };
        let counted = noted.counted.as_ref().map(|counted| &counted.tpm);
        let counts = match &own {
            Some(own) => counted == Some(own),
            None => counted.is_none_or(|tpm| tpms.contains(tpm)),
        };
        let mut owed = noted.owed.iter().map(|owed| &owed.tpm);
        counts
            && noted.generation == alkv.generation()
            && owed.all(|tpm| tpms.contains(tpm) && own.as_ref() != Some(tpm))
            && data::counted_by(self.device) == noted.tpms()
    }

    /// Writes the note first: after a power cut before the TPM has counted, the next start makes it count. Returns
    /// the problems. A TPM in the `former` note without a slot in the vault counts for the last time, by `retire`:
    /// it would open a disk from before. A TPM with a slot that is not in the machine still owes the count.
    fn write(
        &self,
        alkv: &Alkv,
        tpms: &[String],
        presence: &mut TpmPresence,
        former: Option<&GenerationNote>,
        retire: impl Fn(&str) -> Result<(), TpmError>,
    ) -> Vec<MachineDiagnostic> {
        let mut problems = Vec::new();
        let vault = alkv.uuid().to_string();
        let is_changed = former
            .is_none_or(|former| (&former.vault, former.generation) != (&vault, alkv.generation()));
        let mut note = GenerationNote {
            vault,
            generation: alkv.generation(),
            counted: None,
            owed: Vec::new(),
        };
        let mut due = former.map_or_else(|| self.of_erased(), |former| former.owed.clone());
        let counted = former.and_then(|former| former.counted.clone());
        if let TpmPresence::Away(error) = presence
            && is_changed
        {
            self.log.warn(format_args!(
                "no TPM of the vault counts a change of it: {error}"
            ));
        }
        let mut begun = None;
        match presence {
            TpmPresence::Here(counter) => {
                let key = counter.key.to_string();
                due.extend(counted.map(PendingTpmCount::from));
                let own: Vec<_> = due.extract_if(.., |one| one.tpm == key).collect();
                match counter.begin(&own) {
                    Ok(counted) => {
                        note.counted = Some(counted);
                        begun = Some(counter);
                    }
                    Err(error) => {
                        problems.push(uncounted(&error));
                        note.owed = own;
                    }
                }
            }
            TpmPresence::Away(_) | TpmPresence::Unbound => match counted {
                Some(counted) if !is_changed && tpms.contains(&counted.tpm) => {
                    note.counted = Some(counted);
                }
                counted => due.extend(counted.map(PendingTpmCount::from)),
            },
        }
        for one in due {
            if tpms.contains(&one.tpm) {
                note.owed.push(one);
            } else if let Err(error) = retire(&one.tpm) {
                self.log.error(format_args!(
                    "TPM {} did not count that its last slot was removed; the next start tries again: {error}",
                    short(&one.tpm)
                ));
                note.owed.push(one);
            }
        }
        note.bound();
        match self.write_note_and_memo(&note, former) {
            Ok(()) => {
                let counted = begun.map_or(Ok(()), VaultCounter::advance);
                problems.extend(counted.err().map(|error| missed(&error)));
            }
            Err(problem) => problems.push(problem),
        }
        problems.extend(owing(&note));
        problems
    }

    /// TPMs that did not count the erasure of the disk before this one: no note names them yet.
    fn of_erased(&self) -> Vec<PendingTpmCount> {
        let tpms = data::counted_by(self.device).into_iter();
        tpms.map(|tpm| PendingTpmCount { tpm, count: None })
            .collect()
    }

    /// Makes the note and the memo of the partition say the same. The memo never names fewer TPMs than the note.
    fn write_note_and_memo(
        &self,
        note: &GenerationNote,
        former: Option<&GenerationNote>,
    ) -> Result<(), MachineDiagnostic> {
        let memo = data::counted_by(self.device);
        let tpms = note.tpms();
        let mut both = tpms.clone();
        both.extend(memo.iter().filter(|one| !tpms.contains(one)).cloned());
        let set = |from: &[String], to: &[String]| {
            if from != to
                && let Err(error) = data::set_counted_by(self.device, to)
            {
                self.log.error(format_args!(
                    "{}: which TPMs count is not on the disk: {error}",
                    self.device.display()
                ));
            }
        };
        // The memo names both before the note changes. Whichever of the two a power cut leaves, the memo lacks
        // none.
        set(&memo, &both);
        if former != Some(note)
            && let Err(error) = note::write(self.state_dir, note)
        {
            let path = note::path(self.state_dir);
            let text = format!(
                "a change of the vault is not counted, since it cannot be noted: {}: {error}",
                path.display()
            );
            return Err(problem("vault-uncounted", text, HINT_NOTE));
        }
        set(&both, &tpms);
        Ok(())
    }
}

/// The storage keys of the TPMs that a vault has slots of, each once.
pub(crate) fn tpms_of(alkv: &Alkv) -> Vec<String> {
    let mut tpms = Vec::new();
    for slot in alkv.slots() {
        if let SlotParams::Tpm2(params) = slot.params()
            && let Ok(key) = StorageKey::from_params(params)
        {
            let key = key.to_string();
            if !tpms.contains(&key) {
                tpms.push(key);
            }
        }
    }
    tpms
}

/// The relation of this machine's TPM to a vault.
enum TpmPresence {
    /// The vault has slots of TPMs, and this machine has none of these now, for this reason.
    Away(TpmError),
    /// The vault has a slot of this machine's TPM, which counts.
    Here(VaultCounter),
    /// No slot of the vault is of a TPM.
    Unbound,
}

impl TpmPresence {
    /// Probes the TPM for a vault with slots of these TPMs.
    fn probe(tpms: &[String]) -> Result<Self, TpmError> {
        if tpms.is_empty() {
            return Ok(Self::Unbound);
        }
        let (tpm, key) = match chip() {
            Ok(found) => found,
            Err(error) if is_absent(&error) => return Ok(Self::Away(error)),
            Err(error) => return Err(error),
        };
        if !tpms.contains(&key.to_string()) {
            return Ok(Self::Away(TpmError::OtherTpm));
        }
        // Whatever answers from here on has that key.
        let mut tpm = tpm.require(key);
        let index = match tpm.counter() {
            Ok(Some(count)) => TpmCounterIndex::Count(count),
            Ok(None) => TpmCounterIndex::Absent,
            // This must not end the check: an attacker can put it there.
            Err(TpmError::CounterForeign(_)) => TpmCounterIndex::Foreign,
            Err(error) => return Err(error),
        };
        Ok(Self::Here(VaultCounter { tpm, key, index }))
    }

    /// Refuses a TPM that opened the vault and is away after that: an attacker on its wires can answer so in order to
    /// keep the counter from being compared.
    fn unless_it_opened(self, open: &OpenAlkv) -> Result<Self, TpmError> {
        let is_by_tpm = || opening_slot(open).is_some_and(|by| by.kind == SlotType::Tpm2);
        match self {
            Self::Away(error) if is_by_tpm() => Err(error),
            found => Ok(found),
        }
    }

    /// Why a vault has its first boot behind it although it permits what that does: it is an older copy. `first` is
    /// what the TPM had counted when the vault was made. A first boot that was cut short may have counted
    /// `rises_max` times.
    fn is_past(&self, first: Option<FirstCount>, rises_max: u64) -> Option<&'static str> {
        let first = first?;
        match self {
            Self::Here(counter) if counter.key.to_string() == HEXLOWER.encode(&first.tpm) => {
                is_past(first.count, counter.index, rises_max)
            }
            Self::Away(_) | Self::Here(_) | Self::Unbound => Some(ELSEWHERE),
        }
    }
}

/// Why the vault is an older copy if that TPM is in the machine, by the content of its counter's handle.
fn is_past(first: u64, index: TpmCounterIndex, rises_max: u64) -> Option<&'static str> {
    match index {
        TpmCounterIndex::Count(count)
            if count
                .checked_sub(first)
                .is_some_and(|rises| rises <= rises_max) =>
        {
            None
        }
        TpmCounterIndex::Absent | TpmCounterIndex::Count(_) => Some(PAST),
        TpmCounterIndex::Foreign => Some(FOREIGN),
    }
}

/// The counter of this machine's TPM, for a vault that has a slot of it.
struct VaultCounter {
    tpm: Tpm<File>,
    key: StorageKey,
    index: TpmCounterIndex,
}

impl VaultCounter {
    /// Why a disk with this note is an older one.
    fn is_old(&mut self, noted: Option<&GenerationNote>) -> Result<Option<&'static str>, TpmError> {
        let noted = noted.and_then(|noted| noted.count_of(&self.key.to_string()));
        match NoteFit::compare(noted, self.index) {
            NoteFit::Same => Ok(None),
            NoteFit::Behind => {
                self.advance()?;
                Ok(None)
            }
            NoteFit::Old => Ok(Some(
                "the disk is older than the last change that the TPM counted",
            )),
            NoteFit::Unknown => Ok(Some(FOREIGN)),
        }
    }

    /// The coming value of the counter. The counter rises at once if it was not noted: a copy of a disk that was
    /// erased may be one ahead.
    fn begin(&mut self, owed: &[PendingTpmCount]) -> Result<TpmCount, TpmError> {
        let count = match self.index {
            TpmCounterIndex::Count(_) if owed.iter().any(|one| one.count.is_none()) => {
                self.tpm.advance_counter()?
            }
            TpmCounterIndex::Count(count) => count,
            TpmCounterIndex::Absent | TpmCounterIndex::Foreign => self.tpm.make_counter()?,
        };
        self.index = TpmCounterIndex::Count(count);
        Ok(TpmCount {
            tpm: self.key.to_string(),
            count: count + 1,
        })
    }

    fn advance(&mut self) -> Result<(), TpmError> {
        self.index = TpmCounterIndex::Count(self.tpm.advance_counter()?);
        Ok(())
    }
}

/// How far this machine's TPM has counted, for a vault that is about to be made. `None` if the TPM does not say it
/// or takes no counter, which PID 1 reports once the vault is on the disk. Then nothing shows an early copy of that
/// vault.
pub(crate) fn first_count() -> Option<FirstCount> {
    let counted = chip().and_then(|(tpm, key)| {
        // A missing counter is made now, because the value that it begins with cannot be known otherwise.
        let count = tpm.require(key).make_counter()?;
        Ok((key.to_string(), count))
    });
    let (key, count) = counted
        .inspect_err(|error| tracing::debug!(%error, "no count of the TPM for the new vault"))
        .ok()?;
    let tpm = HEXLOWER.decode(key.as_bytes()).ok()?;
    let tpm = tpm.try_into().ok()?;
    Some(FirstCount { tpm, count })
}

/// Checks whether a vault that permits its first boot, on a partition without a header, has that behind it. PID 1
/// writes the header before the TPM counts anything of the vault.
///
/// # Errors
/// The vault is an older copy, or the TPM does not say whether it is, and nothing proves that its owner wants it. The
/// error says what would prove that.
pub(crate) fn check_first_boot(
    open: &OpenAlkv,
    log: &InitLog,
    proof: impl Fn() -> bool,
) -> Result<(), VaultWait> {
    let Some(first) = open.first_count() else {
        return Ok(());
    };
    let why = match TpmPresence::probe(&tpms_of(open.alkv())) {
        Ok(presence) => presence.is_past(Some(first), 0),
        Err(_) if proof() => None,
        Err(error) => return Err(unknown(open, &error)),
    };
    let Some(why) = why else { return Ok(()) };
    if !proof() {
        return Err(old(open, why));
    }
    log.warn(format_args!(
        "{why}; this copy counts from now on, as its owner wants it"
    ));
    Ok(())
}

/// What to do if a TPM counts late.
const HINT_LATER: &str = "restart this machine with that TPM switched on; until it has counted, a copy of the disk from \
                          before opens by it. If it is gone for good, destroy such copies, and 'tpm forget' at the \
                          console (v) ends this";
/// What to do if the note is not written.
const HINT_NOTE: &str =
    "look for what keeps the data disk from being written, and restart this machine";

/// The problem of a TPM that takes no counter: each later start asks for the owner.
fn uncounted(error: &TpmError) -> MachineDiagnostic {
    let hint = match error {
        TpmError::CounterForeign(_) => {
            "remove what is in the place of the counter (tpm2_nvundefine 0x180414c); until then each start asks for \
             what only the owner has"
        }
        _ => "until the TPM takes a counter each start asks for what only the owner has",
    };
    let text = format!("the TPM counts no changes of the vault: {error}");
    problem("vault-uncounted", text, hint)
}

/// The problem of a TPM that is there and did not count a noted change.
fn missed(error: &TpmError) -> MachineDiagnostic {
    let text = format!("the TPM did not count a change of the vault: {error}");
    problem("vault-uncounted", text, HINT_LATER)
}

/// The problems of TPMs that have not counted.
fn owing(note: &GenerationNote) -> Vec<MachineDiagnostic> {
    let of = |owed: &PendingTpmCount| {
        let tpm = short(&owed.tpm);
        match owed.count {
            Some(_) => problem(
                "vault-uncounted",
                format!("the TPM with storage key {tpm}… has not counted the vault's last change"),
                HINT_LATER,
            ),
            None => data::reset_uncounted(&format!("the TPM with storage key {tpm}… has yet to")),
        }
    };
    note.owed.iter().map(of).collect()
}

/// Enough of a storage key to tell it from others.
fn short(tpm: &str) -> &str {
    tpm.get(..16).unwrap_or(tpm)
}

fn problem(code: &str, text: String, hint: &str) -> MachineDiagnostic {
    MachineDiagnostic {
        code: code.to_owned(),
        text,
        hint: hint.to_owned(),
    }
}

#[cfg(test)]
mod tests;
