//! Versions of releases, and the rules about floors and downgrades. All of it is pure.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::TEXT_BYTES_MAX;

/// A version of Semantic Versioning 2.0.0 without build metadata, because no part of a `+` takes part in the order.
///
/// ```
/// use alknet_update::ReleaseVersion;
///
/// let version = |text: &str| text.parse::<ReleaseVersion>().expect("a version");
/// assert!(version("1.0.0-rc.2") < version("1.0.0-rc.10"));
/// assert!(version("1.0.0-rc.10") < version("1.0.0"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReleaseVersion {
    numbers: [u64; 3],
    pre: String,
}

/// The text is no version of a release.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no version: write MAJOR.MINOR.PATCH, for example 1.4.0 or 1.4.0-beta.1, without '+'"
)]
pub struct InvalidVersion(String);

impl FromStr for ReleaseVersion {
    type Err = InvalidVersion;

    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        parse(text).ok_or_else(|| InvalidVersion(text.chars().take(TEXT_BYTES_MAX).collect()))
    }
}

fn parse(text: &str) -> Option<ReleaseVersion> {
    (text.len() <= TEXT_BYTES_MAX).then_some(())?;
    let (core, pre) = match text.split_once('-') {
        Some((core, pre)) => (core, Some(pre)),
        None => (text, None),
    };
    let mut parts = core.split('.').map(number);
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    if parts.next().is_some() {
        return None;
    }
    // Section 9 of Semantic Versioning: a part of digits alone is a number, and has no leading zeros.
    let is_valid = |part: &str| {
        let is_word = part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let is_number = part.bytes().all(|b| b.is_ascii_digit());
        !part.is_empty() && is_word && (!is_number || number(part).is_some())
    };
    if !pre.is_none_or(|pre| pre.split('.').all(is_valid)) {
        return None;
    }
    Some(ReleaseVersion {
        numbers,
        pre: pre.unwrap_or_default().to_owned(),
    })
}

/// A number without leading zeros (section 2 of Semantic Versioning).
fn number(text: &str) -> Option<u64> {
    // `parse` alone would also take a `+` and leading zeros.
    let is_plain =
        text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    is_plain.then(|| text.parse().ok()).flatten()
}

impl ReleaseVersion {
    /// Whether it comes before the release of its numbers, as `1.4.0-beta.1` does (section 9 of Semantic Versioning).
    #[must_use]
    pub fn is_pre_release(&self) -> bool {
        !self.pre.is_empty()
    }
}

impl Ord for ReleaseVersion {
    fn cmp(&self, other: &Self) -> Ordering {
        let core = self.numbers.cmp(&other.numbers);
        core.then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            // Section 11.3: a version without a suffix comes after its pre-releases.
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => compare_pre(&self.pre, &other.pre),
        })
    }
}

impl PartialOrd for ReleaseVersion {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Section 11.4: part by part, numbers before words, and the shorter list first.
fn compare_pre(one: &str, other: &str) -> Ordering {
    let (mut left, mut right) = (one.split('.'), other.split('.'));
    loop {
        let order = match (left.next(), right.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(a), Some(b)) => match (number(a), number(b)) {
                (Some(a), Some(b)) => a.cmp(&b),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => a.cmp(b),
            },
        };
        if order.is_ne() {
            return order;
        }
    }
}

impl fmt::Display for ReleaseVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        if self.pre.is_empty() {
            return Ok(());
        }
        write!(f, "-{}", self.pre)
    }
}

impl TryFrom<String> for ReleaseVersion {
    type Error = InvalidVersion;

    fn try_from(text: String) -> Result<Self, InvalidVersion> {
        text.parse()
    }
}

impl From<ReleaseVersion> for String {
    fn from(version: ReleaseVersion) -> Self {
        version.to_string()
    }
}

/// Whether an administrator has asked for an older version by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DowngradeConsent {
    /// An administrator has asked for this version.
    Given,
    /// No person has: an automatic update, or a request without a version.
    NotGiven,
}

/// What a release is to the running version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateStep {
    /// An older version, which an administrator asked for.
    Downgrade,
    /// The version that runs.
    Same,
    /// A newer version.
    Upgrade,
}

/// Why a version may not be installed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VersionRefusal {
    /// The floor forbids it, whatever an administrator says.
    #[error(
        "version {offered} is older than {floor}, the oldest version that this machine may run again. Install {floor} or a \
         newer version; no option lowers this limit"
    )]
    BelowFloor {
        /// The version of the release.
        offered: ReleaseVersion,
        /// The oldest version that this machine may run.
        floor: ReleaseVersion,
    },
    /// Only an administrator may ask for it.
    #[error(
        "version {offered} is older than {running}, which runs. If you want the older version, ask for it by its number as an \
         administrator"
    )]
    Downgrade {
        /// The version of the release.
        offered: ReleaseVersion,
        /// The version that runs.
        running: ReleaseVersion,
    },
}

