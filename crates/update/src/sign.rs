//! Makes and signs the documents of a repository, on a build machine.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::bundle::BundleWriter;
use crate::document::{RootBody, SPECIFICATION_VERSION, SignedDocument, TufRole};
use crate::error::{KeysOrigin, UnixSeconds, UpdateError};
use crate::json::canonical;
use crate::keys::{KeyThreshold, MetadataSigner, TufPublicKey};
use crate::limits::{BUNDLE_METADATA_FILES_MAX, TARGETS_MAX};
use crate::refresh::entry_for;
use crate::target::UpdateTarget;

/// Why documents were not made or signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SigningError {
    /// A root document that was made or given would be refused by clients.
    #[error("clients would refuse the document: {0}")]
    Document(#[from] UpdateError),
    /// A document names more than the one below it.
    #[error(
        "{file} names other documents than {role}.json, and a release has no others. Do not sign it: have the release \
         made again"
    )]
    Entries {
        /// The document that names them.
        file: String,
        /// The role of the only document that it may name.
        role: TufRole,
    },
    /// A time that RFC 3339 cannot write.
    #[error("{0} is no time of expiry: choose one before the year 10000")]
    Expiry(UnixSeconds),
    /// A key cannot be used now.
    #[error("the key {key} cannot sign: {why}")]
    Key {
        /// The public key.
        key: TufPublicKey,
        /// Why, in the signer's words.
        why: String,
    },
    /// A document above the signed one states its length or hash, so no signature can be added.
    #[error(
        "{above} states the length or the hash of {file}, so {file} takes no further signature. Make the release again, \
         as one that others complete"
    )]
    Fixed {
        /// The document that lacks a signature.
        file: String,
        /// The document that states its bytes.
        above: String,
    },
    /// Too few of the given keys belong to the role.
    #[error(
        "{given} of the given keys belong to the role '{role}', and {threshold} have to sign. Give more of its keys"
    )]
    Keys {
        /// The role.
        role: TufRole,
        /// Keys that were given and belong to it.
        given: usize,
        /// Keys that have to sign.
        threshold: usize,
    },
    /// Nothing lacks a signature.
    #[error("as many keys have signed as have to: nothing is missing")]
    NothingMissing,
    /// None of the given keys adds a signature.
    #[error(
        "the given keys have signed already, or the documents that they sign lack no signature. Give another key"
    )]
    NothingToAdd,
    /// A timestamp has this version or a later one already.
    #[error("the timestamp has version {seen}, and {given} is not higher. Give a higher number")]
    Number {
        /// The version for the next timestamp.
        given: u64,
        /// That of the timestamp.
        seen: u64,
    },
    /// One of the further bundles of a release cannot be read, or has other files than the documents describe.
    #[error("a further bundle cannot be signed: {why}")]
    OtherBundle {
        /// Which one of them, from 0 on.
        at: usize,
        /// What is wrong with it.
        why: UpdateError,
    },
    /// The documents of one of the further bundles of a release are not those of the first one.
    #[error(
        "the documents in it are not those of the first bundle: it is of another release, or one of the two has other \
         signatures. Give all bundles of the release as you got them"
    )]
    OtherDocuments {
        /// Which one of them, from 0 on.
        at: usize,
    },
    /// The newest root of a bundle is not the one in the signer's own files.
    #[error(
        "{file} has the SHA-256 {found}, and yours {own}. Do not sign it, unless you know that a newer root was made: then \
         give that one"
    )]
    OtherRoot {
        /// The newest root of the bundle.
        file: String,
        /// Its SHA-256, in hex.
        found: String,
        /// The SHA-256 of the signer's root, in hex.
        own: String,
    },
    /// A root that replaces another one, whose keys have to sign as well.
    #[error(
        "the root document has version {0}. Give the one before it, too, because its keys have to sign"
    )]
    Previous(u64),
    /// The timestamp is that of another release than the one to renew.
    #[error(
        "the timestamp is that of release {found}, and not of release {given}. Give the bundle of release {given}"
    )]
    Release {
        /// The release to renew.
        given: u64,
        /// The release that the timestamp names.
        found: u64,
    },
    /// More targets than a client reads.
    #[error("the release has {0} targets, and clients read {TARGETS_MAX}")]
    Targets(usize),
    /// A key that the root document does not name for anything that is to be signed.
    #[error(
        "the root document does not name the key {0} for this. Give one of the keys that it names"
    )]
    Unnamed(TufPublicKey),
    /// Files that the targets describe, and that are in none of the given bundles, by their names.
    #[error(
        "the targets describe files that are in none of the given bundles: {}. Do not sign what you cannot see: name all \
         bundles of the release in one call, or have the release made again without these files",
        .0.join(", ")
    )]
    Unseen(Vec<String>),
    /// The documents of a release have several versions.
    #[error(
        "{file} has version {version} and names version {below} of {role}.json, and the documents of a release have one \
         version. Do not sign it: have the release made again"
    )]
    Versions {
        /// The document above.
        file: String,
        /// Its version.
        version: u64,
        /// The role of the document below.
        role: TufRole,
        /// The version of that one.
        below: u64,
    },
    /// A bundle cannot be written.
    #[error("the bundle cannot be written: {0}")]
    Write(io::Error),
}

