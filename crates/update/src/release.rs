//! What a release says about one of its targets: the member `alknet` of the target's `custom` object.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::{CHANGES_BYTES_MAX, LIST_MAX, NEED_BYTES_MAX, NEEDS_MAX, TEXT_BYTES_MAX};
use crate::version::ReleaseVersion;

/// The name of the member of `custom` (section 4.5 of the TUF specification leaves it to the application).
pub(crate) const MEMBER: &str = "alknet";

/// The description of a program that a machine can boot.
///
/// It is signed with the target. Members that this version does not know are ignored, so that a later version may
/// add some; a member changes its meaning never. What a machine must not ignore is a name in `needs`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ReleaseInfo {
    /// The version of the program.
    pub version: ReleaseVersion,
    /// The processor, as Linux names it: `x86_64`, `aarch64`.
    pub arch: String,
    /// The board or kind of machine: `generic` for all that boot by UEFI or BIOS.
    pub board: String,
    /// The form of the image that the target belongs to: `raw` for a unified kernel image in a slot.
    pub form: String,
    /// The oldest version that may run after this one was confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<ReleaseVersion>,
    /// Names of what the machine must have beside its kind. A machine refuses a release with a name that it does not know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// The version of the kernel, as `uname -r` prints it.
    pub kernel: String,
    /// What changed, for an administrator: plain text of at most 4 KiB.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub changes: String,
    /// Formats of stored data that the program writes, by name. A machine compares them with what it has stored.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub formats: BTreeMap<String, u32>,
    /// The SHA-256 of each section of the program that the boot stub measures, in hex: what predicts PCR 11.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sections: BTreeMap<String, String>,
    /// The Authenticode hash of the program, in hex: what predicts PCR 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authenticode: Option<String>,
}

/// The description of a release is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRelease(String);

impl InvalidRelease {
    pub(crate) fn new(why: impl fmt::Display) -> Self {
        Self(why.to_string())
    }
}

impl ReleaseInfo {
    /// Fails if a text or a list is longer than its limit, or if the floor is above the version itself.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn check(&self) -> Result<(), InvalidRelease> {
        let texts = [
            ("arch", &self.arch),
            ("board", &self.board),
            ("form", &self.form),
            ("kernel", &self.kernel),
        ];
        for (name, text) in texts {
            // These texts are printed on consoles and compared; none has a reason for other characters.
            let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-+~".contains(&b);
            if text.is_empty() || text.len() > TEXT_BYTES_MAX || !text.bytes().all(is_plain) {
                let why = format_args!(
                    "'{name}' has other than 1 to {TEXT_BYTES_MAX} letters, digits and '._-+~'"
                );
                return Err(InvalidRelease::new(why));
            }
        }
        if self.changes.len() > CHANGES_BYTES_MAX {
            let why = format_args!("'changes' has more than {CHANGES_BYTES_MAX} bytes");
            return Err(InvalidRelease::new(why));
        }
        // A console would obey an escape sequence.
        if self.changes.chars().any(|c| c.is_control() && c != '\n') {
            return Err(InvalidRelease::new("'changes' has control characters"));
        }
        if self.formats.len() > LIST_MAX || self.sections.len() > LIST_MAX {
            let why = format_args!("'formats' or 'sections' has more than {LIST_MAX} members");
            return Err(InvalidRelease::new(why));
        }
        let names = self.formats.keys().chain(self.sections.keys());
        if names.into_iter().any(|name| name.len() > TEXT_BYTES_MAX) {
            return Err(InvalidRelease::new(
                "'formats' or 'sections' has a long name",
            ));
        }
        let hashes = self.sections.values().chain(&self.authenticode);
        if !hashes.into_iter().all(|hash| is_sha256(hash)) {
            return Err(InvalidRelease::new(
                "'sections' or 'authenticode' has a text that is no SHA-256 in hex",
            ));
        }
        check_needs(&self.needs)?;
        match &self.floor {
            // Once confirmed, the release would raise the floor above itself, and the machine could not go back to it.
            Some(floor) if *floor > self.version => Err(InvalidRelease::new(format_args!(
                "its floor {floor} is above its own version {}",
                self.version
            ))),
            _ => Ok(()),
        }
    }
}

