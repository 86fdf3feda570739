//! The volume key, the only secret in this crate.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::error::SealedError;

/// Maximum length of a volume key: two keys of AES-256.
const BYTES_MAX: usize = 64;

/// The key of the data. It is wiped on drop, stays at one address, and cannot be cloned or printed.
pub struct VolumeKey {
    bytes: Box<Zeroizing<[u8; BYTES_MAX]>>,
    length: usize,
}

impl VolumeKey {
    /// A key of `length` random bytes, at most 64.
    pub(crate) fn random(length: usize) -> Result<Self, SealedError> {
        let mut key = Self::zeroed(length);
        getrandom::fill(key.expose_mut()).map_err(|_| SealedError::NoRandomness)?;
        Ok(key)
    }

    /// A key of zeros, which the caller fills in place.
    pub(crate) fn zeroed(length: usize) -> Self {
        Self {
            bytes: Box::new(Zeroizing::new([0; BYTES_MAX])),
            length: length.min(BYTES_MAX),
        }
    }

    /// The bytes of the key.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub(crate) fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

/// The comparison takes constant time for keys of the same length.
impl PartialEq for VolumeKey {
    fn eq(&self, other: &Self) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

impl Eq for VolumeKey {}

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKey(..)")
    }
}
