//! A name has one meaning and the field's noun, and comments and pages use plain words.

use std::collections::BTreeMap;

use super::promises::{page, tables};
use super::renames::declared;
use super::tree::{SourceFile, others, root, sources};

/// Names that each module may give to its own type. Other modules write them with the path.
const QUALIFIED: [&str; 2] = ["Error", "Result"];

/// Words that hide the actor of a sentence, or state a rule by its negation.
/// `docs/ARCHITECTURE.md`, "Words", has the replacements.
const AVOIDED: [&str; 17] = [
    "anew",
    "anybody",
    "anyone",
    "are told",
    "everybody",
    "in vain",
    "is none",
    "is told",
    "no one",
    "nobody",
    "somebody",
    "stranger",
    "strangers",
    "was told",
    "were told",
    "whoever",
    "whom",
];

/// Names of functions that do not say what the function does.
const FUNCTIONS: [&str; 27] = [
    "acts", "anew", "aside", "away", "carried", "counted", "errand", "even", "flights", "front",
    "in_vain", "keep", "kept", "look", "named", "of", "offered", "onward", "outside", "own_key",
    "poke", "reach", "some", "whom", "wide", "wishes", "wrong",
];

/// Words that no function name may contain, even in tests, because each hides the actor.
const PARTS: [&str; 11] = [
    "anew",
    "anybody",
    "anyone",
    "everybody",
    "nobody",
    "somebody",
    "stranger",
    "strangers",
    "told",
    "whoever",
    "whom",
];

/// Words of the house that no type, module or file of Rust may have as a part of its name, beside those of [`PARTS`]:
/// the field has a noun for each thing that was called so (docs/renames.md). `Gate`, `Line` and `Link` are not among
/// them, because the gate of an update, the line of a text and the link of a network are the field's own nouns.
const TYPE_PARTS: [&str; 36] = [
    "account",
    "accounts",
    "asked",
    "away",
    "desk",
    "desks",
    "entrance",
    "entrances",
    "errand",
    "errands",
    "keeper",
    "keepers",
    "kept",
    "lane",
    "lanes",
    "office",
    "offices",
    "onward",
    "outlet",
    "outlets",
    "outside",
    "people",
    "place",
    "places",
    "powers",
    "pulse",
    "pulses",
    "room",
    "rooms",
    "shelf",
    "shelves",
    "standing",
    "wish",
    "wished",
    "wishes",
    "wishing",
];

/// Names with such a word where it is the field's noun: the account of RFC 8555 (ACME), and the lanes of a vector
/// register.
const STANDARD: [&str; 5] = [
    "AccountKey",
    "AlignedLanes",
    "DerivedAccountKey",
    "StoredAccount",
    "account",
];

/// Most rows of the docs' glossary, so that readers learn few words besides the field's terms.
const GLOSSARY_ROWS_MAX: usize = 20;

/// Sources in other languages, by their endings.
const LANGUAGES: [&str; 13] = [
    "css", "hbs", "html", "js", "mjs", "py", "sh", "tf", "toml", "ts", "wgsl", "yaml", "yml",
];

/// Files that list the words, or quote texts with them.
const QUOTING: [&str; 2] = ["tests/tests/house/names.rs", "docs/renames.md"];

/// A type that a source declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TypeDeclaration<'a> {
    pub(super) name: &'a str,
    is_public: bool,
}

#[test]
fn a_public_type_has_a_name_of_its_own() {
    let mut declared: BTreeMap<&str, Vec<(&str, bool)>> = BTreeMap::new();
    for SourceFile { path, text } in sources() {
        let types = text.lines().filter_map(declaration);
        for TypeDeclaration { name, is_public } in types.chain(text.lines().filter_map(alias)) {
            declared.entry(name).or_default().push((path, is_public));
        }
    }
    declared.retain(|name, places| {
        let shared = places.len() > 1 && places.iter().any(|(_, is_public)| *is_public);
        shared && !QUALIFIED.contains(name)
    });
    assert!(
        declared.is_empty(),
        "each of these names has several types, one of them public: {declared:#?}"
    );
}

