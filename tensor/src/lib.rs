//! The metatensor container: typed binary data that any safetensors reader opens.
//!
//! A file is a length, a JSON header and data. [`Meta`] is a parsed and checked header, [`ContainerReader`] opens a
//! file from memory, by offset or mapped, [`ContainerWriter`] makes one. Records of fixed size and items of any size
//! lie in ordinary entries and are described in the header's metadata; a plain safetensors file is one without that
//! description.
//!
//! This crate does not know networks, GPUs or scripts, and has no asynchronous functions.
//!
//! ```
//! use std::io::Cursor;
//!
//! use alknet_tensor::{
//!     ContainerLimits, ContainerReader, ContainerWriter, Dtype, TensorContent, VerifyDepth, verify,
//! };
//!
//! fn main() -> alknet_tensor::Result<()> {
//!     let weights = [1.0_f32, 2.0, 3.0, 4.0];
//!     let mut writer = ContainerWriter::new(Cursor::new(Vec::new()));
//!     writer.flat("weights", Dtype::F32, &[2, 2], TensorContent::elements(&weights))?;
//!     let (written, sink) = writer.finish()?;
//!     let bytes = sink.into_inner();
//!     assert_eq!(written.file_len, bytes.len() as u64);
//!
//!     // To open it checks the header; the hashes of the data are checked where they are asked for.
//!     let reader = ContainerReader::from_bytes(bytes.into(), &ContainerLimits::default())?;
//!     assert!(verify(&reader, VerifyDepth::Full, None)?.is_good());
//!     assert!(reader.names().eq(["weights"]));
//!     assert_eq!(reader.view("weights")?.to_f32()?, weights);
//!     assert_eq!(reader.rows("weights", 1..2)?.to_f32()?, [3.0, 4.0]);
//!     Ok(())
//! }
//! ```

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
