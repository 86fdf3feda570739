//! The bytes of sessions: buffers, and uploads for the next request.

use std::borrow::Cow;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

use alknet_compute_wire::limits::{BUFFERS_BYTES_MAX, TENSOR_BYTES_MAX, UPLOADS_MAX};
use alknet_compute_wire::{ByteSource, ComputeUpload, codes};
use alknet_worker::{SealedMapping, WorkerFrameError};

use super::fault::{GpuFault, GpuResult};
use super::memory::{TensorMemory, TensorStorage};

/// A tensor's storage and the number of bytes in use; storage is rounded up to whole words.
#[derive(Clone, Debug)]
pub(super) struct TensorBuffer {
    pub(super) storage: TensorStorage,
    pub(super) len: u64,
}

/// The buffers and uploads of one session.
#[derive(Debug, Default)]
pub(super) struct BufferPool {
    buffers: HashMap<u64, TensorBuffer>,
    /// An upload that cannot be read keeps its error until a request names it.
    uploads: HashMap<u64, Result<UploadBytes, WorkerFrameError>>,
}

/// Bytes that the host sent.
#[derive(Debug)]
enum UploadBytes {
    Inline(Vec<u8>),
    SealedMapping(SealedMapping),
}

impl UploadBytes {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Inline(bytes) => bytes,
            Self::SealedMapping(mapped) => mapped,
        }
    }
}

/// The location of a source's bytes.
#[derive(Debug)]
pub(super) enum SourceBytes<'a> {
    /// In a buffer of the session.
    Buffer(TensorBuffer),
    /// In memory of this process.
    Memory(Cow<'a, [u8]>),
}

impl BufferPool {
    /// Keeps uploads up to the limit.
    pub(super) fn upload(&mut self, upload: ComputeUpload, fds: &[OwnedFd]) {
        for (number, blob) in upload.blobs {
            // The request that names an upload above the limit fails.
            if self.uploads.len() >= UPLOADS_MAX {
                return;
            }
            let held = match blob.mapped(fds) {
                Ok(Some(mapped)) => Ok(UploadBytes::SealedMapping(mapped)),
                Ok(None) => blob.read(fds, u64::MAX).map(UploadBytes::Inline),
                // The error is kept, because a notice has no response in which to report it.
                Err(error) => Err(error),
            };
            self.uploads.insert(number, held);
        }
    }

    pub(super) fn forget_uploads(&mut self) {
        self.uploads.clear();
    }

    /// Bytes of all buffers.
    pub(super) fn bytes(&self) -> u64 {
        self.buffers
            .values()
            .map(|stored| stored.storage.size())
            .sum()
    }

    pub(super) fn stored(&self, number: u64) -> GpuResult<TensorBuffer> {
        let stored = self.buffers.get(&number).cloned();
        stored.ok_or_else(|| GpuFault::internal("no such buffer"))
    }

    pub(super) fn put(&mut self, number: u64, stored: TensorBuffer) {
        self.buffers.insert(number, stored);
    }

    pub(super) fn remove(&mut self, number: u64) {
        self.buffers.remove(&number);
    }

    /// The length of a source.
    pub(super) fn len(&self, source: &ByteSource) -> GpuResult<u64> {
        Ok(match source {
            ByteSource::Buffer(number) => self.stored(*number)?.len,
            ByteSource::Bytes(bytes) => bytes.len() as u64,
            ByteSource::Upload(number) => self.held(*number)?.len() as u64,
            ByteSource::Zero(len) => *len,
        })
    }

    /// Locates the bytes of a source.
    pub(super) fn locate<'a>(&'a self, source: &'a ByteSource) -> GpuResult<SourceBytes<'a>> {
        check_length(self.len(source)?)?;
        Ok(match source {
            ByteSource::Buffer(number) => SourceBytes::Buffer(self.stored(*number)?),
            ByteSource::Bytes(bytes) => SourceBytes::Memory(Cow::Borrowed(bytes)),
            ByteSource::Upload(number) => SourceBytes::Memory(Cow::Borrowed(self.held(*number)?)),
            ByteSource::Zero(len) => {
                let len = usize::try_from(*len).unwrap_or(usize::MAX);
                SourceBytes::Memory(Cow::Owned(vec![0; len]))
            }
        })
    }

    fn held(&self, number: u64) -> GpuResult<&[u8]> {
        match self.uploads.get(&number) {
            Some(Ok(held)) => Ok(held.bytes()),
            Some(Err(error)) => Err(GpuFault::internal(&format!(
                "an upload cannot be read: {error}"
            ))),
            None => Err(GpuFault::internal("no such upload")),
        }
    }

    /// A source as a tensor: an existing buffer, or a new one.
    pub(super) fn stored_from(
        &self,
        memory: &TensorMemory,
        source: &ByteSource,
        used: u64,
    ) -> GpuResult<TensorBuffer> {
        let len = self.len(source)?;
        check_length(len)?;
        // An existing buffer takes no further room.
        if let ByteSource::Buffer(number) = source {
            return self.stored(*number);
        }
        check_quota(used, len)?;
        let storage = match source {
            ByteSource::Zero(len) => memory.zeroed(*len)?,
            ByteSource::Bytes(bytes) => memory.upload(bytes)?,
            ByteSource::Upload(number) => memory.upload(self.held(*number)?)?,
            ByteSource::Buffer(number) => return self.stored(*number),
        };
        Ok(TensorBuffer { storage, len })
    }
}

/// Checks the limit of one tensor.
pub(super) fn check_length(len: u64) -> GpuResult<()> {
    if len > TENSOR_BYTES_MAX {
        return Err(GpuFault::too_large("a tensor", len, TENSOR_BYTES_MAX));
    }
    Ok(())
}

/// Checks the limit of the worker.
pub(super) fn check_quota(used: u64, more: u64) -> GpuResult<()> {
    if used.saturating_add(more) > BUFFERS_BYTES_MAX {
        let message = format!("all buffers together may have {BUFFERS_BYTES_MAX} bytes");
        return Err(GpuFault::new(codes::QUOTA, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alknet_worker::FrameBlob;

    use super::*;

    #[test]
    fn an_upload_that_cannot_be_read_says_why() {
        let mut tensor_table = BufferPool::default();
        let lost = FrameBlob::Sealed { at: 0, len: 8 };
        let upload = ComputeUpload {
            blobs: vec![(1, lost)],
        };
        tensor_table.upload(upload, &[]);
        let message = |number| {
            let len = tensor_table.len(&ByteSource::Upload(number));
            len.expect_err("not there").message
        };
        assert!(message(1).contains("0 descriptors came"), "{}", message(1));
        assert_eq!(message(2), "no such upload");
    }
}
