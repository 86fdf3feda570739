//! Random layouts, and random values of them.

use alknet_typedef::{FieldValue, Kind, Mode};
use serde_json::{Map, Value, json};

/// Numbers that follow from a seed (splitmix64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    pub(crate) fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

/// A schema in the making.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    Scalar(Kind),
    Enum(u32),
    Text {
        kind: Kind,
        encoding: &'static str,
        max: u32,
    },
    Struct {
        fields: Vec<(String, Self)>,
        align: u32,
    },
    Union {
        field: bool,
        tag: Kind,
        variants: Vec<(String, Self)>,
    },
    Array {
        item: Box<Self>,
        /// None where it varies.
        count: Option<u64>,
    },
    Record(Box<Self>),
}

/// What kinds of parts there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    pub(crate) mode: Mode,
    /// Only what C and Rust have too.
    pub(crate) native: bool,
}

pub(crate) const SCALARS: [Kind; 13] = [
    Kind::BFloat16,
    Kind::Boolean,
    Kind::Float16,
    Kind::Float32,
    Kind::Float64,
    Kind::Int16,
    Kind::Int32,
    Kind::Int64,
    Kind::Int8,
    Kind::Uint16,
    Kind::Uint32,
    Kind::Uint64,
    Kind::Uint8,
];

impl Plan {
    pub(crate) fn random(dice: &mut Dice, style: Style, depth: u32) -> Self {
        let packed = style.mode == Mode::Packed;
        match dice.below(if depth == 0 { 5 } else { 10 }) {
            0..=2 => Self::Scalar(*dice.one(&SCALARS)),
            3 => Self::Enum(1 + dice.below(4) as u32),
            4 => Self::text(dice, style),
            5 | 6 => Self::of_fields(dice, style, depth),
            7 => Self::union(dice, style, depth),
            8 if packed => Self::Record(Box::new(Self::random(dice, style, depth - 1))),
            _ => {
                let count = u64::from(style.native) + dice.below(4);
                Self::Array {
                    item: Box::new(Self::random(dice, style, depth - 1)),
                    count: Some(count).filter(|_| !packed || dice.below(2) == 0),
                }
            }
        }
    }

    pub(crate) fn of_fields(dice: &mut Dice, style: Style, depth: u32) -> Self {
        let count = u64::from(style.native) + dice.below(5);
        let name = |i: u64| {
            if style.native {
                format!("f{i}")
            } else {
                format!("{i}/~ é")
            }
        };
        let fields = (0..count).map(|i| (name(i), Self::random(dice, style, depth - 1)));
        let fields: Vec<_> = fields.collect();
        let align = match dice.below(4) {
            // More than anything within it has.
            0 if style.mode == Mode::Aligned => 8 << depth,
            _ => 1,
        };
        Self::Struct { fields, align }
    }

    fn union(dice: &mut Dice, style: Style, depth: u32) -> Self {
        let field = dice.below(2) == 0;
        let count = 1 + dice.below(3);
        let variants = (0..count).map(|i| {
            let name = if field {
                format!("v{i}")
            } else {
                (i * 7).to_string()
            };
            let plan = if field {
                Self::of_fields(dice, style, depth)
            } else {
                Self::random(dice, style, depth - 1)
            };
            (name, plan)
        });
        let variants = variants.collect();
        let tag = *dice.one(&[Kind::Uint8, Kind::Uint16, Kind::Uint32]);
        Self::Union {
            field,
            tag,
            variants,
        }
    }

    fn text(dice: &mut Dice, style: Style) -> Self {
        let kinds = [Kind::String, Kind::Bytes, Kind::Timestamp];
        let encodings: &[&str] = match style.mode {
            Mode::Aligned => &["fixed", "indirect"],
            Mode::Packed => &["fixed", "indirect", "length-prefixed"],
        };
        Self::Text {
            kind: *dice.one(&kinds),
            encoding: dice.one::<&str>(encodings),
            max: 25 + dice.below(8) as u32,
        }
    }

