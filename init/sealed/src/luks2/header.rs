//! A header: its two copies, and the key slots that it describes.

use std::io::ErrorKind;

use serde_json::Map;
use subtle::ConstantTimeEq;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::cipher::SectorCipher;
use crate::disk::BlockStorage;
use crate::error::{HeaderError, SealedError};
use crate::limits::{
    AREA_BYTES, BINARY_BYTES, HEADER_BYTES, KEYSLOTS_AT, PHRASE_BYTES_MAX, ROUNDS, SEQUENCE_MAX,
    SLOTS_MAX, VAULT_A_AT,
};
use crate::luks2::area::{material_bytes, open, stretch};
use crate::luks2::binary::{BinaryHeader, is_whole, sizes};
use crate::luks2::change::write_area;
use crate::luks2::json::{KeyslotInfo, LuksMetadata};
use crate::luks2::parts::{DIGEST, LuksSegment, LuksSlot, digest_value, parse_slot, slot_value};
use crate::luks2::{TEAR_BYTES, UnfinishedMark};
use crate::secret::VolumeKey;

/// Bytes of salts.
pub(super) const SALT: usize = 32;
/// One of the two copies of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderCopyId {
    /// The copy at the partition's start.
    First,
    /// The copy behind the first one.
    Second,
}

impl HeaderCopyId {
    const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// The properties of a new partition.
#[derive(Clone, Debug)]
pub struct NewHeader<'a> {
    /// UUID of the partition.
    pub uuid: Uuid,
    /// UUID of the vault, for the token.
    pub vault: &'a str,
    /// Cipher of the data.
    pub cipher: SectorCipher,
    /// The phrases of the key slots 0, 1 ….
    pub phrases: &'a [&'a [u8]],
}

/// The valid header, as it was last read or written.
#[derive(Clone, Debug, PartialEq)]
pub struct LuksHeader {
    pub(super) binary: BinaryHeader,
    pub(super) metadata: LuksMetadata,
    /// The copy that it was read from.
    source: HeaderCopyId,
    /// Whether the other copy is damaged or older.
    stale: bool,
}

impl LuksHeader {
    /// Reads the newer valid copy. Writes nothing.
    pub fn load(disk: &impl BlockStorage) -> Result<Self, SealedError> {
        let first = read_copy(disk, HeaderCopyId::First, 0);
        let second = match &first {
            Ok((binary, _)) => read_copy(disk, HeaderCopyId::Second, binary.bytes),
            Err(_) => find_second(disk),
        };
        let chosen = match (first, second) {
            (Ok(first), Ok(second)) => {
                // Equal numbers mean equal copies, and the first one is used.
                let newer = second.0.sequence > first.0.sequence;
                let stale = first.0 != second.0 || first.1 != second.1;
                let (source, (binary, metadata)) = if newer {
                    (HeaderCopyId::Second, second)
                } else {
                    (HeaderCopyId::First, first)
                };
                (source, stale, binary, metadata)
            }
            (Ok((binary, metadata)), Err(_)) => (HeaderCopyId::First, true, binary, metadata),
            (Err(_), Ok((binary, metadata))) => (HeaderCopyId::Second, true, binary, metadata),
            (Err(HeaderError::Absent), Err(HeaderError::Absent)) => {
                return Err(SealedError::NotSealed);
            }
            (Err(primary), Err(secondary)) => {
                return Err(SealedError::Damaged { primary, secondary });
            }
        };
        let (source, stale, binary, metadata) = chosen;
        Ok(Self {
            binary,
            metadata,
            source,
            stale,
        })
    }

    /// Writes the damaged or older copy again. Returns which one it was.
    pub fn repair(
        &mut self,
        disk: &impl BlockStorage,
    ) -> Result<Option<HeaderCopyId>, SealedError> {
        if !self.stale {
            return Ok(None);
        }
        let copy = self.source.other();
        self.write_copy(disk, copy)?;
        self.stale = false;
        Ok(Some(copy))
    }

    /// Makes a header, its key slots and a volume key. The rest of the header's room becomes zeros,
    /// and the vault's two areas are not touched. After a power cut, the partition has either the
    /// mark of an interrupted formatting or the whole header.
    pub fn format(
        disk: &impl BlockStorage,
        new: &NewHeader<'_>,
    ) -> Result<(Self, VolumeKey), SealedError> {
        let (mut header, key) = Self::prepare(disk, new)?;
        header.store(disk)?;
        Ok((header, key))
    }

