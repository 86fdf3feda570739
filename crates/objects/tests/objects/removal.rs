//! Objects are removed while others read and write them.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use alknet_objects::{ObjectError, ObjectRemoval, OutboardPolicy, Placement};

use crate::store::{CACHED, GROUP, ObjectScene, bound_by_permissions, content, read, set_mode};

/// How often an object is stored and removed.
const ROUNDS: usize = 60;

#[test]
fn a_removal_takes_the_object_and_its_outboards() {
    for policy in [OutboardPolicy::Placed, CACHED] {
        let scene = ObjectScene::new(policy);
        let size = 3 * GROUP;
        let hash = scene.store(&content(size), GROUP);
        let other = scene.store(&content(size + 1), GROUP);
        for hash in [&hash, &other] {
            assert!(read(&scene.objects, hash).1.is_none());
        }
        // A reader that was there before reads to the end.
        let open = scene.objects.reader(&hash).expect("it is stored");
        let removed = scene.objects.remove(&hash).expect("writable");
        let bytes = size as u64;
        assert_eq!(removed, ObjectRemoval::Removed { bytes });
        let blocks: Result<Vec<_>, _> = open.bytes(0..bytes).expect("within").collect();
        assert!(blocks.expect("it is still open").concat() == content(size));
        assert!(!scene.objects.path(&hash).exists());
        assert_eq!(scene.count("outboards"), 1);
        let (_, gone) = read(&scene.objects, &hash);
        assert!(matches!(gone, Some(ObjectError::Missing(_))), "{gone:?}");
        let again = scene.objects.remove(&hash).expect("nothing to remove");
        assert_eq!(again, ObjectRemoval::Missing);
        assert!(read(&scene.objects, &other).1.is_none());
    }
}

#[test]
fn a_pinned_object_and_one_that_is_not_free_stay() {
    let scene = ObjectScene::new(OutboardPolicy::Placed);
    let content = content(100);
    let hash = blake3::hash(&content);
    // A pin comes before the object, too.
    let before = scene.objects.pin(hash);
    let mut staged = scene.objects.stage().expect("writable");
    staged.write_at(0, &content).expect("room");
    let placed = staged.place().expect("room");
    assert_eq!((placed.hash(), placed.size()), (hash, 100));
    let remove = || scene.objects.remove(&hash).expect("writable");
    let pin = placed.into_pin();
    assert_eq!(remove(), ObjectRemoval::InUse);
    drop(before);
    assert_eq!(remove(), ObjectRemoval::InUse);
    drop(pin);
    let taken = scene.objects.remove_if(&hash, || false);
    assert_eq!(taken.expect("writable"), ObjectRemoval::InUse);
    assert_eq!(remove(), ObjectRemoval::Removed { bytes: 100 });
}

/// The folder of the object cannot be opened, so that it cannot be synced, while names in it are given and removed.
#[test]
fn what_was_placed_or_removed_is_reported_when_its_folder_cannot_be_synced() {
    for policy in [OutboardPolicy::Placed, CACHED] {
        let scene = ObjectScene::new(policy);
        let content = content(100);
        let hash = blake3::hash(&content);
        let path = scene.objects.path(&hash);
        let folder = path.parent().expect("a folder");
        fs::create_dir(folder).expect("writable");
        set_mode(folder, 0o300);
        let placed = bound_by_permissions(|| {
            let mut staged = scene.objects.stage().expect("writable");
            staged.write_at(0, &content).expect("room");
            staged.place()
        });
        let error = placed.expect_err("it is not synced");
        let is_reported = matches!(
            error,
            ObjectError::PlacedNotSynced { hash: placed, placement: Placement::New, .. }
                if placed == hash
        );
        assert!(is_reported, "{error}");
        assert!(path.exists());
        let removed = bound_by_permissions(|| scene.objects.remove(&hash));
        let error = removed.expect_err("it is not synced");
        let is_reported = matches!(
            error,
            ObjectError::RemovedNotSynced { hash: removed, bytes: 100, .. } if removed == hash
        );
        assert!(is_reported, "{error}");
        assert!(!path.exists());
        set_mode(folder, 0o700);
        let again = scene.objects.remove(&hash).expect("nothing to remove");
        assert_eq!(again, ObjectRemoval::Missing);
    }
}

