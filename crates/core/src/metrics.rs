//! Counters and histograms, and their Prometheus text format (version 0.0.4).
//!
//! A part counts with one relaxed atomic addition and takes no lock. The reader collects the numbers of all parts
//! into a [`Metrics`] and shows them as text or as values. The labels of every series are known when the program is
//! built or configured: counting looks no label up, and no label holds what a peer sent or who it is.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The media type of [`Metrics::to_text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Name and help of the metric in which every part that authenticates peers counts the results, by `method` and
/// `result`.
pub const AUTH: (&str, &str) = (
    "alknet_auth_total",
    "Proofs of identity by method, and what they came to.",
);

/// Name and help of the metric in which every part counts how often one of its limits held, by `limit`.
pub const LIMIT_HITS: (&str, &str) = (
    "alknet_limit_hits_total",
    "What was refused, delayed or ended because of a limit.",
);

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The number so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Durations, counted by length.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than `bounds`: the last counts what is longer than all of them.
    buckets: Box<[Counter]>,
    nanos: Counter,
}

impl Histogram {
    /// A histogram with these upper bounds in seconds, ascending.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            buckets: (0..=bounds.len()).map(|_| Counter::default()).collect(),
            nanos: Counter::default(),
        }
    }

    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        // A bound belongs to its bucket, as `le` of the text format says.
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].add(1);
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.add(nanos);
    }
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

impl MetricKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Label names and values of one series.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// All numbers at one moment.
///
/// ```
/// use alknet_core::Metrics;
///
/// let mut metrics = Metrics::default();
/// metrics.counter("requests_total", "Requests.", &[("result", "ok")], 3);
/// assert_eq!(metrics.values()["requests_total{result=\"ok\"}"], 3.0);
/// assert!(metrics.to_text().starts_with("# HELP requests_total Requests.\n"));
/// ```
#[derive(Debug, Default)]
pub struct Metrics {
    families: Vec<MetricFamily>,
}

#[derive(Debug)]
struct MetricFamily {
    name: &'static str,
    help: &'static str,
    kind: MetricKind,
    /// Each value with the text before it: name, suffix and labels.
    series: Vec<(String, f64)>,
}

impl Metrics {
    /// Adds the series of a counter. Several parts may add to one name.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        value: u64,
    ) {
        // The number is exact up to 2^53, which is also what readers of the format keep.
        self.add(name, help, MetricKind::Counter, labels, value as f64);
    }

    /// Adds the series of a gauge, whose number goes up and down.
    pub fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        value: f64,
    ) {
        self.add(name, help, MetricKind::Gauge, labels, value);
    }

    /// Adds the series of a histogram.
    pub fn histogram(&mut self, name: &'static str, help: &'static str, from: &Histogram) {
        let family = self.family(name, help, MetricKind::Histogram);
        let mut total = 0;
        for (at, bucket) in from.buckets.iter().enumerate() {
            // Each bucket of the text format counts those before it as well.
            total += bucket.get();
            let bound = from.bounds.get(at).map(ToString::to_string);
            let bound = bound.as_deref().unwrap_or("+Inf");
            let series = series(&format!("{name}_bucket"), &[("le", bound)]);
            family.series.push((series, total as f64));
        }
        let seconds = Duration::from_nanos(from.nanos.get()).as_secs_f64();
        family.series.push((format!("{name}_sum"), seconds));
        family.series.push((format!("{name}_count"), total as f64));
    }

    fn add(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: MetricKind,
        labels: Labels<'_>,
        value: f64,
    ) {
        let family = self.family(name, help, kind);
        family.series.push((series(name, labels), value));
    }

    fn family(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: MetricKind,
    ) -> &mut MetricFamily {
        let known = self.families.iter().position(|family| family.name == name);
        let at = known.unwrap_or_else(|| {
            self.families.push(MetricFamily {
                name,
                help,
                kind,
                series: Vec::new(),
            });
            self.families.len() - 1
        });
        &mut self.families[at]
    }

    /// The Prometheus text format; see [`CONTENT_TYPE`].
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for family in &self.families {
            let MetricFamily { name, help, .. } = family;
            let kind = family.kind.name();
            // A write to a `String` cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (series, value) in &family.series {
                let _ = writeln!(text, "{series} {value}");
            }
        }
        text
    }

    /// Each value by its series in the text format: `alknet_auth_total{method="key",result="ok"}`.
    #[must_use]
    pub fn values(&self) -> BTreeMap<&str, f64> {
        let all = self.families.iter().flat_map(|family| &family.series);
        all.map(|(series, value)| (series.as_str(), *value))
            .collect()
    }
}

fn series(name: &str, labels: Labels<'_>) -> String {
    let mut text = name.to_owned();
    for (at, (label, value)) in labels.iter().enumerate() {
        text.push(if at == 0 { '{' } else { ',' });
        text.push_str(label);
        text.push_str("=\"");
        for c in value.chars() {
            // The text format escapes these characters in the value of a label.
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                other => text.push(other),
            }
        }
        text.push('"');
    }
    if !labels.is_empty() {
        text.push('}');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut metrics = Metrics::default();
        metrics.counter("a_total", "How many.", &[("kind", "x")], 3);
        metrics.gauge("b", "How much.", &[], 0.5);
        // Another part adds to the first.
        metrics.counter("a_total", "How many.", &[("kind", "q\"\\\n")], 4);
        let text = "# HELP a_total How many.\n# TYPE a_total counter\n\
                    a_total{kind=\"x\"} 3\na_total{kind=\"q\\\"\\\\\\n\"} 4\n\
                    # HELP b How much.\n# TYPE b gauge\nb 0.5\n";
        assert_eq!(metrics.to_text(), text);
        let values = metrics.values();
        assert_eq!(values["a_total{kind=\"x\"}"], 3.0);
        assert_eq!(values.len(), 3);
    }

    #[test]
    fn durations_fall_into_buckets_that_add_up() {
        let histogram = Histogram::new(&[0.1, 1.0]);
        for millis in [50, 100, 500, 2000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut metrics = Metrics::default();
        metrics.histogram("h", "Times.", &histogram);
        let values = metrics.values();
        assert_eq!(values["h_bucket{le=\"0.1\"}"], 2.0);
        assert_eq!(values["h_bucket{le=\"1\"}"], 3.0);
        assert_eq!(values["h_bucket{le=\"+Inf\"}"], 4.0);
        assert_eq!((values["h_sum"], values["h_count"]), (2.65, 4.0));
    }

    #[test]
    fn counting_on_many_threads_loses_nothing() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| counter.add(2)));
            }
        });
        assert_eq!(counter.get(), 80_000);
    }
}
