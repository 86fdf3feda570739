//! A publisher with keys, its releases, and the machine that reads them.

use std::collections::BTreeMap;

use alknet_update::{
    BundleReader, KeyThreshold, MetadataRequest, MetadataSigner, MetadataSource, ReleaseInfo,
    ReleasePlan, RootPlan, SeedSigner, SignedRelease, TrustAnchor, UnixSeconds, UpdateClock,
    UpdateError, UpdateMachine, UpdateTarget, UpdateTrust, VerifiedTargets, canonical,
    sign_release, sign_root, write_bundle,
};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};

/// The time at which the machines of the tests read: 2033-05-18.
pub(crate) const NOW: UnixSeconds = UnixSeconds(2_000_000_000);

/// When documents expire, unless a test says otherwise: 2096-10-02.
pub(crate) const LATE: UnixSeconds = UnixSeconds(4_000_000_000);

/// The content of the program in each release.
pub(crate) const PROGRAM: &[u8] = b"a unified kernel image";

pub(crate) fn signer(number: u8) -> SeedSigner {
    SeedSigner::from_seed(&[number; 32]).expect("any seed is a key")
}

pub(crate) fn keys(signers: &[&SeedSigner], threshold: usize) -> KeyThreshold {
    let keys = signers.iter().map(|signer| signer.public_key());
    KeyThreshold::new(keys, threshold).expect("a threshold that the keys reach")
}

pub(crate) fn release(version: &str) -> ReleaseInfo {
    let text = json!({
        "version": version, "arch": "x86_64", "board": "generic", "form": "raw", "kernel": "6.12.107",
        "changes": "Grüße \"quoted\"\nsecond line", "formats": { "identities": 1 },
        "sections": { ".linux": "ab".repeat(32) },
    });
    serde_json::from_value(text).expect("a description")
}

pub(crate) fn target(version: &str) -> UpdateTarget {
    UpdateTarget::describe("alknet.efi", Some(release(version)), &mut &*PROGRAM)
        .expect("a description that clients accept")
}

pub(crate) fn machine() -> UpdateMachine {
    UpdateMachine {
        arch: "x86_64".to_owned(),
        board: "generic".to_owned(),
        form: "raw".to_owned(),
        provides: Vec::new(),
    }
}

/// A root of one key for all roles, and the key.
pub(crate) struct Publisher {
    pub(crate) signer: SeedSigner,
    pub(crate) roots: Vec<Vec<u8>>,
}

impl Publisher {
    pub(crate) fn new(number: u8) -> Self {
        let signer = signer(number);
        let plan = RootPlan::with_keys(1, LATE, &keys(&[&signer], 1));
        let root = sign_root(&plan, None, &[&signer]).expect("a root");
        Self {
            signer,
            roots: vec![root],
        }
    }

    pub(crate) fn root(&self) -> &[u8] {
        self.roots.last().expect("a publisher has a root")
    }

    pub(crate) fn anchor(&self) -> TrustAnchor {
        TrustAnchor::root(&self.roots[0]).expect("its own root")
    }

    pub(crate) fn plan(number: u64, targets: Vec<UpdateTarget>) -> ReleasePlan {
        ReleasePlan {
            version: number,
            expires: LATE,
            timestamp_expires: LATE,
            targets,
        }
    }

    pub(crate) fn sign(&self, plan: &ReleasePlan) -> SignedRelease {
        sign_release(self.root(), plan, &[&self.signer]).expect("a release")
    }

    /// The bundle of a plan whose targets all are [`PROGRAM`].
    pub(crate) fn bundle_of(&self, plan: &ReleasePlan) -> Vec<u8> {
        let mut bundle = Vec::new();
        let release = self.sign(plan);
        let open = |_: &UpdateTarget| Ok(PROGRAM);
        write_bundle(&mut bundle, &self.roots, &release, &plan.targets, open).expect("written");
        bundle
    }

    /// The bundle of a version of the program.
    pub(crate) fn bundle(&self, number: u64, version: &str) -> Vec<u8> {
        self.bundle_of(&Self::plan(number, vec![target(version)]))
    }

    /// All documents of a release as a server has them.
    pub(crate) fn files(&self, plan: &ReleasePlan) -> MetadataFiles {
        let mut files: BTreeMap<_, _> = self.sign(plan).documents.into_iter().collect();
        for (at, root) in self.roots.iter().enumerate() {
            files.insert(format!("{}.root.json", at + 1), root.clone());
        }
        files.insert("root.json".to_owned(), self.root().to_vec());
        MetadataFiles(files)
    }
}

/// Documents in memory, by the names of their files.
pub(crate) struct MetadataFiles(pub(crate) BTreeMap<String, Vec<u8>>);

impl MetadataSource for MetadataFiles {
    fn metadata(&mut self, request: &MetadataRequest) -> Result<Option<Vec<u8>>, UpdateError> {
        Ok(self.0.get(&request.name).cloned())
    }
}

/// A document with these signatures, in the order of the signers.
pub(crate) fn signed(body: &Value, signers: &[&SeedSigner]) -> Vec<u8> {
    let payload = canonical(body);
    let sign = |signer: &&SeedSigner| {
        let signature = signer.sign(&payload).expect("a signature");
        json!({ "keyid": signer.public_key().id(), "sig": HEXLOWER.encode(&signature) })
    };
    let signatures: Vec<_> = signers.iter().map(sign).collect();
    serde_json::to_vec(&json!({ "signatures": signatures, "signed": body })).expect("JSON")
}

/// The signed part of a document.
pub(crate) fn body(document: &[u8]) -> Value {
    let mut whole: Value = serde_json::from_slice(document).expect("JSON");
    whole["signed"].take()
}

/// Reads a bundle at [`NOW`]: what the machine trusts then, and what it verified.
pub(crate) fn read(
    trust: UpdateTrust,
    bundle: &[u8],
) -> (UpdateTrust, Result<VerifiedTargets, UpdateError>) {
    read_at(trust, bundle, UpdateClock::Known(NOW))
}

pub(crate) fn read_at(
    trust: UpdateTrust,
    bundle: &[u8],
    clock: UpdateClock,
) -> (UpdateTrust, Result<VerifiedTargets, UpdateError>) {
    match BundleReader::open(bundle) {
        Ok(mut reader) => trust.refresh(clock).run(&mut reader),
        Err(error) => (trust, Err(error)),
    }
}

/// The text with which a bundle is refused.
pub(crate) fn refusal(trust: UpdateTrust, bundle: &[u8]) -> String {
    let (_, verified) = read(trust, bundle);
    verified.expect_err("the bundle is refused").to_string()
}
