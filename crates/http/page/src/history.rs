//! Metrics of the last minutes, for the plots.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::limits::{
    FAILURES_MANY, FAILURES_MANY_PART, FAILURES_WITHIN, LOOKED_LATELY, SAMPLE_EVERY, SAMPLES_MAX,
};

/// The part of the output of `node/metrics` at one time that the page draws.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct MetricsSample {
    pub(crate) calls: f64,
    pub(crate) errors: f64,
    pub(crate) received: f64,
    pub(crate) sent: f64,
    pub(crate) resident: Option<f64>,
    pub(crate) connections: f64,
    /// The number of calls that took at most this many seconds, in ascending order. The last bound is infinite.
    pub(crate) seconds: Vec<(f64, f64)>,
}

impl MetricsSample {
    /// Reads the metrics from the output's member `values`, by the name of each series.
    pub(crate) fn from_metrics(answer: &Value) -> Self {
        let mut numbers = Self::default();
        let values = answer["values"].as_object().into_iter().flatten();
        for (series, value) in values {
            let Some(value) = value.as_f64() else {
                continue;
            };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            match name {
                "alknet_call_requests_total" => numbers.calls += value,
                "alknet_call_errors_total" => numbers.errors += value,
                "alknet_bytes_total" if labels.contains("dir=\"rx\"") => numbers.received += value,
                "alknet_bytes_total" => numbers.sent += value,
                "alknet_connections" => numbers.connections += value,
                "alknet_resident_bytes" => numbers.resident = Some(value),
                "alknet_call_seconds_bucket" => {
                    let bound = labels
                        .strip_prefix("le=\"")
                        .and_then(|rest| rest.split('"').next());
                    let bound = bound.map(|text| text.parse().unwrap_or(f64::INFINITY));
                    numbers.seconds.extend(bound.map(|bound| (bound, value)));
                }
                _ => {}
            }
        }
        numbers
            .seconds
            .sort_by(|one, other| one.0.total_cmp(&other.0));
        numbers
    }
}

/// The rates between two samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct MetricsRates {
    /// The time of the second sample, relative to the first sample of all.
    pub(crate) at: Duration,
    pub(crate) calls: f64,
    pub(crate) errors: f64,
    pub(crate) received: f64,
    pub(crate) sent: f64,
    pub(crate) resident: Option<f64>,
    /// The seconds within which half of the calls ended.
    pub(crate) median: Option<f64>,
    /// The seconds within which 99 of 100 calls ended.
    pub(crate) slowest: Option<f64>,
}

/// The rates between two samples; `None` if both have the same time. `began` is the time of the first sample of all.
fn rates(
    began: Instant,
    before: &(Instant, MetricsSample),
    after: &(Instant, MetricsSample),
) -> Option<MetricsRates> {
    let seconds = after.0.saturating_duration_since(before.0).as_secs_f64();
    if seconds <= 0.0 {
        return None;
    }
    let at = after.0.saturating_duration_since(began);
    let (before, after) = (&before.1, &after.1);
    // A counter restarts at zero when the node restarts.
    let rate = |before: f64, after: f64| (after - before).max(0.0) / seconds;
    let quantile = |of: f64| quantile(&before.seconds, &after.seconds, of);
    Some(MetricsRates {
        at,
        calls: rate(before.calls, after.calls),
        errors: rate(before.errors, after.errors),
        received: rate(before.received, after.received),
        sent: rate(before.sent, after.sent),
        resident: after.resident,
        median: quantile(0.5),
        slowest: quantile(0.99),
    })
}

/// The time within which this part of the calls between two histograms ended, if the calls of a bucket are spread
/// evenly over it.
fn quantile(before: &[(f64, f64)], after: &[(f64, f64)], part: f64) -> Option<f64> {
    // Histograms with different buckets cannot be subtracted, so the newer one counts alone.
    let same = before.len() == after.len();
    let since = |n: usize| after[n].1 - if same { before[n].1 } else { 0.0 };
    let total = since(after.len().checked_sub(1)?);
    if total <= 0.0 {
        return None;
    }
    let wanted = total * part;
    let (mut lower, mut below) = (0.0, 0.0);
    for (n, (bound, _)) in after.iter().enumerate() {
        let reached = since(n);
        if reached >= wanted {
            let inside = reached - below;
            let share = if inside > 0.0 {
                (wanted - below) / inside
            } else {
                1.0
            };
            // The last bucket has no upper bound, so only its beginning is known.
            let known = bound.is_finite();
            return Some(if known {
                lower + (bound - lower) * share
            } else {
                lower
            });
        }
        (lower, below) = (*bound, reached);
    }
    None
}

