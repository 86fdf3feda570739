//! Listings, addresses and history.

use super::*;
use crate::address::EntryAddress;
use crate::path::PathRule;

/// All pages of a listing with so many entries on each.
fn pages(
    store: &TestStore,
    branch: BranchId,
    directory: &str,
    limit: usize,
    is_recursive: bool,
) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let request = ListRequest {
            is_recursive,
            limit,
            after,
            ..ListRequest::new(path(directory))
        };
        let page = store.read(move |tx| tx.list(&tx.view(branch, None)?, &request));
        let page = page.expect("readable");
        pages.push(page.entries.iter().map(|it| it.path.to_string()).collect());
        after = page.next;
        if after.is_none() {
            return pages;
        }
    }
}

/// A tree with names that sort otherwise as paths than as rows, on two levels.
fn sample() -> (TestStore, BranchId) {
    let store = TestStore::new();
    for (at, number) in [
        ("/a/x", 1),
        ("/a/b/y", 2),
        ("/a/b-c", 3),
        ("/a-b/z", 4),
        ("/a0", 5),
    ] {
        store.put(store.main, at, number);
    }
    let draft = store.branch("draft", store.main);
    store.put(draft, "/a/b/w", 6);
    store.put(draft, "/a/x", 7);
    store.delete(draft, "/a/b-c");
    store.put(store.main, "/a/later", 8);
    (store, draft)
}

#[test]
fn a_directory_is_listed_in_pages_of_any_size() {
    let (store, draft) = sample();
    for limit in 1..6 {
        let listed = pages(&store, draft, "/a", limit, false);
        assert!(listed.iter().all(|page| page.len() <= limit));
        assert_eq!(listed.concat(), ["/a/b", "/a/x"]);
        let listed = pages(&store, store.main, "/", limit, false);
        assert_eq!(listed.concat(), ["/a", "/a-b", "/a0"]);
        assert_eq!(listed.len(), 3usize.div_ceil(limit));
    }
}

#[test]
fn a_whole_tree_is_listed_directory_by_directory() {
    let (store, draft) = sample();
    for limit in [1, 2, 3, 100] {
        let listed = pages(&store, draft, "/", limit, true).concat();
        let expected = [
            "/a", "/a-b", "/a0", "/a/b", "/a/x", "/a-b/z", "/a/b/w", "/a/b/y",
        ];
        // By directory: `/a-b` comes before `/a/b`.
        assert_eq!(listed, expected, "{limit}");
        let listed = pages(&store, draft, "/a", limit, true).concat();
        assert_eq!(listed, ["/a/b", "/a/x", "/a/b/w", "/a/b/y"], "{limit}");
    }
}

#[test]
fn a_page_ends_before_what_only_one_level_has_read() {
    let store = TestStore::new();
    for at in 0..50 {
        store.put(store.main, &format!("/d/{at:02}"), 1);
    }
    let draft = store.branch("draft", store.main);
    for at in (0..50).step_by(3) {
        store.put(draft, &format!("/d/{at:02}x"), 2);
        store.delete(draft, &format!("/d/{at:02}"));
    }
    let expected: Vec<_> = store
        .tree(draft)
        .into_keys()
        .filter(|it| it != "/d")
        .collect();
    for limit in [1, 2, 7, 49, 50, 51] {
        assert_eq!(pages(&store, draft, "/d", limit, false).concat(), expected);
    }
}

