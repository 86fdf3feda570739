//! What HTTP and WebDAV (RFC 4918, class 2) say about a tree of files: request bodies, header fields, properties and
//! the texts of responses. Nothing here reads the store or a socket, so each rule is tested by itself.
//!
//! A refused request is a [`DavError`], which knows its status and, where RFC 4918 §16 names one, the condition that
//! belongs into the body of the response.

mod body;
mod condition;
mod error;
mod headers;
pub mod limits;
mod listing;
mod media;
mod multistatus;
mod properties;
mod target;
mod time;
mod xml;

pub use body::{
    LockBody, LockInfo, PropertyChange, PropertyPatch, PropertyPatchOutcome, PropfindBody,
};
pub use condition::{CONDITION_MEDIA_TYPE, DavCondition};
pub use error::DavError;
pub use headers::{
    ContentRangeHeader, DavDepth, EntityTag, EntityTagList, EntityVersion, IfCondition, IfHeader,
    IfList, IfResources, IfState, MultipartRanges, RangeSelection, RequestCondition,
    UPLOAD_COMPLETE, UPLOAD_LENGTH, UPLOAD_OFFSET, UploadAppend, UploadError, UploadProgress,
    UploadStage, destination, is_overwrite_allowed, lock_time, pin_version, unlock_token,
};
pub use listing::{
    LISTING_HEADERS, ListedEntry, ListingFormat, ListingHead, end_listing, listing_head,
    listing_row,
};
pub use media::{FILE_HEADERS, media_type};
pub use multistatus::{MultistatusWriter, PropertyStatus, lock_response};
pub use properties::{
    DeadProperties, DeadProperty, DeadPropertyError, LiveProperty, PropertyElement, PropertySource,
    QuotaUse, active_lock, find_properties,
};
pub use target::{DavTarget, MOUNT_PREFIX, RequestOrigin, TargetEntry};
pub use time::{http_date, parse_http_date};
pub use xml::{XmlAttribute, XmlElement, XmlName, XmlNode};

/// The namespace of WebDAV (RFC 4918 §14).
pub const DAV_NAMESPACE: &str = "DAV:";
