//! Tensors in requests: element types, shapes, and the location of the bytes.

use std::sync::Arc;

use alknet_call::CallBody;
use alknet_compute_wire::limits::TENSOR_BYTES_MAX;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::copies::CopiedTensors;
use crate::error::{Error, Result};
use crate::limits::{INLINE_BYTES_MAX, RANK_MAX};

/// Element types, each a whole number of bytes.
const DTYPES: [(&str, u64); 15] = [
    ("BF16", 2),
    ("BOOL", 1),
    ("F16", 2),
    ("F32", 4),
    ("F64", 8),
    ("F8_E4M3", 1),
    ("F8_E5M2", 1),
    ("I16", 2),
    ("I32", 4),
    ("I64", 8),
    ("I8", 1),
    ("U16", 2),
    ("U32", 4),
    ("U64", 8),
    ("U8", 1),
];

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ComputeDtype(&'static str, u64);

impl ComputeDtype {
    pub(crate) const F32: Self = Self("F32", 4);
    pub(crate) const U8: Self = Self("U8", 1);
    pub(crate) const U32: Self = Self("U32", 4);

    /// Parses the name that containers use, in any case.
    pub(crate) fn parse(name: &str) -> Result<Self> {
        let known = |(known, _): &&(&'static str, u64)| known.eq_ignore_ascii_case(name);
        let found = DTYPES.iter().find(known);
        let found = found.map(|(name, bytes)| Self(name, *bytes));
        found.ok_or_else(|| {
            let name: String = name.chars().take(32).collect();
            Error::Dtype(format!("there is no element type '{name}' here"))
        })
    }

    pub(crate) const fn name(self) -> &'static str {
        self.0
    }

    /// Bytes of an element.
    pub(crate) const fn bytes(self) -> u64 {
        self.1
    }
}

/// Element type and shape, which are checked to be within a tensor's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorSpec {
    pub(crate) dtype: ComputeDtype,
    pub(crate) shape: Vec<u64>,
}

impl TensorSpec {
    pub(crate) fn new(dtype: ComputeDtype, shape: Vec<u64>) -> Result<Self> {
        if shape.len() > RANK_MAX {
            return Err(Error::Shape(format!(
                "{} dimensions; at most {RANK_MAX} are possible",
                shape.len()
            )));
        }
        // An empty dimension makes an empty tensor, however long the other dimensions are.
        let elements = if shape.contains(&0) {
            Some(0)
        } else {
            shape
                .iter()
                .try_fold(1_u64, |all, side| all.checked_mul(*side))
        };
        let bytes = elements.and_then(|elements| elements.checked_mul(dtype.bytes()));
        if bytes.is_none_or(|bytes| bytes > TENSOR_BYTES_MAX) {
            return Err(Error::TooLarge(format!(
                "a tensor may have {TENSOR_BYTES_MAX} bytes; {shape:?} of {} has more",
                dtype.name()
            )));
        }
        Ok(Self { dtype, shape })
    }

    pub(crate) fn from_parts(dtype: &str, shape: Vec<u64>) -> Result<Self> {
        Self::new(ComputeDtype::parse(dtype)?, shape)
    }

    /// Bytes of the whole tensor.
    pub(crate) fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.bytes()
    }

    /// Bytes of one row: of everything below the first dimension.
    pub(crate) fn row_bytes(&self) -> u64 {
        self.shape.iter().skip(1).product::<u64>() * self.dtype.bytes()
    }

    /// The offset and the type of these rows; of all rows if `rows` is `None`.
    pub(crate) fn rows(&self, rows: Option<[u64; 2]>) -> Result<(u64, Self)> {
        let Some([from, to]) = rows else {
            return Ok((0, self.clone()));
        };
        let most = *self
            .shape
            .first()
            .ok_or_else(|| Error::Shape("a tensor without dimensions has no rows".to_owned()))?;
        if from > to || to > most {
            return Err(Error::Shape(format!("rows {from} to {to}, of {most}")));
        }
        let mut kind = self.clone();
        kind.shape[0] = to - from;
        Ok((from * self.row_bytes(), kind))
    }
}

/// A tensor in a request, before it is resolved.
#[derive(Clone, Debug)]
pub(crate) enum TensorArg {
    Handle {
        handle: String,
        dtype: Option<ComputeDtype>,
        shape: Option<Vec<u64>>,
    },
    Inline(Bytes, TensorSpec),
    Ref(String),
    /// A reference that was resolved.
    Stored(Arc<CopiedTensors>, TensorSpec),
}

/// The form in a request. It accepts all members that responses have beside a handle, so that a
/// caller can send them back.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensorArg {
    inline: Option<Value>,
    #[serde(rename = "ref")]
    reference: Option<String>,
    handle: Option<String>,
    dtype: Option<String>,
    shape: Option<Vec<u64>>,
    #[serde(rename = "expires_ms")]
    _expires_ms: Option<u64>,
}

