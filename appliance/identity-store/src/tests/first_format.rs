//! A file of the first format.

use rusqlite::Connection;

use super::*;

/// What the first version wrote, as SQL: one peer and one token, each with a member that a later version may add.
const SAMPLE: &str = r#"
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
INSERT INTO peers VALUES ('peer-1', '{"peer_id":"peer-1",
    "keys":["ed25519:0101010101010101010101010101010101010101010101010101010101010101"],"token_hashes":[],
    "scopes":["fs:read:*","work"],"resources":{},"addresses":["edge.example.org:4433"],"display_name":null,
    "enabled":true,"expires":null,"max_connections":null,"later":1}');
INSERT INTO api_keys VALUES ('abcd0123', '{
    "token":"abcd0123:4444444444444444444444444444444444444444444444444444444444444444",
    "scopes":["metrics:read"],"resources":{"fs":["docs"]},"description":"hall","expires":null,"later":1}');
PRAGMA application_id = 1634495337;
PRAGMA user_version = 1;
"#;

#[test]
fn a_file_of_the_first_format_is_read() {
    let (_dir, path) = place();
    let connection = Connection::open(&path).expect("a new file");
    connection.execute_batch(SAMPLE).expect("SQL");
    drop(connection);
    let (db, stored) = IdentityDb::open(&path);
    assert_eq!(db.diagnostics(), Vec::new());
    assert_eq!(stored.peers, [peer(1)]);
    let [token] = stored.api_keys.as_slice() else {
        panic!("one token: {stored:?}");
    };
    assert_eq!(token.token.key_id.as_str(), "abcd0123");
    assert_eq!(token.token.sha256, [0x44; 32]);
    assert_eq!(token.scopes, ["metrics:read"].into_iter().collect());
    assert_eq!(token.resources, [("fs".into(), vec!["docs".into()])].into());
    assert_eq!(token.description.as_deref(), Some("hall"));
}
