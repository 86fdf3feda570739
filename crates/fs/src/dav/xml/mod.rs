//! XML as WebDAV uses it: small documents with namespaces, without document types and entities.

mod build;
mod chars;
mod decode;
mod parse;
mod tree;
mod write;

pub use tree::{XmlAttribute, XmlElement, XmlName, XmlNode};
pub(super) use write::{XML_DECLARATION, escape_text};

/// The namespace that the prefix `xml` is bound to.
pub(super) const XML_NAMESPACE: &str = "http://www.w3.org/XML/1998/namespace";

#[cfg(test)]
mod tests;
