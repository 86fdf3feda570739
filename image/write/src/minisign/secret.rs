//! Secret keys: those of minisign's files, and those that come of a seed.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use blake2::digest::consts::U32;
use blake2::{Blake2b, Blake2b512, Digest};
use data_encoding::BASE64;
use ed25519_dalek::{Signer as _, SigningKey};
use scrypt::Params;
use zeroize::Zeroizing;

use super::{
    LEGACY, MinisignError, MinisignKey, MinisignKeyId, MinisignSignature, UNTRUSTED, hash,
};

/// The key is encrypted with scrypt (RFC 7914).
const ENCRYPTED: [u8; 2] = *b"Sc";
/// The checksum is BLAKE2b-256.
const CHECKSUM: [u8; 2] = *b"B2";
const PLAIN: [u8; 2] = [0; 2];
const SALT_BYTES: usize = 32;
/// The id, the seed with the public key, and the checksum.
const SECRET_BYTES: usize = 8 + 64 + 32;
/// Most memory that a key's password may cost. minisign's own keys take 1 GiB.
const MEMORY_BYTES_MAX: u64 = 2 << 30;
/// scrypt's block size, as libsodium chooses it.
const BLOCK: u32 = 8;
/// libsodium takes no fewer operations.
const OPERATIONS_MIN: u64 = 32_768;

/// A secret key, ready to sign.
pub struct MinisignSecretKey {
    id: MinisignKeyId,
    key: SigningKey,
}

/// Another holder of a secret key, such as a vault, which signs and does not show the key.
type SignMessage<'a> = &'a dyn Fn(&[u8]) -> io::Result<[u8; 64]>;

impl MinisignSecretKey {
    /// The key of a seed (RFC 8032). Its id is the beginning of the public key's BLAKE2b-512.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        let id = id_for(&key.verifying_key().to_bytes());
        Self { id, key }
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> MinisignKey {
        MinisignKey {
            id: self.id,
            key: self.key.verifying_key(),
        }
    }

    /// The file of a signature of `file`, hashed as minisign 0.11 does.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sign(&self, file: &mut dyn Read, trusted: &str) -> io::Result<String> {
        let sign = |message: &[u8]| Ok(self.key.sign(message).to_bytes());
        signature(self.id, file, trusted, &sign)
    }
}

impl fmt::Debug for MinisignSecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MinisignSecretKey({})", self.id)
    }
}

impl MinisignKey {
    /// A public key without a file of minisign. Its id is the beginning of its own BLAKE2b-512.
    ///
    /// # Errors
    /// The bytes are no Ed25519 key.
    pub fn from_bytes(public: &[u8; 32]) -> Result<Self, MinisignError> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(public);
        let key = key.map_err(|_| MinisignError::Form("public key"))?;
        let id = id_for(public);
        Ok(Self { id, key })
    }

    /// The file of a signature of `file`, made by the holder of the secret key.
    ///
    /// # Errors
    /// The file cannot be read, or the holder does not sign.
    pub fn sign_with(
        &self,
        file: &mut dyn Read,
        trusted: &str,
        sign: SignMessage<'_>,
    ) -> io::Result<String> {
        signature(self.id, file, trusted, sign)
    }
}

fn id_for(public: &[u8; 32]) -> MinisignKeyId {
    let hash = Blake2b512::digest(public);
    let mut id = [0; 8];
    id.copy_from_slice(&hash[..8]);
    MinisignKeyId(id)
}

fn signature(
    id: MinisignKeyId,
    file: &mut dyn Read,
    trusted: &str,
    sign: SignMessage<'_>,
) -> io::Result<String> {
    // A comment of two lines would be no signature.
    let trusted: String = trusted.chars().filter(|c| !c.is_control()).collect();
    let signature = sign(&hash(file)?)?;
    let global = sign(&[&signature[..], trusted.as_bytes()].concat())?;
    let signature = MinisignSignature {
        is_hashed: true,
        id,
        signature,
        trusted,
        global,
    };
    Ok(signature.to_string())
}

/// The file of a secret key, which may need a password.
pub struct EncryptedKey {
    is_plain: bool,
    salt: [u8; SALT_BYTES],
    operations: u64,
    memory: u64,
    secret: Zeroizing<[u8; SECRET_BYTES]>,
}

