//! Changes the store. Each function is one transaction.

use alknet_core::PeerKey;
use rusqlite::{Connection, params};
use serde::Serialize;

use super::{
    AuditAct, BundleFindings, OperationVersion, PromotionStore, PromotionStoreError,
    PromotionTerms, Proposal, ProposalState, ReviewVote, read, read::StoredVote,
};
use crate::bundle::{Blake3Hash, PromotionBundle};
use crate::limits::{BUNDLES_MAX, PATHS_MAX, STORE_BYTES_MAX, WAITING_PER_AUTHOR_MAX};

/// The error for a reviewer who decides about a proposal other than the one that the reviewer read.
pub(crate) const REPLACED: &str =
    "another proposal of the same code took the place of the one that was read: read this one";

/// A new bundle for the store.
#[derive(Clone, Copy, Debug)]
pub struct NewProposal<'a> {
    /// The bundle.
    pub bundle: &'a PromotionBundle,
    /// The findings about it.
    pub found: &'a BundleFindings,
}

/// The result of a reviewer's agreement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReviewResult {
    /// It is an operation now.
    Promoted(OperationVersion),
    /// This number of reviewers agree, and more are needed.
    Waiting(u32),
}

/// The result of a rollback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollbackResult {
    /// The version that is current now; `None` if the operation was removed.
    pub version: Option<u64>,
    /// The terms on which the reviewers agreed for that version.
    pub terms: Option<PromotionTerms>,
    /// The version that was active before.
    pub replaced: Option<u64>,
    /// The generation that began with this.
    pub generation: u64,
}

/// The results of a version's first calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TallyCounts {
    /// The number of calls.
    pub calls: u32,
    /// The number of failed calls.
    pub errors: u32,
}

impl PromotionStore {
    /// Stores a bundle for review. The same document again changes nothing, also while it is promoted or after it
    /// was.
    ///
    /// # Errors
    /// Another document proposed code with the same id, the author has too many waiting proposals, or there is no
    /// room.
    pub fn propose(
        &self,
        new: NewProposal<'_>,
        act: AuditAct<'_>,
    ) -> Result<Proposal, PromotionStoreError> {
        self.decide(|connection| {
            let id = new.bundle.id();
            if let Some(known) = read::proposal(connection, id)? {
                if known.state != ProposalState::Rejected {
                    return same(known, new.bundle);
                }
                // An author whose bundle was rejected may propose it again, for example with better tests.
                connection.execute("DELETE FROM proposals WHERE id = ?1", [id.to_string()])?;
            }
            evict_rejected(connection, new.bundle, act)?;
            insert(connection, new, act)?;
            record(connection, act, "propose", id, None, None)?;
            read::proposal(connection, id)?.ok_or_else(|| {
                PromotionStoreError::Damaged("what was written is not there".to_owned())
            })
        })
    }

    /// Stores that a reviewer accepts a proposal. Once `needed` reviewers have agreed to the same terms, the store
    /// promotes it. A proposal that is already promoted becomes another version of its operation, for other callers.
    ///
    /// `key` is a key by which the present reviewer is known again. Its vote counts. An earlier vote counts if `counts`
    /// returns true for it.
    ///
    /// # Errors
    /// There is no such proposal, another one replaced the `judged` one, it waits for no review, it is already active
    /// with these terms, the reviewer is its author, or the node has its maximum number of operations.
    pub fn accept(
        &self,
        judged: &Proposal,
        terms: &PromotionTerms,
        needed: u32,
        counts: impl Fn(&ReviewVote) -> bool,
        key: Option<PeerKey>,
        act: AuditAct<'_>,
    ) -> Result<ReviewResult, PromotionStoreError> {
        let id = judged.id;
        self.decide(|connection| {
            let known = acceptable(connection, id, terms)?;
            // After a rejection, an author may propose the same code again, also another author or with other rights.
            if known.digest != judged.digest || known.found.authority != judged.found.authority {
                return Err(PromotionStoreError::Conflict(REPLACED.to_owned()));
            }
            if known.author.as_str() == act.who {
                return Err(PromotionStoreError::Conflict(
                    "a proposal is reviewed by another peer than its author".to_owned(),
                ));
            }
            // A reviewer's second agreement replaces the first, so each reviewer counts once.
            let sql = "INSERT OR REPLACE INTO reviews (id, reviewer, terms) VALUES (?1, ?2, ?3)";
            let vote = json(&StoredVote { terms, key })?;
            connection.execute(sql, params![id.to_string(), act.who, vote])?;
            let reviews = read::reviews(connection, id)?;
            // Reviewers count together only if they agreed to the same terms. A reviewer may have been removed, or may
            // have lost the scope, since its vote, and another one may have its name.
            let agrees = |vote: &&ReviewVote| {
                vote.terms == *terms && (vote.reviewer.as_str() == act.who || counts(vote))
            };
            let agree = reviews.iter().filter(agrees).count();
            let agree = u32::try_from(agree).unwrap_or(u32::MAX);
            if agree < needed {
                record(
                    connection,
                    act,
                    "accept",
                    id,
                    Some((&terms.path, None)),
                    None,
                )?;
                return Ok(ReviewResult::Waiting(agree));
            }
            promote(connection, id, terms, act).map(ReviewResult::Promoted)
        })
    }

