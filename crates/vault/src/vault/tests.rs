use super::*;
use crate::derive::DerivationPath;
use crate::signer::ExportReason;

const WORDS: &str = "abandon abandon abandon abandon abandon abandon \
                     abandon abandon abandon abandon abandon about";

fn unlocked(device: u32) -> Vault {
    let vault = Vault::locked_as(PathIndex::new(device).expect("small"), None);
    let words = Entropy::parse(WORDS).expect("words");
    vault.unlock(&words, &SecretStr::empty()).expect("unlocked");
    vault
}

fn label(text: &str) -> BlobLabel {
    text.parse().expect("a label")
}

#[test]
fn a_locked_vault_does_nothing() {
    let vault = Vault::locked();
    let blob = unlocked(0).seal(&label("cred:a"), b"x").expect("sealed");
    assert_eq!(vault.state(), VaultState::Locked);
    let refused = [
        vault.signer(KeyPurpose::NodeIdentity).err(),
        vault.p256_signer(KeyPurpose::AcmeAccount).err(),
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
    let version = KeyPurpose::Credentials(KeyVersion::FIRST);
    for purpose in [
        version,
        KeyPurpose::AuditMac,
        KeyPurpose::DataRecovery,
        KeyPurpose::AcmeAccount,
    ] {
        let error = vault.signer(purpose);
        assert!(matches!(error, Err(VaultError::Unsupported)), "{purpose}");
    }
    let error = vault.p256_signer(KeyPurpose::NodeIdentity);
    assert!(matches!(error, Err(VaultError::Unsupported)));
}

#[test]
fn siblings_share_what_they_should_and_nothing_else() {
    let (one, two) = (unlocked(0), unlocked(1));
    let differ = [
        KeyPurpose::NodeIdentity,
        KeyPurpose::SshHost,
        KeyPurpose::MessageLeaf,
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
            .p256_signer(KeyPurpose::AcmeAccount)
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
    let node = vault.signer(KeyPurpose::NodeIdentity).expect("a key");
    let acme = vault.p256_signer(KeyPurpose::AcmeAccount).expect("a key");
    drop(vault.signer(KeyPurpose::SshHost).expect("a key"));
    vault.lock();
    assert!(node.sign(b"x").is_ok() && acme.sign(b"x").is_ok());
    vault.lock_hard();
    let refused = [node.clone().sign(b"x").err(), acme.sign(b"x").err()];
    assert!(
        refused
            .iter()
            .all(|error| matches!(error, Some(VaultError::Locked)))
    );
    assert!(node.expose(ExportReason::Console).is_err());
    assert_eq!(format!("{node:?}"), "Ed25519Signer(node-identity)");
}

#[test]
fn everything_that_happens_is_heard_and_nothing_secret_is_said() {
    struct EventRecorder(Arc<Mutex<Vec<String>>>);
    impl Observer for EventRecorder {
        fn happened(&self, event: &AuditEvent) {
            self.0.lock().expect("whole").push(format!("{event:?}"));
        }
    }
    let heard = Arc::new(Mutex::default());
    let ear: Box<dyn Observer> = Box::new(EventRecorder(Arc::clone(&heard)));
    let vault = Vault::locked_as(PathIndex::default(), Some(ear));
    let words = Entropy::parse(WORDS).expect("words");
    vault.unlock(&words, &SecretStr::empty()).expect("unlocked");
    let signer = vault.signer(KeyPurpose::SshHost).expect("a key");
    signer.expose(ExportReason::SshServer).expect("open");
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

#[test]
fn purposes_give_the_keys_of_the_table() {
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    let public = |device, purpose| hex(&unlocked(device).signer(purpose).expect("open").public());
    let node = "e78c2766a792f09bfccb51493968ac322283e8d021a30063784d806929762ecc";
    assert_eq!(public(0, KeyPurpose::NodeIdentity), node);
    let host = "e21db52decc1387a5ac6e8db38623807646f7a2ef9254b84ab58ba7bcf775e0c";
    assert_eq!(public(1, KeyPurpose::SshHost), host);
    let acme = unlocked(1)
        .p256_signer(KeyPurpose::AcmeAccount)
        .expect("open");
    let key = acme.expose(ExportReason::AcmeClient).expect("open");
    let private = "f41363906899670a15823cfb54ff900abdf158793dfc4fa475a677631bc6f822";
    assert_eq!(hex(key.expose()), private);
    let recovery = "531a21ea739313afeda0219c83788a1b699c3d7fee18d2a84a5e448b45c1bfcb";
    let secret = unlocked(0).recovery_secret().expect("open");
    assert_eq!(hex(secret.expose()), recovery);
    let path = path_on("m/74'/0'/2'/0'", Curve::NistP256);
    let words = Entropy::parse(WORDS).expect("words");
    assert_eq!(
        words.key_at(&SecretStr::empty(), &path).expect("a key"),
        key
    );
}

#[test]
fn signatures_are_what_others_verify() {
    use p256::ecdsa::signature::Verifier as _;
    let vault = unlocked(0);
    let node = vault.signer(KeyPurpose::NodeIdentity).expect("open");
    let key = ed25519_dalek::VerifyingKey::from_bytes(&node.public()).expect("a point");
    let signature = ed25519_dalek::Signature::from_bytes(&node.sign(b"x").expect("open"));
    assert!(key.verify_strict(b"x", &signature).is_ok());
    let acme = vault.p256_signer(KeyPurpose::AcmeAccount).expect("open");
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&acme.public()).expect("a point");
    let signature = acme.sign(b"x").expect("open");
    let signature = p256::ecdsa::Signature::from_slice(&signature).expect("two numbers");
    assert!(key.verify(b"x", &signature).is_ok());
    assert!(key.verify(b"y", &signature).is_err());
}

#[cfg(feature = "secp256k1")]
#[test]
fn the_ethereum_key_is_the_one_that_wallets_show() {
    let path = path_on("m/44'/60'/0'/0/0", Curve::Secp256k1);
    let words = Entropy::parse(WORDS).expect("words");
    let key = words.key_at(&SecretStr::empty(), &path).expect("a key");
    let known = "1ab42cc412b618bdea3a599e3c9bae199ebf030895b039e9db1e30dafb12b727";
    assert_eq!(data_encoding::HEXLOWER.encode(key.expose()), known);
    let signer = unlocked(0).ethereum_signer().expect("open");
    let (signature, recovery) = signer.sign_digest(&[7; 32]).expect("open");
    let signature = k256::ecdsa::Signature::from_slice(&signature).expect("two numbers");
    let recovery = k256::ecdsa::RecoveryId::from_byte(recovery).expect("0 or 1");
    let key = k256::ecdsa::VerifyingKey::recover_from_prehash(&[7; 32], &signature, recovery);
    let point = key.expect("recovered").to_sec1_point(false);
    assert_eq!(point.as_bytes(), signer.public());
}

fn path_on(text: &str, curve: Curve) -> DerivationPath {
    DerivationPath::parse(text, curve).expect("within the grammar")
}
