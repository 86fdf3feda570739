//! Who may connect, and what shows that they are it.

use super::*;

#[test]
fn a_key_belongs_to_one_holder() {
    let key = format!("ed25519:{}", "ab".repeat(32));
    let twice = format!("[node]\nadmin_keys = [\"{key}\",\n\"{key}\"]");
    assert_diagnostic(&twice, &["line 3", "node.admin_keys[0]"]);
    let peer = |id: &str, n: &str| {
        format!(
            "[[peers]]\npeer_id = \"{id}\"\nkeys = [\"spki:{}\"]\n",
            n.repeat(32)
        )
    };
    let shared = peer("a", "01") + &peer("b", "01");
    assert_diagnostic(&shared, &["peers[1].keys[0]", "peers[0].keys[0]"]);
    assert_diagnostic(&(peer("a", "01") + &peer("a", "02")), &["'a' is taken"]);
    let admin =
        format!("node.admin_keys = [\"{key}\"]\n[[peers]]\npeer_id = \"x\"\nkeys = [\"{key}\"]");
    assert_diagnostic(&admin, &["peers[0].keys[0]", "node.admin_keys[0]"]);
}

#[test]
fn peers_cannot_be_administrators_by_another_way() {
    let peer = |id: &str, scope: &str| {
        let key = format!("spki:{}", "01".repeat(32));
        format!("[[peers]]\npeer_id = \"{id}\"\nkeys = [\"{key}\"]\nscopes = [\"{scope}\"]\n")
    };
    for id in ["admin", "admin-2", "admin-07"] {
        assert_diagnostic(&peer(id, "fs:read"), &["node.admin_keys"]);
    }
    for scope in ["*", "admin", "admin:*"] {
        assert_diagnostic(&peer("a", scope), &["belongs to administrators"]);
    }
    for scope in ["", ":", "a::b", "*:a", "a*", "a b", "a:*:*", "a\\tb"] {
        assert_diagnostic(&peer("a", scope), &["is no scope"]);
    }
    for scope in ["a", "a:b", "a:*", "fs:read:docs/2026", "ssh:exec:uptime"] {
        assert!(NodeConfig::parse(peer("admin-x", scope).as_bytes()).is_ok());
    }
}

#[test]
fn tokens_are_hashes_with_one_holder() {
    let hash = |name: &str| format!("{name}:{}", "ab".repeat(32));
    let peer =
        |id: &str, tokens: &str| format!("[[peers]]\npeer_id = \"{id}\"\ntokens = [{tokens}]\n");
    let one = peer("a", &format!("\"{}\"", hash("a1b2c3d4")));
    let config = NodeConfig::parse(one.as_bytes()).expect("a token instead of a key");
    assert_eq!(config.entries().peers[0].token_hashes.len(), 1);
    assert_diagnostic(
        &peer("a", ""),
        &["peers[0].tokens", "needs a key or a token"],
    );
    assert_diagnostic("[[peers]]\npeer_id = \"a\"", &["peers[0].keys", "missing"]);

    let api_key = format!(
        "[[api_keys]]\nkey_id = \"a1b2c3d4\"\nsha256 = \"{}\"\n",
        "cd".repeat(32)
    );
    let twice = format!("{one}{api_key}");
    assert_diagnostic(&twice, &["api_keys[0].key_id", "peers[0].tokens[0]"]);
    let short = api_key.replace("a1b2c3d4", "a1b2");
    assert_diagnostic(&short, &["the 8 characters after alk_"]);
    let upper = api_key.replace("cd", "CD");
    assert_diagnostic(&upper, &["64 lower-case"]);
}

/// A token that an administrator pastes in place of its hash is not copied into a log.
#[test]
fn a_token_in_the_document_is_not_repeated() {
    let token = crate::AuthToken::generate().expect("randomness");
    let secret = &token.expose()[13..];
    let document = format!(
        "[[peers]]\npeer_id = \"a\"\ntokens = [\"{0}\"]\n[[api_keys]]\nkey_id = \"{0}\"\nsha256 = \"{0}\"\n",
        token.expose()
    );
    let errors = refused(&document);
    assert_eq!(errors.len(), 3, "{errors:#?}");
    assert!(
        errors.iter().all(|error| !error.contains(secret)),
        "{errors:#?}"
    );
}

#[test]
fn peers_have_bounds_and_an_end() {
    let peer = |rest: &str| {
        format!(
            "[[peers]]\npeer_id = \"a\"\nkeys = [\"spki:{}\"]\n{rest}\n",
            "01".repeat(32)
        )
    };
    let one = NodeConfig::parse(peer("expires = \"1970-01-01T00:01:00+00:00\"").as_bytes());
    assert_eq!(one.expect("correct").entries().peers[0].expires, Some(60));
    assert_diagnostic(
        &peer("expires = \"tomorrow\""),
        &["is no moment", "2027-01-31"],
    );
    assert_diagnostic(
        &peer("expires = 2027-01-31T12:00:00Z"),
        &["expected a string"],
    );
    for number in ["0", "4097", "-1"] {
        let wrong = peer(&format!("max_connections = {number}"));
        assert_diagnostic(&wrong, &["out of range", "from 1 to 4096"]);
    }
    assert_diagnostic(
        &peer("addresses = [\"http://x\"]"),
        &["no address of a peer"],
    );
    assert_diagnostic(&peer("display_name = \"a\\nb\""), &["no line of text"]);
    assert_diagnostic(&peer("resources = [\"a\"]"), &["expected a table"]);
    assert_diagnostic(
        &peer("resources = { \"a b\" = [] }"),
        &["names no resource"],
    );
    assert_diagnostic(
        &peer("resources = { disk = \"vda\" }"),
        &["expected a list"],
    );
}
