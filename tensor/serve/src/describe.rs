//! The answers of `tensor/open` and `tensor/stat`, written as text from the header: a tree of 65,536 entries would take
//! some 160 MB, and its text would be longer than a frame.

use std::borrow::Cow;
use std::io::{self, Write};

use alknet_call::{CallError, CallOutput};
use alknet_tensor::keys::is_own;
use alknet_tensor::{Hash, Meta, Tensor, TensorErrorCode, TensorKind};
use serde::{Serialize, Serializer};

use crate::error::ServeError;
use crate::limits::DESCRIPTION_BYTES;
use crate::store::Object;

#[derive(Serialize)]
struct FileDescription<'o> {
    id: String,
    len: u64,
    header_b3: String,
    level: u32,
    metadata: MetadataOf<'o>,
    order: OrderOf<'o>,
    tensors: TensorsOf<'o>,
}

/// The metadata, except the format's own keys.
struct MetadataOf<'o>(&'o Meta);

/// The names of all tensors in the order in which a reader should load them.
struct OrderOf<'o>(&'o Meta);

struct TensorsOf<'o>(&'o Meta);

#[derive(Serialize)]
struct TensorLine<'o> {
    name: &'o str,
    kind: &'static str,
    dtype: String,
    shape: &'o [u64],
    /// Missing if the header has no hash; computing one here would read the whole tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    b3: Option<String>,
}

#[derive(Serialize)]
struct TensorDescription<'t, 'o> {
    kind: &'static str,
    dtype: String,
    shape: &'o [u64],
    len: u64,
    align: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    b3: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fields: Option<FieldsOf<'t, 'o>>,
}

/// The fields of a tensor of records.
struct FieldsOf<'t, 'o>(&'t Tensor<'o>);

#[derive(Serialize)]
struct FieldLine<'f> {
    path: Cow<'f, str>,
    off: u64,
    #[serde(rename = "type")]
    kind: &'static str,
    len: u64,
}

/// Describes a file.
///
/// # Errors
/// `E_LIMIT` if the description is longer than a frame.
pub(crate) fn file(object: &Object) -> Result<CallOutput, CallError> {
    let meta = object.meta();
    text_of(&FileDescription {
        id: object.id().to_string(),
        len: meta.file_len(),
        header_b3: object.header_hash().to_hex().to_string(),
        level: meta.level(),
        metadata: MetadataOf(meta),
        order: OrderOf(meta),
        tensors: TensorsOf(meta),
    })
}

/// Describes the tensor of this name.
///
/// # Errors
/// `E_NOTFOUND`; `E_LIMIT` if the description is longer than a frame.
pub(crate) fn tensor(object: &Object, name: &str) -> Result<CallOutput, CallError> {
    let tensor = object.meta().tensor(name).map_err(ServeError::Input)?;
    let entry = tensor.entry();
    let has_fields = matches!(tensor.kind(), TensorKind::Struct(_));
    text_of(&TensorDescription {
        kind: tensor.kind().name(),
        dtype: entry.dtype().to_string(),
        shape: entry.shape(),
        len: entry.byte_len(),
        align: tensor.align().unwrap_or(1),
        b3: tensor.hash().map(hex),
        fields: has_fields.then_some(FieldsOf(&tensor)),
    })
}

impl Serialize for MetadataOf<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.metadata().filter(|(key, _)| !is_own(key)))
    }
}

impl Serialize for OrderOf<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.tensors().map(|tensor| tensor.name()))
    }
}

impl Serialize for TensorsOf<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.tensors().map(|tensor| {
            let entry = tensor.entry();
            TensorLine {
                name: tensor.name(),
                kind: tensor.kind().name(),
                dtype: entry.dtype().to_string(),
                shape: entry.shape(),
                b3: tensor.hash().map(hex),
            }
        }))
    }
}

impl Serialize for FieldsOf<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let TensorKind::Struct(records) = self.0.kind() else {
            return serializer.collect_seq(std::iter::empty::<FieldLine<'_>>());
        };
        let lines = records.fields().map(|field| FieldLine {
            path: field.path,
            off: field.off,
            kind: field.kind.name(),
            len: field.len,
        });
        serializer.collect_seq(lines)
    }
}

fn hex(hash: Hash) -> String {
    hash.to_hex().to_string()
}

fn text_of(description: &impl Serialize) -> Result<CallOutput, CallError> {
    let mut text = BoundedText::default();
    match serde_json::to_writer(&mut text, description) {
        Ok(()) => Ok(CallOutput::Raw(text.0.into())),
        Err(error) if error.is_io() => {
            let what = format!(
                "the description is longer than {DESCRIPTION_BYTES} bytes: fetch the header (want \"header\")"
            );
            Err(ServeError::input(TensorErrorCode::Limit, what).into())
        }
        Err(error) => Err(CallError::internal(error.to_string())),
    }
}

/// A text of at most [`DESCRIPTION_BYTES`]. The write that would exceed them fails, so that the rest of a header is not
/// looked at.
#[derive(Default)]
struct BoundedText(Vec<u8>);

impl Write for BoundedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > DESCRIPTION_BYTES - self.0.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
