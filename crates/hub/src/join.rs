//! Join strings: `alkjoin1_` and, in base64url without padding, a postcard record and its checksum.
//!
//! One line that fits a QR code and the user data of a cloud machine. It carries the hub's key, so
//! that its holder needs no certificate authority and no name service, and it carries a secret:
//! treat it as a password until it is used.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use alknet_core::{DialHost, PeerAddr, PeerKey};
use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::names::RoleName;
use crate::token::EnrolToken;

/// Longest join string, in characters.
pub const JOIN_CHARS_MAX: usize = 300;
/// Most addresses in one.
pub const ADDRESSES_MAX: usize = 4;

/// What every join string begins with, up to the version.
const PREFIX: &str = "alkjoin";
/// Version and separator.
const VERSION: &str = "1_";
/// The port that a client assumes where an address names none.
const PORT: u16 = 443;
/// Bytes of the checksum.
const CHECKSUM_BYTES: usize = 4;

/// What a join string says.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinCode {
    /// Names and addresses of the hub, the most promising first; one to four, without pins.
    pub addresses: Vec<PeerAddr>,
    /// The hub's Ed25519 key.
    pub hub: [u8; 32],
    /// The right to enrol.
    pub token: EnrolToken,
    /// When the token ends, in seconds since 1970. Told for people: the hub decides.
    pub expires: u64,
    /// What its holder becomes. Told for people: the hub decides.
    pub role: RoleName,
}

/// The record as postcard writes it.
#[derive(Serialize, Deserialize)]
struct JoinCodeRecord<'a> {
    #[serde(borrow)]
    addresses: Vec<&'a str>,
    hub: [u8; 32],
    token_name: [u8; 8],
    token_secret: [u8; 32],
    expires: u64,
    role: &'a str,
}

impl JoinCode {
    /// The text.
    ///
    /// # Errors
    /// The code has no address or more than four, one with pins, or would be longer than 300 characters.
    pub fn encode(&self) -> Result<String, JoinError> {
        let pinned = self.addresses.iter().any(|at| !at.pins.is_empty());
        if self.addresses.is_empty() || self.addresses.len() > ADDRESSES_MAX || pinned {
            return Err(JoinError::Addresses);
        }
        let addresses: Vec<_> = self.addresses.iter().map(written).collect();
        let (token_name, token_secret) = self.token.parts();
        let record = JoinCodeRecord {
            addresses: addresses.iter().map(String::as_str).collect(),
            hub: self.hub,
            token_name,
            token_secret: *token_secret,
            expires: self.expires,
            role: self.role.as_str(),
        };
        // More than fits into the longest string; what fills it is too long.
        let mut buffer = Zeroizing::new([0_u8; JOIN_CHARS_MAX]);
        let record = postcard::to_slice(&record, &mut buffer[..]);
        let record = record.map_err(|_| JoinError::TooLong)?;
        let sum = checksum(record);
        let bytes = Zeroizing::new([&*record, &sum].concat());
        let text = format!("{PREFIX}{VERSION}{}", BASE64URL_NOPAD.encode(&bytes));
        if text.len() > JOIN_CHARS_MAX {
            return Err(JoinError::TooLong);
        }
        Ok(text)
    }

    /// Where the hub may be dialled, and by which key it is known.
    pub fn targets(&self) -> impl Iterator<Item = PeerAddr> + '_ {
        let pinned = |at: &PeerAddr| at.clone().with_pins([self.key()]);
        self.addresses.iter().map(pinned)
    }

    /// The hub's key as configuration and logs write it.
    #[must_use]
    pub const fn key(&self) -> PeerKey {
        PeerKey::Ed25519(self.hub)
    }
}

/// An address as it stands in the record: without the port where it is [`PORT`].
fn written(at: &PeerAddr) -> String {
    match (&at.host, at.port) {
        (DialHost::Ip(IpAddr::V6(ip)), PORT) => format!("[{ip}]"),
        (host, PORT) => host.to_string(),
        _ => at.address(),
    }
}

impl FromStr for JoinCode {
    type Err = JoinError;

