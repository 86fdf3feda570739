use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use alknet_sealed::limits::{DATA_AT, VAULT_A_AT, VAULT_B_AT};
use alknet_sealed::{Cipher, NewHeader};
use alknet_vault::slots::{
    Area, Consent, Copies, Key, NewSlot, NewVault, OpenAlkv, SlotId, change_master_key, settle,
};
use alknet_vault::{Entropy, WordCount};

use super::*;

/// What a disk writes at once.
const SECTOR: usize = 512;
/// Bytes of a copy of the vault.
const COPY: usize = 64 << 10;
/// A header and a little data.
const BYTES: usize = DATA_AT as usize + (1 << 20);

/// A partition in memory, and power that ends after so many writes; of the last one half arrives.
#[derive(Clone)]
struct Partition {
    image: Rc<RefCell<Vec<u8>>>,
    writes: Rc<Cell<usize>>,
}

impl Partition {
    fn of(image: Vec<u8>) -> Self {
        Self {
            image: Rc::new(RefCell::new(image)),
            writes: Rc::new(Cell::new(usize::MAX)),
        }
    }

    fn copies(&self) -> Copies<Copy> {
        let at = |at: u64| Copy {
            partition: self.clone(),
            at,
        };
        Copies::new(at(VAULT_A_AT), at(VAULT_B_AT))
    }

    fn sealed(&self) -> Sealed<Self> {
        Sealed::load(self.clone(), BYTES as u64).expect("a whole header")
    }
}

impl Disk for Partition {
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let image = self.image.borrow();
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let found = image.get(at..at + buffer.len());
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let left = self.writes.get();
        let arrives = match left {
            0 => 0,
            1 => bytes.len() / 2 / SECTOR * SECTOR,
            _ => bytes.len(),
        };
        self.writes.set(left.saturating_sub(1));
        self.image.borrow_mut()[at..at + arrives].copy_from_slice(&bytes[..arrives]);
        if left > 1 {
            Ok(())
        } else {
            Err(io::Error::other("no power"))
        }
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A copy of the vault on it.
struct Copy {
    partition: Partition,
    at: u64,
}

impl Area for Copy {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; COPY];
        Disk::read(&self.partition, &mut bytes, self.at)?;
        Ok(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        Disk::write(&self.partition, bytes, self.at)
    }
}

/// A vault of new words that opens by itself.
pub(crate) fn vault() -> OpenAlkv {
    let words = Entropy::generate(WordCount::TwentyFour).expect("random bytes");
    OpenAlkv::create(NewVault::new(words, 0), NewSlot::None).expect("made")
}

/// Seals a disk for a vault.
pub(crate) fn format<D: Disk>(disk: D, bytes: u64, open: &OpenAlkv) {
    let phrases = open.data_phrases().expect("words");
    let phrases = phrases.each_ref().map(|phrase| phrase.expose().as_bytes());
    let new = NewHeader {
        uuid: uuid::Uuid::from_bytes([7; 16]),
        vault: &open.alkv().uuid().to_string(),
        cipher: Cipher::AesXts,
        phrases: &phrases,
    };
    Sealed::format(disk, bytes, &new).expect("formatted");
}

fn formatted(open: &OpenAlkv) -> Partition {
    let partition = Partition::of(vec![0; BYTES]);
    partition.copies().create(open).expect("written");
    format(partition.clone(), BYTES as u64, open);
    partition
}

fn rekeyed(old: &OpenAlkv) -> OpenAlkv {
    let mut keys = [(SlotId::new(0), Key::Stored)];
    old.rekey(&mut keys, &[], Consent::None).expect("re-keyed")
}

/// What a start does, and which of the two vaults it finds.
fn start(partition: &Partition, old: &OpenAlkv) -> (bool, OpenAlkv) {
    let found = partition.copies().load().expect("good").expect("a vault");
    let open = found.open(&mut Key::Stored).expect("it opens");
    if found.other.is_some() || found.damaged.is_some() {
        partition.copies().save(&open).expect("there is power");
    }
    let mut sealed = partition.sealed();
    let [own, words] = open.data_phrases().expect("words");
    unlock_with(&sealed, &own, |slot| slot == BY_WORDS).expect("the vault opens the data");
    let mut keys = DataKeys::of(&mut sealed);
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

#[test]
fn a_change_of_the_master_key_survives_a_power_cut_at_any_write() {
    let old = vault();
    let whole = formatted(&old).image.borrow().clone();
    let (mut ends, mut changed) = (false, 0);
    for writes in 1.. {
        let partition = Partition::of(whole.clone());
        partition.writes.set(writes);
        let next = rekeyed(&old);
        let mut sealed = partition.sealed();
        let mut keys = DataKeys::of(&mut sealed);
        let done = change_master_key(&mut partition.copies(), &mut keys, &old, &next);
        partition.writes.set(usize::MAX);
        ends |= done.is_err();
        let (is_new, open) = start(&partition, &old);
        changed += usize::from(is_new);
        // Where the words lie has not changed, and a second change finds its place.
        if done.is_ok() {
            assert!(is_new);
            let again = rekeyed(&open);
            let mut sealed = partition.sealed();
            let mut keys = DataKeys::of(&mut sealed);
            change_master_key(&mut partition.copies(), &mut keys, &open, &again).expect("power");
            start(&partition, &open);
            let slots = partition.sealed().summary().slots;
            let numbers: Vec<_> = slots.iter().map(|slot| slot.number).collect();
            assert_eq!(numbers, [BY_VAULT, BY_WORDS]);
            break;
        }
    }
    assert!(
        ends && changed > 1,
        "{changed} of the cuts left the new vault"
    );
}
