//! How much of a processor a long task of PID 1 takes from the node.

use std::io;

/// Niceness of such a task: a tenth of the processor time of a node that computes without a pause, so that calls are
/// answered as before, and a node that is kept busy does not hold an update up for good.
const BACKGROUND: i32 = 10;
const USUAL: i32 = 0;

/// Runs a task on this thread, behind the node. A kernel that refuses the niceness only makes calls slower.
pub(crate) fn in_background<T>(work: impl FnOnce() -> T) -> T {
    let _usual = set(BACKGROUND).is_ok().then_some(UsualAfterwards);
    work()
}

/// Takes the niceness back, also after a panic: threads of the pool run other tasks afterwards.
struct UsualAfterwards;

impl Drop for UsualAfterwards {
    fn drop(&mut self) {
        let _ = set(USUAL);
    }
}

/// Sets the niceness of the calling thread: with Linux it belongs to a thread, and 0 names the calling one
/// (setpriority(2), "C library/kernel differences").
fn set(niceness: i32) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, panic, thread};

    use super::*;

    /// The niceness of the calling thread: the nineteenth field of its state, of which the second one is in brackets
    /// (proc_pid_stat(5)).
    fn now() -> String {
        let stat = fs::read_to_string("/proc/thread-self/stat").expect("a kernel with /proc");
        let (_, fields) = stat.rsplit_once(") ").expect("a name");
        let niceness = fields.split(' ').nth(16);
        niceness.expect("nineteen fields").to_owned()
    }

    #[test]
    fn a_task_in_the_background_is_nice_on_its_thread_alone() {
        let began = now();
        let task = thread::spawn(|| {
            let during = in_background(now);
            let panicked = panic::catch_unwind(|| in_background(|| panic!("a part failed")));
            (during, panicked.is_err(), now())
        });
        let (during, has_panicked, after) = task.join().expect("it ends");
        assert!(has_panicked);
        assert_eq!(during, BACKGROUND.to_string());
        assert_eq!(now(), began);
        // Only root takes it back.
        let usual = match nix::unistd::geteuid().is_root() {
            true => USUAL,
            false => BACKGROUND,
        };
        assert_eq!(after, usual.to_string());
    }
}
