//! The codes of a node's problems: one spelling, and one list of all.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::tree::{root, sources};

/// The text before a problem's code in any crate. The code is a literal or a constant's name.
const BEFORE: [&str; 4] = [
    "code: ",
    "problem(",
    "SourceDiagnostic::new(",
    "problems.set(",
];

/// Lists of such codes.
const LISTS: [&str; 2] = ["HARMLESS: [&str;", "NOTICES: [&str;"];

/// Folders of code that is not part of a program, or is a test program.
const OF_TESTS: [&str; 2] = ["tests", "benches"];

/// The folders of programs that report a node's problems, and files where the rest of a folder has names of other
/// protocols in that spelling.
const SOURCES: [&str; 6] = [
    "appliance/identity-store/src",
    "appliance/src",
    "crates/fs/src/service.rs",
    "crates/tls/src",
    "init",
    "provisioning/src",
];

/// The list of all codes for the label of a metric. No program reports a problem because that list has its code.
const LIST: &str = "appliance/src/node/update/problem_codes.rs";

/// Words in those programs that are spelled like a code, but are not codes.
const NO_CODES: [&str; 83] = [
    "a5b5d94b-6cb1-4e0e-9b1c-5d3c8d1f0a02",
    "aes-256-xts",
    "aes-xts-plain64",
    "alk-bios",
    "alk-data",
    "alk-esp",
    "alknet-data",
    "alknet-helper",
    "alknet-node-1",
    "below-floor",
    "boot-loader",
    "boot-partition",
    "build-time",
    "built-in",
    "data-partition",
    "date-time",
    "factory-reset",
    "failed-before",
    "floor-raised",
    "given-up",
    "handler-hang",
    "handler-panic",
    "housekeep-panic",
    "identity-db",
    "init-hang",
    "init-housekeep-panic",
    "init-net-panic",
    "init-open-panic",
    "init-orphans",
    "init-panic",
    "kebab-case",
    "keep-both",
    "left-before",
    "meta-data",
    "needs-person",
    "net-panic",
    "network-config",
    "no-channel",
    "no-clock",
    "no-keys",
    "no-previous",
    "no-slots",
    "node-computes",
    "node-hang",
    "node-kill",
    "node-panic",
    "node-segv",
    "node-start",
    "not-on-trial",
    "not-staged",
    "on-trial",
    "open-panic",
    "other-base",
    "other-channel",
    "other-library",
    "other-machine",
    "other-staged",
    "outside-window",
    "random-read",
    "random-write",
    "read-only",
    "replay-nonce",
    "rolled-back",
    "runs-already",
    "staged-again",
    "start-refused",
    "state-lost",
    "taken-back",
    "too-large",
    "too-often",
    "tpm2-pin",
    "trust-damaged",
    "unmet-needs",
    "user-data",
    "vendor-data",
    "waits-for-administrator",
    "waits-for-person",
    "words-kept",
    "words-reminded",
    "words-wrong",
    "worker-kill",
    "x-secret",
    "xdg-open",
];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be read").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if path.is_dir() {
            if name != "tests" {
                files(&path, found);
            }
        } else if name.ends_with(".rs") && name != "tests.rs" {
            found.push(path);
        }
    }
}

/// Whether a text is at least two lower-case words with `-` between them.
fn is_kebab(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let word = |word: &str| !word.is_empty() && word.bytes().all(plain);
    text.contains('-')
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.split('-').all(word)
}

/// Literals with that spelling, of the programs without their tests.
fn written() -> BTreeSet<String> {
    let mut found = Vec::new();
    for source in SOURCES {
        let path = root().join(source);
        if path.is_dir() {
            files(&path, &mut found);
        } else {
            found.push(path);
        }
    }
    let list = root().join(LIST);
    found.retain(|path| *path != list);
    let mut words = BTreeSet::new();
    for path in found {
        let text = fs::read_to_string(&path).expect("text");
        let own = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        // Every second part is between quotes, or between the end of one string and the next.
        words.extend(
            own.split('"')
                .filter(|part| is_kebab(part))
                .map(str::to_owned),
        );
    }
    words
}

/// The program's part of each source of the workspace.
fn programs() -> Vec<&'static str> {
    let is_of_tests = |path: &Path| {
        let mut folders = path.iter().filter_map(|part| part.to_str());
        path.ends_with("tests.rs") || folders.any(|folder| OF_TESTS.contains(&folder))
    };
    let own = sources().iter();
    let own = own.filter(|it| !is_of_tests(Path::new(&it.path)));
    let own = own.map(|it| it.text.split("#[cfg(test)]\nmod tests {").next());
    own.map(Option::unwrap_or_default).collect()
}

/// What a piece of code begins with: a string, or the name of a constant of this module or another.
fn beginning(code: &str) -> Option<Word<'_>> {
    let code = code.trim_start();
    if let Some(text) = code.strip_prefix('"') {
        return text.split('"').next().map(Word::Text);
    }
    let is_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let path = code.split(|c: char| !is_path(c)).next()?;
    let name = path.rsplit("::").next()?;
    let is_constant = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let named = name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(is_constant);
    named.then_some(Word::Name(name))
}

