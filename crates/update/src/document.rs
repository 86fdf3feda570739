//! The documents of TUF: read from JSON, checked for themselves, and verified by keys.
//!
//! Sections are those of the TUF specification 1.0.34.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{KeysOrigin, UpdateError};
use crate::json::{StrictJson, canonical};
use crate::keys::{KeyThreshold, TufPublicKey, key_id};
use crate::limits::{
    KEYS_MAX, ROOT_BYTES_MAX, SNAPSHOT_BYTES_MAX, SNAPSHOT_FILES_MAX, TARGETS_BYTES_MAX,
    TARGETS_MAX, TIMESTAMP_BYTES_MAX,
};
use crate::target::UpdateTarget;

/// The major version of the specification that this client follows (section 4.3, `spec_version`).
const SPECIFICATION_MAJOR: &str = "1";

/// The version that documents of this program name.
pub(crate) const SPECIFICATION_VERSION: &str = "1.0.31";

/// The length of `2030-01-01T00:00:00Z`, the only form of a time (section 4.2.3).
const TIME_CHARS: usize = 20;

/// A top-level role (section 2.1). This client follows no delegation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TufRole {
    /// Names the keys of all roles.
    Root,
    /// Names the versions of all documents of targets.
    Snapshot,
    /// Names the files of a release with their hashes.
    Targets,
    /// Names the newest snapshot; the short time for which it is valid bounds how long an attacker can hide it.
    Timestamp,
}

impl TufRole {
    /// All roles, in the order of their names.
    pub const ALL: [Self; 4] = [Self::Root, Self::Snapshot, Self::Targets, Self::Timestamp];

    /// The name in documents and file names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Snapshot => "snapshot",
            Self::Targets => "targets",
            Self::Timestamp => "timestamp",
        }
    }

    /// Bytes of a document of this role that a client reads.
    #[must_use]
    pub const fn bytes_max(self) -> u64 {
        match self {
            Self::Root => ROOT_BYTES_MAX,
            Self::Snapshot => SNAPSHOT_BYTES_MAX,
            Self::Targets => TARGETS_BYTES_MAX,
            Self::Timestamp => TIMESTAMP_BYTES_MAX,
        }
    }
}

impl fmt::Display for TufRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The keys of a role in a root document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RoleKeys {
    /// By their IDs. A key of another algorithm is `None`, and none of its signatures counts.
    pub(crate) keys: BTreeMap<String, Option<TufPublicKey>>,
    pub(crate) threshold: usize,
}

impl RoleKeys {
    pub(crate) fn from_owner(owner: &KeyThreshold) -> Self {
        Self {
            keys: owner.keys().map(|key| (key.id(), Some(key))).collect(),
            threshold: owner.threshold(),
        }
    }

    /// The ID of a key of the role.
    pub(crate) fn id_of(&self, key: TufPublicKey) -> Option<&str> {
        let found = self.keys.iter().find(|(_, it)| **it == Some(key));
        found.map(|(id, _)| id.as_str())
    }
}

/// A document with its signatures, of which nothing is verified yet.
#[derive(Clone, Debug)]
pub(crate) struct SignedDocument {
    file: String,
    role: TufRole,
    body: Value,
    /// The canonical form of the body: what the keys signed (section 4.2.1).
    payload: Vec<u8>,
    signatures: Vec<(String, Vec<u8>)>,
}

impl SignedDocument {
    /// Reads a document of a role. Verifies no signature.
    pub(crate) fn parse(file: &str, role: TufRole, bytes: &[u8]) -> Result<Self, UpdateError> {
        if bytes.len() as u64 > role.bytes_max() {
            return Err(UpdateError::TooLarge {
                file: file.to_owned(),
                max: role.bytes_max(),
            });
        }
        let malformed = |why: &dyn fmt::Display| UpdateError::malformed(file, why);
        let StrictJson(mut whole) = serde_json::from_slice(bytes).map_err(|e| malformed(&e))?;
        let signatures = signatures(&whole["signatures"]).map_err(|why| malformed(&why))?;
        let body = whole.get_mut("signed").map(Value::take);
        let body = body.filter(Value::is_object);
        let body = body.ok_or_else(|| malformed(&"it has no object 'signed'"))?;
        let payload = canonical(&body);
        let found = body.get("_type").and_then(Value::as_str).unwrap_or("none");
        if found != role.name() {
            return Err(UpdateError::WrongRole {
                file: file.to_owned(),
                expected: role,
                // An attacker chose the text.
                found: found.chars().take(20).collect(),
            });
        }
        let document = Self {
            file: file.to_owned(),
            role,
            body,
            payload,
            signatures,
        };
        document.check_specification()?;
        Ok(document)
    }

    fn check_specification(&self) -> Result<(), UpdateError> {
        let version = self.body.get("spec_version").and_then(Value::as_str);
        let major = version.and_then(|version| version.split('.').next());
        // A minor version only adds members (Semantic Versioning, section 7), and this client ignores them.
        if major != Some(SPECIFICATION_MAJOR) {
            return Err(self.malformed("it follows another version of the specification than 1.0"));
        }
        Ok(())
    }

