//! A folder of containers, each named by the hash of its content.
//!
//! ```text
//! objects/ab/HEX     a container; HEX is its id, ab the first two digits
//! names/PATH         the id that a path leads to
//! outboards/…        hash trees, computed when first wanted; deleting them is always safe
//! uploads/…          what is being stored; emptied when the store is opened
//! ```
//!
//! All but the names is a folder of [`alknet_objects`]. An object is stored whole or not at all, never changes, and this
//! process never maps it.

mod listing;
mod object;
mod outboard;
mod scrub;
mod state;
mod turns;
mod upload;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_core::{PeerId, ScopeSet};
use alknet_objects::{ObjectError, ObjectFolder, ObjectRemoval, OutboardPolicy};
use alknet_tensor::{ContainerLimits, FileId, TensorError, TensorErrorCode};

use crate::access::{TensorAccess, allows};
use crate::error::ServeError;
use crate::handler::blocking;
use crate::limits::{OPEN_FILES, OPEN_HEADER_BYTES, PATHS, STORE_BYTES, TREES, TREES_PART};
use crate::path::{StorePath, TensorFileRef};
use crate::pending::BytesInFlight;
use crate::upload_memory::UploadMemory;

pub use listing::{StoredPathPage, StoredTensorPath};
pub use object::Object;
pub use scrub::{StoreScrubReport, StoredFileScrub};
pub use upload::TensorUpload;

pub(crate) use alknet_objects::bytes_on_disk;
pub(crate) use outboard::prepare_outboard;

use state::{TensorStoreState, paths};
use turns::StoreTurns;

const NAMES: &str = "names";

/// Settings of a store.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Bytes of the disk that files and paths take at most: of each whole blocks, and 20 KiB for its
    /// entry and inode.
    pub bytes_max: u64,
    /// Limits of headers.
    pub limits: ContainerLimits,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            bytes_max: STORE_BYTES,
            limits: ContainerLimits::NETWORK,
        }
    }
}

/// A store of containers.
#[derive(Debug)]
pub struct TensorStore {
    root: PathBuf,
    options: StoreOptions,
    objects: Arc<ObjectFolder>,
    state: Mutex<TensorStoreState>,
    /// A change of a name holds this lock until both the disk and `state` have it, so that both have one order.
    naming: Mutex<()>,
    bytes_in_flight: Arc<BytesInFlight>,
    /// Turns for hash trees.
    tree_turns: StoreTurns,
    /// Turns for headers, each of which takes 8 times its bytes.
    header_turns: StoreTurns,
    upload_memory: Arc<UploadMemory>,
}

/// The result of removing a path or a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorRemoval {
    /// The file to which the path led.
    pub id: FileId,
    /// The freed bytes; 0 if another path leads to the file.
    pub freed: u64,
}

impl TensorStore {
    /// Opens the store in a folder, and makes the folder if it is missing. Blocks.
    ///
    /// # Errors
    /// `E_IO`; `E_LIMIT` if the folder has more paths than the limit.
    pub fn open(root: impl Into<PathBuf>, options: StoreOptions) -> Result<Arc<Self>, ServeError> {
        let root = root.into();
        let mut state = TensorStoreState::default();
        let outboards = OutboardPolicy::Cached {
            count_max: TREES,
            bytes_max: options.bytes_max / TREES_PART,
        };
        // The administrator reads this, and no peer, so the text has the path.
        let failed = |error: ObjectError| TensorError::new(TensorErrorCode::Io, error.to_string());
        let objects = ObjectFolder::open(&root, outboards);
        let objects = objects.map_err(|error| ServeError::Stored(failed(error)))?;
        for object in objects.objects() {
            state.used = state.used.saturating_add(bytes_on_disk(object?.size));
        }
        let names = root.join(NAMES);
        fs::create_dir_all(&names)
            .map_err(|error| ServeError::io(format_args!("open {}", root.display()), error))?;
        paths(&names, "", 0, &mut state)?;
        Ok(Arc::new(Self {
            root,
            options,
            objects,
            state: Mutex::new(state),
            naming: Mutex::default(),
            bytes_in_flight: Arc::default(),
            tree_turns: StoreTurns::default(),
            header_turns: StoreTurns::default(),
            upload_memory: Arc::default(),
        }))
    }

