//! The two copies, which are written so that a power cut damages at most one.
//!
//! A copy has 64 KiB that are allocated once and always overwritten in place: the text, a newline, the SHA-256 of the
//! text in hex, a newline, and zeros. The hash gives no protection against attackers, who can compute it; it detects
//! a copy that was not written completely.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use data_encoding::HEXLOWER;

use crate::crypto;
use crate::limits::COPY_BYTES;
use crate::slots::{Alkv, OpenAlkv, SlotError, UnlockKey};

/// Bytes of a newline, 64 hex digits and a newline.
const TRAILER: usize = 66;

/// Bytes that disks write atomically, at least.
const SECTOR_BYTES: usize = 512;

/// Most bytes of the text.
pub(super) const TEXT_BYTES_MAX: usize = COPY_BYTES - TRAILER;

/// The storage of one copy.
pub trait CopyStorage {
    /// The stored bytes: [`COPY_BYTES`], or fewer if the storage has fewer.
    fn read(&mut self) -> io::Result<Vec<u8>>;

    /// Overwrites all bytes in place, and returns when they are on the disk.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// A file, or a range of a device.
#[derive(Clone, Debug)]
pub struct FileCopyStorage {
    path: PathBuf,
    offset: u64,
}

impl FileCopyStorage {
    /// A file, which is made with the vault.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::at(path, 0)
    }

    /// [`COPY_BYTES`] of a device or of a larger file.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>, offset: u64) -> Self {
        let path = path.into();
        Self { path, offset }
    }
}

impl CopyStorage for FileCopyStorage {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.take(COPY_BYTES as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        // The file is never truncated: on FAT its blocks then stay in place and only their contents change.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&self.path)?;
        file.write_all_at(bytes, self.offset)?;
        file.sync_all()
    }
}

/// One of the two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VaultCopyId {
    /// `vault.a`.
    A,
    /// `vault.b`.
    B,
}

impl VaultCopyId {
    const BOTH: [Self; 2] = [Self::A, Self::B];

    fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }

    fn io(self, source: io::Error) -> SlotError {
        let copy = self.name();
        SlotError::Io { copy, source }
    }
}

/// The state of one copy.
enum VaultCopy {
    /// The storage was never written, or was erased.
    Blank,
    /// The beginning of the first write into blank storage, which a power cut ended.
    Begun,
    /// The content is no vault: half of a write, or damage.
    Damaged,
    Good(Alkv),
    /// The copy is whole, but a later program wrote it.
    Newer(u64),
}

/// The two copies together; at least one is good.
#[derive(Debug)]
pub struct LoadedCopies {
    /// The copy to open.
    pub newest: Alkv,
    /// The other copy, if it is good and differs.
    pub other: Option<Alkv>,
    /// A copy that has to be written again once the vault is open.
    pub damaged: Option<VaultCopyId>,
}

impl LoadedCopies {
    /// Opens the newest copy by the first slot that the key opens. If there is no such slot, or an attacker changed
    /// that copy, the other copy is tried; [`OpenAlkv::alkv`] is the copy that opened.
    pub fn open(&self, key: &mut UnlockKey<'_>) -> Result<OpenAlkv, SlotError> {
        let mut refused = None;
        for alkv in [Some(&self.newest), self.other.as_ref()]
            .into_iter()
            .flatten()
        {
            for slot in alkv.slots() {
                // A slot of another type would only add an error that says nothing.
                if !key.fits(slot.kind()) {
                    continue;
                }
                match alkv.open(slot.id(), key) {
                    Ok(open) => return Ok(open),
                    // The change of the newest copy is the more important error.
                    Err(error) if matches!(refused, Some(SlotError::Tampered)) => drop(error),
                    Err(error) => refused = Some(error),
                }
            }
        }
        Err(refused.unwrap_or(SlotError::Form("it has no slot for such a key")))
    }
}

/// Both storages.
#[derive(Debug)]
pub struct VaultCopies<A> {
    areas: [A; 2],
}

