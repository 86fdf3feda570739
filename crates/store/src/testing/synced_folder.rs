//! What a power cut leaves of a folder at worst: of each file what it was at its last sync, under the names that its folder
//! had at its last sync. A copy of the files as they are shows what the kernel has in memory, and passes without any sync.
//!
//! Calls that write are counted, so that a test lets each of them fail, and sees what a process that ends there leaves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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
}

/// What the system says of a call that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskError {
    Full,
    Failed,
}

impl DiskError {
    fn error(self) -> io::Error {
        match self {
            Self::Full => io::ErrorKind::StorageFull.into(),
            Self::Failed => io::Error::other("the disk failed"),
        }
    }
}

/// The call that a test lets fail.
#[derive(Clone, Copy, Debug)]
struct CallCountdown {
    /// Calls that succeed before it.
    left: u64,
    error: DiskError,
    /// Whether the test looks at what a crash leaves there.
    copies: bool,
}

/// A call that failed because a test wanted that.
#[derive(Debug)]
pub(crate) struct FailedCall {
    /// What a crash would have left there, if the test asked for that.
    pub(crate) crashed: Option<CrashedFolder>,
}

/// What a crash leaves at a call of the disk.
#[derive(Debug)]
pub(crate) struct CrashedFolder {
    /// As the process leaves it, in the folder `fs` of this one.
    pub(crate) of_process: TempDir,
    /// As a power cut leaves it, in the folder `fs` of this one.
    pub(crate) of_power: TempDir,
}

