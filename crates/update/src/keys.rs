//! Ed25519 keys as TUF names them, and who signs with them.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use alknet_vault::Ed25519Signer;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::json::canonical;
use crate::limits::KEYS_MAX;

/// The beginning of a key as the configuration writes it.
const PREFIX: &str = "ed25519:";

/// The DER of an Ed25519 private key up to its seed (RFC 8410 section 7).
const PKCS8_BEFORE_SEED: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A public key that signs metadata.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TufPublicKey([u8; 32]);

impl TufPublicKey {
    /// The key with these bytes (RFC 8032 section 5.1.5).
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The object in a root document (section 4.2.2).
    pub(crate) fn to_json(self) -> Value {
        json!({
            "keytype": "ed25519",
            "keyval": { "public": HEXLOWER.encode(&self.0) },
            "scheme": "ed25519",
        })
    }

    /// The ID by which documents name it: the SHA-256 of the canonical form of its object (section 4.2.2).
    #[must_use]
    pub fn id(self) -> String {
        key_id(&self.to_json())
    }

    /// Reads the object of a root document. Keys of other algorithms are `None`: no signature of theirs counts.
    pub(crate) fn from_json(key: &Value) -> Result<Option<Self>, &'static str> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let kind = text(&key["keytype"]).ok_or("a key has no type")?;
        let scheme = text(&key["scheme"]).ok_or("a key has no scheme")?;
        let public = text(&key["keyval"]["public"]).ok_or("a key has no public part")?;
        // A root may name keys of other algorithms for other clients, and is not refused because of them.
        if kind != "ed25519" || scheme != "ed25519" {
            return Ok(None);
        }
        let bytes = HEXLOWER_PERMISSIVE.decode(public.as_bytes()).ok();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        Ok(Some(Self(
            bytes.ok_or("an Ed25519 key has not 64 hex digits")?,
        )))
    }

    pub(crate) fn verifies(&self, payload: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, self.0);
        key.verify(payload, signature).is_ok()
    }
}

/// The ID of any key object.
pub(crate) fn key_id(key: &Value) -> String {
    HEXLOWER.encode(&Sha256::digest(canonical(key)))
}

impl fmt::Display for TufPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for TufPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TufPublicKey({self})")
    }
}

/// A text or a list of keys cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidKeys {
    /// Not the form `ed25519:` and 64 hex digits.
    #[error(
        "'{0}' is no key: write 'ed25519:' and the 64 hex digits that `alknet vault key show image-signing` prints"
    )]
    Form(String),
    /// More keys than a client verifies.
    #[error("{0} keys are given, and at most {KEYS_MAX} are possible")]
    Number(usize),
    /// One key twice would let one person reach a threshold of two.
    #[error("the key {0} is there twice: remove one of them")]
    Twice(TufPublicKey),
    /// No number of signatures, or more than there are keys.
    #[error(
        "the threshold is {threshold}, and there are {keys} keys: set it to a number from 1 to {keys}"
    )]
    Threshold {
        /// The threshold.
        threshold: usize,
        /// The number of keys.
        keys: usize,
    },
}

impl FromStr for TufPublicKey {
    type Err = InvalidKeys;

    fn from_str(text: &str) -> Result<Self, InvalidKeys> {
        let hex = text.strip_prefix(PREFIX);
        let bytes = hex.and_then(|hex| HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok());
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| {
            // A configuration may have a whole file there.
            InvalidKeys::Form(text.chars().take(80).collect())
        })
    }
}

/// Keys, and how many of them have to sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyThreshold {
    keys: BTreeSet<TufPublicKey>,
    threshold: usize,
}

impl KeyThreshold {
    /// # Errors
    /// A key is there twice, there are too many keys, or `threshold` is not a number from 1 to that of the keys.
    pub fn new(
        keys: impl IntoIterator<Item = TufPublicKey>,
        threshold: usize,
    ) -> Result<Self, InvalidKeys> {
        let mut unique = BTreeSet::new();
        for key in keys {
            if !unique.insert(key) {
                return Err(InvalidKeys::Twice(key));
            }
        }
        let number = unique.len();
        if number > KEYS_MAX {
            return Err(InvalidKeys::Number(number));
        }
        if !(1..=number).contains(&threshold) {
            return Err(InvalidKeys::Threshold {
                threshold,
                keys: number,
            });
        }
        Ok(Self {
            keys: unique,
            threshold,
        })
    }

    /// The keys, in the order of their bytes.
    pub fn keys(&self) -> impl Iterator<Item = TufPublicKey> + '_ {
        self.keys.iter().copied()
    }

    /// How many of the keys have to sign.
    #[must_use]
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// A text that is equal for equal keys and thresholds.
    pub(crate) fn fingerprint(&self) -> String {
        // In the order of their bytes, so that another order in the configuration does not make another anchor.
        let keys: Vec<_> = self.keys().map(TufPublicKey::to_json).collect();
        key_id(&json!({ "keys": keys, "threshold": self.threshold }))
    }
}

/// Signs metadata with one key.
///
/// The vault's image key signs, without leaving the vault, where `alknet` opens a vault on a build machine;
/// a [`SeedSigner`] signs where a release process has key files.
pub trait MetadataSigner {
    /// The public key.
    fn public_key(&self) -> TufPublicKey;

    /// The signature of RFC 8032.
    ///
    /// # Errors
    /// Why the key cannot be used, for a person: for example that the vault is locked.
    fn sign(&self, payload: &[u8]) -> Result<[u8; 64], String>;
}

impl MetadataSigner for Ed25519Signer {
    fn public_key(&self) -> TufPublicKey {
        TufPublicKey(self.public())
    }

    fn sign(&self, payload: &[u8]) -> Result<[u8; 64], String> {
        Self::sign(self, payload).map_err(|error| error.to_string())
    }
}

