//! What a machine trusts, and what it has seen: one small file.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::document::{RoleKeys, RootBody, SignedDocument, TufRole};
use crate::error::{KeysOrigin, UnixSeconds, UpdateError};
use crate::keys::KeyThreshold;
use crate::limits::TRUST_BYTES_MAX;
use crate::refresh::{UpdateClock, UpdateRefresh};
use crate::version::{ReleaseVersion, raised_floor};

/// The format of the file. A change of its meaning needs a new number.
const FORMAT: u32 = 1;

/// Permission bits of the file: the node may not write it, and nothing in it is secret.
const MODE: u32 = 0o644;

/// The name by which messages mention the root that came with the program.
const BUILT_IN: &str = "the built-in root.json";

/// Where trust begins: the release root in the image, or the owner's keys.
///
/// Owner's keys replace the release root: no signature of the release keys counts any more.
#[derive(Clone, Debug)]
pub struct TrustAnchor {
    kind: AnchorKind,
    fingerprint: String,
}

#[derive(Clone, Debug)]
enum AnchorKind {
    Keys(KeyThreshold),
    Root { text: String, body: RootBody },
}

impl TrustAnchor {
    /// The root document that came with the program (section 5.2).
    ///
    /// # Errors
    /// The document is no root document, or its own keys did not sign it.
    pub fn root(document: &[u8]) -> Result<Self, UpdateError> {
        let body = verified_root(BUILT_IN, document)?;
        let text = std::str::from_utf8(document);
        let text = text.map_err(|error| UpdateError::malformed(BUILT_IN, error))?;
        Ok(Self {
            kind: AnchorKind::Root {
                text: text.to_owned(),
                body,
            },
            fingerprint: format!("root:{}", HEXLOWER.encode(&Sha256::digest(document))),
        })
    }

    /// The keys of the owner. A bundle has to bring a root document that enough of them have signed.
    #[must_use]
    pub fn keys(keys: KeyThreshold) -> Self {
        Self {
            fingerprint: format!("keys:{}", keys.fingerprint()),
            kind: AnchorKind::Keys(keys),
        }
    }
}

/// Reads a root document that its own keys signed.
pub(crate) fn verified_root(file: &str, document: &[u8]) -> Result<RootBody, UpdateError> {
    let signed = SignedDocument::parse(file, TufRole::Root, document)?;
    let body = signed.root()?;
    let origin = KeysOrigin::Root(body.version);
    signed.verify(body.role(TufRole::Root), origin)?;
    Ok(body)
}

/// The newest timestamp that was verified.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SeenTimestamp {
    pub(crate) version: u64,
    /// The SHA-256 of what was signed, in hex.
    pub(crate) sha256: String,
    /// The version of the snapshot that it names.
    pub(crate) snapshot: u64,
}

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct TrustFile {
    format: u32,
    anchor: String,
    root: Option<String>,
    timestamp: Option<SeenTimestamp>,
    /// The versions that the newest verified snapshot names.
    snapshot: BTreeMap<String, u64>,
    /// The latest time at which a refresh succeeded, in seconds since 1970.
    latest_s: i64,
    floor: Option<ReleaseVersion>,
}

/// How much later the latest time has to be than the saved one before it is saved for its own sake, in seconds.
const LATEST_STEP_S: i64 = 3600;

impl TrustFile {
    fn load(path: &Path) -> Result<Option<Self>, UpdateError> {
        let Some(bytes) = read_bounded(path)? else {
            return Ok(None);
        };
        // The number comes first: `deny_unknown_fields` would report the members of a newer format as damage.
        let format = serde_json::from_slice::<TrustFormat>(&bytes);
        let format = format.map_err(|error| damaged(path, error))?.format;
        if format != FORMAT {
            return Err(damaged(
                path,
                format_args!("its format is {format}, and this version reads format {FORMAT}"),
            ));
        }
        let file = serde_json::from_slice(&bytes);
        file.map(Some).map_err(|error| damaged(path, error))
    }
}

