//! The encoding of a body: UTF-8 or UTF-16, which every processor of XML reads (XML 1.0 §4.3.3, RFC 4918 §19).

use std::borrow::Cow;

use crate::dav::error::DavError;

/// An encoding that a body can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyEncoding {
    /// UTF-8, with or without a byte order mark.
    Utf8,
    /// UTF-16, which begins with a byte order mark.
    Utf16,
}

impl BodyEncoding {
    /// Whether the XML declaration may name the encoding so.
    pub(super) fn has_name(self, name: &str) -> bool {
        let names: &[&str] = match self {
            Self::Utf8 => &["utf-8", "us-ascii"],
            Self::Utf16 => &["utf-16"],
        };
        names.iter().any(|it| it.eq_ignore_ascii_case(name))
    }
}

/// The text of a body without its byte order mark.
pub(super) fn decode_body(body: &[u8]) -> Result<(Cow<'_, str>, BodyEncoding), DavError> {
    let unit: Option<fn([u8; 2]) -> u16> = match body {
        [0xfe, 0xff, ..] => Some(u16::from_be_bytes),
        [0xff, 0xfe, ..] => Some(u16::from_le_bytes),
        _ => None,
    };
    let Some(unit) = unit else {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        let text = std::str::from_utf8(body);
        let text = text.map_err(|_| malformed("it is not UTF-8"))?;
        return Ok((text.into(), BodyEncoding::Utf8));
    };
    let pairs = body[2..].chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(malformed("it ends within a unit of UTF-16"));
    }
    let units = pairs.map(|pair| unit([pair[0], pair[1]]));
    let text: Result<String, _> = char::decode_utf16(units).collect();
    let text = text.map_err(|_| malformed("it is not UTF-16"))?;
    Ok((text.into(), BodyEncoding::Utf16))
}

fn malformed(reason: &str) -> DavError {
    DavError::Malformed(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf_16_is_read_by_its_mark() {
        let text = "<a>ä\u{10000}</a>";
        let big: Vec<u8> = [0xfeff]
            .into_iter()
            .chain(text.encode_utf16())
            .flat_map(u16::to_be_bytes)
            .collect();
        let little: Vec<u8> = [0xfeff]
            .into_iter()
            .chain(text.encode_utf16())
            .flat_map(u16::to_le_bytes)
            .collect();
        for body in [big, little] {
            let decoded = decode_body(&body);
            assert_eq!(decoded, Ok((text.into(), BodyEncoding::Utf16)));
            assert!(decode_body(&body[..body.len() - 1]).is_err());
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        assert_eq!(
            decode_body(b"\xef\xbb\xbf<a/>"),
            Ok(("<a/>".into(), BodyEncoding::Utf8))
        );
        assert!(decode_body(b"<a>\xff</a>").is_err());
        // A surrogate without its other half.
        assert!(decode_body(b"\xfe\xff\xd8\x00").is_err());
    }
}
