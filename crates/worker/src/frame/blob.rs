//! Values that may be large.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::{CborBody, SealedMapping, SealedMemfd};
use crate::WorkerFrameError;
use crate::limits::{FRAME_FDS_MAX, INLINE_BYTES_MAX};

const OTHER_LENGTH: WorkerFrameError =
    WorkerFrameError::NotSealed("of another length than the message says");

/// Bytes inside the frame, or in a sealed descriptor that travels with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameBlob {
    /// In the frame.
    Inline(CborBody),
    /// In the descriptor with this index among the frame's.
    Sealed {
        /// Index of the descriptor, from 0.
        at: usize,
        /// Number of bytes that it holds.
        len: u64,
    },
}

impl FrameBlob {
    /// Packs small bytes inline, and larger ones into a sealed descriptor that it adds to `fds`.
    ///
    /// # Errors
    /// There are too many bytes or descriptors, or the kernel refuses the memory.
    pub fn pack(bytes: Vec<u8>, fds: &mut Vec<OwnedFd>) -> Result<Self, WorkerFrameError> {
        // A memfd costs several system calls and a descriptor: a small value is copied instead.
        if bytes.len() <= INLINE_BYTES_MAX {
            return Ok(Self::Inline(CborBody::from_cbor(bytes)));
        }
        // The kernel sends a bounded number of descriptors with one message (unix(7)).
        if fds.len() >= FRAME_FDS_MAX {
            return Err(WorkerFrameError::TooManyDescriptors);
        }
        let len = bytes.len() as u64;
        fds.push(SealedMemfd::from_bytes(&bytes)?.into());
        let at = fds.len() - 1;
        Ok(Self::Sealed { at, len })
    }

    /// Number of bytes, as the message says.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Inline(body) => body.as_bytes().len() as u64,
            Self::Sealed { len, .. } => *len,
        }
    }

    /// Whether the number of bytes is zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of its bytes in the frame.
    pub(crate) fn inline_len(&self) -> usize {
        match self {
            Self::Inline(body) => body.as_bytes().len(),
            Self::Sealed { .. } => 0,
        }
    }

    /// The sealed memory among `fds`, if the bytes are there.
    ///
    /// # Errors
    /// The descriptor is missing, no sealed memory, or of another length than the message says.
    pub fn sealed(&self, fds: &[OwnedFd]) -> Result<Option<SealedMemfd>, WorkerFrameError> {
        let Some((fd, len)) = self.descriptor(fds)? else {
            return Ok(None);
        };
        let sealed = SealedMemfd::check(fd.try_clone()?)?;
        // Limits were checked against the length that the message gives.
        if sealed.len() != len {
            return Err(OTHER_LENGTH);
        }
        Ok(Some(sealed))
    }

    /// Maps the descriptor that the host handed over, if the bytes are there. Only for workers: the host takes
    /// [`RevocableMemfd`](super::RevocableMemfd) memory back once it has the response to the request, and the map
    /// must not be read after that.
    ///
    /// # Errors
    /// The descriptor is missing, no file, or of another length than the message says.
    pub fn mapped(&self, fds: &[OwnedFd]) -> Result<Option<SealedMapping>, WorkerFrameError> {
        let Some((fd, len)) = self.descriptor(fds)? else {
            return Ok(None);
        };
        let mapped = SealedMapping::of_file(fd.try_clone()?)?;
        if mapped.len() as u64 != len {
            return Err(OTHER_LENGTH);
        }
        Ok(Some(mapped))
    }

    /// The descriptor that the blob names, and the number of bytes that it should hold.
    fn descriptor<'a>(
        &self,
        fds: &'a [OwnedFd],
    ) -> Result<Option<(&'a OwnedFd, u64)>, WorkerFrameError> {
        let Self::Sealed { at, len } = self else {
            return Ok(None);
        };
        // The peer chose `at`.
        let (declared, came) = (at.saturating_add(1), fds.len());
        let fd = fds.get(*at);
        let fd = fd.ok_or(WorkerFrameError::Descriptors { declared, came })?;
        Ok(Some((fd, *len)))
    }

    /// A copy of the bytes: for the node, which maps no memory that others made.
    ///
    /// # Errors
    /// The errors of [`Self::sealed`], or there are more than `max` bytes.
    pub fn read(self, fds: &[OwnedFd], max: u64) -> Result<Vec<u8>, WorkerFrameError> {
        match self.sealed(fds)? {
            Some(sealed) => sealed.read(max),
            None => match self {
                Self::Inline(body) => Ok(body.into_bytes()),
                Self::Sealed { .. } => Err(WorkerFrameError::NotSealed("not there")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_values_are_inline_and_large_ones_sealed() {
        for (bytes, sealed) in [(0, 0), (INLINE_BYTES_MAX, 0), (INLINE_BYTES_MAX + 1, 1)] {
            let mut fds = Vec::new();
            let value = vec![3; bytes];
            let blob = FrameBlob::pack(value.clone(), &mut fds).expect("packed");
            assert_eq!(fds.len(), sealed);
            assert_eq!(blob.read(&fds, 1 << 20).expect("the same"), value);
        }
    }

    #[test]
    fn a_blob_that_lies_is_refused() {
        let mut fds = Vec::new();
        FrameBlob::pack(vec![3; INLINE_BYTES_MAX + 1], &mut fds).expect("packed");
        let len = INLINE_BYTES_MAX as u64 + 1;
        for (at, len) in [(1, len), (usize::MAX, len), (0, len + 1), (0, u64::MAX)] {
            assert!(FrameBlob::Sealed { at, len }.read(&fds, u64::MAX).is_err());
        }
        let short = FrameBlob::Sealed { at: 0, len }.read(&fds, 10);
        assert!(matches!(short, Err(WorkerFrameError::TooMuch(_))));
    }
}
