//! What a machine keeps between two updates: the trusted root, the versions seen, the floor and the latest time.

use std::fs;

use alknet_update::{
    BundleReader, MetadataSigner as _, ReleasePlan, RootPlan, SigningError, TrustAnchor, TufRole,
    UnixSeconds, UpdateClock, UpdateError, UpdateTrust, limits, renew_timestamp, replace_timestamp,
    sign_release, sign_root, write_bundle,
};

use crate::support::{LATE, NOW, PROGRAM, Publisher, keys, read, read_at, refusal, signer, target};

/// The same publisher with one more root, by another key.
fn replaced(publisher: &Publisher, by: u8) -> Publisher {
    let mut replaced = Publisher {
        roots: publisher.roots.clone(),
        signer: signer(1),
    };
    assert_eq!(replaced.signer.public_key(), publisher.signer.public_key());
    replace(&mut replaced, by);
    replaced
}

/// Adds a root by another key, which the key before has signed too.
fn replace(publisher: &mut Publisher, by: u8) {
    let version = publisher.roots.len() as u64 + 1;
    let new = signer(by);
    let plan = RootPlan::with_keys(version, LATE, &keys(&[&new], 1));
    let root = sign_root(&plan, Some(publisher.root()), &[&publisher.signer, &new]);
    publisher.roots.push(root.expect("both keys sign"));
    publisher.signer = new;
}

#[test]
fn what_was_seen_survives_a_restart() {
    let publisher = Publisher::new(1);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("update.trust");
    let trust =
        UpdateTrust::load(&path, publisher.anchor()).expect("a machine that has seen nothing");
    let (mut trust, verified) = read(trust, &publisher.bundle(7, "1.2.0"));
    verified.expect("a good bundle");
    trust.raise_floor(Some(&"1.1.0".parse().expect("a version")));
    trust.save(&path).expect("saved");
    let trust = UpdateTrust::load(&path, publisher.anchor()).expect("the saved file");
    assert_eq!(
        trust.floor().map(ToString::to_string).as_deref(),
        Some("1.1.0")
    );
    assert_eq!(trust.latest(), NOW);
    let text = refusal(trust, &publisher.bundle(6, "1.1.0"));
    assert!(
        text.starts_with("timestamp.json has version 6, and this machine has seen version 7"),
        "{text}"
    );
}

/// Callers make a machine refresh at will.
#[test]
fn a_refresh_that_shows_nothing_new_is_saved_once_an_hour() {
    let publisher = Publisher::new(1);
    let bundle = publisher.bundle(1, "1.1.0");
    let new = UpdateTrust::new(publisher.anchor());
    let at = |trust: &UpdateTrust, bundle: &[u8], seconds: i64| {
        let clock = UpdateClock::Known(UnixSeconds(NOW.0 + seconds));
        read_at(trust.clone(), bundle, clock).0
    };
    let first = at(&new, &bundle, 0);
    assert!(first.is_to_save(&new));
    assert!(!at(&first, &bundle, 3599).is_to_save(&first));
    assert!(at(&first, &bundle, 3600).is_to_save(&first));
    // Whatever else was seen is saved at once, and so is a floor.
    assert!(at(&first, &publisher.bundle(2, "1.2.0"), 1).is_to_save(&first));
    let mut raised = first.clone();
    raised.raise_floor(Some(&"1.1.0".parse().expect("a version")));
    assert!(raised.is_to_save(&first));
    // Refused documents are no news.
    let other = Publisher::new(9);
    let refused = at(&first, &other.bundle(3, "1.3.0"), 7200);
    assert!(!refused.is_to_save(&first));
}

/// A client shows the machine a release of another channel, whose number is higher.
#[test]
fn what_another_source_shows_counts_for_the_root_and_the_time_only() {
    let old = Publisher::new(1);
    let own = old.bundle(11, "1.1.0");
    let seen = read(UpdateTrust::new(old.anchor()), &own).0;
    let later = UnixSeconds(NOW.0 + 7200);
    let clock = UpdateClock::Known(later);
    let mut shown = read_at(seen.clone(), &old.bundle(12, "1.2.0"), clock).0;
    shown.restore_seen(&seen);
    assert_eq!(shown.latest(), later);
    let again = read(shown.clone(), &own).1;
    again.expect("the release of the own channel is not too old");
    let text = refusal(shown, &old.bundle(10, "1.0.5"));
    assert!(
        text.starts_with("timestamp.json has version 10, and this machine has seen version 11"),
        "{text}"
    );
    // The keys that its root replaced do not count any more, and neither does what they have signed.
    let new = replaced(&old, 2);
    let mut rotated = read(seen.clone(), &new.bundle(12, "1.2.0")).0;
    rotated.restore_seen(&seen);
    let first = read(rotated.clone(), &new.bundle(1, "1.1.0")).1;
    first.expect("the first release of the new keys");
    let text = refusal(rotated, &old.bundle(13, "1.3.0"));
    assert!(text.contains("in root version 2"), "{text}");
}

