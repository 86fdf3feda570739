//! The starts of the last hour by callers that are no administrators, in a file of their own on the data partition: no
//! record of the log pushes them out.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::refusal::{RefusalCode, UpdateRefusal};
use crate::clock;
use crate::text::cut_text;

/// Versions that one caller starts within an hour. A person who tries a version and goes back has enough, and the machine
/// is not restarted more often by a caller that means it ill.
pub(super) const STARTS_PER_HOUR_MAX: usize = 6;
/// Versions that all these callers together start within an hour. A trial takes a minute at least, so no machine has more.
pub(super) const STARTS_OF_ALL_MAX: usize = 60;
/// Name of the file in the folder of updates.
const FILE: &str = "starts.json";
/// The node may read it, and nothing in it is secret.
const MODE: u32 = 0o644;
/// Most bytes of a caller's name.
const NAME_BYTES_MAX: usize = 1 << 10;
/// Most bytes of the file: more than all starts can have.
const BYTES_MAX: u64 = 1 << 20;
/// Seconds of an hour.
const HOUR_S: u64 = 3600;

/// A start by a caller that is no administrator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CountedStart {
    /// RFC 3339, UTC.
    time: String,
    by: String,
}

/// The starts of the last hour, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct CountedStarts {
    starts: Vec<CountedStart>,
}

impl CountedStarts {
    /// A damaged file says nothing: it must not keep a machine from updating.
    fn load(folder: &Path) -> Self {
        let path = folder.join(FILE);
        let is_short = fs::metadata(&path).is_ok_and(|about| about.len() <= BYTES_MAX);
        let bytes = is_short.then(|| fs::read(path).ok()).flatten();
        let known = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut known: Self = known.unwrap_or_default();
        let (since, now) = (clock::rfc3339_ago(HOUR_S), clock::rfc3339_now());
        // The texts have the same form, so their order is that of the times. A start after now is one before the clock
        // was set back, and would count until the clock is there again.
        known.starts.retain(|start| {
            since.as_ref().is_none_or(|since| start.time >= *since)
                && now.as_ref().is_none_or(|now| start.time <= *now)
        });
        known
    }
}

/// Refuses a further start by this caller, after so many in the last hour.
pub(super) fn check(folder: &Path, by: &str) -> Result<(), UpdateRefusal> {
    let mut by = by.to_owned();
    cut_text(&mut by, NAME_BYTES_MAX);
    let starts = CountedStarts::load(folder).starts;
    let own = starts.iter().filter(|start| start.by == by).count();
    if own >= STARTS_PER_HOUR_MAX {
        return Err(too_often(format_args!(
            "{by} started {STARTS_PER_HOUR_MAX} versions within an hour"
        )));
    }
    match starts.len() >= STARTS_OF_ALL_MAX {
        true => Err(too_often(format_args!(
            "{STARTS_OF_ALL_MAX} versions were started within an hour"
        ))),
        false => Ok(()),
    }
}

/// Counts a start by this caller. One without a time is not counted, because it would count for ever.
pub(super) fn count(folder: &Path, by: &str) -> io::Result<()> {
    let Some(time) = clock::rfc3339_now() else {
        return Ok(());
    };
    let mut by = by.to_owned();
    cut_text(&mut by, NAME_BYTES_MAX);
    let mut known = CountedStarts::load(folder);
    known.starts.push(CountedStart { time, by });
    let bytes = serde_json::to_vec(&known).map_err(io::Error::other)?;
    alknet_durable::replace(&folder.join(FILE), &bytes, MODE)
}

fn too_often(what: std::fmt::Arguments<'_>) -> UpdateRefusal {
    let text = format_args!("{what}; wait, or let an administrator start it");
    UpdateRefusal::new(RefusalCode::TooOften, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::UpdateRecord;
    use crate::update::history;

    /// The code of the refusal of a further start.
    fn refused(folder: &Path, by: &str) -> Option<RefusalCode> {
        check(folder, by).err().map(|refusal| refusal.code)
    }

    fn put(folder: &Path, starts: Vec<CountedStart>) {
        let bytes = serde_json::to_vec(&CountedStarts { starts }).expect("JSON");
        fs::write(folder.join(FILE), bytes).expect("writable");
    }

    /// A client with `update:apply` restarts the machine again and again.
    #[test]
    fn the_starts_of_one_caller_keep_no_other_one_from_starting() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for _ in 0..STARTS_PER_HOUR_MAX {
            assert_eq!(refused(dir.path(), "client"), None);
            count(dir.path(), "client").expect("writable");
        }
        assert_eq!(refused(dir.path(), "client"), Some(RefusalCode::TooOften));
        for other in ["hub", "the machine", "client 2"] {
            assert_eq!(refused(dir.path(), other), None, "{other}");
        }
    }

    /// A client that may stage as well fills the log with other records.
    #[test]
    fn no_record_of_the_log_makes_the_machine_forget_a_start() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for _ in 0..STARTS_PER_HOUR_MAX {
            count(dir.path(), "client").expect("writable");
        }
        for event in [history::STAGED, history::STARTED, "rolled-back", ""] {
            for _ in 0..history::RECORDS_MAX {
                let record = UpdateRecord {
                    event: event.to_owned(),
                    by: "client".to_owned(),
                    ..UpdateRecord::default()
                };
                history::append(dir.path(), record, 0).expect("writable");
            }
        }
        assert_eq!(refused(dir.path(), "client"), Some(RefusalCode::TooOften));
    }

    #[test]
    fn callers_together_have_a_limit_and_the_file_grows_no_further() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for number in 0..STARTS_OF_ALL_MAX {
            let by = format!("client {number}");
            assert_eq!(refused(dir.path(), &by), None);
            count(dir.path(), &by).expect("writable");
        }
        assert_eq!(refused(dir.path(), "another"), Some(RefusalCode::TooOften));
        let bytes = fs::metadata(dir.path().join(FILE)).expect("written").len();
        assert!(bytes < BYTES_MAX / 16, "{bytes}");
    }

    #[test]
    fn starts_of_the_last_hour_are_counted_and_no_other_ones() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let start = |ago_s| CountedStart {
            time: clock::rfc3339_ago(ago_s).expect("the clock is set"),
            by: "client".to_owned(),
        };
        let far = CountedStart {
            time: "2999-01-01T00:00:00.000Z".to_owned(),
            by: "client".to_owned(),
        };
        let mut starts = vec![start(HOUR_S + 60), far];
        starts.extend((1..STARTS_PER_HOUR_MAX as u64).map(|n| start(HOUR_S - 60 * n)));
        put(dir.path(), starts.clone());
        assert_eq!(refused(dir.path(), "client"), None);
        starts.push(start(1));
        put(dir.path(), starts);
        assert_eq!(refused(dir.path(), "client"), Some(RefusalCode::TooOften));
        count(dir.path(), "client").expect("writable");
        let kept = CountedStarts::load(dir.path()).starts.len();
        assert_eq!(kept, STARTS_PER_HOUR_MAX + 1, "the others are gone");
        fs::write(dir.path().join(FILE), "no JSON").expect("writable");
        assert_eq!(refused(dir.path(), "client"), None);
    }
}
