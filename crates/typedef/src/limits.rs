//! Every bound of this crate, with its unit.

/// Bytes of a schema's JSON text.
pub const SCHEMA_BYTES_MAX: u64 = 1 << 20;

/// Objects and arrays within each other in a schema; also parts of a layout, or of any schema after following its
/// references.
pub const DEPTH_MAX: u64 = 64;

/// JSON values in a schema, each number, string, array and object counted.
pub const NODES_MAX: u64 = 10_000;

/// Schemas within a schema after following its references, each use counted. Without it, thirty definitions that name
/// the next one twice are a thousand million schemas.
pub const EXPANDED_MAX: u64 = 65_536;

/// Regular expressions in one schema: compiling them costs most of the time.
pub const PATTERNS_MAX: u64 = 64;

/// Bytes of one compiled regular expression.
pub const PATTERN_BYTES_MAX: usize = 1 << 18;

/// Bytes of a JSON pointer to any part of a schema, and of a field's path.
pub const PATH_BYTES_MAX: u64 = 1024;

/// Entries of an offset map: fields, and each item of an array whose items have parts.
pub const ENTRIES_MAX: u64 = 65_536;

/// Bytes of one record: the largest `i64`, so that differences of offsets never overflow.
pub const RECORD_BYTES_MAX: u64 = i64::MAX as u64;

/// Bytes of a packed value.
pub const PACKED_BYTES_MAX: u64 = 16 << 20;

/// Values of one read: items, fields and records, each counted.
pub const VALUES_MAX: u64 = 1 << 20;

/// The largest alignment in bytes that an annotation may set.
pub const ALIGN_MAX: u32 = 4096;

/// Paths that an error names where a value breaks a schema.
pub const VIOLATIONS_MAX: usize = 10;

/// The bounds that a caller may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaLimits {
    /// See [`SCHEMA_BYTES_MAX`].
    pub schema_bytes: u64,
    /// See [`DEPTH_MAX`].
    pub depth: u64,
    /// See [`NODES_MAX`].
    pub nodes: u64,
    /// See [`EXPANDED_MAX`].
    pub expanded: u64,
    /// See [`ENTRIES_MAX`].
    pub entries: u64,
    /// See [`PACKED_BYTES_MAX`].
    pub packed_bytes: u64,
    /// See [`VALUES_MAX`].
    pub values: u64,
}

impl Default for SchemaLimits {
    fn default() -> Self {
        Self {
            schema_bytes: SCHEMA_BYTES_MAX,
            depth: DEPTH_MAX,
            nodes: NODES_MAX,
            expanded: EXPANDED_MAX,
            entries: ENTRIES_MAX,
            packed_bytes: PACKED_BYTES_MAX,
            values: VALUES_MAX,
        }
    }
}
