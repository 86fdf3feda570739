//! Elements with resolved namespaces.

use std::fmt;
use std::sync::Arc;

use crate::dav::DAV_NAMESPACE;

use super::XML_NAMESPACE;

/// The expanded name of an element or an attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XmlName {
    /// The namespace; empty for a name in none. The names of a document share its text: one declaration serves thousands of
    /// elements, and a copy for each of them would be a hundred times the document.
    pub namespace: Arc<str>,
    /// The name in the namespace.
    pub local: String,
}

/// An attribute. Declarations of namespaces are not among the attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XmlAttribute {
    /// Its name.
    pub name: XmlName,
    /// Its value, with all references resolved.
    pub value: String,
}

/// An element with everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XmlElement {
    /// Its name.
    pub name: XmlName,
    /// Its attributes, in the order of the document.
    pub attributes: Vec<XmlAttribute>,
    /// Its content. No two texts stand beside each other.
    pub children: Vec<XmlNode>,
}

/// A part of the content of an element. Comments and processing instructions are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XmlNode {
    /// An element.
    Element(XmlElement),
    /// Character data, with all references resolved.
    Text(String),
}

impl XmlName {
    /// A name in a namespace.
    #[must_use]
    pub fn new(namespace: &str, local: &str) -> Self {
        Self {
            namespace: namespace.into(),
            local: local.to_owned(),
        }
    }

    /// A name of WebDAV.
    #[must_use]
    pub fn dav(local: &str) -> Self {
        Self::new(DAV_NAMESPACE, local)
    }

    /// Whether this is the name of WebDAV.
    #[must_use]
    pub fn is_dav(&self, local: &str) -> bool {
        &*self.namespace == DAV_NAMESPACE && self.local == local
    }
}

/// The name in Clark's notation: `{namespace}local`.
impl fmt::Display for XmlName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}}}{}", self.namespace, self.local)
    }
}

impl XmlElement {
    /// An empty element.
    #[must_use]
    pub const fn new(name: XmlName) -> Self {
        Self {
            name,
            attributes: Vec::new(),
            children: Vec::new(),
        }
    }

    /// The elements directly in this one.
    pub fn elements(&self) -> impl Iterator<Item = &Self> {
        self.children.iter().filter_map(|node| match node {
            XmlNode::Element(element) => Some(element),
            XmlNode::Text(_) => None,
        })
    }

    /// The first element of WebDAV with this name directly in this one.
    #[must_use]
    pub fn dav_element(&self, local: &str) -> Option<&Self> {
        self.elements().find(|it| it.name.is_dav(local))
    }

    /// The value of `xml:lang` on this element.
    #[must_use]
    pub fn lang(&self) -> Option<&str> {
        let is_lang = |name: &XmlName| &*name.namespace == XML_NAMESPACE && name.local == "lang";
        let mut attributes = self.attributes.iter();
        let lang = attributes.find(|it| is_lang(&it.name))?;
        Some(&lang.value)
    }

    /// Gives the element a language if it has none of its own.
    pub(in crate::dav) fn inherit_lang(&mut self, lang: &str) {
        if self.lang().is_none() {
            self.attributes.push(XmlAttribute {
                name: XmlName::new(XML_NAMESPACE, "lang"),
                value: lang.to_owned(),
            });
        }
    }
}
