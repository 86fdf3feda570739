//! The file of names and its log, torn at any byte.

use alknet_test_support::is_campaign;

use super::*;
use crate::testing::TestRandom;

/// Files that the copy has, and as many that came after it.
const FILES: u8 = 20;

/// What is left of a file that is torn at a byte.
#[derive(Clone, Copy, Debug)]
enum TornFile {
    /// It ends there.
    Cut,
    /// Every byte behind is zero: the file system knew its length, and had not written it.
    Zeroed,
}

impl TornFile {
    fn tear(self, file: &Path, at: usize) {
        let mut bytes = fs::read(file).expect("a file");
        match self {
            Self::Cut => bytes.truncate(at),
            Self::Zeroed => bytes[at..].fill(0),
        }
        fs::write(file, bytes).expect("room");
    }
}

/// Bytes at which a file is torn: its beginning, the edges of its pages and sectors, and some at random.
fn places(len: usize) -> Vec<usize> {
    let (edges, random) = if is_campaign() {
        (512, 400)
    } else {
        (5 * 8192, 8)
    };
    let mut numbers = TestRandom::new(len as u64);
    let mut places = vec![0, 1, 20, 99, 100, 101];
    places.extend((0..len).step_by(edges));
    places.extend((0..random).map(|_| numbers.below(len)));
    places
}

/// Names of the files below a directory of the store, if they can be read.
fn names(db: &StoreDb, main: BranchId, directory: &'static str) -> Result<Vec<String>, StoreError> {
    let read = db.read(move |tx| tx.subtree(&tx.view(main, None)?, &path(directory)));
    let entries = read.wait()?.into_iter();
    Ok(entries.map(|entry| entry.path.to_string()).collect())
}

fn expected(directory: &str, numbers: std::ops::Range<u8>) -> Vec<String> {
    let mut names: Vec<_> = numbers.map(|it| format!("{directory}/{it}")).collect();
    names.sort();
    names
}

/// A store with a copy and changes after it.
fn copied() -> DamagedStore {
    let damaged = DamagedStore::new();
    for number in 0..FILES {
        damaged.put(&format!("/kept/{number}"), number, LARGE);
    }
    damaged.copy();
    for number in FILES..2 * FILES {
        damaged.put(&format!("/new/{number}"), number, LARGE);
    }
    damaged
}

/// Opens a torn file as two starts do, and reads everything in between. Returns whether the damage was seen.
fn starts_tell(file: &Path, damaged: &DamagedStore, what: &str) -> bool {
    for _ in 0..2 {
        match StoreDb::open(file, damaged.store.options()) {
            Err(StoreOpenError::Damaged { .. }) => return true,
            Err(other) => panic!("{what}: {other}"),
            Ok(db) => {
                let found = ["/kept", "/new"].map(|it| names(&db, damaged.main, it));
                let is_refused = |it: &Result<_, _>| matches!(it, Err(StoreError::Damaged(_)));
                // Some damage only makes reads find less. The look before a sweep, and before a copy, finds that.
                let is_told = found.iter().any(is_refused)
                    || matches!(db.check_pages(), Err(StoreError::Damaged(_)));
                let all = [
                    Ok(expected("/kept", 0..FILES)),
                    Ok(expected("/new", FILES..2 * FILES)),
                ];
                assert!(is_told || found == all, "{what}: {found:?}");
            }
        }
    }
    false
}

/// A start, or the first read, finds the damage; no start takes the file for a new one; and a repair has everything that the
/// copy has.
#[test]
fn a_file_that_is_torn_at_any_byte_is_reported_and_repaired() {
    let mut damaged = copied();
    damaged.store.close();
    let len = fs::metadata(&damaged.store.path).expect("a file").len();
    let len = usize::try_from(len).expect("small");
    let mut told = 0;
    for at in places(len) {
        for torn in [TornFile::Cut, TornFile::Zeroed] {
            let what = format!("{torn:?} at {at} of {len}");
            let dir = duplicate(damaged.store.dir.path());
            let file = dir.path().join("fs.db");
            torn.tear(&file, at);
            let is_told = starts_tell(&file, &damaged, &what);
            told += usize::from(is_told);
            let repair = repair_store(&file, &damaged.store.options());
            // A repair reads every page, also those that no name needs.
            let is_whole = repair == Err(StoreRepairError::NotDamaged);
            assert!(repair.is_ok() || is_whole && !is_told, "{what}: {repair:?}");
            let db = StoreDb::open(&file, damaged.store.options()).expect(&what);
            let kept = names(&db, damaged.main, "/kept");
            assert_eq!(kept, Ok(expected("/kept", 0..FILES)), "{what}");
        }
    }
    assert!(told > 10, "{told}");
}

/// Nothing but the copies says that there was a store. A new one would collect all contents.
#[test]
fn a_file_that_is_gone_is_not_made_again_beside_its_copies() {
    let mut damaged = copied();
    damaged.store.close();
    fs::remove_file(&damaged.store.path).expect("writable");
    let opened = StoreDb::open(&damaged.store.path, damaged.store.options());
    let aside = match opened {
        Err(StoreOpenError::Damaged { quarantined }) => quarantined,
        other => panic!("{other:?}"),
    };
    assert!(aside.exists() && !damaged.store.path.exists());
    let repair = damaged.repair().expect("a copy");
    assert_eq!((repair.recovered, repair.is_tail_whole), (0, false));
    damaged.store.reopen();
    let kept = names(damaged.store.db(), damaged.main, "/kept");
    assert_eq!(kept, Ok(expected("/kept", 0..FILES)));
    // An administrator who wants an empty store gets one.
    damaged.store.close();
    fs::remove_file(&damaged.store.path).expect("writable");
    let options = StoreDbOptions {
        begin_again: true,
        ..damaged.store.options()
    };
    StoreDb::open(&damaged.store.path, options).expect("a new store");
}

/// A power cut leaves any beginning of the log, and nothing behind a frame that is not whole counts.
#[test]
fn a_log_that_is_torn_at_any_byte_shows_a_state_of_before() {
    let damaged = DamagedStore::new();
    for number in 0..FILES {
        damaged.put(&format!("/f/{number}"), number, LARGE);
    }
    let whole = duplicate(damaged.store.dir.path());
    let log = fs::metadata(whole.path().join("fs.db-wal")).expect("a log");
    let len = usize::try_from(log.len()).expect("small");
    let mut states = std::collections::BTreeSet::new();
    for at in places(len) {
        for torn in [TornFile::Cut, TornFile::Zeroed] {
            let what = format!("{torn:?} at {at} of {len}");
            let dir = duplicate(whole.path());
            torn.tear(&dir.path().join("fs.db-wal"), at);
            let db = StoreDb::open(&dir.path().join("fs.db"), damaged.store.options());
            let db = db.expect(&what);
            let found = match names(&db, damaged.main, "/f") {
                // The log had the bucket as well.
                Err(StoreError::NotFound(_)) => Vec::new(),
                found => found.expect(&what),
            };
            let count = u8::try_from(found.len()).expect("few");
            assert_eq!(found, expected("/f", 0..count), "{what}");
            states.insert(count);
        }
    }
    assert!(states.len() > 5, "{states:?}");
}
