//! Records and items: a valid header, and bytes that need not be valid.

use std::io::Cursor;

use alknet_tensor::{
    BlobView, ContainerLimits, ContainerReader, ContainerWriter, FieldType, RecordFieldValue,
    StructField, StructRecord, StructView, TensorContent, TensorError, TensorErrorCode,
    VerifyDepth, verify,
};
use safetensors::SafeTensors;

/// Fields of a record at most.
const FIELDS: usize = 8;
/// Bytes of a record at most.
const STRIDE: u64 = 128;
/// Bytes of an offset.
const OFFSET_BYTES: usize = 8;
/// The names of items' encodings to choose from.
const ENCODINGS: [&str; 3] = ["bytes", "json", "utf8"];

/// The input holds the number of fields, four bytes for each of them, the length of a record, the numbers of records
/// and of offsets and the encoding of the items, and then records, offsets and items.
pub fn records(data: &[u8]) -> bool {
    let mut input = ZeroPaddedInput(data);
    let count = usize::from(input.byte()) % (FIELDS + 1);
    let fields: Vec<_> = (0..count).map(|at| field(at, &mut input)).collect();
    let stride = u64::from(input.byte()) % (STRIDE + 1);
    let records = u64::from(input.byte()) % 5;
    let ends = usize::from(input.byte()) % 9;
    let enc = ENCODINGS[usize::from(input.byte()) % ENCODINGS.len()];
    let bytes = input.take((records * stride) as usize);
    let offsets = input.take(ends * OFFSET_BYTES);
    let items = input.0;
    let mut writer = ContainerWriter::new(Cursor::new(Vec::new()));
    let mut add = || {
        let content = TensorContent::from(&bytes[..]);
        writer.strukt("s", "#", [records, stride], fields.clone(), content)?;
        if let Some(count) = (ends as u64).checked_sub(1) {
            let sizes = [count, items.len() as u64];
            writer.blob_parts("b", enc, sizes, (&offsets[..]).into(), items.into())?;
        }
        Ok::<(), TensorError>(())
    };
    let written = add().and_then(|()| writer.finish());
    let file = match written {
        Ok((_, file)) => file.into_inner(),
        Err(error) => {
            // A reader would refuse it as well: records of nothing, fields that overlap.
            assert!(error.code() != TensorErrorCode::Io, "{error}");
            return false;
        }
    };
    SafeTensors::deserialize(&file).expect("a safetensors file");
    let reader =
        ContainerReader::open(&file[..], &ContainerLimits::default()).expect("we wrote it");
    let mut good = check_fields(&reader, &bytes, &fields);
    if ends > 0 {
        good &= items_hold(&reader, &offsets, items, enc);
    }
    let report = verify(&reader, VerifyDepth::Full, None).expect("in memory");
    assert_eq!(report.is_good(), good, "{:?}", report.problems);
    good
}

