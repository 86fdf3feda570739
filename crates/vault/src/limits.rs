//! Every limit of the vault, so that no input determines how much is read, stored or computed.

/// Bytes of a typed phrase, white space included.
pub const MAX_PHRASE_BYTES: usize = 1024;
/// Bytes of a typed passphrase.
pub const MAX_PASSPHRASE_BYTES: usize = 1024;
/// Levels of a derivation path.
pub const MAX_PATH_LEVELS: usize = 10;
/// Highest number of one level, and so of a device, a zone or a generation.
pub const MAX_INDEX: u32 = (1 << 31) - 1;

/// Bytes of a label.
pub const MAX_LABEL_BYTES: usize = 255;
/// Bytes of a blob's plaintext: 1 MiB.
pub const MAX_PLAINTEXT_BYTES: usize = 1 << 20;
/// Bytes of a blob's JSON form: the base64 of the largest blob and its other fields.
pub const MAX_BLOB_JSON_BYTES: usize = MAX_PLAINTEXT_BYTES / 3 * 4 + 1024;
/// Bytes of plaintext in one chunk of a stream: 64 KiB.
pub const STREAM_CHUNK_BYTES: usize = 64 << 10;

/// Sealed records in one directory.
pub const MAX_CREDENTIALS: usize = 4096;

/// Bytes of a statement that one identity succeeds another.
pub const MAX_SUCCESSOR_BYTES: usize = 1024;

/// Bytes of one copy of `vault.alkv`, which is always written whole: 64 KiB.
pub const COPY_BYTES: usize = 64 << 10;
/// Key slots of one vault.
pub const MAX_SLOTS: usize = 16;
/// Bytes of each of the two parts that a TPM returns for a sealed object.
pub const MAX_TPM_PART_BYTES: usize = 1024;
/// PCRs to which one slot may be bound.
pub const MAX_TPM_PCRS: usize = 24;
/// Bytes of each name and address in a `kms` slot.
pub const MAX_KMS_NAME_BYTES: usize = 255;
/// Addresses in a `kms` slot: as many as a join string has.
pub const MAX_KMS_ADDRESSES: usize = 4;

/// Least memory of Argon2id in KiB: 19 MiB.
pub const ARGON2_FLOOR_KIB: u32 = 19 << 10;
/// Least passes of Argon2id.
pub const ARGON2_FLOOR_PASSES: u32 = 2;
/// Most passes of Argon2id that are accepted or chosen.
pub const ARGON2_MAX_PASSES: u32 = 64;
/// Most memory of Argon2id in KiB on any machine: 4 GiB.
pub const ARGON2_MAX_KIB: u32 = 4 << 20;

/// Events that wait in memory while the audit log cannot be written.
pub const MAX_PENDING_EVENTS: usize = 1000;
/// Bytes of one audit file before the next one begins: 8 MiB.
pub const AUDIT_FILE_BYTES: u64 = 8 << 20;
/// Audit files that stay, including the one that is being written.
pub const AUDIT_FILES: usize = 8;
/// Bytes of an event that one process sends to another; its line, which adds two hashes and a number, fits the log.
pub const MAX_AUDIT_RECORD_BYTES: usize = 2048;
/// Bytes of one line of the audit log.
pub const MAX_AUDIT_LINE_BYTES: usize = 4096;
