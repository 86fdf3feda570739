//! Rows of enrolment tokens. The enrolment service writes each record; neither this file nor the
//! database reads one.

use alknet_core::{BoxFuture, KeyId};
use rusqlite::{Connection, Row, params};
use thiserror::Error;

use crate::{IdentityDb, IdentityDbInner};

/// A token to enrol with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolmentRecord {
    /// The name of the token.
    pub key_id: KeyId,
    /// Number of changes of the row. The column counts, and not the number in the record's text.
    pub revision: u64,
    /// When the token expires, in seconds since 1970.
    pub expires: u64,
    /// The rest of the token's fields. It has the hash of the token, and never the token.
    pub record: String,
}

/// The table of tokens cannot be read or written.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("tokens to enrol with cannot be read or written: {0}")]
pub struct EnrolmentError(pub String);

type EnrolmentFuture<'a, T> = BoxFuture<'a, Result<T, EnrolmentError>>;

impl IdentityDb {
    /// Adds a token. Returns `false`, and writes nothing, if the table has a token of this name.
    pub fn put_enrolment(&self, new: EnrolmentRecord) -> EnrolmentFuture<'_, bool> {
        self.write_enrolment(false, move |connection| {
            connection.execute(
                "INSERT OR IGNORE INTO enrolment_tokens VALUES (?1, ?2, ?3, ?4)",
                params![
                    new.key_id.as_str(),
                    number(new.revision),
                    number(new.expires),
                    new.record
                ],
            )
        })
    }

    /// Replaces the token of the same name and revision, and increments the revision. Returns
    /// `false`, and writes nothing, if that token was removed or changed meanwhile. If two peers
    /// use a token at the same time, one of the two calls returns `false`.
    pub fn replace_enrolment(&self, new: EnrolmentRecord) -> EnrolmentFuture<'_, bool> {
        self.write_enrolment(true, move |connection| {
            // The revision is the one that the caller read: of two concurrent changes, the later
            // one matches no row.
            connection.execute(
                "UPDATE enrolment_tokens SET record = ?3, expires = ?4, revision = revision + 1 \
                 WHERE key_id = ?1 AND revision = ?2",
                params![
                    new.key_id.as_str(),
                    number(new.revision),
                    new.record,
                    number(new.expires)
                ],
            )
        })
    }

    /// Removes a token. Returns whether it was there.
    pub fn remove_enrolment(&self, key_id: KeyId) -> EnrolmentFuture<'_, bool> {
        self.write_enrolment(true, move |connection| {
            let remove = "DELETE FROM enrolment_tokens WHERE key_id = ?1";
            connection.execute(remove, [key_id.as_str()])
        })
    }

    /// Reads the token of this name.
    pub fn enrolment(&self, key_id: KeyId) -> EnrolmentFuture<'_, Option<EnrolmentRecord>> {
        self.read_enrolments(move |db| Ok(db.enrolments(Some(key_id))?.pop()))
    }

    /// Reads every token, sorted by name.
    pub fn enrolments(&self) -> EnrolmentFuture<'_, Vec<EnrolmentRecord>> {
        self.read_enrolments(|db| db.enrolments(None))
    }

    /// Runs a statement in the background. Returns whether it changed a row. `exists`: the statement makes no new one.
    fn write_enrolment(
        &self,
        exists: bool,
        write: impl Fn(&Connection) -> rusqlite::Result<usize> + Send + 'static,
    ) -> EnrolmentFuture<'_, bool> {
        let done = self
            .0
            .in_background(move |db| db.write(|_| Ok(exists), write));
        Box::pin(async { Ok(done.await.map_err(EnrolmentError)? > 0) })
    }

    fn read_enrolments<T: Send + 'static>(
        &self,
        read: impl FnOnce(&IdentityDbInner) -> Result<T, String> + Send + 'static,
    ) -> EnrolmentFuture<'_, T> {
        let done = self.0.in_background(read);
        Box::pin(async { done.await.map_err(EnrolmentError) })
    }
}

impl IdentityDbInner {
    fn enrolments(&self, of: Option<KeyId>) -> Result<Vec<EnrolmentRecord>, String> {
        let all = self.read(|connection| {
            // One statement serves both readers: without a name the first condition lets every row
            // through.
            let query = "SELECT key_id, revision, expires, record FROM enrolment_tokens \
                         WHERE ?1 IS NULL OR key_id = ?1 ORDER BY key_id";
            let mut statement = connection.prepare(query)?;
            let rows = statement.query_map([of.map(|id| id.to_string())], row)?;
            rows.collect()
        });
        // This program writes no row whose `key_id` does not parse, and no caller can ask for such
        // a row by name. It is left out.
        let all: Option<Vec<_>> = all?;
        Ok(all.unwrap_or_default().into_iter().flatten().collect())
    }
}

fn row(row: &Row<'_>) -> rusqlite::Result<Option<EnrolmentRecord>> {
    let key_id: String = row.get(0)?;
    let count = |n: usize| {
        // This program stores no negative count. A damaged row gets 0, which is an expired token.
        row.get(n)
            .map(|number: i64| u64::try_from(number).unwrap_or(0))
    };
    let (revision, expires) = (count(1)?, count(2)?);
    let record = row.get(3)?;
    Ok(key_id.parse().ok().map(|key_id| EnrolmentRecord {
        key_id,
        revision,
        expires,
        record,
    }))
}

/// Converts a count for SQLite. A count above its maximum, such as an expiry beyond any real time,
/// becomes the maximum.
fn number(number: u64) -> i64 {
    // SQLite's integers are signed 64-bit numbers.
    i64::try_from(number).unwrap_or(i64::MAX)
}
