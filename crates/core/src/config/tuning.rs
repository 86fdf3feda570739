//! `[limits]` and `[log]`: numbers and switches that take effect at once.

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::read::{ConfigDiagnostics, ConfigValue};
use super::values;

/// Range of connections that a document can set: no machine serves more.
pub(super) const CONNECTIONS: RangeInclusive<u32> = 1..=4096;
/// Range of handshakes of one network.
const HANDSHAKES: RangeInclusive<u32> = 1..=10_000;
/// Range of failed logins of one network in a minute.
const FAILURES: RangeInclusive<u32> = 1..=1000;

/// `[limits]`: what unknown and known peers may cost. The value of an absent key follows from the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Connections served at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub connections: Option<u32>,
    /// Connections served at once for the unknown peers of one network (a /24 of IPv4, a /56 of IPv6).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub connections_per_address: Option<u32>,
    /// Connections served at once for one peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub connections_per_peer: Option<u32>,
    /// Handshakes a network may have in a burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub handshake_burst: Option<u32>,
    /// Handshakes a second that it earns back.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub handshakes_per_second: Option<u32>,
    /// Failed logins of a network in a minute before its guesses are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub failures_per_minute: Option<u32>,
}

/// `[log]`: what the log says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// The least important record that is kept.
    pub level: LogLevel,
    /// Write a hash in the place of each peer's network address.
    pub hash_addresses: bool,
}

/// How important a record of the log is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warn,
    /// What happens.
    #[default]
    Info,
    /// Every detail.
    Debug,
}

impl LogLevel {
    /// Every level, the most important first.
    pub const ALL: [Self; 4] = [Self::Error, Self::Warn, Self::Info, Self::Debug];

    /// As the document writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

pub(super) fn limits(
    value: Option<ConfigValue<'_, '_>>,
    notes: &mut ConfigDiagnostics<'_>,
) -> LimitsConfig {
    let Some(mut section) = value.and_then(|value| value.section(notes)) else {
        return LimitsConfig::default();
    };
    let mut number =
        |key: &'static str, range: RangeInclusive<u32>| section.key(key)?.number(range, notes);
    let limits = LimitsConfig {
        connections: number("connections", CONNECTIONS),
        connections_per_address: number("connections_per_address", CONNECTIONS),
        connections_per_peer: number("connections_per_peer", CONNECTIONS),
        handshake_burst: number("handshake_burst", HANDSHAKES),
        handshakes_per_second: number("handshakes_per_second", HANDSHAKES),
        failures_per_minute: number("failures_per_minute", FAILURES),
    };
    section.finish(notes);
    limits
}

pub(super) fn log(
    value: Option<ConfigValue<'_, '_>>,
    notes: &mut ConfigDiagnostics<'_>,
) -> LogConfig {
    let Some(mut section) = value.and_then(|value| value.section(notes)) else {
        return LogConfig::default();
    };
    let level = section.key("level");
    let hash_addresses = section.key("hash_addresses");
    section.finish(notes);
    LogConfig {
        level: level
            .and_then(|value| value.parsed(notes, values::log_level))
            .unwrap_or_default(),
        hash_addresses: hash_addresses
            .and_then(|value| value.bool(notes))
            .unwrap_or_default(),
    }
}
