//! The vault: recovery words, the keys that are derived from them, and the records that are sealed under those keys.
//!
//! One secret, the entropy of BIP39 words, is kept encrypted in `vault.alkv` behind key slots ([`slots`]). An
//! unlocked [`Vault`] gives every long-lived key of a node, which it derives at each request and never writes.
//! Secrets that come from outside are sealed under a derived key ([`SealedBlob`]). What happens is written to a log
//! that shows when it was changed ([`audit`]).
//!
//! Everything is synchronous. The crate has no network, no asynchronous runtime, no clock and no environment, and
//! uses no other crate of the project: times come from the caller, and the only files that it touches are those that
//! a caller names.
//!
//! ```
//! use alknet_vault::slots::{Alkv, NewSlot, NewVault, OpenAlkv, UnlockKey};
//! use alknet_vault::{Entropy, KeyPurpose, Vault, WordCount};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // The first start makes the words and keeps them in a file. This slot needs no key to be opened: an attacker who
//!     // has the file has the words.
//!     let words = Entropy::generate(WordCount::TwentyFour)?;
//!     let created_s = 1_767_225_600;
//!     let created = OpenAlkv::create(NewVault::new(words, created_s), NewSlot::None)?;
//!     let file = created.alkv().to_text();
//!
//!     // Each later start opens a slot of the file, and unlocks the vault with the words in it.
//!     let alkv = Alkv::parse(file.as_bytes())?;
//!     let slot = alkv.slots().first().ok_or("a vault has a slot")?;
//!     let opened = alkv.open(slot.id(), &mut UnlockKey::Stored)?;
//!     let vault = Vault::locked();
//!     vault.unlock(opened.entropy(), opened.passphrase())?;
//!
//!     let node = vault.signer(KeyPurpose::NodeIdentity)?;
//!     assert_eq!(node.sign(b"it is me")?.len(), 64);
//!     let label = "cred:openai".parse()?;
//!     let blob = vault.seal(&label, b"sk-test-123")?;
//!     assert_eq!(vault.open(&label, &blob)?.expose(), b"sk-test-123");
//!
//!     vault.lock();
//!     assert!(vault.open(&label, &blob).is_err());
//!     Ok(())
//! }
//! ```

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
pub use blob::{BlobLabel, RecordKey, SealedBlob};
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
