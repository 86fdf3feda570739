//! Dates with times, as RFC 3339 (section 5.6) writes them.

/// Whether `text` is a date with a time. Seconds may be 60 where a leap second can be: in the last minute of a month
/// in UTC (section 5.7). `T` and `Z` may be lower case, and a space does not replace `T`.
pub(super) fn is_timestamp(text: &str) -> bool {
    parse(text.as_bytes()).is_some()
}

fn parse(text: &[u8]) -> Option<()> {
    // RFC 3339, section 5.6: ten bytes of date, then `T` and eight of time.
    let (date, text) = text.split_at_checked(10)?;
    let [year, month, day] = [
        number(&date[..4])?,
        number(&date[5..7])?,
        number(&date[8..])?,
    ];
    let (time, text) = text.split_at_checked(9)?;
    let [hour, minute, second] = [
        number(&time[1..3])?,
        number(&time[4..6])?,
        number(&time[7..])?,
    ];
    let separators = [
        date[4],
        date[7],
        time[0].to_ascii_uppercase(),
        time[3],
        time[6],
    ];
    let is_valid = separators == *b"--T::"
        && (1..=12).contains(&month)
        && (1..=days(year, month)).contains(&day)
        && hour <= 23
        && minute <= 59
        && second <= 60;
    let offset = minutes_east(fraction(text)?)?;
    let last = is_valid && (second < 60 || is_leap(year, month, day, hour * 60 + minute - offset));
    last.then_some(())
}

/// Digits, and nothing else.
fn number(digits: &[u8]) -> Option<i32> {
    digits.iter().try_fold(0, |number, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        Some(number * 10 + digit as i32)
    })
}

/// The text after `.` and at least one digit, or all of it where there is no point.
fn fraction(text: &[u8]) -> Option<&[u8]> {
    let Some(rest) = text.strip_prefix(b".") else {
        return Some(text);
    };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (digits > 0).then(|| &rest[digits..])
}

fn minutes_east(zone: &[u8]) -> Option<i32> {
    if zone.eq_ignore_ascii_case(b"Z") {
        return Some(0);
    }
    let [sign @ (b'+' | b'-'), hours @ .., b':', _, _] = zone else {
        return None;
    };
    let minutes = number(&zone[zone.len() - 2..])?;
    let hours = number(hours).filter(|_| hours.len() == 2)?;
    let is_valid = hours <= 23 && minutes <= 59;
    let east = hours * 60 + minutes;
    is_valid.then_some(if *sign == b'-' { -east } else { east })
}

fn days(year: i32, month: i32) -> i32 {
    // RFC 3339, appendix C.
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i32::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Whether the minute, counted in UTC from the beginning of the local day, is the last of a month.
fn is_leap(year: i32, month: i32, day: i32, minute: i32) -> bool {
    const LAST: i32 = 24 * 60 - 1;
    const DAY: i32 = 24 * 60;
    let last = days(year, month);
    match minute {
        LAST => day == last,
        _ if minute == LAST - DAY => day == 1,
        _ if minute == LAST + DAY => day == last - 1,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_rfc_shows_is_taken() {
        for text in [
            "1985-04-12T23:20:50.52Z",
            "1996-12-19T16:39:57-08:00",
            "1990-12-31T23:59:60Z",
            "1990-12-31T15:59:60-08:00",
            "1991-01-01T07:59:60+08:00",
            "1937-01-01T12:00:27.87+00:20",
            "2024-02-29t00:00:00z",
            "2000-02-29T00:00:00-00:00",
        ] {
            assert!(is_timestamp(text), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_or_no_time_is_refused() {
        for text in [
            "",
            "1985-04-12",
            "1985-04-12T23:20:50",
            "1985-04-12 23:20:50Z",
            "1985-04-12T23:20:50.Z",
            "1985-04-12T23:20Z",
            "1985-13-12T23:20:50Z",
            "1985-00-12T23:20:50Z",
            "1985-04-31T23:20:50Z",
            "1985-04-00T23:20:50Z",
            "2023-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "1985-04-12T24:00:00Z",
            "1985-04-12T23:60:00Z",
            "1985-04-12T23:59:61Z",
            "1990-12-30T23:59:60Z",
            "1990-12-31T23:58:60Z",
            "1985-04-12T23:20:50+24:00",
            "1985-04-12T23:20:50+1:00",
            "1985-04-12T23:20:50+01:60",
            "1985-04-12T23:20:50+0100",
            "1985-04-12T23:20:50Zz",
            "+985-04-12T23:20:50Z",
            "1985-04-12T23:20:5\u{660}Z",
        ] {
            assert!(!is_timestamp(text), "{text}");
        }
    }
}
