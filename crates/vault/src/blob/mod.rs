//! Secrets from outside, sealed under a key of the vault.
//!
//! ```text
//! 0   4  ALK1
//! 4   1  format 1
//! 5   1  algorithm 1: AES-256-GCM with a tag of 16 bytes
//! 6   2  flags: zero
//! 8   4  key version, big endian, at least 2
//! 12 32  salt
//! 44 12  IV
//! 56     ciphertext and tag
//! ```
//!
//! The key of a blob is HKDF-SHA256 of the version's key with the blob's salt; the header and the label are
//! authenticated, so a blob cannot be opened as another record.

mod json;
mod key;
mod label;
pub(crate) mod stream;

use std::borrow::Cow;
use std::fmt;

use crate::crypto::{self, IV, TAG};
use crate::derive::KeyVersion;
use crate::error::VaultError;
use crate::limits::MAX_PLAINTEXT_BYTES;
use crate::secret::{SecretArr, SecretBytes};

pub use key::RecordKey;
pub use label::BlobLabel;

const MAGIC: [u8; 4] = *b"ALK1";
const FORMAT: u8 = 1;
const AES_256_GCM: u8 = 1;
const INFO: &[u8] = b"alknet/vault/blob/1";

/// Bytes before the ciphertext.
const HEADER: usize = 56;
/// Bytes of the header up to the IV, which streams have too.
const COMMON: usize = 44;
/// Offset of the salt.
const SALT_AT: usize = 12;

/// A sealed record. Without the vault it reveals neither its content nor why it does not open.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedBlob {
    bytes: Vec<u8>,
    version: KeyVersion,
}

impl SealedBlob {
    /// Parses the binary form. Only opening detects that it was cut.
    pub fn parse(bytes: &[u8]) -> Result<Self, VaultError> {
        let limit = HEADER + MAX_PLAINTEXT_BYTES + TAG;
        if bytes.len() > limit {
            return Err(VaultError::TooLarge {
                bytes: bytes.len(),
                limit,
            });
        }
        let version = version_of(bytes, MAGIC)?;
        Ok(Self {
            bytes: bytes.to_vec(),
            version,
        })
    }

    /// The binary form.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The version of its key.
    #[must_use]
    pub fn key_version(&self) -> KeyVersion {
        self.version
    }

    /// Seals `plaintext` under the key of `version`.
    pub(crate) fn seal(
        key: &SecretArr<32>,
        version: KeyVersion,
        label: &BlobLabel,
        plaintext: &[u8],
    ) -> Result<Self, VaultError> {
        // Salt and IV come from one system call, which takes longer than most of the rest.
        let random = crypto::random::<{ 32 + IV }>()?;
        let (mut salt, mut iv) = ([0; 32], [0; IV]);
        salt.copy_from_slice(&random[..32]);
        iv.copy_from_slice(&random[32..]);
        Self::seal_with(key, version, label, plaintext, (&salt, &iv))
    }

    /// Like `seal`, with a given salt and IV, for test vectors.
    pub(crate) fn seal_with(
        key: &SecretArr<32>,
        version: KeyVersion,
        label: &BlobLabel,
        plaintext: &[u8],
        (salt, iv): (&[u8; 32], &[u8; IV]),
    ) -> Result<Self, VaultError> {
        if plaintext.len() > MAX_PLAINTEXT_BYTES {
            return Err(VaultError::TooLarge {
                bytes: plaintext.len(),
                limit: MAX_PLAINTEXT_BYTES,
            });
        }
        let mut bytes = Vec::with_capacity(HEADER + plaintext.len() + TAG);
        bytes.extend_from_slice(&common(MAGIC, version, salt));
        bytes.extend_from_slice(iv);
        // Version and salt are authenticated too, so a record cannot be moved to another version or name.
        let aad = aad(&bytes, label);
        crypto::encrypt(&blob_key(key, salt), iv, &aad, plaintext, &mut bytes);
        Ok(Self { bytes, version })
    }

    /// The plaintext, or `Decrypt`.
    pub(crate) fn open(
        &self,
        key: &SecretArr<32>,
        label: &BlobLabel,
    ) -> Result<SecretBytes, VaultError> {
        // A record that was cut is filled up and takes the same path to the same error, in the same time.
        let cut = self.bytes.len() < HEADER + TAG;
        let mut bytes = Cow::Borrowed(&self.bytes);
        if cut {
            bytes.to_mut().resize(HEADER + TAG, 0);
        }
        let (header, sealed) = bytes
            .split_first_chunk::<HEADER>()
            .ok_or(VaultError::Decrypt)?;
        let (common, iv) = header.split_at(COMMON);
        let iv = iv.try_into().map_err(|_| VaultError::Decrypt)?;
        let key = blob_key(key, &common[SALT_AT..]);
        let plaintext = crypto::decrypt(&key, iv, &aad(header, label), sealed)?;
        if cut {
            Err(VaultError::Decrypt)
        } else {
            Ok(plaintext)
        }
    }
}

/// Shows the version and the size.
impl fmt::Debug for SealedBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SealedBlob(version {}, {} bytes)",
            self.version,
            self.bytes.len()
        )
    }
}

/// The key of one blob.
pub(crate) fn blob_key(key: &SecretArr<32>, salt: &[u8]) -> SecretArr<32> {
    crypto::hkdf_sha256(key.expose(), salt, INFO)
}

fn common(magic: [u8; 4], version: KeyVersion, salt: &[u8; 32]) -> [u8; COMMON] {
    let mut header = [0; COMMON];
    header[..4].copy_from_slice(&magic);
    header[4] = FORMAT;
    header[5] = AES_256_GCM;
    header[8..SALT_AT].copy_from_slice(&version.number().to_be_bytes());
    header[SALT_AT..].copy_from_slice(salt);
    header
}

/// The key version of bytes that begin as a record of this program; a record that is cut later opens to `Decrypt`.
fn version_of(bytes: &[u8], magic: [u8; 4]) -> Result<KeyVersion, VaultError> {
    let is = |from: usize, expected: &[u8]| {
        let got = bytes.get(from..).unwrap_or_default();
        let both = got.len().min(expected.len());
        got[..both] == expected[..both]
    };
    if bytes.len() < 4 || !is(0, &magic) || !is(4, &[FORMAT, AES_256_GCM, 0, 0]) {
        return Err(VaultError::Foreign);
    }
    let Some(number) = bytes.get(8..SALT_AT) else {
        return Err(VaultError::Decrypt);
    };
    let number = number.try_into().map_err(|_| VaultError::Decrypt)?;
    u32::from_be_bytes(number).try_into()
}

/// The additional authenticated data: the header and the record's name.
fn aad(header: &[u8], label: &BlobLabel) -> Vec<u8> {
    let label = label.as_str().as_bytes();
    // The length separates the label from the bytes before it, so no two inputs give the same data.
    let length = u16::try_from(label.len()).expect("a label has at most 255 bytes");
    [header, &length.to_be_bytes(), label].concat()
}

#[cfg(test)]
mod tests;
