//! Reads rows as values.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::str::FromStr;

use alknet_core::PeerKey;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{
    AuditEntry, OperationVersion, PromotionStoreError, Proposal, ProposalFilter, ProposalState,
    ReviewVote,
};
use crate::bundle::Blake3Hash;
use crate::limits::AUDIT_SHOWN_MAX;

const PROPOSAL: &str = "SELECT seq, id, digest, name, author, state, at_s, found FROM proposals";
const VERSION: &str = "SELECT v.path, v.version, v.id, v.terms, v.replaced, v.generation, v.at_s, \
     v.calls, v.errors, h.version IS NOT NULL FROM versions v \
     LEFT JOIN heads h ON h.path = v.path AND h.version = v.version";

pub(super) fn generation(connection: &Connection) -> Result<u64, PromotionStoreError> {
    let number = "SELECT number FROM generation";
    Ok(connection.query_row(number, [], |row| row.get(0))?)
}

pub(super) fn heads(connection: &Connection) -> Result<Vec<OperationVersion>, PromotionStoreError> {
    let sql = format!("{VERSION} WHERE h.version IS NOT NULL ORDER BY v.path");
    all(connection, &sql, [], version)
}

pub(super) fn versions(
    connection: &Connection,
    path: &str,
) -> Result<Vec<OperationVersion>, PromotionStoreError> {
    let sql = format!("{VERSION} WHERE v.path = ?1 ORDER BY v.version DESC");
    all(connection, &sql, [path], version)
}

pub(super) fn proposal(
    connection: &Connection,
    id: Blake3Hash,
) -> Result<Option<Proposal>, PromotionStoreError> {
    let sql = format!("{PROPOSAL} WHERE id = ?1");
    let found = all(connection, &sql, [id.to_string()], read_proposal)?;
    Ok(found.into_iter().next())
}

pub(super) fn proposals(
    connection: &Connection,
    filter: &ProposalFilter,
    most: usize,
) -> Result<Vec<Proposal>, PromotionStoreError> {
    let sql = format!(
        "{PROPOSAL} WHERE (?1 IS NULL OR state = ?1) AND seq < ?2 ORDER BY seq DESC LIMIT ?3"
    );
    let state = filter.state.map(ProposalState::as_str);
    // Without a cursor, the page begins with the newest proposal.
    let before = filter.before.unwrap_or(i64::MAX);
    // SQLite has signed integers only; a larger limit is no limit.
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    all(
        connection,
        &sql,
        params![state, before, most],
        read_proposal,
    )
}

pub(super) fn document(
    connection: &Connection,
    id: Blake3Hash,
) -> Result<Option<String>, PromotionStoreError> {
    let sql = "SELECT document FROM proposals WHERE id = ?1";
    let found = connection.query_row(sql, [id.to_string()], |row| row.get(0));
    Ok(found.optional()?)
}

/// A vote, in the column `terms`. Votes that an earlier version of this program stored have no key.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredVote<T> {
    #[serde(flatten)]
    pub(super) terms: T,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<PeerKey>,
}

pub(super) fn reviews(
    connection: &Connection,
    id: Blake3Hash,
) -> Result<Vec<ReviewVote>, PromotionStoreError> {
    let sql = "SELECT reviewer, terms FROM reviews WHERE id = ?1 ORDER BY reviewer";
    all(connection, sql, [id.to_string()], |row| {
        vote(&text(row, 0)?, &text(row, 1)?)
    })
}

pub(super) fn paths(
    connection: &Connection,
    counts: impl Fn(&ReviewVote) -> bool,
) -> Result<BTreeSet<String>, PromotionStoreError> {
    let versions = "SELECT DISTINCT path FROM versions";
    let mut paths: BTreeSet<_> = all(connection, versions, [], |row| text(row, 0))?
        .into_iter()
        .collect();
    // No operation comes of a vote for a proposal that was promoted to another path, and no reviewer can withdraw it.
    let waiting = "SELECT r.reviewer, r.terms FROM reviews r JOIN proposals p ON p.id = r.id \
         WHERE p.state = 'proposed'";
    let votes = all(connection, waiting, [], |row| {
        // A damaged vote promotes nothing, and must not keep promoted operations from being installed.
        Ok(vote(&text(row, 0)?, &text(row, 1)?).ok())
    })?;
    let votes = votes.into_iter().flatten().filter(counts);
    paths.extend(votes.map(|vote| vote.terms.path));
    Ok(paths)
}

fn vote(reviewer: &str, stored: &str) -> Result<ReviewVote, PromotionStoreError> {
    let StoredVote { terms, key } = json(stored)?;
    Ok(ReviewVote {
        reviewer: parsed(reviewer)?,
        key,
        terms,
    })
}

pub(super) fn audit(
    connection: &Connection,
    id: Blake3Hash,
) -> Result<Vec<AuditEntry>, PromotionStoreError> {
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
    // The query selects the newest entries, and the list begins with the oldest of them.
    found.reverse();
    Ok(found)
}

fn all<T>(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    read: impl Fn(&Row<'_>) -> Result<T, PromotionStoreError>,
) -> Result<Vec<T>, PromotionStoreError> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query(params)?;
    let mut found = Vec::new();
    // A damaged row fails the whole query, so that no list has a gap.
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

fn read_proposal(row: &Row<'_>) -> Result<Proposal, PromotionStoreError> {
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

fn version(row: &Row<'_>) -> Result<OperationVersion, PromotionStoreError> {
    Ok(OperationVersion {
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

fn text(row: &Row<'_>, column: usize) -> Result<String, PromotionStoreError> {
    Ok(row.get(column)?)
}

fn state(word: &str) -> Result<ProposalState, PromotionStoreError> {
    let all = [
        ProposalState::Promoted,
        ProposalState::Proposed,
        ProposalState::Rejected,
        ProposalState::Retired,
    ];
    let found = all.into_iter().find(|state| state.as_str() == word);
    found.ok_or_else(|| PromotionStoreError::Damaged(format!("a proposal is '{word}'")))
}

fn parsed<T: FromStr<Err: Display>>(text: &str) -> Result<T, PromotionStoreError> {
    text.parse()
        .map_err(|error| PromotionStoreError::Damaged(format!("'{text}': {error}")))
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T, PromotionStoreError> {
    serde_json::from_str(text).map_err(|error| PromotionStoreError::Damaged(error.to_string()))
}
