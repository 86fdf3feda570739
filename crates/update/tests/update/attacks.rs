//! Repositories that the reference implementation of TUF signed, good and bad ones: this program accepts the good ones
//! and refuses each bad one for its reason.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use alknet_update::{
    RepositoryFolder, TrustAnchor, UnixSeconds, UpdateClock, UpdateError, UpdateTrust,
};

use crate::reference::python;
use crate::support::NOW;

/// What the script makes, and the beginning of the text with which this program refuses it; empty if it accepts it.
const CASES: [(&str, &str); 28] = [
    ("good", ""),
    ("rotated", ""),
    ("fast-forward-recovered", ""),
    (
        "expired-root",
        "1.root.json expired at 2030-01-01T00:00:00Z",
    ),
    (
        "expired-timestamp",
        "timestamp.json expired at 2030-01-01T00:00:00Z",
    ),
    (
        "expired-snapshot",
        "1.snapshot.json expired at 2030-01-01T00:00:00Z",
    ),
    (
        "expired-targets",
        "1.targets.json expired at 2030-01-01T00:00:00Z",
    ),
    (
        "rolled-back-timestamp",
        "timestamp.json has version 1, and this machine has seen version 2",
    ),
    (
        "rolled-back-snapshot",
        "snapshot.json has version 1, and this machine has seen version 2",
    ),
    (
        "rolled-back-targets",
        "targets.json has version 1, and this machine has seen version 2",
    ),
    (
        "mixed-targets",
        "1.targets.json has version 2, and snapshot.json names version 1",
    ),
    (
        "mixed-snapshot",
        "1.snapshot.json has version 2, and timestamp.json names version 1",
    ),
    (
        "wrong-hash",
        "1.targets.json has another SHA-256 than the signed one",
    ),
    // The timestamp names the length, so a longer file is not even read.
    ("wrong-length", "1.snapshot.json has more than "),
    (
        "endless-metadata",
        "timestamp.json has more than 16384 bytes",
    ),
    (
        "endless-target",
        "a.efi has another length than the signed 7 bytes",
    ),
    (
        "wrong-target",
        "a.efi has another SHA-256 than the signed one",
    ),
    (
        "wrong-threshold",
        "timestamp.json has 1 valid signatures by keys of the timestamp role in root version 1, and 2",
    ),
    (
        "duplicate-signatures",
        "timestamp.json cannot be read: it has two signatures with one key ID",
    ),
    (
        "duplicate-key-ids",
        "2.root.json cannot be read: role 'timestamp' names one key twice",
    ),
    (
        "mismatched-key-ids",
        "2.root.json cannot be read: a key ID is not the SHA-256 of its key",
    ),
    (
        "unsigned",
        "timestamp.json has 0 valid signatures by keys of the timestamp role in root version 1, and 1",
    ),
    (
        "wrong-role-key",
        "timestamp.json has 0 valid signatures by keys of the timestamp role in root version 1, and 1",
    ),
    (
        "wrong-role",
        "1.snapshot.json is metadata of the role 'targets', and 'snapshot' belongs there",
    ),
    (
        "rotated-by-old-keys-only",
        "2.root.json has 0 valid signatures by keys of the root role in root version 2, and 1",
    ),
    (
        "rotated-by-new-keys-only",
        "2.root.json has 0 valid signatures by keys of the root role in root version 1, and 1",
    ),
    (
        "skipped-root",
        "2.root.json has version 3, and its place names version 2",
    ),
    (
        "revoked-key",
        "timestamp.json has 0 valid signatures by keys of the timestamp role in root version 2, and 1",
    ),
];

/// Verifies the metadata and the one target of a repository.
fn verify(trust: UpdateTrust, folder: &Path) -> (UpdateTrust, Result<(), UpdateError>) {
    let mut repository = RepositoryFolder::new(folder);
    let (trust, verified) = trust.refresh(UpdateClock::Known(NOW)).run(&mut repository);
    let checked = verified.and_then(|verified| {
        let target = verified.target("a.efi")?;
        let mut file = repository.open_target(&verified, "a.efi")?;
        target.copy(&mut file, &mut io::sink())
    });
    (trust, checked)
}

#[test]
fn each_attack_of_the_reference_implementation_is_refused_for_its_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = python("attacks.py", &[folder.path()]).expect("the script ends well");
    let made: BTreeSet<&str> = made.lines().collect();
    let listed: BTreeSet<&str> = CASES.iter().map(|(name, _)| *name).collect();
    assert_eq!(made, listed, "each repository has a row");
    for (name, refusal) in CASES {
        let path = folder.path().join(name);
        let root = fs::read(path.join("trusted.json")).expect("the script wrote it");
        let anchor = TrustAnchor::root(&root).expect("a root");
        let mut trust = UpdateTrust::new(anchor);
        let before = folder.path().join(format!("{name}.before"));
        if before.exists() {
            let (seen, checked) = verify(trust, &before);
            checked.unwrap_or_else(|error| panic!("{name}, before: {error}"));
            trust = seen;
        }
        match (verify(trust, &path).1, refusal) {
            (Ok(()), "") => {}
            (Err(error), refusal) if !refusal.is_empty() => {
                let text = error.to_string();
                assert!(text.starts_with(refusal), "{name}: {text}");
            }
            (checked, refusal) => panic!("{name}: {checked:?} instead of {refusal:?}"),
        }
    }
}

/// An attacker who withholds new releases can do so only until the timestamp expires.
#[test]
fn a_frozen_repository_is_refused_once_its_timestamp_expires() {
    let folder = tempfile::tempdir().expect("a folder");
    python("attacks.py", &[folder.path()]).expect("the script ends well");
    let path = folder.path().join("good");
    let root = fs::read(path.join("trusted.json")).expect("the script wrote it");
    let anchor = TrustAnchor::root(&root).expect("a root");
    let (trust, checked) = verify(UpdateTrust::new(anchor), &path);
    checked.expect("it is valid now");
    // 2036-07-18, when the timestamp has expired and all other documents have not.
    let later = UpdateClock::Known(UnixSeconds(2_100_000_000));
    let mut repository = RepositoryFolder::new(&path);
    let (_, verified) = trust.refresh(later).run(&mut repository);
    let error = verified.expect_err("expired").to_string();
    let expected =
        "timestamp.json expired at 2035-01-01T00:00:00Z, and it is 2036-07-18T13:20:00Z now";
    assert!(error.starts_with(expected), "{error}");
}
