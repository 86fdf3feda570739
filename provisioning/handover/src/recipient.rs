//! Public keys, and the file key wrapped for their holders.

use std::str::FromStr;

use alknet_core::config::AgeKey;
use curve25519_dalek::MontgomeryPoint;
use data_encoding::BASE64_NOPAD;
use zeroize::Zeroizing;

use crate::seal::{chacha, hkdf, random};
use crate::{FILE_KEY_BYTES, HandoverError, ssh};

/// The public key of a recipient, who can open a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgeRecipient(pub(crate) RecipientKind);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RecipientKind {
    /// A key in age's own format.
    X25519([u8; 32]),
    Ssh(ssh::SshPublicKey),
}

/// The file key for one recipient.
pub(crate) struct Stanza {
    pub(crate) arguments: Vec<String>,
    pub(crate) body: Vec<u8>,
}

impl FromStr for AgeRecipient {
    type Err = HandoverError;

    fn from_str(text: &str) -> Result<Self, HandoverError> {
        let kind = match AgeKey::parse(text.trim()).ok_or(HandoverError::Recipient)? {
            AgeKey::X25519(point) => RecipientKind::X25519(point),
            AgeKey::SshEd25519 { wire, point } => {
                RecipientKind::Ssh(ssh::SshPublicKey::ed25519(wire, point)?)
            }
            AgeKey::SshRsa {
                wire,
                exponent,
                modulus,
            } => RecipientKind::Ssh(ssh::SshPublicKey::rsa(wire, &modulus, &exponent)),
        };
        Ok(Self(kind))
    }
}

impl AgeRecipient {
    pub(crate) fn wrap(&self, file_key: &[u8; FILE_KEY_BYTES]) -> Result<Stanza, HandoverError> {
        match &self.0 {
            RecipientKind::Ssh(key) => key.wrap(file_key),
            RecipientKind::X25519(point) => {
                let info = b"age-encryption.org/v1/X25519";
                let (share, body) = agree(point, None, info, file_key)?;
                Ok(Stanza {
                    arguments: vec!["X25519".to_owned(), BASE64_NOPAD.encode(&share)],
                    body,
                })
            }
        }
    }
}

/// Agrees on a key with the holder of a point, using a new ephemeral key, and wraps the file key
/// with it. A tweak binds the agreement to more than the point.
pub(crate) fn agree(
    point: &[u8; 32],
    tweak: Option<[u8; 32]>,
    info: &[u8],
    file_key: &[u8; FILE_KEY_BYTES],
) -> Result<([u8; 32], Vec<u8>), HandoverError> {
    let secret = Zeroizing::new(random::<32>()?);
    let share = MontgomeryPoint::mul_base_clamped(*secret).to_bytes();
    let agreed = MontgomeryPoint(*point).mul_clamped(*secret);
    let agreed = match tweak {
        Some(tweak) => agreed.mul_clamped(tweak),
        None => agreed,
    };
    let agreed = Zeroizing::new(agreed.to_bytes());
    // With a point of small order, every sender would agree on the same key.
    if *agreed == [0; 32] {
        return Err(HandoverError::Recipient);
    }
    let salt = [share, *point].concat();
    // The key is used for this one message, so the nonce can be zero.
    let wrapped = chacha(&hkdf(&salt, &*agreed, info), [0; 12], file_key)?;
    Ok((share, wrapped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_of_small_order_is_refused() {
        for point in [[0; 32], std::array::from_fn(|at| u8::from(at == 0))] {
            let wrapped = AgeRecipient(RecipientKind::X25519(point)).wrap(&[7; FILE_KEY_BYTES]);
            assert_eq!(wrapped.err(), Some(HandoverError::Recipient));
        }
    }
}
