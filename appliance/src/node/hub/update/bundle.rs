//! The one bundle that a hub keeps for its workers, in the hub's state folder.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alknet_call::{CallError, ErrorCode};
use alknet_update::{BundleReader, MetadataRequest, MetadataSource, limits::TARGETS_BYTES_MAX};
use data_encoding::HEXLOWER;
use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::rollout::RolloutError;

/// Longest bundle that a hub keeps, in bytes.
pub(super) const HUB_BUNDLE_BYTES_MAX: u64 = 512 << 20;
/// Most bytes of one piece.
pub(super) const PIECE_BYTES_MAX: usize = 256 << 10;
/// How long an upload waits for its next piece.
pub(super) const UPLOAD_IDLE: Duration = Duration::from_secs(600);
/// The part of the file system that the bundle and an upload may have together. Tensors may have a half of it, and stored
/// files a quarter.
const DISK_PART: u64 = 4;
/// What they may have of a small one: two bundles with whole programs.
const SMALL_DISK_BYTES: u64 = 96 << 20;
/// The part of the file system that is still free once an upload is complete, and how much of a large one: without room
/// for the node's own files no administrator can take rights away.
const FREE_PART: u64 = 8;
const FREE_BYTES: u64 = 64 << 20;
/// The bundle.
const BUNDLE_FILE: &str = "bundle.tar";
/// The bundle while it is uploaded.
const UPLOAD_FILE: &str = "bundle.part";

/// A bundle that is complete. What is in it is not verified: each worker does that for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HubBundle {
    pub(super) bytes: u64,
    /// The version that its first program says.
    pub(super) version: String,
    /// SHA-256 of the document with the hashes of its programs, in hexadecimal digits. The hash of the whole bundle would
    /// have to be computed again at each start of the hub.
    pub(super) targets_sha256: String,
}

/// Why the hub does not keep a bundle, or has none.
#[derive(Debug)]
pub(super) enum HubBundleError {
    /// A rollout reads it.
    InUse,
    /// The file system returned an error.
    Io(io::Error),
    /// The file is no bundle, or names no version.
    Malformed(String),
    /// The hub has no bundle.
    None,
    /// The piece does not begin where the last one ended.
    Offset(u64),
    /// A bundle of this length is not kept.
    Size(u64),
}

impl fmt::Display for HubBundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse => f.write_str(
                "workers are being updated with the bundle that is here: wait, or stop it",
            ),
            Self::Io(error) if error.kind() == io::ErrorKind::StorageFull => {
                f.write_str("the disk of the hub has no room for the bundle")
            }
            Self::Io(error) => write!(f, "the bundle cannot be kept: {error}"),
            Self::Malformed(why) => write!(f, "the file is no update bundle: {why}"),
            Self::None => f.write_str("the hub has no bundle: send one first"),
            Self::Offset(offset) => write!(f, "the next piece begins at {offset}"),
            Self::Size(bytes) => write!(
                f,
                "a bundle of {bytes} bytes is not kept: it has 1 to {HUB_BUNDLE_BYTES_MAX}"
            ),
        }
    }
}

impl From<io::Error> for HubBundleError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<HubBundleError> for CallError {
    fn from(error: HubBundleError) -> Self {
        let text = error.to_string();
        match error {
            HubBundleError::InUse => Self::new(ErrorCode::Conflict, text),
            HubBundleError::Io(error) if error.kind() == io::ErrorKind::StorageFull => {
                Self::new(ErrorCode::Conflict, text)
            }
            HubBundleError::Io(_) => Self::internal(text),
            HubBundleError::Malformed(_) | HubBundleError::Size(_) => Self::invalid_input(text),
            HubBundleError::None => Self::new(ErrorCode::Conflict, text),
            HubBundleError::Offset(offset) => Self::new(ErrorCode::Conflict, text)
                .with_details(json!({ "code": "offset", "offset": offset })),
        }
    }
}

/// The file system that has the bundle.
#[derive(Clone, Copy, Debug)]
struct BundleDisk {
    bytes: u64,
    free: u64,
}

impl BundleDisk {
    fn measure(folder: &Path) -> Option<Self> {
        let system = statvfs(folder).ok()?;
        let unit = system.fragment_size();
        Some(Self {
            bytes: system.blocks().saturating_mul(unit),
            free: system.blocks_available().saturating_mul(unit),
        })
    }

    /// Whether an upload of so many bytes has room beside the bundle that the hub keeps.
    fn has_capacity(self, upload: u64, kept: u64) -> bool {
        let most = (self.bytes / DISK_PART).max(SMALL_DISK_BYTES);
        let left = self.free.saturating_sub(upload);
        let reserve = (self.bytes / FREE_PART).min(FREE_BYTES);
        upload.saturating_add(kept) <= most && left >= reserve
    }
}

