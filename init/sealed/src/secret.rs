//! The one secret that is kept here for a moment.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::error::SealedError;

/// Longest volume key: two keys of AES-256.
const BYTES_MAX: usize = 64;

/// The key of the data, wiped on drop. It lies in one place, and is neither cloned nor shown.
pub struct VolumeKey {
    bytes: Box<Zeroizing<[u8; BYTES_MAX]>>,
    length: usize,
}

impl VolumeKey {
    /// `length` random bytes, 64 at most.
    pub(crate) fn random(length: usize) -> Result<Self, SealedError> {
        let mut key = Self::zeroed(length);
        getrandom::fill(key.expose_mut()).map_err(|_| SealedError::NoRandomness)?;
        Ok(key)
    }

    /// Zeroes, to be filled in place.
    pub(crate) fn zeroed(length: usize) -> Self {
        Self {
            bytes: Box::new(Zeroizing::new([0; BYTES_MAX])),
            length: length.min(BYTES_MAX),
        }
    }

    /// The bytes themselves.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub(crate) fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

/// In constant time for what has the same length.
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
