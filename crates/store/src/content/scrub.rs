//! The check of all contents, in steps whose rate the caller gives.

use alknet_objects::ObjectScrub;
use rusqlite::params;

use super::rows::ContentState;
use super::{ContentFolder, content_hash, object_error, object_hash};
use crate::db::{ReadTransaction, from_sql, to_sql};
use crate::error::StoreError;
use crate::hash::ContentHash;
use crate::limits::{INLINE_BYTES_MAX, SCRUB_PAUSES_MAX};

/// Rows that one step of the second part reads.
const STEP_ROWS: usize = 256;

/// A check of all contents under way. The default value begins one. It reads all objects first, and then looks for
/// contents without bytes.
#[derive(Debug, Default)]
pub struct ContentScrub {
    objects: ObjectScrub,
    are_objects_done: bool,
    /// The last row that was looked at.
    after: Option<ContentHash>,
    /// Bytes that callers had read and staged at the last step.
    moved: Option<u64>,
    /// Steps in a row that were left out.
    pauses: u32,
}

/// What a step of a check did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContentScrubStep {
    /// Bytes that were read, by which the caller sets the pause before the next step.
    pub bytes: u64,
    /// Contents that proved damaged or lost. They are marked, each with an event.
    pub damaged: Vec<ContentHash>,
    /// Whether all contents were checked.
    pub is_done: bool,
    /// Whether the step was left out, because callers have read and staged more since the last one than it would read.
    pub is_paused: bool,
}

/// A row to be compared with what is on the disk.
struct CheckedRow {
    hash: ContentHash,
    size: u64,
    verified_ms: Option<u64>,
    inline: Option<Vec<u8>>,
}

impl ReadTransaction<'_> {
    fn complete_contents(&self, after: Option<ContentHash>) -> Result<Vec<CheckedRow>, StoreError> {
        let after = after.map_or_else(Vec::new, |hash| hash.as_bytes().to_vec());
        self.query_all(
            "SELECT b.hash, b.size, b.verified_ms, i.data FROM blob b LEFT JOIN inline_ i ON i.hash = b.hash \
             WHERE b.hash > ?1 AND b.state = ?2 ORDER BY b.hash LIMIT ?3",
            params![
                after,
                ContentState::Complete.code(),
                to_sql(STEP_ROWS as u64),
            ],
            |row| {
                let verified_ms: Option<i64> = row.get(2)?;
                Ok(CheckedRow {
                    hash: row.get(0)?,
                    size: from_sql(row.get(1)?),
                    verified_ms: verified_ms.map(from_sql),
                    inline: row.get(3)?,
                })
            },
        )
    }
}

impl ContentFolder {
    /// Reads at most `bytes` bytes more of an object, or compares some rows with the files. Blocks.
    ///
    /// The check gives way to callers: a step is left out if they have read and staged more than `bytes` bytes of contents
    /// since the step before. After [`SCRUB_PAUSES_MAX`](crate::limits::SCRUB_PAUSES_MAX) of these in a row one is done all
    /// the same, so that a store that is never idle is checked too.
    ///
    /// # Errors
    /// The database refuses a statement, or the folder cannot be read. A damaged content is no error.
    pub fn scrub_step(
        &self,
        scrub: &mut ContentScrub,
        bytes: u64,
    ) -> Result<ContentScrubStep, StoreError> {
        let moved = self.moved_bytes();
        let before = scrub.moved.replace(moved).unwrap_or(moved);
        if moved.saturating_sub(before) > bytes && scrub.pauses < SCRUB_PAUSES_MAX {
            scrub.pauses += 1;
            return Ok(ContentScrubStep {
                is_paused: true,
                ..ContentScrubStep::default()
            });
        }
        scrub.pauses = 0;
        match scrub.are_objects_done {
            false => self.scrub_objects(scrub, bytes),
            true => self.scrub_rows(scrub),
        }
    }

    fn scrub_objects(
        &self,
        scrub: &mut ContentScrub,
        bytes: u64,
    ) -> Result<ContentScrubStep, StoreError> {
        let mut done = ContentScrubStep::default();
        // An object without a row is for the collection, whatever its bytes are.
        let mut failed = None;
        let size_of = |hash: &blake3::Hash| {
            let hash = content_hash(*hash);
            let row = self.db.read(move |tx| tx.content_size(hash)).wait();
            row.unwrap_or_else(|error| {
                failed = Some(error);
                None
            })
        };
        let step = self.objects.scrub_sized(&mut scrub.objects, bytes, size_of);
        if let Some(error) = failed {
            return Err(error);
        }
        let Some(step) = step.map_err(object_error)? else {
            scrub.are_objects_done = true;
            return Ok(done);
        };
        done.bytes = step.bytes;
        let Some(checked) = step.checked else {
            return Ok(done);
        };
        let hash = content_hash(checked.hash);
        let row = self.db.read(move |tx| tx.content_row(hash)).wait()?;
        // It was collected meanwhile.
        let Some(row) = row else {
            return Ok(done);
        };
        match (checked.damage, row.state) {
            (Some(_), ContentState::Complete) => {
                self.report_damage(hash, row.verified_ms)?;
                done.damaged.push(hash);
            }
            // An administrator has brought the file back, or only its sector could not be read for a time.
            (None, ContentState::Bad) => {
                let size = row.size;
                let mended = self.db.write(move |tx| tx.mark_content_whole(hash, size));
                mended.wait()?;
            }
            _ => {}
        }
        Ok(done)
    }

    /// Looks for contents whose row says that they are here, and whose bytes are gone.
    fn scrub_rows(&self, scrub: &mut ContentScrub) -> Result<ContentScrubStep, StoreError> {
        let after = scrub.after;
        let rows = self.db.read(move |tx| tx.complete_contents(after)).wait()?;
        let mut done = ContentScrubStep {
            is_done: rows.len() < STEP_ROWS,
            ..ContentScrubStep::default()
        };
        for row in rows {
            scrub.after = Some(row.hash);
            let is_whole = match &row.inline {
                Some(bytes) => {
                    done.bytes += (bytes.len() as u64).min(INLINE_BYTES_MAX);
                    content_hash(blake3::hash(bytes)) == row.hash
                }
                None => {
                    let size = self.objects.size(&object_hash(row.hash));
                    size.map_err(object_error)? == Some(row.size)
                }
            };
            if !is_whole {
                self.report_damage(row.hash, row.verified_ms)?;
                done.damaged.push(row.hash);
            }
        }
        Ok(done)
    }
}
