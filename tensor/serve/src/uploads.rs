//! Containers that come in pieces, each piece in a call of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use alknet_core::PeerId;
use tokio::time::Instant;

use crate::error::ServeError;
use crate::limits::{UPLOADS, UPLOADS_PER_PEER};
use crate::store::Upload;

/// An upload that one piece at a time is added to; none once it was stored or failed.
pub(crate) type Shared = Arc<tokio::sync::Mutex<Option<Upload>>>;

/// Uploads by name.
#[derive(Debug)]
pub(crate) struct Uploads {
    idle: Duration,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    slots: HashMap<String, Slot>,
}

#[derive(Debug)]
struct Slot {
    owner: PeerId,
    touched: Instant,
    upload: Shared,
}

impl Uploads {
    /// Drops what nobody goes on with for so long.
    pub(crate) fn new(idle: Duration) -> Arc<Self> {
        let table = Mutex::default();
        Arc::new(Self { idle, table })
    }

    /// Keeps an upload, whose name is given back. Must run inside a runtime.
    pub(crate) fn keep(
        self: &Arc<Self>,
        owner: &PeerId,
        upload: Upload,
    ) -> Result<String, ServeError> {
        self.room(owner)?;
        let mut table = self.table();
        table.last += 1;
        let name = format!("u{}", table.last);
        let slot = Slot {
            owner: owner.clone(),
            touched: Instant::now(),
            upload: Arc::new(tokio::sync::Mutex::new(Some(upload))),
        };
        table.slots.insert(name.clone(), slot);
        drop(table);
        tokio::spawn(expire(Arc::downgrade(self), name.clone()));
        Ok(name)
    }

    /// Whether this peer may begin another.
    pub(crate) fn room(&self, owner: &PeerId) -> Result<(), ServeError> {
        let table = self.table();
        let slots = table.slots.values();
        let own = slots.filter(|slot| slot.owner == *owner).count();
        if own >= UPLOADS_PER_PEER {
            return Err(ServeError::Busy(
                "uploads of one peer",
                UPLOADS_PER_PEER as u64,
            ));
        }
        if table.slots.len() >= UPLOADS {
            return Err(ServeError::Busy("uploads", UPLOADS as u64));
        }
        Ok(())
    }

    /// The upload of this name, if it is this peer's.
    pub(crate) fn of(&self, owner: &PeerId, name: &str) -> Result<Shared, ServeError> {
        let mut table = self.table();
        let slot = table.slots.get_mut(name);
        let slot = slot.filter(|slot| slot.owner == *owner);
        let slot = slot.ok_or(ServeError::Missing)?;
        slot.touched = Instant::now();
        Ok(Arc::clone(&slot.upload))
    }

    pub(crate) fn forget(&self, name: &str) {
        self.table().slots.remove(name);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops the upload once nobody has gone on with it for too long.
async fn expire(uploads: Weak<Uploads>, name: String) {
    loop {
        let Some(uploads) = uploads.upgrade() else {
            return;
        };
        let end = {
            let table = uploads.table();
            let Some(slot) = table.slots.get(&name) else {
                return;
            };
            slot.touched + uploads.idle
        };
        if end <= Instant::now() {
            uploads.forget(&name);
            return;
        }
        drop(uploads);
        tokio::time::sleep_until(end).await;
    }
}