    /// Rejects a proposal.
    ///
    /// # Errors
    /// The proposal does not exist, or it does not wait for a review.
    pub fn reject(&self, id: Blake3Hash, act: AuditAct<'_>) -> Result<(), PromotionStoreError> {
        self.decide(|connection| {
            waiting(connection, id)?;
            // The same code may be proposed again, and then has no reviews.
            connection.execute("DELETE FROM reviews WHERE id = ?1", [id.to_string()])?;
            set_state(connection, id, ProposalState::Rejected)?;
            record(connection, act, "reject", id, None, None)
        })
    }

    /// Makes another version current: the named one, or the one that the current version replaced. If it replaced
    /// none, the operation is removed.
    ///
    /// # Errors
    /// The operation or version does not exist, or the version is already current.
    pub fn rollback(
        &self,
        path: &str,
        to: Option<u64>,
        act: AuditAct<'_>,
    ) -> Result<RollbackResult, PromotionStoreError> {
        self.decide(|connection| {
            let versions = read::versions(connection, path)?;
            if versions.is_empty() {
                return Err(PromotionStoreError::Unknown(format!(
                    "'{path}' was never promoted"
                )));
            }
            let now = versions.iter().find(|it| it.current);
            let back = match (to, now) {
                (Some(to), _) => Some(to),
                (None, Some(now)) => now.replaced,
                (None, None) => {
                    let text = format!("'{path}' is not in place; name the version to put back");
                    return Err(PromotionStoreError::Conflict(text));
                }
            };
            if back.is_some() && back == now.map(|it| it.version) {
                let text = format!("version {} of '{path}' is in place", back.unwrap_or(0));
                return Err(PromotionStoreError::Conflict(text));
            }
            let back = back.map(|to| {
                let found = versions.iter().find(|it| it.version == to);
                found.ok_or_else(|| {
                    PromotionStoreError::Unknown(format!("'{path}' has no version {to}"))
                })
            });
            let back = back.transpose()?;
            let generation = next_generation(connection)?;
            match back {
                Some(back) => set_head(connection, path, back.version)?,
                None => {
                    connection.execute("DELETE FROM heads WHERE path = ?1", [path])?;
                }
            }
            let version = back.map(|it| it.version);
            // The code of either version may also be current under another path.
            for id in [now.map(|it| it.id), back.map(|it| it.id)]
                .into_iter()
                .flatten()
            {
                settle(connection, id)?;
                let what = Some((path, version));
                record(connection, act, "rollback", id, what, Some(generation))?;
            }
            Ok(RollbackResult {
                version,
                terms: back.map(|it| it.terms.clone()),
                replaced: now.map(|it| it.version),
                generation,
            })
        })
    }

    /// Stores the results of a version's first calls.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn tally(
        &self,
        path: &str,
        version: u64,
        tallied: TallyCounts,
    ) -> Result<(), PromotionStoreError> {
        self.write(|connection| {
            let sql =
                "UPDATE versions SET calls = ?3, errors = ?4 WHERE path = ?1 AND version = ?2";
            connection.execute(sql, params![path, version, tallied.calls, tallied.errors])?;
            Ok(())
        })
    }
}

