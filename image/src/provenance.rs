//! What the files of an image are made from: components for the SBOM, sources and tools for the
//! manifest.

use std::borrow::Cow;
use std::ffi::OsStr;

use alknet_licenses::SoftwareComponent;

use crate::error::ImageError;
use crate::facts::{self, InputFacts};
use crate::manifest::{ManifestInput, ManifestSource};

/// The variable that names the time of a build for all programs, in seconds since 1970
/// (<https://reproducible-builds.org/specs/source-date-epoch>).
pub const BUILD_TIME_VARIABLE: &str = "SOURCE_DATE_EPOCH";

/// The time of a build that [`BUILD_TIME_VARIABLE`] names with this value, in seconds since 1970. `None` if the variable
/// is not set.
///
/// # Errors
/// The value is no whole number. The build would have another time than its caller wants.
pub fn named_build_time(value: Option<&OsStr>) -> Result<Option<i64>, ImageError> {
    let Some(value) = value else {
        return Ok(None);
    };
    let seconds = value.to_str().and_then(|text| text.parse().ok());
    seconds.map(Some).ok_or_else(|| ImageError::Argument {
        what: BUILD_TIME_VARIABLE,
        value: value.to_string_lossy().into_owned(),
        why: "it is no whole number of seconds since 1970",
    })
}

/// What the caller knows about the inputs of a build and their bytes do not show.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct BuildProvenance {
    /// The components in the kernel, the binary and the EFI stub. Without any, and without `facts`, the
    /// build writes no SBOM.
    pub components: Vec<SoftwareComponent>,
    /// What is known about single input files. It counts if `components` is empty: the SBOM then has the
    /// components of each file that is known, and an entry with the hash of each other file.
    pub facts: Vec<InputFacts>,
    /// The sources and tools that the inputs were made with.
    pub sources: Vec<ManifestSource>,
    /// The time of the commit, in seconds since 1970, which is the SBOM's time as well.
    pub seconds: i64,
}

impl BuildProvenance {
    /// A provenance of these parts. `seconds` is the time of the commit, since 1970.
    #[must_use]
    pub const fn new(
        components: Vec<SoftwareComponent>,
        sources: Vec<ManifestSource>,
        seconds: i64,
    ) -> Self {
        Self {
            components,
            facts: Vec::new(),
            sources,
            seconds,
        }
    }

    /// A provenance of input files that may be known by their hashes; the first facts that know a file
    /// count. `seconds` is the SBOM's time, since 1970.
    #[must_use]
    pub const fn of_facts(facts: Vec<InputFacts>, seconds: i64) -> Self {
        Self {
            components: Vec::new(),
            facts,
            sources: Vec::new(),
            seconds,
        }
    }

    /// The components of an image with these inputs.
    pub(crate) fn components(
        &self,
        inputs: &[ManifestInput],
        kernel_release: &str,
    ) -> Cow<'_, [SoftwareComponent]> {
        match self.components.is_empty() && !self.facts.is_empty() {
            true => facts::components(&self.facts, inputs, kernel_release).into(),
            false => self.components.as_slice().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_build_is_a_whole_number_or_refused() {
        let seconds = |text: &str| named_build_time(Some(text.as_ref()));
        assert_eq!(named_build_time(None).expect("no variable"), None);
        assert_eq!(
            seconds("1700000000").expect("a number"),
            Some(1_700_000_000)
        );
        for text in ["", "yesterday", "1700000000.5"] {
            let refused = seconds(text).expect_err("no number");
            assert_eq!(refused.exit_code(), 2, "{text}");
            let said = refused.to_string();
            assert!(said.contains(BUILD_TIME_VARIABLE), "{said}");
        }
    }
}
