//! The description of one tensor in the index.

use std::fmt;

use blake3::Hash;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::error::{QuotedText, Result, TensorError, TensorErrorCode, fail};
use crate::header::index::{
    IndexState, KnownKeySeed, RawField, RawKind, RawTensor, SeenKeys, StringSeed, hash,
};
use crate::header::json::{IgnoredMembers, TextSpan, ValueWalk, VisitorContext};
use crate::keys::INDEX;
use crate::layout::FieldType;
use crate::limits::ALIGN_MAX;

/// Depth of the objects around a tensor's members.
const TENSOR_DEPTH: u32 = 3;
/// Depth of the objects and arrays around a field's members.
const FIELD_DEPTH: u32 = 5;

/// The object that describes a tensor.
pub(super) struct TensorSeed<'a> {
    pub(super) state: IndexState<'a>,
    pub(super) entry: u32,
    pub(super) name: &'a str,
}

/// The members of a tensor that were read so far.
#[derive(Default)]
struct TensorMembers {
    kind: Option<&'static str>,
    hash: Option<Hash>,
    align: Option<u32>,
    def: Option<TextSpan>,
    stride: Option<u64>,
    count: Option<u64>,
    fields: Option<(u32, u32)>,
    enc: Option<TextSpan>,
    shape_of: Option<u32>,
}

impl<'de> DeserializeSeed<'de> for TensorSeed<'_> {
    type Value = RawTensor;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<RawTensor, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TensorSeed<'_> {
    type Value = RawTensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a kind")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<RawTensor, A::Error> {
        const KNOWN: [&str; 9] = [
            "kind", "b3", "align", "def", "stride", "count", "fields", "enc", "shape_of",
        ];
        let context = self.state.context;
        let mut keys = SeenKeys::default();
        let mut it = TensorMembers::default();
        while let Some(key) = members.next_key_seed(KnownKeySeed(&KNOWN, &mut keys))? {
            match key {
                "kind" => it.kind = Some(members.next_value_seed(kind(context))?),
                "b3" => {
                    let hash = StringSeed::new(context, "a hash", |text| {
                        hash(text, TensorErrorCode::Schema)
                    });
                    it.hash = Some(members.next_value_seed(hash)?);
                }
                "align" => it.align = Some(members.next_value()?),
                "def" => it.def = Some(members.next_value_seed(self.text())?),
                "stride" => it.stride = Some(members.next_value()?),
                "count" => it.count = Some(members.next_value()?),
                "fields" => {
                    let fields = FieldsSeed(self.state.lend());
                    it.fields = Some(members.next_value_seed(fields)?);
                }
                "enc" => it.enc = Some(members.next_value_seed(self.text())?),
                "shape_of" => {
                    it.shape_of = Some(members.next_value_seed(self.state.entry())?);
                }
                _ => members.next_value_seed(self.state.skip(TENSOR_DEPTH))?,
            }
        }
        let label = TensorLabel(self.name);
        let tensor = keys
            .check(&label)
            .and_then(|()| it.complete(&label, self.entry));
        tensor.map_err(|error| context.raise(error))
    }
}

fn kind(
    context: &VisitorContext,
) -> StringSeed<'_, impl FnOnce(&str) -> Result<&'static str> + use<'_>, &'static str> {
    StringSeed::new(context, "flat, struct or blob", |text| {
        let known = ["flat", "struct", "blob"].into_iter();
        known.into_iter().find(|kind| *kind == text).ok_or_else(|| {
            let what = format!(
                "{INDEX}: kind {} is not flat, struct or blob",
                QuotedText(text)
            );
            TensorError::new(TensorErrorCode::Schema, what)
        })
    })
}

impl TensorSeed<'_> {
    fn text(
        &mut self,
    ) -> StringSeed<'_, impl FnOnce(&str) -> Result<TextSpan> + use<'_>, TextSpan> {
        let IndexState { context, index, .. } = &mut self.state;
        let arena = &mut index.text;
        StringSeed::new(context, "a string", |text| Ok(arena.push(text)))
    }
}

/// The tensor as errors name it.
struct TensorLabel<'a>(&'a str);

impl fmt::Display for TensorLabel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{INDEX}: tensor {}", QuotedText(self.0))
    }
}

