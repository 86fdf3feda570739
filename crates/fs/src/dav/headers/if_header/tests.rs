use proptest::prelude::*;

use super::*;
use crate::dav::DavError;
use crate::dav::limits::{HEADER_BYTES_MAX, IF_CONDITIONS_MAX};
use crate::dav::target::{DavTarget, RequestOrigin};

const TOKEN: &str = "urn:uuid:00010203-0405-4607-8809-0a0b0c0d0e0f";
const OTHER: &str = "urn:uuid:10010203-0405-4607-8809-0a0b0c0d0e0f";

/// `/fs/docs/a` has version `"v1"` and a lock with [`TOKEN`]; nothing else is there.
struct OneLockedFile;

impl OneLockedFile {
    fn is_it(resource: &DavTarget) -> bool {
        DavTarget::parse("/fs/docs/a").as_ref() == Ok(resource)
    }
}

impl IfResources for OneLockedFile {
    fn entity_tag(&self, resource: &DavTarget) -> Option<EntityTag> {
        let tag = Self::is_it(resource).then(|| EntityTag::parse("\"v1\""));
        tag.flatten()
    }

    fn is_locked_by(&self, resource: &DavTarget, token: &str) -> bool {
        Self::is_it(resource) && token == TOKEN
    }
}

fn origin() -> RequestOrigin {
    let authority = "node".parse().expect("an authority");
    RequestOrigin::from_authority(&authority).expect("an origin")
}

fn holds(text: &str, path: &str) -> bool {
    let header = IfHeader::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let target = DavTarget::parse(path).expect("a resource");
    header.holds(&target, &origin(), &OneLockedFile)
}

#[test]
fn the_examples_of_the_standard_are_read() {
    // RFC 4918 §10.4.6 to §10.4.11.
    for (text, lists, conditions) in [
        ("(<urn:uuid:1> [\"I am an ETag\"])", 0, 0),
        (
            "(<urn:uuid:1> [\"I-am-an-ETag\"]) ([\"I-am-another\"])",
            2,
            3,
        ),
        ("(Not <urn:uuid:1> <urn:uuid:2>)", 1, 2),
        ("(<urn:uuid:1>) (Not <DAV:no-lock>)", 2, 2),
        (
            "</resource1> (<urn:uuid:1> [W/\"A weak ETag\"]) ([\"strong ETag\"])",
            0,
            0,
        ),
        (
            "</resource1> (<urn:uuid:1> [W/\"weak\"]) ([\"strong\"])",
            2,
            3,
        ),
        ("<http://www.example.com/specs/> (<urn:uuid:1>)", 1, 1),
        (
            "</specs/rfc2518.doc> ([\"4217\"])</specs/a>(Not [\"4217\"])",
            2,
            2,
        ),
    ] {
        let parsed = IfHeader::parse(text).ok();
        let count = parsed.as_ref().map_or(0, |it| it.lists.len());
        assert_eq!(count, lists, "{text}");
        let all = parsed
            .iter()
            .flat_map(|it| &it.lists)
            .map(|it| it.conditions.len());
        assert_eq!(all.sum::<usize>(), conditions, "{text}");
    }
}

#[test]
fn lists_are_alternatives_of_conditions() {
    for (text, expected) in [
        (format!("(<{TOKEN}>)"), true),
        (format!("(<{OTHER}>)"), false),
        (format!("(<{TOKEN}> [\"v1\"])"), true),
        (format!("(<{TOKEN}> [\"v2\"])"), false),
        (format!("(<{TOKEN}>[\"v2\"])([\"v1\"])"), true),
        (format!("(<{TOKEN}> Not [\"v2\"])"), true),
        (format!("(NOT <{TOKEN}>)"), false),
        (format!("(<{OTHER}>) (Not <DAV:no-lock>)"), true),
        ("([W/\"v1\"])".to_owned(), false),
        ("(<DAV:no-lock>)".to_owned(), false),
    ] {
        assert_eq!(holds(&text, "/fs/docs/a"), expected, "{text}");
    }
    // Nothing is there, so nothing is its state.
    assert!(!holds("([\"v1\"])", "/fs/docs/b"));
    assert!(holds("(Not [\"v1\"])", "/fs/docs/b"));
}

