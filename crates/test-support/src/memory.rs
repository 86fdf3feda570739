use std::fs;

/// Bytes of this process that are in memory. For tests that run [alone](crate::alone()).
///
/// # Panics
/// The kernel does not say it.
#[must_use]
pub fn resident_bytes() -> u64 {
    status_bytes("VmRSS:")
}

/// The most bytes of this process that were in memory at once since it started. For tests that run
/// [alone](crate::alone()).
///
/// # Panics
/// The kernel does not say it.
#[must_use]
pub fn peak_resident_bytes() -> u64 {
    status_bytes("VmHWM:")
}

fn status_bytes(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib = kib.and_then(|kib| kib.parse::<u64>().ok());
    kib.expect("the kernel says it") << 10
}