/// A private key from a file.
pub struct SeedSigner {
    pair: Ed25519KeyPair,
    public: TufPublicKey,
}

/// The file has no Ed25519 key in PKCS #8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no private Ed25519 key in PKCS #8 and PEM: make one with `openssl genpkey -algorithm ed25519`, or take the vault's \
     with `alknet vault key export image-signing`"
)]
pub struct InvalidKeyFile;

impl SeedSigner {
    /// The key with this seed (RFC 8032 section 5.1.5).
    ///
    /// # Errors
    /// The library refuses the seed, which it does for no seed of 32 bytes today.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, InvalidKeyFile> {
        // Unchecked, because a seed comes without a public key that it could be compared with.
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| InvalidKeyFile)?;
        let public = pair.public_key().as_ref().try_into();
        Ok(Self {
            public: TufPublicKey(public.map_err(|_| InvalidKeyFile)?),
            pair,
        })
    }

    /// Reads the text of a key file, as OpenSSL and the vault write it.
    ///
    /// # Errors
    /// The text is no such key.
    pub fn from_pem(text: &str) -> Result<Self, InvalidKeyFile> {
        let body = text.split_once("-----BEGIN PRIVATE KEY-----");
        let body = body.and_then(|(_, rest)| rest.split_once("-----END PRIVATE KEY-----"));
        let (body, _) = body.ok_or(InvalidKeyFile)?;
        // The text and its bytes are the private key, so both copies are wiped.
        let body: Zeroizing<String> = Zeroizing::new(body.split_whitespace().collect());
        let der = BASE64.decode(body.as_bytes()).map(Zeroizing::new);
        let der = der.map_err(|_| InvalidKeyFile)?;
        let seed = der.strip_prefix(&PKCS8_BEFORE_SEED).ok_or(InvalidKeyFile)?;
        // RFC 5958 lets a public key follow, which the seed gives anyway.
        let seed = seed.first_chunk::<32>().ok_or(InvalidKeyFile)?;
        Self::from_seed(seed)
    }
}

impl fmt::Debug for SeedSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SeedSigner({})", self.public)
    }
}

impl MetadataSigner for SeedSigner {
    fn public_key(&self) -> TufPublicKey {
        self.public
    }

    fn sign(&self, payload: &[u8]) -> Result<[u8; 64], String> {
        let signature = self.pair.sign(payload);
        let bytes = signature.as_ref().try_into();
        bytes.map_err(|_| "the library made a signature of another length".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> TufPublicKey {
        let signer = SeedSigner::from_seed(&[byte; 32]).expect("a seed");
        signer.public_key()
    }

    /// RFC 8032 section 7.1, test 2.
    #[test]
    fn a_signature_is_the_one_of_the_rfc() {
        let seed = HEXLOWER
            .decode(b"4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
            .expect("hex");
        let signer = SeedSigner::from_seed(&seed.try_into().expect("32 bytes")).expect("a seed");
        let public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
        assert_eq!(signer.public_key().to_string(), format!("ed25519:{public}"));
        let signature = signer.sign(&[0x72]).expect("a signature");
        assert!(
            HEXLOWER
                .encode(&signature)
                .starts_with("92a009a9f0d4cab8720e820b5f642540")
        );
        assert!(signer.public_key().verifies(&[0x72], &signature));
        assert!(!signer.public_key().verifies(&[0x73], &signature));
        assert!(!key(1).verifies(&[0x72], &signature));
    }

    /// The file of RFC 8410 section 10.3, and texts that have no such key.
    #[test]
    fn a_key_file_is_read() {
        let pem = "-----BEGIN PRIVATE KEY-----\n\
                   MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                   -----END PRIVATE KEY-----\n";
        let signer = SeedSigner::from_pem(pem).expect("a key");
        assert!(
            signer
                .public_key()
                .to_string()
                .starts_with("ed25519:19bf44096984cdfe8541bac167dc3b96")
        );
        for other in [
            "",
            "-----BEGIN PRIVATE KEY-----",
            &pem.replace("MC4C", "MC5C"),
            &pem.replace("PRIVATE", "EC"),
        ] {
            assert_eq!(
                SeedSigner::from_pem(other).err(),
                Some(InvalidKeyFile),
                "{other}"
            );
        }
    }

    #[test]
    fn a_key_has_one_text() {
        let text = key(7).to_string();
        assert_eq!(text.parse(), Ok(key(7)));
        let error = "ed25519:12".parse::<TufPublicKey>().expect_err("too short");
        assert_eq!(
            error.to_string(),
            "'ed25519:12' is no key: write 'ed25519:' and the 64 hex digits that `alknet vault key show image-signing` prints"
        );
    }

    #[test]
    fn a_threshold_that_no_number_of_signatures_reaches_is_refused() {
        let errors = [
            KeyThreshold::new([key(1)], 2),
            KeyThreshold::new([key(1), key(2)], 0),
            KeyThreshold::new([], 1),
            KeyThreshold::new([key(1), key(1)], 2),
        ];
        let texts = errors.map(|result| result.expect_err("refused").to_string());
        assert_eq!(
            texts[0],
            "the threshold is 2, and there are 1 keys: set it to a number from 1 to 1"
        );
        assert!(
            texts[3].ends_with("is there twice: remove one of them"),
            "{texts:?}"
        );
        let two = KeyThreshold::new([key(2), key(1)], 2).expect("two keys");
        let same = KeyThreshold::new([key(1), key(2)], 2).expect("two keys");
        assert_eq!(two.fingerprint(), same.fingerprint());
        let one = KeyThreshold::new([key(1), key(2)], 1).expect("two keys");
        assert_ne!(two.fingerprint(), one.fingerprint());
    }
}