/// The keys and dates of a root document.
#[derive(Clone, Debug)]
pub struct RootPlan {
    /// 1 for the first one, and 1 more with each that replaces another.
    pub version: u64,
    /// When clients stop to trust it, unless another follows.
    pub expires: UnixSeconds,
    /// The keys of each role. `targets` signs releases, and belongs to few people; `timestamp` and `snapshot` may
    /// belong to a machine.
    pub roles: BTreeMap<TufRole, KeyThreshold>,
}

impl RootPlan {
    /// A root document in which the same keys have all roles.
    #[must_use]
    pub fn with_keys(version: u64, expires: UnixSeconds, keys: &KeyThreshold) -> Self {
        let roles = TufRole::ALL.map(|role| (role, keys.clone()));
        Self {
            version,
            expires,
            roles: roles.into(),
        }
    }

    pub(crate) fn body(&self) -> Result<Value, SigningError> {
        let mut keys = Map::new();
        let mut roles = Map::new();
        for (role, of_role) in &self.roles {
            let ids: Vec<_> = of_role.keys().map(TufPublicKey::id).collect();
            let listed = of_role.keys().map(|key| (key.id(), key.to_json()));
            keys.extend(listed);
            let role_keys = json!({ "keyids": ids, "threshold": of_role.threshold() });
            roles.insert(role.to_string(), role_keys);
        }
        let mut body = header(TufRole::Root, self.version, self.expires)?;
        // Section 6.2: with versions and hashes in the names, a release does not replace files that a client reads.
        body["consistent_snapshot"] = true.into();
        body["keys"] = keys.into();
        body["roles"] = roles.into();
        Ok(body)
    }
}

/// The members that each document has (section 4.3).
fn header(role: TufRole, version: u64, expires: UnixSeconds) -> Result<Value, SigningError> {
    let time = Timestamp::from_second(expires.0).map_err(|_| SigningError::Expiry(expires))?;
    Ok(json!({
        "_type": role.name(),
        "spec_version": SPECIFICATION_VERSION,
        "version": version,
        "expires": time.to_string(),
    }))
}

/// The document with a signature of each of these keys, in the order of their IDs.
pub(crate) fn signed(
    body: Value,
    signers: &[&dyn MetadataSigner],
) -> Result<Vec<u8>, SigningError> {
    let payload = canonical(&body);
    // By key ID, because clients refuse a document with two signatures of one key.
    let mut signatures = BTreeMap::new();
    for signer in signers {
        let key = signer.public_key();
        let signature = signer.sign(&payload);
        let signature = signature.map_err(|why| SigningError::Key { key, why })?;
        signatures.insert(key.id(), HEXLOWER.encode(&signature));
    }
    let signatures = signatures.into_iter();
    let signatures: Vec<_> = signatures
        .map(|(id, signature)| json!({ "keyid": id, "sig": signature }))
        .collect();
    let document = json!({ "signatures": signatures, "signed": body });
    // Not the canonical form, which leaves line breaks in texts as they are and is no JSON then. Members keep the
    // order in which they were put in, so one plan still has one document.
    Ok(document.to_string().into_bytes())
}

/// Makes and signs a root document.
///
/// With `previous`, clients have to go on from that one: the keys of both sign, as many as each asks for, and the
/// version is the next one.
///
/// # Errors
/// Clients would refuse the document, for example because too few keys were given, or a key cannot sign.
pub fn sign_root(
    plan: &RootPlan,
    previous: Option<&[u8]>,
    signers: &[&dyn MetadataSigner],
) -> Result<Vec<u8>, SigningError> {
    let document = signed(plan.body()?, signers)?;
    // The build machine reads the document as a client does, so that it finds what clients would refuse.
    let read = SignedDocument::parse("root.json", TufRole::Root, &document)?;
    let body = read.root()?;
    read.verify(body.role(TufRole::Root), KeysOrigin::Root(body.version))?;
    if let Some(previous) = previous {
        let before = root_body(previous)?;
        // Section 5.3.4: a client goes on to this root only if enough keys of the root before have signed it.
        read.verify(before.role(TufRole::Root), KeysOrigin::Root(before.version))?;
        check_next(&body, &before)?;
    }
    Ok(document)
}

