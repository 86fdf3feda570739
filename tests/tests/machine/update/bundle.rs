//! Keys of an owner, and bundles that they sign.

use std::path::{Path, PathBuf};

use alknet_delta::{library_version, make_delta};
use alknet_image::ProgramParts;
use alknet_update::{
    BundleWriter, DeltaInfo, KeyThreshold, MetadataSigner, ReleaseInfo, ReleasePlan, RootPlan,
    SeedSigner, UnixSeconds, UpdateTarget, sign_release, sign_root, write_bundle,
};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// After every test, and before it.
pub(super) const LATER: UnixSeconds = UnixSeconds(4_000_000_000);
const EARLIER: UnixSeconds = UnixSeconds(1_000_000_000);
/// The document of a release that a machine reads first.
const TIMESTAMP: &str = "timestamp.json";

/// The keys of an owner, of which so many have to sign.
pub(crate) struct ReleaseKeys {
    signers: Vec<SeedSigner>,
    threshold: usize,
}

impl ReleaseKeys {
    /// One key for each of these seeds.
    pub(crate) fn new(seeds: &[u8], threshold: usize) -> Self {
        let signer = |seed: &u8| SeedSigner::from_seed(&[*seed; 32]).expect("a seed");
        Self {
            signers: seeds.iter().map(signer).collect(),
            threshold,
        }
    }

    /// The one key in a file that OpenSSL made.
    pub(super) fn from_pem(text: &str) -> Self {
        let signer = SeedSigner::from_pem(text).expect("a private key");
        Self {
            signers: vec![signer],
            threshold: 1,
        }
    }

    /// One key.
    pub(crate) fn one(seed: u8) -> Self {
        Self::new(&[seed], 1)
    }

    /// What a machine's configuration says of them.
    pub(crate) fn config(&self) -> String {
        let keys = self.signers.iter();
        let keys: Vec<_> = keys
            .map(|key| format!("\"{}\"", key.public_key()))
            .collect();
        let (keys, threshold) = (keys.join(", "), self.threshold);
        format!("[update]\nkeys = [{keys}]\nthreshold = {threshold}\n")
    }

    fn root(&self) -> Vec<u8> {
        let keys = self.signers.iter().map(MetadataSigner::public_key);
        let keys =
            KeyThreshold::new(keys, self.threshold).expect("a threshold that can be reached");
        let plan = RootPlan::with_keys(1, LATER, &keys);
        sign_root(&plan, None, &self.all()).expect("all keys are here")
    }

    fn all(&self) -> Vec<&dyn MetadataSigner> {
        let signers = self.signers.iter();
        signers.map(|key| key as &dyn MetadataSigner).collect()
    }

    /// The bundle of a release, in the folder.
    pub(crate) fn bundle(&self, folder: &Path, draft: &ReleaseDraft, program: &[u8]) -> PathBuf {
        self.bundle_from(folder, draft, program, None)
    }

    /// The bundle of a release with only what differs from the program `old`, if there is one.
    pub(crate) fn bundle_from(
        &self,
        folder: &Path,
        draft: &ReleaseDraft,
        program: &[u8],
        old: Option<&[u8]>,
    ) -> PathBuf {
        let release: ReleaseInfo = serde_json::from_value(json!({
            "version": draft.version, "arch": draft.arch, "board": draft.board, "form": draft.form,
            "floor": draft.floor, "needs": draft.needs, "kernel": "6.12.0", "changes": "for a test",
        }))
        .expect("a release");
        let target = UpdateTarget::describe("alknet.efi", Some(release), &mut &*program);
        let target = target.expect("a target");
        let delta = old.map(|old| delta(old, program));
        let (file, content) = match &delta {
            Some((file, delta)) => (file, &delta[..]),
            None => (&target, program),
        };
        let deltas = delta.iter().map(|(file, _)| file);
        let plan = ReleasePlan {
            version: draft.number,
            expires: LATER,
            timestamp_expires: if draft.is_expired { EARLIER } else { LATER },
            targets: [&target].into_iter().chain(deltas).cloned().collect(),
        };
        let root = self.root();
        let mut signed = sign_release(&root, &plan, &self.all()).expect("all keys are here");
        for (name, document) in &mut signed.documents {
            if name.as_str() == TIMESTAMP {
                draft.signatures.put_into(document);
            }
        }
        let mut bundle = Vec::new();
        let files = std::slice::from_ref(file);
        let written = write_bundle(&mut bundle, &[root], &signed, files, |_| Ok(content));
        written.expect("it is memory");
        write(folder, &format!("{}.tar", draft.number), &bundle)
    }
}

/// The delta between two programs, and its description.
fn delta(old: &[u8], program: &[u8]) -> (UpdateTarget, Vec<u8>) {
    let base = HEXLOWER.encode(&Sha256::digest(old));
    let parts = |program| ProgramParts::unpack(program).expect("a program");
    let (old, new) = (parts(old), parts(program));
    let delta = make_delta(&old.as_old(), &new.as_new()).expect("two images of one library");
    let info = DeltaInfo {
        target: "alknet.efi".to_owned(),
        base,
        library: library_version(),
        blocks: Vec::new(),
    };
    let target = UpdateTarget::describe_delta("alknet.delta", info, &mut &*delta);
    (target.expect("a target"), delta)
}

/// A release, and what may be wrong about it.
#[derive(Clone, Debug)]
pub(crate) struct ReleaseDraft {
    /// The version of its documents.
    pub(crate) number: u64,
    pub(crate) version: &'static str,
    pub(crate) arch: &'static str,
    pub(crate) board: &'static str,
    pub(crate) form: &'static str,
    pub(crate) floor: Option<&'static str>,
    pub(crate) needs: &'static [&'static str],
    pub(crate) is_expired: bool,
    pub(crate) signatures: TimestampSignatures,
}

/// The signatures of the document that a machine reads first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimestampSignatures {
    /// In each of them one hex digit is another one than that of the key's signature.
    Altered,
    /// The list has none.
    Missing,
    /// Each is what its key signed.
    Valid,
}

impl TimestampSignatures {
    fn put_into(self, document: &mut Vec<u8>) {
        let mut changed: Value = serde_json::from_slice(document).expect("JSON");
        let signatures = changed["signatures"].as_array_mut().expect("a list");
        match self {
            Self::Altered => {
                for signature in signatures {
                    let hex = signature["sig"].as_str().expect("hex digits");
                    let first = if hex.starts_with('0') { "1" } else { "0" };
                    let altered = format!("{first}{}", &hex[1..]);
                    signature["sig"] = altered.into();
                }
            }
            Self::Missing => signatures.clear(),
            Self::Valid => return,
        }
        *document = changed.to_string().into_bytes();
    }
}

impl ReleaseDraft {
    /// A release for the machines of the tests.
    pub(crate) fn new(number: u64, version: &'static str) -> Self {
        Self {
            number,
            version,
            arch: "x86_64",
            board: "generic",
            form: "raw",
            floor: None,
            needs: &[],
            is_expired: false,
            signatures: TimestampSignatures::Valid,
        }
    }
}

/// An archive whose one document has so many bytes.
pub(crate) fn long_metadata(folder: &Path, bytes: usize) -> PathBuf {
    let mut bundle = Vec::new();
    let mut writer = BundleWriter::new(&mut bundle);
    let written = writer.metadata("root.json", &vec![b' '; bytes]);
    written
        .and_then(|()| writer.finish().map(drop))
        .expect("it is memory");
    write(folder, "long.tar", &bundle)
}

pub(crate) fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).expect("the folder is ours");
    path
}
