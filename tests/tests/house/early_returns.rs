//! No test returns early, skips its own cases, or is an `if` that may be false, because it could
//! pass without having run.

use super::tree::sources;

/// Each test of a file: its first line, and the lines of its body.
fn tests_of(text: &str) -> Vec<(usize, Vec<&str>)> {
    let lines: Vec<&str> = text.lines().collect();
    // Functions named `alone` are the bodies of tests that run in a separate process.
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

/// How many tests in these files start their program again, as a process that ends before the
/// test's own part.
const STARTED_AGAIN: [(&str, usize); 8] = [
    ("appliance/identity-store/src/tests/full.rs", 1),
    ("appliance/identity-store/tests/killed.rs", 1),
    ("crates/runtime/promotion/tests/promotion/killed.rs", 1),
    ("crates/runtime/sessions/tests/sessions/hostile.rs", 1),
    ("crates/tasks/src/group.rs", 3),
    ("crates/tasks/src/test/programs.rs", 1),
    ("crates/test-support/src/campaign.rs", 1),
    ("crates/test-support/src/deadline.rs", 1),
];

/// How many tests in these files have a closure or a task that returns early. The test itself does
/// not.
const RETURNED_FROM_WITHIN: [(&str, usize); 4] = [
    ("crates/call/tests/call/repeat.rs", 1),
    ("crates/runtime/sessions/tests/sessions/calls.rs", 1),
    ("tests/tests/node/identities/binary.rs", 2),
    ("tests/tests/node/identities/draining.rs", 1),
];

/// Helpers that return nothing if the machine lacks something, and record that. Each has the name
/// that calls it, and its file.
const RECORD: [(&str, &str); 6] = [
    ("host_on", "tests/src/bench.rs"),
    ("host_on_disk", "tests/src/bench.rs"),
    ("start_on", "tests/src/host.rs"),
    ("start_on_disk", "tests/src/host.rs"),
    ("start_on", "tests/src/web.rs"),
    ("FloodNamespaces::new", "tests/tests/flood/main.rs"),
];

/// How many tests in these files end with an `if` that asks whether they are the restarted process.
const STARTED_AGAIN_AT_END: [(&str, usize); 2] = [
    ("crates/tasks/src/lib.rs", 3),
    ("crates/test-support/src/port.rs", 1),
];

/// How many times tests in these files continue with the next case or event, each for a valid
/// reason: what is skipped is not a case of the test, was asserted before, or is counted and the
/// count is asserted at the end.
const PASSED_OVER: [(&str, usize, &str); 18] = [
    (
        "appliance/identity-store/src/tests.rs",
        1,
        "damage to a page that holds nothing changes nothing, which is asserted; the pages that are in use are counted",
    ),
    (
        "crates/call/tests/call/hostile.rs",
        1,
        "an event that may come before the answer is asserted, and the answer has to come",
    ),
    (
        "crates/http/openapi/tests/openapi/documents.rs",
        1,
        "what is wrong with a document is collected, and nothing may be",
    ),
    (
        "crates/hub/tests/hub/join.rs",
        1,
        "a character in place of itself damages nothing",
    ),
    (
        "crates/runtime/tests/runtime/documented.rs",
        1,
        "blocks in other languages are no examples; those that ran are counted",
    ),
    (
        "crates/tls/src/acme/plan.rs",
        1,
        "a plan that does not order begins nothing; all that began are counted",
    ),
    (
        "crates/vault/src/slots/copies/tests.rs",
        2,
        "a cut at an equal byte is the cut before it, and those that differ are counted; the whole copy is asserted",
    ),
    (
        "crates/vault/tests/vault/area.rs",
        1,
        "a kind of memory that the kernel lacks is recorded as a skip",
    ),
    ("image/src/tree.rs", 1, "an entry at the root has no parent"),
    (
        "init/sealed/src/luks2/tests.rs",
        1,
        "the second half of the field of the checksum is not read",
    ),
    (
        "init/src/machine/tests.rs",
        2,
        "other events come before the one that is waited for, which has to come; of a locked vault is asserted what is not stored",
    ),
    (
        "provisioning/src/tests/words.rs",
        1,
        "of words that were erased is asserted that they are no problem",
    ),
    (
        "tests/tests/house/arguments.rs",
        1,
        "lines without arguments have none to look at",
    ),
    (
        "tests/tests/house/documentation.rs",
        1,
        "files in no package have no examples; packages are counted",
    ),
    (
        "tests/tests/house/early_returns.rs",
        1,
        "a test without a condition at its end is what is wanted; the others are counted",
    ),
    (
        "tests/tests/house/promises.rs",
        5,
        "heads of tables, and rows without the cells that a rule is about; those with them are counted",
    ),
    (
        "tests/tests/machine/power.rs",
        1,
        "a moment that cuts nothing of the growth; those that do are counted",
    ),
    (
        "tests/tests/node/tokens.rs",
        1,
        "a connection that finds no place; those that got in are counted",
    ),
];

/// How often code has this keyword, without its strings and comments, because many strings are
/// scripts.
fn keywords(code: &str, keyword: &str) -> usize {
    let code = without_texts(code);
    let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| *word == keyword).count()
}

