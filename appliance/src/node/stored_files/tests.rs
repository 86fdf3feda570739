use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use alknet_call::Registry;
use alknet_core::PeerId;
use alknet_core::config::{NodeConfig, StoredFileName};
use alknet_init::control::MachineFacts;
use alknet_test_support::deadline;

use super::StoredFiles;
use super::error::FileStoreError;
use super::store::{FileStore, StoredFileRow};
use super::uploads::FileUploads;
use crate::tar::packed;

fn open(folder: &Path) -> FileStore {
    FileStore::open(folder.join("files")).expect("a writable directory")
}

fn name(text: &str) -> StoredFileName {
    text.parse().expect("a name")
}

/// Sends a file in two pieces.
fn put(store: &FileStore, file: &str, content: &[u8]) -> Result<StoredFileRow, FileStoreError> {
    let mut upload = store.begin(name(file))?;
    let (first, second) = content.split_at(content.len() / 2);
    upload.write(first)?;
    upload.write(second)?;
    store.commit(upload)
}

fn site(page: &[u8]) -> Vec<u8> {
    packed(&[("index.html", page), ("docs/a.txt", b"a")])
}

/// The index page of the site `www`.
fn page(store: &FileStore) -> Vec<u8> {
    let index = store.path(&name("site/www")).join("index.html");
    fs::read(index).unwrap_or_default()
}

/// Names in one of the store's folders.
fn entries(folder: &Path, below: &str) -> Vec<String> {
    let entries = fs::read_dir(folder.join("files").join(below)).expect("it is there");
    let names = entries.map(|entry| entry.expect("a readable entry").file_name());
    names.map(|it| it.to_string_lossy().into_owned()).collect()
}

/// A self-signed certificate for `example.org`, and its key.
fn certificate(folder: &Path, file: &str) -> (Vec<u8>, Vec<u8>) {
    let (chain, key) = (format!("{file}.pem"), format!("{file}.key"));
    let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -days 9 \
                 -addext subjectAltName=DNS:example.org";
    let made = Command::new("openssl")
        .args(words.split_whitespace())
        .args(["-out", &chain, "-keyout", &key])
        .current_dir(folder)
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "{made:?}");
    let read = |name: &str| fs::read(folder.join(name)).expect("OpenSSL wrote it");
    (read(&chain), read(&key))
}

#[test]
fn a_site_takes_the_place_of_the_one_before_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let row = put(&store, "site/www", &site(b"one")).expect("a site");
    assert_eq!((row.files, row.bytes), (2, 4));
    assert!(row.warnings.is_empty() && row.stored.is_some(), "{row:?}");
    assert_eq!(page(&store), b"one");
    put(&store, "site/www", &site(b"other")).expect("a site");
    assert_eq!(page(&store), b"other");
    // The first site and the upload are gone.
    assert_eq!(entries(dir.path(), "content").len(), 1);
    assert!(entries(dir.path(), "uploads").is_empty());
    let files = store.files(&name("site/www")).expect("it is there");
    let expected = [("docs/a.txt".to_owned(), 1), ("index.html".to_owned(), 5)];
    assert_eq!(files, expected);
    let bare = packed(&[("readme.txt", b"x")]);
    let row = put(&store, "site/bare", &bare).expect("a site");
    assert!(row.warnings[0].contains("index.html"), "{row:?}");
}

#[test]
fn a_site_that_is_refused_leaves_the_one_before_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    put(&store, "site/www", &site(b"one")).expect("a site");
    let whole = site(b"other");
    let outside = packed(&[("index.html", b"other"), ("../x", b"x")]);
    for refused in [&whole[..700], &outside[..], b"no archive"] {
        let error = put(&store, "site/www", refused).expect_err("refused");
        assert!(matches!(error, FileStoreError::Content(_)), "{error:?}");
        assert_eq!(page(&store), b"one");
    }
    assert_eq!(entries(dir.path(), "content").len(), 1);
    // The path leads here from the folder of the content.
    assert!(!dir.path().join("files/content/x").exists());
}

/// A power cut leaves either the state before the rename of the link, or the one after it.
#[test]
fn a_node_that_ends_before_the_swap_serves_the_site_of_before() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    put(&store, "site/www", &site(b"one")).expect("a site");
    let mut upload = store.begin(name("site/www")).expect("there is room");
    upload.write(&site(b"other")).expect("there is room");
    let staged = store.stage(&upload).expect("a site");
    assert_eq!(
        fs::read(staged.join("index.html")).ok().as_deref(),
        Some(&b"other"[..])
    );
    let link = dir.path().join("files/site/.www.new");
    std::os::unix::fs::symlink(&staged, &link).expect("a writable directory");
    // The process ends here without dropping anything.
    std::mem::forget(upload);
    drop(store);
    assert_eq!(entries(dir.path(), "content").len(), 2);

    let store = open(dir.path());
    assert_eq!(page(&store), b"one");
    assert_eq!(entries(dir.path(), "content").len(), 1);
    assert_eq!(entries(dir.path(), "site"), ["www"]);
    assert!(entries(dir.path(), "uploads").is_empty());
    put(&store, "site/www", &site(b"third")).expect("a site");
    assert_eq!(page(&open(dir.path())), b"third");
}

