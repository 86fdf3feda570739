//! The body of PROPFIND (RFC 4918 §9.1 and §14.20).

use crate::dav::error::DavError;
use crate::dav::xml::{XmlElement, XmlName};

use super::{NamedProperties, parse_root};

/// Which properties a PROPFIND asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PropfindBody {
    /// The properties of RFC 4918 and the dead ones, and these.
    AllProperties {
        /// Live properties that are not among them by themselves.
        include: Vec<XmlName>,
    },
    /// The names of all properties.
    PropertyNames,
    /// These properties.
    Named(Vec<XmlName>),
}

impl PropfindBody {
    /// Parses the body. An empty one asks for all properties.
    ///
    /// # Errors
    /// The body is no XML within the limits, or not that of a PROPFIND.
    pub fn parse(body: &[u8]) -> Result<Self, DavError> {
        if body.is_empty() {
            return Ok(Self::AllProperties {
                include: Vec::new(),
            });
        }
        let root = parse_root(body, "propfind")?;
        // Elements that this server does not know are as if they were not there (RFC 4918 §17).
        let all = root.dav_element("allprop");
        let names = root.dav_element("propname");
        let named = root.dav_element("prop");
        match (all, names, named) {
            (Some(_), None, None) => {
                let include = root.dav_element("include");
                let include = include.map_or_else(|| Ok(Vec::new()), property_names)?;
                Ok(Self::AllProperties { include })
            }
            (None, Some(_), None) => Ok(Self::PropertyNames),
            (None, None, Some(named)) => Ok(Self::Named(property_names(named)?)),
            _ => Err(DavError::UnexpectedBody(
                "it has one of allprop, propname and prop",
            )),
        }
    }
}

/// The names in an element, each once.
fn property_names(element: &XmlElement) -> Result<Vec<XmlName>, DavError> {
    let mut names = Vec::new();
    let mut named = NamedProperties::default();
    for property in element.elements() {
        named.add(&property.name)?;
        if !names.contains(&property.name) {
            names.push(property.name.clone());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dav::limits::{PROPERTIES_NAMED_MAX, PROPERTY_NAMES_BYTES_MAX};

    fn parse(content: &str) -> Result<PropfindBody, DavError> {
        let body = format!("<D:propfind xmlns:D='DAV:'>{content}</D:propfind>");
        PropfindBody::parse(body.as_bytes())
    }

    #[test]
    fn every_form_is_read() {
        let all = |include| Ok(PropfindBody::AllProperties { include });
        assert_eq!(PropfindBody::parse(b""), all(Vec::new()));
        assert_eq!(parse("<D:allprop/>"), all(Vec::new()));
        assert_eq!(
            parse("<D:allprop/><D:include><D:quota-used-bytes/></D:include>"),
            all(vec![XmlName::dav("quota-used-bytes")])
        );
        assert_eq!(parse("<D:propname/>"), Ok(PropfindBody::PropertyNames));
        assert_eq!(
            parse("<D:prop><D:getetag/><a xmlns='urn:x'/><D:getetag/><b/></D:prop>"),
            Ok(PropfindBody::Named(vec![
                XmlName::dav("getetag"),
                XmlName::new("urn:x", "a"),
                XmlName::new("", "b"),
            ]))
        );
        // An extension beside what is known (RFC 4918 §17).
        let extended = parse("<x xmlns='urn:x'><D:prop/></x><D:propname/>");
        assert_eq!(extended, Ok(PropfindBody::PropertyNames));
    }

    #[test]
    fn other_bodies_are_refused() {
        for content in [
            "",
            "<x/>",
            "<D:allprop/><D:propname/>",
            "<D:prop/><D:propname/>",
            "<D:include/>",
        ] {
            let refused = parse(content).expect_err(content);
            assert_eq!(refused.status(), 400, "{content}");
        }
        for body in [" ", "<propfind/>", "<D:x xmlns:D='DAV:'/>", "<D:propfind>"] {
            let refused = PropfindBody::parse(body.as_bytes()).expect_err(body);
            assert_eq!(refused.status(), 400, "{body}");
        }
        let many = "<D:getetag/>".repeat(PROPERTIES_NAMED_MAX);
        assert!(parse(&format!("<D:prop>{many}</D:prop>")).is_ok());
        let many: String = (0..=PROPERTIES_NAMED_MAX)
            .map(|at| format!("<x{at}/>"))
            .collect();
        let refused = parse(&format!("<D:prop>{many}</D:prop>")).expect_err("too many");
        assert_eq!(refused.status(), 413);
        // Few names, of so many bytes together.
        let long = |bytes: usize| {
            let names = ["a", "b", "c", "d"].map(|it| format!("<{}/>", it.repeat(bytes / 4)));
            let names = names.concat();
            parse(&format!("<D:prop>{names}</D:prop>")).map_err(|error| error.status().as_u16())
        };
        assert!(long(PROPERTY_NAMES_BYTES_MAX).is_ok());
        assert_eq!(long(PROPERTY_NAMES_BYTES_MAX + 4), Err(413));
    }
}
