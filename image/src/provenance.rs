//! What the files of an image are made from: components for the SBOM, sources and tools for the
//! manifest.

use alknet_licenses::SoftwareComponent;

use crate::manifest::ManifestSource;

/// What the caller knows about the inputs of a build and their bytes do not show.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct BuildProvenance {
    /// The components in the kernel, the binary and the EFI stub. Without any, the build writes no
    /// SBOM.
    pub components: Vec<SoftwareComponent>,
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
            sources,
            seconds,
        }
    }
}
