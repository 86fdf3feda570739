//! The top level of a header: the entries and `__metadata__`.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::dtype::Dtype;
use crate::error::{QuotedText, Result, TensorErrorCode};
use crate::header::json::{
    IgnoredMembers, JsonBounds, ObjectKeys, TextArena, TextSeed, TextSpan, ValueWalk,
    VisitorContext, duplicate,
};
use crate::keys::{INDEX, METADATA, SCHEMA};
use crate::limits::ContainerLimits;

/// Depth of the objects around a member of an entry.
const ENTRY_DEPTH: u32 = 2;

/// An entry in its compact form: texts and sizes lie in arenas.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawEntry {
    pub(crate) name: TextSpan,
    /// The name of an unknown type.
    pub(crate) opaque: TextSpan,
    pub(crate) dims_start: u32,
    pub(crate) rank: u8,
    pub(crate) dtype: Option<Dtype>,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// The top level as parsed, before any check of one part against another.
#[derive(Debug, Default)]
pub(super) struct RawHeader {
    pub(super) text: TextArena,
    pub(super) entries: Vec<RawEntry>,
    pub(super) dims: Vec<u64>,
    pub(super) metadata: Option<Vec<(TextSpan, TextSpan)>>,
}

/// Reads the whole header.
pub(super) fn read(header: &str, limits: &ContainerLimits) -> Result<RawHeader> {
    let context = VisitorContext::new("header", TensorErrorCode::Header);
    let mut raw = RawHeader {
        text: TextArena::with_capacity_for(header.len()),
        ..RawHeader::default()
    };
    let bounds = JsonBounds::new(limits.json_depth, u64::MAX);
    let top = HeaderSeed {
        context: &context,
        bounds: &bounds,
        limits,
        raw: &mut raw,
    };
    context.read(header, top)?;
    Ok(raw)
}

struct HeaderSeed<'a> {
    context: &'a VisitorContext,
    bounds: &'a JsonBounds,
    limits: &'a ContainerLimits,
    raw: &'a mut RawHeader,
}

impl HeaderSeed<'_> {
    fn name<E: de::Error>(&self, name: &str) -> Result<(), E> {
        // The limit is checked before the next entry takes memory.
        if self.raw.entries.len() as u64 >= u64::from(self.limits.entries) {
            let what = format!("header: more than {} entries", self.limits.entries);
            return Err(self.context.say(TensorErrorCode::Limit, what));
        }
        // Stock files have no limit on names; the containers of this crate have.
        let Some(max) = self.limits.name_bytes else {
            return Ok(());
        };
        if name.is_empty() || name.len() > max as usize {
            let what = format!(
                "entry {}: name of {} bytes, 1 to {max} are allowed",
                QuotedText(name),
                name.len()
            );
            return Err(self.context.say(TensorErrorCode::Limit, what));
        }
        if name.chars().any(char::is_control) {
            let what = format!("entry {}: name with a control character", QuotedText(name));
            return Err(self.context.say(TensorErrorCode::Header, what));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of entries")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut described = false;
        while let Some(name) = members.next_key_seed(TextSeed(&mut self.raw.text))? {
            self.context.subject(name.text_in(self.raw.text.as_str()));
            // The last entry may have set another code.
            self.context.expect(TensorErrorCode::Header);
            if name.text_in(self.raw.text.as_str()) == METADATA {
                if described {
                    return Err(self.context.raise(duplicate("header", METADATA)));
                }
                described = true;
                members.next_value_seed(MetadataSeed {
                    context: self.context,
                    limits: self.limits,
                    raw: self.raw,
                })?;
                continue;
            }
            self.name(name.text_in(self.raw.text.as_str()))?;
            let entry = members.next_value_seed(EntrySeed {
                context: self.context,
                bounds: self.bounds,
                limits: self.limits,
                name,
                raw: self.raw,
            })?;
            self.raw.entries.push(entry);
        }
        self.context.subject("");
        Ok(())
    }
}

