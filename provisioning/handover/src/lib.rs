//! Encrypts a secret to the holder of a key: files of age, version 1 (C2SP `age.md`), armored, for
//! X25519 recipients and the SSH keys that age supports. This crate only writes such files. The
//! standard tool opens them.
//!
//! A file is a header, which has the random file key wrapped for each recipient and a MAC, and then
//! the content, encrypted with a derived key. The `age` library would bring a second generation of
//! every cipher, a translation system and an RSA implementation that also decrypts. This crate has
//! only the encrypting half.

mod recipient;
mod seal;
mod ssh;

use data_encoding::{BASE64, BASE64_NOPAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

pub use recipient::AgeRecipient;

use seal::{chacha, hkdf, random};

/// Most recipients of one file.
pub const RECIPIENTS_MAX: usize = 8;
/// Longest content: words and a text about them, in one chunk of the format.
pub const CONTENT_BYTES_MAX: usize = 64 << 10;

const FIRST_LINE: &str = "age-encryption.org/v1\n";
const FILE_KEY_BYTES: usize = 16;
/// Base64 characters per line, in a stanza and in the armor.
const COLUMNS: usize = 64;

/// Why encrypting failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandoverError {
    /// The cipher or the random generator failed.
    #[error("the encryption failed")]
    Failed,
    /// No recipient, or too many.
    #[error("{0} recipients; 1 to {RECIPIENTS_MAX} are possible")]
    Recipients(usize),
    /// A text that is not a public key that age supports. Not quoted, because it may be a private
    /// key.
    #[error(
        "this is not a public key to encrypt to; write age1… as age-keygen prints it, or a line of \
         ssh-ed25519 or ssh-rsa"
    )]
    Recipient,
    /// Longer content than a file may have.
    #[error("{0} bytes are more than {CONTENT_BYTES_MAX}")]
    TooLong(usize),
}

/// A file of age, as text, that each of the recipients can open.
///
/// ```
/// let ada = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj".parse()?;
/// let file = alknet_handover::encrypt(b"secret", &[ada])?;
/// assert!(file.starts_with("-----BEGIN AGE ENCRYPTED FILE-----\n"));
/// # Ok::<(), alknet_handover::HandoverError>(())
/// ```
///
/// # Errors
/// See [`HandoverError`].
pub fn encrypt(content: &[u8], recipients: &[AgeRecipient]) -> Result<String, HandoverError> {
    if !(1..=RECIPIENTS_MAX).contains(&recipients.len()) {
        return Err(HandoverError::Recipients(recipients.len()));
    }
    if content.len() > CONTENT_BYTES_MAX {
        return Err(HandoverError::TooLong(content.len()));
    }
    let file_key = Zeroizing::new(random::<FILE_KEY_BYTES>()?);
    let mut file = header(&file_key, recipients)?.into_bytes();
    // The nonce is public. It makes the payload's key different for each file.
    let nonce = random::<16>()?;
    file.extend(nonce);
    file.extend(payload(&file_key, &nonce, content)?);
    Ok(armor(&file))
}

fn header(
    file_key: &[u8; FILE_KEY_BYTES],
    recipients: &[AgeRecipient],
) -> Result<String, HandoverError> {
    let mut header = FIRST_LINE.to_owned();
    for recipient in recipients {
        let stanza = recipient.wrap(file_key)?;
        header += &format!("-> {}\n", stanza.arguments.join(" "));
        header += &body(&stanza.body);
    }
    // The MAC covers the three dashes, but not the space after them (the age format, C2SP).
    header += "---";
    let key = hkdf(&[], file_key, b"header");
    let mut mac = Hmac::<Sha256>::new_from_slice(&*key).map_err(|_| HandoverError::Failed)?;
    mac.update(header.as_bytes());
    let mac = BASE64_NOPAD.encode(&mac.finalize().into_bytes());
    Ok(header + " " + &mac + "\n")
}

/// Base64 in lines. The last line is never full, so it may be empty.
fn body(bytes: &[u8]) -> String {
    let text = BASE64_NOPAD.encode(bytes);
    let full = text.len() / COLUMNS * COLUMNS;
    let (lines, rest) = text.split_at(full);
    wrapped(lines) + rest + "\n"
}

fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    for line in text.as_bytes().chunks(COLUMNS) {
        lines.extend(line.iter().copied().map(char::from));
        lines.push('\n');
    }
    lines
}

/// The only chunk is the last one: number 0, and a 1 at the end of its nonce.
fn payload(
    file_key: &[u8; FILE_KEY_BYTES],
    nonce: &[u8; 16],
    content: &[u8],
) -> Result<Vec<u8>, HandoverError> {
    let key = hkdf(nonce, file_key, b"payload");
    let mut last = [0; 12];
    last[11] = 1;
    chacha(&key, last, content)
}

fn armor(file: &[u8]) -> String {
    let lines = wrapped(&BASE64.encode(file));
    format!("-----BEGIN AGE ENCRYPTED FILE-----\n{lines}-----END AGE ENCRYPTED FILE-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

    #[test]
    fn lines_end_where_the_format_wants_it() {
        assert_eq!(body(&[]), "\n");
        assert_eq!(body(&[0; 48]), format!("{}\n\n", "A".repeat(64)));
        assert_eq!(body(&[0; 32]), format!("{}\n", "A".repeat(43)));
        let armored = armor(&[0; 100]);
        assert!(armored.lines().all(|line| line.len() <= COLUMNS));
        assert!(armored.ends_with("=\n-----END AGE ENCRYPTED FILE-----\n"));
    }

    #[test]
    fn limits_are_kept() {
        let ada: AgeRecipient = ADA.parse().expect("a recipient");
        let many = vec![ada.clone(); RECIPIENTS_MAX + 1];
        assert_eq!(encrypt(b"", &[]), Err(HandoverError::Recipients(0)));
        assert_eq!(encrypt(b"", &many), Err(HandoverError::Recipients(9)));
        assert!(encrypt(b"", &many[1..]).is_ok());
        let long = vec![0; CONTENT_BYTES_MAX + 1];
        assert!(encrypt(&long[1..], std::slice::from_ref(&ada)).is_ok());
        let refused = encrypt(&long, &[ada]);
        assert_eq!(refused, Err(HandoverError::TooLong(CONTENT_BYTES_MAX + 1)));
    }
}
