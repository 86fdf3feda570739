//! Bearer tokens, their names and their hashes.

use alknet_core::{AuthToken, KeyId, TokenHash};

/// Reads the same text as a token, as a hash and as a name.
pub fn token(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let token = AuthToken::new(text.to_owned());
    let hash = token.hash();
    assert_eq!(hash.is_ok(), is_token(text));
    if let Ok(hash) = &hash {
        assert_eq!(hash.key_id.as_str(), &text[4..12]);
        assert_eq!(hash.to_string().parse::<TokenHash>().as_ref(), Ok(hash));
        let shown = format!("{token:?} {hash:?}");
        assert!(!shown.contains(&text[13..]), "a secret is shown");
    }
    let parsed = text.parse::<TokenHash>();
    if let Ok(parsed) = &parsed {
        assert_eq!(parsed.to_string(), text, "one hash, one text");
    }
    let name = text.parse::<KeyId>();
    assert_eq!(name.is_ok(), is_name(text));
    hash.is_ok() || parsed.is_ok() || name.is_ok()
}

fn is_name(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9'))
}

/// `alk_`, a name, `_`, and 43 characters of base64url whose last two bits are zero, as those of 32 bytes are.
fn is_token(text: &str) -> bool {
    let secret = |secret: &str| {
        secret.len() == 43
            && secret
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && secret.ends_with(|c: char| "AEIMQUYcgkosw048".contains(c))
    };
    let parts = text.strip_prefix("alk_").and_then(|t| t.split_once('_'));
    parts.is_some_and(|(name, rest)| is_name(name) && secret(rest))
}
