use std::os::unix::fs::PermissionsExt;

use data_encoding::BASE64;
use tempfile::TempDir;

use super::super::keys::SealError;
use super::super::keys::tests::FakeSeal;
use super::super::plan::AcmeHistory;
use super::*;
use crate::pair::tests::PairTestCa;

const NAME: &str = "*.a.example";
/// Where the folder of [`NAME`] is.
const FOLDER: &str = "acme/_.a.example";

struct AcmeStorageTest {
    dir: TempDir,
    seal: Arc<FakeSeal>,
}

impl AcmeStorageTest {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
            seal: Arc::new(FakeSeal::new(1)),
        }
    }

    fn plain(&self) -> AcmeStorage {
        AcmeStorage::open(self.dir.path(), NAME, None).expect("a folder")
    }

    fn sealed(&self) -> AcmeStorage {
        self.sealed_by(Arc::clone(&self.seal))
    }

    fn sealed_by(&self, seal: Arc<FakeSeal>) -> AcmeStorage {
        AcmeStorage::open(self.dir.path(), NAME, Some(seal)).expect("a folder")
    }

    fn at(&self, file: &str) -> PathBuf {
        self.dir.path().join(FOLDER).join(file)
    }

    /// The files of the folder.
    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path().join(FOLDER)).expect("a folder");
        let mut files: Vec<_> = entries.map(|entry| entry.expect("read").path()).collect();
        files.sort();
        files
    }

    /// Whether a file has a piece of the key in it, as text or as it is.
    fn shows(&self, key: &str) -> bool {
        let lines = key.lines().filter(|line| !line.starts_with("-----"));
        let lines: Vec<&str> = lines.collect();
        let der = BASE64.decode(lines.concat().as_bytes()).expect("base64");
        let mut pieces: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        // The number that is the key, in every PKCS #8 of this kind.
        pieces.push(&der[36..68]);
        let has = |path: &PathBuf| {
            let bytes = fs::read(path).expect("readable");
            let is_in = |piece: &&[u8]| bytes.windows(piece.len()).any(|part| part == *piece);
            pieces.iter().any(is_in)
        };
        self.files().iter().any(has)
    }
}

fn store_certificate(disk: &AcmeStorage, (chain, key): &(String, String)) {
    let sealed_form = disk.seal(key).expect("open");
    disk.keep_certificate(chain, &sealed_form).expect("kept");
}

/// The certificate that is there.
fn chain_of(disk: &AcmeStorage) -> Vec<u8> {
    let pair = disk.certificate().expect("readable").expect("there");
    pair.certified().cert[0].to_vec()
}

fn chain_in(issued: &(String, String)) -> Vec<u8> {
    let pair = CertificatePair::from_pem(issued.0.as_bytes(), issued.1.as_bytes());
    pair.expect("a pair").certified().cert[0].to_vec()
}

fn mode(path: &Path) -> u32 {
    let meta = fs::metadata(path).expect("stat");
    meta.permissions().mode() & 0o777
}

#[test]
fn a_certificate_survives_and_is_private() {
    let storage = AcmeStorageTest::new();
    let disk = storage.plain();
    assert!(disk.certificate().expect("readable").is_none());
    assert!(disk.account().expect("readable").is_none());
    assert_eq!(disk.history::<AcmeHistory>(), AcmeHistory::default());
    let issued = PairTestCa::new("ca").issue(&[NAME]);
    store_certificate(&disk, &issued);
    let pair = disk.certificate().expect("readable").expect("there");
    assert_eq!(pair.names(), [NAME]);
    assert!(storage.shows(&issued.1), "or nothing here is shown");
    let path = storage.at("certificate.pem");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().expect("a folder")), 0o700);
    disk.seal_stored().expect("nothing to do");
    assert_eq!(storage.files(), std::slice::from_ref(&path));
    disk.keep_history(&AcmeHistory::default()).expect("kept");
    fs::write(&path, "-----BEGIN").expect("write");
    assert!(matches!(
        disk.certificate(),
        Err(AcmeError::Tls(TlsError::State { .. }))
    ));
    fs::write(storage.dir.path().join("acme/orders.json"), "{").expect("write");
    assert_eq!(disk.history::<AcmeHistory>(), AcmeHistory::default());
}

#[test]
fn a_sealed_key_comes_back_and_lies_nowhere_in_the_clear() {
    let storage = AcmeStorageTest::new();
    let ca = PairTestCa::new("ca");
    let all = [ca.issue(&[NAME]), ca.issue(&[NAME])];
    for issued in &all {
        let disk = storage.sealed();
        store_certificate(&disk, issued);
        disk.seal_stored().expect("nothing to do");
        assert_eq!(chain_of(&storage.sealed()), chain_in(issued));
        assert!(all.iter().all(|(_, key)| !storage.shows(key)));
        // The key before is gone.
        let files = storage.files();
        assert_eq!(files.len(), 2, "{files:?}");
        assert!(files.iter().all(|file| mode(file) == 0o600));
        assert_eq!(files[0], storage.at("chain.pem"));
    }
}

