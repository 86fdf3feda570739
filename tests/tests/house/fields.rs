//! A field has the noun of its type. A word that hides what is in it sends a reader to the declaration.

use super::names::declaration;
use super::tree::{SourceFile, sources};

/// Names that say where a value is or what happened to it, and not what it is.
const REFUSED: [&str; 19] = [
    "about", "around", "aside", "asked", "away", "beside", "keeper", "kept", "named", "outside",
    "people", "place", "places", "pulse", "room", "said", "shelf", "told", "whom",
];

/// Members of published documents, and of the data of a test about such members.
const PUBLISHED: [(&str, &str); 5] = [
    ("appliance/src/node/reload.rs", "kept"),
    ("crates/licenses/src/lib.rs", "place"),
    ("crates/runtime/src/error.rs", "place"),
    ("crates/tasks/src/licenses/parts.rs", "place"),
    ("tensor/tests/tensor/layouts.rs", "place"),
];

#[test]
fn fields_have_the_noun_of_their_type() {
    let mut found = Vec::new();
    let mut unused = PUBLISHED.to_vec();
    for SourceFile { path, text } in sources() {
        for field in fields(text).filter(|field| REFUSED.contains(field)) {
            let published = (path.as_str(), field);
            unused.retain(|one| *one != published);
            if !PUBLISHED.contains(&published) {
                found.push(format!("{path}: {field}"));
            }
        }
    }
    assert!(
        found.is_empty(),
        "name what the field has, as its type does: {found:#?}"
    );
    assert!(unused.is_empty(), "no such field any more: {unused:#?}");
}

#[test]
fn fields_are_found_in_structures_and_in_variants_only() {
    let text = [
        "/// keeper: in a comment",
        "pub(crate) struct Plain<'a> {",
        "    /// room: in a comment",
        "    #[serde(rename = \"a\")]",
        "    pub(super) room: HashMap<String, Vec<u8>>,",
        "    asked: &'a str,",
        "}",
        "struct Tuple(u8);",
        "trait Named {",
        "    fn find(&self, around: u8);",
        "}",
        "enum Kind {",
        "    Short { place: u64, by: Vec<(u8, u8)> },",
        "    #[error(",
        "        \"said: {told}\"",
        "    )]",
        "    Long {",
        "        told: String,",
        "    },",
        "}",
        "impl Plain<'_> {",
        "    fn make(&self, keeper: u8) {",
        "        let kept: u8 = Plain { about: 1 };",
        "    }",
        "}",
        "struct Bounded<T>",
        "where",
        "    T: Send,",
        "{",
        "    outside: T,",
        "}",
    ];
    let text = text.join("\n");
    let found: Vec<_> = fields(&text).collect();
    assert_eq!(found, ["room", "asked", "place", "by", "told", "outside"]);
}

/// The names of the fields that a source formatted by rustfmt declares.
fn fields(text: &str) -> impl Iterator<Item = &str> {
    let mut end = None;
    let mut is_head = false;
    text.lines().flat_map(move |line| {
        if let Some(last) = &end {
            if line == last {
                end = None;
            }
            return declared_in(line);
        }
        // The head ends with `;` or `{`, which follows on a later line if there is a `where`.
        is_head |= declaration(line).is_some() && !line.contains("trait ");
        if is_head && line.ends_with('{') {
            let indent = &line[..line.len() - line.trim_start().len()];
            end = Some(format!("{indent}}}"));
            is_head = false;
        }
        is_head &= !line.ends_with(';') && !line.ends_with('}');
        Vec::new()
    })
}

/// The names before the colons of a line within a type.
fn declared_in(line: &str) -> Vec<&str> {
    let line = line.trim();
    if line.starts_with("//") || line.starts_with('#') {
        return Vec::new();
    }
    let parts = line.split(['{', ',', '(']);
    let names = parts.filter_map(|part| {
        let name = part.split_once(": ")?.0.trim();
        let name = name.rsplit_once(' ').map_or(name, |(_, name)| name);
        Some(name.strip_prefix("r#").unwrap_or(name))
    });
    let is_name = |name: &&str| {
        !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    names.filter(is_name).collect()
}
