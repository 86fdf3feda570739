//! Bytes that changed on the disk reach no reader.

use std::error::Error as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use alknet_objects::{
    DamagedPart, ObjectDamage, ObjectError, ObjectScrub, OutboardPolicy, Placement,
};

use crate::store::{
    CACHED, GROUP, ObjectScene, SIZES, bound_by_permissions, content, read, set_mode,
};

fn flip(path: &Path, at: u64) {
    set_mode(path, 0o600);
    let file = File::options().read(true).write(true).open(path);
    let file = file.expect("it is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("within");
    file.write_all_at(&[byte[0] ^ 1], at).expect("within");
}

fn damaged_part(error: Option<ObjectError>) -> Option<DamagedPart> {
    match error? {
        ObjectError::Damaged { part, .. } => Some(part),
        other => panic!("{other}"),
    }
}

#[test]
fn a_flipped_byte_of_content_is_refused_at_its_group() {
    let size = 40 * GROUP + 5;
    let content = content(size);
    for policy in [OutboardPolicy::Placed, CACHED] {
        for at in [0, 1, GROUP, 20 * GROUP + 7, size - 1] {
            let scene = ObjectScene::new(policy);
            let hash = scene.store(&content, GROUP);
            // So that there is an outboard.
            assert!(read(&scene.objects, &hash).1.is_none());
            flip(&scene.objects.path(&hash), at as u64);
            let (bytes, error) = read(&scene.objects, &hash);
            assert_eq!(damaged_part(error), Some(DamagedPart::Content), "{at}");
            // All groups before it, and nothing of it.
            assert_eq!(bytes.len(), at / GROUP * GROUP, "{at}");
            assert!(bytes == content[..bytes.len()]);
            // The other groups are still read.
            let reader = scene.objects.reader(&hash).expect("it is stored");
            let behind = (at / GROUP + 1) * GROUP;
            let behind = behind.min(size);
            let blocks = reader.bytes(behind as u64..size as u64);
            let blocks: Result<Vec<_>, _> = blocks.expect("it is within").collect();
            assert!(blocks.expect("good").concat() == content[behind..]);
        }
    }
}

/// An object of one group has no outboard: it is compared whole.
#[test]
fn a_flipped_byte_of_short_content_is_refused() {
    for size in SIZES.into_iter().filter(|size| (1..=GROUP).contains(size)) {
        let scene = ObjectScene::new(OutboardPolicy::Placed);
        let hash = scene.store(&content(size), GROUP);
        let open = scene.objects.reader(&hash).expect("it is stored");
        flip(&scene.objects.path(&hash), size as u64 - 1);
        let (bytes, error) = read(&scene.objects, &hash);
        assert_eq!(damaged_part(error), Some(DamagedPart::Content));
        assert!(bytes.is_empty());
        // It was opened before the byte changed.
        let mut blocks = open.bytes(0..1).expect("it is within");
        let first = blocks.next().expect("an error");
        assert_eq!(damaged_part(first.err()), Some(DamagedPart::Content));
        assert!(blocks.next().is_none());
    }
}

#[test]
fn a_flipped_byte_of_an_outboard_is_refused_at_its_group_and_computed_again() {
    let size = 8 * GROUP;
    let content = content(size);
    // The root's pair; the pair of the third and fourth group; that of the last two.
    for (pair, proven) in [(0, 0), (3, 2 * GROUP), (6, 6 * GROUP)] {
        let scene = ObjectScene::new(OutboardPolicy::Placed);
        let hash = scene.store(&content, GROUP);
        let outboard = scene.outboard(&hash, size);
        let whole = fs::read(&outboard).expect("it is there");
        flip(&outboard, 32 + pair * 64 + 5);
        let (bytes, error) = read(&scene.objects, &hash);
        assert_eq!(damaged_part(error), Some(DamagedPart::Outboard), "{pair}");
        assert_eq!(bytes.len(), proven, "{pair}");
        assert!(bytes == content[..proven]);
        let (bytes, error) = read(&scene.objects, &hash);
        assert!(error.is_none() && bytes == content, "{error:?}");
        assert!(fs::read(&outboard).expect("it is there again") == whole);
    }
}

/// The root of the outboard is readable, and its pairs are not: a file that stayed would fail each later reader as well.
#[test]
fn an_outboard_whose_pairs_cannot_be_read_is_removed_and_computed_again() {
    let size = 8 * GROUP;
    let content = content(size);
    for policy in [OutboardPolicy::Placed, CACHED] {
        let scene = ObjectScene::new(policy);
        let hash = scene.store(&content, GROUP);
        let open = scene.objects.reader(&hash).expect("it is stored");
        let outboard = scene.outboard(&hash, size);
        let whole = fs::read(&outboard).expect("it is there");
        let file = File::options().write(true).open(&outboard);
        file.expect("writable").set_len(32).expect("it is shorter");
        let mut blocks = open.bytes(0..size as u64).expect("it is within");
        let first = blocks.next().expect("an error");
        let error = first.expect_err("the pairs are missing");
        // The file is gone, so nothing else says what the disk did.
        let source = error.source().expect("the error of the system").to_string();
        assert!(error.to_string().ends_with(&source), "{error}");
        assert_eq!(damaged_part(Some(error)), Some(DamagedPart::Outboard));
        assert!(!outboard.exists());
        let (bytes, error) = read(&scene.objects, &hash);
        assert!(error.is_none() && bytes == content, "{error:?}");
        assert!(fs::read(&outboard).expect("it is there again") == whole);
    }
}

/// An outboard with another root or length is not the one of the object.
#[test]
fn an_outboard_with_another_root_or_length_is_computed_again() {
    let size = 8 * GROUP;
    let content = content(size);
    let scene = ObjectScene::new(OutboardPolicy::Placed);
    let hash = scene.store(&content, GROUP);
    let outboard = scene.outboard(&hash, size);
    let whole = fs::read(&outboard).expect("it is there");
    for wrong in [vec![0; whole.len()], whole[..100].to_vec(), Vec::new()] {
        fs::write(&outboard, wrong).expect("writable");
        let (bytes, error) = read(&scene.objects, &hash);
        assert!(error.is_none() && bytes == content, "{error:?}");
        assert!(fs::read(&outboard).expect("it is there") == whole);
    }
    fs::remove_file(&outboard).expect("it is there");
    let (bytes, error) = read(&scene.objects, &hash);
    assert!(error.is_none() && bytes == content, "{error:?}");
}

#[test]
fn storing_again_repairs_what_is_damaged() {
    for policy in [OutboardPolicy::Placed, CACHED] {
        for size in SIZES.into_iter().filter(|size| *size > 0) {
            let content = content(size);
            let scene = ObjectScene::new(policy);
            let hash = scene.store(&content, GROUP);
            flip(&scene.objects.path(&hash), size as u64 / 2);
            let mut staged = scene.objects.stage().expect("writable");
            staged.write_at(0, &content).expect("room");
            let placed = staged.place().expect("room");
            let damage = match placed.placement() {
                Placement::Repaired { bytes, damage } if *bytes == size as u64 => damage,
                other => panic!("{other:?}"),
            };
            assert!(matches!(damage, ObjectDamage::OtherBytes), "{damage}");
            drop(placed);
            let (bytes, error) = read(&scene.objects, &hash);
            assert!(error.is_none() && bytes == content, "{error:?}");
        }
    }
}

/// Reads all objects in steps of this many bytes: those that are damaged, the others, and the bytes.
fn scrub(scene: &ObjectScene, bytes: u64) -> (Vec<String>, usize, u64) {
    let mut scrub = ObjectScrub::default();
    let (mut damaged, mut good, mut read) = (Vec::new(), 0, 0);
    while let Some(step) = scene.objects.scrub(&mut scrub, bytes).expect("readable") {
        assert!(step.bytes <= bytes);
        read += step.bytes;
        match step.checked {
            Some(checked) if checked.damage.is_some() => damaged.push(checked.hash.to_string()),
            Some(_) => good += 1,
            None => {}
        }
    }
    (damaged, good, read)
}

#[test]
fn a_check_reads_whole_objects_and_finds_damaged_ones() {
    let scene = ObjectScene::new(OutboardPolicy::Placed);
    let hashes = SIZES.map(|size| scene.store(&content(size), GROUP));
    let all: usize = SIZES.iter().sum();
    for step in [1000, GROUP as u64, u64::MAX] {
        let expected = (Vec::new(), SIZES.len(), all as u64);
        assert_eq!(scrub(&scene, step), expected, "{step}");
    }
    let last = SIZES.len() - 1;
    flip(&scene.objects.path(&hashes[last]), GROUP as u64);
    for step in [100_000, u64::MAX] {
        let expected = (vec![hashes[last].to_string()], last, all as u64);
        assert_eq!(scrub(&scene, step), expected, "{step}");
    }
    for (at, hash) in hashes.iter().enumerate() {
        let checked = scene.objects.verify(hash).expect("it is stored");
        assert_eq!(
            (checked.hash, checked.damage.is_some()),
            (*hash, at == last)
        );
    }
    let absent = scene.objects.verify(&blake3::hash(b"absent"));
    assert!(matches!(absent, Err(ObjectError::Missing(_))));
}

/// The disk has the names of a folder, and cannot read the inodes that they lead to.
#[test]
fn a_check_names_objects_whose_inodes_cannot_be_read_and_goes_on() {
    let scene = ObjectScene::new(OutboardPolicy::Placed);
    let hashes: Vec<_> = (1..40)
        .map(|size| scene.store(&content(size), GROUP))
        .collect();
    let folder_of = |hash: &blake3::Hash| {
        let path = scene.objects.path(hash);
        path.parent().expect("a folder").to_owned()
    };
    let folder = folder_of(&hashes[0]);
    let unreadable = hashes.iter().filter(|hash| folder_of(hash) == folder);
    let mut expected: Vec<_> = unreadable.map(ToString::to_string).collect();
    expected.sort();
    // Such a folder can be listed, and no file in it be looked at or opened.
    set_mode(&folder, 0o600);
    let (mut damaged, good, _) = bound_by_permissions(|| scrub(&scene, u64::MAX));
    damaged.sort();
    assert_eq!(damaged, expected);
    assert_eq!(good, hashes.len() - expected.len());
    set_mode(&folder, 0o700);
    assert_eq!(scrub(&scene, u64::MAX).0, Vec::<String>::new());
}

#[test]
fn an_object_that_was_removed_meanwhile_is_not_damaged() {
    let scene = ObjectScene::new(OutboardPolicy::Placed);
    let hash = scene.store(&content(GROUP), GROUP);
    flip(&scene.objects.path(&hash), 0);
    let mut scrub = ObjectScrub::default();
    let step = scene.objects.scrub(&mut scrub, 10).expect("readable");
    assert!(step.is_some_and(|step| step.checked.is_none()), "under way");
    scene.objects.remove(&hash).expect("writable");
    let step = scene.objects.scrub(&mut scrub, u64::MAX).expect("readable");
    let checked = step.and_then(|step| step.checked).expect("it was read");
    assert!(checked.damage.is_none(), "{checked:?}");
    let end = scene.objects.scrub(&mut scrub, 10).expect("readable");
    assert!(end.is_none());
}
