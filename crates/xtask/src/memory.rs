//! How much of the machine's memory a command takes, from the front on, and how many compilers there is memory for.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::cgroup;

/// Memory in GiB that `up` and `test` promise to stay below: with 16 GiB in a machine, the rest is for
/// the system and what else runs on it.
const MEMORY_GIB_MAX: u32 = 12;

/// The same in KiB.
const MEMORY_KIB_MAX: u64 = (MEMORY_GIB_MAX as u64) << 20;

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Memory that a job of a compiler is counted with. A round number: few units take more, and not all at the same time.
const JOB_KIB: u64 = 1 << 20;

/// Jobs of a build where there is memory for all of a first start with so many, and where there is less.
const JOBS_MIN: usize = 2;
const JOBS_MIN_SHORT: usize = 1;

/// A first start with two jobs for each of its three builds was seen to take 3.3 GiB.
const FIRST_START_KIB: u64 = 4 << 20;

/// Memory that a test is counted with which computes, and that all machines of tests have at the most (`ALL_MIB` of
/// `qemu`): half of what there is, where that is less.
const TEST_KIB: u64 = 256 << 10;
const MACHINES_KIB_MAX: u64 = 4 << 20;

/// Programs whose tests compute that run at a time.
const PROGRAMS_AT_ONCE: u64 = 2;

/// What the system says of its memory.
const MEMINFO: &str = "/proc/meminfo";

/// Environment variable through which the front tells `alknet-tasks` what it saw: KiB that were in use before the
/// command, a colon, and the most KiB beyond that.
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
    /// Begins to watch. Memory that is in use now is the baseline.
    #[must_use]
    pub fn watch() -> Self {
        Self::from(read_in_use_kib(), 0)
    }

    /// Goes on where the front left off, with its baseline; without a front, begins.
    #[must_use]
    pub fn go_on() -> Self {
        let told = env::var(MEMORY_VARIABLE).ok();
        let told = told.as_deref().and_then(decode);
        told.map_or_else(Self::watch, |(before, most)| Self::from(Some(before), most))
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
                    // Woken at the end: a sleep would hold the command up.
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

    /// What was seen so far, for [`MEMORY_VARIABLE`]; nothing where the system does not say what is in use.
    #[must_use]
    pub fn encoded(&self) -> Option<String> {
        let most = self.most_kib.load(Ordering::Relaxed);
        self.before_kib.map(|before| format!("{before}:{most}"))
    }

    /// Most memory in use so far beyond what was at the beginning, in GiB.
    fn most_gib(&self) -> f64 {
        self.most_kib.load(Ordering::Relaxed) as f64 / f64::from(1 << 20)
    }

    /// The most memory that was in use beyond the baseline, with a warning where it passes 12 GiB.
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
            // It panics nowhere, and what it saw is kept already.
            let _ = watching.join();
        }
    }
}

/// Reads what [`MemoryWatch::encoded`] wrote.
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

/// What is in use beyond what was before; nothing where one of the two cannot be read.
fn beyond_kib(before: Option<u64>, now: Option<u64>) -> u64 {
    let both = before.zip(now);
    both.map_or(0, |(before, now)| now.saturating_sub(before))
}

fn read_in_use_kib() -> Option<u64> {
    in_use_kib(&fs::read_to_string(MEMINFO).ok()?, cgroup::left_kib())
}

/// Memory that programs could not have, in KiB: all but what is [available](available_of).
fn in_use_kib(meminfo: &str, left_kib: Option<u64>) -> Option<u64> {
    let total = field(meminfo, "MemTotal:")?;
    Some(total.saturating_sub(available_of(meminfo, left_kib)?))
}

/// Memory that programs could have without swapping, in KiB; nothing where the system does not say it.
#[must_use]
pub fn available_kib() -> Option<u64> {
    available_of(&fs::read_to_string(MEMINFO).ok()?, cgroup::left_kib())
}

/// What proc_meminfo(5) calls available, and no more than control groups leave, where they have a limit.
fn available_of(meminfo: &str, left_kib: Option<u64>) -> Option<u64> {
    let available = field(meminfo, "MemAvailable:")?;
    Some(left_kib.map_or(available, |left| left.min(available)))
}

/// What a command may take of the memory that is available: the rest of a large machine is others'.
fn bounded_kib(available_kib: Option<u64>) -> u64 {
    available_kib.map_or(MEMORY_KIB_MAX, |kib| kib.min(MEMORY_KIB_MAX))
}

/// How many jobs each of `builds` starts that compile at the same time: one for each processor, and not more of all together
/// than there are GiB of memory, twelve at the most. Each has two all the same, which is what two processors always had, or
/// one where memory is short.
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

/// Processors that a run of the tests counts with: those of the machine, and no more than there is memory for. Two programs
/// at a time have a test for each of them, beside the machines of others.
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
        // What a container may not have is in use, by whatever process.
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
        // All builds together, however many processors and however much memory a machine has.
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
        // Its baseline goes on as well: what was compiled since is in use beyond it.
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