impl TensorMembers {
    fn complete(self, label: &TensorLabel<'_>, entry: u32) -> Result<RawTensor> {
        let absent =
            |what: &str| TensorError::new(TensorErrorCode::Schema, format!("{label}: no {what}"));
        let kind = match self.kind.ok_or_else(|| absent("kind"))? {
            "struct" => RawKind::Struct {
                def: self.def.ok_or_else(|| absent("def"))?,
                stride: self.stride.ok_or_else(|| absent("stride"))?,
                count: self.count.ok_or_else(|| absent("count"))?,
                fields: self.fields.ok_or_else(|| absent("fields"))?,
            },
            "blob" => RawKind::Blob {
                enc: self.enc.ok_or_else(|| absent("enc"))?,
                shape_of: self.shape_of,
            },
            // `kind` accepts only the three names.
            _ => RawKind::Flat,
        };
        // An alignment of another form would make offsets meaningless to a reader that maps.
        if let Some(align) = self.align
            && (!align.is_power_of_two() || align > ALIGN_MAX)
        {
            let what = format!("{label}: align {align} is no power of two up to {ALIGN_MAX}");
            return fail(TensorErrorCode::Schema, what);
        }
        Ok(RawTensor {
            entry,
            kind,
            align: self.align,
            hash: self.hash,
        })
    }
}

struct FieldsSeed<'a>(IndexState<'a>);

impl<'de> DeserializeSeed<'de> for FieldsSeed<'_> {
    type Value = (u32, u32);

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(u32, u32), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for FieldsSeed<'_> {
    type Value = (u32, u32);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of fields")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(u32, u32), A::Error> {
        let start = self.0.index.fields.len();
        while let Some(field) = items.next_element_seed(FieldSeed(self.0.lend()))? {
            self.0.index.fields.push(field);
        }
        // A field takes some forty bytes of a header of at most 100 MB, so the casts keep their
        // values.
        Ok((start as u32, (self.0.index.fields.len() - start) as u32))
    }
}

struct FieldSeed<'a>(IndexState<'a>);

impl<'de> DeserializeSeed<'de> for FieldSeed<'_> {
    type Value = RawField;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<RawField, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldSeed<'_> {
    type Value = RawField;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with path, off and type")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<RawField, A::Error> {
        const KNOWN: [&str; 4] = ["path", "off", "type", "len"];
        let context = self.0.context;
        let arena = &mut self.0.index.text;
        let mut keys = SeenKeys::default();
        let (mut path, mut off, mut kind, mut len) = (None, None, None, None);
        while let Some(key) = members.next_key_seed(KnownKeySeed(&KNOWN, &mut keys))? {
            match key {
                "path" => {
                    let text = StringSeed::new(context, "a string", |text| Ok(arena.push(text)));
                    path = Some(members.next_value_seed(text)?);
                }
                "off" => off = Some(members.next_value::<u64>()?),
                "type" => kind = Some(members.next_value_seed(field_type(context))?),
                "len" => len = Some(members.next_value::<u64>()?),
                _ => members.next_value_seed(ValueWalk {
                    context,
                    bounds: self.0.bounds,
                    watch: &IgnoredMembers,
                    depth: FIELD_DEPTH,
                    parent: "",
                    key: "",
                })?,
            }
        }
        keys.check(format_args!("{INDEX}: a field"))
            .map_err(|error| context.raise(error))?;
        let absent = |what: &str| {
            context.say(
                TensorErrorCode::Schema,
                format!("{INDEX}: field without {what}"),
            )
        };
        let kind: FieldType = kind.ok_or_else(|| absent("type"))?;
        let (kind, len) = match (kind, len) {
            (kind, Some(len)) => (kind, len),
            // A text field without a length has no bytes in the record; the record has its offset
            // and length.
            (FieldType::String | FieldType::Timestamp | FieldType::Bytes, None) => {
                (FieldType::Indirect, 1)
            }
            // A union has no width of its own, so no default is possible.
            (FieldType::Union, None) => return Err(absent("len")),
            (kind, None) => (kind, 1),
        };
        Ok(RawField {
            path: path.ok_or_else(|| absent("path"))?,
            kind,
            off: off.ok_or_else(|| absent("off"))?,
            len,
        })
    }
}

fn field_type(
    context: &VisitorContext,
) -> StringSeed<'_, impl FnOnce(&str) -> Result<FieldType> + use<'_>, FieldType> {
    StringSeed::new(context, "the name of a type", |text| {
        FieldType::from_name(text).ok_or_else(|| {
            let what = format!("{INDEX}: field of the unknown type {}", QuotedText(text));
            TensorError::new(TensorErrorCode::Schema, what)
        })
    })
}
