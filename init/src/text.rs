//! Texts of limited length.

/// What a text that was cut ends with.
const ELLIPSIS: char = '…';

/// Cuts a text longer than `bytes_max` bytes. What is left has at most `bytes_max` bytes, `…` at its end included, and
/// no half of a character: records and diagnostics are sent as JSON, which is UTF-8 (RFC 8259 section 8.1).
///
/// A limit below the 3 bytes of `…` leaves `…` alone.
pub fn cut_text(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let rest = bytes_max.saturating_sub(ELLIPSIS.len_utf8());
        text.truncate(text.floor_char_boundary(rest));
        text.push(ELLIPSIS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters_and_within_its_limit() {
        for (text, bytes_max, cut) in [
            ("", 0, ""),
            ("äöü", 6, "äöü"),
            ("äöü", 5, "ä…"),
            ("äöü", 4, "…"),
            ("äöü", 0, "…"),
            ("abcdef", 6, "abcdef"),
            ("abcdef", 5, "ab…"),
        ] {
            let mut text = text.to_owned();
            cut_text(&mut text, bytes_max);
            assert_eq!(text, cut, "{bytes_max}");
        }
    }
}
