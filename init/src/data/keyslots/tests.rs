use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use alknet_sealed::limits::{BINARY_BYTES, DATA_AT, HEADER_BYTES, VAULT_A_AT, VAULT_B_AT};
use alknet_sealed::{NewHeader, SectorCipher};
use alknet_vault::slots::{
    Consent, CopyStorage, NewSlot, NewVault, OpenAlkv, SlotId, UnlockKey, VaultCopies,
    change_master_key, settle,
};
use alknet_vault::{Entropy, WordCount};
use sha2::{Digest, Sha256};

use super::*;

/// What a disk writes at once.
const SECTOR: usize = 512;
/// Bytes of a copy of the vault.
const COPY: usize = 64 << 10;
/// A header and a little data.
const BYTES: usize = DATA_AT as usize + (1 << 20);

/// How many random losses are tried of what a disk had not flushed when the power failed.
const LOSSES: usize = 2;

/// An operation on a disk.
enum RecordedDiskOp {
    Flush,
    Write { at: usize, bytes: Vec<u8> },
}

/// A partition in memory that records the operations on it.
#[derive(Clone)]
struct RecordingPartition {
    image: Rc<RefCell<Vec<u8>>>,
    ops: Rc<RefCell<Vec<RecordedDiskOp>>>,
}

impl RecordingPartition {
    fn from_image(image: Vec<u8>) -> Self {
        Self {
            image: Rc::new(RefCell::new(image)),
            ops: Rc::default(),
        }
    }

    fn copies(&self) -> VaultCopies<PartitionVaultCopy> {
        let at = |at: u64| PartitionVaultCopy {
            partition: self.clone(),
            at,
        };
        VaultCopies::new(at(VAULT_A_AT), at(VAULT_B_AT))
    }

    fn sealed(&self) -> SealedPartition<Self> {
        SealedPartition::load(self.clone(), BYTES as u64).expect("a whole header")
    }
}

impl BlockStorage for RecordingPartition {
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let image = self.image.borrow();
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let found = image.get(at..at + buffer.len());
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        self.image.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        let bytes = bytes.to_vec();
        self.ops
            .borrow_mut()
            .push(RecordedDiskOp::Write { at, bytes });
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.ops.borrow_mut().push(RecordedDiskOp::Flush);
        Ok(())
    }
}

/// The content of a disk that kept some writes back, by the number of the write and of the sector
/// in it.
fn cut(
    flushed: &[u8],
    waiting: &[(usize, &[u8])],
    mut arrives: impl FnMut(usize, usize) -> bool,
) -> RecordingPartition {
    let mut image = flushed.to_vec();
    for (write, (at, bytes)) in waiting.iter().enumerate() {
        for (sector, piece) in bytes.chunks(SECTOR).enumerate() {
            if arrives(write, sector) {
                let at = at + sector * SECTOR;
                image[at..at + piece.len()].copy_from_slice(piece);
            }
        }
    }
    RecordingPartition::from_image(image)
}

