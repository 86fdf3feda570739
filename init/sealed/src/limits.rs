//! Where everything lies on a sealed partition, and what is accepted from one.

/// Bytes of one copy of the header as it is written here: 4 KiB binary, 12 KiB JSON.
pub const HEADER_BYTES: u64 = 16_384;
/// Largest copy of a header that is read. Stock cryptsetup writes 16 KiB unless told otherwise, and
/// 4 MiB at most; parsed, JSON takes a multiple of its size.
pub const HEADER_BYTES_MAX: u64 = 131_072;
/// Bytes of the binary part of a header.
pub const BINARY_BYTES: usize = 4096;

/// Where the key slots' areas begin.
pub const KEYSLOTS_AT: u64 = 2 * HEADER_BYTES;
/// Bytes that key slots may take: up to the vault's areas.
pub const KEYSLOTS_BYTES: u64 = VAULT_A_AT - KEYSLOTS_AT;
/// Largest room for key slots that a header may declare, as cryptsetup has it.
pub const KEYSLOTS_BYTES_MAX: u64 = 128 << 20;
/// Bytes of the area of one key slot.
pub const AREA_BYTES: u64 = 258_048;

/// Bytes of each of the two raw areas that belong to the vault. Nothing here reads or writes them,
/// except that erasing overwrites them.
pub const VAULT_AREA_BYTES: u64 = 65_536;
/// Where the vault's first area begins.
pub const VAULT_A_AT: u64 = DATA_AT - 2 * VAULT_AREA_BYTES;
/// Where the vault's second area begins.
pub const VAULT_B_AT: u64 = DATA_AT - VAULT_AREA_BYTES;

/// Where the memo lies that a program keeps on the partition, in the clear: the last block of the room for key slots,
/// which no area reaches. Erasing leaves it until everything else is overwritten.
pub const MEMO_AT: u64 = VAULT_A_AT - 4096;
/// Bytes of the memo: a disk writes all of it or nothing.
pub const MEMO_BYTES: usize = 512;

/// Where the data begin.
pub const DATA_AT: u64 = 16 << 20;
/// Bytes of a sector of the data. Its number still counts in 512 bytes.
pub const SECTOR_BYTES: u32 = 4096;
/// Smallest partition: the header and one MiB of data.
pub const PARTITION_BYTES_MIN: u64 = DATA_AT + (1 << 20);

/// Key slots that a header may have.
pub const SLOTS_MAX: u32 = 32;
/// Tokens that a header may have.
pub const TOKENS_MAX: u32 = 32;
/// Rounds of PBKDF2 in what is written here. The phrases are 256 random bits, so that rounds protect
/// nothing; cryptsetup demands a thousand.
pub const ROUNDS: u32 = 1000;
/// Most rounds of PBKDF2 that are accepted from a header: some seconds. Stock cryptsetup aims at two
/// seconds of the machine that made it.
pub const ROUNDS_MAX: u32 = 10_000_000;
/// Stripes of the anti-forensic split.
pub const STRIPES: u32 = 4000;
/// Longest phrase, bytes, as cryptsetup has it.
pub const PHRASE_BYTES_MAX: usize = 512;
/// Longest salt that is accepted, bytes.
pub const SALT_BYTES_MAX: usize = 512;

/// Unused room of the key slots that is wiped after a phrase was changed: as far as slots made here
/// can lie, with some to spare.
pub const WIPE_BYTES: u64 = 8 * AREA_BYTES;

/// Bytes that the kernel's answer about mappings may have.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
