//! A schema ready for use.

use std::sync::Arc;

use serde_json::Value;

use crate::access;
use crate::check::TypedefValidator;
use crate::error::TypedefError;
use crate::json::{self, ExternalData};
use crate::limits::SchemaLimits;
use crate::model::{LayoutMode, LayoutNode, NodeShape, build};
use crate::offsets::OffsetMap;
use crate::packed::PackedCodec;
use crate::schema::{Result, Schema};
use crate::tensor::{Dims, TensorType};
use crate::value::RecordValue;

/// Compiles the root of a schema.
///
/// # Errors
/// The schema is larger than `limits`, is refused, or has no layout in `mode`.
pub fn compile(schema: &Value, mode: LayoutMode, limits: &SchemaLimits) -> Result<LayoutEngine> {
    Schema::new(schema, limits)?.compile("#", mode)
}

/// One compiled layout. Made by [`compile`] or [`Schema::compile`].
#[derive(Debug)]
pub struct LayoutEngine {
    root: Arc<LayoutNode>,
    check: TypedefValidator,
    /// In aligned mode only.
    offsets: Option<OffsetMap>,
    limits: SchemaLimits,
}

impl Schema {
    /// Compiles one definition, `#/$defs/X`, or the root, `#`.
    ///
    /// # Errors
    /// There is no such definition, or it has no layout in `mode`.
    pub fn compile(&self, definition: &str, mode: LayoutMode) -> Result<LayoutEngine> {
        let ptr = self.pointer(definition)?;
        let root = build(self, &ptr, mode)?;
        let offsets = match mode {
            // Offsets are fixed in aligned mode only: packed ones depend on the values.
            LayoutMode::Aligned => Some(OffsetMap::new(&root, self.limits().entries)?),
            LayoutMode::Packed => None,
        };
        Ok(LayoutEngine {
            check: TypedefValidator::new(self, &ptr, &root, mode)?,
            root,
            offsets,
            limits: *self.limits(),
        })
    }
}

impl LayoutEngine {
    /// The offset of every field.
    ///
    /// # Errors
    /// The schema was compiled for packed mode, where offsets depend on the values before them.
    pub fn offsets(&self) -> Result<&OffsetMap> {
        let why = "places are known in aligned mode only";
        self.offsets
            .as_ref()
            .ok_or_else(|| TypedefError::layout("", why))
    }

    /// Reader and writer of packed values.
    ///
    /// # Errors
    /// The schema was compiled for aligned mode.
    pub fn packed(&self) -> Result<PackedCodec> {
        if self.offsets.is_some() {
            let why = "it was compiled for aligned mode";
            return Err(TypedefError::layout("", why));
        }
        Ok(PackedCodec::new(Arc::clone(&self.root), self.limits))
    }

    /// Checks a JSON value.
    ///
    /// # Errors
    /// [`TypedefError::Validation`] with the paths that break the schema.
    pub fn validate(&self, value: &Value) -> Result<()> {
        self.validate_with(value, &mut Dims::new())
    }

    /// Checks a JSON value that is one of several in a file: names of sizes keep their meaning from earlier values.
    /// Where it fails, `dims` stays as it was.
    ///
    /// # Errors
    /// [`TypedefError::Validation`] with the paths that break the schema.
    pub fn validate_with(&self, value: &Value, dims: &mut Dims) -> Result<()> {
        self.check.check(&self.root, value, dims)
    }

    /// Whether [`validate`](Self::validate) succeeds, without a message if not.
    #[must_use]
    pub fn is_valid(&self, value: &Value) -> bool {
        self.check.is_valid(&self.root, value)
    }

    /// Reads a field of an aligned record. `path` is a JSON pointer, empty for the whole.
    ///
    /// # Errors
    /// There is no such field, the record is too short, or the bytes break the schema.
    pub fn read(&self, record: &[u8], path: &str) -> Result<RecordValue> {
        access::read(self.offsets()?, record, path, &self.limits)
    }

    /// Writes a field of an aligned record; gaps in it become zero.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read), of the value. The record then stays as it was.
    pub fn write(&self, record: &mut [u8], path: &str, value: &RecordValue) -> Result<()> {
        access::write(self.offsets()?, record, path, value, &self.limits)
    }

    /// The value that a JSON value means, as a whole. It appends the content of `indirect` fields to `region`, and
    /// checks what bytes can express; [`validate`](Self::validate) checks the rest.
    ///
    /// # Errors
    /// [`TypedefError::Access`] with the field. `region` then stays as it was.
    pub fn from_json(&self, value: &Value, region: &mut Vec<u8>) -> Result<RecordValue> {
        json::from_json(&self.root, value, region, &self.limits)
    }

    /// The JSON that means `value`, as a whole.
    ///
    /// # Errors
    /// [`TypedefError::Access`] with the field that breaks the schema, or that `outside` lacks.
    pub fn to_json(&self, value: &RecordValue, outside: &ExternalData<'_>) -> Result<Value> {
        json::to_json(&self.root, value, outside)
    }

    /// Checks the bytes of an aligned record against all rules of the schema.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read), [`to_json`](Self::to_json) and [`validate`](Self::validate).
    pub fn verify(&self, record: &[u8], outside: &ExternalData<'_>, dims: &mut Dims) -> Result<()> {
        let value = self.read(record, "")?;
        self.validate_with(&self.to_json(&value, outside)?, dims)
    }

    /// The tensors that the layout names, by path; an item of an array is `*` there.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, TensorType)> {
        let mut found = Vec::new();
        tensors(&self.root, String::new(), &mut found);
        found
    }
}

fn tensors(node: &LayoutNode, path: String, found: &mut Vec<(String, TensorType)>) {
    let at = |part: &str| crate::pointer::join(&path, part);
    match &node.shape {
        NodeShape::Array(list) => tensors(&list.item, at("*"), found),
        NodeShape::Leaf(_) => {}
        NodeShape::Record(each) => tensors(each, at("*"), found),
        NodeShape::Struct(members) => {
            for member in members {
                tensors(&member.node, at(&member.name), found);
            }
        }
        NodeShape::Tensor(tensor) => found.push((path, tensor.clone())),
        NodeShape::Union(union) => {
            for variant in &union.variants {
                tensors(&variant.node, at(&variant.name), found);
            }
        }
    }
}
