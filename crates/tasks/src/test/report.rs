//! The result of a run: failures, skips, and all times.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write as _};

use super::harness::{PANIC, PANIC_LINES_MAX, ProgramResult, TestResult, TestVerdict};

/// Most lines shown of the end of a failed test's output.
const LINES_MAX: usize = 40;

/// Tests in the table of the slowest.
const SLOWEST: usize = 40;

/// A part of a program that ran, with its name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PartResult {
    pub(super) part: String,
    pub(super) outcome: ProgramResult,
    pub(super) skips: Vec<TestSkip>,
}

/// What a test skipped because the machine lacks something, or started again.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TestSkip {
    /// Name of the test, or the position in the source if it has none.
    test: String,
    extent: SkipExtent,
    /// What is lacking, or what was started again.
    need: String,
    why: String,
}

/// The extent of a skip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SkipExtent {
    /// The test checked nothing.
    Whole,
    /// One of several checks was left out.
    Part,
    /// No check was left out: a program or a machine that the test needs was started again.
    Again,
}

impl SkipExtent {
    fn parse(word: &str) -> Self {
        match word {
            "whole" => Self::Whole,
            "again" => Self::Again,
            _ => Self::Part,
        }
    }
}

/// The tests' name for the privilege of making network namespaces, files of other users and the
/// like.
const ROOT: &str = "root";

impl PartResult {
    /// A part whose program could not be run, or whose output could not be read.
    pub(super) fn broken(part: &str, why: &dyn Display) -> Self {
        Self {
            part: part.to_owned(),
            outcome: ProgramResult {
                broken: Some(why.to_string()),
                ..ProgramResult::default()
            },
            skips: Vec::new(),
        }
    }

    /// Tests that passed without checking anything, each once however often it reported that.
    fn skipped(&self) -> BTreeSet<&str> {
        let whole = self.skips.iter().filter(|skip| self.is_whole(skip));
        whole.map(|skip| skip.test.as_str()).collect()
    }

    /// Whether a test that passed skipped itself. A position in the source stands for a part of
    /// some test.
    fn is_whole(&self, skip: &TestSkip) -> bool {
        let passed =
            |test: &TestResult| test.name == skip.test && test.verdict == TestVerdict::Passed;
        skip.extent == SkipExtent::Whole && self.outcome.tests.iter().any(passed)
    }
}

/// Characters of a panic's message in the list of failures.
const MESSAGE_CHARS_MAX: usize = 300;

/// A failed test, and its result alone.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FailedTest {
    /// Name of the part that it belongs to.
    pub(super) part: String,
    pub(super) test: TestResult,
    /// `None` if it was not run again, because its program failed as a whole.
    pub(super) passes_alone: Option<bool>,
}

impl FailedTest {
    fn name(&self) -> String {
        let alone = match self.passes_alone {
            Some(true) => " (passes alone)",
            Some(false) => " (fails alone, too)",
            None => "",
        };
        format!("{}: {}{alone}", self.part, self.test.name)
    }

    /// One line, with the place and the message of its first panic.
    pub(super) fn line(&self) -> String {
        let mut panic = self.test.panic().map(str::trim);
        let place = panic.next().and_then(|line| line.split_once(PANIC));
        let place = place.map_or("", |(_, place)| place);
        let message: String = panic
            .next()
            .unwrap_or_default()
            .chars()
            .take(MESSAGE_CHARS_MAX)
            .collect();
        format!("failed: {}: {place} {message}\n", self.name())
    }

    /// What it printed, from its panic on and at its end.
    pub(super) fn text(&self) -> String {
        let mut text = format!("FAILED: {}\n", self.name());
        let lines: Vec<&str> = self.test.printed.lines().collect();
        let last = lines.len().saturating_sub(LINES_MAX);
        let panic = self.test.panic().count();
        if panic > lines.len() - last {
            for line in self.test.panic().take(PANIC_LINES_MAX) {
                let _ = writeln!(text, "    {line}");
            }
            text += "    ...\n";
        }
        for line in &lines[last..] {
            let _ = writeln!(text, "    {line}");
        }
        text
    }
}

