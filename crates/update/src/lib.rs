//! Update bundles: which keys may sign a release, and whether a machine may install it.
//!
//! A bundle is a repository of [TUF](https://theupdateframework.github.io/specification/latest/) in one file. A build
//! machine signs it ([`sign_root`], [`sign_release`], [`write_bundle`]). A machine verifies it with what it trusts and
//! has seen ([`UpdateTrust`]), chooses the program that fits ([`VerifiedTargets::choose`]), and checks the program's
//! bytes while they stream ([`BundleReader::copy_target`]).
//!
//! Nothing here reaches the network or writes to a slot. The client workflow ([`UpdateRefresh`]) does no input and
//! output: it names the files that it needs. `docs/update-inside.md` has the format and the reasons.
//!
//! ```
//! use alknet_update::{
//!     BundleReader, DowngradeConsent, KeyThreshold, UpdateMachine, MetadataSigner, ReleaseInfo, ReleasePlan, RootPlan,
//!     SeedSigner, TrustAnchor, UnixSeconds, UpdateClock, UpdateStep, UpdateTarget, UpdateTrust, sign_release,
//!     sign_root, write_bundle,
//! };
//!
//! // On the build machine: a key, a root document that names it, and a release.
//! let signer = SeedSigner::from_seed(&[7; 32])?;
//! let keys = KeyThreshold::new([signer.public_key()], 1)?;
//! let root = sign_root(&RootPlan::with_keys(1, UnixSeconds(4_000_000_000), &keys), None, &[&signer])?;
//! let release: ReleaseInfo = serde_json::from_str(
//!     r#"{ "version": "1.1.0", "arch": "x86_64", "board": "generic", "form": "raw", "kernel": "6.12.107" }"#,
//! )?;
//! let program = b"a unified kernel image";
//! let target = UpdateTarget::describe("alknet.efi", Some(release), &mut &program[..])?;
//! let plan = ReleasePlan {
//!     version: 1,
//!     expires: UnixSeconds(4_000_000_000),
//!     timestamp_expires: UnixSeconds(3_000_000_000),
//!     targets: vec![target.clone()],
//! };
//! let documents = sign_release(&root, &plan, &[&signer])?;
//! let mut bundle = Vec::new();
//! write_bundle(&mut bundle, &[root.clone()], &documents, &[target], |_| Ok(&program[..]))?;
//!
//! // On a machine, whose image has the root document.
//! let trust = UpdateTrust::new(TrustAnchor::root(&root)?);
//! let mut reader = BundleReader::open(&*bundle)?;
//! let now = UpdateClock::Known(UnixSeconds(2_000_000_000));
//! let (trust, verified) = trust.refresh(now).run(&mut reader);
//! let verified = verified?;
//! let machine = UpdateMachine {
//!     arch: "x86_64".to_owned(),
//!     board: "generic".to_owned(),
//!     form: "raw".to_owned(),
//!     provides: Vec::new(),
//! };
//! let chosen = verified.choose(&machine, &"1.0.0".parse()?, trust.floor(), DowngradeConsent::NotGiven)?;
//! assert_eq!(chosen.step, UpdateStep::Upgrade);
//! let mut slot = Vec::new();
//! reader.copy_target(&verified, &mut slot)?;
//! assert_eq!(slot, program);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod agreed_floor;
mod bundle;
mod cosign;
mod delta;
mod document;
mod error;
mod folder;
mod json;
mod keys;
pub mod limits;
mod refresh;
mod release;
mod sign;
mod target;
mod trust;
mod version;

pub use agreed_floor::{AgreedFloor, InvalidAgreedFloor};
pub use bundle::{BundleReader, BundleWriter, METADATA_FOLDER, TARGETS_FOLDER, replace_timestamp};
pub use cosign::{
    CosignedBundle, CosignedRoot, MissingSignatures, begin_release, begin_root, cosign_bundle,
    cosign_root,
};
pub use delta::{DeltaInfo, delta_file_name};
pub use document::TufRole;
pub use error::{KeysOrigin, UnixSeconds, UpdateError};
pub use folder::RepositoryFolder;
pub use json::canonical;
pub use keys::{
    InvalidKeyFile, InvalidKeys, KeyThreshold, MetadataSigner, SeedSigner, TufPublicKey,
};
pub use refresh::{
    ChosenTarget, MetadataRequest, MetadataSource, UpdateClock, UpdateMachine, UpdateRefresh,
    VerifiedTargets,
};
pub use release::{InvalidRelease, ReleaseInfo};
pub use sign::{
    ReleasePlan, RootPlan, SignedRelease, SigningError, renew_timestamp, sign_release, sign_root,
    write_bundle,
};
pub use target::{TargetCheck, UpdateTarget};
pub use trust::{TrustAnchor, UpdateTrust};
pub use version::{
    DowngradeConsent, InvalidVersion, ReleaseVersion, UpdateStep, VersionRefusal, judge_version,
    raised_floor,
};
