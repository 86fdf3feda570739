//! Faults that tests switch on from outside the machine: fw_cfg file `opt/org.alknet/test-faults`
//! with content `1`. A machine booted without it has none of this.

/// Orphans made by [`Fault::Orphans`].
const ORPHANS: u32 = 10_000;
/// Orphans alive at once, below any limit on processes.
const ORPHANS_AT_ONCE: u32 = 200;

/// How PID 1 misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The loop stops: the watchdog's case.
    Hang,
    /// The network's task panics.
    NetPanic,
    /// Thousands of orphans at once.
    Orphans,
    /// A panic while an event is handled.
    Panic,
}

impl Fault {
    pub(crate) fn parse(kind: &str) -> Option<Self> {
        Some(match kind {
            "hang" => Self::Hang,
            "net-panic" => Self::NetPanic,
            "orphans" => Self::Orphans,
            "panic" => Self::Panic,
            _ => return None,
        })
    }
}

/// Forks a child that forks thousands and leaves them to PID 1.
pub(crate) fn make_orphans() {
    // SAFETY: the child calls only fork, usleep and _exit, which are safe whatever other threads
    // were doing at the fork.
    unsafe {
        if libc::fork() == 0 {
            for made in 0..ORPHANS {
                if libc::fork() == 0 {
                    libc::_exit(0);
                }
                if made % ORPHANS_AT_ONCE == 0 {
                    // Its own children count as living until they are collected; none is.
                    libc::usleep(1000);
                }
            }
            libc::_exit(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_documentation() {
        assert_eq!(Fault::parse("hang"), Some(Fault::Hang));
        assert_eq!(Fault::parse("orphans"), Some(Fault::Orphans));
        assert_eq!(Fault::parse("panic"), Some(Fault::Panic));
        assert_eq!(Fault::parse("net-panic"), Some(Fault::NetPanic));
        assert_eq!(Fault::parse("Hang"), None);
        assert_eq!(Fault::parse(""), None);
    }
}