/// Parses the lines that tests of one process wrote about what they skipped or started again: test,
/// `whole`, `part` or `again`, need and reason, separated by tabs
/// (`crates/test-support/src/skip.rs`).
pub(super) fn skips(text: &str) -> Vec<TestSkip> {
    let skip = |line: &str| {
        let mut fields = line.splitn(4, '\t').map(str::to_owned);
        Some(TestSkip {
            test: fields.next()?,
            extent: SkipExtent::parse(&fields.next()?),
            need: fields.next()?,
            why: fields.next()?,
        })
    };
    text.lines().filter_map(skip).collect()
}

/// How many tests checked nothing, each once however often it reported that.
pub(super) fn whole(skips: &[TestSkip]) -> usize {
    let whole = skips.iter().filter(|skip| skip.extent == SkipExtent::Whole);
    whole.map(|skip| &skip.test).collect::<BTreeSet<_>>().len()
}

/// Skips of tests whose outcomes are not known here, one line each. Empty without skips.
pub(super) fn noted(skips: &[TestSkip]) -> String {
    let line = |skip: &TestSkip| {
        let TestSkip {
            test, need, why, ..
        } = skip;
        match skip.extent {
            SkipExtent::Whole => format!("{test} skipped for lack of {need}: {why}\n"),
            SkipExtent::Part => format!("{test} ran in part for lack of {need}: {why}\n"),
            SkipExtent::Again => format!("{test} started {need} again: {why}\n"),
        }
    };
    let lines: BTreeSet<String> = skips.iter().map(line).collect();
    lines.into_iter().collect()
}

/// The tables of tests that checked nothing, and of those that checked a part, by what was lacking.
/// Empty without skips.
pub(super) fn skipped(ran: &[PartResult]) -> String {
    let mut text = String::new();
    for (whole, what) in [(true, "were skipped"), (false, "ran in part")] {
        let mut tests = BTreeSet::new();
        let mut needs: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for ran in ran {
            let skips = ran.skips.iter().filter(|it| it.extent != SkipExtent::Again);
            for skip in skips.filter(|skip| ran.is_whole(skip) == whole) {
                tests.insert((&ran.part, &skip.test));
                let line = format!("{}: {}: {}", ran.part, skip.test, skip.why);
                needs.entry(&skip.need).or_default().insert(line);
            }
        }
        if !tests.is_empty() {
            let _ = writeln!(text, "{} tests {what} for lack of:", tests.len());
        }
        for (need, lines) in needs {
            let _ = writeln!(text, "  {need}: {}", lines.len());
            for line in lines {
                let _ = writeln!(text, "    {line}");
            }
        }
    }
    text
}

/// What tests started again, one line each below the count. Empty if there is nothing. It fails no
/// run: docs/testing.md says what is tried again, and for which reason.
pub(super) fn again(ran: &[PartResult]) -> String {
    let mut lines = Vec::new();
    for PartResult { part, skips, .. } in ran {
        let again = skips.iter().filter(|it| it.extent == SkipExtent::Again);
        lines.extend(again.map(|it| format!("  {part}: {}: {}: {}\n", it.test, it.need, it.why)));
    }
    if lines.is_empty() {
        return String::new();
    }
    format!("started again: {}\n{}", lines.len(), lines.concat())
}

/// Skips for lack of root in a run as root, one line each: such a test has what it reports as
/// lacking, and checked less than it could.
pub(super) fn refused(ran: &[PartResult], is_root: bool) -> Vec<String> {
    let line = |part: &str, skip: &TestSkip| {
        let TestSkip { test, why, .. } = skip;
        format!("FAILED: {part}: {test} skips for lack of {ROOT}, which this run has: {why}\n")
    };
    let lacks = |skip: &&TestSkip| is_root && skip.extent != SkipExtent::Again && skip.need == ROOT;
    let mut refused = Vec::new();
    for PartResult { part, skips, .. } in ran {
        refused.extend(skips.iter().filter(lacks).map(|skip| line(part, skip)));
    }
    refused
}

/// The counts of tests by result, over all processes.
pub(super) fn summary(ran: &[PartResult]) -> String {
    let sum = |verdict| -> usize { ran.iter().map(|ran| ran.outcome.count(verdict)).sum() };
    let not_run: u64 = ran.iter().map(|ran| ran.outcome.not_run).sum();
    let failed = (sum(TestVerdict::Failed) + sum(TestVerdict::Lost)) as u64 + not_run;
    let skipped: usize = ran.iter().map(|ran| ran.skipped().len()).sum();
    format!(
        "{} tests passed, {failed} failed, {} ignored, {skipped} skipped themselves, in {} processes",
        sum(TestVerdict::Passed) - skipped,
        sum(TestVerdict::Ignored),
        ran.len()
    )
}

