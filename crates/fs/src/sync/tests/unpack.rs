use automerge::transaction::Transactable;
use automerge::{Automerge, ROOT, ReadDoc, ScalarValue};

use crate::sync::limits::{CHANGES_MAX, OPERATIONS_FREE, OPERATIONS_MAX};
use crate::sync::{ByeCode, measure_changes};

fn document(keys: usize, value: &[u8]) -> Automerge {
    let mut doc = Automerge::new();
    let mut transaction = doc.transaction();
    for key in 0..keys {
        let value = ScalarValue::Bytes(value.to_vec());
        let put = transaction.put(ROOT, format!("/{key:06}"), value);
        put.expect("a map");
    }
    transaction.commit();
    doc
}

fn refused(chunks: &[u8]) -> Option<ByeCode> {
    measure_changes(chunks).err().and_then(|it| it.code())
}

#[test]
fn documents_and_changes_of_the_library_are_measured() {
    let doc = document(5000, &[3; 40]);
    let whole = measure_changes(&doc.save()).expect("small");
    let plain = measure_changes(&doc.save_nocompress()).expect("small");
    let changes = measure_changes(&doc.save_after(&[])).expect("small");
    assert_eq!(whole, plain);
    for size in [whole, changes] {
        assert!((5000..5100).contains(&size.operations), "{size:?}");
        assert!(size.bytes > 200_000, "{size:?}");
    }
    let mut change = doc.get_changes(&[]).pop().expect("one");
    let compressed = change.bytes().into_owned();
    assert!(compressed.len() < change.raw_bytes().len());
    let compressed = measure_changes(&compressed).expect("small");
    assert_eq!(compressed.operations, changes.operations);
    let both = [doc.save(), doc.save()].concat();
    let both = measure_changes(&both).expect("small");
    assert_eq!(both.operations, 2 * whole.operations);
}

#[test]
fn a_document_that_unpacks_to_a_hundred_times_its_size_is_refused() {
    let bomb = document(32, &vec![0; 1 << 20]).save();
    assert!(bomb.len() * 100 < 32 << 20);
    assert_eq!(refused(&bomb), Some(ByeCode::InvalidDocument));
    // The same bytes without equal parts are no bomb.
    let mut doc = Automerge::new();
    let mut transaction = doc.transaction();
    let mut seed = 1_u64;
    let noise = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed.to_be_bytes()[0]
    });
    let noise: Vec<u8> = noise.take(20 << 20).collect();
    let put = transaction.put(ROOT, "/a", ScalarValue::Bytes(noise));
    put.expect("a map");
    transaction.commit();
    assert!(measure_changes(&doc.save()).is_ok());
}

#[test]
fn a_run_of_equal_values_counts_as_often_as_it_says() {
    let doc = document(1, &[1]);
    let chunk = doc.save_after(&[]);
    // The last column of this change is that of numbers of predecessors: one run of one row with none.
    let size = measure_changes(&chunk).expect("small");
    assert_eq!(size.operations, 1);
    let data = change_with_column(0x70, &[0xff, 0xff, 0xff, 0xff, 0x07, 0]);
    assert_eq!(refused(&data), Some(ByeCode::InvalidDocument));
    let below = leb128(OPERATIONS_FREE);
    let data = change_with_column(0x71, &[&below[..], &[0]].concat());
    let size = measure_changes(&data).expect("at the limit");
    assert_eq!(size.operations, OPERATIONS_FREE);
    let above = leb128(OPERATIONS_FREE + 1);
    let data = change_with_column(0x71, &[&above[..], &[0]].concat());
    assert_eq!(refused(&data), Some(ByeCode::InvalidDocument));
    // A text of 1 KiB, 60,000 times.
    let text = [&leb128(60_000)[..], &leb128(1024), &[b'a'; 1024]].concat();
    let data = change_with_column(0x15, &text);
    assert_eq!(refused(&data), Some(ByeCode::InvalidDocument));
}

