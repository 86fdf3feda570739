//! The value of a keyword: `true`, or an object of annotations.

use serde_json::{Map, Value};

use super::Result;
use crate::error::TypedefError;
use crate::kind::{FieldKind, PREFIX};
use crate::limits::ALIGN_MAX;
use crate::pointer::join;
use crate::tensor::{Dim, is_dtype};

/// Annotations that may also stand beside the keyword. The pass moves them into its value.
const BESIDE: [&str; 8] = [
    "align",
    "discriminator",
    "encoding",
    "endian",
    "mapping",
    "nonfinite",
    "order",
    "values",
];

/// How text and bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BytesEncoding {
    /// Reserved space, the rest of it zero.
    Fixed,
    /// Offset and length in another region.
    Indirect,
    /// Length, then bytes.
    Prefixed,
}

/// How a union names the variant that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Discriminator {
    /// The member of the JSON object that names the variant; `None` where the object has one member, named by the
    /// variant's number.
    pub(crate) field: Option<String>,
    /// Its integer type in binary; `None` where the schema names no type.
    pub(crate) tag: Option<FieldKind>,
}

/// The annotations of one keyword.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeywordAnnotations {
    pub(crate) align: Option<u32>,
    pub(crate) big_endian: Option<bool>,
    pub(crate) nonfinite: bool,
    pub(crate) encoding: Option<BytesEncoding>,
    pub(crate) fields: Option<Vec<String>>,
    pub(crate) discriminator: Option<Discriminator>,
    pub(crate) order: Option<Vec<String>>,
    pub(crate) dtype: Option<String>,
    pub(crate) shape: Option<Vec<Dim>>,
}

/// The annotations of `kind`, beside `align` and `endian`, which all kinds have.
fn own(kind: FieldKind) -> &'static [&'static str] {
    match kind {
        FieldKind::BFloat16 | FieldKind::Float16 | FieldKind::Float32 | FieldKind::Float64 => {
            &["nonfinite"]
        }
        FieldKind::Bytes | FieldKind::String | FieldKind::Timestamp => &["encoding"],
        FieldKind::Record => &["values"],
        FieldKind::Struct => &["fields"],
        FieldKind::Tensor => &["dtype", "shape"],
        FieldKind::Union => &["discriminator", "mapping", "order"],
        _ => &[],
    }
}

fn has(kind: FieldKind, name: &str) -> bool {
    matches!(name, "align" | "endian") || own(kind).contains(&name)
}

/// Moves annotations beside the keyword of `kind` into the keyword's value.
pub(super) fn gather(schema: &mut Map<String, Value>, kind: FieldKind, ptr: &str) -> Result<()> {
    for name in BESIDE.into_iter().filter(|name| has(kind, name)) {
        let Some(beside) = schema.shift_remove(name) else {
            continue;
        };
        let at = || join(ptr, name);
        match schema.get_mut(kind.keyword()) {
            Some(value @ Value::Bool(true)) => {
                *value = Value::Object(Map::from_iter([(name.to_owned(), beside)]));
            }
            // Both forms mean the same; a contradiction between them is an error.
            Some(Value::Object(notes)) if !notes.contains_key(name) => {
                notes.insert(name.to_owned(), beside);
            }
            Some(Value::Object(_)) => {
                let why = format!("it stands in {} already; say it once", kind.keyword());
                return Err(TypedefError::schema(&at(), why));
            }
            // `read` reports a wrong value of the keyword itself.
            _ => {}
        }
    }
    Ok(())
}

/// Reads the value of the keyword of `kind`; `ptr` is the pointer to it.
pub(crate) fn read(kind: FieldKind, value: &Value, ptr: &str) -> Result<KeywordAnnotations> {
    let mut notes = KeywordAnnotations::default();
    let object = match value {
        Value::Bool(true) => return Ok(notes),
        Value::Object(object) => object,
        _ => return Err(TypedefError::schema(ptr, "this is true or an object")),
    };
    for (name, value) in object {
        let at = join(ptr, name);
        // Ignored, a misspelt annotation would give another layout.
        if !has(kind, name) {
            let known = own(kind).join(", ");
            let known =
                [known.as_str(), "align, endian"].join(if known.is_empty() { "" } else { ", " });
            let why = format!("{kind} has no annotation of this name, only {known}");
            return Err(TypedefError::schema(&at, why));
        }
        let invalid = |why: &str| TypedefError::schema(&at, why);
        match name.as_str() {
            "align" => notes.align = Some(align(value, &at)?),
            "endian" => notes.big_endian = Some(big_endian(value, &at)?),
            "nonfinite" => {
                let flag = value.as_bool();
                notes.nonfinite = flag.ok_or_else(|| invalid("this is true or false"))?;
            }
            "encoding" => {
                notes.encoding = Some(encoding(value).ok_or_else(|| {
                    invalid("an encoding is \"length-prefixed\", \"fixed\" or \"indirect\"")
                })?)
            }
            "fields" => notes.fields = Some(names(value, &at)?),
            "order" => notes.order = Some(names(value, &at)?),
            "discriminator" => notes.discriminator = Some(discriminator(value, &at)?),
            "dtype" => {
                let known = value.as_str().filter(|name| is_dtype(name));
                let known =
                    known.ok_or_else(|| invalid("no dtype of safetensors has this name"))?;
                notes.dtype = Some(known.to_owned());
            }
            "shape" => notes.shape = Some(shape(value, &at)?),
            "mapping" if !value.is_object() => {
                return Err(invalid("a mapping is an object of schemas"));
            }
            // Schemas, which the pass reads as such.
            _ => {}
        }
    }
    Ok(notes)
}

