//! Daily copies of the file of names, which lie beside it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::readers::ReadWatch;
use super::{StoreDb, open, quarantine, to_sql};
use crate::error::StoreError;
use crate::limits::COPIES_KEPT;

/// Between the name of the file and the day of a copy.
const COPY: &str = ".copy-";

/// Suffix of a copy that is being written.
const COPY_NEW: &str = ".copy-new";

/// Milliseconds of a day.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A copy of the file of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreCopy {
    /// Where it lies.
    pub path: PathBuf,
    /// The day that it was made on, in UTC, as `2027-01-15`.
    pub day: String,
}

/// What became of a daily copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyOutcome {
    /// It was made, and read back whole.
    Made(StoreCopy),
    /// The day has one.
    Kept(StoreCopy),
}

/// The copies of the file of names at `path`, the newest first. The file itself may be gone.
///
/// # Errors
/// The folder cannot be read.
pub fn store_copies(path: &Path) -> io::Result<Vec<StoreCopy>> {
    let begin = quarantine::with(path, COPY);
    let Some(begin) = begin.file_name().and_then(|name| name.to_str()) else {
        return Ok(Vec::new());
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut copies = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let day = name.to_str().and_then(|name| name.strip_prefix(begin));
        // A copy that is being written has no day, and its journal has more than one.
        if let Some(day) = day.filter(|day| is_day(day)) {
            copies.push(StoreCopy {
                path: entry.path(),
                day: day.to_owned(),
            });
        }
    }
    copies.sort_by(|a, b| b.day.cmp(&a.day));
    Ok(copies)
}

/// Whether a text has the form of a day.
fn is_day(text: &str) -> bool {
    let is_right = |(at, byte): (usize, u8)| match at {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    };
    text.len() == 10 && text.bytes().enumerate().all(is_right)
}

