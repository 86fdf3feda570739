use super::*;
use crate::{Entropy, SecretStr};

fn vault(byte: u8) -> Vault {
    let vault = Vault::locked();
    let words = Entropy::from_bytes(&[byte; 16]).expect("16 bytes");
    vault.unlock(&words, &SecretStr::empty()).expect("unlocked");
    vault
}

fn label(text: &str) -> BlobLabel {
    text.parse().expect("a label")
}

fn version(number: u32) -> KeyVersion {
    KeyVersion::new(number).expect("a version")
}

/// A directory with three records.
fn three(vault: &Vault) -> (tempfile::TempDir, VaultCredentials) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = VaultCredentials::open(&dir.path().join("credentials")).expect("made");
    for name in ["cred:b", "cred:a", "wifi:Zu_Hause/1"] {
        let blob = vault.seal(&label(name), name.as_bytes()).expect("sealed");
        store.put(&label(name), &blob).expect("kept");
    }
    (dir, store)
}

fn opened(store: &VaultCredentials, vault: &Vault, name: &str) -> Result<Vec<u8>, VaultError> {
    let blob = store.get(&label(name)).expect("there");
    Ok(vault.open(&label(name), &blob)?.expose().to_vec())
}

fn versions(store: &VaultCredentials) -> Vec<u32> {
    let entries = store.list().expect("readable");
    entries.iter().map(|entry| entry.version.number()).collect()
}

#[test]
fn records_are_kept_replaced_listed_and_removed() {
    let vault = vault(1);
    let (dir, store) = three(&vault);
    let again = VaultCredentials::open(&dir.path().join("credentials")).expect("opened");
    let names: Vec<_> = again
        .list()
        .expect("readable")
        .into_iter()
        .map(|entry| entry.label)
        .collect();
    assert_eq!(names, ["cred:a", "cred:b", "wifi:Zu_Hause/1"].map(label));
    assert_eq!(opened(&again, &vault, "cred:a").expect("opened"), b"cred:a");
    let blob = vault.seal(&label("cred:a"), b"new").expect("sealed");
    again.put(&label("cred:a"), &blob).expect("kept");
    assert_eq!(opened(&store, &vault, "cred:a").expect("opened"), b"new");
    store.remove(&label("cred:a")).expect("removed");
    for error in [
        again.get(&label("cred:a")).err(),
        again.remove(&label("cred:a")).err(),
    ] {
        assert!(
            matches!(error, Some(CredentialsError::NotFound(_))),
            "{error:?}"
        );
    }
    assert_eq!(again.list().expect("readable").len(), 2);
}

#[test]
fn a_rotation_takes_all_records_and_then_older_ones_are_refused() {
    let vault = vault(1);
    let (_dir, store) = three(&vault);
    let old = store.get(&label("cred:a")).expect("there");
    assert_eq!(store.rotate_to(&vault, version(4)).expect("rotated"), 3);
    assert_eq!(versions(&store), [4, 4, 4]);
    vault
        .use_versions(store.versions().expect("known"))
        .expect("in order");
    assert_eq!(opened(&store, &vault, "cred:b").expect("opened"), b"cred:b");
    assert!(matches!(
        vault.open(&label("cred:a"), &old),
        Err(VaultError::UnknownVersion(2))
    ));
    for refused in [
        store.put(&label("cred:a"), &old).err(),
        store.rotate_to(&vault, version(3)).err(),
    ] {
        assert!(
            matches!(refused, Some(CredentialsError::TooOld { .. })),
            "{refused:?}"
        );
    }
    // The same again changes nothing but the number of the set.
    assert_eq!(store.rotate_to(&vault, version(4)).expect("again"), 3);
    assert_eq!(opened(&store, &vault, "cred:b").expect("opened"), b"cred:b");
}

#[test]
fn a_record_that_does_not_open_stops_the_rotation_and_nothing_changed() {
    let (own, other) = (vault(1), vault(2));
    let (_dir, store) = three(&own);
    let foreign = other.seal(&label("cred:c"), b"x").expect("sealed");
    store.put(&label("cred:c"), &foreign).expect("kept");
    let error = store.rotate_to(&own, version(3)).expect_err("not its own");
    assert!(matches!(&error, CredentialsError::Record { label, .. } if label.as_str() == "cred:c"));
    assert_eq!(versions(&store), [2, 2, 2, 2]);
}

