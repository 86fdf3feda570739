//! The body of PROPPATCH (RFC 4918 §9.2 and §14.19), and what it makes of the properties of an entry.

use http::StatusCode;

use crate::dav::condition::DavCondition;
use crate::dav::error::DavError;
use crate::dav::multistatus::PropertyStatus;
use crate::dav::properties::{
    DeadProperties, DeadProperty, DeadPropertyError, LiveProperty, PropertyElement,
};
use crate::dav::xml::XmlName;

use super::{NamedProperties, parse_root};

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PropertyChange {
    /// The entry gets this property.
    Set(DeadProperty),
    /// The entry has this property no more.
    Remove(XmlName),
}

impl PropertyChange {
    /// The property that changes.
    #[must_use]
    pub const fn name(&self) -> &XmlName {
        match self {
            Self::Set(property) => property.name(),
            Self::Remove(name) => name,
        }
    }
}

/// The instructions of a PROPPATCH, in the order of the document. All of them take effect, or none does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PropertyPatch {
    changes: Vec<PropertyChange>,
}

/// What a PROPPATCH comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PropertyPatchOutcome {
    /// The properties after it; `None` if nothing changes, because an instruction failed.
    pub properties: Option<DeadProperties>,
    /// What the response says of each property.
    pub statuses: Vec<PropertyStatus>,
}

impl PropertyPatch {
    /// Parses the body.
    ///
    /// # Errors
    /// The body is no XML within the limits, or not that of a PROPPATCH.
    pub fn parse(body: &[u8]) -> Result<Self, DavError> {
        let root = parse_root(body, "propertyupdate")?;
        let mut changes = Vec::new();
        let mut named = NamedProperties::default();
        for instruction in root.elements() {
            let is_set = instruction.name.is_dav("set");
            if !is_set && !instruction.name.is_dav("remove") {
                continue;
            }
            let properties = instruction.dav_element("prop");
            let properties = properties.ok_or(DavError::UnexpectedBody(
                "an instruction without properties",
            ))?;
            // The language is that of the nearest element around the property (RFC 4918 §4.3).
            let around = [properties, instruction, &root];
            let lang = around.iter().find_map(|it| it.lang());
            for property in properties.elements() {
                named.add(&property.name)?;
                changes.push(if is_set {
                    let mut property = property.clone();
                    if let Some(lang) = lang {
                        property.inherit_lang(lang);
                    }
                    PropertyChange::Set(DeadProperty::from_element(&property))
                } else {
                    PropertyChange::Remove(property.name.clone())
                });
            }
        }
        if changes.is_empty() {
            return Err(DavError::UnexpectedBody("it changes no property"));
        }
        Ok(Self { changes })
    }

    /// The instructions.
    #[must_use]
    pub fn changes(&self) -> &[PropertyChange] {
        &self.changes
    }

    /// Carries the instructions out on the dead properties of an entry.
    #[must_use]
    pub fn apply(&self, before: &DeadProperties) -> PropertyPatchOutcome {
        let mut properties = before.clone();
        let mut refused: Vec<(&XmlName, StatusCode, Option<DavCondition>)> = Vec::new();
        for change in &self.changes {
            if LiveProperty::from_name(change.name()).is_some() {
                let condition = DavCondition::CannotModifyProtectedProperty;
                refused.push((change.name(), condition.status(), Some(condition)));
                continue;
            }
            match change {
                PropertyChange::Set(property) => match properties.set(property.clone()) {
                    Ok(()) => {}
                    Err(
                        DeadPropertyError::PropertyTooLarge
                        | DeadPropertyError::TooMany
                        | DeadPropertyError::TooLarge,
                    ) => {
                        refused.push((change.name(), StatusCode::INSUFFICIENT_STORAGE, None));
                    }
                    Err(DeadPropertyError::ForeignAttributes) => {
                        refused.push((change.name(), StatusCode::CONFLICT, None));
                    }
                },
                // The removal of a property that is not there is no error (RFC 4918 §14.23).
                PropertyChange::Remove(name) => properties.remove(name),
            }
        }
        let is_done = refused.is_empty();
        let statuses = self.names().into_iter().map(|name| {
            let found = refused.iter().find(|(refused, ..)| *refused == name);
            let (status, condition) = match found {
                Some((_, status, condition)) => (*status, condition.clone()),
                None if is_done => (StatusCode::OK, None),
                // Only because of another property (RFC 4918 §9.2.1).
                None => (StatusCode::FAILED_DEPENDENCY, None),
            };
            PropertyStatus {
                status,
                condition,
                properties: vec![PropertyElement::empty(name)],
            }
        });
        PropertyPatchOutcome {
            statuses: PropertyStatus::group(statuses),
            properties: is_done.then_some(properties),
        }
    }

