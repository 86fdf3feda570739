use std::time::Duration;

use crate::deadline;

/// `full` in a campaign of `cargo xtask soak`.
const SOAK: &str = "ALKNET_SOAK";

/// Whether a campaign of `cargo xtask soak` runs: tests run at full count, beside nothing else.
pub fn is_campaign() -> bool {
    std::env::var_os(SOAK).is_some_and(|count| count == "full")
}

/// Prints how long a step took, as a figure of a campaign; there it must not be more than `limit`, scaled by
/// [`deadline`](crate::deadline).
///
/// An ordinary test run asserts nothing: tests run beside others, and a time shows how busy the machine is.
///
/// # Panics
///
/// In a campaign, where `time` is more than `limit`.
#[track_caller]
pub fn took(what: &str, limit: Duration, time: Duration) {
    let most = deadline(limit);
    println!("figure {what}: {time:.1?}, promised within {most:.1?}");
    if let Some(overrun) = overrun(what, most, time).filter(|_| is_campaign()) {
        panic!("{overrun}");
    }
}

fn overrun(what: &str, most: Duration, time: Duration) -> Option<String> {
    (time > most).then(|| format!("{what} took {time:.1?}, and is promised within {most:.1?}"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Set in the process that the test starts.
    const CHILD: &str = "ALKNET_TEST_SUPPORT_CHILD";

    #[test]
    fn only_more_than_was_promised_is_complained_about() {
        let ms = Duration::from_millis;
        assert_eq!(overrun("rain", ms(5), ms(5)), None);
        let overrun = overrun("rain", ms(5), ms(6)).expect("it is late");
        assert!(overrun.contains("rain took 6.0ms"), "{overrun}");
    }

    /// The test starts itself again, with the variable set: changing the environment of a process that has
    /// threads is unsound.
    #[test]
    fn a_campaign_fails_where_something_took_too_long_and_a_run_does_not() {
        let late = || took("rain", Duration::ZERO, Duration::from_secs(1));
        if std::env::var_os(CHILD).is_some() {
            return late();
        }
        let here = std::env::current_exe().expect("a test program");
        let name =
            "campaign::tests::a_campaign_fails_where_something_took_too_long_and_a_run_does_not";
        for (count, passes) in [(Some("full"), false), (Some("few"), true), (None, true)] {
            let mut child = Command::new(&here);
            child.args(["--exact", name, "--nocapture"]).env(CHILD, "1");
            child
                .env_remove(SOAK)
                .envs(count.map(|count| (SOAK, count)));
            let child = child.output().expect("it starts");
            let said = String::from_utf8_lossy(&child.stdout).into_owned();
            assert!(said.contains("figure rain: 1.0s"), "{said}");
            assert_eq!(child.status.success(), passes, "{count:?}: {said}");
        }
    }
}
