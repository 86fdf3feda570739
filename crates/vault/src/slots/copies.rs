//! The two copies, and how they are written so that a power cut costs one at most.
//!
//! A copy is 64 KiB that were laid out once and are only ever overwritten in place: the text, a line
//! end, the SHA-256 of the text in hex, a line end, and zeroes. The hash is no protection against
//! people, who compute their own; it tells a copy that was being written from one that was.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use data_encoding::HEXLOWER;

use crate::crypto;
use crate::limits::COPY_BYTES;
use crate::slots::{Alkv, OpenAlkv, SlotError, UnlockKey};

/// A line end, 64 hex digits and a line end.
const TRAILER: usize = 66;

/// What disks write at once or not at all, at least.
const SECTOR_BYTES: usize = 512;

/// Bytes that the text may have.
pub(super) const TEXT_BYTES_MAX: usize = COPY_BYTES - TRAILER;

/// Where one copy lies.
pub trait CopyStorage {
    /// What is there: [`COPY_BYTES`], or less where there is less.
    fn read(&mut self) -> io::Result<Vec<u8>>;

    /// Overwrites all of it in place, and returns when it is on the disk.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// A file of its own, or a place on a device.
#[derive(Clone, Debug)]
pub struct FileCopyStorage {
    path: PathBuf,
    offset: u64,
}

impl FileCopyStorage {
    /// A file, which is laid out when the vault is made.
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
        // Never truncated: on FAT the blocks stay where they are and only their contents change.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&self.path)?;
        file.write_all_at(bytes, self.offset)?;
        file.sync_all()
    }
}

/// Which of the two.
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

/// What one copy is.
enum VaultCopy {
    /// Nothing was ever written there, or it was erased.
    Blank,
    /// A part of the first write into a blank copy; a power cut ended it.
    Begun,
    /// Something that is no vault: half of a write, or damage.
    Damaged,
    Good(Alkv),
    /// Whole, but of a later program.
    Newer(u64),
}

/// What the two copies hold together; at least one is good.
#[derive(Debug)]
pub struct LoadedCopies {
    /// The one to open.
    pub newest: Alkv,
    /// The other, if it is good and differs.
    pub other: Option<Alkv>,
    /// A copy that is to be written again, once the vault is open.
    pub damaged: Option<VaultCopyId>,
}

impl LoadedCopies {
    /// Opens the newest copy by the first slot that the key fits and opens. If none does, or an
    /// attacker changed that copy, the other is tried; [`OpenAlkv::alkv`] says which it was.
    pub fn open(&self, key: &mut UnlockKey<'_>) -> Result<OpenAlkv, SlotError> {
        let mut refused = None;
        for alkv in [Some(&self.newest), self.other.as_ref()]
            .into_iter()
            .flatten()
        {
            for slot in alkv.slots() {
                if !key.fits(slot.kind()) {
                    continue;
                }
                match alkv.open(slot.id(), key) {
                    Ok(open) => return Ok(open),
                    // That the newest was changed is worth more than why the other does not open.
                    Err(error) if matches!(refused, Some(SlotError::Tampered)) => drop(error),
                    Err(error) => refused = Some(error),
                }
            }
        }
        Err(refused.unwrap_or(SlotError::Form("it has no slot for such a key")))
    }
}

/// Both places.
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

    /// Reads both; `None` if no vault was ever finished here. Writes nothing, whatever it finds.
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
            // The second copy is only begun when the first is whole: no vault was ever finished here.
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

    /// Writes the first generation of a new vault into places that hold none.
    pub fn create(&mut self, open: &OpenAlkv) -> Result<(), SlotError> {
        match self.load()? {
            None => self.write_both(open.alkv(), VaultCopyId::BOTH),
            Some(_) => Err(SlotError::Exists),
        }
    }

    /// Writes a new generation: over the copy that is damaged or older first, and over the other only
    /// when that one is on the disk. At every moment one copy is good. With an unchanged vault it
    /// repairs a copy that is not.
    pub fn save(&mut self, open: &OpenAlkv) -> Result<(), SlotError> {
        let Some(found) = self.load()? else {
            return Err(SlotError::Nothing);
        };
        let alkv = open.alkv();
        let known = [Some(&found.newest), found.other.as_ref()];
        for old in known.into_iter().flatten() {
            let other = old.generation() >= alkv.generation() && old != alkv;
            // A copy that an attacker changed is worth nothing, whatever it says.
            if old.uuid() != alkv.uuid() || other && open.wrote(old) {
                return Err(SlotError::Stale);
            }
        }
        let order = self.order(found.damaged, open)?;
        self.write_both(alkv, order)
    }

    /// Overwrites both with zeroes: without the words everything sealed is lost.
    pub fn erase(&mut self) -> Result<(), SlotError> {
        let zeroes = vec![0; COPY_BYTES];
        for (area, id) in self.areas.iter_mut().zip(VaultCopyId::BOTH) {
            area.write(&zeroes).map_err(|source| id.io(source))?;
        }
        Ok(())
    }

    /// Which to overwrite first: never the one that the vault would be read from.
    fn order(
        &mut self,
        damaged: Option<VaultCopyId>,
        open: &OpenAlkv,
    ) -> Result<[VaultCopyId; 2], SlotError> {
        let [a, b] = VaultCopyId::BOTH;
        let worth = |copy: &VaultCopy| match copy {
            // A changed copy may say any generation.
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
        // A disk that does not read one copy may still have the other.
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

/// The text of a copy that was written to its end.
fn text_of(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.len() != COPY_BYTES {
        return None;
    }
    // Canonical JSON has no line end.
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (text, rest) = bytes.split_at(end);
    let (trailer, zeroes) = rest.split_at_checked(TRAILER)?;
    let hash = HEXLOWER.encode(&crypto::sha256(text));
    let whole = trailer == format!("\n{hash}\n").as_bytes() && is_zero(zeroes);
    whole.then_some(text)
}

/// Whether a power cut may have left this of the first write into a blank copy.
fn is_begun(bytes: &[u8]) -> bool {
    let used = bytes.iter().rposition(|byte| *byte != 0);
    let begun = &bytes[..used.map_or(0, |at| at + 1)];
    is_beginning(begun) || lacks_sectors(begun)
}

/// Whether this is a copy up to a place before its end.
fn is_beginning(begun: &[u8]) -> bool {
    let Some(end) = begun.iter().position(|byte| *byte == b'\n') else {
        // The text itself was cut. That it has no zeroes inside tells it from noise.
        return begun.starts_with(b"{") && !begun.contains(&0);
    };
    let (text, trailer) = begun.split_at(end);
    let hash = HEXLOWER.encode(&crypto::sha256(text));
    format!("\n{hash}").as_bytes().starts_with(trailer)
}

/// Whether this is a copy of which some sectors are still zero: a disk writes each at once, and all of
/// them in the order that suits it.
fn lacks_sectors(begun: &[u8]) -> bool {
    let is_text = |sector: &[u8]| sector.iter().all(|byte| *byte >= b' ' || *byte == b'\n');
    let mut sectors = begun.chunks(SECTOR_BYTES);
    let starts = begun.starts_with(b"{") || begun.starts_with(&[0; SECTOR_BYTES]);
    starts
        && sectors.clone().any(is_zero)
        && sectors.all(|sector| is_zero(sector) || is_text(sector))
}

/// Without stopping at the first byte that is not: that is many times faster over 64 KiB.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}

#[cfg(test)]
pub(super) mod tests;
