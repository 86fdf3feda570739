//! Canonical JSON (RFC 8785): one text for one value, so that texts can be authenticated and compared byte by byte.

use serde_json::Value;

/// Largest integer that every reader of JSON reads exactly (RFC 8259 section 6).
const MAX_SAFE: u64 = (1 << 53) - 1;

/// The canonical text of `value`, or `None` if it has a number other than an integer from 0 to 2⁵³ − 1; this crate
/// writes no others.
pub(crate) fn canonical(value: &Value) -> Option<String> {
    let mut out = String::new();
    write(value, &mut out)?;
    Some(out)
}

/// Parses a text, which must be canonical.
pub(crate) fn parse_canonical(text: &[u8]) -> Option<Value> {
    let value = serde_json::from_slice(text).ok()?;
    (canonical(&value)?.as_bytes() == text).then_some(value)
}

fn write(value: &Value, out: &mut String) -> Option<()> {
    match value {
        Value::Number(number) => {
            // RFC 8785 section 3.2.2.3 writes numbers as ECMAScript does, which this crate avoids by using integers
            // only.
            let number = number.as_u64().filter(|number| *number <= MAX_SAFE)?;
            out.push_str(&number.to_string());
        }
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                comma(at, out);
                write(item, out)?;
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let mut names: Vec<_> = fields.iter().collect();
            // RFC 8785 section 3.2.3: names are sorted by their UTF-16 code units.
            names.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            out.push('{');
            for (at, (name, field)) in names.into_iter().enumerate() {
                comma(at, out);
                out.push_str(&serde_json::to_string(name).ok()?);
                out.push(':');
                write(field, out)?;
            }
            out.push('}');
        }
        // serde_json escapes as RFC 8785 requires: the short form if there is one, otherwise \u00xx.
        Value::Null | Value::Bool(_) | Value::String(_) => out.push_str(&value.to_string()),
    }
    Some(())
}

fn comma(at: usize, out: &mut String) {
    if at > 0 {
        out.push(',');
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_sorted_by_utf_16_and_text_is_escaped_minimally() {
        let value = json!({"\u{20ac}": 1, "\r": "\u{8}\t\n\u{c}\r\"\\\u{f}/é", "1": [true, null],
            "\u{1f600}": 2, "\u{fb33}": 3});
        let text = canonical(&value).expect("integers");
        let expected = "{\"\\r\":\"\\b\\t\\n\\f\\r\\\"\\\\\\u000f/é\",\"1\":[true,null],\
                        \"\u{20ac}\":1,\"\u{1f600}\":2,\"\u{fb33}\":3}";
        assert_eq!(text, expected);
        assert_eq!(parse_canonical(text.as_bytes()), Some(value));
    }

    #[test]
    fn other_numbers_and_other_texts_are_refused() {
        for value in [json!(-1), json!(1.5), json!(1_u64 << 53)] {
            assert_eq!(canonical(&value), None, "{value}");
        }
        for text in [
            "{\"b\":1,\"a\":2}",
            "{\"a\":1,\"a\":1}",
            " {}",
            "{} ",
            "1.0",
            "\"\\u0041\"",
            "",
        ] {
            assert_eq!(parse_canonical(text.as_bytes()), None, "{text}");
        }
    }
}
