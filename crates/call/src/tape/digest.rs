//! Tells inputs apart, in one pass, without allocating.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;

use jsonschema::json::Node as _;

use super::node::{TapeNode, UnparsedItems};

/// Two different inputs have the same hashes by chance only: a peer that does not know these keys cannot choose two
/// such inputs.
static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(Default::default);

/// 128 bits of an input, valid while this process runs.
pub(crate) type Digest = [u64; 2];

/// The digest of a value and the data after it. Equal for values that mean the same: the order of members does not
/// count.
pub(crate) fn digest(value: &TapeNode<'_>, tail: &[u8]) -> Digest {
    digest_by(&KEYS, value, tail)
}

fn digest_by<S: BuildHasher>(keys: &[S; 2], value: &TapeNode<'_>, tail: &[u8]) -> Digest {
    let mut all = Pair::new(keys);
    all.value(value);
    all.bytes(tail);
    all.finish()
}

/// Two hashes of the same bytes.
struct Pair<'k, S: BuildHasher> {
    keys: &'k [S; 2],
    hashers: [S::Hasher; 2],
}

impl<'k, S: BuildHasher> Pair<'k, S> {
    fn new(keys: &'k [S; 2]) -> Self {
        let hashers = keys.each_ref().map(BuildHasher::build_hasher);
        Self { keys, hashers }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.hashers.iter_mut().for_each(|it| it.write(bytes));
    }

    fn number(&mut self, kind: u8, number: u64) {
        for it in &mut self.hashers {
            it.write_u8(kind);
            it.write_u64(number);
        }
    }

    fn finish(&self) -> Digest {
        self.hashers.each_ref().map(Hasher::finish)
    }

    /// Every part writes its kind first, and where it ends, so that no two values run together. The frame that the
    /// value came in bounds its nesting.
    fn value(&mut self, value: &TapeNode<'_>) {
        if let Some(items) = value.as_array() {
            self.bytes(b"[");
            items.for_each(|item| self.value(&item));
            self.bytes(b"]");
        } else if let Some(members) = value.as_object() {
            self.members(members);
        } else if value.is_number() {
            self.scalar(value);
        } else if let Some(truth) = value.as_boolean() {
            self.bytes(if truth { b"t" } else { b"f" });
        } else if value.is_null() {
            self.bytes(b"n");
        } else {
            self.string(value);
        }
    }

    /// Adds the hashes of members up instead of sorting the members: that would take several times the bytes of the
    /// text.
    fn members(&mut self, mut members: UnparsedItems<'_>) {
        let mut all = Digest::default();
        while let Some((name, value)) = members.next_member() {
            let mut member = Self::new(self.keys);
            member.string(&name);
            member.value(&value);
            for (sum, part) in all.iter_mut().zip(member.finish()) {
                *sum = sum.wrapping_add(part);
            }
        }
        self.bytes(b"{");
        all.into_iter().for_each(|sum| self.number(b'+', sum));
        self.bytes(b"}");
    }

    /// 1 and 1.0 differ, as an operation may see them.
    fn scalar(&mut self, value: &TapeNode<'_>) {
        let number = value.as_number();
        let number = number.as_ref();
        if let Some(whole) = number.and_then(serde_json::Number::as_u64) {
            self.number(b'#', whole);
        } else if let Some(negative) = number.and_then(serde_json::Number::as_i64) {
            self.number(b'-', negative.cast_unsigned());
        } else {
            let real = number.and_then(serde_json::Number::as_f64);
            self.number(b'.', real.unwrap_or_default().to_bits());
        }
    }

    fn string(&mut self, value: &TapeNode<'_>) {
        self.bytes(b"\"");
        value.parts(|part| self.bytes(part.as_bytes()));
        // No text has this byte.
        self.bytes(&[0xff]);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;
    use crate::tape::Tape;

    /// Counts the hashers and the bytes that they take.
    #[derive(Clone, Default)]
    struct Counting {
        begun: Rc<Cell<usize>>,
        bytes: Rc<Cell<usize>>,
    }

    impl BuildHasher for Counting {
        type Hasher = Self;

        fn build_hasher(&self) -> Self {
            self.begun.set(self.begun.get() + 1);
            self.clone()
        }
    }

    impl Hasher for Counting {
        fn write(&mut self, bytes: &[u8]) {
            self.bytes.set(self.bytes.get() + bytes.len());
        }

        fn finish(&self) -> u64 {
            0
        }
    }

    /// As many members as the text holds, within each other, with long names, with escapes: each byte of the text
    /// costs a few.
    #[test]
    fn what_an_input_costs_is_bounded_by_its_bytes() {
        let members = |one: &dyn Fn(usize) -> String| {
            let all: Vec<_> = (0..10_000).map(one).collect();
            format!("{{{}}}", all.join(","))
        };
        let nested = format!("{}0{}", "{\"\":".repeat(100), "}".repeat(100));
        for text in [
            members(&|n| format!("\"{n}\":0")),
            members(&|n| format!("\"\\u0061{n}\":\"\\n\"")),
            format!("[{}]", vec![r#"{"":0}"#; 10_000].join(",")),
            format!("[{}]", vec![nested; 100].join(",")),
            format!("[\"{}\"]", "x".repeat(100_000)),
        ] {
            let keys: [Counting; 2] = Default::default();
            let digest_node = |value: TapeNode<'_>| digest_by(&keys, &value, b"");
            Tape::read(text.as_bytes(), None, digest_node).expect("JSON");
            for key in keys {
                // The shortest member has five bytes.
                let (begun, bytes) = (key.begun.get(), key.bytes.get());
                assert!(begun <= 1 + text.len() / 5, "{begun} of {}", text.len());
                assert!(bytes <= 8 * text.len(), "{bytes} of {}", text.len());
            }
        }
    }

    #[test]
    fn escapes_read_as_what_they_stand_for() {
        let of = |text: &str| {
            let digest_node = |value: TapeNode<'_>| digest(&value, b"");
            Tape::read(text.as_bytes(), None, digest_node).expect("JSON")
        };
        for (escaped, plain) in [
            (r#""\u0061\u00e9\u20AC""#, "\"aé€\""),
            (r#""x\ud83d\ude00y""#, "\"x😀y\""),
            (r#""\/\"\\""#, r#""/\u0022\u005c""#),
            (r#""\b\f\n\r\t""#, r#""\u0008\u000c\u000a\u000d\u0009""#),
            (r#"{"\u0061":1}"#, r#"{"a":1}"#),
        ] {
            assert_eq!(of(escaped), of(plain), "{escaped}");
        }
        assert_ne!(of(r#""\\u0061""#), of(r#""a""#));
        assert_ne!(of("1"), of("1.0"));
        assert_ne!(of("1"), of("-1"));
        assert_eq!(of("1e2"), of("100.0"));
    }
}
