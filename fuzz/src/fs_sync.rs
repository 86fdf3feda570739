//! Messages of the synchronisation of names, and the changes of documents in them.

use alknet_fs::sync::{SyncMessage, measure_changes};

/// Reads the bytes as a message, and as changes that are measured.
pub fn fs_sync(data: &[u8]) -> bool {
    // Any answer will do: what it measures may be no changes at all.
    if let Ok(size) = measure_changes(data) {
        let limit = 100 * data.len() as u64;
        assert!(size.bytes <= limit.max(16 << 20), "{size:?}");
        assert!(
            size.operations <= (4 * data.len() as u64).clamp(65_536, 600_000),
            "{size:?}"
        );
    }
    let Ok(message) = SyncMessage::decode(data) else {
        return false;
    };
    let again = message.encode().expect("it was short enough");
    assert_eq!(again, data);
    true
}