/// Decides whether the machine may install a version.
///
/// # Errors
/// The version is older than the floor, or older than the running version and no administrator has asked for it.
///
/// ```
/// use alknet_update::{DowngradeConsent, ReleaseVersion, UpdateStep, judge_version};
///
/// let version = |text: &str| text.parse::<ReleaseVersion>().expect("a version");
/// let (running, floor) = (version("2.1.0"), version("2.0.0"));
/// let judge = |offered, consent| judge_version(&running, &version(offered), Some(&floor), consent);
/// assert_eq!(judge("2.2.0", DowngradeConsent::NotGiven), Ok(UpdateStep::Upgrade));
/// assert_eq!(judge("2.0.5", DowngradeConsent::Given), Ok(UpdateStep::Downgrade));
/// assert!(judge("2.0.5", DowngradeConsent::NotGiven).is_err());
/// assert!(judge("1.9.0", DowngradeConsent::Given).is_err());
/// ```
pub fn judge_version(
    running: &ReleaseVersion,
    offered: &ReleaseVersion,
    floor: Option<&ReleaseVersion>,
    consent: DowngradeConsent,
) -> Result<UpdateStep, VersionRefusal> {
    // The floor comes before the consent: a version with a known defect stays forbidden to administrators, too.
    if let Some(floor) = floor.filter(|floor| offered < floor) {
        return Err(VersionRefusal::BelowFloor {
            offered: offered.clone(),
            floor: floor.clone(),
        });
    }
    match (offered.cmp(running), consent) {
        (Ordering::Greater, _) => Ok(UpdateStep::Upgrade),
        (Ordering::Equal, _) => Ok(UpdateStep::Same),
        (Ordering::Less, DowngradeConsent::Given) => Ok(UpdateStep::Downgrade),
        (Ordering::Less, DowngradeConsent::NotGiven) => Err(VersionRefusal::Downgrade {
            offered: offered.clone(),
            running: running.clone(),
        }),
    }
}

/// The floor after the machine has confirmed a release: a floor never goes down.
///
/// The caller raises it at confirmation only, because a trial that fails returns to the version before, which
/// the new floor could forbid.
#[must_use]
pub fn raised_floor(
    floor: Option<ReleaseVersion>,
    release_floor: Option<&ReleaseVersion>,
) -> Option<ReleaseVersion> {
    floor.max(release_floor.cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> ReleaseVersion {
        text.parse().expect("a version")
    }

    /// The order of section 11.4 of Semantic Versioning 2.0.0.
    #[test]
    fn versions_have_the_order_of_the_specification() {
        let ordered = [
            "0.9.12",
            "1.0.0-1",
            "1.0.0-2",
            "1.0.0-10",
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "1.0.0",
            "1.0.1",
            "1.2.0",
            "1.10.0",
            "2.0.0",
        ];
        for (at, one) in ordered.iter().enumerate() {
            assert_eq!(version(one).to_string(), *one);
            for later in &ordered[at + 1..] {
                assert!(version(one) < version(later), "{one} {later}");
            }
        }
    }

    #[test]
    fn other_texts_are_no_versions() {
        let long = format!("1.0.0-{}", "a".repeat(TEXT_BYTES_MAX));
        let others = [
            "",
            "1",
            "1.0",
            "1.0.0.0",
            "01.0.0",
            "1.0.0+build",
            "1.0.0-",
            "1.0.0-a..b",
            "1.0.0-01",
            "v1.0.0",
            "1.0.x",
            "-1.0.0",
            "1.0.0-ä",
            "99999999999999999999.0.0",
            &long,
        ];
        for text in others {
            assert!(text.parse::<ReleaseVersion>().is_err(), "{text}");
        }
        let error = "1.0".parse::<ReleaseVersion>().expect_err("no patch");
        assert_eq!(
            error.to_string(),
            "'1.0' is no version: write MAJOR.MINOR.PATCH, for example 1.4.0 or 1.4.0-beta.1, without '+'"
        );
    }

    #[test]
    fn a_version_below_the_floor_is_refused_whatever_an_administrator_says() {
        let refusal = judge_version(
            &version("2.1.0"),
            &version("1.9.9"),
            Some(&version("2.0.0")),
            DowngradeConsent::Given,
        );
        assert_eq!(
            refusal.expect_err("below the floor").to_string(),
            "version 1.9.9 is older than 2.0.0, the oldest version that this machine may run again. Install 2.0.0 or a newer \
             version; no option lowers this limit"
        );
    }

    #[test]
    fn a_downgrade_above_the_floor_needs_an_administrator() {
        let judge = |consent| {
            let floor = version("2.0.0");
            judge_version(&version("2.1.0"), &version("2.0.0"), Some(&floor), consent)
        };
        assert_eq!(judge(DowngradeConsent::Given), Ok(UpdateStep::Downgrade));
        let refusal = judge(DowngradeConsent::NotGiven).expect_err("not asked for");
        assert_eq!(
            refusal.to_string(),
            "version 2.0.0 is older than 2.1.0, which runs. If you want the older version, ask for it by its number as an \
             administrator"
        );
    }

    #[test]
    fn a_floor_never_goes_down() {
        let [old, new] = ["1.0.0", "1.2.0"].map(version);
        assert_eq!(raised_floor(None, None), None);
        assert_eq!(raised_floor(Some(old.clone()), None), Some(old.clone()));
        assert_eq!(
            raised_floor(Some(old.clone()), Some(&new)),
            Some(new.clone())
        );
        assert_eq!(raised_floor(Some(new.clone()), Some(&old)), Some(new));
        assert_eq!(raised_floor(None, Some(&old)), Some(old));
    }
}
