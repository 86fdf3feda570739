//! What peers and roles are called, and the labels they carry.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use alknet_core::{PeerId, ScopeSet};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most labels of a peer.
pub const LABELS_MAX: usize = 16;
/// Longest name of a role, in bytes.
const ROLE_BYTES_MAX: usize = 32;
/// Longest name or value of a label, in bytes.
const LABEL_BYTES_MAX: usize = 63;
/// Highest number a pattern may count to.
const INDEX_MAX: u32 = 99_999;

/// What a peer that enrols becomes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRole {
    /// What the role is called.
    pub name: RoleName,
    /// What its holder may do on the hub.
    pub scopes: ScopeSet,
    /// Labels its holder carries.
    pub labels: BTreeMap<String, String>,
    /// What its holders are called; `None`: as they wish.
    pub names: Option<NamePattern>,
}

impl EnrolRole {
    /// A role that may do nothing.
    #[must_use]
    pub fn new(name: RoleName) -> Self {
        Self {
            name,
            scopes: ScopeSet::default(),
            labels: BTreeMap::new(),
            names: None,
        }
    }
}

/// What a role is called: `[a-z][a-z0-9-]{0,31}`.
///
/// ```
/// use alknet_hub::RoleName;
///
/// let role: RoleName = "worker".parse()?;
/// assert_eq!(role.as_str(), "worker");
/// assert!("Worker".parse::<RoleName>().is_err());
/// # Ok::<(), alknet_hub::NameError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RoleName(String);

impl RoleName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RoleName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let first = text.bytes().next();
        if first.is_some_and(|b| b.is_ascii_lowercase())
            && text.len() <= ROLE_BYTES_MAX
            && text.bytes().all(plain)
        {
            return Ok(Self(text.to_owned()));
        }
        Err(NameError::Role)
    }
}

