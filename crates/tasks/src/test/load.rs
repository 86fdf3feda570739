//! The load of the machine, and what tests read of it.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use tempfile::NamedTempFile;

use super::{SKIPS_VARIABLE, SLOWDOWN_VARIABLE, Slowdown, Variables, report};
use crate::failure::{Result, TaskError};

/// Processor time that each thread of the measurement uses: long enough that the scheduler's turns,
/// some milliseconds each, even out.
const WORK: Duration = Duration::from_millis(300);

/// How many times longer work takes on this machine now than on an idle one: 1 at rest, 5 beside
/// eight endless loops on two processors. The measurement loads every processor for [`WORK`].
pub(super) fn slowdown(processors: usize) -> f64 {
    slowdown_of(processors, WORK)
}

/// Like `slowdown`, with so many threads, each of which uses so much processor time.
fn slowdown_of(threads: usize, work: Duration) -> f64 {
    let threads: Vec<_> = (0..threads)
        .map(|_| thread::spawn(move || share(work)))
        .collect();
    greatest(threads.into_iter().filter_map(|thread| thread.join().ok()))
}

/// The greatest of the factors, and at least 1, because the clocks are read one after the other.
fn greatest(factors: impl Iterator<Item = f64>) -> f64 {
    factors.fold(1.0, f64::max)
}

/// Wall time over processor time of a thread that only computes.
fn share(work: Duration) -> f64 {
    let started = Instant::now();
    let before = processor_time();
    loop {
        let used = processor_time().saturating_sub(before);
        if used >= work {
            return ratio(started.elapsed(), used);
        }
        // The compiler must not remove this computation.
        std::hint::black_box((0..10_000_u64).fold(0, u64::wrapping_add));
    }
}

/// How many times longer a thread took than it computed.
fn ratio(wall: Duration, used: Duration) -> f64 {
    wall.as_secs_f64() / used.as_secs_f64()
}

fn processor_time() -> Duration {
    // The clock exists on every Linux. Without it the loop above would not end.
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map_or(Duration::MAX, Duration::from)
}

/// Makes the machines of this command wait longer if the host is busy now, like those of the tests.
pub fn lengthen_deadlines() -> Result<()> {
    alknet_qemu::expect_slowdown(Slowdown::set_or_measured()?.at_start);
    Ok(())
}

/// The machine's facts that tests read from the environment, and the file in which they record what
/// they skipped.
#[derive(Debug)]
pub(crate) struct TestEnvironment {
    slowdown: f64,
    skips: NamedTempFile,
}

impl TestEnvironment {
    /// Measures the load of the machine, unless the user has set the factor.
    pub(crate) fn measure() -> Result<Self> {
        Self::with_slowdown(Slowdown::set_or_measured()?.at_start)
    }

    fn with_slowdown(slowdown: f64) -> Result<Self> {
        let skips = NamedTempFile::new().map_err(TaskError::io("make a file for skips"))?;
        Ok(Self { slowdown, skips })
    }

    /// The factor by which tests multiply their deadlines.
    pub(crate) const fn slowdown(&self) -> f64 {
        self.slowdown
    }

    /// The variables for the environment of test programs.
    pub(crate) fn variables(&self) -> Variables {
        vec![
            (SKIPS_VARIABLE, self.skips.path().into()),
            (SLOWDOWN_VARIABLE, format!("{:.2}", self.slowdown).into()),
        ]
    }

    /// What tests skipped, one line each. Empty if there is nothing.
    pub(crate) fn skipped(&self) -> String {
        report::noted(&self.skips())
    }

    /// How many tests checked nothing.
    pub(crate) fn skipped_whole(&self) -> usize {
        report::whole(&self.skips())
    }

    fn skips(&self) -> Vec<report::TestSkip> {
        let text = fs::read_to_string(self.skips.path()).unwrap_or_default();
        report::skips(&text)
    }
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
        // Eight threads for each processor. The scheduler shares fairly, but others run beside this
        // test.
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let crowded = slowdown_of(processors * 8, WORK / 4);
        assert!(crowded > 2.0, "{crowded}");
    }

    #[test]
    fn a_program_learns_the_factor_and_its_skips_are_listed() {
        let surroundings = TestEnvironment::with_slowdown(2.5).expect("writable");
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
}