#[test]
fn a_certificate_is_kept_with_its_key_and_only_if_they_fit() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let (chain, key) = certificate(dir.path(), "one");
    let (other_chain, other_key) = certificate(dir.path(), "other");
    let both = [&chain[..], &key].concat();
    let row = put(&store, "certificate/edge", &both).expect("they fit");
    assert_eq!(row.facts["names"], serde_json::json!(["example.org"]));
    assert!(row.facts["expires"].is_string(), "{row:?}");
    assert!(row.warnings[0].contains("no issuer"), "{row:?}");
    let path = store.path(&name("certificate/edge"));
    let mode = fs::metadata(&path)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    for (content, words) in [
        ([&chain[..], &other_key].concat(), "does not fit"),
        ([&other_chain[..], &key].concat(), "does not fit"),
        (chain.clone(), "no key"),
        (key.clone(), "no certificate"),
    ] {
        let error = put(&store, "certificate/edge", &content).expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(fs::read(&path).expect("it is there"), both);
    }
}

#[test]
fn roots_and_documents_are_checked_before_they_count() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let (chain, key) = certificate(dir.path(), "authority");
    // OpenSSL makes a self-signed certificate that is an authority.
    let row = put(&store, "root/lab", &chain).expect("an authority");
    assert_eq!(row.facts["certificates"], 1);
    let document = b"openapi: 3.1.0\npaths:\n  /a:\n    get: {}\n    post: {}\n";
    let row = put(&store, "document/forge", document).expect("a document");
    assert_eq!(row.facts["operations"], 2);
    for (file, content, words) in [
        ("root/lab", [&chain[..], &key].concat(), "private key"),
        ("root/lab", b"text".to_vec(), "no certificate"),
        ("document/forge", b"{}".to_vec(), "version of OpenAPI"),
        ("document/forge", b"openapi: 2.0.0".to_vec(), "3.0 and 3.1"),
    ] {
        let error = put(&store, file, &content).expect_err(words);
        assert!(error.to_string().contains(words), "{file}: {error}");
    }
    let rows = store.rows().expect("a readable folder");
    let names: Vec<_> = rows.iter().map(|row| row.name.to_string()).collect();
    assert_eq!(names, ["document/forge", "root/lab"]);
    assert_eq!(rows[0].bytes, document.len() as u64);
}

#[test]
fn files_have_so_much_room_and_no_more() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let archive = site(&[b'x'; 40_000]);
    // The room is for the archive and the content, and not for a second archive.
    let room = archive.len() as u64 * 2 + (64 << 10);
    let store = open(dir.path()).with_quota(room);
    put(&store, "site/www", &archive).expect("archive and content fit");
    let error = put(&store, "site/other", &archive).expect_err("they do not fit again");
    assert!(matches!(error, FileStoreError::Quota(_)), "{error:?}");
    assert_eq!(page(&store).len(), 40_000);
    assert!(store.used() <= room);
    store.remove(&name("site/www")).expect("it is there");
    put(&store, "site/other", &archive).expect("there is room again");
    // Certificates have a limit of their own.
    let store = open(dir.path());
    let error = put(&store, "certificate/edge", &[b'x'; (256 << 10) + 1]).expect_err("too long");
    assert!(matches!(error, FileStoreError::Quota(_)), "{error:?}");
}

#[test]
fn uploads_that_begin_together_share_the_room() {
    const ROOM: u64 = 128 << 10;
    /// More than half of the room.
    static PIECE: [u8; 80 << 10] = [b'x'; 80 << 10];
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path()).with_quota(ROOM);
    let [mut first, mut second, mut third] = ["site/a", "site/b", "certificate/c"]
        .map(|it| store.begin(name(it)).expect("there is room"));
    first.write(&PIECE).expect("there is room");
    for late in [&mut second, &mut third] {
        let error = late.write(&PIECE).expect_err("the first has the room");
        assert!(matches!(error, FileStoreError::Quota(_)), "{error:?}");
    }
    assert!(store.used() <= ROOM);
    // An upload releases its room when it ends.
    drop(first);
    second.write(&PIECE).expect("there is room again");
    drop((second, third));
    assert_eq!(store.used(), 0);
}

#[test]
fn what_was_stored_since_an_upload_began_counts_for_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let document = b"openapi: 3.1.0\npaths:\n  /a:\n    get: {}\n";
    let document = [&document[..], &b"# long\n".repeat(6000)].concat();
    let store = open(dir.path()).with_quota(128 << 10);
    let mut early = store.begin(name("site/www")).expect("there is room");
    put(&store, "document/forge", &document).expect("there is room");
    let error = early.write(&[b'x'; 96 << 10]).expect_err("less is left");
    assert!(matches!(error, FileStoreError::Quota(_)), "{error:?}");
    store.remove(&name("document/forge")).expect("it is there");
    early.write(&[b'x'; 96 << 10]).expect("there is room again");
}

