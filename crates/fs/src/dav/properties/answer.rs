//! Which properties of an entry a PROPFIND gets (RFC 4918 §9.1).

use http::StatusCode;

use crate::dav::body::PropfindBody;
use crate::dav::multistatus::PropertyStatus;
use crate::dav::xml::XmlName;

use super::{DeadProperties, DeadProperty, LiveProperty, PropertyElement, PropertySource};

/// What the response to a PROPFIND says of an entry.
#[must_use]
pub fn find_properties(
    body: &PropfindBody,
    entry: &PropertySource<'_>,
    dead: &DeadProperties,
) -> Vec<PropertyStatus> {
    let found = |element| PropertyStatus::new(StatusCode::OK, element);
    match body {
        PropfindBody::Named(names) => {
            PropertyStatus::group(names.iter().map(|name| find_named(name, entry, dead)))
        }
        PropfindBody::AllProperties { include } => {
            let live = LiveProperty::ALL
                .into_iter()
                .filter(|it| it.is_in_allprop());
            let live = live.filter_map(|it| it.find(entry)).map(found);
            let dead_ones = dead.iter().map(PropertyElement::dead).map(found);
            let is_new = |name: &&XmlName| {
                let live = LiveProperty::from_name(name);
                live.map_or_else(|| dead.get(name).is_none(), |it| !it.is_in_allprop())
            };
            let included = include.iter().filter(is_new);
            let included = included.map(|name| find_named(name, entry, dead));
            PropertyStatus::group(live.chain(dead_ones).chain(included))
        }
        PropfindBody::PropertyNames => {
            let live = LiveProperty::ALL.into_iter();
            let live = live.filter(|it| it.find(entry).is_some());
            let live = live.map(|it| PropertyElement::empty(&XmlName::dav(it.local_name())));
            let names = dead
                .iter()
                .map(DeadProperty::name)
                .map(PropertyElement::empty);
            PropertyStatus::group(live.chain(names).map(found))
        }
    }
}

fn find_named(name: &XmlName, entry: &PropertySource<'_>, dead: &DeadProperties) -> PropertyStatus {
    let element = match LiveProperty::from_name(name) {
        Some(live) => live.find(entry),
        None => dead.get(name).map(PropertyElement::dead),
    };
    match element {
        Some(element) => PropertyStatus::new(StatusCode::OK, element),
        None => PropertyStatus::new(StatusCode::NOT_FOUND, PropertyElement::empty(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dav::xml::XmlElement;

    const DIRECTORY: PropertySource<'_> = PropertySource {
        name: "docs",
        hash: None,
        size: 0,
        modified_ns: 0,
        created_ms: None,
        locks: &[],
        lock_roots: &[],
        now_ms: 0,
        quota: Some(crate::dav::QuotaUse {
            used: 1,
            available: Some(2),
        }),
    };

    fn find(body: &PropfindBody) -> Vec<(u16, Vec<String>)> {
        let mut dead = DeadProperties::default();
        let element = XmlElement::parse(b"<a xmlns='urn:x'>1</a>").expect("well-formed");
        dead.set(DeadProperty::from_element(&element))
            .expect("room");
        let found = find_properties(body, &DIRECTORY, &dead).into_iter();
        let texts = |it: &PropertyStatus| {
            let texts = it.properties.iter().map(|it| it.as_str().to_owned());
            texts.collect::<Vec<_>>()
        };
        found.map(|it| (it.status.as_u16(), texts(&it))).collect()
    }

    #[test]
    fn named_properties_are_found_or_missing() {
        let names = ["quota-used-bytes", "getetag", "no-such"].map(XmlName::dav);
        let mut names = names.to_vec();
        names.push(XmlName::new("urn:x", "a"));
        names.push(XmlName::new("", "b"));
        let found = find(&PropfindBody::Named(names));
        assert_eq!(
            found,
            [
                (
                    200,
                    vec![
                        "<D:quota-used-bytes>1</D:quota-used-bytes>".to_owned(),
                        "<a xmlns=\"urn:x\">1</a>".to_owned(),
                    ]
                ),
                (
                    404,
                    vec![
                        "<D:getetag/>".to_owned(),
                        "<D:no-such/>".to_owned(),
                        "<b/>".to_owned()
                    ]
                ),
            ]
        );
    }

    #[test]
    fn all_properties_are_those_that_the_entry_has() {
        let include = vec![
            XmlName::dav("quota-available-bytes"),
            XmlName::dav("displayname"),
        ];
        let found = find(&PropfindBody::AllProperties { include });
        let [(200, texts)] = &found[..] else {
            panic!("{found:?}");
        };
        let count = |text: &str| texts.iter().filter(|it| it.contains(text)).count();
        assert_eq!(count("displayname"), 1);
        assert_eq!(count("urn:x"), 1);
        assert_eq!(count("quota-available-bytes"), 1);
        assert_eq!(count("quota-used-bytes"), 0);
        assert_eq!(count("getetag"), 0);
    }

    #[test]
    fn names_come_without_values() {
        let found = find(&PropfindBody::PropertyNames);
        let [(200, texts)] = &found[..] else {
            panic!("{found:?}");
        };
        assert!(texts.iter().all(|it| it.ends_with("/>")), "{texts:?}");
        assert!(texts.contains(&"<D:quota-used-bytes/>".to_owned()));
        assert!(texts.contains(&"<a xmlns=\"urn:x\"/>".to_owned()));
    }
}
