//! No test returns early, where it would pass without having run.

use super::tree::sources;

/// Each test of a file: its first line, and the lines of its body.
fn tests_of(text: &str) -> Vec<(usize, Vec<&str>)> {
    let lines: Vec<&str> = text.lines().collect();
    // Those of `alone` are the bodies of tests that run in a process of their own.
    const MARKS: [&str; 3] = ["#[test]", "#[tokio::test", "#[tokio::main(flavor"];
    let is_mark = |line: &str| MARKS.iter().any(|mark| line.starts_with(mark));
    let marks = lines.iter().enumerate();
    let marks = marks.filter(|(_, line)| is_mark(line.trim_start()));
    marks
        .map(|(at, line)| {
            let indent = &line[..line.len() - line.trim_start().len()];
            let end = format!("{indent}}}");
            let body = lines[at..].iter().copied();
            (at + 1, body.take_while(|line| *line != end).collect())
        })
        .collect()
}

/// So many tests in these files start their program again, as a process that ends where the test's own part
/// begins.
const STARTED_AGAIN: [(&str, usize); 7] = [
    ("appliance/identity-store/tests/killed.rs", 1),
    ("crates/runtime/promotion/tests/promotion/killed.rs", 1),
    ("crates/runtime/sessions/tests/sessions/hostile.rs", 1),
    ("crates/tasks/src/group.rs", 3),
    ("crates/tasks/src/test/programs.rs", 1),
    ("crates/test-support/src/campaign.rs", 1),
    ("crates/test-support/src/deadline.rs", 1),
];

/// So many tests in these files have a closure or a task that returns early. The test itself does not.
const RETURNED_FROM_WITHIN: [(&str, usize); 4] = [
    ("crates/call/tests/call/repeat.rs", 1),
    ("crates/runtime/sessions/tests/sessions/calls.rs", 1),
    ("tests/tests/node/identities/binary.rs", 1),
    ("tests/tests/node/identities/draining.rs", 1),
];

/// How often code has this keyword, beside what is in its texts and comments: many texts are scripts.
fn keywords(code: &str, keyword: &str) -> usize {
    let code = without_texts(code);
    let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| *word == keyword).count()
}

/// The code without comments and literals of strings and characters.
fn without_texts(code: &str) -> String {
    let mut kept = String::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let text = text_at_start(rest, kept.chars().next_back());
        if text == 0 {
            kept.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            rest = &rest[text..];
        }
    }
    kept
}

/// Bytes of the comment or literal that the code begins with, after the character `before`; 0 where it begins with
/// neither. One without an end ends with the code.
fn text_at_start(code: &str, before: Option<char>) -> usize {
    let until = |from: usize, end: &str| {
        let at = code[from..].find(end);
        at.map_or(code.len(), |at| from + at + end.len())
    };
    if code.starts_with("//") {
        // The end of the line still divides words.
        return code.find('\n').unwrap_or(code.len());
    }
    if code.starts_with("/*") {
        return until(2, "*/");
    }
    if let Some(literal) = code.strip_prefix('"') {
        let mut escaped = false;
        let end = literal.find(|c: char| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        return end.map_or(code.len(), |end| end + 2);
    }
    // `r` as the end of a longer word begins no literal; those of `br` and `cr` do.
    let within_word = |c: char| (c.is_alphanumeric() || c == '_') && c != 'b' && c != 'c';
    if let Some(raw) = code.strip_prefix('r')
        && !before.is_some_and(within_word)
    {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            return until(hashes + 2, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    if let Some(character) = code.strip_prefix('\'') {
        let mut after = character.chars();
        match (after.next(), after.next()) {
            // The character after the backslash may be a quote itself.
            (Some('\\'), Some(escaped)) => return until(2 + escaped.len_utf8(), "'"),
            (Some(one), Some('\'')) => return one.len_utf8() + 2,
            // A lifetime.
            _ => {}
        }
    }
    0
}

#[test]
fn returns_are_found_however_they_are_written() {
    let early = [
        "return;",
        "return Ok(());",
        "if a { return }",
        "let Some(b) = a else { return };",
        "return helper();",
        "Err(_) => return,",
        "let a = '\"'; return; let b = '\"';",
        "let a = '\\''; return;",
        "fn f<'a>(a: &'a str) { return }",
        "let a = br\"\\\"; return;",
        "for a in b { return }",
    ];
    for code in early {
        assert_eq!(keywords(code, "return"), 1, "{code}");
    }
    let others = [
        "skip!(\"KVM\", \"none\");",
        "// return;",
        "/* return; */ a();",
        "let script = \"return 1; \\\" return 2\";",
        "let script = r#\"return \"1\"; return\"#;",
        "let script = \"first\n  return 1;\";",
        "let returned = returns();",
    ];
    for code in others {
        assert_eq!(keywords(code, "return"), 0, "{code}");
    }
}

/// A test that returns early passes without having run. `skip!` of `alknet-test-support` returns as well, and
/// the skip is counted.
#[test]
fn no_test_returns_early_without_a_named_skip() {
    let mut tests = 0;
    for file in sources() {
        let all = tests_of(&file.text);
        tests += all.len();
        let is_early = |body: &[&str]| keywords(&body.join("\n"), "return") > 0;
        let early = all.iter().filter(|(_, body)| is_early(body));
        let early: Vec<usize> = early.map(|(line, _)| *line).collect();
        let mut known = STARTED_AGAIN.iter().chain(&RETURNED_FROM_WITHIN);
        let known = known.find(|(known, _)| file.path == *known);
        assert_eq!(
            early.len(),
            known.map_or(0, |(_, tests)| *tests),
            "{}, lines {early:?}: say with skip! what is lacking",
            file.path
        );
    }
    assert!(tests > 2000, "{tests} tests were found");
}