#[test]
fn declarations_are_found_whatever_stands_before_them() {
    for (line, name, is_public) in [
        ("struct Bare;", "Bare", false),
        ("    pub(super) enum Nested<T> {", "Nested", true),
        ("pub trait Doing: Send {", "Doing", true),
        ("pub unsafe trait Risky {}", "Risky", true),
        ("pub(in crate::a) union Both {", "Both", true),
    ] {
        let expected = TypeDeclaration { name, is_public };
        assert_eq!(declaration(line), Some(expected), "{line}");
    }
    for line in [
        "// struct Comment",
        "let structure = 1;",
        "fn enumerate() {}",
    ] {
        assert_eq!(declaration(line), None, "{line}");
    }
}

#[test]
fn functions_have_a_verb_or_a_noun() {
    for SourceFile { path, text } in sources() {
        let functions = text.lines().filter_map(|line| line.split_once("fn "));
        for (_, declared) in functions {
            let end = declared.find(|c: char| !c.is_alphanumeric() && c != '_');
            let name = &declared[..end.unwrap_or(declared.len())];
            assert!(!FUNCTIONS.contains(&name), "{path}: fn {name}");
            let part = name.split('_').find(|part| PARTS.contains(part));
            assert_eq!(part, None, "{path}: fn {name}: name the actor");
        }
    }
}

#[test]
fn types_and_modules_have_the_noun_of_the_field() {
    let mut found = Vec::new();
    for SourceFile { path, text } in sources() {
        let types = text.lines().filter_map(declared);
        let modules = text.lines().filter_map(module);
        let file = path.trim_end_matches(".rs").split('/');
        for name in types.chain(modules).chain(file) {
            let word = house_word(name).filter(|_| !STANDARD.contains(&name));
            found.extend(word.map(|word| format!("{path}: {name}: {word}")));
        }
    }
    assert!(
        found.is_empty(),
        "take the noun of the RFC, the kernel or the ecosystem: {found:#?}"
    );
}

#[test]
fn house_words_are_found_as_parts_of_names_only() {
    for (name, word) in [
        ("StoreRoom", Some("room")),
        ("KeptNote", Some("kept")),
        ("HTTPPlaces", Some("places")),
        ("making_room", Some("room")),
        ("session-desk", Some("desk")),
        ("Wish", Some("wish")),
        ("NobodyAsks", Some("nobody")),
        ("Placement", None),
        ("ChatRoomlike", None),
        ("placement", None),
    ] {
        assert_eq!(house_word(name), word, "{name}");
    }
    assert_eq!(module("    pub(super) mod room {"), Some("room"));
    assert_eq!(module("mod tests;"), Some("tests"));
    assert_eq!(module("// mod room;"), None);
    assert_eq!(module("let mod_room = 1;"), None);
}

#[test]
fn a_doc_comment_says_more_than_a_word() {
    let mut found = Vec::new();
    for SourceFile { path, text } in sources() {
        found.extend(one_word_docs(text).map(|doc| format!("{path}: {doc}")));
    }
    assert!(found.is_empty(), "say what a reader cannot see: {found:#?}");
}

#[test]
fn docs_of_one_word_are_found_and_others_are_not() {
    let text = "/// Why.\nsource: Error,\n\n/// First line\n/// over.\nx: u8,\n/// `i16`.\nInt16,";
    assert_eq!(one_word_docs(text).collect::<Vec<_>>(), ["/// Why."]);
}

#[test]
fn texts_of_the_program_name_their_actor() {
    let mut found = Vec::new();
    let plain = |path: &str| !QUOTING.contains(&path);
    for SourceFile { path, text } in sources().iter().filter(|source| plain(&source.path)) {
        let texts = SourceWords::read(text).literals.into_iter();
        let words = texts.filter(|text| text.contains(' ')).flat_map(words_in);
        found.extend(words.map(|word| format!("{path}: {word:?}")));
    }
    assert!(found.is_empty(), "name the actor: {found:#?}");
}

