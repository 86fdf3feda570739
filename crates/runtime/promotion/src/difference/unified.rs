//! The unified format of POSIX `diff -u`, with a mark for a last line without a line end.

use std::ops::Range;

use imara_diff::{Algorithm, Diff, Hunk, InternedInput};

/// The context lines around a change.
const AROUND: u32 = 3;

/// The changes from `old` to `new`; empty if there are no changes. If finding the shortest result
/// would take long, the result is longer.
pub(super) fn unified(name: &str, old: &str, new: &str) -> String {
    let lines = InternedInput::new(old, new);
    let mut difference = Diff::compute(Algorithm::Histogram, &lines);
    difference.postprocess_lines(&lines);
    let hunks: Vec<Hunk> = difference.hunks().collect();
    if hunks.is_empty() {
        return String::new();
    }
    let mut text = format!("--- {name}\n+++ {name}\n");
    // The context of close changes overlaps, so they share a header.
    for group in hunks.chunk_by(|one, next| next.before.start - one.before.end <= 2 * AROUND) {
        write(&mut text, group, &lines);
    }
    text
}

/// Writes changes with overlapping context under one header.
fn write(text: &mut String, group: &[Hunk], lines: &InternedInput<&str>) {
    let (Some(first), Some(last)) = (group.first(), group.last()) else {
        return;
    };
    // A file has less context at its beginning and at its end.
    let lead = first.before.start.min(AROUND);
    let tail = (lines.before.len() as u32 - last.before.end).min(AROUND);
    let before = first.before.start - lead..last.before.end + tail;
    let after = first.after.start - lead..last.after.end + tail;
    text.push_str(&format!("@@ -{} +{} @@\n", head(&before), head(&after)));
    let mut at = before.start;
    for change in group {
        write_lines(
            text,
            ' ',
            &(at..change.before.start),
            lines,
            DiffSide::Before,
        );
        write_lines(text, '-', &change.before, lines, DiffSide::Before);
        write_lines(text, '+', &change.after, lines, DiffSide::After);
        at = change.before.end;
    }
    write_lines(text, ' ', &(at..before.end), lines, DiffSide::Before);
}

/// The first line, counted from 1, and the number of lines. An empty range has the number of the
/// line before it.
fn head(range: &Range<u32>) -> String {
    let first = range.start + u32::from(!range.is_empty());
    match range.len() {
        1 => first.to_string(),
        count => format!("{first},{count}"),
    }
}

#[derive(Clone, Copy)]
enum DiffSide {
    After,
    Before,
}

fn write_lines(
    text: &mut String,
    mark: char,
    at: &Range<u32>,
    lines: &InternedInput<&str>,
    side: DiffSide,
) {
    let tokens = match side {
        DiffSide::After => &lines.after,
        DiffSide::Before => &lines.before,
    };
    for token in &tokens[at.start as usize..at.end as usize] {
        let line = lines.interner[*token];
        text.push(mark);
        text.push_str(line);
        if !line.ends_with('\n') {
            // `diff -u` marks a last line without a line end like this.
            text.push_str("\n\\ No newline at end of file\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn changes_stand_between_three_lines_each() {
        let old: String = (1..=20).map(|n| format!("{n}\n")).collect();
        let new = old.replace("\n5\n", "\nfive\n").replace("\n20\n", "\n20");
        assert_eq!(
            unified("a", &old, &new),
            "--- a\n+++ a\n@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n\
             @@ -17,4 +17,4 @@\n 17\n 18\n 19\n-20\n+20\n\\ No newline at end of file\n"
        );
        assert_eq!(unified("a", "", "x\n"), "--- a\n+++ a\n@@ -0,0 +1 @@\n+x\n");
        assert_eq!(unified("a", "x\n", ""), "--- a\n+++ a\n@@ -1 +0,0 @@\n-x\n");
        assert_eq!(unified("a", &old, &old), "");
    }

    #[test]
    fn long_texts_without_anything_in_common_are_answered() {
        let text =
            |step: u32| -> String { (0..60_000).map(|n| format!("{:x}\n", n * step)).collect() };
        assert!(unified("a", &text(3), &text(7)).lines().count() > 60_000);
    }

    /// What the stock tool makes of `old` by `difference`.
    fn patched(old: &str, difference: &str) -> String {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("a"), old).expect("a writable directory");
        let mut patch = Command::new("patch")
            .args(["--silent", "--force", "--fuzz=0", "a"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("patch is installed");
        let mut input = patch.stdin.take().expect("a pipe");
        input.write_all(difference.as_bytes()).expect("it reads");
        drop(input);
        assert!(patch.wait().expect("it ends").success(), "{difference}");
        // The stock tool removes what became empty.
        std::fs::read_to_string(dir.path().join("a")).unwrap_or_default()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_stock_tool_applies_it(old in "([abc]{0,2}\n){0,24}[ab]{0,1}", new in "([abc]{0,2}\n){0,24}[ab]{0,1}") {
            prop_assume!(old != new);
            prop_assert_eq!(patched(&old, &unified("a", &old, &new)), new);
        }
    }
}
