//! Characters and names of XML 1.0 (fifth edition, §2.2 and §2.3) and of Namespaces in XML 1.0 (§3).

/// Whether a document can have the character.
pub(super) const fn is_xml_char(char: char) -> bool {
    matches!(
        char,
        '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..='\u{10ffff}'
    )
}

/// White space of XML, which is less than that of Unicode.
pub(super) const fn is_xml_space(char: char) -> bool {
    matches!(char, ' ' | '\t' | '\n' | '\r')
}

/// Whether the text is a name without a colon.
pub(super) fn is_nc_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(is_name_start) && chars.all(is_name_char)
}

const fn is_name_start(char: char) -> bool {
    matches!(
        char,
        'A'..='Z'
            | '_'
            | 'a'..='z'
            | '\u{c0}'..='\u{d6}'
            | '\u{d8}'..='\u{f6}'
            | '\u{f8}'..='\u{2ff}'
            | '\u{370}'..='\u{37d}'
            | '\u{37f}'..='\u{1fff}'
            | '\u{200c}'..='\u{200d}'
            | '\u{2070}'..='\u{218f}'
            | '\u{2c00}'..='\u{2fef}'
            | '\u{3001}'..='\u{d7ff}'
            | '\u{f900}'..='\u{fdcf}'
            | '\u{fdf0}'..='\u{fffd}'
            | '\u{10000}'..='\u{effff}'
    )
}

const fn is_name_char(char: char) -> bool {
    is_name_start(char)
        || matches!(
            char,
            '-' | '.' | '0'..='9' | '\u{b7}' | '\u{300}'..='\u{36f}' | '\u{203f}'..='\u{2040}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_standard() {
        for name in ["a", "_", "prop0", "ä", "a-b.c", "字"] {
            assert!(is_nc_name(name), "{name}");
        }
        for name in ["", "0a", "-a", "a:b", "a b", "a<", "a\u{1}", "×"] {
            assert!(!is_nc_name(name), "{name}");
        }
    }

    #[test]
    fn control_characters_are_not_xml() {
        for char in ['\0', '\u{1}', '\u{1f}', '\u{fffe}', '\u{ffff}'] {
            assert!(!is_xml_char(char), "{char:?}");
        }
        for char in ['\t', '\n', '\r', ' ', '\u{7f}', '\u{fffd}', '\u{10ffff}'] {
            assert!(is_xml_char(char), "{char:?}");
        }
    }
}
