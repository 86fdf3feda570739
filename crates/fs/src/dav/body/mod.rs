//! The XML bodies of requests (RFC 4918 §14).

mod lockinfo;
mod propfind;
mod proppatch;

pub use lockinfo::{LockBody, LockInfo};
pub use propfind::PropfindBody;
pub use proppatch::{PropertyChange, PropertyPatch, PropertyPatchOutcome};

use super::error::DavError;
use super::limits::{PROPERTIES_NAMED_MAX, PROPERTY_NAMES_BYTES_MAX};
use super::xml::{XmlElement, XmlName};

/// The root of a body, which must have this name.
fn parse_root(body: &[u8], local: &str) -> Result<XmlElement, DavError> {
    let root = XmlElement::parse(body)?;
    if root.name.is_dav(local) {
        Ok(root)
    } else {
        Err(DavError::UnexpectedBody("its root is another element"))
    }
}

/// What a request names so far.
#[derive(Debug, Default)]
struct NamedProperties {
    count: usize,
    bytes: usize,
}

impl NamedProperties {
    /// Counts one more property, and refuses a request that names too many, or too long ones.
    fn add(&mut self, name: &XmlName) -> Result<(), DavError> {
        self.count += 1;
        if self.count > PROPERTIES_NAMED_MAX {
            return Err(DavError::TooMany {
                what: "properties",
                limit: PROPERTIES_NAMED_MAX,
            });
        }
        // The response names a property that an entry lacks, so that a request of some KiB would be answered by as much
        // for each of thousands of entries.
        self.bytes += name.namespace.len() + name.local.len();
        if self.bytes > PROPERTY_NAMES_BYTES_MAX {
            return Err(DavError::TooMany {
                what: "bytes in the names of properties",
                limit: PROPERTY_NAMES_BYTES_MAX,
            });
        }
        Ok(())
    }
}
