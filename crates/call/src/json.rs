//! What serde_json does not check: the depth of a document, that no object names a member twice, and that an object
//! is one.

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::marker::PhantomData;

use memchr::memchr2;
use serde::de::value::MapAccessDeserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use crate::error::CallError;

/// Up to this many members it compares pairwise, which beats sorting.
const PAIRWISE_MAX: usize = 16;

/// The span of a member's name, its quotes included, or the hash of the name and where it begins.
type MemberNameSpan = [u32; 2];

/// Checks valid JSON. Linear in its length, save for sorting the names of large objects; recursion-free, and with
/// eight bytes for each name. Documents are shorter than 4 GiB: frames and bodies are, by far.
pub(crate) fn check(text: &str, nesting_max: usize) -> Result<(), JsonDefect> {
    let bytes = text.as_bytes();
    // Most documents have fewer levels, and need no allocation.
    let mut open = SmallVec::<[Option<usize>; 8]>::new();
    let mut names = SmallVec::<[MemberNameSpan; PAIRWISE_MAX]>::new();
    let mut at = 0;
    let mut name_next = false;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => {
                let end = string_end(bytes, at);
                if name_next {
                    if names.len() == names.capacity() {
                        // Half as many more rather than as many: lists of names are among the largest allocations.
                        names.reserve_exact(names.len() / 2);
                    }
                    names.push([at as u32, end as u32]);
                    name_next = false;
                }
                at = end;
                continue;
            }
            b'{' | b'[' => {
                // Every later pass over the text may recurse: its stack is bounded here.
                if open.len() == nesting_max {
                    return Err(JsonDefect::Nesting);
                }
                name_next = byte == b'{';
                open.push(name_next.then_some(names.len()));
            }
            // Only in an object does a name follow a comma.
            b',' => name_next = matches!(open.last(), Some(Some(_))),
            b'}' | b']' => {
                if let Some(Some(first)) = open.pop() {
                    distinct(text, &mut names[first..])?;
                    names.truncate(first);
                }
                name_next = false;
            }
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// A fault of a document that is JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JsonDefect {
    Duplicate,
    Nesting,
}

/// Index behind the closing quote of the string that starts at `start`.
pub(crate) fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if bytes[at] == b'"' {
            return at + 1;
        }
        // The byte after a backslash never ends the string.
        at += 2;
    }
    bytes.len()
}

/// A name in the form that names are compared in: `"\u0061"` is `"a"`.
fn decode(quoted: &str) -> Cow<'_, str> {
    if quoted.contains('\\')
        && let Ok(text) = serde_json::from_str::<String>(quoted)
    {
        return Cow::Owned(text);
    }
    // Valid JSON has a quote at both ends, and none within.
    Cow::Borrowed(quoted.get(1..quoted.len() - 1).unwrap_or_default())
}

fn distinct(text: &str, names: &mut [MemberNameSpan]) -> Result<(), JsonDefect> {
    let quoted =
        |[from, end]: MemberNameSpan| text.get(from as usize..end as usize).unwrap_or_default();
    if names.len() <= PAIRWISE_MAX {
        let decoded: SmallVec<[_; PAIRWISE_MAX]> =
            names.iter().map(|name| decode(quoted(*name))).collect();
        let twice = (1..decoded.len()).any(|i| decoded[..i].contains(&decoded[i]));
        return if twice {
            Err(JsonDefect::Duplicate)
        } else {
            Ok(())
        };
    }
    // A key of this process: senders cannot choose names with equal hashes.
    let keys = RandomState::new();
    for name in names.iter_mut() {
        *name = [keys.hash_one(decode(quoted(*name))) as u32, name[0]];
    }
    names.sort_unstable();
    let name = |from: u32| {
        let end = string_end(text.as_bytes(), from as usize);
        decode(quoted([from, end as u32]))
    };
    for alike in names.chunk_by(|one, other| one[0] == other[0]) {
        for (n, one) in alike.iter().enumerate().skip(1) {
            // The group is small, unless its members are one name, and then the first two show that.
            if alike[..n]
                .iter()
                .any(|other| name(other[1]) == name(one[1]))
            {
                return Err(JsonDefect::Duplicate);
            }
        }
    }
    Ok(())
}

