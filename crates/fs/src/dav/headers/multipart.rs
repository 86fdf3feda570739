//! Bodies with several ranges: `multipart/byteranges` (RFC 9110 §14.6).

use std::fmt::Write;
use std::ops::Range;

/// The texts around the ranges of a body. The body is, for each range, its head and its bytes, and then the tail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultipartRanges {
    boundary: String,
    heads: Vec<String>,
    ranges: Vec<Range<u64>>,
}

impl MultipartRanges {
    /// The texts for ranges of a file of `size` bytes, whose media type is `media_type`. `seed` makes the boundary, which
    /// must not occur in the file, so it has to be random.
    #[must_use]
    pub fn new(ranges: Vec<Range<u64>>, size: u64, media_type: &str, seed: [u8; 16]) -> Self {
        let mut boundary = String::with_capacity(2 * seed.len());
        for byte in seed {
            // Writing to a text does not fail.
            let _ = write!(boundary, "{byte:02x}");
        }
        let heads = ranges.iter().enumerate().map(|(at, range)| {
            // The line break before a boundary belongs to the boundary (RFC 2046 §5.1.1).
            let line_break = if at == 0 { "" } else { "\r\n" };
            let last = range.end.saturating_sub(1);
            format!(
                "{line_break}--{boundary}\r\nContent-Type: {media_type}\r\n\
                 Content-Range: bytes {}-{last}/{size}\r\n\r\n",
                range.start
            )
        });
        Self {
            heads: heads.collect(),
            boundary,
            ranges,
        }
    }

    /// The media type of the body.
    #[must_use]
    pub fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// Each range with the text before it.
    pub fn parts(&self) -> impl Iterator<Item = (&str, Range<u64>)> {
        let heads = self.heads.iter().map(String::as_str);
        heads.zip(self.ranges.iter().cloned())
    }

    /// The text behind the last range.
    #[must_use]
    pub fn tail(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary)
    }

    /// Bytes of the whole body.
    #[must_use]
    pub fn content_length(&self) -> u64 {
        let parts = self
            .parts()
            .map(|(head, range)| head.len() as u64 + (range.end - range.start));
        parts.sum::<u64>() + self.tail().len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_the_form_of_the_standard() {
        let file = b"0123456789";
        let texts = MultipartRanges::new(vec![0..2, 8..10], 10, "text/plain", [0xab; 16]);
        let mut body = Vec::new();
        for (head, range) in texts.parts() {
            body.extend_from_slice(head.as_bytes());
            let start = usize::try_from(range.start).expect("small");
            let end = usize::try_from(range.end).expect("small");
            body.extend_from_slice(&file[start..end]);
        }
        body.extend_from_slice(texts.tail().as_bytes());
        assert_eq!(body.len() as u64, texts.content_length());
        let boundary = "ab".repeat(16);
        assert_eq!(
            texts.content_type(),
            format!("multipart/byteranges; boundary={boundary}")
        );
        let expected = format!(
            "--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\n01\
             \r\n--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 8-9/10\r\n\r\n89\
             \r\n--{boundary}--\r\n"
        );
        assert_eq!(String::from_utf8(body), Ok(expected));
    }
}
