//! An object that is being written, until it has its place in the folder.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use blake3::{Hash, Hasher};
use tempfile::{NamedTempFile, TempPath};

use crate::disk::{ObjectDisk, hold_bytes, open_object};
use crate::error::ObjectError;
use crate::folder::{ObjectFolder, ObjectPin, size};
use crate::limits::BLOCK_BYTES;
use crate::outboard_folder::{OutboardFolder, outboard_name};
use crate::scrub::ObjectDamage;
use crate::tree_hasher::ContentHasher;

/// Permission bits of objects. Other processes map them, so no program may write to one.
const OBJECT_MODE: u32 = 0o444;

/// A file that becomes an object when it is whole. If it is dropped before [`StagedObject::place`], it is removed.
///
/// It is written by offset, and what no write reached is zero. The hash follows while each write begins where the last one
/// ended; what was written otherwise is read once more when the object is placed.
#[derive(Debug)]
pub struct StagedObject {
    folder: Arc<ObjectFolder>,
    file: File,
    /// The temporary name.
    name: TempPath,
    size: u64,
    /// Of the first bytes, up to its own number of them.
    hasher: ContentHasher,
    /// Whether a sync failed. The system reports what it lost once, so that a later sync would succeed without the bytes.
    is_sync_failed: bool,
}

/// An object that is on the disk.
#[derive(Debug)]
pub struct PlacedObject {
    hash: Hash,
    size: u64,
    placement: Placement,
    pin: ObjectPin,
}

/// How an object came to its place.
#[derive(Debug)]
pub enum Placement {
    /// It was not in the folder.
    New,
    /// It was there with the same bytes, and stays as it was.
    Present,
    /// It was there with other bytes, which the disk or another program made of it, and was replaced.
    Repaired {
        /// Bytes that the replaced file had.
        bytes: u64,
        /// What was wrong with it.
        damage: ObjectDamage,
    },
}

impl PlacedObject {
    /// BLAKE3 of the content.
    #[must_use]
    pub const fn hash(&self) -> Hash {
        self.hash
    }

    /// Bytes of the content.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// How it came to its place.
    #[must_use]
    pub const fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The pin, which keeps the object from being removed until a name leads to it.
    #[must_use]
    pub fn into_pin(self) -> ObjectPin {
        self.pin
    }
}

impl ObjectFolder {
    /// Begins an object. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn stage(self: &Arc<Self>) -> Result<StagedObject, ObjectError> {
        let staging = self.staging();
        let new = tempfile::Builder::new().tempfile_in(staging);
        let what = || format!("write to {}", staging.display());
        let new = new.map_err(|error| ObjectError::io(what(), error))?;
        let (file, name) = new.into_parts();
        let hasher = ContentHasher::new(self.outboards().is_placed(), staging);
        Ok(StagedObject {
            folder: Arc::clone(self),
            file,
            name,
            size: 0,
            hasher,
            is_sync_failed: false,
        })
    }

    /// Takes over a file of this file system that becomes an object, such as one that arrived in parts. Its bytes are hashed
    /// when it is placed. Its name is gone when this returns. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn adopt(self: &Arc<Self>, path: &Path) -> Result<StagedObject, ObjectError> {
        let what = || format!("take over {}", path.display());
        let failed = |error| ObjectError::io(what(), error);
        let mut staged = self.stage()?;
        // In the place of an empty staged file, so that a restart removes it if it is not placed.
        self.disk().rename(path, &staged.name).map_err(failed)?;
        let file = File::options().read(true).write(true).open(&staged.name);
        staged.file = file.map_err(failed)?;
        staged.size = staged.file.metadata().map_err(failed)?.len();
        Ok(staged)
    }

    /// What is stored under the hash of a content of this many bytes already.
    fn stored_content(&self, hash: &Hash, bytes: u64, path: &Path) -> io::Result<StoredContent> {
        let file = match open_object(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(StoredContent::Missing),
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return Ok(StoredContent::Damaged(ObjectDamage::Unreadable(error)));
            }
            file => file?,
        };
        // The hash covers the length. Without this look, each upload would read a file that another program has made long.
        if file.metadata()?.len() != bytes {
            return Ok(StoredContent::Damaged(ObjectDamage::OtherBytes));
        }
        let mut hasher = Hasher::new();
        let read = hasher.update_reader(file.take(bytes));
        let read = read.map(|hasher| hasher.finalize());
        Ok(match read {
            Ok(found) if found == *hash => StoredContent::Whole,
            Ok(_) => StoredContent::Damaged(ObjectDamage::OtherBytes),
            Err(error) => StoredContent::Damaged(ObjectDamage::Unreadable(error)),
        })
    }
}

