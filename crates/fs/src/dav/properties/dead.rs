//! Properties that clients set and the server only keeps.

use alknet_store::limits::XATTR_BYTES_MAX;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::dav::limits::{DEAD_PROPERTIES_MAX, DEAD_PROPERTY_BYTES_MAX};
use crate::dav::xml::{XmlElement, XmlName};

/// A property that a client set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadProperty {
    name: XmlName,
    xml: String,
}

/// The dead properties of an entry, in the order in which they were set first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadProperties {
    properties: Vec<DeadProperty>,
    /// Extended attributes that are no properties.
    others: Map<String, Value>,
}

/// Why a property is not kept, or not read.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeadPropertyError {
    /// The property is too large.
    #[error("a property has at most {DEAD_PROPERTY_BYTES_MAX} bytes")]
    PropertyTooLarge,
    /// The entry has too many.
    #[error("an entry has at most {DEAD_PROPERTIES_MAX} properties")]
    TooMany,
    /// All of them are too large together.
    #[error("the properties of an entry have at most {XATTR_BYTES_MAX} bytes")]
    TooLarge,
    /// Another program wrote the extended attributes.
    #[error("the extended attributes of the entry are not those of a property")]
    ForeignAttributes,
}

/// The extended attributes of an entry, as its row has them.
#[derive(Serialize, Deserialize)]
struct StoredAttributes {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dav: Vec<StoredProperty>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
struct StoredProperty {
    ns: String,
    name: String,
    xml: String,
}

impl DeadProperty {
    /// The property that an element within `D:prop` means. One that is too large has no text, and no entry takes it.
    #[must_use]
    pub fn from_element(element: &XmlElement) -> Self {
        Self {
            name: element.name.clone(),
            xml: element
                .to_short_fragment(DEAD_PROPERTY_BYTES_MAX)
                .unwrap_or_default(),
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &XmlName {
        &self.name
    }

    /// The element with its value, for a document without a default namespace.
    #[must_use]
    pub fn xml(&self) -> &str {
        &self.xml
    }
}

impl DeadProperties {
    /// Reads the extended attributes of an entry.
    ///
    /// # Errors
    /// [`DeadPropertyError::ForeignAttributes`]: they have another form.
    pub fn from_xattr(xattr: Option<&[u8]>) -> Result<Self, DeadPropertyError> {
        let Some(xattr) = xattr else {
            return Ok(Self::default());
        };
        let stored: StoredAttributes =
            serde_json::from_slice(xattr).map_err(|_| DeadPropertyError::ForeignAttributes)?;
        let mut read = Self {
            properties: Vec::with_capacity(stored.dav.len().min(DEAD_PROPERTIES_MAX)),
            others: stored.others,
        };
        for property in stored.dav {
            // Peers write attributes as well, and a text that is not this element would break each response.
            let element = XmlElement::parse(property.xml.as_bytes());
            let element = element.map_err(|_| DeadPropertyError::ForeignAttributes)?;
            let name = XmlName::new(&property.ns, &property.name);
            if element.name != name {
                return Err(DeadPropertyError::ForeignAttributes);
            }
            read.set(DeadProperty::from_element(&element))?;
        }
        Ok(read)
    }

    /// The extended attributes with these properties; `None` if there are no attributes at all.
    #[must_use]
    pub fn to_xattr(&self) -> Option<Vec<u8>> {
        if self.properties.is_empty() && self.others.is_empty() {
            return None;
        }
        let stored = StoredAttributes {
            dav: self.properties.iter().map(stored_form).collect(),
            others: self.others.clone(),
        };
        // Maps with keys of text and texts have a form in JSON.
        serde_json::to_vec(&stored).ok()
    }

    /// Sets a property. After an error the properties are as before.
    ///
    /// # Errors
    /// The property is above a limit.
    pub fn set(&mut self, property: DeadProperty) -> Result<(), DeadPropertyError> {
        // The text of an element is never empty.
        if property.xml.is_empty() || property.xml.len() > DEAD_PROPERTY_BYTES_MAX {
            return Err(DeadPropertyError::PropertyTooLarge);
        }
        // A fragment declares more namespaces than the document that it comes from, which can take it over a limit of
        // the parser. It would not be readable again.
        if XmlElement::parse(property.xml.as_bytes()).is_err() {
            return Err(DeadPropertyError::PropertyTooLarge);
        }
        let mut changed = self.clone();
        let mut names = changed.properties.iter().map(|it| &it.name);
        match names.position(|it| *it == property.name) {
            Some(at) => changed.properties[at] = property,
            None if changed.properties.len() >= DEAD_PROPERTIES_MAX => {
                return Err(DeadPropertyError::TooMany);
            }
            None => changed.properties.push(property),
        }
        if changed
            .to_xattr()
            .is_some_and(|it| it.len() > XATTR_BYTES_MAX)
        {
            return Err(DeadPropertyError::TooLarge);
        }
        *self = changed;
        Ok(())
    }

    /// Removes a property, if it is there.
    pub fn remove(&mut self, name: &XmlName) {
        self.properties.retain(|it| it.name != *name);
    }

    /// The property with this name.
    #[must_use]
    pub fn get(&self, name: &XmlName) -> Option<&DeadProperty> {
        self.properties.iter().find(|it| it.name == *name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &DeadProperty> {
        self.properties.iter()
    }
}

fn stored_form(property: &DeadProperty) -> StoredProperty {
    StoredProperty {
        ns: property.name.namespace.to_string(),
        name: property.name.local.clone(),
        xml: property.xml.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn property(local: &str, text: &str) -> DeadProperty {
        let xml = format!("<{local} xmlns='urn:x'>{text}</{local}>");
        let element = XmlElement::parse(xml.as_bytes()).expect("well-formed");
        DeadProperty::from_element(&element)
    }

    #[test]
    fn properties_survive_their_row() {
        let mut properties = DeadProperties::default();
        assert_eq!(properties.to_xattr(), None);
        properties.set(property("a", "1")).expect("room");
        properties
            .set(property("b", "<c xmlns=''>&lt;</c>"))
            .expect("room");
        properties.set(property("a", "2")).expect("room");
        let row = properties.to_xattr().expect("attributes");
        let read = DeadProperties::from_xattr(Some(&row)).expect("readable");
        assert_eq!(read, properties);
        let name = XmlName::new("urn:x", "a");
        assert_eq!(read.get(&name), Some(&property("a", "2")));
        let mut read = read;
        read.remove(&name);
        assert_eq!(read.iter().count(), 1);
    }

    #[test]
    fn attributes_of_other_programs_are_kept_or_left_alone() {
        let others = br#"{"user.mime":"text/plain"}"#;
        let mut properties = DeadProperties::from_xattr(Some(others)).expect("readable");
        properties.set(property("a", "1")).expect("room");
        properties.remove(&XmlName::new("urn:x", "a"));
        assert_eq!(properties.to_xattr().as_deref(), Some(&others[..]));
        for foreign in [
            &b"\xff\x00"[..],
            b"[]",
            br#"{"dav":[{"ns":"urn:x","name":"a","xml":"</D:prop>"}]}"#,
            br#"{"dav":[{"ns":"urn:x","name":"a","xml":"<b xmlns='urn:x'/>"}]}"#,
        ] {
            let refused = DeadProperties::from_xattr(Some(foreign));
            assert_eq!(refused, Err(DeadPropertyError::ForeignAttributes));
        }
    }

    #[test]
    fn a_property_that_could_not_be_read_again_is_refused() {
        let count = crate::dav::limits::XML_ATTRIBUTES_MAX - 2;
        let attributes: String = (0..count).map(|at| format!(" p:x{at}=''")).collect();
        let xml = format!("<a xmlns='urn:x' xmlns:p='urn:p'{attributes}/>");
        let element = XmlElement::parse(xml.as_bytes()).expect("within the limits");
        let refused = DeadProperties::default().set(DeadProperty::from_element(&element));
        assert_eq!(refused, Err(DeadPropertyError::PropertyTooLarge));
    }

    #[test]
    fn every_limit_holds() {
        let long = "x".repeat(DEAD_PROPERTY_BYTES_MAX - 100);
        let mut properties = DeadProperties::default();
        let too_long = property("a", &"x".repeat(DEAD_PROPERTY_BYTES_MAX));
        assert_eq!(
            properties.set(too_long),
            Err(DeadPropertyError::PropertyTooLarge)
        );
        properties.set(property("a", &long)).expect("room");
        properties.set(property("b", &long)).expect("room");
        let before = properties.clone();
        let third = properties.set(property("c", &long));
        assert_eq!(third, Err(DeadPropertyError::TooLarge));
        assert_eq!(properties, before);

        let mut properties = DeadProperties::default();
        for at in 0..DEAD_PROPERTIES_MAX {
            properties
                .set(property(&format!("p{at}"), ""))
                .expect("room");
        }
        assert_eq!(
            properties.set(property("q", "")),
            Err(DeadPropertyError::TooMany)
        );
        properties
            .set(property("p0", "changed"))
            .expect("one of them");
    }
}
