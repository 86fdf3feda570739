//! The token of a lock.

use std::fmt;
use std::str::FromStr;

use crate::error::StoreError;

/// What the text of a token begins with (RFC 4122 §3).
const SCHEME: &str = "urn:uuid:";

/// Where the text of a token has hyphens behind a byte.
const HYPHENS: [usize; 4] = [4, 6, 8, 10];

/// The token of a lock: a random UUID, which no other lock has (RFC 4918 §6.5). Its text is a URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LockToken([u8; 16]);

impl LockToken {
    /// A new one.
    pub(super) fn random() -> Result<Self, StoreError> {
        let mut bytes = [0; 16];
        let filled = getrandom::fill(&mut bytes);
        filled.map_err(|error| StoreError::FileSystem(error.to_string()))?;
        // Version 4 and the variant of RFC 4122 §4.4.
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Self(bytes))
    }
}

impl fmt::Display for LockToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        for (at, byte) in self.0.iter().enumerate() {
            if HYPHENS.contains(&at) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for LockToken {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let digits = text.strip_prefix(SCHEME).unwrap_or_default();
        let digits: Vec<_> = digits.bytes().filter(|byte| *byte != b'-').collect();
        let mut token = Self([0; 16]);
        for (byte, pair) in token.0.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).unwrap_or_default();
            *byte = u8::from_str_radix(pair, 16).unwrap_or_default();
        }
        // One text for each token: hyphens elsewhere, a missing digit or a sign give another text.
        if token.to_string() == text.to_ascii_lowercase() {
            Ok(token)
        } else {
            Err(StoreError::InvalidName(
                "the token of a lock is a UUID behind 'urn:uuid:'",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_one_text() {
        let token = LockToken::random().expect("random bytes");
        let text = token.to_string();
        assert_eq!(text.len(), SCHEME.len() + 36);
        assert_eq!(text.as_bytes()[SCHEME.len() + 14], b'4', "its version");
        assert_eq!(text.parse(), Ok(token));
        // The digits of a URN have no case (RFC 4122 §3).
        let upper = format!("{SCHEME}{}", text[SCHEME.len()..].to_uppercase());
        assert_eq!(upper.parse(), Ok(token));
        for other in [
            "",
            SCHEME,
            &text[..text.len() - 1],
            &format!("{text}0"),
            &text.replace('-', ""),
            &text.replace(SCHEME, ""),
            &format!("{SCHEME}+1{}", &text[SCHEME.len() + 2..]),
            "urn:uuid:gggggggg-gggg-4ggg-8ggg-gggggggggggg",
        ] {
            assert!(other.parse::<LockToken>().is_err(), "{other}");
        }
    }
}
