use std::ffi::OsStr;
use std::fmt::Display;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// How much slower this machine is than at rest, as measured at the start of the run.
const SLOWDOWN: &str = "ALKNET_TEST_SLOWDOWN";

/// Beyond a thousand times slower a measurement is a mistake, and a deadline of an hour would become one of weeks.
pub const SLOWDOWN_MAX: f64 = 1000.0;

/// How long a program that [`limited`] ends has to handle SIGTERM before SIGKILL.
const KILL_AFTER: Duration = Duration::from_secs(2);

/// Pauses between two checks of a condition. The first are short, because most conditions hold at once; the last ones
/// leave the processor to the work that the test waits for.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The factor of the pause after a check that took longer than a pause, since it started a program, say…
const PAUSE_PER_QUESTION: u32 = 2;

/// …and the most such a pause takes.
const PAUSE_DEAR_MAX: Duration = Duration::from_millis(400);

/// The factor of this process.
static FACTOR: OnceLock<f64> = OnceLock::new();

/// The factor by which [`deadline`] extends a limit, between 1 and 1000.
///
/// The function reads it from `ALKNET_TEST_SLOWDOWN` once in the life of the process. It is 1 where the variable is
/// not set, unless [`expect_slowdown`] was called before.
///
/// # Panics
///
/// Where the variable is not a number of at least 1.
pub fn slowdown() -> f64 {
    *FACTOR.get_or_init(|| slowdown_from_env().unwrap_or(1.0))
}

/// The factor of the environment.
fn slowdown_from_env() -> Option<f64> {
    let text = std::env::var_os(SLOWDOWN)?;
    let factor = parse_slowdown(&text.to_string_lossy());
    Some(factor.unwrap_or_else(|error| panic!("{error}")))
}

/// Makes [`slowdown`] return `factor`, between 1 and 1000, where `ALKNET_TEST_SLOWDOWN` is not set. No effect after
/// the first call of [`slowdown`].
///
/// # Panics
///
/// Like [`slowdown`].
pub fn expect_slowdown(factor: f64) {
    let measured = factor.clamp(1.0, SLOWDOWN_MAX);
    // A second call, or a late one, changes nothing.
    let _ = FACTOR.set(slowdown_from_env().unwrap_or(measured));
}

/// The factor in a value of `ALKNET_TEST_SLOWDOWN`, [`SLOWDOWN_MAX`] at the most; the error names the variable.
pub fn parse_slowdown(text: &str) -> Result<f64, String> {
    let factor = text.trim().parse().ok();
    let factor = factor.filter(|factor: &f64| factor.is_finite() && *factor >= 1.0);
    factor
        .map(|factor| factor.min(SLOWDOWN_MAX))
        .ok_or_else(|| format!("{SLOWDOWN} is {text:?}, and has to be a number of at least 1"))
}

/// `limit`, which is enough on a machine at rest, multiplied by [`slowdown`].
///
/// It is for the time after which a test gives up waiting. A duration in the configuration of the code under test is
/// part of the scenario and stays as it is.
pub fn deadline(limit: Duration) -> Duration {
    scaled(limit, slowdown())
}

fn scaled(limit: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(limit.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

/// A command that starts `program` and ends it when `limit`, scaled by [`deadline`], has passed. The caller adds
/// arguments, environment and the rest as to any command.
///
/// At the limit the program and all its children get SIGTERM, and SIGKILL two seconds later, scaled too. The exit
/// status is 124 where SIGTERM was enough; otherwise SIGKILL ended the command.
///
/// The program also gets these signals when the thread that started it ends. `timeout` gives it a process group of
/// its own, which neither Ctrl-C nor the runner of the tests reaches. A signal that arrives before `timeout` knows
/// its child ends `timeout` and the program, and leaves the program's children (seen with coreutils 9.1).
pub fn limited(limit: Duration, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "timeout"])
        .arg(format!("--kill-after={}", seconds(KILL_AFTER)))
        .arg(seconds(limit))
        // For a caller that kills its child: that child is `timeout`, which then can end no other program.
        .args(["setpriv", "--pdeathsig", "KILL"])
        .arg(program);
    command
}

/// [`deadline`] of `limit` as a decimal number of seconds, for programs that limit themselves, as curl does
/// with `--max-time`.
pub fn seconds(limit: Duration) -> String {
    deadline(limit).as_secs_f64().to_string()
}

