//! The tree under construction.

use std::collections::HashSet;
use std::sync::Arc;

use quick_xml::XmlVersion;
use quick_xml::errors::Error as XmlError;
use quick_xml::escape::{EscapeError, unescape};
use quick_xml::events::BytesStart;
use quick_xml::events::attributes::Attribute;
use quick_xml::name::{NamespaceResolver, PrefixDeclaration, QName, ResolveResult};

use crate::dav::error::DavError;
use crate::dav::limits::{
    XML_ATTRIBUTES_MAX, XML_DEPTH_MAX, XML_NAMESPACE_BYTES_MAX, XML_NODES_MAX,
};

use super::chars::{is_nc_name, is_xml_char, is_xml_space};
use super::parse::malformed;
use super::tree::{XmlAttribute, XmlElement, XmlName, XmlNode};

/// The elements that are open, and the root once it is closed.
#[derive(Debug, Default)]
pub(super) struct TreeBuilder {
    open: Vec<XmlElement>,
    root: Option<XmlElement>,
    nodes: usize,
    /// The namespaces of the names so far, each once.
    namespaces: HashSet<Arc<str>>,
}

impl TreeBuilder {
    /// Begins an element. The resolver has its declarations of namespaces already.
    pub(super) fn open(
        &mut self,
        start: &BytesStart<'_>,
        resolver: &NamespaceResolver,
    ) -> Result<(), DavError> {
        if self.root.is_some() {
            return Err(malformed("a second root element"));
        }
        if self.open.len() >= XML_DEPTH_MAX {
            return Err(DavError::TooDeep {
                limit: XML_DEPTH_MAX,
            });
        }
        self.count()?;
        let name = self.resolve_name(start.name(), resolver, true)?;
        let mut element = XmlElement::new(name);
        // Without the library's search for duplicates, whose time grows with the square of their number.
        for (at, attribute) in start.attributes().with_checks(false).enumerate() {
            if at >= XML_ATTRIBUTES_MAX {
                return Err(DavError::TooMany {
                    what: "attributes of one element",
                    limit: XML_ATTRIBUTES_MAX,
                });
            }
            self.count()?;
            let attribute = attribute.map_err(|error| malformed(&error.to_string()))?;
            if let Some(attribute) = self.read_attribute(&attribute, resolver)? {
                let is_double = element
                    .attributes
                    .iter()
                    .any(|it| it.name == attribute.name);
                if is_double {
                    return Err(malformed("an attribute occurs twice"));
                }
                element.attributes.push(attribute);
            }
        }
        self.open.push(element);
        Ok(())
    }

    /// Ends the innermost element.
    pub(super) fn close(&mut self) -> Result<(), DavError> {
        let element = self.open.pop();
        let element = element.ok_or_else(|| malformed("an end without a start"))?;
        match self.open.last_mut() {
            Some(parent) => parent.children.push(XmlNode::Element(element)),
            None => self.root = Some(element),
        }
        Ok(())
    }

    /// Character data of the document. Outside the root it is white space.
    pub(super) fn push_text(&mut self, text: &str) -> Result<(), DavError> {
        if self.open.is_empty() && text.chars().all(is_xml_space) {
            return Ok(());
        }
        if text.contains("]]>") {
            return Err(malformed("']]>' outside of a section"));
        }
        self.push_cdata(text)
    }

    /// Text that can only be within the root: a section or a reference.
    pub(super) fn push_cdata(&mut self, text: &str) -> Result<(), DavError> {
        let parent = self.open.last_mut();
        let parent = parent.ok_or_else(|| malformed("text outside of the root element"))?;
        match parent.children.last_mut() {
            Some(XmlNode::Text(before)) => before.push_str(text),
            _ if text.is_empty() => {}
            _ => parent.children.push(XmlNode::Text(text.to_owned())),
        }
        Ok(())
    }

    /// The root, if everything is closed.
    pub(super) fn finish(self) -> Result<XmlElement, DavError> {
        if !self.open.is_empty() {
            return Err(malformed("an element is not closed"));
        }
        self.root.ok_or_else(|| malformed("no root element"))
    }