impl TryFrom<String> for RoleName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<RoleName> for String {
    fn from(role: RoleName) -> Self {
        role.0
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a peer is called beside its id: the grammar of a peer id, one holder at a time. What
/// administrators are called is not free.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Alias(PeerId);

impl Alias {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for Alias {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let id: PeerId = text.parse().map_err(|_| NameError::Alias)?;
        let number = text.strip_prefix("admin-");
        let digits = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
        // These are the ids of administrators in a configuration.
        if text == "admin" || number.is_some_and(digits) {
            return Err(NameError::Alias);
        }
        Ok(Self(id))
    }
}

impl TryFrom<String> for Alias {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Alias> for String {
    fn from(alias: Alias) -> Self {
        alias.0.into()
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the holders of a role are called: a name, or one with a `*` that stands for a number within
/// a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamePattern {
    text: String,
    first: u32,
    last: u32,
}

impl NamePattern {
    /// `edge-*` with numbers from `first` to `last`.
    ///
    /// # Errors
    /// The pattern makes no names, has more than one `*`, or the range is empty or beyond 99,999.
    pub fn new(text: &str, first: u32, last: u32) -> Result<Self, NameError> {
        let pattern = Self {
            text: text.to_owned(),
            first,
            last,
        };
        let one_star = text.matches('*').count() <= 1;
        let names = [first, last].map(|n| pattern.name(n).is_some());
        if one_star && names == [true, true] && first <= last && last <= INDEX_MAX {
            return Ok(pattern);
        }
        Err(NameError::Pattern)
    }

    /// Whether `alias` is one of its names.
    #[must_use]
    pub fn covers(&self, alias: &Alias) -> bool {
        let Some((before, after)) = self.text.split_once('*') else {
            return alias.as_str() == self.text;
        };
        let number = alias.as_str().strip_prefix(before);
        let number = number.and_then(|rest| rest.strip_suffix(after));
        number
            // `name` writes no leading zeros, so `edge-01` is not one of its names.
            .filter(|n| !n.starts_with('0') || *n == "0")
            .and_then(|n| n.parse().ok())
            .is_some_and(|n: u32| (self.first..=self.last).contains(&n))
    }

    /// The first of its names that is free.
    pub fn free(&self, taken: impl Fn(&Alias) -> bool) -> Option<Alias> {
        // A pattern without a star has one name, whatever its range is.
        let last = if self.text.contains('*') {
            self.last
        } else {
            self.first
        };
        let mut names = (self.first..=last).filter_map(|n| self.name(n));
        names.find(|name| !taken(name))
    }

    fn name(&self, number: u32) -> Option<Alias> {
        self.text.replacen('*', &number.to_string(), 1).parse().ok()
    }
}

/// One label: `pool=edge`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLabel {
    pub name: String,
    pub value: String,
}

impl FromStr for PeerLabel {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (name, value) = text.split_once('=').ok_or(NameError::Label)?;
        check_label(name, value)?;
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

fn check_label(name: &str, value: &str) -> Result<(), NameError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let fits = |text: &str| (1..=LABEL_BYTES_MAX).contains(&text.len()) && text.bytes().all(plain);
    if fits(name) && fits(value) && !name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Ok(());
    }
    Err(NameError::Label)
}

/// Whether a peer may carry these labels.
///
/// # Errors
/// More than sixteen, or one breaks the grammar.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), NameError> {
    if labels.len() > LABELS_MAX {
        return Err(NameError::Labels);
    }
    labels
        .iter()
        .try_for_each(|(name, value)| check_label(name, value))
}

/// What is wrong with a name or a label.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameError {
    /// Of a peer.
    #[error(
        "a name has 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter or digit first; admin and \
         admin-<number> are taken"
    )]
    Alias,
    /// One label.
    #[error(
        "a label is NAME=VALUE, each 1 to 63 of letters, digits, '.', '_' and '-', the name in \
         lower case"
    )]
    Label,
    /// All of them.
    #[error("a peer has at most {max} labels", max = LABELS_MAX)]
    Labels,
    /// Of the names of a role's holders.
    #[error("a pattern is a name with at most one '*', which stands for a number up to 99999")]
    Pattern,
    /// Of a role.
    #[error("a role is called 1 to 32 of a-z, 0-9 and '-', a letter first")]
    Role,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias(text: &str) -> Alias {
        text.parse().expect(text)
    }

    #[test]
    fn names_follow_their_grammar() {
        for good in ["kitchen", "edge-7", "a.b_c", "administrator", "admin-x"] {
            assert_eq!(alias(good).as_str(), good);
        }
        for bad in [
            "",
            "Kitchen",
            "-a",
            "a b",
            "admin",
            "admin-2",
            &"x".repeat(64),
        ] {
            assert_eq!(bad.parse::<Alias>(), Err(NameError::Alias), "{bad}");
        }
        for bad in ["", "1a", "A", "a_b", &"x".repeat(33)] {
            assert_eq!(bad.parse::<RoleName>(), Err(NameError::Role), "{bad}");
        }
    }

    #[test]
    fn a_pattern_gives_the_first_free_number() {
        let pattern = NamePattern::new("edge-*", 7, 9).expect("a pattern");
        let free = |taken: &[&str]| pattern.free(|name| taken.contains(&name.as_str()));
        assert_eq!(free(&[]), Some(alias("edge-7")));
        assert_eq!(free(&["edge-7", "edge-9"]), Some(alias("edge-8")));
        assert_eq!(free(&["edge-7", "edge-8", "edge-9"]), None);
        for (name, covered) in [
            ("edge-7", true),
            ("edge-9", true),
            ("edge-10", false),
            ("edge-07", false),
            ("edge-", false),
            ("edge-x", false),
            ("7", false),
        ] {
            assert_eq!(pattern.covers(&alias(name)), covered, "{name}");
        }
        let fixed = NamePattern::new("kitchen", 1, 9).expect("a pattern");
        assert_eq!(fixed.free(|_| false), Some(alias("kitchen")));
        assert_eq!(fixed.free(|name| name.as_str() == "kitchen"), None);
        assert!(fixed.covers(&alias("kitchen")) && !fixed.covers(&alias("edge")));
    }

    #[test]
    fn patterns_that_make_no_names_are_refused() {
        for (text, first, last) in [
            ("*-*", 1, 2),
            ("Edge-*", 1, 2),
            ("admin-*", 1, 2),
            ("", 1, 2),
            ("edge-*", 2, 1),
            ("edge-*", 1, INDEX_MAX + 1),
        ] {
            let made = NamePattern::new(text, first, last);
            assert_eq!(made, Err(NameError::Pattern), "{text}");
        }
    }

    #[test]
    fn labels_have_bounds() {
        assert_eq!(
            "pool=edge".parse::<PeerLabel>().map(|l| l.value),
            Ok("edge".into())
        );
        for bad in [
            "",
            "a",
            "=b",
            "a=",
            "A=b",
            "a=b c",
            &format!("a={}", "b".repeat(64)),
        ] {
            assert_eq!(bad.parse::<PeerLabel>(), Err(NameError::Label), "{bad}");
        }
        let many = |n: usize| (0..n).map(|n| (n.to_string(), "x".to_owned())).collect();
        assert_eq!(check_labels(&many(LABELS_MAX)), Ok(()));
        assert_eq!(check_labels(&many(LABELS_MAX + 1)), Err(NameError::Labels));
    }
}