/// Follows the syncs of a folder, and counts the calls that write.
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
    countdown: Option<CallCountdown>,
    /// Set when the call that was to fail has come.
    failed: Option<FailedCall>,
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
    /// Blocks that a sync has lost. They come to the disk once they are written again.
    lost: BTreeSet<usize>,
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
            if self.lost.contains(&number) {
                let mut before = Self::block(&self.durable, number).to_vec();
                before.resize(block.len(), 0);
                durable.extend(before);
            } else {
                durable.extend(block);
            }
        }
        self.durable = durable;
    }

    fn lose(&mut self, current: &[u8]) {
        for number in 0..current.len().div_ceil(BLOCK) {
            if Self::block(current, number) != Self::block(&self.durable, number) {
                self.lost.insert(number);
            }
        }
    }

    /// A write makes its blocks wait for the next sync again.
    fn write(&mut self, at: u64, len: usize) {
        let at = usize::try_from(at).expect("small");
        for number in at / BLOCK..(at + len).div_ceil(BLOCK) {
            self.lost.remove(&number);
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

    /// The same for a folder of which everything is on the disk.
    pub(crate) fn follow_synced(root: &Path) -> Arc<Self> {
        let folder = Self::follow(root);
        let mut state = SyncedState::default();
        state.read(&folder.root).expect("readable");
        *folder.lock() = state;
        folder
    }

    pub(crate) fn fail_next(&self, fault: DiskFault) {
        self.lock().fault = Some(fault);
    }

    /// Lets one call fail, after this number of others. A write that fails has written the first half of its bytes.
    pub(crate) fn fail_call(&self, number: u64, error: DiskError, copies: bool) {
        let mut state = self.lock();
        state.countdown = Some(CallCountdown {
            left: number,
            error,
            copies,
        });
        state.failed = None;
    }

    /// Lets no call fail any more. Returns the call that failed, if it was reached.
    pub(crate) fn end_faults(&self) -> Option<FailedCall> {
        let mut state = self.lock();
        state.countdown = None;
        state.failed.take()
    }

    /// What a power cut leaves now, as the folder `fs` of a new one.
    pub(crate) fn cut(&self) -> TempDir {
        self.lock().cut(&self.root)
    }

    pub(crate) fn has(&self, path: &Path) -> bool {
        path.starts_with(&self.root)
    }

    /// Takes a call that writes, before it is made.
    pub(super) fn begin_call(&self) -> Result<(), DiskError> {
        let mut state = self.lock();
        let Some(countdown) = &mut state.countdown else {
            return Ok(());
        };
        if countdown.left > 0 {
            countdown.left -= 1;
            return Ok(());
        }
        let CallCountdown { error, copies, .. } = *countdown;
        state.countdown = None;
        let crashed = copies.then(|| {
            let of_process = tempfile::tempdir().expect("a temporary directory");
            copy_folder(&self.root, &of_process.path().join("fs"));
            CrashedFolder {
                of_process,
                of_power: state.cut(&self.root),
            }
        });
        state.failed = Some(FailedCall { crashed });
        Err(error)
    }

    fn call(&self) -> io::Result<()> {
        self.begin_call().map_err(DiskError::error)
    }

    /// Takes a write of the database, after it was made.
    pub(super) fn end_database_write(&self, path: &Path, at: u64, len: usize) {
        if let Some(database) = self.lock().databases.get_mut(path) {
            database.write(at, len);
        }
    }

    /// Takes a sync of the database, before it is made. Returns how it is to fail.
    pub(super) fn begin_database_sync(&self, path: &Path) -> Result<(), DiskError> {
        let counted = self.begin_call();
        let mut state = self.lock();
        let name = path.as_os_str().to_string_lossy();
        let fault = state.fault.take_if(|fault| match fault {
            DiskFault::Database(end) => name.ends_with(*end),
            DiskFault::Data => false,
        });
        let failed = counted.and_then(|()| fault.map_or(Ok(()), |_| Err(DiskError::Failed)));
        if failed.is_err() {
            let current = fs::read(path).expect("it is open");
            state
                .databases
                .entry(path.to_owned())
                .or_default()
                .lose(&current);
        }
        failed
    }

    /// Takes a sync of the database that was made.
    pub(super) fn end_database_sync(&self, path: &Path) {
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
    fn cut(&self, root: &Path) -> TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let target = dir.path().join("fs");
        self.write(root, &target);
        // SQLite syncs the folder with the first sync of a file that it has made.
        // A journal that was removed is gone: SQLite syncs the folder behind it.
        let there = self.databases.iter().filter(|(path, _)| path.exists());
        for (name, database) in there {
            let name = name.strip_prefix(root).expect("it is below");
            fs::write(target.join(name), &database.durable).expect("room");
        }
        dir
    }

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

    /// Takes what is in a folder for what is on the disk.
    fn read(&mut self, folder: &Path) -> io::Result<()> {
        let names = names_of(folder)?;
        for (name, kind) in &names {
            let path = folder.join(name);
            match kind {
                SyncedName::Folder => self.read(&path)?,
                SyncedName::File(inode) => {
                    let bytes = fs::read(&path)?;
                    if is_of_database(&path) {
                        self.databases.entry(path).or_default().durable = bytes;
                    } else {
                        self.files.insert(*inode, bytes);
                    }
                }
            }
        }
        self.folders.insert(folder.to_owned(), names);
        Ok(())
    }
}

/// Whether SQLite syncs the file.
fn is_of_database(path: &Path) -> bool {
    let name = path.file_name().expect("a name").to_string_lossy();
    ["fs.db", "fs.db-wal"].contains(&&*name)
}

fn names_of(folder: &Path) -> io::Result<BTreeMap<OsString, SyncedName>> {
    let mut names = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        let kind = match about.is_dir() {
            true => SyncedName::Folder,
            false => SyncedName::File(about.ino()),
        };
        names.insert(entry.file_name(), kind);
    }
    Ok(names)
}

/// Copies the files as they are.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
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

impl ObjectDisk for SyncedFolder {
    fn write_at(&self, file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
        let begun = self.call();
        let written = match begun {
            Ok(()) => bytes,
            Err(_) => &bytes[..bytes.len() / 2],
        };
        file.write_all_at(written, at)?;
        begun
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call()?;
        fs::rename(from, to)
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        self.call()?;
        fs::remove_file(file)
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        self.call()?;
        file.sync_all()?;
        self.record_file(file)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        self.call()?;
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
        self.call()?;
        let folder = folder.canonicalize()?;
        alknet_durable::sync_folder(&folder)?;
        let names = names_of(&folder)?;
        self.lock().folders.insert(folder, names);
        Ok(())
    }
}
