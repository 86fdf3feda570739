//! Whether the memory of a version on trial runs short.
//!
//! A version whose kernel or PID 1 fills the memory leaves nothing that the kernel can end, and then the kernel restarts
//! the machine. PID 1 writes nothing any more at that time, so the boot note has to say it before.

use std::fs;

/// The kernel's file of the machine's memory (proc_meminfo(5)).
const MEMINFO: &str = "/proc/meminfo";
/// Memory is short if less than this part of it is available. An idle machine of 256 MiB uses 101 MB
/// (docs/performance.md).
const LEFT_PART: u64 = 8;
/// How often PID 1 looks, ms. A version that takes 100 MiB a second of 512 MiB takes the last eighth within three looks.
const LOOK_EVERY_MS: u64 = 250;

/// What PID 1 saw of the memory during a trial.
#[derive(Debug, Default)]
pub(crate) struct TrialMemory {
    look_at: u64,
    was_short: bool,
}

impl TrialMemory {
    /// Looks at the memory, if it is time to. Returns whether memory was short at any look.
    pub(crate) fn was_short(&mut self, now: u64) -> bool {
        if !self.was_short && now >= self.look_at {
            self.look_at = now + LOOK_EVERY_MS;
            // Without the figures nothing is known.
            self.was_short = fs::read_to_string(MEMINFO).is_ok_and(|file| is_short(&file));
        }
        self.was_short
    }

    /// When to look next, in ms after the kernel's start. `None` once memory was short.
    pub(crate) fn deadline(&self) -> Option<u64> {
        (!self.was_short).then_some(self.look_at)
    }
}

fn is_short(meminfo: &str) -> bool {
    let kib = |name: &str| -> Option<u64> {
        let mut lines = meminfo.lines();
        let value = lines.find_map(|line| line.strip_prefix(name))?;
        value.split_whitespace().next()?.parse().ok()
    };
    let figures = kib("MemTotal:").zip(kib("MemAvailable:"));
    figures.is_some_and(|(total, available)| available < total / LEFT_PART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_short_if_less_than_an_eighth_is_available() {
        let file = |available: u64| {
            format!(
                "MemTotal:         480000 kB\nMemFree:            4000 kB\nMemAvailable:   {available} kB\n"
            )
        };
        assert!(is_short(&file(59_999)));
        assert!(!is_short(&file(60_000)));
        for unknown in [
            "",
            "MemTotal: 480000 kB\n",
            "MemTotal: x kB\nMemAvailable: 1 kB\n",
        ] {
            assert!(!is_short(unknown), "{unknown}");
        }
    }

    #[test]
    fn pid_1_looks_four_times_a_second_until_memory_was_short() {
        let mut memory = TrialMemory::default();
        assert_eq!(memory.deadline(), Some(0));
        memory.was_short(7);
        // The host of the test may be short of memory.
        assert!(memory.was_short || memory.deadline() == Some(257));
        memory.was_short = true;
        assert_eq!(memory.deadline(), None);
        assert!(memory.was_short(1_000));
    }
}
