//! The schema engine as an oracle for layouts.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use alknet_typedef::{FieldKind, Schema, SchemaLimits, parse};

use super::{FieldType, LayoutOracle, StructField, StructLayout};

/// Computes layouts of records by the schema keywords of `docs/typedef.md`.
///
/// It keeps the schema that it read last, because all structs of a file share one.
///
/// ```
/// use alknet_tensor::{LayoutOracle, SchemaLayouts};
///
/// let schema = r#"{"$defs":{"P":{"TypeDef:Struct":{"fields":["a","b"]},"properties":{
///     "a":{"TypeDef:Uint8":true},"b":{"TypeDef:Float32":true}}}}}"#;
/// let layout = SchemaLayouts::default().layout(schema, "#/$defs/P")?;
/// assert_eq!((layout.stride, layout.fields[1].off), (8, 4));
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Default)]
pub struct SchemaLayouts {
    limits: SchemaLimits,
    last: Mutex<Option<(String, Schema)>>,
}

impl SchemaLayouts {
    /// Uses `limits` for schemas.
    #[must_use]
    pub fn with_limits(limits: SchemaLimits) -> Self {
        Self {
            limits,
            last: Mutex::default(),
        }
    }
}

impl LayoutOracle for SchemaLayouts {
    fn layout(&self, schema: &str, def: &str) -> Result<StructLayout, String> {
        // The lock guards a cache, which a panic cannot leave wrong: the entry is taken out before
        // it is used.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last.take().filter(|(text, _)| text == schema);
        let (text, read) = match known {
            Some(known) => known,
            None => {
                let value =
                    parse(schema.as_bytes(), &self.limits).map_err(|error| error.to_string())?;
                let read = Schema::new(&value, &self.limits).map_err(|error| error.to_string())?;
                (schema.to_owned(), read)
            }
        };
        let record = read.fields(def).map_err(|error| error.to_string());
        *last = Some((text, read));
        let record = record?;
        let fields = record.fields.into_iter().map(field);
        Ok(StructLayout {
            stride: record.stride,
            fields: fields.collect::<Result<_, _>>()?,
            members: record.enums,
        })
    }
}

/// A text field without a length has no bytes in the record; the record has its offset and length.
fn field(theirs: alknet_typedef::RecordField) -> Result<StructField<'static>, String> {
    let (kind, len) = match (theirs.kind, theirs.len) {
        (FieldKind::String | FieldKind::Bytes | FieldKind::Timestamp, None) => {
            (FieldType::Indirect, 1)
        }
        (kind, len) => {
            let known = FieldType::from_name(kind.name());
            let unknown = || format!("a field of a container cannot be {kind}");
            (known.ok_or_else(unknown)?, len.unwrap_or(1))
        }
    };
    Ok(StructField {
        path: Cow::Owned(theirs.path),
        kind,
        off: theirs.off,
        len,
    })
}
