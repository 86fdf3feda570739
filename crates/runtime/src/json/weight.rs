//! The memory that a JSON value takes.
//!
//! The text does not measure it: in `[0,0,0]` an item has two bytes as text, and the size of a [`Value`] in memory.
//! The limits for values that scripts make use this weight.

use serde_json::Value;

/// The bytes of a value without its content. A member of an object takes no more for its name.
pub const VALUE: usize = size_of::<Value>();

/// The bytes of the longest escape in JSON text.
const ESCAPE_BYTES: usize = 6;

/// The bytes of a text: its own, or those of its JSON form if that is longer. So a value weighs at least as much as
/// its text is long.
#[must_use]
pub fn text(text: &[u8]) -> usize {
    // These characters must be escaped (RFC 8259 section 7).
    let escaped = text.iter().map(|byte| match byte {
        b'"' | b'\\' => 1,
        0..0x20 => ESCAPE_BYTES - 1,
        _ => 0,
    });
    text.len() + escaped.sum::<usize>()
}

/// The bytes of a whole value.
#[must_use]
pub fn estimate(value: &Value) -> usize {
    let held = match value {
        Value::String(string) => text(string.as_bytes()),
        Value::Array(items) => items.iter().map(estimate).sum(),
        Value::Object(members) => {
            let members = members.iter();
            members
                .map(|(name, member)| VALUE + text(name.as_bytes()) + estimate(member))
                .sum()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    VALUE + held
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_weighs_no_less_than_its_text_is_long() {
        for value in [
            json!(null),
            json!([false, -1.797_693_134_862_315_7e308, i64::MIN]),
            json!("\u{0}\u{1f}\"\\\u{e9}"),
            json!({ "\u{0}\u{0}\u{0}": [[], {}, ""] }),
        ] {
            assert!(estimate(&value) >= value.to_string().len(), "{value}");
        }
        assert_eq!(estimate(&json!([0, 0])), 3 * VALUE);
    }
}
