//! Signatures of files, in the form of the program minisign 0.11.
//!
//! ```
//! use alknet_image_write::minisign::{MinisignKey, MinisignSecretKey, MinisignSignature};
//!
//! let key = MinisignSecretKey::from_seed(&[7; 32]);
//! let text = key.sign(&mut &b"content"[..], "file:example")?;
//! let public: MinisignKey = key.public().to_string().parse().expect("our own form");
//! let signature: MinisignSignature = text.parse().expect("our own form");
//! assert_eq!(signature.verify(&public, &mut &b"content"[..]), Ok(()));
//! assert!(signature.verify(&public, &mut &b"another"[..]).is_err());
//! # Ok::<(), std::io::Error>(())
//! ```

mod comment;
mod secret;

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use blake2::{Blake2b512, Digest};
use data_encoding::BASE64;
use ed25519_dalek::{Signature, VerifyingKey};
use thiserror::Error;

pub use comment::{comment_names, file_comment};
pub use secret::{EncryptedKey, MinisignSecretKey};

/// An Ed25519 signature of the file itself.
const LEGACY: [u8; 2] = *b"Ed";
/// An Ed25519 signature of the file's BLAKE2b-512.
const HASHED: [u8; 2] = *b"ED";
/// Longest file of a key or a signature, in bytes: minisign's lines have at most 1,024 and 8,192.
pub const TEXT_BYTES_MAX: u64 = 32 << 10;
/// Longest file with a signature of the older kind, which has to be in memory as a whole.
const LEGACY_BYTES_MAX: u64 = 1 << 30;
/// Bytes that are hashed at once.
const READ_BYTES: usize = 1 << 20;

const UNTRUSTED: &str = "untrusted comment: ";
const TRUSTED: &str = "trusted comment: ";

/// Why a key or a signature cannot be used, or does not hold.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MinisignError {
    /// The text has another form.
    #[error("it is no {0} of minisign")]
    Form(&'static str),
    /// The signature was made by another key.
    #[error("the key {expected} did not make it; the key {actual} did")]
    OtherKey {
        /// The id of the key that was asked for.
        expected: MinisignKeyId,
        /// The id in the signature.
        actual: MinisignKeyId,
    },
    /// The file is not the one that was signed.
    #[error("the file is not the one that was signed")]
    OtherContent,
    /// The trusted comment is not the one that was signed.
    #[error("the trusted comment of the signature was changed")]
    OtherComment,
    /// The password does not open the secret key.
    #[error("the password does not open the secret key")]
    WrongPassword,
    /// The secret key needs a password.
    #[error("the secret key has a password")]
    PasswordNeeded,
    /// The secret key asks for more memory than this program uses for it.
    #[error("the secret key asks for {0} bytes of memory, which is too much")]
    Costly(u64),
    /// The file cannot be read.
    #[error("the file cannot be read: {0}")]
    Unreadable(String),
}

/// The number by which a signature names its key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MinisignKeyId([u8; 8]);

/// As minisign shows it: 16 hexadecimal digits, the last byte first.
impl fmt::Display for MinisignKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

impl fmt::Debug for MinisignKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MinisignKeyId({self})")
    }
}

/// A public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinisignKey {
    id: MinisignKeyId,
    key: VerifyingKey,
}

impl MinisignKey {
    /// The key's number.
    #[must_use]
    pub const fn id(&self) -> MinisignKeyId {
        self.id
    }

    /// The file of the key, as minisign writes it.
    #[must_use]
    pub fn file(&self) -> String {
        format!("{UNTRUSTED}minisign public key {}\n{self}\n", self.id)
    }
}

/// The line that begins with `RW`, which `minisign -P` takes.
impl fmt::Display for MinisignKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let raw = [&LEGACY[..], &self.id.0, self.key.as_bytes()].concat();
        f.write_str(&BASE64.encode(&raw))
    }
}

/// Parses that line, or a file with it.
impl FromStr for MinisignKey {
    type Err = MinisignError;

    fn from_str(text: &str) -> Result<Self, MinisignError> {
        const FORM: MinisignError = MinisignError::Form("public key");
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let line = lines
            .find(|line| !line.starts_with(UNTRUSTED))
            .ok_or(FORM)?;
        let raw = BASE64.decode(line.as_bytes()).map_err(|_| FORM)?;
        let (kind, rest) = raw.split_first_chunk::<2>().ok_or(FORM)?;
        let (id, key) = rest.split_first_chunk::<8>().ok_or(FORM)?;
        let key: &[u8; 32] = key.try_into().map_err(|_| FORM)?;
        if *kind != LEGACY {
            return Err(FORM);
        }
        Ok(Self {
            id: MinisignKeyId(*id),
            key: VerifyingKey::from_bytes(key).map_err(|_| FORM)?,
        })
    }
}

/// A signature: what a file with the ending `.minisig` has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MinisignSignature {
    is_hashed: bool,
    id: MinisignKeyId,
    signature: [u8; 64],
    trusted: String,
    global: [u8; 64],
}

impl MinisignSignature {
    /// The comment that the signature holds for, too.
    #[must_use]
    pub fn trusted_comment(&self) -> &str {
        &self.trusted
    }