/// The machine's load when the run began, and the factor of the deadlines.
pub(super) fn slowdown(at_start: f64, deadlines: f64) -> String {
    format!(
        "slowdown: {at_start:.1} at the start; deadlines are {deadlines:.1} times those of a machine at rest"
    )
}

/// The error of a run without any test. `None` if tests ran, or if programs that failed as a whole
/// say more.
pub(super) fn nothing_ran(ran: &[PartResult], filter: Option<&str>) -> Option<String> {
    let has_run = |ran: &PartResult| !ran.outcome.tests.is_empty() || ran.outcome.broken.is_some();
    if ran.iter().any(has_run) {
        return None;
    }
    Some(match filter {
        Some(filter) => format!("no test ran: no test's name contains `{filter}`"),
        None if ran.is_empty() => "no test ran: cargo built no test program".to_owned(),
        None => "no test ran: the programs have none".to_owned(),
    })
}

/// Seconds of the clock that all tests of a part of the project may take (docs/adding-tests.md).
const BUDGET_SECONDS: f64 = 60.0;

/// The package whose programs test the whole. Each of its modules belongs to the part that it
/// tests.
const TESTS_OF_ALL: &str = "alknet-tests";

/// Markdown: seconds of each package, and of each module of [`TESTS_OF_ALL`], with a mark if those
/// of the clock exceed the budget.
fn times_by_part(ran: &[PartResult]) -> String {
    let mut sums: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for PartResult { part, outcome, .. } in ran {
        let package = part.split(' ').next().unwrap_or(part);
        let name = if package == TESTS_OF_ALL {
            part
        } else {
            package
        };
        let (wall, cpu) = sums.entry(name).or_default();
        *wall += outcome.wall_seconds;
        *cpu += outcome.cpu_seconds;
    }
    let mut sums: Vec<(&str, (f64, f64))> = sums.into_iter().collect();
    sums.sort_by(|(_, one), (_, other)| other.0.total_cmp(&one.0));
    let mut text =
        String::from("| package, or module | clock | processors | |\n|---|---|---|---|\n");
    for (name, (wall, cpu)) in sums {
        let mark = if wall > BUDGET_SECONDS {
            format!("over {BUDGET_SECONDS} s")
        } else {
            String::new()
        };
        let _ = writeln!(text, "| {name} | {wall:.1} s | {cpu:.1} s | {mark} |");
    }
    text
}

/// Markdown: programs and their modules by their times, the times of each part of the project, and
/// the slowest tests.
pub(super) fn times(ran: &[PartResult]) -> String {
    let mut parts: Vec<&PartResult> = ran.iter().collect();
    parts.sort_by(|one, other| {
        other
            .outcome
            .wall_seconds
            .total_cmp(&one.outcome.wall_seconds)
    });
    let mut text = String::from("| program | tests | clock | processors |\n|---|---|---|---|\n");
    for PartResult { part, outcome, .. } in parts {
        let _ = writeln!(
            text,
            "| {part} | {} | {:.1} s | {:.1} s |",
            outcome.tests.len(),
            outcome.wall_seconds,
            outcome.cpu_seconds
        );
    }
    let mut tests: Vec<(&str, &TestResult)> = Vec::new();
    for ran in ran {
        tests.extend(
            ran.outcome
                .tests
                .iter()
                .map(|test| (ran.part.as_str(), test)),
        );
    }
    tests.sort_by(|one, other| other.1.seconds.total_cmp(&one.1.seconds));
    text += "\n";
    text += &times_by_part(ran);
    text += "\n| test | program | clock |\n|---|---|---|\n";
    for (part, test) in tests.iter().take(SLOWEST) {
        let _ = writeln!(text, "| `{}` | {part} | {:.1} s |", test.name, test.seconds);
    }
    text
}