/// Section 5.3.8: the keys that a new root revoked stay revoked, whatever was wrong behind it.
#[test]
fn a_new_root_counts_even_beside_an_expired_timestamp() {
    let old = Publisher::new(1);
    let new = replaced(&old, 2);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("update.trust");
    let mut plan = Publisher::plan(1, vec![target("1.1.0")]);
    plan.timestamp_expires = UnixSeconds(1_000_000_000);
    let (trust, verified) = read(UpdateTrust::new(old.anchor()), &new.bundle_of(&plan));
    let error = verified.expect_err("expired").to_string();
    assert!(
        error.starts_with("timestamp.json expired at 2001-09-09T01:46:40Z"),
        "{error}"
    );
    trust.save(&path).expect("saved");
    let trust = UpdateTrust::load(&path, old.anchor()).expect("the saved file");
    let text = refusal(trust, &old.bundle(9, "1.9.0"));
    assert!(
        text.starts_with(
            "timestamp.json has 0 valid signatures by keys of the timestamp role in root version 2"
        ),
        "{text}"
    );
}

#[test]
fn a_clock_that_was_set_back_makes_nothing_valid_again() {
    let publisher = Publisher::new(1);
    let trust = UpdateTrust::new(publisher.anchor());
    let (trust, verified) = read(trust, &publisher.bundle(1, "1.1.0"));
    verified.expect("a good bundle");
    let mut plan = Publisher::plan(2, vec![target("1.2.0")]);
    plan.timestamp_expires = UnixSeconds(NOW.0 - 1000);
    let earlier = UpdateClock::Known(UnixSeconds(NOW.0 - 2000));
    let (_, verified) = read_at(trust, &publisher.bundle_of(&plan), earlier);
    let error = verified.expect_err("expired").to_string();
    assert!(
        error.contains("and it is 2033-05-18T03:33:20Z now"),
        "{error}"
    );
}

/// A clock that runs ahead moves the latest time at most to the expiry of a valid document, so later documents are
/// valid again.
#[test]
fn a_clock_that_runs_ahead_does_not_end_updates_for_ever() {
    let publisher = Publisher::new(1);
    let mut plan = Publisher::plan(1, vec![target("1.1.0")]);
    plan.timestamp_expires = UnixSeconds(NOW.0 + 1000);
    let bundle = publisher.bundle_of(&plan);
    let ahead = UpdateClock::Known(UnixSeconds(3_900_000_000));
    let trust = UpdateTrust::new(publisher.anchor());
    let (trust, verified) = read_at(trust, &bundle, ahead);
    verified.expect_err("expired, by this clock");
    let almost = UpdateClock::Known(UnixSeconds(NOW.0 + 999));
    let (trust, verified) = read_at(trust, &bundle, almost);
    verified.expect("still valid");
    plan.version = 2;
    plan.timestamp_expires = UnixSeconds(NOW.0 + 2000);
    let (_, verified) = read(trust, &publisher.bundle_of(&plan));
    verified.expect("the next timestamp is valid for longer");
}

#[test]
fn a_machine_without_a_clock_updates_and_says_so() {
    let publisher = Publisher::new(1);
    let unset = UpdateClock::AtLeast(UnixSeconds(1_700_000_000));
    let trust = UpdateTrust::new(publisher.anchor());
    let (trust, verified) = read_at(trust, &publisher.bundle(1, "1.1.0"), unset);
    assert!(!verified.expect("not known to have expired").is_time_known());
    // What has expired even at the earliest possible time is refused.
    let mut plan = Publisher::plan(2, vec![target("1.2.0")]);
    plan.timestamp_expires = UnixSeconds(1_600_000_000);
    let (trust, verified) = read_at(trust, &publisher.bundle_of(&plan), unset);
    verified.expect_err("expired");
    let (_, verified) = read(trust, &publisher.bundle(2, "1.2.0"));
    assert!(verified.expect("a good bundle").is_time_known());
}

