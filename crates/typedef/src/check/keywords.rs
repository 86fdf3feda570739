//! The keywords, as the library knows them.

use jsonschema::paths::Location;
use jsonschema::{Keyword, ValidationError, ValidationOptions};
use serde_json::{Map, Value};

use crate::kind::FieldKind;
use crate::leaf::{Fit, LeafType};
use crate::model::{self, LayoutMode};
use crate::schema::annotations::{self, KeywordAnnotations};
use crate::tensor::{Dims, TensorType};

type KeywordResult<'a> = Result<Box<dyn for<'i> Keyword<'i>>, ValidationError<'a>>;

/// Registers every kind.
pub(super) fn with_all(options: ValidationOptions<'_>, mode: LayoutMode) -> ValidationOptions<'_> {
    FieldKind::ALL.into_iter().fold(options, |options, kind| {
        options.with_keyword(
            kind.keyword(),
            move |parent: &Map<String, Value>, value: &Value, _: Location| -> KeywordResult<'_> {
                make(kind, parent, value, mode)
            },
        )
    })
}

fn make<'a>(
    kind: FieldKind,
    parent: &Map<String, Value>,
    value: &Value,
    mode: LayoutMode,
) -> KeywordResult<'a> {
    // The pass over the schema read the same before, so no error is left to report.
    let refuse = |error: crate::TypedefError| ValidationError::custom(error.to_string());
    let notes = annotations::read(kind, value, "").map_err(refuse)?;
    let leaf = model::leaf(kind, parent, &notes, mode, "").map_err(refuse)?;
    Ok(Box::new(match leaf {
        Some(leaf) => KeywordTest::Leaf(leaf),
        None => test(kind, notes, parent),
    }))
}

fn test(kind: FieldKind, notes: KeywordAnnotations, parent: &Map<String, Value>) -> KeywordTest {
    match kind {
        FieldKind::Array => KeywordTest::Array,
        FieldKind::Struct => {
            let named = parent.get("properties").and_then(Value::as_object);
            let all = || named.into_iter().flat_map(Map::keys).cloned().collect();
            KeywordTest::Struct(notes.fields.unwrap_or_else(all))
        }
        FieldKind::Tensor => KeywordTest::Tensor(TensorType {
            dtype: notes.dtype,
            shape: notes.shape,
        }),
        _ => KeywordTest::Object,
    }
}

/// The test of one keyword.
enum KeywordTest {
    Array,
    Leaf(LeafType),
    /// Other keywords hold the rest of a record or a union.
    Object,
    /// The object has to have these members.
    Struct(Vec<String>),
    Tensor(TensorType),
}

impl KeywordTest {
    /// The one answer to both questions of the library.
    fn test(&self, value: &Value) -> Fit<()> {
        match self {
            Self::Array if value.is_array() => Ok(()),
            Self::Array => Err("it is no array".to_owned()),
            Self::Leaf(leaf) => leaf.of_json(value).map(|_| ()),
            Self::Object if value.is_object() => Ok(()),
            Self::Object => Err("it is no object".to_owned()),
            Self::Struct(fields) => {
                let object = value.as_object().ok_or("it is no object")?;
                match fields.iter().find(|name| !object.contains_key(*name)) {
                    Some(name) => Err(format!("it lacks '{name}'")),
                    None => Ok(()),
                }
            }
            // By itself: `dims` compares names of sizes over the whole value afterwards.
            Self::Tensor(tensor) => tensor.check_json(value, &mut Dims::new()),
        }
    }
}

impl<'i> Keyword<'i> for KeywordTest {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        self.test(instance).map_err(ValidationError::custom)
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        self.test(instance).is_ok()
    }
}
