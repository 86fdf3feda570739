//! Writing and reading the record's characters without allocation.

use crate::record::{RECORD_BYTES, VARIABLES_BYTES_MAX};

/// Most decimal digits of a `u64`.
pub(crate) const NUMBER_BYTES_MAX: usize = 20;

/// A record that is being written. The bytes behind the text are `#`.
pub(crate) struct TextWriter {
    bytes: [u8; RECORD_BYTES],
    at: usize,
}

impl TextWriter {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [b'#'; RECORD_BYTES],
            at: 0,
        }
    }

    /// Appends `text`. The limits of the record's parts add up to less than [`VARIABLES_BYTES_MAX`], so it always fits.
    pub(crate) fn text(&mut self, text: &[u8]) {
        let end = self.at + text.len();
        debug_assert!(end <= VARIABLES_BYTES_MAX, "the parts have limits");
        if let Some(room) = self.bytes.get_mut(self.at..end) {
            room.copy_from_slice(text);
            self.at = end;
        }
    }

    pub(crate) fn number(&mut self, number: u64) {
        let (digits, first) = digits(number);
        self.text(digits.get(first..).unwrap_or_default());
    }

    /// Appends a line with a variable.
    pub(crate) fn line(&mut self, name: &str, value: impl FnOnce(&mut Self)) {
        self.text(name.as_bytes());
        self.text(b"=");
        value(self);
        self.text(b"\n");
    }

    pub(crate) const fn finish(self) -> [u8; RECORD_BYTES] {
        self.bytes
    }
}

/// The decimal digits of a number, and where the first of them is.
pub(crate) fn digits(number: u64) -> ([u8; NUMBER_BYTES_MAX], usize) {
    let mut digits = [0; NUMBER_BYTES_MAX];
    let mut left = number;
    let mut first = NUMBER_BYTES_MAX;
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        // The remainder of a division by ten is below ten.
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
        first = at;
        if left == 0 {
            break;
        }
    }
    (digits, first)
}

/// Reads a decimal number in its only form: without a sign and without leading zeros.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    let is_short = matches!(text, [b'0'] | [b'1'..=b'9', ..]);
    if !is_short || text.len() > NUMBER_BYTES_MAX {
        return None;
    }
    text.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| byte - b'0')?;
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Splits the first line off, at the first line feed that no backslash escapes, which is in neither part. `None` if
/// there is no such line feed.
pub(crate) fn split_line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut is_escaped = false;
    let end = text.iter().position(|byte| {
        let ends = *byte == b'\n' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        ends
    })?;
    let (line, rest) = text.split_at_checked(end)?;
    Some((line, rest.get(1..)?))
}
