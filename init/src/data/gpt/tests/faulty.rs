//! A disk in memory that does not give some blocks, does not take or does not keep others, and records what it is asked to do.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::*;

/// The disk. Its sectors have [`SECTOR`] bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct FaultyDisk {
    /// The sectors that have another byte than zero.
    content: RefCell<BTreeMap<u64, Vec<u8>>>,
    sectors: u64,
    /// Sectors that take each write, and cannot be read whatever was written to them.
    pub(super) unreadable: Vec<u64>,
    /// Sectors that cannot be read before they are written: a disk gives them another place then.
    pub(super) unreadable_until_written: RefCell<Vec<u64>>,
    /// Sectors whose writes are lost, although the disk says that it took them.
    pub(super) dropping: Vec<u64>,
    /// Sectors that take no write.
    pub(super) unwritable: Vec<u64>,
    steps: RefCell<Vec<RecordedStep>>,
}

/// What the disk was asked to do, and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RecordedStep {
    Sync,
    /// These sectors were written from this number on.
    Write(u64, Vec<Vec<u8>>),
}

impl FaultyDisk {
    /// A disk without faults that has what this file has.
    pub(super) fn new(file: &tempfile::NamedTempFile) -> Self {
        let content = std::fs::read(file.path()).expect("readable");
        let disk = Self {
            sectors: content.len() as u64 / SECTOR,
            ..Self::default()
        };
        for (lba, sector) in (0..).zip(content.chunks(SECTOR as usize)) {
            disk.put(lba, sector);
        }
        disk
    }

    pub(super) fn geometry(&self) -> GptDisk<'_> {
        GptDisk {
            access: self,
            sector: SECTOR,
            sectors: self.sectors,
        }
    }

    pub(super) fn settle(&self) -> SettledTable {
        settle(&self.geometry(), "alk-data", counting())
    }

    /// Number of the last sector.
    pub(super) fn last(&self) -> u64 {
        self.sectors - 1
    }

    pub(super) fn sector(&self, lba: u64) -> Vec<u8> {
        let content = self.content.borrow();
        let zeros = || vec![0; SECTOR as usize];
        content.get(&lba).cloned().unwrap_or_else(zeros)
    }

    /// Replaces a sector, past the faults and the record.
    pub(super) fn put(&self, lba: u64, sector: &[u8]) {
        let mut content = self.content.borrow_mut();
        match sector.iter().all(|byte| *byte == 0) {
            true => content.remove(&lba),
            false => content.insert(lba, sector.to_vec()),
        };
    }

    /// Takes the write of a sector, past the record. The faults decide what becomes of it.
    pub(super) fn take_write(&self, lba: u64, sector: &[u8]) {
        if !self.dropping.contains(&lba) {
            self.put(lba, sector);
            let mut unreadable = self.unreadable_until_written.borrow_mut();
            unreadable.retain(|other| *other != lba);
        }
    }

    /// Whether a sector is one that cannot be read now.
    fn is_unreadable(&self, lba: u64) -> bool {
        let until_written = self.unreadable_until_written.borrow();
        self.unreadable.contains(&lba) || until_written.contains(&lba)
    }

    /// The sectors with the header of a table.
    pub(super) fn headers(&self) -> Vec<u64> {
        let content = self.content.borrow();
        let headers = content.iter();
        let headers = headers.filter(|(_, sector)| sector.starts_with(HEADER_MARK));
        headers.map(|(lba, _)| *lba).collect()
    }

    /// What the disk did since this was asked before.
    pub(super) fn take_steps(&self) -> Vec<RecordedStep> {
        self.steps.take()
    }
}

impl DiskAccess for FaultyDisk {
    fn read_sectors(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        assert_whole(bytes, at);
        for (lba, block) in (at / SECTOR..).zip(bytes.chunks_mut(SECTOR as usize)) {
            if lba >= self.sectors {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if self.is_unreadable(lba) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            block.copy_from_slice(&self.sector(lba));
        }
        Ok(())
    }

    fn write_sectors(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        assert_whole(bytes, at);
        let sectors: Vec<_> = bytes.chunks(SECTOR as usize).map(<[u8]>::to_vec).collect();
        for (lba, sector) in (at / SECTOR..).zip(&sectors) {
            if lba >= self.sectors || self.unwritable.contains(&lba) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            self.take_write(lba, sector);
        }
        let step = RecordedStep::Write(at / SECTOR, sectors);
        self.steps.borrow_mut().push(step);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.steps.borrow_mut().push(RecordedStep::Sync);
        Ok(())
    }
}

/// A disk past the cache of the kernel takes nothing else.
#[track_caller]
fn assert_whole(bytes: &[u8], at: u64) {
    let length = bytes.len() as u64;
    let is_whole = at.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR);
    assert!(is_whole, "{length} bytes at {at} are no whole sectors");
}
