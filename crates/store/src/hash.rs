//! Addresses of contents.

use std::fmt;
use std::str::FromStr;

use rusqlite::ToSql;
use rusqlite::types::{FromSql, FromSqlResult, ToSqlOutput, ValueRef};
use thiserror::Error;

/// BLAKE3-256 of the plain bytes of a content. The store keeps it as 32 bytes and shows it as 64 lower-case hexadecimal
/// digits.
///
/// ```
/// use alknet_store::ContentHash;
///
/// let text = ContentHash::EMPTY.to_string();
/// assert_eq!(text.parse(), Ok(ContentHash::EMPTY));
/// assert!(text.to_uppercase().parse::<ContentHash>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; Self::BYTES]);

/// A text that is not the address of a content.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a content hash has 64 lower-case hexadecimal digits")]
pub struct InvalidContentHash;

impl ContentHash {
    /// Bytes of an address.
    pub const BYTES: usize = 32;

    /// The address of no bytes at all.
    pub const EMPTY: Self = Self([
        0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6, 0xa0, 0x40, 0x4d, 0xea, 0x36, 0xdc, 0xc9,
        0x49, 0x9b, 0xcb, 0x25, 0xc9, 0xad, 0xc1, 0x12, 0xb7, 0xcc, 0x9a, 0x93, 0xca, 0xe4, 0x1f,
        0x32, 0x62,
    ]);

    /// Takes the bytes as they are.
    #[must_use]
    pub const fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes of the address.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

impl FromStr for ContentHash {
    type Err = InvalidContentHash;

    fn from_str(text: &str) -> Result<Self, InvalidContentHash> {
        let digits = text.as_bytes();
        // Before the loop, which would take the first 32 bytes of a longer text and leave the rest
        // unseen.
        if digits.len() != 2 * Self::BYTES {
            return Err(InvalidContentHash);
        }
        let mut bytes = [0; Self::BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let &[high, low] = pair else {
                return Err(InvalidContentHash);
            };
            *byte = digit(high)? << 4 | digit(low)?;
        }
        Ok(Self(bytes))
    }
}

/// Only lower-case digits, so that an address has one form.
const fn digit(byte: u8) -> Result<u8, InvalidContentHash> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(InvalidContentHash),
    }
}

impl ToSql for ContentHash {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(&self.0)))
    }
}

impl FromSql for ContentHash {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        <[u8; Self::BYTES]>::column_result(value).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first test vector of BLAKE3.
    #[test]
    fn no_bytes_have_the_address_of_the_specification() {
        let expected = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(ContentHash::EMPTY.to_string(), expected);
    }

    #[test]
    fn an_address_has_one_text() {
        let hash = ContentHash::new(std::array::from_fn(|at| {
            u8::try_from(at * 8).expect("small")
        }));
        let text = hash.to_string();
        assert_eq!(text.parse(), Ok(hash));
        for other in [
            text.to_uppercase(),
            text[1..].to_owned(),
            format!("{text}0"),
            text.replace('0', "g"),
        ] {
            assert_eq!(other.parse::<ContentHash>(), Err(InvalidContentHash));
        }
    }
}
