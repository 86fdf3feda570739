//! Derives keys from the seed: SLIP-0010, and the paths of the purposes.

mod path;
mod purpose;
pub(crate) mod slip10;

pub use path::{DerivationPath, PathIndex};
pub use purpose::{Curve, KeyPurpose, KeyVersion, MacPurpose};

use crate::error::VaultError;
use crate::secret::SecretArr;

/// The public key of a private key: the 32 bytes of RFC 8032, or the compressed point of SEC 1.
pub fn public_key(private: &SecretArr<32>, curve: Curve) -> Result<Vec<u8>, VaultError> {
    match curve {
        Curve::Ed25519 => {
            let key = ed25519_dalek::SigningKey::from_bytes(private.expose());
            Ok(key.verifying_key().to_bytes().to_vec())
        }
        curve => Ok(slip10::public(private, curve)?.to_vec()),
    }
}
