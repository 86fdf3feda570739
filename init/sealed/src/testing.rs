//! A disk for tests: it records every write, and can return to its state at any moment.

use std::{
    cell::{Cell, Ref, RefCell},
    io::{self, ErrorKind},
};

use uuid::Uuid;

use crate::cipher::SectorCipher;
use crate::disk::BlockStorage;
use crate::luks2::NewHeader;

/// Bytes of the disk: a header and one MiB of data.
pub(crate) const BYTES: u64 = 17 << 20;
/// Unit in which disks write.
pub(crate) const SECTOR: usize = 512;
pub(crate) const ONE: &[u8] = b"the phrase of the first key slot";
pub(crate) const TWO: &[u8] = b"the phrase of the second key slot";
pub(crate) const VAULT: &str = "0b9e8a4e-5e6c-4a1f-9d55-7f3f6f0d9f11";

/// An operation on the disk.
#[derive(Clone, Debug)]
pub(crate) enum DiskOp {
    Flush,
    Write { at: usize, bytes: Vec<u8> },
}

#[derive(Debug)]
pub(crate) struct TestDisk {
    image: RefCell<Vec<u8>>,
    ops: RefCell<Vec<DiskOp>>,
    broken: Cell<Option<usize>>,
}

impl TestDisk {
    pub(crate) fn blank() -> Self {
        Self::from_image(vec![0; BYTES as usize])
    }

    pub(crate) fn from_image(image: Vec<u8>) -> Self {
        Self {
            image: RefCell::new(image),
            ops: RefCell::new(Vec::new()),
            broken: Cell::new(None),
        }
    }

    pub(crate) fn image(&self) -> Ref<'_, Vec<u8>> {
        self.image.borrow()
    }

    /// Takes the operations since the last call.
    pub(crate) fn take_ops(&self) -> Vec<DiskOp> {
        self.ops.take()
    }

    /// Makes the sector at `at` refuse writes.
    pub(crate) fn break_at(&self, at: usize) {
        self.broken.set(Some(at));
    }

    /// Changes the disk as a fault or an attacker would.
    pub(crate) fn overwrite(&self, at: usize, bytes: &[u8]) {
        self.image.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

impl BlockStorage for TestDisk {
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let image = self.image.borrow();
        let found = at
            .checked_add(buffer.len())
            .and_then(|end| image.get(at..end));
        buffer.copy_from_slice(found.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let range = at..at + bytes.len();
        if self.broken.get().is_some_and(|at| range.contains(&at)) {
            return Err(io::Error::other("a broken sector"));
        }
        self.overwrite(at, bytes);
        let bytes = bytes.to_vec();
        self.ops.borrow_mut().push(DiskOp::Write { at, bytes });
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.ops.borrow_mut().push(DiskOp::Flush);
        Ok(())
    }
}

/// A header with two key slots.
pub(crate) fn new_header() -> NewHeader<'static> {
    NewHeader {
        uuid: Uuid::from_bytes([0x42; 16]),
        vault: VAULT,
        cipher: SectorCipher::AesXts,
        phrases: &[ONE, TWO],
    }
}

/// Reproducible random numbers.
pub(crate) struct DiskTestRng(pub(crate) u64);

impl DiskTestRng {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap_or(0) % limit
    }
}
