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

/// What a file holds.
#[derive(Clone, Debug, Serialize)]
pub struct ContainerListing {
    /// 1 for a metatensor, 0 for any other safetensors file.
    pub level: u32,
    /// Bytes of the file.
    pub file_len: u64,
    /// Bytes of the header without the length before it.
    pub header_len: u64,
    /// Metadata, the format's own left out.
    pub metadata: Vec<(String, String)>,
    /// The tensors in the order that they are best loaded in.
    pub tensors: Vec<TensorRow>,
}

/// A tensor of a [`ContainerListing`].
#[derive(Clone, Debug, Serialize)]
pub struct TensorRow {
    /// Its name.
    pub name: String,
    /// Its element type as the file has it.
    pub dtype: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// Bytes of its entry.
    pub bytes: u64,
    /// Where its entry begins in the file.
    pub offset: u64,
    /// The alignment that the index promises.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub align: Option<u32>,
    /// BLAKE3 of its entry, as the index says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b3: Option<String>,
    /// How it is to be read.
    #[serde(flatten)]
    pub kind: KindRow,
}

/// How a tensor is to be read, and what there is to say about that.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[non_exhaustive]
pub enum KindRow {
    /// Elements of one type.
    Flat,
    /// Records of one size.
    Struct {
        /// Their definition in the schema.
        def: String,
        /// Bytes from one to the next.
        stride: u64,
        /// How many.
        count: u64,
        /// What is in one.
        fields: Vec<FieldRow>,
    },
    /// Items of any size.
    Blob {
        /// What they are.
        enc: String,
        /// How many.
        count: u64,
        /// The tensor that has their shapes.
        #[serde(skip_serializing_if = "Option::is_none")]
        shape_of: Option<String>,
    },
}

/// A field of a record.
#[derive(Clone, Debug, Serialize)]
pub struct FieldRow {
    /// Its path.
    pub path: String,
    /// Bytes before it in the record.
    pub off: u64,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Values, or bytes of what has no width of its own.
    pub len: u64,
}

/// What a file holds; nothing but its header is read.
#[must_use]
pub fn list<S: ReadAt>(reader: &ContainerReader<S>) -> ContainerListing {
    let meta = reader.meta();
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

/// Writes the bytes of a tensor, or of some of its rows; behind a NumPy header where that is asked
/// for.
///
/// # Errors
/// `E_NOTFOUND`; `E_SHAPE` where there are no such rows; `E_DTYPE` where NumPy has no such type;
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

/// What a file is known by.
#[derive(Clone, Debug)]
pub struct ContainerHashes {
    /// BLAKE3 of the whole file.
    pub id: FileId,
    /// BLAKE3 of the header with the length before it.
    pub header: Hash,
    /// BLAKE3 of the data.
    pub data: Hash,
    /// BLAKE3 of each tensor's entry, by name.
    pub tensors: Vec<(String, Hash)>,
}

/// Hashes a file, whatever it says of itself.
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