    /// Blanks and line ends around the text are overlooked.
    fn from_str(text: &str) -> Result<Self, JoinError> {
        let text = text.trim();
        let versioned = text.strip_prefix(PREFIX).ok_or(JoinError::Prefix)?;
        // After the prefix: text of another kind is called that, however long it is.
        if text.len() > JOIN_CHARS_MAX {
            return Err(JoinError::TooLong);
        }
        let Some(body) = versioned.strip_prefix(VERSION) else {
            let version = versioned.split_once('_').map(|(version, _)| version);
            let numbered = |v: &&str| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit());
            return Err(match version.filter(numbered) {
                Some(_) => JoinError::Version,
                None => JoinError::Prefix,
            });
        };
        let bytes = BASE64URL_NOPAD
            .decode(body.as_bytes())
            .map_err(|_| JoinError::Damaged)?;
        let bytes = Zeroizing::new(bytes);
        let (record, sum) = bytes
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or(JoinError::Damaged)?;
        if checksum(record) != *sum {
            return Err(JoinError::Damaged);
        }
        let code = Self::read(record)?;
        // One text for one content: what is written differently was not written by a hub.
        if code.encode()? != text {
            return Err(JoinError::Content);
        }
        Ok(code)
    }
}

impl JoinCode {
    fn read(record: &[u8]) -> Result<Self, JoinError> {
        let (record, rest) = postcard::take_from_bytes::<JoinCodeRecord<'_>>(record)
            .map_err(|_| JoinError::Content)?;
        if !rest.is_empty() {
            return Err(JoinError::Content);
        }
        if record.addresses.is_empty() || record.addresses.len() > ADDRESSES_MAX {
            return Err(JoinError::Addresses);
        }
        let secret = Zeroizing::new(record.token_secret);
        Ok(Self {
            addresses: record
                .addresses
                .iter()
                .map(|at| at.parse().map_err(|_| JoinError::Content))
                .collect::<Result<_, _>>()?,
            hub: record.hub,
            token: EnrolToken::from_parts(record.token_name, *secret)
                .map_err(|_| JoinError::Content)?,
            expires: record.expires,
            role: record.role.parse().map_err(|_| JoinError::Content)?,
        })
    }
}

impl fmt::Debug for JoinCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinCode")
            .field("addresses", &self.addresses)
            .field("hub", &self.key())
            .field("token", &self.token)
            .field("expires", &self.expires)
            .field("role", &self.role)
            .finish()
    }
}

/// CRC-32 as in IEEE 802.3, the lowest byte first: any damage within 32 bits in a row, which is more
/// than one character or two neighbours, is noticed for certain.
fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    const REFLECTED: u32 = 0xedb8_8320;
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (REFLECTED & (crc & 1).wrapping_neg())
        })
    });
    (!crc).to_le_bytes()
}

/// What is wrong with a join string. It is not repeated: it holds a secret.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum JoinError {
    /// None, or more than four.
    #[error("a join string has one to four addresses, without keys")]
    Addresses,
    /// Undamaged, and yet not what a hub writes.
    #[error("the join string is not one that a hub makes: ask for another")]
    Content,
    /// A character is wrong, missing or too many.
    #[error("the join string is damaged: copy it again, all of it")]
    Damaged,
    /// Something else.
    #[error("this is no join string: one begins with alkjoin1_")]
    Prefix,
    /// More than 300 characters.
    #[error("a join string has at most 300 characters: copy it again, or name fewer addresses")]
    TooLong,
    /// Of another version.
    #[error("the join string is of a version that this program does not know: update it")]
    Version,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_known_one() {
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926_u32.to_le_bytes());
    }

    #[test]
    fn an_address_is_written_as_short_as_it_reads_back() {
        for (text, shown) in [
            ("hub.example.org", "hub.example.org"),
            ("hub.example.org:443", "hub.example.org"),
            ("hub:4433", "hub:4433"),
            ("[2001:db8::1]", "[2001:db8::1]"),
            ("[2001:db8::1]:4433", "[2001:db8::1]:4433"),
        ] {
            let at: PeerAddr = text.parse().expect(text);
            assert_eq!(written(&at), shown);
            assert_eq!(shown.parse(), Ok(at));
        }
    }
}
