//! Counters of the port beside its [`Counters`](crate::EndpointCounters), and all of them as metrics.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::metrics::{AUTH, Counter, Histogram, LIMIT_HITS};
use alknet_core::{Carriage, Connection, HandlerRegistry, Metrics, Traffic};
use quinn::ConnectionError;

use crate::admission::AdmissionLimit;
use crate::serve::EndpointShared;

/// Upper bounds of the buckets for the length of a handshake, in seconds. The longest is the time that a handshake
/// may take.
const HANDSHAKE_SECONDS: &[f64] = &[
    0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
];

/// First QUIC code of a TLS alert (RFC 9001 section 4.8).
const QUIC_ALERT_BASE: u64 = 0x100;

/// Number of values that the one byte of a TLS alert has.
const ALERTS: usize = 256;

/// The counters that have labels, and the histogram of handshakes.
#[derive(Debug)]
pub(crate) struct EndpointMeters {
    by_alpn: BTreeMap<&'static [u8], Arc<AlpnMeters>>,
    alerts: Box<[Counter]>,
    limits: [Counter; AdmissionLimit::ALL.len()],
    handshakes: Histogram,
    pub(crate) keys_ok: Counter,
    pub(crate) keys_unknown: Counter,
}

/// The counters of one protocol.
#[derive(Debug)]
pub(crate) struct AlpnMeters {
    name: String,
    /// The traffic of connections that ended.
    ended: Traffic,
    pub(crate) panics: Counter,
}

/// One connection that the node serves.
pub(crate) struct OpenConnection<'a> {
    pub(crate) connection: &'a Connection,
    /// Whether the node knows its peer.
    pub(crate) known: bool,
}

impl EndpointMeters {
    pub(crate) fn new(registry: &HandlerRegistry) -> Self {
        // The table is built once, so that counting takes no lock. A connection of an unknown ALPN gets no handler
        // and no row.
        let meters = registry.specs().map(|spec| {
            let meters = AlpnMeters {
                name: spec.name(),
                ended: Traffic::default(),
                panics: Counter::default(),
            };
            (spec.id, Arc::new(meters))
        });
        Self {
            by_alpn: meters.collect(),
            alerts: (0..ALERTS).map(|_| Counter::default()).collect(),
            limits: Default::default(),
            handshakes: Histogram::new(HANDSHAKE_SECONDS),
            keys_ok: Counter::default(),
            keys_unknown: Counter::default(),
        }
    }

    /// The counters of a protocol that has a handler.
    pub(crate) fn for_alpn(&self, alpn: &'static [u8]) -> Arc<AlpnMeters> {
        // The table has a row for each registered protocol, and `alpn` comes from the registry.
        Arc::clone(&self.by_alpn[alpn])
    }

    pub(crate) fn hit(&self, limit: AdmissionLimit) {
        self.limits[limit as usize].add(1);
    }

    pub(crate) fn handshake(&self, took: Duration) {
        self.handshakes.observe(took);
    }

    /// Counts a handshake if it ended with an alert. Returns whether it did.
    pub(crate) fn alert(&self, error: &io::Error) -> bool {
        let alert = alert_of(error);
        if let Some(alert) = alert {
            self.alerts[usize::from(alert)].add(1);
        }
        alert.is_some()
    }

    /// Number of handshakes that ended with an alert.
    pub(crate) fn alerts(&self) -> u64 {
        self.alerts.iter().map(Counter::get).sum()
    }
}

impl AlpnMeters {
    /// Adds the traffic of a connection that ended.
    pub(crate) fn add_ended(&self, traffic: &Traffic) {
        self.ended.rx.add(traffic.rx.get());
        self.ended.tx.add(traffic.tx.get());
        self.ended.streams.add(traffic.streams.get());
    }
}

/// The error of a handshake that a limit refused. That limit has counted it.
#[derive(Debug, thiserror::Error)]
#[error("too many handshakes from this network")]
pub(crate) struct HandshakeRefusal;

