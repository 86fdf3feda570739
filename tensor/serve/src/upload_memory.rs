//! Memory of files that are being put: of headers that arrive, and of bytes that wait to be written.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_core::PeerId;

use crate::error::ServeError;
use crate::limits::{UPLOAD_MEMORY, UPLOAD_MEMORY_FREE, UPLOAD_MEMORY_PER_PEER};

/// Bytes in memory of all uploads, by peer.
#[derive(Debug, Default)]
pub(crate) struct UploadMemory(Mutex<UploadMemoryTable>);

#[derive(Debug, Default)]
struct UploadMemoryTable {
    all: usize,
    peers: HashMap<PeerId, usize>,
}

/// The memory of one upload; dropping it gives its bytes back.
#[derive(Debug)]
pub(crate) struct UploadMemoryShare {
    memory: Arc<UploadMemory>,
    who: PeerId,
    bytes: usize,
}

impl UploadMemory {
    /// The share of another upload, which has no bytes yet.
    pub(crate) fn share(self: &Arc<Self>, who: &PeerId) -> UploadMemoryShare {
        UploadMemoryShare {
            memory: Arc::clone(self),
            who: who.clone(),
            bytes: 0,
        }
    }

    fn table(&self) -> MutexGuard<'_, UploadMemoryTable> {
        // The table holds plain sums, which a panic elsewhere cannot leave half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UploadMemoryShare {
    /// Counts `more` bytes, before they are allocated.
    ///
    /// # Errors
    /// [`ServeError::Busy`]: the peer has reached its limit; or all of them have, and this peer has more than what is
    /// always free. The share stays as it was.
    pub(crate) fn grow(&mut self, more: usize) -> Result<(), ServeError> {
        let mut table = self.memory.table();
        let all = table.all.saturating_add(more);
        let own = table.peers.get(&self.who).copied().unwrap_or_default();
        let own = own.saturating_add(more);
        if own > UPLOAD_MEMORY_PER_PEER {
            let what = "bytes of headers for one peer";
            return Err(ServeError::Busy(what, UPLOAD_MEMORY_PER_PEER as u64));
        }
        // Peers that hold all of the memory must not keep another one from storing files of usual headers.
        if all > UPLOAD_MEMORY && own > UPLOAD_MEMORY_FREE {
            return Err(ServeError::Busy("bytes of headers", UPLOAD_MEMORY as u64));
        }
        table.all = all;
        table.peers.insert(self.who.clone(), own);
        drop(table);
        self.bytes += more;
        Ok(())
    }

    /// Gives all bytes back.
    pub(crate) fn release(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut table = self.memory.table();
        table.all = table.all.saturating_sub(bytes);
        if let Entry::Occupied(mut entry) = table.peers.entry(self.who.clone()) {
            let left = entry.get().saturating_sub(bytes);
            // Peers come and go; an entry of 0 would stay in memory for each of them.
            if left == 0 {
                entry.remove();
            } else {
                *entry.get_mut() = left;
            }
        }
    }
}

impl Drop for UploadMemoryShare {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> PeerId {
        name.parse().expect("a name")
    }

    fn is_busy(grown: Result<(), ServeError>) -> bool {
        grown.is_err_and(|error| error.code() == "E_BUSY")
    }

    #[test]
    fn one_peer_and_all_of_them_have_so_much() {
        let memory = Arc::new(UploadMemory::default());
        let mut held = Vec::new();
        for name in ["eve", "mallory"] {
            let mut share = memory.share(&peer(name));
            share.grow(UPLOAD_MEMORY_PER_PEER).expect("it is the first");
            // Another stream of the same peer.
            assert!(is_busy(memory.share(&peer(name)).grow(1)));
            held.push(share);
        }
        let mut ada = memory.share(&peer("ada"));
        ada.grow(UPLOAD_MEMORY_FREE)
            .expect("so much is always free");
        assert!(is_busy(ada.grow(1)));
        held.pop();
        ada.grow(1).expect("there is room again");
        ada.release();
        drop((ada, held));
        let table = memory.table();
        assert_eq!((table.all, table.peers.len()), (0, 0));
    }
}
