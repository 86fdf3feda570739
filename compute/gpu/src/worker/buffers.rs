//! Bytes that sessions keep here: buffers, and what was uploaded for the next request.

use std::borrow::Cow;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

use alknet_compute_wire::limits::{BUFFERS_BYTES_MAX, TENSOR_BYTES_MAX, UPLOADS_MAX};
use alknet_compute_wire::{Source, Upload, codes};
use alknet_worker::{FrameError, Mapped};

use super::fault::{Failed, Outcome};
use super::memory::{Kept, Memory};

/// A tensor's bytes and how many of them mean something; buffers are rounded up to whole words.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) kept: Kept,
    pub(super) len: u64,
}

/// What one session has here.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    buffers: HashMap<u64, Stored>,
    /// With the reason for one that cannot be read, until a request asks for it.
    uploads: HashMap<u64, Result<Held, FrameError>>,
}

/// Bytes that came from the host.
#[derive(Debug)]
enum Held {
    Inline(Vec<u8>),
    Mapped(Mapped),
}

impl Held {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Inline(bytes) => bytes,
            Self::Mapped(mapped) => mapped,
        }
    }
}

/// Where the bytes of a source are.
#[derive(Debug)]
pub(super) enum Located<'a> {
    /// In a buffer of the session.
    Buffer(Stored),
    /// In memory of this process.
    Memory(Cow<'a, [u8]>),
}

impl Shelf {
    /// Keeps what came, as far as there is room.
    pub(super) fn upload(&mut self, upload: Upload, fds: &[OwnedFd]) {
        for (number, blob) in upload.blobs {
            if self.uploads.len() >= UPLOADS_MAX {
                return;
            }
            let held = match blob.mapped(fds) {
                Ok(Some(mapped)) => Ok(Held::Mapped(mapped)),
                Ok(None) => blob.read(fds, u64::MAX).map(Held::Inline),
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
        self.buffers.values().map(|stored| stored.kept.size()).sum()
    }

    pub(super) fn stored(&self, number: u64) -> Outcome<Stored> {
        let stored = self.buffers.get(&number).cloned();
        stored.ok_or_else(|| Failed::internal("no such buffer"))
    }

    pub(super) fn put(&mut self, number: u64, stored: Stored) {
        self.buffers.insert(number, stored);
    }

    pub(super) fn remove(&mut self, number: u64) {
        self.buffers.remove(&number);
    }

    /// How long a source is.
    pub(super) fn len(&self, source: &Source) -> Outcome<u64> {
        Ok(match source {
            Source::Buffer(number) => self.stored(*number)?.len,
            Source::Bytes(bytes) => bytes.len() as u64,
            Source::Upload(number) => self.held(*number)?.len() as u64,
            Source::Zero(len) => *len,
        })
    }

    /// Finds the bytes of a source.
    pub(super) fn locate<'a>(&'a self, source: &'a Source) -> Outcome<Located<'a>> {
        fits(self.len(source)?)?;
        Ok(match source {
            Source::Buffer(number) => Located::Buffer(self.stored(*number)?),
            Source::Bytes(bytes) => Located::Memory(Cow::Borrowed(bytes)),
            Source::Upload(number) => Located::Memory(Cow::Borrowed(self.held(*number)?)),
            Source::Zero(len) => {
                let len = usize::try_from(*len).unwrap_or(usize::MAX);
                Located::Memory(Cow::Owned(vec![0; len]))
            }
        })
    }

    fn held(&self, number: u64) -> Outcome<&[u8]> {
        match self.uploads.get(&number) {
            Some(Ok(held)) => Ok(held.bytes()),
            Some(Err(error)) => Err(Failed::internal(&format!(
                "an upload cannot be read: {error}"
            ))),
            None => Err(Failed::internal("no such upload")),
        }
    }

    /// A source as a tensor: its own, or a new one.
    pub(super) fn stored_from(
        &self,
        memory: &Memory,
        source: &Source,
        used: u64,
    ) -> Outcome<Stored> {
        let len = self.len(source)?;
        fits(len)?;
        if let Source::Buffer(number) = source {
            return self.stored(*number);
        }
        room(used, len)?;
        let kept = match source {
            Source::Zero(len) => memory.zeroed(*len)?,
            Source::Bytes(bytes) => memory.upload(bytes)?,
            Source::Upload(number) => memory.upload(self.held(*number)?)?,
            Source::Buffer(number) => return self.stored(*number),
        };
        Ok(Stored { kept, len })
    }
}

/// One tensor's limit.
pub(super) fn fits(len: u64) -> Outcome<()> {
    if len > TENSOR_BYTES_MAX {
        return Err(Failed::too_large("a tensor", len, TENSOR_BYTES_MAX));
    }
    Ok(())
}

/// The worker's limit.
pub(super) fn room(used: u64, more: u64) -> Outcome<()> {
    if used.saturating_add(more) > BUFFERS_BYTES_MAX {
        let message = format!("all buffers together may have {BUFFERS_BYTES_MAX} bytes");
        return Err(Failed::new(codes::QUOTA, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alknet_worker::Blob;

    use super::*;

    #[test]
    fn an_upload_that_cannot_be_read_says_why() {
        let mut shelf = Shelf::default();
        let lost = Blob::Sealed { at: 0, len: 8 };
        let upload = Upload {
            blobs: vec![(1, lost)],
        };
        shelf.upload(upload, &[]);
        let message = |number| {
            let len = shelf.len(&Source::Upload(number));
            len.expect_err("not there").message
        };
        assert!(message(1).contains("0 descriptors came"), "{}", message(1));
        assert_eq!(message(2), "no such upload");
    }
}
