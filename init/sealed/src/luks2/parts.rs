//! The parts of the JSON that this program understands: how it writes them, and what it accepts.

use std::ops::Range;

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::cipher::SectorCipher;
use crate::limits::{
    AREA_BYTES, DATA_AT, ROUNDS, ROUNDS_MAX, SALT_BYTES_MAX, SECTOR_BYTES, STRIPES,
};
use crate::luks2::area::material_bytes;

/// The only supported cipher of key slots' areas.
const AREA_CIPHER: &str = "aes-xts-plain64";
/// Unit of an offset on a disk.
const SECTOR: u64 = 512;
/// Bytes of the digest of a volume key.
pub(super) const DIGEST: usize = 32;
/// The segment with the data.
pub(super) const SEGMENT: &str = "0";

/// The encrypted data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuksSegment {
    /// First byte on the partition.
    pub offset: u64,
    /// Length in bytes. `None` means up to the partition's end.
    pub length: Option<u64>,
    /// Offset that is added to the number of each sector, in units of 512 bytes.
    pub tweak: u64,
    /// Cipher of the data.
    pub cipher: SectorCipher,
    /// Bytes of an encrypted sector.
    pub sector: u32,
}

/// A key slot that this program can open.
#[derive(Clone, Debug)]
pub(super) struct LuksSlot {
    pub(super) key_bytes: usize,
    pub(super) stripes: usize,
    pub(super) salt: Vec<u8>,
    pub(super) rounds: u32,
    pub(super) area: Range<u64>,
    pub(super) area_key_bytes: usize,
}

/// The digest by which a volume key is recognised.
#[derive(Debug)]
pub(super) struct LuksDigest {
    pub(super) slots: Vec<u32>,
    pub(super) salt: Vec<u8>,
    pub(super) rounds: u32,
    pub(super) digest: Vec<u8>,
}

impl LuksSegment {
    /// Whether the data lie where [`SealedPartition::format`](crate::SealedPartition::format) puts
    /// them. The JSON of a header is not authenticated: with another offset and tweak, an attacker
    /// can map the data from a later sector on, so that the content of a file there becomes the
    /// file system. A program that trusts the data refuses such a segment.
    #[must_use]
    pub fn is_standard(&self) -> bool {
        self.offset == DATA_AT
            && self.length.is_none()
            && self.tweak == 0
            && self.sector == SECTOR_BYTES
    }

    pub(super) fn parse(segment: &Value) -> Result<Self, &'static str> {
        if !segment["integrity"].is_null() {
            return Err("its data carry integrity tags");
        }
        let cipher = segment["encryption"]
            .as_str()
            .and_then(SectorCipher::from_name);
        let length = match &segment["size"] {
            Value::String(text) if text == "dynamic" => None,
            other => Some(number(other).ok_or("its data have no length")?),
        };
        let sector = segment["sector_size"].as_u64().unwrap_or(0);
        let found = Self {
            offset: number(&segment["offset"]).ok_or("its data have no place")?,
            length,
            tweak: number(&segment["iv_tweak"]).ok_or("its data have no tweak")?,
            cipher: cipher.ok_or("its data are encrypted with another cipher")?,
            sector: match sector {
                512 => 512,
                1024 => 1024,
                2048 => 2048,
                4096 => 4096,
                _ => return Err("its data have an unusual sector size"),
            },
        };
        let aligned =
            found.offset.is_multiple_of(SECTOR) && found.length.unwrap_or(0).is_multiple_of(sector);
        aligned.then_some(found).ok_or("its data are not aligned")
    }
}

impl LuksDigest {
    pub(super) fn parse(digest: &Value) -> Result<Self, &'static str> {
        if digest["type"] != "pbkdf2" || digest["hash"] != "sha256" {
            return Err("the digest of its volume key is of another kind");
        }
        let sum = salt(&digest["digest"]).filter(|sum| sum.len() == DIGEST);
        Ok(Self {
            slots: numbers(&digest["keyslots"]).collect(),
            salt: salt(&digest["salt"]).ok_or("the digest of its volume key has no salt")?,
            rounds: rounds(&digest["iterations"]).ok_or("its digest has too many rounds")?,
            digest: sum.ok_or("the digest of its volume key has another length")?,
        })
    }
}

