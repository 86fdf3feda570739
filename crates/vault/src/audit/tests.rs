use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use super::*;
use crate::limits::{AUDIT_FILES, MAX_PENDING_EVENTS};
use crate::slots::{SlotId, SlotType};
use crate::{Entropy, ExportReason, KeyPurpose, KeyVersion, SecretStr, Vault};

fn vault() -> Vault {
    static VAULT: LazyLock<Vault> = LazyLock::new(|| {
        let vault = Vault::locked();
        let words = Entropy::from_bytes(&[7; 32]).expect("32 bytes");
        vault.unlock(&words, &SecretStr::empty()).expect("unlocked");
        vault
    });
    VAULT.clone()
}

fn record(t_ms: u64) -> AuditRecord {
    let label = "cred:a".parse().expect("a label");
    let boot = "8a5f0c3e".parse().expect("plain");
    AuditRecord::new(t_ms, boot, AuditEvent::Sealed { label })
}

fn written(dir: &Path, lines: u64) -> Vec<u8> {
    let mut log = AuditLog::open(dir).expect("opened");
    for t in 0..lines {
        log.append(&vault(), &[record(t)]).expect("written");
    }
    fs::read(dir.join("vault.log")).expect("a file")
}

fn break_of(dir: &Path) -> (usize, ChainBreak) {
    match verify(dir, &vault()).expect_err("a break") {
        AuditError::Broken { line, why, .. } => (line, why),
        other => panic!("{other}"),
    }
}

#[test]
fn lines_are_canonical_and_hang_on_each_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = String::from_utf8(written(dir.path(), 3)).expect("text");
    let first = text.lines().next().expect("a line");
    let start = r#"{"boot":"8a5f0c3e","detail":{"label":"cred:a"},"ev":"sealed","mac":""#;
    assert!(first.starts_with(start), "{first}");
    assert!(first.ends_with(r#"","seq":1,"t":0}"#), "{first}");
    let verified = verify(dir.path(), &vault()).expect("whole");
    assert_eq!(
        verified,
        VerifiedLog {
            lines: 3,
            first: 1,
            last: 3
        }
    );
    let mut again = AuditLog::open(dir.path()).expect("opened");
    assert_eq!(again.last_number(), 3);
    again.append(&vault(), &[record(9)]).expect("written");
    assert_eq!(verify(dir.path(), &vault()).expect("whole").last, 4);
}

#[test]
fn every_flipped_bit_is_found_where_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = written(dir.path(), 3);
    let path = dir.path().join("vault.log");
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bad).expect("written");
        let line = good[..bit / 8]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1;
        assert_eq!(break_of(dir.path()).0, line, "bit {bit}");
    }
}

#[test]
fn missing_exchanged_and_foreign_lines_are_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = String::from_utf8(written(dir.path(), 4)).expect("text");
    let lines: Vec<_> = good.lines().collect();
    let with = |lines: &[&str]| {
        fs::write(dir.path().join("vault.log"), lines.join("\n") + "\n").expect("written");
        break_of(dir.path())
    };
    assert_eq!(with(&[lines[0], lines[2]]), (2, ChainBreak::Sequence));
    assert_eq!(with(&[lines[1]]), (1, ChainBreak::Sequence));
    assert_eq!(
        with(&[lines[0], lines[2], lines[1]]),
        (2, ChainBreak::Sequence)
    );
    assert_eq!(with(&[lines[0], "{}"]), (2, ChainBreak::Form));
    let renumbered = lines[2].replace("\"seq\":3", "\"seq\":2");
    assert_eq!(with(&[lines[0], &renumbered]), (2, ChainBreak::Previous));
    let changed = lines[1].replace("cred:a", "cred:b");
    assert_eq!(with(&[lines[0], &changed, lines[2]]), (2, ChainBreak::Mac));
    fs::write(dir.path().join("vault.log"), &good[..good.len() - 1]).expect("written");
    assert_eq!(break_of(dir.path()), (4, ChainBreak::Cut));
    fs::write(dir.path().join("vault.log"), good).expect("written");
    let other = Vault::locked();
    let words = Entropy::from_bytes(&[8; 32]).expect("32 bytes");
    other.unlock(&words, &SecretStr::empty()).expect("unlocked");
    let error = verify(dir.path(), &other).expect_err("other words");
    assert!(matches!(
        error,
        AuditError::Broken {
            line: 1,
            why: ChainBreak::Mac,
            ..
        }
    ));
    let error = verify(dir.path(), &Vault::locked()).expect_err("locked");
    assert!(matches!(error, AuditError::Vault(VaultError::Locked)));
}

