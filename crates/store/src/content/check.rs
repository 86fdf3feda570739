//! The check of what the last writes left, after a start that did not follow an orderly end.

use std::fs::File;
use std::io::Read;

use rusqlite::params;

use super::rows::ContentState;
use super::{ContentFolder, content_hash, io_error, is_damage, object_error, object_hash};
use crate::db::{ReadTransaction, from_sql, to_sql};
use crate::error::StoreError;
use crate::hash::ContentHash;
use crate::limits::{CONTENT_PAGE_ROWS, READ_BLOCK_BYTES};

/// `meta` key of the time up to which all contents were found whole at a start, in milliseconds.
const META_VERIFIED: &str = "verified_mark";

/// `meta` key that is there while a verification is under way.
const META_VERIFYING: &str = "verifying";

/// A verification of all contents that were stored since the last one, the newest first. It holds one open file.
#[derive(Debug)]
pub(crate) struct BootVerification {
    /// Contents of this time and before were verified by an earlier start.
    since_ms: u64,
    /// When the verification began. It becomes the next mark.
    begun_ms: u64,
    /// The last content that was begun, by its time and hash.
    last: (u64, ContentHash),
    /// The page of rows, in reverse.
    page: Vec<StoredRow>,
    open: Option<OpenContent>,
    is_done: bool,
}

/// How far a verification came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Bytes that the step has read.
    pub bytes: u64,
    /// Contents that the step found damaged or lost. They are marked.
    pub damaged: Vec<ContentHash>,
    /// Whether no content is left.
    pub is_done: bool,
}

#[derive(Clone, Copy, Debug)]
struct StoredRow {
    hash: ContentHash,
    verified_ms: u64,
}

/// An object that is being read.
#[derive(Debug)]
struct OpenContent {
    row: StoredRow,
    file: File,
    hasher: blake3::Hasher,
    /// Bytes that are still to be read at most: one more than the content has, which a file that grows would have.
    left: u64,
}

impl BootVerification {
    /// Whether no content is left.
    pub(crate) const fn is_done(&self) -> bool {
        self.is_done
    }
}

impl OpenContent {
    /// Reads on, and returns whether the end was reached.
    fn read_on(
        &mut self,
        bytes_max: u64,
        progress: &mut VerifyProgress,
    ) -> Result<bool, StoreError> {
        let mut block = vec![0; READ_BLOCK_BYTES];
        let mut done = 0;
        while done < bytes_max {
            let most = usize::try_from(self.left).unwrap_or(usize::MAX);
            let read = self.file.read(&mut block[..most.min(READ_BLOCK_BYTES)]);
            let read = match read {
                Ok(read) => read,
                // Without the rest the hash differs, so that the content counts as damaged.
                Err(error) if error.raw_os_error() == Some(super::IO_FAILED) => return Ok(true),
                Err(error) => return Err(io_error("verify a content", &error)),
            };
            if read == 0 {
                return Ok(true);
            }
            self.hasher.update(&block[..read]);
            self.left -= read as u64;
            done += read as u64;
            progress.bytes += read as u64;
        }
        Ok(false)
    }
}

impl ReadTransaction<'_> {
    fn verified_mark(&self) -> Result<u64, StoreError> {
        self.query_count("SELECT v FROM meta WHERE k = ?1", [META_VERIFIED])
    }

    fn is_verification_open(&self) -> Result<bool, StoreError> {
        let query = "SELECT count(*) FROM meta WHERE k = ?1";
        Ok(self.query_count(query, [META_VERIFYING])? > 0)
    }

    /// Contents that were stored since a time, from the newest one before `last` on.
    fn contents_since(
        &self,
        since_ms: u64,
        last: (u64, ContentHash),
    ) -> Result<Vec<StoredRow>, StoreError> {
        self.query_all(
            "SELECT hash, verified_ms FROM blob WHERE state = ?1 AND verified_ms > ?2 AND (verified_ms, hash) < (?3, ?4) \
             ORDER BY verified_ms DESC, hash DESC LIMIT ?5",
            params![
                ContentState::Complete.code(),
                to_sql(since_ms),
                to_sql(last.0),
                last.1,
                to_sql(CONTENT_PAGE_ROWS as u64),
            ],
            |row| {
                Ok(StoredRow {
                    hash: row.get(0)?,
                    verified_ms: from_sql(row.get(1)?),
                })
            },
        )
    }
}

