//! The byte ranges of the table `[secrets]` in a document, or of another one. With them, the rest of the
//! document keeps its lines and comments, and the table can be overwritten in place.

use std::borrow::Cow;
use std::ops::Range;

use toml_parser::Source;
use toml_parser::parser::{Event, EventKind, RecursionGuard, parse_document};
use zeroize::Zeroizing;

/// The table's name.
pub(crate) const TABLE: &str = "secrets";
/// The subtable with credentials of other services, which the vault stores one by one.
pub(crate) const CREDENTIALS: &str = "credentials";
/// The only secret of the table that a medium must keep.
pub(crate) const SEED_KEY: &str = "seed_key";
/// Most levels of nested arrays and tables, the same as in the TOML library.
const DEPTH_MAX: u32 = 80;

/// Where the secrets are in a document.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SecretSpans {
    /// Everything that belongs to the table.
    ranges: Vec<Range<usize>>,
    /// What remains when the words are erased: headers, the seed key, and the credentials, which
    /// are erased after they were stored elsewhere.
    kept_ranges: Vec<Range<usize>>,
    /// The credentials.
    credentials: Vec<Range<usize>>,
}

/// Which part of the table is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SecretsPart {
    /// Credentials of other services.
    Credentials,
    /// The words.
    Words,
}

impl SecretSpans {
    /// Finds the table. A document that is not TOML is split as well as possible, and is refused
    /// anyway.
    pub(crate) fn parse(text: &str) -> Self {
        Self::parse_table(text, TABLE)
    }

    /// The same for another table of the root.
    pub(crate) fn parse_table(text: &str, table: &'static str) -> Self {
        let mut finder = SpanFinder::new(text, table);
        // With the lexer and not line by line, because a header can also be inside a multi-line
        // string.
        let tokens = Source::new(text).lex().into_vec();
        let mut receiver = |event: Event| finder.take(&event);
        // The parser recurses for each nested value, and the document may come from an attacker's
        // medium.
        let mut guard = RecursionGuard::new(&mut receiver, DEPTH_MAX);
        parse_document(&tokens, &mut guard, &mut ());
        finder.finish()
    }

    /// Whether there is no such table.
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The document with spaces instead of its secrets. Line ends remain.
    pub(crate) fn document(&self, text: &[u8]) -> Vec<u8> {
        let mut document = text.to_vec();
        self.ranges
            .iter()
            .for_each(|at| blank(&mut document[at.clone()]));
        document
    }

    /// The secrets without the rest of the document.
    pub(crate) fn secrets(&self, text: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut secrets = Zeroizing::new(text.to_vec());
        for gap in gaps(&self.ranges, 0..text.len()) {
            blank(&mut secrets[gap]);
        }
        secrets
    }

    /// The ranges to overwrite for a part.
    pub(crate) fn erasable(&self, part: SecretsPart) -> Vec<Range<usize>> {
        if part == SecretsPart::Credentials {
            return self.credentials.clone();
        }
        let within = |range: &Range<usize>| gaps(&self.kept_ranges, range.clone());
        self.ranges.iter().flat_map(within).collect()
    }

    /// Whether there are credentials that can be erased without anything else.
    pub(crate) fn has_credentials(&self) -> bool {
        !self.credentials.is_empty()
    }
}

/// The ranges of `whole` that are in none of `taken`, which are ordered.
fn gaps(taken: &[Range<usize>], whole: Range<usize>) -> Vec<Range<usize>> {
    let mut at = whole.start;
    let mut gaps = Vec::new();
    for range in taken
        .iter()
        .filter(|it| it.start < whole.end && whole.start < it.end)
    {
        gaps.push(at..range.start.max(at));
        at = at.max(range.end);
    }
    gaps.push(at..whole.end.max(at));
    gaps.retain(|gap| !gap.is_empty());
    gaps
}

/// Replaces everything except line ends by spaces.
pub(crate) fn blank(bytes: &mut [u8]) {
    for byte in bytes
        .iter_mut()
        // Line ends remain, so that errors in the rest have the right line numbers.
        .filter(|byte| !matches!(byte, b'\n' | b'\r'))
    {
        *byte = b' ';
    }
}

/// Follows the parser through the document.
struct SpanFinder<'a> {
    text: &'a str,
    /// The name of the table that is searched.
    wanted: &'static str,
    split: SecretSpans,
    /// Headers of the table, and its seed key. All are kept, or none.
    kept_ranges: Vec<Range<usize>>,
    has_seed_key: bool,
    /// The current header: its start, and its first two names.
    header: Option<(usize, Vec<String>)>,
    /// The range of the current table up to its last value, if it is the one that is searched.
    table: Option<Range<usize>>,
    /// Where the table's header ended, if it is the credentials table.
    credentials: Option<usize>,
    in_root: bool,
    /// The current line: its start, and its first name.
    line: Option<(usize, String)>,
    depth: usize,
}

