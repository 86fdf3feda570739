//! The metatensor container: typed binary data that any safetensors reader opens.
//!
//! A file is a length, a JSON header and data. [`Meta`] is a header that was read and found correct,
//! [`Reader`] opens a file from memory, by offset or mapped, [`Writer`] makes one. Records of fixed
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
pub use error::{Code, Result, TensorError};
pub use header::{
    Blob, Entry, HEADER_BYTES_MIN, Kind, Meta, PREFIX_BYTES, Struct, Tensor, header_len,
};
pub use integrity::{
    FileId, HEADER_SIGNATURE_CONTEXT, Report, Verify, header_signature_message, verify,
};
pub use layout::{Field, FieldType, Layout, LayoutOracle, SchemaLayouts};
pub use limits::Limits;
pub use reader::Reader;
pub use source::{Mapped, ReadAt};
pub use view::{
    Aligned, BlobView, Bytes, Column, Element, FieldValue, Record, StructView, TensorView,
};
pub use writer::{AtomicFile, Content, Writer, Written};

pub use blake3::Hash;
pub use half::{bf16, f16};
