//! A disk without room.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::thread;

use alknet_test_support::skip;

use super::*;
use crate::reserve::RESERVE_BYTES;

/// Has the folder of a small disk in the process that runs the test.
const DISK: &str = "ALKNET_SMALL_DISK";
/// Bytes of that disk: those of the reserve, and a few.
const DISK_BYTES: u64 = RESERVE_BYTES + (512 << 10);
/// Peers that the store has before the disk is full.
const PEERS: u8 = 40;

/// Takes all room that the disk has, to the last byte.
fn take_all(disk: &Path) {
    let mut options = fs::OpenOptions::new();
    let file = options.create(true).append(true).open(disk.join("bundle"));
    let mut file = file.expect("the folder is there");
    for piece in [vec![1; 4096], vec![1; 1]] {
        while file.write_all(&piece).is_ok() {}
    }
}

/// A peer fills the disk, and takes all that becomes free, while its rights are taken away.
#[test]
fn a_full_disk_keeps_no_right_from_being_taken_away() {
    if let Some(disk) = std::env::var_os(DISK) {
        return take_rights_away(Path::new(&disk));
    }
    let about = fs::metadata("/proc/self").expect("a process");
    if about.uid() != 0 {
        skip!("root", "only root mounts a small disk");
    }
    let disk = tempfile::tempdir().expect("a temporary directory");
    let name = thread::current().name().expect("a test").to_owned();
    let mount = format!("mount -t tmpfs -o size={DISK_BYTES} tmpfs \"$0\" && exec \"$@\"");
    // The mount is of this namespace, and ends with the process.
    let output = Command::new("unshare")
        .args(["--mount", "setpriv", "--pdeathsig", "KILL"])
        .args(["sh", "-c", &mount])
        .arg(disk.path())
        .arg(std::env::current_exe().expect("a test program"))
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .env(DISK, disk.path())
        .stdin(Stdio::null())
        .output()
        .expect("util-linux is part of every system");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("\ntest result: ok. 1 passed"),
        "{said}\n{errors}"
    );
}

fn take_rights_away(disk: &Path) {
    let path = disk.join("identity.db");
    let reserve = || {
        let about = fs::metadata(disk.join("identity.db-reserve"));
        about.expect("it is made with the file").len()
    };
    let (db, _) = IdentityDb::open(&path);
    (0..PEERS).for_each(|n| put(&db, n));
    let token = AuthToken::generate().and_then(|it| it.hash());
    let token = ApiKey::new(token.expect("a token"));
    let put_token = StoreChange::PutApiKey(token.clone());
    db.persist(std::slice::from_ref(&put_token)).expect("room");
    assert_eq!(reserve(), RESERVE_BYTES);
    take_all(disk);
    // What is new has no room, and leaves the reserve alone.
    let new = db.persist(&[StoreChange::PutPeer(peer(PEERS))]);
    assert!(matches!(new, Err(IdentityStoreError::Unavailable(_))));
    let both = [StoreChange::PutPeer(peer(PEERS)), put_token];
    assert!(db.persist(&both).is_err());
    assert_eq!(reserve(), RESERVE_BYTES);
    for n in 0..PEERS - 1 {
        let gone = db.persist(&[StoreChange::RemovePeer(peer(n).peer_id)]);
        gone.unwrap_or_else(|error| panic!("{n}: {error}"));
        take_all(disk);
    }
    // A removal by a hub leaves an entry without rights.
    let removed = PeerEntry::new(peer(PEERS - 1).peer_id);
    db.persist(&[StoreChange::PutPeer(removed.clone())])
        .expect("less than before");
    take_all(disk);
    db.persist(&[StoreChange::RemoveApiKey(token.token.key_id)])
        .expect("a removal");
    drop(db);
    let (db, stored) = IdentityDb::open(&path);
    assert_eq!(db.diagnostics(), []);
    assert_eq!((stored.peers, stored.api_keys), (vec![removed], Vec::new()));
    // With room again the store takes new entries, and makes the reserve whole.
    fs::remove_file(disk.join("bundle")).expect("it is there");
    put(&db, PEERS);
    assert_eq!(reserve(), RESERVE_BYTES);
}