    /// The same as a schema.
    pub(crate) fn schema(&self) -> Value {
        match self {
            Self::Scalar(kind) => json!({ kind.keyword(): true }),
            Self::Enum(members) => {
                let members: Vec<_> = (0..*members).map(|i| format!("m{i}")).collect();
                json!({ "TypeDef:Enum": true, "enum": members })
            }
            Self::Text {
                kind,
                encoding,
                max,
            } => {
                json!({ kind.keyword(): { "encoding": encoding }, "TypeDef:maxBytes": max })
            }
            Self::Struct { fields, align } => {
                let names: Vec<_> = fields.iter().map(|(name, _)| name).collect();
                // The order of the members must not matter.
                let properties: Map<_, _> = fields
                    .iter()
                    .rev()
                    .map(|(name, plan)| (name.clone(), plan.schema()))
                    .collect();
                let mut notes = json!({ "fields": names });
                if *align > 1 {
                    notes["align"] = (*align).into();
                }
                json!({ "TypeDef:Struct": notes, "properties": properties })
            }
            Self::Union {
                field,
                tag,
                variants,
            } => {
                let names: Vec<_> = variants.iter().map(|(name, _)| name).collect();
                let mapping: Map<_, _> = variants
                    .iter()
                    .map(|(name, plan)| (name.clone(), plan.schema()))
                    .collect();
                let notes = if *field {
                    let by = json!({ "kind": "field", "name": "=", "type": tag });
                    json!({ "discriminator": by, "mapping": mapping, "order": names })
                } else {
                    let by = json!({ "kind": "byte", "type": tag });
                    json!({ "discriminator": by, "mapping": mapping })
                };
                json!({ "TypeDef:Union": notes })
            }
            Self::Array { item, count } => {
                let mut schema = json!({ "TypeDef:Array": true, "items": item.schema() });
                if let Some(count) = count {
                    schema["minItems"] = (*count).into();
                    schema["maxItems"] = (*count).into();
                }
                schema
            }
            Self::Record(each) => json!({ "TypeDef:Record": { "values": each.schema() } }),
        }
    }

    /// A random value of it. With `region`, content that lies elsewhere is put there.
    pub(crate) fn value(&self, dice: &mut Dice, region: &mut Vec<u8>) -> FieldValue {
        match self {
            Self::Scalar(kind) => scalar(*kind, dice),
            Self::Enum(members) => FieldValue::Enum(dice.below((*members).into()) as u32),
            Self::Text {
                kind,
                encoding,
                max,
            } => text(*kind, encoding, *max, dice, region),
            Self::Struct { fields, .. } => {
                let field =
                    |(name, plan): &(String, Self)| (name.clone(), plan.value(dice, region));
                FieldValue::Struct(fields.iter().map(field).collect())
            }
            Self::Union { variants, .. } => {
                let (name, plan) = dice.one(variants);
                FieldValue::Union(name.clone(), Box::new(plan.value(dice, region)))
            }
            Self::Array { item, count } => {
                let count = count.unwrap_or_else(|| dice.below(4));
                FieldValue::Array((0..count).map(|_| item.value(dice, region)).collect())
            }
            Self::Record(each) => {
                let count = dice.below(4);
                let each = |i: u64| (format!("{i}/é"), each.value(dice, region));
                FieldValue::Record((0..count).map(each).collect())
            }
        }
    }
}

fn scalar(kind: Kind, dice: &mut Dice) -> FieldValue {
    let bits = dice.bits();
    // Small ones too: the edges are what breaks.
    let bits = if dice.below(3) == 0 { bits >> 60 } else { bits };
    match kind {
        Kind::Boolean => FieldValue::Bool(bits & 1 == 1),
        Kind::Int8 => FieldValue::Int((bits as i8).into()),
        Kind::Int16 => FieldValue::Int((bits as i16).into()),
        Kind::Int32 => FieldValue::Int((bits as i32).into()),
        Kind::Int64 => FieldValue::Int(bits as i64),
        Kind::Uint8 => FieldValue::Uint((bits as u8).into()),
        Kind::Uint16 => FieldValue::Uint((bits as u16).into()),
        Kind::Uint32 => FieldValue::Uint((bits as u32).into()),
        Kind::Uint64 => FieldValue::Uint(bits),
        // Halves of small whole numbers are exact in each of them.
        Kind::BFloat16 | Kind::Float16 => FieldValue::Float(f64::from(bits as i8) / 2.0),
        Kind::Float32 => FieldValue::Float(f64::from(bits as i32 as f32)),
        _ => FieldValue::Float(bits as i64 as f64),
    }
}

fn text(kind: Kind, encoding: &str, max: u32, dice: &mut Dice, region: &mut Vec<u8>) -> FieldValue {
    let len = dice.below(u64::from(max) / 2);
    let value = match kind {
        Kind::Bytes => FieldValue::Bytes((0..len).map(|_| dice.bits() as u8 & 1).collect()),
        Kind::Timestamp => FieldValue::Text(format!(
            "{:04}-0{}-1{}T0{}:59:00Z",
            dice.below(10_000),
            1 + dice.below(9),
            dice.below(10),
            dice.below(10),
        )),
        _ => {
            let mut text: String = (0..len)
                .map(|_| *dice.one(&['a', '\0', 'é', '"']))
                .collect();
            // Where space is reserved, an end of zeros would be taken for its rest.
            text = text.trim_end_matches('\0').to_owned();
            FieldValue::Text(text)
        }
    };
    if encoding != "indirect" {
        return value;
    }
    let content = match &value {
        FieldValue::Bytes(bytes) => bytes.as_slice(),
        FieldValue::Text(text) => text.as_bytes(),
        other => panic!("{other:?} is no text"),
    };
    let off = region.len() as u64;
    region.extend_from_slice(content);
    FieldValue::Indirect {
        off,
        len: content.len() as u64,
    }
}
