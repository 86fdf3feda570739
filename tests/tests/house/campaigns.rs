//! What docs/SPECIFICATION.md says of a campaign stands in the newest row of that campaign in docs/testing.md, and each
//! test that times something belongs to a campaign.

use std::collections::BTreeSet;

use super::promises::{numbers, page, quoted, tables};
use super::tree::{SourceFile, sources, tests_of};

/// How pages name the command of a campaign.
const COMMAND: &str = "cargo xtask soak ";

/// The campaigns of `cargo xtask soak`.
const CAMPAIGNS: &str = "crates/tasks/src/soak.rs";

/// Length of a date such as 2026-11-27.
const DATE_LENGTH: usize = 10;

fn is_date(text: &str) -> bool {
    text.len() == DATE_LENGTH
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

/// The newest whole row of a campaign in docs/testing.md: its date and its outcome. The page has the newest rows first.
fn newest(rows: &[Vec<String>], campaign: &str) -> Option<(String, String)> {
    let mut newest: Option<(String, String)> = None;
    for row in rows {
        if let [name, date, outcome] = row.as_slice()
            && name == campaign
            && is_date(date)
            && newest.as_ref().is_none_or(|(known, _)| date > known)
        {
            newest = Some((date.clone(), outcome.clone()));
        }
    }
    newest
}

/// The figures of a text, without dates and without the numbers that name a processor.
fn figures(text: &str) -> Vec<(f64, usize)> {
    let mut words = Vec::new();
    let mut names_processor = false;
    for word in text.split_whitespace() {
        let bare = word.trim_matches(|c: char| !c.is_alphanumeric());
        if !names_processor && !is_date(bare) {
            words.push(word);
        }
        names_processor = matches!(bare, "family" | "model");
    }
    numbers(&words.join(" "))
}

/// What a cell says of a campaign: the date, and the rest of that sentence.
fn said_of<'a>(cell: &'a str, campaign: &str) -> Option<(&'a str, &'a str)> {
    let (_, said) = cell.split_once(&format!("`soak {campaign}` on "))?;
    let (date, rest) = said.split_at_checked(DATE_LENGTH)?;
    let sentence = rest.split(". ").next().unwrap_or_default();
    is_date(date).then_some((date, sentence))
}

/// Compares what a row of the specification says of each campaign that shows it with the newest rows of `campaigns`, and
/// returns how many of these the row quotes. `columns` are the headings of its table.
fn quotes(columns: &[String], row: &[String], campaigns: &[Vec<String>]) -> usize {
    let column = |name: &str| columns.iter().position(|it| it == name);
    let shown_by = column("shown by").map_or("", |at| &row[at]);
    let measured = column("measured").or_else(|| column("value"));
    let measured = &row[measured.unwrap_or_else(|| panic!("no figures in {columns:?}"))];
    let promise = &row[0];
    // A row of promised values alone, which a test shows as well, needs no figure that was measured.
    let has_to = column("measured").is_some() || !quoted(shown_by).any(|word| word.contains('/'));
    let names = quoted(shown_by).filter_map(|word| word.strip_prefix(COMMAND));
    let newest = names.filter_map(|name| Some((name, newest(campaigns, name)?)));
    let mut quotes = 0;
    for (name, (date, outcome)) in newest {
        if let Some((said, sentence)) = said_of(measured, name) {
            assert_eq!(said, date, "{promise:?}: the newest row of {name}");
            let known = figures(&outcome);
            let mut found = figures(sentence);
            assert!(!found.is_empty(), "{promise:?}: {sentence:?}");
            found.retain(|figure| !known.contains(figure));
            assert!(found.is_empty(), "{promise:?}: {found:?} of {name}");
            quotes += 1;
        } else {
            let lacks = format!("what did `soak {name}` on {date} measure?");
            assert!(!has_to, "{promise:?}: {lacks}");
        }
    }
    quotes
}

#[test]
fn figures_of_campaigns_stand_in_their_newest_row() {
    let campaigns = tables(&page("testing.md")).remove("Campaigns");
    let campaigns = campaigns.expect("the tables");
    let mut found = 0;
    for promised in tables(&page("SPECIFICATION.md")).into_values() {
        // A part of the page may have two tables.
        for table in promised.chunk_by(|_, next| next[0] != "promise") {
            let (columns, rows) = table.split_first().expect("headings");
            let quoted = rows.iter().map(|row| quotes(columns, row, &campaigns));
            found += quoted.sum::<usize>();
        }
    }
    assert!(found > 6, "{found} rows were found");
}

#[test]
fn dates_and_processors_are_no_figures() {
    let text = "on 2026-11-27 (Intel Xeon, family 6, model 167) all but 15 of 1,465, the last after 72.3 ms";
    assert_eq!(figures(text), [(15.0, 0), (1465.0, 0), (72.3, 1)]);
    let cell = "in `soak times` on 2026-11-27 (model 1) 1.5 ms. The day before 2 ms";
    assert_eq!(
        said_of(cell, "times"),
        Some(("2026-11-27", " (model 1) 1.5 ms"))
    );
    assert_eq!(said_of(cell, "flood"), None);
    let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
    let rows = [
        row(["times", "2026-11-26", "first"]),
        row(["times", "2026-11-27", "second"]),
        row(["times", "2026-11-27", "third"]),
        row(["times, in part", "2026-11-28", "fourth"]),
    ];
    let found = newest(&rows, "times");
    assert_eq!(found, Some(("2026-11-27".to_owned(), "second".to_owned())));
}

/// A function of a source: its name, whether it is a test, and its text.
struct Function<'a> {
    name: &'a str,
    is_test: bool,
    is_public: bool,
    text: String,
}