    fn malformed(&self, why: impl fmt::Display) -> UpdateError {
        UpdateError::malformed(&self.file, why)
    }

    /// The keys of a role that have signed.
    pub(crate) fn signed_by(&self, by: &RoleKeys) -> BTreeSet<TufPublicKey> {
        // Two IDs may name one key. Each key counts once, whatever its names (section 4.2.1).
        let mut signed = BTreeSet::new();
        for (id, signature) in &self.signatures {
            let key = by.keys.get(id).copied().flatten();
            let Some(key) = key.filter(|key| !signed.contains(key)) else {
                continue;
            };
            if key.verifies(&self.payload, signature) {
                signed.insert(key);
            }
        }
        signed
    }

    /// Fails unless enough keys of a role have signed (section 5.3.4, and the same for each role).
    pub(crate) fn verify(&self, by: &RoleKeys, origin: KeysOrigin) -> Result<(), UpdateError> {
        let signed = self.signed_by(by);
        if signed.len() < by.threshold {
            return Err(UpdateError::Signatures {
                file: self.file.clone(),
                role: self.role,
                by: origin,
                valid: signed.len(),
                threshold: by.threshold,
            });
        }
        Ok(())
    }

    /// The canonical form of the signed part.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Puts the signature of a key in, also in the place of an earlier one of the same key.
    pub(crate) fn put_signature(&mut self, id: &str, signature: &[u8]) {
        self.signatures.retain(|(it, _)| it != id);
        self.signatures.push((id.to_owned(), signature.to_vec()));
        // In the order of their IDs, so that the order in which people sign does not matter.
        self.signatures.sort();
    }

    /// The document as a file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let signatures = self.signatures.iter();
        let signatures: Vec<_> = signatures
            .map(|(id, signature)| json!({ "keyid": id, "sig": HEXLOWER.encode(signature) }))
            .collect();
        // Not the canonical form, which leaves line breaks in texts as they are and is no JSON then.
        let document = json!({ "signatures": signatures, "signed": self.body });
        document.to_string().into_bytes()
    }

    pub(crate) fn member(&self, name: &str) -> Result<&Value, UpdateError> {
        let value = self.body.get(name);
        value.ok_or_else(|| self.malformed(format_args!("it has no '{name}'")))
    }

    fn object(&self, name: &str) -> Result<&Map<String, Value>, UpdateError> {
        let object = self.member(name)?.as_object();
        object.ok_or_else(|| self.malformed(format_args!("'{name}' is no object")))
    }

    /// The version of the document: 1 and up (section 4.3).
    pub(crate) fn version(&self) -> Result<u64, UpdateError> {
        let version = self.member("version")?.as_u64().filter(|it| *it > 0);
        version.ok_or_else(|| self.malformed("its version is no number from 1"))
    }

    /// The second since 1970 from which the document is not valid any more.
    pub(crate) fn expires_s(&self) -> Result<i64, UpdateError> {
        let text = self.member("expires")?.as_str().unwrap_or_default();
        // The parser alone would also take offsets and fractions of a second, which section 4.2.3 does not have.
        let is_plain = text.len() == TIME_CHARS && text.ends_with('Z');
        let time = text.parse::<Timestamp>().ok().filter(|_| is_plain);
        let time = time.map(Timestamp::as_second);
        time.ok_or_else(|| self.malformed("its time of expiry is not like 2030-01-01T00:00:00Z"))
    }

    /// Reads the body of a root document (section 4.3).
    pub(crate) fn root(&self) -> Result<RootBody, UpdateError> {
        let listed = self.object("keys")?;
        if listed.len() > KEYS_MAX {
            return Err(self.malformed(format_args!("it has more than {KEYS_MAX} keys")));
        }
        let mut keys = BTreeMap::new();
        for (id, key) in listed {
            // An ID that is not the key's hash could name another key in another document.
            if *id != key_id(key) {
                return Err(self.malformed("a key ID is not the SHA-256 of its key"));
            }
            let key = TufPublicKey::from_json(key).map_err(|why| self.malformed(why))?;
            keys.insert(id.clone(), key);
        }
        let listed = self.object("roles")?;
        let mut roles = BTreeMap::new();
        for role in TufRole::ALL {
            let found = listed.get(role.name());
            let found =
                found.ok_or_else(|| self.malformed(format_args!("it has no role '{role}'")))?;
            let read = role_keys(found, &keys);
            let read = read.map_err(|why| self.malformed(format_args!("role '{role}' {why}")))?;
            roles.insert(role, read);
        }
        let consistent = self.body.get("consistent_snapshot");
        Ok(RootBody {
            version: self.version()?,
            expires_s: self.expires_s()?,
            consistent: consistent.and_then(Value::as_bool).unwrap_or_default(),
            roles,
        })
    }

    /// The documents that a timestamp or a snapshot names (sections 4.6 and 4.4).
    pub(crate) fn meta(&self) -> Result<BTreeMap<String, MetaEntry>, UpdateError> {
        let meta = self.object("meta")?;
        if meta.len() > SNAPSHOT_FILES_MAX {
            let why = format_args!("it names more than {SNAPSHOT_FILES_MAX} documents");
            return Err(self.malformed(why));
        }
        let read = |(name, entry): (&String, &Value)| {
            let entry = MetaEntry::read(entry);
            let entry = entry.map_err(|why| self.malformed(format_args!("'{name}' {why}")))?;
            Ok((name.clone(), entry))
        };
        meta.iter().map(read).collect()
    }

    /// The files of a release (section 4.5). Delegations are not followed: their targets are unknown targets.
    pub(crate) fn targets(&self) -> Result<BTreeMap<String, UpdateTarget>, UpdateError> {
        let targets = self.object("targets")?;
        if targets.len() > TARGETS_MAX {
            return Err(self.malformed(format_args!("it has more than {TARGETS_MAX} targets")));
        }
        let read = |(name, target): (&String, &Value)| {
            let target = UpdateTarget::read(&self.file, name, target)?;
            Ok((name.clone(), target))
        };
        targets.iter().map(read).collect()
    }
}

