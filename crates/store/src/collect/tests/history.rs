//! Which former versions a collection leaves, and which it shows as gone.

use super::*;
use crate::limits::{COLLECT_JUMP_MS_MAX, COLLECT_JUMP_WAIT_MS};
use crate::names::{MergeStrategy, TreeView};

fn view(files: &TestFiles, branch: BranchId, as_of: u64) -> Result<TreeView, StoreError> {
    files
        .store()
        .read(move |tx| tx.view(branch, Some(as_of)))
        .wait()
}

const GONE: StoreError = StoreError::NotFound(StoreObject::Version);

/// The attack: a branch without commits of its own showed a version of its parent with fewer files, and a restoration of it
/// deleted the rest.
#[test]
fn a_pruned_version_is_refused_on_every_branch_that_shows_it() {
    let files = without_retention();
    let main = files.main;
    let first = files.put("/a", b"first");
    let second = {
        files.put("/x", b"of x");
        let head = files.store().read(move |tx| tx.branch(main)).wait();
        head.expect("there").head_seq
    };
    files.put("/a", b"third");
    let draft = branch(&files, "draft", main);
    let below = branch(&files, "below", draft);
    let before = tree_at(&files, draft, Some(second)).expect("there");
    assert_eq!(before.len(), 2);
    collect_later(&files);
    assert!(files.bytes(first).is_err(), "it is pruned");
    for of in [main, draft, below] {
        assert_eq!(tree_at(&files, of, Some(second)), Err(GONE));
        let restore = TreeChange::Restore {
            path: path("/a"),
            seq: second,
        };
        assert_eq!(files.apply(of, restore), Err(GONE));
    }
    // The head is there on each of them.
    let head = tree_at(&files, main, None).expect("there");
    assert_eq!(head.len(), 2);
    for of in [draft, below] {
        assert_eq!(tree_at(&files, of, None).as_ref(), Ok(&head));
        assert_eq!(tree_at(&files, of, Some(u64::MAX)).as_ref(), Ok(&head));
    }
}

/// What a branch shows of its parent where it began stays, and so does what the parent had at the horizon.
#[test]
fn a_version_that_is_whole_is_shown_on_every_branch() {
    let files = without_retention();
    let main = files.main;
    files.put("/a", b"first");
    let draft = branch(&files, "draft", main);
    let begin = files.store().read(move |tx| tx.branch(draft)).wait();
    let begin = begin.expect("there").head_seq;
    files.put("/a", b"second");
    files.put("/b", b"third");
    let before = tree_at(&files, draft, None);
    collect_later(&files);
    assert_eq!(tree_at(&files, draft, Some(begin)), before);
    assert_eq!(tree_at(&files, main, Some(begin)), before);
    let expected = tree_at(&files, main, None);
    let head = files.store().read(move |tx| tx.branch(main)).wait();
    let head = head.expect("there").head_seq;
    assert_eq!(tree_at(&files, main, Some(head)), expected);
}

/// The attack: a view that was read before a collection is copied from after it.
#[test]
fn a_copy_looks_at_its_version_again() {
    let files = without_retention();
    let main = files.main;
    files.put("/d/a", b"first");
    let seq = files
        .apply(main, TreeChange::mkdir(path("/d/e")))
        .expect("free");
    let then = view(&files, main, seq).expect("there");
    files.put("/d/a", b"second");
    let draft = branch(&files, "draft", main);
    let of_draft = files.store().read(move |tx| tx.view(draft, None)).wait();
    let of_draft = of_draft.expect("there");
    collect_later(&files);
    let deleted = files
        .store()
        .write(move |tx| tx.delete_branch(draft, false, "alice"));
    deleted.wait().expect("free");
    collect_later(&files);
    let copy = |view: &TreeView, to: &str| {
        let copy = TreeChange::Copy {
            view: Some(view.clone()),
            from: path("/d"),
            to: path(to),
            is_recursive: true,
            may_replace: false,
        };
        files.apply(main, copy)
    };
    assert_eq!(copy(&then, "/old"), Err(GONE));
    let absent = StoreError::NotFound(StoreObject::Branch);
    assert_eq!(copy(&of_draft, "/gone"), Err(absent));
    let head = files.store().read(move |tx| tx.view(main, None)).wait();
    copy(&head.expect("there"), "/new").expect("the head is whole");
}

/// The attack: one collection under a clock of the next century removes all history.
#[test]
fn a_wrong_clock_does_not_remove_history() {
    let files = TestFiles::new();
    let first = files.put("/a", &content(1, 100_000));
    let second = files.put("/a", &content(2, 100_000));
    files.collect();
    let now_ms = files.clock.unix_ms();
    files.clock.set(now_ms + 100 * COLLECT_JUMP_MS_MAX);
    files.collect();
    files
        .clock
        .advance(Duration::from_millis(COLLECT_JUMP_WAIT_MS - 1));
    files.collect();
    assert!(files.bytes(first).is_ok());
    // The clock is right again, and history goes in its time.
    files.clock.set(now_ms + 8 * DAY_MS);
    files.collect();
    assert!(files.bytes(first).is_err());
    assert!(files.bytes(second).is_ok());
}

