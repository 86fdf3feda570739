//! The JSON form of a blob, for stores of text.
//!
//! `{"key_version":2,"salt":…,"iv":…,"data":…,"alg":"ALK1"}` in standard base64 with padding. The header
//! is rebuilt from the fields, so both forms are one record.

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use crate::blob::{COMMON, HEADER, MAGIC, SALT_AT, SealedBlob, common};
use crate::crypto::IV;
use crate::derive::KeyVersion;
use crate::error::VaultError;
use crate::limits::MAX_BLOB_JSON_BYTES;

const ALG: &str = "ALK1";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlobForm {
    key_version: u32,
    salt: String,
    iv: String,
    data: String,
    /// Absent in records of upstream, which are sealed in other ways.
    alg: Option<String>,
}

impl SealedBlob {
    /// Reads the JSON form.
    pub fn from_json(text: &str) -> Result<Self, VaultError> {
        if text.len() > MAX_BLOB_JSON_BYTES {
            return Err(VaultError::TooLarge {
                bytes: text.len(),
                limit: MAX_BLOB_JSON_BYTES,
            });
        }
        let form: BlobForm = serde_json::from_str(text).map_err(|_| VaultError::Foreign)?;
        // Records of another algorithm need another program, so they are not reported as damaged.
        if form.alg.as_deref() != Some(ALG) {
            return Err(VaultError::Foreign);
        }
        let version = KeyVersion::try_from(form.key_version)?;
        let bytes = |text: &str| {
            BASE64
                .decode(text.as_bytes())
                // Damage within a record gets the same error as a wrong key.
                .map_err(|_| VaultError::Decrypt)
        };
        let salt = bytes(&form.salt)?
            .try_into()
            .map_err(|_| VaultError::Decrypt)?;
        let iv: [u8; IV] = bytes(&form.iv)?
            .try_into()
            .map_err(|_| VaultError::Decrypt)?;
        let data = bytes(&form.data)?;
        Self::parse(&[common(MAGIC, version, &salt).as_slice(), &iv, &data].concat())
    }

    /// Writes the JSON form.
    #[must_use]
    pub fn to_json(&self) -> String {
        // A blob that was cut fills the fields with the bytes that are left, and still opens to `Decrypt`.
        let part = |from: usize, to: usize| {
            let to = to.min(self.bytes.len());
            BASE64.encode(self.bytes.get(from..to).unwrap_or_default())
        };
        let form = BlobForm {
            key_version: self.version.number(),
            salt: part(SALT_AT, COMMON),
            iv: part(COMMON, HEADER),
            data: part(HEADER, self.bytes.len()),
            alg: Some(ALG.to_owned()),
        };
        serde_json::to_string(&form).expect("strings and a number are JSON")
    }
}
