//! The storage key: a key on P-256 that the TPM derives from its seed and a template, always the
//! same.

use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

use alknet_vault::slots::Tpm2Params;

use crate::codes::{alg, cc, handle, object, rc};
use crate::crypto::{self, DIGEST, EccPublicPoint};
use crate::seal::storage_key;
use crate::tpm::{Tpm, TpmCommandBody, TpmHandle};
use crate::wire::{TpmReader, TpmWriter};
use crate::{TpmError, pcr};

/// Bytes of a name: an algorithm and its digest.
pub(crate) const NAME: usize = 2 + DIGEST;
/// Each coordinate in the `unique` of the template.
const ZERO_COORDINATE: [u8; DIGEST] = [0; DIGEST];

/// The identity of a storage key. Another TPM has another one, and so has this one after it was
/// cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageKey([u8; NAME]);

impl StorageKey {
    /// The storage key that a slot was sealed under.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn from_params(params: &Tpm2Params) -> Result<Self, TpmError> {
        storage_key(params).map(Self)
    }
}

/// Writes the SHA-256 digest that is its name (`TPM2B_NAME` without the algorithm), in hex.
impl fmt::Display for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = &self.0[NAME - DIGEST..];
        digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Parses the lower-case form that `Display` writes, and no other.
impl FromStr for StorageKey {
    type Err = TpmError;

    fn from_str(text: &str) -> Result<Self, TpmError> {
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 2 * DIGEST || !text.bytes().all(digit) {
            return Err(TpmError::BadStorageKey);
        }
        let mut name = [0; NAME];
        name[..NAME - DIGEST].copy_from_slice(&alg::SHA256.to_be_bytes());
        for (byte, two) in name[NAME - DIGEST..]
            .iter_mut()
            .zip(text.as_bytes().chunks(2))
        {
            let two = std::str::from_utf8(two).map_err(|_| TpmError::BadStorageKey)?;
            *byte = u8::from_str_radix(two, 16).map_err(|_| TpmError::BadStorageKey)?;
        }
        Ok(Self(name))
    }
}

/// The storage key, loaded.
#[derive(Debug)]
pub(crate) struct LoadedStorageKey {
    handle: u32,
    pub(crate) name: [u8; NAME],
    pub(crate) point: EccPublicPoint,
    transient: bool,
}

impl LoadedStorageKey {
    pub(crate) fn target(&self) -> TpmHandle<'_> {
        TpmHandle {
            handle: self.handle,
            name: &self.name,
        }
    }

    /// Whether another program left it in the TPM.
    pub(crate) fn is_persistent(&self) -> bool {
        !self.transient
    }

    /// Reads the public area that the TPM answered.
    fn read(handle: u32, area: &[u8], transient: bool) -> Result<Self, TpmError> {
        let template = common();
        let unique = area
            // A key with other attributes could be made outside the TPM, and its holder would know
            // the salt of sessions.
            .strip_prefix(template.as_slice())
            .ok_or(TpmError::Malformed("a storage key of another kind"))?;
        let mut reader = TpmReader::new(unique);
        let (x, y) = (reader.sized()?, reader.sized()?);
        reader.end()?;
        Ok(Self {
            handle,
            name: name(area),
            point: EccPublicPoint::new(x, y).ok_or(TpmError::Malformed("a point off its curve"))?,
            transient,
        })
    }
}

/// The name of an object with this public area, under SHA-256.
pub(crate) fn name(area: &[u8]) -> [u8; NAME] {
    let mut name = [0; NAME];
    name[..2].copy_from_slice(&alg::SHA256.to_be_bytes());
    name[2..].copy_from_slice(&crypto::sha256(&[area]));
    name
}

/// `TPMT_PUBLIC` up to its `unique`: the storage root key of TCG's provisioning guidance.
fn common() -> TpmWriter {
    // `NO_DA`: the lockout after wrong PINs must not close slots without a PIN, which need this key, too.
    let attributes = object::FIXED_TPM
        | object::FIXED_PARENT
        | object::SENSITIVE_DATA_ORIGIN
        | object::USER_WITH_AUTH
        | object::NO_DA
        | object::RESTRICTED
        | object::DECRYPT;
    let symmetric = |to: TpmWriter| to.u16(alg::AES).u16(128).u16(alg::CFB);
    let head = TpmWriter::new()
        .u16(alg::ECC)
        .u16(alg::SHA256)
        .u32(attributes);
    symmetric(head.sized(&[]))
        .u16(alg::NULL)
        .u16(alg::NIST_P256)
        .u16(alg::NULL)
}

impl<T: Read + Write> Tpm<T> {
    /// From now on commands that use a storage key fail with `ForeignStorageKey` unless it is this
    /// one. Whatever stands in the place of the TPM has another key, and gets nothing that is
    /// salted to its own.
    #[must_use]
    pub fn require(mut self, key: StorageKey) -> Self {
        self.required = Some(key);
        self
    }

