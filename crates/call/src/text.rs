//! Writes JSON text, byte for byte as `serde_json` does.
//!
//! Most of a call's text is strings, and hardly any character of them needs an escape. `serde_json` looks each byte
//! up in a table; this module checks 32 at a time, which the compiler turns into vector instructions. For calls of 4
//! KiB the table took a seventh of all processor time.

use serde::ser::{
    Error as _, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant,
    SerializeTuple, SerializeTupleStruct, SerializeTupleVariant, Serializer,
};
use serde_json::{Error, Value};

/// Bytes checked together.
const BLOCK_BYTES: usize = 32;

/// The name by which `serde_json` marks text to be written unchanged: that of a structure and of its only member.
const RAW: &str = "$serde_json::private::RawValue";

/// Appends `value` to `out`.
///
/// # Errors
/// The value has no JSON form; the caller has to remove the appended bytes.
pub(crate) fn append(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) -> Result<(), Error> {
    value.serialize(JsonWriter(out))
}

/// `value` as JSON text.
///
/// # Errors
/// The value has no JSON form.
pub(crate) fn to_vec(value: &(impl Serialize + ?Sized)) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(128);
    append(&mut out, value)?;
    Ok(out)
}

struct JsonWriter<'a>(&'a mut Vec<u8>);

impl<'a> JsonWriter<'a> {
    /// The library writes numbers.
    fn plain(self, value: impl Serialize) -> Result<(), Error> {
        serde_json::to_writer(self.0, &value)
    }

    fn opened(self, open: &str, close: &'static str) -> SequenceWriter<'a> {
        self.0.extend_from_slice(open.as_bytes());
        SequenceWriter {
            out: self.0,
            first: true,
            close,
        }
    }

    /// `{"variant":` and `open`.
    fn variant(self, variant: &str, open: &str, close: &'static str) -> SequenceWriter<'a> {
        self.0.push(b'{');
        append_string(self.0, variant);
        self.0.push(b':');
        self.opened(open, close)
    }
}

macro_rules! numbers {
    ($($name:ident: $type:ty),*) => {
        $(fn $name(self, v: $type) -> Result<(), Error> {
            self.plain(v)
        })*
    };
}

impl<'a> Serializer for JsonWriter<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = SequenceWriter<'a>;
    type SerializeTuple = SequenceWriter<'a>;
    type SerializeTupleStruct = SequenceWriter<'a>;
    type SerializeTupleVariant = SequenceWriter<'a>;
    type SerializeMap = SequenceWriter<'a>;
    type SerializeStruct = MemberWriter<'a>;
    type SerializeStructVariant = SequenceWriter<'a>;

    numbers! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32,
        serialize_i64: i64, serialize_i128: i128, serialize_u8: u8, serialize_u16: u16,
        serialize_u32: u32, serialize_u64: u64, serialize_u128: u128, serialize_f32: f32,
        serialize_f64: f64
    }

    fn serialize_char(self, v: char) -> Result<(), Error> {
        append_string(self.0, v.encode_utf8(&mut [0; 4]));
        Ok(())
    }

    fn serialize_str(self, v: &str) -> Result<(), Error> {
        append_string(self.0, v);
        Ok(())
    }

    fn serialize_bytes(self, v: &[u8]) -> Result<(), Error> {
        self.collect_seq(v)
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Error> {
        self.0.extend_from_slice(b"null");
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), Error> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        let items = self.variant(variant, "", "}");
        append(items.out, value)?;
        items.close()
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<SequenceWriter<'a>, Error> {
        Ok(self.opened("[", "]"))
    }

    fn serialize_tuple(self, _: usize) -> Result<SequenceWriter<'a>, Error> {
        Ok(self.opened("[", "]"))
    }

    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> Result<SequenceWriter<'a>, Error> {
        Ok(self.opened("[", "]"))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<SequenceWriter<'a>, Error> {
        Ok(self.variant(variant, "[", "]}"))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<SequenceWriter<'a>, Error> {
        Ok(self.opened("{", "}"))
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<MemberWriter<'a>, Error> {
        // The text is valid JSON already: escaping it again would change it.
        if name == RAW {
            return Ok(MemberWriter::Raw(self.0));
        }
        Ok(MemberWriter::Named(self.opened("{", "}")))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<SequenceWriter<'a>, Error> {
        Ok(self.variant(variant, "{", "}}"))
    }
}

