//! A container that a peer is uploading.

use std::io::Read;
use std::sync::Arc;

use alknet_objects::{ObjectError, Placement, StagedObject, bytes_on_disk};
use alknet_tensor::{
    ContainerReader, FileId, Meta, PREFIX_BYTES, SchemaLayouts, TensorErrorCode, VerifyDepth,
    header_len, verify,
};

use crate::error::ServeError;
use crate::path::StorePath;
use crate::store::TensorStore;
use crate::store::state::path_bytes_max;

/// An upload whose header has arrived. If it is dropped before [`TensorUpload::commit`], its file is removed.
#[derive(Debug)]
pub struct TensorUpload {
    store: Arc<TensorStore>,
    path: Option<StorePath>,
    staged: StagedObject,
    len: u64,
    reservation: UploadReservation,
}

/// Bytes reserved of the store's room; dropping it gives them back.
#[derive(Debug)]
struct UploadReservation {
    store: Arc<TensorStore>,
    bytes: u64,
}

impl TensorUpload {
    /// Begins with a header and its length prefix, and reserves room for the file. Blocks.
    ///
    /// # Errors
    /// Any code of the format that needs no data; [`ServeError::Quota`]; `E_IO`.
    pub fn begin(
        store: &Arc<TensorStore>,
        header: &[u8],
        path: Option<StorePath>,
    ) -> Result<Self, ServeError> {
        let limits = store.limits();
        let len = header_len(header, header.len() as u64, limits).map_err(ServeError::Input)?;
        let text = header.get(PREFIX_BYTES as usize..).unwrap_or_default();
        if text.len() as u64 != len {
            let what = format!("a header of {len} bytes came in {}", text.len());
            return Err(ServeError::input(TensorErrorCode::Header, what));
        }
        let meta = Meta::of_header(text, limits).map_err(ServeError::Input)?;
        let len = meta.file_len();
        // The name is reserved as well, so that no file is stored whose path finds no room.
        let bytes = bytes_on_disk(len).saturating_add(path.as_ref().map_or(0, path_bytes_max));
        store.reserve(bytes)?;
        let reservation = UploadReservation {
            store: Arc::clone(store),
            bytes,
        };
        let mut upload = Self {
            store: Arc::clone(store),
            path,
            staged: store.objects().stage()?,
            len,
            reservation,
        };
        upload.write(header)?;
        Ok(upload)
    }

    /// Begins with a header that is read from `source`.
    pub(crate) fn read(
        store: &Arc<TensorStore>,
        source: &mut impl Read,
        path: Option<StorePath>,
    ) -> Result<Self, ServeError> {
        let io = |error| ServeError::io("read a header", error);
        let mut header = vec![0; PREFIX_BYTES as usize];
        source.read_exact(&mut header).map_err(io)?;
        let len = header_len(&header, u64::MAX, store.limits()).map_err(ServeError::Input)?;
        let read = source.take(len).read_to_end(&mut header).map_err(io)?;
        if read as u64 != len {
            let what = format!("a header of {len} bytes ends after {read}");
            return Err(ServeError::input(TensorErrorCode::Header, what));
        }
        Self::begin(store, &header, path)
    }

    /// Bytes that have arrived.
    #[must_use]
    pub const fn have(&self) -> u64 {
        self.staged.size()
    }

    /// Bytes that the whole file has.
    #[must_use]
    pub const fn file_len(&self) -> u64 {
        self.len
    }

    /// Appends the next bytes. Blocks.
    ///
    /// # Errors
    /// `E_TILING` for bytes beyond the end that the header states; `E_IO`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ServeError> {
        // The header determines the length, for which room was reserved; more bytes would exceed it.
        let have = self.have();
        if bytes.len() as u64 > self.len - have {
            let what = format!("bytes beyond the {} that the header says", self.len);
            return Err(ServeError::input(TensorErrorCode::Tiling, what));
        }
        Ok(self.staged.write_at(have, bytes)?)
    }

    /// Verifies the file by its header, stores it and returns its id. Blocks.
    ///
    /// # Errors
    /// `E_TILING` for missing bytes; `E_HASH` and every other code of a check that fails; `E_IO`.
    pub fn commit(mut self) -> Result<FileId, ServeError> {
        if self.have() < self.len {
            let what = format!("{} bytes of {} are here", self.have(), self.len);
            return Err(ServeError::input(TensorErrorCode::Tiling, what));
        }
        let file = self.staged.reader()?;
        let reader = ContainerReader::open(file, self.store.limits()).map_err(ServeError::Input)?;
        let report = verify(&reader, VerifyDepth::Hash, Some(&SchemaLayouts::default()));
        let report = report.map_err(ServeError::Stored)?;
        if let Some(problem) = report.problems.into_iter().next() {
            return Err(ServeError::Input(problem));
        }
        // No request removes the file before the path leads to it, because what was placed has a pin.
        let placed = match self.staged.place() {
            Ok(placed) => placed,
            Err(error) => {
                // The file is there, so it takes the room, whatever failed after that.
                if let ObjectError::PlacedNotSynced {
                    hash, placement, ..
                } = &error
                {
                    let id = FileId(*hash);
                    self.reservation.account_for(&id, placement, self.len);
                }
                return Err(error.into());
            }
        };
        let id = FileId(placed.hash());
        self.reservation
            .account_for(&id, placed.placement(), self.len);
        if let Some(path) = self.path {
            self.store.lead(path, id)?;
        }
        drop(placed);
        Ok(id)
    }
}