    fn count(&mut self) -> Result<(), DavError> {
        self.nodes += 1;
        if self.nodes > XML_NODES_MAX {
            return Err(DavError::TooMany {
                what: "elements and attributes",
                limit: XML_NODES_MAX,
            });
        }
        Ok(())
    }

    /// The attribute; `None` for a declaration of a namespace.
    fn read_attribute(
        &mut self,
        attribute: &Attribute<'_>,
        resolver: &NamespaceResolver,
    ) -> Result<Option<XmlAttribute>, DavError> {
        if attribute.value.contains('<') {
            return Err(malformed("'<' in the value of an attribute"));
        }
        if let Some(declared) = attribute.key.as_namespace_binding() {
            // At the declaration and not at its first use: an element that is outside of it costs as much.
            check_namespace_length(&attribute.value)?;
            // Namespaces in XML 1.0 §5: only the default namespace can be undeclared.
            return match declared {
                PrefixDeclaration::Named(prefix) if !is_nc_name(prefix) => {
                    Err(malformed("a prefix that is no name"))
                }
                PrefixDeclaration::Named(_) if attribute.value.is_empty() => {
                    Err(malformed("a prefix without a namespace"))
                }
                _ => Ok(None),
            };
        }
        let name = self.resolve_name(attribute.key, resolver, false)?;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0);
        let value = value.map_err(|error| escape_error(&error))?.into_owned();
        check_chars(&value)?;
        Ok(Some(XmlAttribute { name, value }))
    }

    /// The expanded name. An attribute without a prefix is in no namespace.
    fn resolve_name(
        &mut self,
        name: QName<'_>,
        resolver: &NamespaceResolver,
        is_element: bool,
    ) -> Result<XmlName, DavError> {
        let (local, prefix) = name.decompose();
        let local = local.into_inner();
        let is_name = is_nc_name(local) && prefix.is_none_or(|it| is_nc_name(it.into_inner()));
        if !is_name {
            return Err(malformed("a name that XML does not allow"));
        }
        let namespace = match resolver.resolve_prefix(prefix, is_element) {
            ResolveResult::Unbound => self.share_namespace(""),
            ResolveResult::Bound(namespace) => {
                let namespace = namespace.into_inner();
                // The element that declares a namespace has a name before its attributes are looked at, and the time for
                // the references below grows with the length.
                check_namespace_length(namespace)?;
                // The library keeps the value as the document has it.
                let namespace = unescape(namespace);
                let namespace = namespace.map_err(|error| escape_error(&error.into()))?;
                check_chars(&namespace)?;
                self.share_namespace(&namespace)
            }
            ResolveResult::Unknown(_) => return Err(malformed("a prefix that is not declared")),
        };
        Ok(XmlName {
            namespace,
            local: local.to_owned(),
        })
    }

    /// The one text of a namespace that all names of the document have.
    fn share_namespace(&mut self, namespace: &str) -> Arc<str> {
        if let Some(known) = self.namespaces.get(namespace) {
            return Arc::clone(known);
        }
        let new: Arc<str> = namespace.into();
        self.namespaces.insert(Arc::clone(&new));
        new
    }
}

/// Refuses a namespace that is longer than any that a client has a reason for.
fn check_namespace_length(namespace: &str) -> Result<(), DavError> {
    if namespace.len() > XML_NAMESPACE_BYTES_MAX {
        return Err(DavError::TooMany {
            what: "bytes in a namespace",
            limit: XML_NAMESPACE_BYTES_MAX,
        });
    }
    Ok(())
}

fn check_chars(text: &str) -> Result<(), DavError> {
    if text.chars().all(is_xml_char) {
        Ok(())
    } else {
        Err(malformed(
            "a reference to a character that XML does not have",
        ))
    }
}

fn escape_error(error: &XmlError) -> DavError {
    match error {
        XmlError::Escape(EscapeError::UnrecognizedEntity(..)) => DavError::Entity,
        error => malformed(&error.to_string()),
    }
}
