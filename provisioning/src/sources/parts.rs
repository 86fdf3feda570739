//! A document in strings: `alknet.node=` and base64url. If a string cannot be that long, the parts
//! are in `alknet.node.0=`, `alknet.node.1=` and so on, and are joined in that order.

use std::collections::BTreeMap;

use alknet_core::config::CONFIG_BYTES_MAX;
use data_encoding::BASE64URL_NOPAD;
use zeroize::Zeroizing;

use super::Bytes;

/// Most parts of a document.
pub(super) const PARTS_MAX: usize = 4096;

const KEY: &str = "alknet.node";

/// The document in these strings. `None` if none of them has a part of one.
pub(super) fn assemble<'a>(
    strings: impl Iterator<Item = &'a str>,
) -> Result<Option<Bytes>, String> {
    let mut whole = None;
    let mut parts = BTreeMap::new();
    for string in strings {
        let Some((key, text)) = string.strip_prefix(KEY).and_then(|it| it.split_once('=')) else {
            continue;
        };
        let before = match key.strip_prefix('.') {
            None if key.is_empty() => whole.replace(text),
            // Another name with the same beginning.
            None => continue,
            Some(number) => parts.insert(part_number(number)?, text),
        };
        // It is unknown which of the two was meant.
        if before.is_some() {
            return Err(format!("{KEY}{key} is there twice"));
        }
    }
    let encoded = match whole {
        Some(_) if !parts.is_empty() => {
            return Err(format!("both {KEY} and parts of it are there"));
        }
        Some(text) => Zeroizing::new(text.to_owned()),
        None if parts.is_empty() => return Ok(None),
        None => {
            // If a middle part is missing, the others would be joined, and base64 would not detect
            // it.
            if let Some(missing) = (0..parts.len()).find(|number| !parts.contains_key(number)) {
                return Err(format!("{KEY}.{missing} is missing"));
            }
            Zeroizing::new(parts.values().copied().collect())
        }
    };
    decode(&encoded).map(Some)
}

fn part_number(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number < PARTS_MAX);
    // Each number has one spelling. Otherwise `01` and `1` would be two parts with one number.
    let number = number.filter(|number: &usize| number.to_string() == text);
    number.ok_or_else(|| format!("a part of {KEY} has no number from 0 to {}", PARTS_MAX - 1))
}

/// A document from base64url, with or without padding.
pub(super) fn decode(text: &str) -> Result<Bytes, String> {
    // Many encoders add padding.
    let text = text.trim_end_matches('=');
    if text.len() > BASE64URL_NOPAD.encode_len(CONFIG_BYTES_MAX) {
        return Err(format!(
            "the document is longer than {CONFIG_BYTES_MAX} bytes"
        ));
    }
    let decoded = BASE64URL_NOPAD.decode(text.as_bytes());
    decoded.map(Zeroizing::new).map_err(|error| {
        format!(
            "the document is no base64url (character {})",
            error.position + 1
        )
    })
}

/// The strings of a document, each with at most `bytes` bytes of base64url.
///
/// ```
/// let strings = alknet_provisioning::strings(b"version = 1\n", 10);
/// assert_eq!(strings.len(), 2);
/// assert_eq!(strings[0].as_str(), "alknet.node.0=dmVyc2lvbi");
/// ```
#[must_use]
pub fn strings(document: &[u8], bytes: usize) -> Vec<Zeroizing<String>> {
    let encoded = Zeroizing::new(BASE64URL_NOPAD.encode(document));
    if encoded.len() <= bytes {
        return vec![Zeroizing::new(format!("{KEY}={}", *encoded))];
    }
    let parts = encoded.as_bytes().chunks(bytes.max(1)).enumerate();
    let string = |(number, part): (usize, &[u8])| {
        let part = std::str::from_utf8(part).expect("base64url is ASCII");
        Zeroizing::new(format!("{KEY}.{number}={part}"))
    };
    parts.map(string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembled(strings: &[&str]) -> Result<Option<Vec<u8>>, String> {
        assemble(strings.iter().copied()).map(|it| it.map(|bytes| bytes.to_vec()))
    }

    #[test]
    fn documents_of_every_length_come_back() {
        for length in [0, 1, 43, 44, 45, 300, CONFIG_BYTES_MAX] {
            let document: Vec<u8> = (0..length).map(|n| n as u8).collect();
            for bytes in [64, 240, 90_000] {
                let mut strings = strings(&document, bytes);
                strings.reverse();
                let texts = strings.iter().map(|it| it.as_str());
                let found = assemble(texts.chain(["other=1", "alknet.nodes=1"]));
                let found = found.expect("whole").expect("there");
                assert_eq!(*found, document, "{length} in {bytes}");
            }
        }
        assert_eq!(assembled(&["quiet", "alknet.data=1"]), Ok(None));
        assert_eq!(assembled(&["alknet.node=YQ=="]), Ok(Some(b"a".to_vec())));
    }

    #[test]
    fn damage_is_named() {
        let long = format!("alknet.node={}", "A".repeat(90_000));
        for (strings, word) in [
            (
                &["alknet.node.0=YWFh", "alknet.node.2=YWFh"][..],
                "alknet.node.1 is missing",
            ),
            (&["alknet.node.1=YWFh"], "alknet.node.0 is missing"),
            (&["alknet.node=YQ", "alknet.node.0=YQ"], "both"),
            (
                &["alknet.node=YQ", "alknet.node=YQ"],
                "alknet.node is there twice",
            ),
            (
                &["alknet.node.0=YQ", "alknet.node.0=YQ"],
                "alknet.node.0 is there twice",
            ),
            (&["alknet.node.x=YQ"], "no number"),
            (&["alknet.node.00=YQ"], "no number"),
            (&["alknet.node.4096=YQ"], "from 0 to 4095"),
            (&["alknet.node=Y*"], "no base64url (character 2)"),
            (&["alknet.node=Y"], "no base64url"),
            (&[&long], "longer than 65536 bytes"),
        ] {
            let error = assembled(strings).expect_err("damaged");
            assert!(error.contains(word), "{strings:?}: {error}");
        }
    }
}
