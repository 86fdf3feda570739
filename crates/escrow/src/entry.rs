//! What is known of a share without the share.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use alknet_core::{AddressRange, PeerId, PeerKey};
use data_encoding::{BASE32_DNSSEC, HEXLOWER};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Characters of an id: 60 bits of a hash.
const ID_CHARS: usize = 12;

/// What a share is called: drawn from the key that it belongs to, so that depositing twice is
/// depositing once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShareId(String);

impl ShareId {
    /// The id of the share of a key.
    #[must_use]
    pub fn from_key(key: &PeerKey) -> Self {
        let hash = Sha256::digest(format!("alknet escrow 1\n{key}\n"));
        // The extended hex alphabet of RFC 4648, section 7, in lower case as RFC 5155 writes it:
        // ids sort as their hashes do.
        let mut text = BASE32_DNSSEC.encode(&hash[..8]);
        text.truncate(ID_CHARS);
        Self(text)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ShareId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'v');
        if text.len() == ID_CHARS && text.bytes().all(plain) {
            return Ok(Self(text.to_owned()));
        }
        Err("a share is called by 12 of 0-9 and a-v; escrow/list shows them")
    }
}

impl TryFrom<String> for ShareId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ShareId> for String {
    fn from(id: ShareId) -> Self {
        id.0
    }
}

impl fmt::Display for ShareId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Half of a key: 32 bytes, 64 hex digits in documents. Wiped when it is let go, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyShare(Zeroizing<[u8; 32]>);

impl KeyShare {
    /// These bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for KeyShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyShare(..)")
    }
}

impl Serialize for KeyShare {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&Zeroizing::new(HEXLOWER.encode(&*self.0)))
    }
}

impl<'de> Deserialize<'de> for KeyShare {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(from)?);
        let mut share = Self::new([0; 32]);
        // Not quoted: it may be one digit short of a secret.
        let wrong = || D::Error::custom("a share is 64 lower-case hex digits");
        if text.len() != 64 {
            return Err(wrong());
        }
        let read = HEXLOWER.decode_mut(text.as_bytes(), &mut *share.0);
        read.map_err(|_| wrong())?;
        Ok(share)
    }
}

/// One share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareEntry {
    /// What it is called.
    pub id: ShareId,
    /// Whose it is.
    pub key: PeerKey,
    /// Which peer that key was when it deposited the share.
    pub peer: PeerId,
    /// The id of the vault that the share opens, as the depositor says.
    pub vault: String,
    /// When it was deposited, in seconds since 1970.
    pub made: Option<u64>,
    /// From where it may be asked for; from anywhere when empty.
    #[serde(default)]
    pub from: Vec<AddressRange>,
    /// Each release waits for an approval.
    #[serde(default)]
    pub approve: bool,
    /// The last release, and how many there were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<ShareRelease>,
    /// It was taken back: the share itself is destroyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<ShareRevocation>,
}

/// A release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareRelease {
    /// How many there were.
    pub count: u64,
    /// When the last was, in seconds since 1970.
    pub time: Option<u64>,
    /// Where it went.
    pub address: Option<IpAddr>,
}

/// The end of a share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareRevocation {
    /// When, in seconds since 1970.
    pub time: Option<u64>,
    /// Which administrator revoked it.
    pub by: String,
}
