//! XML bodies of WebDAV requests.

use alknet_fs::dav::limits::{XML_BODY_BYTES_MAX, XML_DEPTH_MAX, XML_NODES_MAX};
use alknet_fs::dav::{
    DavError, DeadProperties, LockBody, PropertyPatch, PropertyPatchOutcome, PropfindBody,
    XmlElement, XmlNode,
};

/// Reads the same bytes as the body of each method.
pub fn dav(data: &[u8]) -> bool {
    let parsed = XmlElement::parse(data);
    if let Ok(root) = &parsed {
        assert!(data.len() <= XML_BODY_BYTES_MAX);
        assert!(depth(root) <= XML_DEPTH_MAX && nodes(root) <= XML_NODES_MAX);
        reread(root);
    }
    let taken = [
        PropfindBody::parse(data).map(drop),
        LockBody::parse(data).map(drop),
        PropertyPatch::parse(data)
            .map(|patch| check_outcome(&patch.apply(&DeadProperties::default()))),
    ];
    for refused in taken.iter().filter_map(|it| it.as_ref().err()) {
        assert!(refused.status().is_client_error(), "{refused}");
        // Empty bodies have a meaning, and no other text that is no XML.
        assert!(parsed.is_ok() || data.is_empty() || parsed.as_ref().err() == Some(refused));
    }
    taken.iter().any(Result::is_ok)
}

/// What the server writes is what it read, except where the declarations of a fragment take it over a limit.
fn reread(root: &XmlElement) {
    let text = root.to_fragment();
    match XmlElement::parse(text.as_bytes()) {
        Ok(again) => assert_eq!(&again, root, "{text}"),
        Err(DavError::BodyTooLarge { .. } | DavError::TooMany { .. }) => {}
        // More declarations of namespaces than the reader takes.
        Err(DavError::Malformed(_)) if text.matches("xmlns").count() > 64 => {}
        Err(error) => panic!("{error}: {text}"),
    }
}

fn check_outcome(outcome: &PropertyPatchOutcome) {
    let is_done = outcome.statuses.iter().all(|it| it.status.is_success());
    assert_eq!(outcome.properties.is_some(), is_done);
    if let Some(properties) = &outcome.properties {
        let row = properties.to_xattr();
        let read = DeadProperties::from_xattr(row.as_deref());
        assert_eq!(read.as_ref(), Ok(properties));
    }
}

fn depth(element: &XmlElement) -> usize {
    element.elements().map(depth).max().unwrap_or_default() + 1
}

fn nodes(element: &XmlElement) -> usize {
    let within = element.children.iter().map(|node| match node {
        XmlNode::Element(element) => nodes(element),
        XmlNode::Text(text) => {
            assert!(!text.is_empty());
            0
        }
    });
    within.sum::<usize>() + element.attributes.len() + 1
}