/// The TLS alert that a handshake ended with, sent by either side.
fn alert_of(error: &io::Error) -> Option<u8> {
    let inner = error.get_ref()?;
    // The node refused the name before rustls saw the rest, with the alert of RFC 6066 section 3.
    if inner.is::<alknet_tls::UnknownName>() {
        return Some(alknet_tls::ALERT_UNRECOGNIZED_NAME);
    }
    match inner.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::AlertReceived(alert)) => return Some((*alert).into()),
        // The node sent this alert and did not receive it, so the error has no alert code (RFC 7301 section 3.2 has
        // it).
        Some(rustls::Error::NoApplicationProtocol) => {
            return Some(rustls::AlertDescription::NoApplicationProtocol.into());
        }
        _ => {}
    }
    let code = match inner.downcast_ref() {
        Some(ConnectionError::TransportError(error)) => u64::from(error.code),
        Some(ConnectionError::ConnectionClosed(close)) => u64::from(close.error_code),
        Some(_) => return None,
        None => iroh_code(inner.downcast_ref()?)?,
    };
    // Codes below the base are errors of QUIC itself, and no alerts.
    u8::try_from(code.checked_sub(QUIC_ALERT_BASE)?).ok()
}

/// The error code of a connection of iroh's QUIC library, which has types of its own.
fn iroh_code(error: &iroh::endpoint::ConnectionError) -> Option<u64> {
    use iroh::endpoint::ConnectionError;
    match error {
        ConnectionError::TransportError(error) => Some(u64::from(error.code)),
        ConnectionError::ConnectionClosed(close) => Some(u64::from(close.error_code)),
        _ => None,
    }
}

/// Adds all metrics of the port.
pub(crate) fn collect(shared: &EndpointShared, into: &mut Metrics) {
    connections(shared, into);
    handshakes(shared, into);
    let meters = &shared.meters;
    let keys = [("ok", &meters.keys_ok), ("unknown", &meters.keys_unknown)];
    for (result, counter) in keys {
        let labels = [("method", "key"), ("result", result)];
        into.counter(AUTH.0, AUTH.1, &labels, counter.get());
    }
    for ((_, limit), counter) in AdmissionLimit::ALL.iter().zip(&meters.limits) {
        into.counter(
            LIMIT_HITS.0,
            LIMIT_HITS.1,
            &[("limit", limit)],
            counter.get(),
        );
    }
    for alpn in meters.by_alpn.values() {
        into.counter(
            "alknet_handler_panics_total",
            "Handlers that panicked, each ending its one connection.",
            &[("alpn", &alpn.name)],
            alpn.panics.get(),
        );
    }
    let totals = shared.totals.snapshot();
    let plain = [
        (
            "alknet_auth_failures_total",
            "Keys and tokens that stood for no peer where one was required.",
            totals.auth_failures,
        ),
        (
            "alknet_no_handler_total",
            "Connections refused for lack of a handler.",
            totals.no_handler,
        ),
        (
            "alknet_policy_refusals_total",
            "Connections refused because the protocol wants a known key.",
            totals.policy_refusals,
        ),
        (
            "alknet_revoked_total",
            "Connections ended because their peer was removed or disabled.",
            totals.revoked,
        ),
        (
            "alknet_superseded_total",
            "Connections that gave way to a newer one of the same peer.",
            totals.superseded,
        ),
    ];
    for (name, help, value) in plain {
        into.counter(name, help, &[], value);
    }
}

fn handshakes(shared: &EndpointShared, into: &mut Metrics) {
    let meters = &shared.meters;
    let totals = shared.totals.snapshot();
    let alerts: Vec<_> = meters
        .alerts
        .iter()
        .enumerate()
        .map(|(alert, counter)| (format!("alert_{alert}"), counter.get()))
        // Of 256 alerts few ever happen, and each series costs its collector memory.
        .filter(|(_, n)| *n > 0)
        .collect();
    let own = [
        ("ok", totals.handshakes_ok),
        ("evicted", totals.handshakes_evicted),
        ("failed", shared.totals.failed_otherwise()),
        ("ignored", totals.handshakes_ignored),
        ("refused", totals.handshakes_refused),
        ("retried", totals.handshakes_retried),
        ("timeout", totals.handshakes_timeout),
    ];
    let alerts = alerts.iter().map(|(name, n)| (name.as_str(), *n));
    for (result, n) in own.into_iter().chain(alerts) {
        into.counter(
            "alknet_handshakes_total",
            "TLS handshakes by what became of them.",
            &[("result", result)],
            n,
        );
    }
    into.histogram(
        "alknet_handshake_seconds",
        "How long handshakes took that were finished.",
        &meters.handshakes,
    );
}

