use std::os::unix::fs::PermissionsExt;

use super::*;

/// A key, and the files that a rotation leaves beside it.
struct RotationTestFolder {
    dir: tempfile::TempDir,
    files: KeyFiles,
    first: PeerKey,
}

impl RotationTestFolder {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let key = dir.path().join("identity.key");
        let (first, _) = NodeKey::load_or_create(&key).expect("a key");
        Self {
            files: KeyFiles::at(key),
            first: first.public(),
            dir,
        }
    }

    /// Begins or continues a rotation, as the command does.
    fn begin(&self, targets: &[&str]) -> (RotationKeys, RotationRecord) {
        let mut record = self.files.record().expect("readable");
        for target in targets {
            record.add(target);
        }
        let keys = self.files.keys(&record).expect("keys");
        let keys = self.files.begin(keys, &mut record).expect("room");
        (keys, record)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("a folder");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<_> = names.map(|it| it.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn in_use(&self) -> PeerKey {
        self.files.in_use().expect("a key")
    }
}

fn mark_informed(record: &mut RotationRecord, ends: Option<&str>) {
    for node in &mut record.targets {
        node.notified = true;
        node.old_key_ends = ends.map(str::to_owned);
    }
}

#[test]
fn the_new_key_takes_the_place_of_the_old_one_which_goes_at_its_end() {
    let place = RotationTestFolder::new();
    let (keys, mut record) = place.begin(&["a:443", "b:443"]);
    assert_eq!(
        (keys.stage, place.in_use()),
        (RotationStage::Before, place.first)
    );
    mark_informed(&mut record, Some("2100-01-01T00:00:00Z"));
    place.files.swap(&keys, &mut record).expect("room");
    assert_eq!(place.in_use(), keys.new.public());
    let old = NodeKey::load(&place.files.old())
        .expect("readable")
        .expect("kept");
    assert_eq!(old.public(), place.first);
    for name in ["identity.key", "identity.key.old"] {
        let about = fs::metadata(place.dir.path().join(name)).expect("a file");
        assert_eq!(about.permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(record.old_until().as_deref(), Some("2100-01-01T00:00:00Z"));

    // While both keys are valid, the same rotation is shown again. Then the old key is deleted.
    let (again, record) = place.begin(&[]);
    assert_eq!(
        (again.stage, again.new.public()),
        (RotationStage::After, keys.new.public())
    );
    let end = record.old_until_s.expect("swapped");
    place.files.tidy_at(end - 1);
    assert!(place.files.old().exists());
    place.files.tidy_at(end);
    assert_eq!(place.names(), ["identity.key", "identity.key.nodes"]);

    // The record keeps the nodes for the next rotation.
    let (next, record) = place.begin(&[]);
    assert_eq!(next.stage, RotationStage::Before);
    assert_ne!(next.new.public(), keys.new.public());
    assert_eq!(record.targets.len(), 2);
    assert!(
        record
            .targets
            .iter()
            .all(|node| !node.notified && node.old_key_ends.is_none())
    );
}

/// Every moment at which the power can fail, by the state of the disk.
#[test]
fn a_rotation_goes_on_wherever_it_stopped() {
    let place = RotationTestFolder::new();
    let key = |suffix: &str| place.dir.path().join(format!("identity.key{suffix}"));
    // The power failed after the new key was written, and before the record of the rotation was.
    let made = NodeKey::generate().expect("a key");
    made.store(&key(".new")).expect("room");
    let (keys, mut record) = place.begin(&["a:443"]);
    assert_eq!(keys.new.public(), made.public());
    // The rotation is recorded, and a node knows the new key or not.
    for is_notified in [false, true] {
        record.targets[0].notified = is_notified;
        place.files.write(&record).expect("room");
        let (again, read) = place.begin(&[]);
        assert_eq!(
            (again.stage, again.new.public()),
            (RotationStage::Before, made.public())
        );
        assert_eq!(read, record);
    }
    // The old key and the time of its end are stored, and the old key is still in use.
    keys.old
        .as_ref()
        .expect("in use")
        .store(&key(".old"))
        .expect("room");
    record.old_until_s = Some(1);
    place.files.write(&record).expect("room");
    place.files.tidy_at(2);
    assert!(
        key(".old").exists() && place.in_use() == place.first,
        "not swapped yet"
    );
    let (again, mut record) = place.begin(&[]);
    assert_eq!(again.stage, RotationStage::Before);
    place.files.swap(&again, &mut record).expect("room");
    assert_eq!(place.in_use(), made.public());
    assert!(!key(".new").exists());
    // The power failed after the old key was deleted, and before the record of the rotation was.
    fs::remove_file(key(".old")).expect("ours");
    place.files.tidy_at(u64::MAX);
    let (next, record) = place.begin(&[]);
    assert_eq!(
        (next.stage, record.old_until_s),
        (RotationStage::Before, None)
    );
}

#[test]
fn the_old_key_waits_for_a_node_that_learns_the_new_one_late() {
    let place = RotationTestFolder::new();
    let (keys, mut record) = place.begin(&["a:443"]);
    mark_informed(&mut record, Some("2100-01-01T00:00:00Z"));
    place.files.swap(&keys, &mut record).expect("room");
    let (late, mut record) = place.begin(&["b:443"]);
    assert_eq!(late.stage, RotationStage::After);
    assert_eq!(late.old.as_ref().map(NodeKey::public), Some(place.first));
    assert!(!record.is_announced());
    mark_informed(&mut record, Some("2100-01-02T00:00:00Z"));
    place.files.prolong(&mut record).expect("room");
    let record = place.files.record().expect("readable");
    assert_eq!(record.old_until().as_deref(), Some("2100-01-02T00:00:00Z"));
}

#[test]
fn a_lost_new_key_is_replaced_unless_a_node_knows_it() {
    let place = RotationTestFolder::new();
    let (keys, _) = place.begin(&["a:443"]);
    fs::remove_file(place.dir.path().join("identity.key.new")).expect("ours");
    let (other, mut record) = place.begin(&[]);
    assert_ne!(other.new.public(), keys.new.public());
    mark_informed(&mut record, None);
    place.files.write(&record).expect("room");
    fs::remove_file(place.dir.path().join("identity.key.new")).expect("ours");
    let error = place.files.keys(&record).err().expect("it is lost");
    assert!(error.message.contains("identity.key.new"), "{error}");
    assert_eq!(place.in_use(), place.first);
}

#[test]
fn one_rotation_runs_at_a_time_and_damage_is_said() {
    let place = RotationTestFolder::new();
    let turn = place.files.lock().expect("the first");
    let error = place.files.lock().expect_err("the second");
    assert!(error.message.contains("another rotation"), "{error}");
    drop(turn);
    let nowhere = KeyFiles::at(place.dir.path().join("no/identity.key"));
    let error = nowhere.lock().expect_err("no folder");
    assert!(error.message.contains("/no: "), "{error}");
    assert!(place.files.lock().is_ok());
    fs::write(place.dir.path().join("identity.key.nodes"), "{").expect("ours");
    let error = place.files.record().expect_err("no JSON");
    assert!(error.message.contains("identity.key.nodes"), "{error}");
    place.files.tidy();
    let none = KeyFiles::at(place.dir.path().join("none"));
    assert!(none.keys(&RotationRecord::default()).is_err());
}
