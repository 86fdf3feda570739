//! Domain names: which ones are accepted from the network, and the part of DNS that a search for a
//! time server needs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Maximum length of a name, RFC 1035 §2.3.4.
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;
/// Maximum number of records that are read of one answer.
const RECORDS_MAX: usize = 64;

/// The record type that a query asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DnsRecordType {
    V4 = 1,
    V6 = 28,
}

/// The name in lower case without its final dot, if it may be written to a file: letters, digits,
/// `-` and `_` in labels of 1 to 63 bytes.
pub(crate) fn valid_name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let fine = |l: &str| {
        let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=LABEL_BYTES_MAX).contains(&l.len()) && l.bytes().all(ok)
    };
    (text.len() <= NAME_BYTES_MAX && text.split('.').all(fine)).then(|| text.to_ascii_lowercase())
}

/// Reads uncompressed names in wire form, one after the other and padded with zeros (RFC 8106 §5.2,
/// RFC 3646 §4). Invalid names are left out, and reading stops at a malformed one.
pub(crate) fn read_names(bytes: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        // The option is padded to a multiple of eight bytes with zeros (RFC 8106 §5.2).
        if bytes[at] == 0 {
            at += 1;
            continue;
        }
        let Some((labels, next)) = read_labels(bytes, at) else {
            break;
        };
        names.extend(valid_name(&labels));
        at = next;
    }
    names
}

fn read_labels(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    loop {
        let len = usize::from(*bytes.get(at)?);
        at += 1;
        if len == 0 {
            return Some((name, at));
        }
        // Values above 63 are compression pointers (RFC 1035 §4.1.4), which options must not have.
        if len > LABEL_BYTES_MAX || name.len() + len > NAME_BYTES_MAX {
            return None;
        }
        let label = std::str::from_utf8(bytes.get(at..at + len)?).ok()?;
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(label);
        at += len;
    }
}

/// A query for the addresses of a valid name.
pub(crate) fn query(id: u16, name: &str, family: DnsRecordType) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    // Recursion desired, one question.
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.extend([0, 0, family as u8, 0, 1]);
    out
}

/// The addresses in the answer to exactly this query. `None` if `bytes` is no such answer. Aliases
/// are not followed: a recursive server adds the addresses at their end.
pub(crate) fn answer(question: &[u8], bytes: &[u8], family: DnsRecordType) -> Option<Vec<IpAddr>> {
    let body = question.get(12..)?;
    let header = bytes.get(..12)?;
    // RFC 1035 §4.1.1: the id must be that of the query, QR must be set, and RCODE must be zero.
    if header[..2] != question[..2] || header[2] & 0x80 == 0 || header[3] & 0x0f != 0 {
        return None;
    }
    let repeated = bytes.get(12..12 + body.len())?;
    // RFC 1035 §2.3.3 compares names without case. RFC 5452 §9.1: an answer must repeat the
    // question.
    if header[4..6] != [0, 1] || !repeated.eq_ignore_ascii_case(body) {
        return None;
    }
    let count = usize::from(u16::from_be_bytes([header[6], header[7]]));
    let mut at = 12 + body.len();
    let mut found = Vec::new();
    for _ in 0..count.min(RECORDS_MAX) {
        let Some((address, next)) = record(bytes, at, family) else {
            break;
        };
        found.extend(address);
        at = next;
    }
    Some(found)
}

fn record(bytes: &[u8], at: usize, family: DnsRecordType) -> Option<(Option<IpAddr>, usize)> {
    let at = skip_name(bytes, at)?;
    let fixed = bytes.get(at..at + 10)?;
    let data = at + 10;
    let next = data + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    let value = bytes.get(data..next)?;
    // Aliases and records of other types are in the same section.
    if fixed[..4] != [0, family as u8, 0, 1] {
        return Some((None, next));
    }
    let address = match family {
        DnsRecordType::V4 => <[u8; 4]>::try_from(value)
            .ok()
            .map(|v| Ipv4Addr::from(v).into()),
        DnsRecordType::V6 => <[u8; 16]>::try_from(value)
            .ok()
            .map(|v| Ipv6Addr::from(v).into()),
    };
    Some((address, next))
}

fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    // The loop ends a name whose labels never end. A pointer is not followed, because only the
    // position behind it matters.
    for _ in 0..NAME_BYTES_MAX {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            len if len & 0xc0 == 0xc0 => return Some(at + 2),
            len if usize::from(len) <= LABEL_BYTES_MAX => at += 1 + usize::from(len),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_plain_names_pass() {
        assert_eq!(valid_name("Example.ORG.").as_deref(), Some("example.org"));
        assert_eq!(valid_name("a_b-1").as_deref(), Some("a_b-1"));
        for bad in [
            "",
            ".",
            "a..b",
            ".a",
            "a b",
            "a\nb",
            "a/b",
            "ü",
            &"a".repeat(64),
        ] {
            assert_eq!(valid_name(bad), None, "{bad:?}");
        }
        assert_eq!(valid_name(&"a.".repeat(127)).map(|n| n.len()), Some(253));
        assert_eq!(valid_name(&format!("{}a", "a.".repeat(127))), None);
    }

    #[test]
    fn lists_of_names_are_read_up_to_a_fault() {
        assert_eq!(
            read_names(b"\x03lan\x00\x01a\x03lan\x00\x00\x00"),
            ["lan", "a.lan"]
        );
        assert_eq!(read_names(b"\x03l n\x00\x01a\x00"), ["a"]);
        assert_eq!(read_names(b"\x01a\x00\x05abc"), ["a"]);
        assert!(read_names(b"\xc0\x00").is_empty());
        assert!(read_names(b"").is_empty());
    }

    fn reply(question: &[u8], answers: &[&[u8]]) -> Vec<u8> {
        let mut bytes = question.to_vec();
        bytes[2] |= 0x80;
        bytes[7] = answers.len() as u8;
        answers.iter().for_each(|a| bytes.extend(*a));
        bytes
    }

    #[test]
    fn an_alias_and_its_addresses_are_read() {
        let question = query(7, "time.example", DnsRecordType::V4);
        let alias = b"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x09\x00\x04\x01n\xc0\x0c";
        let address = b"\x01n\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x09\x00\x04\xc0\x00\x02\x07";
        let bytes = reply(&question, &[alias, address]);
        let expected: IpAddr = "192.0.2.7".parse().expect("valid");
        assert_eq!(
            answer(&question, &bytes, DnsRecordType::V4),
            Some(vec![expected])
        );
        assert_eq!(
            answer(&question, &bytes[..bytes.len() - 1], DnsRecordType::V4),
            Some(vec![])
        );
    }

    #[test]
    fn answers_to_other_questions_are_refused() {
        let question = query(7, "time.example", DnsRecordType::V6);
        let good = reply(&question, &[]);
        assert_eq!(answer(&question, &good, DnsRecordType::V6), Some(vec![]));
        for at in [0, 1, 5, 13, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x11;
            assert_eq!(
                answer(&question, &bad, DnsRecordType::V6),
                None,
                "byte {at}"
            );
        }
        let mut failed = good.clone();
        failed[3] |= 3;
        assert_eq!(answer(&question, &failed, DnsRecordType::V6), None);
        assert_eq!(
            answer(&question, &question, DnsRecordType::V6),
            None,
            "a query is no answer"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let question = query(1, "a.b", DnsRecordType::V4);
            let mut bytes = reply(&question, &[]);
            bytes[7] = 9;
            bytes.extend(&tail);
            let _ = answer(&question, &bytes, DnsRecordType::V4);
            let _ = read_names(&tail);
        }
    }
}