impl TensorArg {
    /// Reads a tensor; `body` has the bytes to which it may point.
    pub(crate) fn read(body: &CallBody, written: &Value) -> Result<Self> {
        let written =
            RawTensorArg::deserialize(written).map_err(|error| Error::Shape(error.to_string()))?;
        let dtype = written
            .dtype
            .as_deref()
            .map(ComputeDtype::parse)
            .transpose()?;
        match (written.inline, written.reference, written.handle) {
            (Some(inline), None, None) => {
                let (Some(dtype), Some(shape)) = (dtype, written.shape) else {
                    return Err(Error::Shape("inline bytes need dtype and shape".to_owned()));
                };
                let kind = TensorSpec::new(dtype, shape)?;
                let bytes = bytes(body, &inline, INLINE_BYTES_MAX)?;
                // The worker only sees bytes, so the node compares them with the shape.
                if bytes.len() as u64 != kind.bytes() {
                    return Err(Error::Shape(format!(
                        "{} bytes inline; {:?} of {} has {}",
                        bytes.len(),
                        kind.shape,
                        kind.dtype.name(),
                        kind.bytes()
                    )));
                }
                Ok(Self::Inline(bytes, kind))
            }
            (None, Some(reference), None) => Ok(Self::Ref(reference)),
            (None, None, Some(handle)) => Ok(Self::Handle {
                handle,
                dtype,
                shape: written.shape,
            }),
            _ => Err(Error::Shape(
                "a tensor is one of inline, ref and handle".to_owned(),
            )),
        }
    }
}

/// Bytes of a request: a part of a mixed frame, whose limit is checked elsewhere, or base64 of at
/// most `max` bytes.
pub(crate) fn bytes(body: &CallBody, written: &Value, max: usize) -> Result<Bytes> {
    if let Some(bytes) = body.binary(written) {
        return Ok(bytes);
    }
    let text = written
        .as_str()
        .ok_or_else(|| Error::Shape("bytes are {\"$bin\":[offset,length]} or base64".to_owned()))?;
    // The length is checked before decoding, which would take as much memory again.
    if text.len() / 4 * 3 > max.saturating_add(3) {
        return Err(Error::TooLarge(format!("more than {max} bytes as base64")));
    }
    let bytes = STANDARD
        .decode(text)
        .map_err(|error| Error::Shape(format!("no base64: {error}")))?;
    if bytes.len() > max {
        return Err(Error::TooLarge(format!("more than {max} bytes as base64")));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> Result<TensorArg> {
        TensorArg::read(&CallBody::json(value).expect("JSON"), value)
    }

    fn kind(shape: &[u64]) -> TensorSpec {
        TensorSpec::from_parts("f32", shape.to_vec()).expect("a tensor")
    }

    #[test]
    fn kinds_know_their_bytes_and_their_limit() {
        assert_eq!(kind(&[2, 3]).bytes(), 24);
        assert_eq!(kind(&[]).bytes(), 4);
        assert_eq!(kind(&[0, u64::MAX]).bytes(), 0);
        assert_eq!(kind(&[2, 3]).row_bytes(), 12);
        let limit = TENSOR_BYTES_MAX / 4;
        assert!(TensorSpec::from_parts("F32", vec![limit]).is_ok());
        for shape in [vec![limit + 1], vec![u64::MAX, 2], vec![1 << 40, 1 << 40]] {
            assert!(matches!(
                TensorSpec::from_parts("F32", shape),
                Err(Error::TooLarge(_))
            ));
        }
        assert!(matches!(
            TensorSpec::from_parts("F32", vec![1; 9]),
            Err(Error::Shape(_))
        ));
        assert!(matches!(
            TensorSpec::from_parts("F33", vec![]),
            Err(Error::Dtype(_))
        ));
    }

    #[test]
    fn rows_lie_inside() {
        let tensor = kind(&[4, 3]);
        assert_eq!(
            tensor.rows(Some([1, 3])).expect("inside"),
            (12, kind(&[2, 3]))
        );
        assert_eq!(
            tensor.rows(Some([4, 4])).expect("none"),
            (48, kind(&[0, 3]))
        );
        assert_eq!(tensor.rows(None).expect("all"), (0, tensor.clone()));
        for rows in [[3, 2], [0, 5], [5, 5], [0, u64::MAX]] {
            assert!(tensor.rows(Some(rows)).is_err(), "{rows:?}");
        }
        assert!(kind(&[]).rows(Some([0, 0])).is_err());
    }

    #[test]
    fn a_tensor_is_one_thing_and_says_how_long_it_is() {
        let good = json!({ "inline": "AAAAAAAAAAA=", "dtype": "F32", "shape": [2] });
        assert!(matches!(read(&good), Ok(TensorArg::Inline(bytes, _)) if bytes.len() == 8));
        assert!(matches!(
            read(&json!({ "handle": "a", "expires_ms": 7 })),
            Ok(TensorArg::Handle { .. })
        ));
        assert!(matches!(
            read(&json!({ "ref": "alknet-tensor://x" })),
            Ok(TensorArg::Ref(_))
        ));
        for bad in [
            json!({}),
            json!(3),
            json!({ "handle": "a", "ref": "b" }),
            json!({ "handle": "a", "other": 1 }),
            json!({ "inline": "AAAA", "dtype": "F32" }),
            json!({ "inline": "AAAA", "dtype": "F32", "shape": [2] }),
            json!({ "inline": "????", "dtype": "U8", "shape": [3] }),
            json!({ "inline": 3, "dtype": "U8", "shape": [3] }),
            json!({ "inline": { "$bin": [0, 3] }, "dtype": "U8", "shape": [3] }),
            json!({ "inline": "AAAA", "dtype": "U8", "shape": [-3] }),
        ] {
            assert!(read(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn base64_has_a_limit() {
        for (len, fits) in [(INLINE_BYTES_MAX, true), (INLINE_BYTES_MAX + 1, false)] {
            let inline = STANDARD.encode(vec![0; len]);
            let value = json!({ "inline": inline, "dtype": "U8", "shape": [len] });
            assert_eq!(read(&value).is_ok(), fits, "{len}");
        }
    }
}
