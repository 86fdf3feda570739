//! Limits the bytes of a request that the node writes. The budget is reduced before each piece is written: an input
//! has a name once that a request repeats, so a short input could make a request of gigabytes.

use std::borrow::Cow;
use std::io;

use alknet_call::CallError;
use percent_encoding::{AsciiSet, utf8_percent_encode};
use serde_json::Value;

use super::limits::{BODY_BYTES_MAX, HEAD_BYTES_MAX};

/// The bytes that are left.
#[derive(Debug)]
pub(super) struct RequestByteBudget {
    left: usize,
    most: usize,
    what: &'static str,
}

impl RequestByteBudget {
    /// A budget for values in the address, the headers and the cookies of one request.
    pub(super) const fn head() -> Self {
        Self {
            left: HEAD_BYTES_MAX,
            most: HEAD_BYTES_MAX,
            what: "its address, headers and cookies",
        }
    }

    /// A budget for a form or the parts of one.
    pub(super) const fn body() -> Self {
        Self {
            left: BODY_BYTES_MAX,
            most: BODY_BYTES_MAX,
            what: "its body",
        }
    }

    /// # Errors
    /// `INVALID_INPUT` if fewer bytes are left.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), CallError> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.full()),
        }
    }

    pub(super) fn push(&mut self, out: &mut String, text: &str) -> Result<(), CallError> {
        self.take(text.len())?;
        out.push_str(text);
        Ok(())
    }

    pub(super) fn push_bytes(&mut self, out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), CallError> {
        self.take(bytes.len())?;
        out.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn push_escaped(
        &mut self,
        out: &mut String,
        text: &str,
        set: &'static AsciiSet,
    ) -> Result<(), CallError> {
        // The pieces are added one by one, so the budget is checked before the text grows.
        utf8_percent_encode(text, set).try_for_each(|piece| self.push(out, piece))
    }

    /// A string as it is, and every other value as JSON, which is never longer than the remaining budget. This does
    /// not reduce the budget.
    pub(super) fn scalar<'v>(&self, value: &'v Value) -> Result<Cow<'v, str>, CallError> {
        match value {
            Value::String(text) => Ok(Cow::Borrowed(text)),
            Value::Null => Ok(Cow::Borrowed("")),
            other => self.json(other).map(Cow::Owned),
        }
    }

    /// Like [`scalar`](Self::scalar), but each value is written as JSON.
    pub(super) fn json(&self, value: &Value) -> Result<String, CallError> {
        let mut text = LimitedJsonWriter {
            text: Vec::new(),
            left: self.left,
        };
        // The writer fails only when the budget is used up.
        serde_json::to_writer(&mut text, value).map_err(|_| self.full())?;
        String::from_utf8(text.text).map_err(|error| CallError::internal(error.to_string()))
    }

    fn full(&self) -> CallError {
        let (most, what) = (self.most, self.what);
        CallError::invalid_input(format!(
            "the request would have more than {most} bytes in {what}"
        ))
    }
}

/// A writer of JSON that fails when its limit is reached.
struct LimitedJsonWriter {
    text: Vec<u8>,
    left: usize,
}

impl io::Write for LimitedJsonWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left.checked_sub(bytes.len());
        self.left = left.ok_or(io::ErrorKind::StorageFull)?;
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
