//! Branches: lines of versions of a bucket's tree.

use rusqlite::{Row, params};

use super::{BranchId, BucketId, read_name};
use crate::address::BranchName;
use crate::db::{ReadTransaction, WriteTransaction, from_sql, to_sql, to_sql_option};
use crate::error::{StoreError, StoreObject};
use crate::limits::{BRANCHES_MAX, CHAIN_LEVELS_MAX, PAGE_ENTRIES_MAX, SEQ_MAX};
use crate::outbox::{EventPayload, EventTopic};

/// Whether a branch takes changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BranchState {
    /// It does.
    Open,
    /// It does not: another branch took it in.
    Merged,
    /// It does not.
    Closed,
    /// It is deleted, and its rows are being removed.
    Deleted,
}

impl BranchState {
    const ALL: [Self; 4] = [Self::Open, Self::Merged, Self::Closed, Self::Deleted];

    /// The name in the row and in responses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Merged => "merged",
            Self::Closed => "closed",
            Self::Deleted => "deleted",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// A branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Its number.
    pub id: BranchId,
    /// The bucket that it belongs to.
    pub bucket: BucketId,
    /// Its name.
    pub name: BranchName,
    /// The branch that it was made from. `None` for the first branch of a bucket.
    pub parent: Option<BranchId>,
    /// The last commit of the parent that it has taken in: where it began, or its last rebase.
    pub base_seq: Option<u64>,
    /// Its last commit. Before the first one, that of the parent which it began at.
    pub head_seq: u64,
    /// When it was made, in milliseconds since 1970-01-01 UTC.
    pub created_ms: u64,
    /// When it may be deleted, in milliseconds since 1970-01-01 UTC.
    pub expires_ms: Option<u64>,
    /// Whether it takes merges only.
    pub is_protected: bool,
    /// Whether it takes changes.
    pub state: BranchState,
    /// Where on its parent it began.
    pub(crate) origin_seq: Option<u64>,
}

/// A branch to be made.
#[derive(Clone, Debug)]
pub struct NewBranch {
    /// Its name.
    pub name: BranchName,
    /// The branch that it begins from.
    pub parent: BranchId,
    /// The commit that it begins at. `None` is the last one.
    pub seq: Option<u64>,
    /// Who makes it.
    pub actor: String,
    /// When it may be deleted, in milliseconds since 1970-01-01 UTC.
    pub expires_ms: Option<u64>,
    /// Whether it takes merges only.
    pub is_protected: bool,
}

impl NewBranch {
    /// A branch from the head of another one.
    #[must_use]
    pub fn new(name: BranchName, parent: BranchId, actor: &str) -> Self {
        Self {
            name,
            parent,
            seq: None,
            actor: actor.to_owned(),
            expires_ms: None,
            is_protected: false,
        }
    }
}

macro_rules! select_branch {
    ($condition:literal) => {
        concat!(
            "SELECT id, bucket_id, name, parent_id, base_seq, head_seq, created_ms, expires_ms, protected, state, origin_seq \
             FROM branch ",
            $condition
        )
    };
}

fn read_branch(row: &Row<'_>) -> rusqlite::Result<Branch> {
    let number = |number: Option<i64>| number.map(from_sql);
    Ok(Branch {
        id: row.get(0)?,
        bucket: row.get(1)?,
        name: BranchName::from_stored(row.get(2)?),
        parent: row.get(3)?,
        base_seq: number(row.get(4)?),
        head_seq: from_sql(row.get(5)?),
        created_ms: from_sql(row.get(6)?),
        expires_ms: number(row.get(7)?),
        is_protected: row.get(8)?,
        state: read_name(row, 9, BranchState::from_name)?,
        origin_seq: number(row.get(10)?),
    })
}

