//! Elements to text.

use std::borrow::Cow;

use super::XML_NAMESPACE;
use super::chars::is_xml_char;
use super::tree::{XmlElement, XmlNode};

/// What every XML body of a response begins with.
pub(in crate::dav) const XML_DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n";

impl XmlElement {
    /// The element as text that means the same in every document without a default namespace: it declares each
    /// namespace that it uses. Prefixes of the document that it comes from are not kept.
    #[must_use]
    pub fn to_fragment(&self) -> String {
        // No element has this length in memory.
        self.to_short_fragment(usize::MAX).unwrap_or_default()
    }

    /// The same text, if it has at most so many bytes. A fragment declares a namespace at each element and attribute that
    /// needs it, so that it can be a hundred times as long as the document.
    #[must_use]
    pub fn to_short_fragment(&self, bytes_max: usize) -> Option<String> {
        let mut text = String::new();
        write_element(&mut text, self, "", bytes_max);
        (text.len() <= bytes_max).then_some(text)
    }
}

/// The depth of the recursion is bounded by that of the parser. Ends early once the text is too long.
fn write_element(
    text: &mut String,
    element: &XmlElement,
    default_namespace: &str,
    bytes_max: usize,
) {
    let name = &element.name;
    text.push('<');
    text.push_str(&name.local);
    if &*name.namespace != default_namespace {
        push_attribute(text, "xmlns", &name.namespace);
    }
    for (at, attribute) in element.attributes.iter().enumerate() {
        if text.len() > bytes_max {
            return;
        }
        let namespace = &*attribute.name.namespace;
        let local = &attribute.name.local;
        match namespace {
            "" => push_attribute(text, local, &attribute.value),
            XML_NAMESPACE => push_attribute(text, &format!("xml:{local}"), &attribute.value),
            _ => {
                push_attribute(text, &format!("xmlns:n{at}"), namespace);
                push_attribute(text, &format!("n{at}:{local}"), &attribute.value);
            }
        }
    }
    if element.children.is_empty() {
        text.push_str("/>");
        return;
    }
    text.push('>');
    for child in &element.children {
        if text.len() > bytes_max {
            return;
        }
        match child {
            XmlNode::Element(child) => write_element(text, child, &name.namespace, bytes_max),
            XmlNode::Text(child) => text.push_str(&escape_text(child)),
        }
    }
    text.push_str("</");
    text.push_str(&name.local);
    text.push('>');
}

fn push_attribute(text: &mut String, name: &str, value: &str) {
    text.push(' ');
    text.push_str(name);
    text.push_str("=\"");
    text.push_str(&escape_text(value));
    text.push('"');
}

/// Text as the content of an element or the value of an attribute. A character that XML does not have, which the name of
/// a file can have, becomes U+FFFD.
pub(in crate::dav) fn escape_text(text: &str) -> Cow<'_, str> {
    let is_plain = |char: char| {
        is_xml_char(char) && !matches!(char, '&' | '<' | '>' | '"' | '\'' | '\t' | '\n' | '\r')
    };
    if text.chars().all(is_plain) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            // As references: readers turn them into spaces in attributes, and a carriage return into a line feed in
            // text (XML 1.0 §2.11 and §3.3.3).
            '\t' => escaped.push_str("&#9;"),
            '\n' => escaped.push_str("&#10;"),
            '\r' => escaped.push_str("&#13;"),
            char if is_xml_char(char) => escaped.push(char),
            _ => escaped.push('\u{fffd}'),
        }
    }
    escaped.into()
}
