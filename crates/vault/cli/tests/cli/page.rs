//! The commands that docs/vault.md shows are run, and end well. What each of them does is shown beside this.

use std::fs;

use crate::shell::{CHEAP, CommandFolder, WORDS};

/// Commands for which the user types nothing.
const UNASKED: [&str; 7] = [
    "audit show",
    "record list",
    "record remove",
    "selftest",
    "slot list",
    "status",
    "successor verify",
];

#[test]
fn the_commands_of_the_page_work() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../docs/vault.md");
    let page = fs::read_to_string(page).expect("the page exists");
    let shell = CommandFolder::new();
    // The log of a machine with these words.
    shell.good("import --dir rescued --slot none --mnemonic-stdin", WORDS);
    let mut count = 0;
    for line in page
        .lines()
        .filter_map(|line| line.strip_prefix("alknet vault "))
    {
        // A comment, another program, and what is read are for the reader's shell.
        let command = line.split(['#', '|']).next().unwrap_or_default();
        let (command, file) = command.split_once('<').unwrap_or((command, ""));
        let mut words: Vec<_> = command
            .split_whitespace()
            .map(|word| word.trim_matches('"'))
            .collect();
        let mut input = "right\n".repeat(2);
        if file.trim() == "words.txt" {
            WORDS.clone_into(&mut input);
        } else if !UNASKED.iter().any(|verb| command.starts_with(verb)) {
            words.push("--passphrase-stdin");
        }
        let verb = words[..words.len().min(2)].join(" ");
        if ["init", "migrate"].contains(&words[0]) || verb == "slot set" {
            words.extend(CHEAP.split(' '));
        }
        let ended = shell.run_words(&words, &input);
        assert_eq!(ended.code, 0, "{line}: {}", ended.err);
        match verb.as_str() {
            "record list" => assert!(ended.out.contains("cred:openai"), "{}", ended.out),
            "record remove" => {
                let left = shell.good("record list --dir vault", "");
                assert!(!left.contains("cred:openai"), "{left}");
            }
            "record rotate" => assert_eq!(shell.json("status --dir vault", "")["key_version"], 3),
            _ => {}
        }
        count += 1;
    }
    assert_eq!(count, 30);
}
