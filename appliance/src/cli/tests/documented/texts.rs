//! The commands that the programs name in their texts: in errors and hints, and at the console of a machine.

use std::fs;
use std::path::Path;

use super::shell::{ShellCommand, commands};
use super::{PROGRAM, PageCommand, refused, root};

/// Folders whose sources print texts.
const FOLDERS: [&str; 7] = [
    "appliance/src",
    "compute",
    "crates",
    "image",
    "init/src",
    "provisioning",
    "tensor",
];

/// Folders and files of tests, which name wrong commands on purpose.
const TESTS: [&str; 2] = ["tests", "tests.rs"];

/// What stands around a command in a text.
const QUOTES: [char; 2] = ['\'', '`'];

/// Path from the root and content of each source below a folder.
fn sources(folder: &str, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(root().join(folder)).expect("a folder of this repository") {
        let entry = entry.expect("a readable entry");
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{folder}/{name}");
        if TESTS.contains(&name.as_str()) {
            continue;
        }
        if entry.file_type().expect("a readable entry").is_dir() {
            sources(&path, found);
        } else if Path::new(&name).extension().is_some_and(|it| it == "rs") {
            let text = fs::read_to_string(entry.path()).expect("a readable source");
            found.push((path, text));
        }
    }
}

/// The commands in quotes, without those of comments and of the module with the tests. A text with braces becomes a
/// command when the program fills it in.
fn commands_of_source(path: &str, source: &str) -> Vec<PageCommand> {
    let without_tests = source.split("#[cfg(test)]\nmod tests {").next();
    let lines = without_tests.unwrap_or_default().lines();
    let is_comment = |line: &str| line.trim_start().starts_with("//");
    let lines = lines.map(|line| if is_comment(line) { "" } else { line });
    let code = lines.collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for quote in QUOTES {
        let begin = format!("{quote}{PROGRAM} ");
        for (at, _) in code.match_indices(&begin) {
            let text = code[at + 1..].split(quote).next().unwrap_or_default();
            if text.contains(['{', '"']) {
                continue;
            }
            // A long text goes on in the next line of the source.
            let text = text.replace("\\\n", " ").replace("\\n", " ");
            let line = code[..at].matches('\n').count() + 1;
            let named = commands(&text).into_iter();
            found.extend(named.map(|ShellCommand { words, .. }| PageCommand {
                page: path.to_owned(),
                line,
                words,
                is_mention: true,
            }));
        }
    }
    found
}

#[test]
fn each_command_that_a_text_of_the_programs_names_is_one_of_this_program() {
    let mut all = Vec::new();
    for folder in FOLDERS {
        sources(folder, &mut all);
    }
    let found = all
        .iter()
        .flat_map(|(path, text)| commands_of_source(path, text));
    let found: Vec<_> = found.collect();
    assert!(found.len() > 100, "{} commands", found.len());
    let refused = refused(&found);
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn a_text_with_a_verb_that_does_not_exist_is_found_and_what_is_no_text_is_not() {
    let source = "// 'alknet frobnicate' is a comment\n\
        say(\"it is staged: 'alknet update apply' starts it\");\n\
        say(\"`alknet token \\\n    ad NODE`, or 'alknet status'\");\n\
        say(\"'alknet {verb}', \" + \"'alknet \" + verb);\n\
        #[cfg(test)]\nmod tests {\n    say(\"'alknet stauts'\");\n}\n";
    let found = commands_of_source("a.rs", source);
    assert_eq!(found.len(), 3, "{found:?}");
    let refused = refused(&found);
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(
        refused[0].starts_with("a.rs:2: alknet update apply"),
        "{refused:?}"
    );
    assert!(
        refused[1].starts_with("a.rs:3: alknet token ad"),
        "{refused:?}"
    );
}