/// The code without comments, strings and character literals.
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

/// Bytes of the comment or literal that the code begins with, after the character `before`. 0 if it
/// begins with neither. One without an end extends to the end of the code.
fn text_at_start(code: &str, before: Option<char>) -> usize {
    let until = |from: usize, end: &str| {
        let at = code[from..].find(end);
        at.map_or(code.len(), |at| from + at + end.len())
    };
    if code.starts_with("//") {
        // The line end still separates words.
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
    // `r` at the end of a longer word begins no literal, except in `br` and `cr`.
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
            // The character after the backslash may itself be a quote.
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

/// A test that returns early passes without having run. `skip!` of `alknet-test-support` returns
/// too, but the skip is counted.
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

#[test]
fn a_case_that_is_passed_over_is_found_however_it_is_written() {
    let passes = [
        "for a in b { if a == 413 { continue; } c(); }",
        "for a in b {\n    match a {\n        413 => continue,\n        _ => c(),\n    }\n}",
        "'outer: for a in b { for c in a { let Some(d) = c else { continue 'outer }; } }",
    ];
    for code in passes {
        assert_eq!(keywords(code, "continue"), 1, "{code}");
    }
    for code in [
        "a(\"Expect: 100-continue\");",
        "// continue\na();",
        "for a in b.filter(|a| c(a)) { continues(a); }",
    ] {
        assert_eq!(keywords(code, "continue"), 0, "{code}");
    }
}

/// A test that skips cases with another outcome passes for any outcome: one was answered 413 to
/// everything.
#[test]
fn no_test_passes_over_a_case_without_a_reason() {
    for file in sources() {
        let all = tests_of(&file.text);
        let passes = all
            .iter()
            .map(|(line, body)| (*line, keywords(&body.join("\n"), "continue")))
            .filter(|(_, count)| *count > 0);
        let passes: Vec<_> = passes.collect();
        let known = PASSED_OVER.iter().find(|(known, ..)| file.path == *known);
        assert_eq!(
            passes.iter().map(|(_, count)| count).sum::<usize>(),
            known.map_or(0, |(_, count, _)| *count),
            "{}, tests at lines {passes:?}: assert why a case is passed over, or choose the cases before the loop",
            file.path
        );
    }
    for (path, _, reason) in PASSED_OVER {
        let exists = sources().iter().any(|file| file.path == path);
        assert!(exists && reason.len() > 20, "{path}: {reason}");
    }
}

/// The parameters and the body of a function, in code without strings.
fn parts_of(code: &str) -> Option<(&str, &str)> {
    let code = &code[code.find("fn ")?..];
    let open = code.find('(')?;
    let mut depth = 0_usize;
    let length = code[open..].find(|c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        depth == 0
    })?;
    let (takes, does) = code[open..].split_at(length);
    Some((takes, &does[does.find('{')? + 1..]))
}

/// The condition of an `if` without an `else` at the end of a test. If it is false, nothing is
/// checked. In a test with parameters the random input decides it, and many inputs are tried.
fn condition_at_end(test: &str) -> Option<String> {
    let code = without_texts(test);
    let (takes, does) = parts_of(&code)?;
    if keywords(takes, "in") > 0 {
        return None;
    }
    let statement = last_statement(does);
    let (mut depth, mut block, mut outside) = (0_usize, 0, String::new());
    for (at, c) in statement.char_indices() {
        match c {
            '(' | '[' | '{' => {
                if c == '{' && depth == 0 {
                    block = at;
                }
                depth += 1;
            }
            ')' | ']' | '}' => {
                depth = depth.saturating_sub(1);
                outside.push(' ');
            }
            _ if depth == 0 => outside.push(c),
            _ => {}
        }
    }
    let is_open = keywords(&outside, "if") > keywords(&outside, "else");
    let condition = statement[..block].strip_prefix("if ")?.trim();
    is_open.then(|| condition.to_owned())
}

fn last_statement(code: &str) -> &str {
    let (mut depth, mut start, mut last) = (0_usize, 0, "");
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        let end = at + c.len_utf8();
        let statement = code[start..end].trim();
        if depth == 0 && (c == ';' || c == '}' && is_over(statement, code[end..].trim_start())) {
            (start, last) = (end, statement);
        }
    }
    let rest = code[start..].trim();
    if rest.is_empty() { last } else { rest }
}

