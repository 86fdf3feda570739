//! The test kills a writing process again and again: every change that the database confirmed is
//! there, and the change under way is there whole or not at all.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use alknet_core::{IdentityPersistence, PeerEntry, PeerId, PeerKey, StoreChange, StoredIdentities};
use alknet_identity_store::IdentityDb;

/// Environment variable with the path of the file, for the writing process.
const FILE: &str = "ALKNET_TEST_IDENTITY_DB";

/// The test that starts itself as the process that it kills.
const NAME: &str = "a_killed_writer_loses_no_acknowledged_change";

/// Number of writers that the test kills.
const ROUNDS: usize = 30;

/// Number of peers at any time: each change adds one and removes another.
const WINDOW: u64 = 3;

fn id(n: u64) -> PeerId {
    format!("peer-{n}").parse().expect("a peer id")
}

fn peer(n: u64) -> PeerEntry {
    PeerEntry {
        keys: vec![PeerKey::Ed25519([n.to_le_bytes()[0]; 32])],
        // Some entries need more than a page.
        display_name: Some("x".repeat(usize::try_from(n % 7).expect("small") * 1500)),
        ..PeerEntry::new(id(n))
    }
}

/// The last change in the file. Fails if the file is not whole.
#[track_caller]
fn last(stored: &StoredIdentities) -> u64 {
    let names: BTreeSet<_> = stored.peers.iter().map(|it| it.peer_id.clone()).collect();
    let number = |id: &PeerId| id.as_str().trim_start_matches("peer-").parse::<u64>();
    let last = names.iter().map(|id| number(id).expect("our names")).max();
    let last = last.unwrap_or_default();
    let window = (1..=last)
        .rev()
        .take(usize::try_from(WINDOW).expect("small"));
    assert_eq!(names, window.map(id).collect(), "half a change");
    last
}

/// The process that the test kills.
fn write(file: &Path) {
    let (db, stored) = IdentityDb::open(file);
    assert_eq!(db.diagnostics(), []);
    let mut out = std::io::stdout().lock();
    for n in last(&stored) + 1.. {
        let mut changes = vec![StoreChange::PutPeer(peer(n))];
        changes.extend(
            n.checked_sub(WINDOW)
                .map(|n| StoreChange::RemovePeer(id(n))),
        );
        db.persist(&changes).expect("room");
        writeln!(out, "\nkept {n}").expect("a reader");
        out.flush().expect("a reader");
    }
}

#[test]
fn a_killed_writer_loses_no_acknowledged_change() {
    // The test starts itself as the writer.
    if let Some(file) = std::env::var_os(FILE) {
        return write(Path::new(&file));
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("identity.db");
    let mut kept = 0;
    for round in 0..ROUNDS {
        let mut writer = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
            .env(FILE, &file)
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test can be started");
        let lines = BufReader::new(writer.stdout.take().expect("asked for"));
        // The number of changes varies, so that the kill interrupts the next change at different
        // moments.
        let until = kept + 1 + (round as u64 * 7) % 19;
        for line in lines.lines() {
            let line = line.expect("text");
            if let Some(n) = line.strip_prefix("kept ") {
                kept = n.parse().expect("a number");
                if kept == until {
                    writer.kill().expect("it runs");
                }
            }
        }
        let ended = writer.wait().expect("our child");
        assert!(
            !ended.success() && kept >= until,
            "round {round}: {ended}, {kept}"
        );
        let (db, stored) = IdentityDb::open(&file);
        assert_eq!(db.diagnostics(), [], "round {round}");
        let found = last(&stored);
        assert!(
            (kept..=kept + 1).contains(&found),
            "round {round}: {found} after {kept}"
        );
        kept = found;
    }
}
