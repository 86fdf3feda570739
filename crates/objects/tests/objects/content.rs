//! What is stored is read, and the files are those of every version.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use alknet_objects::{ObjectError, ObjectFolder, OutboardPolicy};
use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::sync::encode_ranges_validated;
use bao_tree::{BlockSize, ChunkRanges};
use blake3::Hash;

use crate::store::{CACHED, GROUP, ObjectScene, SIZES, content, read};

/// The outboard as iroh's library makes it.
fn outboard(content: &[u8]) -> PreOrderMemOutboard {
    PreOrderMemOutboard::create(content, BlockSize::from_chunk_log(4))
}

/// Compares everything about a stored object with its content.
fn assert_stored(scene: &ObjectScene, hash: &Hash, content: &[u8], policy: OutboardPolicy) {
    let size = content.len();
    assert_eq!(*hash, blake3::hash(content), "{size}");
    let hex = hash.to_string();
    let path = scene.path(&format!("objects/{}/{hex}", &hex[..2]));
    assert_eq!(scene.objects.path(hash), path);
    assert!(fs::read(&path).expect("it is stored") == content, "{size}");
    let mode = path.metadata().expect("it is stored").permissions().mode();
    assert_eq!(mode & 0o777, 0o444, "{size}");
    let file = scene.outboard(hash, size);
    let is_longer = size > GROUP;
    let is_placed = policy == OutboardPolicy::Placed;
    assert_eq!(file.exists(), is_longer && is_placed, "{size}");
    assert!(matches!(read(&scene.objects, hash), (bytes, None) if bytes == content));
    assert_eq!(file.exists(), is_longer, "{size}");
    if is_longer {
        let theirs = outboard(content);
        let expected = [theirs.root.as_bytes(), theirs.data.as_slice()].concat();
        assert!(fs::read(&file).expect("it is there") == expected, "{size}");
    }
    assert_eq!(scene.count("uploads"), 0);
    let reader = scene.objects.reader(hash).expect("it is stored");
    let ends = [0, 1, size / 3, GROUP, GROUP + 1, size / 2, size];
    for from in ends {
        for to in ends.into_iter().filter(|to| (from..=size).contains(to)) {
            let blocks = reader.bytes(from as u64..to as u64).expect("it is within");
            let blocks: Result<Vec<_>, _> = blocks.collect();
            let bytes = blocks.expect("it is what was stored").concat();
            assert!(bytes == content[from..to], "{from}..{to} of {size}");
        }
    }
}

#[test]
fn content_of_every_length_is_stored_and_read() {
    for policy in [OutboardPolicy::Placed, CACHED] {
        for size in SIZES {
            let content = content(size);
            for piece in [10_000, GROUP, 1 << 30] {
                let scene = ObjectScene::new(policy);
                let hash = scene.store(&content, piece);
                assert_stored(&scene, &hash, &content, policy);
            }
        }
    }
}

#[test]
fn holes_are_zeros_and_the_order_of_writes_does_not_matter() {
    let whole = content(3 * GROUP + 100);
    for policy in [OutboardPolicy::Placed, CACHED] {
        let scene = ObjectScene::new(policy);
        // 40 MiB with one byte at the end.
        let mut staged = scene.objects.stage().expect("writable");
        staged.write_at(40 << 20, &[1]).expect("room");
        let mut sparse = vec![0; 40 << 20];
        sparse.push(1);
        let hash = staged.place().expect("room").hash();
        assert_stored(&scene, &hash, &sparse, policy);

        // The end, the middle, the start.
        let mut staged = scene.objects.stage().expect("writable");
        for (from, to) in [(GROUP * 2, whole.len()), (100, GROUP * 2), (0, 100)] {
            let bytes = &whole[from..to];
            staged.write_at(from as u64, bytes).expect("room");
        }
        let hash = staged.place().expect("room").hash();
        assert_stored(&scene, &hash, &whole, policy);

        // A part twice, with other bytes first.
        let scene = ObjectScene::new(policy);
        let mut staged = scene.objects.stage().expect("writable");
        let mut wrong = whole.clone();
        wrong[GROUP..GROUP + 10].fill(0xff);
        staged.write_at(0, &wrong).expect("room");
        let right = &whole[GROUP..GROUP + 10];
        staged.write_at(GROUP as u64, right).expect("room");
        staged.sync().expect("writable");
        let hash = staged.place().expect("room").hash();
        assert_stored(&scene, &hash, &whole, policy);
    }
}