    /// The names of all properties, each once.
    fn names(&self) -> Vec<&XmlName> {
        let mut names: Vec<&XmlName> = Vec::new();
        for change in &self.changes {
            if !names.contains(&change.name()) {
                names.push(change.name());
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(content: &str) -> Result<PropertyPatch, DavError> {
        let body = format!("<D:propertyupdate xmlns:D='DAV:'>{content}</D:propertyupdate>");
        PropertyPatch::parse(body.as_bytes())
    }

    fn statuses(outcome: &PropertyPatchOutcome) -> Vec<(u16, usize)> {
        let each = outcome.statuses.iter();
        each.map(|it| (it.status.as_u16(), it.properties.len()))
            .collect()
    }

    #[test]
    fn instructions_are_carried_out_in_order() {
        let patch = parse(
            "<D:set><D:prop><a xmlns='urn:x'>1</a></D:prop></D:set>\
             <D:set><D:prop><b xmlns='urn:x'/><a xmlns='urn:x'>2</a></D:prop></D:set>\
             <D:remove><D:prop><b xmlns='urn:x'/><c xmlns='urn:x'/></D:prop></D:remove>",
        );
        let patch = patch.expect("a patch");
        assert_eq!(patch.changes().len(), 5);
        let outcome = patch.apply(&DeadProperties::default());
        assert_eq!(statuses(&outcome), [(200, 3)]);
        let properties = outcome.properties.expect("done");
        let names: Vec<_> = properties.iter().map(|it| it.xml().to_owned()).collect();
        assert_eq!(names, ["<a xmlns=\"urn:x\">2</a>"]);
    }

    #[test]
    fn a_live_property_lets_all_of_it_fail() {
        let patch =
            parse("<D:set><D:prop><a xmlns='urn:x'>1</a><D:getetag>x</D:getetag></D:prop></D:set>");
        let outcome = patch.expect("a patch").apply(&DeadProperties::default());
        assert_eq!(outcome.properties, None);
        assert_eq!(statuses(&outcome), [(424, 1), (403, 1)]);
        assert_eq!(
            outcome.statuses[1].condition,
            Some(DavCondition::CannotModifyProtectedProperty)
        );
    }

    #[test]
    fn a_property_without_room_lets_all_of_it_fail() {
        let long = "x".repeat(crate::dav::limits::DEAD_PROPERTY_BYTES_MAX);
        let patch = parse(&format!(
            "<D:set><D:prop><a xmlns='urn:x'/><b xmlns='urn:x'>{long}</b></D:prop></D:set>"
        ));
        let outcome = patch.expect("a patch").apply(&DeadProperties::default());
        assert_eq!(outcome.properties, None);
        assert_eq!(statuses(&outcome), [(424, 1), (507, 1)]);
    }

    #[test]
    fn the_language_around_a_property_is_kept() {
        let patch = parse(
            "<D:set xml:lang='en'><D:prop xml:lang='de'><a xmlns='urn:x'>1</a></D:prop></D:set>",
        );
        let outcome = patch.expect("a patch").apply(&DeadProperties::default());
        let properties = outcome.properties.expect("done");
        let xml = properties.iter().next().map(DeadProperty::xml);
        assert_eq!(xml, Some("<a xmlns=\"urn:x\" xml:lang=\"de\">1</a>"));
    }

    #[test]
    fn a_body_without_a_change_is_refused() {
        for content in ["", "<D:set/>", "<D:set><D:prop/></D:set>", "<x/>"] {
            let refused = parse(content).expect_err(content);
            assert_eq!(refused.status(), 400, "{content}");
        }
        assert!(PropertyPatch::parse(b"").is_err());
    }
}
