//! The tables, and the numbers by which a file says that it has them.

use rusqlite::{Connection, TransactionBehavior, params};

/// `application_id` of the file: "alkf".
pub const STORE_APPLICATION_ID: i64 = 0x616c_6b66;

/// `user_version` of the file. A program leaves a file with a higher version alone.
pub const STORE_SCHEMA_VERSION: i64 = 1;

/// Set before the first table, because SQLite cannot change them later without a copy of the file.
pub(crate) const CREATION_PRAGMAS: &str =
    "PRAGMA page_size = 8192; PRAGMA auto_vacuum = INCREMENTAL;";

/// `meta` key of the random identity of the store, 16 bytes.
pub(crate) const META_STORE_ID: &str = "store_id";

/// `meta` key that exists only while the file is closed and was closed in order.
pub(crate) const META_CLEAN_SHUTDOWN: &str = "clean_shutdown";

/// `meta` key of the clock's last value.
pub(crate) const META_CLOCK: &str = "hlc";

/// `meta` key of the number of the last event that was removed from the outbox.
pub(crate) const META_EVENTS_PRUNED: &str = "outbox_pruned";

/// `meta` key of the number of the last job. `job.id` itself would be used again after the deletion of its row.
pub(crate) const META_LAST_JOB: &str = "job_last";

/// `meta` key that exists while no content may be swept.
pub(crate) const META_SWEEP_HELD: &str = "sweep_held";

/// Tables and indexes that came after the first format. An earlier program reads a file with them and leaves them alone, so
/// they need no new version: it synchronises nothing and knows no shares.
///
/// Since then `job.queue` and `consumer.name` begin with `#`, the number of a bucket and `/`, and `usage.bytes` counts the jobs
/// of a bucket. An earlier program finds no such row.
///
/// The document of a branch lies in parts in `sync_log`: one of them grows by what was added, and SQLite writes no value in
/// place. `sync_doc.doc` has the heads of the document, 32 bytes each: whether a peer has the same is known without it.
/// Where each name in the root of a branch has a document of its own, `sync_part` numbers them, and `sync_doc`, `sync_log`
/// and `sync_peer` have such a number, negated, in the place of that of the branch. `saved_ms` is when the document of a
/// part changed last. `blob_bad` has the contents that proved damaged or lost, which are state 3: to count and to list them
/// costs as much as there are of them.
pub(crate) const LATER_TABLES: &str = "
CREATE INDEX IF NOT EXISTS job_due ON job(queue, run_at_ms, id);
CREATE TABLE IF NOT EXISTS share(
  id BLOB PRIMARY KEY, hash BLOB NOT NULL, bucket_id INTEGER NOT NULL, grantee TEXT NOT NULL, owner TEXT NOT NULL,
  created_ms INTEGER NOT NULL, until_ms INTEGER NOT NULL, bytes_left INTEGER, uses_left INTEGER) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS share_grantee ON share(grantee, hash);
