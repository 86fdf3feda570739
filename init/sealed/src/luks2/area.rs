//! A key slot's area: key material, encrypted in sectors of 512 bytes that count from the area's
//! start.

use aes::{Aes128, Aes256, cipher::KeyInit};
use pbkdf2::pbkdf2_hmac;
use sha2::Sha256;
use xts_mode::{Xts128, get_tweak_default};
use zeroize::Zeroizing;

use crate::error::SealedError;
use crate::luks2::{af, parts::LuksSlot};
use crate::secret::VolumeKey;

/// Sector of a key slot's area.
const SECTOR: usize = 512;

/// `aes-xts-plain64`, with a key of 32 or 64 bytes.
enum KeyslotCipher {
    Long(Box<Xts128<Aes256>>),
    Short(Box<Xts128<Aes128>>),
}

impl KeyslotCipher {
    fn new(key: &[u8]) -> Option<Self> {
        // XTS has a key for the data and one for the tweak (IEEE 1619).
        let (one, two) = key.split_at(key.len() / 2);
        match key.len() {
            64 => Some(Self::Long(Box::new(Xts128::new(
                Aes256::new_from_slice(one).ok()?,
                Aes256::new_from_slice(two).ok()?,
            )))),
            32 => Some(Self::Short(Box::new(Xts128::new(
                Aes128::new_from_slice(one).ok()?,
                Aes128::new_from_slice(two).ok()?,
            )))),
            _ => None,
        }
    }

    fn encrypt(&self, area: &mut [u8]) {
        match self {
            Self::Long(xts) => xts.encrypt_area(area, SECTOR, 0, get_tweak_default),
            Self::Short(xts) => xts.encrypt_area(area, SECTOR, 0, get_tweak_default),
        }
    }

    fn decrypt(&self, area: &mut [u8]) {
        match self {
            Self::Long(xts) => xts.decrypt_area(area, SECTOR, 0, get_tweak_default),
            Self::Short(xts) => xts.decrypt_area(area, SECTOR, 0, get_tweak_default),
        }
    }
}

/// PBKDF2 with HMAC-SHA256.
pub(super) fn stretch(secret: &[u8], salt: &[u8], rounds: u32, out: &mut [u8]) {
    pbkdf2_hmac::<Sha256>(secret, salt, rounds, out);
}

/// Bytes of an area that have key material, in whole sectors.
pub(super) fn material_bytes(slot: &LuksSlot) -> usize {
    (slot.key_bytes * slot.stripes).next_multiple_of(SECTOR)
}

/// The content of the area of `slot` with which `phrase` opens `key`.
pub(super) fn seal(
    slot: &LuksSlot,
    phrase: &[u8],
    key: &VolumeKey,
) -> Result<Zeroizing<Vec<u8>>, SealedError> {
    let mut material = af::split(key.expose(), slot.stripes)?;
    if !material.len().is_multiple_of(SECTOR) {
        // The vector never grows in place: the old buffer would stay in freed memory.
        let mut whole = Zeroizing::new(vec![0; material_bytes(slot)]);
        whole[..material.len()].copy_from_slice(&material);
        material = whole;
    }
    cipher(slot, phrase)?.encrypt(&mut material);
    Ok(material)
}

/// Decrypts the area of `slot` with `phrase`. If the phrase is right, the result is the volume key.
pub(super) fn open(
    slot: &LuksSlot,
    phrase: &[u8],
    mut area: Zeroizing<Vec<u8>>,
) -> Result<VolumeKey, SealedError> {
    cipher(slot, phrase)?.decrypt(&mut area);
    let mut key = VolumeKey::zeroed(slot.key_bytes);
    af::merge(&area[..slot.key_bytes * slot.stripes], key.expose_mut());
    Ok(key)
}

fn cipher(slot: &LuksSlot, phrase: &[u8]) -> Result<KeyslotCipher, SealedError> {
    let mut key = Zeroizing::new([0; 64]);
    let key = &mut key[..slot.area_key_bytes.min(64)];
    stretch(phrase, &slot.salt, slot.rounds, key);
    KeyslotCipher::new(key).ok_or(SealedError::Unsupported(
        "a key slot's area has another key",
    ))
}
