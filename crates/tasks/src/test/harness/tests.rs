//! Programs that end in order, with an error, too late or not at all.

use alknet_test_support::deadline;

use super::*;
use crate::group::tests::is_gone;

/// The output of libtest for three tests, and a child's output between its events.
const OUTPUT: &str = r#"{ "type": "suite", "event": "started", "test_count": 3 }
{ "type": "test", "event": "started", "name": "one" }
{ "type": "test", "event": "started", "name": "two" }
a child says this
and this without an end{ "type": "test", "name": "one", "event": "ok", "exec_time": 0.25 }
{ "type": "test", "name": "two", "event": "failed", "exec_time": 1.5, "stdout": "left is not right\n" }
{ "type": "test", "event": "started", "name": "three" }
{ "type": "test", "name": "three", "event": "ignored" }
{ "type": "suite", "event": "failed", "passed": 1, "failed": 1, "ignored": 1, "measured": 0, "filtered_out": 7, "exec_time": 1.7 }
"#;

/// Limits of a program that ends without a signal.
fn limits() -> TestTimeouts {
    TestTimeouts::scaled(alknet_test_support::slowdown())
}

/// Limits of a program that the runner ends.
fn short() -> TestTimeouts {
    TestTimeouts {
        silence: deadline(Duration::from_millis(700)),
        grace: deadline(Duration::from_millis(300)),
    }
}

fn sh(script: &str, limits: TestTimeouts) -> ProgramResult {
    let mut command = Command::new("sh");
    run(command.args(["-c", script]), TestOutputFormat::Json, limits).expect("it runs")
}

fn read(output: &str, success: bool) -> ProgramResult {
    read_as(TestOutputFormat::Json, output, success)
}

fn read_as(format: TestOutputFormat, output: &str, success: bool) -> ProgramResult {
    let mut reader = TestOutputReader::new(format);
    output.lines().for_each(|line| reader.line(line, false));
    reader.end("exit status: 101", success)
}

/// The beginning of `OUTPUT`.
fn cut(lines: usize) -> String {
    let lines = OUTPUT.lines().take(lines);
    lines.map(|line| format!("{line}\n")).collect()
}

fn why(outcome: &ProgramResult) -> &str {
    outcome.broken.as_deref().unwrap_or("not broken")
}

#[test]
fn events_differ_from_the_output_of_children() {
    let outcome = read(OUTPUT, false);
    assert_eq!(
        outcome.printed,
        "a child says this\nand this without an end\n"
    );
    assert_eq!(outcome.filtered_out, 7);
    assert_eq!((&outcome.broken, outcome.not_run), (&None, 0));
    let failed: Vec<_> = outcome.failed().collect();
    assert_eq!(failed[0].printed, "left is not right\n");
    assert_eq!(outcome.tests[0].seconds, 0.25);
    let lines = outcome.lines().join("\n");
    assert!(
        lines.contains("test one ... ok\ntest two ... FAILED\n"),
        "{lines}"
    );
    let result = "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 7 filtered out;";
    assert!(lines.contains(result), "{lines}");
}

#[test]
fn a_panic_is_said_where_its_test_is() {
    let panic = "a word\\nthread 'two' panicked at a.rs:1:2:\\nleft is not right\\n";
    let outcome = read(&OUTPUT.replace("left is not right\\n", panic), false);
    let lines = outcome.lines().join("\n");
    let printed =
        "FAILED\n    thread 'two' panicked at a.rs:1:2:\n    left is not right\ntest three";
    assert!(lines.contains(printed), "{lines}");
}

/// The output of a child can also come between an event and the end of its line.
#[test]
fn an_event_is_read_whatever_stands_beside_it_in_its_line() {
    let text = OUTPUT.replace("\"exec_time\": 0.25 }", "\"exec_time\": 0.25 }and after it");
    let outcome = read(&text, false);
    assert_eq!((outcome.tests.len(), &outcome.broken), (3, &None));
    assert!(
        outcome.printed.ends_with("\nand after it\n"),
        "{}",
        outcome.printed
    );
}