/// Every test with its time, one per line, because the table above has no room for all.
pub(super) fn all(ran: &[PartResult]) -> String {
    let mut text = String::new();
    for PartResult { part, outcome, .. } in ran {
        for test in &outcome.tests {
            let _ = writeln!(text, "{:.3}\t{part}\t{}", test.seconds, test.name);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(name: &str, verdict: TestVerdict, seconds: f64) -> TestResult {
        TestResult {
            name: name.to_owned(),
            verdict,
            seconds,
            printed: String::new(),
        }
    }

    fn ran() -> Vec<PartResult> {
        let outcome = |tests, wall_seconds| ProgramResult {
            tests,
            wall_seconds,
            cpu_seconds: 0.5,
            ..ProgramResult::default()
        };
        let one = vec![
            test("quick", TestVerdict::Passed, 0.1),
            test("slow", TestVerdict::Passed, 7.0),
        ];
        let two = vec![
            test("bad", TestVerdict::Failed, 1.0),
            test("none", TestVerdict::Ignored, 0.0),
        ];
        vec![
            PartResult {
                part: "a lib".to_owned(),
                outcome: outcome(one, 3.0),
                skips: Vec::new(),
            },
            PartResult {
                part: "b lib".to_owned(),
                outcome: outcome(two, 9.0),
                skips: Vec::new(),
            },
        ]
    }

    #[test]
    fn the_slowest_stand_first() {
        let text = times(&ran());
        let at = |what: &str| {
            text.find(what)
                .unwrap_or_else(|| panic!("{what} in {text}"))
        };
        assert!(at("| b lib | 2 | 9.0 s | 0.5 s |") < at("| a lib | 2 | 3.0 s"));
        assert!(at("| `slow` | a lib | 7.0 s |") < at("| `bad` | b lib |"));
        assert_eq!(all(&ran()).lines().count(), 4);
        let printed = "2 tests passed, 1 failed, 1 ignored, 0 skipped themselves, in 2 processes";
        assert_eq!(summary(&ran()), printed);
    }

    #[test]
    fn packages_and_modules_beyond_the_budget_are_marked() {
        let ran = |part: &str, wall_seconds| PartResult {
            part: part.to_owned(),
            outcome: ProgramResult {
                wall_seconds,
                cpu_seconds: 2.0,
                ..ProgramResult::default()
            },
            skips: Vec::new(),
        };
        let text = times_by_part(&[
            ran("a lib", 35.0),
            ran("a a", 25.5),
            ran("b lib", 60.0),
            ran("alknet-tests http judges", 61.0),
            ran("alknet-tests http page", 1.0),
        ]);
        let rows: Vec<&str> = text.lines().skip(2).collect();
        let expected = [
            "| alknet-tests http judges | 61.0 s | 2.0 s | over 60 s |",
            "| a | 60.5 s | 4.0 s | over 60 s |",
            "| b | 60.0 s | 2.0 s |  |",
            "| alknet-tests http page | 1.0 s | 2.0 s |  |",
        ];
        assert_eq!(rows, expected);
        assert!(times(&self::ran()).contains("| a | 3.0 s | 0.5 s |  |"));
    }

    #[test]
    fn a_failure_is_reported_from_its_end_with_its_outcome_alone() {
        let mut test = test("bad", TestVerdict::Failed, 1.0);
        test.printed = (0..100).map(|n| format!("line {n}\n")).collect();
        let failed = FailedTest {
            part: "b lib".to_owned(),
            test,
            passes_alone: Some(true),
        };
        let text = failed.text();
        assert!(
            text.starts_with("FAILED: b lib: bad (passes alone)\n    line 60\n"),
            "{text}"
        );
        assert!(text.ends_with("    line 99\n"));
    }

    #[test]
    fn a_panic_is_shown_however_much_follows_it() {
        let mut test = test("bad", TestVerdict::Failed, 1.0);
        test.printed = "before\nthread 'bad' panicked at a.rs:1:2:\nit broke\n".to_owned();
        test.printed += &(0..100).map(|n| format!("line {n}\n")).collect::<String>();
        let failed = FailedTest {
            part: "b lib".to_owned(),
            test,
            passes_alone: None,
        };
        assert_eq!(failed.line(), "failed: b lib: bad: a.rs:1:2: it broke\n");
        let text = failed.text();
        let panic = "    thread 'bad' panicked at a.rs:1:2:\n    it broke\n    line 0\n";
        let start = format!("FAILED: b lib: bad\n{panic}");
        assert!(text.starts_with(&start), "{text}");
        assert!(
            text.contains("    line 9\n    ...\n    line 60\n"),
            "{text}"
        );
        assert!(text.ends_with("    line 99\n"), "{text}");
    }

    #[test]
    fn tests_that_did_not_run_count_as_failed() {
        let mut ran = ran();
        ran[0].outcome.not_run = 7;
        let printed = "2 tests passed, 8 failed, 1 ignored, 0 skipped themselves, in 2 processes";
        assert_eq!(summary(&ran), printed);
    }

    /// `quick` skips itself twice, `slow` a part. A position in the source and a failed test are no
    /// passed tests.
    #[test]
    fn tests_that_checked_nothing_are_counted_once() {
        let mut ran = ran();
        ran[0].skips = skips(
            "quick\twhole\tAVX-512\tthis processor has none\nquick\twhole\troot\tno\n\
             slow\tpart\tAVX-512\tthe other way only\na.rs:7\twhole\troot\ta thread\nbad line\n",
        );
        ran[1].skips = skips("bad\twhole\troot\tno\nquick\twhole\troot\tof another program\n");
        let printed = "1 tests passed, 1 failed, 1 ignored, 1 skipped themselves, in 2 processes";
        assert_eq!(summary(&ran), printed);
        let text = skipped(&ran);
        let whole = "1 tests were skipped for lack of:\n  \
                     AVX-512: 1\n    a lib: quick: this processor has none\n  \
                     root: 1\n    a lib: quick: no\n";
        assert!(text.starts_with(whole), "{text}");
        let part = "4 tests ran in part for lack of:\n  \
                    AVX-512: 1\n    a lib: slow: the other way only\n  root: 3\n";
        assert!(text[whole.len()..].starts_with(part), "{text}");
        assert!(skipped(&self::ran()).is_empty());
    }

    #[test]
    fn what_was_started_again_is_counted_and_is_no_skip() {
        let mut ran = ran();
        let line = "slow\tagain\tQEMU\tanother process took a port\n";
        ran[0].skips = skips(&line.repeat(2));
        let line = "  a lib: slow: QEMU: another process took a port\n";
        assert_eq!(again(&ran), format!("started again: 2\n{}", line.repeat(2)));
        assert_eq!(skipped(&ran), "");
        assert_eq!(whole(&ran[0].skips), 0);
        assert!(summary(&ran).starts_with("2 tests passed, "));
        let noted = noted(&ran[0].skips);
        assert_eq!(
            noted,
            "slow started QEMU again: another process took a port\n"
        );
        assert_eq!(again(&self::ran()), "");
    }

    #[test]
    fn root_skips_nothing_for_lack_of_root() {
        let mut ran = ran();
        ran[0].skips = skips("quick\twhole\troot\tno\nslow\tpart\tKVM\tno device\n");
        ran[1].skips = skips("a.rs:7\tpart\troot\tno\n");
        assert_eq!(refused(&ran, false), [""; 0]);
        let refused = refused(&ran, true);
        assert_eq!(refused.len(), 2);
        let first = "FAILED: a lib: quick skips for lack of root, which this run has: no\n";
        assert_eq!(refused[0], first);
    }

    #[test]
    fn a_run_without_a_test_says_why() {
        assert_eq!(nothing_ran(&ran(), None), None);
        let mut empty = ran();
        empty.iter_mut().for_each(|ran| ran.outcome.tests.clear());
        let why = nothing_ran(&empty, Some("vualt")).expect("no test");
        assert!(why.ends_with("no test's name contains `vualt`"), "{why}");
        assert!(nothing_ran(&empty, None).is_some());
        let why = nothing_ran(&[], None).expect("no test");
        assert!(why.ends_with("no test program"), "{why}");
        empty[0].outcome.broken = Some("it is".to_owned());
        assert_eq!(nothing_ran(&empty, Some("vualt")), None);
    }

    #[test]
    fn the_factor_is_shown_with_that_of_the_deadlines() {
        let printed =
            "slowdown: 1.2 at the start; deadlines are 3.6 times those of a machine at rest";
        assert_eq!(slowdown(1.2, 3.6), printed);
    }
}