fn functions<'a>(text: &'a str) -> Vec<Function<'a>> {
    let tests = tests_of(text);
    let lines: Vec<&str> = text.lines().collect();
    let starts = lines.iter().enumerate().filter_map(|(at, line)| {
        let (before, after) = line.split_once("fn ")?;
        let is_code = !line.trim_start().starts_with("//");
        let name = after.split(['(', '<']).next()?;
        let is_name = name.chars().all(|c| c.is_alphanumeric() || c == '_');
        (is_code && is_name && !name.is_empty()).then_some((at, before, name))
    });
    let function = |(at, before, name): (usize, &str, &'a str)| {
        let indent = &before[..before.len() - before.trim_start().len()];
        let end = format!("{indent}}}");
        let body = lines[at + 1..].iter().take_while(|line| **line != end);
        Function {
            name,
            is_test: tests.contains(name),
            is_public: before.contains("pub"),
            text: body.copied().collect::<Vec<_>>().join("\n"),
        }
    };
    starts.map(function).collect()
}

/// Whether the code calls a function of this name.
fn calls(code: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = code.match_indices(name);
    found.any(|(at, _)| {
        let after = &code[at + name.len()..];
        !code[..at].ends_with(is_word) && after.starts_with('(')
    })
}

/// The test program to which a file belongs, such as `tests/tests/node`.
fn program(path: &str) -> &str {
    let end = path.rfind("/tests/").map(|at| at + "/tests/".len());
    let end = end.and_then(|from| path[from..].find('/').map(|length| from + length));
    &path[..end.unwrap_or_else(|| path.rfind('/').unwrap_or(path.len()))]
}

/// The name of a file's module.
fn module(path: &str) -> &str {
    let path = path.trim_end_matches("/mod.rs").trim_end_matches(".rs");
    path.rsplit('/').next().unwrap_or(path)
}

/// Whether the file uses the function that holds a time against its promise in a campaign.
fn takes_times(file: &SourceFile) -> bool {
    let mut used = file.text.split("use alknet_test_support::").skip(1);
    used.any(|used| {
        let used = used.split(';').next().unwrap_or_default();
        used.split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|word| word == "took")
    })
}

/// The tests that call `name` of `file`, directly or through other functions of the same program.
fn tests_that_call(file: &SourceFile, name: &str) -> BTreeSet<String> {
    let program = program(&file.path);
    let beside = sources().iter().filter(|it| it.path.starts_with(program));
    let beside: Vec<_> = beside.map(|it| (it, functions(&it.text))).collect();
    let mut tests = BTreeSet::new();
    let mut known = BTreeSet::new();
    let mut open = vec![(file.path.as_str(), name, false)];
    while let Some((path, name, is_public)) = open.pop() {
        let is_first = known.insert((path, name));
        let near = beside.iter().filter(|(other, _)| {
            let names_module = other.text.contains(&format!("{}::", module(path)));
            is_first && (other.path == path || (is_public && names_module))
        });
        for (other, functions) in near {
            let callers = functions.iter().filter(|it| calls(&it.text, name));
            for caller in callers {
                if caller.is_test {
                    tests.insert(caller.name.to_owned());
                } else {
                    open.push((&other.path, caller.name, caller.is_public));
                }
            }
        }
    }
    tests
}

/// The parts of names by which the campaigns that measure times choose their tests.
fn chosen_by_campaigns() -> BTreeSet<String> {
    let file = sources().iter().find(|file| file.path == CAMPAIGNS);
    let text = &file.expect("the campaigns").text;
    let lists = text.split("CampaignKind::Measured(&[").skip(1);
    let times = text.split("const TIMES:").skip(1);
    let lists = lists.chain(times.map(|list| list.split_once('[').map_or(list, |(_, it)| it)));
    let lists = lists.map(|list| list.split("];").next().unwrap_or_default());
    let lists = lists.map(|list| list.split("])").next().unwrap_or_default());
    let names = lists.flat_map(|list| list.split('"').skip(1).step_by(2));
    names.map(str::to_owned).collect()
}

/// Outside of a campaign such a test asserts no time: no run would notice a breach.
#[test]
fn tests_that_hold_a_time_against_a_promise_belong_to_a_campaign() {
    let chosen = chosen_by_campaigns();
    assert!(chosen.len() > 20, "{chosen:?}");
    let mut found = BTreeSet::new();
    for file in sources().iter().filter(|file| takes_times(file)) {
        let tests = tests_that_call(file, "took");
        assert!(!tests.is_empty(), "{}: no test holds a time", file.path);
        for test in &tests {
            let is_chosen = chosen.iter().any(|part| test.contains(part.as_str()));
            assert!(is_chosen, "{}: no campaign runs {test}", file.path);
        }
        found.extend(tests);
    }
    assert!(found.len() > 20, "{found:?}");
}

#[test]
fn a_caller_is_found_through_other_functions() {
    let text = "#[test]\nfn first() {\n    helper(1);\n}\n\npub(super) fn helper(n: u8) {\n    took(n);\n}\n";
    let [first, helper] = &functions(text)[..] else {
        panic!("two functions");
    };
    assert!(first.is_test && calls(&first.text, "helper"));
    assert!(helper.is_public && !helper.is_test && calls(&helper.text, "took"));
    assert!(!calls("mistook(1)", "took") && !calls("took;", "took"));
    assert_eq!(
        program("tests/tests/machine/http/attacks.rs"),
        "tests/tests/machine"
    );
    assert_eq!(
        program("crates/worker/tests/worker/limits.rs"),
        "crates/worker/tests/worker"
    );
    assert_eq!(module("tests/tests/machine/http/mod.rs"), "http");
    assert_eq!(module("tests/tests/node/hostile/silence.rs"), "silence");
}
