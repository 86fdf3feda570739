//! Numbers in the structures of a disk, which have their lowest byte first.
//!
//! The caller has checked the length: a number behind the end of `bytes` panics.

/// The number of four bytes at this byte.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

/// The number of eight bytes at this byte.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}
