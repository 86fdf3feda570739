//! A container that a peer is uploading.

use std::io::Read;
use std::sync::Arc;

use alknet_objects::{Placement, StagedObject, bytes_on_disk};
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
        let placed = self.staged.place()?;
        let id = FileId(placed.hash());
        match placed.placement() {
            // The reserved room belongs to the file from now on.
            Placement::New => self.reservation.spend(bytes_on_disk(self.len)),
            Placement::Present => {}
            Placement::Repaired { bytes, damage } => {
                tracing::warn!(file = %id, "damaged in the store of tensors ({damage}), and stored again");
                self.store.forget_file(&id, *bytes);
                self.reservation.spend(bytes_on_disk(self.len));
            }
        }
        if let Some(path) = self.path {
            self.store.lead(path, id)?;
        }
        drop(placed);
        Ok(id)
    }
}

impl UploadReservation {
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
