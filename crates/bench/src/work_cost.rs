//! What a piece of work costs: seconds by the clock, and of processors.

use std::time::Instant;

use alknet_tasks::failure::Result;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeVal;

use crate::call::measure::failed;

/// What one piece of work cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct WorkCost {
    pub(crate) wall_s: f64,
    /// Of this process and of the programs that it has waited for.
    pub(crate) cpu_s: f64,
}

impl WorkCost {
    /// Does the work, and measures it. Nothing else may run in this process at the same time.
    pub(crate) fn measure<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Self)> {
        let (begun, before) = (Instant::now(), cpu_seconds()?);
        let done = work()?;
        let cost = Self {
            wall_s: begun.elapsed().as_secs_f64(),
            cpu_s: cpu_seconds()? - before,
        };
        Ok((done, cost))
    }

    /// This work and other work after it.
    pub(crate) fn and(self, after: Self) -> Self {
        Self {
            wall_s: self.wall_s + after.wall_s,
            cpu_s: self.cpu_s + after.cpu_s,
        }
    }
}

fn cpu_seconds() -> Result<f64> {
    let read = |who| getrusage(who).map_err(failed("reading the processor time"));
    let own = read(UsageWho::RUSAGE_SELF)?;
    let waited_for = read(UsageWho::RUSAGE_CHILDREN)?;
    Ok(usage_seconds(own) + usage_seconds(waited_for))
}

fn usage_seconds(usage: Usage) -> f64 {
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_processor_time_of_a_program_that_ended_is_counted() {
        let count = "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done";
        let (status, cost) = WorkCost::measure(|| {
            let status = Command::new("sh").args(["-c", count]).status();
            status.map_err(failed("counting"))
        })
        .expect("sh runs");
        assert!(status.success());
        // This process itself only waits.
        assert!(cost.cpu_s > 0.01, "{cost:?}");
    }
}
