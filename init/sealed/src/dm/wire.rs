//! The device mapper's messages: a head of 312 bytes, in the machine's own byte order, and what the
//! call needs behind it (`struct dm_ioctl` and its companions in linux/dm-ioctl.h).
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 12 | version of the interface |
//! | 12 | 4 | bytes of the whole buffer |
//! | 16 | 4 | where the data begin in it |
//! | 20 | 4 | number of targets |
//! | 24 | 4 | how often the mapping is open |
//! | 28 | 4 | flags |
//! | 32 | 8 | event number, padding |
//! | 40 | 8 | device |
//! | 48 | 128 | name |
//! | 176 | 129 | uuid |
//!
//! Fields are put and taken by their offsets, checked against the buffer, so that an answer that
//! makes no sense is an error and no read behind the end.

use crate::dm::{CryptTable, DmError, DmMapping, DmStatus, DmTarget};

/// Bytes of the header.
const HEAD: usize = 312;
/// Bytes of a target's description before its parameters.
const SPEC: usize = 40;
/// Bytes of a target's type, including its terminator.
const KIND: usize = 16;
const NAME_AT: usize = 48;
const NAME: usize = 128;
const UUID_AT: usize = 176;
const UUID: usize = 129;
/// The interface version in requests. The kernel accepts any minor number up to its own.
const VERSION: [u32; 3] = [4, 0, 0];

pub(super) mod flags {
    pub(in crate::dm) const READ_ONLY: u32 = 1;
    pub(in crate::dm) const SUSPEND: u32 = 1 << 1;
    pub(in crate::dm) const STATUS_TABLE: u32 = 1 << 4;
    pub(in crate::dm) const ACTIVE_PRESENT: u32 = 1 << 5;
    pub(in crate::dm) const BUFFER_FULL: u32 = 1 << 8;
    pub(in crate::dm) const SKIP_LOCK_FS: u32 = 1 << 10;
    pub(in crate::dm) const SECURE_DATA: u32 = 1 << 15;
    pub(in crate::dm) const DEFERRED_REMOVE: u32 = 1 << 17;
}

/// A request or an answer.
#[derive(Clone, Debug)]
pub(super) struct DmMessage(Vec<u8>);

impl DmMessage {
    pub(super) fn new() -> Self {
        let mut message = Self(vec![0; HEAD]);
        for (at, number) in (0..).step_by(4).zip(VERSION) {
            message.put(at, &number.to_ne_bytes());
        }
        message
    }

    pub(super) fn name(mut self, name: &str) -> Result<Self, DmError> {
        // The kernel accepts any character. Udev and shells that see the name do not.
        let fine = |c: u8| c.is_ascii_alphanumeric() || b"-_.+".contains(&c);
        if name.is_empty() || name.len() >= NAME || !name.bytes().all(fine) {
            return Err(DmError::Name(name.to_owned()));
        }
        self.put(NAME_AT, name.as_bytes());
        Ok(self)
    }

    pub(super) fn uuid(mut self, uuid: &str) -> Result<Self, DmError> {
        let fine = |c: u8| c.is_ascii_alphanumeric() || b"-_.+".contains(&c);
        if uuid.len() >= UUID || !uuid.bytes().all(fine) {
            return Err(DmError::Name(uuid.to_owned()));
        }
        self.put(UUID_AT, uuid.as_bytes());
        Ok(self)
    }

    pub(super) fn flags(mut self, flags: u32) -> Self {
        self.put(28, &flags.to_ne_bytes());
        self
    }

    /// Adds one target that covers the whole mapping.
    pub(super) fn table(mut self, table: &CryptTable) -> Result<Self, DmError> {
        let parameters = table.to_string();
        // The kernel expects each target's description on a multiple of eight bytes (linux/dm-ioctl.h).
        let length = (SPEC + parameters.len() + 1).next_multiple_of(8);
        let next = u32::try_from(length).map_err(|_| DmError::Answer("a table without end"))?;
        let mut spec = vec![0; length];
        spec[8..16].copy_from_slice(&table.sectors.to_ne_bytes());
        spec[20..24].copy_from_slice(&next.to_ne_bytes());
        spec[24..24 + KIND].copy_from_slice(b"crypt\0\0\0\0\0\0\0\0\0\0\0");
        spec[SPEC..SPEC + parameters.len()].copy_from_slice(parameters.as_bytes());
        self.put(20, &1_u32.to_ne_bytes());
        self.0.extend_from_slice(&spec);
        Ok(self)
    }

