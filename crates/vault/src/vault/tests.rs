use super::*;
use crate::signer::Reason;

const WORDS: &str = "abandon abandon abandon abandon abandon abandon \
                     abandon abandon abandon abandon abandon about";

fn unlocked(device: u32) -> Vault {
    let vault = Vault::locked_as(Index::new(device).expect("small"), None);
    let words = Entropy::parse(WORDS).expect("words");
    vault.unlock(&words, &SecretStr::empty()).expect("unlocked");
    vault
}

fn label(text: &str) -> Label {
    text.parse().expect("a label")
}

#[test]
fn a_locked_vault_does_nothing() {
    let vault = Vault::locked();
    let blob = unlocked(0).seal(&label("cred:a"), b"x").expect("sealed");
    assert_eq!(vault.state(), VaultState::Locked);
    let refused = [
        vault.signer(Purpose::NodeIdentity).err(),
        vault.p256_signer(Purpose::AcmeAccount).err(),
        vault.seal(&label("cred:a"), b"x").err(),
        vault.open(&label("cred:a"), &blob).err(),
        vault
            .rewrap(&label("cred:a"), &blob, KeyVersion::FIRST)
            .err(),
        vault.mac(MacPurpose::Audit, b"x").err(),
        vault.recovery_secret().err(),
    ];
    for error in refused {
        assert!(matches!(error, Some(VaultError::Locked)), "{error:?}");
    }
}

#[test]
fn epochs_count_unlockings_and_locking_twice_is_locking_once() {
    let vault = unlocked(0);
    let words = Entropy::parse(WORDS).expect("words");
    let again = vault.unlock(&words, &SecretStr::empty());
    assert!(matches!(again, Err(VaultError::AlreadyUnlocked)));
    vault.lock();
    vault.lock();
    let epoch = vault.unlock(&words, &SecretStr::empty()).expect("unlocked");
    assert_eq!(epoch.number(), 2);
    assert_eq!(vault.clone().state(), VaultState::Unlocked { epoch });
    assert_eq!(format!("{vault:?}"), "Vault(Unlocked { epoch: Epoch(2) })");
}

#[test]
fn only_keys_that_sign_are_signers() {
    let vault = unlocked(0);
    let version = Purpose::Credentials(KeyVersion::FIRST);
    for purpose in [
        version,
        Purpose::AuditMac,
        Purpose::DataRecovery,
        Purpose::AcmeAccount,
    ] {
        let error = vault.signer(purpose);
        assert!(matches!(error, Err(VaultError::Unsupported)), "{purpose}");
    }
    let error = vault.p256_signer(Purpose::NodeIdentity);
    assert!(matches!(error, Err(VaultError::Unsupported)));
}

#[test]
fn siblings_share_what_they_should_and_nothing_else() {
    let (one, two) = (unlocked(0), unlocked(1));
    let differ = [
        Purpose::NodeIdentity,
        Purpose::SshHost,
        Purpose::MessageLeaf,
    ];
    for purpose in differ {
        let public = |vault: &Vault| vault.signer(purpose).expect("a key").public();
        assert_ne!(public(&one), public(&two), "{purpose}");
    }
    assert_ne!(
        one.recovery_secret().expect("open"),
        two.recovery_secret().expect("open")
    );
    let mac = |vault: &Vault| vault.mac(MacPurpose::Audit, b"x").expect("open");
    assert_ne!(mac(&one), mac(&two));
    let blob = one.seal(&label("cred:a"), b"shared").expect("sealed");
    assert_eq!(
        two.open(&label("cred:a"), &blob).expect("opened").expose(),
        b"shared"
    );
    let acme = |vault: &Vault| {
        vault
            .p256_signer(Purpose::AcmeAccount)
            .expect("open")
            .public()
    };
    assert_eq!(acme(&one), acme(&two));
}

#[test]
fn rotation_rewraps_and_then_forbids() {
    let vault = unlocked(0);
    let (first, third) = (KeyVersion::FIRST, KeyVersion::new(4).expect("a version"));
    let name = label("cred:a");
    let old = vault.seal(&name, b"x").expect("sealed");
    let new = vault.rewrap(&name, &old, third).expect("rewrapped");
    assert_eq!(new.key_version(), third);
    assert_eq!(vault.rewrap(&name, &new, third).expect("again"), new);
    let versions = KeyVersions {
        current: third,
        oldest: first,
    };
    vault.use_versions(versions).expect("in order");
    assert_eq!(
        vault.seal(&name, b"y").expect("sealed").key_version(),
        third
    );
    assert!(vault.open(&name, &old).is_ok());
    let versions = KeyVersions {
        current: third,
        oldest: third,
    };
    vault.use_versions(versions).expect("in order");
    let error = vault.open(&name, &old);
    assert!(matches!(error, Err(VaultError::UnknownVersion(2))));
    assert!(vault.open(&name, &new).is_ok());
    let error = vault.rewrap(&name, &new, first);
    assert!(matches!(error, Err(VaultError::UnknownVersion(2))));
    let versions = KeyVersions {
        current: first,
        oldest: third,
    };
    assert!(vault.use_versions(versions).is_err());
    assert!(vault.rewrap(&label("cred:b"), &new, third).is_err());
}

#[test]
fn a_hard_lock_takes_every_key_back() {
    let vault = unlocked(0);
    let node = vault.signer(Purpose::NodeIdentity).expect("a key");
    let acme = vault.p256_signer(Purpose::AcmeAccount).expect("a key");
    drop(vault.signer(Purpose::SshHost).expect("a key"));
    vault.lock();
    assert!(node.sign(b"x").is_ok() && acme.sign(b"x").is_ok());
    vault.lock_hard();
    let refused = [node.clone().sign(b"x").err(), acme.sign(b"x").err()];
    assert!(
        refused
            .iter()
            .all(|error| matches!(error, Some(VaultError::Locked)))
    );
    assert!(node.expose(Reason::Console).is_err());
    assert_eq!(format!("{node:?}"), "Ed25519Signer(node-identity)");
}

#[test]
fn everything_that_happens_is_heard_and_nothing_secret_is_said() {
    struct Ear(Arc<Mutex<Vec<String>>>);
    impl Observer for Ear {
        fn happened(&self, event: &Event) {
            self.0.lock().expect("whole").push(format!("{event:?}"));
        }
    }
    let heard = Arc::new(Mutex::default());
    let ear: Box<dyn Observer> = Box::new(Ear(Arc::clone(&heard)));
    let vault = Vault::locked_as(Index::default(), Some(ear));
    let words = Entropy::parse(WORDS).expect("words");
    vault.unlock(&words, &SecretStr::empty()).expect("unlocked");
    let signer = vault.signer(Purpose::SshHost).expect("a key");
    signer.expose(Reason::SshServer).expect("open");
    let name = label("cred:a");
    let blob = vault.seal(&name, b"top-secret").expect("sealed");
    vault.open(&name, &blob).expect("opened");
    vault.lock();
    let heard = heard.lock().expect("whole").join("\n");
    for part in ["Derived", "Exported", "Sealed", "Opened", "Locked"] {
        assert!(heard.contains(part), "{part} in {heard}");
    }
    assert!(!heard.contains("top-secret"));
}