/// At each step of writing a new certificate.
#[test]
fn a_power_cut_leaves_the_old_certificate_or_the_new_one() {
    let storage = AcmeStorageTest::new();
    let ca = PairTestCa::new("ca");
    let (old, new) = (ca.issue(&[NAME]), ca.issue(&[NAME]));
    let disk = storage.sealed();
    store_certificate(&disk, &old);
    let StoredCertificateKey::Sealed(key) = disk.seal(&new.1).expect("open") else {
        panic!("there is a seal");
    };
    // While the new key is written.
    let half = storage.at(".key-0.sealed.new");
    fs::write(&half, "half").expect("write");
    assert_eq!(chain_of(&storage.sealed()), chain_in(&old));
    // Between the new key and its chain.
    let key_at = disk.key_of(new.0.as_bytes());
    secret_file::write(&key_at, &key).expect("written");
    assert_eq!(chain_of(&storage.sealed()), chain_in(&old));
    storage.sealed().seal_stored().expect("swept");
    let files = storage.files();
    assert!(!files.contains(&half) && !files.contains(&key_at));
    assert_eq!(chain_of(&storage.sealed()), chain_in(&old));
    // Between the chain and the end of the old key.
    secret_file::write(&key_at, &key).expect("written");
    secret_file::write(&storage.at("chain.pem"), new.0.as_bytes()).expect("written");
    assert_eq!(chain_of(&storage.sealed()), chain_in(&new));
    storage.sealed().seal_stored().expect("swept");
    assert_eq!(storage.files(), [storage.at("chain.pem"), key_at]);
}

#[test]
fn a_key_in_the_clear_is_sealed_when_there_is_a_seal() {
    let storage = AcmeStorageTest::new();
    let issued = PairTestCa::new("ca").issue(&[NAME]);
    store_certificate(&storage.plain(), &issued);
    // One as it is called now, and one of an older program.
    let left = [".certificate.pem.new", "certificate.pem.7.tmp"].map(|name| storage.at(name));
    for file in &left {
        fs::write(file, &issued.1).expect("write");
    }
    let disk = storage.sealed();
    assert_eq!(chain_of(&disk), chain_in(&issued));
    // Not now: it stays, and is served.
    storage.seal.lock(true);
    let locked = disk.seal_stored().expect_err("locked");
    assert!(locked.is_locked(), "{locked}");
    assert_eq!(chain_of(&disk), chain_in(&issued));
    storage.seal.lock(false);
    disk.seal_stored().expect("sealed");
    assert!(!storage.shows(&issued.1), "{:?}", storage.files());
    assert!(!storage.at("certificate.pem").exists() && !left.iter().any(|it| it.exists()));
    assert_eq!(chain_of(&storage.sealed()), chain_in(&issued));
    // The power was cut before the file went.
    fs::write(storage.at("certificate.pem"), issued.0.clone() + &issued.1).expect("write");
    storage.sealed().seal_stored().expect("swept");
    assert!(!storage.shows(&issued.1), "{:?}", storage.files());
    assert_eq!(chain_of(&storage.sealed()), chain_in(&issued));
}

/// The names in the configuration were put into another order meanwhile.
#[test]
fn a_key_of_another_first_name_is_sealed_too() {
    let storage = AcmeStorageTest::new();
    let issued = PairTestCa::new("ca").issue(&[NAME, "b.example"]);
    store_certificate(&storage.plain(), &issued);
    let seal = Arc::clone(&storage.seal);
    let other = AcmeStorage::open(storage.dir.path(), "b.example", Some(seal)).expect("a folder");
    assert!(other.certificate().expect("readable").is_none());
    other.seal_stored().expect("sealed");
    assert!(!storage.shows(&issued.1), "{:?}", storage.files());
    assert_eq!(chain_of(&storage.sealed()), chain_in(&issued));
}

#[test]
fn each_unreadable_file_has_its_own_error_with_its_name() {
    let storage = AcmeStorageTest::new();
    let issued = PairTestCa::new("ca").issue(&[NAME]);
    store_certificate(&storage.sealed(), &issued);
    let key_at = storage.sealed().key_of(issued.0.as_bytes());
    let named = key_at.display().to_string();
    let refused = |disk: &AcmeStorage| {
        let error = disk.certificate().expect_err("refused");
        assert!(error.to_string().contains(&named), "{error}");
        error
    };
    storage.seal.lock(true);
    assert!(refused(&storage.sealed()).is_locked());
    storage.seal.lock(false);
    let other = refused(&storage.sealed_by(Arc::new(FakeSeal::new(2))));
    assert!(!other.is_locked(), "{other}");
    let mut sealed = fs::read(&key_at).expect("readable");
    sealed[9] ^= 1;
    secret_file::write(&key_at, &sealed).expect("written");
    assert!(matches!(
        refused(&storage.sealed()),
        AcmeError::KeyOpen {
            source: SealError::Refused(_),
            ..
        }
    ));
    fs::remove_file(&key_at).expect("it was there");
    assert!(!refused(&storage.sealed()).is_locked());
}

/// The same disk with its vault, without it, and with it again.
#[test]
fn a_node_without_the_seal_says_so_and_starts_empty() {
    let storage = AcmeStorageTest::new();
    let ca = PairTestCa::new("ca");
    let (first, second) = (ca.issue(&[NAME]), ca.issue(&[NAME]));
    store_certificate(&storage.sealed(), &first);
    let error = storage.plain().certificate().expect_err("sealed");
    let text = error.to_string();
    assert!(
        text.contains("chain.pem") && text.contains("no vault"),
        "{text}"
    );
    store_certificate(&storage.plain(), &second);
    assert_eq!(storage.files(), [storage.at("certificate.pem")]);
    let disk = storage.sealed();
    assert_eq!(chain_of(&disk), chain_in(&second));
    disk.seal_stored().expect("sealed");
    assert_eq!(chain_of(&storage.sealed()), chain_in(&second));
    assert!(!storage.shows(&second.1));
}