/// The calls of the last [`FAILURES_WITHIN`], and how many of them failed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RecentCalls {
    pub(crate) calls: f64,
    pub(crate) failed: f64,
    /// The time that the samples cover: less than [`FAILURES_WITHIN`] shortly after the page was opened.
    pub(crate) span: Duration,
}

impl RecentCalls {
    /// Whether so many calls failed that the page shows it in another colour.
    pub(crate) fn has_many_failures(&self) -> bool {
        self.failed >= FAILURES_MANY && self.failed >= self.calls * FAILURES_MANY_PART
    }
}

/// The samples for the plots.
#[derive(Debug, Default)]
pub(crate) struct MetricsHistory(Mutex<MetricsHistoryState>);

#[derive(Debug, Default)]
struct MetricsHistoryState {
    samples: VecDeque<(Instant, MetricsSample)>,
    last_view: Option<Instant>,
    /// Whether a task takes samples.
    has_sampler: bool,
}

impl MetricsHistory {
    /// Records a sample, unless the last one is very recent.
    pub(crate) fn add(&self, now: Instant, numbers: MetricsSample) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = state.samples.back().map(|(at, _)| *at);
        let is_recent = |last: Instant| now.saturating_duration_since(last) < SAMPLE_EVERY / 2;
        if last.is_some_and(is_recent) {
            return;
        }
        // After a long gap a plot starts again: a line across the gap would be wrong.
        let has_gap = |last: Instant| now.saturating_duration_since(last) > gap();
        if last.is_some_and(has_gap) {
            state.samples.clear();
        }
        if state.samples.len() >= SAMPLES_MAX {
            state.samples.pop_front();
        }
        state.samples.push_back((now, numbers));
    }

    /// Records that a viewer reads the page. Returns whether the caller must start the task that takes samples.
    pub(crate) fn record_view(&self, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.last_view = Some(now);
        !std::mem::replace(&mut state.has_sampler, true)
    }

    /// Whether samples are still needed; if not, the task that takes them stops.
    pub(crate) fn wanted(&self, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = |at: Instant| now.saturating_duration_since(at) < LOOKED_LATELY;
        state.has_sampler = state.last_view.is_some_and(lately);
        state.has_sampler
    }

    /// Records that the task that takes samples has stopped.
    pub(crate) fn stop(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.has_sampler = false;
    }

    /// The rates between each two samples, the oldest first, and the time that they cover.
    pub(crate) fn rates(&self) -> (Vec<MetricsRates>, Duration) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let samples = &state.samples;
        let (Some(first), Some(last)) = (samples.front(), samples.back()) else {
            return (Vec::new(), Duration::ZERO);
        };
        let pairs = samples.iter().zip(samples.iter().skip(1));
        let rates = pairs.filter_map(|(before, after)| rates(first.0, before, after));
        (rates.collect(), last.0.saturating_duration_since(first.0))
    }

    /// The calls in the samples of the last [`FAILURES_WITHIN`]; `None` before there are two samples.
    pub(crate) fn recent_calls(&self) -> Option<RecentCalls> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, last) = state.samples.back()?;
        let age = |at: Instant| now.saturating_duration_since(at);
        let (began, first) = state
            .samples
            .iter()
            .find(|(at, _)| age(*at) <= FAILURES_WITHIN)?;
        let span = age(*began);
        (span > Duration::ZERO).then(|| RecentCalls {
            calls: (last.calls - first.calls).max(0.0),
            failed: (last.errors - first.errors).max(0.0),
            span,
        })
    }
}