#[test]
fn a_page_is_bounded_and_begins_in_its_directory() {
    let store = TestStore::new();
    let many = (0..PAGE_ENTRIES_MAX / 2 + 1)
        .map(|at| TreeChange::put(path(&format!("/d/a{at:04}")), content(1)));
    store.apply_all(store.main, many.collect()).expect("free");
    let many = (0..PAGE_ENTRIES_MAX / 2 + 1)
        .map(|at| TreeChange::put(path(&format!("/d/b{at:04}")), content(1)));
    store.apply_all(store.main, many.collect()).expect("free");
    let listed = pages(&store, store.main, "/d", usize::MAX, false);
    let sizes: Vec<_> = listed.iter().map(Vec::len).collect();
    assert_eq!(sizes, [PAGE_ENTRIES_MAX, 2]);
    let main = store.main;
    let list = |directory: &str, after: Option<&str>| {
        let request = ListRequest {
            after: after.map(path),
            ..ListRequest::new(path(directory))
        };
        store.read(move |tx| tx.list(&tx.view(main, None)?, &request))
    };
    for (directory, after, expected) in [
        ("/none", None, StoreErrorCode::NotFound),
        ("/d/a0001", None, StoreErrorCode::NotDir),
        ("/d", Some("/e"), StoreErrorCode::InvalidPath),
        ("/d", Some("/"), StoreErrorCode::InvalidPath),
        ("/d", Some("/d/x/y"), StoreErrorCode::InvalidPath),
    ] {
        assert_eq!(code(list(directory, after)), expected, "{directory}");
    }
    match list("/d", Some("/")) {
        Err(StoreError::InvalidPath(invalid)) => assert_eq!(invalid.rule, PathRule::PageToken),
        other => panic!("{other:?}"),
    }
    assert!(list("/d", Some("/d/zzz")).is_ok_and(|page| page.entries.is_empty()));
}

/// The attack: a directory of deleted names, of which a page of one entry read two with each query.
#[test]
fn a_listing_reads_many_deletions_with_each_query() {
    let store = TestStore::new();
    let main = store.main;
    store.mkdir(main, "/d");
    let deletions = 50_000_u64;
    let filled = store.write(move |tx| {
        tx.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?2) \
             INSERT INTO entry(branch_id, parent, name, seq, kind, mtime_ns) SELECT ?1, '/d', i, 1, 0, 0 FROM n",
            rusqlite::params![main, crate::db::to_sql(deletions)],
        )
    });
    filled.expect("room");
    store.put(main, "/d/last", 1);
    let read = store.read(move |tx| {
        let before = tx.statement_runs();
        let request = ListRequest {
            limit: 1,
            ..ListRequest::new(path("/d"))
        };
        let page = tx.list(&tx.view(main, None)?, &request)?;
        Ok((page.entries.len(), tx.statement_runs() - before))
    });
    let (entries, queries) = read.expect("readable");
    assert_eq!(entries, 1);
    assert!(queries <= deletions / 256 + 10, "{queries}");
}

#[test]
fn an_address_leads_to_the_version_that_it_names() {
    let store = TestStore::new();
    let first = store.put(store.main, "/a", 1);
    let draft = store.branch("draft", store.main);
    store.put(draft, "/a", 2);
    let main = store.main;
    let snapshot = store.write(move |tx| tx.create_snapshot(&name("monday"), main, None, "alice"));
    assert_eq!(snapshot.expect("free").seq, first);
    store.put(store.main, "/a", 3);
    let at = |address: &str| {
        let address: EntryAddress = address.parse().expect("an address");
        store.read(move |tx| {
            let entry = tx.stat(&tx.view_of(&address)?, &address.path)?;
            Ok(describe(&entry.state))
        })
    };
    for (address, expected) in [
        ("docs:/a", "file 3"),
        ("docs@draft:/a", "file 2"),
        (&*format!("docs#{first}:/a"), "file 1"),
        ("docs:/.snap/monday/a", "file 1"),
        ("docs:/.snap/monday", "directory"),
    ] {
        assert_eq!(at(address).as_deref(), Ok(expected), "{address}");
    }
    for address in [
        "none:/a",
        "docs@none:/a",
        "docs#0:/a",
        "docs:/.snap/none/a",
        "docs:/none",
    ] {
        assert_eq!(code(at(address)), StoreErrorCode::NotFound, "{address}");
    }
}

