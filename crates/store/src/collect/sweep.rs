//! The removal of contents that no row refers to.
//!
//! The rows of a content go in a transaction, and its object after that, under the lock of the pins: by then a writer that
//! had a pin has named the content, and a writer that comes later does not find the object and stores it again. A power cut
//! between the two leaves an object without a row, which the last phase finds.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use alknet_objects::{ListedObject, ObjectError, ObjectRemoval};
use rusqlite::params;

use super::{CollectPhase, GarbageCollection};
use crate::content::{ContentFolder, content_hash, object_error, object_hash};
use crate::db::{ReadTransaction, StoreDb, WriteTransaction, from_sql, to_sql};
use crate::error::StoreError;
use crate::hash::ContentHash;
use crate::limits::{
    COLLECT_AGE_MS_MIN, COLLECT_STEP_CONTENTS, COLLECT_STEP_ROWS, CONTENT_PAGE_ROWS,
};

/// Contents to look at more closely, and the last one of the page.
struct CandidatePage {
    hashes: Vec<ContentHash>,
    last: Option<ContentHash>,
}

/// A content whose rows were removed.
struct ReleasedContent {
    hash: ContentHash,
    size: u64,
    is_object: bool,
}

impl GarbageCollection {
    /// Removes some of the contents that have a row.
    pub(super) fn sweep_contents(
        &mut self,
        db: &StoreDb,
        content: &ContentFolder,
    ) -> Result<(), StoreError> {
        let after = self.last_content;
        let page = db.read(move |tx| tx.unused_candidates(after)).wait()?;
        let hashes = page.hashes;
        let released = match hashes.is_empty() {
            true => Vec::new(),
            false => db.write(move |tx| tx.release_unused(&hashes)).wait()?,
        };
        for ReleasedContent {
            hash,
            size,
            is_object,
        } in released
        {
            // The bytes of a short content went with its row.
            let is_removed = !is_object || remove_object(db, content, hash)?;
            if is_removed {
                self.progress.contents += 1;
                self.progress.bytes += size;
            }
        }
        match page.last {
            Some(last) => self.last_content = Some(last),
            None => self.progress.phase = CollectPhase::SweepObjects,
        }
        Ok(())
    }

    /// Removes some of the objects that have no row: a power cut came before their first name, or in a removal.
    pub(super) fn sweep_objects(
        &mut self,
        db: &StoreDb,
        content: &ContentFolder,
    ) -> Result<(), StoreError> {
        let mut listed = Vec::new();
        while listed.len() < COLLECT_STEP_ROWS {
            let next = content.objects().next_object(&mut self.objects);
            let Some(object) = next.map_err(object_error)? else {
                self.progress.phase = CollectPhase::Done;
                break;
            };
            listed.push(object);
        }
        let orphans = db.read(move |tx| tx.without_row(listed)).wait()?;
        let is_held = db.write(|tx| {
            tx.remove_expired_pins()?;
            Ok((tx.is_sweep_held()?, tx.unix_ms()))
        });
        let (is_held, now_ms) = is_held.wait()?;
        for ListedObject { hash, size } in orphans {
            let hash = content_hash(hash);
            if !is_held && is_old_object(content, hash, now_ms) && remove_object(db, content, hash)?
            {
                self.progress.contents += 1;
                self.progress.bytes += size;
            }
        }
        Ok(())
    }
}

/// Removes an object, unless it is pinned or a name leads to it by now. Returns whether it is gone.
pub(super) fn remove_object(
    db: &StoreDb,
    content: &ContentFolder,
    hash: ContentHash,
) -> Result<bool, StoreError> {
    // Not on a reading thread: the lock of the pins is held meanwhile, and a reader that ends a pin would wait for it.
    let reader = db.own_reader()?;
    // A store that cannot answer is no reason to remove something.
    let is_free = || {
        let unused = reader.read(|tx| tx.is_content_unknown(hash));
        unused.unwrap_or(false)
    };
    let removed = content.objects().remove_if(&object_hash(hash), is_free);
    match removed {
        Ok(ObjectRemoval::Removed { .. }) => Ok(true),
        Ok(ObjectRemoval::InUse | ObjectRemoval::Missing) => Ok(false),
        // The file is gone. If a power cut brings it back, the next collection finds it.
        Err(ObjectError::RemovedNotSynced { .. }) => Ok(true),
        Err(error) => Err(object_error(error)),
    }
}

/// Whether an object was written at least ten minutes ago. One that cannot be looked at stays.
fn is_old_object(content: &ContentFolder, hash: ContentHash, now_ms: u64) -> bool {
    let path = content.objects().path(&object_hash(hash));
    let modified = fs::metadata(path).and_then(|about| about.modified());
    let modified = modified.unwrap_or_else(|_| SystemTime::now());
    // A time before 1970 is old.
    let modified_ms = modified.duration_since(UNIX_EPOCH).map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    });
    modified_ms.saturating_add(COLLECT_AGE_MS_MIN) <= now_ms
}

