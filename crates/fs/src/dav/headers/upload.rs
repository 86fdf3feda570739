//! Uploads that can be resumed: `Upload-Offset` and its like (draft-ietf-httpbis-resumable-upload), and a PUT of a part by
//! `Content-Range` (RFC 9110 §14.5).

use std::ops::Range;

use http::{HeaderMap, StatusCode};
use thiserror::Error;

use crate::dav::error::DavError;

use super::{parse_digits, single};

/// The field with the number of bytes that an upload has.
pub const UPLOAD_OFFSET: &str = "upload-offset";

/// The field that says whether a request ends its upload.
pub const UPLOAD_COMPLETE: &str = "upload-complete";

/// The field with the number of bytes that the upload will have.
pub const UPLOAD_LENGTH: &str = "upload-length";

/// The largest number of a structured field (RFC 9651 §3.3.1).
const FIELD_NUMBER_MAX: u64 = 999_999_999_999_999;

/// Bytes that a request adds to an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadAppend {
    /// Where the body goes: the number of bytes before it.
    pub offset: u64,
    /// Bytes of the whole upload, if the client names it.
    pub length: Option<u64>,
    /// Whether the upload ends with this body; `None` if the client does not say.
    pub is_complete: Option<bool>,
}

/// The range of a file that the body of a PUT is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentRangeHeader {
    /// The range; it is not empty.
    pub range: Range<u64>,
    /// Bytes of the whole file; `None` if the client does not know it.
    pub size: Option<u64>,
}

/// How far an upload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UploadStage {
    /// It takes more bytes.
    Open,
    /// It has all its bytes, and its file can be committed.
    Complete,
    /// It failed or was cancelled.
    Ended,
}

/// An upload in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadProgress {
    received: u64,
    length: Option<u64>,
    stage: UploadStage,
}

/// Why an upload does not take bytes.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum UploadError {
    /// The body does not begin where the upload ends. The client asks for the offset and goes on from there.
    #[error("the upload has {expected} bytes")]
    OffsetMismatch {
        /// Bytes that the upload has.
        expected: u64,
    },
    /// The client named another length before.
    #[error("the upload has the length {length}")]
    LengthMismatch {
        /// The length of before.
        length: u64,
    },
    /// The upload would have more bytes than its length, or ends with less.
    #[error("the upload does not have the length that was declared")]
    WrongSize,
    /// The upload has all its bytes.
    #[error("the upload is complete")]
    Complete,
    /// The upload failed or was cancelled.
    #[error("the upload has ended")]
    Ended,
}

impl UploadError {
    /// The status of the response.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            // By this status a client learns that it has to ask for the offset.
            Self::OffsetMismatch { .. } => StatusCode::CONFLICT,
            Self::LengthMismatch { .. } | Self::WrongSize | Self::Complete => {
                StatusCode::BAD_REQUEST
            }
            Self::Ended => StatusCode::NOT_FOUND,
        }
    }
}

impl UploadAppend {
    /// What a PATCH of an upload adds.
    ///
    /// # Errors
    /// The offset is missing, or a field is invalid.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, DavError> {
        let offset = number(headers, UPLOAD_OFFSET)?;
        let offset = offset.ok_or_else(|| DavError::header(UPLOAD_OFFSET, "it is missing"))?;
        Ok(Self {
            offset,
            length: number(headers, UPLOAD_LENGTH)?,
            is_complete: boolean(headers, UPLOAD_COMPLETE)?,
        })
    }

    /// What the PUT that begins an upload has: `None` for a PUT without these fields, which is the whole file.
    ///
    /// # Errors
    /// A field is invalid.
    pub fn of_new_upload(headers: &HeaderMap) -> Result<Option<Self>, DavError> {
        let is_complete = boolean(headers, UPLOAD_COMPLETE)?;
        let length = number(headers, UPLOAD_LENGTH)?;
        // This field alone makes a PUT the beginning of an upload.
        Ok(is_complete.map(|is_complete| Self {
            offset: 0,
            length,
            is_complete: Some(is_complete),
        }))
    }
}

impl ContentRangeHeader {
    /// The field of a request.
    ///
    /// # Errors
    /// The field is invalid. It must not be ignored: the part would replace the whole file.
    pub fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, DavError> {
        const FIELD: &str = "content-range";
        let Some(text) = single(headers, FIELD)? else {
            return Ok(None);
        };
        let parsed = Self::parse(text);
        let parsed = parsed.ok_or_else(|| DavError::header(FIELD, "not a range of bytes"))?;
        Ok(Some(parsed))
    }

    fn parse(text: &str) -> Option<Self> {
        let (unit, rest) = text.split_once(' ')?;
        let rest = unit.eq_ignore_ascii_case("bytes").then_some(rest)?;
        let (range, size) = rest.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (parse_digits(first)?, parse_digits(last)?);
        let size = match size {
            "*" => None,
            size => Some(parse_digits(size)?),
        };
        // A last position before the first one or behind the size makes the field invalid (RFC 9110 section 14.4).
        let is_valid = first <= last && last < size.unwrap_or(u64::MAX);
        is_valid.then(|| Self {
            range: first..last + 1,
            size,
        })
    }