impl<'a> SpanFinder<'a> {
    fn new(text: &'a str, wanted: &'static str) -> Self {
        Self {
            text,
            wanted,
            split: SecretSpans::default(),
            kept_ranges: Vec::new(),
            has_seed_key: false,
            header: None,
            table: None,
            credentials: None,
            in_root: true,
            line: None,
            depth: 0,
        }
    }

    fn take(&mut self, event: &Event) {
        let span = event.span();
        match event.kind() {
            EventKind::StdTableOpen | EventKind::ArrayTableOpen => {
                self.line_ends(span.start());
                self.table_ends(span.start());
                self.in_root = false;
                self.header = Some((span.start(), Vec::new()));
            }
            EventKind::StdTableClose | EventKind::ArrayTableClose => {
                let Some((start, names)) = self.header.take() else {
                    return;
                };
                if names.first().is_some_and(|name| name == self.wanted) {
                    self.table = Some(start..span.end());
                    self.kept_ranges.push(start..span.end());
                    let of_others = names.get(1).is_some_and(|name| name == CREDENTIALS);
                    self.credentials = of_others.then_some(span.end());
                }
            }
            EventKind::SimpleKey => self.name(event),
            EventKind::ArrayOpen | EventKind::InlineTableOpen => self.depth += 1,
            EventKind::ArrayClose | EventKind::InlineTableClose => {
                self.depth = self.depth.saturating_sub(1);
            }
            EventKind::Newline if self.depth == 0 => self.line_ends(span.start()),
            _ => {}
        }
    }

    fn name(&mut self, event: &Event) {
        // A key inside a value is not a table's name.
        if self.depth > 0 {
            return;
        }
        let name = || {
            let mut name = Cow::Borrowed("");
            if let Some(raw) = Source::new(self.text).get(event) {
                raw.decode_key(&mut name, &mut ());
            }
            name.into_owned()
        };
        match &mut self.header {
            Some((_, names)) if names.len() < 2 => names.push(name()),
            Some(_) => {}
            None if self.line.is_none() => self.line = Some((event.span().start(), name())),
            None => {}
        }
    }

    fn line_ends(&mut self, at: usize) {
        let Some((start, name)) = self.line.take() else {
            return;
        };
        if let Some(table) = &mut self.table {
            table.end = at;
            if self.credentials.is_some() {
                return;
            }
            if name == SEED_KEY {
                self.has_seed_key = true;
                self.kept_ranges.push(start..at);
            } else if name == CREDENTIALS {
                self.kept_ranges.push(start..at);
                self.split.credentials.push(start..at);
            }
        // `secrets = { … }` and `secrets.words = …` come before the first header.
        } else if self.in_root && name == self.wanted {
            self.split.ranges.push(start..at);
        }
    }

    /// A comment directly below the last line belongs to the table, and may be an older secret. A
    /// comment after an empty line belongs to what follows.
    fn table_ends(&mut self, at: usize) {
        let Some(table) = self.table.take() else {
            return;
        };
        let rest = self.text.get(table.end..at).unwrap_or_default();
        let mut end = table.end;
        for (number, line) in rest.split_inclusive('\n').enumerate() {
            if number > 0 && line.trim().is_empty() {
                break;
            }
            end += line.len();
        }
        self.split.ranges.push(table.start..end);
        if let Some(body) = self.credentials.take() {
            self.kept_ranges.push(body..end);
            self.split.credentials.push(body..end);
        }
    }

