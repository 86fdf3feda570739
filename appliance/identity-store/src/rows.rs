//! Reads entries from rows, and writes them.

use std::collections::BTreeMap;

use alknet_core::{ApiKey, EncryptedData, PeerEntry, StoreChange, StoredIdentities};
use rusqlite::{Connection, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::IdentityStoreDiagnostic;

/// Everything in the file.
#[derive(Default)]
pub(crate) struct IdentityRows {
    pub(crate) stored: StoredIdentities,
    pub(crate) credentials: BTreeMap<String, EncryptedData>,
}

impl IdentityRows {
    pub(crate) fn is_empty(&self) -> bool {
        self.stored == StoredIdentities::default() && self.credentials.is_empty()
    }
}

/// Reads everything in the file. A row that cannot be read stays in the file, and `found` reports
/// it.
pub(crate) fn read(
    connection: &Connection,
    found: &mut Vec<IdentityStoreDiagnostic>,
) -> rusqlite::Result<IdentityRows> {
    let mut unreadable = Vec::new();
    let all = IdentityRows {
        stored: StoredIdentities {
            peers: table(
                connection,
                "SELECT peer_id, entry FROM peers",
                peer,
                &mut unreadable,
            )?,
            api_keys: table(
                connection,
                "SELECT key_id, entry FROM api_keys",
                api_key,
                &mut unreadable,
            )?,
        },
        credentials: table(
            connection,
            "SELECT provider, sealed FROM credentials",
            credential,
            &mut unreadable,
        )?
        .into_iter()
        .collect(),
    };
    if let Some(first) = unreadable.first().cloned() {
        let count = unreadable.len();
        found.push(IdentityStoreDiagnostic::Rows { count, first });
    }
    Ok(all)
}

/// Parses each row with `read`. For the rows that cannot be parsed, `unreadable` gets the reason.
fn table<T>(
    connection: &Connection,
    query: &str,
    read: impl Fn(&Row<'_>) -> Result<T, String>,
    unreadable: &mut Vec<String>,
) -> rusqlite::Result<Vec<T>> {
    let mut statement = connection.prepare(query)?;
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        match read(row) {
            Ok(one) => all.push(one),
            // The other rows are read even if this one is damaged.
            Err(why) => {
                let name = row.get::<_, String>(0).unwrap_or_default();
                unreadable.push(format!("'{name}': {why}"));
            }
        }
    }
    Ok(all)
}

fn text(row: &Row<'_>, n: usize) -> Result<String, String> {
    row.get(n).map_err(|error| error.to_string())
}

fn json<T: DeserializeOwned>(row: &Row<'_>, n: usize) -> Result<T, String> {
    serde_json::from_str(&text(row, n)?).map_err(|error| error.to_string())
}

fn peer(row: &Row<'_>) -> Result<PeerEntry, String> {
    let entry: PeerEntry = json(row, 1)?;
    // The row has the peer's id in a column and in the entry. If the two differ, one of them is
    // damaged.
    if entry.peer_id.as_str() == text(row, 0)? {
        return Ok(entry);
    }
    Err(other_name())
}

fn api_key(row: &Row<'_>) -> Result<ApiKey, String> {
    let key: ApiKey = json(row, 1)?;
    // The same check as for peers: the row has the id twice.
    if key.token.key_id.as_str() == text(row, 0)? {
        return Ok(key);
    }
    Err(other_name())
}

fn other_name() -> String {
    "the entry has another name".to_owned()
}

fn credential(row: &Row<'_>) -> Result<(String, EncryptedData), String> {
    Ok((text(row, 0)?, json(row, 1)?))
}

/// Whether the change is of an entry that exists, or removes one.
pub(crate) fn is_of_entry(connection: &Connection, change: &StoreChange) -> rusqlite::Result<bool> {
    let (query, name) = match change {
        StoreChange::PutPeer(entry) => (
            "SELECT EXISTS (SELECT 1 FROM peers WHERE peer_id = ?1)",
            entry.peer_id.as_str(),
        ),
        StoreChange::PutApiKey(key) => (
            "SELECT EXISTS (SELECT 1 FROM api_keys WHERE key_id = ?1)",
            key.token.key_id.as_str(),
        ),
        StoreChange::RemovePeer(_) | StoreChange::RemoveApiKey(_) => return Ok(true),
    };
    connection.query_row(query, [name], |row| row.get(0))
}

/// Writes one change; the caller makes it part of a transaction.
pub(crate) fn write(connection: &Connection, change: &StoreChange) -> rusqlite::Result<()> {
    let changed = match change {
        StoreChange::PutPeer(entry) => connection.execute(
            "INSERT OR REPLACE INTO peers VALUES (?1, ?2)",
            params![entry.peer_id.as_str(), to_json(entry)?],
        ),
        StoreChange::RemovePeer(id) => {
            connection.execute("DELETE FROM peers WHERE peer_id = ?1", [id.as_str()])
        }
        StoreChange::PutApiKey(key) => connection.execute(
            "INSERT OR REPLACE INTO api_keys VALUES (?1, ?2)",
            params![key.token.key_id.as_str(), to_json(key)?],
        ),
        StoreChange::RemoveApiKey(id) => {
            connection.execute("DELETE FROM api_keys WHERE key_id = ?1", [id.as_str()])
        }
    };
    changed.map(drop)
}

pub(crate) fn put_credential(
    connection: &Connection,
    provider: &str,
    sealed: &EncryptedData,
) -> rusqlite::Result<()> {
    let put = "INSERT OR REPLACE INTO credentials VALUES (?1, ?2)";
    connection.execute(put, params![provider, to_json(sealed)?])?;
    Ok(())
}

pub(crate) fn remove_credential(connection: &Connection, provider: &str) -> rusqlite::Result<()> {
    let remove = "DELETE FROM credentials WHERE provider = ?1";
    connection.execute(remove, [provider])?;
    Ok(())
}

fn to_json(entry: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(entry)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}