/// `__metadata__`: strings by strings. `null` is read as an absent member, as stock readers do.
struct MetadataSeed<'a> {
    context: &'a VisitorContext,
    limits: &'a ContainerLimits,
    raw: &'a mut RawHeader,
}

impl<'de> DeserializeSeed<'de> for MetadataSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let RawHeader { text, metadata, .. } = self.raw;
        let pairs = metadata.get_or_insert_default();
        let mut bytes = 0;
        while let Some(key) = members.next_key_seed(TextSeed(text))? {
            let value = members.next_value_seed(TextSeed(text))?;
            // Index and schema grow with the number of tensors, so they have limits of their own.
            let (limit, counted) = match key.text_in(text.as_str()) {
                INDEX => (self.limits.header_bytes, value.len()),
                SCHEMA => (self.limits.schema_bytes, value.len()),
                _ => {
                    bytes += key.len() + value.len();
                    (self.limits.metadata_bytes, bytes)
                }
            };
            if counted > limit {
                let key = QuotedText(key.text_in(text.as_str()));
                let what = format!("metadata up to key {key}: more than {limit} bytes");
                return Err(self.context.say(TensorErrorCode::Limit, what));
            }
            pairs.push((key, value));
        }
        let text = text.as_str();
        // The keys are sorted, because comparing each with each would take quadratic time for very
        // many keys.
        let mut keys: Vec<TextSpan> = pairs.iter().map(|(key, _)| *key).collect();
        keys.sort_unstable_by(|a, b| a.text_in(text).cmp(b.text_in(text)));
        let twice = keys
            .windows(2)
            .find(|two| two[0].text_in(text) == two[1].text_in(text));
        match twice {
            None => Ok(()),
            Some(two) => Err(self
                .context
                .raise(duplicate(METADATA, two[0].text_in(text)))),
        }
    }
}

/// `{"dtype", "shape", "data_offsets"}`, and further members of the file's writer.
struct EntrySeed<'a> {
    context: &'a VisitorContext,
    bounds: &'a JsonBounds,
    limits: &'a ContainerLimits,
    name: TextSpan,
    raw: &'a mut RawHeader,
}

/// A member's key; further keys are kept to find one that comes twice.
enum EntryMember {
    Dtype,
    Shape,
    Offsets,
    Other,
}

struct EntryMemberSeed<'a>(&'a mut ObjectKeys);

impl<'de> DeserializeSeed<'de> for EntryMemberSeed<'_> {
    type Value = EntryMember;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<EntryMember, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for EntryMemberSeed<'_> {
    type Value = EntryMember;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<EntryMember, E> {
        Ok(match key {
            "dtype" => EntryMember::Dtype,
            "shape" => EntryMember::Shape,
            "data_offsets" => EntryMember::Offsets,
            _ => {
                self.0.add(key);
                EntryMember::Other
            }
        })
    }
}

/// The begin and the end of an entry.
struct OffsetsSeed;

