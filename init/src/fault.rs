//! Faults that tests switch on from outside the machine: the fw_cfg file
//! `opt/org.alknet/test-faults` with content `1`. Without it, a machine cannot do any of this.

/// Number of families that [`InjectedFault::Orphans`] makes, one after the other.
const FAMILIES: u32 = 100;
/// Number of orphans of each family. They become zombies until PID 1 collects them.
const ORPHANS_OF_A_FAMILY: u32 = 100;

/// Stack of one orphan in bytes. The orphan only exits.
const STACK_BYTES: usize = 16 * 1024;

/// The faults of PID 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InjectedFault {
    /// The loop stops, so that the watchdog has to act.
    Hang,
    /// The next round of housekeeping panics.
    HousekeepPanic,
    /// The network's task panics.
    NetPanic,
    /// The next attempt to open the vault panics.
    OpenPanic,
    /// Makes thousands of orphans at once.
    Orphans,
    /// Handling an event panics.
    Panic,
}

impl InjectedFault {
    pub(crate) fn parse(kind: &str) -> Option<Self> {
        Some(match kind {
            "hang" => Self::Hang,
            "housekeep-panic" => Self::HousekeepPanic,
            "net-panic" => Self::NetPanic,
            "open-panic" => Self::OpenPanic,
            "orphans" => Self::Orphans,
            "panic" => Self::Panic,
            _ => return None,
        })
    }
}

/// Forks a child whose children leave 10,000 short-lived orphans to PID 1.
pub(crate) fn make_orphans() {
    // SAFETY: the children only call fork, clone, waitpid and _exit, which are safe whatever other
    // threads did at the fork.
    unsafe {
        if libc::fork() == 0 {
            for _ in 0..FAMILIES {
                let parent = libc::fork();
                if parent == 0 {
                    leave_orphans();
                }
                libc::waitpid(parent, std::ptr::null_mut(), 0);
            }
            libc::_exit(0);
        }
    }
}

/// # Safety
/// Call this in a newly forked process, which it ends.
unsafe fn leave_orphans() -> ! {
    extern "C" fn end(_: *mut libc::c_void) -> libc::c_int {
        0
    }
    let mut stack = [0_u128; STACK_BYTES / size_of::<u128>()];
    // Memory is shared and not copied, and this process waits for each end, so that thousands are
    // cheap.
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    for _ in 0..ORPHANS_OF_A_FAMILY {
        // SAFETY: the child runs on its own stack, which grows down from the end of the array and
        // is free again when the call returns.
        unsafe {
            let top = stack.as_mut_ptr().add(stack.len());
            libc::clone(end, top.cast(), flags, std::ptr::null_mut());
        }
    }
    // SAFETY: _exit ends this process without touching what it inherited.
    unsafe { libc::_exit(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_documentation() {
        assert_eq!(InjectedFault::parse("hang"), Some(InjectedFault::Hang));
        assert_eq!(
            InjectedFault::parse("orphans"),
            Some(InjectedFault::Orphans)
        );
        assert_eq!(InjectedFault::parse("panic"), Some(InjectedFault::Panic));
        assert_eq!(
            InjectedFault::parse("net-panic"),
            Some(InjectedFault::NetPanic)
        );
        assert_eq!(InjectedFault::parse("Hang"), None);
        assert_eq!(InjectedFault::parse(""), None);
    }
}
