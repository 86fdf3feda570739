//! As much of HTTP/1.1 (RFC 9112) as metadata services need: one request and one response on a
//! connection. The reader is strict. It refuses what two readers could understand differently.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::SocketAddr;

use thiserror::Error;
use zeroize::Zeroizing;

use crate::MetadataError;

/// Most bytes of a response's status line and header fields together.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// Most header fields of a response.
const FIELDS_MAX: usize = 64;
/// Most bytes of the lines with the sizes of chunks, and of the trailer, together.
pub const CHUNK_OVERHEAD_BYTES_MAX: usize = 8 << 10;
/// Bytes that are read at once. The end of the head need not be the end of a read.
const READ_BYTES: usize = 2048;

/// Why bytes are not a response.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResponseParseError {
    /// More content than the limit, in bytes.
    #[error("it is longer than {0} bytes")]
    BodyLong(usize),
    /// The sizes of its chunks cannot be read.
    #[error("the sizes of its chunks are malformed")]
    Chunks,
    /// The content is encoded, for example compressed.
    #[error("its content is encoded")]
    Encoded,
    /// It ends too early.
    #[error("it ends too early")]
    End,
    /// A header field is malformed.
    #[error("a header field is malformed")]
    Field,
    /// The header is longer than the limits.
    #[error("its header is too long")]
    HeadLong,
    /// Its length is given twice or not as a number.
    #[error("its length is given twice, or is no number")]
    Length,
    /// The first line is no status line.
    #[error("it does not begin with a status line of HTTP/1.1")]
    StatusLine,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HttpRequest<'a> {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// Header fields besides those that every request has.
    pub(crate) fields: &'a [(&'static str, &'a str)],
    pub(crate) body: &'a str,
    /// Most bytes of the response's content.
    pub(crate) bytes_max: usize,
}

impl HttpRequest<'_> {
    pub(crate) fn write(
        &self,
        to: &SocketAddr,
        stream: &mut impl Write,
    ) -> Result<(), MetadataError> {
        let host = to.ip();
        // One request on a connection, so that a response without a length ends with it (RFC 9112, 6.3).
        let mut head = Zeroizing::new(format!(
            "{} {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: alknet\r\nAccept: */*\r\nConnection: close\r\n",
            self.method, self.path
        ));
        for (name, value) in self.fields {
            // Writing to a string does not fail.
            let _ = write!(head, "{name}: {value}\r\n");
        }
        // Without a length the server would wait for content (RFC 9110, 8.6).
        if self.method != "GET" {
            let _ = write!(head, "Content-Length: {}\r\n", self.body.len());
        }
        head.push_str("\r\n");
        head.push_str(self.body);
        stream
            .write_all(head.as_bytes())
            .map_err(MetadataError::from_io)
    }
}

/// How the end of the content is known (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyFraming {
    /// With the connection.
    Close,
    /// Chunks of known sizes.
    Chunks,
    /// After this many bytes.
    Length(usize),
}

/// A response.
#[derive(Debug, PartialEq, Eq)]
pub struct MetadataResponse {
    status: u16,
    fields: Vec<(String, String)>,
    body: Zeroizing<Vec<u8>>,
}

impl MetadataResponse {
    /// Reads one response, whose content has at most `bytes_max` bytes.
    ///
    /// # Errors
    /// [`MetadataError::Response`] for bytes that are no response within the limits, and errors of the
    /// reader.
    pub fn receive(stream: &mut impl Read, bytes_max: usize) -> Result<Self, MetadataError> {
        let mut input = ResponseReader::new(stream);
        let head = input.read_head()?;
        let head = std::str::from_utf8(&head).map_err(|_| ResponseParseError::Field)?;
        let mut lines = head.split("\r\n");
        let status = read_status(lines.next().unwrap_or_default())?;
        let fields = read_fields(lines)?;
        let mut response = Self {
            status,
            fields,
            body: Zeroizing::new(Vec::new()),
        };
        // These have no content, whatever their header says (RFC 9110, 15.3.5 and 15.4.5).
        if !matches!(status, 204 | 304) {
            response.body = match response.body_framing()? {
                BodyFraming::Close => input.read_to_close(bytes_max)?,
                BodyFraming::Chunks => input.read_chunks(bytes_max)?,
                BodyFraming::Length(length) => input.read_length(length, bytes_max)?,
            };
        }
        Ok(response)
    }

