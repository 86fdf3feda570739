//! What a folder asks of the disk, and what it does when the disk fails.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::thread;
use std::time::Duration;

use alknet_objects::{
    ObjectDisk, ObjectError, ObjectFolder, ObjectRemoval, OutboardPolicy, Placement, StagedObject,
};

use crate::store::{GROUP, content};

/// A call of the folder.
#[derive(Clone, Debug, PartialEq)]
enum DiskCall {
    /// A sync of a file and its metadata.
    File,
    /// A sync of the content of a file.
    Data,
    /// A sync of this folder.
    Folder(PathBuf),
}

/// Takes the calls, and lets the next one of a kind fail.
#[derive(Debug, Default)]
struct RecordedDisk {
    calls: Mutex<Vec<DiskCall>>,
    fails: Mutex<Option<DiskCall>>,
    /// The folder that is looked at when bytes are freed.
    objects: OnceLock<Weak<ObjectFolder>>,
    freed: Mutex<Vec<FreedBytes>>,
}

/// What was so when bytes were freed.
#[derive(Debug, PartialEq)]
struct FreedBytes {
    len: u64,
    names: u64,
    could_pin: bool,
}

impl RecordedDisk {
    fn take(&self, call: DiskCall, action: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.calls.lock().expect("no panic").push(call.clone());
        let mut fails = self.fails.lock().expect("no panic");
        match fails.take_if(|fails| *fails == call) {
            Some(_) => Err(io::Error::other("the disk failed")),
            None => action(),
        }
    }

    fn fail_next(&self, call: DiskCall) {
        *self.fails.lock().expect("no panic") = Some(call);
    }

    /// The calls since the last question.
    fn taken(&self) -> Vec<DiskCall> {
        std::mem::take(&mut *self.calls.lock().expect("no panic"))
    }

    /// Whether another thread can pin an object now.
    fn can_pin(&self) -> bool {
        let objects = self.objects.get().and_then(Weak::upgrade);
        let objects = objects.expect("the folder is open");
        let (sender, pinned) = mpsc::channel();
        thread::spawn(move || {
            drop(objects.pin(blake3::hash(b"another")));
            sender.send(()).ok();
        });
        pinned.recv_timeout(Duration::from_secs(30)).is_ok()
    }
}

impl ObjectDisk for RecordedDisk {
    fn sync_file(&self, file: &File) -> io::Result<()> {
        self.take(DiskCall::File, || file.sync_all())
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        self.take(DiskCall::Data, || file.sync_data())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let sync = || File::open(folder)?.sync_all();
        self.take(DiskCall::Folder(folder.to_owned()), sync)
    }

    fn free(&self, removed: File) {
        let about = removed.metadata().expect("it is open");
        let freed = FreedBytes {
            len: about.len(),
            names: about.nlink(),
            could_pin: self.can_pin(),
        };
        self.freed.lock().expect("no panic").push(freed);
    }
}

struct DiskScene {
    root: tempfile::TempDir,
    disk: Arc<RecordedDisk>,
    objects: Arc<ObjectFolder>,
}

impl DiskScene {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("writable");
        let disk = Arc::new(RecordedDisk::default());
        let objects = open(root.path(), &disk);
        let weak = Arc::downgrade(&objects);
        disk.objects.set(weak).expect("it is new");
        disk.taken();
        Self {
            root,
            disk,
            objects,
        }
    }

    fn stage(&self, bytes: &[u8]) -> StagedObject {
        let mut staged = self.objects.stage().expect("writable");
        staged.write_at(0, bytes).expect("room");
        staged
    }

    fn folder_of(&self, bytes: &[u8]) -> PathBuf {
        let path = self.objects.path(&blake3::hash(bytes));
        path.parent().expect("a folder").to_owned()
    }
}

fn open(root: &Path, disk: &Arc<RecordedDisk>) -> Arc<ObjectFolder> {
    let disk = Arc::clone(disk) as Arc<dyn ObjectDisk>;
    let opened = ObjectFolder::open_on(root, OutboardPolicy::Placed, disk);
    opened.expect("the folder is ours")
}

/// Linux reports a lost write once. The second sync of the same file succeeds without the bytes.
#[test]
fn a_file_whose_sync_failed_is_never_placed() {
    let scene = DiskScene::new();
    let bytes = content(3 * GROUP);
    let mut staged = scene.stage(&bytes);
    scene.disk.fail_next(DiskCall::Data);
    staged.sync().expect_err("the disk failed");
    staged.sync().expect("the loss was reported already");
    let placed = staged.place();
    assert!(matches!(placed, Err(ObjectError::Io { .. })), "{placed:?}");
    let missing = scene.objects.reader(&blake3::hash(&bytes));
    assert!(matches!(missing, Err(ObjectError::Missing(_))));
    scene.stage(&bytes).place().expect("another file is whole");
}

