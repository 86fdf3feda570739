//! The XML bodies of requests (RFC 4918 §14).

mod lockinfo;
mod propfind;
mod proppatch;

pub use lockinfo::{LockBody, LockInfo};
pub use propfind::PropfindBody;
pub use proppatch::{PropertyChange, PropertyPatch, PropertyPatchOutcome};

use super::error::DavError;
use super::limits::PROPERTIES_NAMED_MAX;
use super::xml::XmlElement;

/// The root of a body, which must have this name.
fn parse_root(body: &[u8], local: &str) -> Result<XmlElement, DavError> {
    let root = XmlElement::parse(body)?;
    if root.name.is_dav(local) {
        Ok(root)
    } else {
        Err(DavError::UnexpectedBody("its root is another element"))
    }
}

/// Refuses a request that names too many properties.
const fn check_count(count: usize) -> Result<(), DavError> {
    if count > PROPERTIES_NAMED_MAX {
        return Err(DavError::TooMany {
            what: "properties",
            limit: PROPERTIES_NAMED_MAX,
        });
    }
    Ok(())
}
