use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::panic::Location;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// What this process recorded.
static RECORDED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The file that the runner counts skips from.
const SKIPS: &str = "ALKNET_TEST_SKIPS";

/// Ends the current test without running it, because the machine lacks something.
///
/// The first argument names what is lacking, in a few words that stay the same from test to test: the runner counts
/// by them. The others are a format string and its arguments, and describe what the test found instead. A test may
/// skip for a property of the processor, the kernel or its privileges. A program that is missing is a fault of the
/// set-up, and fails the test.
///
/// ```no_run
/// # fn a_test() {
/// if !std::path::Path::new("/dev/kvm").exists() {
///     alknet_test_support::skip!("KVM", "this kernel has no /dev/kvm");
/// }
/// # }
/// ```
///
/// The macro returns from the function around it. In a helper that has a result, call
/// [`skipped_whole`](crate::skipped_whole) and return a value that makes the test end. A test that leaves out one of
/// several checks and goes on calls [`skipped`](crate::skipped).
#[macro_export]
macro_rules! skip {
    ($need:expr, $($why:tt)+) => {{
        $crate::skipped_whole($need, format_args!($($why)+));
        return;
    }};
}

/// Records that the current test checks a part only, for lack of `need`. The test goes on and checks the rest.
///
/// It does not repeat a line that the process has recorded already.
///
/// It appends one line to the file that `ALKNET_TEST_SKIPS` names: the test, `part`, `need` and `why`, divided by
/// tabs. It takes the test's name from its thread, which libtest sets. On a thread without a name, or on the main
/// thread, the location of the call replaces the name.
///
/// # Panics
///
/// Where that file cannot be written: a skip that is not counted would pass for a run.
#[track_caller]
pub fn skipped(need: &str, why: impl Display) {
    record(Location::caller(), "part", need, &why.to_string());
}

/// Records that the current test checks nothing, for lack of `need`, without ending it: [`skip!`](crate::skip)
/// does both. The line has `whole` in place of `part`, and is otherwise that of [`skipped`].
///
/// # Panics
///
/// Like [`skipped`].
#[track_caller]
pub fn skipped_whole(need: &str, why: impl Display) {
    record(Location::caller(), "whole", need, &why.to_string());
}

/// Records that the current test started `what` once more, because it did not come up for a reason of the host's, or
/// of a third party's program, which `why` names. The runner counts and lists it; each time is recorded.
///
/// The line has `again` in the second place, and is otherwise that of [`skipped`]. It goes to the standard error as well.
///
/// # Panics
///
/// Like [`skipped`].
#[track_caller]
pub fn started_again(what: &str, why: impl Display) {
    let line = line(&test(Location::caller()), "again", what, &why.to_string());
    eprintln!("started again: {}", line.trim_end());
    note(&line);
}

fn record(location: &Location<'_>, kind: &str, need: &str, why: &str) {
    let line = line(&test(location), kind, need, why);
    let mut known = RECORDED.lock().unwrap_or_else(PoisonError::into_inner);
    if !known.insert(line.clone()) {
        return;
    }
    println!("skipped: {}", line.trim_end());
    note(&line);
}

/// Name of the current test, or `location` where its thread has no name of a test.
fn test(location: &Location<'_>) -> String {
    match thread::current().name() {
        Some(name) if name != "main" => name.to_owned(),
        _ => format!("{}:{}", location.file(), location.line()),
    }
}

fn note(line: &str) {
    if let Some(file) = std::env::var_os(SKIPS) {
        append(&file, line).expect("the file of ALKNET_TEST_SKIPS takes a line");
    }
}

/// Control characters would divide a field or a line, and become spaces.
fn line(test: &str, kind: &str, need: &str, why: &str) -> String {
    let clean = |text: &str| text.replace(char::is_control, " ").trim().to_owned();
    format!("{}\t{kind}\t{}\t{}\n", clean(test), clean(need), clean(why))
}

/// Tests run at the same time. The kernel keeps one write to a file opened for appending apart from the writes of
/// others, but would not keep the second half of a line with its first.
fn append(file: &OsStr, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(file)?;
    let written = file.write(line.as_bytes())?;
    if written == line.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const CHILD: &str = "ALKNET_TEST_SUPPORT_CHILD";

    /// Libtest's name of the test below.
    const NAME: &str = "skip::tests::each_skip_appends_a_line_to_the_file";

    #[test]
    fn a_line_has_four_fields_whatever_is_in_them() {
        assert_eq!(
            line("a::b", "whole", "KVM", "none here"),
            "a::b\twhole\tKVM\tnone here\n"
        );
        assert_eq!(
            line("a", "part", " b\n", "it\tsaid\n\u{7f}"),
            "a\tpart\tb\tit said\n"
        );
    }

    /// The test starts itself again, with the variable set: changing the environment of a process that has
    /// threads is unsound.
    #[test]
    fn each_skip_appends_a_line_to_the_file() {
        if std::env::var_os(CHILD).is_some() {
            let unnamed = thread::spawn(|| skipped("KVM", "a thread of the test"));
            unnamed.join().expect("no panic");
            for _ in 0..2 {
                skipped("KVM", "half of it");
                started_again("QEMU", "a port");
            }
            crate::skip!("KVM", "{} of {}", 0, 1);
        }
        let folder = std::env::temp_dir().join(format!("alknet-skips-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("a new folder");
        let file = folder.join("skips");
        for _ in 0..2 {
            let here = std::env::current_exe().expect("a test program");
            let mut child = Command::new(here);
            child.args(["--exact", NAME]).env(CHILD, "1");
            let child = child.env(SKIPS, &file).output().expect("it starts");
            let said = String::from_utf8_lossy(&child.stdout);
            assert!(
                child.status.success() && said.contains("1 passed"),
                "{said}"
            );
        }
        let lines = std::fs::read_to_string(&file).expect("it was made");
        std::fs::remove_dir_all(&folder).expect("ours");
        let mut lines = lines
            .lines()
            .map(|line| line.split_once('\t').expect("fields"));
        for _ in 0..2 {
            let (location, reasons) = lines.next().expect("a line");
            assert!(location.contains("skip.rs:"), "{location}");
            assert_eq!(reasons, "part\tKVM\ta thread of the test");
            assert_eq!(lines.next(), Some((NAME, "part\tKVM\thalf of it")));
            for _ in 0..2 {
                assert_eq!(lines.next(), Some((NAME, "again\tQEMU\ta port")));
            }
            assert_eq!(lines.next(), Some((NAME, "whole\tKVM\t0 of 1")));
        }
        assert_eq!(lines.next(), None);
    }
}