enum StoredContent {
    Damaged(ObjectDamage),
    Missing,
    Whole,
}

impl StagedObject {
    /// Bytes so far: the end of what was written, or the length that was [set](Self::set_len).
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Writes at an offset. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Io`], such as of a full disk. A part of the bytes may be written.
    pub fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), ObjectError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let hashed = self.hasher.hashed_bytes();
        // Bytes that are in the hash already may change, even by a write that fails.
        if at < hashed {
            self.restart_hash();
        }
        let end = at.checked_add(bytes.len() as u64);
        let end = end.ok_or_else(|| io::Error::from(ErrorKind::FileTooLarge));
        let disk = self.folder.disk();
        let written = end.and_then(|end| disk.write_at(&self.file, at, bytes).map(|()| end));
        let end = written.map_err(|error| self.failed("write", error))?;
        self.size = self.size.max(end);
        if at == self.hasher.hashed_bytes() && self.hasher.update(bytes).is_err() {
            // The file has the bytes, so they can be hashed later.
            self.restart_hash();
        }
        Ok(())
    }

    /// Sets the length. Bytes beyond it are gone; a file that grows has zeros there. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn set_len(&mut self, size: u64) -> Result<(), ObjectError> {
        if size < self.hasher.hashed_bytes() {
            self.restart_hash();
        }
        let set = self.file.set_len(size);
        set.map_err(|error| self.failed("write", error))?;
        self.size = size;
        Ok(())
    }

    /// Returns when everything that was written is on the disk. It is no object yet, and a restart removes it. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Io`]. What was written may be lost then, and the file cannot be placed any more.
    pub fn sync(&mut self) -> Result<(), ObjectError> {
        let synced = self.folder.disk().sync_data(&self.file);
        self.is_sync_failed |= synced.is_err();
        synced.map_err(|error| self.failed("sync", error))
    }

    /// Another descriptor, which can only read. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn reader(&self) -> Result<File, ObjectError> {
        let opened = File::open(&self.name);
        opened.map_err(|error| self.failed("open", error))
    }

    /// Gives the file its place under its hash. When this returns, the object is on the disk, and so is its outboard if
    /// the folder's outboards are [placed](crate::OutboardPolicy::Placed). Blocks.
    ///
    /// An object that is there already is read, and replaced if it has other bytes. The staged file is synced all the same:
    /// otherwise the time of an upload would tell that another writer has stored the content.
    ///
    /// # Errors
    /// [`ObjectError::Io`], also after a [`sync`](Self::sync) that failed; [`ObjectError::PlacedNotSynced`] if the object is there, whole, but its name could not be
    /// synced or its outboard not be placed.
    pub fn place(self) -> Result<PlacedObject, ObjectError> {
        let path = self.name.to_path_buf();
        let what = |error| ObjectError::io(format_args!("store {}", path.display()), error);
        if self.is_sync_failed {
            return Err(what(io::Error::other("an earlier sync of it failed")));
        }
        let hashed = self.hash_rest().map_err(what)?;
        // From here on no request removes the object.
        let pin = hashed.folder.pin(hashed.hash);
        let (hash, size) = (hashed.hash, hashed.size);
        let what = |error| ObjectError::io(format_args!("store object {hash}"), error);
        let objects = Arc::clone(&hashed.folder);
        let disk = FolderDisk(objects.disk());
        let (placement, finished) = hashed.place(&disk).map_err(what)?;
        match finished {
            Ok(()) => Ok(PlacedObject {
                hash,
                size,
                placement,
                pin,
            }),
            Err(source) => Err(ObjectError::PlacedNotSynced {
                hash,
                placement,
                source,
            }),
        }
    }

    /// Hashes what the hash does not have yet.
    fn hash_rest(mut self) -> io::Result<HashedObject> {
        // A write that failed may have made the file longer.
        if self.file.metadata()?.len() != self.size {
            self.file.set_len(self.size)?;
        }
        let mut at = self.hasher.hashed_bytes();
        if at < self.size {
            let mut block = vec![0; BLOCK_BYTES];
            while at < self.size {
                // At most a block, so the cast keeps the value.
                let len = (self.size - at).min(BLOCK_BYTES as u64) as usize;
                self.file.read_exact_at(&mut block[..len], at)?;
                self.hasher.update(&block[..len])?;
                at += len as u64;
            }
        }
        let (staging, disk) = (self.folder.staging(), self.folder.disk());
        let (hash, outboard) = self.hasher.finish(staging, &**disk)?;
        Ok(HashedObject {
            folder: self.folder,
            file: self.file,
            name: self.name,
            size: self.size,
            hash,
            outboard,
        })
    }

    fn restart_hash(&mut self) {
        let has_outboard = self.folder.outboards().is_placed();
        self.hasher = ContentHasher::new(has_outboard, self.folder.staging());
    }

    fn failed(&self, action: &str, error: io::Error) -> ObjectError {
        ObjectError::io(format_args!("{action} {}", self.name.display()), error)
    }
}