impl EncryptedKey {
    /// Whether a password opens it.
    #[must_use]
    pub const fn needs_password(&self) -> bool {
        !self.is_plain
    }

    /// Opens it. The password of a key without one is not looked at.
    ///
    /// # Errors
    /// The password is wrong or missing, or the key asks for too much memory.
    pub fn open(&self, password: Option<&[u8]>) -> Result<MinisignSecretKey, MinisignError> {
        let mut secret = self.secret.clone();
        if !self.is_plain {
            let password = password.ok_or(MinisignError::PasswordNeeded)?;
            let stream = self.key_stream(password)?;
            for (byte, mask) in secret.iter_mut().zip(stream.iter()) {
                *byte ^= mask;
            }
        }
        let wrong = match self.is_plain {
            true => MinisignError::Form("secret key"),
            false => MinisignError::WrongPassword,
        };
        let (id, rest) = secret
            .split_first_chunk::<8>()
            .ok_or_else(|| wrong.clone())?;
        let (pair, sum) = rest.split_at(64);
        let expected = Blake2b::<U32>::new()
            .chain_update(LEGACY)
            .chain_update(id)
            .chain_update(pair)
            .finalize();
        // minisign leaves the checksum of a key without a password zero. Both are hashes of secrets that are known here,
        // so the time of the comparison tells nothing.
        if !self.is_plain && sum != expected.as_slice() {
            return Err(wrong);
        }
        let mut both = Zeroizing::new([0; 64]);
        both.copy_from_slice(pair);
        // The second half is the public key of the first.
        let key = SigningKey::from_keypair_bytes(&both).map_err(|_| wrong)?;
        Ok(MinisignSecretKey {
            id: MinisignKeyId(*id),
            key,
        })
    }

    fn key_stream(&self, password: &[u8]) -> Result<Zeroizing<[u8; SECRET_BYTES]>, MinisignError> {
        let (log_n, p) = cost(self.operations, self.memory);
        let memory = (u128::from(BLOCK) * 128) << log_n;
        if memory > u128::from(MEMORY_BYTES_MAX) {
            return Err(MinisignError::Costly(memory as u64));
        }
        let form = |_| MinisignError::Form("secret key");
        let params = Params::new(log_n, BLOCK, p).map_err(form)?;
        let mut stream = Zeroizing::new([0; SECRET_BYTES]);
        scrypt::scrypt(password, &self.salt, &params, &mut *stream)
            .map_err(|_| MinisignError::Form("secret key"))?;
        Ok(stream)
    }
}

/// scrypt's logarithm of N, and p, as libsodium's `pickparams` chooses them for a number of operations and bytes.
fn cost(operations: u64, memory: u64) -> (u8, u32) {
    let block = u64::from(BLOCK);
    let operations = operations.max(OPERATIONS_MIN);
    let log_of = |most: u64| (1..63).find(|log| 1_u64 << log > most / 2).unwrap_or(63);
    if operations < memory / 32 {
        return (log_of(operations / (block * 4)), 1);
    }
    let log_n = log_of(memory / (block * 128));
    let product = (operations / 4 / (1 << log_n)).min(0x3fff_ffff);
    let p = u32::try_from(product / block).unwrap_or(u32::MAX);
    (log_n, p)
}

/// The key is a secret also where it is encrypted.
impl fmt::Debug for EncryptedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EncryptedKey")
    }
}

impl FromStr for EncryptedKey {
    type Err = MinisignError;

