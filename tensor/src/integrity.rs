//! Verification of a file: hashes, padding, offsets and values.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use blake3::Hash;

use crate::dtype::{Dtype, ElementType};
use crate::error::{QuotedText, Result, TensorError, TensorErrorCode, fail};
use crate::header::{BlobInfo, HeaderEntry, StructInfo, Tensor, TensorKind};
use crate::layout::{FieldType, LayoutOracle};
use crate::reader::ContainerReader;
use crate::source::ReadAt;
use crate::view::{RecordFieldValue, check_booleans, check_end, check_offsets};

/// Context of a signature over a header, so that the signature is valid for no other purpose.
pub const HEADER_SIGNATURE_CONTEXT: &[u8] = b"alknet-tensor-header-v1\0";
/// Problems that a report lists.
const PROBLEMS_MAX: usize = 100;
/// Bytes of records, or of an item, that the check of values holds in memory.
const HELD_BYTES_MAX: u64 = 64 << 20;

/// BLAKE3 of a whole file: its name in the store.
///
/// ```
/// use alknet_tensor::{FileId, Hash};
///
/// let id = FileId(Hash::from_bytes([7; 32]));
/// assert_eq!(id.to_string(), "07".repeat(32));
/// assert_eq!(id.to_string().parse::<FileId>()?, id);
/// # Ok::<(), alknet_tensor::TensorError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub Hash);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for FileId {
    type Err = TensorError;

    fn from_str(text: &str) -> Result<Self> {
        let hash = Hash::from_hex(text);
        hash.map(Self).map_err(|_| {
            let what = format!("{} is no file id of 64 hex digits", QuotedText(text));
            TensorError::new(TensorErrorCode::Hash, what)
        })
    }
}

/// The message of a signature that vouches for a file: a reader who trusts the signature trusts the
/// header, and the header has the hash of all other bytes. A sidecar `NAME.sig` has the Ed25519
/// signature over this message.
#[must_use]
pub fn header_signature_message(header_hash: &Hash) -> Vec<u8> {
    [HEADER_SIGNATURE_CONTEXT, header_hash.as_bytes()].concat()
}

/// How thoroughly a file is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VerifyDepth {
    /// The header alone: entries, kinds, layouts, alignment.
    Meta,
    /// The header, and every hash that the file has.
    Hash,
    /// The same, and that padding is zero, offsets rise and values are valid for their types.
    Full,
}

/// The result of a verification.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// Hashes that were compared with the data.
    pub hashes: u64,
    /// Tensors without a hash of their own.
    pub unhashed: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// The mistakes found, at most a hundred.
    pub problems: Vec<TensorError>,
}

impl VerifyReport {
    /// Whether no mistake was found.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        self.problems.is_empty()
    }

    fn note(&mut self, outcome: Result<()>) {
        if let Err(problem) = outcome
            && self.problems.len() < PROBLEMS_MAX
        {
            self.problems.push(problem);
        }
    }
}

/// Verifies a file that could be opened. With an oracle, it compares layouts with the schema too.
///
/// # Errors
/// `E_IO`. Mistakes of the file itself are in the report.
pub fn verify<S: ReadAt>(
    reader: &ContainerReader<S>,
    level: VerifyDepth,
    oracle: Option<&dyn LayoutOracle>,
) -> Result<VerifyReport> {
    let mut check = HashCheck {
        reader,
        report: VerifyReport::default(),
    };
    check.alignment();
    if let Some(oracle) = oracle {
        let outcome = reader.meta().check_layouts(oracle);
        check.report.note(outcome);
    }
    if level >= VerifyDepth::Hash {
        check.hashes()?;
    }
    if level >= VerifyDepth::Full {
        check.pads()?;
        for tensor in reader.meta().tensors() {
            let members = members(reader, &tensor, oracle);
            let outcome = check.values(&tensor, &members);
            check.found(outcome)?;
        }
    }
    Ok(check.report)
}

struct HashCheck<'r, S> {
    reader: &'r ContainerReader<S>,
    report: VerifyReport,
}

