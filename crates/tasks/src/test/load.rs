//! How busy the machine is, and how much memory a command takes.

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use tempfile::NamedTempFile;

use super::{SKIPS_VARIABLE, SLOWDOWN_VARIABLE, Slowdown, Variables, report};
use crate::failure::{Failure, Result};

/// Memory in GiB that `up` and `test` promise to stay below: with 16 GiB in a machine, the rest is for
/// the system and what else runs on it.
pub(crate) const MEMORY_GIB_MAX: f64 = 12.0;

/// Processor time that each thread of the measurement uses: long enough that the scheduler's turns,
/// some milliseconds each, even out.
const WORK: Duration = Duration::from_millis(300);

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How much longer work takes on this machine now than on one that does nothing else: 1 at rest, 5
/// beside eight endless loops on two processors. Works on every processor for [`WORK`].
pub(super) fn slowdown(processors: usize) -> f64 {
    let threads: Vec<_> = (0..processors).map(|_| thread::spawn(share)).collect();
    greatest(threads.into_iter().filter_map(|thread| thread.join().ok()))
}

/// The greatest of the factors, and at least 1: the clocks are read one after the other.
fn greatest(factors: impl Iterator<Item = f64>) -> f64 {
    factors.fold(1.0, f64::max)
}

/// Wall time over processor time of a thread that only computes.
fn share() -> f64 {
    let started = Instant::now();
    let before = processor_time();
    loop {
        let used = processor_time().saturating_sub(before);
        if used >= WORK {
            return ratio(started.elapsed(), used);
        }
        std::hint::black_box((0..10_000_u64).fold(0, u64::wrapping_add));
    }
}

/// How many times longer a thread took than it computed.
fn ratio(wall: Duration, used: Duration) -> f64 {
    wall.as_secs_f64() / used.as_secs_f64()
}

fn processor_time() -> Duration {
    // The clock exists on every Linux; without it the loop above would not end.
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map_or(Duration::MAX, Duration::from)
}

/// What tests read from the environment about the machine, and the file in which they note what they
/// skipped.
#[derive(Debug)]
pub(crate) struct Surroundings {
    slowdown: f64,
    skips: NamedTempFile,
}

impl Surroundings {
    /// Measures how busy the machine is, unless the user has set that.
    pub(crate) fn measure() -> Result<Self> {
        Self::of(Slowdown::set_or_measured()?.at_start)
    }

    fn of(slowdown: f64) -> Result<Self> {
        let skips = NamedTempFile::new().map_err(Failure::io("make a file for skips"))?;
        Ok(Self { slowdown, skips })
    }

    /// The factor by which tests multiply their deadlines.
    pub(crate) const fn slowdown(&self) -> f64 {
        self.slowdown
    }

    /// For the environment of test programs.
    pub(crate) fn variables(&self) -> Variables {
        vec![
            (SKIPS_VARIABLE, self.skips.path().into()),
            (SLOWDOWN_VARIABLE, format!("{:.2}", self.slowdown).into()),
        ]
    }

    /// What tests left out, a line each; empty without any.
    pub(crate) fn skipped(&self) -> String {
        report::noted(&self.skips())
    }

    /// How many tests checked nothing.
    pub(crate) fn skipped_whole(&self) -> usize {
        report::whole(&self.skips())
    }

    fn skips(&self) -> Vec<report::Skip> {
        let text = fs::read_to_string(self.skips.path()).unwrap_or_default();
        report::skips(&text)
    }
}

/// Watches how much of the machine's memory is in use, until it is dropped.
#[derive(Debug)]
pub(crate) struct Memory {
    most_kib: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    watching: Option<JoinHandle<()>>,
}