/// Fails unless a root is the next version behind another one.
pub(crate) fn check_next(body: &RootBody, before: &RootBody) -> Result<(), UpdateError> {
    let expected = before.version.saturating_add(1);
    if body.version != expected {
        return Err(UpdateError::VersionMismatch {
            file: "root.json".to_owned(),
            named_by: "the root before it".to_owned(),
            expected,
            found: body.version,
        });
    }
    Ok(())
}

pub(crate) fn root_body(document: &[u8]) -> Result<RootBody, UpdateError> {
    SignedDocument::parse("root.json", TufRole::Root, document)?.root()
}

/// The targets and dates of a release.
#[derive(Clone, Debug)]
pub struct ReleasePlan {
    /// The version of the three documents: higher than that of any release before.
    pub version: u64,
    /// When the targets and the snapshot expire.
    pub expires: UnixSeconds,
    /// When the timestamp expires: the longest time for which an attacker can hide the next release.
    pub timestamp_expires: UnixSeconds,
    /// The files.
    pub targets: Vec<UpdateTarget>,
}

/// The documents of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRelease {
    /// By the names of their files, in the order in which a client reads them.
    pub documents: Vec<(String, Vec<u8>)>,
}

/// Makes and signs the documents of a release under the newest root document.
///
/// # Errors
/// The root cannot be read, too few of its keys were given, or a key cannot sign.
pub fn sign_release(
    root: &[u8],
    plan: &ReleasePlan,
    signers: &[&dyn MetadataSigner],
) -> Result<SignedRelease, SigningError> {
    let root = root_body(root)?;
    release_documents(plan, entry, |role: TufRole, body: Value| {
        let document = signed(body, &signers_of(&root, role, signers)?)?;
        // What a client would refuse, such as a document above its limit, is found here and not on a machine.
        let read = SignedDocument::parse(role.name(), role, &document)?;
        read.verify(root.role(role), KeysOrigin::Root(root.version))?;
        Ok(document)
    })
}

/// Makes the documents of a release. `sign` makes a document of its signed part, and `entry` says what another document
/// states about one of this version.
pub(crate) fn release_documents(
    plan: &ReleasePlan,
    entry: impl Fn(u64, &[u8]) -> Value,
    sign: impl Fn(TufRole, Value) -> Result<Vec<u8>, SigningError>,
) -> Result<SignedRelease, SigningError> {
    if plan.targets.len() > TARGETS_MAX {
        return Err(SigningError::Targets(plan.targets.len()));
    }
    let version = plan.version;
    let files = plan.targets.iter();
    let files: Map<_, _> = files.map(|it| (it.name.clone(), it.to_json())).collect();
    // The timestamp comes last, because each document may state length and hash of the one that is signed before it.
    let mut body = header(TufRole::Targets, version, plan.expires)?;
    body["targets"] = files.into();
    let targets = sign(TufRole::Targets, body)?;
    let mut body = header(TufRole::Snapshot, version, plan.expires)?;
    body["meta"] = json!({ "targets.json": entry(version, &targets) });
    let snapshot = sign(TufRole::Snapshot, body)?;
    let mut body = header(TufRole::Timestamp, version, plan.timestamp_expires)?;
    body["meta"] = json!({ "snapshot.json": entry(version, &snapshot) });
    let timestamp = sign(TufRole::Timestamp, body)?;
    Ok(SignedRelease {
        documents: vec![
            ("timestamp.json".to_owned(), timestamp),
            (format!("{version}.snapshot.json"), snapshot),
            (format!("{version}.targets.json"), targets),
        ],
    })
}

