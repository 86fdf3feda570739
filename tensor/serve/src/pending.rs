//! Bytes of responses that are under way to each peer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_core::PeerId;

use crate::error::ServeError;
use crate::limits::IN_FLIGHT_BYTES;

/// Bytes under way, by peer.
#[derive(Debug, Default)]
pub(crate) struct BytesInFlight(Mutex<HashMap<PeerId, u64>>);

/// A response under way; dropping it gives its bytes back.
#[derive(Debug)]
pub(crate) struct ResponsePermit {
    bytes_in_flight: Arc<BytesInFlight>,
    who: PeerId,
    bytes: u64,
}

impl BytesInFlight {
    /// Counts a response, unless the peer has reached its limit.
    pub(crate) fn enter(
        self: &Arc<Self>,
        who: &PeerId,
        bytes: u64,
    ) -> Result<ResponsePermit, ServeError> {
        let mut table = self.table();
        let under_way = table.entry(who.clone()).or_default();
        let sum = under_way.saturating_add(bytes);
        // A peer with nothing under way may always fetch one response, however large it is.
        if *under_way > 0 && sum > IN_FLIGHT_BYTES {
            return Err(ServeError::Busy("bytes for one peer", IN_FLIGHT_BYTES));
        }
        *under_way = sum;
        drop(table);
        Ok(ResponsePermit {
            bytes_in_flight: Arc::clone(self),
            who: who.clone(),
            bytes,
        })
    }

    fn table(&self) -> MutexGuard<'_, HashMap<PeerId, u64>> {
        // The table holds plain sums, which a panic elsewhere cannot leave half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ResponsePermit {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.bytes_in_flight.table().entry(self.who.clone()) {
            let left = entry.get().saturating_sub(self.bytes);
            // Peers come and go; an entry of 0 would stay in memory for each of them.
            if left == 0 {
                entry.remove();
            } else {
                *entry.get_mut() = left;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_so_much_under_way_or_one_response() {
        let bytes_in_flight = Arc::new(BytesInFlight::default());
        let [a, b]: [PeerId; 2] = ["a", "b"].map(|name| name.parse().expect("a name"));
        let large = bytes_in_flight
            .enter(&a, IN_FLIGHT_BYTES * 2)
            .expect("alone");
        assert!(bytes_in_flight.enter(&a, 1).is_err());
        let other = bytes_in_flight.enter(&b, 1).expect("another peer");
        drop(large);
        let first = bytes_in_flight
            .enter(&a, IN_FLIGHT_BYTES - 1)
            .expect("room");
        let second = bytes_in_flight.enter(&a, 1).expect("room");
        assert_eq!(
            bytes_in_flight.enter(&a, 1).expect_err("none").code(),
            "E_BUSY"
        );
        drop((first, second, other));
        assert!(bytes_in_flight.table().is_empty());
    }
}
