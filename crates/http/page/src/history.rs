//! Numbers of the last minutes, for the plots.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::limits::{
    FAILURES_MANY, FAILURES_MANY_PART, FAILURES_WITHIN, LOOKED_LATELY, SAMPLE_EVERY, SAMPLES_MAX,
};

/// What `node/metrics` said at one time, as far as it is drawn.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct MetricsSample {
    pub(crate) calls: f64,
    pub(crate) errors: f64,
    pub(crate) received: f64,
    pub(crate) sent: f64,
    pub(crate) resident: Option<f64>,
    pub(crate) connections: f64,
    /// Calls that took at most so many seconds, ascending; the last bound is infinite.
    pub(crate) seconds: Vec<(f64, f64)>,
}

impl MetricsSample {
    /// Out of `values`, each by its series.
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

/// How much happened between two samples; `None` where nothing can be said.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct MetricsRates {
    /// Time of the second sample, since the first of all.
    pub(crate) at: Duration,
    pub(crate) calls: f64,
    pub(crate) errors: f64,
    pub(crate) received: f64,
    pub(crate) sent: f64,
    pub(crate) resident: Option<f64>,
    /// Half of the calls took at most so many seconds.
    pub(crate) median: Option<f64>,
    /// And 99 of 100.
    pub(crate) slowest: Option<f64>,
}

/// What happened between two samples. `began` is the time of the first of all.
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
    // What counts from the start counts from zero after another one.
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

/// The time within which this part of the calls between two histograms ended, as if the calls of one
/// bucket were spread evenly over it.
fn quantile(before: &[(f64, f64)], after: &[(f64, f64)], part: f64) -> Option<f64> {
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
            // The last bucket has no end: its beginning is what is known.
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

/// Calls of the last [`FAILURES_WITHIN`], and how many of them ended with an error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RecentCalls {
    pub(crate) calls: f64,
    pub(crate) failed: f64,
    /// The time that was looked at: less than the minute after the page was opened.
    pub(crate) span: Duration,
}

impl RecentCalls {
    /// Whether so many failed that the page says so in another colour.
    pub(crate) fn has_many_failures(&self) -> bool {
        self.failed >= FAILURES_MANY && self.failed >= self.calls * FAILURES_MANY_PART
    }
}

/// The samples.
#[derive(Debug, Default)]
pub(crate) struct MetricsHistory(Mutex<MetricsHistoryState>);

#[derive(Debug, Default)]
struct MetricsHistoryState {
    samples: VecDeque<(Instant, MetricsSample)>,
    looked: Option<Instant>,
    /// A task takes samples.
    followed: bool,
}

impl MetricsHistory {
    /// Takes numbers down, unless some were a moment ago.
    pub(crate) fn add(&self, now: Instant, numbers: MetricsSample) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = kept.samples.back().map(|(at, _)| *at);
        let soon = |last: Instant| now.saturating_duration_since(last) < SAMPLE_EVERY / 2;
        if last.is_some_and(soon) {
            return;
        }
        // After a long gap between samples a plot begins afresh: a line across it would be wrong.
        let torn = |last: Instant| now.saturating_duration_since(last) > gap();
        if last.is_some_and(torn) {
            kept.samples.clear();
        }
        if kept.samples.len() >= SAMPLES_MAX {
            kept.samples.pop_front();
        }
        kept.samples.push_back((now, numbers));
    }

    /// Notes that a viewer looks. Returns whether the caller has to start the task that takes
    /// samples.
    pub(crate) fn look(&self, now: Instant) -> bool {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.looked = Some(now);
        !std::mem::replace(&mut kept.followed, true)
    }

    /// Whether samples are still wanted; if not, the task that takes them stops.
    pub(crate) fn wanted(&self, now: Instant) -> bool {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = |at: Instant| now.saturating_duration_since(at) < LOOKED_LATELY;
        kept.followed = kept.looked.is_some_and(lately);
        kept.followed
    }

    /// Notes that the task that took samples has stopped.
    pub(crate) fn stop(&self) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.followed = false;
    }

    /// What happened between each two samples, oldest first, and over how long.
    pub(crate) fn rates(&self) -> (Vec<MetricsRates>, Duration) {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let samples = &kept.samples;
        let (Some(first), Some(last)) = (samples.front(), samples.back()) else {
            return (Vec::new(), Duration::ZERO);
        };
        let pairs = samples.iter().zip(samples.iter().skip(1));
        let rates = pairs.filter_map(|(before, after)| rates(first.0, before, after));
        (rates.collect(), last.0.saturating_duration_since(first.0))
    }

    /// What the samples of the last [`FAILURES_WITHIN`] say about calls; `None` before there are two of them.
    pub(crate) fn recent_calls(&self) -> Option<RecentCalls> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, last) = kept.samples.back()?;
        let age = |at: Instant| now.saturating_duration_since(at);
        let (began, first) = kept
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

/// The longest time between two samples that one line connects.
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
        assert!(history.look(end) && !history.look(end));
        assert!(history.wanted(end) && !history.wanted(end + LOOKED_LATELY));
        assert!(
            history.look(end + LOOKED_LATELY),
            "no client takes them any more"
        );
    }
}
