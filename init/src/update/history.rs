//! The log of updates: a bounded file on the data partition, one record a line.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::control::{UpdateOutcome, UpdateRecord};
use crate::text::cut_text;

/// Name of the file in the folder of updates.
const FILE: &str = "log.jsonl";
/// The node may read it, and nothing in it is secret.
const MODE: u32 = 0o644;
/// The event of a start.
pub(super) const STARTED: &str = "applied";
/// The event of a version that was written to a slot.
pub(super) const STAGED: &str = "staged";
/// The event of a staged version whose release was noted once more, with a higher floor or because the note was lost. It is
/// no event of [`STAGED`], of which the last one names the caller whose version waits.
pub(super) const NOTED: &str = "noted";
/// The event of a refusal.
pub(super) const REFUSED: &str = "refused";
/// The event of a planned start that does not happen, because another program was staged, or the same with a higher floor.
pub(super) const UNSCHEDULED: &str = "unscheduled";
/// Most records of each event. Callers cause most events at will, so no event takes the room of another one.
const SHARES: [(&str, usize); 8] = [
    ("confirmed", 48),
    ("failed", 32),
    (NOTED, 8),
    ("rolled-back", 32),
    (REFUSED, REFUSALS_MAX),
    (STAGED, 48),
    (STARTED, 32),
    (UNSCHEDULED, 16),
];
/// Most records of refusals, each of which is long.
const REFUSALS_MAX: usize = 32;
/// Most records of all other events together, which another version may have written.
const OTHERS_MAX: usize = 8;
/// Most records: the shares together.
pub(super) const RECORDS_MAX: usize = 256;
/// Most bytes of a reason and of a name.
pub(super) const TEXT_BYTES_MAX: usize = 1 << 10;
/// Most bytes of records in one message to the node: a quarter of the longest one.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Most bytes of the file that are read: more than all records can have.
const BYTES_MAX: u64 = 4 << 20;

/// Held while a record is added: the node reports the end of a planned start beside other work, and of two that read the
/// file at once, one would lose its record.
static WRITING: Mutex<()> = Mutex::new(());

/// The events that end a trial.
pub(super) const ENDS: [&str; 3] = ["confirmed", "failed", "rolled-back"];

/// A record with what PID 1 itself needs to know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct LoggedUpdate {
    #[serde(flatten)]
    record: UpdateRecord,
    /// The number of transitions of the boot state record when this happened: a trial that ended is logged once, however
    /// often the machine starts afterwards.
    #[serde(default)]
    seq: u64,
}

/// Adds a record to the log in `folder`.
pub(super) fn append(folder: &Path, mut record: UpdateRecord, seq: u64) -> io::Result<()> {
    for text in [&mut record.reason, &mut record.by, &mut record.version] {
        cut_text(text, TEXT_BYTES_MAX);
    }
    if record.time.is_none() {
        record.time = clock::rfc3339_now();
    }
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut all = read_all(folder);
    // A damaged file may have any number, and the shares are kept one record at a time.
    all.drain(..all.len().saturating_sub(RECORDS_MAX));
    all.push(LoggedUpdate { record, seq });
    keep_shares(&mut all);
    let mut bytes = Vec::new();
    for record in &all {
        serde_json::to_writer(&mut bytes, record)?;
        bytes.push(b'\n');
    }
    alknet_durable::replace(&folder.join(FILE), &bytes, MODE)
}

/// The share that an event takes its room from.
fn share_of(event: &str) -> usize {
    let share = SHARES.iter().position(|(name, _)| *name == event);
    share.unwrap_or(SHARES.len())
}

/// Most records of a share.
fn records_max(share: usize) -> usize {
    SHARES.get(share).map_or(OTHERS_MAX, |(_, room)| *room)
}

/// Removes what exceeds each event's share. The oldest record of the caller with the most records of the event gives way,
/// so a caller pushes out its own records before those of others.
fn keep_shares(all: &mut Vec<LoggedUpdate>) {
    for share in 0..=SHARES.len() {
        while let Some(at) = surplus(all, share) {
            all.remove(at);
        }
    }
}