/// Reads the list of signatures. A key may sign once (section 4.2.1).
fn signatures(list: &Value) -> Result<Vec<(String, Vec<u8>)>, &'static str> {
    let list = list.as_array().ok_or("it has no list 'signatures'")?;
    if list.len() > KEYS_MAX {
        return Err("it has more than 64 signatures");
    }
    let mut ids = BTreeSet::new();
    let mut signatures = Vec::new();
    for entry in list {
        let id = entry["keyid"].as_str().ok_or("a signature has no key ID")?;
        let signature = entry["sig"].as_str().and_then(|text| {
            // Signatures of other algorithms have any length.
            HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()
        });
        if !ids.insert(id) {
            return Err("it has two signatures with one key ID");
        }
        signatures.push((
            id.to_owned(),
            signature.ok_or("a signature has no hex digits")?,
        ));
    }
    Ok(signatures)
}

/// Reads one role of a root document.
fn role_keys(
    role: &Value,
    keys: &BTreeMap<String, Option<TufPublicKey>>,
) -> Result<RoleKeys, &'static str> {
    // With a threshold of 0, a document without any signature would count as verified.
    let threshold = role["threshold"].as_u64().filter(|it| *it > 0);
    let threshold = threshold.ok_or("has no threshold from 1")?;
    let ids = role["keyids"].as_array().ok_or("has no key IDs")?;
    let mut of_role = BTreeMap::new();
    for id in ids {
        let id = id.as_str().ok_or("has a key ID that is no text")?;
        let key = keys.get(id).ok_or("names a key that is not there")?;
        // Listed twice, the key of one person would look like the keys of two.
        if of_role.insert(id.to_owned(), *key).is_some() {
            return Err("names one key twice");
        }
    }
    let threshold = usize::try_from(threshold).map_err(|_| "has an impossible threshold")?;
    Ok(RoleKeys {
        keys: of_role,
        threshold,
    })
}

/// A verified or unverified root document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootBody {
    pub(crate) version: u64,
    pub(crate) expires_s: i64,
    /// Whether file names begin with a version or hash (section 6.2).
    pub(crate) consistent: bool,
    pub(crate) roles: BTreeMap<TufRole, RoleKeys>,
}

impl RootBody {
    /// The keys of a role; [`SignedDocument::root`] refuses a document without one of the roles.
    pub(crate) fn role(&self, role: TufRole) -> &RoleKeys {
        &self.roles[&role]
    }
}

/// What a timestamp says about the snapshot, or a snapshot about the targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetaEntry {
    pub(crate) version: u64,
    pub(crate) bytes: Option<u64>,
    pub(crate) sha256: Option<[u8; 32]>,
}

impl MetaEntry {
    fn read(entry: &Value) -> Result<Self, &'static str> {
        let version = entry["version"].as_u64().filter(|it| *it > 0);
        let bytes = match &entry["length"] {
            Value::Null => None,
            length => Some(length.as_u64().ok_or("has no valid length")?),
        };
        let sha256 = match &entry["hashes"] {
            Value::Null => None,
            hashes => Some(sha256(hashes)?),
        };
        Ok(Self {
            version: version.ok_or("has no version from 1")?,
            bytes,
            sha256,
        })
    }
}

/// The SHA-256 in an object of hashes, which may have others beside it.
pub(crate) fn sha256(hashes: &Value) -> Result<[u8; 32], &'static str> {
    let hex = hashes["sha256"].as_str().unwrap_or_default();
    let bytes = HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok();
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or("has no SHA-256")
}