CREATE INDEX IF NOT EXISTS share_bucket ON share(bucket_id);
CREATE INDEX IF NOT EXISTS share_end ON share(until_ms);
CREATE TABLE IF NOT EXISTS sync_log(id INTEGER PRIMARY KEY AUTOINCREMENT, branch_id INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS sync_log_branch ON sync_log(branch_id, id);
CREATE TABLE IF NOT EXISTS sync_part(
  id INTEGER PRIMARY KEY AUTOINCREMENT, branch_id INTEGER NOT NULL, top TEXT NOT NULL, saved_ms INTEGER NOT NULL,
  UNIQUE(branch_id, top));
CREATE INDEX IF NOT EXISTS blob_bucket_wanted ON blob_bucket(bucket_id, hash) WHERE wanted = 1;
CREATE INDEX IF NOT EXISTS blob_bad ON blob(state, hash) WHERE state = 3;
";

/// The tables. Text of enumerations is checked when it is read.
///
/// Numbers of buckets and branches are never used again (`AUTOINCREMENT`): commits, events and merges of a deleted branch
/// keep its number. `origin_seq` is where on its parent a branch began, and `base_seq` moves with a rebase. The level of a
/// branch with `flat_seq` has copies of the rows that its ancestors showed at that commit, and below `pruned_seq` a
/// collection may have removed rows of it. `collected_ms` is the last time that a collection of the bucket believed, and
/// `jump_ms` one that it did not believe. `end_bytes` counts the bytes of the payloads up to this one, so that the
/// difference of two rows says what lies between them. `blob_bucket.charged` is what the bucket pays for a content, and
/// `wanted` says that it has no right to the bytes yet.
const TABLES: &str = "
CREATE TABLE meta(k TEXT PRIMARY KEY, v BLOB) WITHOUT ROWID;
CREATE TABLE bucket(
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL DEFAULT 'files',
  owner TEXT NOT NULL, created_ms INTEGER NOT NULL,
  quota_bytes INTEGER, quota_entries INTEGER, retention_s INTEGER NOT NULL DEFAULT 604800,
  sync TEXT NOT NULL DEFAULT 'off', state TEXT NOT NULL DEFAULT 'live',
  durability TEXT NOT NULL DEFAULT 'full',
  collected_ms INTEGER, jump_ms INTEGER);
CREATE TABLE branch(
  id INTEGER PRIMARY KEY AUTOINCREMENT, bucket_id INTEGER NOT NULL REFERENCES bucket, name TEXT NOT NULL,
  parent_id INTEGER REFERENCES branch, base_seq INTEGER,
  head_seq INTEGER NOT NULL DEFAULT 0, created_ms INTEGER NOT NULL, expires_ms INTEGER,
  protected INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT 'open',
  origin_seq INTEGER, flat_seq INTEGER, pruned_seq INTEGER NOT NULL DEFAULT 0,
  UNIQUE(bucket_id,name));
CREATE INDEX branch_parent ON branch(parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX branch_deleted ON branch(state) WHERE state = 'deleted';
CREATE INDEX branch_expires ON branch(expires_ms) WHERE expires_ms IS NOT NULL;
CREATE TABLE chain(
  branch_id INTEGER NOT NULL, depth INTEGER NOT NULL, anc_id INTEGER NOT NULL, max_seq INTEGER NOT NULL,
  PRIMARY KEY(branch_id,depth)) WITHOUT ROWID;
CREATE INDEX chain_ancestor ON chain(anc_id);
CREATE TABLE commit_(
  seq INTEGER PRIMARY KEY AUTOINCREMENT, bucket_id INTEGER NOT NULL, branch_id INTEGER NOT NULL,
  ts_ms INTEGER NOT NULL, hlc BLOB NOT NULL, actor TEXT NOT NULL, op TEXT NOT NULL, message TEXT,
  merge_branch INTEGER, merge_seq INTEGER);
CREATE INDEX commit_branch ON commit_(bucket_id, branch_id);
CREATE INDEX commit_merge ON commit_(branch_id, merge_branch) WHERE merge_branch IS NOT NULL;
CREATE INDEX commit_time ON commit_(hlc);
CREATE TABLE entry(
  branch_id INTEGER NOT NULL, parent TEXT NOT NULL, name TEXT NOT NULL, seq INTEGER NOT NULL REFERENCES commit_,
  kind INTEGER NOT NULL,
  hash BLOB CHECK(hash IS NULL OR length(hash)=32), size INTEGER NOT NULL DEFAULT 0,
  mode INTEGER NOT NULL DEFAULT 420, mtime_ns INTEGER NOT NULL, target TEXT, xattr BLOB,
  PRIMARY KEY(branch_id,parent,name,seq)) WITHOUT ROWID;
CREATE INDEX entry_hash ON entry(hash) WHERE hash IS NOT NULL;
CREATE INDEX entry_seq ON entry(seq, branch_id);
CREATE TABLE inline_(hash BLOB PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE blob(
  hash BLOB PRIMARY KEY, size INTEGER NOT NULL, state INTEGER NOT NULL,
  verified_ms INTEGER, fetched_from TEXT) WITHOUT ROWID;
CREATE INDEX blob_verified ON blob(verified_ms) WHERE verified_ms IS NOT NULL;
CREATE TABLE blob_bucket(hash BLOB, bucket_id INTEGER, refs INTEGER NOT NULL,
  charged INTEGER NOT NULL DEFAULT 0, wanted INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY(hash,bucket_id)) WITHOUT ROWID;
CREATE INDEX blob_bucket_bucket ON blob_bucket(bucket_id);
CREATE INDEX blob_bucket_unused ON blob_bucket(bucket_id) WHERE refs = 0;
CREATE TABLE pin(hash BLOB, owner TEXT, until_ms INTEGER, recursive INTEGER, PRIMARY KEY(hash,owner)) WITHOUT ROWID;
CREATE TABLE snapshot(bucket_id INTEGER, name TEXT, branch_id INTEGER, seq INTEGER, created_ms INTEGER,
  PRIMARY KEY(bucket_id,name)) WITHOUT ROWID;
CREATE TABLE session(
  id BLOB PRIMARY KEY, branch_id INTEGER, parent TEXT, name TEXT, base_hash BLOB, mode TEXT,
  identity TEXT, staged TEXT, size INTEGER, opened_ms INTEGER, touched_ms INTEGER, state TEXT) WITHOUT ROWID;
CREATE TABLE usage(bucket_id INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, entries INTEGER NOT NULL, staged INTEGER NOT NULL);
CREATE TABLE outbox(id INTEGER PRIMARY KEY AUTOINCREMENT, seq INTEGER, bucket_id INTEGER, branch_id INTEGER,
  topic TEXT NOT NULL, payload TEXT NOT NULL, ts_ms INTEGER NOT NULL, end_bytes INTEGER NOT NULL DEFAULT 0);
CREATE TABLE consumer(name TEXT PRIMARY KEY, cursor INTEGER NOT NULL, lease_ms INTEGER, owner TEXT) WITHOUT ROWID;
CREATE TABLE job(id INTEGER PRIMARY KEY, queue TEXT, payload TEXT, run_at_ms INTEGER, tries INTEGER, lease_ms INTEGER,
  key TEXT UNIQUE);
CREATE TABLE sync_doc(branch_id INTEGER PRIMARY KEY, doc_id BLOB, doc BLOB, applied INTEGER);
CREATE TABLE sync_peer(branch_id INTEGER, peer TEXT, state BLOB, PRIMARY KEY(branch_id,peer)) WITHOUT ROWID;
";

/// How many contents proved damaged or lost, and at most so many. The state is written out, because the index of these
/// contents serves no query with a parameter in its place.
pub(crate) const DAMAGED_CONTENTS: &str =
    "SELECT count(*) FROM (SELECT 1 FROM blob WHERE state = 3 LIMIT ?1)";

/// Whether a queue or a consumer has the name of its bucket before its own, as in the first format.
const HAS_NAMED_ROWS: &str = "
SELECT EXISTS (SELECT 1 FROM job WHERE queue >= '$' AND queue < 'lock') OR EXISTS (SELECT 1 FROM job WHERE queue > 'lock')
  OR EXISTS (SELECT 1 FROM consumer WHERE name >= '$')";

/// Puts the number of the bucket in the place of its name, and counts the bytes of the jobs against its quota. Rows whose
/// bucket is gone go as well. An earlier program may have written rows beside those that have a number: they are counted
/// afresh, and where both exist, the row with the number stays.
const NUMBER_ROWS: &str = "
UPDATE usage SET bytes = bytes - (SELECT coalesce(sum(octet_length(payload) + octet_length(queue)
  + coalesce(octet_length(key), 0)), 0) FROM job WHERE queue > '#' || bucket_id || '/' AND queue < '#' || bucket_id || '0');
DELETE FROM job WHERE queue >= '$' AND queue <> 'lock' AND NOT EXISTS
  (SELECT 1 FROM bucket b WHERE b.name = substr(job.queue, 1, instr(job.queue, '/') - 1));
UPDATE OR IGNORE job SET
  key = 'job:#' || (SELECT b.id FROM bucket b WHERE b.name = substr(job.queue, 1, instr(job.queue, '/') - 1))
    || substr(queue, instr(queue, '/')) || substr(key, length('job:' || queue) + 1),
  queue = '#' || (SELECT b.id FROM bucket b WHERE b.name = substr(job.queue, 1, instr(job.queue, '/') - 1))
    || substr(queue, instr(queue, '/'))
  WHERE queue >= '$' AND queue <> 'lock';
DELETE FROM job WHERE queue >= '$' AND queue <> 'lock';
UPDATE usage SET bytes = bytes + (SELECT coalesce(sum(octet_length(payload) + octet_length(queue)
  + coalesce(octet_length(key), 0)), 0) FROM job WHERE queue > '#' || bucket_id || '/' AND queue < '#' || bucket_id || '0');
DELETE FROM consumer WHERE name >= '$' AND NOT EXISTS
  (SELECT 1 FROM bucket b WHERE b.name = substr(consumer.name, 1, instr(consumer.name, '/') - 1));
UPDATE OR IGNORE consumer SET
  name = '#' || (SELECT b.id FROM bucket b WHERE b.name = substr(consumer.name, 1, instr(consumer.name, '/') - 1))
    || substr(name, instr(name, '/'))
  WHERE name >= '$';
DELETE FROM consumer WHERE name >= '$';
";

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreFileKind {
    /// A file without tables.
    Empty,
    /// A file of this program, of this version.
    Ours,
    /// A file of this program, of a later version.
    Newer(i64),
    /// The database of another program, or one that has lost its tables.
    Foreign,
}

pub(crate) fn identify(connection: &Connection) -> rusqlite::Result<StoreFileKind> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables = "SELECT count(*) FROM sqlite_schema";
    let tables: i64 = connection.query_row(tables, [], |row| row.get(0))?;
    Ok(match (application, version) {
        // A file without these numbers but with tables belongs to another program.
        (0, 0) if tables == 0 => StoreFileKind::Empty,
        (STORE_APPLICATION_ID, STORE_SCHEMA_VERSION) if tables > 0 => StoreFileKind::Ours,
        (STORE_APPLICATION_ID, later) if later > STORE_SCHEMA_VERSION => {
            StoreFileKind::Newer(later)
        }
        _ => StoreFileKind::Foreign,
    })
}

/// Takes queues and consumers from the form of the first format: under the name of a bucket that was deleted, another one
/// got its jobs.
pub(crate) fn number_rows(connection: &mut Connection) -> rusqlite::Result<()> {
    // Asked first, and of the index alone: later starts write nothing.
    if !connection.query_row(HAS_NAMED_ROWS, [], |row| row.get::<_, bool>(0))? {
        return Ok(());
    }
    // All or nothing: after a power cut between two statements the quota would have counted the jobs twice.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(NUMBER_ROWS)?;
    transaction.commit()
}

/// Creates all tables, or none of them. The mark that holds the sweep is in the same transaction: without it, the next
/// start after a power cut would take the file for one that knows all names.
pub(crate) fn create(
    connection: &mut Connection,
    store_id: [u8; 16],
    is_sweep_held: bool,
) -> rusqlite::Result<()> {
    // One transaction: a power cut leaves an empty file, which the next start fills, and no half of
    // the tables.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    let put = "INSERT INTO meta VALUES (?1, ?2)";
    transaction.execute(put, params![META_STORE_ID, store_id])?;
    transaction.execute(put, params!["schema_version", STORE_SCHEMA_VERSION])?;
    if is_sweep_held {
        transaction.execute(put, params![META_SWEEP_HELD, 1])?;
    }
    // The numbers are written in the transaction of the tables: without them, the next start would
    // take the file for a foreign one.
    transaction.pragma_update(None, "application_id", STORE_APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", STORE_SCHEMA_VERSION)?;
    transaction.commit()
}
