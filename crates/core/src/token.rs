//! Bearer tokens: `alk_<8 characters>_<43 characters>`. The eight characters name the token and may be logged; the
//! rest is 256 bits of secret. A node stores only the SHA-256 of the whole text.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE32_DNSSEC, BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

/// Prefix of every token.
const PREFIX: &str = "alk_";
/// Characters of the name.
const NAME_CHARS: usize = 8;
/// Random bytes of a generated name: eight characters of five bits.
const NAME_BYTES: usize = 5;
/// Bytes of the secret: 43 characters of base64url without padding.
const SECRET_BYTES: usize = 32;
/// Bytes of a whole token.
const TOKEN_BYTES: usize = PREFIX.len() + NAME_CHARS + 1 + 43;

/// The eight characters that name a token, `[a-z0-9]`. They are not secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId([u8; NAME_CHARS]);

impl KeyId {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // The bytes are ASCII: `from_str` accepts no others.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for KeyId {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let bytes = <[u8; NAME_CHARS]>::try_from(text.as_bytes()).map_err(|_| TokenError::Name)?;
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        bytes
            .iter()
            .all(plain)
            .then_some(Self(bytes))
            .ok_or(TokenError::Name)
    }
}

impl TryFrom<String> for KeyId {
    type Error = TokenError;

    fn try_from(text: String) -> Result<Self, TokenError> {
        text.parse()
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// A bearer token as it arrived or was generated. It is never shown, and is wiped when dropped.
///
/// ```
/// use alknet_core::token::AuthToken;
///
/// let token = AuthToken::generate()?;
/// assert!(token.expose().starts_with("alk_"));
/// // The node keeps the hash, and recognises the token by it.
/// let hash = token.hash()?;
/// let sent = AuthToken::new(token.expose().to_owned());
/// assert!(hash.matches(&sent.hash()?));
/// # Ok::<(), alknet_core::token::TokenError>(())
/// ```
#[derive(Clone, Zeroize, zeroize::ZeroizeOnDrop)]
pub struct AuthToken(String);

impl AuthToken {
    /// Wraps the text that a peer sent, whatever it is.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// Generates a token. The node shows its text once, to its holder, and stores its [`hash`](Self::hash).
    ///
    /// # Errors
    /// The system has no random bytes to give.
    pub fn generate() -> Result<Self, TokenError> {
        let mut random = Zeroizing::new([0; NAME_BYTES + SECRET_BYTES]);
        getrandom::fill(&mut *random).map_err(|_| TokenError::Randomness)?;
        let (name, secret) = random.split_at(NAME_BYTES);
        // The capacity is exact: a string that grew would leave a copy of the secret in freed memory.
        let mut text = String::with_capacity(TOKEN_BYTES);
        text.push_str(PREFIX);
        // This alphabet is `0` to `9` and `a` to `v`, all of which a name may have.
        BASE32_DNSSEC.encode_append(name, &mut text);
        text.push('_');
        BASE64URL_NOPAD.encode_append(secret, &mut text);
        Ok(Self(text))
    }

    /// The text, for its holder.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The hash that the node stores.
    ///
    /// # Errors
    /// The text does not have the form of a token.
    pub fn hash(&self) -> Result<TokenHash, TokenError> {
        let rest = self.0.strip_prefix(PREFIX).ok_or(TokenError::Form)?;
        // The text is split at the first one, because base64url has `_` as well (RFC 4648 section 5).
        let (name, secret) = rest.split_once('_').ok_or(TokenError::Form)?;
        let key_id = name.parse().map_err(|_| TokenError::Form)?;
        let secret = BASE64URL_NOPAD
            .decode(secret.as_bytes())
            .map_err(|_| TokenError::Form)?;
        // The bytes are wiped at once: only their length matters here.
        if Zeroizing::new(secret).len() != SECRET_BYTES {
            return Err(TokenError::Form);
        }
        Ok(TokenHash {
            key_id,
            // A fast hash is enough: slow ones protect passwords from dictionaries, and no dictionary has 256 random
            // bits.
            sha256: Sha256::digest(self.0.as_bytes()).into(),
        })
    }
}

impl fmt::Debug for AuthToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthToken(…)")
    }
}

/// What a node stores of a token: its name and the SHA-256 of its whole text. Written `<8 characters>:<64 hex>`.
/// Comparison is by [`matches`](Self::matches) only.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenHash {
    /// The eight characters that name the token.
    pub key_id: KeyId,
    /// SHA-256 of the whole text.
    pub sha256: [u8; 32],
}

impl TokenHash {
    /// Whether both belong to the same token, in a time that does not depend on the result.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        // `&` and not `&&`: the second comparison runs whatever the first one gives.
        (self.key_id.0.ct_eq(&other.key_id.0) & self.sha256.ct_eq(&other.sha256)).into()
    }
}

impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other)
    }
}

impl Eq for TokenHash {}

impl FromStr for TokenHash {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let (key_id, hex) = text.split_once(':').ok_or(TokenError::Hash)?;
        let bytes = HEXLOWER
            .decode(hex.as_bytes())
            .map_err(|_| TokenError::Hash)?;
        Ok(Self {
            key_id: key_id.parse().map_err(|_| TokenError::Hash)?,
            sha256: bytes.try_into().map_err(|_| TokenError::Hash)?,
        })
    }
}

impl TryFrom<String> for TokenHash {
    type Error = TokenError;

    fn try_from(text: String) -> Result<Self, TokenError> {
        text.parse()
    }
}

impl From<TokenHash> for String {
    fn from(hash: TokenHash) -> Self {
        hash.to_string()
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key_id, HEXLOWER.encode(&self.sha256))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenHash({}:…)", self.key_id)
    }
}

/// Why a text is no token. The error never quotes it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenError {
    /// The text does not have the form of a token.
    #[error("a token is alk_<8 characters>_<43 characters of base64url>")]
    Form,
    /// The text does not have the form of a token's hash.
    #[error("the hash of a token is <8 of a-z and 0-9>:<64 lower-case hexadecimal digits>")]
    Hash,
    /// The text does not have the form of a token's name.
    #[error("a token's name has 8 of a-z and 0-9")]
    Name,
    /// The system gave no random bytes.
    #[error("the system has no random bytes to give")]
    Randomness,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_made_token_has_the_form_and_is_found_again() {
        let token = AuthToken::generate().expect("randomness");
        assert_eq!(token.expose().len(), TOKEN_BYTES);
        let hash = token.hash().expect("the form of a token");
        assert!(token.expose().starts_with(&format!("alk_{}_", hash.key_id)));
        let arrived = AuthToken::new(token.expose().to_owned());
        assert!(arrived.hash().expect("the form of a token").matches(&hash));
        let other = AuthToken::generate().expect("randomness");
        assert!(!other.hash().expect("the form of a token").matches(&hash));
    }

    #[test]
    fn the_hash_is_the_sha_256_of_the_whole_text() {
        let text = format!("alk_abcd0123_{}", "A".repeat(43));
        let hash = AuthToken::new(text.clone()).hash().expect("a token");
        assert_eq!(hash.key_id.as_str(), "abcd0123");
        assert_eq!(hash.sha256[..], Sha256::digest(text.as_bytes())[..]);
    }

    #[test]
    fn what_has_another_form_is_refused() {
        let secret = "A".repeat(43);
        for bad in [
            String::new(),
            "alk_".into(),
            format!("als_abcd0123_{secret}"),
            format!("alk_ABCD0123_{secret}"),
            format!("alk_abcd012_{secret}"),
            format!("alk_abcd0123_{}", &secret[1..]),
            format!("alk_abcd0123_{secret}A"),
            format!("alk_abcd0123_{}=", &secret[1..]),
            // The last character has two bits that no 32 bytes fill.
            format!("alk_abcd0123_{}B", &secret[1..]),
            format!("alk_abcd0123_{secret} "),
        ] {
            assert_eq!(
                AuthToken::new(bad.clone()).hash(),
                Err(TokenError::Form),
                "{bad}"
            );
        }
    }

    #[test]
    fn no_debug_text_holds_a_secret() {
        let token = AuthToken::generate().expect("randomness");
        let hash = token.hash().expect("a token");
        let shown = format!("{token:?} {hash:?}");
        assert!(!shown.contains(&token.expose()[13..]));
        assert!(!shown.contains(&HEXLOWER.encode(&hash.sha256)));
    }

    proptest! {
        #[test]
        fn hashes_round_trip(name in "[a-z0-9]{8}", sha256 in any::<[u8; 32]>()) {
            let hash = TokenHash { key_id: name.parse().expect("a name"), sha256 };
            prop_assert_eq!(hash.to_string().parse::<TokenHash>(), Ok(hash));
        }

        #[test]
        fn every_truncation_is_refused(name in "[a-z0-9]{8}", secret in any::<[u8; 32]>()) {
            let text = format!("alk_{name}_{}", BASE64URL_NOPAD.encode(&secret));
            let hash = AuthToken::new(text.clone()).hash().expect("a token").to_string();
            for end in 0..text.len() {
                let cut = AuthToken::new(text[..end].to_owned());
                prop_assert_eq!(cut.hash(), Err(TokenError::Form));
            }
            for end in 0..hash.len() {
                prop_assert_eq!(hash[..end].parse::<TokenHash>(), Err(TokenError::Hash));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "(alk_)?.{0,80}") {
            let _ = text.parse::<TokenHash>();
            let _ = AuthToken::new(text).hash();
        }
    }
}
