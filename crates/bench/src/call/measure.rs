//! Loads something for a while, and says how much of it was done, how quickly, and at what cost.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::super::rows::median;
use alknet_tasks::failure::{Result, TaskError};

const MEGA: f64 = 1e6;

/// How long each case is loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadPlan {
    /// Before anything counts.
    pub(crate) warm_up: Duration,
    /// While everything counts.
    pub(crate) window: Duration,
}

/// What one case did in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadSample {
    /// Units of work done in a second.
    pub(crate) per_second: f64,
    /// Processor seconds, of both sides together, for a million units.
    pub(crate) cpu_s_per_million: f64,
    /// Half of the steps took no longer, in microseconds.
    pub(crate) p50_us: f64,
    /// Of a hundred steps, one took longer.
    pub(crate) p99_us: f64,
}

impl LoadSample {
    /// The middle of several rounds, figure by figure.
    pub(crate) fn median(samples: &[Self]) -> Self {
        let of = |what: fn(&Self) -> f64| median(samples.iter().map(what).collect());
        Self {
            per_second: of(|sample| sample.per_second),
            cpu_s_per_million: of(|sample| sample.cpu_s_per_million),
            p50_us: of(|sample| sample.p50_us),
            p99_us: of(|sample| sample.p99_us),
        }
    }
}

/// Runs `step` over and over, once at a time for each worker, and measures the steps that begin
/// and end within the window. A step gives its worker back, with the units it did.
pub(crate) async fn load<W, F, Fut>(plan: LoadPlan, workers: Vec<W>, step: F) -> Result<LoadSample>
where
    W: Send + 'static,
    F: Fn(W) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<(W, u64)>> + Send + 'static,
{
    let begin = Instant::now() + plan.warm_up;
    let end = begin + plan.window;
    let mut running = JoinSet::new();
    for worker in workers {
        running.spawn(work(begin, end, worker, step.clone()));
    }
    sleep_until(begin).await;
    // It is the whole process's: read at the edges of the window, without the warm-up.
    let before = cpu_seconds()?;
    sleep_until(end).await;
    let cpu = cpu_seconds()? - before;
    let mut units = 0;
    let mut took = Vec::new();
    while let Some(done) = running.join_next().await {
        let (did, times) = done.map_err(failed("measuring"))??;
        units += did;
        took.extend(times);
    }
    if units == 0 {
        return Err(failed("measuring")("nothing was done in the whole time"));
    }
    took.sort_unstable();
    Ok(LoadSample {
        per_second: units as f64 / plan.window.as_secs_f64(),
        cpu_s_per_million: cpu / units as f64 * MEGA,
        p50_us: quantile(&took, 50),
        p99_us: quantile(&took, 99),
    })
}

async fn work<W, F, Fut>(
    begin: Instant,
    end: Instant,
    mut worker: W,
    step: F,
) -> Result<(u64, Vec<Duration>)>
where
    F: Fn(W) -> Fut,
    Fut: Future<Output = Result<(W, u64)>>,
{
    let (mut units, mut took) = (0, Vec::new());
    let mut started = Instant::now();
    while started < end {
        let (back, did) = step(worker).await?;
        worker = back;
        let now = Instant::now();
        // A step across an edge was partly done outside.
        if started >= begin && now <= end {
            units += did;
            took.push(now - started);
        }
        started = now;
    }
    Ok((units, took))
}

/// What this process has used of processors, all of its threads, in user mode and in the kernel.
fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).map_err(failed("reading the processor time"))?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(micros as f64 / MEGA)
}

/// The time in microseconds that so many percent of the sorted times do not exceed.
pub(crate) fn quantile(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted
        .get(at)
        .map_or(f64::NAN, |took| took.as_secs_f64() * MEGA)
}

/// For `map_err`: `what` is a noun phrase.
pub(crate) fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> TaskError {
    move |error| TaskError::Step {
        what: what.to_owned(),
        how: error.to_string(),
        log: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_seen() {
        let took: Vec<_> = (1..=200).map(Duration::from_micros).collect();
        assert_eq!(quantile(&took, 50).round(), 101.0);
        assert_eq!(quantile(&took, 99).round(), 199.0);
        assert!(quantile(&[], 50).is_nan());
    }
}
