//! Memory that is zeroized when it is dropped.
//!
//! No type of this module implements `Clone` or `serde`, `Debug` shows no content, and no buffer grows, because a
//! buffer that moves leaves its old contents behind.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// `N` secret bytes in one heap allocation, zeroized on drop.
pub struct SecretArr<const N: usize>(Box<[u8; N]>);

impl<const N: usize> SecretArr<N> {
    /// Zeros, which the caller fills in place.
    #[must_use]
    pub fn zeroed() -> Self {
        Self(Box::new([0; N]))
    }

    /// A copy of `bytes`; the caller zeroizes the original.
    #[must_use]
    pub fn copy_of(bytes: &[u8; N]) -> Self {
        let mut secret = Self::zeroed();
        secret.0.copy_from_slice(bytes);
        secret
    }

    /// A copy of `bytes` if their number is `N`.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Some(Self::copy_of(bytes.try_into().ok()?))
    }

    /// The bytes themselves.
    #[must_use]
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }

    pub(crate) fn expose_mut(&mut self) -> &mut [u8; N] {
        &mut self.0
    }
}

impl<const N: usize> Drop for SecretArr<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Compares in constant time.
impl<const N: usize> PartialEq for SecretArr<N> {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(other.0.as_slice()).into()
    }
}

impl<const N: usize> Eq for SecretArr<N> {}

impl<const N: usize> fmt::Debug for SecretArr<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretArr(..)")
    }
}

/// Secret bytes of any number, zeroized on drop.
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes ownership of the bytes. The vector must not have grown while it was filled.
    #[must_use]
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A copy of `bytes`; the caller zeroizes the original.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        Self::from_vec(bytes.to_vec())
    }

    /// The bytes themselves.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// Compares in constant time if the lengths are equal.
impl PartialEq for SecretBytes {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(other.0.as_slice()).into()
    }
}

impl Eq for SecretBytes {}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}

/// A secret text, zeroized on drop.
///
/// ```
/// use alknet_vault::SecretStr;
///
/// let passphrase = SecretStr::from_string("correct horse".to_owned());
/// assert_eq!(passphrase.expose(), "correct horse");
/// assert!(!format!("{passphrase:?}").contains("horse"));
/// ```
pub struct SecretStr(Zeroizing<String>);

impl SecretStr {
    /// Takes ownership of the text.
    #[must_use]
    pub fn from_string(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The empty text: no passphrase.
    #[must_use]
    pub fn empty() -> Self {
        Self::from_string(String::new())
    }

    /// A text that is built in place and never grows beyond `capacity` bytes.
    pub(crate) fn build(capacity: usize, parts: impl Iterator<Item = char>) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(capacity));
        for part in parts {
            debug_assert!(text.len() + part.len_utf8() <= capacity);
            text.push(part);
        }
        Self(text)
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the text is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for SecretStr {
    fn from(text: &str) -> Self {
        Self::from_string(text.to_owned())
    }
}

impl fmt::Debug for SecretStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretStr(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_shown_and_equality_is_by_content() {
        let arr = SecretArr::copy_of(&[0x5a; 4]);
        let shown = format!(
            "{arr:?} {:?} {:?}",
            SecretBytes::copy_of(b"ZZZZ"),
            SecretStr::from("ZZZZ")
        );
        assert_eq!(shown, "SecretArr(..) SecretBytes(..) SecretStr(..)");
        assert_eq!(arr, SecretArr::copy_of(&[0x5a; 4]));
        assert_ne!(arr, SecretArr::copy_of(&[0x5b; 4]));
        assert_ne!(SecretBytes::copy_of(b"a"), SecretBytes::copy_of(b"ab"));
        assert!(SecretArr::<4>::from_slice(b"abc").is_none());
    }
}
