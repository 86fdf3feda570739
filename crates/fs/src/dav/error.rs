//! Why a request is refused before the store is asked.

use alknet_store::InvalidPath;
use http::StatusCode;
use thiserror::Error;

use super::condition::DavCondition;

/// Why a request is refused before the store is asked.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DavError {
    /// The body is larger than the limit.
    #[error("the body has more than {limit} bytes")]
    BodyTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The body is not well-formed XML with namespaces.
    #[error("the body is not well-formed XML: {0}")]
    Malformed(String),
    /// The body has a document type. It could define entities, which this server never resolves.
    #[error("the body has a document type declaration")]
    DocumentType,
    /// The body uses an entity that XML does not predefine.
    #[error("the body uses an entity that XML does not predefine")]
    Entity,
    /// The elements of the body are nested too deep.
    #[error("the body has more than {limit} elements within each other")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// The body has too many elements, attributes or properties.
    #[error("the body has more than {limit} {what}")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The body is XML, but not the one that the method takes.
    #[error("the body is not what the method takes: {0}")]
    UnexpectedBody(&'static str),
    /// A header field is invalid.
    #[error("the header field {field} is invalid: {reason}")]
    Header {
        /// The name of the field.
        field: &'static str,
        /// What is wrong with its value.
        reason: &'static str,
    },
    /// The destination is not on this server, or not below this mount.
    #[error("the destination is not below the mount of this server")]
    OtherServer,
    /// The path names a bucket, a branch or an entry that breaks a rule.
    #[error(transparent)]
    Path(#[from] InvalidPath),
    /// A component of the path has an encoded slash, which no name has.
    #[error("a component of the path has a slash in it")]
    EncodedSlash,
    /// The path is one of no resource of the mount.
    #[error("the mount has no resource of this path")]
    NoResource,
    /// The client asks for a shared lock.
    #[error("this server has exclusive locks only")]
    SharedLock,
    /// PROPFIND asks for a whole tree at once.
    #[error("PROPFIND with an infinite depth is not served")]
    InfiniteDepth,
}

impl DavError {
    /// The status of the response.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::BodyTooLarge { .. } | Self::TooMany { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Malformed(_)
            | Self::DocumentType
            | Self::Entity
            | Self::TooDeep { .. }
            | Self::UnexpectedBody(_)
            | Self::Header { .. }
            | Self::EncodedSlash
            | Self::Path(_) => StatusCode::BAD_REQUEST,
            // RFC 4918 §9.8.5 and §9.9.4.
            Self::OtherServer => StatusCode::BAD_GATEWAY,
            Self::NoResource => StatusCode::NOT_FOUND,
            Self::SharedLock | Self::InfiniteDepth => StatusCode::FORBIDDEN,
        }
    }

    /// The condition that the body of the response names.
    #[must_use]
    pub const fn condition(&self) -> Option<DavCondition> {
        match self {
            // RFC 4918 §16 has it with 403. This project answers 400 to what is wrong in a body.
            Self::DocumentType | Self::Entity => Some(DavCondition::NoExternalEntities),
            Self::InfiniteDepth => Some(DavCondition::PropfindFiniteDepth),
            _ => None,
        }
    }

    /// An invalid header field.
    pub(super) const fn header(field: &'static str, reason: &'static str) -> Self {
        Self::Header { field, reason }
    }
}