impl<'de> DeserializeSeed<'de> for OffsetsSeed {
    type Value = [u64; 2];

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<[u64; 2], D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for OffsetsSeed {
    type Value = [u64; 2];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of two whole numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<[u64; 2], A::Error> {
        let short = |n| de::Error::invalid_length(n, &"a list of two whole numbers");
        let start = items.next_element()?.ok_or_else(|| short(0))?;
        let end = items.next_element()?.ok_or_else(|| short(1))?;
        // serde_json reports an item that is left over as a fault of the JSON text, which it is
        // not.
        match items.next_element::<u64>()? {
            None => Ok([start, end]),
            Some(_) => Err(short(3)),
        }
    }
}

impl<'de> DeserializeSeed<'de> for EntrySeed<'_> {
    type Value = RawEntry;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<RawEntry, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed<'_> {
    type Value = RawEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<RawEntry, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        let mut others = ObjectKeys::default();
        while let Some(member) = members.next_key_seed(EntryMemberSeed(&mut others))? {
            let twice = match member {
                EntryMember::Dtype => {
                    // Until the next call of `expect`, an error of the parser is reported with this
                    // code.
                    self.context.expect(TensorErrorCode::Dtype);
                    let text = members.next_value_seed(TextSeed(&mut self.raw.text))?;
                    dtype.replace(text).map(|_| "dtype")
                }
                EntryMember::Shape => {
                    self.context.expect(TensorErrorCode::Shape);
                    let dims = members.next_value_seed(self.shape())?;
                    shape.replace(dims).map(|_| "shape")
                }
                EntryMember::Offsets => {
                    self.context.expect(TensorErrorCode::Tiling);
                    let pair = members.next_value_seed(OffsetsSeed)?;
                    offsets.replace(pair).map(|_| "data_offsets")
                }
                EntryMember::Other => {
                    members.next_value_seed(self.skipped())?;
                    None
                }
            };
            if let Some(key) = twice {
                let error = duplicate(self.label(), key);
                return Err(self.context.raise(error));
            }
        }
        self.context.expect(TensorErrorCode::Header);
        others
            .check(EntryLabel(self.name.text_in(self.raw.text.as_str())))
            .map_err(|error| self.context.raise(error))?;
        let absent = |what: &str| {
            let what = format!("{}: no {what}", self.label());
            self.context.say(TensorErrorCode::Header, what)
        };
        let opaque = dtype.ok_or_else(|| absent("dtype"))?;
        let (dims_start, rank) = shape.ok_or_else(|| absent("shape"))?;
        let [start, end] = offsets.ok_or_else(|| absent("data_offsets"))?;
        Ok(RawEntry {
            name: self.name,
            opaque,
            dims_start,
            rank,
            // An unknown type is no error: programs may define their own, whose bytes stay
            // readable.
            dtype: Dtype::from_name(opaque.text_in(self.raw.text.as_str())),
            start,
            end,
        })
    }
}

/// An entry as errors name it.
struct EntryLabel<'a>(&'a str);

impl fmt::Display for EntryLabel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {}", QuotedText(self.0))
    }
}

impl EntrySeed<'_> {
    fn label(&self) -> String {
        format!(
            "entry {}",
            QuotedText(self.name.text_in(self.raw.text.as_str()))
        )
    }

    fn shape(&mut self) -> ShapeSeed<'_> {
        ShapeSeed {
            context: self.context,
            rank_max: self.limits.rank,
            name: self.name.text_in(self.raw.text.as_str()),
            dims: &mut self.raw.dims,
        }
    }

    const fn skipped(&self) -> ValueWalk<'_, IgnoredMembers> {
        ValueWalk {
            context: self.context,
            bounds: self.bounds,
            watch: &IgnoredMembers,
            depth: ENTRY_DEPTH,
            parent: "",
            key: "",
        }
    }
}

/// The index of the first size, and the number of sizes.
struct ShapeSeed<'a> {
    context: &'a VisitorContext,
    rank_max: u32,
    name: &'a str,
    dims: &'a mut Vec<u64>,
}

impl<'de> DeserializeSeed<'de> for ShapeSeed<'_> {
    type Value = (u32, u8);

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(u32, u8), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ShapeSeed<'_> {
    type Value = (u32, u8);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of whole numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sizes: A) -> Result<(u32, u8), A::Error> {
        let start = self.dims.len();
        while let Some(size) = sizes.next_element::<u64>()? {
            if (self.dims.len() - start) as u64 >= u64::from(self.rank_max) {
                let what = format!(
                    "entry {}: more than {} dimensions",
                    QuotedText(self.name),
                    self.rank_max
                );
                return Err(self.context.say(TensorErrorCode::Limit, what));
            }
            self.dims.push(size);
        }
        // A size takes at least two bytes of a header of at most 100 MB, and a rank is at most 32,
        // so the casts keep their values.
        Ok((start as u32, (self.dims.len() - start) as u8))
    }
}
