//! Numbers and texts in a form for people.

use serde_json::Value;

use crate::limits::TEXT_CHARS_MAX;

/// A size with three digits.
pub(crate) fn bytes(bytes: f64) -> String {
    let bytes = bytes.max(0.0);
    let (one, unit) = bytes_unit(bytes);
    format!("{} {unit}", number(bytes / one))
}

/// The unit in which this size has at most three digits before the point, and the bytes of one unit.
pub(crate) fn bytes_unit(bytes: f64) -> (f64, &'static str) {
    const LARGER: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut found = (1.0, "B");
    for unit in LARGER {
        if bytes / found.0 < 1000.0 {
            break;
        }
        found = (found.0 * 1024.0, unit);
    }
    found
}

/// A number with about three digits.
pub(crate) fn number(number: f64) -> String {
    match number.abs() {
        n if n >= 100.0 || n.fract() == 0.0 => format!("{number:.0}"),
        n if n >= 10.0 => format!("{number:.1}"),
        n if n >= 0.095 => format!("{number:.2}"),
        _ => format!("{number:.3}"),
    }
}

/// A number of events per second.
pub(crate) fn rate(per_second: f64) -> String {
    format!("{}/s", number(per_second))
}

/// A short time.
pub(crate) fn seconds(seconds: f64) -> String {
    let (one, unit) = seconds_unit(seconds);
    format!("{} {unit}", number(seconds / one))
}

/// The unit in which this time is not much smaller than one, and the seconds of one unit. Zero is in milliseconds.
pub(crate) fn seconds_unit(seconds: f64) -> (f64, &'static str) {
    match seconds {
        s if s >= 1.0 => (1.0, "s"),
        s if s >= 1e-3 || s <= 0.0 => (1e-3, "ms"),
        _ => (1e-6, "µs"),
    }
}

/// A part of a whole, in percent.
pub(crate) fn percent(part: f64, whole: f64) -> String {
    match 100.0 * part / whole {
        // The whole is zero.
        percent if !percent.is_finite() => "0 %".to_owned(),
        // A rounded "0 %" would hide that there is some.
        percent if percent > 0.0 && percent < 1.0 => "less than 1 %".to_owned(),
        percent => format!("{percent:.0} %"),
    }
}

/// A time of RFC 3339 in UTC to the second, for a reader without scripts; the page's script shows it in the reader's
/// time zone. `None` if the text has another form. Such texts sort by time.
pub(crate) fn utc(text: &str) -> Option<String> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let has_form = |text: &str, form: &str| {
        let matches = |(c, form): (char, char)| match form {
            '0' => c.is_ascii_digit(),
            form => c == form,
        };
        text.len() == form.len() && text.chars().zip(form.chars()).all(matches)
    };
    let is_whole = has_form(date, "0000-00-00")
        && has_form(time, "00:00:00")
        && fraction.chars().all(|c| c.is_ascii_digit());
    is_whole.then(|| format!("{date} {time} UTC"))
}

/// A long time, in its two largest units.
pub(crate) fn duration(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, m) => format!("{m} min"),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

/// A text that did not originate on this node, cut to a limit and without characters that could reverse or end a
/// line.
pub(crate) fn foreign(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let shown = text.chars().map(|c| match c {
        c if c.is_control() || turns(c) => '\u{fffd}',
        c => c,
    });
    // One character more than the maximum reveals a longer text.
    let mut shown: Vec<char> = shown.take(TEXT_CHARS_MAX + 1).collect();
    if shown.len() > TEXT_CHARS_MAX {
        shown.truncate(TEXT_CHARS_MAX);
        shown.push('…');
    }
    shown.into_iter().collect()
}

/// A member as text; empty if it is absent.
pub(crate) fn member_text(value: &Value) -> String {
    match value {
        Value::String(text) => foreign(text),
        Value::Null => String::new(),
        other => foreign(&other.to_string()),
    }
}

/// The texts of a list, separated by commas.
pub(crate) fn list(value: &Value) -> String {
    let items = value.as_array().into_iter().flatten();
    let items: Vec<_> = items
        .map(member_text)
        .filter(|text| !text.is_empty())
        .collect();
    items.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_few_digits() {
        for (n, text) in [
            (0.0, "0 B"),
            (999.0, "999 B"),
            (1000.0, "0.98 KiB"),
            (1536.0, "1.50 KiB"),
            (5e9, "4.66 GiB"),
            (1e18, "909495 TiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(rate(0.05), "0.050/s");
        assert_eq!(
            (seconds(0.000_25), seconds(0.0125)),
            ("250 µs".into(), "12.5 ms".into())
        );
        assert_eq!(
            (seconds(2.5), duration(90_000)),
            ("2.50 s".into(), "1 d 1 h".into())
        );
        assert_eq!(seconds(0.0), "0 ms");
        for (part, whole, text) in [
            (31.0, 120.0, "26 %"),
            (1.0, 400.0, "less than 1 %"),
            (0.0, 9.0, "0 %"),
            (0.0, 0.0, "0 %"),
        ] {
            assert_eq!(percent(part, whole), text);
        }
    }

    #[test]
    fn times_are_shown_with_their_zone_and_only_if_they_are_times() {
        for (time, shown) in [
            ("2026-11-23T00:47:44.203Z", "2026-11-23 00:47:44 UTC"),
            ("2026-11-23T00:47:44Z", "2026-11-23 00:47:44 UTC"),
        ] {
            assert_eq!(utc(time).as_deref(), Some(shown));
        }
        for odd in [
            "",
            "2026-11-23T00:47:44",
            "2026-11-23T00:47:44+01:00",
            "2026-11-23T00:47:44.2 3Z",
            "2026-11-23T0:47:44Z",
            "<b>T</b>Z",
            "２026-11-23T00:47:44Z",
        ] {
            assert_eq!(utc(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_others_wrote_is_bounded_and_tame() {
        assert_eq!(
            foreign("a\u{202e}b\nc\u{1b}[31m"),
            "a\u{fffd}b\u{fffd}c\u{fffd}[31m"
        );
        let long = foreign(&"x".repeat(10_000));
        assert_eq!(long.chars().count(), TEXT_CHARS_MAX + 1);
        assert_eq!(list(&serde_json::json!(["a", 1, null])), "a, 1");
    }
}
