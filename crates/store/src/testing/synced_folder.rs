//! What a power cut leaves of a folder at worst: of each file what it was at its last sync, under the names that its folder
//! had at its last sync. A copy of the files as they are shows what the kernel has in memory, and passes without any sync.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use alknet_objects::ObjectDisk;
use tempfile::TempDir;

use super::recorded_vfs;

/// Bytes that the kernel writes, or loses, at once.
const BLOCK: usize = 4096;

/// A call that a test lets fail.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum DiskFault {
    /// The next sync of the content of a staging file.
    Data,
    /// The next sync of the file with this end of its name by the database. What was not synced is lost.
    Database(&'static str),
    /// The same without a loss: the database writes the same bytes once more, which this model does not see.
    DatabaseOnly(&'static str),
}

/// Follows the syncs of a folder.
#[derive(Debug)]
pub(crate) struct SyncedFolder {
    root: PathBuf,
    state: Mutex<SyncedState>,
}

#[derive(Debug, Default)]
struct SyncedState {
    /// Contents, by inode.
    files: HashMap<u64, Vec<u8>>,
    folders: HashMap<PathBuf, BTreeMap<OsString, SyncedName>>,
    databases: BTreeMap<PathBuf, SyncedDatabase>,
    fault: Option<DiskFault>,
}

#[derive(Clone, Copy, Debug)]
enum SyncedName {
    File(u64),
    Folder,
}

/// A file of the database.
#[derive(Debug, Default)]
struct SyncedDatabase {
    durable: Vec<u8>,
    /// Blocks that a sync has lost, with what was in them. They come to the disk once they are written again.
    lost: HashMap<usize, Vec<u8>>,
}

impl SyncedDatabase {
    fn block(bytes: &[u8], number: usize) -> &[u8] {
        let start = (number * BLOCK).min(bytes.len());
        &bytes[start..(start + BLOCK).min(bytes.len())]
    }

    fn sync(&mut self, current: &[u8]) {
        let mut durable = Vec::with_capacity(current.len());
        for number in 0..current.len().div_ceil(BLOCK) {
            let block = Self::block(current, number);
            if self.lost.get(&number).is_some_and(|lost| lost == block) {
                let mut before = Self::block(&self.durable, number).to_vec();
                before.resize(block.len(), 0);
                durable.extend(before);
            } else {
                self.lost.remove(&number);
                durable.extend(block);
            }
        }
        self.durable = durable;
    }

    fn lose(&mut self, current: &[u8]) {
        for number in 0..current.len().div_ceil(BLOCK) {
            let block = Self::block(current, number);
            if block != Self::block(&self.durable, number) {
                self.lost.insert(number, block.to_vec());
            }
        }
    }
}

impl SyncedFolder {
    /// Follows the syncs below `root`, which the test makes afterwards.
    pub(crate) fn follow(root: &Path) -> Arc<Self> {
        let above = root.parent().expect("a folder above");
        let above = above.canonicalize().expect("it is there");
        let folder = Arc::new(Self {
            root: above.join(root.file_name().expect("a name")),
            state: Mutex::default(),
        });
        recorded_vfs::follow(&folder);
        folder
    }

    pub(crate) fn fail_next(&self, fault: DiskFault) {
        self.lock().fault = Some(fault);
    }

    /// What a power cut leaves now, as the folder `fs` of a new one.
    pub(crate) fn cut(&self) -> TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let target = dir.path().join("fs");
        let state = self.lock();
        state.write(&self.root, &target);
        // SQLite syncs the folder with the first sync of a file that it has made.
        // A journal that was removed is gone: SQLite syncs the folder behind it.
        let there = state.databases.iter().filter(|(path, _)| path.exists());
        for (name, database) in there {
            let name = name.strip_prefix(&self.root).expect("it is below");
            fs::write(target.join(name), &database.durable).expect("room");
        }
        dir
    }

    pub(crate) fn has(&self, path: &Path) -> bool {
        path.starts_with(&self.root)
    }

    /// Takes a sync of the database, before it is made. Returns `false` if it is to fail.
    pub(crate) fn begin_database_sync(&self, path: &Path) -> bool {
        let mut state = self.lock();
        let name = path.as_os_str().to_string_lossy();
        let fault = state.fault.take_if(|fault| match fault {
            DiskFault::Database(end) | DiskFault::DatabaseOnly(end) => name.ends_with(*end),
            DiskFault::Data => false,
        });
        if let Some(DiskFault::Database(_)) = fault {
            let current = fs::read(path).expect("it is open");
            state
                .databases
                .entry(path.to_owned())
                .or_default()
                .lose(&current);
        }
        fault.is_none()
    }

    /// Takes a sync of the database that was made.
    pub(crate) fn end_database_sync(&self, path: &Path) {
        // A test may remove the folder before it closes the store.
        let Ok(current) = fs::read(path) else {
            return;
        };
        let mut state = self.lock();
        state
            .databases
            .entry(path.to_owned())
            .or_default()
            .sync(&current);
    }

    fn record_file(&self, file: &File) -> io::Result<()> {
        let about = file.metadata()?;
        let mut bytes = vec![0; usize::try_from(about.len()).expect("short")];
        file.read_exact_at(&mut bytes, 0)?;
        self.lock().files.insert(about.ino(), bytes);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, SyncedState> {
        self.state.lock().expect("no panic")
    }
}

impl SyncedState {
    fn write(&self, folder: &Path, target: &Path) {
        fs::create_dir_all(target).expect("writable");
        for (name, kind) in self.folders.get(folder).into_iter().flatten() {
            let (from, to) = (folder.join(name), target.join(name));
            match kind {
                SyncedName::Folder => self.write(&from, &to),
                // A file of the database, or one whose bytes never came to the disk.
                SyncedName::File(inode) => {
                    let bytes = self.files.get(inode).map_or(&[][..], Vec::as_slice);
                    fs::write(to, bytes).expect("room");
                }
            }
        }
    }
}

impl ObjectDisk for SyncedFolder {
    fn sync_file(&self, file: &File) -> io::Result<()> {
        file.sync_all()?;
        self.record_file(file)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        if self
            .lock()
            .fault
            .take_if(|fault| *fault == DiskFault::Data)
            .is_some()
        {
            return Err(io::Error::other("the disk failed"));
        }
        file.sync_data()?;
        self.record_file(file)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let folder = folder.canonicalize()?;
        alknet_durable::sync_folder(&folder)?;
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let about = entry.metadata()?;
            let kind = match about.is_dir() {
                true => SyncedName::Folder,
                false => SyncedName::File(about.ino()),
            };
            names.insert(entry.file_name(), kind);
        }
        self.lock().folders.insert(folder, names);
        Ok(())
    }
}
