//! JSON pointers (RFC 6901), and how a `$ref` writes them.

use std::fmt::Write as _;

/// `path` and one more part.
pub(crate) fn join(path: &str, part: &str) -> String {
    let mut longer = String::with_capacity(path.len() + 1 + part.len());
    longer.push_str(path);
    longer.push('/');
    for c in part.chars() {
        match c {
            '~' => longer.push_str("~0"),
            '/' => longer.push_str("~1"),
            _ => longer.push(c),
        }
    }
    longer
}

/// The text before the last part, and the last part as it is written.
pub(crate) fn split_last(path: &str) -> Option<(&str, &str)> {
    path.rsplit_once('/')
}

/// A pointer as the fragment of a URI (RFC 3986, 3.5), with percent encoding for all other characters.
pub(crate) fn fragment(pointer: &str) -> String {
    let mut text = String::from("#");
    for byte in pointer.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?".contains(&byte);
        if plain {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// The pointer in a `$ref` of this document; `None` where the reference is of another kind.
pub(crate) fn of_reference(reference: &str) -> Option<String> {
    let fragment = reference.strip_prefix('#')?;
    let pointer = percent_decoded(fragment)?;
    // RFC 6901, section 3: each part begins with a slash. Other text would be an anchor.
    (pointer.is_empty() || pointer.starts_with('/')).then_some(pointer)
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        rest = after;
        let digit = |c: u8| char::from(c).to_digit(16);
        let value = digit(digits[0])? * 16 + digit(digits[1])?;
        bytes.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_to_elsewhere_are_no_pointers() {
        for text in [
            "A",
            "http://a/b#/c",
            "#A",
            "#/%",
            "#/%4",
            "#/%zz",
            "#/%ff",
            "",
        ] {
            assert_eq!(of_reference(text), None, "{text}");
        }
        assert_eq!(of_reference("#").as_deref(), Some(""));
        assert_eq!(of_reference("#/a%20b/~1").as_deref(), Some("/a b/~1"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(parts in proptest::collection::vec(".*", 0..4)) {
            let path = parts.iter().fold(String::new(), |path, part| join(&path, part));
            prop_assert_eq!(of_reference(&fragment(&path)), Some(path.clone()));
            let value = parts.iter().rev().fold(serde_json::json!(7), |inner, part| {
                serde_json::json!({ part.as_str(): inner })
            });
            prop_assert_eq!(value.pointer(&path), Some(&serde_json::json!(7)));
        }
    }
}
