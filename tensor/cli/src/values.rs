//! The values of a tensor as JSON.

use alknet_tensor::{
    ContainerReader, Dtype, ElementType, ReadAt, RecordFieldValue, TensorError, TensorErrorCode,
    TensorKind, TensorView,
};
use serde_json::{Map, Value, json};
use std::ops::Range;

use crate::error::TensorCliError;

/// Bytes of a tensor that are shown as JSON at once; `--rows` picks a part of more.
pub(crate) const SHOWN_BYTES_MAX: u64 = 64 << 20;

/// What `cat --json` prints: name, type, shape and values. Numbers that JSON cannot express are strings, as the
/// schema keywords write them; bytes are lower-case hex digits.
pub(crate) fn values<S: ReadAt>(
    reader: &ContainerReader<S>,
    name: &str,
    rows: Option<Range<u64>>,
) -> Result<Value, TensorCliError> {
    let tensor = reader.tensor(name)?;
    let entry = tensor.entry();
    let count = entry.shape().first().copied();
    // A scalar has no dimension and counts as one row.
    let all = 0..count.unwrap_or(1);
    let part = rows.clone().unwrap_or(all);
    let (kind, values) = match tensor.kind() {
        TensorKind::Struct(_) => {
            // The limit is checked before the rows are read, so that a huge tensor costs no memory.
            let size = entry.byte_len() / count.unwrap_or(1).max(1);
            bounded(size.saturating_mul(part.end.saturating_sub(part.start)))?;
            let records = reader.strukt_rows(name, part)?;
            let record = |record: alknet_tensor::StructRecord<'_>| {
                let fields = records.fields().map(|field| {
                    let value = record.value(&field)?;
                    Ok((field.path.to_string(), shown(&value)))
                });
                fields.collect::<Result<Map<_, _>, TensorError>>()
            };
            let records: Result<Vec<_>, _> = records.records().map(record).collect();
            ("struct", json!(records?))
        }
        TensorKind::Blob(blob) => {
            let all = 0..blob.count();
            let part = rows.unwrap_or(all);
            if part.start > part.end || part.end > blob.count() {
                let what = format!("items {part:?} of {}", blob.count());
                return Err(TensorError::new(TensorErrorCode::Shape, what).into());
            }
            let (mut items, mut bytes) = (Vec::new(), 0_u64);
            for at in part {
                let item = reader.item(name, at)?;
                bytes += item.len() as u64;
                bounded(bytes)?;
                items.push(text_of(blob.enc(), &item));
            }
            ("blob", json!(items))
        }
        _ => {
            let view = match rows {
                Some(rows) => {
                    let size = entry.byte_len() / count.unwrap_or(1).max(1);
                    bounded(size.saturating_mul(rows.end.saturating_sub(rows.start)))?;
                    reader.rows(name, rows)?
                }
                None => {
                    bounded(entry.byte_len())?;
                    reader.view(name)?
                }
            };
            let values = elements(&view)?;
            let shape = view.shape().to_vec();
            let dtype = entry.dtype().to_string();
            return Ok(
                json!({ "name": name, "kind": "flat", "dtype": dtype, "shape": shape,
                              "values": values }),
            );
        }
    };
    Ok(json!({ "name": name, "kind": kind, "values": values }))
}

fn bounded(bytes: u64) -> Result<(), TensorCliError> {
    if bytes > SHOWN_BYTES_MAX {
        let what = format!("more than {SHOWN_BYTES_MAX} bytes as JSON; pick rows with --rows a:b");
        return Err(TensorError::new(TensorErrorCode::Limit, what).into());
    }
    Ok(())
}

fn text_of(enc: &str, item: &[u8]) -> Value {
    match (enc, std::str::from_utf8(item)) {
        ("bytes", _) | (_, Err(_)) => hex(item).into(),
        // A text that claims to be JSON and is not is shown as it is: `cat` shows what the file has.
        ("json", Ok(text)) => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        (_, Ok(text)) => text.into(),
    }
}

/// The elements in order, the last dimension fastest.
fn elements(view: &TensorView<'_>) -> Result<Vec<Value>, TensorCliError> {
    let words = |width: usize, value: &dyn Fn(&[u8]) -> Value| -> Vec<Value> {
        view.bytes().chunks_exact(width).map(value).collect()
    };
    Ok(match view.dtype() {
        ElementType::Known(Dtype::I64) => words(8, &|b| i64::from_le_bytes(fixed(b)).into()),
        ElementType::Known(Dtype::U64) => words(8, &|b| u64::from_le_bytes(fixed(b)).into()),
        ElementType::Known(Dtype::I32) => words(4, &|b| i32::from_le_bytes(fixed(b)).into()),
        ElementType::Known(Dtype::U32) => words(4, &|b| u32::from_le_bytes(fixed(b)).into()),
        ElementType::Known(Dtype::F64) => words(8, &|b| number(f64::from_le_bytes(fixed(b)))),
        ElementType::Known(Dtype::C64) => words(8, &|b| {
            let part = |at: usize| number(f32::from_le_bytes(fixed(&b[at..at + 4])).into());
            json!([part(0), part(4)])
        }),
        ElementType::Known(Dtype::Bool) => {
            // Reading the view as bytes reports which byte is neither 0 nor 1.
            view.as_slice::<u8>()?;
            words(1, &|b| (b == [1]).into())
        }
        // `f32` represents every integer of 16 bits exactly (IEEE 754 has 24 bits of precision there).
        ElementType::Known(Dtype::U8 | Dtype::I8 | Dtype::U16 | Dtype::I16) => view
            .to_f32()?
            .into_iter()
            .map(|x| (x as i64).into())
            .collect(),
        ElementType::Known(_) => view
            .to_f32()?
            .into_iter()
            .map(|x| number(x.into()))
            .collect(),
        ElementType::Opaque(_) => vec![hex(view.bytes()).into()],
    })
}

/// The callers cut pieces of exactly this length, so the fallback is never used.
fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().unwrap_or([0; N])
}

fn number(x: f64) -> Value {
    if x.is_nan() {
        "NaN".into()
    } else if x.is_infinite() {
        if x > 0.0 { "Infinity" } else { "-Infinity" }.into()
    } else {
        x.into()
    }
}

fn shown(value: &RecordFieldValue<'_>) -> Value {
    match value {
        RecordFieldValue::Bool(x) => (*x).into(),
        RecordFieldValue::Int(x) => (*x).into(),
        RecordFieldValue::Uint(x) => (*x).into(),
        RecordFieldValue::Float(x) => number(*x),
        RecordFieldValue::Text(text) => (*text).into(),
        RecordFieldValue::Bytes(bytes) => hex(bytes).into(),
        RecordFieldValue::Span { offset, len } => json!({ "offset": offset, "len": len }),
        RecordFieldValue::List(values) => values.iter().map(shown).collect(),
        other => format!("{other:?}").into(),
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}
