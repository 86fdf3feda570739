//! A file of the first format.

use super::*;
use crate::address::{BranchName, BucketName};
use crate::hash::ContentHash;
use crate::names::{BranchId, BucketId};
use crate::outbox::ConsumerName;
use crate::path::EntryPath;
use crate::queue::{NewJob, QueueName};

/// What the first version wrote, as SQL: a bucket with two branches, a file, and its event with a member that a later
/// version may add.
const SAMPLE: &str = r#"
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
INSERT INTO meta VALUES ('store_id', x'07070707070707070707070707070707');
INSERT INTO meta VALUES ('schema_version', 1);
INSERT INTO meta VALUES ('hlc', x'01a3185c500000000707070707070707');
INSERT INTO bucket VALUES (1, 'docs', 'files', 'alice', 1800000000000, 10737418240, 1000000, 604800, 'off', 'live', 'full',
  NULL, NULL);
INSERT INTO usage VALUES (1, 307, 1, 0);
INSERT INTO commit_ VALUES (1, 1, 1, 1800000000000, x'01a3185c500000000707070707070707', 'alice', 'put', 'first',
  NULL, NULL);
INSERT INTO branch VALUES (1, 1, 'main', NULL, NULL, 1, 1800000000000, NULL, 0, 'open', NULL, NULL, 0);
INSERT INTO branch VALUES (2, 1, 'draft', 1, 1, 1, 1800000000000, NULL, 0, 'open', 1, NULL, 0);
INSERT INTO chain VALUES (1, 0, 1, 4611686018427387904);
INSERT INTO chain VALUES (2, 0, 2, 4611686018427387904);
INSERT INTO chain VALUES (2, 1, 1, 1);
INSERT INTO blob VALUES (x'0303030303030303030303030303030303030303030303030303030303030303', 300, 2, 1800000000000, NULL);
INSERT INTO blob_bucket VALUES (x'0303030303030303030303030303030303030303030303030303030303030303', 1, 1, 300, 0);
INSERT INTO entry VALUES (1, '/', 'a.txt', 1, 1, x'0303030303030303030303030303030303030303030303030303030303030303', 300, 420,
  1800000000000000000, NULL, x'0102');
INSERT INTO sync_doc VALUES (1, x'09090909090909090909090909090909', NULL, 1);
INSERT INTO sync_peer VALUES (1, 'bob', x'4300');
INSERT INTO outbox VALUES (1, NULL, 1, NULL, 'bucket.create', '{"bucket":"docs","actor":"alice"}', 1800000000000, 33);
INSERT INTO outbox VALUES (2, 1, 1, 1, 'fs.put', '{"bucket":"docs","branch":"main","seq":1,"path":"/a.txt","later":1}',
  1800000000000, 100);
PRAGMA application_id = 1634495334;
PRAGMA user_version = 1;
"#;

#[test]
fn a_file_of_the_first_format_is_read() {
    let (_dir, path) = scratch();
    let connection = Connection::open(&path).expect("a new file");
    connection.execute_batch(SAMPLE).expect("SQL");
    drop(connection);
    let db = open(&path);
    assert_eq!(db.store_id(), [7; 16]);
    assert!(!db.was_closed_in_order());
    assert_eq!(*db.last_event().borrow(), 2);
    let file: EntryPath = "/a.txt".parse().expect("a path");
    let read = db.read(move |tx| {
        let bucket = tx.bucket_by_name(&BucketName::parse("docs")?)?;
        // The branch has no row of its own: the file is found through its chain.
        let draft = tx.branch_by_name(bucket.id, &BranchName::parse("draft")?)?;
        let view = tx.view(draft.id, None)?;
        let versions = tx.history(&view, &file, None, 10)?;
        let wrong = tx.wrong_references(bucket.id)?;
        let usage = (tx.usage(bucket.id)?, tx.recount(bucket.id)?);
        Ok((bucket, tx.stat(&view, &file)?, versions, usage, wrong))
    });
    let (bucket, entry, versions, (usage, counted), wrong) = read.wait().expect("readable");
    assert_eq!(bucket.owner, "alice");
    assert_eq!(bucket.quota_bytes, Some(10 << 30));
    assert_eq!(entry.seq, 1);
    assert_eq!(entry.state.hash, Some(ContentHash::new([3; 32])));
    assert_eq!((entry.state.size, entry.state.mode), (300, 0o644));
    assert_eq!(entry.state.xattr, Some(vec![1, 2]));
    let [version] = versions.as_slice() else {
        panic!("one version: {versions:?}");
    };
    assert_eq!(version.message.as_deref(), Some("first"));
    assert_eq!(version.timestamp.ms(), 1_800_000_000_000);
    // The content, two bytes of attributes and five of the message.
    assert_eq!((usage.bytes, usage.entries), (307, 1));
    assert_eq!(usage, counted);
    assert_eq!(wrong, Vec::<ContentHash>::new());
    let synced = db.read(|tx| {
        let main = BranchId::new(1).into();
        Ok((tx.sync_document(&main)?, tx.sync_peer(&main, "bob")?))
    });
    let (document, peer) = synced.wait().expect("readable");
    let document = document.expect("a document");
    // Parts of a document have a table of their own since then.
    assert_eq!((document.copy_id, document.applied), ([9; 16], 1));
    assert_eq!(document.chunks, Vec::<Vec<u8>>::new());
    assert_eq!(peer, Some(vec![0x43, 0]));
    let events = db.read(|tx| {
        let query = "SELECT payload FROM outbox WHERE topic = ?1";
        tx.query_all(query, [EventTopic::Put.name()], |row| {
            row.get::<_, String>(0)
        })
    });
    let events = events.wait().expect("readable");
    let [event] = events.as_slice() else {
        panic!("one event: {events:?}");
    };
    let payload: EventPayload = serde_json::from_str(event).expect("an event");
    assert_eq!(payload.path.as_deref(), Some("/a.txt"));
}