fn damaged(path: &Path, why: impl std::fmt::Display) -> UpdateError {
    UpdateError::Trust {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

/// The part of the file that every format has.
#[derive(Deserialize)]
struct TrustFormat {
    format: u32,
}

/// What a machine trusts, and what it has seen of the metadata, so that an older one is noticed.
///
/// Save it after each refresh that [changed](Self::is_to_save) it, failed ones too: a verified new root counts even if the
/// timestamp beside it has expired.
#[derive(Clone, Debug)]
pub struct UpdateTrust {
    file: TrustFile,
    pub(crate) root: Option<RootBody>,
    /// Set while no root is trusted.
    pub(crate) owner: Option<RoleKeys>,
}

impl UpdateTrust {
    /// The trust of a machine that has seen nothing.
    #[must_use]
    pub fn new(anchor: TrustAnchor) -> Self {
        let (root, body, owner) = match anchor.kind {
            AnchorKind::Keys(keys) => (None, None, Some(RoleKeys::from_owner(&keys))),
            AnchorKind::Root { text, body } => (Some(text), Some(body), None),
        };
        let file = TrustFile {
            format: FORMAT,
            anchor: anchor.fingerprint,
            root,
            timestamp: None,
            snapshot: BTreeMap::new(),
            latest_s: 0,
            floor: None,
        };
        Self {
            file,
            root: body,
            owner,
        }
    }

    /// Reads the file of this machine; a missing one is that of a machine that has seen nothing.
    ///
    /// Where the anchor is another than that of the file, the anchor counts: with the owner's keys, or without them
    /// any more, only the floor and the latest time remain. Of two release roots the newer one counts.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or has a newer format.
    pub fn load(path: &Path, anchor: TrustAnchor) -> Result<Self, UpdateError> {
        let Some(file) = TrustFile::load(path)? else {
            return Ok(Self::new(anchor));
        };
        // The root is verified again, so that a damaged file is noticed here and not by the refusal of a release.
        let root = file.root.as_deref().map(|text| {
            let root = verified_root("its root", text.as_bytes());
            root.map_err(|error| damaged(path, error))
        });
        let root = root.transpose()?;
        Ok(Self::merged(file, root, anchor))
    }

    fn merged(file: TrustFile, root: Option<RootBody>, anchor: TrustAnchor) -> Self {
        let fresh = Self::new(anchor);
        if file.anchor == fresh.file.anchor {
            return Self {
                root: root.or(fresh.root),
                owner: fresh.owner,
                file,
            };
        }
        let mut merged = fresh;
        // Other keys must not open a way back to expired documents, or to a version below the floor.
        merged.file.latest_s = file.latest_s;
        merged.file.floor = file.floor;
        // The image brought another release root: what was seen still counts unless its keys were replaced.
        let is_release = |anchor: &str| anchor.starts_with("root:");
        if let (Some(seen), Some(built_in)) = (root, &merged.root)
            && is_release(&file.anchor)
        {
            // The machine has seen newer roots than the image has: the older one may name keys that were stolen since.
            if seen.version > built_in.version {
                merged.file.root = file.root;
                merged.file.timestamp = file.timestamp;
                merged.file.snapshot = file.snapshot;
                merged.root = Some(seen);
            } else if !replaces_online_keys(&seen, built_in) {
                merged.file.timestamp = file.timestamp;
                merged.file.snapshot = file.snapshot;
            }
        }
        merged
    }

    /// Writes the file, so that a power cut leaves the one before or this one.
    ///
    /// # Errors
    /// The errors of the disk.
    pub fn save(&self, path: &Path) -> Result<(), UpdateError> {
        let name = path.display().to_string();
        let bytes = serde_json::to_vec(&self.file);
        let bytes = bytes.map_err(|error| UpdateError::malformed(&name, error))?;
        let saved = alknet_durable::replace(path, &bytes, MODE);
        saved.map_err(|error| UpdateError::source(&name, error))
    }

    /// Whether a refresh that began with `saved` has led to something to save. Each refresh moves the latest time, and
    /// callers may refresh at will: the time alone is saved once an hour.
    #[must_use]
    pub fn is_to_save(&self, saved: &Self) -> bool {
        let step = self.file.latest_s.saturating_sub(saved.file.latest_s);
        let but_time = TrustFile {
            latest_s: saved.file.latest_s,
            ..self.file.clone()
        };
        step >= LATEST_STEP_S || but_time != saved.file
    }

    /// Takes back which documents a refresh that began with `before` has seen. Its roots and its time stay. The documents of
    /// another source than the one that a machine follows must not raise the versions that it demands of that one.
    pub fn restore_seen(&mut self, before: &Self) {
        let roots = before.root.as_ref().zip(self.root.as_ref());
        // What other keys have signed does not count any more.
        let is_void = roots.is_some_and(|(old, new)| replaces_online_keys(old, new));
        self.file.timestamp = before.file.timestamp.clone().filter(|_| !is_void);
        self.file.snapshot = match is_void {
            true => BTreeMap::new(),
            false => before.file.snapshot.clone(),
        };
    }

    /// Begins to verify metadata. [`UpdateRefresh`] says what it needs.
    #[must_use]
    pub fn refresh(self, clock: UpdateClock) -> UpdateRefresh {
        UpdateRefresh::new(self, clock)
    }

    /// The oldest version that this machine may run.
    #[must_use]
    pub fn floor(&self) -> Option<&ReleaseVersion> {
        self.file.floor.as_ref()
    }

    /// The oldest version that the machine with this file may run, whatever keys it trusts now. A missing file is that of
    /// a machine that has seen nothing.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or has a newer format.
    pub fn read_floor(path: &Path) -> Result<Option<ReleaseVersion>, UpdateError> {
        Ok(TrustFile::load(path)?.and_then(|file| file.floor))
    }

    /// Raises the floor to that of a release, once the machine has confirmed the release. It never goes down.
    pub fn raise_floor(&mut self, release_floor: Option<&ReleaseVersion>) {
        self.file.floor = raised_floor(self.file.floor.take(), release_floor);
    }

    /// The latest time at which metadata was valid. The true time is not earlier.
    #[must_use]
    pub fn latest(&self) -> UnixSeconds {
        UnixSeconds(self.file.latest_s)
    }

    pub(crate) fn note_time(&mut self, now_s: i64) {
        self.file.latest_s = self.file.latest_s.max(now_s);
    }

    /// Trusts a new root. The document is UTF-8, because it was read as JSON.
    pub(crate) fn adopt_root(&mut self, document: &[u8], body: RootBody) {
        // Section 5.3.11: an attacker who had the replaced keys may have signed very high versions, which would
        // forbid the true documents for ever.
        if self
            .root
            .as_ref()
            .is_some_and(|old| replaces_online_keys(old, &body))
        {
            self.file.timestamp = None;
            self.file.snapshot.clear();
        }
        self.file.root = Some(String::from_utf8_lossy(document).into_owned());
        self.root = Some(body);
    }

    pub(crate) fn timestamp(&self) -> Option<&SeenTimestamp> {
        self.file.timestamp.as_ref()
    }

    pub(crate) fn see_timestamp(&mut self, seen: SeenTimestamp) {
        self.file.timestamp = Some(seen);
    }

    pub(crate) fn snapshot(&self) -> &BTreeMap<String, u64> {
        &self.file.snapshot
    }

    pub(crate) fn see_snapshot(&mut self, versions: BTreeMap<String, u64>) {
        self.file.snapshot = versions;
    }
}

/// Whether a new root names other keys for the timestamp or the snapshot.
fn replaces_online_keys(old: &RootBody, new: &RootBody) -> bool {
    let roles = [TufRole::Timestamp, TufRole::Snapshot];
    roles.iter().any(|role| old.role(*role) != new.role(*role))
}

/// The bytes of a file of limited length.
fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>, UpdateError> {
    let name = path.display().to_string();
    let bytes = match fs::metadata(path) {
        Ok(about) if about.len() > TRUST_BYTES_MAX => {
            return Err(UpdateError::TooLarge {
                file: name,
                max: TRUST_BYTES_MAX,
            });
        }
        Ok(_) => fs::read(path),
        Err(error) => Err(error),
    };
    match bytes {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(UpdateError::source(&name, error)),
    }
}