    /// The status code, 200 to 599.
    #[must_use]
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// The first value of a header field. `name` is in lower case.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.values(name).next()
    }

    /// The content.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        let fields = self.fields.iter();
        let found = fields.filter(move |(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    fn body_framing(&self) -> Result<BodyFraming, ResponseParseError> {
        // A document is short, so no service has a reason to compress it.
        let mut encodings = self.values("content-encoding");
        if encodings.any(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
            return Err(ResponseParseError::Encoded);
        }
        let mut lengths = self.values("content-length");
        let mut transfer = self.values("transfer-encoding");
        match (lengths.next(), transfer.next()) {
            (None, None) => Ok(BodyFraming::Close),
            (Some(length), None) if lengths.next().is_none() => {
                // `parse` takes a sign, which the field may not have (RFC 9110, 8.6).
                let digits = length.bytes().all(|byte| byte.is_ascii_digit());
                let length = length.parse().ok().filter(|_| digits);
                length
                    .map(BodyFraming::Length)
                    .ok_or(ResponseParseError::Length)
            }
            (None, Some(coding)) if transfer.next().is_none() => coding
                .eq_ignore_ascii_case("chunked")
                .then_some(BodyFraming::Chunks)
                .ok_or(ResponseParseError::Encoded),
            // Both of them, or one of them twice, would be read differently by other readers
            // (RFC 9112, 6.3).
            _ => Err(ResponseParseError::Length),
        }
    }
}

fn read_status(line: &str) -> Result<u16, ResponseParseError> {
    let rest = line.strip_prefix("HTTP/1.");
    let rest = rest.and_then(|rest| rest.strip_prefix(['0', '1'])?.strip_prefix(' '));
    let rest = rest.ok_or(ResponseParseError::StatusLine)?;
    let (code, reason) = rest
        .split_at_checked(3)
        .ok_or(ResponseParseError::StatusLine)?;
    let digits = code.bytes().all(|byte| byte.is_ascii_digit());
    let code = code.parse().ok().filter(|_| digits);
    let ends = reason.is_empty() || reason.starts_with(' ');
    // No interim response is asked for, so none may come (RFC 9110, 15.2).
    code.filter(|code| ends && (200..600).contains(code))
        .ok_or(ResponseParseError::StatusLine)
}

fn read_fields<'a>(
    lines: impl Iterator<Item = &'a str>,
) -> Result<Vec<(String, String)>, ResponseParseError> {
    let mut fields = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(ResponseParseError::Field)?;
        // A line that begins with a space continues the one before, which is obsolete (RFC 9112,
        // 5.2). Its name is no token.
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(ResponseParseError::Field);
        }
        let value = value.trim_matches([' ', '\t']);
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(ResponseParseError::Field);
        }
        if fields.len() == FIELDS_MAX {
            return Err(ResponseParseError::HeadLong);
        }
        fields.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    Ok(fields)
}

/// A reader, and what was read from it and not used yet.
struct ResponseReader<'a, R> {
    stream: &'a mut R,
    ahead: Zeroizing<Vec<u8>>,
    /// Where the part of `ahead` begins that was not used.
    used: usize,
    /// Bytes of lines between chunks so far.
    chunk_overhead: usize,
}

impl<'a, R: Read> ResponseReader<'a, R> {
    fn new(stream: &'a mut R) -> Self {
        Self {
            stream,
            ahead: Zeroizing::new(Vec::with_capacity(HEAD_BYTES_MAX + 4 + READ_BYTES)),
            used: 0,
            chunk_overhead: 0,
        }
    }