/// A code in a program.
enum Word<'a> {
    Text(&'a str),
    Name(&'a str),
}

/// Every text that `programs` use as the code of a problem, in any spelling. Codes of call errors
/// are in capital letters and are left out.
fn given(programs: &[&str]) -> BTreeSet<String> {
    let mut words = Vec::new();
    for text in programs {
        for before in BEFORE {
            words.extend(text.split(before).skip(1).filter_map(beginning));
        }
        for rest in text.split("VaultWait::new(").skip(1) {
            // The condition comes before it.
            words.extend(rest.split_once(',').and_then(|(_, code)| beginning(code)));
        }
        for list in LISTS {
            for rest in text.split(list).skip(1) {
                let list = rest.split_once("= [").map_or("", |(_, items)| items);
                let items = list.split(']').next().unwrap_or_default();
                words.extend(items.split(',').filter_map(beginning));
            }
        }
    }
    let mut codes = BTreeSet::new();
    for word in words {
        match word {
            Word::Text(text) => {
                codes.insert(text.to_owned());
            }
            // Constants that are not strings have no such declaration.
            Word::Name(name) => {
                let declared = format!("const {name}: &str =");
                let places = programs
                    .iter()
                    .flat_map(|text| text.split(&declared).skip(1));
                codes.extend(places.filter_map(|rest| match beginning(rest)? {
                    Word::Text(text) => Some(text.to_owned()),
                    Word::Name(_) => None,
                }));
            }
        }
    }
    let is_of_calls = |code: &String| !code.bytes().any(|b| b.is_ascii_lowercase());
    codes.retain(|code| !is_of_calls(code));
    codes
}

/// The codes of the table.
fn listed() -> Vec<String> {
    let page = root().join("docs/observability.md");
    let page = fs::read_to_string(page).expect("the page");
    let rows = page.lines().skip_while(|line| *line != "## What is wrong");
    let codes = rows.filter_map(|row| row.strip_prefix("| `")?.split('`').next());
    codes.map(str::to_owned).collect()
}

#[test]
fn every_code_is_in_the_list_once_and_in_one_spelling() {
    let listed = listed();
    assert!(listed.len() > 40 && listed.is_sorted(), "{listed:?}");
    let set: BTreeSet<_> = listed.iter().cloned().collect();
    assert_eq!(set.len(), listed.len(), "each once");
    let odd: Vec<_> = set.iter().filter(|code| !is_kebab(code)).collect();
    assert!(odd.is_empty(), "{odd:?}");
    let mut written = written();
    written.retain(|word| !NO_CODES.contains(&word.as_str()));
    let unlisted: Vec<_> = written.difference(&set).collect();
    let hint = "a code belongs into docs/observability.md, another word into NO_CODES";
    assert!(unlisted.is_empty(), "{hint}: {unlisted:?}");
    let gone: Vec<_> = set.difference(&written).collect();
    assert!(gone.is_empty(), "no program says {gone:?}");
}

#[test]
fn the_labels_of_the_metric_of_problems_are_the_codes_of_the_list() {
    let list = fs::read_to_string(root().join(LIST)).expect("text");
    let labels: Vec<_> = list.split('"').filter(|part| is_kebab(part)).collect();
    assert_eq!(labels, listed());
}

/// `written` above finds only words in kebab case. This test also finds a code of one word, or one
/// with `_` in it.
#[test]
fn every_text_that_is_given_as_a_code_is_in_the_list() {
    let set: BTreeSet<_> = listed().into_iter().collect();
    let given = given(&programs());
    assert!(given.len() > 40, "{given:?}");
    let unlisted: Vec<_> = given.difference(&set).collect();
    assert!(
        unlisted.is_empty(),
        "in no row of docs/observability.md: {unlisted:?}"
    );
}

#[test]
fn codes_are_found_whatever_their_spelling() {
    let program = r#"
        pub(crate) const OF_A_HUB: &str = "hub_refuses";
        const HARMLESS: [&str; 3] = [
            other::OF_A_HUB,
            "clock_insane",
            "broken",
        ];
        fn problem(code: &str, text: String) -> Diagnostic {}
        Diagnostic {
            code: "diskFull".to_owned(),
        };
        SourceDiagnostic::new(
            "config",
            text,
        );
        problem("net_failed", text);
        problems.set(OF_NOTHING, "subject", text);
        VaultWait::new(UnlockPrompt::Nothing, "vault_waits", text, hint);
        CallError { code: "DISK_FULL".to_owned() };
    "#;
    let found: Vec<_> = given(&[program]).into_iter().collect();
    let expected = [
        "broken",
        "clock_insane",
        "config",
        "diskFull",
        "hub_refuses",
        "net_failed",
        "vault_waits",
    ];
    assert_eq!(found, expected);
}