/// The text of one member of an object; the reader skips the others.
pub(crate) fn member<'a>(text: &'a [u8], name: &str) -> Option<&'a RawValue> {
    #[derive(Deserialize)]
    struct JsonMemberKey<'a>(#[serde(borrow)] Cow<'a, str>);

    struct SingleMemberSeed<'n>(&'n str);

    impl<'de> Visitor<'de> for SingleMemberSeed<'_> {
        type Value = Option<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(JsonMemberKey(key)) = members.next_key()? {
                // As in a tree, the last of two members counts.
                if key == self.0 {
                    found = Some(members.next_value()?);
                } else {
                    members.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }
    }

    let mut text = serde_json::Deserializer::from_slice(text);
    text.deserialize_map(SingleMemberSeed(name)).ok().flatten()
}

/// Reads JSON text of an object from outside, by the rules of frames: valid UTF-8, nested `nesting_max` deep at most,
/// no member twice.
///
/// # Errors
/// `INVALID_INPUT` that names the fault.
pub fn read_object<'a, T: Deserialize<'a>>(
    text: &'a [u8],
    nesting_max: usize,
) -> Result<T, CallError> {
    let text = std::str::from_utf8(text)
        .map_err(|_| CallError::invalid_input("the text is not valid UTF-8"))?;
    let value = parse_object(text).map_err(|error| CallError::invalid_input(error.to_string()))?;
    check(text, nesting_max).map_err(|flaw| {
        CallError::invalid_input(match flaw {
            JsonDefect::Duplicate => "an object has a member twice".to_owned(),
            JsonDefect::Nesting => format!("nested deeper than {nesting_max}"),
        })
    })?;
    Ok(value)
}

/// Parses the JSON text of an object. The library would also accept an array, and take its items for the members in
/// the order of their declaration.
pub(crate) fn parse_object<'a, T: Deserialize<'a>>(text: &'a str) -> serde_json::Result<T> {
    // A derived reader would also take an array, whose items it assigns by position.
    if !text.trim_start().starts_with('{') {
        return Err(serde::de::Error::custom("expected an object"));
    }
    serde_json::from_str(text)
}

/// Like `parse_object`, for an object within another.
pub(crate) fn object<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct JsonMembers<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for JsonMembers<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(members))
        }
    }

    deserializer.deserialize_map(JsonMembers(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_within_one_object() {
        for good in [
            "{}",
            r#"{"a":1,"b":{"a":2}}"#,
            r#"[{"a":1},{"a":1}]"#,
            r#"{"a":"b","b":["a","a"],"c":"{\"a\":1,\"a\":2}"}"#,
        ] {
            assert_eq!(check(good, 64), Ok(()), "{good}");
        }
        for bad in [
            r#"{"a":1,"a":2}"#,
            r#"{"x":[{"a":{},"b":[],"a":2}]}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{ "a" : "x\\" , "a" : 2 }"#,
        ] {
            assert_eq!(check(bad, 64), Err(JsonDefect::Duplicate), "{bad}");
        }
    }

    #[test]
    fn large_objects_are_checked_too() {
        let members: Vec<_> = (0..500).map(|n| format!("\"k{n}\":{n}")).collect();
        assert_eq!(check(&format!("{{{}}}", members.join(",")), 64), Ok(()));
        let text = format!("{{{},\"k250\":0}}", members.join(","));
        assert_eq!(check(&text, 64), Err(JsonDefect::Duplicate));
    }

    #[test]
    fn nesting_is_limited_exactly() {
        let deep = |n| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert_eq!(check(&deep(32), 32), Ok(()));
        assert_eq!(check(&deep(33), 32), Err(JsonDefect::Nesting));
        assert_eq!(check(&"[".repeat(100_000), 32), Err(JsonDefect::Nesting));
    }
}