impl ContentFolder {
    /// Begins a verification. After an orderly end there is nothing to verify, unless the verification of the start before
    /// was not over, and the mark moves on.
    pub(crate) fn begin_verification(
        &self,
        now_ms: u64,
        was_closed_in_order: bool,
    ) -> Result<BootVerification, StoreError> {
        let read = self
            .db
            .read(|tx| Ok((tx.verified_mark()?, tx.is_verification_open()?)));
        let (since_ms, is_open) = read.wait()?;
        let mut verification = BootVerification {
            since_ms,
            begun_ms: now_ms,
            // Above every row, so that the first page begins with the newest one.
            last: (u64::MAX, ContentHash::new([0xff; ContentHash::BYTES])),
            page: Vec::new(),
            open: None,
            is_done: false,
        };
        if was_closed_in_order && !is_open {
            self.finish_verification(&mut verification)?;
            return Ok(verification);
        }
        // An orderly end before all contents are verified must not make them count as verified.
        let noted = self.db.write(|tx| {
            let put = "INSERT OR REPLACE INTO meta VALUES (?1, 1)";
            tx.execute(put, [META_VERIFYING]).map(drop)
        });
        noted.wait()?;
        Ok(verification)
    }

    /// Reads at most about `bytes_max` bytes more, and marks what is damaged. Short contents count as a block. Blocks.
    ///
    /// A damaged content is no error.
    pub(crate) fn verify_step(
        &self,
        verification: &mut BootVerification,
        bytes_max: u64,
    ) -> Result<VerifyProgress, StoreError> {
        let mut progress = VerifyProgress::default();
        while progress.bytes < bytes_max && !verification.is_done {
            if let Some(mut open) = verification.open.take() {
                let left = bytes_max - progress.bytes;
                match open.read_on(left, &mut progress)? {
                    true => self.finish_content(open, &mut progress)?,
                    false => verification.open = Some(open),
                }
                continue;
            }
            self.open_next(verification, &mut progress)?;
        }
        progress.is_done = verification.is_done;
        Ok(progress)
    }

    /// Opens the next content, or checks it at once if it is a row.
    fn open_next(
        &self,
        verification: &mut BootVerification,
        progress: &mut VerifyProgress,
    ) -> Result<(), StoreError> {
        if verification.page.is_empty() {
            let (since_ms, last) = (verification.since_ms, verification.last);
            let page = self.db.read(move |tx| tx.contents_since(since_ms, last));
            verification.page = page.wait()?;
            verification.page.reverse();
        }
        let Some(row) = verification.page.pop() else {
            return self.finish_verification(verification);
        };
        verification.last = (row.verified_ms, row.hash);
        // At least a block, so that many short contents do not make a step endless.
        progress.bytes += READ_BLOCK_BYTES as u64;
        let hash = row.hash;
        let content = self.db.read(move |tx| tx.content_row(hash)).wait()?;
        // It was collected, or stored again, since the page was read.
        let content = content.filter(|content| content.verified_ms == Some(row.verified_ms));
        let Some(content) = content else {
            return Ok(());
        };
        if let Some(bytes) = content.inline {
            return match content_hash(blake3::hash(&bytes)) == hash {
                true => Ok(()),
                false => self.note_damage(row, progress),
            };
        }
        // By its length first: another program can make a file of 16 TiB with one call, and the start would read all of it.
        match self.objects.open_file(&object_hash(hash), content.size) {
            Ok(file) => {
                let hasher = blake3::Hasher::new();
                let left = content.size.saturating_add(1);
                verification.open = Some(OpenContent {
                    row,
                    file,
                    hasher,
                    left,
                });
                Ok(())
            }
            Err(error) if is_damage(&error) => self.note_damage(row, progress),
            // Such as too many open files, which says nothing about the content.
            Err(error) => Err(object_error(error)),
        }
    }

    fn finish_content(
        &self,
        open: OpenContent,
        progress: &mut VerifyProgress,
    ) -> Result<(), StoreError> {
        let found = content_hash(open.hasher.finalize());
        if found == open.row.hash {
            return Ok(());
        }
        self.note_damage(open.row, progress)
    }

    fn note_damage(&self, row: StoredRow, progress: &mut VerifyProgress) -> Result<(), StoreError> {
        self.report_damage(row.hash, Some(row.verified_ms))?;
        progress.damaged.push(row.hash);
        Ok(())
    }

    /// Moves the mark to the beginning of the verification.
    fn finish_verification(&self, verification: &mut BootVerification) -> Result<(), StoreError> {
        let mark = to_sql(verification.begun_ms);
        // Contents of the same millisecond may be stored yet, so the mark stays right below it.
        let mark = mark.saturating_sub(1);
        let written = self.db.write(move |tx| {
            let put = "INSERT OR REPLACE INTO meta VALUES (?1, ?2)";
            tx.execute(put, params![META_VERIFIED, mark])?;
            tx.execute("DELETE FROM meta WHERE k = ?1", [META_VERIFYING])?;
            Ok(())
        });
        written.wait()?;
        verification.is_done = true;
        Ok(())
    }
}
