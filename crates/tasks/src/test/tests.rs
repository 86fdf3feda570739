//! The whole command: what it refuses, what it leaves out, and the result of a run with skips.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use clap::Parser as _;

use super::harness::TestTimeouts;
use super::*;

#[derive(Debug, clap::Parser)]
struct TestArgsCli {
    #[command(flatten)]
    arguments: TestArgs,
}

fn arguments(words: &[&str]) -> TestArgs {
    let words = iter::once(&"test").chain(words);
    TestArgsCli::try_parse_from(words)
        .expect("arguments")
        .arguments
}

fn program(name: &str, path: &str) -> TestProgram {
    let (package, target) = name.split_once(' ').expect("both");
    TestProgram {
        package: package.to_owned(),
        target: target.to_owned(),
        path: PathBuf::from(path),
        folder: PathBuf::from("/"),
    }
}

/// This program, as one of the tests.
fn this() -> TestProgram {
    let here = std::env::current_exe().expect("a test program");
    program("alknet-tasks lib", here.to_str().expect("a plain path"))
}

/// The needs of every plan here: one program waits.
fn needs() -> &'static TestNeeds {
    static NEEDS: OnceLock<TestNeeds> = OnceLock::new();
    let json = br#"{"packages": [{"name": "alknet-tests", "metadata": {"tests":
        {"http": {"waits": true}, "node": {"waits": true, "modules": {"gone": {}}}}}}]}"#;
    NEEDS.get_or_init(|| TestNeeds::from_metadata(json).expect("the form of the documentation"))
}

fn plan<'a>(filter: Option<&'a str>, null: &'a NullDevice) -> TestPlan<'a> {
    TestPlan {
        filter,
        processors: 1,
        machines_mib: 0,
        needs: needs(),
        slowdown: alknet_test_support::slowdown(),
        deadlines: alknet_test_support::slowdown(),
        null,
    }
}

fn run_with(filter: Option<&str>, programs: Vec<TestProgram>, variables: &Variables) -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cx = XtaskContext::in_folder(folder.path());
    // The run is not whole: it would run the examples in the documentation.
    let arguments = arguments(&["filter"]);
    plan(filter, &NullDevice::new()).run(&cx, programs, variables, &arguments)
}

/// Other programs begin while the tests are built.
#[test]
fn the_larger_of_two_measurements_counts() {
    let measured = |factor: f64| Slowdown::from_setting(None, || factor).expect("a number");
    let (rest, busy) = (measured(1.0), measured(4.0));
    assert_eq!(rest.or_larger(busy), busy);
    assert_eq!(busy.or_larger(rest), busy, "what has ended may come back");
    assert_eq!(rest.or_larger(rest), rest);
}

#[test]
fn a_run_without_a_test_fails() {
    // The filter is in two pieces, or the name of a test could contain it.
    let filter = ["vu", "alt"].concat();
    let failed = run_with(Some(&filter), vec![this()], &Vec::new());
    let failed = failed.expect_err("a name that is typed wrong").to_string();
    assert!(
        failed.ends_with("no test's name contains `vualt`"),
        "{failed}"
    );
    let failed = run_with(None, Vec::new(), &Vec::new());
    let failed = failed.expect_err("no programs").to_string();
    assert!(failed.contains("no test program"), "{failed}");
}

/// `true` lists nothing and exits with 0.
#[test]
fn a_divided_program_without_tests_fails_unless_a_filter_leaves_none() {
    let divided = || vec![program("alknet-tests http", "/bin/true")];
    let failed = run_with(None, divided(), &Vec::new());
    let failed = failed.expect_err("it has tests").to_string();
    assert!(failed.contains("alknet-tests http"), "{failed}");
    let programs = divided();
    let parts = plan(Some("x"), &NullDevice::new()).parts(&programs, &Vec::new());
    assert_eq!(parts.expect("none match").parts, []);
}

