//! How many comments give a reason, and how many examples compile.

use std::collections::BTreeSet;

use super::tree::{SourceFile, sources};

/// Blocks of `//` comments for 1,000 lines of code outside tests, at least. Those that say why `unsafe` is sound do not
/// count: the compiler's lint asks for them.
const REASONS_MIN: f64 = 25.0;
/// Compiling examples for 1,000 lines of code outside tests, at least.
const EXAMPLES_MIN: f64 = 0.45;

/// Counts of one source, or of many.
#[derive(Debug, Default, PartialEq)]
pub(super) struct CommentCounts {
    /// Lines with code on them, outside tests.
    pub(super) code: usize,
    /// Runs of lines that begin with `//` and not with `// SAFETY:`, outside tests: a reason each.
    pub(super) reasons: usize,
    /// Examples that a test compiles.
    pub(super) examples: usize,
}

impl CommentCounts {
    /// Of one file, whose module of tests is its last part.
    pub(super) fn count(text: &str) -> Self {
        let text = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        let mut counts = Self::default();
        let mut in_comment = false;
        let mut in_example = false;
        for line in text.lines().map(str::trim) {
            let doc = ["///", "//!"]
                .iter()
                .find_map(|mark| line.strip_prefix(mark));
            if let Some(fence) = doc.and_then(|doc| doc.trim().strip_prefix("```")) {
                // A fence with the name of another language, or with `ignore` or `text`, is no example.
                let compiles = ["", "rust", "no_run", "rust,no_run"].contains(&fence);
                counts.examples += usize::from(!in_example && compiles);
                in_example = !in_example;
            }
            let is_reason = doc.is_none() && line.starts_with("//");
            let is_safety = line.starts_with("// SAFETY:");
            counts.reasons += usize::from(is_reason && !is_safety && !in_comment);
            in_comment = is_reason;
            counts.code += usize::from(!line.is_empty() && !line.starts_with("//"));
        }
        counts
    }

    pub(super) fn per_thousand(&self, count: usize) -> f64 {
        count as f64 * 1000.0 / self.code as f64
    }
}

pub(super) fn is_test(path: &str) -> bool {
    path.starts_with("tests/")
        || path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || path.ends_with("_tests.rs")
}

/// Files of the modules that a source declares for tests only, by `#[cfg(test)]`.
fn test_modules(source: &SourceFile) -> Vec<String> {
    let stem = source.path.trim_end_matches(".rs");
    let folder = match stem.rsplit_once('/') {
        Some((folder, "lib" | "main" | "mod")) => folder,
        _ => stem,
    };
    let lines = source.text.lines().zip(source.text.lines().skip(1));
    let declared = lines.filter(|(attribute, _)| attribute.trim() == "#[cfg(test)]");
    let names = declared.filter_map(|(_, line)| line.strip_suffix(';')?.split_once("mod "));
    names
        .map(|(_, name)| format!("{folder}/{name}.rs"))
        .collect()
}

#[test]
fn comments_give_reasons_and_doors_have_examples() {
    let mut all = CommentCounts::default();
    let for_tests: BTreeSet<String> = sources().iter().flat_map(test_modules).collect();
    let counted = sources()
        .iter()
        .filter(|file| !is_test(&file.path) && !for_tests.contains(&file.path));
    for SourceFile { text, .. } in counted {
        let one = CommentCounts::count(text);
        all.code += one.code;
        all.reasons += one.reasons;
        all.examples += one.examples;
    }
    let reasons = all.per_thousand(all.reasons);
    let examples = all.per_thousand(all.examples);
    assert!(
        reasons >= REASONS_MIN,
        "{reasons:.1} reasons for 1,000 lines of code, {REASONS_MIN} at least: write at the branch why it is there"
    );
    assert!(
        examples >= EXAMPLES_MIN,
        "{examples:.2} examples for 1,000 lines of code, {EXAMPLES_MIN} at least"
    );
}

#[test]
fn reasons_and_examples_are_counted_and_their_lines_are_no_code() {
    let text = "\
//! ```
//! example();
//! ```
//! ```text
//! no example
//! ```

/// It calls two functions.
fn f() {
    // A reason
    // in two lines.
    g();

    // Another.
    h(); // beside code
    // SAFETY: it holds.
    i();
}

#[cfg(test)]
mod tests {
    // In a test.
}
";
    let counts = CommentCounts {
        code: 5,
        reasons: 2,
        examples: 1,
    };
    assert_eq!(CommentCounts::count(text), counts);
}

#[test]
fn modules_for_tests_are_found_where_they_are() {
    let text = "#[cfg(test)]\nmod power;\nmod disk;\n#[cfg(test)]\npub(crate) mod fake;\n#[cfg(test)]\nuse a;\n";
    for (path, folder) in [
        ("init/src/lib.rs", "init/src"),
        ("init/src/update/mod.rs", "init/src/update"),
        ("init/src/update.rs", "init/src/update"),
    ] {
        let source = SourceFile {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let expected = ["power", "fake"].map(|name| format!("{folder}/{name}.rs"));
        assert_eq!(test_modules(&source), expected, "{path}");
    }
}
