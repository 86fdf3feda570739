//! The vault file, parsed but not authenticated.
//!
//! The text is `{"alkv":1,"device","gen","mac","payload","slots","uuid"}`, canonical. Its fields are authentic only
//! once a slot opened and the code over all of them matches.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use crate::blob::{BlobLabel, SealedBlob};
use crate::crypto;
use crate::derive::{KeyVersion, PathIndex};
use crate::error::VaultError;
use crate::json;
use crate::limits::MAX_SLOTS;
use crate::secret::SecretArr;
use crate::slots::copies::TEXT_BYTES_MAX;
use crate::slots::open::VaultContents;
use crate::slots::{KeySlot, OpenAlkv, SlotError, SlotId, SlotType, UnlockKey, form};

const FORMAT: u64 = 1;
const FIELDS: [&str; 7] = ["alkv", "device", "gen", "mac", "payload", "slots", "uuid"];

/// The id of a vault: random, version 4 of RFC 9562.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VaultId([u8; 16]);

impl VaultId {
    /// A new id.
    pub fn generate() -> Result<Self, VaultError> {
        let mut bytes = crypto::random::<16>()?;
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Self(bytes))
    }

    /// The id's bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for VaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = HEXLOWER.encode(&self.0);
        let (a, b, c) = (&hex[..8], &hex[8..12], &hex[12..16]);
        write!(f, "{a}-{b}-{c}-{}-{}", &hex[16..20], &hex[20..])
    }
}

/// Parses the lower-case form that `Display` writes, and no other.
impl FromStr for VaultId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let hex: String = text.split('-').collect();
        let bytes = HEXLOWER.decode(hex.as_bytes()).map_err(|_| ())?;
        let id = Self(bytes.try_into().map_err(|_| ())?);
        if id.to_string() == text {
            Ok(id)
        } else {
            Err(())
        }
    }
}

/// A vault file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alkv {
    pub(super) uuid: VaultId,
    pub(super) generation: u64,
    pub(super) device: PathIndex,
    pub(super) slots: Vec<KeySlot>,
    pub(super) payload: Vec<u8>,
    pub(super) mac: [u8; 32],
}

impl Alkv {
    /// Parses the text of a copy.
    pub fn parse(text: &[u8]) -> Result<Self, SlotError> {
        // The limit is checked before the text is parsed.
        if text.len() > TEXT_BYTES_MAX {
            return Err(SlotError::TooLarge);
        }
        let mut value: Value =
            serde_json::from_slice(text).map_err(|_| SlotError::Form("it is no JSON"))?;
        // The format number is read first, so that a file of a later program is reported as newer and not as damaged.
        match value["alkv"].as_u64() {
            Some(FORMAT) => {}
            Some(other) => return Err(SlotError::Newer(other)),
            None => return Err(SlotError::Form("it has no format number")),
        }
        if json::parse_canonical(text).is_none() {
            return Err(SlotError::Form("its JSON is not canonical"));
        }
        let fields = value
            .as_object_mut()
            .ok_or(SlotError::Form("it is no object"))?;
        if fields.len() != FIELDS.len() || !FIELDS.iter().all(|name| fields.contains_key(*name)) {
            return Err(SlotError::Form("it has other fields"));
        }
        let slots = match fields.remove("slots") {
            Some(Value::Array(slots)) if (1..=MAX_SLOTS).contains(&slots.len()) => slots,
            _ => return Err(SlotError::Form("it has no slots or too many")),
        };
        let slots: Vec<_> = slots
            .into_iter()
            .map(form::slot)
            .collect::<Result<_, _>>()?;
        // Rising numbers also rule out two slots with the same number.
        if !slots.windows(2).all(|two| two[0].id < two[1].id) {
            return Err(SlotError::Form("its slots are not in order"));
        }
        let text_of = |name: &str| {
            value[name]
                .as_str()
                .ok_or(SlotError::Form("a field that is no text"))
        };
        let device = value["device"]
            .as_u64()
            .and_then(|device| u32::try_from(device).ok());
        Ok(Self {
            uuid: text_of("uuid")?
                .parse()
                .map_err(|()| SlotError::Form("its id is no UUID"))?,
            generation: value["gen"]
                .as_u64()
                .ok_or(SlotError::Form("its generation is no number"))?,
            device: device
                .and_then(PathIndex::new)
                .ok_or(SlotError::Form("its device is no number"))?,
            slots,
            payload: form::bytes(text_of("payload")?)?,
            mac: form::array(text_of("mac")?)?,
        })
    }

