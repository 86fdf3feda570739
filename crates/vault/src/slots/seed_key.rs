//! `seed.key`: the secret on a provisioning medium for an unattended start.
//!
//! It is one line of text, so that a cloud's user data can contain it as well: `alknet-seed-1
//! <vault id> <32 bytes in standard base64>`.

use std::fmt;

use data_encoding::BASE64;
use zeroize::Zeroizing;

use crate::crypto;
use crate::error::VaultError;
use crate::secret::{SecretArr, SecretStr};
use crate::slots::{Kek, SlotError, VaultId, kek};

const HEAD: &str = "alknet-seed-1";
const TEXT_BYTES: usize = HEAD.len() + 1 + 36 + 1 + 44 + 1;

/// 32 random bytes, bound to one vault.
pub struct SeedKey {
    vault: VaultId,
    seed: SecretArr<32>,
}

impl SeedKey {
    /// A new seed for that vault.
    pub fn generate(vault: VaultId) -> Result<Self, VaultError> {
        let seed = crypto::random_secret()?;
        Ok(Self { vault, seed })
    }

    /// Parses the line; white space around it is ignored.
    pub fn parse(text: &str) -> Result<Self, SlotError> {
        let bad = || SlotError::BadSeedKey;
        let rest = text.trim().strip_prefix(HEAD).ok_or_else(bad)?;
        let rest = rest.strip_prefix(' ').ok_or_else(bad)?;
        let (vault, seed) = rest.split_once(' ').ok_or_else(bad)?;
        let vault = vault.parse().map_err(|()| bad())?;
        // The base64 of 32 bytes; a longer text would be decoded into a buffer that grows, which
        // leaves copies.
        if seed.len() != 44 {
            return Err(bad());
        }
        let seed = BASE64.decode(seed.as_bytes()).map_err(|_| bad())?;
        let seed = Zeroizing::new(seed);
        let seed = SecretArr::from_slice(&seed).ok_or_else(bad)?;
        Ok(Self { vault, seed })
    }

    /// Writes the line with its newline.
    #[must_use]
    pub fn to_text(&self) -> SecretStr {
        let head = format!("{HEAD} {} ", self.vault);
        let seed = Zeroizing::new(BASE64.encode(self.seed.expose()));
        let text = head.chars().chain(seed.chars()).chain(['\n']);
        SecretStr::build(TEXT_BYTES, text)
    }

    /// The vault to which it belongs.
    #[must_use]
    pub fn vault(&self) -> VaultId {
        self.vault
    }

    pub(super) fn kek(&self, vault: VaultId) -> Result<Kek, SlotError> {
        if vault != self.vault {
            return Err(SlotError::OtherVault(self.vault));
        }
        Ok(kek::from_seed(&self.seed, vault))
    }
}

impl fmt::Debug for SeedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SeedKey(of {}, ..)", self.vault)
    }
}
