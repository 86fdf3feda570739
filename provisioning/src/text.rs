//! Text as editors and tools write it: with a byte order mark, in UTF-16, or padded with zeros.

/// The error and the hint for UTF-16.
pub(crate) const UTF_16: (&str, &str) = (
    "the file is UTF-16, which some editors of Windows write",
    "save it as UTF-8",
);

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The text without its byte order mark and without the zeros that some tools pad with. `None` for
/// UTF-16.
pub(crate) fn clean(bytes: &[u8]) -> Option<&[u8]> {
    if is_utf_16(bytes) {
        return None;
    }
    let text = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    // Some hypervisors pad a document with zeros, or end it with one.
    let end = text.iter().rposition(|byte| *byte != 0);
    Some(&text[..end.map_or(0, |at| at + 1)])
}

/// The text of a file in UTF-16, as far as it is text. `None` for every other file.
pub(crate) fn of_utf_16(bytes: &[u8]) -> Option<String> {
    if !is_utf_16(bytes) {
        return None;
    }
    // Without a mark, the byte that is zero says which one comes first.
    let is_big_endian = bytes.starts_with(&[0xfe, 0xff]) || bytes.first() == Some(&0);
    let units = bytes.chunks_exact(2).map(|pair| match is_big_endian {
        true => u16::from_be_bytes([pair[0], pair[1]]),
        false => u16::from_le_bytes([pair[0], pair[1]]),
    });
    let text = char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER));
    // The mark is a character of its own.
    Some(text.filter(|unit| *unit != '\u{feff}').collect())
}

/// Where the cleaned text begins in the file.
pub(crate) fn offset(bytes: &[u8]) -> usize {
    if bytes.starts_with(BYTE_ORDER_MARK) {
        BYTE_ORDER_MARK.len()
    } else {
        0
    }
}

/// Whether the bytes have a UTF-16 mark, or the zeros of ASCII in UTF-16.
fn is_utf_16(bytes: &[u8]) -> bool {
    let zeros = |odd: usize| {
        let start = bytes.get(..4).unwrap_or_default();
        // In UTF-16 without a mark, every second byte of the first letters, which are ASCII, is
        // zero.
        let is_zero = |(at, byte): (usize, &u8)| (*byte == 0) == (at % 2 == odd);
        start.len() == 4 && start.iter().enumerate().all(is_zero)
    };
    bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) || zeros(0) || zeros(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_padding_are_no_text() {
        assert_eq!(
            clean(b"\xef\xbb\xbfa = 1\r\n\0\0\0"),
            Some(&b"a = 1\r\n"[..])
        );
        assert_eq!(clean(b""), Some(&b""[..]));
        assert_eq!(clean(&[0; 9]), Some(&b""[..]));
        assert_eq!(clean(b"a\0b"), Some(&b"a\0b"[..]));
        assert_eq!((offset(b"\xef\xbb\xbfa"), offset(b"a")), (3, 0));
    }

    #[test]
    fn utf_16_is_known_in_both_orders_with_and_without_a_mark() {
        let units = || "[node]".encode_utf16();
        let little: Vec<u8> = units().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = units().flat_map(u16::to_be_bytes).collect();
        for (mark, text) in [(&[0xff, 0xfe], &little), (&[0xfe, 0xff], &big)] {
            assert_eq!(clean(text), None);
            assert_eq!(clean(&[&mark[..], text].concat()), None);
            for whole in [text.clone(), [&mark[..], text].concat()] {
                assert_eq!(of_utf_16(&whole).as_deref(), Some("[node]"));
            }
        }
        assert_eq!(of_utf_16(b"[node]"), None);
        // Half of a pair is no character, and an odd byte no unit.
        let broken = [0xff, 0xfe, b'a', 0, 0, 0xd8, b'b'];
        assert_eq!(of_utf_16(&broken).as_deref(), Some("a\u{fffd}"));
    }
}