/// An upload under way.
#[derive(Debug)]
struct BundleUpload {
    /// The caller that began it.
    owner: String,
    /// When its last piece came.
    touched: Instant,
    file: File,
    bytes: u64,
    offset: u64,
}

#[derive(Debug, Default)]
struct StoreState {
    upload: Option<BundleUpload>,
    /// Whether a task calls [`HubBundleStore::expire`].
    is_watched: bool,
}

/// The folder of the bundle. All methods block, but for [`Self::stored_bundle`], [`Self::agreed_bundle`] and
/// [`Self::path`].
#[derive(Debug)]
pub(super) struct HubBundleStore {
    folder: PathBuf,
    /// Locked while the disk takes a piece or syncs the whole bundle, which may be minutes.
    state: Mutex<StoreState>,
    /// Locked to copy or to replace it only: callers read it on threads that must not wait for a disk.
    bundle: Mutex<Option<HubBundle>>,
}

impl HubBundleStore {
    /// The store in this folder, with the bundle that an earlier process kept, and without its upload.
    pub(super) fn open(folder: PathBuf) -> Self {
        fs::remove_file(folder.join(UPLOAD_FILE)).ok();
        let kept = described(&folder.join(BUNDLE_FILE));
        let is_missing = matches!(
            &kept,
            Err(HubBundleError::Io(error)) if error.kind() == io::ErrorKind::NotFound
        );
        if let Err(error) = &kept
            && !is_missing
        {
            tracing::warn!(%error, "the bundle for the workers cannot be read; upload it again");
        }
        Self {
            folder,
            state: Mutex::default(),
            bundle: Mutex::new(kept.ok()),
        }
    }

    /// The bundle, if there is one.
    pub(super) fn stored_bundle(&self) -> Option<HubBundle> {
        self.lock_bundle().clone()
    }

    /// The bundle, if it is the one that the caller of a start has agreed to. `None`: the caller names none.
    pub(super) fn agreed_bundle(
        &self,
        agreed: Option<&HubBundle>,
    ) -> Result<HubBundle, RolloutError> {
        let bundle = self.stored_bundle().ok_or(RolloutError::NoBundle)?;
        match agreed.is_none_or(|agreed| *agreed == bundle) {
            true => Ok(bundle),
            false => Err(RolloutError::OtherBundle),
        }
    }

