//! A folder of objects.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blake3::Hash;

use crate::disk::{ObjectDisk, SystemObjectDisk, hold_bytes, open_object};
use crate::error::{DamagedPart, ObjectError};
use crate::outboard_folder::{OutboardFolder, OutboardPolicy};

const OBJECTS: &str = "objects";
const OUTBOARDS: &str = "outboards";
/// Stores have this name on the disk.
const STAGING: &str = "uploads";
/// Permission bits of the folders that are made.
const FOLDER_MODE: u32 = 0o700;

/// A folder of objects. One process opens it at a time.
#[derive(Debug)]
pub struct ObjectFolder {
    objects: PathBuf,
    staging: PathBuf,
    outboards: OutboardFolder,
    /// The number of pins of each pinned object. Renames and removals of objects hold this lock.
    pins: Mutex<HashMap<Hash, usize>>,
    /// Held while the folder of a first digit pair is made, until its name is on the disk.
    making: Mutex<()>,
    /// Objects whose name could not be synced. The next writer of one gives it its name again, because the system does not
    /// report the same loss twice.
    unsynced: Mutex<HashSet<Hash>>,
    disk: Arc<dyn ObjectDisk>,
}

/// A file that has no name any more.
struct UnlinkedObject {
    bytes: u64,
    /// What keeps its bytes, and those of its outboard, from being freed.
    held: Vec<File>,
}

/// The result of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectRemoval {
    /// The object is pinned, or not free, and stays.
    InUse,
    /// There is no such object.
    Missing,
    /// The object was removed.
    Removed {
        /// Bytes that it had.
        bytes: u64,
    },
}

/// Keeps an object from being removed until it is dropped, whether the object is there or not.
#[derive(Debug)]
pub struct ObjectPin {
    folder: Arc<ObjectFolder>,
    hash: Hash,
}