    fn finish(mut self) -> SecretSpans {
        let end = self.text.len();
        // An array that is never closed ends with the text.
        self.depth = 0;
        self.line_ends(end);
        self.table_ends(end);
        // Without the headers, what remains below them would be parsed as something else.
        if self.has_seed_key || self.split.has_credentials() {
            self.split.kept_ranges = self.kept_ranges;
        }
        self.split
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(text: &str) -> (String, String) {
        let split = SecretSpans::parse(text);
        let text_of = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("still text");
        let secrets = split.secrets(text.as_bytes());
        (text_of(&split.document(text.as_bytes())), text_of(&secrets))
    }

    fn erased(text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        for at in SecretSpans::parse(text).erasable(SecretsPart::Words) {
            blank(&mut bytes[at]);
        }
        String::from_utf8(bytes).expect("still text")
    }

    fn without_credentials(text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        for at in SecretSpans::parse(text).erasable(SecretsPart::Credentials) {
            blank(&mut bytes[at]);
        }
        String::from_utf8(bytes).expect("still text")
    }

    const WHOLE: &str = "# mine\n[node]\nname = \"a\" # a name\n\n[secrets] # never shown\n\
                         words = \"w\"\n# old words\n\n# the card\n[[network]]\nmatch = \"eth0\"\n";

    #[test]
    fn the_table_goes_and_everything_else_stays_on_its_line() {
        let (document, secrets) = split(WHOLE);
        assert_eq!(document.len(), WHOLE.len());
        assert_eq!(document.lines().count(), WHOLE.lines().count());
        for stays in ["# mine", "name = \"a\" # a name", "# the card\n[[network]]"] {
            assert!(document.contains(stays), "{document}");
        }
        for goes in ["secrets", "words", "never", "old"] {
            assert!(!document.contains(goes), "{document}");
        }
        assert_eq!(secrets.lines().nth(5), Some("words = \"w\""));
        assert!(!secrets.contains("node") && !secrets.contains("network"));
    }

    #[test]
    fn every_way_to_write_the_table_is_found() {
        for text in [
            "secrets.words = \"xyz\"\n[node]\n",
            "secrets = { words = \"xyz\" }\r\n[node]\r\n",
            "secrets = { words = [\n\"xyz\",\n] }\n[node]\n",
            "\"secrets\".words = 'xyz'\n[node]\n",
            "\"\\u0073ecrets\".words = 'xyz'\n[node]\n",
            " [ 'secrets' ]\nwords = \"\"\"\nxyz\n[no]\n\"\"\"\n[node]\n",
            "[node]\n[secrets]\nwords = \"xyz\"",
            "[node]\n[secrets.more]\nwords = \"xyz\"",
            "[secrets]\na = 1\n[node]\n[secrets.more]\nwords = \"xyz\"\n",
            "[node]\n[[secrets]]\nwords = \"xyz\"\n[[secrets]]\nwords = \"xyz\"",
        ] {
            let (document, _) = split(text);
            assert!(
                !document.contains("xyz") && !document.contains("ecrets"),
                "{document}"
            );
            assert!(document.contains("[node]"), "{document}");
        }
    }

    #[test]
    fn other_tables_have_such_keys_too() {
        for text in [
            "",
            "a = \"secrets\"\n",
            "[node]\nsecrets = 1\n",
            "[node.secrets]\nwords = \"a\"\n",
            "a = { secrets = 1 }\n# [secrets]\n",
            "a = '''\n[secrets]\n'''\n",
        ] {
            assert!(SecretSpans::parse(text).is_empty(), "{text}");
            assert_eq!(split(text).0, text);
        }
    }

    #[test]
    fn what_was_erased_is_the_same_document() {
        let after = erased(WHOLE);
        assert!(!after.contains("words"), "{after}");
        assert_eq!(split(&after).0, split(WHOLE).0);

        let both = "[node]\n[secrets]\nwords = \"w\"\nseed_key = \"k\" # stays\n# words too\n";
        let after = erased(both);
        assert!(after.contains("[secrets]\n") && after.contains("seed_key = \"k\""));
        assert!(!after.contains('w'), "{after}");
        assert_eq!(split(&after).0, split(both).0);
    }

    #[test]
    fn words_and_credentials_are_erased_apart() {
        for both in [
            "[secrets]\nwords = \"ww\"\n[secrets.credentials]\nopenai = \"cc\" # cc\n# cc\n\n[node]\n",
            "[secrets]\nwords = \"ww\"\ncredentials.openai = \"cc\" # cc\n\n[node]\n",
            "[secrets]\ncredentials = { openai = \"cc\" }\nwords = \"ww\"\n[node]\n",
            "[secrets.credentials]\nseed_key = \"cc\"\n[secrets]\nwords = \"ww\"\n[node]\n",
            "[ secrets . 'credentials' ]\nopenai = '''\ncc\n'''\n[secrets]\nwords = \"ww\"\n[node]\n",
        ] {
            let (whole, _) = split(both);
            assert!(!whole.contains("cc") && !whole.contains("ww"), "{whole}");
            let after = erased(both);
            assert!(!after.contains("ww") && after.contains("cc"), "{after}");
            assert_eq!(split(&after).0, whole);
            let after = without_credentials(both);
            assert!(after.contains("ww") && !after.contains("cc"), "{after}");
            assert_eq!(split(&after).0, whole);
            let after = without_credentials(&erased(both));
            assert!(!after.contains("ww") && !after.contains("cc"), "{after}");
            assert_eq!(split(&after).0, whole);
        }
        // What is on one line is erased together, so it counts as no separate credentials.
        let split =
            SecretSpans::parse("secrets = { words = \"w\", credentials = { a = \"c\" } }\n");
        assert!(!split.has_credentials() && !split.is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_split_without_a_panic(text in "(\\[?\\[?secrets\\]?\\]?|[a-z=.\"'{}\\[\\]#\\n\\r ,é]){0,60}") {
            let (document, secrets) = split(&text);
            prop_assert_eq!(document.len(), text.len());
            prop_assert_eq!(secrets.len(), text.len());
            erased(&text);
            without_credentials(&text);
        }
    }
}