    /// The same as a part of an upload.
    #[must_use]
    pub fn to_append(&self) -> UploadAppend {
        UploadAppend {
            offset: self.range.start,
            length: self.size,
            is_complete: self.size.map(|size| size == self.range.end),
        }
    }

    /// Bytes of the body.
    #[must_use]
    pub const fn body_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

impl UploadProgress {
    /// An upload without bytes, of this length if it is known.
    #[must_use]
    pub const fn new(length: Option<u64>) -> Self {
        Self {
            received: 0,
            length,
            stage: UploadStage::Open,
        }
    }

    /// Bytes that the upload has.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Bytes that it will have, if that is known.
    #[must_use]
    pub const fn length(&self) -> Option<u64> {
        self.length
    }

    /// How far it is.
    #[must_use]
    pub const fn stage(&self) -> UploadStage {
        self.stage
    }

    /// Begins a body. `body` is its declared size in bytes.
    ///
    /// # Errors
    /// The upload does not take the body, and is as before.
    pub fn begin(&mut self, append: &UploadAppend, body: Option<u64>) -> Result<(), UploadError> {
        match self.stage {
            UploadStage::Open => {}
            UploadStage::Complete => return Err(UploadError::Complete),
            UploadStage::Ended => return Err(UploadError::Ended),
        }
        // Bytes are neither left out nor taken twice.
        if append.offset != self.received {
            return Err(UploadError::OffsetMismatch {
                expected: self.received,
            });
        }
        let length = match (self.length, append.length) {
            (Some(length), Some(given)) if length != given => {
                return Err(UploadError::LengthMismatch { length });
            }
            // The first request that names a length fixes it.
            (known, given) => known.or(given),
        };
        // A body without a declared size is counted as it comes.
        let end = self.received.checked_add(body.unwrap_or_default());
        let end = end.ok_or(UploadError::WrongSize)?;
        if length.is_some_and(|length| end > length) {
            return Err(UploadError::WrongSize);
        }
        // At the end, since a refused body leaves the upload as it was.
        self.length = length;
        Ok(())
    }

    /// Counts bytes of the body. The upload fails if it has more than its length.
    ///
    /// # Errors
    /// [`UploadError::WrongSize`], and the upload has ended.
    pub fn push(&mut self, bytes: u64) -> Result<(), UploadError> {
        if self.stage != UploadStage::Open {
            return Err(UploadError::Ended);
        }
        let received = self.received.checked_add(bytes);
        let received = received.filter(|it| *it <= self.length.unwrap_or(u64::MAX));
        // A client that sends more than it declared does not know what it sends: no file is made of it.
        let Some(received) = received else {
            self.stage = UploadStage::Ended;
            return Err(UploadError::WrongSize);
        };
        self.received = received;
        Ok(())
    }

    /// Ends a body that came whole. A body that broke off leaves the upload open, with the bytes that came.
    ///
    /// # Errors
    /// [`UploadError::WrongSize`]: the client says that the upload is complete, and bytes are missing. The upload has ended.
    pub fn finish(&mut self, append: &UploadAppend) -> Result<UploadStage, UploadError> {
        if self.stage != UploadStage::Open {
            return Err(UploadError::Ended);
        }
        let has_all = self.length == Some(self.received);
        match append.is_complete {
            Some(true) if self.length.is_some() && !has_all => {
                self.stage = UploadStage::Ended;
                return Err(UploadError::WrongSize);
            }
            Some(true) => self.stage = UploadStage::Complete,
            // A client that does not say so ends its upload with the last byte of the length.
            None if has_all => self.stage = UploadStage::Complete,
            Some(false) | None => {}
        }
        Ok(self.stage)
    }

