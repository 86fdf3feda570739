//! Memory that the host lends a worker for one request, and takes back.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, memfd_create};

use super::sealed::add_seals;

/// The seals. The memory can be truncated, by which the host takes it back, and cannot grow again.
const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

const FLAGS: MemfdFlags = MemfdFlags::CLOEXEC.union(MemfdFlags::ALLOW_SEALING);

/// A memfd that can be neither written nor grown. Dropping it frees its pages, whatever descriptors and maps of it a
/// worker keeps: those show an empty file then, and a read through such a map ends the worker by SIGBUS. So a worker
/// that an attacker took over holds no memory of the host beyond the request for which it was lent.
///
/// Only for workers, which map it by [`FrameBlob::mapped`](super::FrameBlob::mapped). The host reads
/// [`SealedMemfd`](super::SealedMemfd) memory, which its peer cannot truncate.
#[derive(Debug)]
pub struct RevocableMemfd {
    file: File,
    len: u64,
}

impl RevocableMemfd {
    /// Makes memory that `write` fills.
    ///
    /// # Errors
    /// `write` failed, or the kernel refuses the memory.
    pub fn written(write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<Self> {
        let mut file = File::from(memfd_create(c"alknet", FLAGS)?);
        write(&mut file)?;
        add_seals(&file, SEALS)?;
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }

    /// Number of bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether the number of bytes is zero.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A descriptor for a worker.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn hand_over(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }
}

impl Drop for RevocableMemfd {
    fn drop(&mut self) {
        if let Err(error) = self.file.set_len(0) {
            tracing::warn!(%error, "memory that a worker was handed is not taken back");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::{FallocateFlags, fallocate, fcntl_add_seals};

    use super::*;
    use crate::{FrameBlob, SealedMapping};

    const BYTES: usize = 1 << 20;

    fn memory() -> RevocableMemfd {
        let written = RevocableMemfd::written(|memory| memory.write_all(&[7; BYTES]));
        written.expect("memory")
    }

    #[test]
    fn what_a_worker_keeps_of_it_holds_no_memory() {
        let memory = memory();
        let copy = File::from(memory.hand_over().expect("a descriptor"));
        let mapped = SealedMapping::of_file(memory.hand_over().expect("a descriptor"));
        let mapped = mapped.expect("mapped");
        assert!(mapped.iter().all(|byte| *byte == 7));
        let pages = |file: &File| file.metadata().expect("a file").blocks() * 512;
        assert!(pages(&copy) >= BYTES as u64);

        drop(memory);
        assert_eq!(pages(&copy), 0);
        assert_eq!(copy.metadata().expect("a file").len(), 0);
        // Nor does it ever have memory again.
        assert!(copy.set_len(BYTES as u64).is_err());
        for flags in [FallocateFlags::empty(), FallocateFlags::KEEP_SIZE] {
            assert!(fallocate(&copy, flags, 0, BYTES as u64).is_err());
        }
        assert!((&copy).write_all(b"x").is_err());
        assert_eq!(pages(&copy), 0);
        drop(mapped);
    }

    #[test]
    fn a_worker_changes_nothing_in_it() {
        let memory = memory();
        let copy = File::from(memory.hand_over().expect("a descriptor"));
        assert!((&copy).write_all(b"x").is_err());
        assert!(copy.set_len(BYTES as u64 + 1).is_err());
        assert!(fcntl_add_seals(&copy, SealFlags::SHRINK).is_err());
    }

    #[test]
    fn it_is_mapped_by_a_blob_of_its_length_only() {
        let memory = memory();
        let fds = [memory.hand_over().expect("a descriptor")];
        let blob = |at, len| FrameBlob::Sealed { at, len };
        let mapped = blob(0, memory.len()).mapped(&fds).expect("mapped");
        assert_eq!(mapped.expect("not inline").len(), BYTES);
        assert!(blob(0, memory.len() + 1).mapped(&fds).is_err());
        assert!(blob(1, memory.len()).mapped(&fds).is_err());
        // The host reads nothing that its peer could cut.
        assert!(blob(0, memory.len()).sealed(&fds).is_err());
    }
}