/// Makes the timestamp of a release again: it names the same snapshot, and has a higher version and another time of
/// expiry. `release` is the number of the release, so that a server cannot give an old one in the place of the newest.
/// Only keys of the role `timestamp` sign, so a machine can do this that has no other key.
///
/// # Errors
/// The keys in `root` have not signed `timestamp`, it is that of another release, its version is not lower than
/// `version`, too few of the given keys belong to the role, or a key cannot sign.
pub fn renew_timestamp(
    root: &[u8],
    timestamp: &[u8],
    release: u64,
    version: u64,
    expires: UnixSeconds,
    signers: &[&dyn MetadataSigner],
) -> Result<Vec<u8>, SigningError> {
    let root = root_body(root)?;
    let role = TufRole::Timestamp;
    let check = |document: &[u8]| {
        let read = SignedDocument::parse("timestamp.json", role, document)?;
        read.verify(root.role(role), KeysOrigin::Root(root.version))?;
        Ok::<_, UpdateError>(read)
    };
    // Without this check the server of the bundle could have any snapshot signed.
    let before = check(timestamp)?;
    let found = entry_for(&before, "timestamp.json", TufRole::Snapshot)?.version;
    if found != release {
        return Err(SigningError::Release {
            given: release,
            found,
        });
    }
    let seen = before.version()?;
    if version <= seen {
        return Err(SigningError::Number {
            given: version,
            seen,
        });
    }
    let mut body = header(role, version, expires)?;
    body["meta"] = before.member("meta")?.clone();
    let document = signed(body, &signers_of(&root, role, signers)?)?;
    check(&document)?;
    Ok(document)
}

/// What one document says about another.
fn entry(version: u64, document: &[u8]) -> Value {
    json!({
        "hashes": { "sha256": HEXLOWER.encode(&Sha256::digest(document)) },
        "length": document.len(),
        "version": version,
    })
}

/// The given keys that belong to a role.
fn signers_of<'a>(
    root: &RootBody,
    role: TufRole,
    signers: &[&'a dyn MetadataSigner],
) -> Result<Vec<&'a dyn MetadataSigner>, SigningError> {
    let keys = root.role(role);
    let belongs = |signer: &&&'a dyn MetadataSigner| {
        let key = signer.public_key();
        keys.keys.values().flatten().any(|it| *it == key)
    };
    let found: Vec<_> = signers.iter().filter(belongs).copied().collect();
    if found.len() < keys.threshold {
        return Err(SigningError::Keys {
            role,
            given: found.len(),
            threshold: keys.threshold,
        });
    }
    Ok(found)
}

/// Writes a bundle: all roots from the first to the newest, the documents of the release, and its targets in the order
/// of their names. `open` opens the file of a target.
///
/// # Errors
/// There are too many roots or none, a file cannot be read or is not the described one, or writing fails.
pub fn write_bundle<R: Read>(
    output: impl Write,
    roots: &[Vec<u8>],
    release: &SignedRelease,
    targets: &[UpdateTarget],
    mut open: impl FnMut(&UpdateTarget) -> io::Result<R>,
) -> Result<(), SigningError> {
    let newest = roots.last().ok_or_else(|| UpdateError::Missing {
        file: "root.json".to_owned(),
    })?;
    // The newest root is there once more under a name without its version, where owner's keys begin.
    if roots.len() + release.documents.len() + 1 > BUNDLE_METADATA_FILES_MAX {
        return Err(SigningError::Document(UpdateError::malformed(
            "the bundle",
            "it has more documents than clients read",
        )));
    }
    let mut writer = BundleWriter::new(output);
    let write = SigningError::Write;
    writer.metadata("root.json", newest).map_err(write)?;
    for root in roots {
        let name = format!("{}.root.json", root_body(root)?.version);
        writer.metadata(&name, root).map_err(write)?;
    }
    for (name, document) in &release.documents {
        writer.metadata(name, document).map_err(write)?;
    }
    let mut sorted: Vec<_> = targets.iter().collect();
    // In a fixed order, so that the same release gives the same bytes.
    sorted.sort_by_key(|target| &target.name);
    for target in sorted {
        let mut file = open(target).map_err(write)?;
        let name = target.file_name(true);
        // A build that still runs could change the file after its description was signed.
        let mut checked = CheckedRead {
            check: Some(target.check()),
            file: &mut file,
        };
        writer
            .target(&name, target.bytes, &mut checked)
            .map_err(write)?;
    }
    writer.finish().map_err(write)?;
    Ok(())
}

/// A file whose bytes are compared with their description while they are written.
struct CheckedRead<'a, R> {
    check: Option<crate::target::TargetCheck<'a>>,
    file: &'a mut R,
}

impl<R: Read> Read for CheckedRead<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        let changed = |error: UpdateError| io::Error::new(io::ErrorKind::InvalidData, error);
        // A read into an empty buffer gives 0 bytes in the middle of the file, too.
        if read == 0 && !buffer.is_empty() {
            let check = self.check.take();
            check
                .map_or(Ok(()), |check| check.finish())
                .map_err(changed)?;
        }
        if let Some(check) = &mut self.check {
            check.update(&buffer[..read]).map_err(changed)?;
        }
        Ok(read)
    }
}