impl<A: CopyStorage> VaultCopies<A> {
    /// `vault.a` and `vault.b`.
    #[must_use]
    pub fn new(a: A, b: A) -> Self {
        Self { areas: [a, b] }
    }

    /// Reads both copies; `None` if no vault was ever completed here. Never writes.
    pub fn load(&mut self) -> Result<Option<LoadedCopies>, SlotError> {
        let copies = self.read()?;
        let damaged = copies
            .iter()
            .position(|copy| !matches!(copy, VaultCopy::Good(_)));
        let damaged = damaged.map(|at| VaultCopyId::BOTH[at]);
        Ok(Some(match copies {
            [VaultCopy::Good(a), VaultCopy::Good(b)] => {
                let (newest, other) = if b.generation() > a.generation() {
                    (b, a)
                } else {
                    (a, b)
                };
                let other = (other != newest).then_some(other);
                LoadedCopies {
                    newest,
                    other,
                    damaged,
                }
            }
            [VaultCopy::Good(newest), _] | [_, VaultCopy::Good(newest)] => LoadedCopies {
                newest,
                other: None,
                damaged,
            },
            // The second copy is begun only once the first is complete, so no vault was ever completed here.
            [VaultCopy::Blank, VaultCopy::Blank | VaultCopy::Begun]
            | [VaultCopy::Begun, VaultCopy::Blank] => {
                return Ok(None);
            }
            [VaultCopy::Newer(format), _] | [_, VaultCopy::Newer(format)] => {
                return Err(SlotError::Newer(format));
            }
            _ => return Err(SlotError::Corrupt),
        }))
    }

    /// Writes the first generation of a new vault into storages without a vault.
    pub fn create(&mut self, open: &OpenAlkv) -> Result<(), SlotError> {
        match self.load()? {
            None => self.write_both(open.alkv(), VaultCopyId::BOTH),
            Some(_) => Err(SlotError::Exists),
        }
    }

    /// Writes a new generation: first over the copy that is damaged or older, and over the other only when the first
    /// is on the disk. One copy is good at every moment. With an unchanged vault it repairs a damaged copy.
    pub fn save(&mut self, open: &OpenAlkv) -> Result<(), SlotError> {
        let Some(found) = self.load()? else {
            return Err(SlotError::Nothing);
        };
        let alkv = open.alkv();
        let known = [Some(&found.newest), found.other.as_ref()];
        for old in known.into_iter().flatten() {
            let other = old.generation() >= alkv.generation() && old != alkv;
            // The generation of a copy that an attacker changed counts for nothing.
            if old.uuid() != alkv.uuid() || other && open.wrote(old) {
                return Err(SlotError::Stale);
            }
        }
        let order = self.order(found.damaged, open)?;
        self.write_both(alkv, order)
    }

    /// Overwrites both copies with zeros: without the words, all sealed records are lost.
    pub fn erase(&mut self) -> Result<(), SlotError> {
        let zeroes = vec![0; COPY_BYTES];
        for (area, id) in self.areas.iter_mut().zip(VaultCopyId::BOTH) {
            area.write(&zeroes).map_err(|source| id.io(source))?;
        }
        Ok(())
    }

    /// The order of overwriting, which never begins with the copy from which the vault would be read.
    fn order(
        &mut self,
        damaged: Option<VaultCopyId>,
        open: &OpenAlkv,
    ) -> Result<[VaultCopyId; 2], SlotError> {
        let [a, b] = VaultCopyId::BOTH;
        let worth = |copy: &VaultCopy| match copy {
            // A changed copy may state any generation.
            VaultCopy::Good(alkv) if open.wrote(alkv) => Some(alkv.generation()),
            _ => None,
        };
        let copies = self.read()?;
        Ok(match damaged {
            Some(VaultCopyId::A) => [a, b],
            Some(VaultCopyId::B) => [b, a],
            None if worth(&copies[0]) <= worth(&copies[1]) => [a, b],
            None => [b, a],
        })
    }

