//! The memory that a large directory takes.

use alknet_test_support::{alone, resident_bytes};

use super::*;
use crate::limits::{LISTING_MEMORY_BYTES_MAX, SUBTREE_ENTRIES_MAX};

const NAMES: usize = 1_000_000;

/// Puts a million directories into `/d` without the changes, which would take minutes.
fn fill(store: &TestStore) {
    let (branch, bucket) = (store.main, store.bucket);
    store.mkdir(branch, "/d");
    for first in (0..NAMES).step_by(SUBTREE_ENTRIES_MAX) {
        let filled = store.write(move |tx| {
            let seq = tx.branch(branch)?.head_seq;
            let (first, entries) = (first as i64, SUBTREE_ENTRIES_MAX as i64);
            tx.execute(
                "WITH RECURSIVE n(i) AS (SELECT ?3 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?3 + ?4) \
                 INSERT INTO entry(branch_id, parent, name, seq, kind, mtime_ns) \
                 SELECT ?1, '/d', printf('entry-%07d', i), ?2, 2, 0 FROM n",
                rusqlite::params![branch, crate::db::to_sql(seq), first, entries],
            )?;
            let usage = UsageChange { entries, bytes: 0 };
            tx.add_usage(bucket, usage)
        });
        filled.expect("room");
    }
}

#[test]
fn a_listing_of_a_million_names_takes_the_memory_of_a_page() {
    let name = "names::tests::memory::a_listing_of_a_million_names_takes_the_memory_of_a_page";
    alone(name, measure);
}

fn measure() {
    let store = TestStore::new();
    let main = store.main;
    fill(&store);
    let before = resident_bytes();
    let (mut most, mut names) = (before, 0);
    let mut request = ListRequest::new(path("/d"));
    loop {
        let asked = request.clone();
        let page = store.read(move |tx| tx.list(&tx.view(main, None)?, &asked));
        let page = page.expect("a directory");
        for entry in &page.entries {
            assert_eq!(entry.path.to_string(), format!("/d/entry-{names:07}"));
            names += 1;
        }
        most = most.max(resident_bytes());
        if page.next.is_none() {
            break;
        }
        request.after = page.next;
    }
    assert_eq!(names, NAMES);
    let grown = most - before;
    assert!(grown <= LISTING_MEMORY_BYTES_MAX, "{grown} bytes");
}
