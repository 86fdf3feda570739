//! The grammar of derivation paths: `m(/number mark?)+`.

use std::fmt;

use crate::derive::Curve;
use crate::error::PathError;
use crate::limits::{MAX_INDEX, MAX_PATH_LEVELS};

const HARDENED: u32 = 1 << 31;

/// The number of one level: below 2³¹.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PathIndex(u32);

impl PathIndex {
    /// `number` if it is below 2³¹.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number <= MAX_INDEX {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The number itself.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }

    pub(crate) const fn hardened(self) -> u32 {
        self.0 | HARDENED
    }
}

impl fmt::Display for PathIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One to ten levels below the master key of one curve.
///
/// ```
/// use alknet_vault::{Curve, DerivationPath};
///
/// let path = DerivationPath::parse("m/74h/0'/1'/0'", Curve::Ed25519)?;
/// assert_eq!(path.to_string(), "m/74'/0'/1'/0'");
/// assert!(DerivationPath::parse("m/74'/0", Curve::Ed25519).is_err());
/// # Ok::<(), alknet_vault::PathError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DerivationPath {
    curve: Curve,
    levels: [u32; MAX_PATH_LEVELS],
    len: usize,
}

impl DerivationPath {
    /// Parses a path. Only secp256k1 allows levels without a mark.
    pub fn parse(text: &str, curve: Curve) -> Result<Self, PathError> {
        let rest = text.strip_prefix("m/").ok_or(PathError::NotRooted)?;
        let mut path = Self {
            curve,
            levels: [0; MAX_PATH_LEVELS],
            len: 0,
        };
        for (at, part) in rest.split('/').enumerate() {
            let place = path.levels.get_mut(at).ok_or(PathError::TooDeep)?;
            *place = level(part, at + 1, curve)?;
            path.len += 1;
        }
        Ok(path)
    }

    /// A path whose levels are all hardened.
    pub(crate) fn hardened(curve: Curve, numbers: &[PathIndex]) -> Self {
        Self::from_numbers(curve, numbers.iter().map(|number| number.hardened()))
    }

    /// Levels in the numbering of SLIP-0010, where the top bit marks hardened ones.
    pub(crate) fn from_numbers(curve: Curve, numbers: impl Iterator<Item = u32>) -> Self {
        let mut levels = [0; MAX_PATH_LEVELS];
        let mut len = 0;
        for (place, number) in levels.iter_mut().zip(numbers) {
            *place = number;
            len += 1;
        }
        Self { curve, levels, len }
    }

    /// The curve of its master key.
    #[must_use]
    pub fn curve(&self) -> Curve {
        self.curve
    }

    pub(crate) fn levels(&self) -> &[u32] {
        &self.levels[..self.len]
    }
}

impl fmt::Display for DerivationPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("m")?;
        for level in self.levels() {
            let mark = if level & HARDENED == 0 { "" } else { "'" };
            write!(f, "/{}{mark}", level & MAX_INDEX)?;
        }
        Ok(())
    }
}

impl fmt::Debug for DerivationPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {self}", self.curve)
    }
}

fn level(part: &str, level: usize, curve: Curve) -> Result<u32, PathError> {
    let digits = part.strip_suffix(['\'', 'h']);
    let hardened = digits.is_some();
    let digits = digits.unwrap_or(part);
    if part.is_empty() {
        return Err(PathError::EmptyLevel { level });
    }
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PathError::NotANumber { level });
    }
    // Leading zeros are refused, so that each path has one spelling.
    if digits.len() > 1 && digits.starts_with('0') {
        return Err(PathError::LeadingZero { level });
    }
    let number = digits.parse().ok().and_then(PathIndex::new);
    let number = number.ok_or(PathError::TooBig { level })?;
    if hardened {
        Ok(number.hardened())
    // SLIP-0010 defines no other children for Ed25519, and this vault uses none on P-256.
    } else if curve == Curve::Secp256k1 {
        Ok(number.number())
    } else {
        Err(PathError::NotHardened { level })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(text: &str) -> PathError {
        DerivationPath::parse(text, Curve::Ed25519).expect_err(text)
    }

    #[test]
    fn what_upstream_took_is_refused() {
        for text in ["", "m", "M/0'", "mX/0'", "0'", " m/0'", "n/0'"] {
            assert_eq!(error(text), PathError::NotRooted, "{text}");
        }
        assert_eq!(error("m/"), PathError::EmptyLevel { level: 1 });
        assert_eq!(error("m/0'/"), PathError::EmptyLevel { level: 2 });
        assert_eq!(error("m//0'"), PathError::EmptyLevel { level: 1 });
        for text in [
            "m/0''", "m/0hh", "m/0'h", "m/'", "m/h", "m/+1'", "m/-1'", "m/1 '", "m/٣'", "m/0H",
        ] {
            assert_eq!(error(text), PathError::NotANumber { level: 1 }, "{text}");
        }
        assert_eq!(error("m/1'/00'"), PathError::LeadingZero { level: 2 });
        assert_eq!(error("m/01'"), PathError::LeadingZero { level: 1 });
        for text in ["m/2147483648'", "m/4294967296'", "m/99999999999999999999'"] {
            assert_eq!(error(text), PathError::TooBig { level: 1 }, "{text}");
        }
        assert_eq!(error("m/74'/0"), PathError::NotHardened { level: 2 });
    }

    #[test]
    fn limits_hold_to_the_level_and_to_the_number() {
        let deep = |levels| format!("m{}", "/2147483647'".repeat(levels));
        assert!(DerivationPath::parse(&deep(MAX_PATH_LEVELS), Curve::NistP256).is_ok());
        assert_eq!(error(&deep(MAX_PATH_LEVELS + 1)), PathError::TooDeep);
        assert!(PathIndex::new(MAX_INDEX).is_some());
        assert!(PathIndex::new(MAX_INDEX + 1).is_none());
    }

    #[test]
    fn only_secp256k1_has_levels_without_a_mark() {
        let text = "m/44'/60'/0'/0/0";
        let path = DerivationPath::parse(text, Curve::Secp256k1).expect(text);
        assert_eq!(path.to_string(), text);
        assert!(DerivationPath::parse(text, Curve::NistP256).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(numbers in prop::collection::vec((0..=MAX_INDEX, any::<bool>()), 1..=10)) {
            let parts = numbers.iter().map(|(number, hard)| format!("/{number}{}", if *hard { "h" } else { "" }));
            let text = format!("m{}", parts.collect::<String>());
            let path = DerivationPath::parse(&text, Curve::Secp256k1).expect("within the grammar");
            prop_assert_eq!(path.to_string(), text.replace('h', "'"));
        }

        #[test]
        fn any_text_is_a_path_that_reads_back_or_an_error(text in "m?[/0-9'h mX+-]{0,24}") {
            if let Ok(path) = DerivationPath::parse(&text, Curve::Secp256k1) {
                prop_assert_eq!(path.to_string(), text.replace('h', "'"));
            }
        }
    }
}
