//! SSH public keys as recipients: `ssh-ed25519` (RFC 8709) by its point in Montgomery form, and
//! `ssh-rsa` (RFC 4253, 6.6) by OAEP.

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use curve25519_dalek::edwards::CompressedEdwardsY;
use data_encoding::BASE64_NOPAD;
use sha2::{Digest, Sha256};

use crate::recipient::{Stanza, agree};
use crate::seal::hkdf;
use crate::{FILE_KEY_BYTES, HandoverError};

/// A key, and its bytes in SSH's wire form, which age identifies keys by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SshPublicKey {
    wire: Vec<u8>,
    kind: SshKeyKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum SshKeyKind {
    /// The point in the form for X25519.
    Ed25519([u8; 32]),
    /// DER of a SubjectPublicKeyInfo.
    Rsa(Vec<u8>),
}

impl SshPublicKey {
    /// # Errors
    /// The point is not on the curve.
    pub(crate) fn ed25519(wire: Vec<u8>, point: [u8; 32]) -> Result<Self, HandoverError> {
        let point = CompressedEdwardsY(point).decompress();
        let point = point.ok_or(HandoverError::Recipient)?;
        // The exchange uses Curve25519, but the key is a point of Ed25519 (RFC 7748, 4.1 has the
        // map).
        let kind = SshKeyKind::Ed25519(point.to_montgomery().to_bytes());
        Ok(Self { wire, kind })
    }

    pub(crate) fn rsa(wire: Vec<u8>, modulus: &[u8], exponent: &[u8]) -> Self {
        let kind = SshKeyKind::Rsa(spki(modulus, exponent));
        Self { wire, kind }
    }

    pub(crate) fn wrap(&self, file_key: &[u8; FILE_KEY_BYTES]) -> Result<Stanza, HandoverError> {
        // Four bytes are enough for a reader to try the right key first, but they prove nothing.
        let tag = BASE64_NOPAD.encode(&Sha256::digest(&self.wire)[..4]);
        match &self.kind {
            SshKeyKind::Ed25519(point) => {
                let info = b"age-encryption.org/v1/ssh-ed25519";
                let tweak = *hkdf(&self.wire, &[], info);
                let (share, body) = agree(point, Some(tweak), info, file_key)?;
                let share = BASE64_NOPAD.encode(&share);
                Ok(Stanza {
                    arguments: vec!["ssh-ed25519".to_owned(), tag, share],
                    body,
                })
            }
            SshKeyKind::Rsa(spki) => Ok(Stanza {
                arguments: vec!["ssh-rsa".to_owned(), tag],
                body: oaep(spki, file_key)?,
            }),
        }
    }
}

fn oaep(spki: &[u8], file_key: &[u8]) -> Result<Vec<u8>, HandoverError> {
    let failed = |_| HandoverError::Failed;
    let key = PublicEncryptingKey::from_der(spki).map_err(|_| HandoverError::Recipient)?;
    let key = OaepPublicEncryptingKey::new(key).map_err(failed)?;
    let mut sealed = vec![0; key.ciphertext_size()];
    // The label prevents a ciphertext for another purpose from being used here.
    let label = Some(&b"age-encryption.org/v1/ssh-rsa"[..]);
    key.encrypt(&OAEP_SHA256_MGF1SHA256, file_key, &mut sealed, label)
        .map_err(failed)?;
    Ok(sealed)
}

/// The key in X.509's form (RFC 3279, 2.3.1). Both numbers are positive, big endian and signed, as
/// in SSH and DER.
fn spki(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    const RSA_ENCRYPTION: [u8; 13] = [
        0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
    ];
    let numbers = [der(0x02, modulus), der(0x02, exponent)].concat();
    // A bit string begins with the number of unused bits at its end, here none.
    let key = [&[0], &*der(0x30, &numbers)].concat();
    let both = [der(0x30, &RSA_ENCRYPTION), der(0x03, &key)].concat();
    der(0x30, &both)
}

/// Tag, length and content (X.690, 8.1).
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let skipped = length.iter().take_while(|byte| **byte == 0).count();
    let length = &length[skipped..];
    let head = match content.len() {
        // Below 128 the length is one byte. Above, the number of its bytes comes first (X.690,
        // 8.1.3).
        short @ 0..0x80 => vec![tag, short as u8],
        _ => [&[tag, 0x80 | length.len() as u8], length].concat(),
    };
    [&head, content].concat()
}