impl ReadTransaction<'_> {
    /// The branch with this number.
    ///
    /// # Errors
    /// The store has no such branch.
    pub fn branch(&self, id: BranchId) -> Result<Branch, StoreError> {
        let query = select_branch!("WHERE id = ?1 AND state <> 'deleted'");
        let branch = self.query_row(query, [id], read_branch)?;
        branch.ok_or(StoreError::NotFound(StoreObject::Branch))
    }

    /// The branch of a bucket with this name.
    ///
    /// # Errors
    /// The store has no such branch.
    pub fn branch_by_name(
        &self,
        bucket: BucketId,
        name: &BranchName,
    ) -> Result<Branch, StoreError> {
        let query = select_branch!("WHERE bucket_id = ?1 AND name = ?2 AND state <> 'deleted'");
        let branch = self.query_row(query, params![bucket, name.as_str()], read_branch)?;
        branch.ok_or(StoreError::NotFound(StoreObject::Branch))
    }

    /// Branches of a bucket in the order of their names, behind this one.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn branches(
        &self,
        bucket: BucketId,
        after: Option<&BranchName>,
        limit: usize,
    ) -> Result<Vec<Branch>, StoreError> {
        let after = after.map_or("", BranchName::as_str);
        let limit = to_sql(limit.clamp(1, PAGE_ENTRIES_MAX) as u64);
        let query = select_branch!(
            "WHERE bucket_id = ?1 AND name > ?2 AND state <> 'deleted' ORDER BY name LIMIT ?3"
        );
        self.query_all(query, params![bucket, after, limit], read_branch)
    }

    /// Branches that read through this one, children and their children, the newest first.
    pub(super) fn descendants(&self, id: BranchId) -> Result<Vec<BranchId>, StoreError> {
        self.query_all(
            "SELECT c.branch_id FROM chain c JOIN branch b ON b.id = c.branch_id \
             WHERE c.anc_id = ?1 AND c.branch_id <> ?1 AND b.state <> 'deleted' ORDER BY c.branch_id DESC",
            [id],
            |row| row.get(0),
        )
    }
}

impl WriteTransaction<'_> {
    /// Makes a branch. It copies nothing, unless it would be the 17th level: then it gets copies of the rows that its
    /// ancestors show.
    ///
    /// # Errors
    /// The name is taken, the parent does not exist or does not have that version, or the bucket has too many branches.
    pub fn create_branch(&mut self, new: &NewBranch) -> Result<Branch, StoreError> {
        super::commit::check_actor(&new.actor)?;
        self.check_space()?;
        let parent = self.branch(new.parent)?;
        let bucket = self.writable_bucket(parent.bucket)?;
        let taken = "SELECT count(*) FROM branch WHERE bucket_id = ?1 AND name = ?2";
        if self.query_count(taken, params![bucket.id, new.name.as_str()])? > 0 {
            return Err(StoreError::Exists(StoreObject::Branch));
        }
        let count = "SELECT count(*) FROM branch WHERE bucket_id = ?1";
        if self.query_count(count, [bucket.id])? >= BRANCHES_MAX {
            return Err(StoreError::TooLarge {
                unit: "branches in a bucket",
                limit: BRANCHES_MAX,
            });
        }
        // A later commit of the parent has a higher number, so that the branch never shows it.
        let base = new
            .seq
            .map_or(parent.head_seq, |seq| seq.min(parent.head_seq));
        let view = self.view(parent.id, Some(base))?;
        let id = self.insert(
            "INSERT INTO branch(bucket_id, name, parent_id, base_seq, head_seq, created_ms, expires_ms, protected, \
             origin_seq) VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?6, ?7, ?4)",
            params![
                bucket.id,
                new.name.as_str(),
                parent.id,
                to_sql(base),
                to_sql(self.unix_ms()),
                to_sql_option(new.expires_ms),
                new.is_protected,
            ],
        )?;
        let id = BranchId::new(id);
        let level = "INSERT INTO chain(branch_id, depth, anc_id, max_seq) VALUES (?1, ?2, ?3, ?4)";
        self.execute(level, params![id, 0, id, to_sql(SEQ_MAX)])?;
        for (above, ancestor) in view.levels.iter().enumerate() {
            let depth = to_sql(above as u64 + 1);
            let max_seq = to_sql(ancestor.max_seq);
            self.execute(level, params![id, depth, ancestor.branch, max_seq])?;
        }
        // A read looks at each level, so branches of branches would make every read of the newest
        // one slower.
        if view.levels.len() >= CHAIN_LEVELS_MAX {
            self.flatten(&bucket, id)?;
        }
        let payload = EventPayload {
            bucket: Some(bucket.name.to_string()),
            branch: Some(new.name.to_string()),
            seq: Some(base),
            actor: Some(new.actor.clone()),
            ..EventPayload::default()
        };
        self.emit(
            EventTopic::BranchCreate,
            Some(bucket.id),
            Some(id),
            &payload,
        )?;
        self.branch(id)
    }

    /// Changes when a branch may be deleted, and whether it takes merges only.
    ///
    /// # Errors
    /// The branch does not exist, or its bucket is frozen.
    pub fn set_branch(
        &mut self,
        id: BranchId,
        expires_ms: Option<u64>,
        is_protected: bool,
    ) -> Result<Branch, StoreError> {
        self.writable_bucket(self.branch(id)?.bucket)?;
        let set = "UPDATE branch SET expires_ms = ?2, protected = ?3 WHERE id = ?1";
        self.execute(set, params![id, to_sql_option(expires_ms), is_protected])?;
        self.branch(id)
    }
}
