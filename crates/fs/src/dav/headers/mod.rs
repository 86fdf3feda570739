//! Header fields.

mod entity_tag;
mod fields;
mod if_header;
mod multipart;
mod precondition;
mod range;
mod upload;

pub use entity_tag::{EntityTag, EntityTagList};
pub use fields::{DavDepth, destination, is_overwrite_allowed, lock_time, unlock_token};
pub use if_header::{IfCondition, IfHeader, IfList, IfResources, IfState};
pub use multipart::MultipartRanges;
pub use precondition::{EntityVersion, RequestCondition, pin_version};
pub use range::RangeSelection;
pub use upload::{
    ContentRangeHeader, UPLOAD_COMPLETE, UPLOAD_LENGTH, UPLOAD_OFFSET, UploadAppend, UploadError,
    UploadProgress, UploadStage,
};

use http::HeaderMap;

use super::error::DavError;
use super::limits::HEADER_BYTES_MAX;

/// The value of a field that a request has once at most.
fn single<'a>(headers: &'a HeaderMap, field: &'static str) -> Result<Option<&'a str>, DavError> {
    let mut values = headers.get_all(field).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(DavError::header(field, "it occurs twice"));
    }
    if value.len() > HEADER_BYTES_MAX {
        return Err(DavError::header(field, "it is too long"));
    }
    let text = value.to_str();
    let text = text.map_err(|_| DavError::header(field, "it is not ASCII"))?;
    Ok(Some(text.trim()))
}

/// The number that a text of digits is; `None` for any other text. A number beyond the largest is the largest.
fn parse_digits(text: &str) -> Option<u64> {
    // `parse` accepts a plus sign, which no field has.
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}
