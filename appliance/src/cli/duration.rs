//! Times on the command line: `90s`, `30m`, `12h`, `30d`, or a number of seconds. Every option that takes a time
//! reads it here, and says the same of what is no time.

use std::time::Duration;

/// The units, and how many seconds each is.
const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
/// Longest wait the command line accepts: a day.
const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);
/// Shortest wait: a millisecond, which is what a request's deadline is counted in.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// What stands for no end, where an option takes it.
const NEVER: &str = "never";
/// How that is said beside times.
const OR_NEVER: &str = ", or never";

/// What is said of a text that is no time. `also` is what the option takes beside times, such as `, or never`.
pub(crate) fn no_time(text: &str, also: &str) -> String {
    if is_zero(text) {
        return format!("'{text}' ends at once: write 1s or more{also}");
    }
    format!(
        "'{text}' is no time: write a number and s, m, h or d, such as 90s, 30m, 12h or 30d{also}; a number \
         alone is seconds"
    )
}

/// Whether a text is a time of no length.
fn is_zero(text: &str) -> bool {
    let unit = |c: char| UNITS.iter().any(|(letter, _)| *letter == c);
    let number = text.strip_suffix(unit).unwrap_or(text);
    number.contains('0') && number.chars().all(|c| matches!(c, '0' | '.'))
}

/// A time with a unit, or a number of seconds, of which there may be fractions. It is longer than nothing.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let time = match UNITS.iter().find(|(letter, _)| text.ends_with(*letter)) {
        Some((letter, seconds)) => {
            let number: u64 = digits(text.strip_suffix(*letter)?)?.parse().ok()?;
            Duration::from_secs(number.checked_mul(*seconds)?)
        }
        None => {
            // Of what a number may look like elsewhere, such as 1e3, inf and -0, nothing is a time.
            let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
            digits(whole)?;
            digits(part)?;
            Duration::try_from_secs_f64(text.parse().ok()?).ok()?
        }
    };
    (!time.is_zero()).then_some(time)
}

/// The text, if it is a number without sign and point.
fn digits(text: &str) -> Option<&str> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then_some(text)
}

/// Whole seconds of a time, one at least.
pub(crate) fn whole_seconds(text: &str) -> Option<u64> {
    let time = parse(text)?;
    (time.subsec_nanos() == 0).then_some(time.as_secs())
}

/// Whole seconds of a time, `max` at most.
///
/// # Errors
/// The text is no time, has a fraction of a second, or is longer.
pub(crate) fn seconds_up_to(text: &str, max: u64) -> Result<u64, String> {
    let seconds = whole_seconds(text).ok_or_else(|| no_time(text, ""))?;
    match seconds <= max {
        true => Ok(seconds),
        false => Err(format!("'{text}' is too long: {} at most", shown(max))),
    }
}

/// How long something is good that ends only if it is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime(Option<u64>);

impl Lifetime {
    /// Seconds until the end, if there is one.
    pub(crate) const fn seconds(self) -> Option<u64> {
        self.0
    }
}

/// A time, or the word for no end.
///
/// # Errors
/// The text is neither.
pub(crate) fn lifetime(text: &str) -> Result<Lifetime, String> {
    if text == NEVER {
        return Ok(Lifetime(None));
    }
    let seconds = whole_seconds(text).ok_or_else(|| no_time(text, OR_NEVER))?;
    Ok(Lifetime(Some(seconds)))
}

/// How long a command waits.
///
/// # Errors
/// The text is no time, or none that the command line accepts.
pub(crate) fn timeout(text: &str) -> Result<Duration, String> {
    up_to(text, TIMEOUT_MAX)
}

/// A time in milliseconds, `max` at most.
///
/// # Errors
/// The text is no time, is shorter than a millisecond, or is longer.
pub(crate) fn up_to(text: &str, max: Duration) -> Result<Duration, String> {
    let time = parse(text).ok_or_else(|| no_time(text, ""))?;
    match time {
        time if time < TIMEOUT_MIN => Err(format!("'{text}' is too short: 0.001 at least")),
        time if time > max => {
            let max = shown(max.as_secs());
            Err(format!("'{text}' is too long: {max} at most"))
        }
        time => Ok(time),
    }
}

