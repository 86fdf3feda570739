//! Plans of queries that would read a whole table without their index.

use super::*;

/// What SQLite says of how it runs a query.
fn plan(db: &StoreDb, query: &'static str, parameters: usize) -> String {
    let read = db.read(move |tx| {
        let nulls = vec![rusqlite::types::Null; parameters];
        tx.query_all(query, rusqlite::params_from_iter(nulls), |row| {
            row.get::<_, String>(3)
        })
    });
    read.wait().expect("SQL").join("\n")
}

#[test]
fn queries_over_large_tables_have_their_index() {
    let (_dir, path) = scratch();
    let db = open(&path);
    for (query, parameters, expected) in [
        (
            "EXPLAIN QUERY PLAN SELECT hash, verified_ms FROM blob \
             WHERE state = ?1 AND verified_ms > ?2 AND (verified_ms, hash) < (?3, ?4) \
             ORDER BY verified_ms DESC, hash DESC LIMIT ?5",
            5,
            "USING INDEX blob_verified",
        ),
        (
            "EXPLAIN QUERY PLAN SELECT seq FROM commit_ WHERE hlc < ?1 ORDER BY hlc DESC, seq DESC LIMIT 1",
            1,
            "USING COVERING INDEX commit_time (hlc<?)",
        ),
        (
            "EXPLAIN QUERY PLAN SELECT c.merge_seq FROM commit_ c \
             WHERE c.branch_id = ?1 AND c.merge_branch = ?2 AND c.seq <= ?3 ORDER BY c.seq DESC LIMIT 1",
            3,
            "USING INDEX commit_merge (branch_id=? AND merge_branch=? AND rowid<?)",
        ),
        (
            "EXPLAIN QUERY PLAN SELECT min(c.merge_branch) FROM commit_ c \
             WHERE c.branch_id = ?1 AND c.merge_branch > ?2",
            2,
            "USING COVERING INDEX commit_merge (branch_id=? AND merge_branch>?)",
        ),
        (
            "EXPLAIN QUERY PLAN SELECT c.seq FROM commit_ c \
             WHERE c.bucket_id = ?1 AND c.branch_id = ?2 AND c.seq > ?3 AND c.seq <= ?4 ORDER BY c.seq LIMIT ?5",
            5,
            "INDEX commit_branch (bucket_id=? AND branch_id=? AND rowid>? AND rowid<?)",
        ),
        (
            "EXPLAIN QUERY PLAN DELETE FROM commit_ WHERE seq = ?1 \
             AND NOT EXISTS (SELECT 1 FROM entry WHERE entry.seq = ?1)",
            1,
            "INDEX entry_seq",
        ),
        (
            "EXPLAIN QUERY PLAN SELECT k.wanted, k.charged FROM bucket b CROSS JOIN blob_bucket k \
             ON k.hash = ?1 AND k.bucket_id = b.id WHERE b.name = ?2",
            2,
            "(name=?)\nSEARCH k USING PRIMARY KEY (hash=? AND bucket_id=?)",
        ),
        (
            "EXPLAIN QUERY PLAN SELECT count(*) FROM (SELECT 1 FROM blob WHERE state = 3 LIMIT ?1)",
            1,
            "USING COVERING INDEX blob_bad (state=?)",
        ),
        (
            "EXPLAIN QUERY PLAN SELECT b.hash FROM blob b CROSS JOIN blob_bucket k \
             ON k.hash = b.hash AND k.bucket_id = ?1 \
             WHERE b.state = 3 AND b.hash >= ?2 AND k.wanted = 0 AND k.refs > 0 ORDER BY b.hash LIMIT ?3",
            3,
            "blob_bad (state=? AND hash>?)\nSEARCH k USING PRIMARY KEY (hash=? AND bucket_id=?)",
        ),
    ] {
        let found = plan(&db, query, parameters);
        assert!(found.contains(expected), "{query}: {found}");
        assert!(!found.contains("TEMP B-TREE"), "{query}: {found}");
    }
}
