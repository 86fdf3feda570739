//! The JSON part of a header: the parts that this program understands, and the checks of the whole.

use std::ops::Range;

use serde_json::{Map, Value, json};

use crate::cipher::SectorCipher;
use crate::error::HeaderError;
use crate::limits::{
    BINARY_BYTES, DATA_AT, HEADER_BYTES, KEYSLOTS_BYTES, KEYSLOTS_BYTES_MAX, ROUNDS, SECTOR_BYTES,
    SLOTS_MAX, TOKENS_MAX,
};
use crate::luks2::parts::{LuksDigest, LuksSegment, LuksSlot, SEGMENT, area, number, parse_slot};

/// Type of the token that names the vault.
pub(super) const TOKEN: &str = "alknet";
/// Unit of the positions of areas.
const PAGE: u64 = 4096;
/// A key slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyslotInfo {
    /// Number of the slot.
    pub number: u32,
    /// `luks2`, or another program's type.
    pub kind: String,
    /// The key derivation of the phrase: `pbkdf2`, `argon2id` ….
    pub kdf: String,
    /// Why this program cannot open the slot. `None` if it can.
    pub unsupported: Option<&'static str>,
    /// Whether this program added the slot: its token names the slot, which has the rounds that this program writes.
    pub ours: bool,
}

/// The whole metadata.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LuksMetadata(Map<String, Value>);

impl LuksMetadata {
    /// The metadata of a partition with `slots`, which belong to one volume key.
    pub(super) fn new(
        cipher: SectorCipher,
        slots: Map<String, Value>,
        digest: Value,
        vault: &str,
    ) -> Self {
        let names: Vec<_> = slots.keys().cloned().collect();
        let json_bytes = HEADER_BYTES - BINARY_BYTES as u64;
        let whole = json!({
            "keyslots": slots,
            "tokens": { "0": { "type": TOKEN, "keyslots": names, "vault": vault } },
            "segments": { SEGMENT: {
                "type": "crypt",
                "offset": DATA_AT.to_string(),
                "size": "dynamic",
                "iv_tweak": "0",
                "encryption": cipher.name(),
                "sector_size": SECTOR_BYTES,
            } },
            "digests": { "0": digest },
            "config": {
                "json_size": json_bytes.to_string(),
                "keyslots_size": KEYSLOTS_BYTES.to_string(),
            },
        });
        match whole {
            Value::Object(map) => Self(map),
            _ => unreachable!("it was written as an object"),
        }
    }

    /// Parses the JSON of a copy of `bytes` bytes: the text up to its first zero byte, with only
    /// zeros behind.
    pub(super) fn parse(text: &[u8], bytes: u64) -> Result<Self, HeaderError> {
        let end = text.iter().position(|byte| *byte == 0);
        let end = end.ok_or(HeaderError::Form("its JSON has no end"))?;
        if text[end..].iter().any(|byte| *byte != 0) {
            return Err(HeaderError::Form("something lies behind its JSON"));
        }
        let parsed = serde_json::from_slice(&text[..end]);
        let map = parsed.map_err(|_| HeaderError::Form("its JSON cannot be read"))?;
        let metadata = Self(map);
        metadata.check(bytes)?;
        Ok(metadata)
    }