    /// Limits of headers.
    #[must_use]
    pub const fn limits(&self) -> &ContainerLimits {
        &self.options.limits
    }

    /// Which file `src` names, if an identity with these scopes may read it: by the path or id in `src` or, for an
    /// id, by any path that leads to the file.
    ///
    /// # Errors
    /// [`ServeError::Missing`], whether the file does not exist or the identity may not read it.
    pub fn resolve(&self, scopes: &ScopeSet, src: &TensorFileRef) -> Result<FileId, ServeError> {
        let state = self.state();
        let id = match src {
            TensorFileRef::Id(id) => Some(*id),
            TensorFileRef::Path(path) => state.paths.get(path).copied(),
        };
        let id = id.ok_or(ServeError::Missing)?;
        let may = |path: &str| allows(scopes, TensorAccess::Read, path);
        let by_name = || {
            let names = state.names.get(id.0.as_bytes());
            let mut names = names.into_iter().flatten();
            names.any(|path| may(path.as_str()))
        };
        let allowed = may(&src.scope_path()) || (matches!(src, TensorFileRef::Id(_)) && by_name());
        match allowed {
            true => Ok(id),
            false => Err(ServeError::Missing),
        }
    }

    /// Opens a file and reads its header. Blocks.
    ///
    /// # Errors
    /// [`ServeError::Missing`]; [`ServeError::Stored`] if the stored file is damaged.
    pub fn object(&self, id: FileId) -> Result<Arc<Object>, ServeError> {
        let known = {
            let state = self.state();
            let mut open = state.open.iter();
            open.find(|object| object.id() == id).map(Arc::clone)
        };
        match known {
            // Another request removed the file after this one had opened it.
            Some(object) if object.is_removed() => {
                self.state().open.retain(|other| other.id() != id);
            }
            Some(object) => match object.check() {
                Ok(()) => return Ok(object),
                Err(error) => tracing::warn!("{error}; its header is read again"),
            },
            None => {}
        }
        // The lock is not held here, because the header is read from the disk.
        let object = Arc::new(Object::open(&self.objects, id, self.limits())?);
        let mut state = self.state();
        // Another thread may have opened the same file meanwhile.
        state.open.retain(|other| other.id() != id);
        state.open.push(Arc::clone(&object));
        let bytes = |open: &[Arc<Object>]| -> u64 {
            open.iter().map(|object| object.meta().header_len()).sum()
        };
        while state.open.len() > OPEN_FILES
            // One file stays even if its header alone is above the limit, or it would be read for each request.
            || (state.open.len() > 1 && bytes(&state.open) > OPEN_HEADER_BYTES)
        {
            state.open.remove(0);
        }
        Ok(object)
    }

    /// Opens a file for a request of this identity, which waits for its turn if the header has to be read.
    ///
    /// # Errors
    /// The errors of [`TensorStore::object`].
    pub(crate) async fn opened(
        self: &Arc<Self>,
        id: FileId,
        who: &PeerId,
    ) -> Result<Arc<Object>, ServeError> {
        let is_open = self.state().open.iter().any(|object| object.id() == id);
        let turn = match is_open {
            true => None,
            false => Some(self.header_turns.turn(who).await),
        };
        let store = Arc::clone(self);
        blocking(move || {
            let _turn = turn;
            store.object(id)
        })
        .await
    }

    /// A descriptor of its own for a process that maps the container, which never changes. Blocks.
    ///
    /// # Errors
    /// The errors of [`TensorStore::resolve`]; `E_IO`.
    pub fn descriptor(
        &self,
        scopes: &ScopeSet,
        src: &TensorFileRef,
    ) -> Result<(FileId, File), ServeError> {
        let id = self.resolve(scopes, src)?;
        Ok((id, self.file(id)?))
    }

    /// The same for a file that was [resolved](crate::TensorRequester::resolve) before. Blocks.
    ///
    /// # Errors
    /// The errors of [`TensorStore::object`]; `E_IO`.
    pub fn file(&self, id: FileId) -> Result<File, ServeError> {
        Ok(Object::open(&self.objects, id, self.limits())?.into_file())
    }

