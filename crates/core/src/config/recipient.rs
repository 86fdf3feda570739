//! The public keys to which age encrypts, in the form of a document. This module only reads them; `alknet-handover`
//! encrypts.

use std::ops::RangeInclusive;

use data_encoding::BASE64;

/// Least and most bits of an RSA key: age refuses shorter keys, and longer ones are not in use.
const RSA_BITS: RangeInclusive<usize> = 2048..=4096;

/// A public key of age, or one of SSH that age accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgeKey {
    /// `age1…`: a point on Curve25519.
    X25519([u8; 32]),
    /// `ssh-ed25519 …` (RFC 8709 section 4).
    SshEd25519 {
        /// The key in SSH's wire format, by which age tells keys apart.
        wire: Vec<u8>,
        /// The compressed point. It may not lie on the curve.
        point: [u8; 32],
    },
    /// `ssh-rsa …` (RFC 4253 section 6.6). Numbers are positive, big endian, with a zero where the first bit would be
    /// a sign.
    SshRsa {
        /// The key in SSH's wire format.
        wire: Vec<u8>,
        /// The public exponent.
        exponent: Vec<u8>,
        /// The modulus.
        modulus: Vec<u8>,
    },
}

impl AgeKey {
    /// Reads `age1…` as age-keygen prints it, or the line of a `.pub` file, whose third word is a comment. `None` for
    /// any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.contains(char::is_control) {
            return None;
        }
        let mut words = text.split(' ').filter(|word| !word.is_empty());
        match (words.next()?, words.next()) {
            (kind @ ("ssh-ed25519" | "ssh-rsa"), Some(key)) => ssh(kind, key),
            (key, None) => x25519(key).map(Self::X25519),
            _ => None,
        }
    }
}

/// Reads the second word of a public key's line.
fn ssh(kind: &str, text: &str) -> Option<AgeKey> {
    let wire = BASE64.decode(text.as_bytes()).ok()?;
    let mut fields = SshStringReader(&wire);
    // The key itself names its kind again (RFC 4253 section 6.6).
    if fields.next()? != kind.as_bytes() {
        return None;
    }
    let first = fields.next()?;
    let second = (kind == "ssh-rsa").then(|| fields.next());
    // Bytes behind the last field belong to no key of this kind.
    if !fields.0.is_empty() {
        return None;
    }
    let Some(modulus) = second else {
        let point = first.try_into().ok()?;
        return Some(AgeKey::SshEd25519 { wire, point });
    };
    let (exponent, modulus) = (first.to_vec(), modulus?.to_vec());
    // A number whose first bit is set is negative (RFC 4251 section 5).
    let is_positive = |number: &[u8]| number.first().is_some_and(|high| high & 0x80 == 0);
    let is_valid =
        is_positive(&exponent) && is_positive(&modulus) && RSA_BITS.contains(&bits(&modulus));
    is_valid.then_some(AgeKey::SshRsa {
        wire,
        exponent,
        modulus,
    })
}

fn bits(number: &[u8]) -> usize {
    let magnitude = number.strip_prefix(&[0]).unwrap_or(number);
    let unused = magnitude.first().map_or(0, |high| high.leading_zeros());
    (magnitude.len() * 8).saturating_sub(unused as usize)
}

/// Reads byte strings, each of which follows its length.
struct SshStringReader<'a>(&'a [u8]);

impl<'a> SshStringReader<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        // The length has four bytes, big endian (RFC 4251 section 5).
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (field, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }
}