#[test]
fn a_damaged_file_is_named() {
    let publisher = Publisher::new(1);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("update.trust");
    let refused = |content: &[u8]| {
        fs::write(&path, content).expect("written");
        let loaded = UpdateTrust::load(&path, publisher.anchor());
        loaded.expect_err("refused").to_string()
    };
    let name = path.display();
    assert_eq!(
        refused(br#"{"format":2,"other":true}"#),
        format!(
            "{name} cannot be used: its format is 2, and this version reads format 1. Restore it from a backup, or remove \
             it: then this machine forgets which metadata it has seen, and trusts the keys that it began with"
        )
    );
    for content in [&b""[..], b"{}", b"{\"format\":1}", b"[1]"] {
        let text = refused(content);
        assert!(
            text.starts_with(&format!("{name} cannot be used: ")),
            "{text}"
        );
    }
    let (trust, _) = read(
        UpdateTrust::new(publisher.anchor()),
        &publisher.bundle(1, "1.1.0"),
    );
    trust.save(&path).expect("saved");
    let saved = fs::read_to_string(&path).expect("saved");
    assert!(UpdateTrust::load(&path, publisher.anchor()).is_ok());
    // The root in the file has to be signed like any other.
    let changed = saved.replace("2096-10-02", "2097-10-02");
    assert_ne!(saved, changed);
    let text = refused(changed.as_bytes());
    assert!(text.contains("its root has 0 valid signatures"), "{text}");
    let long = vec![b' '; usize::try_from(limits::TRUST_BYTES_MAX).expect("small") + 1];
    assert!(refused(&long).contains("has more than 262144 bytes"));
}

/// A new image brings the root of its time. What the machine saw before still counts.
#[test]
fn the_root_of_a_newer_image_counts_and_forgets_nothing() {
    let old = Publisher::new(1);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("update.trust");
    let (trust, verified) = read(UpdateTrust::new(old.anchor()), &old.bundle(7, "1.2.0"));
    verified.expect("a good bundle");
    trust.save(&path).expect("saved");
    // The same keys, in a root of version 2.
    let plan = RootPlan::with_keys(2, LATE, &keys(&[&old.signer], 1));
    let root = sign_root(&plan, Some(old.root()), &[&old.signer]).expect("signed");
    let newer = TrustAnchor::root(&root).expect("a root");
    let trust = UpdateTrust::load(&path, newer).expect("the saved file");
    let text = refusal(trust, &old.bundle(6, "1.1.0"));
    assert!(text.contains("this machine has seen version 7"), "{text}");
    // With other keys, the versions of the old ones say nothing.
    let other = TrustAnchor::root(replaced(&old, 2).root()).expect("a root");
    let trust = UpdateTrust::load(&path, other).expect("the saved file");
    let (trust, verified) = read(trust, &replaced(&old, 2).bundle(1, "1.3.0"));
    verified.expect("the new keys begin at 1");
    trust.save(&path).expect("saved");
    // An image from before the new root does not bring the old keys back.
    let trust = UpdateTrust::load(&path, old.anchor()).expect("the saved file");
    let text = refusal(trust, &old.bundle(9, "1.9.0"));
    assert!(text.contains("in root version 2"), "{text}");
}

/// Section 5.3.3: an endless chain of roots ends, and a machine that was off for long still gets to its end.
#[test]
fn a_long_chain_of_roots_is_followed_over_several_refreshes() {
    let mut publisher = Publisher::new(1);
    let rotations = limits::ROOT_ROTATIONS_MAX + 1;
    for version in 2..=rotations + 1 {
        let plan = RootPlan::with_keys(version, LATE, &keys(&[&publisher.signer], 1));
        let root = sign_root(&plan, Some(publisher.root()), &[&publisher.signer]).expect("signed");
        publisher.roots.push(root);
    }
    replace(&mut publisher, 2);
    let mut files = publisher.files(&Publisher::plan(1, vec![target("1.1.0")]));
    let trust = UpdateTrust::new(publisher.anchor());
    // The first refresh ends at a root whose timestamp key is another one.
    let (trust, verified) = trust.refresh(UpdateClock::Known(NOW)).run(&mut files);
    let error = verified
        .expect_err("the newest root is further away")
        .to_string();
    let reached = limits::ROOT_ROTATIONS_MAX + 1;
    let expected = format!(
        "timestamp.json has 0 valid signatures by keys of the timestamp role in root version {reached},"
    );
    assert!(error.starts_with(&expected), "{error}");
    let (_, verified) = trust.refresh(UpdateClock::Known(NOW)).run(&mut files);
    assert_eq!(verified.expect("the end of the chain").version(), 1);
}

/// A machine that has the key of the timestamp alone makes an expired release valid again. It signs no timestamp of other
/// keys, and no lower version.
#[test]
fn a_timestamp_is_renewed_by_its_own_key() {
    let (owner, renewer) = (signer(1), signer(2));
    let mut plan = RootPlan::with_keys(1, LATE, &keys(&[&owner], 1));
    for role in [TufRole::Snapshot, TufRole::Timestamp] {
        plan.roles.insert(role, keys(&[&renewer], 1));
    }
    let root = sign_root(&plan, None, &[&owner]).expect("a root");
    let release = ReleasePlan {
        timestamp_expires: NOW,
        ..Publisher::plan(1, vec![target("1.1.0")])
    };
    let signed = sign_release(&root, &release, &[&owner, &renewer]).expect("a release");
    let mut bundle = Vec::new();
    let roots = [root.clone()];
    write_bundle(&mut bundle, &roots, &signed, &release.targets, |_| {
        Ok(PROGRAM)
    })
    .expect("written");
    let verified = |bundle: &[u8]| {
        let trust = UpdateTrust::new(TrustAnchor::root(&root).expect("a root"));
        let mut reader = BundleReader::open(bundle).expect("a bundle");
        let (_, verified) = trust.refresh(UpdateClock::Known(NOW)).run(&mut reader);
        let verified = verified?;
        reader.copy_target(&verified, &mut std::io::sink())
    };
    let expired = verified(&bundle).expect_err("the timestamp");
    assert!(matches!(expired, UpdateError::Expired { .. }), "{expired}");

    let (_, before) = &signed.documents[0];
    let renewed = renew_timestamp(&root, before, 1, 2, LATE, &[&renewer]).expect("its own key");
    let mut output = Vec::new();
    replace_timestamp(&*bundle, &renewed, &mut output).expect("a bundle");
    verified(&output).expect("it is valid again, with its program");

    let refused = renew_timestamp(&root, before, 1, 2, LATE, &[&owner]).expect_err("another key");
    assert!(matches!(refused, SigningError::Keys { .. }), "{refused}");
    let refused = renew_timestamp(&root, before, 1, 1, LATE, &[&renewer]).expect_err("not higher");
    assert!(matches!(refused, SigningError::Number { .. }), "{refused}");
    // A server gives an old release in the place of release 2, which is the newest.
    let refused = renew_timestamp(&root, before, 2, 3, LATE, &[&renewer]).expect_err("an old one");
    assert!(
        matches!(refused, SigningError::Release { given: 2, found: 1 }),
        "{refused}"
    );
    let (_, foreign) = Publisher::new(3).sign(&release).documents.remove(0);
    let refused =
        renew_timestamp(&root, &foreign, 1, 2, LATE, &[&renewer]).expect_err("other keys");
    assert!(matches!(refused, SigningError::Document(_)), "{refused}");
    for end in [0, bundle.len() / 2] {
        replace_timestamp(&bundle[..end], &renewed, &mut Vec::new()).expect_err("it was cut off");
    }
}

/// The file has no room for additions: each needs a new format.
#[test]
fn the_first_format_of_trust_is_read() {
    const SAMPLE: &str = r#"{"format":1,"anchor":"keys:a56bc792eccdbc009acee118f03c9f30086415c2ba22e3aa190f61956c071aaf","root":null,"timestamp":{"version":7,"sha256":"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff","snapshot":7},"snapshot":{"targets.json":7},"latest_s":1900000000,"floor":"1.1.0"}"#;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("update.trust");
    fs::write(&path, SAMPLE).expect("writable");
    let publisher = Publisher::new(1);
    let anchor = || TrustAnchor::keys(keys(&[&publisher.signer], 1));
    let trust = UpdateTrust::load(&path, anchor()).expect("the first format");
    let floor = trust.floor().map(ToString::to_string);
    assert_eq!(floor.as_deref(), Some("1.1.0"));
    assert_eq!(trust.latest(), UnixSeconds(1_900_000_000));
    trust.save(&path).expect("saved");
    assert_eq!(fs::read_to_string(&path).expect("readable"), SAMPLE);
    let text = refusal(trust, &publisher.bundle(6, "1.1.0"));
    assert!(
        text.starts_with("timestamp.json has version 6, and this machine has seen version 7"),
        "{text}"
    );
    let later = SAMPLE.replace(r#""format":1,"#, r#""format":1,"later":1,"#);
    fs::write(&path, later).expect("writable");
    assert!(UpdateTrust::load(&path, anchor()).is_err());
}
