//! Enrolment tokens: `ale_<8 characters>_<43 characters>`. The eight characters name the token and
//! may be logged; the rest is 256 bits of secret. A hub keeps the SHA-256 of the whole text only.

use std::fmt;
use std::str::FromStr;

use alknet_core::{KeyId, TokenHash};
use data_encoding::{BASE32_DNSSEC, BASE64URL_NOPAD};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// What every enrolment token begins with.
const PREFIX: &str = "ale_";
/// Random bytes of a made name: eight characters of five bits.
const NAME_BYTES: usize = 5;
/// Characters of the name.
const NAME_CHARS: usize = 8;
/// Bytes of the secret: 43 characters of base64url without padding.
const SECRET_BYTES: usize = 32;

/// The right to become a peer of a hub. Shown to its holder only; wiped when dropped.
///
/// ```
/// use alknet_hub::EnrolToken;
///
/// let token = EnrolToken::generate()?;
/// let sent: EnrolToken = token.expose().parse()?;
/// assert!(token.hash().matches(&sent.hash()));
/// # Ok::<(), alknet_hub::EnrolTokenError>(())
/// ```
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct EnrolToken {
    #[zeroize(skip)]
    name: KeyId,
    secret: [u8; SECRET_BYTES],
}

impl EnrolToken {
    /// Makes a new one.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> Result<Self, EnrolTokenError> {
        let mut random = Zeroizing::new([0; NAME_BYTES + SECRET_BYTES]);
        getrandom::fill(&mut *random).map_err(|_| EnrolTokenError::Randomness)?;
        let (name, secret) = random.split_at(NAME_BYTES);
        let name = BASE32_DNSSEC.encode(name);
        let mut token = Self {
            name: name.parse().map_err(|_| EnrolTokenError::Form)?,
            secret: [0; SECRET_BYTES],
        };
        token.secret.copy_from_slice(secret);
        Ok(token)
    }

    pub(crate) fn from_parts(
        name: [u8; NAME_CHARS],
        secret: [u8; SECRET_BYTES],
    ) -> Result<Self, EnrolTokenError> {
        let name = std::str::from_utf8(&name).map_err(|_| EnrolTokenError::Form)?;
        Ok(Self {
            name: name.parse().map_err(|_| EnrolTokenError::Form)?,
            secret,
        })
    }

    pub(crate) fn parts(&self) -> ([u8; NAME_CHARS], Zeroizing<[u8; SECRET_BYTES]>) {
        let mut name = [0; NAME_CHARS];
        name.copy_from_slice(self.name.as_str().as_bytes());
        (name, Zeroizing::new(self.secret))
    }

    /// The eight characters that name it. Not secret.
    #[must_use]
    pub const fn name(&self) -> KeyId {
        self.name
    }

    /// The text, for the one it is for.
    #[must_use]
    pub fn expose(&self) -> Zeroizing<String> {
        // Filled to its exact size, so that no copy of it is left behind by growing.
        let mut text = String::with_capacity(PREFIX.len() + NAME_CHARS + 1 + 43);
        text.push_str(PREFIX);
        text.push_str(self.name.as_str());
        text.push('_');
        BASE64URL_NOPAD.encode_append(&self.secret, &mut text);
        Zeroizing::new(text)
    }

    /// What the hub keeps of it.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash {
            key_id: self.name,
            sha256: Sha256::digest(self.expose().as_bytes()).into(),
        }
    }
}

impl FromStr for EnrolToken {
    type Err = EnrolTokenError;

    fn from_str(text: &str) -> Result<Self, EnrolTokenError> {
        let rest = text.strip_prefix(PREFIX).ok_or(EnrolTokenError::Form)?;
        let (name, secret) = rest.split_once('_').ok_or(EnrolTokenError::Form)?;
        let secret = BASE64URL_NOPAD
            .decode(secret.as_bytes())
            .map(Zeroizing::new);
        let secret = secret.map_err(|_| EnrolTokenError::Form)?;
        Ok(Self {
            name: name.parse().map_err(|_| EnrolTokenError::Form)?,
            secret: secret
                .as_slice()
                .try_into()
                .map_err(|_| EnrolTokenError::Form)?,
        })
    }
}

impl PartialEq for EnrolToken {
    /// Takes the same time whatever the answer.
    fn eq(&self, other: &Self) -> bool {
        let names = self
            .name
            .as_str()
            .as_bytes()
            .ct_eq(other.name.as_str().as_bytes());
        // `&` and not `&&`: the second is compared whatever the first says.
        (names & self.secret.ct_eq(&other.secret)).into()
    }
}

impl Eq for EnrolToken {}

impl fmt::Debug for EnrolToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnrolToken({}…)", self.name)
    }
}

/// What is wrong with the text of an enrolment token. The text is not repeated: it may be one.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnrolTokenError {
    /// Not of the form of an enrolment token.
    #[error("an enrolment token is ale_<8 of a-z and 0-9>_<43 of base64url>")]
    Form,
    /// The system gave no random bytes.
    #[error("the system has no random bytes to give")]
    Randomness,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_made_token_has_the_form_and_reads_back() {
        let token = EnrolToken::generate().expect("randomness");
        let text = token.expose();
        assert_eq!(text.len(), 56);
        assert!(text.starts_with(&format!("ale_{}_", token.name())));
        let read: EnrolToken = text.parse().expect("its own text");
        assert_eq!(read, token);
        assert!(read.hash().matches(&token.hash()));
        assert_eq!(token.hash().sha256[..], Sha256::digest(text.as_bytes())[..]);
        let other = EnrolToken::generate().expect("randomness");
        assert!(other != token && !other.hash().matches(&token.hash()));
    }

    #[test]
    fn what_has_another_form_is_refused() {
        let secret = "A".repeat(43);
        for bad in [
            String::new(),
            "ale_".into(),
            format!("alk_abcd0123_{secret}"),
            format!("ale_ABCD0123_{secret}"),
            format!("ale_abcd012_{secret}"),
            format!("ale_abcd0123_{}", &secret[1..]),
            format!("ale_abcd0123_{secret}A"),
            // The last character has two bits that no 32 bytes fill.
            format!("ale_abcd0123_{}B", &secret[1..]),
            format!("ale_abcd0123_{secret} "),
        ] {
            assert_eq!(
                bad.parse::<EnrolToken>(),
                Err(EnrolTokenError::Form),
                "{bad}"
            );
        }
    }

    #[test]
    fn no_debug_text_holds_a_secret() {
        let token = EnrolToken::generate().expect("randomness");
        assert!(!format!("{token:?}").contains(&token.expose()[13..]));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(ale_)?.{0,80}") {
            let _ = text.parse::<EnrolToken>();
        }
    }
}