/// The record of a share that gives way. `None` if the share has room.
fn surplus(all: &[LoggedUpdate], share: usize) -> Option<usize> {
    let records = all.iter().map(|logged| &logged.record).enumerate();
    let records = records.filter(|(_, record)| share_of(&record.event) == share);
    let records: Vec<(usize, &str)> = records.map(|(at, record)| (at, &*record.by)).collect();
    if records.len() <= records_max(share) {
        return None;
    }
    let mut callers: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, by) in &records {
        *callers.entry(by).or_default() += 1;
    }
    let most = callers.values().copied().max();
    let oldest = records
        .iter()
        .find(|(_, by)| callers.get(by).copied() == most);
    oldest.map(|(at, _)| *at)
}

/// Whether the log says already that the caller of this record has staged the version that waits. A caller that may not
/// start versions does not take the version of another one over by staging it again.
pub(super) fn has_staging(folder: &Path, staging: &UpdateRecord) -> bool {
    last_staging(folder).is_some_and(|last| {
        let is_same = last.by == staging.by && last.limited == staging.limited;
        last.version == staging.version && (is_same || (staging.limited && !last.limited))
    })
}

/// The last version that was staged.
pub(super) fn last_staging(folder: &Path) -> Option<UpdateRecord> {
    let mut all = read_all(folder).into_iter().map(|logged| logged.record);
    all.rfind(|record| record.event == STAGED)
}

/// The newest records that fit into a message, the oldest first.
pub(super) fn read(folder: &Path) -> Vec<UpdateRecord> {
    let mut left = MESSAGE_BYTES_MAX;
    let all = read_all(folder).into_iter().rev();
    let newest = all.map_while(|logged| {
        let bytes = serde_json::to_vec(&logged.record).ok()?.len();
        left = left.checked_sub(bytes)?;
        Some(logged.record)
    });
    let mut newest: Vec<_> = newest.collect();
    newest.reverse();
    newest
}

/// The last end of an update in the log.
pub(super) fn last_end(folder: &Path) -> Option<UpdateOutcome> {
    let is_end = |record: &UpdateRecord| ENDS.contains(&record.event.as_str());
    // Not among those that fit into a message: refusals could take its room.
    let all = read_all(folder).into_iter().map(|logged| logged.record);
    let last = all.rev().find(is_end)?;
    Some(UpdateOutcome {
        version: last.version,
        outcome: last.event,
        reason: last.reason,
        ..UpdateOutcome::default()
    })
}

/// Whether the log has the end of the trial with this number.
pub(super) fn has_end(folder: &Path, seq: u64) -> bool {
    let mut all = read_all(folder).into_iter();
    all.any(|logged| logged.seq == seq && ENDS.contains(&logged.record.event.as_str()))
}