/// A key slot with a phrase of this program.
pub(super) fn slot_value(key_bytes: usize, salt: &[u8], area_at: u64) -> Value {
    json!({
        "type": "luks2",
        "key_size": key_bytes,
        "af": { "type": "luks1", "stripes": STRIPES, "hash": "sha256" },
        "area": {
            "type": "raw",
            "offset": area_at.to_string(),
            "size": AREA_BYTES.to_string(),
            "encryption": AREA_CIPHER,
            "key_size": 64,
        },
        "kdf": {
            "type": "pbkdf2",
            "hash": "sha256",
            "iterations": ROUNDS,
            "salt": BASE64.encode(salt),
        },
    })
}

/// The digest of a volume key that `slots` open.
pub(super) fn digest_value(slots: &[String], salt: &[u8], digest: &[u8]) -> Value {
    json!({
        "type": "pbkdf2",
        "keyslots": slots,
        "segments": [SEGMENT],
        "hash": "sha256",
        "iterations": ROUNDS,
        "salt": BASE64.encode(salt),
        "digest": BASE64.encode(digest),
    })
}

/// Parses a key slot that [`slot_value`] wrote, or one that is equivalent.
pub(super) fn parse_slot(slot: &Value) -> Result<LuksSlot, &'static str> {
    if slot["type"] != "luks2" {
        return Err("it is no key slot of a phrase");
    }
    let kdf = &slot["kdf"];
    if kdf["type"] != "pbkdf2" || kdf["hash"] != "sha256" {
        return Err("its phrase is stretched by something else than PBKDF2 with SHA-256");
    }
    let af = &slot["af"];
    if af["type"] != "luks1" || af["hash"] != "sha256" || af["stripes"] != STRIPES {
        return Err("its key is split in another way");
    }
    let area_key = slot["area"]["key_size"].as_u64();
    if slot["area"]["type"] != "raw" || slot["area"]["encryption"] != AREA_CIPHER {
        return Err("its area is encrypted in another way");
    }
    let found = LuksSlot {
        key_bytes: match slot["key_size"].as_u64() {
            Some(32) => 32,
            Some(64) => 64,
            _ => return Err("its key has an unusual size"),
        },
        stripes: STRIPES as usize,
        salt: salt(&kdf["salt"]).ok_or("it has no salt")?,
        rounds: rounds(&kdf["iterations"]).ok_or("its phrase is stretched for too long")?,
        area: area(slot).ok_or("it has no area")?,
        area_key_bytes: match area_key {
            Some(32) => 32,
            Some(64) => 64,
            _ => return Err("its area is encrypted in another way"),
        },
    };
    let room = found.area.end - found.area.start;
    let needed = material_bytes(&found) as u64;
    (needed <= room)
        .then_some(found)
        .ok_or("its area is too small")
}

/// The range of an area, if the JSON has a valid one.
pub(super) fn area(slot: &Value) -> Option<Range<u64>> {
    let at = number(&slot["area"]["offset"])?;
    let end = at.checked_add(number(&slot["area"]["size"])?)?;
    Some(at..end)
}

/// Parses a size or an offset, which LUKS2 writes as decimal text.
pub(super) fn number(value: &Value) -> Option<u64> {
    let text = value.as_str()?;
    // `parse` alone would accept a plus sign as well.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn numbers(value: &Value) -> impl Iterator<Item = u32> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(|name| name.as_str()?.parse().ok())
}

fn rounds(value: &Value) -> Option<u32> {
    let rounds = u32::try_from(value.as_u64()?).ok()?;
    (1..=ROUNDS_MAX).contains(&rounds).then_some(rounds)
}

fn salt(value: &Value) -> Option<Vec<u8>> {
    let bytes = BASE64.decode(value.as_str()?.as_bytes()).ok()?;
    (1..=SALT_BYTES_MAX).contains(&bytes.len()).then_some(bytes)
}
