//! How much of the machine's memory a command uses, from the front on, and how many compilers fit
//! into memory.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::cgroup;

/// Memory in GiB that `up` and `test` promise to stay below. Of a machine's 16 GiB, the rest is for
/// the system and other programs.
const MEMORY_GIB_MAX: u32 = 12;

/// Like `MEMORY_GIB_MAX`, in KiB.
const MEMORY_KIB_MAX: u64 = (MEMORY_GIB_MAX as u64) << 20;

/// How often memory use is read.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Memory that counts for one compiler job. A round number: few units use more, and not all at the
/// same time.
const JOB_KIB: u64 = 1 << 20;

/// Minimal jobs of a build: if memory suffices for a first start with two each, and if not.
const JOBS_MIN: usize = 2;
const JOBS_MIN_SHORT: usize = 1;

/// A first start with two jobs for each of its three builds used 3.3 GiB.
const FIRST_START_KIB: u64 = 4 << 20;

/// Memory that counts for a test that computes, and the most that all machines of tests use
/// (`ALL_MIB` of `qemu`), or half of all memory if that is less.
const TEST_KIB: u64 = 256 << 10;
const MACHINES_KIB_MAX: u64 = 4 << 20;

/// How many programs whose tests compute run at a time.
const PROGRAMS_AT_ONCE: u64 = 2;

/// Where the system reports its memory.
const MEMINFO: &str = "/proc/meminfo";

/// Environment variable with which the front passes its result to `alknet-tasks`: KiB in use before
/// the command, a colon, and the most KiB beyond that.
pub const MEMORY_VARIABLE: &str = "ALKNET_MEMORY_KIB";

/// Watches how much of the machine's memory is in use, until it is dropped.
#[derive(Debug)]
pub struct MemoryWatch {
    before_kib: Option<u64>,
    most_kib: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    watching: Option<JoinHandle<()>>,
}

impl MemoryWatch {
    /// Starts watching. Memory in use now is the baseline.
    #[must_use]
    pub fn watch() -> Self {
        Self::from(read_in_use_kib(), 0)
    }

    /// Continues from the front's numbers and baseline, or starts watching if there is no front.
    #[must_use]
    pub fn go_on() -> Self {
        let seen = env::var(MEMORY_VARIABLE).ok();
        let seen = seen.as_deref().and_then(decode);
        seen.map_or_else(Self::watch, |(before, most)| Self::from(Some(before), most))
    }

    fn from(before_kib: Option<u64>, most_kib: u64) -> Self {
        let most_kib = Arc::new(AtomicU64::new(most_kib));
        let ended: Arc<AtomicBool> = Arc::default();
        let watching = {
            let (most_kib, ended) = (Arc::clone(&most_kib), Arc::clone(&ended));
            thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    let beyond = beyond_kib(before_kib, read_in_use_kib());
                    most_kib.fetch_max(beyond, Ordering::Relaxed);
                    // Unparked at the end, because a sleep would delay the command.
                    thread::park_timeout(LOOK_EVERY);
                }
            })
        };
        Self {
            before_kib,
            most_kib,
            ended,
            watching: Some(watching),
        }
    }

    /// The numbers so far, for [`MEMORY_VARIABLE`]. `None` if the system does not report memory
    /// use.
    #[must_use]
    pub fn encoded(&self) -> Option<String> {
        let most = self.most_kib.load(Ordering::Relaxed);
        self.before_kib.map(|before| format!("{before}:{most}"))
    }

    /// The most memory in use so far beyond the baseline, in GiB.
    fn most_gib(&self) -> f64 {
        self.most_kib.load(Ordering::Relaxed) as f64 / f64::from(1 << 20)
    }

    /// The most memory that was in use beyond the baseline, with a warning if it exceeds 12 GiB.
    #[must_use]
    pub fn report(&self) -> String {
        describe(self.most_gib())
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(watching) = self.watching.take() {
            watching.thread().unpark();
            // The thread does not panic, and what it saw is already stored.
            let _ = watching.join();
        }
    }
}

