//! Recovery words: BIP39, English.
//!
//! The vault stores the entropy, never the phrase: the words are computed again when an administrator asks for them
//! at the console.

mod words;

use std::fmt;

use icu_normalizer::DecomposingNormalizerBorrowed;
use sha2::Sha512;
use zeroize::{Zeroize, Zeroizing};

use crate::crypto;
use crate::derive::DerivationPath;
use crate::derive::slip10::ExtendedPrivateKey;
use crate::error::{MnemonicError, VaultError};
use crate::limits::{MAX_PASSPHRASE_BYTES, MAX_PHRASE_BYTES};
use crate::secret::{SecretArr, SecretStr};

/// The 64 bytes from which every key is derived.
pub(crate) type Seed = SecretArr<64>;

/// The number of words of a phrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WordCount {
    /// 128 bits of entropy.
    Twelve,
    /// 256 bits of entropy: the default.
    #[default]
    TwentyFour,
}

/// The 16 to 32 bytes that the words encode.
///
/// ```
/// use alknet_vault::{Entropy, WordCount};
///
/// let entropy = Entropy::generate(WordCount::TwentyFour)?;
/// let phrase = entropy.phrase();
/// assert_eq!(phrase.expose().split(' ').count(), 24);
/// assert_eq!(Entropy::parse(phrase.expose())?, entropy);
/// # Ok::<(), alknet_vault::VaultError>(())
/// ```
pub struct Entropy {
    bytes: SecretArr<32>,
    len: usize,
}

impl Entropy {
    /// New words, from the kernel's random generator. Blocks until the generator is ready (getrandom(2)).
    pub fn generate(words: WordCount) -> Result<Self, VaultError> {
        let len = match words {
            WordCount::Twelve => 16,
            WordCount::TwentyFour => 32,
        };
        let mut bytes = crypto::random_secret::<32>()?;
        // The unused half must be zero, because two phrases are compared by all 32 bytes.
        bytes.expose_mut()[len..].zeroize();
        Ok(Self { bytes, len })
    }

    /// Stored entropy: 16, 20, 24, 28 or 32 bytes.
    pub fn from_bytes(entropy: &[u8]) -> Result<Self, MnemonicError> {
        let len = entropy.len();
        if !(16..=32).contains(&len) || !len.is_multiple_of(4) {
            return Err(MnemonicError::EntropyLength { bytes: len });
        }
        let mut bytes = SecretArr::zeroed();
        bytes.expose_mut()[..len].copy_from_slice(entropy);
        Ok(Self { bytes, len })
    }

    /// Parses words that a person typed, in any case, with any white space, in any Unicode form.
    pub fn parse(phrase: &str) -> Result<Self, MnemonicError> {
        // The limit bounds the work before any word is looked up.
        if phrase.len() > MAX_PHRASE_BYTES {
            return Err(MnemonicError::TooLong);
        }
        let indices = words::indices(decomposed(phrase))?;
        let len = match indices.len() {
            count @ (12 | 15 | 18 | 21 | 24) => count / 3 * 4,
            words => return Err(MnemonicError::WordCount { words }),
        };
        // Each word encodes eleven bits; the bits after the entropy are the checksum.
        let mut bits = Zeroizing::new([0_u8; 33]);
        for (at, index) in indices.iter().enumerate() {
            for bit in 0..11 {
                let place = at * 11 + bit;
                let value = u8::from(index & (0x400 >> bit) != 0);
                bits[place / 8] |= value << (7 - place % 8);
            }
        }
        let mut bytes = SecretArr::zeroed();
        bytes.expose_mut()[..len].copy_from_slice(&bits[..len]);
        let entropy = Self { bytes, len };
        if bits[len] != entropy.checksum() {
            return Err(MnemonicError::Checksum);
        }
        Ok(entropy)
    }

    /// The words in lower case, separated by single spaces.
    #[must_use]
    pub fn phrase(&self) -> SecretStr {
        let mut bits = Zeroizing::new([0_u8; 33]);
        bits[..self.len].copy_from_slice(self.bytes());
        bits[self.len] = self.checksum();
        let word = |at: usize| {
            let bit = |place: usize| usize::from(bits[place / 8] >> (7 - place % 8) & 1);
            words::LIST[(at * 11..at * 11 + 11).fold(0, |index, place| index << 1 | bit(place))]
        };
        let letters = (0..self.words()).flat_map(|at| {
            let space = (at > 0).then_some(' ');
            space.into_iter().chain(word(at).chars())
        });
        SecretStr::build(self.words() * (words::LONGEST + 1), letters)
    }

    /// The number of words.
    #[must_use]
    pub fn words(&self) -> usize {
        self.len / 4 * 3
    }

    /// The entropy.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes.expose()[..self.len]
    }

    /// The private key at any path of these words, for a tool on the computer of the words' owner. A [`crate::Vault`]
    /// derives keys by purpose only.
    pub fn key_at(
        &self,
        passphrase: &SecretStr,
        path: &DerivationPath,
    ) -> Result<SecretArr<32>, VaultError> {
        Ok(ExtendedPrivateKey::at(self.seed(passphrase)?.expose(), path)?.key)
    }

    /// An explicit function, because secrets have no `Clone`.
    pub(crate) fn copied(&self) -> Self {
        Self {
            bytes: SecretArr::copy_of(self.bytes.expose()),
            len: self.len,
        }
    }

    /// The seed of all keys: PBKDF2-HMAC-SHA512 over the phrase, 2048 rounds.
    pub(crate) fn seed(&self, passphrase: &SecretStr) -> Result<Seed, MnemonicError> {
        const PREFIX: &str = "mnemonic";
        const ROUNDS: u32 = 2048;
        let passphrase = normalized(passphrase)?;
        let salt = SecretStr::build(
            PREFIX.len() + passphrase.expose().len(),
            PREFIX.chars().chain(passphrase.expose().chars()),
        );
        let mut seed = Seed::zeroed();
        pbkdf2::pbkdf2_hmac::<Sha512>(
            self.phrase().expose().as_bytes(),
            salt.expose().as_bytes(),
            ROUNDS,
            seed.expose_mut(),
        );
        Ok(seed)
    }

    /// The first bits of the hash, one for every 32 bits of entropy, in the high bits of the byte.
    fn checksum(&self) -> u8 {
        let bits = self.len / 4;
        let mut hash = Zeroizing::new(crypto::sha256(self.bytes()));
        hash[0] &= 0xff << (8 - bits);
        hash[0]
    }
}

impl PartialEq for Entropy {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.bytes == other.bytes
    }
}

impl Eq for Entropy {}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy(..)")
    }
}

/// A passphrase in Unicode's NFKD, so that keyboards which compose letters differently give the same one.
pub(crate) fn normalized(passphrase: &SecretStr) -> Result<SecretStr, MnemonicError> {
    let text = passphrase.expose();
    if text.len() > MAX_PASSPHRASE_BYTES {
        return Err(MnemonicError::PassphraseTooLong);
    }
    // The length is computed first, because a string that grows leaves copies behind.
    let bytes = decomposed(text).map(char::len_utf8).sum();
    Ok(SecretStr::build(bytes, decomposed(text)))
}

fn decomposed(text: &str) -> impl Iterator<Item = char> {
    const NFKD: DecomposingNormalizerBorrowed<'static> = DecomposingNormalizerBorrowed::new_nfkd();
    NFKD.normalize_iter(text.chars())
}

#[cfg(test)]
mod tests;
