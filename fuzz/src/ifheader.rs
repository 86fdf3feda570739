//! `If` headers of WebDAV requests.

use alknet_fs::dav::{DavTarget, EntityTag, IfHeader, IfResources, IfState, RequestOrigin};

/// Every resource is in one of two sets of states: no state at all, or all of them.
struct EveryResource {
    is_locked: bool,
}

impl IfResources for EveryResource {
    fn entity_tag(&self, _resource: &DavTarget) -> Option<EntityTag> {
        None
    }

    fn is_locked_by(&self, _resource: &DavTarget, _token: &str) -> bool {
        self.is_locked
    }
}

/// Reads the text as an `If` header, and as the path of a target.
pub fn ifheader(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    if let Ok(DavTarget::Entry(entry)) = DavTarget::parse(text) {
        let again = DavTarget::parse(&entry.href());
        assert_eq!(again, Ok(DavTarget::Entry(entry)));
    }
    let Ok(header) = IfHeader::parse(text) else {
        return false;
    };
    assert!(!header.lists.is_empty());
    assert!(header.lists.iter().all(|it| !it.conditions.is_empty()));
    let tagged = header
        .lists
        .iter()
        .filter(|it| it.resource.is_some())
        .count();
    assert!(tagged == 0 || tagged == header.lists.len());
    let is_negated = |is_negated| {
        let mut lists = header.lists.iter();
        lists.any(|list| list.conditions.iter().all(|it| it.is_negated == is_negated))
    };
    let origin = "node".parse().ok();
    let origin = origin.and_then(|it| RequestOrigin::from_authority(&it));
    if let Some(origin) = origin {
        let target = DavTarget::Root;
        // Without any state exactly the negated conditions hold.
        let unlocked = EveryResource { is_locked: false };
        assert_eq!(header.holds(&target, &origin, &unlocked), is_negated(true));
        let resources = header.resources(&target, &origin);
        assert!(resources.len() <= header.lists.len());
        // Without tags and other servers every token that is not negated holds.
        let are_all_here = tagged == 0 && !header.has_entity_tag();
        let locked = EveryResource { is_locked: true };
        let holds = header.holds(&target, &origin, &locked);
        assert!(!are_all_here || holds == is_negated(false));
    }
    let tokens = header.lock_tokens();
    for token in &tokens {
        let text = token.to_string();
        let mut conditions = header.lists.iter().flat_map(|it| &it.conditions);
        let stands = |state: &IfState| match state {
            IfState::Token(token) => token.eq_ignore_ascii_case(&text),
            IfState::Tag(_) => false,
        };
        assert!(conditions.any(|it| stands(&it.state)), "{text}");
    }
    true
}
