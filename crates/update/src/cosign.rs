//! Signatures of several people: documents that fewer keys have signed than have to, and the signatures that they lack.
//!
//! The documents of such a release state no length and no hash of each other, because these cover the signatures, which
//! others still add. Sections 4.4 and 4.6 of the TUF specification leave both out where a version names one document:
//! each document is signed by the keys of its role, and no person signs two releases of one version. The hashes of the
//! programs are in the signed part of the targets, as in every release.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;

use data_encoding::HEXLOWER;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::bundle::{BundleReader, TIMESTAMP, replace_documents};
use crate::document::{MetaEntry, RoleKeys, RootBody, SignedDocument, TufRole};
use crate::error::{KeysOrigin, UnixSeconds, UpdateError};
use crate::keys::{KeyThreshold, MetadataSigner, TufPublicKey};
use crate::refresh::{MetadataRequest, MetadataSource, VerifiedTargets, check_version, entry_for};
use crate::sign::{
    ReleasePlan, RootPlan, SignedRelease, SigningError, check_next, release_documents, root_body,
    signed,
};
use crate::target::UpdateTarget;
use crate::trust::verified_root;

/// The name of a root document in errors.
const ROOT: &str = "root.json";

/// The roles of a release, in the order of [`SignedRelease::documents`].
const RELEASE_ROLES: [TufRole; 3] = [TufRole::Timestamp, TufRole::Snapshot, TufRole::Targets];

/// The signatures that a document lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingSignatures {
    /// The role of the document.
    pub role: TufRole,
    /// Where the keys are named.
    pub by: KeysOrigin,
    /// Keys that have signed.
    pub valid: usize,
    /// Keys that have to sign.
    pub threshold: usize,
    /// Keys that may still sign.
    pub keys: BTreeSet<TufPublicKey>,
}

impl fmt::Display for MissingSignatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            role,
            by,
            valid,
            threshold,
            ..
        } = self;
        write!(
            f,
            "{role}: {valid} of {threshold} signatures by keys in {by}"
        )
    }
}

/// A root document to which keys have added their signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CosignedRoot {
    /// The document.
    pub document: Vec<u8>,
    /// Its version.
    pub version: u64,
    /// When clients stop to trust it.
    pub expires: UnixSeconds,
    /// The keys that it names.
    pub roles: BTreeMap<TufRole, KeyThreshold>,
    /// What it still lacks.
    pub missing: Vec<MissingSignatures>,
}

/// A bundle to whose documents keys have added their signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CosignedBundle {
    /// The bundle.
    pub bundle: Vec<u8>,
    /// The other bundles of the release, with the same documents, in the order in which they were given.
    pub others: Vec<Vec<u8>>,
    /// The version of the targets.
    pub number: u64,
    /// When the targets expire.
    pub expires: UnixSeconds,
    /// When the timestamp expires.
    pub timestamp_expires: UnixSeconds,
    /// The files of the release. Each is in one of the bundles, with the described bytes.
    pub targets: Vec<UpdateTarget>,
    /// What the documents still lack.
    pub missing: Vec<MissingSignatures>,
}

/// A document, and the keys that sign it.
struct OpenDocument {
    name: String,
    role: TufRole,
    document: SignedDocument,
    by: Vec<(RoleKeys, KeysOrigin)>,
    /// The document that states the bytes of this one.
    fixed_by: Option<String>,
    is_changed: bool,
}

impl OpenDocument {
    /// Reads a document of a release.
    fn read(root: &RootBody, role: TufRole, name: &str, bytes: &[u8]) -> Result<Self, UpdateError> {
        Ok(Self {
            name: name.to_owned(),
            role,
            document: SignedDocument::parse(name, role, bytes)?,
            by: vec![(root.role(role).clone(), KeysOrigin::Root(root.version))],
            fixed_by: None,
            is_changed: false,
        })
    }

    fn missing(&self) -> Vec<MissingSignatures> {
        let lacks = |(keys, origin): &(RoleKeys, KeysOrigin)| {
            let signed = self.document.signed_by(keys);
            let named = keys.keys.values().flatten();
            let others = named.filter(|key| !signed.contains(*key)).copied();
            (signed.len() < keys.threshold).then(|| MissingSignatures {
                role: self.role,
                by: origin.clone(),
                valid: signed.len(),
                threshold: keys.threshold,
                keys: others.collect(),
            })
        };
        self.by.iter().filter_map(lacks).collect()
    }