#[test]
fn a_power_cut_at_every_byte_costs_one_line_at_most() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = written(dir.path(), 3);
    for cut in 0..good.len() {
        fs::write(dir.path().join("vault.log"), &good[..cut]).expect("written");
        let whole = good[..cut].iter().filter(|byte| **byte == b'\n').count() as u64;
        let mut log = AuditLog::open(dir.path()).expect("opened");
        assert_eq!(log.last_number(), whole, "cut at {cut}");
        log.append(&vault(), &[record(5)]).expect("written");
        let at_a_line = cut == 0 || good[cut - 1] == b'\n';
        let added = if at_a_line { 1 } else { 2 };
        let verified = verify(dir.path(), &vault()).expect("whole again");
        assert_eq!(verified.last, whole + added, "cut at {cut}");
    }
}

#[test]
fn files_are_rotated_and_the_chain_goes_on_across_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut log = AuditLog::open_with(dir.path(), 1000).expect("opened");
    let vault = vault();
    for t in 0..10 {
        log.append(&vault, &[record(t), record(t)])
            .expect("written");
        log = AuditLog::open_with(dir.path(), 1000).expect("opened again");
    }
    let verified = verify(dir.path(), &vault).expect("whole");
    assert_eq!((verified.first, verified.last), (1, 20));
    for t in 0..30 {
        log.append(&vault, &[record(t)]).expect("written");
    }
    let verified = verify(dir.path(), &vault).expect("whole");
    assert!(verified.first > 1);
    assert_eq!(verified.last, 50);
    assert_eq!(
        fs::read_dir(dir.path()).expect("a directory").count(),
        AUDIT_FILES
    );
    for entry in fs::read_dir(dir.path()).expect("a directory") {
        assert!(entry.expect("an entry").metadata().expect("a file").len() <= 1000);
    }
    fs::remove_file(dir.path().join("vault.log.3")).expect("removed");
    assert_eq!(break_of(dir.path()), (1, ChainBreak::Sequence));
    fs::remove_file(dir.path().join("vault.log.7")).expect("removed");
    assert_eq!(break_of(dir.path()), (1, ChainBreak::Sequence));
}

#[test]
fn what_happens_while_locked_is_kept_to_a_limit_and_written_later() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut log = AuditLog::open(dir.path()).expect("opened");
    let mut pending = UnwrittenEvents::default();
    for t in 0..MAX_PENDING_EVENTS as u64 + 3 {
        pending.push(record(t));
    }
    let error = pending
        .flush(&mut log, &Vault::locked())
        .expect_err("locked");
    assert!(matches!(error, AuditError::Vault(VaultError::Locked)));
    assert_eq!(pending.len(), MAX_PENDING_EVENTS);
    pending.flush(&mut log, &vault()).expect("written");
    assert!(pending.is_empty());
    assert_eq!(log.last_number(), MAX_PENDING_EVENTS as u64 + 1);
    let text = fs::read_to_string(dir.path().join("vault.log")).expect("text");
    let last = text.lines().last().expect("a line");
    assert!(
        last.contains(r#""detail":{"count":3},"ev":"dropped""#),
        "{last}"
    );
    verify(dir.path(), &vault()).expect("whole");
}

#[test]
fn what_a_failed_write_left_is_removed_before_the_next() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = written(dir.path(), 2);
    let mut log = AuditLog::open(dir.path()).expect("opened");
    let path = dir.path().join("vault.log");
    fs::write(&path, [&good[..], b"{\"boot\""].concat()).expect("written");
    log.torn = true;
    log.append(&vault(), &[record(2)]).expect("written");
    assert_eq!(verify(dir.path(), &vault()).expect("whole").lines, 3);
}

