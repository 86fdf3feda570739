//! Join strings and the enrolment tokens in them.

use alknet_hub::{EnrolToken, JoinCode};

/// Reads the input as a text and, because no mutation finds a correct checksum, as the record in a text whose
/// checksum is correct.
pub fn join(data: &[u8]) -> bool {
    // With its checksum, any content gets past the first check.
    let whole = format!("alkjoin1_{}", base64url(&[data, &checksum(data)].concat()));
    let taken = [std::str::from_utf8(data).ok(), Some(&whole)]
        .into_iter()
        .flatten()
        .filter(|text| holds(text))
        .count();
    taken > 0
}

fn holds(text: &str) -> bool {
    let token = text.parse::<EnrolToken>();
    assert_eq!(token.is_ok(), is_token(text));
    if let Ok(token) = &token {
        assert_eq!(*token.expose(), text, "one token, one text");
        hides(&format!("{token:?} {:?}", token.hash()), token);
    }
    let code = text.parse::<JoinCode>();
    if let Ok(code) = &code {
        assert_eq!(
            code.encode().as_deref(),
            Ok(text.trim()),
            "one content, one text"
        );
        assert!(text.trim().len() <= 300);
        assert!((1..=4).contains(&code.addresses.len()));
        for target in code.targets() {
            assert_eq!(
                target.pins,
                [code.key()],
                "any other node that answers there is not the hub"
            );
        }
        hides(&format!("{code:?}"), &code.token);
    }
    token.is_ok() || code.is_ok()
}

/// The text in a log does not contain the secret.
fn hides(text: &str, token: &EnrolToken) {
    assert!(!text.contains(&token.expose()[13..]), "a secret is shown");
}

/// `ale_`, a name, `_`, and 43 characters of base64url whose last two bits are zero, as those of 32 bytes are.
fn is_token(text: &str) -> bool {
    let Some((name, secret)) = text.strip_prefix("ale_").and_then(|t| t.split_once('_')) else {
        return false;
    };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let of_64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    name.len() == 8
        && name.bytes().all(plain)
        && secret.len() == 43
        && secret.bytes().all(of_64)
        && secret.ends_with(|c: char| "AEIMQUYcgkosw048".contains(c))
}

/// RFC 4648 section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len() * 4 / 3 + 2);
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, i| {
            bits << 8 | u32::from(chunk.get(i).copied().unwrap_or_default())
        });
        for digit in 0..=chunk.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]));
        }
    }
    text
}

/// CRC-32 of IEEE 802.3 by polynomial division, bit after bit, the lowest byte first.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for byte in bytes {
        for bit in 0..8 {
            let out = (crc ^ u32::from(byte >> bit)) & 1 == 1;
            crc >>= 1;
            if out {
                crc ^= 0xedb8_8320;
            }
        }
    }
    (!crc).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_becomes_the_text_that_a_hub_writes() {
        assert_eq!(base64url(b"\xfb\xff"), "-_8");
        assert_eq!(base64url(b"foobar"), "Zm9vYmFy");
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926_u32.to_le_bytes());
    }
}