/// Reads the output of [`MemoryWatch::encoded`].
fn decode(text: &str) -> Option<(u64, u64)> {
    let (before, most) = text.split_once(':')?;
    Some((before.parse().ok()?, most.parse().ok()?))
}

fn describe(gib: f64) -> String {
    let mut text = format!("  memory: at most {gib:.1} GiB more than before\n");
    if gib > f64::from(MEMORY_GIB_MAX) {
        let _ = writeln!(
            text,
            "  warning: this command is to stay below {MEMORY_GIB_MAX} GiB; what else ran on this machine \
             meanwhile counts, too"
        );
    }
    text
}

/// Memory in use now beyond that before. 0 if one of the two is unknown.
fn beyond_kib(before: Option<u64>, now: Option<u64>) -> u64 {
    let both = before.zip(now);
    both.map_or(0, |(before, now)| now.saturating_sub(before))
}

fn read_in_use_kib() -> Option<u64> {
    in_use_kib(&fs::read_to_string(MEMINFO).ok()?, cgroup::left_kib())
}

/// Memory that programs could not get, in KiB: all except the [available](available_of).
fn in_use_kib(meminfo: &str, left_kib: Option<u64>) -> Option<u64> {
    let total = field(meminfo, "MemTotal:")?;
    Some(total.saturating_sub(available_of(meminfo, left_kib)?))
}

/// Memory that programs could get without swapping, in KiB. `None` if the system does not report
/// it.
#[must_use]
pub fn available_kib() -> Option<u64> {
    available_of(&fs::read_to_string(MEMINFO).ok()?, cgroup::left_kib())
}

/// What proc_meminfo(5) calls available, limited to what control groups leave.
fn available_of(meminfo: &str, left_kib: Option<u64>) -> Option<u64> {
    let available = field(meminfo, "MemAvailable:")?;
    Some(left_kib.map_or(available, |left| left.min(available)))
}

/// How much of the available memory a command may use. The rest of a large machine is for others.
fn bounded_kib(available_kib: Option<u64>) -> u64 {
    available_kib.map_or(MEMORY_KIB_MAX, |kib| kib.min(MEMORY_KIB_MAX))
}

/// How many jobs each of `builds` starts, if they compile at the same time: one per processor, and
/// for all builds together at most one per GiB of memory, and at most twelve. But each has at least
/// two, as two processors always had, or one if memory is short.
#[must_use]
pub fn jobs(builds: usize) -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    jobs_of(processors, available_kib(), builds)
}

fn jobs_of(processors: usize, available_kib: Option<u64>, builds: usize) -> usize {
    let memory_kib = bounded_kib(available_kib);
    let least = match memory_kib < FIRST_START_KIB {
        true => JOBS_MIN_SHORT,
        false => JOBS_MIN,
    };
    let jobs = usize::try_from(memory_kib / JOB_KIB).unwrap_or(usize::MAX);
    processors.min((jobs / builds.max(1)).max(least))
}

/// Processors that a test run assumes: those of the machine, limited by memory. Two programs at a
/// time each run a test per processor, beside the machines of other tests.
#[must_use]
pub fn test_processors() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    test_processors_of(processors, available_kib())
}