#[test]
fn a_broken_end_is_not_written_on_but_put_aside() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("vault.log"), "no line\n").expect("written");
    let error = AuditLog::open(dir.path()).expect_err("broken");
    assert!(matches!(
        error,
        AuditError::Broken {
            why: ChainBreak::Form,
            ..
        }
    ));
    let mut log = AuditLog::restart_chain(dir.path()).expect("begun");
    log.append(&vault(), &[record(1)]).expect("written");
    assert_eq!(break_of(dir.path()), (1, ChainBreak::Form));
}

#[test]
fn limits_hold() {
    for bad in ["", "a b", "ä", &"x".repeat(line::MAX_BOOT_BYTES + 1)] {
        assert!(
            matches!(bad.parse::<BootId>(), Err(AuditError::BadBoot)),
            "{bad}"
        );
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut log = AuditLog::open(dir.path()).expect("opened");
    // A number that not every reader of JSON has.
    let long = record(1 << 53);
    assert!(matches!(long.to_json(), Err(AuditError::TooLong)));
    let error = log
        .append(&vault(), &[record(0), long])
        .expect_err("too long");
    assert!(matches!(error, AuditError::TooLong));
    assert_eq!(log.last_number(), 0);
}

fn every_event() -> Vec<AuditEvent> {
    let label = || "cred:a\"\\b".parse().expect("a label");
    let slot = |kind| SlotName {
        kind,
        id: SlotId::new(u32::MAX),
    };
    let to = KeyVersion::new(9).expect("a version");
    let purpose = KeyPurpose::Credentials(to);
    let key = ExportedSecret::Key(KeyPurpose::SshHost);
    let reason = ExportReason::TlsConfig;
    vec![
        AuditEvent::Created,
        AuditEvent::Derived { purpose },
        AuditEvent::Dropped { count: 7 },
        AuditEvent::Exported { what: key, reason },
        AuditEvent::Exported {
            what: ExportedSecret::Phrase,
            reason: ExportReason::Console,
        },
        AuditEvent::Imported,
        AuditEvent::Locked { hard: true },
        AuditEvent::LogRepaired { bytes: 12 },
        AuditEvent::Migrated { to: [0xab; 32] },
        AuditEvent::Opened { label: label() },
        AuditEvent::Rekeyed,
        AuditEvent::Reset,
        AuditEvent::Rotated { label: label(), to },
        AuditEvent::Sealed { label: label() },
        AuditEvent::SlotAdded(slot(SlotType::Kms)),
        AuditEvent::SlotRemoved(slot(SlotType::None)),
        AuditEvent::UnlockFailed(slot(SlotType::Passphrase)),
        AuditEvent::Unlocked(slot(SlotType::Tpm2)),
        AuditEvent::Unlocked(slot(SlotType::Provisioning)),
    ]
}

#[test]
fn events_are_handed_from_one_process_to_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut log = AuditLog::open(dir.path()).expect("opened");
    for event in every_event() {
        let boot = "8a5f0c3e".parse().expect("plain");
        let record = AuditRecord::new(1_767_225_600_000, boot, event);
        let text = record.to_json().expect("short");
        let read = AuditRecord::from_json(text.as_bytes()).expect(&text);
        assert_eq!(read, record);
        log.append(&vault(), &[read]).expect("written");
        // Not one bit of it may differ.
        for bit in 0..text.len() * 8 {
            let mut bad = text.clone().into_bytes();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(other) = AuditRecord::from_json(&bad) {
                assert_ne!(other, record);
                assert_eq!(other.to_json().expect("short").as_bytes(), bad);
            }
        }
    }
    verify(dir.path(), &vault()).expect("whole");
}

