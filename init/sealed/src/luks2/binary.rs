//! The binary part of a header copy: 4 KiB, big endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 6 | `LUKS\xba\xbe`, in the second copy `SKUL\xba\xbe` |
//! | 6 | 2 | version, 2 |
//! | 8 | 8 | bytes of the copy, JSON included |
//! | 16 | 8 | sequence number |
//! | 24 | 48 | label |
//! | 72 | 32 | name of the checksum, `sha256` |
//! | 104 | 64 | salt: makes the checksums of the copies differ |
//! | 168 | 40 | uuid in text |
//! | 208 | 48 | subsystem |
//! | 256 | 8 | where this copy lies |
//! | 264 | 184 | zero |
//! | 448 | 64 | checksum of the copy with this field zero |
//! | 512 | 3584 | zero |

use sha2::{Digest, Sha256};

use crate::error::HeaderError;
use crate::limits::{BINARY_BYTES, HEADER_BYTES, HEADER_BYTES_MAX};
use crate::luks2::HeaderCopyId;

const VERSION: u16 = 2;
const CHECKSUM: &[u8; 32] = b"sha256\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const CHECKSUM_AT: usize = 448;
const CHECKSUM_FIELD: usize = 64;
const DIGEST: usize = 32;

/// The fields that both copies have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BinaryHeader {
    pub(super) bytes: u64,
    pub(super) sequence: u64,
    pub(super) label: [u8; 48],
    pub(super) uuid: [u8; 40],
    pub(super) subsystem: [u8; 48],
}

impl BinaryHeader {
    /// Parses the copy that begins at `at`.
    pub(super) fn parse(
        block: &[u8; BINARY_BYTES],
        copy: HeaderCopyId,
        at: u64,
    ) -> Result<Self, HeaderError> {
        if block[..6] != *magic(copy) {
            return Err(HeaderError::Absent);
        }
        if u16::from_be_bytes(field(block, 6)) != VERSION {
            return Err(HeaderError::Form("it is of another version of LUKS"));
        }
        let bytes = u64::from_be_bytes(field(block, 8));
        if !is_size(bytes) {
            return Err(HeaderError::Form("it has an unusual size"));
        }
        // LUKS2 On-Disk Format Specification, 2.1: a copy that was moved, or a backup in a file, is
        // not valid.
        if u64::from_be_bytes(field(block, 256)) != at
            || (copy == HeaderCopyId::Second && bytes != at)
        {
            return Err(HeaderError::Form("it lies elsewhere than it says"));
        }
        if field::<32>(block, 72) != *CHECKSUM {
            return Err(HeaderError::Form("its checksum is not SHA-256"));
        }
        Ok(Self {
            bytes,
            sequence: u64::from_be_bytes(field(block, 16)),
            label: field(block, 24),
            uuid: field(block, 168),
            subsystem: field(block, 208),
        })
    }

    /// A whole copy with `json`, which the caller has checked to fit.
    pub(super) fn encode(&self, copy: HeaderCopyId, salt: &[u8; 64], json: &[u8]) -> Vec<u8> {
        let at = match copy {
            HeaderCopyId::First => 0,
            HeaderCopyId::Second => self.bytes,
        };
        let mut whole = vec![0; usize::try_from(self.bytes).unwrap_or(BINARY_BYTES)];
        let fields: [(usize, &[u8]); 11] = [
            (0, magic(copy)),
            (6, &VERSION.to_be_bytes()),
            (8, &self.bytes.to_be_bytes()),
            (16, &self.sequence.to_be_bytes()),
            (24, &self.label),
            (72, CHECKSUM),
            (104, salt),
            (168, &self.uuid),
            (208, &self.subsystem),
            (256, &at.to_be_bytes()),
            (BINARY_BYTES, json),
        ];
        for (at, bytes) in fields {
            whole[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let sum = checksum(&whole);
        whole[CHECKSUM_AT..CHECKSUM_AT + DIGEST].copy_from_slice(&sum);
        whole
    }
}

/// Whether the checksum of a whole copy matches.
pub(super) fn is_whole(copy: &[u8]) -> bool {
    copy[CHECKSUM_AT..CHECKSUM_AT + DIGEST] == checksum(copy)
}

fn checksum(copy: &[u8]) -> [u8; DIGEST] {
    Sha256::new()
        .chain_update(&copy[..CHECKSUM_AT])
        // The checksum is computed with its own field zero (LUKS2 On-Disk Format Specification, 2.1).
        .chain_update([0; CHECKSUM_FIELD])
        .chain_update(&copy[CHECKSUM_AT + CHECKSUM_FIELD..])
        .finalize()
        .into()
}

/// Sizes that a copy may have: those of the specification up to the maximum that is read here.
pub(super) fn sizes() -> impl Iterator<Item = u64> {
    std::iter::successors(Some(HEADER_BYTES), |size| Some(size * 2))
        .take_while(|size| *size <= HEADER_BYTES_MAX)
}

fn is_size(bytes: u64) -> bool {
    sizes().any(|size| size == bytes)
}

const fn magic(copy: HeaderCopyId) -> &'static [u8; 6] {
    match copy {
        HeaderCopyId::First => b"LUKS\xba\xbe",
        HeaderCopyId::Second => b"SKUL\xba\xbe",
    }
}

fn field<const N: usize>(block: &[u8; BINARY_BYTES], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&block[at..at + N]);
    bytes
}