#[test]
fn needs_of_what_is_not_there_are_an_error() {
    let failed = |programs: &[TestProgram]| {
        let null = NullDevice::new();
        let plan = plan(None, &null);
        let known = plan.reject_unknown_programs(programs);
        known.and_then(|()| plan.parts(programs, &Vec::new()).map(drop))
    };
    let http = program("alknet-tests http", "/bin/true");
    let error = failed(std::slice::from_ref(&http))
        .expect_err("no node")
        .to_string();
    assert!(error.contains("needs of alknet-tests node"), "{error}");
    // The only test that it lists is in no module.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let lists = folder.path().join("lists");
    std::fs::write(&lists, "#!/bin/sh\necho 'alone: test'\n").expect("the folder is ours");
    std::fs::set_permissions(&lists, PermissionsExt::from_mode(0o755)).expect("the file is ours");
    let lists = lists.to_str().expect("a plain path");
    let programs = [
        program("alknet-tests node", lists),
        program("alknet-tests http", lists),
    ];
    let error = failed(&programs).expect_err("no module").to_string();
    assert!(
        error.contains("needs of the module gone of alknet-tests node"),
        "{error}"
    );
}

/// The variable that makes this test fail after it recorded a skip, when it runs by itself.
const CHILD: &str = "ALKNET_TEST_MOD_CHILD";

#[test]
fn skips_of_each_run_are_its_own() {
    if std::env::var_os(CHILD).is_some() {
        alknet_test_support::skipped("a copy", "the copy checks nothing more");
        panic!("the copy is to fail");
    }
    let name = "test::tests::skips_of_each_run_are_its_own";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cx = XtaskContext::in_folder(folder.path());
    let programs = [this()];
    let variables: Variables = vec![(CHILD, "1".into())];
    let null = NullDevice::new();
    let plan = plan(Some(name), &null);
    let parts = plan.parts(&programs, &variables).expect("one").parts;
    let ran = plan.run_all(&cx, &parts, &variables);
    let failed = plan.failed(&cx, &parts, &ran, &variables);
    assert_eq!(failed[0].passes_alone, Some(false));
    assert_eq!((ran.len(), ran[0].skips.len()), (1, 1));
}

/// The variable that names a file, when this test runs by itself: it fails while the file is
/// missing, and makes it.
const ONCE_CHILD: &str = "ALKNET_TEST_MOD_ONCE_CHILD";

#[test]
fn a_failed_test_fails_the_run_although_it_passes_alone() {
    if let Some(file) = std::env::var_os(ONCE_CHILD) {
        let file = std::path::Path::new(&file);
        let was_there = file.exists();
        std::fs::write(file, "").expect("the folder is the parent's");
        assert!(was_there, "it fails the first time");
    } else {
        let name = "test::tests::a_failed_test_fails_the_run_although_it_passes_alone";
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("ran");
        let variables: Variables = vec![(ONCE_CHILD, file.clone().into())];
        let failed = run_with(Some(name), vec![this()], &variables);
        let failed = failed.expect_err("a test failed").to_string();
        assert!(failed.contains("1 failed"), "{failed}");
        // The test ran twice: the file is there, and another run passes.
        run_with(Some(name), vec![this()], &variables).expect("it passes");

        let (cx, programs, null) = (
            XtaskContext::in_folder(folder.path()),
            [this()],
            NullDevice::new(),
        );
        std::fs::remove_file(&file).expect("the child made it");
        let plan = plan(Some(name), &null);
        let parts = plan.parts(&programs, &variables).expect("one").parts;
        let ran = plan.run_all(&cx, &parts, &variables);
        let failed = plan.failed(&cx, &parts, &ran, &variables);
        assert_eq!(failed[0].passes_alone, Some(true));
        assert!(failed[0].text().contains("(passes alone)"));
    }
}

#[test]
fn a_program_that_cannot_be_started_fails_and_the_others_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cx = XtaskContext::in_folder(folder.path());
    let programs = [program("alknet-core lib", "/nonexistent/program"), this()];
    let name = "test::tests::a_factor_is_measured_or_a_number_of_at_least_one";
    let null = NullDevice::new();
    let plan = plan(Some(name), &null);
    let parts = plan.parts(&programs, &Vec::new()).expect("two").parts;
    let ran = plan.run_all(&cx, &parts, &Vec::new());
    let broken: Vec<_> = ran.iter().map(|ran| ran.outcome.broken.is_some()).collect();
    assert_eq!(broken, [true, false]);
    assert!(ran[1].outcome.passed() && ran[1].outcome.tests.len() == 1);
}