/// The longest time between two samples that a line connects.
fn gap() -> Duration {
    SAMPLE_EVERY * 12
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn calls(calls: f64) -> MetricsSample {
        MetricsSample {
            calls,
            ..MetricsSample::default()
        }
    }

    #[test]
    fn series_add_up() {
        let numbers = MetricsSample::from_metrics(&json!({ "values": {
            "alknet_call_requests_total": 7, "alknet_call_errors_total": 1,
            "alknet_bytes_total{dir=\"rx\",alpn=\"a\"}": 3,
            "alknet_bytes_total{dir=\"rx\",alpn=\"b\"}": 4,
            "alknet_bytes_total{dir=\"tx\",alpn=\"a\"}": 5,
            "alknet_call_seconds_bucket{le=\"+Inf\"}": 6,
            "alknet_call_seconds_bucket{le=\"0.5\"}": 2,
            "alknet_call_seconds_bucket{le=\"10\"}": 4,
            "other": "nonsense",
        } }));
        assert_eq!(
            (numbers.received, numbers.sent, numbers.resident),
            (7.0, 5.0, None)
        );
        let bounds = [(0.5, 2.0), (10.0, 4.0), (f64::INFINITY, 6.0)];
        assert_eq!(numbers.seconds, bounds);
        assert_eq!(
            MetricsSample::from_metrics(&Value::Null),
            MetricsSample::default()
        );
    }

    #[test]
    fn rates_are_per_second_and_never_negative() {
        let (history, start) = (MetricsHistory::default(), Instant::now());
        for (n, count) in [0.0, 50.0, 10.0].into_iter().enumerate() {
            history.add(start + SAMPLE_EVERY * n as u32, calls(count));
        }
        let (rates, span) = history.rates();
        let per_second: Vec<_> = rates.iter().map(|it| it.calls).collect();
        assert_eq!(per_second, [50.0 / SAMPLE_EVERY.as_secs_f64(), 0.0]);
        assert_eq!((span, rates[0].median), (SAMPLE_EVERY * 2, None));
        assert_eq!(rates[1].at, span);
    }

    #[test]
    fn failures_are_many_by_their_number_and_their_part_of_the_last_minute() {
        let recent = |calls: f64, failed: f64| {
            let (history, start) = (MetricsHistory::default(), Instant::now());
            // What happened more than a minute ago does not count.
            let steps = [
                (0.0, 0.0),
                (1000.0, 1000.0),
                (1000.0 + calls, 1000.0 + failed),
            ];
            for (n, (calls, errors)) in steps.into_iter().enumerate() {
                let sample = MetricsSample {
                    calls,
                    errors,
                    ..MetricsSample::default()
                };
                history.add(start + FAILURES_WITHIN * n as u32, sample);
            }
            history.recent_calls().expect("two samples")
        };
        let expected = RecentCalls {
            calls: 100.0,
            failed: 5.0,
            span: FAILURES_WITHIN,
        };
        assert_eq!(recent(100.0, 5.0), expected);
        assert!(recent(100.0, 5.0).has_many_failures());
        assert!(!recent(101.0, 5.0).has_many_failures(), "a small part");
        assert!(!recent(4.0, 4.0).has_many_failures(), "a single client's");
        assert!(!recent(0.0, 0.0).has_many_failures());
        let history = MetricsHistory::default();
        assert_eq!(history.recent_calls(), None);
        history.add(Instant::now(), calls(3.0));
        assert_eq!(history.recent_calls(), None);
    }

    #[test]
    fn quantiles_are_of_what_happened_since() {
        let before = [(0.1, 10.0), (1.0, 10.0), (f64::INFINITY, 10.0)];
        let after = [(0.1, 20.0), (1.0, 20.0), (f64::INFINITY, 20.0)];
        let near = |found: Option<f64>, wanted: f64| {
            assert!(
                found.is_some_and(|it| (it - wanted).abs() < 1e-9),
                "{found:?}"
            );
        };
        near(quantile(&before, &after, 0.5), 0.05);
        let slow = [(0.1, 10.0), (1.0, 10.0), (f64::INFINITY, 11.0)];
        near(quantile(&before, &slow, 0.99), 1.0);
        assert_eq!(quantile(&before, &before, 0.5), None);
        assert_eq!(quantile(&[], &[], 0.5), None);
        near(quantile(&[], &after, 0.5), 0.05);
    }

    #[test]
    fn samples_are_bounded_and_taken_only_while_a_page_is_open() {
        let (history, start) = (MetricsHistory::default(), Instant::now());
        for n in 0..SAMPLES_MAX + 20 {
            history.add(start + SAMPLE_EVERY * n as u32, calls(n as f64));
            history.add(start + SAMPLE_EVERY * n as u32, calls(0.0));
        }
        assert_eq!(history.rates().0.len(), SAMPLES_MAX - 1);
        let end = start + SAMPLE_EVERY * (SAMPLES_MAX as u32 + 40);
        history.add(end, calls(0.0));
        assert!(
            history.rates().0.is_empty(),
            "after a long pause a new line begins"
        );
        assert!(history.record_view(end) && !history.record_view(end));
        assert!(history.wanted(end) && !history.wanted(end + LOOKED_LATELY));
        assert!(
            history.record_view(end + LOOKED_LATELY),
            "no client takes them any more"
        );
    }
}