    /// The IDs of a key, of which each root may have another one.
    fn ids(&self, key: TufPublicKey) -> Vec<String> {
        let ids = self.by.iter().filter_map(|(keys, _)| keys.id_of(key));
        ids.map(str::to_owned).collect()
    }

    /// Adds a signature if the document lacks one, and this key is named for it and has not signed.
    fn sign(&mut self, signer: &dyn MetadataSigner) -> Result<(), SigningError> {
        let key = signer.public_key();
        let by = self.by.iter();
        let has_signed = by
            .map(|(keys, _)| self.document.signed_by(keys))
            .any(|signed| signed.contains(&key));
        let ids = self.ids(key);
        if ids.is_empty() || has_signed || self.missing().is_empty() {
            return Ok(());
        }
        let signature = signer.sign(self.document.payload());
        let signature = signature.map_err(|why| SigningError::Key { key, why })?;
        for id in ids {
            self.document.put_signature(&id, &signature);
        }
        self.is_changed = true;
        Ok(())
    }

    fn file(&self) -> Result<Vec<u8>, UpdateError> {
        let bytes = self.document.to_bytes();
        // A client refuses a document that its signatures made too long.
        SignedDocument::parse(&self.name, self.role, &bytes)?;
        Ok(bytes)
    }
}

fn all_missing(documents: &[OpenDocument]) -> Vec<MissingSignatures> {
    documents.iter().flat_map(OpenDocument::missing).collect()
}

/// Adds the signatures of these keys, and returns what is missing then.
fn add_signatures(
    documents: &mut [OpenDocument],
    signers: &[&dyn MetadataSigner],
) -> Result<Vec<MissingSignatures>, SigningError> {
    if all_missing(documents).is_empty() {
        return Err(SigningError::NothingMissing);
    }
    for signer in signers {
        let key = signer.public_key();
        if documents.iter().all(|it| it.ids(key).is_empty()) {
            return Err(SigningError::Unnamed(key));
        }
        for document in documents.iter_mut() {
            document.sign(*signer)?;
        }
    }
    if !documents.iter().any(|it| it.is_changed) {
        return Err(SigningError::NothingToAdd);
    }
    Ok(all_missing(documents))
}

/// Makes a root document that others complete by [`cosign_root`].
///
/// # Errors
/// As of [`cosign_root`].
pub fn begin_root(
    plan: &RootPlan,
    previous: Option<&[u8]>,
    signers: &[&dyn MetadataSigner],
) -> Result<CosignedRoot, SigningError> {
    cosign_root(&signed(plan.body()?, &[])?, previous, signers)
}

/// Adds signatures to a root document. `previous` is the one that it replaces.
///
/// # Errors
/// The document cannot be read, lacks no signature or has no `previous`, or a key is not named or has signed already.
pub fn cosign_root(
    document: &[u8],
    previous: Option<&[u8]>,
    signers: &[&dyn MetadataSigner],
) -> Result<CosignedRoot, SigningError> {
    let role = TufRole::Root;
    let document = SignedDocument::parse(ROOT, role, document)?;
    let body = document.root()?;
    let mut by = vec![(body.role(role).clone(), KeysOrigin::Root(body.version))];
    match previous {
        // Section 5.3.4: a client goes on to this root only if enough keys of the root before have signed it.
        Some(previous) => {
            let before = root_body(previous)?;
            check_next(&body, &before)?;
            by.push((before.role(role).clone(), KeysOrigin::Root(before.version)));
        }
        None if body.version > 1 => return Err(SigningError::Previous(body.version)),
        None => {}
    }
    let mut open = OpenDocument {
        name: ROOT.to_owned(),
        role,
        document,
        by,
        fixed_by: None,
        is_changed: false,
    };
    let missing = add_signatures(std::slice::from_mut(&mut open), signers)?;
    Ok(CosignedRoot {
        document: open.file()?,
        version: body.version,
        expires: UnixSeconds(body.expires_s),
        roles: key_thresholds(&body)?,
        missing,
    })
}

/// The keys of each role, for a person who signs the root.
fn key_thresholds(body: &RootBody) -> Result<BTreeMap<TufRole, KeyThreshold>, UpdateError> {
    let of_role = |(role, keys): (&TufRole, &RoleKeys)| {
        let named = keys.keys.values().flatten().copied();
        let keys = KeyThreshold::new(named, keys.threshold);
        let keys = keys.map_err(|why| UpdateError::malformed(ROOT, why))?;
        Ok((*role, keys))
    };
    body.roles.iter().map(of_role).collect()
}