/// The answer of a condition to [`eventually`]: whether it holds, or why it does not yet.
pub trait ConditionResult {
    type Value;

    /// The awaited value, or the text for the panic message.
    fn settle(self) -> Result<Self::Value, String>;
}

impl ConditionResult for bool {
    type Value = ();

    fn settle(self) -> Result<(), String> {
        if self { Ok(()) } else { Err(String::new()) }
    }
}

impl<T> ConditionResult for Option<T> {
    type Value = T;

    fn settle(self) -> Result<T, String> {
        self.ok_or_else(String::new)
    }
}

impl<T, E: Display> ConditionResult for Result<T, E> {
    type Value = T;

    fn settle(self) -> Result<T, String> {
        self.map_err(|error| error.to_string())
    }
}

/// Checks the condition until the answer is `true`, `Some` or `Ok`, and blocks the thread in between.
///
/// The function scales `limit` by [`deadline`]. It compares the time after an answer, so that the last check comes
/// after the limit: a process that did not run for the whole time still gets its chance.
///
/// ```
/// use std::time::Duration;
/// use alknet_test_support::eventually;
///
/// let mut steps = 3;
/// eventually("the countdown ends", Duration::from_secs(10), || {
///     steps -= 1;
///     if steps == 0 { Ok(()) } else { Err(format!("{steps} left")) }
/// });
/// ```
///
/// # Panics
///
/// Where the limit passed. The message has `what`, the time waited, and the last `Err`.
#[track_caller]
pub fn eventually<A: ConditionResult>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> A,
) -> A::Value {
    let (begun, limit) = (Instant::now(), deadline(limit));
    let mut pause = PAUSE_MIN;
    loop {
        // Read before the check: a condition that came to hold in the meantime counts.
        let waited = begun.elapsed();
        let checked = Instant::now();
        let last = match ask().settle() {
            Ok(value) => return value,
            Err(last) => last,
        };
        if waited >= limit {
            let colon = if last.is_empty() { "" } else { ": " };
            panic!("not within {waited:.1?}: {what}{colon}{last}");
        }
        // A check that starts a program takes processor time from the work that it waits for.
        let long_pause = (checked.elapsed() * PAUSE_PER_QUESTION).min(PAUSE_DEAR_MAX);
        thread::sleep(pause.max(long_pause));
        pause = PAUSE_MAX.min(pause * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::panic::catch_unwind;
    use std::process::Stdio;

    #[test]
    fn factors_are_decimals_of_at_least_one() {
        let good = [
            ("1", 1.0),
            ("2.75", 2.75),
            (" 4 \n", 4.0),
            ("1000.5", SLOWDOWN_MAX),
            ("1e300", SLOWDOWN_MAX),
        ];
        for (text, factor) in good {
            assert_eq!(parse_slowdown(text), Ok(factor), "{text:?}");
        }
        for text in ["0.99", "-3", "0", "inf", "NaN", "1e999", "", "3x"] {
            let error = parse_slowdown(text).expect_err(text);
            let named = format!("{SLOWDOWN} is {text:?}");
            assert!(error.starts_with(&named), "{error}");
        }
    }

    /// The test starts itself again, with the variable set: changing the environment of a process that has
    /// threads is unsound.
    #[test]
    fn the_factor_is_read_from_the_environment() {
        const CHILD: &str = "ALKNET_TEST_SUPPORT_CHILD";
        if std::env::var_os(CHILD).is_some() {
            return assert_eq!(deadline(Duration::from_secs(2)), Duration::from_secs(5));
        }
        let here = std::env::current_exe().expect("a test program");
        let mut child = Command::new(here);
        let name = "deadline::tests::the_factor_is_read_from_the_environment";
        child.args(["--exact", name]).env(CHILD, "1");
        let child = child.env(SLOWDOWN, "2.5").output().expect("it starts");
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success() && said.contains("1 passed"),
            "{said}"
        );
    }

    /// In a process of its own, as the test above.
    #[test]
    fn a_measured_factor_counts_where_the_environment_names_none() {
        const CHILD: &str = "ALKNET_TEST_SUPPORT_MEASURED";
        if let Some(expected) = std::env::var_os(CHILD) {
            expect_slowdown(3.0);
            expect_slowdown(5.0);
            assert_eq!(slowdown().to_string().as_str(), expected);
        } else {
            let here = std::env::current_exe().expect("a test program");
            let name = "deadline::tests::a_measured_factor_counts_where_the_environment_names_none";
            let passes = |command: &mut Command, expected: &str| {
                let command = command.args(["--exact", name]).env(CHILD, expected);
                let output = command.output().expect("it starts");
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(said.contains("1 passed"), "{expected}: {said}");
            };
            passes(Command::new(&here).env_remove(SLOWDOWN), "3");
            passes(Command::new(&here).env(SLOWDOWN, "2.5"), "2.5");
        }
    }

    #[test]
    fn limits_are_multiplied_and_do_not_overflow() {
        let second = Duration::from_secs(1);
        assert_eq!(scaled(second, 1.0), second);
        assert_eq!(scaled(second, 2.5), Duration::from_millis(2500));
        assert_eq!(scaled(Duration::ZERO, 7.0), Duration::ZERO);
        assert_eq!(scaled(Duration::MAX, 1.5), Duration::MAX);
    }

    #[test]
    fn seconds_are_decimals() {
        let said: f64 = seconds(Duration::from_millis(1500))
            .parse()
            .expect("a number");
        assert!((said - 1.5 * slowdown()).abs() < 0.01, "{said}");
    }

    #[test]
    fn a_command_is_ended_at_its_limit() {
        let minute = Duration::from_secs(60);
        assert!(
            limited(minute, "true")
                .status()
                .expect("it starts")
                .success()
        );
        let ended = limited(Duration::from_millis(10), "sleep")
            .arg("1000")
            .status();
        assert_eq!(ended.expect("it starts").code(), Some(124));
    }

    #[test]
    fn a_program_that_ignores_sigterm_does_not_outlive_its_limit() {
        let mut shell = limited(Duration::from_millis(300), "sh");
        shell.args(["-c", "trap '' TERM; while :; do sleep 0.01; done"]);
        let status = shell.status().expect("it starts");
        assert!(!status.success(), "{status}");
    }

    #[test]
    fn a_limited_program_is_gone_when_its_command_is_killed() {
        let mut shell = limited(Duration::from_secs(600), "sh");
        shell.args(["-c", "echo $$; exec sleep 1000"]);
        let mut shell = shell.stdout(Stdio::piped()).spawn().expect("it starts");
        let mut output = BufReader::new(shell.stdout.take().expect("piped"));
        let mut number = String::new();
        output.read_line(&mut number).expect("a number");
        shell.kill().expect("ours");
        shell.wait().expect("ours");
        // The pipe ends with the last process that could write to it.
        let mut rest = String::new();
        output.read_line(&mut rest).expect("a pipe");
        assert_eq!(rest, "");
    }

    #[test]
    fn a_wait_returns_what_it_waited_for() {
        let mut left = 3;
        let mut countdown = || {
            left -= 1;
            left
        };
        let limit = Duration::from_secs(60);
        assert_eq!(eventually("two", limit, || Some(countdown())), 2);
        eventually("zero", limit, || countdown() == 0);
        let below = |n: i32| if n < -2 { Ok(n) } else { Err(n) };
        assert_eq!(eventually("less", limit, || below(countdown())), -3);
    }

    /// The function checks the condition once more after the limit.
    #[test]
    fn a_wait_without_time_asks_once() {
        let mut checked = 0;
        eventually("at once", Duration::ZERO, || {
            checked += 1;
            true
        });
        assert_eq!(checked, 1);
    }

    #[test]
    fn a_wait_that_fails_says_for_what_and_what_it_saw() {
        let limit = Duration::from_millis(3);
        let failed = catch_unwind(|| eventually("rain", limit, || Err::<(), _>("the sun shines")));
        let failed = failed.expect_err("it never rains");
        let message = failed.downcast_ref::<String>().expect("a text");
        assert!(message.starts_with("not within "), "{message}");
        assert!(message.ends_with("s: rain: the sun shines"), "{message}");
        let failed = catch_unwind(|| eventually("rain", limit, || false));
        let failed = failed.expect_err("it never rains");
        let message = failed.downcast_ref::<String>().expect("a text");
        assert!(message.ends_with("s: rain"), "{message}");
    }
}