/// The attack: a time server says the year 2100 for one write, and the history of all later ones stays until then.
#[test]
fn history_goes_in_its_time_after_a_clock_was_far_ahead() {
    let mut files = TestFiles::new();
    files.set_retention(2 * DAY_MS / 1000);
    let now_ms = files.clock.unix_ms();
    let first = files.put("/a", &content(1, 100_000));
    files.clock.set(now_ms + 70 * 365 * DAY_MS);
    let ahead = files.put("/a", &content(2, 100_000));
    files.clock.set(now_ms + 1000);
    files.reopen();
    let third = files.put("/a", &content(3, 100_000));
    files.put("/a", &content(4, 100_000));
    files.collect();
    assert!(files.bytes(first).is_ok() && files.bytes(ahead).is_ok());
    files.clock.set(now_ms + 3 * DAY_MS);
    files.collect();
    assert_eq!(files.count("SELECT count(*) FROM entry"), 1);
    for old in [first, third] {
        assert!(files.bytes(old).is_err());
    }
}

/// A node that was off for months goes on a day later.
#[test]
fn a_clock_that_goes_on_from_a_jump_is_believed() {
    let files = TestFiles::new();
    let first = files.put("/a", &content(1, 100_000));
    files.put("/a", &content(2, 100_000));
    files.collect();
    files
        .clock
        .advance(Duration::from_millis(COLLECT_JUMP_MS_MAX + 1));
    files.collect();
    assert!(files.bytes(first).is_ok());
    // A further jump begins the day again.
    files
        .clock
        .advance(Duration::from_millis(2 * COLLECT_JUMP_MS_MAX));
    files.collect();
    assert!(files.bytes(first).is_ok());
    files
        .clock
        .advance(Duration::from_millis(COLLECT_JUMP_WAIT_MS));
    files.collect();
    assert!(files.bytes(first).is_err());
}

/// The attack: commits that nothing refers to any more stay for as long as the bucket, each with its message.
#[test]
fn old_commits_without_rows_go() {
    let files = without_retention();
    let main = files.main;
    let message = |number: u64| Some(format!("{number:04096}"));
    let change = |branch, number, change| {
        let request = ChangeRequest {
            message: message(number),
            ..ChangeRequest::new(branch, "alice", change)
        };
        let applied = files.store().write(move |tx| tx.apply(&request)).wait();
        applied.expect("possible").seq
    };
    let many = files.store().write(move |tx| {
        for number in 0..COLLECT_STEP_ROWS as u64 + 5 {
            for change in [
                TreeChange::mkdir(path("/d")),
                TreeChange::delete(path("/d")),
            ] {
                let request = ChangeRequest {
                    message: message(number),
                    ..ChangeRequest::new(main, "alice", change)
                };
                tx.apply(&request)?;
            }
        }
        Ok(())
    });
    many.wait().expect("room");
    let draft = branch(&files, "draft", main);
    change(draft, 1, TreeChange::mkdir(path("/x")));
    let merge = MergeRequest {
        message: message(2),
        strategy: MergeStrategy::Ours,
        ..MergeRequest::new(draft, main, "alice")
    };
    files
        .store()
        .write(move |tx| tx.merge(&merge))
        .wait()
        .expect("possible");
    let head = change(main, 3, TreeChange::delete(path("/x")));
    let deleted = files
        .store()
        .write(move |tx| tx.delete_branch(draft, false, "alice"));
    deleted.wait().expect("free");
    collect_later(&files);
    files.check_usage();
    // The rows of the deleted directory are gone, and its commits with them. A merge stays for the search of a base.
    assert_eq!(files.count("SELECT count(*) FROM entry"), 0);
    assert_eq!(files.count("SELECT count(*) FROM commit_"), 1);
    let merges = "SELECT count(*) FROM commit_ WHERE merge_branch IS NOT NULL AND message IS NULL";
    assert_eq!(files.count(merges), 1);
    let bucket = files.bucket;
    let usage = files.store().read(move |tx| tx.usage(bucket)).wait();
    assert_eq!(usage.expect("there").bytes, 0);
    // What the commits said of pruned versions stays known.
    assert_eq!(tree_at(&files, main, Some(head - 1)), Err(GONE));
    assert_eq!(tree_at(&files, main, Some(head)), Ok(Vec::new()));
    assert_eq!(tree_at(&files, main, None), Ok(Vec::new()));
    let next = files
        .apply(main, TreeChange::mkdir(path("/y")))
        .expect("free");
    assert!(next > head, "no number is used twice");
}

/// The attack: two branches that are merged to and fro, and a search that reads all of these merges for each of them.
#[test]
fn many_merges_cost_their_number_and_not_its_square() {
    const MERGES: u64 = 4000;
    let files = without_retention();
    let main = files.main;
    files.put("/a", b"first");
    let draft = branch(&files, "draft", main);
    let bucket = files.bucket;
    // Rows of merges that no call made, because calls would take a minute.
    let filled = files.store().write(move |tx| {
        let insert = "INSERT INTO commit_(bucket_id, branch_id, ts_ms, hlc, actor, op, merge_branch, merge_seq) \
                      SELECT ?1, ?2, 0, zeroblob(16), '', 'merge', ?3, max(seq) FROM commit_";
        for _ in 0..MERGES / 2 {
            tx.execute(insert, rusqlite::params![bucket, main, draft])?;
            tx.execute(insert, rusqlite::params![bucket, draft, main])?;
        }
        tx.query_count("SELECT max(seq) FROM commit_", [])
    });
    let last = filled.wait().expect("room");
    let read = files.store().read(move |tx| {
        let before = tx.statement_steps();
        let needed = tx.needed_versions(bucket, last)?;
        let steps = tx.statement_steps() - before;
        Ok((steps, needed.is_shown(main, last - 1, last)))
    });
    let (steps, is_shown) = read.wait().expect("readable");
    assert!(is_shown, "the last merge took it in");
    assert!(steps < MERGES * 200, "{steps}");
}