    fn write_both(&mut self, alkv: &Alkv, order: [VaultCopyId; 2]) -> Result<(), SlotError> {
        let bytes = image(alkv)?;
        for id in order {
            let area = &mut self.areas[id as usize];
            area.write(&bytes).map_err(|source| id.io(source))?;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<[VaultCopy; 2], SlotError> {
        let [a, b] = &mut self.areas;
        let read = |area: &mut A, id: VaultCopyId| match area.read() {
            Ok(bytes) => Ok(copy_of(&bytes)),
            Err(source) => Err(id.io(source)),
        };
        // If one copy cannot be read, the other may still be good.
        match (read(a, VaultCopyId::A), read(b, VaultCopyId::B)) {
            (Err(error), Err(_)) => Err(error),
            (a, b) => Ok([
                a.unwrap_or(VaultCopy::Damaged),
                b.unwrap_or(VaultCopy::Damaged),
            ]),
        }
    }
}

/// The bytes of a copy.
fn image(alkv: &Alkv) -> Result<Vec<u8>, SlotError> {
    let text = alkv.to_text();
    if text.len() > TEXT_BYTES_MAX {
        return Err(SlotError::TooLarge);
    }
    let hash = HEXLOWER.encode(&crypto::sha256(text.as_bytes()));
    let mut bytes = format!("{text}\n{hash}\n").into_bytes();
    // The zeros overwrite the rest of a longer text that was there.
    bytes.resize(COPY_BYTES, 0);
    Ok(bytes)
}

fn copy_of(bytes: &[u8]) -> VaultCopy {
    if is_zero(bytes) {
        return VaultCopy::Blank;
    }
    let Some(text) = text_of(bytes) else {
        return if is_begun(bytes) {
            VaultCopy::Begun
        } else {
            VaultCopy::Damaged
        };
    };
    match Alkv::parse(text) {
        Ok(alkv) => VaultCopy::Good(alkv),
        Err(SlotError::Newer(format)) => VaultCopy::Newer(format),
        Err(_) => VaultCopy::Damaged,
    }
}

/// The text of a copy that was written completely.
fn text_of(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.len() != COPY_BYTES {
        return None;
    }
    // Canonical JSON has no newline.
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (text, rest) = bytes.split_at(end);
    let (trailer, zeroes) = rest.split_at_checked(TRAILER)?;
    let hash = HEXLOWER.encode(&crypto::sha256(text));
    let whole = trailer == format!("\n{hash}\n").as_bytes() && is_zero(zeroes);
    whole.then_some(text)
}

/// Whether a power cut during the first write may have left these bytes.
fn is_begun(bytes: &[u8]) -> bool {
    let used = bytes.iter().rposition(|byte| *byte != 0);
    let begun = &bytes[..used.map_or(0, |at| at + 1)];
    is_beginning(begun) || lacks_sectors(begun)
}

/// Whether these bytes are the beginning of a copy.
fn is_beginning(begun: &[u8]) -> bool {
    let Some(end) = begun.iter().position(|byte| *byte == b'\n') else {
        // The text itself was cut. Noise would probably contain a zero, which the text does not.
        return begun.starts_with(b"{") && !begun.contains(&0);
    };
    let (text, trailer) = begun.split_at(end);
    let hash = HEXLOWER.encode(&crypto::sha256(text));
    format!("\n{hash}").as_bytes().starts_with(trailer)
}

/// Whether these bytes are a copy with some sectors still zero: a disk writes each sector atomically, but in any
/// order.
fn lacks_sectors(begun: &[u8]) -> bool {
    let is_text = |sector: &[u8]| sector.iter().all(|byte| *byte >= b' ' || *byte == b'\n');
    let mut sectors = begun.chunks(SECTOR_BYTES);
    let starts = begun.starts_with(b"{") || begun.starts_with(&[0; SECTOR_BYTES]);
    starts
        && sectors.clone().any(is_zero)
        && sectors.all(|sector| is_zero(sector) || is_text(sector))
}

/// The loop has no early exit, which makes it many times faster over 64 KiB.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}

#[cfg(test)]
pub(super) mod tests;
