//! What an error says of a name that is not there: which names there are, and which one was probably meant.

/// Names that a message lists, so that a long list does not hide what the message says.
const NAMES_SHOWN_MAX: usize = 20;
/// Least similarity (Jaro-Winkler) at which a name is offered for another one.
const SIMILAR_MIN: f64 = 0.85;

/// Some names in a line.
pub(crate) fn name_list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<_> = names.collect();
    let shown = &names[..names.len().min(NAMES_SHOWN_MAX)];
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The name that is most like `word`, if one is like it at all.
pub(crate) fn nearest_name<'n>(
    names: impl Iterator<Item = &'n str>,
    word: &str,
) -> Option<&'n str> {
    let likeness = |name: &'n str| (strsim::jaro_winkler(name, word), name);
    let near = names.map(likeness).filter(|near| near.0 > SIMILAR_MIN);
    near.max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_is_like_the_one_that_was_meant() {
        let nearest = |word| nearest_name(["node/info", "node/log", "ops/list"].into_iter(), word);
        assert_eq!(nearest("node/ifno"), Some("node/info"));
        assert_eq!(nearest("nodes/info"), Some("node/info"));
        assert_eq!(nearest("tensor/put"), None);
    }

    #[test]
    fn a_long_list_of_names_is_cut() {
        let names: Vec<_> = (0..NAMES_SHOWN_MAX + 2).map(|n| format!("n{n}")).collect();
        let shown = name_list(names.iter().map(String::as_str));
        assert!(shown.ends_with(", n19 and 2 more"), "{shown}");
        assert_eq!(name_list(["a", "b"].into_iter()), "a, b");
    }
}