/// A change of a mebibyte in which one run of equal values stands for so many operations.
pub(super) fn change_of_operations(count: u64) -> Vec<u8> {
    let run = [&leb128(count)[..], &[0]].concat();
    // Raw bytes of values, which are no operations by themselves.
    let rest = vec![7; 1 << 20];
    change_with_columns(&[(0x71, &run[..]), (0x77, &rest[..])])
}

/// The attack: for each byte of the message, a run has as many operations as are allowed.
#[test]
fn a_message_has_a_limited_number_of_operations_whatever_its_size_is() {
    let size = measure_changes(&change_of_operations(OPERATIONS_MAX)).expect("at the limit");
    assert_eq!(size.operations, OPERATIONS_MAX);
    let above = change_of_operations(OPERATIONS_MAX + 1);
    assert_eq!(refused(&above), Some(ByeCode::InvalidDocument));
    let both = change_of_operations(OPERATIONS_MAX / 2 + 1).repeat(2);
    assert_eq!(refused(&both), Some(ByeCode::InvalidDocument));
}

/// The attack: changes without operations, or writers of one byte.
#[test]
fn changes_and_writers_are_limited_too() {
    let change = change_with_columns(&[]);
    let most = change.repeat(CHANGES_MAX);
    assert!(measure_changes(&most).is_ok());
    let more = [most, change].concat();
    assert_eq!(refused(&more), Some(ByeCode::InvalidDocument));
    let writers = vec![0; 100_000];
    let data = [&unsigned(writers.len() as u64)[..], &writers, &[0, 0, 0]].concat();
    let size = measure_changes(&chunk_of(0, &data)).expect("few");
    assert_eq!(size.operations, writers.len() as u64);
    let writers = vec![0; OPERATIONS_MAX as usize + 1];
    let data = [&unsigned(writers.len() as u64)[..], &writers, &[0, 0, 0]].concat();
    assert_eq!(refused(&chunk_of(0, &data)), Some(ByeCode::InvalidDocument));
}

#[test]
fn no_cut_and_no_changed_byte_of_a_chunk_is_taken() {
    let chunk = document(3, b"abc").save();
    for end in 1..chunk.len() {
        assert_eq!(refused(&chunk[..end]), Some(ByeCode::InvalidDocument));
    }
    for at in 0..chunk.len() {
        let mut changed = chunk.clone();
        changed[at] ^= 1;
        assert_eq!(refused(&changed), Some(ByeCode::InvalidDocument), "{at}");
    }
    assert!(measure_changes(&[]).is_ok());
}

/// A number in LEB128 that is positive with a sign, too.
fn leb128(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x40 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A chunk of one change with one column.
fn change_with_column(spec: u64, column: &[u8]) -> Vec<u8> {
    change_with_columns(&[(spec, column)])
}

/// A chunk of one change with fewer than 128 columns.
fn change_with_columns(columns: &[(u64, &[u8])]) -> Vec<u8> {
    let mut data = vec![0, 1, 9, 1, 1, 0, 0, 0, columns.len() as u8];
    for (spec, column) in columns {
        data.extend(unsigned(*spec));
        data.extend(unsigned(column.len() as u64));
    }
    for (_, column) in columns {
        data.extend(*column);
    }
    chunk_of(1, &data)
}

/// A chunk of a type with a checksum that fits.
fn chunk_of(kind: u8, data: &[u8]) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let head = [&[kind][..], &unsigned(data.len() as u64)].concat();
    let hash = Sha256::new_with_prefix(&head).chain_update(data).finalize();
    [&[0x85, 0x6f, 0x4a, 0x83][..], &hash[..4], &head, data].concat()
}

fn unsigned(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

#[test]
fn the_changes_of_these_tests_are_ones() {
    assert!(document(1, b"a").get_heads().len() == 1);
    assert!(measure_changes(&change_with_column(0x71, &[1, 0])).is_ok());
    assert_eq!(document(2, b"a").keys(ROOT).count(), 2);
}