    /// Does everything of [`format`](Self::format) except the header itself, which
    /// [`store`](Self::store) writes. Until then the partition has the mark of a formatting.
    pub(crate) fn prepare(
        disk: &impl BlockStorage,
        new: &NewHeader<'_>,
    ) -> Result<(Self, VolumeKey), SealedError> {
        new.phrases.iter().copied().try_for_each(check_phrase)?;
        if !(1..=SLOTS_MAX as usize).contains(&new.phrases.len()) {
            return Err(SealedError::NoSlot(SLOTS_MAX));
        }
        let key = VolumeKey::random(new.cipher.key_bytes())?;
        // The mark is written and flushed first: from here on, a power cut is known to have
        // interrupted a formatting.
        mark(disk, UnfinishedMark::Formatting)?;
        // A header of an earlier use must not be found if this one's second copy is lost.
        let rest = TEAR_BYTES as u64;
        disk.zero(rest, VAULT_A_AT - rest)
            .map_err(SealedError::io("clear"))?;
        let mut slots = Map::new();
        for (number, phrase) in (0_u64..).zip(new.phrases) {
            let at = KEYSLOTS_AT + number * AREA_BYTES;
            let value = slot_value(key.expose().len(), &random::<SALT>()?, at);
            let slot = parse_slot(&value).map_err(SealedError::Unsupported)?;
            write_area(disk, &slot, phrase, &key)?;
            slots.insert(number.to_string(), value);
        }
        // The key material is flushed before the header that names it: the disk may write in any
        // order until then.
        disk.flush().map_err(SealedError::io("write"))?;
        let names: Vec<_> = slots.keys().cloned().collect();
        let salt = random::<SALT>()?;
        let mut digest = [0; DIGEST];
        stretch(key.expose(), &salt, ROUNDS, &mut digest);
        let digest = digest_value(&names, &salt, &digest);
        let header = Self {
            binary: BinaryHeader {
                bytes: HEADER_BYTES,
                sequence: 0,
                label: [0; 48],
                uuid: text_field(&new.uuid.to_string()),
                subsystem: [0; 48],
            },
            metadata: LuksMetadata::new(new.cipher, slots, digest, new.vault),
            source: HeaderCopyId::First,
            stale: false,
        };
        Ok((header, key))
    }

    /// The partition's uuid.
    #[must_use]
    pub fn uuid(&self) -> String {
        let text = self.binary.uuid.split(|byte| *byte == 0).next();
        String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
    }

    /// The UUID of the vault, if the partition has this program's token.
    #[must_use]
    pub fn vault(&self) -> Option<&str> {
        self.metadata.vault()
    }

    /// Whether only one copy is whole and up to date.
    #[must_use]
    pub const fn has_one_copy(&self) -> bool {
        self.stale
    }

    /// Number of changes of the header.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.binary.sequence
    }

    /// Every key slot.
    #[must_use]
    pub fn slots(&self) -> Vec<KeyslotInfo> {
        self.metadata.slots()
    }

    /// Where and how the data are encrypted.
    pub fn segment(&self) -> Result<LuksSegment, SealedError> {
        if self.metadata.demands_more() {
            return Err(SealedError::Unsupported(
                "another program has not finished its work on it",
            ));
        }
        self.metadata.segment().map_err(SealedError::Unsupported)
    }

    /// Opens the key slot `number` with `phrase`. Returns the volume key.
    pub fn unlock(
        &self,
        disk: &impl BlockStorage,
        number: u32,
        phrase: &[u8],
    ) -> Result<VolumeKey, SealedError> {
        check_phrase(phrase)?;
        let segment = self.segment()?;
        let slot = self.luks_slot(number)?;
        if !segment.cipher.takes(slot.key_bytes) {
            return Err(SealedError::Unsupported("its key does not suit its cipher"));
        }
        let mut area = Zeroizing::new(vec![0; material_bytes(&slot)]);
        disk.read(&mut area, slot.area.start)
            .map_err(SealedError::io("read"))?;
        let key = open(&slot, phrase, area)?;
        match self.recognise(&key) {
            Err(SealedError::WrongKey) => Err(SealedError::WrongPhrase(number)),
            Err(other) => Err(other),
            Ok(()) => Ok(key),
        }
    }

    pub(super) fn luks_slot(&self, number: u32) -> Result<LuksSlot, SealedError> {
        let slot = self.metadata.slot(number);
        let slot = slot.ok_or(SealedError::NoSlot(number))?;
        slot.map_err(|why| SealedError::SlotUnsupported { slot: number, why })
    }

    /// Checks that `key` matches the header's digest.
    pub(super) fn recognise(&self, key: &VolumeKey) -> Result<(), SealedError> {
        let digest = self.metadata.digest().map_err(SealedError::Unsupported)?;
        let mut found = Zeroizing::new(vec![0; digest.digest.len()]);
        stretch(key.expose(), &digest.salt, digest.rounds, &mut found);
        // The comparison takes constant time, because the digest is of the volume key.
        let same: bool = found.ct_eq(&digest.digest).into();
        same.then_some(()).ok_or(SealedError::WrongKey)
    }

    /// Checks that the header can be stored once more.
    pub(super) fn check_fits(&self) -> Result<(), SealedError> {
        self.text().map(drop)
    }

    /// The JSON, if it fits. The JSON of another program may become longer when this program writes
    /// it.
    fn text(&self) -> Result<Vec<u8>, SealedError> {
        let text = self.metadata.to_text();
        // The text is ended by a zero byte.
        let bytes = text.len() + 1 + BINARY_BYTES;
        let has_capacity = bytes as u64 <= self.binary.bytes;
        has_capacity.then_some(text).ok_or(SealedError::HeaderFull)
    }

    /// Writes both copies with the next sequence number, the copy that was not read first.
    pub(crate) fn store(&mut self, disk: &impl BlockStorage) -> Result<(), SealedError> {
        self.check_fits()?;
        self.binary.sequence = match self.binary.sequence {
            sequence @ ..SEQUENCE_MAX => sequence + 1,
            // Only the checksum protects the number, so an attacker can set the last one that there is. Until the copy
            // that was read is overwritten, a start reads that one; after that, both have the new number.
            _ => 1,
        };
        // The copy that was read stays whole until the other one is on the disk.
        self.write_copy(disk, self.source.other())?;
        self.write_copy(disk, self.source)
    }

    fn write_copy(&self, disk: &impl BlockStorage, copy: HeaderCopyId) -> Result<(), SealedError> {
        let bytes = self.binary.encode(copy, &random()?, &self.text()?);
        let at = match copy {
            HeaderCopyId::First => 0,
            HeaderCopyId::Second => self.binary.bytes,
        };
        disk.write(&bytes, at)
            .and_then(|()| disk.flush())
            .map_err(SealedError::io("write the header of"))
    }
}

