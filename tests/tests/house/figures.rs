//! The figures by which this tree is compared with others: sizes of files and functions, comments, examples, shared
//! names. The test prints them: `cargo xtask test -- --package alknet-tests --test house figures -- --nocapture`.
//!
//! *Code* is every line that is neither empty nor a comment, in Rust files outside tests; a file's module `tests` at its
//! end is a test.

use std::collections::BTreeMap;

use super::comments::{CommentCounts, is_test};
use super::names::declaration;
use super::tree::sources;

/// Where this project wants to be: most lines of half of the functions, and of 95 of 100.
const FUNCTION_MEDIAN_MAX: usize = 9;
const FUNCTION_P95_MAX: usize = 60;
/// Most lines of 95 of 100 files, which are read in one sitting.
const FILE_P95_MAX: usize = 1200;
/// Most `unwrap` and `expect` in 1,000 lines of code.
const UNWRAPS_MAX: f64 = 5.0;
/// Most types of 100 that share their name with another one.
const SHARED_NAMES_MAX: f64 = 20.0;

/// How a block begins that the compiler does not check, in two parts: a rule searches the sources for the whole.
const UNSAFE: &str = concat!("unsafe", " {");

/// The text in front of a file's tests, and the tests.
fn split_tests(text: &str) -> (&str, &str) {
    let at = text.find("#[cfg(test)]\nmod tests {");
    text.split_at(at.unwrap_or(text.len()))
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Lines of each function that has a body. A body ends at a brace as far to the right as its `fn`.
fn function_lines(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let begins = |line: &str| {
        let line = line.trim_start();
        let before = line.split("fn ").next().unwrap_or_default();
        let words = before.split_whitespace();
        let is_word = |word: &str| {
            ["async", "const", "extern", "unsafe", "\"C\""].contains(&word)
                || word.starts_with("pub")
        };
        line.contains("fn ") && (words.clone().all(is_word) || before.starts_with("pub("))
    };
    let length = |(at, line): (usize, &&str)| {
        if line.trim_end().ends_with('}') {
            return Some(1);
        }
        let rest = lines[at + 1..].iter();
        let mut rest =
            rest.take_while(|next| next.trim().is_empty() || indent(next) >= indent(line));
        let end = rest.position(|next| indent(next) == indent(line) && next.trim() == "}")?;
        Some(end + 2)
    };
    let functions = lines.iter().enumerate().filter(|(_, line)| begins(line));
    functions.filter_map(length).collect()
}

/// The number that `percent` of 100 do not exceed.
fn percentile(mut numbers: Vec<usize>, percent: usize) -> usize {
    numbers.sort_unstable();
    let at = numbers.len() * percent / 100;
    numbers.get(at).copied().unwrap_or_default()
}

fn percent(part: usize, whole: usize) -> f64 {
    part as f64 * 100.0 / whole as f64
}

/// Counts over all files.
#[derive(Debug, Default)]
struct TreeFigures {
    all: CommentCounts,
    test_code: usize,
    doc_lines: usize,
    comment_lines: usize,
    unwraps: usize,
    unsafe_blocks: usize,
    files: Vec<usize>,
    functions: Vec<usize>,
    /// Each name of a type, with how many types have it.
    types: BTreeMap<&'static str, usize>,
}

impl TreeFigures {
    fn count() -> Self {
        let mut figures = Self::default();
        for source in sources() {
            let (code, tests) = match is_test(&source.path) {
                true => ("", source.text.as_str()),
                false => split_tests(&source.text),
            };
            let found = CommentCounts::count(code);
            figures.all.code += found.code;
            figures.all.reasons += found.reasons;
            figures.all.examples += found.examples;
            figures.test_code += CommentCounts::count(tests).code;
            figures.files.push(source.text.lines().count());
            figures.functions.extend(function_lines(code));
            for line in code.lines().map(str::trim_start) {
                let is_doc = line.starts_with("///") || line.starts_with("//!");
                figures.doc_lines += usize::from(is_doc);
                figures.comment_lines += usize::from(line.starts_with("//"));
                if !line.starts_with("//") {
                    let calls = [".unwrap()", ".expect("].map(|call| line.matches(call).count());
                    figures.unwraps += calls.iter().sum::<usize>();
                    figures.unsafe_blocks += line.matches(UNSAFE).count();
                }
            }
            for declared in source.text.lines().filter_map(declaration) {
                *figures.types.entry(declared.name).or_default() += 1;
            }
        }
        figures
    }

    /// Types that share their name with another one, in percent.
    fn shared_names(&self) -> f64 {
        let all: usize = self.types.values().sum();
        percent(self.types.values().filter(|count| **count > 1).sum(), all)
    }
}

#[test]
fn figures_of_the_tree_are_printed_and_within_their_bounds() {
    let figures = TreeFigures::count();
    let TreeFigures {
        all,
        functions,
        files,
        ..
    } = &figures;
    let unwraps = all.per_thousand(figures.unwraps);
    let [median, p95] = [50, 95].map(|part| percentile(functions.clone(), part));
    let [file_median, file_p95, file_max] = [50, 95, 100].map(|part| match part {
        100 => files.iter().copied().max().unwrap_or_default(),
        part => percentile(files.clone(), part),
    });
    let tests = percent(figures.test_code, figures.test_code + all.code);
    let comments = percent(figures.comment_lines, all.code);
    let docs = percent(figures.doc_lines, figures.comment_lines);
    let unsafe_blocks = all.per_thousand(figures.unsafe_blocks);
    let long = functions
        .iter()
        .filter(|lines| **lines > FUNCTION_P95_MAX)
        .count();
    println!(
        "figure code: {:.1} kLOC, and {tests:.0} % of all code is tests",
        all.code as f64 / 1000.0
    );
    println!(
        "figure comments: {comments:.0} % of the lines of code, and {docs:.0} % of them documentation"
    );
    println!(
        "figure files: {file_median} / {file_p95} / {file_max} lines (median, 95th percentile, longest)"
    );
    println!(
        "figure functions: {median} / {p95} lines (median, 95th percentile); {long} are longer than {FUNCTION_P95_MAX}"
    );
    println!(
        "figure unwrap and expect: {unwraps:.1} in 1,000 lines; unsafe blocks: {unsafe_blocks:.2}"
    );
    println!(
        "figure reasons: {:.1} in 1,000 lines; examples: {:.2}",
        all.per_thousand(all.reasons),
        all.per_thousand(all.examples)
    );
    println!(
        "figure types with a shared name: {:.1} %, of {}",
        figures.shared_names(),
        figures.types.values().sum::<usize>()
    );
    assert!(functions.len() > 10_000, "{}", functions.len());
    assert!(
        median <= FUNCTION_MEDIAN_MAX && p95 <= FUNCTION_P95_MAX,
        "functions: {median} / {p95} lines"
    );
    assert!(file_p95 <= FILE_P95_MAX, "files: {file_p95} lines");
    assert!(
        unwraps <= UNWRAPS_MAX,
        "{unwraps:.1} unwrap and expect in 1,000 lines"
    );
    assert!(
        figures.shared_names() <= SHARED_NAMES_MAX,
        "{:.1} % of the types",
        figures.shared_names()
    );
}

#[test]
fn functions_are_measured_from_their_name_to_their_brace() {
    let text = "pub(crate) const fn one() -> u8 { 1 }\nimpl A {\n    fn two(\n        self,\n    ) -> u8 {\n        if x {\n            1\n        }\n    }\n}\ntrait B {\n    fn none();\n}\n// a fn in words\n";
    assert_eq!(function_lines(text), [1, 7]);
    assert_eq!(percentile((1..=100).collect(), 95), 96);
    assert_eq!(
        split_tests("a\n#[cfg(test)]\nmod tests {\nb"),
        ("a\n", "#[cfg(test)]\nmod tests {\nb")
    );
}