    /// Ends the upload without a file.
    pub const fn cancel(&mut self) {
        self.stage = UploadStage::Ended;
    }
}

fn number(headers: &HeaderMap, field: &'static str) -> Result<Option<u64>, DavError> {
    let Some(text) = single(headers, field)? else {
        return Ok(None);
    };
    // Digits alone: a sign and parameters have no meaning in these fields.
    let number = parse_digits(text).filter(|it| *it <= FIELD_NUMBER_MAX);
    let number = number.ok_or_else(|| DavError::header(field, "not a number of bytes"))?;
    Ok(Some(number))
}

fn boolean(headers: &HeaderMap, field: &'static str) -> Result<Option<bool>, DavError> {
    match single(headers, field)? {
        None => Ok(None),
        Some("?1") => Ok(Some(true)),
        Some("?0") => Ok(Some(false)),
        Some(_) => Err(DavError::header(field, "not ?0 or ?1")),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let fields = fields.iter().map(|(name, value)| {
            let value = HeaderValue::from_str(value).expect("a value");
            (HeaderName::from_static(name), value)
        });
        fields.collect()
    }

    const fn append(offset: u64, length: Option<u64>, is_complete: Option<bool>) -> UploadAppend {
        UploadAppend {
            offset,
            length,
            is_complete,
        }
    }

    #[test]
    fn fields_of_an_append_are_read() {
        let read = |fields| UploadAppend::from_headers(&headers(fields));
        let all = [
            (UPLOAD_OFFSET, "5"),
            (UPLOAD_COMPLETE, "?1"),
            (UPLOAD_LENGTH, "9"),
        ];
        assert_eq!(read(&all), Ok(append(5, Some(9), Some(true))));
        assert_eq!(read(&[(UPLOAD_OFFSET, "0")]), Ok(append(0, None, None)));
        for fields in [
            &[][..],
            &[(UPLOAD_OFFSET, "-1")],
            &[(UPLOAD_OFFSET, "1.0")],
            &[(UPLOAD_OFFSET, "1000000000000000")],
            &[(UPLOAD_OFFSET, "0"), (UPLOAD_COMPLETE, "1")],
            &[(UPLOAD_OFFSET, "0"), (UPLOAD_OFFSET, "1")],
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in fields {
                map.append(*name, HeaderValue::from_static(value));
            }
            assert!(UploadAppend::from_headers(&map).is_err(), "{fields:?}");
        }
        let new = UploadAppend::of_new_upload(&headers(&[(UPLOAD_COMPLETE, "?0")]));
        assert_eq!(new, Ok(Some(append(0, None, Some(false)))));
        assert_eq!(UploadAppend::of_new_upload(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn a_content_range_is_read() {
        let read = |value| ContentRangeHeader::from_headers(&headers(&[("content-range", value)]));
        let part = read("bytes 2-4/10").expect("valid").expect("a range");
        assert_eq!(
            (part.range.clone(), part.size, part.body_bytes()),
            (2..5, Some(10), 3)
        );
        assert_eq!(part.to_append(), append(2, Some(10), Some(false)));
        let last = read("bytes 5-9/10").expect("valid").expect("a range");
        assert_eq!(last.to_append().is_complete, Some(true));
        let open = read("bytes 0-0/*").expect("valid").expect("a range");
        assert_eq!(open.to_append(), append(0, None, None));
        assert_eq!(
            ContentRangeHeader::from_headers(&HeaderMap::new()),
            Ok(None)
        );
        for value in [
            "bytes */10",
            "bytes 4-2/10",
            "bytes 0-10/10",
            "bytes=0-1/2",
            "lines 0-1/2",
            "bytes 0-1",
            "bytes 0-18446744073709551615/*",
            "bytes -1/2",
            "",
        ] {
            assert_eq!(read(value).expect_err(value).status(), 400, "{value}");
        }
    }

    #[test]
    fn an_upload_goes_on_where_it_broke_off() {
        let mut upload = UploadProgress::new(None);
        let first = append(0, Some(10), Some(true));
        upload.begin(&first, Some(10)).expect("open");
        // The connection breaks off here, so that nothing finishes the body.
        upload.push(4).expect("room");
        assert_eq!((upload.received(), upload.length()), (4, Some(10)));
        let mismatch = upload.begin(&append(10, None, None), None);
        assert_eq!(mismatch, Err(UploadError::OffsetMismatch { expected: 4 }));
        let other = upload.begin(&append(4, Some(11), None), None);
        assert_eq!(other, Err(UploadError::LengthMismatch { length: 10 }));
        let rest = append(4, None, Some(true));
        assert_eq!(upload.begin(&rest, Some(7)), Err(UploadError::WrongSize));
        upload.begin(&rest, Some(6)).expect("open");
        upload.push(6).expect("room");
        assert_eq!(upload.finish(&rest), Ok(UploadStage::Complete));
        assert_eq!(
            upload.begin(&append(10, None, None), None),
            Err(UploadError::Complete)
        );
    }

    #[test]
    fn a_size_that_lies_ends_the_upload() {
        let whole = append(0, Some(3), Some(true));
        let mut upload = UploadProgress::new(Some(3));
        upload.begin(&whole, None).expect("open");
        assert_eq!(upload.push(4), Err(UploadError::WrongSize));
        assert_eq!(upload.stage(), UploadStage::Ended);
        assert_eq!(upload.begin(&whole, None), Err(UploadError::Ended));
        let mut upload = UploadProgress::new(Some(3));
        upload.begin(&whole, None).expect("open");
        upload.push(2).expect("room");
        assert_eq!(upload.finish(&whole), Err(UploadError::WrongSize));
        assert_eq!(upload.stage(), UploadStage::Ended);
        let mut upload = UploadProgress::new(None);
        upload.cancel();
        assert_eq!(upload.begin(&whole, None).expect_err("ended").status(), 404);
    }

    proptest! {
        #[test]
        fn no_upload_is_complete_with_another_length(
            length in prop::option::of(0..20_u64),
            steps in prop::collection::vec((0..8_u64, prop::option::of(any::<bool>())), 0..8),
        ) {
            let mut upload = UploadProgress::new(length);
            for (bytes, is_complete) in steps {
                let append = append(upload.received(), None, is_complete);
                if upload.begin(&append, None).is_ok() && upload.push(bytes).is_ok() {
                    let _ = upload.finish(&append);
                }
            }
            if upload.stage() == UploadStage::Complete {
                prop_assert!(length.is_none_or(|it| it == upload.received()));
            }
        }
    }
}