/// Makes the documents of a release that others complete by [`cosign_bundle`], and says what is missing.
///
/// # Errors
/// The root is no complete one, or a key is not named in it or cannot sign.
pub fn begin_release(
    root: &[u8],
    plan: &ReleasePlan,
    signers: &[&dyn MetadataSigner],
) -> Result<(SignedRelease, Vec<MissingSignatures>), SigningError> {
    let root = verified_root(ROOT, root)?;
    let entry = |version: u64, _: &[u8]| json!({ "version": version });
    let release = release_documents(plan, entry, |_, body| signed(body, &[]))?;
    let documents = release.documents.iter().zip(RELEASE_ROLES);
    let documents = documents
        .map(|((name, bytes), role)| OpenDocument::read(&root, role, name, bytes))
        .collect::<Result<Vec<_>, UpdateError>>();
    let mut documents = documents?;
    let missing = add_signatures(&mut documents, signers)?;
    let files = documents.iter().map(|it| Ok((it.name.clone(), it.file()?)));
    let documents = files.collect::<Result<Vec<_>, UpdateError>>()?;
    Ok((SignedRelease { documents }, missing))
}

/// Adds signatures to the documents of a bundle for which its newest root names the keys.
///
/// `others` are further bundles of the release, which have the same documents and other files, such as deltas. They get
/// the new documents, too. Together the bundles have every file that the documents describe: a signature is for all of
/// them, so a bundle with the program alone takes none if the documents describe a delta as well, nor does the one with
/// the delta alone. A delta is compared with its description only; nothing here applies it.
///
/// `own_root` is the newest root in the signer's own files. The bundle must have the same one: it names the keys, and the
/// person who made the bundle chose it. The signer decides by the returned description whether to hand the bundle on,
/// because no client has verified the documents.
///
/// # Errors
/// The bundle cannot be read, has another newest root, has other files than its documents describe, or lacks no
/// signature; a described file is in none of the bundles; another bundle has other documents; the documents state hashes
/// of each other, name others or have several versions; or a key is not named or has signed already.
pub fn cosign_bundle(
    bundle: &[u8],
    others: &[&[u8]],
    own_root: &[u8],
    signers: &[&dyn MetadataSigner],
) -> Result<CosignedBundle, SigningError> {
    let mut reader = BundleReader::open(bundle)?;
    check_root(&mut reader, own_root)?;
    let root = verified_root(ROOT, own_root)?;
    let mut documents = read_release(&mut reader, &root)?;
    let [timestamp, _, targets] = &documents;
    let timestamp_expires = UnixSeconds(timestamp.document.expires_s()?);
    let to_sign = VerifiedTargets::described(&targets.document, root.consistent)?;
    let mut present = check_targets(&mut reader, &to_sign)?;
    for (at, other) in others.iter().enumerate() {
        present.extend(check_other(&reader, other, &to_sign, at)?);
    }
    check_present(&to_sign, &present)?;
    let missing = add_signatures(&mut documents, signers)?;
    let mut changed = BTreeMap::new();
    for document in documents.iter().filter(|it| it.is_changed) {
        let file = document.name.clone();
        if let Some(above) = document.fixed_by.clone() {
            return Err(SigningError::Fixed { file, above });
        }
        changed.insert(file, document.file()?);
    }
    let with_changed = |bundle: &[u8]| {
        let mut output = Vec::new();
        replace_documents(bundle, changed.clone(), &mut output)?;
        Ok::<_, UpdateError>(output)
    };
    let others = others.iter().map(|other| with_changed(other));
    Ok(CosignedBundle {
        bundle: with_changed(bundle)?,
        others: others.collect::<Result<_, _>>()?,
        number: to_sign.version(),
        expires: to_sign.expires(),
        timestamp_expires,
        targets: to_sign.iter().cloned().collect(),
        missing,
    })
}

/// Fails unless the root with the highest version in a bundle is the signer's own.
fn check_root(reader: &mut BundleReader<&[u8]>, own: &[u8]) -> Result<(), SigningError> {
    let names = reader.metadata_names();
    let versions = names.filter_map(|name| name.strip_suffix(".root.json")?.parse::<u64>().ok());
    let newest = versions.max();
    let file = newest.map_or_else(|| ROOT.to_owned(), |it| format!("{it}.root.json"));
    let found = required(reader, TufRole::Root, &file)?;
    if found == own {
        return Ok(());
    }
    let hash = |bytes: &[u8]| HEXLOWER.encode(&Sha256::digest(bytes));
    Err(SigningError::OtherRoot {
        file,
        found: hash(&found),
        own: hash(own),
    })
}

