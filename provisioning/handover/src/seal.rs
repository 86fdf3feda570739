//! The primitives of the format.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::HandoverError;

/// A key of 32 bytes.
pub(crate) type Key = Zeroizing<[u8; 32]>;

pub(crate) fn hkdf(salt: &[u8], secret: &[u8], info: &[u8]) -> Key {
    let mut key = Key::default();
    Hkdf::<Sha256>::new(Some(salt), secret)
        .expand(info, &mut *key)
        .expect("32 bytes are one block");
    key
}

/// ChaCha20-Poly1305 (RFC 8439): ciphertext and tag.
pub(crate) fn chacha(key: &Key, nonce: [u8; 12], text: &[u8]) -> Result<Vec<u8>, HandoverError> {
    let failed = |_| HandoverError::Failed;
    let key = UnboundKey::new(&CHACHA20_POLY1305, &**key).map_err(failed)?;
    // With room for the tag, so that the vector does not grow and leave the clear text in memory.
    let mut sealed = Vec::with_capacity(text.len() + CHACHA20_POLY1305.tag_len());
    sealed.extend(text);
    LessSafeKey::new(key)
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::empty(),
            &mut sealed,
        )
        .map_err(failed)?;
    Ok(sealed)
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], HandoverError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| HandoverError::Failed)?;
    Ok(bytes)
}