/// Two readers open the object again and again while it is stored and removed: they read it whole, or it is missing.
#[test]
fn an_object_that_is_removed_while_it_is_read_is_whole_or_missing() {
    for policy in [OutboardPolicy::Placed, CACHED] {
        let scene = ObjectScene::new(policy);
        let content = content(5 * GROUP);
        let hash = blake3::hash(&content);
        let is_over = AtomicBool::new(false);
        let stored = thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        match read(&scene.objects, &hash) {
                            (bytes, None) => assert!(bytes == content),
                            (_, Some(ObjectError::Missing(_))) => {}
                            (_, Some(other)) => panic!("{other}"),
                        }
                    }
                });
            }
            let rounds = (0..ROUNDS).map(|_| {
                scene.store(&content, GROUP);
                scene.objects.remove(&hash).expect("writable")
            });
            let bytes = content.len() as u64;
            let removed = |removal: &ObjectRemoval| *removal == ObjectRemoval::Removed { bytes };
            let stored = rounds.filter(removed).count();
            is_over.store(true, Ordering::Relaxed);
            stored
        });
        assert_eq!(stored, ROUNDS);
        // No reader has left an outboard of what it read last.
        assert_eq!(scene.count("outboards"), 0);
        assert_eq!(scene.count("uploads"), 0);
    }
}

/// Ends a loop of another thread, also if this one panics.
struct SetOnDrop<'f>(&'f AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// How many attempts of a remover had each result.
#[derive(Default)]
struct RemovalCounts {
    in_use: AtomicUsize,
    removed: AtomicUsize,
    failed: AtomicUsize,
}

impl RemovalCounts {
    fn add(&self, removal: &Result<ObjectRemoval, ObjectError>) {
        let count = match removal {
            Ok(ObjectRemoval::InUse) => Some(&self.in_use),
            Ok(ObjectRemoval::Removed { .. }) => Some(&self.removed),
            Ok(ObjectRemoval::Missing) => None,
            Err(_) => Some(&self.failed),
        };
        if let Some(count) = count {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Waits until there are more than this many of these, or an attempt has failed.
    fn wait_for_more(&self, of: &AtomicUsize, before: usize) {
        while of.load(Ordering::SeqCst) == before && self.failed.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
    }
}

/// A writer names what it has placed before it drops the pin, and a remover, which tries until the writer has ended,
/// looks at the names. Whatever their order, no name leads to an object that is gone.
#[test]
fn no_name_leads_to_an_object_that_was_removed() {
    let scene = ObjectScene::new(OutboardPolicy::Placed);
    let content = content(100);
    let hash = blake3::hash(&content);
    let [is_named, is_over] = [const { AtomicBool::new(false) }; 2];
    let counts = RemovalCounts::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                let is_free = || !is_named.load(Ordering::SeqCst);
                counts.add(&scene.objects.remove_if(&hash, is_free));
                // The writer needs the lock that each attempt holds.
                thread::yield_now();
            }
        });
        let _over = SetOnDrop(&is_over);
        for round in 0..ROUNDS {
            let mut staged = scene.objects.stage().expect("writable");
            staged.write_at(0, &content).expect("room");
            let placed = staged.place().expect("room");
            is_named.store(true, Ordering::SeqCst);
            drop(placed);
            // In the other rounds the remover may come at any time, also where the object is there already.
            let waits = round % 2 == 0;
            if waits {
                counts.wait_for_more(&counts.in_use, counts.in_use.load(Ordering::SeqCst));
            }
            assert!(scene.objects.path(&hash).exists());
            assert!(read(&scene.objects, &hash).1.is_none());
            // The object cannot be removed before it has no name.
            let before = counts.removed.load(Ordering::SeqCst);
            is_named.store(false, Ordering::SeqCst);
            if waits {
                counts.wait_for_more(&counts.removed, before);
                assert!(!scene.objects.path(&hash).exists());
            }
        }
    });
    assert_eq!(counts.failed.into_inner(), 0);
    assert!(counts.in_use.into_inner() >= ROUNDS / 2);
    assert!(counts.removed.into_inner() >= ROUNDS / 2);
}
