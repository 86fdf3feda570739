//! The speed of the guest's time-stamp counter.
//!
//! A microvm with ACPI has no timer against which its kernel could measure that, and a kernel that
//! does not know it waits for ever. A microvm without ACPI counts turns of a loop for 60 million
//! instructions. So both get the speed on their command line.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// With `icount` the guest's counter follows QEMU's clock: one nanosecond, one tick.
const ICOUNT_KHZ: u64 = 1_000_000;

/// How long the host's counter is measured: long enough for one part in ten thousand.
const WATCHED: Duration = Duration::from_millis(50);

/// The two clocks were read at the same time if no more than this passed meanwhile.
const SAME_TIME: Duration = Duration::from_micros(2);

/// Attempts to read both at the same time. The last one counts in any case.
const ATTEMPTS: u32 = 1000;

/// Ticks of the guest's counter in a millisecond under emulation. `None` on hosts without one.
pub(crate) fn emulated_khz(icount: bool) -> Option<u64> {
    static HOST: OnceLock<Option<u64>> = OnceLock::new();
    if icount {
        return Some(ICOUNT_KHZ);
    }
    // Without icount QEMU passes the host's counter on.
    *HOST.get_or_init(measure)
}

fn measure() -> Option<u64> {
    let (start, first) = sample()?;
    thread::sleep(WATCHED);
    let (end, last) = sample()?;
    let nanos = u64::try_from(end.duration_since(start).as_nanos()).ok()?;
    last.checked_sub(first)?
        .checked_mul(1_000_000)?
        .checked_div(nanos)
        .filter(|khz| *khz > 0)
}

fn sample() -> Option<(Instant, u64)> {
    let mut attempt = 0;
    loop {
        let before = Instant::now();
        let ticks = ticks()?;
        attempt += 1;
        // The thread may have been interrupted between the two readings, and then the pair is
        // useless.
        if before.elapsed() <= SAME_TIME || attempt == ATTEMPTS {
            return Some((before, ticks));
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> Option<u64> {
    // SAFETY: the instruction reads a counter, which every x86-64 processor has.
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use alknet_test_support::skip;

    use super::*;

    #[test]
    fn the_counter_runs_as_fast_the_second_time() {
        let (Some(once), Some(again)) = (measure(), measure()) else {
            skip!("time-stamp counter", "this processor has none");
        };
        assert!(once.abs_diff(again) < once / 100, "{once} and {again} kHz");
    }

    #[test]
    fn instructions_are_nanoseconds() {
        assert_eq!(emulated_khz(true), Some(1_000_000));
    }
}
