//! Preconditions and postconditions that a response names in its body (RFC 4918 §16).

use http::StatusCode;

use super::xml::{XML_DECLARATION, escape_text};

/// The media type of XML bodies (RFC 4918 §8.2).
pub const CONDITION_MEDIA_TYPE: &str = "application/xml; charset=utf-8";

/// A condition that a request does not meet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DavCondition {
    /// The change touches a property that the server computes.
    CannotModifyProtectedProperty,
    /// The token of an UNLOCK is not that of a lock on the resource.
    LockTokenMatchesRequestUri,
    /// The request lacks the token of a lock on these resources, as URI references.
    LockTokenSubmitted(Vec<String>),
    /// The locks of these resources exclude the requested one, as URI references.
    NoConflictingLock(Vec<String>),
    /// The body has entities.
    NoExternalEntities,
    /// PROPFIND asks for an infinite depth.
    PropfindFiniteDepth,
    /// The quota of the bucket is used up (RFC 4331 §6).
    QuotaNotExceeded,
    /// The disk is full (RFC 4331 §6).
    SufficientDiskSpace,
}

impl DavCondition {
    /// The local name of the element in the namespace `DAV:`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::CannotModifyProtectedProperty => "cannot-modify-protected-property",
            Self::LockTokenMatchesRequestUri => "lock-token-matches-request-uri",
            Self::LockTokenSubmitted(_) => "lock-token-submitted",
            Self::NoConflictingLock(_) => "no-conflicting-lock",
            Self::NoExternalEntities => "no-external-entities",
            Self::PropfindFiniteDepth => "propfind-finite-depth",
            Self::QuotaNotExceeded => "quota-not-exceeded",
            Self::SufficientDiskSpace => "sufficient-disk-space",
        }
    }

    /// The status that RFC 4918 §16 and RFC 4331 §6 give the condition.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::CannotModifyProtectedProperty
            | Self::NoExternalEntities
            | Self::PropfindFiniteDepth => StatusCode::FORBIDDEN,
            Self::LockTokenMatchesRequestUri => StatusCode::CONFLICT,
            Self::LockTokenSubmitted(_) | Self::NoConflictingLock(_) => StatusCode::LOCKED,
            Self::QuotaNotExceeded | Self::SufficientDiskSpace => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    /// The element `D:error` with the condition, whose prefix `D` the caller has declared.
    #[must_use]
    pub(super) fn to_element(&self) -> String {
        let name = self.name();
        let hrefs = match self {
            Self::LockTokenSubmitted(hrefs) | Self::NoConflictingLock(hrefs) => hrefs.as_slice(),
            _ => &[],
        };
        if hrefs.is_empty() {
            return format!("<D:error><D:{name}/></D:error>");
        }
        let hrefs: String = hrefs
            .iter()
            .map(|href| format!("<D:href>{}</D:href>", escape_text(href)))
            .collect();
        format!("<D:error><D:{name}>{hrefs}</D:{name}></D:error>")
    }

    /// The body of a response of type [`CONDITION_MEDIA_TYPE`].
    #[must_use]
    pub fn to_body(&self) -> String {
        let element = self.to_element();
        let element = element.replacen("<D:error>", "<D:error xmlns:D=\"DAV:\">", 1);
        format!("{XML_DECLARATION}{element}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dav::XmlElement;

    #[test]
    fn a_body_names_the_condition_and_its_resources() {
        let condition = DavCondition::LockTokenSubmitted(vec!["/fs/docs/a&b".to_owned()]);
        assert_eq!(condition.status(), 423);
        let body = condition.to_body();
        assert!(body.contains("<D:href>/fs/docs/a&amp;b</D:href>"), "{body}");
        let root = XmlElement::parse(body.as_bytes()).expect("well-formed");
        assert!(root.name.is_dav("error"));
        let child = root.elements().next().expect("the condition");
        assert!(child.name.is_dav("lock-token-submitted"));
    }

    #[test]
    fn a_condition_without_resources_is_empty() {
        let body = DavCondition::PropfindFiniteDepth.to_body();
        assert!(body.ends_with("<D:error xmlns:D=\"DAV:\"><D:propfind-finite-depth/></D:error>"));
        assert_eq!(DavCondition::PropfindFiniteDepth.status(), 403);
    }
}
