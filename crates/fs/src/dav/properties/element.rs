//! A property as a response shows it.

use crate::dav::xml::{XmlElement, XmlName, escape_text};

use super::DeadProperty;

/// An element within `D:prop` of a response: the name of a property, with its value where it has one. The document
/// declares the prefix `D`, and no default namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PropertyElement(String);

impl PropertyElement {
    /// The name alone.
    #[must_use]
    pub fn empty(name: &XmlName) -> Self {
        if name.is_dav(&name.local) {
            // With the prefix of the document, because some clients look for it.
            return Self(format!("<D:{}/>", name.local));
        }
        Self(XmlElement::new(name.clone()).to_fragment())
    }

    /// A property of WebDAV with a text.
    pub(super) fn dav_text(local: &str, text: &str) -> Self {
        Self::dav_xml(local, &escape_text(text))
    }

    /// A property of WebDAV with elements.
    pub(super) fn dav_xml(local: &str, xml: &str) -> Self {
        if xml.is_empty() {
            return Self(format!("<D:{local}/>"));
        }
        Self(format!("<D:{local}>{xml}</D:{local}>"))
    }

    /// A dead property with its value.
    #[must_use]
    pub fn dead(property: &DeadProperty) -> Self {
        Self(property.xml().to_owned())
    }

    /// The element as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