impl ReadTransaction<'_> {
    /// The next contents without a name, of a bounded number of rows.
    fn unused_candidates(&self, after: Option<ContentHash>) -> Result<CandidatePage, StoreError> {
        let after = after.map_or_else(Vec::new, |hash| hash.as_bytes().to_vec());
        // The rows are counted first, and filtered then: without garbage, a filtered query would read the whole table.
        let rows: Vec<(ContentHash, bool)> = self.query_all(
            "SELECT hash, NOT EXISTS (SELECT 1 FROM blob_bucket k WHERE k.hash = page.hash) FROM \
             (SELECT hash FROM blob WHERE hash > ?1 ORDER BY hash LIMIT ?2) AS page ORDER BY hash",
            params![after, to_sql(CONTENT_PAGE_ROWS as u64)],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let mut last = rows.last().map(|(hash, _)| *hash);
        let unused = rows.iter().filter(|(_, is_unused)| *is_unused);
        let mut hashes: Vec<_> = unused.map(|(hash, _)| *hash).collect();
        // The next step begins behind what this one removes.
        if hashes.len() > COLLECT_STEP_CONTENTS {
            hashes.truncate(COLLECT_STEP_CONTENTS);
            last = hashes.last().copied();
        }
        Ok(CandidatePage { hashes, last })
    }

    /// Whether nothing refers to a content. References are looked for in the rows themselves: a wrong counter must not cost
    /// a content.
    fn is_content_unused(&self, hash: ContentHash, now_ms: u64) -> Result<bool, StoreError> {
        let unused = self.query_count(
            "SELECT NOT EXISTS (SELECT 1 FROM blob_bucket WHERE hash = ?1) \
             AND NOT EXISTS (SELECT 1 FROM entry WHERE hash = ?1) \
             AND NOT EXISTS (SELECT 1 FROM pin WHERE hash = ?1 AND (until_ms IS NULL OR until_ms > ?2)) \
             AND NOT EXISTS (SELECT 1 FROM session WHERE base_hash = ?1)",
            params![hash, to_sql(now_ms)],
        )?;
        Ok(unused > 0)
    }

    /// Whether a content has neither a row of its own nor anything that refers to it.
    fn is_content_unknown(&self, hash: ContentHash) -> Result<bool, StoreError> {
        let row = "SELECT count(*) FROM blob WHERE hash = ?1";
        // Pins count whatever their time is, because the collection removes expired ones itself.
        Ok(self.query_count(row, [hash])? == 0 && self.is_content_unused(hash, 0)?)
    }

    /// The objects that have no row.
    fn without_row(&self, mut objects: Vec<ListedObject>) -> Result<Vec<ListedObject>, StoreError> {
        let mut failed = Ok(());
        objects.retain(|object| {
            let row = "SELECT count(*) FROM blob WHERE hash = ?1";
            match self.query_count(row, [content_hash(object.hash)]) {
                Ok(count) => count == 0,
                Err(error) => {
                    failed = Err(error);
                    false
                }
            }
        });
        failed.map(|()| objects)
    }
}

impl WriteTransaction<'_> {
    /// Removes the rows of contents that nothing refers to and that are old enough.
    fn release_unused(
        &mut self,
        hashes: &[ContentHash],
    ) -> Result<Vec<ReleasedContent>, StoreError> {
        self.remove_expired_pins()?;
        // After a repair, names that it could not bring back may lead to contents that look unused.
        if self.is_sweep_held()? {
            return Ok(Vec::new());
        }
        let now_ms = self.unix_ms();
        let oldest = to_sql(now_ms.saturating_sub(COLLECT_AGE_MS_MIN));
        let mut released = Vec::new();
        for hash in hashes.iter().copied() {
            // Once more, in the transaction of the removal: a name may have come since the page was read.
            if !self.is_content_unused(hash, now_ms)? {
                continue;
            }
            // A content that was wanted only has no time and no bytes.
            let query = "SELECT size FROM blob WHERE hash = ?1 AND coalesce(verified_ms, 0) <= ?2";
            let size = self.query_row(query, params![hash, oldest], |row| row.get(0))?;
            let Some(size) = size.map(from_sql) else {
                continue;
            };
            let inline = self.execute("DELETE FROM inline_ WHERE hash = ?1", [hash])?;
            self.execute("DELETE FROM blob WHERE hash = ?1", [hash])?;
            self.note_damage_count();
            released.push(ReleasedContent {
                hash,
                size,
                is_object: inline == 0,
            });
        }
        Ok(released)
    }
}
