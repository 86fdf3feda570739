//! Hybrid timestamps, and the values of paths that carry them.

use alknet_fs::sync::SyncedEntry;
use alknet_store::limits::CLOCK_AHEAD_MS_MAX;
use alknet_store::{HybridClock, HybridTimestamp};

/// The time of this node.
const NOW_MS: u64 = 1_800_000_000_000;

/// Reads the bytes as a value of a path, and lets a clock take in the times in them.
pub fn hlc(data: &[u8]) -> bool {
    let mut clock = HybridClock::new([1; 8]);
    let mut last = clock.tick(NOW_MS);
    let (times, _) = data.as_chunks::<{ HybridTimestamp::BYTES }>();
    for bytes in times {
        let remote = HybridTimestamp::from_bytes(*bytes);
        assert_eq!(remote.to_bytes(), *bytes);
        let observed = clock.observe(remote, NOW_MS);
        assert_eq!(
            observed.is_clamped,
            remote.ms() > NOW_MS + CLOCK_AHEAD_MS_MAX
        );
        assert!(observed.timestamp.ms() <= NOW_MS + CLOCK_AHEAD_MS_MAX);
        let next = clock.tick(NOW_MS);
        assert!(
            next > last
                && (next.ms(), next.counter())
                    > (observed.timestamp.ms(), observed.timestamp.counter())
        );
        last = next;
    }
    let Ok(entry) = SyncedEntry::decode(data) else {
        return false;
    };
    assert_eq!(entry.encode().ok().as_deref(), Some(data));
    true
}
