//! Writes the binary data of a mixed frame as base64, in place of its references.
//!
//! It works on the text, without a tree: a frame of 1 MiB may hold so many values that their tree has 75.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use memchr::memchr2;

use crate::error::CallError;
use crate::json::string_end;

/// Bytes of base64 beyond twice the binary data: a text may refer to all of the data once, and to a little of it
/// often.
const FREE_BYTES: usize = 64 << 10;
/// Bytes of the longest `[offset,length]` that it reads, and of the longest `"$bin"` with escapes.
const PAIR_BYTES_MAX: usize = 64;

/// `text`, which is valid JSON, with each `{"$bin":[offset,length]}` that points into `tail` as base64 text. All
/// other text stays unchanged.
///
/// # Errors
/// `INVALID_INPUT` where so many references name the same data that the text would be much longer than the frame.
pub(crate) fn inline(text: &[u8], tail: &[u8]) -> Result<Vec<u8>, CallError> {
    let most = tail.len().saturating_mul(2).saturating_add(FREE_BYTES);
    let mut out = Vec::with_capacity(text.len());
    let (mut at, mut copied, mut made) = (0, 0, 0_usize);
    while let Some(found) = text.get(at..).and_then(|rest| memchr2(b'"', b'{', rest)) {
        at += found;
        if text[at] == b'"' {
            // Brackets within a string are text.
            at = string_end(text, at);
            continue;
        }
        let Some((data, end)) =
            pointer(text, at).and_then(|(data, end)| Some((tail.get(data)?, end)))
        else {
            at += 1;
            continue;
        };
        made = made.saturating_add(data.len().div_ceil(3).saturating_mul(4));
        // The same few bytes of data could otherwise be named thousands of times.
        if made > most {
            return Err(CallError::invalid_input(
                "too many values point to the same binary data",
            ));
        }
        out.extend_from_slice(&text[copied..at]);
        out.push(b'"');
        out.extend_from_slice(STANDARD.encode(data).as_bytes());
        out.push(b'"');
        (at, copied) = (end, end);
    }
    out.extend_from_slice(&text[copied..]);
    Ok(out)
}

/// The range that the object at `open` refers to, if it is `{"$bin":[offset,length]}`, and where the object ends.
fn pointer(text: &[u8], open: usize) -> Option<(Range<usize>, usize)> {
    let name = behind_space(text, open + 1);
    // Without a name there, the search for its end would go through all the rest of the text, for each bracket.
    if text.get(name) != Some(&b'"') {
        return None;
    }
    let name_end = string_end(text, name);
    if !is_mark(text.get(name..name_end)?) {
        return None;
    }
    let colon = behind_space(text, name_end);
    let pair = behind_space(text, colon + 1);
    let rest = text.get(pair..)?;
    let close = rest.iter().take(PAIR_BYTES_MAX).position(|b| *b == b']')?;
    let (offset, len) = serde_json::from_slice::<(usize, usize)>(&rest[..=close]).ok()?;
    let end = behind_space(text, pair + close + 1);
    (text.get(end) == Some(&b'}')).then_some(())?;
    Some((offset..offset.checked_add(len)?, end + 1))
}

fn is_mark(quoted: &[u8]) -> bool {
    let decoded = || serde_json::from_slice::<String>(quoted).is_ok_and(|name| name == "$bin");
    quoted == b"\"$bin\"" || quoted.contains(&b'\\') && quoted.len() <= PAIR_BYTES_MAX && decoded()
}

fn behind_space(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    let space = rest.iter().take_while(|b| b.is_ascii_whitespace()).count();
    at + space
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inlined(text: &str, tail: &[u8]) -> String {
        let text = inline(text.as_bytes(), tail).expect("short enough");
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn what_points_into_the_data_becomes_base64_and_all_else_stays() {
        for (text, made) in [
            (r#"{"a":[{"$bin":[0,2]}]}"#, r#"{"a":["aGk="]}"#),
            (r#"{ "\u0024bin" : [ 1 , 1 ] }"#, r#""aQ==""#),
            (r#"[{"$bin":[2,0]},{"$bin":[0,2]}]"#, r#"["","aGk="]"#),
            (
                r#"{"x":{"$bin":[0,2]},"y":1e999}"#,
                r#"{"x":"aGk=","y":1e999}"#,
            ),
        ] {
            assert_eq!(inlined(text, b"hi"), made);
        }
        for same in [
            r#"{"$bin":[1,2]}"#,
            r#"{"$bin":[18446744073709551615,2]}"#,
            r#"{"$bin":[-1,2]}"#,
            r#"{"$bin":[0.0,2]}"#,
            r#"{"$bin":[1]}"#,
            r#"{"$bin":[0,1,1]}"#,
            r#"{"$bin":[0,1],"x":1}"#,
            r#"{"$bin":"[0,1]"}"#,
            r#""{\"$bin\":[0,1]}""#,
            r#"{"x":"{","$bin":[0,1]}"#,
            "{}",
            "[]",
            "7",
        ] {
            assert_eq!(inlined(same, b"hi"), same);
        }
    }

    /// A frame of a megabyte with one bracket after the other, and no text behind them.
    #[test]
    fn looking_for_pointers_takes_time_by_the_length_of_the_text() {
        let text = format!("[{}{{}}]", "{},".repeat(1 << 19));
        let began = std::time::Instant::now();
        assert_eq!(inlined(&text, b"hi"), text);
        assert!(
            began.elapsed().as_secs() < 5,
            "it went through the text for each"
        );
    }

    /// Twenty bytes of text for each megabyte.
    #[test]
    fn data_is_not_repeated_without_end() {
        let tail = vec![0; 1 << 20];
        let often = |n| format!("[{}0]", r#"{"$bin":[0,1048576]},"#.repeat(n));
        assert!(inline(often(1).as_bytes(), &tail).is_ok());
        let refused = inline(often(1000).as_bytes(), &tail).expect_err("a gigabyte");
        assert_eq!(refused.code, crate::error::ErrorCode::InvalidInput);
    }
}
