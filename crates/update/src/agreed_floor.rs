//! The floor to which the caller of a start has agreed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::TEXT_BYTES_MAX;
use crate::version::ReleaseVersion;

/// The text of a plan that leaves the floor where it is.
const UNCHANGED: &str = "unchanged";

/// The highest floor to which a caller has agreed that starts a version: that of the plan which it saw.
///
/// As a text it is the version in the plan, or `unchanged` if the plan does not raise the floor.
///
/// ```
/// use alknet_update::{AgreedFloor, ReleaseVersion};
///
/// let floor = |text: &str| text.parse::<ReleaseVersion>().expect("a version");
/// let agreed: AgreedFloor = "1.4.0".parse().expect("a floor");
/// assert!(agreed.permits(Some(&floor("1.4.0"))));
/// assert!(!agreed.permits(Some(&floor("1.5.0"))));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgreedFloor(Option<ReleaseVersion>);

/// The text is neither a version nor `unchanged`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no floor: write a version, for example 1.4.0, or 'unchanged'")]
pub struct InvalidAgreedFloor(String);

impl AgreedFloor {
    /// The agreement to a plan after whose confirmation the floor is `raised`. `None`: the plan does not raise it.
    #[must_use]
    pub const fn new(raised: Option<ReleaseVersion>) -> Self {
        Self(raised)
    }

    /// Whether a version may be started after whose confirmation the floor is `raised`. `None`: the version does not raise
    /// it, which needs no agreement.
    #[must_use]
    pub fn permits(&self, raised: Option<&ReleaseVersion>) -> bool {
        raised.is_none_or(|raised| self.0.as_ref().is_some_and(|agreed| raised <= agreed))
    }
}

impl fmt::Display for AgreedFloor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(version) => version.fmt(f),
            None => f.write_str(UNCHANGED),
        }
    }
}

impl FromStr for AgreedFloor {
    type Err = InvalidAgreedFloor;

    fn from_str(text: &str) -> Result<Self, InvalidAgreedFloor> {
        if text == UNCHANGED {
            return Ok(Self(None));
        }
        let version = text.parse::<ReleaseVersion>();
        let invalid = |_| InvalidAgreedFloor(text.chars().take(TEXT_BYTES_MAX).collect());
        version.map(|version| Self(Some(version))).map_err(invalid)
    }
}

impl TryFrom<String> for AgreedFloor {
    type Error = InvalidAgreedFloor;

    fn try_from(text: String) -> Result<Self, InvalidAgreedFloor> {
        text.parse()
    }
}

impl From<AgreedFloor> for String {
    fn from(agreed: AgreedFloor) -> Self {
        agreed.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> ReleaseVersion {
        text.parse().expect("a version")
    }

    #[test]
    fn an_agreement_permits_no_higher_floor() {
        for (agreed, raised, expected) in [
            ("1.4.0", Some("1.4.0"), true),
            ("1.4.0", Some("1.3.9"), true),
            ("1.4.0", Some("1.4.1"), false),
            ("1.4.0-rc.1", Some("1.4.0"), false),
            ("1.4.0", None, true),
            ("unchanged", Some("0.0.1"), false),
            ("unchanged", None, true),
        ] {
            let agreement: AgreedFloor = agreed.parse().expect("a floor");
            let raised = raised.map(version);
            let permits = agreement.permits(raised.as_ref());
            assert_eq!(permits, expected, "{agreed}: {raised:?}");
        }
    }

    #[test]
    fn an_agreement_is_a_text_that_is_read_again() {
        for (text, agreement) in [
            ("1.4.0", AgreedFloor::new(Some(version("1.4.0")))),
            ("unchanged", AgreedFloor::new(None)),
        ] {
            let stored = serde_json::to_string(&agreement).expect("JSON");
            assert_eq!(stored, format!("\"{text}\""));
            let read: AgreedFloor = serde_json::from_str(&stored).expect("a floor");
            assert_eq!(read, agreement);
        }
        for wrong in ["\"\"", "\"none\"", "\"1.4\"", "null", "1"] {
            let read = serde_json::from_str::<AgreedFloor>(wrong);
            assert!(read.is_err(), "{wrong}");
        }
    }
}
