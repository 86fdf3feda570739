//! The log of updates: a bounded file on the data partition, one record a line.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::control::{UpdateEnd, UpdateRecord};
use crate::text::cut_text;

/// Name of the file in the folder of updates.
const FILE: &str = "log.jsonl";
/// The node may read it, and nothing in it is secret.
const MODE: u32 = 0o644;
/// Most records. The oldest give way.
pub(super) const RECORDS_MAX: usize = 256;
/// Most records of refusals among them, because each caller that may send bundles causes them at will.
pub(super) const REFUSALS_MAX: usize = 32;
/// The event of a start.
pub(super) const STARTED: &str = "applied";
/// Seconds of an hour.
const HOUR_S: u64 = 3600;
/// The event of a refusal.
const REFUSED: &str = "refused";
/// Most bytes of a reason and of a name.
pub(super) const TEXT_BYTES_MAX: usize = 1 << 10;
/// Most bytes of records in one message to the node: a quarter of the longest one.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Most bytes of the file that are read: more than all records can have.
const BYTES_MAX: u64 = 4 << 20;

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
    let mut all = read_all(folder);
    all.push(LoggedUpdate { record, seq });
    let is_refusal = |logged: &LoggedUpdate| logged.record.event == REFUSED;
    let refusals = all.iter().filter(|logged| is_refusal(logged)).count();
    let mut surplus = refusals.saturating_sub(REFUSALS_MAX);
    all.retain(|logged| {
        let goes = surplus > 0 && is_refusal(logged);
        surplus -= usize::from(goes);
        !goes
    });
    let first = all.len().saturating_sub(RECORDS_MAX);
    let mut bytes = Vec::new();
    for record in &all[first..] {
        serde_json::to_writer(&mut bytes, record)?;
        bytes.push(b'\n');
    }
    alknet_durable::replace(&folder.join(FILE), &bytes, MODE)
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
pub(super) fn last_end(folder: &Path) -> Option<UpdateEnd> {
    let is_end = |record: &UpdateRecord| ENDS.contains(&record.event.as_str());
    let last = read(folder).into_iter().rev().find(is_end)?;
    Some(UpdateEnd {
        version: last.version,
        outcome: last.event,
        reason: last.reason,
        ..UpdateEnd::default()
    })
}

/// How many versions were started in the last hour, as far as the clock was set.
pub(super) fn starts_of_last_hour(folder: &Path) -> usize {
    let since = clock::rfc3339_ago(HOUR_S);
    let is_start = |logged: &LoggedUpdate| {
        let record = &logged.record;
        // Both texts have the same form, so their order is that of the times.
        record.event == STARTED && record.time.is_some() && record.time >= since
    };
    let all = read_all(folder);
    all.iter().filter(|logged| is_start(logged)).count()
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

    /// A caller that starts versions again and again.
    #[test]
    fn starts_of_the_last_hour_are_counted() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(starts_of_last_hour(dir.path()), 0);
        let mut long_ago = record(STARTED, "1.0.0");
        long_ago.time = clock::rfc3339_ago(HOUR_S + 60);
        append(dir.path(), long_ago, 1).expect("written");
        append(dir.path(), record("staged", "1.1.0"), 2).expect("written");
        for seq in 3..6 {
            append(dir.path(), record(STARTED, "1.1.0"), seq).expect("written");
        }
        assert_eq!(starts_of_last_hour(dir.path()), 3);
    }

    #[test]
    fn the_newest_records_are_kept_and_the_oldest_come_first() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(read(dir.path()).is_empty());
        for number in 0..RECORDS_MAX + 3 {
            let record = record("staged", &number.to_string());
            append(dir.path(), record, number as u64).expect("writable");
        }
        let found = read(dir.path());
        assert_eq!(found.len(), RECORDS_MAX);
        assert_eq!(found[0].version, "3");
        assert_eq!(
            found[RECORDS_MAX - 1].version,
            (RECORDS_MAX + 2).to_string()
        );
        assert!(!has_end(dir.path(), 100), "staging is no end");
    }

    #[test]
    fn refusals_do_not_push_out_how_an_update_ended() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        append(dir.path(), record("confirmed", "2.0.0"), 7).expect("writable");
        for number in 0..300 {
            let refusal = record(REFUSED, &number.to_string());
            append(dir.path(), refusal, 0).expect("writable");
        }
        let found = read(dir.path());
        assert_eq!(found.len(), REFUSALS_MAX + 1);
        assert_eq!(found[0].event, "confirmed");
        assert_eq!(found[1].version, (300 - REFUSALS_MAX).to_string());
        assert!(has_end(dir.path(), 7));
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
        for number in 0..RECORDS_MAX {
            let mut long = record("failed", &number.to_string());
            long.reason = "\u{1}".repeat(TEXT_BYTES_MAX);
            append(dir.path(), long, 0).expect("writable");
        }
        let found = read(dir.path());
        assert!((10..RECORDS_MAX).contains(&found.len()), "{}", found.len());
        assert_eq!(
            found[found.len() - 1].version,
            (RECORDS_MAX - 1).to_string()
        );
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
