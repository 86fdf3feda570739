//! Every bound of this crate.

use std::time::Duration;

/// Bytes of a command or an answer. No TPM takes or gives more.
pub const MESSAGE_BYTES_MAX: usize = 4096;
/// Bytes of a PIN: the longest authorisation value under SHA-256.
pub const PIN_BYTES_MAX: usize = 32;
/// PCRs of the bank, 0 to 23.
pub const PCRS: u8 = 24;
/// How often a command is sent to a TPM that reports that it is busy.
pub const ATTEMPTS_MAX: u32 = 12;
/// The wait before the second attempt. It doubles up to [`RETRY_WAIT_MAX`].
pub const RETRY_WAIT: Duration = Duration::from_millis(10);
/// The longest wait between two attempts.
pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(1);
/// How often a PCR may change between its check and the release of the key.
pub const PCR_RACES_MAX: u32 = 3;
/// Bytes of a nonce that a TPM answers: half of SHA-256 to the longest digest there is.
pub const NONCE_BYTES: std::ops::RangeInclusive<usize> = 16..=64;
/// Sections of a PE file.
pub const PE_SECTIONS_MAX: usize = 96;
/// Bytes of a PE file that is measured. Three fit into an EFI system partition of 1.5 GiB.
pub const PE_BYTES_MAX: usize = 512 << 20;
/// Programs that firmware and loaders start one after the other on the way to the kernel.
pub const BOOTED_PROGRAMS_MAX: usize = 8;
/// Boot options that firmware tries and fails to start before the one that starts.
pub const FAILED_OPTIONS_MAX: u8 = 16;
