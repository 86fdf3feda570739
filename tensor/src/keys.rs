//! Names with a meaning in the format.

/// The one key of a header that is not an entry.
pub const METADATA: &str = "__metadata__";
/// Metadata: the level of the container, `"1"`.
pub const LEVEL: &str = "metatensor";
/// Metadata: kinds, hashes and order.
pub const INDEX: &str = "mt.index";
/// Metadata: a JSON Schema for the records.
pub const SCHEMA: &str = "mt.schema";
/// Metadata: BLAKE3 of the data region.
pub const DATA_HASH: &str = "mt.b3";
/// Metadata: the entries' offsets suit the bindings of a GPU.
pub const GPU: &str = "mt.gpu";
/// Prefix of the format's own keys, except [`LEVEL`].
pub const OWN_PREFIX: &str = "mt.";
/// Prefix of the names of padding entries.
pub const PAD_PREFIX: &str = "__pad__.";
/// Suffix of the names of entries with a blob's offsets.
pub const OFFSETS_SUFFIX: &str = ".__off__";

/// Whether a metadata key belongs to the format.
#[must_use]
pub fn is_own(key: &str) -> bool {
    key == LEVEL || key.starts_with(OWN_PREFIX)
}

/// Whether a tensor of a level 1 file must not have this name.
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
