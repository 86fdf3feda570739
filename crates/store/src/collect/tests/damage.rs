//! A collection of a store whose file of names is damaged.

use super::*;

/// Files that the store has.
const FILES: usize = 60;
const PAGE: usize = 8192;
/// Behind the header of a page, and behind the places of some of its cells.
const TORN_AT: usize = 480;

/// Names of the files below `/f`, if they can be read.
fn names(files: &TestFiles) -> Result<usize, StoreError> {
    let main = files.main;
    let read = files
        .store()
        .read(move |tx| tx.subtree(&tx.view(main, None)?, &path("/f")));
    read.wait().map(|entries| entries.len())
}

/// Removes the file, its log, and what was set aside of it.
fn remove_names(files: &TestFiles) {
    for entry in fs::read_dir(files.root()).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_file() {
            fs::remove_file(path).expect("writable");
        }
    }
}

/// SQLite reads some torn pages as if they had less in them, and a start does not check a file that was closed in order. The
/// collection does, before it removes contents that look unused.
#[test]
fn names_that_a_torn_page_hides_keep_their_contents() {
    let mut files = TestFiles::new();
    files.set_retention(0);
    for number in 0..FILES {
        files.put(&format!("/f/{number}"), &content(number as u64, 20_000));
    }
    files.reopen();
    let objects = files.objects();
    files.close();
    let file = files.root().join("fs.db");
    let whole = fs::read(&file).expect("readable");
    let mut hidden = 0;
    for page in 1..whole.len() / PAGE {
        let mut torn = whole.clone();
        torn[page * PAGE + TORN_AT..(page + 1) * PAGE].fill(0);
        fs::write(&file, torn).expect("room");
        if files.try_reopen().is_ok() {
            files.clock.advance(Duration::from_secs(20 * 60));
            let is_hidden = names(&files).is_ok_and(|count| count < FILES);
            hidden += usize::from(is_hidden);
            let collected = files.try_collect();
            let is_told = matches!(collected, Err(StoreError::Damaged(_)));
            assert!(is_told || !is_hidden, "page {page}: {collected:?}");
            assert_eq!(files.objects(), objects, "page {page}");
        }
        files.close();
        remove_names(&files);
        fs::write(&file, &whole).expect("room");
    }
    assert!(hidden > 0, "no page hides anything");
    files.reopen();
    assert_eq!(names(&files), Ok(FILES));
}
