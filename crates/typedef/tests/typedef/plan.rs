//! Random layouts, and random values of them.

use alknet_typedef::{FieldKind, LayoutMode, RecordValue};
use serde_json::{Map, Value, json};

/// Numbers that follow from a seed (splitmix64).
pub(crate) struct PlanRng(u64);

impl PlanRng {
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

/// A random schema, before it has its JSON form.
#[derive(Clone, Debug)]
pub(crate) enum SchemaPlan {
    Scalar(FieldKind),
    Enum(u32),
    Text {
        kind: FieldKind,
        encoding: &'static str,
        max: u32,
    },
    Struct {
        fields: Vec<(String, Self)>,
        align: u32,
    },
    Union {
        field: bool,
        tag: FieldKind,
        variants: Vec<(String, Self)>,
    },
    Array {
        item: Box<Self>,
        /// `None` where it varies.
        count: Option<u64>,
    },
    Record(Box<Self>),
}

/// The kinds of parts that a plan may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlanStyle {
    pub(crate) mode: LayoutMode,
    /// Only kinds that C and Rust have, too.
    pub(crate) native: bool,
}

pub(crate) const SCALARS: [FieldKind; 13] = [
    FieldKind::BFloat16,
    FieldKind::Boolean,
    FieldKind::Float16,
    FieldKind::Float32,
    FieldKind::Float64,
    FieldKind::Int16,
    FieldKind::Int32,
    FieldKind::Int64,
    FieldKind::Int8,
    FieldKind::Uint16,
    FieldKind::Uint32,
    FieldKind::Uint64,
    FieldKind::Uint8,
];

impl SchemaPlan {
    pub(crate) fn random(dice: &mut PlanRng, style: PlanStyle, depth: u32) -> Self {
        let packed = style.mode == LayoutMode::Packed;
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

    pub(crate) fn of_fields(dice: &mut PlanRng, style: PlanStyle, depth: u32) -> Self {
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
            // More than the alignment of every part in it.
            0 if style.mode == LayoutMode::Aligned => 8 << depth,
            _ => 1,
        };
        Self::Struct { fields, align }
    }

    fn union(dice: &mut PlanRng, style: PlanStyle, depth: u32) -> Self {
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
        let tag = *dice.one(&[FieldKind::Uint8, FieldKind::Uint16, FieldKind::Uint32]);
        Self::Union {
            field,
            tag,
            variants,
        }
    }

    fn text(dice: &mut PlanRng, style: PlanStyle) -> Self {
        let kinds = [FieldKind::String, FieldKind::Bytes, FieldKind::Timestamp];
        let encodings: &[&str] = match style.mode {
            LayoutMode::Aligned => &["fixed", "indirect"],
            LayoutMode::Packed => &["fixed", "indirect", "length-prefixed"],
        };
        Self::Text {
            kind: *dice.one(&kinds),
            encoding: dice.one::<&str>(encodings),
            max: 25 + dice.below(8) as u32,
        }
    }

    /// The plan as a schema.
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

    /// A random value of the plan. Content of another region is appended to `region`.
    pub(crate) fn value(&self, dice: &mut PlanRng, region: &mut Vec<u8>) -> RecordValue {
        match self {
            Self::Scalar(kind) => scalar(*kind, dice),
            Self::Enum(members) => RecordValue::Enum(dice.below((*members).into()) as u32),
            Self::Text {
                kind,
                encoding,
                max,
            } => text(*kind, encoding, *max, dice, region),
            Self::Struct { fields, .. } => {
                let field =
                    |(name, plan): &(String, Self)| (name.clone(), plan.value(dice, region));
                RecordValue::Struct(fields.iter().map(field).collect())
            }
            Self::Union { variants, .. } => {
                let (name, plan) = dice.one(variants);
                RecordValue::Union(name.clone(), Box::new(plan.value(dice, region)))
            }
            Self::Array { item, count } => {
                let count = count.unwrap_or_else(|| dice.below(4));
                RecordValue::Array((0..count).map(|_| item.value(dice, region)).collect())
            }
            Self::Record(each) => {
                let count = dice.below(4);
                let each = |i: u64| (format!("{i}/é"), each.value(dice, region));
                RecordValue::Record((0..count).map(each).collect())
            }
        }
    }
}

fn scalar(kind: FieldKind, dice: &mut PlanRng) -> RecordValue {
    let bits = dice.bits();
    // Small numbers as well: errors show at the edges.
    let bits = if dice.below(3) == 0 { bits >> 60 } else { bits };
    match kind {
        FieldKind::Boolean => RecordValue::Bool(bits & 1 == 1),
        FieldKind::Int8 => RecordValue::Int((bits as i8).into()),
        FieldKind::Int16 => RecordValue::Int((bits as i16).into()),
        FieldKind::Int32 => RecordValue::Int((bits as i32).into()),
        FieldKind::Int64 => RecordValue::Int(bits as i64),
        FieldKind::Uint8 => RecordValue::Uint((bits as u8).into()),
        FieldKind::Uint16 => RecordValue::Uint((bits as u16).into()),
        FieldKind::Uint32 => RecordValue::Uint((bits as u32).into()),
        FieldKind::Uint64 => RecordValue::Uint(bits),
        // Halves of small whole numbers are exact in each of them.
        FieldKind::BFloat16 | FieldKind::Float16 => RecordValue::Float(f64::from(bits as i8) / 2.0),
        FieldKind::Float32 => RecordValue::Float(f64::from(bits as i32 as f32)),
        _ => RecordValue::Float(bits as i64 as f64),
    }
}

fn text(
    kind: FieldKind,
    encoding: &str,
    max: u32,
    dice: &mut PlanRng,
    region: &mut Vec<u8>,
) -> RecordValue {
    let len = dice.below(u64::from(max) / 2);
    let value = match kind {
        FieldKind::Bytes => RecordValue::Bytes((0..len).map(|_| dice.bits() as u8 & 1).collect()),
        FieldKind::Timestamp => RecordValue::Text(format!(
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
            // In reserved space, trailing zeros would count as its rest.
            text = text.trim_end_matches('\0').to_owned();
            RecordValue::Text(text)
        }
    };
    if encoding != "indirect" {
        return value;
    }
    let content = match &value {
        RecordValue::Bytes(bytes) => bytes.as_slice(),
        RecordValue::Text(text) => text.as_bytes(),
        other => panic!("{other:?} is no text"),
    };
    let off = region.len() as u64;
    region.extend_from_slice(content);
    RecordValue::Indirect {
        off,
        len: content.len() as u64,
    }
}
