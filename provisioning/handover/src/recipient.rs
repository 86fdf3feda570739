//! Public keys, and what the file key looks like to their holders.

use std::str::FromStr;

use curve25519_dalek::MontgomeryPoint;
use data_encoding::BASE64_NOPAD;
use zeroize::Zeroizing;

use crate::seal::{chacha, hkdf, random};
use crate::{FILE_KEY_BYTES, HandoverError, ssh};

/// Somebody who can open a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient(pub(crate) Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A key of age's own.
    X25519([u8; 32]),
    Ssh(ssh::Key),
}

/// The file key for one recipient.
pub(crate) struct Stanza {
    pub(crate) arguments: Vec<String>,
    pub(crate) body: Vec<u8>,
}

impl FromStr for Recipient {
    type Err = HandoverError;

    fn from_str(text: &str) -> Result<Self, HandoverError> {
        let text = text.trim();
        let kind = if text.starts_with("ssh-") {
            ssh::Key::parse(text).map(Kind::Ssh)
        } else {
            bech32(text).map(Kind::X25519)
        };
        kind.map(Self).ok_or(HandoverError::Recipient)
    }
}

impl Recipient {
    pub(crate) fn wrap(&self, file_key: &[u8; FILE_KEY_BYTES]) -> Result<Stanza, HandoverError> {
        match &self.0 {
            Kind::Ssh(key) => key.wrap(file_key),
            Kind::X25519(point) => {
                let info = b"age-encryption.org/v1/X25519";
                let (share, body) = agree(point, None, info, file_key)?;
                Ok(Stanza {
                    arguments: vec!["X25519".to_owned(), BASE64_NOPAD.encode(&share)],
                    body,
                })
            }
        }
    }
}

/// Agrees on a key with the holder of a point by a share made for this once, and wraps the file key
/// with it. A tweak binds the agreement to more than the point.
pub(crate) fn agree(
    point: &[u8; 32],
    tweak: Option<[u8; 32]>,
    info: &[u8],
    file_key: &[u8; FILE_KEY_BYTES],
) -> Result<([u8; 32], Vec<u8>), HandoverError> {
    let secret = Zeroizing::new(random::<32>()?);
    let share = MontgomeryPoint::mul_base_clamped(*secret).to_bytes();
    let agreed = MontgomeryPoint(*point).mul_clamped(*secret);
    let agreed = match tweak {
        Some(tweak) => agreed.mul_clamped(tweak),
        None => agreed,
    };
    let agreed = Zeroizing::new(agreed.to_bytes());
    // A point of small order: everybody would agree on the same.
    if *agreed == [0; 32] {
        return Err(HandoverError::Recipient);
    }
    let salt = [share, *point].concat();
    let wrapped = chacha(&hkdf(&salt, &*agreed, info), [0; 12], file_key)?;
    Ok((share, wrapped))
}

/// 32 bytes in Bech32 (BIP 173) under `age`.
fn bech32(text: &str) -> Option<[u8; 32]> {
    const CHARACTERS: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
    const CHECKSUM: usize = 6;
    const GENERATORS: [u32; 5] = [
        0x3b6a_57b2,
        0x2650_8e6d,
        0x1ea1_19fa,
        0x3d42_33dd,
        0x2a14_62b3,
    ];
    let step = |sum: u32, symbol: u32| {
        let next = (sum & 0x01ff_ffff) << 5 ^ symbol;
        let taken = (0..5).filter(|bit| sum >> 25 >> bit & 1 == 1);
        taken.fold(next, |next, bit| next ^ GENERATORS[bit])
    };
    let place = |b: u8| CHARACTERS.iter().position(|known| *known == b);
    let place = |b: u8| place(b).and_then(|it| u32::try_from(it).ok());
    let symbols: Vec<u32> = text
        .strip_prefix("age1")?
        .bytes()
        .map(place)
        .collect::<Option<_>>()?;
    let prefix = [3, 3, 3, 0, 1, 7, 5];
    let sum = prefix.iter().chain(&symbols).copied().fold(1, step);
    if sum != 1 || symbols.len() != 256_usize.div_ceil(5) + CHECKSUM {
        return None;
    }
    let data = &symbols[..symbols.len() - CHECKSUM];
    let bit = |at: usize| data[at / 5] >> (4 - at % 5) & 1;
    // 52 symbols are 260 bits; the last four have to be nothing.
    if (256..260).any(|at| bit(at) == 1) {
        return None;
    }
    let byte = |at: usize| (at * 8..at * 8 + 8).fold(0, |byte, at| byte << 1 | bit(at) as u8);
    Some(std::array::from_fn(byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ADA: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

    #[test]
    fn a_recipient_is_32_bytes_and_a_checksum() {
        assert!(ADA.parse::<Recipient>().is_ok());
        for bad in [
            "",
            "age1",
            &ADA.to_uppercase(),
            &ADA.replace("zvk", "zvj"),
            &ADA[..60],
            "AGE-SECRET-KEY-1QQQ",
            "age1pq1qqqq",
        ] {
            assert_eq!(
                bad.parse::<Recipient>(),
                Err(HandoverError::Recipient),
                "{bad}"
            );
        }
    }

    #[test]
    fn nobody_agrees_with_a_point_of_small_order() {
        for point in [[0; 32], std::array::from_fn(|at| u8::from(at == 0))] {
            let wrapped = Recipient(Kind::X25519(point)).wrap(&[7; FILE_KEY_BYTES]);
            assert_eq!(wrapped.err(), Some(HandoverError::Recipient));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "(age1|ssh-ed25519 |ssh-rsa )?[a-z0-9+/= ]{0,80}") {
            let _ = text.parse::<Recipient>();
        }
    }
}
