//! Contents as peers receive them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use alknet_objects::{ChunkSelection, ExpectedHashes, PAIR_BYTES, TreeStep, TreeSteps};

use super::{ContentStatus, object_hash};
use crate::error::StoreErrorCode;
use crate::hash::ContentHash;
use crate::store::tests::{TestFiles, content};

const GROUP: usize = 16 << 10;

fn encode(files: &TestFiles, hash: ContentHash, selection: &ChunkSelection) -> Vec<u8> {
    let reader = files.store().read_content(hash).expect("there");
    let blocks = reader.encoded(selection).map(|block| block.expect("whole"));
    blocks.collect::<Vec<_>>().concat()
}

/// Verifies an encoded content as a receiver does, and returns the bytes of its groups.
fn decode(encoded: &[u8], hash: ContentHash, size: u64, selection: &ChunkSelection) -> Vec<u8> {
    let mut expected = ExpectedHashes::root(&object_hash(hash));
    let (mut rest, mut bytes) = (encoded, Vec::new());
    for step in TreeSteps::selected(size, selection) {
        let is_expected = match step {
            TreeStep::Pair {
                root, left, right, ..
            } => {
                let (pair, behind) = rest.split_first_chunk::<PAIR_BYTES>().expect("a pair");
                rest = behind;
                expected.pair(pair, (root, left, right))
            }
            TreeStep::Group { start, len, root } => {
                let (group, behind) = rest.split_at(len);
                rest = behind;
                bytes.extend(group);
                expected.group(start, group, root)
            }
        };
        assert!(is_expected, "{step:?}");
    }
    assert!(rest.is_empty());
    bytes
}

#[test]
fn rows_and_objects_are_encoded_alike() {
    let files = TestFiles::new();
    for len in [0, 1, 5000, GROUP, GROUP + 1, 40 * GROUP + 77] {
        let bytes = content(len as u64, len);
        let hash = files.put("/a", &bytes);
        let size = len as u64;
        let all = ChunkSelection::all();
        assert!(decode(&encode(&files, hash, &all), hash, size, &all) == bytes);
        let last = ChunkSelection::from_boundaries(vec![u64::MAX]).expect("in order");
        let end = decode(&encode(&files, hash, &last), hash, size, &last);
        assert!(bytes.ends_with(&end) && (end.len() <= 1024));
    }
}

#[test]
fn a_damaged_content_breaks_off_before_the_damage() {
    let files = TestFiles::new();
    let len = 40 * GROUP;
    let bytes = content(9, len);
    let hash = files.put("/a", &bytes);
    let whole = encode(&files, hash, &ChunkSelection::all());
    let file = files.store().content().objects().path(&object_hash(hash));
    let mut damaged = bytes;
    damaged[30 * GROUP + 5] ^= 1;
    fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("it is ours");
    fs::write(&file, damaged).expect("room");
    let reader = files.store().read_content(hash).expect("its row is whole");
    let mut sent = Vec::new();
    let mut error = None;
    for block in reader.encoded(&ChunkSelection::all()) {
        match block {
            Ok(block) => sent.extend(block),
            Err(found) => error = Some(found.code()),
        }
    }
    assert_eq!(error, Some(StoreErrorCode::ContentMissing));
    assert!(whole.starts_with(&sent));
    // Thirty groups and their pairs, and nothing of the damaged one.
    assert!(
        (30 * GROUP..31 * GROUP).contains(&sent.len()),
        "{}",
        sent.len()
    );
    let status = files.store().content().status(hash).expect("readable");
    assert_eq!(status, ContentStatus::Bad { size: len as u64 });
}