/// Each empty file takes an inode and a name, and the archive of many is short.
#[test]
fn empty_files_take_room() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path()).with_quota(512 << 10);
    let paths: Vec<_> = (0..200).map(|n| format!("{n}.txt")).collect();
    let files: Vec<_> = paths.iter().map(|path| (path.as_str(), &b""[..])).collect();
    let error = put(&store, "site/www", &packed(&files)).expect_err("they take more");
    assert!(matches!(error, FileStoreError::Quota(_)), "{error:?}");
    assert!(entries(dir.path(), "content").is_empty());
    assert_eq!(store.used(), 0, "what was refused takes no room");
    put(&store, "site/www", &packed(&files[..20])).expect("so many fit");
    let used = store.used();
    assert!(used >= 20 * (8 << 10), "{used} bytes of 20 files");
    assert_eq!(open(dir.path()).used(), used, "measured at the next start");
}

#[test]
fn what_is_removed_is_gone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    put(&store, "site/www", &site(b"one")).expect("a site");
    store.remove(&name("site/www")).expect("it is there");
    assert!(entries(dir.path(), "content").is_empty());
    for gone in ["site/www", "root/lab"] {
        let error = store.remove(&name(gone)).expect_err("gone");
        assert!(matches!(error, FileStoreError::Missing(_)), "{error:?}");
        assert!(matches!(
            store.row(&name(gone)),
            Err(FileStoreError::Missing(_))
        ));
    }
    assert_eq!(store.rows().expect("a readable folder"), []);
}

#[test]
fn what_is_in_use_says_who_uses_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = |text: &str| NodeConfig::parse(text.as_bytes()).expect("a correct document");
    let started = config("[http]\nsite = \"store:/site/www\"\n");
    let files = StoredFiles::open(dir.path(), &started, &MachineFacts::default());
    let www = name("site/www");
    let reason = |current: &NodeConfig| files.users(&www, current).reason();
    let said = reason(&started).expect("it is in use");
    assert!(said.contains("names it as http.site"), "{said}");
    let said = reason(&NodeConfig::default()).expect("it is in use");
    assert!(said.contains("restart the node first"), "{said}");
    assert_eq!(files.users(&name("site/other"), &started).reason(), None);
    let missing = files.problems(&started);
    assert_eq!(missing[0].code, "stored-file-missing");
    assert!(
        missing[0].text.contains("http.site names site/www"),
        "{missing:?}"
    );
    assert_eq!(files.problems(&NodeConfig::default()), []);
    let located = files.located(&started).http.site.expect("a path");
    assert_eq!(Path::new(&located), dir.path().join("state/files/site/www"));
}

#[tokio::test]
async fn uploads_are_their_callers_few_and_not_kept_for_ever() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let peer = |id: &str| -> PeerId { id.parse().expect("a name") };
    let begin = || store.begin(name("site/www")).expect("there is room");
    let uploads = FileUploads::new(Duration::from_secs(60));
    for _ in 0..4 {
        uploads.add(&peer("ada"), begin()).expect("there is room");
    }
    let full = uploads.add(&peer("eve"), begin()).expect_err("too many");
    assert!(matches!(full, FileStoreError::Busy(4)), "{full:?}");
    assert!(uploads.check_slots().is_err());
    let other = uploads.lookup(&peer("eve"), "u1");
    assert!(matches!(other, Err(FileStoreError::NoUpload)));
    assert!(uploads.lookup(&peer("ada"), "u1").is_ok());
    drop(uploads);
    assert!(entries(dir.path(), "uploads").is_empty());

    let uploads = FileUploads::new(deadline(Duration::from_millis(20)));
    uploads.add(&peer("ada"), begin()).expect("there is room");
    let emptied = async {
        while !entries(dir.path(), "uploads").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let emptied = tokio::time::timeout(deadline(Duration::from_secs(30)), emptied).await;
    emptied.expect("the upload is dropped in time");
    assert!(uploads.lookup(&peer("ada"), "u1").is_err());
}

/// The running node compiles the schemas when they are first needed.
#[test]
fn the_schemas_compile() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let identity_services = crate::node::build_identity_services(
        &NodeConfig::default(),
        crate::node::ConfigOverlay::default(),
        crate::node::ConfigStore::nowhere(),
        Vec::new(),
        crate::node::store::open(dir.path()),
    );
    let files = StoredFiles::open(dir.path(), &NodeConfig::default(), &MachineFacts::default());
    let mut builder = Registry::builder();
    files.register(&mut builder, &identity_services.reloader);
    let registry = builder.build().expect("every schema is one");
    assert!(registry.spec("config/store-file").is_some());
}
