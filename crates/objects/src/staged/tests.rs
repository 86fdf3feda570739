use std::fs;
use std::mem::forget;
use std::path::Path;

use super::*;
use crate::{DamagedPart, ObjectRemoval, OutboardPolicy};

/// More than a group.
const SIZE: usize = 100_000;

fn content() -> Vec<u8> {
    (0..SIZE).map(|at| (at * 31 % 251) as u8).collect()
}

fn open(root: &Path) -> Arc<ObjectFolder> {
    ObjectFolder::open(root, OutboardPolicy::Placed).expect("the folder is ours")
}

fn stage(objects: &Arc<ObjectFolder>) -> StagedObject {
    let mut staged = objects.stage().expect("writable");
    staged.write_at(0, &content()).expect("room");
    staged
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).expect("readable").count()
}

/// Reads an object whole, or says why not.
fn read(objects: &ObjectFolder, hash: &Hash) -> Result<Vec<u8>, ObjectError> {
    let blocks = objects.reader(hash)?.bytes(0..SIZE as u64)?;
    let blocks: Result<Vec<_>, _> = blocks.collect();
    Ok(blocks?.concat())
}

/// The last step of a placement before the power fails.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum LastStep {
    Write,
    Hash,
    Sync,
    Rename,
    Outboard,
}

/// Places the content up to this step. What has a temporary name then keeps it.
fn place_until(objects: &Arc<ObjectFolder>, last: LastStep) {
    let staged = stage(objects);
    if last == LastStep::Write {
        forget(staged);
        return;
    }
    let mut hashed = staged.hash_rest().expect("readable");
    if last == LastStep::Hash {
        forget(hashed);
        return;
    }
    if last == LastStep::Outboard {
        hashed.place().expect("room");
        return;
    }
    let path = objects.path(&hashed.hash);
    objects.make_folder_of(&path).expect("writable");
    let outboard = hashed.outboard.take();
    hashed.sync(outboard.as_ref()).expect("writable");
    forget(outboard);
    match last {
        LastStep::Sync => forget(hashed),
        _ => drop(
            hashed
                .rename(StoredContent::Missing, &path)
                .expect("writable"),
        ),
    }
}

#[test]
fn a_power_cut_between_the_steps_leaves_a_whole_object_or_none() {
    let hash = blake3::hash(&content());
    for last in [
        LastStep::Write,
        LastStep::Hash,
        LastStep::Sync,
        LastStep::Rename,
        LastStep::Outboard,
    ] {
        let root = tempfile::tempdir().expect("writable");
        place_until(&open(root.path()), last);
        let staging = root.path().join("uploads");
        let left = match last {
            LastStep::Write | LastStep::Rename => 1,
            // The object and its outboard.
            LastStep::Hash | LastStep::Sync => 2,
            LastStep::Outboard => 0,
        };
        assert_eq!(count(&staging), left, "{last:?}");
        let objects = open(root.path());
        assert_eq!(count(&staging), 0, "{last:?}");
        let found = read(&objects, &hash);
        match last < LastStep::Rename {
            true => assert!(matches!(found, Err(ObjectError::Missing(_))), "{last:?}"),
            false => assert!(found.expect("it is there") == content(), "{last:?}"),
        }
        let placed = stage(&objects).place().expect("room");
        let is_new = matches!(placed.placement(), Placement::New);
        assert_eq!(is_new, last < LastStep::Rename, "{last:?}");
        drop(placed);
        assert!(read(&objects, &hash).expect("it is there") == content());
        assert_eq!(count(&root.path().join("outboards")), 1, "{last:?}");
        assert_eq!(count(&staging), 0, "{last:?}");
    }
}

/// A file system may lose the bytes of a file that was not synced, and keep its name.
#[test]
fn an_object_that_a_power_cut_has_damaged_is_refused_and_repaired() {
    let hash = blake3::hash(&content());
    for len in [0, 10, SIZE / 2] {
        let root = tempfile::tempdir().expect("writable");
        drop(stage(&open(root.path())).place().expect("room"));
        let path = open(root.path()).path(&hash);
        fs::remove_file(&path).expect("it is ours");
        fs::write(&path, &content()[..len]).expect("writable");
        let objects = open(root.path());
        let error = objects.reader(&hash).expect_err("it is shorter");
        let part = DamagedPart::Content;
        let is_refused = matches!(error, ObjectError::Damaged { part: found, .. } if found == part);
        assert!(is_refused, "{error}");
        let placed = stage(&objects).place().expect("room");
        let bytes = match placed.placement() {
            Placement::Repaired { bytes, .. } => *bytes,
            other => panic!("{other:?}"),
        };
        assert_eq!(bytes, len as u64);
        assert!(read(&objects, &hash).expect("it is there") == content());
    }
}

#[test]
fn a_power_cut_in_a_removal_leaves_the_object_or_nothing() {
    let hash = blake3::hash(&content());
    for is_object_gone in [false, true] {
        let root = tempfile::tempdir().expect("writable");
        let objects = open(root.path());
        drop(stage(&objects).place().expect("room"));
        let outboard = outboard_name(&hash, &(0..SIZE as u64));
        let outboard = root.path().join("outboards").join(outboard);
        match is_object_gone {
            // Only a file system that reorders the two removals leaves this.
            true => fs::remove_file(objects.path(&hash)).expect("it is there"),
            false => fs::remove_file(&outboard).expect("it is there"),
        }
        let objects = open(root.path());
        match is_object_gone {
            true => {
                let error = read(&objects, &hash).expect_err("it is gone");
                assert!(matches!(error, ObjectError::Missing(_)), "{error}");
                let removed = objects.remove(&hash).expect("nothing to remove");
                assert_eq!(removed, ObjectRemoval::Missing);
                drop(stage(&objects).place().expect("room"));
            }
            false => {
                assert!(read(&objects, &hash).expect("it is there") == content());
                assert!(outboard.exists(), "it was computed again");
            }
        }
        let removed = objects.remove(&hash).expect("writable");
        let bytes = SIZE as u64;
        assert_eq!(removed, ObjectRemoval::Removed { bytes });
        assert_eq!(count(&root.path().join("outboards")), 0);
    }
}

/// What a write that failed has left behind the end of the object does not get into it.
#[test]
fn bytes_behind_the_end_are_cut_off() {
    let root = tempfile::tempdir().expect("writable");
    let objects = open(root.path());
    let staged = stage(&objects);
    let end = staged.size();
    staged.file.write_all_at(b"more", end).expect("room");
    let placed = staged.place().expect("room");
    assert_eq!(placed.hash(), blake3::hash(&content()));
    let stored = fs::read(objects.path(&placed.hash())).expect("readable");
    assert!(stored == content());
}