/// Number of connections by protocol, carriage and state.
type Counts<'a> = BTreeMap<(&'a str, String, &'static str), u64>;

fn connections(shared: &EndpointShared, into: &mut Metrics) {
    let draining = *shared.stop.borrow();
    let meters = &shared.meters.by_alpn;
    let mut counts = Counts::new();
    for spec in shared.registry.specs() {
        let carriages = [Carriage::Iroh, Carriage::Quic, Carriage::Tcp];
        for carriage in carriages.into_iter().filter(|c| spec.carriage.covers(*c)) {
            // Every series exists from the start, with zero: a series that comes and goes reads as missing.
            for state in ["draining", "known", "unknown"] {
                counts.insert(
                    (meters[spec.id].name.as_str(), carriage.to_string(), state),
                    0,
                );
            }
        }
    }
    let mut sums: BTreeMap<&str, [u64; 3]> = BTreeMap::new();
    shared.live.tally(|open| {
        for alpn in meters.values() {
            sums.insert(&alpn.name, numbers(&alpn.ended));
        }
        for one in open {
            let Some(alpn) = meters.get(one.connection.alpn()) else {
                continue;
            };
            let state = match one {
                _ if draining || one.connection.is_drain_requested() => "draining",
                OpenConnection { known: true, .. } => "known",
                OpenConnection { known: false, .. } => "unknown",
            };
            let carriage = one.connection.carriage().to_string();
            *counts
                .entry((alpn.name.as_str(), carriage, state))
                .or_default() += 1;
            let sum = sums.entry(&alpn.name).or_default();
            let now = numbers(one.connection.traffic());
            sum.iter_mut().zip(now).for_each(|(sum, now)| *sum += now);
        }
    });
    for ((alpn, carriage, state), n) in &counts {
        into.gauge(
            "alknet_connections",
            "Connections being served.",
            &[("alpn", alpn), ("carriage", carriage), ("state", state)],
            *n as f64,
        );
    }
    for (alpn, [rx, tx, streams]) in sums {
        into.counter(
            "alknet_streams_total",
            "Streams opened by either side.",
            &[("alpn", alpn)],
            streams,
        );
        for (dir, n) in [("rx", rx), ("tx", tx)] {
            into.counter(
                "alknet_bytes_total",
                "Bytes of streams, without what TLS, QUIC and TCP add.",
                &[("dir", dir), ("alpn", alpn)],
                n,
            );
        }
    }
}

fn numbers(traffic: &Traffic) -> [u64; 3] {
    [traffic.rx.get(), traffic.tx.get(), traffic.streams.get()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_counted_under_its_own_name() {
        for (at, (limit, _)) in AdmissionLimit::ALL.iter().enumerate() {
            assert_eq!(*limit as usize, at);
        }
    }

    #[test]
    fn alerts_are_found_in_errors_of_every_carriage() {
        let alert = rustls::AlertDescription::UnknownCA;
        let tcp = io::Error::other(rustls::Error::AlertReceived(alert));
        assert_eq!(alert_of(&tcp), Some(48));
        let code = quinn_proto::TransportErrorCode::crypto(120);
        let quic = ConnectionError::TransportError(quinn_proto::TransportError {
            code,
            frame: None,
            reason: String::new(),
        });
        assert_eq!(alert_of(&io::Error::other(quic)), Some(120));
        let code = iroh::endpoint::TransportErrorCode::crypto(120);
        let iroh = iroh::endpoint::TransportError::new(code, String::new());
        let iroh = iroh::endpoint::ConnectionError::TransportError(iroh);
        assert_eq!(alert_of(&io::Error::other(iroh)), Some(120));
        assert_eq!(alert_of(&io::Error::other(ConnectionError::TimedOut)), None);
        assert_eq!(alert_of(&io::Error::other(HandshakeRefusal)), None);
    }
}