/// What a placement asks of the disk, in steps between which a power cut may come.
trait PlacementDisk {
    /// Returns when the content and the permission bits of the object are on the disk.
    fn sync_object(&self, object: &File) -> io::Result<()>;

    /// Returns when the bytes of the outboard are on the disk.
    fn sync_outboard(&self, outboard: &File) -> io::Result<()>;

    /// Gives the object its name.
    fn rename(&self, staged: TempPath, object: &Path) -> io::Result<()>;

    /// Returns when the names in the folder are on the disk.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// Gives the outboard its name, which is then on the disk.
    fn add_outboard(
        &self,
        outboards: &OutboardFolder,
        name: String,
        outboard: NamedTempFile,
    ) -> io::Result<()>;
}

/// The disk of the folder.
struct FolderDisk<'d>(&'d Arc<dyn ObjectDisk>);

impl PlacementDisk for FolderDisk<'_> {
    fn sync_object(&self, object: &File) -> io::Result<()> {
        self.0.sync_file(object)
    }

    fn sync_outboard(&self, outboard: &File) -> io::Result<()> {
        self.0.sync_data(outboard)
    }

    fn rename(&self, staged: TempPath, object: &Path) -> io::Result<()> {
        self.0.rename(&staged, object)?;
        // The temporary name is gone, and may be the one of another file by now.
        staged.keep()?;
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.0.sync_folder(folder)
    }

    fn add_outboard(
        &self,
        outboards: &OutboardFolder,
        name: String,
        outboard: NamedTempFile,
    ) -> io::Result<()> {
        outboards.add(name, outboard).map(drop)
    }
}

/// A staged file whose hash is known.
#[derive(Debug)]
struct HashedObject {
    folder: Arc<ObjectFolder>,
    file: File,
    name: TempPath,
    size: u64,
    hash: Hash,
    outboard: Option<NamedTempFile>,
}

