//! The node's secrets for other servers: kept sealed, opened by the assembly, and used by handlers and operations
//! only through their [`Capabilities`](crate::Capabilities).

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::handler::BoxFuture;

/// A sealed secret in the vault's format. Core never opens it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EncryptedData {
    /// Version of the vault's key that sealed it.
    #[schemars(range(min = 2, max = 2_147_483_649_u32))]
    pub key_version: u32,
    /// Input of the derivation of the secret's own key.
    #[serde(with = "base64_bytes")]
    #[schemars(with = "String")]
    pub salt: [u8; 32],
    /// Nonce of the cipher.
    #[serde(with = "base64_bytes")]
    #[schemars(with = "String")]
    pub iv: [u8; 12],
    /// Ciphertext with its authentication tag.
    #[serde(with = "base64_bytes")]
    #[schemars(with = "String")]
    pub data: Vec<u8>,
    /// Name of the format, `ALK1`.
    pub alg: String,
}

/// Bytes as standard base64 with padding.
mod base64_bytes {
    use data_encoding::BASE64;
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(
        bytes: &impl AsRef<[u8]>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(bytes.as_ref()))
    }

    pub(super) fn deserialize<'de, D, T>(from: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: TryFrom<Vec<u8>>,
    {
        let text = String::deserialize(from)?;
        let bytes = BASE64.decode(text.as_bytes()).map_err(D::Error::custom)?;
        let wrong = |_| D::Error::custom("the number of bytes is wrong");
        T::try_from(bytes).map_err(wrong)
    }
}

impl fmt::Debug for EncryptedData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptedData")
            .field("key_version", &self.key_version)
            .field("alg", &self.alg)
            .field("bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

/// Stores sealed secrets by the name of their provider.
pub trait CredentialStore: Send + Sync + 'static {
    /// The secret of `provider`.
    fn get(&self, provider: &str) -> Option<EncryptedData>;

    /// Stores `sealed`, which replaces the old secret.
    fn put<'a>(
        &'a self,
        provider: &'a str,
        sealed: EncryptedData,
    ) -> BoxFuture<'a, Result<(), CredentialError>>;

    /// Deletes the secret. Returns whether there was one.
    fn delete<'a>(&'a self, provider: &'a str) -> BoxFuture<'a, Result<bool, CredentialError>>;
}

/// Why a sealed secret could not be stored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// Reading or writing failed.
    #[error("sealed secrets cannot be kept in {}: {source}", .path.display())]
    Io {
        /// The file that holds the secrets.
        path: PathBuf,
        /// The error of the system or the database.
        source: std::io::Error,
    },
}

/// An opened secret. It is wiped when dropped, and has no form for logs or files.
#[expect(missing_debug_implementations, reason = "a secret is never shown")]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for their one use.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ambiguous, and so no program, as soon as the type can be shown or written.
    #[test]
    fn secrets_can_be_neither_shown_nor_written() {
        trait SecretIsOpaque<Marker> {
            fn hidden() {}
        }
        impl<T: ?Sized> SecretIsOpaque<()> for T {}
        impl<T: ?Sized + fmt::Debug> SecretIsOpaque<u8> for T {}
        impl<T: ?Sized + Serialize> SecretIsOpaque<u16> for T {}
        <Secret as SecretIsOpaque<_>>::hidden();
    }

    #[test]
    fn sealed_bytes_are_not_shown_either() {
        let sealed = EncryptedData {
            key_version: 1,
            salt: [1; 32],
            iv: [2; 12],
            data: vec![0xab; 48],
            alg: "ALK1".to_owned(),
        };
        assert_eq!(
            format!("{sealed:?}"),
            "EncryptedData { key_version: 1, alg: \"ALK1\", bytes: 48, .. }"
        );
        let json = serde_json::to_value(&sealed).expect("JSON");
        assert_eq!(json["iv"], "AgICAgICAgICAgIC");
        assert_eq!(
            serde_json::from_value::<EncryptedData>(json).ok(),
            Some(sealed)
        );
    }
}
