//! Pins: rows that keep contents from being collected although no name leads to them.

use rusqlite::params;

use super::ContentFolder;
use crate::db::{WriteTransaction, to_sql, to_sql_option};
use crate::error::StoreError;
use crate::hash::ContentHash;
use crate::limits::{ACTOR_BYTES_MAX, PIN_CHILDREN_MAX};

/// Begins the owner of the rows that a recursive pin has for its children.
const SEQUENCE: &str = "seq:";

/// Owner of the pins of the children of this content.
fn sequence_owner(hash: ContentHash, owner: &str) -> String {
    format!("{SEQUENCE}{hash}:{owner}")
}

impl ContentFolder {
    /// Keeps a content from being collected until a time, in milliseconds since 1970-01-01 UTC, or until it is unpinned. A
    /// second pin of the same owner replaces the first. With `is_recursive`, the content is a sequence of hashes, and the
    /// contents that it lists are pinned as well. Blocks.
    ///
    /// # Errors
    /// The name of the owner is too long or reserved; or the content is not here, is no sequence of hashes, or lists too many.
    pub fn pin_content(
        &self,
        hash: ContentHash,
        owner: &str,
        until_ms: Option<u64>,
        is_recursive: bool,
    ) -> Result<(), StoreError> {
        if owner.len() > ACTOR_BYTES_MAX {
            return Err(StoreError::TooLarge {
                unit: "bytes in the name of an owner",
                limit: ACTOR_BYTES_MAX as u64,
            });
        }
        // Such an owner could replace the rows of another owner's recursive pin.
        if owner.starts_with(SEQUENCE) {
            return Err(StoreError::Denied("the name of the owner is reserved"));
        }
        // Read now and not by the collection: a pin that comes while the collection runs is in force at once.
        let children = match is_recursive {
            true => self.sequence(hash)?,
            false => Vec::new(),
        };
        let owner = owner.to_owned();
        let written = self.db.write(move |tx| {
            tx.unpin(hash, &owner)?;
            tx.pin(hash, &owner, until_ms, is_recursive)?;
            let below = sequence_owner(hash, &owner);
            for child in &children {
                tx.pin(*child, &below, until_ms, false)?;
            }
            Ok(())
        });
        written.wait()
    }

    /// Ends the pin of this owner, and those of the contents that it lists. Blocks.
    ///
    /// # Errors
    /// The database refuses a statement.
    pub fn unpin_content(&self, hash: ContentHash, owner: &str) -> Result<(), StoreError> {
        let owner = owner.to_owned();
        self.db.write(move |tx| tx.unpin(hash, &owner)).wait()
    }

    /// The contents that a sequence of hashes lists.
    fn sequence(&self, hash: ContentHash) -> Result<Vec<ContentHash>, StoreError> {
        let reader = self.reader(hash)?;
        // Before the first byte is read: the size of a foreign content is no reason for that much memory.
        if reader.size() > (PIN_CHILDREN_MAX * ContentHash::BYTES) as u64 {
            return Err(StoreError::TooLarge {
                unit: "contents in a sequence",
                limit: PIN_CHILDREN_MAX as u64,
            });
        }
        let bytes = reader.read(0..reader.size())?;
        let (hashes, rest) = bytes.as_chunks::<{ ContentHash::BYTES }>();
        if !rest.is_empty() {
            return Err(StoreError::Denied("the content is no sequence of hashes"));
        }
        Ok(hashes.iter().copied().map(ContentHash::new).collect())
    }
}

impl WriteTransaction<'_> {
    fn pin(
        &self,
        hash: ContentHash,
        owner: &str,
        until_ms: Option<u64>,
        is_recursive: bool,
    ) -> Result<(), StoreError> {
        self.execute(
            "INSERT OR REPLACE INTO pin(hash, owner, until_ms, recursive) VALUES (?1, ?2, ?3, ?4)",
            params![hash, owner, to_sql_option(until_ms), is_recursive],
        )?;
        Ok(())
    }

    fn unpin(&self, hash: ContentHash, owner: &str) -> Result<(), StoreError> {
        let one = "DELETE FROM pin WHERE hash = ?1 AND owner = ?2";
        self.execute(one, params![hash, owner])?;
        let below = "DELETE FROM pin WHERE owner = ?1";
        self.execute(below, [sequence_owner(hash, owner)])?;
        Ok(())
    }

    /// Removes pins whose time is over.
    pub(crate) fn remove_expired_pins(&self) -> Result<usize, StoreError> {
        let now = to_sql(self.unix_ms());
        self.execute("DELETE FROM pin WHERE until_ms <= ?1", [now])
    }
}
