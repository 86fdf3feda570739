//! Text and bytes.

use super::bits::{put_bits, take_bits};
use super::timestamp::is_timestamp;
use super::{Fit, LeafType};
use crate::kind::FieldKind;
use crate::schema::annotations::BytesEncoding;
use crate::value::RecordValue;

/// Bytes of a length: of length-prefixed content, and of `Bytes` in reserved space, where the last bytes may be zero
/// and still count.
pub(crate) const PREFIX_BYTES: usize = 4;

impl LeafType {
    /// The bytes of `value`, checked in every way that does not need their destination.
    pub(crate) fn content<'v>(&self, value: &'v RecordValue) -> Fit<&'v [u8]> {
        let content = match (self.kind, value) {
            (FieldKind::Bytes, RecordValue::Bytes(bytes)) => bytes.as_slice(),
            (FieldKind::String, RecordValue::Text(text)) => text.as_bytes(),
            (FieldKind::Timestamp, RecordValue::Text(text)) => {
                check_timestamp(text)?;
                text.as_bytes()
            }
            _ => return Err(self.other(value)),
        };
        self.check_bytes(content.len() as u64)?;
        self.check_end(content)?;
        Ok(content)
    }

    /// Like `content`, from bytes.
    pub(crate) fn of_content(&self, content: &[u8]) -> Fit<RecordValue> {
        self.check_bytes(content.len() as u64)?;
        if self.kind == FieldKind::Bytes {
            return Ok(RecordValue::Bytes(content.to_vec()));
        }
        let text = std::str::from_utf8(content).map_err(|error| format!("no UTF-8: {error}"))?;
        if self.kind == FieldKind::Timestamp {
            check_timestamp(text)?;
        }
        Ok(RecordValue::Text(text.to_owned()))
    }

    pub(super) fn put_fixed(&self, value: &RecordValue, big: bool, out: &mut [u8]) -> Fit<()> {
        let content = self.content(value)?;
        let space = if self.kind == FieldKind::Bytes {
            let (prefix, space) = out.split_at_mut(PREFIX_BYTES);
            put_bits(content.len() as u64, big, prefix);
            space
        } else {
            out
        };
        // `content` is no longer than `max`, which is the space.
        let (used, rest) = space.split_at_mut(content.len());
        used.copy_from_slice(content);
        rest.fill(0);
        Ok(())
    }

    pub(super) fn take_fixed(&self, bytes: &[u8], big: bool) -> Fit<RecordValue> {
        if self.kind != FieldKind::Bytes {
            let end = bytes
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last + 1);
            return self.of_content(&bytes[..end]);
        }
        let (prefix, space) = bytes.split_at(PREFIX_BYTES);
        let len = take_bits(prefix, big);
        self.check_bytes(len)?;
        // The check above keeps it within the space.
        let (content, rest) = space.split_at(len as usize);
        // Equal values are equal bytes: only zero may follow.
        if rest.iter().any(|byte| *byte != 0) {
            return Err("bytes after the content are not zero".to_owned());
        }
        self.of_content(content)
    }

    /// Checks that there are no more bytes than the limit.
    pub(crate) fn check_bytes(&self, len: u64) -> Fit<()> {
        let most = match (self.max, self.encoding) {
            (Some(max), _) => max.into(),
            (None, BytesEncoding::Indirect) => u64::MAX,
            (None, _) => u32::MAX.into(),
        };
        if len > most {
            return Err(format!("it has {len} bytes, and may have {most}"));
        }
        Ok(())
    }

    /// In reserved space, text ends at its last byte that is not zero.
    fn check_end(&self, content: &[u8]) -> Fit<()> {
        let ends = self.encoding == BytesEncoding::Fixed && self.kind != FieldKind::Bytes;
        if ends && content.last() == Some(&0) {
            return Err("text in reserved space cannot end in U+0000".to_owned());
        }
        Ok(())
    }
}

fn check_timestamp(text: &str) -> Fit<()> {
    if is_timestamp(text) {
        return Ok(());
    }
    Err("it is no date and time of RFC 3339, such as 2026-01-31T23:59:59Z".to_owned())
}