impl Memory {
    /// Begins to watch. Memory that is in use now is the baseline.
    pub(crate) fn watch() -> Self {
        let most_kib: Arc<AtomicU64> = Arc::default();
        let ended: Arc<AtomicBool> = Arc::default();
        let before = read_in_use_kib();
        let watching = {
            let (most_kib, ended) = (Arc::clone(&most_kib), Arc::clone(&ended));
            thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    let beyond = beyond_kib(before, read_in_use_kib());
                    most_kib.fetch_max(beyond, Ordering::Relaxed);
                    thread::park_timeout(LOOK_EVERY);
                }
            })
        };
        Self {
            most_kib,
            ended,
            watching: Some(watching),
        }
    }

    /// Most memory in use so far beyond what was at the beginning, in GiB.
    pub(super) fn most_gib(&self) -> f64 {
        self.most_kib.load(Ordering::Relaxed) as f64 / f64::from(1 << 20)
    }

    /// The same for the end of a command, with a warning where it passes [`MEMORY_GIB_MAX`].
    pub(crate) fn report(&self) -> String {
        describe(self.most_gib())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(watching) = self.watching.take() {
            watching.thread().unpark();
            let _ = watching.join();
        }
    }
}

fn describe(gib: f64) -> String {
    let mut text = format!("  memory: at most {gib:.1} GiB more than before\n");
    if gib > MEMORY_GIB_MAX {
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
    in_use_kib(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// Memory that programs could not have, in KiB: all but what proc_meminfo(5) calls available.
fn in_use_kib(meminfo: &str) -> Option<u64> {
    let [total, available] = ["MemTotal:", "MemAvailable:"].map(|name| field(meminfo, name));
    Some(total?.saturating_sub(available?))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_slowest_thread_decides_and_rounding_does_not() {
        let seconds = Duration::from_secs_f64;
        assert_eq!(ratio(seconds(3.0), seconds(1.5)), 2.0);
        assert_eq!(greatest([1.25, 4.5, 2.0].into_iter()), 4.5);
        assert_eq!(greatest([0.99].into_iter()), 1.0);
        assert_eq!(greatest(std::iter::empty()), 1.0);
    }

    #[test]
    fn more_threads_than_processors_wait_for_each_other() {
        // Eight for each processor; the scheduler shares fairly, but others run beside this test.
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let crowded = slowdown(processors * 8);
        assert!(crowded > 2.0, "{crowded}");
    }

    #[test]
    fn memory_in_use_is_all_that_is_not_available() {
        let text = "MemTotal:       24 kB\nMemFree: 3 kB\nMemAvailable:   20 kB\n";
        assert_eq!(in_use_kib(text), Some(4));
        assert_eq!(in_use_kib("MemTotal: 24 kB\nMemFree: 3 kB\n"), None);
        assert_eq!(in_use_kib(""), None);
        assert_eq!(beyond_kib(Some(4), Some(9)), 5);
        assert_eq!(beyond_kib(Some(9), Some(4)), 0);
        // What others use must not count as this command's.
        assert_eq!(beyond_kib(None, Some(9)), 0);
        assert_eq!(beyond_kib(Some(4), None), 0);
        assert!(read_in_use_kib().is_some(), "this system's file is read");
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
        let memory = Memory::watch();
        memory.most_kib.fetch_max(1 << 30, Ordering::Relaxed);
        assert_eq!(memory.most_gib(), 1024.0);
        assert!(memory.report().contains("warning"));
    }

    #[test]
    fn a_program_learns_the_factor_and_its_skips_are_listed() {
        let surroundings = Surroundings::of(2.5).expect("writable");
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "printf 'a_test\\twhole\\tKVM\\tno device, %s\\n' $ALKNET_TEST_SLOWDOWN >> $ALKNET_TEST_SKIPS",
        ]);
        command.envs(surroundings.variables());
        assert!(command.status().expect("a shell runs").success());
        let text = surroundings.skipped();
        assert_eq!(text, "a_test skipped for lack of KVM: no device, 2.50\n");
        assert_eq!(surroundings.skipped_whole(), 1);
    }

    #[test]
    fn fields_are_read_in_kib() {
        let text = "MemTotal:       24 kB\nMemFree: 3 kB\nMemAvailable:   20 kB\n";
        assert_eq!(field(text, "MemAvailable:"), Some(20));
        assert_eq!(field(text, "Nothing:"), None);
    }
}