#[test]
fn a_staged_object_grows_and_shrinks() {
    let whole = content(GROUP + 100);
    let scene = ObjectScene::new(OutboardPolicy::Placed);
    let mut staged = scene.objects.stage().expect("writable");
    staged.write_at(0, &content(5 * GROUP)).expect("room");
    for (len, size) in [(10, 10), (GROUP + 100, GROUP + 100)] {
        staged.set_len(len as u64).expect("writable");
        assert_eq!(staged.size(), size as u64);
    }
    staged.write_at(10, &whole[10..]).expect("room");
    let mut copy = staged.reader().expect("readable");
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut copy, &mut bytes).expect("readable");
    assert!(bytes == whole);
    let hash = staged.place().expect("room").hash();
    assert_stored(&scene, &hash, &whole, OutboardPolicy::Placed);
    // One that is given up leaves nothing.
    drop(scene.objects.stage().expect("writable"));
    assert_eq!(scene.count("uploads"), 0);
}

#[test]
fn an_encoded_object_has_the_bytes_of_the_library() {
    for size in SIZES {
        let content = content(size);
        let scene = ObjectScene::new(OutboardPolicy::Placed);
        let hash = scene.store(&content, GROUP);
        let reader = scene.objects.reader(&hash).expect("it is stored");
        let blocks = reader.encoded(0..size as u64).expect("it is within");
        let blocks: Result<Vec<_>, _> = blocks.collect();
        let ours = blocks.expect("it is what was stored").concat();
        let mut theirs = Vec::new();
        let tree = outboard(&content);
        encode_ranges_validated(&*content, &tree, &ChunkRanges::all(), &mut theirs).expect("whole");
        assert!(ours == theirs, "{size}");
    }
}

/// The files as stores have had them from the first version on, written by other means.
#[test]
fn a_folder_of_an_earlier_version_opens_unchanged() {
    let folder = tempfile::tempdir().expect("writable");
    let content = content(3 * GROUP);
    let hash = blake3::hash(&content);
    let hex = hash.to_string();
    let object = format!("objects/{}/{hex}", &hex[..2]);
    let tree = outboard(&content);
    let tree = [tree.root.as_bytes(), tree.data.as_slice()].concat();
    let files = [
        (object, content.clone()),
        (format!("outboards/{hex}-0-{}", content.len()), tree),
    ];
    for (name, bytes) in &files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
        fs::write(path, bytes).expect("writable");
    }
    for policy in [OutboardPolicy::Placed, CACHED] {
        let objects = ObjectFolder::open(folder.path(), policy).expect("the folder is ours");
        assert!(matches!(read(&objects, &hash), (bytes, None) if bytes == content));
        let listed: Result<Vec<_>, _> = objects.objects().collect();
        assert_eq!(listed.expect("readable").len(), 1);
        for (name, bytes) in &files {
            let found = fs::read(folder.path().join(name)).expect("it is there");
            assert!(found == *bytes, "{name}");
        }
    }
}

#[test]
fn the_folders_are_their_owner_s_alone() {
    let scene = ObjectScene::new(OutboardPolicy::Placed);
    let root = scene.path("a/b");
    let objects = ObjectFolder::open(&root, CACHED).expect("the folder is ours");
    let mut staged = objects.stage().expect("writable");
    staged.write_at(0, b"secret").expect("room");
    let hash = staged.place().expect("room").hash();
    let object = objects.path(&hash);
    let folders = ["objects", "outboards", "uploads"].map(|name| root.join(name));
    let above = object.parent().expect("a folder");
    for folder in folders.iter().map(AsRef::as_ref).chain([above, &*root]) {
        let mode = fs::metadata(folder)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700, "{}", folder.display());
    }
}

#[test]
fn what_is_not_there_and_what_is_out_of_range_is_refused() {
    let scene = ObjectScene::new(OutboardPolicy::Placed);
    let hash = scene.store(&content(100), 100);
    let reader = scene.objects.reader(&hash).expect("it is stored");
    for (from, to) in [(0, 101), (101, 101), (7, 6)] {
        let error = reader.bytes(from..to).expect_err("out of range");
        assert!(
            matches!(error, ObjectError::OutOfRange { size: 100, .. }),
            "{error}"
        );
    }
    let absent = blake3::hash(b"absent");
    let error = scene.objects.reader(&absent).expect_err("absent");
    assert!(
        matches!(error, ObjectError::Missing(hash) if hash == absent),
        "{error}"
    );
    assert_eq!(scene.objects.size(&absent).expect("readable"), None);
    assert_eq!(scene.objects.size(&hash).expect("readable"), Some(100));
}
