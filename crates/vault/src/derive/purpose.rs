//! The purposes of keys, and their paths. No row may ever change, because identities depend on it.

use std::fmt;
use std::str::FromStr;

use crate::derive::{DerivationPath, PathIndex};
use crate::error::VaultError;

/// The curve of the key at the end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Curve {
    /// SLIP-0010 with `ed25519 seed`; also for symmetric keys, which are the 32 bytes themselves.
    Ed25519,
    /// SLIP-0010 with `Nist256p1 seed`.
    NistP256,
    /// BIP-32 with `Bitcoin seed`; keys need the feature `secp256k1`.
    Secp256k1,
}

/// The version of the key that seals credentials: 2 and up.
///
/// ```
/// use alknet_vault::KeyVersion;
///
/// assert_eq!(KeyVersion::FIRST.number(), 2);
/// assert_eq!(KeyVersion::new(1), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyVersion(PathIndex);

impl KeyVersion {
    /// The first version; version 1 belonged to another design.
    pub const FIRST: Self = match Self::new(2) {
        Some(version) => version,
        None => unreachable!(),
    };

    /// The version with this number, which must be at least 2 and at most 2³¹ + 1.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        match number.checked_sub(2) {
            Some(place) => match PathIndex::new(place) {
                Some(place) => Some(Self(place)),
                None => None,
            },
            None => None,
        }
    }

    /// The version's number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0.number() + 2
    }
}

impl TryFrom<u32> for KeyVersion {
    type Error = VaultError;

    fn try_from(number: u32) -> Result<Self, VaultError> {
        Self::new(number).ok_or(VaultError::UnknownVersion(number))
    }
}

impl fmt::Display for KeyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

/// The purpose of a key: a closed list, so that no caller can name a path.
///
/// `m/74'/1'/…` belonged to another design and is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyPurpose {
    /// ES256 account key at certificate authorities: one for all devices of the words.
    AcmeAccount,
    /// HMAC key of the audit log.
    AuditMac,
    /// The key that seals blobs: one for all devices of the words.
    Credentials(KeyVersion),
    /// The key that opens the data partition if only the words are left.
    DataRecovery,
    /// DNSSEC key of one zone.
    DnsZone {
        /// The zone.
        zone: PathIndex,
        /// The number of the zone's key.
        generation: PathIndex,
    },
    /// Ethereum; needs the feature `secp256k1`.
    Ethereum,
    /// Signs images and updates on a build machine.
    ImageSigning,
    /// Signs the leaf of this device in groups of messages.
    MessageLeaf,
    /// The identity of this node.
    NodeIdentity,
    /// SSH host key.
    SshHost,
    /// Signs certificates of SSH users.
    SshUserCa,
}

impl KeyPurpose {
    /// The curve of the key.
    #[must_use]
    pub const fn curve(self) -> Curve {
        match self {
            Self::AcmeAccount => Curve::NistP256,
            Self::Ethereum => Curve::Secp256k1,
            _ => Curve::Ed25519,
        }
    }

    /// Whether the key signs; the others encrypt or authenticate inside the vault.
    #[must_use]
    pub const fn signs(self) -> bool {
        !matches!(
            self,
            Self::AuditMac | Self::Credentials(_) | Self::DataRecovery
        )
    }

    /// The path of that device's key. Devices share the keys whose rows do not name them.
    ///
    /// ```
    /// use alknet_vault::{KeyPurpose, PathIndex};
    ///
    /// let second = PathIndex::new(1).expect("a number below 2^31");
    /// let path = KeyPurpose::NodeIdentity.path(second);
    /// assert_eq!(path.to_string(), "m/74'/0'/0'/1'");
    /// ```
    #[must_use]
    pub fn path(self, device: PathIndex) -> DerivationPath {
        const N: [PathIndex; 6] = {
            let mut small = [PathIndex::new(0).expect("small"); 6];
            let mut at = 0;
            while at < small.len() {
                small[at] = PathIndex::new(at as u32).expect("small");
                at += 1;
            }
            small
        };
        const COIN: PathIndex = PathIndex::new(74).expect("small");
        // Device 0 uses the path from before there were devices; the others use one level more, so
        // that none of them equals a neighbouring row.
        let hardened = |rest: &[PathIndex], own: bool| {
            let device = (own && device.number() > 0).then_some(device);
            let all: Vec<_> = [COIN].iter().chain(rest).copied().chain(device).collect();
            DerivationPath::hardened(self.curve(), &all)
        };
        match self {
            Self::AcmeAccount => hardened(&[N[0], N[2], N[0]], false),
            Self::AuditMac => hardened(&[N[2], N[2], N[0]], true),
            Self::Credentials(version) => hardened(&[N[2], N[0], version.0], false),
            Self::DataRecovery => hardened(&[N[2], N[1], N[0]], true),
            Self::DnsZone { zone, generation } => hardened(&[N[4], zone, generation], false),
            // BIP-44 with unhardened last levels, as other Ethereum wallets derive it.
            Self::Ethereum => {
                let levels = [44, 60, 0].map(|n| n | 1 << 31).into_iter().chain([0, 0]);
                DerivationPath::from_numbers(Curve::Secp256k1, levels)
            }
            Self::ImageSigning => hardened(&[N[3], N[0], N[0]], false),
            Self::MessageLeaf => hardened(&[N[5], N[0], device], false),
            Self::NodeIdentity => hardened(&[N[0], N[0], device], false),
            Self::SshHost => hardened(&[N[0], N[1], N[0]], true),
            Self::SshUserCa => hardened(&[N[0], N[1], N[1]], false),
        }
    }
}