/// Lines that cannot be read are left out: a log must not keep a machine from updating.
fn read_all(folder: &Path) -> Vec<LoggedUpdate> {
    let path = folder.join(FILE);
    let is_short = fs::metadata(&path).is_ok_and(|about| about.len() <= BYTES_MAX);
    let text = is_short.then(|| fs::read(path).ok()).flatten();
    let text = text.unwrap_or_default();
    let lines = text.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(event: &str, version: &str) -> UpdateRecord {
        UpdateRecord {
            event: event.to_owned(),
            version: version.to_owned(),
            ..UpdateRecord::default()
        }
    }

    fn record_by(event: &str, version: &str, by: &str) -> UpdateRecord {
        UpdateRecord {
            by: by.to_owned(),
            ..record(event, version)
        }
    }

    #[test]
    fn the_newest_records_are_kept_and_the_oldest_come_first() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(read(dir.path()).is_empty());
        let share = records_max(share_of(STAGED));
        for number in 0..share + 3 {
            let record = record(STAGED, &number.to_string());
            append(dir.path(), record, number as u64).expect("writable");
        }
        let found = read(dir.path());
        assert_eq!(found.len(), share);
        assert_eq!(found[0].version, "3");
        assert_eq!(found[share - 1].version, (share + 2).to_string());
        assert!(!has_end(dir.path(), 10), "staging is no end");
    }

    #[test]
    fn the_shares_together_are_the_log() {
        let shares: usize = SHARES.iter().map(|(_, share)| share).sum();
        assert_eq!(shares + OTHERS_MAX, RECORDS_MAX);
        for event in ENDS
            .iter()
            .chain(&[NOTED, STAGED, STARTED, REFUSED, UNSCHEDULED])
        {
            assert!(share_of(event) < SHARES.len(), "{event}");
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join(FILE);
        fs::write(&path, "{}\n".repeat(100_000)).expect("writable");
        append(dir.path(), record(STAGED, "2.0.0"), 1).expect("writable");
        assert_eq!(read(dir.path()).len(), OTHERS_MAX + 1);
    }

    /// A client with `update:stage`, `update:apply` or `update:offer` repeats what it may do.
    #[test]
    fn no_event_that_a_caller_repeats_pushes_out_another_one() {
        let events = [
            STAGED,
            STARTED,
            REFUSED,
            NOTED,
            "rolled-back",
            "failed",
            "confirmed",
            UNSCHEDULED,
            "new",
        ];
        for flood in events {
            let dir = tempfile::tempdir().expect("a temporary directory");
            for event in events {
                append(dir.path(), record_by(event, "2.0.0", "admin"), 7).expect("writable");
            }
            for _ in 0..RECORDS_MAX + 10 {
                append(dir.path(), record_by(flood, "3.0.0", "client"), 0).expect("writable");
            }
            let found = read(dir.path());
            let of_admin: Vec<_> = found.iter().filter(|it| it.by == "admin").collect();
            let kept: Vec<_> = of_admin.iter().map(|it| it.event.as_str()).collect();
            assert_eq!(kept, events, "{flood}");
            assert_eq!(found.len(), events.len() - 1 + records_max(share_of(flood)));
            let last = found.last().expect("the flood");
            assert_eq!((&*last.event, &*last.by), (flood, "client"));
            assert!(has_end(dir.path(), 7));
        }
    }

    /// Refusals with long texts fill the message to the node.
    #[test]
    fn the_last_end_is_found_behind_refusals_of_any_length() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        append(dir.path(), record("confirmed", "2.0.0"), 7).expect("writable");
        for _ in 0..REFUSALS_MAX {
            let mut long = record(REFUSED, "");
            long.reason = "\u{1}".repeat(TEXT_BYTES_MAX);
            long.by = "\u{1}".repeat(TEXT_BYTES_MAX);
            append(dir.path(), long, 0).expect("writable");
        }
        assert!(read(dir.path()).iter().all(|it| it.event == REFUSED));
        let end = last_end(dir.path()).expect("it is in the log");
        assert_eq!((&*end.version, &*end.outcome), ("2.0.0", "confirmed"));
    }

    #[test]
    fn an_end_is_known_by_its_number_and_damage_is_left_out() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        append(dir.path(), record("failed", "2.0.0"), 7).expect("writable");
        let path = dir.path().join(FILE);
        let mut bytes = fs::read(&path).expect("written");
        bytes.extend_from_slice(b"{\"event\":\"fai\xff\n\n{}\n");
        fs::write(&path, bytes).expect("writable");
        append(dir.path(), record("staged", "2.0.1"), 8).expect("writable");
        assert!(has_end(dir.path(), 7));
        assert!(!has_end(dir.path(), 6) && !has_end(dir.path(), 8));
        let events: Vec<_> = read(dir.path()).into_iter().map(|it| it.event).collect();
        assert_eq!(events, ["failed", "", "staged"]);
    }

    #[test]
    fn the_newest_records_that_fit_into_a_message_are_read() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let share = records_max(share_of("confirmed"));
        for number in 0..share {
            let mut long = record("confirmed", &number.to_string());
            long.reason = "\u{1}".repeat(TEXT_BYTES_MAX);
            append(dir.path(), long, 0).expect("writable");
        }
        let found = read(dir.path());
        assert!((10..share).contains(&found.len()), "{}", found.len());
        assert_eq!(found[found.len() - 1].version, (share - 1).to_string());
        let bytes = serde_json::to_vec(&found).expect("JSON").len();
        assert!(bytes < MESSAGE_BYTES_MAX + RECORDS_MAX * 2, "{bytes}");
    }

    #[test]
    fn long_texts_are_cut() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut long = record("refused", "1.0.0");
        long.reason = "x".repeat(TEXT_BYTES_MAX * 2);
        append(dir.path(), long, 1).expect("writable");
        assert_eq!(read(dir.path())[0].reason.len(), TEXT_BYTES_MAX);
    }
}
