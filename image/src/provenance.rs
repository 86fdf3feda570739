//! What the files of an image are made from: components for the SBOM, sources and tools for the
//! manifest.

use std::borrow::Cow;

use alknet_licenses::SoftwareComponent;

use crate::facts::{self, InputFacts};
use crate::manifest::{ManifestInput, ManifestSource};

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
