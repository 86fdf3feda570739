//! Names of keys, of peers, and scopes.

use alknet_core::{PeerId, PeerKey, ScopeSet};

/// Reads the same text in every grammar, and the same bytes as the encoding of a key.
pub fn key(data: &[u8]) -> bool {
    if let PeerKey::Ed25519(key) = PeerKey::from_spki(data) {
        assert_eq!(PeerKey::ed25519_spki(&key), data);
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    scopes(text);
    let key = text.parse::<PeerKey>();
    assert_eq!(key.is_ok(), is_key(text), "{text}");
    if let Ok(key) = &key {
        assert_eq!(key.to_string(), text, "one key, one name");
    }
    let peer = text.parse::<PeerId>();
    assert_eq!(peer.is_ok(), is_peer_id(text), "{text}");
    if let Ok(peer) = &peer {
        assert_eq!(peer.as_str(), text);
    }
    key.is_ok() || peer.is_ok()
}

fn is_key(text: &str) -> bool {
    let hex = |digits: &str| {
        digits.len() == 64
            && digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    ["ed25519:", "spki:", "SHA256:"]
        .iter()
        .any(|kind| text.strip_prefix(kind).is_some_and(hex))
}

fn is_peer_id(text: &str) -> bool {
    let first = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9');
    (1..=63).contains(&text.len())
        && text.bytes().next().is_some_and(first)
        && text
            .bytes()
            .all(|b| first(b) || matches!(b, b'.' | b'_' | b'-'))
}

/// Words are scopes. A set holds the words that it was made of, and allows only scopes that a word covers.
fn scopes(text: &str) {
    let words: Vec<&str> = text.split(' ').collect();
    let set: ScopeSet = words.iter().collect();
    let again: ScopeSet = Vec::<String>::from(set.clone()).into_iter().collect();
    assert_eq!(again, set);
    for asked in &words {
        let covered = words.iter().any(|held| covers(held, asked));
        assert_eq!(set.allows(asked), covered, "{asked} by {words:?}");
    }
}

fn covers(held: &str, asked: &str) -> bool {
    match held.strip_suffix('*') {
        Some("") => true,
        Some(below) if below.ends_with(':') => asked.starts_with(below),
        _ => held == asked,
    }
}