fn test_processors_of(processors: usize, available_kib: Option<u64>) -> usize {
    let memory_kib = bounded_kib(available_kib);
    let left_kib = memory_kib - MACHINES_KIB_MAX.min(memory_kib / 2);
    let tests = usize::try_from(left_kib / (TEST_KIB * PROGRAMS_AT_ONCE)).unwrap_or(usize::MAX);
    processors.min(tests.max(1))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_use_is_all_that_is_not_available() {
        let text = "MemTotal:       24 kB\nMemFree: 3 kB\nMemAvailable:   20 kB\n";
        assert_eq!(in_use_kib(text, None), Some(4));
        assert_eq!(in_use_kib("MemTotal: 24 kB\nMemFree: 3 kB\n", None), None);
        assert_eq!(in_use_kib("", None), None);
        // What a container may not use counts as in use.
        assert_eq!(in_use_kib(text, Some(5)), Some(19));
        assert_eq!(in_use_kib(text, Some(500)), Some(4));
        assert_eq!(beyond_kib(Some(4), Some(9)), 5);
        assert_eq!(beyond_kib(Some(9), Some(4)), 0);
        // What others use must not count as this command's.
        assert_eq!(beyond_kib(None, Some(9)), 0);
        assert_eq!(beyond_kib(Some(4), None), 0);
        assert!(read_in_use_kib().is_some(), "this system's file is read");
        assert!(available_kib().is_some());
    }

    #[test]
    fn builds_share_twelve_gib_and_have_two_jobs_where_these_fit() {
        let gib = |gib: u64| Some(gib << 20);
        // A machine with two processors.
        for memory in [gib(5), gib(13), gib(60), None] {
            assert_eq!(jobs_of(2, memory, 3), 2);
        }
        assert_eq!(jobs_of(1, gib(13), 3), 1);
        for memory in [Some(0), gib(1), gib(3)] {
            assert_eq!(jobs_of(64, memory, 3), 1, "{memory:?}");
        }
        // The limit is for all builds together, whatever processors and memory a machine has.
        for builds in 1..=3 {
            for memory in [gib(12), gib(13), gib(60), gib(1000), None] {
                let all = jobs_of(64, memory, builds) * builds;
                assert_eq!(all, 12, "{builds} builds, {memory:?}");
            }
        }
        assert_eq!(jobs_of(16, gib(7), 1), 7);
        assert!(jobs(1) >= 1);
    }

    #[test]
    fn tests_and_their_machines_fit_into_twelve_gib() {
        for available in [0, 1, 3, 8, 12, 60, 1000] {
            let memory_kib = (available << 20).min(MEMORY_KIB_MAX);
            let machines_kib = (memory_kib / 2).min(MACHINES_KIB_MAX);
            let tests = test_processors_of(512, Some(available << 20)) as u64;
            assert!(tests >= 1);
            let all_kib = tests * PROGRAMS_AT_ONCE * TEST_KIB + machines_kib;
            assert!(
                tests == 1 || all_kib <= memory_kib,
                "{available} GiB: {tests}"
            );
        }
        assert_eq!(test_processors_of(512, None), 16);
        // Two processors of an ordinary machine.
        assert_eq!(test_processors_of(2, Some(3 << 20)), 2);
        assert!(test_processors() >= 1);
    }

    #[test]
    fn more_memory_than_promised_is_a_warning() {
        assert_eq!(
            describe(11.96),
            "  memory: at most 12.0 GiB more than before\n"
        );
        let text = describe(12.1);
        assert!(
            text.contains("12.1 GiB") && text.contains("below 12 GiB"),
            "{text}"
        );
    }

    #[test]
    fn what_was_in_use_most_is_kept() {
        let memory = MemoryWatch::watch();
        memory.most_kib.fetch_max(1 << 30, Ordering::Relaxed);
        assert_eq!(memory.most_gib(), 1024.0);
        assert!(memory.report().contains("warning"));
    }

    #[test]
    fn what_the_front_saw_is_passed_on() {
        // More than any machine has in use meanwhile.
        let front = MemoryWatch::from(Some(1000), 1 << 40);
        assert_eq!(front.encoded().as_deref(), Some("1000:1099511627776"));
        assert_eq!(decode("1000:5242880"), Some((1000, 5 << 20)));
        assert_eq!(decode("1000"), None);
        assert_eq!(decode("a:b"), None);
        // Its baseline is kept too: what was compiled since is in use beyond it.
        let next = MemoryWatch::from(Some(0), 0);
        let seen = (0..1000).any(|_| {
            thread::sleep(LOOK_EVERY / 50);
            next.most_gib() > 0.0
        });
        assert!(seen, "this system uses memory");
    }

    #[test]
    fn fields_are_read_in_kib() {
        let text = "MemTotal:       24 kB\nMemFree: 3 kB\nMemAvailable:   20 kB\n";
        assert_eq!(field(text, "MemAvailable:"), Some(20));
        assert_eq!(field(text, "Nothing:"), None);
    }
}
