//! The vault: recovery words, every key that is derived from them, and what is sealed under those.
//!
//! One secret, the entropy of BIP39 words, is kept encrypted in `vault.alkv` behind key slots
//! ([`slots`]). Unlocked, it gives every long-lived key of a node ([`Vault`]): derived when it is asked
//! for and never written. Secrets that come from outside are sealed under a derived key ([`SealedBlob`]).
//! What happens is written to a log that shows when it was changed ([`audit`]).
//!
//! Everything is synchronous. There is no network, no asynchronous runtime and no other crate of the
//! project beneath, no clock and no environment: times come from the caller, and the only files
//! touched are those a caller names.

#![deny(unsafe_code)]

mod area;
pub mod audit;
mod bip39;
mod blob;
pub mod credentials;
mod crypto;
mod derive;
mod error;
mod json;
pub mod limits;
mod secret;
mod selftest;
mod signer;
pub mod slots;
mod successor;
mod traces;
mod vault;

pub use area::{AREA_BYTES, AreaError, AreaKind, SeedArea};
pub use bip39::{Entropy, WordCount};
pub use blob::stream::BlobStreamError;
pub use blob::{BlobLabel, SealedBlob};
pub use derive::{
    Curve, DerivationPath, KeyPurpose, KeyVersion, MacPurpose, PathIndex, public_key,
};
pub use error::{LabelError, MnemonicError, PathError, VaultError};
pub use secret::{SecretArr, SecretBytes, SecretStr};
pub use selftest::{SelfTestFailure, Suite, selftest};
#[cfg(feature = "secp256k1")]
pub use signer::EthereumSigner;
pub use signer::{Ed25519Signer, ExportReason, P256Signer};
pub use successor::{Successor, SuccessorError};
pub use traces::without_traces;
pub use vault::{Epoch, KeyVersions, Observer, StateChange, Vault, VaultState};
