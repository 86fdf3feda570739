//! Tables, and how a file says that it has them.

use rusqlite::{Connection, TransactionBehavior};

/// `application_id` of the file: "alki".
pub const APPLICATION_ID: i64 = 0x616c_6b69;

/// `user_version` of the file. A program that finds a higher one leaves the file alone: what it does
/// not know might take a right away.
pub const SCHEMA_VERSION: i64 = 1;

/// One row for each entry. What is looked up stands in columns; the rest is JSON: of enrolment
/// tokens in the enrolment service's form, of the others in that of the core crate's types.
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

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdentityFileKind {
    /// Nothing yet.
    Empty,
    /// Ours, of this version.
    Ours,
    /// Ours, of a later version.
    Newer(i64),
    /// The database of another program.
    Foreign,
}

pub(crate) fn look(connection: &Connection) -> rusqlite::Result<IdentityFileKind> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables = "SELECT count(*) FROM sqlite_schema";
    let tables: i64 = connection.query_row(tables, [], |row| row.get(0))?;
    Ok(match (application, version) {
        // A file without numbers but with tables is another program's.
        (0, 0) if tables == 0 => IdentityFileKind::Empty,
        (APPLICATION_ID, SCHEMA_VERSION) => IdentityFileKind::Ours,
        (APPLICATION_ID, later) if later > SCHEMA_VERSION => IdentityFileKind::Newer(later),
        _ => IdentityFileKind::Foreign,
    })
}

/// Makes the tables: all of them or none.
pub(crate) fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    // In the same transaction as the tables: without the number the file would be taken for a foreign one.
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()
}
