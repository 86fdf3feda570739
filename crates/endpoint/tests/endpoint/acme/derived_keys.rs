//! Keys of an account and of certificates that the owner derives and seals.

use super::*;

/// A key that a holder of the node's words can derive.
struct DerivedAccountKey(Vec<u8>);

impl AccountKey for DerivedAccountKey {
    fn pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, BoxError> {
        match self.0.is_empty() {
            false => Ok(self.0.clone().into()),
            true => Err("the vault is locked".into()),
        }
    }
}

/// A node whose disk is lost and that is restored from its words has the same ACME account.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_is_the_same_account_with_nothing_on_the_disk() {
    let key = rcgen::KeyPair::generate().expect("a key").serialize_der();
    let lives = [AcmeTestNode::start(), AcmeTestNode::start()];
    let ca = Ca::start(1).await;
    for served in &lives {
        let mut changes = served.tls.certificates.watch();
        let state = served.state.path();
        let options = ca.options(state, &["edge.example"], ChallengeKind::Dns01);
        let parts = AcmeParts {
            account_key: Some(Arc::new(DerivedAccountKey(key.clone()))),
            ..served.parts(&ca)
        };
        let running = tokio::spawn(Acme::new(options, parts).expect("good options").run());
        served.renewed(&ca, &mut changes).await;
        running.abort();
        assert!(!state.join("acme/account.json").exists());
    }
    let log = ca.log();
    assert_eq!(log.matches("accounts in memory").count(), 1, "{log}");

    // Without its key the node orders nothing, and reports why.
    let served = AcmeTestNode::start();
    let options = ca.options(served.state.path(), &["edge.example"], ChallengeKind::Dns01);
    let parts = AcmeParts {
        account_key: Some(Arc::new(DerivedAccountKey(Vec::new()))),
        ..served.parts(&ca)
    };
    let mut problems = served.problems.watch();
    let running = tokio::spawn(Acme::new(options, parts).expect("good options").run());
    let problem = tokio::time::timeout(hung(), problems.wait_for(|list| !list.is_empty())).await;
    let problem = problem.expect("a problem").expect("alive")[0].clone();
    assert!(problem.text.contains("the vault is locked"), "{problem}");
    running.abort();
}

/// A seal that a holder of the node's words can derive.
struct DerivedKeySeal([u8; 32]);

impl DerivedKeySeal {
    fn key(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.0).expect("32 bytes"))
    }

    /// One nonce for all keys is enough for a test.
    fn nonce() -> Nonce {
        Nonce::assume_unique_for_key([0; 12])
    }
}

impl KeySeal for DerivedKeySeal {
    fn seal(&self, name: &str, key: &[u8]) -> Result<Vec<u8>, SealError> {
        let (mut bytes, name) = (key.to_vec(), Aad::from(name.as_bytes()));
        self.key()
            .seal_in_place_append_tag(Self::nonce(), name, &mut bytes)
            .map_err(|_| SealError::Refused("it is not sealed".into()))?;
        Ok(bytes)
    }

    fn open(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (mut bytes, name) = (sealed.to_vec(), Aad::from(name.as_bytes()));
        let opened = self
            .key()
            .open_in_place(Self::nonce(), name, &mut bytes)
            .map_err(|_| SealError::Refused("it does not open".into()))?;
        Ok(opened.to_vec().into())
    }
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let below = entries.flat_map(|entry| {
        let path = entry.expect("readable").path();
        match path.is_dir() {
            true => files(&path),
            false => vec![path],
        }
    });
    below.collect()
}

/// The number of orders that the node remembers. It checks that no key lies beside them for every user to read.
fn orders_of(state: &Path) -> usize {
    let files = files(state);
    for path in &files {
        let bytes = std::fs::read(path).expect("readable");
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("PRIVATE KEY"), "{}", path.display());
    }
    let sealed = |path: &&PathBuf| path.extension().is_some_and(|end| end == "sealed");
    assert_eq!(files.iter().filter(sealed).count(), 1, "{files:?}");
    let text = std::fs::read(state.join("acme/orders.json")).expect("kept");
    let history: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let orders = &history["orders"]["edge.example"];
    orders.as_array().expect("times").len()
}

/// The key that a node with a vault keeps on its disk is useless to a thief of the disk, and all that the node needs
/// after a start.
#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_key_is_served_again_without_an_order() {
    let account = rcgen::KeyPair::generate().expect("a key").serialize_der();
    let ca = Ca::start(1).await;
    let client = ca.trusting().await;
    let state = tempfile::tempdir().expect("a directory");
    let state = state.path();
    let with_vault = |served: &AcmeTestNode| {
        let options = ca.options(state, &["edge.example"], ChallengeKind::Dns01);
        let parts = AcmeParts {
            account_key: Some(Arc::new(DerivedAccountKey(account.clone()))),
            key_seal: Some(Arc::new(DerivedKeySeal([7; 32]))),
            ..served.parts(&ca)
        };
        Acme::new(options, parts).expect("good options")
    };
    let served = AcmeTestNode::start();
    let mut changes = served.tls.certificates.watch();
    let running = tokio::spawn(with_vault(&served).run());
    served.renewed(&ca, &mut changes).await;
    running.abort();
    let _ = running.await;
    let first = served.shows(Carriage::Tcp, "edge.example", &client).await;
    assert_eq!(orders_of(state), 1);

    // Another process on the same disk shows it at once.
    let again = AcmeTestNode::start();
    let acme = with_vault(&again);
    let shown = again.shows(Carriage::Tcp, "edge.example", &client).await;
    assert_eq!(shown, first);
    // Only a restart that changes the request gets another certificate: an order at the start would make three.
    let mut changes = again.tls.certificates.watch();
    acme.handle().renew();
    let running = tokio::spawn(acme.run());
    again.renewed(&ca, &mut changes).await;
    running.abort();
    let _ = running.await;
    let second = again.shows(Carriage::Tcp, "edge.example", &client).await;
    assert_ne!(second, first);
    assert_eq!(orders_of(state), 2);
    assert_eq!(again.problems.list(), []);
}
