//! The metatensor container: typed binary data that any safetensors reader opens.
//!
//! A file is a length, a JSON header and data. [`Meta`] is a header that was read and found correct,
//! [`ContainerReader`] opens a file from memory, by offset or mapped, [`ContainerWriter`] makes one. Records of fixed
//! size and items of any size lie in ordinary entries and are described in the header's metadata;
//! a plain safetensors file is one without that description.
//!
//! Nothing here knows a network, a GPU or a script; nothing is asynchronous.

mod dtype;
mod error;
mod header;
mod integrity;
pub mod keys;
mod layout;
pub mod limits;
mod reader;
mod source;
pub mod tools;
mod view;
mod writer;

pub use dtype::{Dtype, ElementType};
pub use error::{Result, TensorError, TensorErrorCode};
pub use header::{
    BlobInfo, HEADER_BYTES_MIN, HeaderEntry, Meta, PREFIX_BYTES, StructInfo, Tensor, TensorKind,
    header_len,
};
pub use integrity::{
    FileId, HEADER_SIGNATURE_CONTEXT, VerifyDepth, VerifyReport, header_signature_message, verify,
};
pub use layout::{FieldType, LayoutOracle, SchemaLayouts, StructField, StructLayout};
pub use limits::ContainerLimits;
pub use reader::ContainerReader;
#[cfg(not(target_family = "wasm"))]
pub use source::MappedFile;
pub use source::ReadAt;
pub use view::{
    AlignedBytes, BlobView, Element, FieldColumn, RecordFieldValue, StructRecord, StructView,
    TensorView, ViewBytes,
};
#[cfg(not(target_family = "wasm"))]
pub use writer::AtomicFile;
pub use writer::{ContainerWriter, TensorContent, WriteSummary};

pub use blake3::Hash;
pub use half::{bf16, f16};