    /// Reads some more bytes. `false` at the end of the stream.
    fn fill(&mut self) -> Result<bool, MetadataError> {
        // The used bytes go, so that the buffer never grows beyond its first size.
        self.ahead.drain(..self.used);
        self.used = 0;
        let from = self.ahead.len();
        self.ahead.resize(from + READ_BYTES, 0);
        let read = loop {
            match self.stream.read(&mut self.ahead[from..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.ahead
            .truncate(from + read.as_ref().copied().unwrap_or(0));
        read.map(|read| read > 0).map_err(MetadataError::from_io)
    }

    /// Status line and header fields, without the empty line that ends them.
    fn read_head(&mut self) -> Result<Zeroizing<Vec<u8>>, MetadataError> {
        loop {
            let end = self.ahead.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = end.filter(|end| *end <= HEAD_BYTES_MAX) {
                self.used = end + 4;
                return Ok(Zeroizing::new(self.ahead[..end].to_vec()));
            }
            // The end may still come in part: the four bytes belong to no line.
            if self.ahead.len() >= HEAD_BYTES_MAX + 4 {
                return Err(ResponseParseError::HeadLong.into());
            }
            if !self.fill()? {
                return Err(ResponseParseError::End.into());
            }
        }
    }

    /// Moves up to `count` bytes to `to`. `false` at the end of the stream.
    fn take(&mut self, count: usize, to: &mut Vec<u8>) -> Result<bool, MetadataError> {
        if self.used == self.ahead.len() && !self.fill()? {
            return Ok(false);
        }
        let ready = &self.ahead[self.used..];
        let taken = &ready[..ready.len().min(count)];
        to.extend_from_slice(taken);
        self.used += taken.len();
        Ok(true)
    }

    fn read_length(
        &mut self,
        length: usize,
        bytes_max: usize,
    ) -> Result<Zeroizing<Vec<u8>>, MetadataError> {
        if length > bytes_max {
            return Err(ResponseParseError::BodyLong(bytes_max).into());
        }
        let mut body = Zeroizing::new(Vec::with_capacity(length));
        self.read_exactly(length, &mut body)?;
        Ok(body)
    }

    fn read_exactly(&mut self, count: usize, to: &mut Vec<u8>) -> Result<(), MetadataError> {
        let end = to.len() + count;
        while to.len() < end {
            if !self.take(end - to.len(), to)? {
                return Err(ResponseParseError::End.into());
            }
        }
        Ok(())
    }

    fn read_to_close(&mut self, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, MetadataError> {
        // The capacity is final: a buffer that grows would leave copies of a secret.
        let mut body = Zeroizing::new(Vec::with_capacity(bytes_max + 1));
        while self.take(bytes_max + 1 - body.len(), &mut body)? {
            if body.len() > bytes_max {
                return Err(ResponseParseError::BodyLong(bytes_max).into());
            }
        }
        Ok(body)
    }

    /// Chunks (RFC 9112, 7.1). Extensions and the trailer are skipped.
    fn read_chunks(&mut self, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, MetadataError> {
        let mut body = Zeroizing::new(Vec::with_capacity(bytes_max));
        loop {
            let size = chunk_size(&self.read_line()?)?;
            if size == 0 {
                // The trailer has no field that is wanted, and an empty line ends it (RFC 9112, 7.1.2).
                while !self.read_line()?.is_empty() {}
                return Ok(body);
            }
            if size > bytes_max - body.len() {
                return Err(ResponseParseError::BodyLong(bytes_max).into());
            }
            self.read_exactly(size, &mut body)?;
            if !self.read_line()?.is_empty() {
                return Err(ResponseParseError::Chunks.into());
            }
        }
    }

    /// A line between chunks, without its end.
    fn read_line(&mut self) -> Result<Vec<u8>, MetadataError> {
        let mut line = Vec::new();
        loop {
            if !self.take(1, &mut line)? {
                return Err(ResponseParseError::End.into());
            }
            self.chunk_overhead += 1;
            if self.chunk_overhead > CHUNK_OVERHEAD_BYTES_MAX {
                return Err(ResponseParseError::Chunks.into());
            }
            if line.ends_with(b"\r\n") {
                line.truncate(line.len() - 2);
                return Ok(line);
            }
        }
    }
}

fn chunk_size(line: &[u8]) -> Result<usize, ResponseParseError> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    let digits = digits.trim_ascii_end();
    let text = std::str::from_utf8(digits).ok();
    // Without this check, a sign would be read as a part of the number.
    let text = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    text.and_then(|text| usize::from_str_radix(text, 16).ok())
        .ok_or(ResponseParseError::Chunks)
}

#[cfg(test)]
mod tests;