fn check_needs(needs: &[String]) -> Result<(), InvalidRelease> {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_name =
        |name: &String| (1..=NEED_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain);
    match needs.len() <= NEEDS_MAX && needs.iter().all(is_name) {
        true => Ok(()),
        false => Err(InvalidRelease::new(format_args!(
            "'needs' has more than {NEEDS_MAX} names, or a name with other than 1 to {NEED_BYTES_MAX} lower-case letters, \
             digits and '-'"
        ))),
    }
}

pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release() -> ReleaseInfo {
        ReleaseInfo {
            version: "1.2.0".parse().expect("a version"),
            arch: "x86_64".to_owned(),
            board: "generic".to_owned(),
            form: "raw".to_owned(),
            floor: None,
            needs: vec!["loader-2".to_owned()],
            kernel: "6.12.107".to_owned(),
            changes: "one\ntwo".to_owned(),
            formats: BTreeMap::from([("identities".to_owned(), 1)]),
            sections: BTreeMap::from([(".linux".to_owned(), "ab".repeat(32))]),
            authenticode: Some("cd".repeat(32)),
        }
    }

    fn refused(change: impl FnOnce(&mut ReleaseInfo)) -> String {
        let mut release = release();
        change(&mut release);
        release.check().expect_err("refused").to_string()
    }

    #[test]
    fn texts_and_lists_have_limits() {
        assert_eq!(release().check(), Ok(()));
        let mut longest = release();
        longest.changes = "x".repeat(CHANGES_BYTES_MAX);
        longest.board = "x".repeat(TEXT_BYTES_MAX);
        assert_eq!(longest.check(), Ok(()));
        assert_eq!(
            refused(|it| it.changes = "x".repeat(CHANGES_BYTES_MAX + 1)),
            "'changes' has more than 4096 bytes"
        );
        assert_eq!(
            refused(|it| it.board = "x".repeat(TEXT_BYTES_MAX + 1)),
            "'board' has other than 1 to 100 letters, digits and '._-+~'"
        );
        refused(|it| it.arch.clear());
        refused(|it| it.kernel = "6.12 107".to_owned());
        let list = |number: usize| (0..number).map(|n| (n.to_string(), 1)).collect();
        let mut most = release();
        most.formats = list(LIST_MAX);
        assert_eq!(most.check(), Ok(()));
        assert_eq!(
            refused(|it| it.formats = list(LIST_MAX + 1)),
            "'formats' or 'sections' has more than 64 members"
        );
    }

    #[test]
    fn what_a_release_needs_are_a_few_short_names() {
        let longest = || "x".repeat(NEED_BYTES_MAX);
        let mut most = release();
        most.needs = vec![longest(); NEEDS_MAX];
        assert_eq!(most.check(), Ok(()));
        let refusal = "'needs' has more than 16 names, or a name with other than 1 to 32 lower-case letters, digits and '-'";
        assert_eq!(
            refused(|it| it.needs = vec![longest(); NEEDS_MAX + 1]),
            refusal
        );
        for name in [String::new(), longest() + "x", "Loader 2".to_owned()] {
            assert_eq!(refused(|it| it.needs = vec![name]), refusal);
        }
    }

    /// A release without needs has the same bytes as before, and a list of another form is not taken for an empty one.
    #[test]
    fn only_a_list_says_what_a_release_needs() {
        let mut written = serde_json::json!(release());
        assert_eq!(written["needs"], serde_json::json!(["loader-2"]));
        written["needs"] = "loader-2".into();
        ReleaseInfo::deserialize(&written).expect_err("a text is no list");
        let mut none = release();
        none.needs.clear();
        assert_eq!(serde_json::json!(none).get("needs"), None);
    }

    #[test]
    fn a_console_never_gets_an_escape_sequence() {
        assert_eq!(
            refused(|it| it.changes = "\u{1b}[2J".to_owned()),
            "'changes' has control characters"
        );
    }

    #[test]
    fn a_floor_above_the_version_itself_is_refused() {
        assert_eq!(
            refused(|it| it.floor = Some("1.2.1".parse().expect("a version"))),
            "its floor 1.2.1 is above its own version 1.2.0"
        );
    }

    #[test]
    fn a_hash_that_is_none_is_refused() {
        let refusal = "'sections' or 'authenticode' has a text that is no SHA-256 in hex";
        assert_eq!(
            refused(|it| it.authenticode = Some("AB".repeat(32))),
            refusal
        );
    }
}