/// The day of a time in UTC, by the Gregorian calendar.
fn day_of(unix_ms: u64) -> String {
    // Days are counted from 0000-03-01, so that a leap day is the last one of its year.
    let days = unix_ms / DAY_MS + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    // January and February belong to the year that began in March before them.
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Removes a file, which may be missing.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns when the content of a file is on the disk.
pub(super) fn sync_file(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a copy under a name of its own, checks it, and gives it its name then.
fn write_copy(path: &Path, target: &Path, watch: &ReadWatch) -> Result<(), StoreError> {
    let new = quarantine::with(path, COPY_NEW);
    // What a power cut left: SQLite refuses to write over a file with content.
    remove_if_there(&new)?;
    remove_if_there(&quarantine::with(&new, "-journal"))?;
    // With the mode of a private file. SQLite would take that of the umask.
    alknet_durable::private(&new)?;
    let written = vacuum_into(path, &new, watch);
    let checked = written.and_then(|()| open::check_whole(&new).map_err(StoreError::Damaged));
    if checked.is_err() {
        // A bad copy takes room, and must not pass for a good one.
        fs::remove_file(&new).ok();
    }
    checked?;
    sync_file(&new)?;
    fs::rename(&new, target)?;
    Ok(alknet_durable::sync_folder(
        target.parent().unwrap_or(target),
    )?)
}

/// Copies what one read transaction sees, without free pages.
fn vacuum_into(path: &Path, new: &Path, watch: &ReadWatch) -> Result<(), StoreError> {
    let not_text = || StoreError::FileSystem("the path of the store is no UTF-8".to_owned());
    let text = new.to_str().ok_or_else(not_text)?;
    // A connection of its own: one of the pool would be missing to readers for all that time, and
    // would end the copy at the limit of a read.
    let connection = open::open_copier(path)?;
    watch.run_copy(&connection, || connection.execute("VACUUM INTO ?1", [text]))?;
    Ok(())
}

impl StoreDb {
    /// Copies the file of names once a day, and keeps the newest copies, [`COPIES_KEPT`] of them. An older one goes only
    /// after the new one was read back whole. Blocks for as long as it takes to read and write the file. Writers go on
    /// meanwhile, and the log grows; when it has [`LOG_BYTES_MAX`](crate::limits::LOG_BYTES_MAX) bytes, the copy is given up.
    ///
    /// # Errors
    /// [`StoreError::TimedOut`] if the copy was given up for the log: the caller tries again when fewer writes come.
    /// [`StoreError::NoSpace`] if the copy would reach into the reserve; [`StoreError::Damaged`] if the file of names or
    /// the copy is damaged. Earlier copies stay then.
    pub fn copy_daily(&self) -> Result<CopyOutcome, StoreError> {
        // Two copies at once would write one file. The second caller finds the copy of the first.
        let _turn = self
            .inner
            .copying
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let path = &self.inner.path;
        let day = day_of(self.inner.time.unix_ms());
        let before = store_copies(path)?;
        if let Some(copy) = before.iter().find(|copy| copy.day == day) {
            return Ok(CopyOutcome::Kept(copy.clone()));
        }
        // The copies of before are the better ones, also where a damaged page only makes reads find less.
        self.check_pages_in_turn()?;
        let bytes = fs::metadata(path)?.len();
        self.check_space(bytes)?;
        let made = StoreCopy {
            path: quarantine::with(path, &format!("{COPY}{day}")),
            day,
        };
        let readers = self.inner.readers.as_ref().ok_or(StoreError::Closed)?;
        write_copy(path, &made.path, readers.watch())?;
        // The new one is never among those that go, also where a wrong clock made copies of days to
        // come.
        for old in before.iter().skip(COPIES_KEPT - 1) {
            remove_if_there(&old.path)?;
        }
        Ok(CopyOutcome::Made(made))
    }

    /// Whether there is no copy of today or one of this many days before, although the store had a bucket by then. A copy of
    /// a day that is still to come does not count: the clock was wrong when it was made. Blocks.
    ///
    /// # Errors
    /// The folder cannot be read, or the database refuses the query.
    pub fn lacks_copy(&self, days: u64) -> Result<bool, StoreError> {
        let now_ms = self.inner.time.unix_ms();
        let first_ms = now_ms.saturating_sub(days.saturating_mul(DAY_MS));
        let (first, today) = (day_of(first_ms), day_of(now_ms));
        if self
            .copies()?
            .iter()
            .any(|copy| (&*first..=&*today).contains(&&*copy.day))
        {
            return Ok(false);
        }
        let older = "SELECT EXISTS (SELECT 1 FROM bucket WHERE created_ms < ?1)";
        let first_ms = to_sql(first_ms);
        let older = self.read(move |tx| tx.query_count(older, [first_ms]));
        Ok(older.wait()? > 0)
    }

    /// Looks at every page of the file, as a start does after one that did not end in order. Some damage is no error of a
    /// read, which finds less than there is. Blocks for as long as it takes to read the file.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], also if an earlier read has found that, and the next start sets the file aside.
    /// [`StoreError::TimedOut`] if the log got too long meanwhile.
    pub(crate) fn check_pages(&self) -> Result<(), StoreError> {
        let copying = self.inner.copying.lock();
        let _turn = copying.unwrap_or_else(PoisonError::into_inner);
        self.check_pages_in_turn()
    }

    /// The same while no copy is made.
    fn check_pages_in_turn(&self) -> Result<(), StoreError> {
        if self.is_damaged() {
            return Err(StoreError::Damaged("a page of the file".to_owned()));
        }
        let readers = self.inner.readers.as_ref().ok_or(StoreError::Closed)?;
        // Of its own, and without the limit of a read, as for a copy.
        let connection = open::open_copier(&self.inner.path)?;
        let checked = readers
            .watch()
            .run_copy(&connection, || open::check_pages(&connection));
        let checked = checked
            .map_err(StoreError::from)
            .and_then(|said| match &*said {
                "ok" => Ok(()),
                _ => Err(StoreError::Damaged(said)),
            });
        if let Err(StoreError::Damaged(reason)) = &checked {
            tracing::error!(%reason, "the file of names is damaged");
            self.inner.is_damaged.store(true, Ordering::Relaxed);
        }
        checked
    }

    /// The copies, the newest first.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn copies(&self) -> Result<Vec<StoreCopy>, StoreError> {
        Ok(store_copies(&self.inner.path)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;
    use crate::testing::ScratchStore;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn days(store: &ScratchStore) -> Vec<String> {
        let copies = store.db().copies().expect("a folder");
        copies.into_iter().map(|copy| copy.day).collect()
    }

    #[test]
    fn days_follow_the_calendar() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (789, "1972-02-29"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_833, "2027-01-15"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(day_of(days * DAY_MS), expected);
            assert_eq!(day_of(days * DAY_MS + DAY_MS - 1), expected);
        }
    }

    #[test]
    fn a_copy_is_whole_private_and_made_once_a_day() {
        let store = ScratchStore::new();
        let made = match store.db().copy_daily().expect("room") {
            CopyOutcome::Made(copy) => copy,
            CopyOutcome::Kept(copy) => panic!("{copy:?}"),
        };
        assert_eq!(made.day, "2027-01-15");
        assert_eq!(open::check_whole(&made.path), Ok(()));
        let mode = fs::metadata(&made.path)
            .expect("a file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = store.db().copy_daily();
        assert_eq!(again, Ok(CopyOutcome::Kept(made)));
        assert!(!quarantine::with(&store.path, COPY_NEW).exists());
    }

    /// The chores of a node and an administrator ask at the same time.
    #[test]
    fn one_of_many_callers_at_once_makes_the_copy() {
        let store = ScratchStore::new();
        for _ in 0..5 {
            let results = std::thread::scope(|scope| {
                let copying = [(); 8].map(|()| scope.spawn(|| store.db().copy_daily()));
                copying.map(|it| it.join().expect("no panic").expect("room"))
            });
            let made = results.iter();
            let made = made.filter(|it| matches!(it, CopyOutcome::Made(_)));
            assert_eq!(made.count(), 1);
            store.time.advance(DAY);
        }
        assert_eq!(days(&store).len(), COPIES_KEPT);
    }

    #[test]
    fn three_copies_are_kept() {
        let store = ScratchStore::new();
        for _ in 0..5 {
            store.db().copy_daily().expect("room");
            store.time.advance(DAY);
        }
        assert_eq!(days(&store), ["2027-01-19", "2027-01-18", "2027-01-17"]);
    }

    #[test]
    fn a_store_lacks_a_copy_after_days_without_one() {
        let store = ScratchStore::new();
        let lacks = || store.db().lacks_copy(2).expect("readable");
        store.time.advance(5 * DAY);
        assert!(!lacks(), "there is nothing to copy");
        let new = crate::names::NewBucket::new("docs".parse().expect("a name"), "alice");
        store.write(move |tx| tx.create_bucket(&new)).expect("free");
        let after = |days: u32| {
            store.time.advance(days * DAY);
            lacks()
        };
        assert_eq!([after(0), after(2), after(1)], [false, false, true]);
        store.db().copy_daily().expect("room");
        assert_eq!([after(0), after(2), after(1)], [false, false, true]);
        // A copy of a clock that was ahead says nothing of these days.
        let ahead = quarantine::with(&store.path, &format!("{COPY}2099-01-01"));
        fs::write(ahead, b"").expect("room");
        assert!(lacks());
    }

    #[test]
    fn an_older_copy_stays_when_the_new_one_fails() {
        let store = ScratchStore::new();
        for _ in 0..3 {
            store.db().copy_daily().expect("room");
            store.time.advance(DAY);
        }
        let before = days(&store);
        store.space.set_free(60 << 20);
        assert_eq!(store.db().copy_daily(), Err(StoreError::NoSpace));
        store.space.set_free(1 << 30);
        // A page of the file proves damaged.
        let damaged = StoreError::Damaged("a page".to_owned());
        let failed = store.write(move |_| Err::<(), _>(damaged.clone()));
        assert!(failed.is_err());
        assert!(matches!(
            store.db().copy_daily(),
            Err(StoreError::Damaged(_))
        ));
        assert_eq!(days(&store), before);
    }

    #[test]
    fn what_a_power_cut_left_of_a_copy_is_no_copy_and_is_replaced() {
        let store = ScratchStore::new();
        let left = quarantine::with(&store.path, COPY_NEW);
        fs::write(&left, b"half of a copy").expect("room");
        fs::write(quarantine::with(&left, "-journal"), b"a journal").expect("room");
        assert!(days(&store).is_empty());
        store.db().copy_daily().expect("room");
        assert_eq!(days(&store), ["2027-01-15"]);
        assert!(!left.exists());
    }
}
