//! Locks as properties (RFC 4918 §15.8 and §15.10).

use alknet_store::limits::LOCK_NOTE_BYTES_MAX;
use alknet_store::{EntryLock, LockDepth, LockKind};

use crate::dav::xml::{XmlElement, escape_text};

/// The content of `supportedlock`.
pub(super) const SUPPORTED_LOCK: &str = "<D:lockentry><D:lockscope><D:exclusive/></D:lockscope>\
     <D:locktype><D:write/></D:locktype></D:lockentry>";

/// The content of `lockdiscovery`. `roots` has the URI reference of the entry that each lock was taken on. Advisory locks
/// are not part of WebDAV.
pub(in crate::dav) fn lock_discovery(locks: &[EntryLock], roots: &[String], now_ms: u64) -> String {
    let locks = locks.iter().zip(roots);
    let locks = locks.filter(|(lock, _)| lock.kind == LockKind::Exclusive);
    locks
        .map(|(lock, root)| active_lock(lock, root, now_ms))
        .collect()
}

/// The element `activelock` (RFC 4918 §14.1), whose prefix `D` the document declares.
#[must_use]
pub fn active_lock(lock: &EntryLock, root: &str, now_ms: u64) -> String {
    let depth = match lock.depth {
        LockDepth::Zero => "0",
        LockDepth::Infinity => "infinity",
    };
    let left = lock.until_ms.saturating_sub(now_ms) / 1000;
    // The store has the element that the client sent. Operations can give a lock any other text.
    let element = XmlElement::parse(lock.note.as_bytes()).ok();
    let element = element.filter(|it| it.name.is_dav("owner"));
    // Shown for each entry that the lock covers: a note of an operation can be an element whose fragment is a hundred times
    // as long, and is a text then.
    let element = element.and_then(|it| it.to_short_fragment(LOCK_NOTE_BYTES_MAX));
    let owner = match element {
        _ if lock.note.is_empty() => String::new(),
        Some(element) => element,
        None => format!("<D:owner>{}</D:owner>", escape_text(&lock.note)),
    };
    format!(
        "<D:activelock><D:locktype><D:write/></D:locktype><D:lockscope><D:exclusive/></D:lockscope>\
         <D:depth>{depth}</D:depth>{owner}<D:timeout>Second-{left}</D:timeout>\
         <D:locktoken><D:href>{}</D:href></D:locktoken>\
         <D:lockroot><D:href>{}</D:href></D:lockroot></D:activelock>",
        lock.token,
        escape_text(root)
    )
}

#[cfg(test)]
mod tests {
    use alknet_store::EntryPath;

    use super::*;

    fn lock(kind: LockKind, note: &str) -> EntryLock {
        let token = "urn:uuid:00010203-0405-4607-8809-0a0b0c0d0e0f";
        EntryLock {
            token: token.parse().expect("a token"),
            path: EntryPath::root(),
            owner: "alice".to_owned(),
            note: note.to_owned(),
            depth: LockDepth::Infinity,
            kind,
            until_ms: 61_500,
        }
    }

    #[test]
    fn a_lock_is_shown_with_what_is_left_of_its_time() {
        let element = "<owner xmlns=\"DAV:\"><href>a</href></owner>";
        for note in [
            "",
            element,
            "</D:owner>&",
            "<owner xmlns=\"DAV:\"></D:owner>",
        ] {
            let xml = active_lock(&lock(LockKind::Exclusive, note), "/fs/a&b", 1000);
            let body = xml.replacen("<D:activelock>", "<D:activelock xmlns:D='DAV:'>", 1);
            let root = XmlElement::parse(body.as_bytes()).expect("well-formed");
            assert_eq!(
                root.dav_element("owner").is_some(),
                !note.is_empty(),
                "{note}"
            );
            assert!(xml.contains("<D:timeout>Second-60</D:timeout>"), "{xml}");
            assert!(xml.contains("<D:href>/fs/a&amp;b</D:href>"), "{xml}");
            // The identity of the node is not shown to other clients.
            assert!(!xml.contains("alice"), "{xml}");
        }
    }

    #[test]
    fn a_note_that_would_grow_is_shown_as_a_text() {
        let namespace = "n".repeat(1000);
        let elements = "<b a:x=''/>".repeat(200);
        let note = format!("<owner xmlns='DAV:' xmlns:a='{namespace}'>{elements}</owner>");
        assert!(note.len() <= LOCK_NOTE_BYTES_MAX, "{}", note.len());
        let xml = active_lock(&lock(LockKind::Exclusive, &note), "/fs/a", 0);
        assert!(xml.len() < 6 * LOCK_NOTE_BYTES_MAX + 1000, "{}", xml.len());
        assert!(xml.contains("<D:owner>&lt;owner"), "{xml}");
    }

    #[test]
    fn advisory_locks_are_not_shown() {
        let roots = ["/fs/a".to_owned(), "/fs/b".to_owned()];
        let locks = [lock(LockKind::Advisory, ""), lock(LockKind::Exclusive, "")];
        let xml = lock_discovery(&locks, &roots, 0);
        assert!(xml.contains("/fs/b") && !xml.contains("/fs/a"), "{xml}");
    }
}