    /// Checks the content of a file, and the trusted comment.
    ///
    /// # Errors
    /// The file cannot be read, or the signature does not hold for it.
    pub fn verify(&self, key: &MinisignKey, file: &mut dyn Read) -> Result<(), MinisignError> {
        if self.id != key.id {
            return Err(MinisignError::OtherKey {
                expected: key.id,
                actual: self.id,
            });
        }
        let unreadable = |error: io::Error| MinisignError::Unreadable(error.to_string());
        let message = match self.is_hashed {
            true => hash(file).map_err(unreadable)?.to_vec(),
            false => {
                let mut whole = Vec::new();
                let mut file = file.take(LEGACY_BYTES_MAX + 1);
                file.read_to_end(&mut whole).map_err(unreadable)?;
                if whole.len() as u64 > LEGACY_BYTES_MAX {
                    let text = "it is longer than 1 GiB, and the signature is of the older kind";
                    return Err(MinisignError::Unreadable(text.to_owned()));
                }
                whole
            }
        };
        let signature = Signature::from_bytes(&self.signature);
        let holds = key.key.verify_strict(&message, &signature);
        holds.map_err(|_| MinisignError::OtherContent)?;
        let signed = [&self.signature[..], self.trusted.as_bytes()].concat();
        let global = Signature::from_bytes(&self.global);
        let holds = key.key.verify_strict(&signed, &global);
        holds.map_err(|_| MinisignError::OtherComment)
    }
}

/// The file of the signature, as minisign writes it.
impl fmt::Display for MinisignSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_hashed { HASHED } else { LEGACY };
        let raw = [&kind[..], &self.id.0, &self.signature].concat();
        writeln!(f, "{UNTRUSTED}signature of the key {}", self.id)?;
        writeln!(f, "{}", BASE64.encode(&raw))?;
        writeln!(f, "{TRUSTED}{}", self.trusted)?;
        writeln!(f, "{}", BASE64.encode(&self.global))
    }
}

impl FromStr for MinisignSignature {
    type Err = MinisignError;

    fn from_str(text: &str) -> Result<Self, MinisignError> {
        const FORM: MinisignError = MinisignError::Form("signature");
        // A line break within the trusted comment would be a fifth line.
        let lines: Vec<&str> = text.lines().collect();
        let [comment, signature, trusted, global] = lines[..] else {
            return Err(FORM);
        };
        if !comment.starts_with(UNTRUSTED) {
            return Err(FORM);
        }
        let decoded = |line: &str| BASE64.decode(line.trim().as_bytes()).map_err(|_| FORM);
        let raw = decoded(signature)?;
        let (kind, rest) = raw.split_first_chunk::<2>().ok_or(FORM)?;
        let (id, signature) = rest.split_first_chunk::<8>().ok_or(FORM)?;
        let is_hashed = match *kind {
            HASHED => true,
            LEGACY => false,
            _ => return Err(FORM),
        };
        Ok(Self {
            is_hashed,
            id: MinisignKeyId(*id),
            signature: signature.try_into().map_err(|_| FORM)?,
            trusted: trusted.strip_prefix(TRUSTED).ok_or(FORM)?.to_owned(),
            global: decoded(global)?.try_into().map_err(|_| FORM)?,
        })
    }
}

/// BLAKE2b-512 of everything in `file`.
fn hash(file: &mut dyn Read) -> io::Result<[u8; 64]> {
    let mut hasher = Blake2b512::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finalize().into()),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn signed() -> (MinisignKey, String) {
        let key = MinisignSecretKey::from_seed(&[1; 32]);
        let text = key.sign(&mut &b"content"[..], "file:a version:1");
        (key.public(), text.expect("memory is readable"))
    }

    fn verdict(key: &MinisignKey, text: &str, content: &[u8]) -> Result<(), MinisignError> {
        let signature: MinisignSignature = text.parse()?;
        signature.verify(key, &mut &content[..])
    }

    #[test]
    fn the_same_file_has_the_same_signature() {
        assert_eq!(signed(), signed());
        let (key, text) = signed();
        assert_eq!(verdict(&key, &text, b"content"), Ok(()));
        assert_eq!(key.file().parse(), Ok(key));
    }

    #[test]
    fn what_was_changed_is_named() {
        let (key, text) = signed();
        assert_eq!(
            verdict(&key, &text, b"other"),
            Err(MinisignError::OtherContent)
        );
        let comment = text.replace("version:1", "version:2");
        assert_eq!(
            verdict(&key, &comment, b"content"),
            Err(MinisignError::OtherComment)
        );
        let other = MinisignSecretKey::from_seed(&[2; 32]).public();
        let refused = verdict(&other, &text, b"content");
        assert!(
            matches!(refused, Err(MinisignError::OtherKey { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn a_comment_of_two_lines_is_no_signature() {
        let (key, text) = signed();
        let text = text.replace("file:a", "file:a\n");
        assert_eq!(
            verdict(&key, &text, b"content"),
            Err(MinisignError::Form("signature"))
        );
    }

    proptest! {
        #[test]
        fn no_text_is_read_as_a_key_or_a_signature_by_accident(text in "\\PC{0,200}") {
            prop_assert!(text.parse::<MinisignKey>().is_err());
            prop_assert!(text.parse::<MinisignSignature>().is_err());
        }

        #[test]
        fn a_changed_byte_of_the_content_is_found(
            content in proptest::collection::vec(any::<u8>(), 1..100),
            at in any::<proptest::sample::Index>(),
        ) {
            let key = MinisignSecretKey::from_seed(&[3; 32]);
            let text = key.sign(&mut &content[..], "x").expect("memory is readable");
            let mut changed = content.clone();
            let at = at.index(changed.len());
            changed[at] ^= 1;
            prop_assert_eq!(verdict(&key.public(), &text, &content), Ok(()));
            prop_assert_eq!(
                verdict(&key.public(), &text, &changed),
                Err(MinisignError::OtherContent)
            );
        }
    }
}
