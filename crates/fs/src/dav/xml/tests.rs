use std::sync::Arc;

use alknet_test_support::{alone, peak_bytes};
use proptest::prelude::*;

use super::*;
use crate::dav::limits::{
    XML_ATTRIBUTES_MAX, XML_BODY_BYTES_MAX, XML_DEPTH_MAX, XML_MEMORY_BYTES_MAX,
    XML_NAMESPACE_BYTES_MAX, XML_NAMESPACES_MAX, XML_NODES_MAX,
};
use crate::dav::{DavError, DeadProperties, PropertyPatch};

fn parse(text: &str) -> Result<XmlElement, DavError> {
    XmlElement::parse(text.as_bytes())
}

#[test]
fn namespaces_are_resolved() {
    let root = parse(
        "<?xml version='1.0' encoding='UTF-8'?>\n<!-- a --><D:a xmlns:D='DAV:' xmlns='u&amp;v' D:x='1' y='2'>\
         <b/><c xmlns=''/>t&lt;<![CDATA[<&]]>&#x41;</D:a>\n",
    );
    let root = root.expect("well-formed");
    assert!(root.name.is_dav("a"));
    let names: Vec<_> = root.elements().map(|it| it.name.to_string()).collect();
    assert_eq!(names, ["{u&v}b", "{}c"]);
    assert_eq!(
        root.children.last(),
        Some(&XmlNode::Text("t<<&A".to_owned()))
    );
    let names: Vec<_> = root
        .attributes
        .iter()
        .map(|it| it.name.to_string())
        .collect();
    assert_eq!(names, ["{DAV:}x", "{}y"]);
}

#[test]
fn a_fragment_means_the_same_elsewhere() {
    let text = "<p:a xmlns:p='one' xmlns:q='t\"wo' q:x='&#10;1' xml:lang='de'><b xmlns=''>\r\n &amp; </b><p:c/></p:a>";
    let root = parse(text).expect("well-formed");
    let fragment = root.to_fragment();
    assert_eq!(parse(&fragment), Ok(root.clone()), "{fragment}");
    let within = parse(&format!("<D:prop xmlns:D='DAV:'>{fragment}</D:prop>"));
    let within = within.expect("well-formed");
    assert_eq!(within.elements().next(), Some(&root));
    assert_eq!(root.lang(), Some("de"));
}

#[test]
fn what_is_not_well_formed_is_refused() {
    for text in [
        "",
        " ",
        "text",
        "<a>",
        "</a>",
        "<a></b>",
        "<a/><b/>",
        "<a/>text",
        "<a/>&amp;",
        "<a><![CDATA[x]]>",
        "<a>]]></a>",
        "<a x='1' x='2'/>",
        "<a xmlns:p='u' xmlns:q='u' p:x='1' q:x='2'/>",
        "<a x='<'/>",
        "<a x=1/>",
        "<a x/>",
        "<p:a/>",
        "<a p:x='1'/>",
        // litmus, propfind_invalid2: a prefix cannot be undeclared.
        "<a xmlns:p=''/>",
        "<a xmlns:='u'/>",
        "<a xmlns:xml='u'/>",
        "<a:b:c xmlns:a='u'/>",
        "<1/>",
        "<a>&#0;</a>",
        "<a>&#x1;</a>",
        "<a>\u{1}</a>",
        "<a x='&#1;'/>",
        "<a>&amp</a>",
        "<a><?xml version='1.0'?></a>",
        " <?xml version='1.0'?><a/>",
        "<?xml version='1.0' encoding='latin1'?><a/>",
        "<a><!-- -- --></a>",
    ] {
        let refused = parse(text).expect_err(text);
        assert!(
            matches!(refused, DavError::Malformed(_)),
            "{text}: {refused}"
        );
        assert_eq!(refused.status(), 400);
    }
}

#[test]
fn document_types_and_entities_are_refused() {
    for text in [
        "<!DOCTYPE a><a/>",
        "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
        "<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>",
    ] {
        assert_eq!(parse(text), Err(DavError::DocumentType), "{text}");
    }
    assert_eq!(parse("<a>&b;</a>"), Err(DavError::Entity));
    assert_eq!(parse("<a x='&b;'/>"), Err(DavError::Entity));
    assert_eq!(parse("<a xmlns='&b;'/>"), Err(DavError::Entity));
    assert_eq!(DavError::Entity.status(), 400);
}

#[test]
fn every_limit_holds() {
    let nested = |depth: usize| format!("{}{}", "<a>".repeat(depth), "</a>".repeat(depth));
    assert!(parse(&nested(XML_DEPTH_MAX)).is_ok());
    let deep = Err(DavError::TooDeep {
        limit: XML_DEPTH_MAX,
    });
    assert_eq!(parse(&nested(XML_DEPTH_MAX + 1)), deep);
    assert_eq!(parse(&nested(1000)), deep);

    let wide = |count: usize| format!("<a>{}</a>", "<b/>".repeat(count - 1));
    assert!(parse(&wide(XML_NODES_MAX)).is_ok());
    let refused = parse(&wide(XML_NODES_MAX + 1)).expect_err("too many");
    assert_eq!(refused.status(), 413);

    let attributes = |count: usize| {
        let attributes: String = (0..count).map(|at| format!(" x{at}=''")).collect();
        format!("<a{attributes}/>")
    };
    assert!(parse(&attributes(XML_ATTRIBUTES_MAX)).is_ok());
    let refused = parse(&attributes(XML_ATTRIBUTES_MAX + 1)).expect_err("too many");
    assert_eq!(refused.status(), 413);

    let spaces = |count: usize| format!("<a/>{}", " ".repeat(count - 4));
    assert!(parse(&spaces(XML_BODY_BYTES_MAX)).is_ok());
    let refused = parse(&spaces(XML_BODY_BYTES_MAX + 1)).expect_err("too large");
    assert_eq!(refused.status(), 413);
    let huge = XmlElement::parse(&vec![b'<'; 10 << 20]).expect_err("too large");
    assert_eq!(huge.status(), 413);

    // Declarations of several elements count together.
    let half: String = (0..XML_NAMESPACES_MAX / 2 + 1)
        .map(|at| format!(" xmlns:x{at}='u'"))
        .collect();
    assert!(parse(&format!("<a{half}/>")).is_ok());
    assert!(parse(&format!("<a{half}><b{half}/></a>")).is_err());
}

