//! The tables, and the numbers by which a file says that it has them.

use rusqlite::{Connection, TransactionBehavior};

/// `application_id` of the file: "alki".
pub const APPLICATION_ID: i64 = 0x616c_6b69;

/// `user_version` of the file. A program leaves a file with a higher version alone: a part of it
/// that the program cannot read might take a right away.
pub const SCHEMA_VERSION: i64 = 1;

/// One row for each entry. Columns have what queries look up, and JSON has the rest: enrolment
/// tokens in the enrolment service's form, the other entries in that of the core crate's types.
const TABLES: &str = "
CREATE TABLE peers (
    peer_id TEXT NOT NULL PRIMARY KEY,
    entry TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE api_keys (
    key_id TEXT NOT NULL PRIMARY KEY,
    entry TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE enrolment_tokens (
    key_id TEXT NOT NULL PRIMARY KEY,
    revision INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    record TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE credentials (
    provider TEXT NOT NULL PRIMARY KEY,
    sealed TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdentityFileKind {
    /// A file without tables.
    Empty,
    /// A file of this program, of this version.
    Ours,
    /// A file of this program, of a later version.
    Newer(i64),
    /// The database of another program.
    Foreign,
}

pub(crate) fn identify(connection: &Connection) -> rusqlite::Result<IdentityFileKind> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables = "SELECT count(*) FROM sqlite_schema";
    let tables: i64 = connection.query_row(tables, [], |row| row.get(0))?;
    Ok(match (application, version) {
        // A file without these numbers but with tables belongs to another program.
        (0, 0) if tables == 0 => IdentityFileKind::Empty,
        (APPLICATION_ID, SCHEMA_VERSION) => IdentityFileKind::Ours,
        (APPLICATION_ID, later) if later > SCHEMA_VERSION => IdentityFileKind::Newer(later),
        _ => IdentityFileKind::Foreign,
    })
}

/// Creates all tables, or none of them.
pub(crate) fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    // The numbers are written in the transaction of the tables: without them, the next start would
    // take the file for a foreign one.
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()
}