/// Checks every field of every record against its bytes; returns whether all are values.
fn check_fields(reader: &ContainerReader<&[u8]>, bytes: &[u8], fields: &[StructField<'_>]) -> bool {
    let view = reader.strukt("s").expect("the header was checked");
    assert_eq!(view.bytes(), bytes);
    let mut good = true;
    for (at, record) in view.records().enumerate() {
        let alone = reader.strukt_rows("s", at as u64..at as u64 + 1);
        let alone = alone.expect("it is there");
        assert_eq!(alone.bytes(), record.bytes());
        for field in fields {
            let value = record.get(&field.path);
            match &value {
                Ok(value) => is(value, field, &record),
                Err(error) => assert_eq!(error.code(), TensorErrorCode::Value, "{error}"),
            }
            good &= value.is_ok();
        }
        assert_eq!(
            record.get("none").expect_err("no field").code(),
            TensorErrorCode::NotFound
        );
    }
    for field in fields {
        columns(&view, field);
    }
    good
}

/// The value of a field, computed in another way.
fn is(value: &RecordFieldValue<'_>, field: &StructField<'_>, record: &StructRecord<'_>) {
    let len = field.bytes().expect("it lies within the record");
    // A record has at most 128 bytes.
    let bytes = &record.bytes()[field.off as usize..(field.off + len) as usize];
    if let RecordFieldValue::List(values) = value {
        let width = field.kind.width().expect("lists are of numbers") as usize;
        assert_eq!(values.len() * width, bytes.len());
        for (value, bytes) in values.iter().zip(bytes.chunks(width)) {
            one(value, bytes);
        }
    } else {
        one(value, bytes);
    }
}

fn one(value: &RecordFieldValue<'_>, bytes: &[u8]) {
    let number = bytes
        .iter()
        .rev()
        .fold(0_u128, |sum, byte| sum << 8 | u128::from(*byte));
    let bits = 8 * bytes.len() as u32;
    match value {
        RecordFieldValue::Bool(value) => assert_eq!(u128::from(*value), number),
        RecordFieldValue::Uint(value) => assert_eq!(u128::from(*value), number),
        RecordFieldValue::Int(value) => {
            let low = u128::MAX >> (128 - bits);
            assert_eq!(*value as u128 & low, number);
        }
        RecordFieldValue::Float(value) => match bits {
            64 => assert_eq!(u128::from(value.to_bits()), number),
            // Every narrower number is a wide one, and the same after conversion back.
            32 if !value.is_nan() => {
                assert_eq!(u128::from((*value as f32).to_bits()), number);
            }
            _ => {}
        },
        RecordFieldValue::Span { offset, len } => {
            assert_eq!(u128::from(*len) << 64 | u128::from(*offset), number);
        }
        RecordFieldValue::Text(text) => {
            assert!(bytes.starts_with(text.as_bytes()) && !text.ends_with('\0'));
            assert!(bytes[text.len()..].iter().all(|byte| *byte == 0));
        }
        RecordFieldValue::Bytes(content) => {
            assert!(bytes.ends_with(content) || content.len() < bytes.len());
        }
        other => panic!("{other:?} within a list"),
    }
}

/// A column has the first value of each record.
fn columns(view: &StructView<'_>, field: &StructField<'_>) {
    let ours: Vec<_> = view.records().map(|record| record.value(field)).collect();
    let first = |value: &Result<RecordFieldValue<'_>, TensorError>| match value {
        Ok(RecordFieldValue::Uint(value)) => Some(*value),
        Ok(RecordFieldValue::List(values)) => match values.first() {
            Some(RecordFieldValue::Uint(value)) => Some(*value),
            _ => None,
        },
        _ => None,
    };
    let Ok(column) = view.column::<u32>(&field.path) else {
        return;
    };
    let column: Vec<u32> = column.collect();
    assert_eq!(column.len(), ours.len());
    for (value, theirs) in ours.iter().zip(column) {
        assert_eq!(first(value), Some(theirs.into()));
    }
}

/// Items are those between offsets that rise from 0 to the end; other offsets give no items.
fn items_hold(reader: &ContainerReader<&[u8]>, offsets: &[u8], items: &[u8], enc: &str) -> bool {
    let (offsets, _) = offsets.as_chunks::<OFFSET_BYTES>();
    let ends: Vec<u64> = offsets
        .iter()
        .map(|bytes| u64::from_le_bytes(*bytes))
        .collect();
    let rising =
        ends.is_sorted() && ends.first() == Some(&0) && ends.last() == Some(&(items.len() as u64));
    let view = reader.blob("b");
    assert_eq!(view.is_ok(), rising);
    for (at, two) in ends.windows(2).enumerate() {
        let item = reader.item("b", at as u64);
        let there = two[0] <= two[1] && two[1] <= items.len() as u64;
        match item {
            Ok(item) => assert!(there && *item == items[two[0] as usize..two[1] as usize]),
            Err(error) => assert!(!there && error.code() == TensorErrorCode::Layout, "{error}"),
        }
    }
    let beyond = reader.item("b", ends.len() as u64 - 1);
    assert_eq!(
        beyond.expect_err("there are fewer").code(),
        TensorErrorCode::NotFound
    );
    let Ok(view) = view else {
        return false;
    };
    assert_eq!(view.len() as usize + 1, ends.len());
    assert_eq!(view.items().collect::<Vec<_>>().concat(), items);
    (0..view.len()).all(|at| text(&view, at, enc))
}

/// Whether an item matches the encoding.
fn text(view: &BlobView<'_>, at: u64, enc: &str) -> bool {
    match (enc, view.text(at)) {
        ("bytes", _) => true,
        (_, Err(error)) => {
            assert_eq!(error.code(), TensorErrorCode::Value, "{error}");
            false
        }
        ("json", Ok(text)) => serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(),
        (_, Ok(_)) => true,
    }
}

fn field(at: usize, input: &mut ZeroPaddedInput<'_>) -> StructField<'static> {
    let kind = FieldType::ALL[usize::from(input.byte()) % FieldType::ALL.len()];
    let off = u64::from(input.byte()) % STRIDE;
    let len = u64::from(input.byte()) % 33;
    // Now and then the path of another field.
    let path = if input.byte() == u8::MAX { 0 } else { at };
    StructField::new(format!("/{path}"), kind, off).with_len(len)
}

/// Bytes that end with zeros.
struct ZeroPaddedInput<'a>(&'a [u8]);

impl ZeroPaddedInput<'_> {
    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        let mut bytes = bytes.to_vec();
        bytes.resize(len, 0);
        bytes
    }
}
