//! Processor time of one process or one thread, as the kernel counts it.

use rustix::thread::gettid;

/// The kernel's codes for "scheduler time" and for "of one thread" in the number of a clock.
const SCHEDULER: i32 = 2;
const ONE_THREAD: i32 = 4;

/// Processor time of all threads of process `pid`, in microseconds. `None` once it has ended.
pub(crate) fn process_cpu_us(pid: i32) -> Option<u64> {
    // The number is that of `make_process_cpuclock` in the kernel's include/linux/posix-timers.h.
    read(!pid << 3 | SCHEDULER)
}

/// Threads of one process that are looked at. A worker has half as many; an attacker starts more, to keep the thread
/// busy that looks.
pub(super) const THREADS_SEEN_MAX: usize = 128;

/// Whether a thread of process `pid` runs, or waits for nothing but a processor. Looks at the first
/// [`THREADS_SEEN_MAX`] threads only.
pub(crate) fn can_run(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    let mut threads = threads.take(THREADS_SEEN_MAX);
    threads.any(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The name before the state may hold any characters, also parentheses (proc_pid_stat(5)).
        let state = stat
            .rsplit_once(") ")
            .map(|(_, rest)| rest.starts_with('R'));
        state.unwrap_or(false)
    })
}

/// The clock of one thread of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadClock(i32);

impl ThreadClock {
    /// The clock of the calling thread, which any thread may read.
    pub(crate) fn of_this_thread() -> Self {
        let tid = gettid().as_raw_nonzero().get();
        // The number is that of `make_thread_cpuclock` in the kernel's include/linux/posix-timers.h.
        Self(!tid << 3 | SCHEDULER | ONE_THREAD)
    }

    /// Its time in microseconds; zero once the thread has ended.
    pub(crate) fn us(self) -> u64 {
        read(self.0).unwrap_or(0)
    }
}

fn read(clock: i32) -> Option<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a timespec of ours; a number that is no clock is refused with EINVAL.
    let outcome = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if outcome != 0 {
        return None;
    }
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let nanos = u64::try_from(time.tv_nsec).ok()?;
    Some(seconds * 1_000_000 + nanos / 1000)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_process_that_runs_can_run_and_one_that_sleeps_cannot() {
        assert!(can_run(rustix::process::getpid().as_raw_nonzero().get()));
        let mut sleeper = std::process::Command::new("sleep");
        let mut sleeper = sleeper.arg("600").spawn().expect("sleep runs");
        let pid = i32::try_from(sleeper.id()).expect("a process id");
        alknet_test_support::eventually("it sleeps", Duration::from_secs(10), || {
            (!can_run(pid)).then_some(())
        });
        sleeper.kill().expect("it runs");
        sleeper.wait().expect("it ends");
        assert!(!can_run(pid));
    }

    #[test]
    fn work_moves_the_clocks_of_its_thread_and_process() {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let thread = ThreadClock::of_this_thread();
        let before = (thread.us(), process_cpu_us(pid).expect("we live"));
        // The two are not counted up at the same moment.
        while thread.us() < before.0 + 2000
            || process_cpu_us(pid).expect("we live") < before.1 + 2000
        {
            std::hint::spin_loop();
        }
        assert_eq!(process_cpu_us(i32::MAX - 1), None);
    }
}