    /// The storage key of this TPM.
    ///
    /// # Errors
    /// `OwnerPassword`, `Unsupported`, `ForeignStorageKey`, and what ends a command.
    pub fn storage_key(&mut self) -> Result<StorageKey, TpmError> {
        self.with_parent(None, |_, parent| Ok(StorageKey(parent.name)))
    }

    /// Runs `work` with the storage key: the one of this name if there is a name, or else the key
    /// of this TPM, if none is [required](Self::require). A key that is kept in the TPM is used
    /// first, since making one takes some TPMs a second.
    pub(crate) fn with_parent<R>(
        &mut self,
        wanted: Option<&[u8; NAME]>,
        mut work: impl FnMut(&mut Self, &LoadedStorageKey) -> Result<R, TpmError>,
    ) -> Result<R, TpmError> {
        let required = self.required;
        let is_required = |name: &[u8; NAME]| required.is_none_or(|key| key.0 == *name);
        // An attacker can write the slot's record on the disk. The command line that names this key is signed.
        if wanted.is_some_and(|name| !is_required(name)) {
            return Err(TpmError::OtherTpm);
        }
        let is_wanted = |parent: &LoadedStorageKey| wanted.is_none_or(|name| *name == parent.name);
        if wanted.is_some()
            && let Some(parent) = self.persistent()?
            && is_wanted(&parent)
        {
            match work(self, &parent) {
                // The program that put it there gave it a password.
                Err(TpmError::OwnerPassword) => {}
                result => return result,
            }
        }
        let parent = self.create_primary()?;
        let result = if !is_required(&parent.name) {
            Err(TpmError::ForeignStorageKey)
        } else if is_wanted(&parent) {
            work(self, &parent)
        } else {
            Err(TpmError::OtherTpm)
        };
        // A TPM has room for about three objects.
        self.flush(parent.handle);
        result
    }

    /// The key at the usual handle, if it has our template.
    fn persistent(&mut self) -> Result<Option<LoadedStorageKey>, TpmError> {
        let command = TpmCommandBody {
            code: cc::READ_PUBLIC,
            targets: &[TpmHandle {
                handle: handle::STORAGE_ROOT,
                name: &[],
            }],
            parameters: TpmWriter::new(),
            makes: false,
        };
        match self.run(&command) {
            Ok(done) => {
                Ok(
                    LoadedStorageKey::read(handle::STORAGE_ROOT, done.reader().sized()?, false)
                        .ok(),
                )
            }
            Err(TpmError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create_primary(&mut self) -> Result<LoadedStorageKey, TpmError> {
        let template = common().sized(&ZERO_COORDINATE).sized(&ZERO_COORDINATE);
        let no_sensitive = TpmWriter::new().sized(&[]).sized(&[]);
        let owner = handle::OWNER.to_be_bytes();
        let command = TpmCommandBody {
            code: cc::CREATE_PRIMARY,
            targets: &[TpmHandle {
                handle: handle::OWNER,
                name: &owner,
            }],
            parameters: TpmWriter::new()
                .sized(no_sensitive.as_slice())
                .sized(template.as_slice())
                .sized(&[])
                .bytes(pcr::NO_SELECTION),
            makes: true,
        };
        let done = self.run_open(&command).map_err(|error| match error {
            TpmError::Refused { code, .. } if matches!(rc::base(code), rc::CURVE | rc::VALUE) => {
                TpmError::Unsupported("it has no keys on P-256")
            }
            other => of_owner(other),
        })?;
        let area = done.reader().sized();
        let parent = area.and_then(|area| LoadedStorageKey::read(done.handle, area, true));
        // The TPM keeps the key that was refused, and has room for few.
        if parent.is_err() {
            self.flush(done.handle);
        }
        parent
    }
}

/// Distinguishes a password of the owner hierarchy from other refusals.
pub(crate) fn of_owner(error: TpmError) -> TpmError {
    match error {
        TpmError::Refused { code, .. }
            if matches!(rc::base(code), rc::BAD_AUTH | rc::AUTH_FAIL) =>
        {
            TpmError::OwnerPassword
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_the_one_of_the_guidance() {
        // Its attributes are the ones that every other program writes as 0x30472.
        let expected = b"\x00\x23\x00\x0b\x00\x03\x04\x72\x00\x00\x00\x06\x00\x80\x00\x43\
                         \x00\x10\x00\x03\x00\x10";
        assert_eq!(common().as_slice(), expected);
    }

    #[test]
    fn keys_of_other_kinds_and_points_off_the_curve_are_refused() {
        let area = |x: &[u8], y: &[u8]| common().sized(x).sized(y);
        let read = |area: &TpmWriter| {
            LoadedStorageKey::read(1, area.as_slice(), true).map(|key| key.handle)
        };
        assert!(read(&area(&[1; 32], &[1; 32])).is_err());
        assert!(read(&area(&[1; 33], &[1; 32])).is_err());
        assert!(read(&area(&[], &[])).is_err());
        assert!(read(&TpmWriter::new().u16(alg::ECC)).is_err());
    }
}
