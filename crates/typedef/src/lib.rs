//! Binary layouts described by JSON Schema.
//!
//! A schema of draft 2020-12 describes with keywords `TypeDef:<FieldKind>` how its values are stored in bytes. One
//! such document answers three questions: whether a JSON value is valid, where each field lies, and how to read and
//! write a value. `docs/typedef.md` is the page for authors of schemas.
//!
//! ```
//! use alknet_typedef::{RecordValue, SchemaLimits, LayoutMode, compile};
//! use serde_json::json;
//!
//! let schema = json!({
//!     "TypeDef:Struct": { "fields": ["id", "at"] },
//!     "properties": {
//!         "id": { "TypeDef:Uint16": true },
//!         "at": { "TypeDef:Array": true, "items": { "TypeDef:Float64": true },
//!                 "minItems": 2, "maxItems": 2 },
//!     },
//! });
//! let engine = compile(&schema, LayoutMode::Aligned, &SchemaLimits::default())?;
//! assert!(engine.is_valid(&json!({ "id": 7, "at": [0.5, -1.0] })));
//! let offsets = engine.offsets()?;
//! assert_eq!((offsets.stride(), offsets.align()), (24, 8));
//!
//! let mut record = [0; 24];
//! engine.write(&mut record, "/at/1", &RecordValue::Float(-1.0))?;
//! assert_eq!(record[16..], (-1.0_f64).to_le_bytes());
//! # Ok::<(), alknet_typedef::TypedefError>(())
//! ```
//!
//! Schemas and bytes come from outside: both end in a [`TypedefError`], within [`SchemaLimits`].

#![forbid(unsafe_code)]

pub mod limits;

mod access;
mod budget;
mod check;
mod engine;
mod error;
mod fields;
mod json;
mod kind;
mod leaf;
mod model;
mod offsets;
mod packed;
mod pointer;
mod schema;
mod tensor;
mod value;

pub use engine::{LayoutEngine, compile};
pub use error::{LimitExceeded, TypedefError, Violation};
pub use fields::{RecordField, RecordLayout, fields};
pub use json::ExternalData;
pub use kind::FieldKind;
pub use limits::SchemaLimits;
pub use model::LayoutMode;
pub use offsets::{OffsetEntry, OffsetMap, PathId};
pub use packed::PackedCodec;
pub use schema::{Schema, parse};
pub use tensor::{Dim, Dims, TensorType};
pub use value::RecordValue;
