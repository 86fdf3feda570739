//! Numbers and texts as people read them.

use serde_json::Value;

use crate::limits::TEXT_CHARS_MAX;

/// A size, to three digits.
pub(crate) fn bytes(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut size, mut unit) = (bytes.max(0.0), 0);
    while size >= 1000.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{} {}", number(size), UNITS[unit])
}

/// A number to about three digits.
pub(crate) fn number(number: f64) -> String {
    match number.abs() {
        n if n >= 100.0 || n.fract() == 0.0 => format!("{number:.0}"),
        n if n >= 10.0 => format!("{number:.1}"),
        n if n >= 0.095 => format!("{number:.2}"),
        _ => format!("{number:.3}"),
    }
}

/// How often something happens.
pub(crate) fn rate(per_second: f64) -> String {
    format!("{}/s", number(per_second))
}

/// A short time.
pub(crate) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{} s", number(s)),
        s if s >= 0.001 => format!("{} ms", number(s * 1e3)),
        s => format!("{} µs", number(s * 1e6)),
    }
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

/// A text that did not originate on this node: bounded, and without what could turn a line around
/// or end it.
pub(crate) fn foreign(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let shown = text.chars().map(|c| match c {
        c if c.is_control() || turns(c) => '\u{fffd}',
        c => c,
    });
    let mut shown: Vec<char> = shown.take(TEXT_CHARS_MAX + 1).collect();
    if shown.len() > TEXT_CHARS_MAX {
        shown.truncate(TEXT_CHARS_MAX);
        shown.push('…');
    }
    shown.into_iter().collect()
}

/// A member as text; empty where it is absent.
pub(crate) fn member_text(value: &Value) -> String {
    match value {
        Value::String(text) => foreign(text),
        Value::Null => String::new(),
        other => foreign(&other.to_string()),
    }
}

/// Members of a list of texts, with commas.
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