impl UploadReservation {
    /// Leaves the room that a file of this length took at its placement to the file.
    fn account_for(&mut self, id: &FileId, placement: &Placement, len: u64) {
        match placement {
            Placement::New => self.spend(bytes_on_disk(len)),
            Placement::Present => {}
            Placement::Repaired { bytes, damage } => {
                tracing::warn!(file = %id, "damaged in the store of tensors ({damage}), and stored again");
                self.store.forget_file(id, *bytes);
                self.spend(bytes_on_disk(len));
            }
        }
    }

    /// Leaves this many of the bytes to what was stored.
    const fn spend(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Drop for UploadReservation {
    fn drop(&mut self) {
        self.store.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::io::Cursor;
    use std::os::unix::fs::PermissionsExt;
    use std::thread;

    use alknet_tensor::{ContainerWriter, Dtype};
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

    use super::*;
    use crate::store::StoreOptions;

    fn container() -> Vec<u8> {
        let mut writer = ContainerWriter::new(Cursor::new(Vec::new()));
        let content = vec![7; 64].into();
        writer
            .flat("x", Dtype::U8, &[64], content)
            .expect("it fits");
        writer.finish().expect("memory").1.into_inner()
    }

    /// Runs this in a thread that the permission bits of files bind, also where the tests run as root.
    fn bound_by_permissions<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        let bound = || {
            let mut sets = capabilities(None).expect("they are its own");
            let beyond = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
            sets.effective.remove(beyond);
            set_capabilities(None, sets).expect("a thread may have fewer");
            work()
        };
        thread::scope(|scope| scope.spawn(bound).join().expect("it does not panic"))
    }

    /// The folder of the file cannot be opened, so that it cannot be synced, while names in it are given and removed.
    /// A peer that stored a file then took room that no quota counted, and room that a removal freed stayed taken.
    #[test]
    fn room_is_counted_when_a_file_comes_and_goes_also_if_its_folder_cannot_be_synced() {
        let folder = tempfile::tempdir().expect("writable");
        let store = TensorStore::open(folder.path(), StoreOptions::default()).expect("writable");
        let file = container();
        let id = FileId(blake3::hash(&file));
        let path = store.object_path(&id);
        let above = path.parent().expect("a folder");
        fs::create_dir(above).expect("writable");
        let used = || store.state().used;
        let before = used();
        fs::set_permissions(above, Permissions::from_mode(0o300)).expect("it is ours");
        let stored = bound_by_permissions(|| store.add(file.as_slice(), None));
        assert_eq!(stored.expect_err("it is not synced").code(), "E_IO");
        assert!(path.exists());
        assert_eq!(used(), before + bytes_on_disk(file.len() as u64));
        let removed = bound_by_permissions(|| store.remove_file(id));
        assert_eq!(removed.expect_err("it is not synced").code(), "E_IO");
        assert!(!path.exists());
        assert_eq!(used(), before);
        fs::set_permissions(above, Permissions::from_mode(0o700)).expect("it is ours");
        store.add(file.as_slice(), None).expect("a good file");
        assert_eq!(used(), before + bytes_on_disk(file.len() as u64));
    }

    /// What a peer sends fails at a folder of the node.
    #[test]
    fn an_upload_that_the_disk_refuses_tells_no_path_of_the_node() {
        let folder = tempfile::tempdir().expect("writable");
        let store = TensorStore::open(folder.path(), StoreOptions::default()).expect("writable");
        let file = container();
        let root = folder.path().to_str().expect("text");
        let add = |path: Option<&str>| {
            let path = path.map(|path| StorePath::parse(path).expect("a path"));
            let error = store.add(file.as_slice(), path);
            error.expect_err("the disk refuses").to_string()
        };
        fs::remove_dir(store.objects().staging()).expect("it is empty");
        let text = add(None);
        assert!(!text.contains(root), "{text}");
        fs::create_dir(store.objects().staging()).expect("writable");
        fs::remove_dir_all(folder.path().join("objects")).expect("it is ours");
        let text = add(Some("a"));
        assert!(!text.contains(root), "{text}");
    }
}