#[test]
fn literals_are_found_and_quotation_marks_within_them_do_not_end_them() {
    let literals = |text| SourceWords::read(text).literals;
    let line = r#"say("a \"b\" c", 'x', "d") // "e"#;
    assert_eq!(literals(line), [r#"a \"b\" c"#, "d"]);
    assert_eq!(literals("let mark = '\"'; f(\"a b\")"), ["a b"]);
    assert_eq!(literals(r"f('\'', '\\', 'ä', 'a: loop {}, b'x')"), [""; 0]);
    assert_eq!(literals(r##"f(br#"a "b" c"#, "d")"##), [r#"a "b" c"#, "d"]);
}

#[test]
fn literals_are_found_over_lines() {
    let text = "say(\n    \"the peer is \\\n     told // why\",\n); // a word";
    let words = SourceWords::read(text);
    assert_eq!(words.literals, ["the peer is \\\n     told // why"]);
    assert_eq!(words_in(words.literals[0]), ["is told"]);
    assert_eq!(words.comments, [(3, "// a word")]);
}

#[test]
fn comments_are_found_behind_code_and_not_within_literals() {
    let text = "/// One.\nfn f() { // two\n    g(1) // three\n} // four\nlet url = \"https://five\"; // six";
    let expected = [
        (0, "/// One."),
        (1, "// two"),
        (2, "// three"),
        (3, "// four"),
        (4, "// six"),
    ];
    assert_eq!(SourceWords::read(text).comments, expected);
}

#[test]
fn the_glossary_is_short() {
    let rows = tables(&page("ARCHITECTURE.md")).remove("Words");
    // The section's other table, of words to avoid, has two columns.
    let mut rows = rows.expect("the section");
    rows.retain(|row| row.len() == 3 && row[0] != "word");
    let words: Vec<_> = rows.iter().map(|row| &row[0]).collect();
    assert!(words.len() > 10, "{words:?}");
    assert!(
        words.len() <= GLOSSARY_ROWS_MAX,
        "{} words of our own, {GLOSSARY_ROWS_MAX} at most: use the field's terms: {words:?}",
        words.len()
    );
}

#[test]
fn sources_in_other_languages_name_their_actor() {
    let mut found = Vec::new();
    for SourceFile { path, text } in others(&LANGUAGES) {
        let words = words_of_paragraph(&text.replace(['`', '"'], " "));
        // Python compares with `None` in this form.
        let words = words.into_iter().filter(|word| *word != "is none");
        found.extend(words.map(|word| format!("{path}: {word:?}")));
    }
    assert!(found.is_empty(), "name the actor: {found:#?}");
}

#[test]
fn comments_and_pages_name_their_actor() {
    let mut found = Vec::new();
    let quotes = |path: &str| QUOTING.contains(&path);
    let texts = comments().into_iter().chain(pages());
    for (path, text) in texts.filter(|(path, _)| !quotes(path)) {
        for word in words_in(&text) {
            found.push(format!("{path}: {word:?}"));
        }
    }
    found.sort_unstable();
    assert!(
        found.is_empty(),
        "name the actor (client, peer, administrator, unknown peer, caller) in {} places: {found:#?}",
        found.len()
    );
}

#[test]
fn avoided_words_are_found_across_lines_and_not_within_others() {
    assert_eq!(words_in("it waits for\n    nobody"), ["nobody"]);
    assert_eq!(words_in("the peer is\ntold why"), ["is told"]);
    assert_eq!(words_in("a \"lone mark\n\nhides nobody"), ["nobody"]);
    assert_eq!(
        words_in("```text\nlock  whoever\n```\nwhom"),
        ["whoever", "whom"]
    );
    assert!(words_in("```\nwhoever\n```\nplain").is_empty());
    assert!(words_in("It says no. One retry | no | one-way |").is_empty());
    assert!(words_in("a `nobody` in code, and an uid \"nobody\"").is_empty());
}

/// The type that a line declares.
pub(super) fn declaration(line: &str) -> Option<TypeDeclaration<'_>> {
    let line = line.trim_start();
    let (is_public, rest) = match line.strip_prefix("pub") {
        Some(rest) => {
            let rest = match rest.strip_prefix('(') {
                Some(within) => within.split_once(')')?.1,
                None => rest,
            };
            (true, rest.strip_prefix(' ')?)
        }
        None => (false, line),
    };
    let rest = rest.strip_prefix("unsafe ").unwrap_or(rest);
    let kinds = ["struct ", "enum ", "trait ", "union "];
    let name = kinds.iter().find_map(|kind| rest.strip_prefix(kind))?;
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
    let name = &name[..end.unwrap_or(name.len())];
    let is_type = name.starts_with(|c: char| c.is_ascii_uppercase());
    is_type.then_some(TypeDeclaration { name, is_public })
}

/// The public type alias in a line of a module. Associated types of traits do not count.
fn alias(line: &str) -> Option<TypeDeclaration<'_>> {
    let rest = line.strip_prefix("pub")?;
    let rest = match rest.strip_prefix('(') {
        Some(within) => within.split_once(')')?.1,
        None => rest,
    };
    let name = rest.strip_prefix(" type ")?;
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    let name = &name[..end];
    Some(TypeDeclaration {
        name,
        is_public: true,
    })
}

/// The module that a line declares.
fn module(line: &str) -> Option<&str> {
    let (visibility, rest) = line.trim_start().split_once("mod ")?;
    let is_item = visibility.is_empty() || visibility.starts_with("pub");
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
    end.filter(|_| is_item).map(|end| &rest[..end])
}

/// The word of the house that is a part of the name of a type, a module or a folder.
fn house_word(name: &str) -> Option<&'static str> {
    let mut parts = vec![String::new()];
    let mut is_after_small = false;
    let mut letters = name.chars().peekable();
    while let Some(letter) = letters.next() {
        let is_before_small = letters.peek().is_some_and(char::is_ascii_lowercase);
        let begins = letter.is_ascii_uppercase() && (is_after_small || is_before_small);
        if begins || !letter.is_alphanumeric() {
            parts.push(String::new());
        }
        is_after_small = letter.is_ascii_lowercase();
        if letter.is_alphanumeric()
            && let Some(part) = parts.last_mut()
        {
            part.push(letter.to_ascii_lowercase());
        }
    }
    let mut words = PARTS.into_iter().chain(TYPE_PARTS);
    words.find(|word| parts.iter().any(|part| part == word))
}

/// The documentation comments of a source that have one word, without code.
fn one_word_docs(text: &str) -> impl Iterator<Item = &str> {
    let is_doc = |line: &str| line.trim_start().starts_with("///");
    let lines: Vec<&str> = text.lines().collect();
    let alone = (0..lines.len()).filter(move |at| {
        let beside = [at.checked_sub(1), at.checked_add(1)];
        let line = |at: usize| lines.get(at).copied().unwrap_or_default();
        let word = line(*at).trim_start().strip_prefix("/// ");
        let is_word = word.is_some_and(|doc| {
            let word = doc.strip_suffix('.').unwrap_or(doc);
            !word.is_empty() && word.chars().all(char::is_alphanumeric)
        });
        is_word && !beside.into_iter().flatten().any(|at| is_doc(line(at)))
    });
    let at: Vec<usize> = alone.collect();
    at.into_iter().filter_map(move |at| text.lines().nth(at))
}

/// The texts of a Rust source, with escapes as they are written.
#[derive(Debug, Default)]
struct SourceWords<'a> {
    literals: Vec<&'a str>,
    /// Each with the number of its line, from 0.
    comments: Vec<(usize, &'a str)>,
}

impl<'a> SourceWords<'a> {
    fn read(text: &'a str) -> Self {
        let mut words = Self::default();
        let (mut at, mut line) = (0, 0);
        while let Some(ahead) = text[at..].find(['"', '\'', '/']) {
            let from = at + ahead;
            line += text[at..from].matches('\n').count();
            let rest = &text[from..];
            let length = match rest.as_bytes() {
                [b'"', ..] => {
                    let length = literal_length(&text[..from], &rest[1..]);
                    words.literals.push(&rest[1..=length]);
                    length + 2
                }
                [b'\'', ..] => character_length(rest),
                [b'/', b'/', ..] => {
                    let length = rest.find('\n').unwrap_or(rest.len());
                    words.comments.push((line, &rest[..length]));
                    length
                }
                [b'/', b'*', ..] => rest.find("*/").unwrap_or(rest.len()),
                _ => 1,
            };
            at = text.len().min(from + length);
            line += text[from..at].matches('\n').count();
        }
        words
    }
}

/// Bytes of a literal up to its closing quotation mark, given the code `before` its opening mark.
fn literal_length(before: &str, rest: &str) -> usize {
    let code = before.trim_end_matches('#');
    let prefix = code
        .rsplit(|c: char| !c.is_alphanumeric() && c != '_')
        .next();
    let end = if let Some("r" | "br" | "cr") = prefix {
        let hashes = before.len() - code.len();
        rest.find(&format!("\"{}", "#".repeat(hashes)))
    } else {
        let mut is_escaped = false;
        rest.bytes().position(|byte| {
            let is_end = byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            is_end
        })
    };
    end.unwrap_or(rest.len())
}

/// Bytes of the character literal at the start of a text, or of the mark alone if it begins a
/// lifetime.
fn character_length(text: &str) -> usize {
    let mut inner = text[1..].chars();
    match inner.next() {
        // The escaped character may itself be a quotation mark.
        Some('\\') => {
            let escaped = inner.next().map_or(0, char::len_utf8);
            let end = inner.as_str().find('\'').unwrap_or(0);
            2 + escaped + end + 1
        }
        Some(c) if inner.as_str().starts_with('\'') => 2 + c.len_utf8(),
        _ => 1,
    }
}

/// The comments of each source, with an empty line between two of them.
fn comments() -> Vec<(String, String)> {
    let text = |source: &SourceFile| {
        let mut lines = vec![""; source.text.lines().count()];
        for (line, comment) in SourceWords::read(&source.text).comments {
            lines[line] = comment.trim_start_matches(['/', '!']);
        }
        lines.join("\n")
    };
    let all = sources().iter();
    all.map(|source| (source.path.clone(), text(source)))
        .collect()
}

/// Each page of the documentation, with README.md: its path and its text.
pub(crate) fn pages() -> Vec<(String, String)> {
    let mut pages = vec!["README.md".to_owned()];
    let docs = std::fs::read_dir(root().join("docs")).expect("the docs");
    for entry in docs {
        let name = entry.expect("a readable entry").file_name();
        let name = name.to_string_lossy().into_owned();
        if name.ends_with(".md") {
            pages.push(format!("docs/{name}"));
        }
    }
    let read = |path: String| {
        let text = std::fs::read_to_string(root().join(&path)).expect("a readable page");
        (path, text)
    };
    pages.into_iter().map(read).collect()
}

/// The avoided words in a text, without code and quotations.
fn words_in(text: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut paragraph = String::new();
    let mut is_code = false;
    let mut is_fenced = false;
    for line in text.lines().chain([""]) {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            is_fenced = !is_fenced;
            // The words of a drawing are those of its author, as in a sentence.
            is_code = is_fenced && info.trim() != "text";
        } else if !is_code && line.trim().is_empty() {
            found.extend(words_of_paragraph(&paragraph));
            paragraph.clear();
        } else if !is_code {
            paragraph.push_str(line);
            paragraph.push('\n');
        }
    }
    found
}

/// A quotation or a piece of code ends with its paragraph, so that a single mark does not hide what
/// follows.
fn words_of_paragraph(paragraph: &str) -> Vec<&'static str> {
    let mut plain = " ".to_owned();
    let (mut is_code, mut is_quoted) = (false, false);
    for c in paragraph.chars() {
        match c {
            '`' => is_code = !is_code,
            '"' if !is_code => is_quoted = !is_quoted,
            _ if is_code || is_quoted => {}
            // Words on both sides of an end are not a phrase.
            '|' | '.' if plain.ends_with(' ') => plain.push_str("| "),
            '|' | '.' => plain.push_str(" | "),
            c if c.is_alphanumeric() => plain.extend(c.to_lowercase()),
            _ if plain.ends_with(' ') => {}
            _ => plain.push(' '),
        }
    }
    plain.push(' ');
    let is_in = |word: &&str| plain.contains(&format!(" {word} "));
    AVOIDED.into_iter().filter(is_in).collect()
}