/// A body in which this many elements are in one namespace of this length.
fn body_with_namespace(bytes: usize, elements: usize) -> String {
    let (namespace, elements) = ("n".repeat(bytes), "<a:b/>".repeat(elements));
    format!("<c xmlns:a='{namespace}'>{elements}</c>")
}

#[test]
fn a_long_namespace_is_refused_before_elements_copy_it() {
    alone(
        "dav::xml::tests::a_long_namespace_is_refused_before_elements_copy_it",
        measure_namespaces,
    );
}

fn measure_namespaces() {
    let bomb = body_with_namespace(230 << 10, 4090);
    assert!(bomb.len() <= XML_BODY_BYTES_MAX, "{}", bomb.len());
    let grown = peak_bytes(|| {
        let refused = parse(&bomb).expect_err("a long namespace");
        assert_eq!(refused.status(), 413);
    });
    assert!(grown <= XML_MEMORY_BYTES_MAX as u64, "{grown} bytes");
    // The dearest bodies that are taken: as many nodes as there may be, with one namespace, and with one for each.
    let shared = body_with_namespace(XML_NAMESPACE_BYTES_MAX, XML_NODES_MAX - 2);
    let own: String = (0..XML_NODES_MAX / 2 - 1)
        .map(|at| format!("<b xmlns='{at:0>100}'/>"))
        .collect();
    let own = format!("<c>{own}</c>");
    for body in [shared, own] {
        assert!(body.len() <= XML_BODY_BYTES_MAX, "{}", body.len());
        let grown = peak_bytes(|| assert!(parse(&body).is_ok()));
        assert!(grown <= XML_MEMORY_BYTES_MAX as u64, "{grown} bytes");
    }
}

#[test]
fn names_of_a_body_share_their_namespace() {
    let root = parse(&body_with_namespace(XML_NAMESPACE_BYTES_MAX, 2)).expect("within the limit");
    let names: Vec<_> = root.elements().map(|it| &it.name.namespace).collect();
    assert_eq!(names[0].len(), XML_NAMESPACE_BYTES_MAX);
    assert!(Arc::ptr_eq(names[0], names[1]));
    let too_long = body_with_namespace(XML_NAMESPACE_BYTES_MAX + 1, 2);
    let refused = parse(&too_long).expect_err("too long");
    assert_eq!(refused.status(), 413);
    // Also where no name is in it, and as references, whose text is read for each name.
    let unused = parse(&body_with_namespace(XML_NAMESPACE_BYTES_MAX + 1, 0));
    assert_eq!(unused.expect_err("too long").status(), 413);
    let references = format!(
        "<a xmlns='{}'/>",
        "&#97;".repeat(XML_NAMESPACE_BYTES_MAX / 4)
    );
    assert_eq!(parse(&references).expect_err("too long").status(), 413);
}

/// What is stored of a body declares its namespaces again and again.
#[test]
fn a_fragment_that_grows_is_given_up() {
    let namespace = "n".repeat(XML_NAMESPACE_BYTES_MAX);
    let elements = "<b a:x=''/>".repeat(2000);
    let root = parse(&format!("<c xmlns:a='{namespace}'>{elements}</c>")).expect("well-formed");
    let whole = root.to_fragment();
    assert!(whole.len() > 2000 * XML_NAMESPACE_BYTES_MAX);
    assert_eq!(root.to_short_fragment(8 << 10), None);
    assert_eq!(root.to_short_fragment(whole.len() - 1), None);
    assert_eq!(root.to_short_fragment(whole.len()), Some(whole));
    let body = format!(
        "<D:propertyupdate xmlns:D='DAV:' xmlns:a='{namespace}'><D:set><D:prop><c>{elements}</c></D:prop></D:set>\
         </D:propertyupdate>"
    );
    let patch = PropertyPatch::parse(body.as_bytes()).expect("a patch");
    let outcome = patch.apply(&DeadProperties::default());
    assert_eq!(outcome.properties, None);
    assert_eq!(outcome.statuses[0].status, 507);
}

proptest! {
    #[test]
    fn any_text_survives_as_content_and_as_attribute(text in "\\PC{0,40}", local in "[a-z][a-z0-9]{0,8}") {
        let mut element = XmlElement::new(XmlName::new("urn:x", &local));
        element.attributes.push(XmlAttribute {
            name: XmlName::new("urn:y", &local),
            value: text.clone(),
        });
        if !text.is_empty() {
            element.children.push(XmlNode::Text(text));
        }
        prop_assert_eq!(parse(&element.to_fragment()), Ok(element));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(root) = XmlElement::parse(&body) {
            prop_assert_eq!(parse(&root.to_fragment()), Ok(root));
        }
    }

    #[test]
    fn no_markup_makes_the_parser_panic(text in "[<>/a&;:='! x\\[\\]?-]{0,60}") {
        if let Ok(root) = parse(&text) {
            prop_assert_eq!(parse(&root.to_fragment()), Ok(root));
        }
    }
}