#[test]
fn plain_lines_of_examples_are_read() {
    let text = "running 3 tests\ntest src/a.rs - b (line 3) ... ok\ntest src/c.rs - d ... FAILED\n\
                test src/e.rs - f (line 9) - compile ... ignored, why\n\
                test result: FAILED. 1 passed; 1 failed\n";
    let outcome = read_as(TestOutputFormat::Plain, text, false);
    let verdicts: Vec<_> = outcome.tests.iter().map(|test| test.verdict).collect();
    assert_eq!(
        verdicts,
        [
            TestVerdict::Passed,
            TestVerdict::Failed,
            TestVerdict::Ignored
        ]
    );
    assert_eq!(outcome.tests[0].name, "src/a.rs - b (line 3)");
    assert_eq!(outcome.broken, None);
    let empty = "running 0 tests\ntest result: ok. 0 passed";
    assert!(read_as(TestOutputFormat::Plain, empty, true).passed());
    // One of two packages ended before its result.
    let text = format!("{empty}\nrunning 2 tests\ntest src/a.rs - b (line 3) ... ok\n");
    let outcome = read_as(TestOutputFormat::Plain, &text, true);
    assert_eq!((outcome.not_run, outcome.passed()), (1, false));
}

#[test]
fn plain_lines_of_a_child_are_no_results() {
    let script = "echo 'test forged ... ok'; echo 'test result: ok. 1 passed; 0 failed'";
    let outcome = sh(script, limits());
    assert_eq!(outcome.tests, []);
    assert!(!outcome.passed());
    assert!(outcome.printed.contains("test forged ... ok\n"));
}

#[test]
fn a_test_whose_program_ended_before_it_has_failed_with_those_that_did_not_run() {
    let outcome = read(&cut(5), false);
    let failed: Vec<_> = outcome.failed().map(|test| test.name.as_str()).collect();
    assert_eq!(failed, ["two"]);
    assert_eq!(outcome.not_run, 1);
    assert!(
        why(&outcome).ends_with("; 1 tests did not run"),
        "{outcome:?}"
    );
}

/// The program is this one, whose tests run one after the other by name. The third aborts.
#[test]
fn tests_after_an_abort_are_counted() {
    const CHILD: &str = "ALKNET_TEST_HARNESS_CHILD";
    if std::env::var_os(CHILD).is_some() {
        std::process::abort();
    }
    let names = [
        "events_differ_from_the_output_of_children",
        "processor_time_is_read_past_any_name",
        "tests_after_an_abort_are_counted",
        "the_factor_scales_both_limits",
    ];
    let mut command = Command::new(std::env::current_exe().expect("a test program"));
    command
        .args(["-Z", "unstable-options", "--format=json", "--report-time"])
        .args(["--test-threads=1", "--exact"])
        .args(names.map(|name| format!("test::harness::tests::{name}")))
        .envs([("RUSTC_BOOTSTRAP", "1"), (CHILD, "1")]);
    let outcome = run(&mut command, TestOutputFormat::Json, limits()).expect("it runs");
    let verdicts: Vec<_> = outcome.tests.iter().map(|test| test.verdict).collect();
    assert_eq!(
        verdicts,
        [TestVerdict::Passed, TestVerdict::Passed, TestVerdict::Lost]
    );
    assert!(
        why(&outcome).ends_with("; 1 tests did not run"),
        "{outcome:?}"
    );
}

#[test]
fn the_factor_scales_both_limits() {
    let (rest, busy) = (TestTimeouts::scaled(1.0), TestTimeouts::scaled(1.25));
    assert_eq!(busy.silence, rest.silence * 5 / 4);
    assert_eq!(busy.grace, rest.grace * 5 / 4);
    // The limit of a program that hangs does not grow without an end.
    assert!(TestTimeouts::scaled(3.0).silence < rest.silence * 3);
}

#[test]
fn a_program_that_says_nothing_has_not_passed() {
    assert!(read("", true).broken.is_some());
    assert!(!read("", true).passed());
    let whole = "{ \"type\": \"suite\", \"event\": \"started\", \"test_count\": 0 }\n\
                 { \"type\": \"suite\", \"event\": \"ok\", \"filtered_out\": 0 }";
    assert!(read(whole, true).passed());
    // All tests pass and the program fails, for example by an exit handler.
    assert!(!read(whole, false).passed());
    // The harness fails, and the program does not.
    let failed = whole.replace("\"ok\"", "\"failed\"");
    assert!(why(&read(&failed, true)).contains("the harness failed"));
    // A test failed, and the program reports that none did.
    assert!(read(OUTPUT, true).broken.is_some());
}