#[test]
fn other_texts_are_no_records() {
    let good = r#"{"boot":"a","detail":{"hard":true},"ev":"locked","t":1}"#;
    assert!(AuditRecord::from_json(good.as_bytes()).is_ok());
    for bad in [
        "",
        "{}",
        "[]",
        r#"{"boot":"a","detail":{"hard":true},"ev":"locked","t":1,"x":2}"#,
        r#"{"boot":"a","detail":{"hard":true,"x":1},"ev":"locked","t":1}"#,
        r#"{"boot":"a","detail":{},"ev":"locked","t":1}"#,
        r#"{"boot":"a","detail":{"hard":true},"ev":"opened","t":1}"#,
        r#"{"boot":"a","detail":{"hard":true},"ev":"locked","t":"1"}"#,
        r#"{"boot":"a","detail":null,"ev":"reset","t":1}"#,
        r#"{"boot":"a","detail":{},"ev":"no_such","t":1}"#,
        r#"{"boot":"a","detail":{"hard":true},"ev":"locked","t":1} "#,
    ] {
        let error = AuditRecord::from_json(bad.as_bytes()).expect_err(bad);
        assert!(matches!(error, AuditError::BadRecord), "{bad}: {error}");
    }
    let boot = |name: &str| good.replace(r#""boot":"a""#, &format!(r#""boot":"{name}""#));
    for name in ["", "a b", &"x".repeat(65)] {
        let error = AuditRecord::from_json(boot(name).as_bytes()).expect_err(name);
        assert!(matches!(error, AuditError::BadBoot), "{name}: {error}");
    }
    let long = " ".repeat(limits::MAX_AUDIT_RECORD_BYTES + 1);
    let error = AuditRecord::from_json(long.as_bytes()).expect_err("long");
    assert!(matches!(error, AuditError::TooLong), "{error}");
}

#[test]
fn the_largest_record_is_a_line() {
    let label = format!("a:{}", "\"".repeat(limits::MAX_LABEL_BYTES - 2));
    let event = AuditEvent::Rotated {
        label: label.parse().expect("a label"),
        to: KeyVersion::new(u32::MAX / 2 + 2).expect("the last"),
    };
    let record = AuditRecord::new((1 << 53) - 1, "b".repeat(64).parse().expect("plain"), event);
    assert!(record.to_json().is_ok());
    let dir = tempfile::tempdir().expect("a directory");
    let mut log = AuditLog::open(dir.path()).expect("opened");
    log.append(&vault(), &[record]).expect("written");
}

#[test]
fn the_newest_lines_are_read_and_whatever_is_none_is_passed_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let numbers = |until, count| -> Vec<u64> {
        let lines = newest(dir.path(), until, count).expect("readable");
        lines.iter().map(|line| line.seq).collect()
    };
    assert_eq!(numbers(None, 3), [0_u64; 0]);
    let good = written(dir.path(), 5);
    assert_eq!(numbers(None, 3), [3, 4, 5]);
    assert_eq!(numbers(Some(4), 3), [2, 3, 4]);
    assert_eq!(numbers(Some(0), 3), [0_u64; 0]);
    let last = newest(dir.path(), None, 1).expect("readable");
    let line = AuditLine {
        seq: 5,
        t_ms: 4,
        event: "sealed".to_owned(),
        detail: r#"{"label":"cred:a"}"#.to_owned(),
    };
    assert_eq!(last, [line]);
    let path = dir.path().join("vault.log");
    let bad = [b"no line\n".as_slice(), &good, b"{\"seq\":6"].concat();
    fs::write(&path, bad).expect("written");
    assert_eq!(numbers(None, 9), [1, 2, 3, 4, 5]);
    assert_eq!(break_of(dir.path()), (1, ChainBreak::Form));
    // Neither a folder nor a link is a file of the log.
    fs::rename(&path, dir.path().join("elsewhere")).expect("renamed");
    std::os::unix::fs::symlink("elsewhere", &path).expect("linked");
    let error = newest(dir.path(), None, 9).expect_err("a link");
    assert!(matches!(error, AuditError::Io { .. }), "{error}");
    fs::remove_file(&path).expect("removed");
    fs::create_dir(&path).expect("made");
    let error = verify(dir.path(), &vault()).expect_err("a folder");
    assert!(matches!(error, AuditError::Io { .. }), "{error}");
}
