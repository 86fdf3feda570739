use alknet_store::limits::{FILE_BYTES_MAX, SYMLINK_TARGET_BYTES_MAX};
use alknet_store::{ContentHash, EntryKind, EntryState, HybridTimestamp};
use proptest::prelude::*;

use crate::sync::{InvalidEntry, SyncActor, SyncedEntry};

fn entry(kind: EntryKind) -> SyncedEntry {
    let is_file = kind == EntryKind::File;
    SyncedEntry {
        state: EntryState {
            kind,
            hash: is_file.then(|| ContentHash::new([7; 32])),
            size: if is_file { 300 } else { 0 },
            mode: 0o644,
            mtime_ns: -5,
            target: (kind == EntryKind::Symlink).then(|| "../x".to_owned()),
            xattr: None,
        },
        timestamp: HybridTimestamp::new(1_800_000_000_000, 3, [9; 8]),
    }
}

fn entries() -> impl Strategy<Value = SyncedEntry> {
    let time = (any::<u64>(), any::<u16>(), any::<[u8; 8]>());
    let fields = (any::<[u8; 32]>(), 0..=FILE_BYTES_MAX, 0..=0o7777_u32);
    (0..4_u8, fields, any::<i64>(), "[a-z/.]{1,40}", time).prop_map(
        |(kind, (hash, size, mode), mtime_ns, target, (ms, counter, node))| {
            let kind = match kind {
                0 => EntryKind::Deleted,
                1 => EntryKind::File,
                2 => EntryKind::Directory,
                _ => EntryKind::Symlink,
            };
            let is_file = kind == EntryKind::File;
            SyncedEntry {
                state: EntryState {
                    kind,
                    hash: is_file.then(|| ContentHash::new(hash)),
                    size: if is_file { size } else { 0 },
                    mode,
                    mtime_ns,
                    target: (kind == EntryKind::Symlink).then_some(target),
                    xattr: None,
                },
                timestamp: HybridTimestamp::new(ms, counter, node),
            }
        },
    )
}

proptest! {
    #[test]
    fn a_value_comes_back_and_no_cut_of_it_is_one(entry in entries()) {
        let bytes = entry.encode().expect("valid");
        prop_assert_eq!(SyncedEntry::decode(&bytes), Ok(entry));
        for end in 0..bytes.len() {
            prop_assert!(SyncedEntry::decode(&bytes[..end]).is_err(), "{end}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        prop_assert!(SyncedEntry::decode(&longer).is_err());
    }

    #[test]
    fn bytes_that_are_read_are_the_ones_that_are_written(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let read = SyncedEntry::decode(&bytes).ok();
        let written = read.map(|entry| entry.encode().expect("valid"));
        prop_assert!(written.is_none_or(|written| written == bytes));
    }
}

/// The form that all peers share. A change of it is another protocol.
#[test]
fn the_form_of_a_value_stays_as_it_is() {
    let bytes = entry(EntryKind::File).encode().expect("valid");
    let expected = [
        &[1, 1][..],
        &[7; 32],
        // 300 and 0o644 in seven bits a byte, and -5 in zigzag.
        &[0xac, 2, 0xa4, 3, 9],
        &[0],
        &[0x01, 0xa3, 0x18, 0x5c, 0x50, 0x00, 0, 3],
        &[9; 8],
    ];
    assert_eq!(bytes, expected.concat());
}

#[test]
fn fields_fit_the_kind() {
    let wrong = |change: fn(&mut EntryState), kind| {
        let mut entry = entry(kind);
        change(&mut entry.state);
        entry.encode()
    };
    let refused = [
        wrong(|it| it.hash = None, EntryKind::File),
        wrong(|it| it.size = FILE_BYTES_MAX + 1, EntryKind::File),
        wrong(|it| it.target = Some("x".to_owned()), EntryKind::File),
        wrong(|it| it.mode = 0o100_644, EntryKind::File),
        wrong(|it| it.size = 1, EntryKind::Directory),
        wrong(
            |it| it.hash = Some(ContentHash::new([1; 32])),
            EntryKind::Deleted,
        ),
        wrong(|it| it.target = None, EntryKind::Symlink),
        wrong(|it| it.target = Some(String::new()), EntryKind::Symlink),
        wrong(|it| it.target = Some("a\0b".to_owned()), EntryKind::Symlink),
        wrong(
            |it| it.target = Some("x".repeat(SYMLINK_TARGET_BYTES_MAX + 1)),
            EntryKind::Symlink,
        ),
    ];
    for result in refused {
        assert_eq!(result, Err(InvalidEntry::Field));
    }
    let longest = "x".repeat(SYMLINK_TARGET_BYTES_MAX);
    let mut link = entry(EntryKind::Symlink);
    link.state.target = Some(longest);
    assert!(link.encode().is_ok());
    assert_eq!(
        SyncedEntry::decode(&vec![0; 1 << 20]),
        Err(InvalidEntry::Length)
    );
}

#[test]
fn a_writer_has_the_hash_of_its_key_and_its_copy() {
    let first = SyncActor::new(b"key", [1; 16]);
    assert_eq!(
        first.as_bytes()[..16],
        blake3::hash(b"key").as_bytes()[..16]
    );
    assert_eq!(first.as_bytes()[16..], [1; 8]);
    assert_ne!(first, SyncActor::new(b"key", [2; 16]));
    assert_ne!(first, SyncActor::new(b"other", [1; 16]));
}