/// Calls `each` with the partition that began as `image` at every moment at which the power may
/// fail. A disk keeps writes back until it is flushed: until then any sector of them is there or is
/// not.
fn at_every_cut(image: &[u8], ops: &[RecordedDiskOp], mut each: impl FnMut(&RecordingPartition)) {
    let mut flushed = image.to_vec();
    let mut waiting: Vec<(usize, &[u8])> = Vec::new();
    let mut dice = 0x5eed_5eed_5eed_5eed_u64;
    let mut by_chance = |_: usize, _: usize| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        (dice >> 11) & 1 == 1
    };
    for op in ops {
        if let RecordedDiskOp::Write { at, bytes } = op {
            waiting.push((*at, &bytes[..]));
            continue;
        }
        let Some((_, latest)) = waiting.last() else {
            continue;
        };
        let last = waiting.len() - 1;
        let half = latest.len() / SECTOR / 2;
        each(&cut(&flushed, &waiting, |_, _| false));
        each(&cut(&flushed, &waiting, |write, sector| {
            write < last || sector < half
        }));
        if last > 0 {
            each(&cut(&flushed, &waiting, |write, _| write == last));
        }
        for _ in 0..LOSSES {
            each(&cut(&flushed, &waiting, &mut by_chance));
        }
        for (at, bytes) in waiting.drain(..) {
            flushed[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
    assert!(waiting.is_empty(), "something was never flushed");
    each(&RecordingPartition::from_image(flushed));
}

/// A copy of the vault on the partition.
struct PartitionVaultCopy {
    partition: RecordingPartition,
    at: u64,
}

impl CopyStorage for PartitionVaultCopy {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; COPY];
        BlockStorage::read(&self.partition, &mut bytes, self.at)?;
        Ok(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        BlockStorage::write(&self.partition, bytes, self.at)?;
        self.partition.flush()
    }
}

/// A vault of new words that opens without input.
pub(crate) fn vault() -> OpenAlkv {
    let words = Entropy::generate(WordCount::TwentyFour).expect("random bytes");
    OpenAlkv::create(NewVault::new(words, 0), NewSlot::None).expect("made")
}

/// Seals a disk for a vault.
pub(crate) fn format<D: BlockStorage>(disk: D, bytes: u64, open: &OpenAlkv) {
    let phrases = open.data_phrases().expect("words");
    let phrases = phrases.each_ref().map(|phrase| phrase.expose().as_bytes());
    let new = NewHeader {
        uuid: uuid::Uuid::from_bytes([7; 16]),
        vault: &open.alkv().uuid().to_string(),
        cipher: SectorCipher::AesXts,
        phrases: &phrases,
    };
    SealedPartition::format(disk, bytes, &new).expect("formatted");
}

fn formatted(open: &OpenAlkv) -> RecordingPartition {
    let partition = RecordingPartition::from_image(vec![0; BYTES]);
    partition.copies().create(open).expect("written");
    format(partition.clone(), BYTES as u64, open);
    partition
}

fn rekeyed(old: &OpenAlkv) -> OpenAlkv {
    let mut keys = [(SlotId::new(0), UnlockKey::Stored)];
    old.rekey(&mut keys, &[], Consent::None).expect("re-keyed")
}

/// Does what a start does, and returns which of the two vaults it finds.
fn start(partition: &RecordingPartition, old: &OpenAlkv) -> (bool, OpenAlkv) {
    let found = partition.copies().load().expect("good").expect("a vault");
    let open = found.open(&mut UnlockKey::Stored).expect("it opens");
    if found.other.is_some() || found.damaged.is_some() {
        partition.copies().save(&open).expect("there is power");
    }
    let mut sealed = partition.sealed();
    let [own, words] = open.data_phrases().expect("words");
    unlock_with(&sealed, &own, |slot| slot == BY_WORDS).expect("the vault opens the data");
    let mut keys = DataPartitionKeys::for_partition(&mut sealed);
    if keys.are_too_many() {
        settle(&mut partition.copies(), &mut keys, &open).expect("there is power");
    }
    assert!(!keys.are_too_many());
    unlock_with(&sealed, &own, |_| false).expect("it still does");
    unlock_with(&sealed, &words, |_| false).expect("so do the words");
    let found = partition.copies().load().expect("good").expect("a vault");
    assert!(found.other.is_none() && found.damaged.is_none());
    (open.data_secret() != old.data_secret(), open)
}

/// Changes both copies of the header, as an attacker can who has the disk: the checksum is a plain SHA-256.
fn forge_header(image: &mut [u8], change: impl Fn(&mut [u8])) {
    for copy in [0, HEADER_BYTES as usize] {
        let header = &mut image[copy..copy + HEADER_BYTES as usize];
        change(header);
        header[448..512].fill(0);
        let sum = Sha256::digest(&*header);
        header[448..480].copy_from_slice(&sum);
    }
}

#[test]
fn a_change_of_the_master_key_survives_a_power_cut_at_any_write() {
    change_with_cuts(&vault(), None);
}

/// A thief had the disk, and the owner answers with a new master key.
#[test]
fn a_header_with_the_last_sequence_number_keeps_no_owner_from_a_new_master_key() {
    change_with_cuts(&vault(), Some(u64::MAX));
}

fn change_with_cuts(old: &OpenAlkv, number: Option<u64>) {
    let partition = formatted(old);
    if let Some(number) = number {
        forge_header(&mut partition.image.borrow_mut(), |header| {
            header[16..24].copy_from_slice(&number.to_be_bytes());
        });
    }
    let whole = partition.image.borrow().clone();
    partition.ops.take();
    let next = rekeyed(old);
    let mut sealed = partition.sealed();
    let mut keys = DataPartitionKeys::for_partition(&mut sealed);
    let done = change_master_key(&mut partition.copies(), &mut keys, old, &next);
    done.expect("there is power");
    let (mut kept, mut changed) = (0, 0);
    at_every_cut(&whole, &partition.ops.take(), |cut| {
        let (is_new, _) = start(cut, old);
        *if is_new { &mut changed } else { &mut kept } += 1;
    });
    assert!(
        kept > 1 && changed > 1,
        "{kept} of the cuts left the old vault and {changed} the new one"
    );
    // The words lie where they did, and a second change finds its place.
    let (is_new, open) = start(&partition, old);
    assert!(is_new);
    let again = rekeyed(&open);
    let mut sealed = partition.sealed();
    let mut keys = DataPartitionKeys::for_partition(&mut sealed);
    change_master_key(&mut partition.copies(), &mut keys, &open, &again).expect("power");
    start(&partition, &open);
    let slots = partition.sealed().summary().slots;
    let numbers: Vec<_> = slots.iter().map(|slot| slot.number).collect();
    assert_eq!(numbers, [BY_VAULT, BY_WORDS]);
}

/// The owner added a key slot by cryptsetup. An attacker writes its number into the token of this program, whose surplus
/// slots are removed.
#[test]
fn a_key_slot_of_the_owner_stays_although_the_token_names_it() {
    let old = vault();
    let partition = formatted(&old);
    forge_header(&mut partition.image.borrow_mut(), |header| {
        let text = &header[BINARY_BYTES..];
        let end = text.iter().position(|byte| *byte == 0).expect("an end");
        let mut json: serde_json::Value = serde_json::from_slice(&text[..end]).expect("our JSON");
        let mut slot = json["keyslots"]["1"].clone();
        slot["kdf"]["iterations"] = 100_000.into();
        slot["area"]["offset"] = (1_u64 << 20).to_string().into();
        json["keyslots"]["2"] = slot;
        for list in ["/digests/0/keyslots", "/tokens/0/keyslots"] {
            let list = json.pointer_mut(list).and_then(|list| list.as_array_mut());
            list.expect("a list").push("2".into());
        }
        let text = json.to_string();
        header[BINARY_BYTES..].fill(0);
        header[BINARY_BYTES..BINARY_BYTES + text.len()].copy_from_slice(text.as_bytes());
    });
    let numbers = || {
        let slots = partition.sealed().summary().slots.into_iter();
        let openable = slots.filter(|slot| slot.unsupported.is_none());
        openable.map(|slot| slot.number).collect::<Vec<_>>()
    };
    start(&partition, &old);
    assert_eq!(numbers(), [BY_VAULT, BY_WORDS, 2]);
    let next = rekeyed(&old);
    let mut sealed = partition.sealed();
    let mut keys = DataPartitionKeys::for_partition(&mut sealed);
    change_master_key(&mut partition.copies(), &mut keys, &old, &next).expect("power");
    start(&partition, &old);
    assert_eq!(numbers(), [BY_WORDS, 2, 3]);
}