/// The runner cannot see in one event whether a child wrote it, but it sees if all of them do not
/// add up.
#[test]
fn events_that_do_not_add_up_are_found() {
    let event = |name: &str, event: &str| {
        format!("{{ \"type\": \"test\", \"name\": \"{name}\", \"event\": \"{event}\" }}\n")
    };
    let after = |lines: usize, forged: &str| {
        let rest = OUTPUT.strip_prefix(&cut(lines)).expect("its beginning");
        read(&(cut(lines) + forged + rest), false)
    };
    for (lines, forged, printed) in [
        (3, event("two", "ok"), "`two` ended and was not running"),
        (2, event("three", "ok"), "`three` ended and was not running"),
        (6, event("one", "ok"), "`one` ended and was not running"),
        (6, event("one", "started"), "`one` started twice"),
        (2, event("one", "started"), "`one` started twice"),
        (0, event("one", "started"), "`one` started out of turn"),
        (9, event("more", "started"), "`more` started out of turn"),
        (4, cut(1), "`suite` started out of turn"),
        (
            7,
            event("four", "started") + &event("four", "ok"),
            "the harness counts 1 passed, 1 failed and 1 ignored, and its events 2, 1 and 1",
        ),
    ] {
        let outcome = after(lines, &forged);
        assert!(why(&outcome).contains(printed), "{printed}: {outcome:?}");
    }
}

#[test]
fn a_line_without_end_is_kept_in_part() {
    let mut read = Vec::new();
    let long = vec![b'x'; SAID_BYTES_MAX + 7];
    let text = [
        b"\none\n",
        &*long,
        b"\n",
        &long[..SAID_BYTES_MAX],
        b"\nlast",
    ]
    .concat();
    lines(&*text, |line, is_cut| read.push((line.len(), is_cut))).expect("it is in memory");
    let whole = [(0, false), (3, false), (SAID_BYTES_MAX, true)];
    let rest = [(SAID_BYTES_MAX, false), (4, false)];
    assert_eq!(read, [&whole[..], &rest].concat());
}

/// The output of the test is longer than what is kept of a line, which ends within an escape.
#[test]
fn a_failure_with_much_output_is_a_failure() {
    let script = format!(
        r#"echo '{{ "type": "suite", "event": "started", "test_count": 1 }}'
        echo '{{ "type": "test", "event": "started", "name": "long" }}'
        printf '%s' '{{ "type": "test", "name": "long", "event": "failed", "stdout": "x'
        yes '\n' | tr -d '\n' | head -c {}
        echo '" }}'
        echo '{{ "type": "suite", "event": "failed", "passed": 0, "failed": 1 }}'
        exit 101"#,
        2 * SAID_BYTES_MAX
    );
    let outcome = sh(&script, limits());
    assert_eq!(outcome.broken, None);
    let test = &outcome.tests[0];
    assert_eq!(
        (test.name.as_str(), test.verdict),
        ("long", TestVerdict::Failed)
    );
    assert!(
        test.printed.starts_with("x\n\n\n"),
        "{} bytes",
        test.printed.len()
    );
}

#[test]
fn a_program_is_run_and_its_processor_time_counted() {
    let script = format!(
        "cat <<'END'\n{OUTPUT}END\ni=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; exit 101"
    );
    let outcome = sh(&script, limits());
    assert_eq!(outcome.tests.len(), 3);
    assert!(outcome.cpu_seconds > 0.0 && outcome.cpu_seconds <= outcome.wall_seconds * 2.0);
}

#[test]
fn a_program_that_hangs_is_ended_with_what_it_left_running() {
    let started = r#"echo '{ "type": "test", "event": "started", "name": "hangs" }'
        sleep 1000 & echo $!; wait"#;
    let outcome = sh(started, short());
    let lost = &outcome.tests[0];
    assert_eq!(
        (lost.name.as_str(), lost.verdict),
        ("hangs", TestVerdict::Lost)
    );
    assert!(
        lost.printed.contains("no test ended within"),
        "{}",
        lost.printed
    );
    is_gone(outcome.printed.trim().parse().expect("its number"));
}

/// One is stopped, and the other ignores SIGABRT.
#[test]
fn a_program_that_handles_no_signal_is_ended_too() {
    for script in [
        "echo $$; kill -STOP $$; sleep 1000",
        "echo $$; trap '' ABRT; while :; do sleep 0.01; done",
    ] {
        let outcome = sh(script, short());
        assert!(
            why(&outcome).contains("no test ended within"),
            "{outcome:?}"
        );
        is_gone(outcome.printed.trim().parse().expect("its number"));
    }
}

#[test]
fn processor_time_is_read_past_any_name() {
    let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15";
    assert_eq!(ticks(stat), 11 + 12 + 13 + 14);
}
