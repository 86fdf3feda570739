//! Responses about several resources (RFC 4918 §13), and the one of LOCK.

use alknet_store::EntryLock;
use http::StatusCode;

use super::condition::DavCondition;
use super::properties::{PropertyElement, lock_discovery};
use super::xml::{XML_DECLARATION, escape_text};

/// Properties with the same outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PropertyStatus {
    /// The outcome.
    pub status: StatusCode,
    /// The condition that was not met.
    pub condition: Option<DavCondition>,
    /// The properties.
    pub properties: Vec<PropertyElement>,
}

impl PropertyStatus {
    /// The outcome of one property.
    #[must_use]
    pub fn new(status: StatusCode, property: PropertyElement) -> Self {
        Self {
            status,
            condition: None,
            properties: vec![property],
        }
    }

    /// Puts properties with the same outcome together.
    pub(super) fn group(outcomes: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for outcome in outcomes {
            // There are as many groups as statuses, so that a search is quicker than a table.
            let mut groups_now = groups.iter_mut();
            let same = groups_now
                .find(|it| it.status == outcome.status && it.condition == outcome.condition);
            match same {
                Some(same) => same.properties.extend(outcome.properties),
                None => groups.push(outcome),
            }
        }
        groups
    }
}

/// Writes the body of a response with status 207. A long one can be sent in parts: [`take`](Self::take) hands out what was
/// written so far.
#[derive(Clone, Debug)]
pub struct MultistatusWriter {
    text: String,
}

impl MultistatusWriter {
    /// Begins the body.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            text: format!("{XML_DECLARATION}<D:multistatus xmlns:D=\"DAV:\">"),
        }
    }

    /// Goes on with a body whose begin is sent.
    #[must_use]
    pub const fn resume() -> Self {
        let text = String::new();
        Self { text }
    }

    /// Writes the properties of a resource, which `href` names (see
    /// [`TargetEntry::href`](super::TargetEntry::href)).
    pub fn push_properties(&mut self, href: &str, outcomes: &[PropertyStatus]) {
        self.begin_response(href);
        for outcome in outcomes {
            self.text.push_str("<D:propstat><D:prop>");
            for property in &outcome.properties {
                self.text.push_str(property.as_str());
            }
            self.text.push_str("</D:prop>");
            self.push_status_line(outcome.status);
            if let Some(condition) = &outcome.condition {
                self.text.push_str(&condition.to_element());
            }
            self.text.push_str("</D:propstat>");
        }
        // A response has one of both (RFC 4918 §14.24): an entry without any property that was asked for.
        if outcomes.is_empty() {
            self.text.push_str("<D:propstat><D:prop/>");
            self.push_status_line(StatusCode::OK);
            self.text.push_str("</D:propstat>");
        }
        self.text.push_str("</D:response>");
    }

    /// Writes the outcome of a method on a resource.
    pub fn push_status(
        &mut self,
        href: &str,
        status: StatusCode,
        condition: Option<&DavCondition>,
    ) {
        self.begin_response(href);
        self.push_status_line(status);
        if let Some(condition) = condition {
            self.text.push_str(&condition.to_element());
        }
        self.text.push_str("</D:response>");
    }

    /// Bytes that are written and not taken.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.text.len()
    }

    /// Whether everything written is taken.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Takes what was written so far.
    #[must_use]
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// Ends the body, and returns what was not taken.
    #[must_use]
    pub fn finish(mut self) -> String {
        self.text.push_str("</D:multistatus>");
        self.text
    }

    fn begin_response(&mut self, href: &str) {
        self.text.push_str("<D:response><D:href>");
        // A name may have every sign of XML.
        self.text.push_str(&escape_text(href));
        self.text.push_str("</D:href>");
    }

    fn push_status_line(&mut self, status: StatusCode) {
        let reason = status.canonical_reason().unwrap_or("Unknown");
        let code = status.as_str();
        self.text
            .push_str(&format!("<D:status>HTTP/1.1 {code} {reason}</D:status>"));
    }
}

/// The body of the response to a LOCK (RFC 4918 §9.10.1). `root` is the URI reference of the entry that the lock was taken
/// on.
#[must_use]
pub fn lock_response(lock: &EntryLock, root: &str, now_ms: u64) -> String {
    let roots = [root.to_owned()];
    let discovery = lock_discovery(std::slice::from_ref(lock), &roots, now_ms);
    format!(
        "{XML_DECLARATION}<D:prop xmlns:D=\"DAV:\"><D:lockdiscovery>{discovery}</D:lockdiscovery></D:prop>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dav::{XmlElement, XmlName};

    #[test]
    fn a_body_in_parts_is_one_document() {
        let mut writer = MultistatusWriter::begin();
        let element = PropertyElement::empty(&XmlName::new("urn:x", "a"));
        let found = PropertyStatus::new(StatusCode::OK, element);
        writer.push_properties("/fs/a&b", &[found]);
        let mut body = writer.take();
        assert!(writer.is_empty());
        let condition = DavCondition::CannotModifyProtectedProperty;
        writer.push_status("/fs/c", condition.status(), Some(&condition));
        writer.push_properties("/fs/d", &[]);
        assert!(writer.len() > 100);
        body.push_str(&writer.finish());
        let root = XmlElement::parse(body.as_bytes()).expect("well-formed");
        assert!(root.name.is_dav("multistatus"));
        assert_eq!(
            root.elements()
                .filter(|it| it.name.is_dav("response"))
                .count(),
            3
        );
        assert!(body.contains("<D:href>/fs/a&amp;b</D:href>"), "{body}");
        assert!(
            body.contains("<D:status>HTTP/1.1 403 Forbidden</D:status><D:error>"),
            "{body}"
        );
    }

    #[test]
    fn equal_outcomes_stand_together() {
        let element = |local| PropertyElement::empty(&XmlName::dav(local));
        let groups = PropertyStatus::group([
            PropertyStatus::new(StatusCode::OK, element("a")),
            PropertyStatus::new(StatusCode::NOT_FOUND, element("b")),
            PropertyStatus::new(StatusCode::OK, element("c")),
        ]);
        let sizes: Vec<_> = groups.iter().map(|it| it.properties.len()).collect();
        assert_eq!(sizes, [2, 1]);
    }
}
