//! Names that the format gives a meaning.

/// The one key of a header that is no entry.
pub const METADATA: &str = "__metadata__";
/// Metadata: the level of the container, `"1"`.
pub const LEVEL: &str = "metatensor";
/// Metadata: kinds, hashes, order.
pub const INDEX: &str = "mt.index";
/// Metadata: a JSON Schema for the records.
pub const SCHEMA: &str = "mt.schema";
/// Metadata: BLAKE3 of the data region.
pub const DATA_HASH: &str = "mt.b3";
/// Metadata: entries lie where a GPU can bind them.
pub const GPU: &str = "mt.gpu";
/// What the format's own keys begin with, [`LEVEL`] aside.
pub const OWN_PREFIX: &str = "mt.";
/// Entries that only fill room begin with this.
pub const PAD_PREFIX: &str = "__pad__.";
/// The entry of a blob's offsets ends with this.
pub const OFFSETS_SUFFIX: &str = ".__off__";

/// Whether a metadata key is the format's own.
#[must_use]
pub fn is_own(key: &str) -> bool {
    key == LEVEL || key.starts_with(OWN_PREFIX)
}

/// Whether a name may not be given to a tensor in a file of level 1.
///
/// ```
/// use alknet_tensor::keys::is_reserved;
///
/// assert!(is_reserved("__metadata__") && is_reserved("__pad__.0"));
/// assert!(!is_reserved("model.layers.0.weight"));
/// ```
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    name == METADATA || name.starts_with(PAD_PREFIX) || name.ends_with(OFFSETS_SUFFIX)
}
