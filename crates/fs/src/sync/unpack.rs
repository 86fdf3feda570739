//! What changes of a document unpack to, measured before the library of documents gets them.
//!
//! A document is packed twice: its columns may be compressed by DEFLATE, and a column has equal values as one run. Both
//! let a few bytes stand for any number of operations, so both are counted here first. The format is that of automerge's
//! binary storage: chunks with a checksum, in each a head, a list of columns, and their bytes.

use std::io::Read;

use flate2::bufread::DeflateDecoder;
use sha2::{Digest, Sha256};

use super::error::{ByeCode, SyncError};
use super::limits::{
    CHANGES_MAX, OPERATIONS_FREE, OPERATIONS_MAX, OPERATIONS_PER_BYTE_MAX, UNPACKED_BYTES_FREE,
    UNPACKED_BYTES_MAX, UNPACKED_FACTOR_MAX,
};

const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];

/// Types of chunks. A further one, of bundles, is not part of an exchange.
const DOCUMENT: u8 = 0;
const CHANGE: u8 = 1;
const COMPRESSED_CHANGE: u8 = 2;

/// The bit of a column's number that says that it is compressed.
const DEFLATED: u32 = 8;

/// Columns of one list. The format has fewer than twenty.
const COLUMNS_MAX: u64 = 64;

/// Bytes of the identity of a writer. Ours have 24.
const ACTOR_BYTES_MAX: u64 = 64;

/// What changes have when they are unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnpackedSize {
    /// Bytes of all columns.
    pub bytes: u64,
    /// Values of the longest column of each list, and writers, added up.
    pub operations: u64,
}

impl UnpackedSize {
    /// That of both together.
    pub(super) const fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            operations: self.operations.saturating_add(other.operations),
        }
    }
}

/// A change that came by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ScannedChange {
    pub(super) hash: [u8; 32],
    /// Bytes that it takes in memory while it waits for others.
    pub(super) bytes: usize,
}

/// What the chunks of a sync message have.
#[derive(Debug, Default)]
pub(super) struct ScannedChunks {
    pub(super) size: UnpackedSize,
    pub(super) changes: Vec<ScannedChange>,
}

/// Measures the chunks of a sync message, and checks their form and their checksums.
///
/// # Errors
/// They are not in the form of chunks, or unpack to more than the limits for their size.
pub fn measure_changes(chunks: &[u8]) -> Result<UnpackedSize, SyncError> {
    scan_changes(chunks).map(|scanned| scanned.size)
}

/// The same, with the changes that are in the chunks by themselves.
pub(super) fn scan_changes(chunks: &[u8]) -> Result<ScannedChunks, SyncError> {
    ChunkScan::new(chunks.len()).run(chunks)
}

/// Measures chunks that this node made, which have no limits: what a document grew to is known before it is too large.
pub(super) fn weigh_changes(chunks: &[u8]) -> Result<UnpackedSize, SyncError> {
    let scan = ChunkScan {
        found: ScannedChunks::default(),
        // Sums of them do not overflow.
        bytes_max: u64::MAX / 2,
        operations_max: u64::MAX / 2,
        changes_max: usize::MAX,
    };
    scan.run(chunks).map(|scanned| scanned.size)
}

/// A measurement under way.
struct ChunkScan {
    found: ScannedChunks,
    bytes_max: u64,
    operations_max: u64,
    changes_max: usize,
}

impl ChunkScan {
    fn new(packed: usize) -> Self {
        let packed = packed as u64;
        let bytes = packed.saturating_mul(UNPACKED_FACTOR_MAX);
        let operations = packed.saturating_mul(OPERATIONS_PER_BYTE_MAX);
        Self {
            found: ScannedChunks::default(),
            bytes_max: bytes.clamp(UNPACKED_BYTES_FREE, UNPACKED_BYTES_MAX),
            operations_max: operations.clamp(OPERATIONS_FREE, OPERATIONS_MAX),
            changes_max: CHANGES_MAX,
        }
    }

    fn run(mut self, chunks: &[u8]) -> Result<ScannedChunks, SyncError> {
        let mut rest = ByteReader(chunks);
        while !rest.0.is_empty() {
            self.chunk(&mut rest)?;
        }
        Ok(self.found)
    }

