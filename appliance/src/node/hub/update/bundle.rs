//! The one bundle that a hub keeps for its workers, in the hub's state folder.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use alknet_call::{CallError, ErrorCode};
use alknet_update::{BundleReader, MetadataRequest, MetadataSource, limits::TARGETS_BYTES_MAX};
use serde_json::{Value, json};

/// Longest bundle that a hub keeps, in bytes.
pub(super) const HUB_BUNDLE_BYTES_MAX: u64 = 512 << 20;
/// Most bytes of one piece.
pub(super) const PIECE_BYTES_MAX: usize = 256 << 10;
/// The bundle.
const BUNDLE_FILE: &str = "bundle.tar";
/// The bundle while it is uploaded.
const UPLOAD_FILE: &str = "bundle.part";

/// A bundle that is complete. What is in it is not verified: each worker does that for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HubBundle {
    pub(super) bytes: u64,
    /// The version that its first program says.
    pub(super) version: String,
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

/// An upload under way.
#[derive(Debug)]
struct BundleUpload {
    file: File,
    bytes: u64,
    offset: u64,
}

#[derive(Debug, Default)]
struct StoreState {
    upload: Option<BundleUpload>,
    kept: Option<HubBundle>,
}

/// The folder of the bundle. All methods block.
#[derive(Debug)]
pub(super) struct HubBundleStore {
    folder: PathBuf,
    state: Mutex<StoreState>,
}

impl HubBundleStore {
    /// The store in this folder, with the bundle that an earlier process kept.
    pub(super) fn open(folder: PathBuf) -> Self {
        let kept = described(&folder.join(BUNDLE_FILE)).ok();
        let state = StoreState { upload: None, kept };
        Self {
            folder,
            state: Mutex::new(state),
        }
    }

    /// The bundle, if there is one.
    pub(super) fn stored_bundle(&self) -> Option<HubBundle> {
        self.lock().kept.clone()
    }

    /// The file, for readers.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join(BUNDLE_FILE)
    }

    /// Begins an upload, in the place of one that was not finished.
    pub(super) fn begin(&self, bytes: u64) -> Result<(), HubBundleError> {
        if !(1..=HUB_BUNDLE_BYTES_MAX).contains(&bytes) {
            return Err(HubBundleError::Size(bytes));
        }
        fs::create_dir_all(&self.folder)?;
        let mut state = self.lock();
        state.upload = None;
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(self.folder.join(UPLOAD_FILE))?;
        state.upload = Some(BundleUpload {
            file,
            bytes,
            offset: 0,
        });
        Ok(())
    }

    /// Takes a piece, and returns where the next one begins. After the last one the bundle is kept.
    pub(super) fn write(
        &self,
        offset: u64,
        data: &[u8],
    ) -> Result<(u64, Option<HubBundle>), HubBundleError> {
        let mut state = self.lock();
        let upload = state.upload.as_mut().ok_or(HubBundleError::None)?;
        if offset != upload.offset {
            return Err(HubBundleError::Offset(upload.offset));
        }
        let end = offset + data.len() as u64;
        if end > upload.bytes {
            return Err(HubBundleError::Size(end));
        }
        if let Err(error) = upload.file.write_all(data) {
            // An unknown part of the piece may be written.
            state.upload = None;
            fs::remove_file(self.folder.join(UPLOAD_FILE)).ok();
            return Err(error.into());
        }
        upload.offset = end;
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
        alknet_durable::sync_folder(&self.folder)?;
        state.kept = Some(bundle.clone());
        Ok((end, Some(bundle)))
    }

    /// Removes the bundle, and an upload.
    pub(super) fn remove(&self) -> Result<(), HubBundleError> {
        let mut state = self.lock();
        state.upload = None;
        state.kept = None;
        for file in [BUNDLE_FILE, UPLOAD_FILE] {
            match fs::remove_file(self.folder.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, StoreState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
    let document: Value = serde_json::from_slice(&document.unwrap_or_default())
        .map_err(|error| malformed(error.to_string()))?;
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
    })
}

#[cfg(test)]
pub(super) mod tests {
    use alknet_update::BundleWriter;

    use super::*;

    /// Bytes of a bundle whose signatures nothing checks.
    pub(in crate::node::hub::update) fn unsigned(version: &str, program: &[u8]) -> Vec<u8> {
        let targets = json!({ "signed": { "targets": {
            "alknet.efi": { "custom": { "alknet": { "version": version } } }
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
        store.begin(bytes).expect("a fine length");
        let half = bundle.len() / 2;
        assert_eq!(
            store.write(0, &bundle[..half]).expect("taken"),
            (half as u64, None)
        );
        assert_eq!(store.stored_bundle(), None);
        let wrong = store.write(3, &bundle[3..]).expect_err("a gap");
        assert!(matches!(wrong, HubBundleError::Offset(at) if at == half as u64));
        let expected = HubBundle {
            bytes,
            version: "1.2.0".to_owned(),
        };
        let last = store.write(half as u64, &bundle[half..]).expect("taken");
        assert_eq!(last, (bytes, Some(expected.clone())));
        let again = HubBundleStore::open(dir.path().join("update"));
        assert_eq!(again.stored_bundle(), Some(expected));
        assert_eq!(piece_of(&again.path(), 5).expect("a piece"), bundle[5..]);
        again.remove().expect("removed");
        assert_eq!(again.stored_bundle(), None);
        assert!(!again.path().exists());
    }

    #[test]
    fn what_is_no_bundle_does_not_take_the_place_of_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = HubBundleStore::open(dir.path().to_owned());
        let bundle = unsigned("1.2.0", b"program");
        let upload = |bytes: &[u8]| {
            store.begin(bytes.len() as u64)?;
            store.write(0, bytes)
        };
        upload(&bundle).expect("a bundle");
        let refused = upload(&[0; 4096]).expect_err("zeros");
        assert!(matches!(refused, HubBundleError::Malformed(_)), "{refused}");
        assert_eq!(store.stored_bundle().expect("the bundle").version, "1.2.0");
        for bytes in [0, HUB_BUNDLE_BYTES_MAX + 1] {
            let refused = store.begin(bytes).expect_err("a wrong length");
            assert!(matches!(refused, HubBundleError::Size(_)), "{refused}");
        }
    }
}
