//! Turns the names of tools into names of operations.

use std::collections::HashSet;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

/// The most bytes of one part of an operation's name.
const PART_BYTES_MAX: usize = 63;
/// Bytes of the hash that distinguishes tools whose names would be the same.
const HASH_BYTES: usize = 4;

/// A part of an operation's name for each tool, in their order. A valid name stays as it is. In another name, each
/// invalid character becomes `_`, and if the result is not unique, it gets a part of the tool's hash. So a name
/// stands for the same tool whatever other tools the server has, and in whatever order.
pub(super) fn tool_names(tools: &[&str]) -> Vec<String> {
    let fitting: HashSet<&str> = tools
        .iter()
        .copied()
        .filter(|name| is_valid_part(name))
        .collect();
    let mut crowded = HashSet::new();
    let mut seen = HashSet::new();
    for tool in tools.iter().filter(|name| !is_valid_part(name)) {
        let plain = plain(tool);
        if fitting.contains(plain.as_str()) || !seen.insert(plain.clone()) {
            crowded.insert(plain);
        }
    }
    let name = |tool: &&str| {
        if is_valid_part(tool) {
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

fn is_valid_part(name: &str) -> bool {
    name.len() <= PART_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(is_part)
}

fn is_part(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn plain(tool: &str) -> String {
    // A part of an operation's name must begin with a letter.
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
    // All characters are ASCII here, so the name can be cut at any byte.
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
