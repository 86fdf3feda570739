//! A range of network addresses in the form that people write: `192.0.2.0/24`, `2001:db8::/32`, or one address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Addresses with the same prefix. Documents hold its text.
///
/// ```
/// use alknet_core::{AddressRange, RangeError};
///
/// let range: AddressRange = "192.0.2.0/24".parse()?;
/// assert!(range.contains([192, 0, 2, 7].into()));
/// assert_eq!("192.0.2.7/24".parse::<AddressRange>(), Err(RangeError::Bits));
/// # Ok::<(), RangeError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange {
    first: IpAddr,
    bits: u8,
}

impl AddressRange {
    /// Whether `address` is in the range. An IPv4 address that is written as IPv6 counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                let differ = u32::from(first) ^ u32::from(address);
                // A prefix length of 0 shifts by all bits, and every address is in the range.
                differ.checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                let differ = u128::from(first) ^ u128::from(address);
                differ.checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// Why a text is no range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RangeError {
    /// The text has no address.
    #[error("write an address, or a range like 192.0.2.0/24 or 2001:db8::/32")]
    Address,
    /// The address has bits beyond the prefix.
    #[error("the address has bits beyond the prefix length")]
    Bits,
    /// The prefix length is longer than the address.
    #[error("the prefix length is 0 to {0}")]
    Length(u8),
}

impl FromStr for AddressRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let first: IpAddr = address.parse().map_err(|_| RangeError::Address)?;
        let most = if first.is_ipv4() { 32 } else { 128 };
        let bits = match length {
            None => most,
            Some(length) => {
                // `parse` would accept a sign.
                let plain = length.bytes().all(|byte| byte.is_ascii_digit());
                let bits = length.parse::<u8>().ok().filter(|bits| *bits <= most);
                bits.filter(|_| plain).ok_or(RangeError::Length(most))?
            }
        };
        let rest = match first {
            // A single address shifts by all bits, and has none beyond.
            IpAddr::V4(first) => u32::from(first).checked_shl(bits.into()).unwrap_or(0) != 0,
            IpAddr::V6(first) => u128::from(first).checked_shl(bits.into()).unwrap_or(0) != 0,
        };
        if rest {
            return Err(RangeError::Bits);
        }
        Ok(Self { first, bits })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

impl TryFrom<String> for AddressRange {
    type Error = RangeError;

    fn try_from(text: String) -> Result<Self, RangeError> {
        text.parse()
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> Self {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> AddressRange {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_range_holds_what_begins_like_it() {
        for (text, inside, outside) in [
            ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("10.0.0.0/9", "10.127.0.1", "10.128.0.1"),
            ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::/0", "fe80::1", "192.0.2.1"),
            ("fe80::1/128", "fe80::1", "fe80::2"),
            ("192.0.2.0/24", "::ffff:192.0.2.9", "::ffff:192.0.3.9"),
        ] {
            let address = |text: &str| text.parse().expect("an address");
            assert!(range(text).contains(address(inside)), "{text} {inside}");
            assert!(!range(text).contains(address(outside)), "{text} {outside}");
        }
    }

    #[test]
    fn an_invalid_range_is_an_error() {
        for (text, error) in [
            ("", RangeError::Address),
            ("example.org", RangeError::Address),
            ("192.0.2.0/33", RangeError::Length(32)),
            ("192.0.2.0/", RangeError::Length(32)),
            ("192.0.2.0/+8", RangeError::Length(32)),
            ("::/129", RangeError::Length(128)),
            ("192.0.2.1/24", RangeError::Bits),
            ("192.0.2.0/0", RangeError::Bits),
        ] {
            assert_eq!(text.parse::<AddressRange>(), Err(error), "{text}");
        }
        assert_eq!(range("192.0.2.1").to_string(), "192.0.2.1/32");
        assert_eq!(range("2001:db8::/32").to_string(), "2001:db8::/32");
    }
}
