//! The primitives of TPM 2.0, part 1: key derivation (sections 11.4.10.2 and 11.4.10.3), the exchange
//! of a salt with a key on P-256 (annex C.6.1), parameter encryption (section 21.3).

use aes::Aes128;
use alknet_vault::SecretArr;
use cfb_mode::cipher::KeyIvInit;
use hmac::{Hmac, KeyInit, Mac};
use p256::elliptic_curve::point::AffineCoordinates;
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::{PublicKey, SecretKey};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::TpmError;
use crate::wire::{TpmWriter, WipedBuffer};

/// Bytes of a digest, of a derived key and of a coordinate on P-256.
pub(crate) const DIGEST: usize = 32;
const AES_BLOCK: usize = 16;
/// How often a scalar is drawn: one in 2³² draws is out of range.
const SCALARS_MAX: usize = 4;

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], TpmError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| TpmError::NoRandomness)?;
    Ok(bytes)
}

/// SHA-256 of the concatenated parts.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; DIGEST] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// HMAC-SHA256 whose key is the concatenation of two parts.
pub(crate) fn mac(key: [&[u8]; 2]) -> Hmac<Sha256> {
    let key = Zeroizing::new(key.concat());
    Hmac::new_from_slice(&key).expect("HMAC takes a key of any length")
}

/// KDFa with SHA-256: 256 bits.
pub(crate) fn kdf_a(key: [&[u8]; 2], label: &[u8], u: &[u8], v: &[u8]) -> SecretArr<DIGEST> {
    let mut mac = mac(key);
    let bits = (DIGEST as u32 * 8).to_be_bytes();
    // One HMAC has all 256 bits, so the counter of the derivation stays at 1.
    for part in [&1_u32.to_be_bytes(), label, &[0], u, v, &bits] {
        mac.update(part);
    }
    wiped(mac.finalize().into_bytes().into())
}

/// KDFe with SHA-256: 256 bits.
fn kdf_e(z: &[u8], label: &[u8], u: &[u8], v: &[u8]) -> SecretArr<DIGEST> {
    wiped(sha256(&[&1_u32.to_be_bytes(), z, label, &[0], u, v]))
}

fn wiped(mut bytes: [u8; DIGEST]) -> SecretArr<DIGEST> {
    let secret = SecretArr::copy_of(&bytes);
    bytes.zeroize();
    secret
}

/// A public key of the TPM: the point, and its x-coordinate as the TPM writes it.
#[derive(Clone, Debug)]
pub(crate) struct EccPublicPoint {
    key: PublicKey,
    x: Vec<u8>,
}

impl EccPublicPoint {
    /// `None` for what is no point of the curve.
    pub(crate) fn new(x: &[u8], y: &[u8]) -> Option<Self> {
        let mut sec1 = [0; 1 + 2 * DIGEST];
        sec1[0] = 4;
        // Some TPMs leave leading zeros out.
        sec1.get_mut(1 + DIGEST.checked_sub(x.len())?..=DIGEST)?
            .copy_from_slice(x);
        sec1.get_mut(1 + DIGEST + DIGEST.checked_sub(y.len())?..)?
            .copy_from_slice(y);
        // This refuses points off the curve, with which an interposer could guess the salt.
        let key = PublicKey::from_sec1_bytes(&sec1).ok()?;
        // The derivation of the salt hashes x as this TPM wrote it, with or without its leading zeros.
        Some(Self { key, x: x.to_vec() })
    }

    /// A new salt, and the point from which the holder of the private key derives it:
    /// `TPMS_ECC_POINT`.
    pub(crate) fn salt(&self) -> Result<(SecretArr<DIGEST>, TpmWriter), TpmError> {
        let ephemeral = scalar()?;
        let public = ephemeral.public_key().to_sec1_point(false);
        let (own_x, own_y) = match (public.x(), public.y()) {
            (Some(x), Some(y)) => (x.as_slice(), y.as_slice()),
            // Only the point at infinity has no coordinates, and no scalar from `scalar` gives it.
            _ => return Err(TpmError::NoRandomness),
        };
        let shared = self.key.to_projective() * *ephemeral.to_nonzero_scalar();
        let mut z = WipedBuffer([0; DIGEST]);
        z.0.copy_from_slice(&shared.to_affine().x());
        let salt = kdf_e(&z.0, b"SECRET", own_x, &self.x);
        Ok((salt, TpmWriter::new().sized(own_x).sized(own_y)))
    }
}

fn scalar() -> Result<SecretKey, TpmError> {
    for _ in 0..SCALARS_MAX {
        let bytes = WipedBuffer(random::<DIGEST>()?);
        if let Ok(key) = SecretKey::from_slice(&bytes.0) {
            return Ok(key);
        }
    }
    Err(TpmError::NoRandomness)
}

/// The direction of a parameter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    FromTpm,
    ToTpm,
}

/// AES-128-CFB in place, under a key that the nonces of both sides make unique.
pub(crate) fn cfb(
    key: [&[u8]; 2],
    newer: &[u8],
    older: &[u8],
    direction: Direction,
    bytes: &mut [u8],
) {
    let derived = kdf_a(key, b"CFB", newer, older);
    let (key, iv) = derived.expose().split_at(AES_BLOCK);
    let half_is_a_block = "half of a digest is a block";
    match direction {
        Direction::ToTpm => cfb_mode::Encryptor::<Aes128>::new_from_slices(key, iv)
            .expect(half_is_a_block)
            .encrypt(bytes),
        Direction::FromTpm => cfb_mode::Decryptor::<Aes128>::new_from_slices(key, iv)
            .expect(half_is_a_block)
            .decrypt(bytes),
    }
}
