//! Times on the command line: `90s`, `30m`, `12h`, `30d`. An option that always took a number of seconds takes
//! that, too.

use std::time::Duration;

/// The units, and how many seconds each is.
const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
/// Longest wait the command line accepts: a day.
const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);
/// Shortest wait: a millisecond, which is what a request's deadline is counted in.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// Whole seconds of a time with a unit, of one second or more.
pub(crate) fn with_unit(text: &str) -> Option<u64> {
    let unit = text.chars().next_back()?;
    let (_, seconds) = UNITS.iter().find(|(letter, _)| *letter == unit)?;
    let number = text.strip_suffix(unit)?;
    // `parse` would take a plus sign as well.
    let is_plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = is_plain.then(|| number.parse().ok()).flatten()?;
    number.checked_mul(*seconds).filter(|seconds| *seconds > 0)
}

/// Whole seconds of a time with a unit, or of a number of seconds; one second or more.
pub(crate) fn or_seconds(text: &str) -> Option<u64> {
    let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match is_plain {
        true => text.parse().ok().filter(|seconds| *seconds > 0),
        false => with_unit(text),
    }
}

/// How long a command waits: a time with a unit, or seconds, of which there may be fractions.
///
/// # Errors
/// It is no time, or none that the command line accepts.
pub(crate) fn timeout(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no time: write 90s, 30m, 12h or a number of seconds");
    let time = match with_unit(text) {
        Some(seconds) => Duration::from_secs(seconds),
        None => {
            let seconds: f64 = text.parse().map_err(|_| wrong())?;
            Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?
        }
    };
    if !(TIMEOUT_MIN..=TIMEOUT_MAX).contains(&time) {
        let (min, max) = (TIMEOUT_MIN.as_secs_f64(), TIMEOUT_MAX.as_secs());
        return Err(format!("a timeout is {min} to {max} seconds, not '{text}'"));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        for (text, seconds) in [
            ("1s", 1),
            ("90s", 90),
            ("30m", 1800),
            ("12h", 43_200),
            ("30d", 2_592_000),
        ] {
            assert_eq!(with_unit(text), Some(seconds), "{text}");
            assert_eq!(or_seconds(text), Some(seconds), "{text}");
        }
        for bad in [
            "",
            "d",
            "1",
            "0s",
            "-1h",
            "+1h",
            "1 h",
            "1.5h",
            "1w",
            "99999999999999999999d",
            "999999999999999999d",
            "1ä",
        ] {
            assert_eq!(with_unit(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_number_alone_is_seconds_where_that_was_allowed() {
        assert_eq!(or_seconds("600"), Some(600));
        for bad in ["0", "-1", "1.5", "x", "99999999999999999999"] {
            assert_eq!(or_seconds(bad), None, "{bad}");
        }
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
        for bad in [
            "", "x", "0", "-1", "NaN", "inf", "86401", "25h", "0s", "0.0001",
        ] {
            assert!(timeout(bad).is_err(), "{bad}");
        }
    }
}