    pub(super) fn to_text(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0).expect("keys are strings and nothing else can fail")
    }

    fn check(&self, bytes: u64) -> Result<(), HeaderError> {
        let form = |fine: bool, what| fine.then_some(()).ok_or(HeaderError::Form(what));
        for name in ["keyslots", "tokens", "segments", "digests", "config"] {
            form(
                self.0.get(name).is_some_and(Value::is_object),
                "its JSON lacks a part",
            )?;
        }
        let config = &self.0["config"];
        let json_bytes = bytes - BINARY_BYTES as u64;
        form(
            number(&config["json_size"]) == Some(json_bytes),
            "its JSON has another size than it says",
        )?;
        let room = number(&config["keyslots_size"]);
        form(
            room.is_some_and(|room| room <= KEYSLOTS_BYTES_MAX && room.is_multiple_of(PAGE)),
            "the room for its key slots is unusual",
        )?;
        form(
            all_numbered(&self.0["keyslots"], SLOTS_MAX),
            "its key slots are badly numbered",
        )?;
        form(
            all_numbered(&self.0["tokens"], TOKENS_MAX),
            "its tokens are badly numbered",
        )?;
        let room = self.keyslots_area(bytes);
        let inside = |area: Option<Range<u64>>| {
            area.is_some_and(|area| room.start <= area.start && area.end <= room.end)
        };
        form(
            self.areas().all(|(_, area)| inside(area)),
            "a key slot lies outside the room for them",
        )
    }

    /// The area for key slots, in a header whose copies have `bytes` bytes.
    pub(super) fn keyslots_area(&self, bytes: u64) -> Range<u64> {
        let start = 2 * bytes;
        let room = number(&self.0["config"]["keyslots_size"]).unwrap_or(0);
        start..start.saturating_add(room)
    }

    /// The area of each key slot.
    pub(super) fn areas(&self) -> impl Iterator<Item = (&str, Option<Range<u64>>)> {
        let slots = self.0["keyslots"].as_object().into_iter().flatten();
        slots.map(|(name, slot)| (name.as_str(), area(slot)))
    }

    /// Whether the header has requirements that a program must understand before it may touch the
    /// partition.
    pub(super) fn demands_more(&self) -> bool {
        let mandatory = &self.0["config"]["requirements"]["mandatory"];
        match mandatory {
            Value::Null => false,
            // LUKS2 On-Disk Format Specification: a program must not touch a device with mandatory
            // requirements that it does not know.
            Value::Array(list) => !list.is_empty(),
            _ => true,
        }
    }

    /// The UUID of the vault in this program's token.
    pub(super) fn vault(&self) -> Option<&str> {
        self.token()?["vault"].as_str()
    }

    fn token(&self) -> Option<&Value> {
        let tokens = self.0["tokens"].as_object()?;
        tokens.values().find(|token| token["type"] == TOKEN)
    }

    pub(super) fn segment(&self) -> Result<LuksSegment, &'static str> {
        let segments = self.0["segments"].as_object().map_or(0, Map::len);
        let segment = &self.0["segments"][SEGMENT];
        if segments != 1 || segment["type"] != "crypt" {
            return Err("its data are not one encrypted segment");
        }
        LuksSegment::parse(segment)
    }

    /// The digest by which the data's volume key is recognised.
    pub(super) fn digest(&self) -> Result<LuksDigest, &'static str> {
        let digest = self.digest_value();
        LuksDigest::parse(digest.ok_or("its volume key has no digest")?)
    }

    fn digest_value(&self) -> Option<&Value> {
        let digests = self.0["digests"].as_object()?;
        digests.values().find(|digest| is_of_data(digest))
    }

    pub(super) fn slots(&self) -> Vec<KeyslotInfo> {
        let bound = self.digest().map(|digest| digest.slots).unwrap_or_default();
        let named = self.token().and_then(|token| token["keyslots"].as_array());
        let is_named = |name: &String| named.is_some_and(|list| list.iter().any(|one| one == name));
        let slots = self.0["keyslots"].as_object().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut found: Vec<_> = slots
            .filter_map(|(name, slot)| {
                let number = name.parse().ok()?;
                let parsed = parse_slot(slot);
                // An attacker can add any number to the token, and a slot that is not needed any more is removed.
                // cryptsetup takes more rounds for the slots that a person adds.
                let is_as_written = parsed.as_ref().is_ok_and(|slot| slot.rounds == ROUNDS);
                let unsupported = match parsed {
                    Err(why) => Some(why),
                    Ok(_) if !bound.contains(&number) => Some(UNBOUND),
                    Ok(_) => None,
                };
                Some(KeyslotInfo {
                    number,
                    kind: text(&slot["type"]),
                    kdf: text(&slot["kdf"]["type"]),
                    unsupported,
                    ours: is_named(name) && is_as_written,
                })
            })
            .collect();
        found.sort_by_key(|slot| slot.number);
        found
    }

    /// The key slot `number`, or why this program cannot open it. `None` if it does not exist.
    pub(super) fn slot(&self, number: u32) -> Option<Result<LuksSlot, &'static str>> {
        let slot = self.0["keyslots"].get(number.to_string())?;
        let bound = self.digest().map(|digest| digest.slots.contains(&number));
        Some(match bound {
            Ok(true) => parse_slot(slot),
            Ok(false) => Err(UNBOUND),
            Err(why) => Err(why),
        })
    }

    /// Adds or replaces a key slot, and binds it to the data's volume key.
    pub(super) fn put_slot(&mut self, number: u32, mut slot: Value) {
        let name = number.to_string();
        let slots = self.part("keyslots");
        // The user of another program set the priority, and only the phrase changes.
        if let Some(priority) = slots.get(&name).and_then(|old| old.get("priority")) {
            slot["priority"] = priority.clone();
        }
        slots.insert(name.clone(), slot);
        self.each_list(|list, owner| match owner {
            KeyslotOwner::Ours if list.iter().any(|known| *known == name) => {}
            KeyslotOwner::Ours => list.push(Value::String(name.clone())),
            // The slot belonged to another volume key before.
            KeyslotOwner::OtherDigest => list.retain(|known| *known != name),
            KeyslotOwner::OtherToken => {}
        });
    }

    /// Removes a key slot.
    pub(super) fn take_slot(&mut self, number: u32) {
        let name = number.to_string();
        self.part("keyslots").remove(&name);
        self.each_list(|list, _| list.retain(|known| *known != name));
    }

    /// Calls `change` with every list of key slots, and its owner.
    fn each_list(&mut self, mut change: impl FnMut(&mut Vec<Value>, KeyslotOwner)) {
        for (part, other) in [
            ("digests", KeyslotOwner::OtherDigest),
            ("tokens", KeyslotOwner::OtherToken),
        ] {
            for entry in self.part(part).values_mut() {
                let ours = match other {
                    KeyslotOwner::OtherToken => entry["type"] == TOKEN,
                    _ => is_of_data(entry),
                };
                if let Some(list) = entry.get_mut("keyslots").and_then(Value::as_array_mut) {
                    change(list, if ours { KeyslotOwner::Ours } else { other });
                }
            }
        }
    }

    fn part(&mut self, name: &str) -> &mut Map<String, Value> {
        let part = self.0.get_mut(name).and_then(Value::as_object_mut);
        part.expect("the parts were checked when it was read")
    }
}

/// The owner of a list of key slots.
#[derive(Clone, Copy, Debug)]
enum KeyslotOwner {
    OtherDigest,
    OtherToken,
    /// The digest of the data's volume key, or this program's token.
    Ours,
}

/// Whether a digest is that of the data's volume key.
fn is_of_data(digest: &Value) -> bool {
    let segments = digest["segments"].as_array();
    segments.is_some_and(|segments| segments.iter().any(|name| name == SEGMENT))
}

/// Why a key slot of another volume key is not opened.
const UNBOUND: &str = "it does not open the data";

fn all_numbered(part: &Value, below: u32) -> bool {
    let names = part.as_object().into_iter().flatten().map(|(name, _)| name);
    // The names "007" and "7" would mean the same slot.
    let mut names = names.map(|name| name.parse::<u32>().map(|n| (n, n.to_string() == *name)));
    names.all(|name| name.is_ok_and(|(number, plain)| plain && number < below))
}
