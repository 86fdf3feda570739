//! Limits of a file. Each bounds the memory or time that a file can cost.

/// Bytes of a header received over a network.
pub const HEADER_BYTES_NETWORK: u64 = 16 << 20;
/// Bytes of any header: stock readers accept no longer one.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Entries of a file received over a network, padding and offsets included.
pub const ENTRIES_NETWORK: u32 = 65_536;
/// Entries of any file.
pub const ENTRIES_MAX: u32 = 1_000_000;
/// Bytes of a tensor's name.
pub const NAME_BYTES: u32 = 1024;
/// Dimensions of a tensor received over a network.
pub const RANK_NETWORK: u32 = 8;
/// Dimensions of any tensor.
pub const RANK_MAX: u32 = 32;
/// Nested objects and arrays in the header and in `mt.index`.
pub const JSON_DEPTH: u32 = 32;
/// Bytes of `__metadata__` without `mt.index` and `mt.schema`, which have limits of their own.
pub const METADATA_BYTES: u64 = 1 << 20;
/// Bytes of `mt.schema`.
pub const SCHEMA_BYTES: u64 = 1 << 20;
/// Nested objects and arrays in `mt.schema`.
pub const SCHEMA_DEPTH: u32 = 64;
/// Values in `mt.schema`.
pub const SCHEMA_NODES: u64 = 10_000;
/// Items of a blob.
pub const BLOB_ITEMS: u64 = 1 << 40;
/// Largest alignment that an index may state.
pub const ALIGN_MAX: u32 = 65_536;

/// The limits of a reader and a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContainerLimits {
    /// Bytes of the header.
    pub header_bytes: u64,
    /// Entries, padding and offsets included.
    pub entries: u32,
    /// Bytes of a name, which has at least one byte and no control characters; `None` accepts any
    /// name.
    pub name_bytes: Option<u32>,
    /// Dimensions of a tensor.
    pub rank: u32,
    /// Nested objects and arrays in the header and in `mt.index`.
    pub json_depth: u32,
    /// Bytes of `__metadata__` without `mt.index` and `mt.schema`.
    pub metadata_bytes: u64,
    /// Bytes of `mt.schema`.
    pub schema_bytes: u64,
    /// Nested objects and arrays in `mt.schema`.
    pub schema_depth: u32,
    /// Values in `mt.schema`.
    pub schema_nodes: u64,
    /// Items of a blob.
    pub blob_items: u64,
}

impl ContainerLimits {
    /// For files received over a network.
    pub const NETWORK: Self = Self {
        header_bytes: HEADER_BYTES_NETWORK,
        entries: ENTRIES_NETWORK,
        name_bytes: Some(NAME_BYTES),
        rank: RANK_NETWORK,
        json_depth: JSON_DEPTH,
        metadata_bytes: METADATA_BYTES,
        schema_bytes: SCHEMA_BYTES,
        schema_depth: SCHEMA_DEPTH,
        schema_nodes: SCHEMA_NODES,
        blob_items: BLOB_ITEMS,
    };

    /// For a user's own files: every file that the stock package writes can be opened.
    #[must_use]
    pub const fn safetensors() -> Self {
        Self {
            header_bytes: HEADER_BYTES_MAX,
            entries: ENTRIES_MAX,
            name_bytes: None,
            rank: RANK_MAX,
            metadata_bytes: HEADER_BYTES_MAX,
            ..Self::NETWORK
        }
    }
}

impl Default for ContainerLimits {
    /// For files received over a network.
    fn default() -> Self {
        Self::NETWORK
    }
}
