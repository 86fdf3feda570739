//! Names of tools as names of operations.

use std::collections::HashSet;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

/// Bytes of one part of an operation's name.
const PART_BYTES_MAX: usize = 63;
/// Bytes of a hash that tells apart what would have one name.
const HASH_BYTES: usize = 4;

/// A part of a name for each tool, in their order. What fits is kept; of the others, each character that
/// does not fit becomes `_`, and a name that is taken then gets a part of its own hash: whichever other
/// tools there are, and in which order, a name stands for the same tool.
pub(super) fn tool_names(tools: &[&str]) -> Vec<String> {
    let fitting: HashSet<&str> = tools.iter().copied().filter(|name| fits(name)).collect();
    let mut crowded = HashSet::new();
    let mut seen = HashSet::new();
    for tool in tools.iter().filter(|name| !fits(name)) {
        let plain = plain(tool);
        if fitting.contains(plain.as_str()) || !seen.insert(plain.clone()) {
            crowded.insert(plain);
        }
    }
    let name = |tool: &&str| {
        if fits(tool) {
            return (*tool).to_owned();
        }
        let plain = plain(tool);
        match crowded.contains(&plain) {
            true => hashed(plain, tool),
            false => plain,
        }
    };
    tools.iter().map(name).collect()
}

fn fits(name: &str) -> bool {
    name.len() <= PART_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(is_part)
}

fn is_part(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn plain(tool: &str) -> String {
    let lead = match tool.starts_with(|c: char| c.is_ascii_alphabetic()) {
        true => "",
        false => "t_",
    };
    let part = |c: char| match u8::try_from(c).is_ok_and(is_part) {
        true => c,
        false => '_',
    };
    let name = lead.chars().chain(tool.chars().map(part));
    name.take(PART_BYTES_MAX).collect()
}

fn hashed(mut plain: String, tool: &str) -> String {
    let hash = Sha256::digest(tool.as_bytes());
    // It is ASCII by now, and may be cut anywhere.
    plain.truncate(PART_BYTES_MAX - 1 - 2 * HASH_BYTES);
    plain.push('_');
    plain.push_str(&HEXLOWER.encode(&hash[..HASH_BYTES]));
    plain
}

#[cfg(test)]
mod tests {
    use alknet_call::is_operation_name;

    use super::*;

    #[test]
    fn every_name_is_one_of_an_operation() {
        let long = "x".repeat(500);
        let tools = ["fine", "a.b", "a/b", "a_b", "1st", "", "ä b", &long, "🙂"];
        let names = tool_names(&tools);
        for name in &names {
            assert!(is_operation_name(&format!("ns/{name}")), "{name}");
        }
        assert_eq!(&names[..1], ["fine"]);
        assert_eq!((&*names[3], &*names[4]), ("a_b", "t_1st"));
        let different: HashSet<_> = names.iter().collect();
        assert_eq!(different.len(), tools.len(), "{names:?}");
    }

    #[test]
    fn the_order_of_tools_means_nothing() {
        let one = tool_names(&["a.b", "a/b"]);
        let other = tool_names(&["a/b", "a.b"]);
        assert_eq!((&one[0], &one[1]), (&other[1], &other[0]));
        assert_eq!(tool_names(&["a.b"]), ["a_b"]);
    }
}