    /// Writes the text of a copy.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut value = self.covered();
        value["mac"] = BASE64.encode(&self.mac).into();
        json::canonical(&value).expect("texts and integers that were checked when they came in")
    }

    /// The id of the vault.
    #[must_use]
    pub fn uuid(&self) -> VaultId {
        self.uuid
    }

    /// The number of changes; the copy with the highest one is the newest.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The number of the node among the nodes of its words.
    #[must_use]
    pub fn device(&self) -> PathIndex {
        self.device
    }

    /// The slots, sorted by number.
    #[must_use]
    pub fn slots(&self) -> &[KeySlot] {
        &self.slots
    }

    /// Whether the file protects the vault, which it does not if a key is stored beside it.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.slots.iter().all(|slot| slot.kind() != SlotType::None)
    }

    /// Opens one slot, and authenticates the rest of the file.
    pub fn open(&self, id: SlotId, key: &mut UnlockKey<'_>) -> Result<OpenAlkv, SlotError> {
        let slot = self.slots.iter().find(|slot| slot.id == id);
        let slot = slot.ok_or(SlotError::NoSuchSlot(id))?;
        let kek = key.kek(self.uuid, slot)?;
        self.believed(slot.unwrap(self.uuid, &kek)?, id)
    }

    /// Opens the file with its master key, if it is authentic.
    pub(super) fn believed(
        &self,
        vmk: SecretArr<32>,
        opened_by: SlotId,
    ) -> Result<OpenAlkv, SlotError> {
        // The code is checked before the payload, because only it authenticates slots, id and generation.
        if !bool::from(self.mac_under(&vmk).ct_eq(&self.mac)) {
            return Err(SlotError::Tampered);
        }
        let payload = SealedBlob::parse(&self.payload)
            .and_then(|blob| blob.open(&payload_key(&vmk), &self.label()))
            .map_err(|_| SlotError::Tampered)?;
        Ok(OpenAlkv {
            contents: VaultContents::read(&payload)?,
            alkv: self.clone(),
            vmk,
            former: None,
            opened_by,
        })
    }

    /// All fields except the code.
    fn covered(&self) -> Value {
        json!({
            "alkv": FORMAT,
            "device": self.device.number(),
            "gen": self.generation,
            "payload": BASE64.encode(&self.payload),
            "slots": self.slots.iter().map(form::slot_value).collect::<Vec<_>>(),
            "uuid": self.uuid.to_string(),
        })
    }

    pub(super) fn mac_under(&self, vmk: &SecretArr<32>) -> [u8; 32] {
        let text = json::canonical(&self.covered())
            .expect("texts and integers that were checked when they came in");
        let key = crypto::hkdf_sha256(vmk.expose(), &[], b"header");
        crypto::hmac_sha256(key.expose(), text.as_bytes())
    }

    fn label(&self) -> BlobLabel {
        label(self.uuid)
    }
}

/// The payload of a new vault: a blob under a key derived from the master key.
pub(super) fn seal_payload(
    uuid: VaultId,
    vmk: &SecretArr<32>,
    contents: &VaultContents,
) -> Result<Vec<u8>, VaultError> {
    let text = contents.text();
    let blob = SealedBlob::seal(
        &payload_key(vmk),
        KeyVersion::FIRST,
        &label(uuid),
        text.expose(),
    )?;
    Ok(blob.as_bytes().to_vec())
}

fn payload_key(vmk: &SecretArr<32>) -> SecretArr<32> {
    crypto::hkdf_sha256(vmk.expose(), &[], b"payload")
}

fn label(uuid: VaultId) -> BlobLabel {
    let label = format!("alkv:{uuid}").parse();
    label.expect("a kind and a UUID are a label")
}
