//! SLIP-0010: from a seed to a key at a path, for Ed25519, NIST P-256 and secp256k1.
//!
//! This is not BIP32-Ed25519, whose children are clamped scalars: the 32 bytes are a seed of RFC 8032, so every other
//! implementation computes the same public key from them.

use zeroize::Zeroize;

use crate::crypto::hmac_sha512;
use crate::derive::{Curve, DerivationPath};
use crate::error::VaultError;
use crate::secret::SecretArr;

/// A private key with its chain code, from which its children are derived.
pub(crate) struct ExtendedPrivateKey {
    pub(crate) key: SecretArr<32>,
    pub(crate) chain: SecretArr<32>,
}

impl ExtendedPrivateKey {
    /// The key at `path`.
    pub(crate) fn at(seed: &[u8], path: &DerivationPath) -> Result<Self, VaultError> {
        let curve = path.curve();
        let mut node = Self::master(seed, curve)?;
        for level in path.levels() {
            node = node.child(*level, curve)?;
        }
        Ok(node)
    }

    /// The key at which every path of a curve begins.
    pub(crate) fn master(seed: &[u8], curve: Curve) -> Result<Self, VaultError> {
        let salt: &[u8] = match curve {
            Curve::Ed25519 => b"ed25519 seed",
            Curve::NistP256 => b"Nist256p1 seed",
            Curve::Secp256k1 => b"Bitcoin seed",
        };
        let mut hash = hmac_sha512(salt, &[seed]);
        // SLIP-0010: a hash that is no valid key of the curve is hashed again.
        while !valid(&hash, curve)? {
            hash = hmac_sha512(salt, &[hash.expose()]);
        }
        Ok(Self::from_hash(&hash))
    }

    /// The child with that number; the top bit means hardened.
    pub(crate) fn child(&self, number: u32, curve: Curve) -> Result<Self, VaultError> {
        let hardened = number >> 31 == 1;
        let number = number.to_be_bytes();
        let chain = self.chain.expose().as_slice();
        let mut hash = if hardened {
            // SLIP-0010: a hardened child hashes 0x00 and the private key, an ordinary child the public point.
            hmac_sha512(chain, &[&[0], self.key.expose(), &number])
        } else {
            hmac_sha512(chain, &[&public(&self.key, curve)?, &number])
        };
        loop {
            let child = Self::from_hash(&hash);
            if let Some(key) = combined(&child.key, &self.key, curve)? {
                return Ok(Self { key, ..child });
            }
            // SLIP-0010: 0x01 and the right half are hashed until the key is valid.
            hash = hmac_sha512(chain, &[&[1], child.chain.expose(), &number]);
        }
    }

    fn from_hash(hash: &SecretArr<64>) -> Self {
        let (key, chain) = hash.expose().split_at(32);
        Self {
            key: SecretArr::from_slice(key).expect("half of 64 bytes"),
            chain: SecretArr::from_slice(chain).expect("half of 64 bytes"),
        }
    }
}

/// Whether the left half is a valid master key.
fn valid(hash: &SecretArr<64>, curve: Curve) -> Result<bool, VaultError> {
    // A master key has no parent, so the sum with zero applies the curve's rule alone.
    let zero = SecretArr::zeroed();
    let key = ExtendedPrivateKey::from_hash(hash).key;
    Ok(combined(&key, &zero, curve)?.is_some())
}

/// The child's key from the left half and the parent's key; `None` if the curve has no such key.
fn combined(
    left: &SecretArr<32>,
    parent: &SecretArr<32>,
    curve: Curve,
) -> Result<Option<SecretArr<32>>, VaultError> {
    match curve {
        // SLIP-0010: on Ed25519 the left half is the key, and every value is valid.
        Curve::Ed25519 => Ok(Some(SecretArr::copy_of(left.expose()))),
        Curve::NistP256 => Ok(p256_sum(left, parent)),
        Curve::Secp256k1 => secp256k1_sum(left, parent),
    }
}

/// The compressed public key, from which children that are not hardened are derived.
pub(crate) fn public(key: &SecretArr<32>, curve: Curve) -> Result<[u8; 33], VaultError> {
    match curve {
        // SLIP-0010 derives nothing from a public Ed25519 key.
        Curve::Ed25519 => Err(VaultError::Unsupported),
        Curve::NistP256 => {
            use p256::elliptic_curve::sec1::ToSec1Point as _;
            let key = p256::SecretKey::from_bytes(key.expose().into());
            let key = key.map_err(|_| VaultError::Unsupported)?;
            let point = key.public_key().to_sec1_point(true);
            point
                .as_bytes()
                .try_into()
                .map_err(|_| VaultError::Unsupported)
        }
        Curve::Secp256k1 => secp256k1_public(key),
    }
}

/// One function for each curve with the same text, because their types share no trait that also zeroizes.
macro_rules! sum {
    ($curve:ident, $left:expr, $parent:expr) => {{
        use $curve::elliptic_curve::{Field, PrimeField as _};
        let read = |bytes: &SecretArr<32>| {
            Option::<$curve::Scalar>::from($curve::Scalar::from_repr((*bytes.expose()).into()))
        };
        read($left)
            .zip(read($parent))
            .and_then(|(mut left, mut parent)| {
                let mut sum = left + parent;
                let mut bytes = sum.to_repr();
                let key =
                    (!bool::from(Field::is_zero(&sum))).then(|| SecretArr::from_slice(&bytes));
                bytes.as_mut_slice().zeroize();
                for scalar in [&mut left, &mut parent, &mut sum] {
                    scalar.zeroize();
                }
                key.flatten()
            })
    }};
}

fn p256_sum(left: &SecretArr<32>, parent: &SecretArr<32>) -> Option<SecretArr<32>> {
    sum!(p256, left, parent)
}

#[cfg(feature = "secp256k1")]
fn secp256k1_sum(
    left: &SecretArr<32>,
    parent: &SecretArr<32>,
) -> Result<Option<SecretArr<32>>, VaultError> {
    Ok(sum!(k256, left, parent))
}

#[cfg(not(feature = "secp256k1"))]
fn secp256k1_sum(
    _: &SecretArr<32>,
    _: &SecretArr<32>,
) -> Result<Option<SecretArr<32>>, VaultError> {
    Err(VaultError::Unsupported)
}

#[cfg(feature = "secp256k1")]
fn secp256k1_public(key: &SecretArr<32>) -> Result<[u8; 33], VaultError> {
    use k256::elliptic_curve::sec1::ToSec1Point as _;
    let key = k256::SecretKey::from_bytes(key.expose().into());
    let key = key.map_err(|_| VaultError::Unsupported)?;
    let point = key.public_key().to_sec1_point(true);
    point
        .as_bytes()
        .try_into()
        .map_err(|_| VaultError::Unsupported)
}

#[cfg(not(feature = "secp256k1"))]
fn secp256k1_public(_: &SecretArr<32>) -> Result<[u8; 33], VaultError> {
    Err(VaultError::Unsupported)
}