/// Reads 32 bytes in Bech32 (BIP 173) with the prefix `age`.
fn x25519(text: &str) -> Option<[u8; 32]> {
    const CHARACTERS: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
    const CHECKSUM: usize = 6;
    /// The prefix as the checksum takes it: high bits, 0, low bits.
    const PREFIX: [u8; 7] = [3, 3, 3, 0, b'a' & 31, b'g' & 31, b'e' & 31];
    let symbol = |b: u8| CHARACTERS.iter().position(|known| *known == b);
    // BIP 173 allows upper case as well, which age uses for private keys alone.
    let data = text.strip_prefix("age1")?.bytes();
    let symbols: Vec<u8> = data
        .map(|b| symbol(b).map(|it| it as u8))
        .collect::<Option<_>>()?;
    let sum = PREFIX.iter().chain(&symbols).copied().fold(1, bech32_step);
    // Bech32's constant is 1. Bech32m has another one (BIP 350), which age does not use.
    if sum != 1 || symbols.len() != 256_usize.div_ceil(5) + CHECKSUM {
        return None;
    }
    let data = &symbols[..symbols.len() - CHECKSUM];
    let bit = |at: usize| data[at / 5] >> (4 - at % 5) & 1;
    // 52 symbols are 260 bits. The last four are padding and must be zero.
    if (256..260).any(|at| bit(at) == 1) {
        return None;
    }
    let byte = |at: usize| (at * 8..at * 8 + 8).fold(0, |byte, at| byte << 1 | bit(at));
    Some(std::array::from_fn(byte))
}

/// One step of Bech32's checksum.
fn bech32_step(sum: u32, symbol: u8) -> u32 {
    const GENERATORS: [u32; 5] = [
        0x3b6a_57b2,
        0x2650_8e6d,
        0x1ea1_19fa,
        0x3d42_33dd,
        0x2a14_62b3,
    ];
    let next = (sum & 0x01ff_ffff) << 5 ^ u32::from(symbol);
    let set_bits = (0..5).filter(|bit| sum >> 25 >> bit & 1 == 1);
    set_bits.fold(next, |next, bit| next ^ GENERATORS[bit])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ADA: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

    #[test]
    fn a_key_of_age_is_32_bytes_and_a_checksum() {
        assert!(matches!(AgeKey::parse(ADA), Some(AgeKey::X25519(_))));
        for bad in [
            "",
            "age1",
            &ADA.to_uppercase(),
            &ADA.replace("zvk", "zvj"),
            &ADA[..60],
            &format!("{ADA} x"),
            &format!("{ADA}\n"),
            "AGE-SECRET-KEY-1QQQ",
            "age1pq1qqqq",
        ] {
            assert_eq!(AgeKey::parse(bad), None, "{bad}");
        }
    }

    /// A key as SSH sends it.
    fn wire(fields: &[&[u8]]) -> String {
        let field = |bytes: &&[u8]| [&(bytes.len() as u32).to_be_bytes(), *bytes].concat();
        BASE64.encode(&fields.iter().flat_map(field).collect::<Vec<u8>>())
    }

    #[test]
    fn a_key_of_ssh_is_whole_and_of_its_kind() {
        let modulus = |bytes: usize| [&[0, 0x80][..], &vec![1; bytes - 1]].concat();
        let parsed = |kind: &str, fields: &[&[u8]]| {
            AgeKey::parse(&format!("{kind} {} ada@laptop", wire(fields)))
        };
        let rsa =
            |exponent: &[u8], modulus: &[u8]| parsed("ssh-rsa", &[b"ssh-rsa", exponent, modulus]);
        assert!(parsed("ssh-ed25519", &[b"ssh-ed25519", &[7; 32]]).is_some());
        assert!(rsa(&[1, 0, 1], &modulus(256)).is_some());
        for bad in [
            parsed("ssh-ed25519", &[b"ssh-ed25519", &[7; 31]]),
            parsed("ssh-ed25519", &[b"ssh-ed25519", &[7; 32], &[]]),
            parsed("ssh-ed25519", &[b"ssh-rsa", &[7; 32]]),
            parsed("ssh-dss", &[b"ssh-dss", &[7; 32]]),
            parsed("ssh-rsa", &[b"ssh-rsa", &[3]]),
            rsa(&[], &modulus(256)),
            rsa(&[0x83], &modulus(256)),
            rsa(&[3], &modulus(256)[1..]),
            rsa(&[3], &modulus(128)),
            rsa(&[3], &modulus(520)),
        ] {
            assert_eq!(bad, None);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "(age1|ssh-ed25519 |ssh-rsa )?[a-z0-9+/= ]{0,80}") {
            let _ = AgeKey::parse(&text);
        }
    }
}