/// A power of two in bytes. Also read beside a `$ref`.
pub(crate) fn align(value: &Value, ptr: &str) -> Result<u32> {
    let bytes = value.as_u64().and_then(|bytes| u32::try_from(bytes).ok());
    let bytes = bytes.filter(|bytes| bytes.is_power_of_two() && *bytes <= ALIGN_MAX);
    bytes.ok_or_else(|| {
        let why = format!("an alignment is a power of two, at most {ALIGN_MAX}");
        TypedefError::schema(ptr, why)
    })
}

/// Also read beside a `$ref`.
pub(crate) fn big_endian(value: &Value, ptr: &str) -> Result<bool> {
    match value.as_str() {
        Some("big") => Ok(true),
        Some("little") => Ok(false),
        _ => Err(TypedefError::schema(ptr, "this is \"little\" or \"big\"")),
    }
}

fn encoding(value: &Value) -> Option<BytesEncoding> {
    Some(match value.as_str()? {
        "fixed" => BytesEncoding::Fixed,
        "indirect" => BytesEncoding::Indirect,
        "length-prefixed" => BytesEncoding::Prefixed,
        _ => return None,
    })
}

/// Names, each once.
fn names(value: &Value, ptr: &str) -> Result<Vec<String>> {
    let invalid = |why: String| TypedefError::schema(ptr, why);
    let items = value
        .as_array()
        .ok_or_else(|| invalid("this is a list of names".to_owned()))?;
    let mut seen = std::collections::HashSet::with_capacity(items.len());
    let mut names = Vec::with_capacity(items.len());
    for item in items {
        let name = item
            .as_str()
            .ok_or_else(|| invalid("this is a list of names".to_owned()))?;
        if !seen.insert(name) {
            return Err(invalid(format!("'{name}' stands here twice")));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

fn discriminator(value: &Value, ptr: &str) -> Result<Discriminator> {
    let invalid = |why: &str| TypedefError::schema(ptr, why);
    let members = value.as_object().ok_or_else(|| {
        invalid("a discriminator is an object with kind, and with type, name or offset")
    })?;
    for name in members.keys() {
        if !matches!(name.as_str(), "kind" | "name" | "offset" | "type") {
            let why = "a discriminator has kind, type, name and offset, and nothing else";
            return Err(TypedefError::schema(&join(ptr, name), why));
        }
    }
    if members
        .get("offset")
        .is_some_and(|offset| offset.as_u64() != Some(0))
    {
        return Err(invalid("the tag stands first: offset is 0"));
    }
    let field = match (
        members.get("kind").and_then(Value::as_str),
        members.get("name"),
    ) {
        (Some("byte"), None) => None,
        (Some("field"), Some(Value::String(name))) => Some(name.clone()),
        (Some("byte"), Some(_)) => return Err(invalid("kind \"byte\" has no name")),
        (Some("field"), _) => return Err(invalid("kind \"field\" needs the name of the field")),
        _ => {
            return Err(invalid(
                "the kind of a discriminator is \"byte\" or \"field\"",
            ));
        }
    };
    let tag = members.get("type").map(|name| {
        let name = name.as_str().unwrap_or_default();
        let keyword = [PREFIX, name.strip_prefix(PREFIX).unwrap_or(name)].concat();
        let kind = FieldKind::of_keyword(&keyword);
        let kind = kind.filter(|kind| {
            matches!(
                kind,
                FieldKind::Uint8 | FieldKind::Uint16 | FieldKind::Uint32
            )
        });
        kind.ok_or_else(|| invalid("the type of a discriminator is Uint8, Uint16 or Uint32"))
    });
    Ok(Discriminator {
        field,
        tag: tag.transpose()?,
    })
}

fn shape(value: &Value, ptr: &str) -> Result<Vec<Dim>> {
    let invalid = || TypedefError::schema(ptr, "a shape is a list of sizes and of names of sizes");
    let items = value.as_array().ok_or_else(invalid)?;
    let dim = |item: &Value| match item {
        Value::String(name) if !name.is_empty() => Ok(Dim::Symbol(name.clone())),
        Value::Number(size) => size.as_u64().map(Dim::Size).ok_or_else(invalid),
        _ => Err(invalid()),
    };
    items.iter().map(dim).collect()
}
