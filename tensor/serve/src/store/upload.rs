//! A container that a peer is uploading.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;

use alknet_tensor::{
    ContainerReader, FileId, Meta, PREFIX_BYTES, SchemaLayouts, TensorErrorCode, VerifyDepth,
    header_len, verify,
};
use blake3::Hasher;
use tempfile::TempPath;

use crate::error::ServeError;
use crate::path::StorePath;
use crate::store::TensorStore;
use crate::store::state::{bytes_on_disk, path_bytes_max};

/// An upload whose header has arrived. If it is dropped before [`TensorUpload::commit`], its file is removed.
#[derive(Debug)]
pub struct TensorUpload {
    store: Arc<TensorStore>,
    path: Option<StorePath>,
    file: File,
    /// The temporary name, until the file is stored under its id.
    name: Option<TempPath>,
    hasher: Hasher,
    have: u64,
    len: u64,
    /// Bytes reserved of the store's room.
    reserved: u64,
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
        let io = |error| ServeError::io("begin a file of the store", error);
        let (file, name) = store.temporary().map_err(io)?.into_parts();
        // The name is reserved as well, so that no file is stored whose path finds no room.
        let reserved = bytes_on_disk(len).saturating_add(path.as_ref().map_or(0, path_bytes_max));
        store.reserve(reserved)?;
        let mut upload = Self {
            store: Arc::clone(store),
            path,
            file,
            name: Some(name),
            hasher: Hasher::new(),
            have: 0,
            len,
            reserved,
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
        self.have
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
        if bytes.len() as u64 > self.len - self.have {
            let what = format!("bytes beyond the {} that the header says", self.len);
            return Err(ServeError::input(TensorErrorCode::Tiling, what));
        }
        let written = self.file.write_all(bytes);
        written.map_err(|error| ServeError::io("write a file of the store", error))?;
        self.hasher.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    /// Verifies the file by its header, stores it and returns its id. Blocks.
    ///
    /// # Errors
    /// `E_TILING` for missing bytes; `E_HASH` and every other code of a check that fails; `E_IO`.
    pub fn commit(mut self) -> Result<FileId, ServeError> {
        if self.have < self.len {
            let what = format!("{} bytes of {} are here", self.have, self.len);
            return Err(ServeError::input(TensorErrorCode::Tiling, what));
        }
        let io = |error| ServeError::io("store a file", error);
        let file = self.file.try_clone().map_err(io)?;
        let reader = ContainerReader::open(file, self.store.limits()).map_err(ServeError::Input)?;
        let report = verify(&reader, VerifyDepth::Hash, Some(&SchemaLayouts::default()));
        let report = report.map_err(ServeError::Stored)?;
        if let Some(problem) = report.problems.into_iter().next() {
            return Err(ServeError::Input(problem));
        }
        let id = FileId(self.hasher.finalize());
        let target = self.store.object_path(&id);
        // No request removes the file before the path leads to it.
        let _arriving = self.store.arriving(id);
        if !self.store.holds(&id).map_err(io)? {
            self.publish(&target).map_err(io)?;
        }
        if let Some(path) = self.path.take() {
            self.store.lead(path, id)?;
        }
        Ok(id)
    }

    /// Gives the file its final name, once its content is on the disk.
    fn publish(&mut self, target: &std::path::Path) -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let folder = target.parent().unwrap_or(target);
        std::fs::create_dir_all(folder)?;
        // Workers map the file, so no program may write to it from now on.
        let read_only = std::fs::Permissions::from_mode(0o444);
        self.file.set_permissions(read_only)?;
        self.file.sync_all()?;
        match self.name.take().map(|name| name.persist_noclobber(target)) {
            // The reserved room belongs to the object from now on.
            None | Some(Ok(())) => self.reserved -= bytes_on_disk(self.len),
            // Another upload has stored the same content meanwhile.
            Some(Err(error)) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Some(Err(error)) => return Err(error.error),
        }
        // The new name is on the disk only once its folder is synced (fsync(2)).
        File::open(folder)?.sync_all()
    }
}

impl Drop for TensorUpload {
    fn drop(&mut self) {
        self.store.release(self.reserved);
    }
}
