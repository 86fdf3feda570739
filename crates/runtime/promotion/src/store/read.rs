//! Rows as values.

use std::fmt::Display;
use std::str::FromStr;

use alknet_core::PeerId;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::de::DeserializeOwned;

use super::{AuditEntry, Filter, Proposal, State, StoreError, Terms, Version};
use crate::bundle::Hash;
use crate::limits::AUDIT_SHOWN_MAX;

const PROPOSAL: &str = "SELECT seq, id, digest, name, author, state, at_s, found FROM proposals";
const VERSION: &str = "SELECT v.path, v.version, v.id, v.terms, v.replaced, v.generation, v.at_s, \
     v.calls, v.errors, h.version IS NOT NULL FROM versions v \
     LEFT JOIN heads h ON h.path = v.path AND h.version = v.version";

pub(super) fn generation(connection: &Connection) -> Result<u64, StoreError> {
    let number = "SELECT number FROM generation";
    Ok(connection.query_row(number, [], |row| row.get(0))?)
}

pub(super) fn heads(connection: &Connection) -> Result<Vec<Version>, StoreError> {
    let sql = format!("{VERSION} WHERE h.version IS NOT NULL ORDER BY v.path");
    all(connection, &sql, [], version)
}

pub(super) fn versions(connection: &Connection, path: &str) -> Result<Vec<Version>, StoreError> {
    let sql = format!("{VERSION} WHERE v.path = ?1 ORDER BY v.version DESC");
    all(connection, &sql, [path], version)
}

pub(super) fn proposal(connection: &Connection, id: Hash) -> Result<Option<Proposal>, StoreError> {
    let sql = format!("{PROPOSAL} WHERE id = ?1");
    let found = all(connection, &sql, [id.to_string()], read_proposal)?;
    Ok(found.into_iter().next())
}

pub(super) fn proposals(
    connection: &Connection,
    filter: &Filter,
    most: usize,
) -> Result<Vec<Proposal>, StoreError> {
    let sql = format!(
        "{PROPOSAL} WHERE (?1 IS NULL OR state = ?1) AND seq < ?2 ORDER BY seq DESC LIMIT ?3"
    );
    let state = filter.state.map(State::as_str);
    let before = filter.before.unwrap_or(i64::MAX);
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    all(
        connection,
        &sql,
        params![state, before, most],
        read_proposal,
    )
}

pub(super) fn document(connection: &Connection, id: Hash) -> Result<Option<String>, StoreError> {
    let sql = "SELECT document FROM proposals WHERE id = ?1";
    let found = connection.query_row(sql, [id.to_string()], |row| row.get(0));
    Ok(found.optional()?)
}

pub(super) fn reviews(
    connection: &Connection,
    id: Hash,
) -> Result<Vec<(PeerId, Terms)>, StoreError> {
    let sql = "SELECT reviewer, terms FROM reviews WHERE id = ?1 ORDER BY reviewer";
    all(connection, sql, [id.to_string()], |row| {
        Ok((parsed(&text(row, 0)?)?, json(&text(row, 1)?)?))
    })
}

pub(super) fn audit(connection: &Connection, id: Hash) -> Result<Vec<AuditEntry>, StoreError> {
    let sql = "SELECT at_s, who, did, id, path, version, generation, note FROM audit \
         WHERE id = ?1 ORDER BY seq DESC LIMIT ?2";
    let most = i64::try_from(AUDIT_SHOWN_MAX).unwrap_or(i64::MAX);
    let mut found = all(connection, sql, params![id.to_string(), most], |row| {
        Ok(AuditEntry {
            at_s: row.get(0)?,
            who: row.get(1)?,
            did: row.get(2)?,
            id: row.get(3)?,
            path: row.get(4)?,
            version: row.get(5)?,
            generation: row.get(6)?,
            note: row.get(7)?,
        })
    })?;
    found.reverse();
    Ok(found)
}

fn all<T>(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    read: impl Fn(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query(params)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

fn read_proposal(row: &Row<'_>) -> Result<Proposal, StoreError> {
    Ok(Proposal {
        seq: row.get(0)?,
        id: parsed(&text(row, 1)?)?,
        digest: parsed(&text(row, 2)?)?,
        name: row.get(3)?,
        author: parsed(&text(row, 4)?)?,
        state: state(&text(row, 5)?)?,
        at_s: row.get(6)?,
        found: json(&text(row, 7)?)?,
    })
}

fn version(row: &Row<'_>) -> Result<Version, StoreError> {
    Ok(Version {
        path: row.get(0)?,
        version: row.get(1)?,
        id: parsed(&text(row, 2)?)?,
        terms: json(&text(row, 3)?)?,
        replaced: row.get(4)?,
        generation: row.get(5)?,
        at_s: row.get(6)?,
        calls: row.get(7)?,
        errors: row.get(8)?,
        current: row.get(9)?,
    })
}

fn text(row: &Row<'_>, column: usize) -> Result<String, StoreError> {
    Ok(row.get(column)?)
}

fn state(word: &str) -> Result<State, StoreError> {
    let all = [
        State::Promoted,
        State::Proposed,
        State::Rejected,
        State::Retired,
    ];
    let found = all.into_iter().find(|state| state.as_str() == word);
    found.ok_or_else(|| StoreError::Damaged(format!("a proposal is '{word}'")))
}

fn parsed<T: FromStr<Err: Display>>(text: &str) -> Result<T, StoreError> {
    text.parse()
        .map_err(|error| StoreError::Damaged(format!("'{text}': {error}")))
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Damaged(error.to_string()))
}
