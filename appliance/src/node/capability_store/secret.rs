//! Parses the bytes of an opened record by the credential's kind. No message repeats any of them.

use alknet_core::config::CredentialConfig;
use alknet_core::{CapabilityBackend, CapabilityKind, Secret, SecretLocation};
use alknet_vault::{SecretArr, SecretBytes};
use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};

use super::sealed::SealedSigner;

/// Maximum length of a secret that goes into a header, in bytes.
const HEADER_BYTES_MAX: usize = 8 << 10;
/// Begin and end of a private key in PEM (RFC 7468).
const PEM: (&[u8], &[u8]) = (b"-----BEGIN PRIVATE KEY-----", b"-----END PRIVATE KEY-----");
/// Bytes of an Ed25519 key in PKCS #8 (RFC 8410) between its version and its 32 bytes.
const ED25519: [u8; 11] = [
    0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// Number of bytes of length and version before those.
const PKCS8_HEAD: usize = 5;

/// What a capability with this secret does.
///
/// # Errors
/// The secret does not have the form of its kind.
pub(super) fn power(
    config: &CredentialConfig,
    secret: &[u8],
) -> Result<CapabilityBackend, &'static str> {
    Ok(match config.kind {
        CapabilityKind::Bearer => CapabilityBackend::Bearer(header(secret)?),
        CapabilityKind::Basic => CapabilityBackend::Basic {
            user: config.user.clone().unwrap_or_default(),
            password: header(secret)?,
        },
        CapabilityKind::ApiKey => {
            let locations = [
                (SecretLocation::Header, &config.header),
                (SecretLocation::Query, &config.query),
                (SecretLocation::Cookie, &config.cookie),
            ];
            let configured = |(location, name): (SecretLocation, &Option<String>)| {
                Some((location, name.clone()?))
            };
            let configured = locations.into_iter().find_map(configured);
            let (location, name) = configured.ok_or("it does not say where its key goes")?;
            CapabilityBackend::ApiKey {
                location,
                name,
                key: header(secret)?,
            }
        }
        CapabilityKind::Bytes => CapabilityBackend::Bytes(Secret::new(secret.to_vec())),
        CapabilityKind::Signer => {
            let key = seed(secret).and_then(|seed| SealedSigner::new(seed.expose()));
            let key = key.ok_or(
                "its secret is no Ed25519 key: 64 hex digits, or PEM as 'openssl genpkey -algorithm \
                 ed25519' writes it",
            )?;
            CapabilityBackend::Signer(Box::new(key))
        }
        _ => return Err("nothing of this kind has a secret"),
    })
}

/// The secret as one line for a header. A line end, which editors add, is not part of it.
fn header(secret: &[u8]) -> Result<Secret, &'static str> {
    // Editors end the last line with a line feed, and some with a carriage return before it.
    let line = secret.strip_suffix(b"\n").unwrap_or(secret);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let plain = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    let at_ends = |byte: Option<&u8>| byte == Some(&b' ');
    let is_printable_line = (1..=HEADER_BYTES_MAX).contains(&line.len()) && line.iter().all(plain);
    // A recipient removes spaces from the ends of a header's value (RFC 9110, 5.5), so the secret
    // would arrive changed.
    if is_printable_line && !at_ends(line.first()) && !at_ends(line.last()) {
        return Ok(Secret::new(line.to_vec()));
    }
    Err(
        "its secret is not one line of 1 to 8192 printable ASCII characters without a space at either end",
    )
}

/// The seed of an Ed25519 key: 32 bytes (RFC 8032), in hex or in PEM.
fn seed(secret: &[u8]) -> Option<SecretArr<32>> {
    let text = secret.trim_ascii();
    if text.len() == 64 {
        let bytes = HEXLOWER_PERMISSIVE.decode(text).ok()?;
        return SecretArr::from_slice(SecretBytes::from_vec(bytes).expose());
    }
    let body = text.strip_prefix(PEM.0)?.strip_suffix(PEM.1)?;
    // The vector gets its full length at once: growing it would leave copies of the secret in freed
    // memory.
    let mut base64 = Vec::with_capacity(body.len());
    base64.extend(body.iter().filter(|byte| !byte.is_ascii_whitespace()));
    let base64 = SecretBytes::from_vec(base64);
    let der = SecretBytes::from_vec(BASE64.decode(base64.expose()).ok()?);
    let key = der.expose().get(PKCS8_HEAD..)?.strip_prefix(&ED25519)?;
    // A public key may follow (RFC 5958).
    SecretArr::from_slice(key.get(..32)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8410, section 10.3, without and with attributes and public key.
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
                       MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                       -----END PRIVATE KEY-----\n";
    const KEY_2: &str = "-----BEGIN PRIVATE KEY-----\n\
                         MHICAQEwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                         oB8wHQYKKoZIhvcNAQkJFDEPDA1DdXJkbGUgQ2hhaXJzgSEAGb9ECWmEzf6FQbrB\n\
                         Z9w7lshQhqowtrbLDFw4rXAxZuE=\n\
                         -----END PRIVATE KEY-----\n";
    const SEED: &str = "d4ee72dbf913584ad5b6d8f1f769f8ad3afe7c28cbf1d4fbe097a88f44755842";

    #[test]
    fn a_key_comes_in_the_forms_that_people_have() {
        let seed_of = |text: &str| {
            let seed = seed(text.as_bytes())?;
            Some(data_encoding::HEXLOWER.encode(seed.expose()))
        };
        for text in [
            KEY,
            KEY_2,
            SEED,
            &format!("{}\n", SEED.to_uppercase()),
            &KEY.replace('\n', "\r\n"),
        ] {
            assert_eq!(seed_of(text).as_deref(), Some(SEED), "{text}");
        }
        for text in [
            "",
            "hush",
            &SEED[1..],
            &KEY.replace("VwBC", "VuBC"),
            &KEY[..60],
        ] {
            assert_eq!(seed_of(text), None, "{text}");
        }
    }

    #[test]
    fn what_a_header_cannot_hold_is_refused() {
        for fine in ["sk-1", "sk-1\n", "sk-1\r\n", "two words"] {
            let kept = header(fine.as_bytes()).expect(fine);
            assert_eq!(kept.expose(), fine.trim_end().as_bytes());
        }
        for bad in ["", "\n", "a\nb", "a\n\n", " a", "a ", "a\0", "ä"] {
            assert!(header(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(header(&[b'x'; HEADER_BYTES_MAX + 1]).is_err());
    }
}