/// The programs that wait are listed: `false` lists nothing and exits with 1, and the other cannot
/// be started.
#[test]
fn a_program_that_cannot_be_listed_fails_and_the_others_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cx = XtaskContext::in_folder(folder.path());
    let programs = [
        program("alknet-tests http", "/bin/false"),
        program("alknet-tests node", "/nonexistent/program"),
        this(),
    ];
    let name = "test::tests::a_factor_is_measured_or_a_number_of_at_least_one";
    let null = NullDevice::new();
    let plan = plan(Some(name), &null);
    let divided = plan.parts(&programs, &Vec::new());
    let divided = divided.expect("what cannot be listed is no error of the whole");
    let unlisted: Vec<&str> = divided.unlisted.iter().map(|ran| &*ran.part).collect();
    assert_eq!(unlisted, ["alknet-tests http", "alknet-tests node"]);
    for ran in &divided.unlisted {
        let why = ran.outcome.broken.as_deref().unwrap_or_default();
        let what = format!("list the tests of {}", ran.part);
        assert!(why.contains(&what), "{why}");
    }
    let ran = plan.run_all(&cx, &divided.parts, &Vec::new());
    assert_eq!(ran.len(), 1);
    assert!(ran[0].outcome.passed() && ran[0].outcome.tests.len() == 1);

    let failed = run_with(Some(name), programs.into(), &Vec::new());
    let failed = failed.expect_err("two were not listed").to_string();
    assert!(failed.contains("2 failed"), "{failed}");
}

/// The variable that makes this test check its own limit, when it runs by itself.
const LIMITED_CHILD: &str = "ALKNET_TEST_MOD_LIMITED_CHILD";

#[test]
fn a_test_gets_the_memory_for_machines_that_its_manifest_says() {
    if std::env::var_os(LIMITED_CHILD).is_some() {
        assert_eq!(alknet_test_support::machines_mib(), Some(96));
    } else {
        let json = br#"{"packages": [{"name": "alknet-tasks", "metadata": {"tests": {"lib": {"machines-mib": 96}}}}]}"#;
        let needs = TestNeeds::from_metadata(json).expect("the form of the documentation");
        let name = "test::tests::a_test_gets_the_memory_for_machines_that_its_manifest_says";
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cx = XtaskContext::in_folder(folder.path());
        let programs = [this()];
        let variables: Variables = vec![(LIMITED_CHILD, "1".into())];
        let null = NullDevice::new();
        let plan = TestPlan {
            needs: &needs,
            ..plan(Some(name), &null)
        };
        let parts = plan.parts(&programs, &variables).expect("one").parts;
        let ran = plan.run_all(&cx, &parts, &variables);
        assert!(ran[0].outcome.passed() && ran[0].outcome.tests.len() == 1);
    }
}

/// The variable with the factor of deadlines that this test must have, when it runs by itself.
const SLOWED_CHILD: &str = "ALKNET_TEST_MOD_SLOWED_CHILD";

#[test]
fn tests_get_the_factor_of_the_runs_deadlines() {
    let own = alknet_test_support::slowdown();
    if let Ok(wanted) = std::env::var(SLOWED_CHILD) {
        assert_eq!(format!("{own:.2}"), wanted);
    } else {
        // A factor other than this process's, because the child would inherit that.
        let (deadlines, wanted) = if own < 7.5 {
            (8.0, "8.00")
        } else {
            (7.0, "7.00")
        };
        let name = "test::tests::tests_get_the_factor_of_the_runs_deadlines";
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cx = XtaskContext::in_folder(folder.path());
        let variables: Variables = vec![(SLOWED_CHILD, wanted.into())];
        let null = NullDevice::new();
        let plan = TestPlan {
            deadlines,
            ..plan(Some(name), &null)
        };
        // The run is not whole: it would run the examples in the documentation.
        let arguments = arguments(&["filter"]);
        let ran = plan.run(&cx, vec![this()], &variables, &arguments);
        ran.expect("the child has the factor");
    }
}