fn same(known: Proposal, bundle: &PromotionBundle) -> Result<Proposal, PromotionStoreError> {
    match known.digest == bundle.digest() {
        true => Ok(known),
        false => Err(PromotionStoreError::Conflict(format!(
            "this code is {} already, by a bundle of '{}'",
            known.state.as_str(),
            known.author
        ))),
    }
}

/// Removes the oldest rejected proposals, as long as there is no room otherwise.
fn evict_rejected(
    connection: &Connection,
    bundle: &PromotionBundle,
    act: AuditAct<'_>,
) -> Result<(), PromotionStoreError> {
    let author = bundle.content().author.as_str();
    let sql = "SELECT count(*) FROM proposals WHERE author = ?1 AND state = 'proposed'";
    let waiting: u64 = connection.query_row(sql, [author], |row| row.get(0))?;
    // Waiting proposals are never removed to make room, so one author must not fill the store with them.
    if waiting >= WAITING_PER_AUTHOR_MAX {
        let text =
            format!("{waiting} proposals of '{author}' wait for a review; no more are taken");
        return Err(PromotionStoreError::Full(text));
    }
    let more = u64::try_from(bundle.document().len()).unwrap_or(u64::MAX);
    loop {
        let sql = "SELECT count(*), coalesce(sum(octet_length(document)), 0) FROM proposals";
        let (count, bytes): (u64, u64) =
            connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if count < BUNDLES_MAX && bytes.saturating_add(more) <= STORE_BYTES_MAX {
            return Ok(());
        }
        let sql = "DELETE FROM proposals WHERE seq = (SELECT min(seq) FROM proposals \
             WHERE state = 'rejected') RETURNING id";
        let gone = connection.query_row(sql, [], |row| row.get::<_, String>(0));
        match gone {
            Ok(id) => {
                let id = id.parse().map_err(|_| PromotionStoreError::Damaged(id))?;
                record(connection, act, "forget", id, None, None)?;
            }
            Err(rusqlite::Error::QueryReturnedNoRows) => {
                let text = "the node keeps as many bundles as it may".to_owned();
                return Err(PromotionStoreError::Full(text));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn insert(
    connection: &Connection,
    new: NewProposal<'_>,
    act: AuditAct<'_>,
) -> Result<(), PromotionStoreError> {
    let content = new.bundle.content();
    let sql = "INSERT INTO proposals (id, digest, name, author, state, at_s, found, document) \
         VALUES (?1, ?2, ?3, ?4, 'proposed', ?5, ?6, ?7)";
    connection.execute(
        sql,
        params![
            new.bundle.id().to_string(),
            new.bundle.digest().to_string(),
            content.spec.name,
            content.author.as_str(),
            act.at_s,
            json(new.found)?,
            new.bundle.document(),
        ],
    )?;
    Ok(())
}

fn waiting(connection: &Connection, id: Blake3Hash) -> Result<Proposal, PromotionStoreError> {
    let known = read::proposal(connection, id)?;
    let known =
        known.ok_or_else(|| PromotionStoreError::Unknown(format!("there is no proposal {id}")))?;
    match known.state {
        ProposalState::Proposed => Ok(known),
        state => Err(PromotionStoreError::Conflict(format!(
            "the proposal is {} and waits for no review",
            state.as_str()
        ))),
    }
}

/// A proposal that waits for review, or that is active at the path of `terms` with other terms.
fn acceptable(
    connection: &Connection,
    id: Blake3Hash,
    terms: &PromotionTerms,
) -> Result<Proposal, PromotionStoreError> {
    let known = read::proposal(connection, id)?;
    let Some(known) = known.filter(|it| it.state == ProposalState::Promoted) else {
        return waiting(connection, id);
    };
    let versions = read::versions(connection, &terms.path)?;
    let now = versions.iter().find(|it| it.current && it.id == id);
    let why = match now {
        Some(now) if now.terms != *terms => return Ok(known),
        Some(now) => format!(
            "the proposal is version {} of '{}' already, for these callers",
            now.version, terms.path
        ),
        None => "the proposal is promoted under another path and waits for no review".to_owned(),
    };
    Err(PromotionStoreError::Conflict(why))
}

fn promote(
    connection: &Connection,
    id: Blake3Hash,
    terms: &PromotionTerms,
    act: AuditAct<'_>,
) -> Result<OperationVersion, PromotionStoreError> {
    let path = terms.path.as_str();
    let versions = read::versions(connection, path)?;
    let now = versions.iter().find(|it| it.current);
    let paths: u64 = connection.query_row("SELECT count(*) FROM heads", [], |row| row.get(0))?;
    // A new version of an installed operation needs no further path.
    if now.is_none() && paths >= PATHS_MAX {
        let text = format!("the node has {paths} promoted operations; no more are taken");
        return Err(PromotionStoreError::Full(text));
    }
    let generation = next_generation(connection)?;
    let version = OperationVersion {
        path: path.to_owned(),
        // The number follows those of all versions that ever existed: a rollback frees no number.
        version: versions.first().map_or(1, |newest| newest.version + 1),
        id,
        terms: terms.clone(),
        replaced: now.map(|it| it.version),
        generation,
        at_s: act.at_s,
        calls: 0,
        errors: 0,
        current: true,
    };
    let sql = "INSERT INTO versions (path, version, id, terms, replaced, generation, at_s) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    connection.execute(
        sql,
        params![
            version.path,
            version.version,
            id.to_string(),
            json(terms)?,
            version.replaced,
            generation,
            act.at_s,
        ],
    )?;
    set_head(connection, path, version.version)?;
    set_state(connection, id, ProposalState::Promoted)?;
    // The replaced code may also be current under another path.
    if let Some(now) = now {
        settle(connection, now.id)?;
    }
    let what = Some((path, Some(version.version)));
    record(connection, act, "promote", id, what, Some(generation))?;
    Ok(version)
}

fn next_generation(connection: &Connection) -> Result<u64, PromotionStoreError> {
    let sql = "UPDATE generation SET number = number + 1 RETURNING number";
    Ok(connection.query_row(sql, [], |row| row.get(0))?)
}

fn set_head(connection: &Connection, path: &str, version: u64) -> Result<(), PromotionStoreError> {
    let sql = "INSERT OR REPLACE INTO heads (path, version) VALUES (?1, ?2)";
    connection.execute(sql, params![path, version])?;
    Ok(())
}

fn set_state(
    connection: &Connection,
    id: Blake3Hash,
    state: ProposalState,
) -> Result<(), PromotionStoreError> {
    let sql = "UPDATE proposals SET state = ?2 WHERE id = ?1";
    connection.execute(sql, params![id.to_string(), state.as_str()])?;
    Ok(())
}

/// Sets the state to promoted if a path has the code as its current version, or else to retired.
fn settle(connection: &Connection, id: Blake3Hash) -> Result<(), PromotionStoreError> {
    let sql = "SELECT count(*) FROM versions v JOIN heads h \
         ON h.path = v.path AND h.version = v.version WHERE v.id = ?1";
    let places: u64 = connection.query_row(sql, [id.to_string()], |row| row.get(0))?;
    let state = match places {
        0 => ProposalState::Retired,
        _ => ProposalState::Promoted,
    };
    set_state(connection, id, state)
}

fn record(
    connection: &Connection,
    act: AuditAct<'_>,
    did: &str,
    id: Blake3Hash,
    what: Option<(&str, Option<u64>)>,
    generation: Option<u64>,
) -> Result<(), PromotionStoreError> {
    let sql = "INSERT INTO audit (at_s, who, did, id, path, version, generation, note) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let (path, version) = (what.map(|it| it.0), what.and_then(|it| it.1));
    connection.execute(
        sql,
        params![
            act.at_s,
            act.who,
            did,
            id.to_string(),
            path,
            version,
            generation,
            act.note
        ],
    )?;
    Ok(())
}

fn json<T: Serialize>(value: &T) -> Result<String, PromotionStoreError> {
    serde_json::to_string(value).map_err(|error| PromotionStoreError::Unusable(error.to_string()))
}
