use std::process::{Command, Stdio};
use std::thread;

/// The only thread of a harness that runs one test at a time does not have the test's name.
const MAIN: &str = "main";

/// Names the test to run in this process.
const ALONE: &str = "ALKNET_TEST_SUPPORT_ALONE";

/// Runs `test`, the body of the test of this name, in a process that runs nothing else: for tests that measure their
/// own process's memory.
///
/// `name` is the test's whole name, as the harness lists it. The test starts its own program again with that name; in
/// the second process this function just calls `test`.
///
/// # Panics
///
/// Where the test fails in that process, or the calling test has another name.
///
/// ```no_run
/// // #[test]
/// fn memory_comes_back() {
///     alknet_test_support::alone("memory_comes_back", || {
///         // What it measures is what it did.
///     });
/// }
/// ```
#[track_caller]
pub fn alone(name: &str, test: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some_and(|it| *it == *name) {
        test();
    } else {
        start(name);
    }
}

#[track_caller]
fn start(name: &str) {
    // A name copied along with a test would run the other test.
    if let Some(calling) = thread::current().name().filter(|thread| *thread != MAIN) {
        assert_eq!(name, calling, "the name of another test");
    }
    let program = std::env::current_exe().expect("a test program");
    // The process ends with the thread of the test, whatever ends that thread.
    let output = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(program)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ALONE, name)
        .stdin(Stdio::null())
        .output()
        .expect("util-linux is part of every system");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("\ntest result: ok. 1 passed"),
        "{name}, alone in its process: {}\n{said}\n{errors}",
        output.status
    );
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::thread;

    #[test]
    fn a_test_runs_in_a_process_of_its_own() {
        let name = "alone::tests::a_test_runs_in_a_process_of_its_own";
        super::alone(name, || {
            let line = std::fs::read("/proc/self/cmdline").expect("Linux");
            let line = String::from_utf8_lossy(&line);
            assert!(
                line.contains(name) && line.contains("--test-threads=1"),
                "{line}"
            );
        });
    }

    /// The message of a call's panic.
    fn panics(call: impl FnOnce()) -> String {
        let panic = catch_unwind(AssertUnwindSafe(call)).expect_err("it fails");
        *panic.downcast::<String>().expect("a text")
    }

    #[test]
    fn what_fails_in_its_own_process_fails() {
        let name = "alone::tests::what_fails_in_its_own_process_fails";
        let fails = || super::alone(name, || panic!("as it must"));
        if std::env::var_os(super::ALONE).is_some() {
            fails();
        } else {
            let said = panics(fails);
            assert!(
                said.contains("exit status: 101") && said.contains("as it must"),
                "{said}"
            );
        }
    }

    #[test]
    fn the_name_of_another_test_fails() {
        let name = "alone::tests::a_test_runs_in_a_process_of_its_own";
        let other = thread::Builder::new().name("alone::tests::another".to_owned());
        let said = other
            .spawn(move || panics(|| super::alone(name, || {})))
            .expect("a thread");
        let said = said.join().expect("it is caught");
        assert!(said.contains("the name of another test"), "{said}");
        // Without a thread's name, no test runs under the name of another.
        let other = thread::Builder::new().name(super::MAIN.to_owned());
        let said = other.spawn(|| panics(|| super::alone("alone::tests::none", || {})));
        let said = said.expect("a thread").join().expect("it is caught");
        assert!(said.contains("0 passed"), "{said}");
    }
}
