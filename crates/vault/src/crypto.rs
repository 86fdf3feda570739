//! The cryptographic primitives, with the names that this crate uses.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha512};
use zeroize::{Zeroize, Zeroizing};

use crate::error::VaultError;
use crate::secret::{SecretArr, SecretBytes};

/// Bytes of an AES-256-GCM tag.
pub(crate) const TAG: usize = 16;
/// Bytes of an AES-GCM nonce.
pub(crate) const IV: usize = 12;

/// Random bytes of the kernel; blocks until its generator is ready (getrandom(2)).
pub(crate) fn random<const N: usize>() -> Result<[u8; N], VaultError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| VaultError::NoRandomness)?;
    Ok(bytes)
}

/// Like `random`, for a secret.
pub(crate) fn random_secret<const N: usize>() -> Result<SecretArr<N>, VaultError> {
    let mut secret = SecretArr::zeroed();
    getrandom::fill(secret.expose_mut()).map_err(|_| VaultError::NoRandomness)?;
    Ok(secret)
}

/// HMAC-SHA512 over the concatenated parts.
pub(crate) fn hmac_sha512(key: &[u8], parts: &[&[u8]]) -> SecretArr<64> {
    let mut mac = Hmac::<Sha512>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    let mut tag = mac.finalize().into_bytes();
    let mut out = SecretArr::zeroed();
    out.expose_mut().copy_from_slice(&tag);
    // The tag is a secret key for some callers, and its buffer is not wiped by its type.
    tag.as_mut_slice().zeroize();
    out
}

/// HMAC-SHA256 (RFC 2104).
pub(crate) fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// HKDF-SHA256 (RFC 5869) with an output of one key.
pub(crate) fn hkdf_sha256(ikm: &[u8], salt: &[u8], info: &[u8]) -> SecretArr<32> {
    let mut out = SecretArr::zeroed();
    Hkdf::<Sha256>::new(Some(salt), ikm)
        .expand(info, out.expose_mut())
        .expect("32 bytes are less than HKDF's 255 blocks");
    out
}

/// SHA-256 (FIPS 180-4).
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// AES-256-GCM: appends `ciphertext ‖ tag` to `out`.
pub(crate) fn encrypt(
    key: &SecretArr<32>,
    iv: &[u8; IV],
    aad: &[u8],
    plaintext: &[u8],
    out: &mut Vec<u8>,
) {
    // The memory is reserved first, so that the plaintext is not moved and is overwritten in place.
    out.reserve_exact(plaintext.len() + TAG);
    let start = out.len();
    out.extend_from_slice(plaintext);
    let tag = Aes256Gcm::new(key.expose().into())
        .encrypt_inout_detached(&Nonce::from(*iv), aad, out[start..].as_mut().into())
        .expect("limits keep every plaintext below the 64 GiB of GCM");
    out.extend_from_slice(&tag);
}

/// AES-256-GCM: the plaintext of `ciphertext ‖ tag`, or `Decrypt` for every failure.
pub(crate) fn decrypt(
    key: &SecretArr<32>,
    iv: &[u8; IV],
    aad: &[u8],
    sealed: &[u8],
) -> Result<SecretBytes, VaultError> {
    let (ciphertext, tag) = sealed
        .split_last_chunk::<TAG>()
        .ok_or(VaultError::Decrypt)?;
    let mut plaintext = Zeroizing::new(ciphertext.to_vec());
    Aes256Gcm::new(key.expose().into())
        .decrypt_inout_detached(
            &Nonce::from(*iv),
            aad,
            plaintext.as_mut_slice().into(),
            &Tag::from(*tag),
        )
        .map_err(|_| VaultError::Decrypt)?;
    Ok(SecretBytes::from_vec(std::mem::take(&mut *plaintext)))
}