    fn chunk(&mut self, input: &mut ByteReader<'_>) -> Result<(), SyncError> {
        if input.take(4)? != MAGIC {
            return Err(malformed("a chunk begins with other bytes"));
        }
        let checksum = input.take(4)?;
        let kind = input.byte()?;
        let length = input.unsigned()?;
        let data = input.take(length)?;
        match kind {
            DOCUMENT => {
                check_sum(checksum, DOCUMENT, data)?;
                self.document(ByteReader(data))
            }
            CHANGE => {
                let hash = check_sum(checksum, CHANGE, data)?;
                self.change(hash, data)
            }
            COMPRESSED_CHANGE => {
                let data = self.inflate(data)?;
                let hash = check_sum(checksum, CHANGE, &data)?;
                self.change(hash, &data)
            }
            other => Err(malformed(format!("a chunk of type {other}"))),
        }
    }

    fn document(&mut self, mut input: ByteReader<'_>) -> Result<(), SyncError> {
        self.add_operations(input.actors()?)?;
        input.hashes()?;
        let changes = input.columns()?;
        let operations = input.columns()?;
        self.columns(&mut input, &changes)?;
        self.columns(&mut input, &operations)
        // The positions of the heads follow, which are not longer than the heads.
    }

    fn change(&mut self, hash: [u8; 32], data: &[u8]) -> Result<(), SyncError> {
        // Also one without an operation takes memory.
        if self.found.changes.len() >= self.changes_max {
            return Err(too_much("changes"));
        }
        let bytes = data.len();
        self.found.changes.push(ScannedChange { hash, bytes });
        let mut input = ByteReader(data);
        input.hashes()?;
        input.actor()?;
        // Its number, its first operation, and its time.
        for _ in 0..3 {
            input.number()?;
        }
        let message = input.unsigned()?;
        input.take(message)?;
        self.add_operations(input.actors()?)?;
        let columns = input.columns()?;
        self.columns(&mut input, &columns)
    }

    fn columns(
        &mut self,
        input: &mut ByteReader<'_>,
        columns: &[(u32, u64)],
    ) -> Result<(), SyncError> {
        let mut longest = 0;
        for (spec, length) in columns {
            let packed = input.take(*length)?;
            let inflated;
            let data = if spec & DEFLATED == 0 {
                self.add_bytes(packed.len() as u64)?;
                packed
            } else {
                inflated = self.inflate(packed)?;
                &inflated
            };
            longest = longest.max(self.values(*spec, data)?);
        }
        self.add_operations(longest)
    }

    fn add_operations(&mut self, count: u64) -> Result<(), SyncError> {
        let size = &mut self.found.size;
        size.operations = size.operations.saturating_add(count);
        match size.operations > self.operations_max {
            true => Err(too_much("operations")),
            false => Ok(()),
        }
    }

    /// The number of the values of a column.
    fn values(&mut self, spec: u32, data: &[u8]) -> Result<u64, SyncError> {
        let mut input = ByteReader(data);
        let mut count: u64 = 0;
        // The lower three bits are the type of the column.
        match spec & 7 {
            // Raw bytes of values: another column has their lengths.
            7 => return Ok(0),
            4 => {
                while !input.0.is_empty() {
                    count = count.saturating_add(input.unsigned()?);
                }
                return Ok(count);
            }
            _ => {}
        }
        while !input.0.is_empty() {
            let run = input.signed()?;
            let length = run.unsigned_abs();
            match run {
                // A run without values.
                0 => count = count.saturating_add(input.unsigned()?),
                1.. => {
                    let size = self.value(spec, &mut input, length)?;
                    count = count.saturating_add(size);
                }
                _ => {
                    for _ in 0..length {
                        let size = self.value(spec, &mut input, 1)?;
                        count = count.saturating_add(size);
                    }
                }
            }
            if count > self.operations_max {
                return Err(too_much("operations"));
            }
        }
        Ok(count)
    }

    /// Passes over a value, and returns for how many values it stands when it is repeated.
    fn value(
        &mut self,
        spec: u32,
        input: &mut ByteReader<'_>,
        times: u64,
    ) -> Result<u64, SyncError> {
        match spec & 7 {
            // The number of values that a row of a group has in the columns that follow.
            0 => Ok(input.unsigned()?.max(1).saturating_mul(times)),
            5 => {
                let length = input.unsigned()?;
                input.take(length)?;
                self.add_bytes(length.saturating_mul(times))?;
                Ok(times)
            }
            _ => {
                input.number()?;
                Ok(times)
            }
        }
    }