#[test]
fn what_an_interrupted_rotation_left_is_removed_and_it_is_run_again() {
    let vault = vault(1);
    let (dir, store) = three(&vault);
    let dir = dir.path().join("credentials");
    // Cut while the new set was written: some of its files, one of them half.
    let half = dir.join("set-2");
    fs::create_dir(&half).expect("made");
    let name = file_name(&label("cred:a"));
    let whole = fs::read(dir.join("set-1").join(&name)).expect("there");
    fs::write(half.join(&name), &whole[..whole.len() / 2]).expect("written");
    fs::write(dir.join("current.new"), "{\"cred").expect("written");
    assert_eq!(versions(&store), [2, 2, 2]);
    let store = VaultCredentials::open(&dir).expect("opened");
    assert!(!half.exists());
    fs::create_dir(&half).expect("made");
    assert_eq!(store.rotate_to(&vault, version(3)).expect("rotated"), 3);
    assert_eq!(versions(&store), [3, 3, 3]);
    // Cut after the new set counts: the old one is still there.
    fs::create_dir(dir.join("set-1")).expect("made");
    fs::write(dir.join("set-1").join(&name), &whole).expect("written");
    let store = VaultCredentials::open(&dir).expect("opened");
    assert!(!dir.join("set-1").exists());
    assert_eq!(versions(&store), [3, 3, 3]);
    // Cut while a record was replaced.
    let fresh = dir.join("set-2").join(format!("{name}.new"));
    fs::write(&fresh, "cred:a\n{").expect("written");
    assert_eq!(opened(&store, &vault, "cred:a").expect("opened"), b"cred:a");
    assert_eq!(versions(&store), [3, 3, 3]);
}

#[test]
fn damage_is_named_and_a_damaged_record_can_be_removed() {
    let vault = vault(1);
    let (dir, store) = three(&vault);
    let dir = dir.path().join("credentials");
    let path = dir.join("set-1").join(file_name(&label("cred:a")));
    let good = fs::read(&path).expect("there");
    let other = fs::read(dir.join("set-1").join(file_name(&label("cred:b")))).expect("there");
    let long = vec![b'x'; FILE_BYTES_MAX + 1];
    let longer = [&good[..], b"\n"].concat();
    let bads: [&[u8]; 6] = [
        &good[..good.len() - 1],
        b"",
        b"\xff\n{}\n",
        &other,
        &long,
        &longer,
    ];
    for bad in bads {
        fs::write(&path, bad).expect("written");
        for error in [store.get(&label("cred:a")).err(), store.list().err()] {
            assert!(
                matches!(error, Some(CredentialsError::Foreign(_))),
                "{error:?}"
            );
        }
    }
    // What is whole and changed does not open.
    let changed =
        String::from_utf8(good)
            .expect("text")
            .replacen("\"data\":\"", "\"data\":\"AAAA", 1);
    fs::write(&path, changed).expect("written");
    assert!(matches!(
        opened(&store, &vault, "cred:a"),
        Err(VaultError::Decrypt)
    ));
    store.remove(&label("cred:a")).expect("removed");
    assert_eq!(versions(&store), [2, 2]);
    for (text, newer) in [("", false), ("{}", false), (r#"{"credentials":2}"#, true)] {
        fs::write(dir.join("current"), text).expect("written");
        let error = VaultCredentials::open(&dir).expect_err("damaged");
        assert_eq!(
            matches!(error, CredentialsError::Newer(2)),
            newer,
            "{error}"
        );
    }
}

#[test]
fn there_are_so_many_records_and_no_more() {
    let vault = vault(1);
    let dir = tempfile::tempdir().expect("a directory");
    let store = VaultCredentials::open(dir.path()).expect("made");
    let blob = vault.seal(&label("a:0"), b"x").expect("sealed");
    for number in 0..MAX_CREDENTIALS {
        // Without waiting for the disk each time.
        let label = label(&format!("a:{number}"));
        let path = store.set(1).join(file_name(&label));
        fs::write(path, text_of(&label, &blob)).expect("written");
    }
    assert_eq!(store.list().expect("readable").len(), MAX_CREDENTIALS);
    let error = store.put(&label("a:more"), &blob).expect_err("too many");
    assert!(matches!(error, CredentialsError::Full), "{error}");
    store.put(&label("a:7"), &blob).expect("replaced");
}

#[test]
fn records_go_over_to_a_vault_of_other_words() {
    let (old, new) = (vault(1), vault(2));
    let (dir, store) = three(&old);
    let next = VaultCredentials::open(&dir.path().join("next")).expect("made");
    assert_eq!(store.hand_over(&old, &new, &next).expect("moved"), 3);
    assert_eq!(opened(&next, &new, "cred:a").expect("opened"), b"cred:a");
    assert!(opened(&next, &old, "cred:a").is_err());
    assert_eq!(
        opened(&store, &old, "cred:a").expect("still there"),
        b"cred:a"
    );
    assert!(store.hand_over(&new, &old, &next).is_err());
    assert_eq!(next.list().expect("readable").len(), 3);
}

/// The file has no room for additions: each needs a new format.
#[test]
fn the_first_format_of_the_current_set_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |text: &str| fs::write(dir.path().join("current"), text).expect("written");
    write(r#"{"credentials":1,"set":3,"version":4}"#);
    let current = CurrentSet::read(dir.path()).expect("readable");
    let expected = CurrentSet {
        set: 3,
        version: version(4),
    };
    assert_eq!(current, Some(expected));
    write(r#"{"credentials":1,"later":1,"set":3,"version":4}"#);
    let refused = CurrentSet::read(dir.path());
    assert!(refused.is_err(), "{refused:?}");
}