    fn from_str(text: &str) -> Result<Self, MinisignError> {
        const FORM: MinisignError = MinisignError::Form("secret key");
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let line = lines
            .find(|line| !line.starts_with(UNTRUSTED))
            .ok_or(FORM)?;
        let raw = BASE64.decode(line.as_bytes()).map_err(|_| FORM)?;
        let raw = Zeroizing::new(raw);
        let (head, rest) = raw.split_first_chunk::<6>().ok_or(FORM)?;
        let (salt, rest) = rest.split_first_chunk::<SALT_BYTES>().ok_or(FORM)?;
        let (operations, rest) = rest.split_first_chunk::<8>().ok_or(FORM)?;
        let (memory, secret) = rest.split_first_chunk::<8>().ok_or(FORM)?;
        let is_plain = head[2..4] == PLAIN;
        let is_known = head[..2] == LEGACY && (is_plain || head[2..4] == ENCRYPTED);
        if !is_known || head[4..] != CHECKSUM {
            return Err(FORM);
        }
        Ok(Self {
            is_plain,
            salt: *salt,
            operations: u64::from_le_bytes(*operations),
            memory: u64::from_le_bytes(*memory),
            secret: Zeroizing::new(secret.try_into().map_err(|_| FORM)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest cost that libsodium takes.
    const OPERATIONS: u64 = 32_768;
    const MEMORY: u64 = 16 << 20;

    /// A file of the key of this seed. With a password it is encrypted.
    fn file(seed: [u8; 32], password: Option<&[u8]>) -> String {
        let key = MinisignSecretKey::from_seed(&seed);
        let pair = key.key.to_keypair_bytes();
        let sum = Blake2b::<U32>::new()
            .chain_update(LEGACY)
            .chain_update(key.id.0)
            .chain_update(pair)
            .finalize();
        let secret = [&key.id.0[..], &pair, &sum].concat();
        let mut sealed = EncryptedKey {
            is_plain: password.is_none(),
            salt: [9; SALT_BYTES],
            operations: OPERATIONS,
            memory: MEMORY,
            secret: Zeroizing::new(secret.try_into().expect("its length")),
        };
        if let Some(password) = password {
            let stream = sealed.key_stream(password).expect("cheap");
            for (byte, mask) in sealed.secret.iter_mut().zip(stream.iter()) {
                *byte ^= mask;
            }
        }
        let kind = if sealed.is_plain { PLAIN } else { ENCRYPTED };
        let raw = [
            &LEGACY[..],
            &kind,
            &CHECKSUM,
            &sealed.salt,
            &OPERATIONS.to_le_bytes(),
            &MEMORY.to_le_bytes(),
            &*sealed.secret,
        ]
        .concat();
        format!("{UNTRUSTED}minisign secret key\n{}\n", BASE64.encode(&raw))
    }

    fn read(text: &str) -> EncryptedKey {
        text.parse().expect("a secret key")
    }

    #[test]
    fn a_key_with_a_password_opens_by_it_alone() {
        let sealed = read(&file([4; 32], Some(b"secret")));
        assert!(sealed.needs_password());
        let key = sealed.open(Some(b"secret")).expect("the password");
        assert_eq!(
            key.public(),
            MinisignSecretKey::from_seed(&[4; 32]).public()
        );
        assert_eq!(
            sealed.open(Some(b"Secret")).err(),
            Some(MinisignError::WrongPassword)
        );
        assert_eq!(sealed.open(None).err(), Some(MinisignError::PasswordNeeded));
    }

    #[test]
    fn a_key_without_a_password_opens_and_a_damaged_one_does_not() {
        let mut sealed = read(&file([5; 32], None));
        assert!(!sealed.needs_password());
        sealed.open(None).expect("no password");
        sealed.secret[20] ^= 1;
        assert_eq!(
            sealed.open(None).err(),
            Some(MinisignError::Form("secret key"))
        );
    }

    #[test]
    fn the_cost_is_the_one_that_libsodium_chooses() {
        // libsodium's limits for secrets, which minisign has, and for logins.
        assert_eq!(cost(33_554_432, 1_073_741_824), (20, 1));
        assert_eq!(cost(524_288, 16_777_216), (14, 1));
        assert_eq!(cost(0, 16_777_216), (10, 1));
    }

    #[test]
    fn a_key_that_asks_for_too_much_memory_is_refused() {
        let mut sealed = read(&file([6; 32], Some(b"secret")));
        sealed.operations = u64::MAX;
        sealed.memory = 8 << 30;
        let refused = sealed.open(Some(b"secret")).err();
        assert_eq!(refused, Some(MinisignError::Costly(8 << 30)));
    }

    #[test]
    fn other_texts_are_no_secret_keys() {
        let cut = file([7; 32], None);
        for text in ["", "RWQ", &cut[..cut.len() - 9], "untrusted comment: x"] {
            assert!(text.parse::<EncryptedKey>().is_err(), "{text}");
        }
    }
}
