//! Makes text safe for a terminal.

/// The characters that the terminal can show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Charset {
    /// ASCII only.
    Ascii,
    /// All of UTF-8.
    #[default]
    Utf8,
}

/// Makes any text safe to print on one line. It removes control characters, so that no peer, file
/// or network can send escape codes to the terminal, and marks that reorder or hide text.
pub(super) fn clean(text: &str, charset: Charset) -> String {
    text.trim_end().chars().map(|c| shown(c, charset)).collect()
}

fn shown(c: char, charset: Charset) -> char {
    let invisible = matches!(c,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    match c {
        '\t' | '\n' | '\r' => ' ',
        '·' if charset == Charset::Ascii => '-',
        '…' if charset == Charset::Ascii => '.',
        c if c.is_control() || invisible => '?',
        c if charset == Charset::Ascii && !c.is_ascii() => '?',
        c => c,
    }
}

/// Cuts the line to `columns` characters. The last one shows that something is missing.
pub(super) fn fit(line: &str, columns: usize, charset: Charset) -> String {
    if line.chars().count() <= columns {
        return line.to_owned();
    }
    let mut cut: String = line.chars().take(columns.saturating_sub(1)).collect();
    cut.push(if charset == Charset::Utf8 { '…' } else { '>' });
    cut
}

/// Breaks text into lines of at most `columns` characters, between words, or inside a word that is
/// longer than a line.
pub(super) fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        if used > 0 && used + 1 + rest.len() > columns {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        while rest.len() > columns {
            lines.push(rest.drain(..columns).collect());
        }
        used += rest.len();
        line.extend(rest);
    }
    if used > 0 {
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escape_codes_do_not_get_through() {
        let nasty = "\u{1b}[2Jred\u{9b}31m\u{7}\u{202e}x\n";
        assert_eq!(clean(nasty, Charset::Utf8), "?[2Jred?31m??x");
        assert_eq!(clean("Größe · 5", Charset::Ascii), "Gr??e - 5");
    }

    #[test]
    fn words_are_kept_whole_where_they_fit() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(
            wrap("a abcdefgh b", 3),
            ["a", "abc", "def", "gh", "b"].map(String::from)
        );
        assert!(wrap("  ", 5).is_empty());
    }

    #[test]
    fn a_cut_is_visible() {
        assert_eq!(fit("abcdef", 4, Charset::Utf8), "abc…");
        assert_eq!(fit("abcdef", 4, Charset::Ascii), "abc>");
        assert_eq!(fit("abcd", 4, Charset::Utf8), "abcd");
    }

    proptest! {
        #[test]
        fn lines_hold_the_text_and_never_more_than_the_width(text in "\\PC{0,80}", columns in 1usize..30) {
            let lines = wrap(&text, columns);
            prop_assert!(lines.iter().all(|line| (1..=columns).contains(&line.chars().count())));
            let squeeze = |text: &str| text.split_whitespace().collect::<String>();
            prop_assert_eq!(squeeze(&lines.concat()), squeeze(&text));
        }

        #[test]
        fn nothing_unprintable_is_left(text in any::<String>()) {
            prop_assert!(!clean(&text, Charset::Utf8).contains(char::is_control));
            prop_assert!(clean(&text, Charset::Ascii).is_ascii());
        }
    }
}