#[test]
fn a_warning_fails_a_run_with_checks_alone() {
    let judge = |words: &[&str], warnings| {
        let scope = Scope::from_arguments(&arguments(words), true);
        judge_lints(scope, warnings).map_err(|failure| failure.to_string())
    };
    for words in [&[] as &[&str], &["--since", "main"]] {
        assert_eq!(judge(words, 0), Ok(()));
        let failure = judge(words, 2).expect_err("two warnings");
        assert!(
            failure.contains("lints") && failure.contains("2 warnings"),
            "{failure}"
        );
    }
    assert_eq!(judge(&["vault"], 2), Ok(()));
}

/// A machine that waits for others starts before the program that waits for it is ended. The limit
/// of a boot is longer under emulation, and for the tests that run beside it. On a slower machine
/// both sides grow, but the wait does not.
#[test]
fn the_wait_for_a_machine_is_shorter_than_the_longest_silence() {
    let crowd = u32::try_from(schedule::CROWD).expect("a few");
    let boot = alknet_qemu::READY_WITHIN * alknet_qemu::TCG_TIMEOUT_FACTOR * crowd;
    let silence = TestTimeouts::scaled(1.0).silence;
    assert!(
        alknet_qemu::MACHINE_WAIT_MAX + boot < silence,
        "{boot:?} of {silence:?}"
    );
    // A wait for a machine has a longest value as well, however busy the host is.
    let busy = TestTimeouts::scaled(6.0).silence;
    let longest = alknet_qemu::SCALED_MAX;
    assert!(
        silence < busy && alknet_qemu::MACHINE_WAIT_MAX * 6 + longest < busy,
        "{longest:?} of {busy:?}"
    );
    assert_eq!(TestTimeouts::scaled(60.0).silence, busy);
}

#[test]
fn times_on_a_busy_machine_are_not_the_next_runs() {
    let null = NullDevice::new();
    let at = |slowdown| TestPlan {
        slowdown,
        ..plan(None, &null)
    };
    assert!(at(1.0).keeps_times() && at(1.4).keeps_times());
    assert!(!at(5.0).keeps_times());
}

#[test]
fn checks_run_whichever_packages_are_tested() {
    let scope = |words: &[&str], takes_packages| {
        let scope = Scope::from_arguments(&arguments(words), takes_packages);
        (scope.tests, scope.checks, scope.documentation)
    };
    assert_eq!(scope(&[], true), (true, true, true));
    assert_eq!(scope(&["--since", "main"], true), (true, true, false));
    assert_eq!(scope(&["--since", "main"], false), (false, true, false));
    assert_eq!(scope(&["vault"], true), (true, false, false));
    assert_eq!(
        scope(&["--", "--package", "alknet"], true),
        (true, true, false)
    );
}

#[test]
fn a_factor_is_measured_or_a_number_of_at_least_one() {
    let of = |set| Slowdown::from_setting(set, || 1.5);
    let (at_start, deadlines) = (1.5, 1.5 * schedule::CROWD as f64);
    assert_eq!(
        of(None).expect("measured"),
        Slowdown {
            at_start,
            deadlines
        }
    );
    assert_eq!(
        of(Some("1.5")).expect("set"),
        Slowdown {
            at_start,
            deadlines
        }
    );
    let most = of(Some("1e300")).expect("a number");
    assert_eq!(
        (most.at_start, most.deadlines),
        (SLOWDOWN_MAX, SLOWDOWN_MAX)
    );
    let _ = TestTimeouts::scaled(most.deadlines);
    for bad in ["inf", "NaN", "0.5", "-1", "", "2x"] {
        let error = of(Some(bad)).expect_err(bad).to_string();
        assert!(error.starts_with(SLOWDOWN_VARIABLE), "{error}");
    }
}

/// The runner refuses and caps the same values as the programs that it starts.
#[test]
fn tests_read_the_factor_as_the_runner_does() {
    assert_eq!(SLOWDOWN_MAX, alknet_test_support::SLOWDOWN_MAX);
    for text in ["1", " 2.5\n", "1e300", "inf", "NaN", "0.5", "-1", "", "2x"] {
        let ours = Slowdown::from_setting(Some(text), || 1.0).map(|slowdown| slowdown.at_start);
        let theirs = alknet_test_support::parse_slowdown(text);
        assert_eq!(ours.ok(), theirs.ok(), "{text:?}");
    }
}
