//! Calls at a fixed rate. The time of a call begins when it was due, so that it includes the wait for what came before.
//!
//! A client that waits for each answer before its next call would make a pause of the node one slow call, and so hide it
//! from the p99 of a series.

use std::time::Duration;

use alknet_call::CallConnection;
use alknet_tasks::failure::Result;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::{Instant, interval};

use crate::call::measure::{failed, quantile};
use crate::rows::median;

/// Time from one call to the next one. The calls alone take a small part of the guest's processor.
const INTERVAL: Duration = Duration::from_millis(50);

/// Most calls under way: the node refuses more than 256. Calls that are due meanwhile begin later, and their time has
/// begun.
const UNDER_WAY_MAX: usize = 200;

const MIB: f64 = (1 << 20) as f64;

/// Calls of an operation that tells the machine's memory.
#[derive(Clone, Debug, Default)]
pub(super) struct CallSeries {
    took: Vec<Duration>,
    /// Memory in use at each call, in MiB: all of the machine, without what the kernel could reclaim.
    in_use_mib: Vec<f64>,
}

impl CallSeries {
    /// Calls as long as `goes_on` says so, and waits for the answers.
    pub(super) async fn record(
        connection: &CallConnection,
        mut goes_on: impl FnMut() -> Result<bool>,
    ) -> Result<Self> {
        let mut series = Self::default();
        let mut under_way: FuturesUnordered<LocalBoxFuture<'_, Result<(Duration, f64)>>> =
            FuturesUnordered::new();
        let mut ticks = interval(INTERVAL);
        loop {
            tokio::select! {
                Some(answer) = under_way.next() => series.add(answer?),
                due = ticks.tick(), if under_way.len() < UNDER_WAY_MAX => {
                    if !goes_on()? {
                        break;
                    }
                    under_way.push(call(connection, due).boxed_local());
                }
            }
        }
        while let Some(answer) = under_way.next().await {
            series.add(answer?);
        }
        Ok(series)
    }

    fn add(&mut self, (took, in_use_mib): (Duration, f64)) {
        self.took.push(took);
        self.in_use_mib.push(in_use_mib);
    }

    /// The most memory in use, without what the calm machine uses.
    pub(super) fn more_mib(&self, calm: &Self) -> f64 {
        let most = self.in_use_mib.iter().copied().fold(f64::NAN, f64::max);
        most - median(calm.in_use_mib.clone())
    }
}

/// One call that was due then: how long it took, and the memory in use.
async fn call(connection: &CallConnection, due: Instant) -> Result<(Duration, f64)> {
    let info = connection.call_typed("node/info", &json!({})).await;
    let info: Value = info.map_err(failed("calling the node"))?;
    Ok((due.elapsed(), in_use_mib(&info)?))
}

/// From the answer of `node/info`.
fn in_use_mib(info: &Value) -> Result<f64> {
    let bytes = |name: &str| info["memory"][name].as_f64();
    let of = bytes("total_bytes").zip(bytes("available_bytes"));
    let lacking = || failed("reading node/info")(format!("no memory: {info}"));
    of.map(|(total, available)| (total - available) / MIB)
        .ok_or_else(lacking)
}

/// The time in milliseconds that so many percent of the calls of all series together do not exceed.
pub(super) fn quantile_ms<'a>(
    all: impl IntoIterator<Item = &'a CallSeries>,
    percent: usize,
) -> f64 {
    let all = all.into_iter().flat_map(|series| &series.took);
    let mut took: Vec<_> = all.copied().collect();
    took.sort_unstable();
    quantile(&took, percent) / 1e3
}

#[cfg(test)]
impl CallSeries {
    /// Calls that took so many milliseconds and saw so many MiB in use.
    pub(super) fn from_parts(took_ms: &[u64], in_use_mib: &[f64]) -> Self {
        Self {
            took: took_ms.iter().copied().map(Duration::from_millis).collect(),
            in_use_mib: in_use_mib.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_memory_of_a_series_is_compared_with_the_calm_middle() {
        let series = |in_use_mib| CallSeries::from_parts(&[], in_use_mib);
        let calm = series(&[100.0, 101.0, 180.0]);
        assert_eq!(series(&[100.0, 121.0, 105.0]).more_mib(&calm), 20.0);
        assert!(series(&[]).more_mib(&calm).is_nan(), "nothing was seen");
    }

    #[test]
    fn memory_is_read_from_the_answer() {
        let answer = json!({ "memory": { "total_bytes": 3 << 20, "available_bytes": 1 << 20 } });
        assert_eq!(in_use_mib(&answer).expect("as node/info answers"), 2.0);
        assert!(in_use_mib(&json!({})).is_err());
    }

    /// The middle of the p99 of rounds would leave out a round with a pause.
    #[test]
    fn a_quantile_is_of_all_calls_of_all_series() {
        let quick = CallSeries::from_parts(&[1; 98], &[]);
        let slow = CallSeries::from_parts(&[50, 70], &[]);
        assert_eq!(quantile_ms([&slow, &quick], 50).round(), 1.0);
        assert_eq!(quantile_ms([&slow, &quick], 98).round(), 50.0);
        assert_eq!(quantile_ms([&slow, &quick], 99).round(), 70.0);
        assert!(quantile_ms([], 99).is_nan());
    }
}