    /// Stores a container that `file` reads. Blocks.
    ///
    /// # Errors
    /// The errors of [`TensorUpload`]'s functions.
    pub fn add(
        self: &Arc<Self>,
        file: impl Read,
        path: Option<StorePath>,
    ) -> Result<FileId, ServeError> {
        let mut file = file;
        let mut upload = TensorUpload::read(self, &mut file, path)?;
        let mut piece = vec![0; crate::limits::BLOCK_BYTES];
        loop {
            let read = file.read(&mut piece);
            match read.map_err(|error| ServeError::io("read a file", error))? {
                0 => return upload.commit(),
                len => upload.write(&piece[..len])?,
            }
        }
    }

    /// Removes a path, and the file that it leads to if no other path leads there. A response under way keeps reading
    /// the open file. Blocks.
    ///
    /// # Errors
    /// [`ServeError::Missing`]; `E_IO`.
    pub fn remove(&self, path: &StorePath) -> Result<TensorRemoval, ServeError> {
        let failed = |error| ServeError::io(format_args!("remove {path}"), error);
        let id = {
            let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
            let id = self.state().paths.get(path).copied();
            let id = id.ok_or(ServeError::Missing)?;
            // The name is removed from the disk first, or the path would be back after the next start.
            self.unlink_name(path).map_err(failed)?;
            self.state().forget_path(path);
            id
        };
        let freed = self.discard_free(&id)?;
        Ok(TensorRemoval { id, freed })
    }

    /// Removes a file to which no path leads. A response under way keeps reading the open file. Blocks.
    ///
    /// # Errors
    /// [`ServeError::Missing`]; `E_VALUE` if a path leads to the file; `E_IO`.
    pub fn remove_file(&self, id: FileId) -> Result<TensorRemoval, ServeError> {
        if self.objects.size(&id.0)?.is_none() {
            return Err(ServeError::Missing);
        }
        let names = self.state().names.get(id.0.as_bytes()).map(BTreeSet::len);
        if names.is_some_and(|names| names > 0) {
            let what = "a path leads to the file: remove the path";
            return Err(ServeError::input(TensorErrorCode::Value, what));
        }
        let freed = self.discard_free(&id)?;
        Ok(TensorRemoval { id, freed })
    }

    /// Removes the file of a path, and the folders above it that this leaves empty: a folder that stays would refuse a
    /// file of its name.
    fn unlink_name(&self, path: &StorePath) -> std::io::Result<()> {
        let names = self.root.join(NAMES);
        let file = names.join(path.as_str());
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut folder = file.parent().unwrap_or(&names);
        // The system does not remove a folder with content, so other paths keep their folders.
        while folder != names && fs::remove_dir(folder).is_ok() {
            folder = folder.parent().unwrap_or(&names);
        }
        // After the response, the path must stay removed even if the power fails.
        match File::open(folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            folder => folder?.sync_all(),
        }
    }

    /// Removes a file to which no path leads, and the hash trees computed from it; returns the freed bytes.
    fn discard_free(&self, id: &FileId) -> Result<u64, ServeError> {
        // An upload gives its file a path while it has a pin, so the path is here or the pin refuses the removal.
        let is_free = || {
            let mut state = self.state();
            let is_free = state.is_free(id);
            if is_free {
                state.names.remove(id.0.as_bytes());
            }
            is_free
        };
        match self.objects.remove_if(&id.0, is_free) {
            Ok(ObjectRemoval::Removed { bytes }) => {
                self.forget_file(id, bytes);
                Ok(bytes)
            }
            // Another request or another program has already removed it.
            Ok(ObjectRemoval::InUse | ObjectRemoval::Missing) => Ok(0),
            Err(error) => {
                // The file takes no room any more, and no later request would count that.
                if let ObjectError::RemovedNotSynced { bytes, .. } = &error {
                    self.forget_file(id, *bytes);
                }
                Err(error.into())
            }
        }
    }

    /// Notes that a file of this length was removed or replaced.
    fn forget_file(&self, id: &FileId, bytes: u64) {
        let mut state = self.state();
        state.open.retain(|object| object.id() != *id);
        state.used = state.used.saturating_sub(bytes_on_disk(bytes));
    }

