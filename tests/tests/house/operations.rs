//! The description of each operation, which callers read in `alknet ops`, in the OpenAPI document and as a tool of MCP.

use super::tree::sources;

/// Functions of `alknet-call` that begin a specification: name, description.
const CONSTRUCTORS: [&str; 3] = [
    "OperationSpec::query(",
    "OperationSpec::mutation(",
    "OperationSpec::subscription(",
];

/// The text literals of a call, from behind its opening bracket to the closing one.
fn literals(call: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut literal: Option<String> = None;
    let mut open = 1;
    let mut chars = call.chars();
    while let Some(char) = chars.next() {
        match (&mut literal, char) {
            (Some(text), '\\') => text.extend(chars.next()),
            (Some(_), '"') => found.extend(literal.take()),
            (Some(text), _) => text.push(char),
            (None, '"') => literal = Some(String::new()),
            (None, '(') => open += 1,
            (None, ')') => open -= 1,
            (None, _) => {}
        }
        if open == 0 {
            break;
        }
    }
    found
}

/// The descriptions of operations in a source. A call whose description is no literal has none here.
fn descriptions(text: &str) -> Vec<String> {
    let calls = CONSTRUCTORS
        .iter()
        .flat_map(|constructor| text.split(constructor).skip(1));
    calls
        .filter_map(|call| literals(call).pop())
        .filter(|last| last.contains(' '))
        .collect()
}

/// Whether the first word ends as a verb in the third person does: "Returns", "Revokes".
fn begins_with_a_verb(description: &str) -> bool {
    let first = description.split(' ').next().unwrap_or_default();
    first.len() > 3 && first.ends_with('s') && !first.ends_with("ss") && first != "This"
}

#[test]
fn each_description_begins_with_what_the_operation_does() {
    let mut count = 0;
    let product = sources()
        .iter()
        .filter(|file| !file.path.starts_with("tests/") && !super::comments::is_test(&file.path));
    for file in product {
        // The constructors themselves, and specifications of tests, are not for callers.
        let text = file.text.split("#[cfg(test)]\nmod tests {").next();
        for description in descriptions(text.unwrap_or_default()) {
            count += 1;
            assert!(
                begins_with_a_verb(&description),
                "{}: \"{description}\": begin with a verb, as in \"Returns …\" or \"Removes …\"",
                file.path
            );
        }
    }
    assert!(count > 60, "{count} descriptions");
}

#[test]
fn a_description_without_a_verb_is_found() {
    let source = r#"
        OperationSpec::query("a/b", "The state of \"b\" (all of it).").with_scope("a b");
        OperationSpec::mutation(
            "a/c",
            "Removes c.",
        );
        OperationSpec::subscription(name, what);
    "#;
    let found = descriptions(source);
    assert_eq!(found, ["The state of \"b\" (all of it).", "Removes c."]);
    let verbs: Vec<_> = found.iter().map(|one| begins_with_a_verb(one)).collect();
    assert_eq!(verbs, [false, true]);
    assert!(!begins_with_a_verb("This operation lists peers."));
    assert!(!begins_with_a_verb("Access to a peer."));
}
