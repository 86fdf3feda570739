//! Documents to elements, with a bound on each thing that a client can make large.

use quick_xml::events::{BytesDecl, BytesRef, Event};
use quick_xml::reader::NsReader;

use crate::dav::error::DavError;
use crate::dav::limits::{XML_BODY_BYTES_MAX, XML_NAMESPACES_MAX};

use super::build::TreeBuilder;
use super::chars::is_xml_char;
use super::decode::{BodyEncoding, decode_body};
use super::tree::XmlElement;

impl XmlElement {
    /// Parses the body of a request.
    ///
    /// # Errors
    /// The body is above [a limit](crate::dav::limits), has a document type or an entity, or is not well-formed XML with
    /// namespaces.
    pub fn parse(body: &[u8]) -> Result<Self, DavError> {
        // First of all: everything below looks at each byte.
        if body.len() > XML_BODY_BYTES_MAX {
            return Err(DavError::BodyTooLarge {
                limit: XML_BODY_BYTES_MAX,
            });
        }
        let (text, encoding) = decode_body(body)?;
        if !text.chars().all(is_xml_char) {
            return Err(malformed("a character that XML does not have"));
        }
        parse_text(&text, encoding)
    }
}

fn parse_text(text: &str, encoding: BodyEncoding) -> Result<XmlElement, DavError> {
    let mut reader = NsReader::from_str(text);
    let config = reader.config_mut();
    config.check_comments = true;
    config.expand_empty_elements = true;
    reader
        .resolver_mut()
        .set_max_namespace_bindings(XML_NAMESPACES_MAX);
    let mut builder = TreeBuilder::default();
    let mut is_first = true;
    loop {
        let event = reader
            .read_event()
            .map_err(|error| malformed(&error.to_string()))?;
        match event {
            Event::Start(start) => builder.open(&start, reader.resolver())?,
            // With `expand_empty_elements` every element has a start and an end.
            Event::End(_) | Event::Empty(_) => builder.close()?,
            Event::Text(text) => builder.push_text(&text.xml10_content())?,
            Event::CData(text) => builder.push_cdata(&text.xml10_content())?,
            Event::GeneralRef(reference) => builder.push_cdata(&resolve(&reference)?)?,
            // Not even one without entities: nothing of WebDAV has a document type.
            Event::DocType(_) => return Err(DavError::DocumentType),
            Event::Decl(declaration) if is_first => check_declaration(&declaration, encoding)?,
            Event::Decl(_) => return Err(malformed("a declaration within the document")),
            Event::Comment(_) | Event::PI(_) => {}
            Event::Eof => break,
        }
        is_first = false;
    }
    builder.finish()
}

fn check_declaration(declaration: &BytesDecl<'_>, encoding: BodyEncoding) -> Result<(), DavError> {
    match declaration.encoding() {
        None => Ok(()),
        Some(Ok(name)) if encoding.has_name(&name) => Ok(()),
        Some(_) => Err(malformed("it declares an encoding that it does not have")),
    }
}

/// The character of a reference (XML 1.0 §4.1), or the text of one of the five predefined entities (§4.6).
fn resolve(reference: &BytesRef<'_>) -> Result<String, DavError> {
    let char = reference.resolve_char_ref();
    let char = char.map_err(|_| malformed("a reference to no character"))?;
    let char = match (char, &**reference) {
        (Some(char), _) if is_xml_char(char) => char,
        (Some(_), _) => {
            return Err(malformed(
                "a reference to a character that XML does not have",
            ));
        }
        (None, "lt") => '<',
        (None, "gt") => '>',
        (None, "amp") => '&',
        (None, "apos") => '\'',
        (None, "quot") => '"',
        (None, _) => return Err(DavError::Entity),
    };
    Ok(char.to_string())
}

pub(super) fn malformed(reason: &str) -> DavError {
    DavError::Malformed(reason.to_owned())
}