/// The items between brackets.
struct SequenceWriter<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
    close: &'static str,
}

impl SequenceWriter<'_> {
    fn separate(&mut self) {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
    }

    fn item(&mut self, value: &(impl Serialize + ?Sized)) -> Result<(), Error> {
        self.separate();
        append(self.out, value)
    }

    fn member(&mut self, key: &str, value: &(impl Serialize + ?Sized)) -> Result<(), Error> {
        self.separate();
        append_string(self.out, key);
        self.out.push(b':');
        append(self.out, value)
    }

    /// Keys are strings: numbers and truth values become strings.
    fn key(&mut self, key: &(impl Serialize + ?Sized)) -> Result<(), Error> {
        self.separate();
        let start = self.out.len();
        append(self.out, key)?;
        match self.out.get(start) {
            Some(b'"') => Ok(()),
            // JSON has only strings as names, and `serde_json` quotes numbers and booleans.
            Some(b'-' | b'0'..=b'9' | b't' | b'f') => {
                self.out.insert(start, b'"');
                self.out.push(b'"');
                Ok(())
            }
            // The text is that of `serde_json`, which callers may know.
            _ => Err(Error::custom("key must be a string")),
        }
    }

    fn close(self) -> Result<(), Error> {
        self.out.extend_from_slice(self.close.as_bytes());
        Ok(())
    }
}

macro_rules! items {
    ($($trait:ident: $function:ident),*) => {
        $(impl $trait for SequenceWriter<'_> {
            type Ok = ();
            type Error = Error;

            fn $function<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                self.item(value)
            }

            fn end(self) -> Result<(), Error> {
                self.close()
            }
        })*
    };
}

items! {
    SerializeSeq: serialize_element, SerializeTuple: serialize_element,
    SerializeTupleStruct: serialize_field, SerializeTupleVariant: serialize_field
}

impl SerializeMap for SequenceWriter<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.key(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.out.push(b':');
        append(self.out, value)
    }

    fn end(self) -> Result<(), Error> {
        self.close()
    }
}

impl SerializeStructVariant for SequenceWriter<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.member(key, value)
    }

    fn end(self) -> Result<(), Error> {
        self.close()
    }
}

enum MemberWriter<'a> {
    Named(SequenceWriter<'a>),
    /// The only member is text to be written unchanged.
    Raw(&'a mut Vec<u8>),
}

impl SerializeStruct for MemberWriter<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        match self {
            Self::Named(items) => items.member(key, value),
            Self::Raw(out) => match serde_json::to_value(value)? {
                Value::String(text) => {
                    out.extend_from_slice(text.as_bytes());
                    Ok(())
                }
                _ => Err(Error::custom("a raw value is text")),
            },
        }
    }

    fn end(self) -> Result<(), Error> {
        match self {
            Self::Named(items) => items.close(),
            Self::Raw(_) => Ok(()),
        }
    }
}

/// Appends a string with its quotes.
pub(crate) fn append_string(out: &mut Vec<u8>, text: &str) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = find_special(rest) {
        out.extend_from_slice(&rest[..at]);
        append_escape(out, rest[at]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn append_escape(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' => b'"',
        b'\\' => b'\\',
        0x08 => b'b',
        0x0c => b'f',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        _ => {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 15)]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// Index of the first byte that a string cannot contain unchanged.
fn find_special(bytes: &[u8]) -> Option<usize> {
    let mut blocks = bytes.chunks_exact(BLOCK_BYTES);
    let mut at = 0;
    for block in &mut blocks {
        // Without a branch inside, so that it becomes vector instructions.
        if block.iter().fold(false, |any, &byte| any | special(byte)) {
            break;
        }
        at += BLOCK_BYTES;
    }
    let found = bytes[at..].iter().position(|&byte| special(byte))?;
    Some(at + found)
}

const fn special(byte: u8) -> bool {
    // The bytes that JSON has to escape: RFC 8259, section 7.
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

#[cfg(test)]
mod tests;
