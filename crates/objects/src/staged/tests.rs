use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::{DamagedPart, ObjectRemoval, OutboardPolicy, SystemObjectDisk};

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

/// A step of a placement.
#[derive(Clone, Copy, Debug, PartialEq)]
enum PlacementStep {
    SyncObject,
    SyncOutboard,
    Rename,
    SyncFolder,
    AddOutboard,
}

/// What takes the steps.
fn system() -> Arc<dyn ObjectDisk> {
    Arc::new(SystemObjectDisk)
}

/// Takes each step of a placement, and keeps a copy of the folder as a power cut before the step leaves it.
struct RecordedDisk {
    root: PathBuf,
    copies: TempDir,
    taken: RefCell<Vec<PlacementStep>>,
    /// Fails this step.
    fails: Option<PlacementStep>,
}

impl RecordedDisk {
    fn new(root: &Path, fails: Option<PlacementStep>) -> Self {
        Self {
            root: root.to_owned(),
            copies: tempfile::tempdir().expect("writable"),
            taken: RefCell::default(),
            fails,
        }
    }

    /// The copy that was taken before the step of this number.
    fn before(&self, step: usize) -> PathBuf {
        self.copies.path().join(step.to_string())
    }

    fn take(&self, step: PlacementStep, action: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut taken = self.taken.borrow_mut();
        copy_folder(&self.root, &self.before(taken.len()));
        taken.push(step);
        match self.fails == Some(step) {
            true => Err(io::Error::other("the disk failed")),
            false => action(),
        }
    }
}

impl PlacementDisk for RecordedDisk {
    fn sync_object(&self, object: &File) -> io::Result<()> {
        self.take(PlacementStep::SyncObject, || {
            FolderDisk(&system()).sync_object(object)
        })
    }

    fn sync_outboard(&self, outboard: &File) -> io::Result<()> {
        self.take(PlacementStep::SyncOutboard, || {
            FolderDisk(&system()).sync_outboard(outboard)
        })
    }

    fn rename(&self, staged: TempPath, object: &Path) -> io::Result<()> {
        self.take(PlacementStep::Rename, || {
            FolderDisk(&system()).rename(staged, object)
        })
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.take(PlacementStep::SyncFolder, || {
            FolderDisk(&system()).sync_folder(folder)
        })
    }

    fn add_outboard(
        &self,
        outboards: &OutboardFolder,
        name: String,
        outboard: NamedTempFile,
    ) -> io::Result<()> {
        self.take(PlacementStep::AddOutboard, || {
            FolderDisk(&system()).add_outboard(outboards, name, outboard)
        })
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("writable");
    for entry in fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let copy = to.join(entry.file_name());
        if entry.file_type().expect("readable").is_dir() {
            copy_folder(&entry.path(), &copy);
        } else {
            fs::copy(entry.path(), &copy).expect("room");
        }
    }
}

/// Opens what a power cut left, with so many staged files, and stores the content once more.
fn recover(root: &Path, staged: usize, is_named: bool) {
    let hash = blake3::hash(&content());
    let staging = root.join("uploads");
    assert_eq!(count(&staging), staged);
    let objects = open(root);
    assert_eq!(count(&staging), 0);
    let found = read(&objects, &hash);
    match is_named {
        true => assert!(found.expect("it is there") == content()),
        false => assert!(matches!(found, Err(ObjectError::Missing(_)))),
    }
    let placed = stage(&objects).place().expect("room");
    let is_new = matches!(placed.placement(), Placement::New);
    assert_eq!(is_new, !is_named);
    drop(placed);
    assert!(read(&objects, &hash).expect("it is there") == content());
    assert_eq!(count(&root.join("outboards")), 1);
    assert_eq!(count(&staging), 0);
}

/// Were the name given before the content is on the disk, or an outboard before the name of its object, a power cut
/// would leave what no later start repairs.
#[test]
fn a_power_cut_between_the_steps_leaves_a_whole_object_or_none() {
    let root = tempfile::tempdir().expect("writable");
    let disk = RecordedDisk::new(root.path(), None);
    let staged = stage(&open(root.path()));
    let written = disk.copies.path().join("written");
    copy_folder(root.path(), &written);
    let hashed = staged.hash_rest().expect("readable");
    let (placement, finished) = hashed.place(&disk).expect("room");
    finished.expect("room");
    assert!(matches!(placement, Placement::New), "{placement:?}");
    let taken = disk.taken.borrow().clone();
    assert_eq!(
        taken,
        [
            PlacementStep::SyncObject,
            PlacementStep::SyncOutboard,
            PlacementStep::Rename,
            PlacementStep::SyncFolder,
            PlacementStep::AddOutboard,
        ]
    );
    recover(&written, 1, false);
    for (at, step) in taken.iter().enumerate() {
        let is_named = matches!(step, PlacementStep::SyncFolder | PlacementStep::AddOutboard);
        // The object until it has its name, and its outboard.
        recover(&disk.before(at), if is_named { 1 } else { 2 }, is_named);
    }
    recover(root.path(), 0, true);
}

#[test]
fn what_fails_after_the_name_is_given_is_reported_with_the_placement() {
    for (fails, is_named) in [
        (PlacementStep::SyncObject, false),
        (PlacementStep::SyncOutboard, false),
        (PlacementStep::Rename, false),
        (PlacementStep::SyncFolder, true),
        (PlacementStep::AddOutboard, true),
    ] {
        let root = tempfile::tempdir().expect("writable");
        let objects = open(root.path());
        let disk = RecordedDisk::new(root.path(), Some(fails));
        let hashed = stage(&objects).hash_rest().expect("readable");
        let placed = hashed.place(&disk);
        let is_reported = matches!(placed, Ok((Placement::New, Err(_))));
        assert_eq!(is_reported, is_named, "{placed:?}");
        assert_eq!(placed.is_err(), !is_named, "{fails:?}");
        let path = objects.path(&blake3::hash(&content()));
        assert_eq!(path.exists(), is_named, "{fails:?}");
        assert_eq!(disk.taken.borrow().last(), Some(&fails));
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

/// A file that arrived in parts is hashed as it is.
#[test]
fn a_file_is_taken_over() {
    let root = tempfile::tempdir().expect("writable");
    let objects = open(root.path());
    let parts = root.path().join("parts");
    fs::write(&parts, content()).expect("writable");
    let dropped = objects.adopt(&parts).expect("it is there");
    assert!(!parts.exists());
    drop(dropped);
    assert_eq!(count(&root.path().join("uploads")), 0);
    fs::write(&parts, content()).expect("writable");
    let placed = objects.adopt(&parts).expect("it is there").place();
    let placed = placed.expect("room");
    assert_eq!(placed.hash(), blake3::hash(&content()));
    assert!(read(&objects, &placed.hash()).expect("it is there") == content());
}