/// Whether a statement ends with the block that ends here, before `rest`.
fn is_over(statement: &str, rest: &str) -> bool {
    const BLOCKS: [&str; 11] = [
        "async", "enum", "fn", "for", "if", "impl", "loop", "match", "struct", "unsafe", "while",
    ];
    let first_word = |code: &str| {
        let mut words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.next().unwrap_or_default().to_owned()
    };
    let before = statement.split('{').next().unwrap_or_default().trim_end();
    let is_block = before.is_empty() || before.ends_with('!');
    let goes_on = first_word(rest) == "else" || rest.starts_with(['.', '?', '=']);
    (is_block || BLOCKS.contains(&first_word(statement).as_str())) && !goes_on
}

#[test]
fn an_if_at_the_end_is_found_however_it_is_written() {
    let of = |body: &str| condition_at_end(&format!("#[test]\nfn test() {{\n{body}\n"));
    let at_end = [
        ("if a {\n b();\n}", "a"),
        (
            "if let Some(a) = helper(1) { b(); }",
            "let Some(a) = helper(1)",
        ),
        (
            "let a = b();\nif a.c(|| { d() }) { e(); }",
            "a.c(|| { d() })",
        ),
        ("if let A { b, .. } = c() { d(); }", "let A { b, .. } = c()"),
        (
            "let a = if b { 1 } else { 2 };\nif a == 1 { c(); }",
            "a == 1",
        ),
        ("for a in b { c(); }\nif d { e(); }", "d"),
        ("select! { a => b }\nif c { d(); }", "c"),
        ("if a { b(); } // else", "a"),
        ("if a { b(\"} else {\"); }", "a"),
        ("if a { if b { c(); } else { d(); } }", "a"),
        ("fn b() {}\nif a\n    && b()\n{ c(); }", "a\n    && b()"),
    ];
    for (body, condition) in at_end {
        assert_eq!(of(body).as_deref(), Some(condition), "{body}");
    }
    let chain = of("if a { b(); } else if c { d(); }");
    assert!(chain.is_some(), "neither may hold");
    let others = [
        "a();",
        "if a { b(); } else { c(); }",
        "if a { b(); } else if c { d(); } else { e(); }",
        "if a { b(); }\nc();",
        "if a { b(); }\nelsewhere();",
        "let a = if b { 1 } else { 2 };",
        "assert!(if a { b } else { c });",
        "for a in b { if a { c(); } }",
        "if a { 1 } else { 2 }.b();",
        "match a { _ => {} }",
        "// if a { b(); }",
    ];
    for body in others {
        assert_eq!(of(body), None, "{body}");
    }
    let drawn = "#[test]\nfn test(a in 0..9, b in c()) {\nif a > 1 { d(); }\n";
    assert_eq!(condition_at_end(drawn), None);
}

/// The lines of each function with this name that may return nothing.
fn fallible<'a>(text: &'a str, name: &str) -> Vec<Vec<&'a str>> {
    let lines: Vec<&str> = text.lines().collect();
    let head = format!("fn {name}(");
    let starts = lines.iter().enumerate();
    let starts = starts.filter(|(_, line)| line.contains(&head));
    let bodies = starts.map(|(at, line)| {
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indent}}}");
        let body = lines[at..].iter().copied();
        body.take_while(|line| *line != end).collect::<Vec<_>>()
    });
    let gives_option = |body: &Vec<&str>| {
        let code = body.join("\n");
        let head = code.split('{').next().unwrap_or_default();
        head.contains("-> Option<")
    };
    bodies.filter(gives_option).collect()
}

/// A test that is an `if` without an else passes without having run, as one that returns early.
#[test]
fn no_test_ends_with_an_if_of_a_helper_that_records_nothing() {
    for (call, path) in RECORD {
        let name = call.rsplit("::").next().unwrap_or(call);
        let file = sources().iter().find(|file| file.path == path);
        let found = fallible(&file.expect("the helper's file").text, name);
        assert!(!found.is_empty(), "no {call} in {path}");
        // Directly, or through another one of these.
        let others = RECORD.iter().map(|(other, _)| *other);
        let others: Vec<_> = others.filter(|other| *other != call).collect();
        for body in found {
            let code = body.join("\n");
            let records = ["skipped_whole"].iter().chain(&others);
            let records = records.filter(|word| keywords(&code, word) > 0).count();
            assert!(records > 0, "{call} of {path} records no skip");
        }
    }
    let mut recorded = 0;
    for file in sources() {
        let mut silent = Vec::new();
        for (line, body) in tests_of(&file.text) {
            let Some(condition) = condition_at_end(&body.join("\n")) else {
                continue;
            };
            let calls = |(helper, _): &(&str, &str)| condition.contains(&format!("{helper}("));
            if RECORD.iter().any(calls) {
                recorded += 1;
            } else {
                silent.push(line);
            }
        }
        let mut known = STARTED_AGAIN_AT_END.iter();
        let known = known.find(|(known, _)| file.path == *known);
        assert_eq!(
            silent.len(),
            known.map_or(0, |(_, tests)| *tests),
            "{}, lines {silent:?}: where the condition does not hold, say with skip! what is lacking",
            file.path
        );
    }
    assert!(recorded > 10, "{recorded} tests were found");
}
