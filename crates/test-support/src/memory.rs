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

/// Bytes by which this process grows in memory at most while `work` runs, given back ones counted. For tests that run
/// [alone](crate::alone()).
///
/// # Panics
/// The kernel does not say it.
#[must_use]
pub fn peak_bytes(work: impl FnOnce()) -> u64 {
    // Sets the peak back to what is resident now (proc(5)): the start of the process may have taken more.
    fs::write("/proc/self/clear_refs", "5").expect("Linux");
    let before = peak_resident_bytes();
    work();
    peak_resident_bytes().saturating_sub(before)
}

/// A number of `/proc/self/status`, which has it in KiB.
fn status_bytes(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib = kib.and_then(|kib| kib.parse::<u64>().ok());
    kib.expect("the kernel says it") << 10
}