/// Seconds as the command line takes them, by the largest unit that fits.
pub(crate) fn shown(seconds: u64) -> String {
    let mut units = UNITS.iter().rev();
    let fits = units.find(|(_, unit)| seconds.is_multiple_of(*unit));
    let (letter, unit) = fits.copied().unwrap_or(UNITS[0]);
    format!("{}{letter}", seconds / unit)
}

/// What the options with times have in common, for the tests of each.
#[cfg(test)]
pub(crate) mod samples {
    use super::no_time;

    /// Times that every option takes, with their seconds: ten minutes at most.
    pub(crate) const TIMES: [(&str, u64); 5] = [
        ("1s", 1),
        ("90s", 90),
        ("10m", 600),
        ("90", 90),
        ("600", 600),
    ];

    /// Texts that no option takes.
    const NO_TIMES: [&str; 20] = [
        "",
        "d",
        "0",
        "0s",
        "-1",
        "-1h",
        "+1",
        "+1h",
        "1 h",
        "1.5h",
        "1w",
        "1ä",
        "x",
        "1.",
        ".5",
        "1e3",
        "NaN",
        "inf",
        "99999999999999999999d",
        "999999999999999999d",
    ];

    /// Asserts that a parser refuses each of them, and says what the others say.
    pub(crate) fn refuses_what_is_no_time<T: std::fmt::Debug>(
        also: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) {
        for text in NO_TIMES {
            let said = parse(text).expect_err(text);
            assert_eq!(said, no_time(text, also));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        for (text, seconds) in [("30m", 1800), ("12h", 43_200), ("30d", 2_592_000)]
            .into_iter()
            .chain(samples::TIMES)
        {
            assert_eq!(parse(text), Some(Duration::from_secs(seconds)), "{text}");
            assert_eq!(whole_seconds(text), Some(seconds), "{text}");
        }
        assert_eq!(parse("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(whole_seconds("0.5"), None);
        samples::refuses_what_is_no_time("", |text| parse(text).ok_or_else(|| no_time(text, "")));
    }

    #[test]
    fn a_time_that_is_too_long_and_no_time_give_different_errors() {
        assert_eq!(seconds_up_to("24h", 86_400), Ok(86_400));
        let longer = seconds_up_to("25h", 86_400).expect_err("it is longer");
        assert_eq!(longer, "'25h' is too long: 1d at most");
        assert!(seconds_up_to("1.5", 86_400).is_err());
        samples::refuses_what_is_no_time("", |text| seconds_up_to(text, u64::MAX));
        for (seconds, text) in [(90, "90s"), (5400, "90m"), (7200, "2h"), (86_400, "1d")] {
            assert_eq!(shown(seconds), text);
        }
    }

    #[test]
    fn a_lifetime_has_an_end_or_none() {
        for (text, read) in samples::TIMES {
            assert_eq!(
                lifetime(text).map(Lifetime::seconds),
                Ok(Some(read)),
                "{text}"
            );
        }
        assert_eq!(lifetime("never").map(Lifetime::seconds), Ok(None));
        samples::refuses_what_is_no_time(OR_NEVER, lifetime);
        for zero in ["0", "0s", "00d"] {
            let said = lifetime(zero).expect_err(zero);
            let expected = format!("'{zero}' ends at once: write 1s or more, or never");
            assert_eq!(said, expected);
        }
        let other = lifetime("10x").expect_err("no unit");
        assert!(other.starts_with("'10x' is no time"), "{other}");
    }

    #[test]
    fn timeouts_are_bounded() {
        for (text, millis) in [
            ("0.5", 500),
            ("30", 30_000),
            ("86400", 86_400_000),
            ("2m", 120_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(timeout(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["86401", "25h", "0.0001"] {
            let said = timeout(bad).expect_err(bad);
            assert!(said.starts_with(&format!("'{bad}' is too ")), "{said}");
        }
        samples::refuses_what_is_no_time("", timeout);
    }
}
