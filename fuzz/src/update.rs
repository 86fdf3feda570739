//! Update bundles: the archive, and each document of it as one that its keys have signed.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use alknet_update::{
    BundleReader, KeyThreshold, MetadataRequest, MetadataSigner, MetadataSource, ReleasePlan,
    RootPlan, SeedSigner, TrustAnchor, TufRole, UnixSeconds, UpdateClock, UpdateError, UpdateTrust,
    VerifiedTargets, canonical, limits, sign_release, sign_root,
};
use serde_json::{Value, json};

/// When the publisher's documents expire, and the time at which the machine reads.
const LATE: UnixSeconds = UnixSeconds(4_000_000_000);
const NOW: UnixSeconds = UnixSeconds(2_000_000_000);

/// A publisher whose documents name each other by their versions alone, so that any one may be another.
struct UpdatePublisher {
    signer: SeedSigner,
    files: BTreeMap<String, Vec<u8>>,
}

/// Reads the input as a bundle; and as the signed part of a document, which it signs, because no mutation finds a
/// signature.
pub fn update(data: &[u8]) -> bool {
    let is_bundle = bundle(data);
    let is_document = serde_json::from_slice(data).is_ok_and(|body: Value| document(&body));
    is_bundle || is_document
}

fn publisher() -> &'static UpdatePublisher {
    static PUBLISHER: OnceLock<UpdatePublisher> = OnceLock::new();
    PUBLISHER.get_or_init(|| {
        let signer = SeedSigner::from_seed(&[7; 32]).expect("any seed is a key");
        let keys = KeyThreshold::new([signer.public_key()], 1).expect("one key");
        let root = RootPlan::with_keys(1, LATE, &keys);
        let root = sign_root(&root, None, &[&signer]).expect("a root");
        let plan = ReleasePlan {
            version: 1,
            expires: LATE,
            timestamp_expires: LATE,
            targets: Vec::new(),
        };
        let release = sign_release(&root, &plan, &[&signer]).expect("a release");
        let mut files: BTreeMap<_, _> = release.documents.into_iter().collect();
        files.insert("1.root.json".to_owned(), root);
        let mut publisher = UpdatePublisher { signer, files };
        for (name, named) in [
            ("1.snapshot.json", "targets.json"),
            ("timestamp.json", "snapshot.json"),
        ] {
            let mut whole: Value =
                serde_json::from_slice(&publisher.files[name]).expect("our own document");
            whole["signed"]["meta"][named] = json!({ "version": 1 });
            let signed = publisher.sign(&whole["signed"]);
            publisher.files.insert(name.to_owned(), signed);
        }
        publisher
    })
}

impl UpdatePublisher {
    fn sign(&self, body: &Value) -> Vec<u8> {
        let signature = self.signer.sign(&canonical(body)).expect("a signature");
        let hex: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        let signature = json!({ "keyid": self.signer.public_key().id(), "sig": hex });
        serde_json::to_vec(&json!({ "signatures": [signature], "signed": body })).expect("JSON")
    }

    fn trust(&self) -> UpdateTrust {
        UpdateTrust::new(TrustAnchor::root(&self.files["1.root.json"]).expect("our own root"))
    }
}

/// The publisher's documents, one of which is another.
struct ReplacedFiles {
    name: String,
    document: Vec<u8>,
}

impl MetadataSource for ReplacedFiles {
    fn metadata(&mut self, request: &MetadataRequest) -> Result<Option<Vec<u8>>, UpdateError> {
        if request.name == self.name {
            return Ok(Some(self.document.clone()));
        }
        Ok(publisher().files.get(&request.name).cloned())
    }
}

/// Reads a document in its place among those of the publisher.
fn document(body: &Value) -> bool {
    let role = TufRole::ALL
        .into_iter()
        .find(|role| body["_type"] == role.name());
    let name = match role {
        Some(TufRole::Root) => "2.root.json",
        Some(TufRole::Snapshot) => "1.snapshot.json",
        Some(TufRole::Targets) => "1.targets.json",
        _ => "timestamp.json",
    };
    let mut files = ReplacedFiles {
        name: name.to_owned(),
        document: publisher().sign(body),
    };
    let refresh = publisher().trust().refresh(UpdateClock::Known(NOW));
    let (_, verified) = refresh.run(&mut files);
    match verified {
        Ok(verified) => {
            holds(&verified);
            true
        }
        Err(error) => {
            explains(&error);
            false
        }
    }
}

/// What is verified keeps the limits, and lives until it expires.
fn holds(verified: &VerifiedTargets) {
    assert!(verified.expires().0 > NOW.0, "an expired release");
    for target in verified.iter() {
        assert!(target.bytes <= limits::TARGET_BYTES_MAX);
        assert!((1..=limits::TARGET_NAME_BYTES_MAX).contains(&target.name.len()));
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        assert!(target.name.bytes().all(is_plain) && !target.name.starts_with('.'));
        let file = target.file_name(verified.is_consistent());
        assert_eq!(verified.target_of_file(&file).ok(), Some(target));
        if let Some(release) = &target.release {
            assert_eq!(release.check(), Ok(()));
            assert!(
                release
                    .floor
                    .as_ref()
                    .is_none_or(|floor| *floor <= release.version)
            );
        }
    }
}

/// A refusal names its reason, and what to do.
fn explains(error: &UpdateError) {
    let text = error.to_string();
    assert!(text.contains(". "), "{text}");
}

/// Reads the archive, and what its documents say under the publisher's root.
fn bundle(data: &[u8]) -> bool {
    let mut reader = match BundleReader::open(data) {
        Ok(reader) => reader,
        Err(error) => {
            explains(&error);
            return false;
        }
    };
    let refresh = publisher().trust().refresh(UpdateClock::Known(NOW));
    let (_, verified) = refresh.run(&mut reader);
    match verified {
        Ok(verified) => {
            holds(&verified);
            // The publisher has signed no target, so no byte of one is accepted.
            assert!(reader.copy_target(&verified, &mut io::sink()).is_err());
        }
        Err(error) => explains(&error),
    }
    // An archive that is damaged behind its metadata ends in an error, and never in an endless loop.
    for _ in 0..=data.len() / 512 {
        if reader.skip_target().is_err() {
            break;
        }
    }
    true
}
