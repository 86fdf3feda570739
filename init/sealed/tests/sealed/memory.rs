//! What is left of a volume key in the memory of a process that has dropped it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use alknet_sealed::{NewHeader, SealedPartition, SectorCipher};
use uuid::Uuid;

const PHRASE: &[u8] = b"q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA";
const BYTES: u64 = 17 << 20;
/// So many bytes of a key in a row are no accident.
const TELLING: usize = 16;
/// The mask over the test's own copies.
const MASK: u8 = 0xa5;

/// The positions in this process that hold `masked` without its mask.
fn places(masked: &[u8]) -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").expect("Linux");
    let memory = File::open("/proc/self/mem").expect("Linux");
    let mut found = Vec::new();
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').expect("a range and more");
        if !rest.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').expect("two addresses");
        let address = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
        let (start, end) = (address(start), address(end));
        let mut piece = vec![0; 1 << 20];
        for at in (start..end).step_by(piece.len() - TELLING) {
            let length =
                usize::try_from(end - at).map_or(piece.len(), |left| left.min(piece.len()));
            // A guard page, or memory that was unmapped meanwhile.
            let Ok(read) = memory.read_at(&mut piece[..length], at) else {
                continue;
            };
            for part in masked.chunks(TELLING) {
                let same = |window: &[u8]| {
                    let mut pairs = window.iter().zip(part);
                    pairs.all(|(byte, masked)| byte ^ MASK == *masked)
                };
                if piece[..read].windows(part.len()).any(same) {
                    found.push(line.to_owned());
                }
            }
        }
    }
    found
}

#[test]
fn a_volume_key_that_was_let_go_is_nowhere() {
    let disk = || tempfile::tempfile().expect("a temporary file");
    let file = disk();
    file.set_len(BYTES).expect("a sparse file");
    let new = NewHeader {
        uuid: Uuid::nil(),
        vault: "",
        cipher: SectorCipher::AesXts,
        phrases: &[PHRASE],
    };
    let mut sealed =
        SealedPartition::format(file, BYTES, &new).expect("a file that can be written");
    let key = sealed.unlock(0, PHRASE).expect("its phrase");
    sealed.set_phrase(0, b"another", &key).expect("writable");
    let masked: Vec<u8> = key.expose().iter().map(|byte| byte ^ MASK).collect();
    assert!(
        !places(&masked).is_empty(),
        "the search finds what is there"
    );
    drop(key);
    assert_eq!(places(&masked), Vec::<String>::new());
}
