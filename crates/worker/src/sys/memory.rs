//! Returning memory to the system.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};

/// Returns memory to the system that the C library keeps for later. Each thread has an arena of its own: many threads
/// that have freed much would together hold more than a worker may.
pub fn give_back_memory() {
    // SAFETY: it touches only memory that the allocator itself holds free, under its own locks.
    unsafe { libc::malloc_trim(0) };
}

/// Bytes of the page tables of a process. `None` for one that has ended. Unlike the counts of pages they also count pages
/// that many mappings share, and the page of zeros.
pub(crate) fn page_table_bytes(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    // proc_pid_status(5): in units of 1,024 bytes.
    let line = text.lines().find_map(|line| line.strip_prefix("VmPTE:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// Frees the private memory of a process that was killed, on the caller's thread, and unmaps its other private mappings: on
/// a busy machine the process itself would first have to get a processor. Returns whether it did, which no kernel before Linux 5.15 does. Refused for a
/// process that was not killed.
pub(crate) fn release_killed(pidfd: impl AsFd) -> bool {
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the call takes two numbers and no memory (process_mrelease(2)), and the descriptor is borrowed meanwhile.
    unsafe { libc::syscall(libc::SYS_process_mrelease, pidfd, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    use super::*;
    use crate::limits::KILLED_TABLES_MAX;

    #[test]
    fn only_a_killed_process_loses_its_memory() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("it starts");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.expect("a process id");
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("it lives");
        assert!(!release_killed(&pidfd));
        assert_eq!(child.try_wait().expect("ours"), None);
        // Whether the process has ended before, or is about to, it has lost its memory then.
        pidfd_send_signal(&pidfd, Signal::KILL).expect("it lives");
        release_killed(&pidfd);
        child.wait().expect("ours");
        assert!(!release_killed(&pidfd));
    }

    /// The attack: the pages of one small file, mapped hundreds of times, or the page of zeros, are no private memory, and
    /// take long to unmap.
    #[test]
    fn pages_that_are_mapped_often_count_each_time() {
        const BYTES: usize = 4 << 20;
        let file = memfd_create("few pages", MemfdFlags::CLOEXEC).expect("memory");
        ftruncate(&file, BYTES as u64).expect("memory");
        let own = i32::try_from(std::process::id()).expect("a process id");
        for private in [libc::MAP_PRIVATE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS] {
            let fd = match private & libc::MAP_ANONYMOUS {
                0 => file.as_raw_fd(),
                _ => -1,
            };
            let mut mapped = Vec::new();
            for _ in 0..320 {
                // SAFETY: the kernel chooses where the new mapping lies, which this test alone uses, by no reference.
                let at = unsafe {
                    libc::mmap(std::ptr::null_mut(), BYTES, libc::PROT_READ, private, fd, 0)
                };
                assert_ne!(at, libc::MAP_FAILED);
                for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_POPULATE_READ] {
                    // SAFETY: it is the mapping from above, and neither advice changes what it holds.
                    assert_eq!(unsafe { libc::madvise(at, BYTES, advice) }, 0);
                }
                mapped.push(at);
            }
            let tables = page_table_bytes(own).expect("it lives");
            for at in mapped {
                // SAFETY: as above, and nothing refers to it.
                assert_eq!(unsafe { libc::munmap(at, BYTES) }, 0);
            }
            assert!(tables > KILLED_TABLES_MAX, "{tables} bytes of tables");
        }
    }
}