impl ObjectFolder {
    /// Opens a folder, and makes it if it is missing, for its owner alone. Removes what was staged before. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn open(
        root: impl Into<PathBuf>,
        outboards: OutboardPolicy,
    ) -> Result<Arc<Self>, ObjectError> {
        Self::open_on(root, outboards, Arc::new(SystemObjectDisk))
    }

    /// The same with a disk of the caller's own.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn open_on(
        root: impl Into<PathBuf>,
        outboards: OutboardPolicy,
        disk: Arc<dyn ObjectDisk>,
    ) -> Result<Arc<Self>, ObjectError> {
        let root = root.into();
        let [objects, outboards_folder, staging] =
            [OBJECTS, OUTBOARDS, STAGING].map(|name| root.join(name));
        let open = || {
            let is_new = !root.try_exists()?;
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(FOLDER_MODE);
            for folder in [&objects, &outboards_folder, &staging] {
                builder.create(folder)?;
            }
            // An object is on the disk only if the folders above it are.
            disk.sync_folder(&root)?;
            if is_new && let Some(above) = root.parent() {
                disk.sync_folder(above)?;
            }
            // The process before may have ended after it made a folder for objects and before it synced the name, and
            // writers take a folder that is there for one whose name is on the disk.
            disk.sync_folder(&objects)?;
            // A restart ends every writer, so what it has staged is removed.
            for left in fs::read_dir(&staging)? {
                fs::remove_file(left?.path())?;
            }
            OutboardFolder::open(outboards_folder.clone(), outboards, Arc::clone(&disk))
        };
        let opened =
            open().map_err(|error| ObjectError::io(format_args!("open {}", root.display()), error));
        Ok(Arc::new(Self {
            outboards: opened?,
            objects,
            staging,
            pins: Mutex::default(),
            making: Mutex::default(),
            unsynced: Mutex::default(),
            disk,
        }))
    }

    /// The file of an object, which may be missing.
    #[must_use]
    pub fn path(&self, hash: &Hash) -> PathBuf {
        let hex = hash.to_hex();
        self.objects.join(&hex[..2]).join(hex.as_str())
    }

    /// The folder of files that are being written, on the file system of the objects. It is emptied when the folder of
    /// objects is opened.
    #[must_use]
    pub fn staging(&self) -> &Path {
        &self.staging
    }

    /// Bytes of an object, if it is there. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn size(&self, hash: &Hash) -> Result<Option<u64>, ObjectError> {
        let path = self.path(hash);
        let size = size(&path);
        size.map_err(|error| ObjectError::io(format_args!("look at {}", path.display()), error))
    }

    /// Opens the file of an object that has `size` bytes. Its content is not verified. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Missing`]; [`ObjectError::Damaged`] if it has another length, or is no regular file;
    /// [`ObjectError::Io`].
    pub fn open_file(&self, hash: &Hash, size: u64) -> Result<File, ObjectError> {
        let file = self.open_any(hash)?;
        let path = self.path(hash);
        let found = file.metadata();
        let found = found
            .map_err(|error| ObjectError::io(format_args!("look at {}", path.display()), error));
        match found?.len() == size {
            true => Ok(file),
            false => Err(ObjectError::Damaged {
                hash: *hash,
                part: DamagedPart::Content,
                source: None,
            }),
        }
    }

    /// The same whatever its length is.
    pub(crate) fn open_any(&self, hash: &Hash) -> Result<File, ObjectError> {
        let path = self.path(hash);
        open_object(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => ObjectError::Missing(*hash),
            ErrorKind::InvalidData => ObjectError::Damaged {
                hash: *hash,
                part: DamagedPart::Content,
                source: Some(error),
            },
            _ => ObjectError::io(format_args!("open {}", path.display()), error),
        })
    }

    /// Keeps an object from being removed. A writer has a pin from before it looks whether the object is there until
    /// a name leads to the object.
    #[must_use]
    pub fn pin(self: &Arc<Self>, hash: Hash) -> ObjectPin {
        *self.pins().entry(hash).or_default() += 1;
        ObjectPin {
            folder: Arc::clone(self),
            hash,
        }
    }

    /// Removes an object and its outboards, unless it is pinned. Those that have opened it read it to its end. When
    /// this returns, the removal is on the disk. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Io`]; [`ObjectError::RemovedNotSynced`].
    pub fn remove(&self, hash: &Hash) -> Result<ObjectRemoval, ObjectError> {
        self.remove_if(hash, || true)
    }

    /// The same, if the object is free. No pin begins or ends while `is_free` runs, so a name that a writer gave to the
    /// object while it had a pin is there by then. `is_free` must not pin, and must not drop a pin.
    ///
    /// # Errors
    /// [`ObjectError::Io`]; [`ObjectError::RemovedNotSynced`].
    pub fn remove_if(
        &self,
        hash: &Hash,
        is_free: impl FnOnce() -> bool,
    ) -> Result<ObjectRemoval, ObjectError> {
        let path = self.path(hash);
        let failed = |error| ObjectError::io(format_args!("remove {}", path.display()), error);
        let unlinked = {
            let pins = self.pins();
            if pins.contains_key(hash) || !is_free() {
                return Ok(ObjectRemoval::InUse);
            }
            self.unlink(hash, &path).map_err(failed)?
        };
        let bytes = unlinked.map(|UnlinkedObject { bytes, held }| {
            // Behind the lock, which every writer and the end of every pin needs.
            held.into_iter().for_each(|file| self.disk.free(file));
            bytes
        });
        // A reader that opened the object before may have computed an outboard meanwhile.
        let removed = self.outboards.remove_of(hash, bytes.unwrap_or(0));
        let Some(bytes) = bytes else {
            removed.map_err(failed)?;
            return Ok(ObjectRemoval::Missing);
        };
        let synced = self
            .disk
            .sync_folder(path.parent().unwrap_or(&self.objects));
        // The file is gone, so that what fails from here on is no failed removal.
        match removed.and(synced) {
            Ok(()) => Ok(ObjectRemoval::Removed { bytes }),
            Err(source) => Err(ObjectError::RemovedNotSynced {
                hash: *hash,
                bytes,
                source,
            }),
        }
    }

    /// Removes the names of the outboards and the file of an object, if it is there.
    fn unlink(&self, hash: &Hash, path: &Path) -> io::Result<Option<UnlinkedObject>> {
        let Some(bytes) = size(path)? else {
            return Ok(None);
        };
        let outboard = self.outboards.path_of(hash, bytes);
        let held = [path, &outboard].into_iter().filter_map(hold_bytes);
        let held = held.collect();
        // The outboards go first: a power cut must not leave one without its object, which no later removal would find.
        self.outboards.remove_of(hash, bytes)?;
        match self.disk.remove(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            removed => removed.map(|()| Some(UnlinkedObject { bytes, held })),
        }
    }

    /// Makes the folder above an object, and returns it when its name is on the disk.
    pub(crate) fn make_folder_of(&self, object: &Path) -> io::Result<PathBuf> {
        let folder = object.parent().unwrap_or(&self.objects).to_owned();
        // Another writer must not find a folder that a power cut would still take away.
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        match DirBuilder::new().mode(FOLDER_MODE).create(&folder) {
            Ok(()) => {
                let synced = self.disk.sync_folder(&self.objects);
                if synced.is_err() {
                    // The next writer has to make it again: a folder that is there counts as synced.
                    fs::remove_dir(&folder).ok();
                }
                synced?;
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(folder)
    }

    /// Remembers whether the name of an object got to the disk.
    pub(crate) fn note_name_sync(&self, hash: Hash, is_synced: bool) {
        let mut unsynced = self.unsynced();
        match is_synced {
            true => unsynced.remove(&hash),
            false => unsynced.insert(hash),
        };
    }

    /// Whether the last sync of the name of an object failed.
    pub(crate) fn is_name_unsynced(&self, hash: &Hash) -> bool {
        self.unsynced().contains(hash)
    }

    fn unsynced(&self) -> MutexGuard<'_, HashSet<Hash>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) const fn disk(&self) -> &Arc<dyn ObjectDisk> {
        &self.disk
    }

    pub(crate) const fn outboards(&self) -> &OutboardFolder {
        &self.outboards
    }

    pub(crate) fn objects_folder(&self) -> &Path {
        &self.objects
    }

    /// A panic while the lock is held leaves the numbers correct.
    pub(crate) fn pins(&self) -> MutexGuard<'_, HashMap<Hash, usize>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ObjectPin {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.folder.pins().entry(self.hash) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// Bytes of a file, if it is there. A link is not followed.
pub(crate) fn size(path: &Path) -> io::Result<Option<u64>> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        metadata => metadata.map(|metadata| Some(metadata.len())),
    }
}