    /// The file, for readers.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join(BUNDLE_FILE)
    }

    /// Begins an upload, in the place of one that was not finished. If this returns `true`, the caller starts the task that
    /// calls [`expire`](Self::expire).
    pub(super) fn begin(&self, owner: &str, bytes: u64) -> Result<bool, HubBundleError> {
        if !(1..=HUB_BUNDLE_BYTES_MAX).contains(&bytes) {
            return Err(HubBundleError::Size(bytes));
        }
        fs::create_dir_all(&self.folder)?;
        let mut state = self.lock();
        self.drop_upload(&mut state);
        let kept = self.stored_bundle().map_or(0, |kept| kept.bytes);
        if BundleDisk::measure(&self.folder).is_some_and(|disk| !disk.has_capacity(bytes, kept)) {
            return Err(io::Error::from(io::ErrorKind::StorageFull).into());
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(self.folder.join(UPLOAD_FILE))?;
        state.upload = Some(BundleUpload {
            owner: owner.to_owned(),
            touched: Instant::now(),
            file,
            bytes,
            offset: 0,
        });
        Ok(!std::mem::replace(&mut state.is_watched, true))
    }

    /// Drops an upload that has got no piece for this long. Returns when to call this again; `None` if there is no upload.
    pub(super) fn expire(&self, idle: Duration) -> Option<Instant> {
        let mut state = self.lock();
        let due = state.upload.as_ref().map(|upload| upload.touched + idle);
        let due = due.filter(|due| *due > Instant::now());
        if due.is_none() {
            self.drop_upload(&mut state);
            state.is_watched = false;
        }
        due
    }

    fn drop_upload(&self, state: &mut StoreState) {
        if state.upload.take().is_some() {
            // If this fails, the next start removes the file.
            fs::remove_file(self.folder.join(UPLOAD_FILE)).ok();
        }
    }

    /// Takes a piece, and returns where the next one begins. After the last one the bundle is kept. `claim` is called
    /// before the last piece is taken; while what it returns is there, no rollout begins.
    pub(super) fn write<C>(
        &self,
        owner: &str,
        offset: u64,
        data: &[u8],
        claim: impl FnOnce() -> Result<C, HubBundleError>,
    ) -> Result<(u64, Option<HubBundle>), HubBundleError> {
        let mut state = self.lock();
        let upload = state.upload.as_mut().filter(|it| it.owner == owner);
        let upload = upload.ok_or(HubBundleError::None)?;
        if offset != upload.offset {
            return Err(HubBundleError::Offset(upload.offset));
        }
        let end = offset + data.len() as u64;
        if end > upload.bytes {
            return Err(HubBundleError::Size(end));
        }
        // A rollout that has begun since the caller asked reads the bundle by its name. The upload stays, and its owner
        // sends the last piece again.
        let _claim = (end == upload.bytes).then(claim).transpose()?;
        if let Err(error) = upload.file.write_all(data) {
            // An unknown part of the piece may be written.
            self.drop_upload(&mut state);
            return Err(error.into());
        }
        upload.offset = end;
        upload.touched = Instant::now();
        if end < upload.bytes {
            return Ok((end, None));
        }
        let upload = state.upload.take().ok_or(HubBundleError::None)?;
        let part = self.folder.join(UPLOAD_FILE);
        // This comes before the renaming: after a power cut the name must not lead to half a bundle.
        upload.file.sync_all()?;
        let bundle = described(&part).inspect_err(|_| {
            // What is no bundle need not take the room of one.
            fs::remove_file(&part).ok();
        })?;
        fs::rename(&part, self.path())?;
        // The name leads to it from now on, also if the next call fails: workers must not get it as the one of before.
        *self.lock_bundle() = Some(bundle.clone());
        alknet_durable::sync_folder(&self.folder)?;
        Ok((end, Some(bundle)))
    }

    /// Removes the bundle, and an upload.
    pub(super) fn remove(&self) -> Result<(), HubBundleError> {
        let mut state = self.lock();
        state.upload = None;
        remove_if_there(&self.folder.join(UPLOAD_FILE))?;
        remove_if_there(&self.path())?;
        // Only now: a bundle that stays is offered again after the next start.
        *self.lock_bundle() = None;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, StoreState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_bundle(&self) -> MutexGuard<'_, Option<HubBundle>> {
        self.bundle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// At most [`PIECE_BYTES_MAX`] bytes of a file from an offset on.
pub(super) fn piece_of(path: &Path, offset: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut piece = Vec::with_capacity(PIECE_BYTES_MAX);
    file.take(PIECE_BYTES_MAX as u64).read_to_end(&mut piece)?;
    Ok(piece)
}

/// What a file says of itself.
fn described(path: &Path) -> Result<HubBundle, HubBundleError> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let malformed = |why: String| HubBundleError::Malformed(why);
    let mut reader = BundleReader::open(io::BufReader::new(file));
    let reader = reader
        .as_mut()
        .map_err(|error| malformed(error.to_string()))?;
    let number = |name: &str| name.strip_suffix(".targets.json")?.parse::<u64>().ok();
    let newest = reader.metadata_names().filter_map(number).max();
    let newest = newest.ok_or_else(|| malformed("it lists no programs".to_owned()))?;
    let request = MetadataRequest {
        name: format!("{newest}.targets.json"),
        bytes_max: TARGETS_BYTES_MAX,
        is_optional: false,
    };
    let document = reader
        .metadata(&request)
        .map_err(|error| malformed(error.to_string()))?;
    let document = document.unwrap_or_default();
    let targets_sha256 = HEXLOWER.encode(&Sha256::digest(&document));
    let document: Value =
        serde_json::from_slice(&document).map_err(|error| malformed(error.to_string()))?;
    let targets = document["signed"]["targets"].as_object();
    let versions = targets.into_iter().flat_map(|it| it.values());
    let mut versions = versions.filter_map(|it| it["custom"]["alknet"]["version"].as_str());
    let version = versions
        .next()
        .ok_or_else(|| malformed("it has no version".to_owned()))?;
    Ok(HubBundle {
        bytes,
        // The hub verifies no signature, so the text may have any length.
        version: version.chars().take(64).collect(),
        targets_sha256,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, mpsc};
    use std::thread;

    use alknet_test_support::deadline;
    use alknet_update::BundleWriter;

    use super::*;

    const OWNER: &str = "ada";

    /// The claim of a hub without a rollout.
    pub(in crate::node::hub::update) fn free() -> Result<(), HubBundleError> {
        Ok(())
    }

    /// Bytes of a bundle whose signatures nothing checks.
    pub(in crate::node::hub::update) fn unsigned(version: &str, program: &[u8]) -> Vec<u8> {
        let sha256 = HEXLOWER.encode(&Sha256::digest(program));
        let targets = json!({ "signed": { "targets": {
            "alknet.efi": { "hashes": { "sha256": sha256 }, "custom": { "alknet": { "version": version } } }
        } } });
        let mut writer = BundleWriter::new(Vec::new());
        writer.metadata("timestamp.json", b"{}").expect("memory");
        let document = targets.to_string();
        writer
            .metadata("3.targets.json", document.as_bytes())
            .expect("memory");
        let bytes = program.len() as u64;
        writer
            .target("alknet.efi", bytes, &mut &*program)
            .expect("memory");
        writer.finish().expect("memory")
    }

    #[test]
    fn a_bundle_is_kept_once_it_is_whole_and_over_a_restart() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = HubBundleStore::open(dir.path().join("update"));
        let bundle = unsigned("1.2.0", &[7; 3000]);
        let bytes = bundle.len() as u64;
        assert!(store.begin(OWNER, bytes).expect("a fine length"));
        let half = bundle.len() / 2;
        assert_eq!(
            store.write(OWNER, 0, &bundle[..half], free).expect("taken"),
            (half as u64, None)
        );
        assert_eq!(store.stored_bundle(), None);
        let other = store.write("eve", half as u64, &bundle[half..], free);
        assert!(matches!(other, Err(HubBundleError::None)), "{other:?}");
        let wrong = store
            .write(OWNER, 3, &bundle[3..], free)
            .expect_err("a gap");
        assert!(matches!(wrong, HubBundleError::Offset(at) if at == half as u64));
        let last = store.write(OWNER, half as u64, &bundle[half..], free);
        let (offset, expected) = last.expect("taken");
        let expected = expected.expect("the bundle");
        assert_eq!((offset, expected.bytes), (bytes, bytes));
        assert_eq!(expected.version, "1.2.0");
        let again = HubBundleStore::open(dir.path().join("update"));
        assert_eq!(again.stored_bundle(), Some(expected));
        assert_eq!(piece_of(&again.path(), 5).expect("a piece"), bundle[5..]);
        again.remove().expect("removed");
        assert_eq!(again.stored_bundle(), None);
        assert!(!again.path().exists());
    }

    #[test]
    fn a_bundle_that_cannot_be_removed_is_still_there() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = HubBundleStore::open(dir.path().to_owned());
        let bundle = unsigned("1.2.0", b"program");
        store.begin(OWNER, bundle.len() as u64).expect("room");
        store.write(OWNER, 0, &bundle, free).expect("a bundle");
        // A folder cannot be removed as a file, also by root.
        fs::remove_file(store.path()).expect("the bundle");
        fs::create_dir(store.path()).expect("writable");
        store.remove().expect_err("it is a folder");
        assert!(store.stored_bundle().is_some(), "it says what it has");
        fs::remove_dir(store.path()).expect("empty");
        store.remove().expect("nothing is there");
        assert_eq!(store.stored_bundle(), None);
    }

    #[test]
    fn what_is_no_bundle_does_not_take_the_place_of_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = HubBundleStore::open(dir.path().to_owned());
        let bundle = unsigned("1.2.0", b"program");
        let upload = |bytes: &[u8]| {
            store.begin(OWNER, bytes.len() as u64)?;
            store.write(OWNER, 0, bytes, free)
        };
        upload(&bundle).expect("a bundle");
        let refused = upload(&[0; 4096]).expect_err("zeros");
        assert!(matches!(refused, HubBundleError::Malformed(_)), "{refused}");
        assert_eq!(store.stored_bundle().expect("the bundle").version, "1.2.0");
        for bytes in [0, HUB_BUNDLE_BYTES_MAX + 1] {
            let refused = store.begin(OWNER, bytes).expect_err("a wrong length");
            assert!(matches!(refused, HubBundleError::Size(_)), "{refused}");
        }
    }

    /// The attack: a caller asks for the status while the disk takes minutes for the last step of an upload. The threads
    /// that answer calls read the bundle, and have to go on.
    #[test]
    fn the_bundle_is_read_while_an_upload_waits_for_the_disk() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Arc::new(HubBundleStore::open(dir.path().to_owned()));
        let [first, second] = ["1.2.0", "1.3.0"].map(|version| unsigned(version, b"program"));
        store.begin(OWNER, first.len() as u64).expect("room");
        store.write(OWNER, 0, &first, free).expect("a bundle");
        store.begin(OWNER, second.len() as u64).expect("room");
        let (is_writing, writes) = mpsc::channel();
        let (goes_on, waits) = mpsc::channel::<()>();
        let writer = Arc::clone(&store);
        let upload = thread::spawn(move || {
            // It has the lock of the upload, as over the sync that follows.
            let slow = || {
                is_writing.send(()).expect("the test waits");
                waits.recv().expect("the test goes on");
                Ok(())
            };
            writer.write(OWNER, 0, &second, slow)
        });
        writes.recv().expect("the last step began");
        let (sends, versions) = mpsc::channel();
        let reader = Arc::clone(&store);
        thread::spawn(move || {
            let bundle = reader.agreed_bundle(None).expect("the first one");
            sends.send(bundle.version)
        });
        let version = versions.recv_timeout(deadline(Duration::from_secs(1)));
        goes_on.send(()).expect("the upload waits");
        assert_eq!(version.as_deref(), Ok("1.2.0"), "it waited for the upload");
        upload.join().expect("no panic").expect("the second one");
        assert_eq!(store.stored_bundle().expect("a bundle").version, "1.3.0");
    }

    /// The attack: between the question and the start another administrator of the hub stores another bundle, also one of
    /// the same version and length.
    #[test]
    fn a_start_names_the_bundle_that_was_agreed_to() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = HubBundleStore::open(dir.path().to_owned());
        assert_eq!(store.agreed_bundle(None), Err(RolloutError::NoBundle));
        let keep = |version: &str, program: &[u8]| {
            let bundle = unsigned(version, program);
            store.begin(OWNER, bundle.len() as u64).expect("room");
            let kept = store.write(OWNER, 0, &bundle, free).expect("a bundle");
            kept.1.expect("the last piece")
        };
        let agreed = keep("1.2.0", b"program");
        assert_eq!(store.agreed_bundle(Some(&agreed)).as_ref(), Ok(&agreed));
        for (version, program) in [("1.3.0", b"program"), ("1.2.0", b"Program")] {
            let other = keep(version, program);
            assert_eq!(other.bytes, agreed.bytes);
            let refused = store.agreed_bundle(Some(&agreed));
            assert_eq!(refused, Err(RolloutError::OtherBundle), "{version}");
            assert_eq!(store.agreed_bundle(None), Ok(other));
        }
        // The same bundle again is the one that was agreed to, also after a restart of the hub.
        keep("1.2.0", b"program");
        let again = HubBundleStore::open(dir.path().to_owned());
        assert_eq!(again.agreed_bundle(Some(&agreed)), Ok(agreed.clone()));
    }

    #[test]
    fn an_upload_leaves_room_on_the_disk() {
        let disk = |bytes: u64, free: u64| BundleDisk {
            bytes: bytes << 20,
            free: free << 20,
        };
        for (disk, upload, kept, has) in [
            (disk(128, 120), 42, 0, true),
            (disk(128, 78), 42, 42, true),
            (disk(128, 120), 110, 0, false),
            (disk(128, 57), 42, 42, false),
            (disk(128, 120), 60, 42, false),
            (disk(1024, 1000), 200, 42, true),
            (disk(1024, 1000), 220, 42, false),
            (disk(1024, 110), 42, 42, true),
            (disk(1024, 100), 42, 42, false),
            (disk(1 << 20, 1 << 10), 42, 42, true),
            (disk(1024, 100), 512, 0, false),
        ] {
            assert_eq!(
                disk.has_capacity(upload << 20, kept << 20),
                has,
                "{disk:?} {upload}"
            );
        }
    }

    /// A client begins an upload, and sends no more of it.
    #[test]
    fn an_upload_without_pieces_is_dropped_and_outlives_no_start() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let open = || HubBundleStore::open(dir.path().to_owned());
        let part = dir.path().join(UPLOAD_FILE);
        let store = open();
        assert_eq!(store.expire(UPLOAD_IDLE), None);
        assert!(
            store.begin(OWNER, 100).expect("room"),
            "a task has to watch it"
        );
        assert!(!store.begin(OWNER, 100).expect("room"), "one does");
        store.write(OWNER, 0, &[7; 50], free).expect("taken");
        assert!(
            store
                .expire(UPLOAD_IDLE)
                .is_some_and(|due| due > Instant::now())
        );
        assert!(part.exists());
        assert_eq!(store.expire(Duration::ZERO), None);
        assert!(!part.exists());
        let late = store.write(OWNER, 50, &[7; 50], free);
        assert!(matches!(late, Err(HubBundleError::None)), "{late:?}");
        assert!(store.begin(OWNER, 100).expect("room"));
        store.write(OWNER, 0, &[7; 50], free).expect("taken");
        assert!(part.exists());
        open();
        assert!(!part.exists());
    }
}