    /// All paths, each with the file that it leads to.
    #[must_use]
    pub fn paths(&self) -> Vec<(StorePath, FileId)> {
        let state = self.state();
        let pairs = state.paths.iter().map(|(path, id)| (path.clone(), *id));
        pairs.collect()
    }

    /// Makes a path lead to a file.
    pub(crate) fn lead(&self, path: StorePath, id: FileId) -> Result<(), ServeError> {
        let file = self.root.join(NAMES).join(path.as_str());
        let folder = file.parent().unwrap_or(&self.root);
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let state = self.state();
            if state.paths.len() >= PATHS && !state.paths.contains_key(&path) {
                return Err(ServeError::Busy("paths in the store", PATHS as u64));
            }
        }
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(folder)?;
            let mut new = tempfile::Builder::new().tempfile_in(self.objects.staging())?;
            writeln!(new, "{id}")?;
            // The content is synced before the file gets its name, so after a power cut the path leads to a whole id
            // or to its former file.
            new.as_file().sync_all()?;
            new.persist(&file)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|error| match error.kind() {
            // A path cannot be both a file and a folder of other paths.
            ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::AlreadyExists
            | ErrorKind::DirectoryNotEmpty => ServeError::input(
                TensorErrorCode::Value,
                format!("{path} is a folder, or below a file"),
            ),
            _ => ServeError::io(format_args!("name {path}"), error),
        })?;
        // The table changes only once the disk has the name, so that memory never promises what a start would not
        // find.
        self.state().lead(path, id);
        Ok(())
    }

    /// Reserves room for a file that a peer will send.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<(), ServeError> {
        let mut state = self.state();
        let left = self.options.bytes_max.saturating_sub(state.used);
        if bytes > left {
            let wanted = bytes;
            return Err(ServeError::Quota { wanted, left });
        }
        state.used += bytes;
        Ok(())
    }

    /// Returns reserved room.
    pub(crate) fn release(&self, bytes: u64) {
        let mut state = self.state();
        state.used = state.used.saturating_sub(bytes);
    }

    /// Bytes of responses that are under way to each peer.
    pub(crate) const fn bytes_in_flight(&self) -> &Arc<BytesInFlight> {
        &self.bytes_in_flight
    }

    /// Memory of files that are being put, by peer.
    pub(crate) const fn upload_memory(&self) -> &Arc<UploadMemory> {
        &self.upload_memory
    }

    /// The turns in which hash trees are computed.
    pub(crate) const fn tree_turns(&self) -> &StoreTurns {
        &self.tree_turns
    }

    /// The turns in which headers are read.
    pub(crate) const fn header_turns(&self) -> &StoreTurns {
        &self.header_turns
    }

    pub(crate) fn object_path(&self, id: &FileId) -> PathBuf {
        self.objects.path(&id.0)
    }

    /// The files and their hash trees.
    pub(crate) const fn objects(&self) -> &Arc<ObjectFolder> {
        &self.objects
    }

    /// A panic while the lock is held leaves the counters correct.
    fn state(&self) -> MutexGuard<'_, TensorStoreState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use alknet_tensor::{ContainerWriter, Dtype};

    use super::*;

    /// The upload has found the file in the store, and links a path to it next.
    #[test]
    fn a_file_that_an_upload_is_about_to_store_is_not_removed() {
        let folder = tempfile::tempdir().expect("writable");
        let store = TensorStore::open(folder.path(), StoreOptions::default()).expect("writable");
        let mut writer = ContainerWriter::new(Cursor::new(Vec::new()));
        let content = vec![7; 64].into();
        writer
            .flat("x", Dtype::U8, &[64], content)
            .expect("it fits");
        let file = writer.finish().expect("memory").1.into_inner();
        let path = StorePath::parse("a").expect("a path");
        let id = store
            .add(file.as_slice(), Some(path.clone()))
            .expect("a good file");
        let arriving = store.objects().pin(id.0);
        let removed = store.remove(&path).expect("the path is there");
        assert_eq!(removed.freed, 0);
        assert!(store.object(id).is_ok());
        drop(arriving);
        let removed = store.remove_file(id).expect("nothing leads to it");
        assert_eq!(removed.freed, file.len() as u64);
        assert_eq!(store.object(id).expect_err("gone").code(), "E_NOTFOUND");
    }
}