/// Writes a mark in place of the header. Returns when it is on the disk.
pub(crate) fn mark(disk: &impl BlockStorage, mark: UnfinishedMark) -> Result<(), SealedError> {
    disk.write(&mark.sector(), 0)
        .and_then(|()| disk.flush())
        .map_err(SealedError::io("mark"))
}

/// Reads the mark in place of the header, if there is one.
pub(crate) fn read_mark(disk: &impl BlockStorage) -> Result<Option<UnfinishedMark>, SealedError> {
    let mut sector = [0; TEAR_BYTES];
    disk.read(&mut sector, 0).map_err(SealedError::io("read"))?;
    Ok(UnfinishedMark::parse(&sector))
}

fn read_copy(
    disk: &impl BlockStorage,
    copy: HeaderCopyId,
    at: u64,
) -> Result<(BinaryHeader, LuksMetadata), HeaderError> {
    let mut block = [0; BINARY_BYTES];
    disk.read(&mut block, at)
        .map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => HeaderError::Absent,
            _ => HeaderError::Unreadable,
        })?;
    let binary = BinaryHeader::parse(&block, copy, at)?;
    let bytes = usize::try_from(binary.bytes).map_err(|_| HeaderError::Unreadable)?;
    let mut whole = vec![0; bytes];
    disk.read(&mut whole, at)
        .map_err(|_| HeaderError::Unreadable)?;
    if !is_whole(&whole) {
        return Err(HeaderError::Checksum);
    }
    let metadata = LuksMetadata::parse(&whole[BINARY_BYTES..], binary.bytes)?;
    Ok((binary, metadata))
}

/// Finds the second copy if the first one does not say how large it is.
fn find_second(disk: &impl BlockStorage) -> Result<(BinaryHeader, LuksMetadata), HeaderError> {
    let mut worst = HeaderError::Absent;
    for at in sizes() {
        match read_copy(disk, HeaderCopyId::Second, at) {
            Err(HeaderError::Absent) => {}
            // The fault of an existing copy says more than that the other positions are empty.
            Err(error) if worst == HeaderError::Absent => worst = error,
            Err(_) => {}
            found => return found,
        }
    }
    Err(worst)
}

pub(super) fn check_phrase(phrase: &[u8]) -> Result<(), SealedError> {
    let fine = (1..=PHRASE_BYTES_MAX).contains(&phrase.len());
    fine.then_some(()).ok_or(SealedError::Phrase)
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], SealedError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| SealedError::NoRandomness)?;
    Ok(bytes)
}

fn text_field<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    let length = text.len().min(N - 1);
    field[..length].copy_from_slice(&text.as_bytes()[..length]);
    field
}