/// A document without which a bundle is of no use.
fn required(
    reader: &mut BundleReader<&[u8]>,
    role: TufRole,
    name: &str,
) -> Result<Vec<u8>, UpdateError> {
    let request = MetadataRequest {
        name: name.to_owned(),
        bytes_max: role.bytes_max(),
        is_optional: false,
    };
    let document = reader.metadata(&request)?;
    document.ok_or_else(|| UpdateError::Missing {
        file: name.to_owned(),
    })
}

/// The documents of a bundle in the order of [`RELEASE_ROLES`], which belong together.
///
/// They are as [`release_documents`] makes them. A client takes others, too: a timestamp of a much higher version, after
/// which it refuses each release that follows.
fn read_release(
    reader: &mut BundleReader<&[u8]>,
    root: &RootBody,
) -> Result<[OpenDocument; 3], SigningError> {
    let bytes = required(reader, TufRole::Timestamp, TIMESTAMP)?;
    let timestamp = OpenDocument::read(root, TufRole::Timestamp, TIMESTAMP, &bytes)?;
    let mut below = |above: &OpenDocument, role: TufRole| {
        let entry = entry_for(&above.document, &above.name, role)?;
        check_entry(above, role, &entry)?;
        let name = match root.consistent {
            true => format!("{}.{role}.json", entry.version),
            false => format!("{role}.json"),
        };
        let bytes = required(reader, role, &name)?;
        let mut read = OpenDocument::read(root, role, &name, &bytes)?;
        check_version(&read.document, &name, &above.name, &entry)?;
        read.fixed_by = states_bytes(&entry).then(|| above.name.clone());
        Ok::<_, SigningError>(read)
    };
    let snapshot = below(&timestamp, TufRole::Snapshot)?;
    let targets = below(&snapshot, TufRole::Targets)?;
    Ok([timestamp, snapshot, targets])
}

/// Fails unless a document names only the one below it, by its own version.
fn check_entry(above: &OpenDocument, role: TufRole, entry: &MetaEntry) -> Result<(), SigningError> {
    let file = above.name.clone();
    if above.document.meta()?.len() != 1 {
        return Err(SigningError::Entries { file, role });
    }
    let version = above.document.version()?;
    if version != entry.version {
        return Err(SigningError::Versions {
            file,
            version,
            role,
            below: entry.version,
        });
    }
    Ok(())
}

fn states_bytes(entry: &MetaEntry) -> bool {
    entry.bytes.is_some() || entry.sha256.is_some()
}

/// Compares the files of a bundle with their descriptions, and returns their names. A person may have tried the program
/// in the bundle, and must not sign the description of another one.
fn check_targets(
    reader: &mut BundleReader<&[u8]>,
    to_sign: &VerifiedTargets,
) -> Result<BTreeSet<String>, UpdateError> {
    let mut present = BTreeSet::new();
    while let Some(target) = reader.next_target(to_sign)? {
        present.insert(target.name.clone());
        reader.copy_target(to_sign, &mut io::sink())?;
    }
    Ok(present)
}

/// Compares another bundle of the release with the first one and with the descriptions, and returns the names of its
/// files.
fn check_other(
    first: &BundleReader<&[u8]>,
    other: &[u8],
    to_sign: &VerifiedTargets,
    at: usize,
) -> Result<BTreeSet<String>, SigningError> {
    let other_bundle = |why| SigningError::OtherBundle { at, why };
    let mut reader = BundleReader::open(other).map_err(other_bundle)?;
    if reader.documents() != first.documents() {
        return Err(SigningError::OtherDocuments { at });
    }
    check_targets(&mut reader, to_sign).map_err(other_bundle)
}

/// Fails unless each described file is in one of the bundles: a person must not sign a description that nothing was
/// compared with. That holds for deltas, too: PID 1 decodes one before it has anything to compare with the signed program.
fn check_present(
    to_sign: &VerifiedTargets,
    present: &BTreeSet<String>,
) -> Result<(), SigningError> {
    let names = to_sign.iter().map(|target| &target.name);
    let unseen: Vec<_> = names
        .filter(|name| !present.contains(*name))
        .cloned()
        .collect();
    match unseen.is_empty() {
        true => Ok(()),
        false => Err(SigningError::Unseen(unseen)),
    }
}
