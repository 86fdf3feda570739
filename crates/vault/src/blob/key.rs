//! A key for records of a program without a vault, which derives it from a secret file.

use std::fmt;

use data_encoding::HEXLOWER;

use crate::blob::{BlobLabel, SealedBlob};
use crate::crypto;
use crate::derive::KeyVersion;
use crate::error::VaultError;
use crate::secret::{SecretArr, SecretBytes};

/// Prefix of the purpose in the derivation of a key.
const KEY_INFO: &[u8] = b"alknet/record-key/1/";
/// Context of the derivation of a fingerprint.
const FINGERPRINT_INFO: &[u8] = b"alknet/record-key/fingerprint";
/// Bytes of a fingerprint: it detects a mistake, such as a file of another folder, and proves nothing.
const FINGERPRINT_BYTES: usize = 8;

/// A key that seals records in the form of [`SealedBlob`], for a program without a vault. Wiped when dropped.
pub struct RecordKey(SecretArr<32>);

impl RecordKey {
    /// The key that `secret` gives for `purpose` (HKDF-SHA256). Keys of different purposes reveal nothing about each
    /// other or about `secret`.
    #[must_use]
    pub fn derive(secret: &[u8; 32], purpose: &str) -> Self {
        let info = [KEY_INFO, purpose.as_bytes()].concat();
        Self(crypto::hkdf_sha256(secret, &[], &info))
    }

    /// 16 hexadecimal digits by which a record's file names its key. They reveal nothing about the key.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let whole = crypto::hkdf_sha256(self.0.expose(), &[], FINGERPRINT_INFO);
        HEXLOWER.encode(&whole.expose()[..FINGERPRINT_BYTES])
    }

    /// Seals a record under this label.
    ///
    /// # Errors
    /// `TooLarge` above 1 MiB, and `NoRandomness`.
    pub fn seal(&self, label: &BlobLabel, plaintext: &[u8]) -> Result<SealedBlob, VaultError> {
        SealedBlob::seal(&self.0, KeyVersion::FIRST, label, plaintext)
    }

    /// Opens a record.
    ///
    /// # Errors
    /// `Decrypt` if it was changed, or sealed under another label or by another key.
    pub fn open(&self, label: &BlobLabel, blob: &SealedBlob) -> Result<SecretBytes, VaultError> {
        blob.open(&self.0, label)
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> BlobLabel {
        text.parse().expect("a label")
    }

    fn assert_closed(key: &RecordKey, text: &str, blob: &SealedBlob) {
        let refused = key.open(&label(text), blob);
        assert!(matches!(refused, Err(VaultError::Decrypt)), "{text}");
    }

    #[test]
    fn a_record_opens_under_its_label_with_its_key_and_not_otherwise() {
        let key = RecordKey::derive(&[1; 32], "credentials");
        let blob = key.seal(&label("cred:a"), b"sk-1").expect("sealed");
        let opened = key.open(&label("cred:a"), &blob).expect("its own");
        assert_eq!(opened.expose(), b"sk-1");
        assert_closed(&key, "cred:b", &blob);
        for (secret, purpose) in [([2; 32], "credentials"), ([1; 32], "another")] {
            let other = RecordKey::derive(&secret, purpose);
            assert_ne!(other.fingerprint(), key.fingerprint());
            assert_closed(&other, "cred:a", &blob);
        }
        let mut bytes = blob.as_bytes().to_vec();
        bytes[60] ^= 1;
        let changed = SealedBlob::parse(&bytes).expect("the form of one");
        assert_closed(&key, "cred:a", &changed);
    }

    #[test]
    fn neither_the_text_nor_the_fingerprint_is_the_key() {
        let key = RecordKey::derive(&[1; 32], "credentials");
        assert_eq!(format!("{key:?}"), "RecordKey(..)");
        let print = key.fingerprint();
        assert_eq!(print.len(), 2 * FINGERPRINT_BYTES);
        assert!(!HEXLOWER.encode(key.0.expose()).contains(&print));
        assert_eq!(
            RecordKey::derive(&[1; 32], "credentials").fingerprint(),
            print
        );
    }
}
