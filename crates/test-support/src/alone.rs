use std::process::{Command, Stdio};

/// Names the test that is to run in this process.
const ALONE: &str = "ALKNET_TEST_SUPPORT_ALONE";

/// Runs `test`, the body of the test of this name, in a process that runs nothing else: for what measures its own
/// process's memory.
///
/// `name` is the test's whole name, as the harness lists it. The test starts its own program again with that
/// name; in the second process the function just calls `test`.
///
/// # Panics
///
/// Where the test fails in that process, or there is no test of this name.
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
    let program = std::env::current_exe().expect("a test program");
    // It ends with the thread of the test, whatever ends that.
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
    use std::panic::catch_unwind;

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

    #[test]
    fn what_fails_in_its_own_process_fails() {
        let name = "alone::tests::what_fails_in_its_own_process_fails";
        let fails = || super::alone(name, || panic!("as it must"));
        if std::env::var_os(super::ALONE).is_some() {
            fails();
        } else {
            assert!(catch_unwind(fails).is_err());
        }
    }

    #[test]
    fn a_name_without_a_test_fails() {
        assert!(catch_unwind(|| super::alone("alone::tests::no_such_test", || {})).is_err());
    }
}