impl HashedObject {
    /// Returns how the object came to its place, and what failed after it was there.
    fn place(mut self, disk: &impl PlacementDisk) -> io::Result<(Placement, io::Result<()>)> {
        let path = self.folder.path(&self.hash);
        let folder = self.folder.make_folder_of(&path)?;
        let stored = self.folder.stored_content(&self.hash, self.size, &path)?;
        let outboard = self.outboard.take();
        // Also where the object is there, so that the time does not tell.
        self.sync(outboard.as_ref(), disk)?;
        let (size, hash) = (self.size, self.hash);
        let objects = Arc::clone(&self.folder);
        let (placement, renamed) = self.rename(stored, &path, disk)?;
        // Also of an object that another writer has just given its name. A name is on the disk only once its folder is
        // synced (fsync(2)).
        let synced = disk.sync_folder(&folder);
        objects.note_name_sync(hash, synced.is_ok());
        let named = renamed.and(synced);
        let finished = match outboard {
            Some(outboard) => named.and_then(|()| {
                let name = outboard_name(&hash, &(0..size));
                add_outboard(&objects, name, &placement, outboard, disk)
            }),
            None => named,
        };
        Ok((placement, finished))
    }

    /// Returns when the content and the outboard are on the disk, under their temporary names.
    fn sync(&self, outboard: Option<&NamedTempFile>, disk: &impl PlacementDisk) -> io::Result<()> {
        self.file
            .set_permissions(Permissions::from_mode(OBJECT_MODE))?;
        disk.sync_object(&self.file)?;
        outboard.map_or(Ok(()), |outboard| disk.sync_outboard(outboard.as_file()))
    }

    /// Gives the file its name, unless the object is there. Returns also what failed after that.
    fn rename(
        self,
        stored: StoredContent,
        path: &Path,
        disk: &impl PlacementDisk,
    ) -> io::Result<(Placement, io::Result<()>)> {
        // A name that could not be synced is given again: the next sync of the folder would not say that it is lost.
        let is_unsynced = self.folder.is_name_unsynced(&self.hash);
        let damage = match stored {
            StoredContent::Whole if !is_unsynced => return Ok((Placement::Present, Ok(()))),
            StoredContent::Whole | StoredContent::Missing => None,
            StoredContent::Damaged(damage) => Some(damage),
        };
        let outboards = self.folder.outboards();
        // Until the lock is dropped: the bytes of a file that is replaced are freed behind it.
        let replaced = hold_bytes(path);
        let pins = self.folder.pins();
        let placement = match (size(path)?, damage) {
            // Another writer has stored the same content meanwhile.
            (Some(_), None) if !is_unsynced => return Ok((Placement::Present, Ok(()))),
            (Some(_), None) => Placement::Present,
            (Some(bytes), Some(damage)) => Placement::Repaired { bytes, damage },
            (None, _) => Placement::New,
        };
        if let Placement::Repaired { bytes, .. } = placement {
            // They may have been computed of the damaged bytes.
            outboards.remove_of(&self.hash, bytes)?;
        }
        disk.rename(self.name, path)?;
        let renamed = match placement {
            // A reader of the damaged bytes may have computed one meanwhile.
            Placement::Repaired { bytes, .. } => outboards.remove_of(&self.hash, bytes),
            Placement::New | Placement::Present => Ok(()),
        };
        drop(pins);
        if let Some(replaced) = replaced {
            self.folder.disk().free(replaced);
        }
        Ok((placement, renamed))
    }
}

/// Gives an outboard its name, unless an object that was there before has one.
fn add_outboard(
    folder: &ObjectFolder,
    name: String,
    placement: &Placement,
    outboard: NamedTempFile,
    disk: &impl PlacementDisk,
) -> io::Result<()> {
    let outboards = folder.outboards();
    let is_there = matches!(placement, Placement::Present) && outboards.path(&name).try_exists()?;
    match is_there {
        true => Ok(()),
        false => disk.add_outboard(outboards, name, outboard),
    }
}

#[cfg(test)]
mod tests;