#[test]
fn history_has_every_version_with_its_commit() {
    let store = TestStore::new();
    let first = store.put(store.main, "/a", 1);
    let second = store.put(store.main, "/a", 2);
    let draft = store.branch("draft", store.main);
    store.put(store.main, "/a", 9);
    let request = ChangeRequest {
        message: Some("no longer used".to_owned()),
        ..ChangeRequest::new(draft, "carol", TreeChange::delete(path("/a")))
    };
    let third = store
        .write(move |tx| tx.apply(&request))
        .expect("there")
        .seq;
    let fourth = store.put(draft, "/a", 3);
    let history = |before, limit| {
        store
            .read(move |tx| tx.history(&tx.view(draft, None)?, &path("/a"), before, limit))
            .expect("readable")
    };
    let all = history(None, 10);
    let found: Vec<_> = all.iter().map(|it| (it.seq, describe(&it.state))).collect();
    let what = |text: &str| text.to_owned();
    let expected = [
        (fourth, what("file 3")),
        (third, what("deleted")),
        (second, what("file 2")),
        (first, what("file 1")),
    ];
    assert_eq!(found, expected);
    let deletion = &all[1];
    assert_eq!(
        (deletion.actor.as_str(), deletion.op.as_str()),
        ("carol", "delete")
    );
    assert_eq!(deletion.message.as_deref(), Some("no longer used"));
    assert!(all.is_sorted_by(|a, b| a.timestamp > b.timestamp));
    for limit in 1..5 {
        let mut before = None;
        let mut found = Vec::new();
        loop {
            let page = history(before, limit);
            before = page.last().map(|it| it.seq);
            found.extend(page.iter().map(|it| it.seq));
            if before.is_none() {
                break;
            }
        }
        assert_eq!(found, [fourth, third, second, first]);
    }
}

#[test]
fn a_restoration_is_a_new_version() {
    let store = TestStore::new();
    store.put(store.main, "/d/a", 1);
    store.put(store.main, "/d/sub/b", 2);
    let then = store.put(store.main, "/d/c", 3);
    store.put(store.main, "/d/a", 4);
    store.delete(store.main, "/d/sub");
    store.put(store.main, "/d/sub", 5);
    store.put(store.main, "/d/new/e", 6);
    let before = store.tree(store.main);
    let restore = |at: &str, seq| {
        let path = path(at);
        store.apply(store.main, TreeChange::Restore { path, seq })
    };
    let seq = restore("/d", then).expect("there then");
    assert_eq!(
        store.tree(store.main),
        store.tree_at(store.main, Some(then))
    );
    assert_eq!(store.tree_at(store.main, Some(seq - 1)), before);
    assert_eq!(code(restore("/d/new/e", then)), StoreErrorCode::NotFound);
    assert_eq!(code(restore("/", then)), StoreErrorCode::InvalidPath);
    store.delete(store.main, "/d");
    restore("/d/sub/b", then).expect("there then");
    let expected = tree_of([
        ("/d", "directory"),
        ("/d/sub", "directory"),
        ("/d/sub/b", "file 2"),
    ]);
    assert_eq!(store.tree(store.main), expected);
    store.check_usage();
}

#[test]
fn a_directory_is_empty_when_its_entries_are_deleted_on_each_branch() {
    let store = TestStore::new();
    let main = store.main;
    store.mkdir(main, "/d");
    let names: Vec<_> = (0..1000)
        .map(|number| path(&format!("/d/{number}")))
        .collect();
    for content_number in 1..3 {
        let put = |at: &EntryPath| TreeChange::put(at.clone(), content(content_number));
        store
            .apply_all(main, names.iter().map(put).collect())
            .expect("applied");
    }
    let draft = store.branch("draft", main);
    let is_empty = |branch, at: &str| {
        let at = path(at);
        let read = store.read(move |tx| tx.is_empty_directory(&tx.view(branch, None)?, &at));
        read.expect("readable")
    };
    let deletions = || {
        names
            .iter()
            .map(|at| TreeChange::delete(at.clone()))
            .collect()
    };
    assert!(!is_empty(main, "/d") && !is_empty(draft, "/d"));
    store.apply_all(main, deletions()).expect("applied");
    assert!(is_empty(main, "/d") && !is_empty(draft, "/d"));
    store.apply_all(draft, deletions()).expect("applied");
    assert!(is_empty(draft, "/d"));
    store.put(main, "/d/7", 3);
    assert!(!is_empty(main, "/d") && is_empty(draft, "/d"));
    // What is no directory is no empty one.
    assert!(!is_empty(main, "/d/7") && !is_empty(main, "/missing"));
}
