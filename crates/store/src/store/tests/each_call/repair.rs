//! A repair of the file of names whose disk fails.

use super::*;
use crate::db::{StoreRepairError, repair_store};

/// A closed store whose file of names is damaged, with a copy of the day and a change after it.
struct DamagedFiles {
    files: TestFiles,
    /// What a repair brings back.
    contents: FileContents,
}

impl DamagedFiles {
    fn new() -> Self {
        let FailingDisk {
            mut files,
            mut contents,
            ..
        } = FailingDisk::new();
        files.store().db().copy_daily().expect("room");
        for (at, len) in [("/later/short", 700), ("/later/long", 30_000)] {
            let bytes = content(3, len);
            files.put(at, &bytes);
            contents.insert(at.to_owned(), Some(bytes));
        }
        files.close();
        // The outbox can still be read, from which the last changes are taken.
        let names = files.root().join(NAMES);
        let mut bytes = fs::read(&names).expect("it is there");
        let page = damaged_page(&names);
        bytes[page].fill(0xa5);
        fs::write(&names, bytes).expect("room");
        Self { files, contents }
    }

    /// A copy of the folder.
    fn copy(&self) -> TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        copy_folder(&self.files.root(), &dir.path().join("fs"));
        dir
    }

    fn repair(&self, dir: &TempDir) -> Result<u64, StoreRepairError> {
        let options = StoreDbOptions {
            time: self.files.clock.clone(),
            space: self.files.space.clone(),
            ..StoreDbOptions::default()
        };
        let repaired = repair_store(&dir.path().join("fs").join(NAMES), &options)?;
        Ok(repaired.lost)
    }

    /// Everything is there again.
    fn check(&self, dir: TempDir, what: &str) {
        let repaired = self.files.opened_copy(dir);
        assert_eq!(shown(&repaired, what), self.contents, "{what}");
        repaired.check_usage();
    }
}

/// The root page of the index of versions by their commits, which a repair does not read.
fn damaged_page(names: &Path) -> std::ops::Range<usize> {
    let connection = rusqlite::Connection::open(names).expect("it is whole");
    let query = "SELECT rootpage FROM sqlite_schema WHERE name = 'entry_seq'";
    let page: i64 = connection
        .query_row(query, [], |row| row.get(0))
        .expect("an index");
    let size: i64 = connection
        .pragma_query_value(None, "page_size", |row| row.get(0))
        .expect("a size");
    let (page, size) = (usize::try_from(page), usize::try_from(size));
    let (page, size) = (page.expect("small"), size.expect("small"));
    (page - 1) * size..page * size
}

/// Whole files are copied, renamed and removed by calls that are not followed, so that a power cut at a call is not looked
/// at here. What the process leaves there is, and the same repair is made again.
#[test]
fn a_repair_whose_disk_fails_at_any_call_may_be_made_again() {
    let damaged = DamagedFiles::new();
    let mut is_over = false;
    let mut calls = 0;
    while !is_over {
        assert!(calls < CALLS_MAX);
        let dir = damaged.copy();
        let disk = SyncedFolder::follow_synced(&dir.path().join("fs"));
        let error = match calls % 2 {
            0 => DiskError::Failed,
            _ => DiskError::Full,
        };
        let copies = is_campaign() || calls % CRASHES_OF == 0;
        disk.fail_call(calls, error, copies);
        let made = damaged.repair(&dir);
        let failed = disk.end_faults();
        let what = format!("repair, call {calls}, {error:?}: {made:?}");
        println!("{what}");
        is_over = failed.is_none();
        assert!(!is_over || made.is_ok(), "{what}");
        if let Some(crashed) = failed.and_then(|failed| failed.crashed) {
            let what = format!("{what}, the process ended there");
            let again = damaged.repair(&crashed.of_process);
            assert_eq!(again.expect(&what), 0, "{what}");
            damaged.check(crashed.of_process, &what);
        }
        match made {
            // A disk that failed once must not cost a change of which the damaged file still had the event.
            Ok(lost) => assert_eq!(lost, 0, "{what}"),
            Err(error) => {
                assert!(is_of_the_disk(&error), "{what}");
                assert_eq!(damaged.repair(&dir).expect(&what), 0, "{what}");
            }
        }
        damaged.check(dir, &what);
        calls += 1;
    }
    println!("repair: {} calls", calls - 1);
    assert!(calls > 2, "a repair writes something");
}

/// Whether the error lets an administrator try again. A copy must not pass for damaged because the disk failed.
fn is_of_the_disk(error: &StoreRepairError) -> bool {
    match error {
        StoreRepairError::Open(StoreOpenError::Damaged { .. })
        | StoreRepairError::Store(StoreError::Damaged(_))
        | StoreRepairError::NoCopy { .. }
        | StoreRepairError::NotDamaged => false,
        StoreRepairError::Open(_) | StoreRepairError::Store(_) => true,
    }
}
