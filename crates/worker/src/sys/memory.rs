//! Returning memory to the system.

use std::os::fd::{AsFd, AsRawFd};

/// Returns memory to the system that the C library keeps for later. Each thread has an arena of its own: many threads
/// that have freed much would together hold more than a worker may.
pub fn give_back_memory() {
    // SAFETY: it touches only memory that the allocator itself holds free, under its own locks.
    unsafe { libc::malloc_trim(0) };
}

/// Frees the private memory of a process that was killed, on the caller's thread: on a busy machine the process itself
/// would first have to get a processor. Returns whether it did, which no kernel before Linux 5.15 does. Refused for a
/// process that was not killed.
pub(crate) fn release_killed(pidfd: impl AsFd) -> bool {
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the call takes two numbers and no memory (process_mrelease(2)), and the descriptor is borrowed meanwhile.
    unsafe { libc::syscall(libc::SYS_process_mrelease, pidfd, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    use super::*;

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
}