/// The name in the audit log, which contains no number that a secret depends on.
impl fmt::Display for KeyPurpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AcmeAccount => f.write_str("acme-account"),
            Self::AuditMac => f.write_str("audit-mac"),
            Self::Credentials(version) => write!(f, "credentials-{version}"),
            Self::DataRecovery => f.write_str("data-recovery"),
            Self::DnsZone { zone, generation } => write!(f, "dns-zone-{zone}-{generation}"),
            Self::Ethereum => f.write_str("ethereum"),
            Self::ImageSigning => f.write_str("image-signing"),
            Self::MessageLeaf => f.write_str("message-leaf"),
            Self::NodeIdentity => f.write_str("node-identity"),
            Self::SshHost => f.write_str("ssh-host"),
            Self::SshUserCa => f.write_str("ssh-user-ca"),
        }
    }
}

/// Parses the names that `Display` writes, and no others.
impl FromStr for KeyPurpose {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str| text.parse().ok();
        let of_version = |text: &str| {
            let version = number(text.strip_prefix("credentials-")?)?;
            KeyVersion::new(version).map(Self::Credentials)
        };
        let of_zone = |text: &str| {
            let (zone, generation) = text.strip_prefix("dns-zone-")?.split_once('-')?;
            let (zone, generation) = (
                PathIndex::new(number(zone)?)?,
                PathIndex::new(number(generation)?)?,
            );
            Some(Self::DnsZone { zone, generation })
        };
        let purpose = match text {
            "acme-account" => Self::AcmeAccount,
            "audit-mac" => Self::AuditMac,
            "data-recovery" => Self::DataRecovery,
            "ethereum" => Self::Ethereum,
            "image-signing" => Self::ImageSigning,
            "message-leaf" => Self::MessageLeaf,
            "node-identity" => Self::NodeIdentity,
            "ssh-host" => Self::SshHost,
            "ssh-user-ca" => Self::SshUserCa,
            other => of_version(other).or_else(|| of_zone(other)).ok_or(())?,
        };
        // A number may have another spelling, which is refused.
        (purpose.to_string() == text).then_some(purpose).ok_or(())
    }
}

/// The purpose of an authentication code under a key of the vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MacPurpose {
    /// Lines of the audit log.
    Audit,
}

impl MacPurpose {
    pub(crate) const fn purpose(self) -> KeyPurpose {
        match self {
            Self::Audit => KeyPurpose::AuditMac,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn n(number: u32) -> PathIndex {
        PathIndex::new(number).expect("below 2³¹")
    }

    #[test]
    fn every_row_lies_where_the_table_says() {
        let version = |number| KeyPurpose::Credentials(KeyVersion::new(number).expect("a version"));
        let zone = KeyPurpose::DnsZone {
            zone: n(3),
            generation: n(9),
        };
        let rows = [
            (KeyPurpose::NodeIdentity, "m/74'/0'/0'/0'", "m/74'/0'/0'/7'"),
            (KeyPurpose::SshHost, "m/74'/0'/1'/0'", "m/74'/0'/1'/0'/7'"),
            (KeyPurpose::SshUserCa, "m/74'/0'/1'/1'", "m/74'/0'/1'/1'"),
            (KeyPurpose::AcmeAccount, "m/74'/0'/2'/0'", "m/74'/0'/2'/0'"),
            (version(2), "m/74'/2'/0'/0'", "m/74'/2'/0'/0'"),
            (version(12), "m/74'/2'/0'/10'", "m/74'/2'/0'/10'"),
            (
                KeyPurpose::DataRecovery,
                "m/74'/2'/1'/0'",
                "m/74'/2'/1'/0'/7'",
            ),
            (KeyPurpose::AuditMac, "m/74'/2'/2'/0'", "m/74'/2'/2'/0'/7'"),
            (KeyPurpose::ImageSigning, "m/74'/3'/0'/0'", "m/74'/3'/0'/0'"),
            (zone, "m/74'/4'/3'/9'", "m/74'/4'/3'/9'"),
            (KeyPurpose::MessageLeaf, "m/74'/5'/0'/0'", "m/74'/5'/0'/7'"),
            (KeyPurpose::Ethereum, "m/44'/60'/0'/0/0", "m/44'/60'/0'/0/0"),
        ];
        for (purpose, first, seventh) in rows {
            assert_eq!(purpose.path(n(0)).to_string(), first, "{purpose}");
            assert_eq!(purpose.path(n(7)).to_string(), seventh, "{purpose}");
            let read = DerivationPath::parse(first, purpose.curve()).expect(first);
            assert_eq!(purpose.path(n(0)), read);
            assert_eq!(purpose.to_string().parse(), Ok(purpose));
        }
    }

    #[test]
    fn other_names_are_no_purposes() {
        for text in [
            "",
            "node",
            "credentials-1",
            "credentials-02",
            "credentials-+2",
            "dns-zone-1",
            "dns-zone-1-2-3",
            "dns-zone-1-2147483648",
            "Node-Identity",
        ] {
            assert_eq!(text.parse::<KeyPurpose>(), Err(()), "{text}");
        }
    }

    #[test]
    fn versions_begin_at_two_and_end_where_paths_do() {
        for number in [0, 1, (1 << 31) + 2, u32::MAX] {
            let error = KeyVersion::try_from(number).expect_err("no version");
            assert!(matches!(error, VaultError::UnknownVersion(got) if got == number));
        }
        for number in [2, (1 << 31) + 1] {
            assert_eq!(KeyVersion::new(number).expect("a version").number(), number);
        }
        assert_eq!(KeyVersion::FIRST.number(), 2);
    }
}
