//! `ls`, `cat` and `hash`.

use std::io::Write;
use std::ops::Range;

use blake3::Hash;
use serde::Serialize;

use crate::error::{Result, TensorError};
use crate::header::{Tensor, TensorKind};
use crate::integrity::FileId;
use crate::reader::ContainerReader;
use crate::source::ReadAt;
use crate::tools::npy::npy_header;
use crate::view::row_bytes;

/// The description of a file.
#[derive(Clone, Debug, Serialize)]
pub struct ContainerListing {
    /// 1 for a metatensor, 0 for any other safetensors file.
    pub level: u32,
    /// Bytes of the file.
    pub file_len: u64,
    /// Bytes of the header without its length prefix.
    pub header_len: u64,
    /// The metadata, except the format's own keys.
    pub metadata: Vec<(String, String)>,
    /// The tensors in the order in which a reader should load them.
    pub tensors: Vec<TensorRow>,
}

/// A tensor of a [`ContainerListing`].
#[derive(Clone, Debug, Serialize)]
pub struct TensorRow {
    /// The tensor's name.
    pub name: String,
    /// The element type as the file names it.
    pub dtype: String,
    /// The dimensions.
    pub shape: Vec<u64>,
    /// Bytes of the tensor's entry.
    pub bytes: u64,
    /// Offset of the entry in the file.
    pub offset: u64,
    /// The alignment that the index states.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub align: Option<u32>,
    /// BLAKE3 of the entry, as the index states it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b3: Option<String>,
    /// How the bytes are interpreted.
    #[serde(flatten)]
    pub kind: KindRow,
}

/// The kind of a tensor, with the details of that kind.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[non_exhaustive]
pub enum KindRow {
    /// Elements of one type.
    Flat,
    /// Records of one size.
    Struct {
        /// The definition of the records in the schema.
        def: String,
        /// Bytes from one record to the next.
        stride: u64,
        /// The number of records.
        count: u64,
        /// The fields of a record.
        fields: Vec<FieldRow>,
    },
    /// Items of any size.
    Blob {
        /// The encoding of the items.
        enc: String,
        /// The number of items.
        count: u64,
        /// The tensor with the shapes of the items.
        #[serde(skip_serializing_if = "Option::is_none")]
        shape_of: Option<String>,
    },
}

/// A field of a record.
#[derive(Clone, Debug, Serialize)]
pub struct FieldRow {
    /// The field's path.
    pub path: String,
    /// Offset in the record, in bytes.
    pub off: u64,
    /// The field's type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The number of values, or of bytes for a type without a width.
    pub len: u64,
}

/// The description of a file; only its header is read.
#[must_use]
pub fn list<S: ReadAt>(reader: &ContainerReader<S>) -> ContainerListing {
    let meta = reader.meta();
    // The format's own keys appear as the columns of the listing.
    let others = meta.metadata().filter(|(key, _)| !crate::keys::is_own(key));
    ContainerListing {
        level: meta.level(),
        file_len: meta.file_len(),
        header_len: meta.header_len(),
        metadata: others
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        tensors: meta.tensors().map(|tensor| row(&tensor)).collect(),
    }
}

fn row(tensor: &Tensor<'_>) -> TensorRow {
    let entry = tensor.entry();
    TensorRow {
        name: tensor.name().to_owned(),
        dtype: entry.dtype().to_string(),
        shape: entry.shape().to_vec(),
        bytes: entry.byte_len(),
        offset: entry.file_range().start,
        align: tensor.align(),
        b3: tensor.hash().map(|hash| hash.to_hex().to_string()),
        kind: match tensor.kind() {
            TensorKind::Flat => KindRow::Flat,
            TensorKind::Struct(records) => KindRow::Struct {
                def: records.def().to_owned(),
                stride: records.stride(),
                count: records.count(),
                fields: records
                    .fields()
                    .map(|field| FieldRow {
                        path: field.path.into_owned(),
                        off: field.off,
                        kind: field.kind.name(),
                        len: field.len,
                    })
                    .collect(),
            },
            TensorKind::Blob(blob) => KindRow::Blob {
                enc: blob.enc().to_owned(),
                count: blob.count(),
                shape_of: blob.shape_of().map(str::to_owned),
            },
        },
    }
}

/// Writes the bytes of a tensor or of some of its rows, after a NumPy header if `npy` is set.
///
/// # Errors
/// `E_NOTFOUND`; `E_SHAPE` if the tensor has no such rows; `E_DTYPE` if NumPy has no such type;
/// `E_IO`.
pub fn cat<S: ReadAt>(
    reader: &ContainerReader<S>,
    name: &str,
    rows: Option<Range<u64>>,
    npy: bool,
    out: &mut dyn Write,
) -> Result<()> {
    let entry = reader.tensor(name)?.entry();
    let mut shape = entry.shape().to_vec();
    let mut range = 0..entry.byte_len();
    if let Some(rows) = rows {
        range = row_bytes(entry.dtype(), &shape, &rows)?;
        // The NumPy header states the number of the selected rows.
        if let Some(first) = shape.first_mut() {
            *first = rows.end - rows.start;
        }
    }
    let mut write = |bytes: &[u8]| {
        let written = out.write_all(bytes);
        written.map_err(|error| TensorError::io("write the tensor", error))
    };
    if npy {
        write(&npy_header(entry.dtype(), &shape)?)?;
    }
    let start = entry.file_range().start;
    reader.pass(start + range.start..start + range.end, write)
}

/// The hashes of a file.
#[derive(Clone, Debug)]
pub struct ContainerHashes {
    /// BLAKE3 of the whole file.
    pub id: FileId,
    /// BLAKE3 of the header with its length prefix.
    pub header: Hash,
    /// BLAKE3 of the data.
    pub data: Hash,
    /// BLAKE3 of each tensor's entry, by name.
    pub tensors: Vec<(String, Hash)>,
}

/// Computes the hashes of a file from its bytes; hashes in its header are ignored.
///
/// # Errors
/// `E_IO`.
pub fn hashes<S: ReadAt>(reader: &ContainerReader<S>) -> Result<ContainerHashes> {
    let meta = reader.meta();
    let mut tensors = Vec::new();
    for tensor in meta.tensors() {
        let hash = reader.hash(tensor.entry().file_range())?;
        tensors.push((tensor.name().to_owned(), hash));
    }
    Ok(ContainerHashes {
        id: FileId(reader.hash(0..meta.file_len())?),
        header: reader.header_hash()?,
        data: reader.hash(meta.data_start()..meta.file_len())?,
        tensors,
    })
}