/// A folder that is there counts as synced, and the one of a failed sync is not.
#[test]
fn a_folder_whose_name_could_not_be_synced_is_made_and_synced_again() {
    let scene = DiskScene::new();
    let bytes = content(100);
    let objects = scene.root.path().join("objects");
    let call = DiskCall::Folder(objects.clone());
    scene.disk.fail_next(call.clone());
    scene.stage(&bytes).place().expect_err("the disk failed");
    assert!(!scene.folder_of(&bytes).exists());
    scene.disk.taken();
    scene.stage(&bytes).place().expect("room");
    assert!(scene.disk.taken().contains(&call));
}

/// A process that died between the making of a folder and its sync leaves it to the next one.
#[test]
fn the_folder_of_objects_is_synced_when_it_is_opened() {
    let scene = DiskScene::new();
    fs::create_dir(scene.folder_of(b"bytes")).expect("writable");
    let disk = Arc::new(RecordedDisk::default());
    open(scene.root.path(), &disk);
    let objects = DiskCall::Folder(scene.root.path().join("objects"));
    assert!(disk.taken().contains(&objects));
}

#[test]
fn a_name_that_could_not_be_synced_is_given_again() {
    let scene = DiskScene::new();
    let bytes = content(100);
    let path = scene.objects.path(&blake3::hash(&bytes));
    let inode = || fs::metadata(&path).expect("it is there").ino();
    let folder = DiskCall::Folder(scene.folder_of(&bytes));
    scene.disk.fail_next(folder);
    let failed = scene.stage(&bytes).place();
    assert!(matches!(failed, Err(ObjectError::PlacedNotSynced { .. })));
    let before = inode();
    let placed = scene.stage(&bytes).place().expect("room");
    assert!(matches!(placed.placement(), Placement::Present));
    assert_ne!(inode(), before, "the sync that succeeds has a name to sync");
    let before = inode();
    scene.stage(&bytes).place().expect("room");
    assert_eq!(inode(), before);
}

/// An upload that skips the syncs of its file tells by its time that another writer has stored the content.
#[test]
fn what_is_there_is_synced_as_what_is_new() {
    let scene = DiskScene::new();
    let bytes = content(3 * GROUP);
    let syncs = || {
        let staged = scene.stage(&bytes);
        let placed = staged.place().expect("room");
        let of_files =
            |call: &DiskCall| *call != DiskCall::Folder(scene.root.path().join("objects"));
        let mut taken = scene.disk.taken();
        taken.retain(of_files);
        (matches!(placed.placement(), Placement::New), taken)
    };
    let (is_new, first) = syncs();
    let (is_new_again, second) = syncs();
    assert_eq!((is_new, is_new_again), (true, false));
    let of_content = |taken: &[DiskCall]| {
        let outboards = DiskCall::Folder(scene.root.path().join("outboards"));
        let mut kinds: Vec<_> = taken
            .iter()
            .filter(|call| **call != outboards)
            .cloned()
            .collect();
        // The outboard of a new object is synced once more when it gets its name.
        kinds.dedup();
        kinds
    };
    let folder = DiskCall::Folder(scene.folder_of(&bytes));
    let expected = [DiskCall::File, DiskCall::Data, folder];
    assert_eq!(of_content(&second), expected);
    assert_eq!(of_content(&first)[..3], expected);
}

/// To free 64 GiB takes the file system seconds, and the thread that writes the names needs the lock meanwhile.
#[test]
fn the_bytes_of_what_is_removed_or_replaced_are_freed_without_a_lock() {
    let scene = DiskScene::new();
    let bytes = content(3 * GROUP);
    let hash = blake3::hash(&bytes);
    let len = bytes.len() as u64;
    let freed = || std::mem::take(&mut *scene.disk.freed.lock().expect("no panic"));
    let is_free = |freed: &FreedBytes| freed.names == 0 && freed.could_pin;
    drop(scene.stage(&bytes).place().expect("room"));
    let removed = scene.objects.remove(&hash).expect("writable");
    assert_eq!(removed, ObjectRemoval::Removed { bytes: len });
    let of_removal = freed();
    assert!(of_removal.iter().all(is_free), "{of_removal:?}");
    let lens: Vec<_> = of_removal.iter().map(|freed| freed.len).collect();
    // With its outboard: a root, and two pairs.
    assert_eq!(lens, [len, 32 + 2 * 64]);
    drop(scene.stage(&bytes).place().expect("room"));
    let path = scene.objects.path(&hash);
    fs::remove_file(&path).expect("it is there");
    fs::write(&path, b"other bytes").expect("writable");
    let placed = scene.stage(&bytes).place().expect("room");
    assert!(matches!(placed.placement(), Placement::Repaired { .. }));
    let of_repair = freed();
    assert!(of_repair.iter().all(is_free), "{of_repair:?}");
    assert_eq!(of_repair.len(), 1);
}
