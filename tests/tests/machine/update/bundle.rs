//! Keys of an owner, and bundles that they sign.

use std::path::{Path, PathBuf};

use alknet_update::{
    BundleWriter, KeyThreshold, MetadataSigner, ReleaseInfo, ReleasePlan, RootPlan, SeedSigner,
    UnixSeconds, UpdateTarget, sign_release, sign_root, write_bundle,
};
use serde_json::json;

/// After every test, and before it.
const LATER: UnixSeconds = UnixSeconds(4_000_000_000);
const EARLIER: UnixSeconds = UnixSeconds(1_000_000_000);

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
        let release: ReleaseInfo = serde_json::from_value(json!({
            "version": draft.version, "arch": draft.arch, "board": draft.board, "form": draft.form,
            "floor": draft.floor, "kernel": "6.12.0", "changes": "for a test",
        }))
        .expect("a release");
        let target = UpdateTarget::describe("alknet.efi", Some(release), &mut &*program);
        let target = target.expect("a target");
        let plan = ReleasePlan {
            version: draft.number,
            expires: LATER,
            timestamp_expires: if draft.is_expired { EARLIER } else { LATER },
            targets: vec![target.clone()],
        };
        let root = self.root();
        let signed = sign_release(&root, &plan, &self.all()).expect("all keys are here");
        let mut bundle = Vec::new();
        let written = write_bundle(&mut bundle, &[root], &signed, &[target], |_| Ok(program));
        written.expect("it is memory");
        write(folder, &format!("{}.tar", draft.number), &bundle)
    }
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
    pub(crate) is_expired: bool,
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
            is_expired: false,
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