#[test]
fn lists_with_a_resource_are_about_that_one() {
    let path = "/fs/docs/b";
    for (text, expected) in [
        (format!("</fs/docs/a> (<{TOKEN}>)"), true),
        (
            format!("<https://node/fs/docs/a> (<{TOKEN}> [\"v1\"])"),
            true,
        ),
        (format!("</fs/docs/b> (<{TOKEN}>)"), false),
        (
            format!("</fs/docs/b> (<{TOKEN}>) </fs/docs/a> (<{OTHER}>) ([\"v1\"])"),
            true,
        ),
        // No resource of this server: in no state.
        (format!("<https://other/fs/docs/a> (<{TOKEN}>)"), false),
        (format!("<https://other/fs/docs/a> (Not <{TOKEN}>)"), true),
        (format!("</fs/docs/../a> (<{TOKEN}>)"), false),
    ] {
        assert_eq!(holds(&text, path), expected, "{text}");
    }
    let header = IfHeader::parse("</fs/docs/a> ([\"x\"]) ([\"y\"]) <https://other/a> ([\"z\"])");
    let target = DavTarget::parse(path).expect("a resource");
    let resources = header.expect("valid").resources(&target, &origin());
    assert_eq!(
        resources,
        [DavTarget::parse("/fs/docs/a").expect("a resource")]
    );
}

#[test]
fn tokens_count_wherever_they_stand() {
    let text = format!("(<{TOKEN}>) (Not <{OTHER}> <{TOKEN}>) (<opaquelocktoken:x> [\"v\"])");
    let header = IfHeader::parse(&text).expect("valid");
    let tokens: Vec<_> = header
        .lock_tokens()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(tokens, [TOKEN, OTHER]);
    assert!(header.has_entity_tag());
    assert!(!IfHeader::parse("(<a:b>)").expect("valid").has_entity_tag());
}

#[test]
fn other_texts_are_refused() {
    for text in [
        "",
        "()",
        "(<a:b>",
        "(<a:b",
        "<a:b>",
        "(a:b)",
        "(<>)",
        "(< a:b>)",
        "(<a b>)",
        "([v1])",
        "([\"v1\")",
        "([\"v1\" ])",
        "(Not)",
        "(Not Not <a:b>)",
        "(<a:b>) junk",
        "(<a:b>),(<c:d>)",
        // Lists without and with a resource do not occur together.
        "(<a:b>) </fs/docs/a> (<a:b>)",
        "</fs/docs/a> </fs/docs/b> (<a:b>)",
        "</fs/docs/a> (<a:b>) </fs/docs/b>",
    ] {
        let refused = IfHeader::parse(text).expect_err(text);
        assert_eq!(refused.status(), 400, "{text}");
    }
}

#[test]
fn every_limit_holds() {
    let conditions = |count| format!("({})", "<a:b>".repeat(count));
    assert!(IfHeader::parse(&conditions(IF_CONDITIONS_MAX)).is_ok());
    assert!(IfHeader::parse(&conditions(IF_CONDITIONS_MAX + 1)).is_err());
    // In many lists as well.
    let lists = "(<a:b>)".repeat(IF_CONDITIONS_MAX + 1);
    assert!(IfHeader::parse(&lists).is_err());
    let long = format!("(<a:{}>)", "b".repeat(HEADER_BYTES_MAX));
    let refused = DavError::header("if", "it is too long");
    assert_eq!(IfHeader::parse(&long), Err(refused));
}

/// The header as text again.
fn show(header: &IfHeader) -> String {
    let mut text = String::new();
    let mut resource = &None;
    for list in &header.lists {
        if let Some(uri) = list
            .resource
            .as_ref()
            .filter(|_| &list.resource != resource)
        {
            text.push_str(&format!("<{uri}> "));
        }
        resource = &list.resource;
        let conditions = list.conditions.iter().map(|it| {
            let not = if it.is_negated { "Not " } else { "" };
            match &it.state {
                IfState::Token(token) => format!("{not}<{token}>"),
                IfState::Tag(tag) => format!("{not}[{tag}]"),
            }
        });
        let conditions: Vec<_> = conditions.collect();
        text.push_str(&format!("({}) ", conditions.join(" ")));
    }
    text
}

fn any_condition() -> impl Strategy<Value = IfCondition> {
    let token = "[a-z]{1,5}:[!-;=?-~]{1,10}".prop_map(IfState::Token);
    let tag = "(W/)?\"[!#-~]{0,10}\"";
    let tag = tag.prop_map(|text| IfState::Tag(EntityTag::parse(&text).expect("a tag")));
    (any::<bool>(), prop_oneof![token, tag])
        .prop_map(|(is_negated, state)| IfCondition { is_negated, state })
}

proptest! {
    #[test]
    fn a_header_survives_its_text(
        lists in prop::collection::vec((0..3_usize, prop::collection::vec(any_condition(), 1..5)), 1..6),
        is_tagged in any::<bool>(),
    ) {
        let lists = lists.into_iter().map(|(at, conditions)| IfList {
            resource: is_tagged.then(|| format!("/fs/docs/{at}")),
            conditions,
        });
        let header = IfHeader { lists: lists.collect() };
        prop_assert_eq!(IfHeader::parse(&show(&header)), Ok(header));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[()<>\\[\\]\"WNot/ a:\u{e4}]{0,40}") {
        if let Ok(header) = IfHeader::parse(&text) {
            prop_assert_eq!(IfHeader::parse(&show(&header)), Ok(header));
        }
    }
}