impl<S: ReadAt> HashCheck<'_, S> {
    /// Notes a mistake of the file, and returns an error that prevents reading it.
    fn found(&mut self, outcome: Result<()>) -> Result<()> {
        match outcome {
            // A disk that fails says nothing about the file.
            Err(error) if error.code() == TensorErrorCode::Io => Err(error),
            other => {
                self.report.note(other);
                Ok(())
            }
        }
    }

    fn alignment(&mut self) {
        let meta = self.reader.meta();
        for entry in meta.entries() {
            let Some(align) = meta.align_of(entry.name()) else {
                continue;
            };
            let start = entry.file_range().start;
            if start % u64::from(align) != 0 {
                let name = QuotedText(entry.name());
                let what = format!("entry {name} begins at {start}, no multiple of {align}");
                self.report.note(fail(TensorErrorCode::Align, what));
            }
        }
    }

    fn hashes(&mut self) -> Result<()> {
        let meta = self.reader.meta();
        let mut data = meta
            .data_hash()
            .map(|wanted| (wanted, blake3::Hasher::new()));
        for entry in meta.entries() {
            let wanted = meta.entry_hash(entry.name());
            // Padding has no hash of its own: only its zeros are checked.
            if wanted.is_none() && !entry.is_pad() {
                self.report.unhashed += 1;
            }
            if wanted.is_none() && data.is_none() {
                continue;
            }
            // One pass over the bytes computes both hashes.
            let mut own = blake3::Hasher::new();
            self.reader.pass(entry.file_range(), |bytes| {
                if wanted.is_some() {
                    own.update(bytes);
                }
                if let Some((_, data)) = &mut data {
                    data.update(bytes);
                }
                Ok(())
            })?;
            self.report.bytes += entry.byte_len();
            if let Some(wanted) = wanted {
                let label = format!("entry {}", QuotedText(entry.name()));
                self.compare(&label, wanted, own.finalize());
            }
        }
        if let Some((wanted, data)) = data {
            self.compare("the data", wanted, data.finalize());
        }
        Ok(())
    }

    fn compare(&mut self, what: &str, wanted: Hash, found: Hash) {
        self.report.hashes += 1;
        if wanted != found {
            let what = format!("{what} has the hash {found}, the header says {wanted}");
            self.report.note(fail(TensorErrorCode::Hash, what));
        }
    }

    fn pads(&mut self) -> Result<()> {
        for entry in self.reader.meta().entries().filter(HeaderEntry::is_pad) {
            let outcome = self.reader.pass(entry.file_range(), |bytes| {
                match bytes.iter().all(|byte| *byte == 0) {
                    true => Ok(()),
                    false => fail(
                        TensorErrorCode::Value,
                        format!("pad {} is not zero", QuotedText(entry.name())),
                    ),
                }
            });
            self.found(outcome)?;
        }
        Ok(())
    }

    fn values(&mut self, tensor: &Tensor<'_>, members: &[(String, u32)]) -> Result<()> {
        let label = || format!("tensor {}", QuotedText(tensor.name()));
        let entry = tensor.entry();
        let outcome = match tensor.kind() {
            TensorKind::Flat if entry.dtype() == ElementType::Known(Dtype::Bool) => {
                self.reader.pass(entry.file_range(), check_booleans)
            }
            TensorKind::Flat => Ok(()),
            TensorKind::Struct(records) => self.records(&entry, &records, members),
            TensorKind::Blob(blob) => self.blob(&entry, &blob),
        };
        outcome.map_err(|error| error.with_subject(label()))
    }

    /// Checks that every field of every record has a valid value.
    fn records(
        &self,
        entry: &HeaderEntry<'_>,
        records: &StructInfo<'_>,
        members: &[(String, u32)],
    ) -> Result<()> {
        let stride = records.stride();
        if stride > HELD_BYTES_MAX {
            return fail(TensorErrorCode::Limit, format!("records of {stride} bytes"));
        }
        let known: HashMap<&str, u32> = members.iter().map(|(path, n)| (&**path, *n)).collect();
        let fields: Vec<_> = records.fields().collect();
        // The limits are looked up once, before the loop over all records.
        let limits: Vec<_> = fields.iter().map(|field| known.get(&*field.path)).collect();
        let at_once = (HELD_BYTES_MAX / 64 / stride).max(1);
        let mut first = 0;
        while first < records.count() {
            let end = records.count().min(first + at_once);
            let view = self.reader.strukt_rows(entry.name(), first..end)?;
            for (at, record) in view.records().enumerate() {
                for (field, limit) in fields.iter().zip(&limits) {
                    let value = record.value(field).and_then(|value| match limit {
                        Some(count) if field.kind == FieldType::Enum => {
                            check_member(&value, **count)
                        }
                        _ => Ok(()),
                    });
                    let place = first + at as u64;
                    value.map_err(|error| error.with_subject(format_args!("record {place}")))?;
                }
            }
            first = end;
        }
        Ok(())
    }

    /// Checks that the offsets rise to the end, and that every item has the blob's encoding.
    fn blob(&self, entry: &HeaderEntry<'_>, blob: &BlobInfo<'_>) -> Result<()> {
        let mut last = None;
        let mut seen = 0;
        self.reader.pass(blob.offsets().file_range(), |bytes| {
            check_offsets(bytes, seen, &mut last)?;
            seen += bytes.len() as u64 / 8;
            Ok(())
        })?;
        check_end(last, entry.byte_len())?;
        if !matches!(blob.enc(), "utf8" | "json") {
            return Ok(());
        }
        let mut item = 0;
        let mut before = None;
        self.reader.pass(blob.offsets().file_range(), |bytes| {
            let (offsets, _) = bytes.as_chunks::<8>();
            for offset in offsets {
                let end = u64::from_le_bytes(*offset);
                if let Some(start) = before.replace(end) {
                    let checked = self.text(entry, start..end, blob.enc() == "json");
                    checked.map_err(|error| error.with_subject(format_args!("item {item}")))?;
                    item += 1;
                }
            }
            Ok(())
        })
    }

    fn text(&self, entry: &HeaderEntry<'_>, range: std::ops::Range<u64>, json: bool) -> Result<()> {
        let len = range.end - range.start;
        // An item is held in memory as a whole to check its text.
        if len > HELD_BYTES_MAX {
            let what = format!("{len} bytes, {HELD_BYTES_MAX} are looked at");
            return fail(TensorErrorCode::Limit, what);
        }
        // The length is below the limit, so the cast keeps it.
        let mut bytes = vec![0; len as usize];
        self.reader.read_into(entry, range.start, &mut bytes)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|error| TensorError::new(TensorErrorCode::Value, error.to_string()))?;
        if json {
            let read = serde_json::from_str::<serde::de::IgnoredAny>(text);
            read.map_err(|error| TensorError::new(TensorErrorCode::Value, error.to_string()))?;
        }
        Ok(())
    }
}

/// The number of members of each `Enum` of the records; empty without an oracle that knows them.
fn members<S: ReadAt>(
    reader: &ContainerReader<S>,
    tensor: &Tensor<'_>,
    oracle: Option<&dyn LayoutOracle>,
) -> Vec<(String, u32)> {
    let (TensorKind::Struct(records), Some(schema), Some(oracle)) =
        (tensor.kind(), reader.meta().schema(), oracle)
    else {
        return Vec::new();
    };
    // A schema without a layout was reported by the check of layouts.
    let layout = oracle.layout(schema, records.def());
    layout.map(|layout| layout.members).unwrap_or_default()
}

fn check_member(value: &RecordFieldValue<'_>, count: u32) -> Result<()> {
    match value {
        RecordFieldValue::Uint(member) if *member >= u64::from(count) => fail(
            TensorErrorCode::Value,
            format!("member {member} of {count}"),
        ),
        RecordFieldValue::List(values) => values
            .iter()
            .try_for_each(|value| check_member(value, count)),
        _ => Ok(()),
    }
}