    fn inflate(&mut self, packed: &[u8]) -> Result<Vec<u8>, SyncError> {
        let left = self.bytes_max - self.found.size.bytes;
        let mut data = Vec::new();
        // One byte more than allowed, which says that there is more.
        let read = DeflateDecoder::new(packed)
            .take(left + 1)
            .read_to_end(&mut data);
        read.map_err(|error| malformed(error.to_string()))?;
        self.add_bytes(data.len() as u64)?;
        Ok(data)
    }

    fn add_bytes(&mut self, bytes: u64) -> Result<(), SyncError> {
        let sum = self.found.size.bytes.saturating_add(bytes);
        if sum > self.bytes_max {
            return Err(too_much("bytes"));
        }
        self.found.size.bytes = sum;
        Ok(())
    }
}

/// Bytes that are read from the front.
struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], SyncError> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let split = self.0.split_at_checked(count);
        let (taken, rest) = split.ok_or_else(|| malformed("a chunk ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, SyncError> {
        let byte = self.take(1)?;
        byte.first()
            .copied()
            .ok_or_else(|| malformed("a chunk ends early"))
    }

    /// The seven bits of each byte of a number in LEB128, and whether it is negative if it has a sign.
    fn number(&mut self) -> Result<(u64, bool, u32), SyncError> {
        let (mut number, mut shift) = (0_u64, 0_u32);
        loop {
            let byte = self.byte()?;
            if shift > 63 {
                return Err(malformed("a number is too long"));
            }
            number |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return Ok((number, byte & 0x40 != 0, shift));
            }
        }
    }

    fn unsigned(&mut self) -> Result<u64, SyncError> {
        self.number().map(|(number, ..)| number)
    }

    fn signed(&mut self) -> Result<i64, SyncError> {
        let (number, is_negative, bits) = self.number()?;
        let number = match is_negative && bits < 64 {
            true => number | (u64::MAX << bits),
            false => number,
        };
        Ok(number.cast_signed())
    }

    fn hashes(&mut self) -> Result<(), SyncError> {
        let count = self.unsigned()?;
        self.take(count.saturating_mul(32)).map(drop)
    }

    fn actor(&mut self) -> Result<(), SyncError> {
        match self.unsigned()? {
            length @ 0..=ACTOR_BYTES_MAX => self.take(length).map(drop),
            length => Err(malformed(format!("a writer with {length} bytes"))),
        }
    }

    /// Passes over writers, and returns how many they are.
    fn actors(&mut self) -> Result<u64, SyncError> {
        let count = self.unsigned()?;
        // Each takes a byte at least, so that the loop ends with the input.
        for _ in 0..count {
            self.actor()?;
        }
        Ok(count)
    }

    /// Numbers and lengths of columns.
    fn columns(&mut self) -> Result<Vec<(u32, u64)>, SyncError> {
        let count = self.unsigned()?;
        if count > COLUMNS_MAX {
            return Err(malformed(format!("{count} columns")));
        }
        let mut columns = Vec::new();
        for _ in 0..count {
            let spec = u32::try_from(self.unsigned()?);
            let spec = spec.map_err(|_| malformed("the number of a column is too large"))?;
            columns.push((spec, self.unsigned()?));
        }
        Ok(columns)
    }
}

/// Compares the checksum of a chunk, which is the start of the hash of its type, its length and its data. That hash is the
/// name of a change. The library leaves out what has a wrong one, and says nothing.
fn check_sum(checksum: &[u8], kind: u8, data: &[u8]) -> Result<[u8; 32], SyncError> {
    let mut head = vec![kind];
    let mut length = data.len() as u64;
    loop {
        let bits = u8::try_from(length & 0x7f).unwrap_or(0x7f);
        length >>= 7;
        if length == 0 {
            head.push(bits);
            break;
        }
        head.push(bits | 0x80);
    }
    let hash = Sha256::new_with_prefix(head).chain_update(data).finalize();
    match hash.starts_with(checksum) {
        true => Ok(hash.into()),
        false => Err(malformed("the checksum of a chunk is wrong")),
    }
}

fn malformed(reason: impl Into<String>) -> SyncError {
    SyncError::refused(ByeCode::InvalidDocument, reason)
}

fn too_much(unit: &str) -> SyncError {
    let reason = format!("changes unpack to too many {unit} for their size");
    SyncError::refused(ByeCode::InvalidDocument, reason)
}
