//! Where everything lies on a sealed partition, and the limits of what is accepted from one.

/// Bytes of one copy of the header that this program writes: 4 KiB binary, 12 KiB JSON.
pub const HEADER_BYTES: u64 = 16_384;
/// Maximum size of a copy of a header. Stock cryptsetup writes 16 KiB by default, and 4 MiB at
/// most. Parsed JSON takes a multiple of its size in memory.
pub const HEADER_BYTES_MAX: u64 = 131_072;
/// Bytes of the binary part of a header.
pub const BINARY_BYTES: usize = 4096;

/// Where the key slots' areas begin.
pub const KEYSLOTS_AT: u64 = 2 * HEADER_BYTES;
/// Bytes of the room for key slots, up to the vault's areas.
pub const KEYSLOTS_BYTES: u64 = VAULT_A_AT - KEYSLOTS_AT;
/// Maximum room for key slots that a header may declare, which is cryptsetup's.
pub const KEYSLOTS_BYTES_MAX: u64 = 128 << 20;
/// Bytes of the area of one key slot.
pub const AREA_BYTES: u64 = 258_048;

/// Bytes of each of the vault's two raw areas. This crate does not read or write them, except that
/// erasing overwrites them.
pub const VAULT_AREA_BYTES: u64 = 65_536;
/// Where the vault's first area begins.
pub const VAULT_A_AT: u64 = DATA_AT - 2 * VAULT_AREA_BYTES;
/// Where the vault's second area begins.
pub const VAULT_B_AT: u64 = DATA_AT - VAULT_AREA_BYTES;

/// Position of the memo that a program keeps on the partition, in the clear: the last block of the
/// room for key slots, which no area reaches. Erasing keeps it until everything else is
/// overwritten.
pub const MEMO_AT: u64 = VAULT_A_AT - 4096;
/// Bytes of the memo: a disk writes all of it or nothing of it.
pub const MEMO_BYTES: usize = 512;

/// Where the data begin.
pub const DATA_AT: u64 = 16 << 20;
/// Bytes of a sector of the data. Sector numbers count units of 512 bytes.
pub const SECTOR_BYTES: u32 = 4096;
/// Smallest partition: the header and one MiB of data.
pub const PARTITION_BYTES_MIN: u64 = DATA_AT + (1 << 20);

/// Maximum number of key slots of a header.
pub const SLOTS_MAX: u32 = 32;
/// Maximum number of tokens of a header.
pub const TOKENS_MAX: u32 = 32;
/// Largest sequence number that this program counts on from. It begins again at 1 after it.
pub const SEQUENCE_MAX: u64 = 1 << 32;
/// Rounds of PBKDF2 in headers that this program writes. The phrases are 256 random bits, which
/// more rounds would not protect better. cryptsetup requires a thousand.
pub const ROUNDS: u32 = 1000;
/// Maximum rounds of PBKDF2 that are accepted from a header, which take some seconds. Stock
/// cryptsetup aims at two seconds on the machine that made the header.
pub const ROUNDS_MAX: u32 = 10_000_000;
/// Stripes of the anti-forensic split.
pub const STRIPES: u32 = 4000;
/// Maximum length of a phrase in bytes, which is cryptsetup's.
pub const PHRASE_BYTES_MAX: usize = 512;
/// Maximum length of a salt in bytes.
pub const SALT_BYTES_MAX: usize = 512;

/// Unused room of the key slots that is wiped after a phrase was changed: the part where slots of
/// this program can lie, and a margin.
pub const WIPE_BYTES: u64 = 8 * AREA_BYTES;

/// Maximum bytes of the kernel's answer about mappings.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
