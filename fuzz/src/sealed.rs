//! The header of a sealed partition: both of its copies.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::sync::OnceLock;

use alknet_sealed::limits::{BINARY_BYTES, HEADER_BYTES};
use alknet_sealed::luks2::LuksHeader;
use alknet_sealed::{BlockStorage, NewHeader, SealedError, SectorCipher, VolumeKey};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Bytes of the disk: as much of the key slots as a change wipes, and none of the data.
const BYTES: usize = 9 << 18;
const COPY: usize = HEADER_BYTES as usize;
const ONE: &[u8] = b"the phrase of the first key slot";
const TWO: &[u8] = b"another phrase";
/// More rounds than this take too long to try.
const ROUNDS: u64 = 5000;

/// The first byte says what follows. Where it is even: the JSON of both copies. Where it is odd: changes of a valid
/// header, each an offset in both copies (2 bytes), the number of bytes to remove (1), the number of bytes to insert
/// (1), and those. The target then corrects the checksums.
pub fn sealed(data: &[u8]) -> bool {
    let Some((kind, data)) = data.split_first() else {
        return false;
    };
    let disk = MemoryDisk::formatted();
    match kind % 2 {
        0 => disk.replace_json(data),
        _ => disk.edit(data),
    }
    let mut header = match LuksHeader::load(&disk) {
        Ok(header) => header,
        Err(error) => {
            let known = matches!(
                error,
                SealedError::Damaged { .. } | SealedError::NotSealed | SealedError::Unsupported(_)
            );
            assert!(known, "{error}");
            return false;
        }
    };
    match header.repair(&disk) {
        Ok(_) => {}
        // Numbers are longer in the form that the code writes.
        Err(SealedError::HeaderFull) => return false,
        Err(error) => panic!("memory can be written: {error}"),
    }
    let again = LuksHeader::load(&disk).expect("it was repaired");
    assert_eq!(
        (again.uuid(), again.slots()),
        (header.uuid(), header.slots())
    );
    assert!(!again.has_one_copy() && again.vault() == header.vault());
    // A changed number of rounds could keep one input busy for minutes.
    if disk.takes_long() {
        return header.segment().is_ok();
    }
    let Ok(key) = header.unlock(&disk, 0, ONE) else {
        return header.segment().is_ok();
    };
    change(&mut header, &disk, &key);
    true
}

/// A change that succeeds is complete, and one that fails locks out no key slot.
fn change(header: &mut LuksHeader, disk: &MemoryDisk, key: &VolumeKey) {
    let others = |header: &LuksHeader| {
        let mut slots = header.slots();
        slots.retain(|slot| slot.number != 0);
        slots
    };
    let before = others(header);
    match header.set_phrase(disk, 0, TWO, key) {
        Ok(()) => {
            let found = header.unlock(disk, 0, TWO).expect("its new phrase");
            assert!(found == *key);
            assert!(header.unlock(disk, 0, ONE).is_err());
            assert_eq!(others(header), before);
        }
        // The disk in memory ends early, and wiping may be the first step to reach the end.
        Err(SealedError::Io { .. }) => {
            let loaded = LuksHeader::load(disk).expect("both copies are whole");
            let phrases = [ONE, TWO];
            let open = phrases.map(|phrase| loaded.unlock(disk, 0, phrase).is_ok());
            assert!(open.contains(&true), "locked out");
        }
        Err(_) => assert!(header.unlock(disk, 0, ONE).is_ok()),
    }
}

/// A disk in memory.
struct MemoryDisk(RefCell<Vec<u8>>);

impl MemoryDisk {
    fn formatted() -> Self {
        static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
        let image = IMAGE.get_or_init(|| {
            let disk = Self(RefCell::new(vec![0; 17 << 20]));
            let new = NewHeader {
                uuid: "0b9e8a4e-5e6c-4a1f-9d55-7f3f6f0d9f11"
                    .parse()
                    .expect("a uuid"),
                vault: "7f3f6f0d-9f11-4a1f-9d55-0b9e8a4e5e6c",
                cipher: SectorCipher::AesXts,
                phrases: &[ONE, b"the other phrase"],
            };
            LuksHeader::format(&disk, &new).expect("memory can be written");
            let mut image = disk.0.into_inner();
            image.truncate(BYTES);
            image
        });
        Self(RefCell::new(image.clone()))
    }

    fn replace_json(&self, json: &[u8]) {
        let room = COPY - BINARY_BYTES;
        for copy in self.0.borrow_mut()[..2 * COPY].chunks_exact_mut(COPY) {
            let area = &mut copy[BINARY_BYTES..];
            area.fill(0);
            let length = json.len().min(room);
            area[..length].copy_from_slice(&json[..length]);
        }
        self.checksums();
    }

    fn edit(&self, mut changes: &[u8]) {
        while let Some((head, rest)) = changes.split_first_chunk::<4>() {
            let [high, low, gone, come] = *head;
            let at = usize::from(u16::from_be_bytes([high, low])) % COPY;
            let (new, rest) = rest.split_at(usize::from(come).min(rest.len()));
            for copy in self.0.borrow_mut()[..2 * COPY].chunks_exact_mut(COPY) {
                let mut changed = copy[..at].to_vec();
                changed.extend_from_slice(new);
                changed.extend_from_slice(&copy[(at + usize::from(gone)).min(COPY)..]);
                changed.resize(COPY, 0);
                copy.copy_from_slice(&changed);
            }
            changes = rest;
        }
        self.checksums();
    }

    fn checksums(&self) {
        for copy in self.0.borrow_mut()[..2 * COPY].chunks_exact_mut(COPY) {
            // The field of the checksum counts as zeros in its own sum.
            copy[448..512].fill(0);
            let sum = Sha256::digest(&*copy);
            copy[448..480].copy_from_slice(&sum);
        }
    }

    /// Whether unlocking would stretch a part of the JSON for long.
    fn takes_long(&self) -> bool {
        fn long(value: &Value) -> bool {
            match value {
                Value::Object(map) => map.iter().any(|(name, inner)| {
                    let rounds = inner.as_u64().unwrap_or(0);
                    (name == "iterations" && rounds > ROUNDS) || long(inner)
                }),
                Value::Array(list) => list.iter().any(long),
                _ => false,
            }
        }
        let image = self.0.borrow();
        let text = &image[BINARY_BYTES..COPY];
        let end = text.iter().position(|byte| *byte == 0);
        let text = &text[..end.unwrap_or(text.len())];
        serde_json::from_slice(text).is_ok_and(|value| long(&value))
    }
}

impl BlockStorage for MemoryDisk {
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let image = self.0.borrow();
        let found = at
            .checked_add(buffer.len())
            .and_then(|end| image.get(at..end));
        buffer.copy_from_slice(found.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let mut image = self.0.borrow_mut();
        let range = at
            .checked_add(bytes.len())
            .and_then(|end| image.get_mut(at..end));
        range
            .ok_or(ErrorKind::UnexpectedEof)?
            .copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
