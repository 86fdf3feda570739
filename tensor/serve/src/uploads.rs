//! Chunked uploads: each piece arrives in a call of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use alknet_core::PeerId;
use tokio::time::Instant;

use crate::error::ServeError;
use crate::limits::{UPLOADS, UPLOADS_PER_PEER};
use crate::store::TensorUpload;

/// An upload to which one piece at a time is added; `None` once it was stored or failed.
pub(crate) type Shared = Arc<tokio::sync::Mutex<Option<TensorUpload>>>;

/// Uploads by name.
#[derive(Debug)]
pub(crate) struct Uploads {
    idle: Duration,
    table: Mutex<UploadTable>,
}

#[derive(Debug, Default)]
struct UploadTable {
    last: u64,
    slots: HashMap<String, UploadSlot>,
}

#[derive(Debug)]
struct UploadSlot {
    owner: PeerId,
    /// The operation that began it on the owner's behalf, if one did.
    by: Option<Arc<str>>,
    touched: Instant,
    upload: Shared,
}

impl Uploads {
    /// `idle` is how long an upload stays that its peer does not continue.
    pub(crate) fn new(idle: Duration) -> Arc<Self> {
        let table = Mutex::default();
        Arc::new(Self { idle, table })
    }

    /// Keeps an upload and returns its name. Must run inside a runtime.
    pub(crate) fn add(
        self: &Arc<Self>,
        owner: &PeerId,
        by: Option<&Arc<str>>,
        upload: TensorUpload,
    ) -> Result<String, ServeError> {
        self.check_slots(owner)?;
        let mut table = self.table();
        // Numbers are never used twice, so a late piece cannot reach another upload.
        table.last += 1;
        let name = format!("u{}", table.last);
        let slot = UploadSlot {
            owner: owner.clone(),
            by: by.cloned(),
            touched: Instant::now(),
            upload: Arc::new(tokio::sync::Mutex::new(Some(upload))),
        };
        table.slots.insert(name.clone(), slot);
        drop(table);
        tokio::spawn(expire(Arc::downgrade(self), name.clone()));
        Ok(name)
    }

    /// Whether this peer may begin another upload.
    pub(crate) fn check_slots(&self, owner: &PeerId) -> Result<(), ServeError> {
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

    /// The upload of this name, if this peer began it, through the same operation or directly. Names are guessable,
    /// so both are checked.
    pub(crate) fn lookup(
        &self,
        owner: &PeerId,
        by: Option<&Arc<str>>,
        name: &str,
    ) -> Result<Shared, ServeError> {
        let mut table = self.table();
        let slot = table.slots.get_mut(name);
        let slot = slot.filter(|slot| slot.owner == *owner && slot.by.as_ref() == by);
        let slot = slot.ok_or(ServeError::Missing)?;
        slot.touched = Instant::now();
        Ok(Arc::clone(&slot.upload))
    }

    pub(crate) fn forget(&self, name: &str) {
        self.table().slots.remove(name);
    }

    fn table(&self) -> MutexGuard<'_, UploadTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops an upload that its peer has not continued for too long.
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
        // The table is not kept alive while this task sleeps, so the node may drop it first.
        drop(uploads);
        tokio::time::sleep_until(end).await;
    }
}

#[cfg(test)]
mod tests {
    use alknet_tensor::{ContainerWriter, Dtype};
    use alknet_test_support::deadline;

    use super::*;
    use crate::store::{StoreOptions, TensorStore, bytes_on_disk};

    fn header() -> Vec<u8> {
        let mut writer = ContainerWriter::new(std::io::Cursor::new(Vec::new()));
        let content = vec![0; 64].into();
        writer
            .flat("x", Dtype::U8, &[64], content)
            .expect("it fits");
        let mut file = writer.finish().expect("memory").1.into_inner();
        file.truncate(file.len() - 64);
        file
    }

    #[tokio::test]
    async fn what_is_left_alone_is_dropped_with_all_it_held() {
        let folder = tempfile::tempdir().expect("writable");
        // Room for one.
        let options = StoreOptions {
            bytes_max: bytes_on_disk(header().len() as u64 + 64),
            ..StoreOptions::default()
        };
        let store = TensorStore::open(folder.path(), options).expect("writable");
        let owner: PeerId = "ada".parse().expect("a name");
        let uploads = Uploads::new(deadline(Duration::from_millis(20)));
        let begin = || TensorUpload::begin(&store, &header(), None);
        let upload = begin().expect("there is room");
        let name = uploads.add(&owner, None, upload).expect("the first");
        assert!(uploads.lookup(&owner, None, &name).is_ok());
        assert_eq!(begin().expect_err("it is taken").code(), "E_QUOTA");
        while uploads.of_untouched(&name) {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            uploads
                .lookup(&owner, None, &name)
                .expect_err("gone")
                .code(),
            "E_NOTFOUND"
        );
        begin().expect("there is room again");
    }

    #[tokio::test]
    async fn a_peer_and_all_of_them_have_so_many() {
        let folder = tempfile::tempdir().expect("writable");
        let store = TensorStore::open(folder.path(), StoreOptions::default()).expect("writable");
        let uploads = Uploads::new(Duration::from_secs(60));
        let peer = |at: usize| -> PeerId { format!("p{at}").parse().expect("a name") };
        let begin = |at| {
            let upload = TensorUpload::begin(&store, &header(), None).expect("good");
            uploads.add(&peer(at), None, upload)
        };
        for at in 0..UPLOADS {
            begin(at / UPLOADS_PER_PEER).expect("there is room");
        }
        assert_eq!(begin(0).expect_err("too many of one").code(), "E_BUSY");
        assert_eq!(begin(99).expect_err("too many").code(), "E_BUSY");
        uploads.forget("u1");
        begin(99).expect("there is room");
    }

    #[tokio::test]
    async fn what_one_script_began_no_other_goes_on_with() {
        let folder = tempfile::tempdir().expect("writable");
        let store = TensorStore::open(folder.path(), StoreOptions::default()).expect("writable");
        let uploads = Uploads::new(Duration::from_secs(60));
        let owner: PeerId = "ada".parse().expect("a name");
        let [own, other]: [Arc<str>; 2] = ["script of ada".into(), "script of eve".into()];
        for by in [None, Some(&own)] {
            let upload = TensorUpload::begin(&store, &header(), None).expect("good");
            let name = uploads.add(&owner, by, upload).expect("there is room");
            for asks in [None, Some(&own), Some(&other)] {
                assert_eq!(uploads.lookup(&owner, asks, &name).is_ok(), asks == by);
            }
        }
    }

    impl Uploads {
        /// Whether it is there, without going on with it.
        fn of_untouched(&self, name: &str) -> bool {
            self.table().slots.contains_key(name)
        }
    }
}
