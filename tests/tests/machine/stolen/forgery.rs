//! What an attacker finds on a disk, and writes to it: headers and copies of the vault.

use super::*;

/// Bytes of one copy of a header.
const HEADER_BYTES: usize = 16_384;
/// Where the checksum of a copy begins, and where its field ends.
const CHECKSUM: std::ops::Range<usize> = 448..512;
/// Bytes to which a closed machine does not write: all before the data, and the beginning of the data.
const HEAD_BYTES: usize = (16 << 20) + (64 << 10);

/// Gives the bench's disk the content of a recorded disk after the first boot. Returns the vault as it was during the
/// first boot, with everything that the vault permitted then.
pub(super) fn after_first_boot(bench: &TestBench, recording: &DiskRecording) -> Vec<u8> {
    let image = bench.path().join("recorded.raw");
    let cut = |at: usize| {
        let cut = recording.cut(at, 0, &image);
        cut.unwrap_or_else(|error| panic!("{error}"));
    };
    let writes = |at: u64| recording.writes_in(at..at + COPY_BYTES as u64);
    let made = writes(VAULT_B_AT)[0];
    let mut changed = writes(VAULT_A_AT).into_iter();
    let changed = changed.find(|moment| *moment > made);
    // The other copy of the vault still has its first content then.
    cut(changed.expect("the end of the first boot is noted"));
    let file = File::open(&image).expect("it was made");
    let mut early = vec![0; COPY_BYTES];
    let read = file.read_exact_at(&mut early, VAULT_B_AT);
    read.expect("the disk is longer");
    cut(recording.len());
    alknet_qemu::copy(&image, &bench.data()).unwrap_or_else(|error| panic!("{error}"));
    early
}

/// A copy of a vault that a thief made. It has the id of the machine's vault, which lies in the clear, opens by itself,
/// and is newer than the machine's.
pub(super) fn forged() -> Vec<u8> {
    let words = Entropy::generate(WordCount::TwentyFour).expect("random bytes");
    let id = VAULT.parse().expect("a vault's id");
    let vault = NewVault::new(words, 0);
    let open = OpenAlkv::create_as(id, vault, |_| Ok(NewSlot::None));
    let mut open = open.expect("made");
    for _ in 0..8 {
        open.add(NewSlot::None).expect("there is room");
    }
    copy_of(&open)
}

/// A copy of a vault that a thief made to lie beside `copy`: it has the same id, is no newer, and [`FORGED`] opens it.
pub(crate) fn forged_beside(copy: &[u8]) -> Vec<u8> {
    let end = copy.iter().position(|byte| *byte == b'\n');
    let beside = Alkv::parse(&copy[..end.expect("it is whole")]).expect("a vault");
    let words = Entropy::generate(WordCount::TwentyFour).expect("random bytes");
    let (passphrase, cost) = (SecretStr::from(FORGED), Argon2Params::FLOOR);
    let slot = NewSlot::Passphrase {
        passphrase: &passphrase,
        cost,
        cap_kib: cost.kib(),
    };
    let open = OpenAlkv::create_as(beside.uuid(), NewVault::new(words, 0), |_| Ok(slot));
    let open = open.expect("made");
    assert!(open.alkv().generation() <= beside.generation());
    copy_of(&open)
}

/// Returns the bytes of a copy of the vault, as they lie on the disk.
fn copy_of(open: &OpenAlkv) -> Vec<u8> {
    let text = open.alkv().to_text();
    let hash = HEXLOWER.encode(&Sha256::digest(text.as_bytes()));
    let mut copy = format!("{text}\n{hash}\n").into_bytes();
    copy.resize(COPY_BYTES, 0);
    copy
}

/// Both copies of the header of `head`, changed: the data begin a sector later and decrypt as before.
pub(super) fn moved(head: &[u8]) -> Vec<u8> {
    let mut headers = head[..2 * HEADER_BYTES].to_vec();
    for copy in headers.chunks_exact_mut(HEADER_BYTES) {
        for (from, to) in [
            ("\"offset\":\"16777216\"", "\"offset\":\"16781312\""),
            ("\"iv_tweak\":\"0\"", "\"iv_tweak\":\"8\""),
        ] {
            let mut places = copy.windows(from.len());
            let at = places.position(|bytes| bytes == from.as_bytes());
            let at = at.expect("it describes the data");
            copy[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
        copy[CHECKSUM].fill(0);
        let sum = Sha256::digest(&*copy);
        copy[CHECKSUM.start..CHECKSUM.start + sum.len()].copy_from_slice(&sum);
    }
    headers
}

/// Bytes before the data on the partition, and the beginning of the data.
pub(super) fn head(disk: &Path) -> Vec<u8> {
    let mut head = vec![0; HEAD_BYTES];
    let file = File::open(disk).expect("the disk is ours");
    file.read_exact_at(&mut head, RAW_DATA_AT)
        .expect("it is longer");
    head
}

pub(super) fn write(disk: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(disk);
    let file = file.expect("the disk is ours");
    file.write_all_at(bytes, RAW_DATA_AT + at)
        .expect("it is a file");
}
