//! `[fs]`: whether the node keeps files for its callers, and what that may cost.

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::read::{ConfigDiagnostics, ConfigValue};

/// MiB that a start verifies. 0 leaves all of it to the time after the start.
const BOOT_VERIFY_MIB: RangeInclusive<u32> = 0..=1_048_576;

/// MiB of the open uploads of one identity, up to 1 TiB.
const STAGING_MIB: RangeInclusive<u32> = 1..=1_048_576;

/// Seconds that an upload waits for its client: from a minute, so that a slow client is not cut off, to a week.
const SESSION_SECONDS: RangeInclusive<u32> = 60..=604_800;

/// MiB a second for one identity, up to 1 TiB.
const BLOB_RATE: RangeInclusive<u32> = 1..=1_048_576;

/// Seconds that a read waits for a content from peers, below the time that clients of HTTP wait at most.
const FETCH_SECONDS: RangeInclusive<u32> = 1..=300;

/// Seconds between two sessions with a peer about a branch in which nothing is new, up to a day.
const SYNC_SECONDS: RangeInclusive<u32> = 1..=86_400;

/// `[fs]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FsSection {
    /// Whether files are kept and served.
    pub enabled: bool,
    /// MiB of the newest contents that a start verifies before it serves files, if the node did not stop in order. The
    /// rest is verified afterwards.
    #[schemars(range(min = 0, max = 1_048_576))]
    pub boot_verify_mib: u32,
    /// MiB that the open uploads of one identity may have.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub staging_mib: u32,
    /// How long an upload waits for its client, in seconds.
    #[schemars(range(min = 60, max = 604_800))]
    pub session_seconds: u32,
    /// MiB a second of contents that the node sends to one identity by their hash, over `/iroh-bytes/4`.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub blob_rate: u32,
    /// How long a read waits for a content that only peers have, in seconds.
    #[schemars(range(min = 1, max = 300))]
    pub fetch_seconds: u32,
    /// How long after a synchronisation with a peer the node asks it again if nothing is new here, in seconds.
    #[schemars(range(min = 1, max = 86_400))]
    pub sync_seconds: u32,
}

impl Default for FsSection {
    fn default() -> Self {
        Self {
            enabled: true,
            boot_verify_mib: 1024,
            staging_mib: 2048,
            session_seconds: 3600,
            blob_rate: 256,
            fetch_seconds: 30,
            sync_seconds: 60,
        }
    }
}

pub(super) fn section(
    value: Option<ConfigValue<'_, '_>>,
    notes: &mut ConfigDiagnostics<'_>,
) -> FsSection {
    let standard = FsSection::default();
    let Some(mut section) = value.and_then(|value| value.section(notes)) else {
        return standard;
    };
    let enabled = section.key("enabled");
    let boot_verify_mib = section.key("boot_verify_mib");
    let staging_mib = section.key("staging_mib");
    let session_seconds = section.key("session_seconds");
    let blob_rate = section.key("blob_rate");
    let fetch_seconds = section.key("fetch_seconds");
    let sync_seconds = section.key("sync_seconds");
    section.finish(notes);
    let enabled = enabled.and_then(|value| value.bool(notes));
    let boot_verify_mib = boot_verify_mib.and_then(|value| value.number(BOOT_VERIFY_MIB, notes));
    let staging_mib = staging_mib.and_then(|value| value.number(STAGING_MIB, notes));
    let session_seconds = session_seconds.and_then(|value| value.number(SESSION_SECONDS, notes));
    let blob_rate = blob_rate.and_then(|value| value.number(BLOB_RATE, notes));
    let fetch_seconds = fetch_seconds.and_then(|value| value.number(FETCH_SECONDS, notes));
    let sync_seconds = sync_seconds.and_then(|value| value.number(SYNC_SECONDS, notes));
    FsSection {
        enabled: enabled.unwrap_or(standard.enabled),
        boot_verify_mib: boot_verify_mib.unwrap_or(standard.boot_verify_mib),
        staging_mib: staging_mib.unwrap_or(standard.staging_mib),
        session_seconds: session_seconds.unwrap_or(standard.session_seconds),
        blob_rate: blob_rate.unwrap_or(standard.blob_rate),
        fetch_seconds: fetch_seconds.unwrap_or(standard.fetch_seconds),
        sync_seconds: sync_seconds.unwrap_or(standard.sync_seconds),
    }
}