    /// A copy with room for an answer of this length.
    pub(super) fn with_capacity(&self, capacity: usize) -> Self {
        let mut message = self.clone();
        message.0.resize(self.0.len().max(capacity), 0);
        let length = u32::try_from(message.0.len()).unwrap_or(u32::MAX);
        message.put(12, &length.to_ne_bytes());
        message.put(16, &(HEAD as u32).to_ne_bytes());
        message
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    pub(super) fn has(&self, flag: u32) -> bool {
        self.u32(28).is_ok_and(|flags| flags & flag != 0)
    }

    pub(super) fn version(&self) -> (u32, u32, u32) {
        let part = |at| self.u32(at).unwrap_or(0);
        (part(0), part(4), part(8))
    }

    pub(super) fn status(&self) -> Result<DmStatus, DmError> {
        Ok(DmStatus {
            name: text(self.slice(NAME_AT, NAME)?)?,
            uuid: text(self.slice(UUID_AT, UUID)?)?,
            device: numbers(self.u64(40)?),
            open_count: self.u32(24)?,
            suspended: self.has(flags::SUSPEND),
            active: self.has(flags::ACTIVE_PRESENT),
            leaving: self.has(flags::DEFERRED_REMOVE),
        })
    }

    /// Reads the targets of a table: each description says where the next one begins.
    pub(super) fn targets(&self) -> Result<Vec<DmTarget>, DmError> {
        let start = self.data()?;
        let mut at = start;
        let mut targets = Vec::new();
        for _ in 0..self.u32(20)? {
            let kind = text(self.slice(at + 24, KIND)?)?;
            let parameters = self.0.get(at + SPEC..);
            let parameters = text(parameters.ok_or(DmError::Answer("a target behind its end"))?)?;
            targets.push(DmTarget {
                start: self.u64(at)?,
                sectors: self.u64(at + 8)?,
                kind,
                parameters,
            });
            let next = start + self.u32(at + 20)? as usize;
            // An answer that points back would make an endless loop.
            if next <= at {
                break;
            }
            at = next;
        }
        Ok(targets)
    }

    /// Reads the list of mappings: each entry says how far the next one is.
    pub(super) fn names(&self) -> Result<Vec<DmMapping>, DmError> {
        let mut at = self.data()?;
        let mut names = Vec::new();
        // In an empty list, the device number of the first entry is zero.
        while self.u64(at)? != 0 {
            let name = self.0.get(at + 12..);
            names.push(DmMapping {
                name: text(name.ok_or(DmError::Answer("a name behind its end"))?)?,
                device: numbers(self.u64(at)?),
            });
            match self.u32(at + 8)? as usize {
                0 => break,
                step => at += step,
            }
        }
        Ok(names)
    }

    fn data(&self) -> Result<usize, DmError> {
        Ok(self.u32(16)? as usize)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn slice(&self, at: usize, length: usize) -> Result<&[u8], DmError> {
        let end = at.checked_add(length);
        let slice = end.and_then(|end| self.0.get(at..end));
        slice.ok_or(DmError::Answer("something behind its end"))
    }

    fn u32(&self, at: usize) -> Result<u32, DmError> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.slice(at, 4)?);
        Ok(u32::from_ne_bytes(bytes))
    }

    fn u64(&self, at: usize) -> Result<u64, DmError> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.slice(at, 8)?);
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// Decodes the kernel's encoding of a device number.
fn numbers(device: u64) -> (u32, u32) {
    let device = device as u32;
    (
        (device & 0xf_ff00) >> 8,
        (device & 0xff) | ((device >> 12) & 0xf_ff00),
    )
}

fn text(bytes: &[u8]) -> Result<String, DmError> {
    let end = bytes.iter().position(|byte| *byte == 0);
    let end = end.ok_or(DmError::Answer("a text without end"))?;
    let text = std::str::from_utf8(&bytes[..end]);
    text.map(str::to_owned)
        .map_err(|_| DmError::Answer("a text that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cipher::SectorCipher;

    fn table() -> CryptTable {
        CryptTable {
            cipher: SectorCipher::AesXts.name().to_owned(),
            key: ":64:logon:alknet:data".to_owned(),
            tweak: 0,
            device: (8, 1),
            offset: 32768,
            sectors: 2048,
            options: vec!["sector_size:4096".to_owned()],
            read_only: false,
        }
    }

    #[test]
    fn a_table_is_laid_out_as_the_kernel_reads_it() {
        let message = DmMessage::new().name("alknet-data").expect("a name");
        let message = message.table(&table()).expect("small").with_capacity(1024);
        assert_eq!(message.0.len(), 1024);
        assert_eq!(message.0[..12], [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(message.u32(12).expect("inside"), 1024);
        assert_eq!(message.u32(16).expect("inside"), 312);
        assert_eq!(message.status().expect("whole").name, "alknet-data");
        let targets = message.targets().expect("one target");
        let parameters = "aes-xts-plain64 :64:logon:alknet:data 0 8:1 32768 1 sector_size:4096";
        let expected = DmTarget {
            start: 0,
            sectors: 2048,
            kind: "crypt".to_owned(),
            parameters: parameters.to_owned(),
        };
        assert_eq!(targets, [expected]);
    }

    #[test]
    fn names_are_listed() {
        let mut message = DmMessage::new().with_capacity(400);
        assert_eq!(message.names().expect("none"), []);
        message.put(312, &0xfd01_u64.to_ne_bytes());
        message.put(320, &24_u32.to_ne_bytes());
        message.put(324, b"one\0");
        message.put(336, &0xfd02_u64.to_ne_bytes());
        message.put(348, b"two\0");
        let names = message.names().expect("two");
        let of = |name: &str, minor| DmMapping {
            name: name.to_owned(),
            device: (253, minor),
        };
        assert_eq!(names, [of("one", 1), of("two", 2)]);
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        for name in ["", "a/b", "a b", "ä", &"x".repeat(128)] {
            let refused = DmMessage::new().name(name);
            assert!(matches!(refused, Err(DmError::Name(_))), "{name:?}");
        }
        let refused = DmMessage::new().uuid(&"x".repeat(129));
        assert!(matches!(refused, Err(DmError::Name(_))));
    }

    #[test]
    fn device_numbers_are_the_kernels() {
        assert_eq!(numbers(0xfd00), (253, 0));
        assert_eq!(numbers(0x120_fd34), (253, 0x1234));
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let message = DmMessage(bytes);
            let _ = (message.status(), message.targets(), message.names(), message.version());
        }
    }
}