/// The first format has the name of a bucket in the names of its queues and consumers, and counts no bytes of jobs.
const QUEUES: &str = "
INSERT INTO bucket VALUES (2, '#2', 'files', 'eve', 1800000000000, NULL, NULL, 604800, 'off', 'deleting', 'full', NULL, NULL);
INSERT INTO usage VALUES (2, 0, 0, 0);
INSERT INTO job VALUES (1, 'docs/mail/a', 'text', 1, 0, NULL, 'job:docs/mail/a:k:1');
INSERT INTO job VALUES (2, 'docs/mail/a', 'more', 2, 0, NULL, NULL);
INSERT INTO job VALUES (3, 'gone/mail', 'secret', 1, 0, NULL, NULL);
INSERT INTO job VALUES (4, 'lock', '{}', 5, 0, 5, 'lock:1:/a.txt');
INSERT INTO consumer VALUES ('docs/c', 2, NULL, NULL);
INSERT INTO consumer VALUES ('gone/c', 2, NULL, NULL);
";

#[test]
fn queues_of_the_first_format_get_the_number_of_their_bucket() {
    let (_dir, path) = scratch();
    let connection = Connection::open(&path).expect("a new file");
    connection.execute_batch(SAMPLE).expect("SQL");
    connection.execute_batch(QUEUES).expect("SQL");
    drop(connection);
    let bucket = BucketId::new(1);
    let read = |db: &StoreDb| {
        let read = db.read(move |tx| {
            let queue = QueueName::parse(bucket, "mail/a")?;
            let consumer = tx.outbox_consumer(&ConsumerName::parse(bucket, "c")?)?;
            assert_eq!(consumer.cursor, 2);
            assert_eq!(tx.queue_usage(&queue)?.waiting, 2);
            let rows = tx.query_count("SELECT count(*) FROM job", [])?;
            let consumers = tx.query_count("SELECT count(*) FROM consumer", [])?;
            assert_eq!((rows, consumers), (3, 1), "what is of no bucket is gone");
            Ok((tx.usage(bucket)?, tx.recount(bucket)?))
        });
        let (usage, counted) = read.wait().expect("readable");
        assert_eq!(usage, counted);
        usage.bytes
    };
    let db = open(&path);
    let bytes = read(&db);
    assert!(bytes > 307 + 8, "{bytes}");
    // The key is that of the caller, so that the job is there for it.
    let enqueued = db.write(move |tx| {
        let queue = QueueName::parse(bucket, "mail/a")?;
        let mut job = NewJob::new(queue, "text");
        job.key = Some("k:1".to_owned());
        tx.enqueue(&job)
    });
    let enqueued = enqueued.wait().expect("room");
    assert_eq!((enqueued.id, enqueued.is_new), (1, false));
    drop(db);
    // An earlier program wrote beside them, and its rows are taken over once more.
    let connection = Connection::open(&path).expect("a file");
    let later = "INSERT INTO job VALUES (9, 'docs/late', 'text', 1, 0, NULL, NULL)";
    connection.execute(later, []).expect("SQL");
    let twice = "INSERT INTO consumer VALUES ('docs/c', 1, NULL, NULL)";
    connection.execute(twice, []).expect("SQL");
    connection
        .execute("DELETE FROM job WHERE id = 4", [])
        .expect("SQL");
    drop(connection);
    let db = open(&path);
    assert!(read(&db) > bytes);
}
