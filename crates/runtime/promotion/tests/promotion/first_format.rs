//! A file of the first format.

use alknet_promotion::{AuthoritySnapshot, PromotionStore, ProposalFilter, ProposalState};
use rusqlite::Connection;

use crate::killed::found;

/// What the first version wrote, as SQL: one version that was promoted, with its vote and its record. The JSON has
/// members that a later version may add.
const SAMPLE: &str = r#"
CREATE TABLE generation (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    number INTEGER NOT NULL
) STRICT;
INSERT INTO generation VALUES (1, 4);
CREATE TABLE proposals (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    name TEXT NOT NULL,
    author TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('proposed', 'promoted', 'rejected', 'retired')),
    at_s INTEGER,
    found TEXT NOT NULL,
    document TEXT NOT NULL
) STRICT;
CREATE TABLE reviews (
    id TEXT NOT NULL REFERENCES proposals (id) ON DELETE CASCADE,
    reviewer TEXT NOT NULL,
    terms TEXT NOT NULL,
    PRIMARY KEY (id, reviewer)
) STRICT, WITHOUT ROWID;
CREATE TABLE versions (
    path TEXT NOT NULL,
    version INTEGER NOT NULL,
    id TEXT NOT NULL REFERENCES proposals (id),
    terms TEXT NOT NULL,
    replaced INTEGER,
    generation INTEGER NOT NULL,
    at_s INTEGER,
    calls INTEGER NOT NULL DEFAULT 0,
    errors INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (path, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX versions_by_id ON versions (id);
CREATE TABLE heads (
    path TEXT NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,
    FOREIGN KEY (path, version) REFERENCES versions (path, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE audit (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at_s INTEGER,
    who TEXT NOT NULL,
    did TEXT NOT NULL,
    id TEXT NOT NULL,
    path TEXT,
    version INTEGER,
    generation INTEGER,
    note TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_id ON audit (id);
CREATE TRIGGER audit_stays BEFORE DELETE ON audit
    BEGIN SELECT RAISE(ABORT, 'the record is only added to'); END;
CREATE TRIGGER audit_as_it_was BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the record is only added to'); END;
INSERT INTO proposals VALUES (1, '1111111111111111111111111111111111111111111111111111111111111111',
    '2222222222222222222222222222222222222222222222222222222222222222', 'a', 'ada', 'promoted', 1800000000,
    '{"authority":{"scopes":[],"resources":{}},"imports":[],"report":{"name":"a","passed":true,"cases":[],
    "fuel":{"p50":0,"p99":0},"uncovered":[]},"later":1}', '{}');
INSERT INTO reviews VALUES ('1111111111111111111111111111111111111111111111111111111111111111', 'bob',
    '{"path":"js/a","external":true,"scopes":["work"],
    "key":"ed25519:0101010101010101010101010101010101010101010101010101010101010101","later":1}');
INSERT INTO versions VALUES ('js/a', 1, '1111111111111111111111111111111111111111111111111111111111111111',
    '{"path":"js/a","external":true,"scopes":["work"],"later":1}', NULL, 4, 1800000001, 7, 2);
INSERT INTO heads VALUES ('js/a', 1);
INSERT INTO audit VALUES (1, 1800000001, 'bob', 'promote',
    '1111111111111111111111111111111111111111111111111111111111111111', 'js/a', 1, 4, 'it is good');
PRAGMA application_id = 1634495344;
PRAGMA user_version = 1;
"#;

#[test]
fn a_file_of_the_first_format_is_read() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("promotion.db");
    let connection = Connection::open(&path).expect("a new file");
    connection.execute_batch(SAMPLE).expect("SQL");
    drop(connection);
    let store = PromotionStore::open(&path).expect("a file of this program");
    let proposals = store.proposals(&ProposalFilter::default(), 10);
    let proposals = proposals.expect("readable");
    let [proposal] = proposals.as_slice() else {
        panic!("one proposal: {proposals:?}");
    };
    assert_eq!((&*proposal.name, proposal.at_s), ("a", Some(1_800_000_000)));
    assert_eq!(proposal.author.as_str(), "ada");
    assert_eq!(proposal.state, ProposalState::Promoted);
    assert_eq!(proposal.found, found());
    assert_eq!(proposal.found.authority, AuthoritySnapshot::default());
    let (generation, heads) = store.heads().expect("readable");
    let [version] = heads.as_slice() else {
        panic!("one version: {heads:?}");
    };
    assert_eq!((generation, version.generation), (4, 4));
    assert_eq!((&*version.path, version.version), ("js/a", 1));
    assert_eq!((version.calls, version.errors), (7, 2));
    assert_eq!((version.id, version.replaced), (proposal.id, None));
    assert_eq!(version.terms.scopes, ["work"]);
    assert!(version.terms.external && version.current);
    let reviews = store.reviews(proposal.id).expect("readable");
    assert_eq!(reviews[0].reviewer.as_str(), "bob");
    assert!(reviews[0].key.is_some() && reviews[0].terms == version.terms);
    let audit = store.audit(proposal.id).expect("readable");
    assert_eq!((&*audit[0].did, &*audit[0].note), ("promote", "it is good"));
}
