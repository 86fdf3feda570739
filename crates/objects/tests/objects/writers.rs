//! Several writers of one content.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Barrier;
use std::thread;

use alknet_objects::{OutboardPolicy, Placement};

use crate::store::{CACHED, GROUP, ObjectScene, content, read};

const WRITERS: usize = 4;

/// How each of them came to its place, if all write the content at once.
fn place_at_once(scene: &ObjectScene, content: &[u8]) -> Vec<Placement> {
    let ready = Barrier::new(WRITERS);
    let place = || {
        let mut staged = scene.objects.stage().expect("writable");
        staged.write_at(0, content).expect("room");
        ready.wait();
        let placed = staged.place().expect("room");
        assert_eq!(placed.hash(), blake3::hash(content));
        match placed.placement() {
            Placement::New => Placement::New,
            Placement::Present => Placement::Present,
            other @ Placement::Repaired { .. } => panic!("{other:?}"),
        }
    };
    thread::scope(|scope| {
        let writers = [(); WRITERS].map(|()| scope.spawn(place));
        let placed = writers.map(|writer| writer.join().expect("it does not panic"));
        placed.into()
    })
}

#[test]
fn one_of_many_writers_of_a_content_stores_it() {
    for policy in [OutboardPolicy::Placed, CACHED] {
        for size in [0, 100, 5 * GROUP] {
            let scene = ObjectScene::new(policy);
            let content = content(size);
            let hash = blake3::hash(&content);
            let placed = place_at_once(&scene, &content);
            let new = placed.iter().filter(|it| matches!(it, Placement::New));
            assert_eq!(new.count(), 1, "{placed:?}");
            assert!(matches!(read(&scene.objects, &hash), (bytes, None) if bytes == content));
            assert_eq!(scene.count("uploads"), 0);
            // The file stays as it is.
            let inode = |path| fs::metadata(path).expect("it is stored").ino();
            let before = inode(scene.objects.path(&hash));
            let again = place_at_once(&scene, &content);
            assert!(again.iter().all(|it| matches!(it, Placement::Present)));
            assert_eq!(inode(scene.objects.path(&hash)), before);
            let outboards = usize::from(size > GROUP);
            assert_eq!(scene.count("outboards"), outboards);
        }
    }
}
