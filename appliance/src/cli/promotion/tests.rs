use clap::Parser;

use super::*;

#[derive(Parser)]
struct PromotionTestCli {
    #[command(subcommand)]
    verb: PromotionVerb,
}

fn parsed(words: &[&str]) -> Result<PromotionVerb, clap::Error> {
    let all = ["ops"].iter().chain(words);
    PromotionTestCli::try_parse_from(all).map(|alone| alone.verb)
}

#[test]
fn a_decision_says_what_was_asked_for() {
    let id = "3f".repeat(32);
    let input = |words: &[&str]| {
        let all: Vec<_> = ["promote", "node", &id]
            .iter()
            .chain(words)
            .copied()
            .collect();
        match parsed(&all) {
            Ok(PromotionVerb::Promote(args)) => Some(decision(&args)),
            _ => None,
        }
    };
    assert_eq!(input(&[]), Some(json!({ "accept": true, "reason": "" })));
    assert_eq!(
        input(&[
            "--external",
            "--scope",
            "a:b",
            "--path",
            "a/b",
            "--reason",
            "good"
        ]),
        Some(json!({
            "accept": true, "reason": "good", "path": "a/b", "external": true,
            "scopes": ["a:b"],
        }))
    );
    assert_eq!(
        input(&["--reject"]),
        Some(json!({ "accept": false, "reason": "" }))
    );
    for bad in [&["--reject", "--external"][..], &["--scope", "a"]] {
        assert_eq!(input(bad), None, "{bad:?}");
    }
    assert!(
        parsed(&["promote", "node", "a b"]).is_err(),
        "no name and no id"
    );
    let by_name = parsed(&["approve", "node", "invoice/total"]);
    assert!(
        matches!(by_name, Ok(PromotionVerb::Promote(_))),
        "{by_name:?}"
    );
}

#[test]
fn an_author_is_known_by_its_key() {
    let listed = json!({ "peers": [
        { "peer_id": "edge", "keys": ["ed25519:01"] },
        { "peer_id": "admin", "keys": ["ed25519:02", "ed25519:03"] },
        { "peer_id": "key:monitor0" },
    ] });
    let name = |key| holder(&listed, key).map(|id| id.to_string());
    assert_eq!(name("ed25519:03").as_deref(), Some("admin"));
    assert_eq!(name("ed25519:04"), None);
}

#[test]
fn a_second_key_is_where_the_user_says() {
    let id = "3f".repeat(32);
    for (words, expected) in [
        (&["--external"][..], Some("")),
        (&["--second-key"], Some(" --second-key")),
        (
            &["--second-key=/media/a stick", "--path", "a/b"],
            Some(" --path a/b --second-key='/media/a stick'"),
        ),
        // The word behind it is the proposal, or one too many.
        (&["--second-key", "/media/stick"], None),
    ] {
        let all = [&["promote", "node", id.as_str()], words].concat();
        let found = match parsed(&all) {
            Ok(PromotionVerb::Promote(args)) => Some(again(&args)),
            _ => None,
        };
        assert_eq!(found.as_deref(), expected, "{words:?}");
    }
}

#[test]
fn what_counts_later_is_said() {
    let active = |active: bool| json!({ "path": "js/a", "version": 1, "active": active });
    let waits = "active: false, until the next start of the node".to_owned();
    assert!(lines(&active(false)).contains(&waits));
    let version = json!({ "version": 2, "id": "3f", "generation": 4, "current": true });
    let mut whole = json!({ "path": "js/a", "versions": [version], "current": 2, "active": 2 });
    assert!(!lines(&whole).concat().contains("next start"));
    for (active, runs) in [
        (Value::Null, "runs no version now"),
        (1.into(), "runs version 1 now"),
    ] {
        whole["active"] = active;
        let shown = lines(&whole).join("\n");
        assert!(
            shown.contains(runs) && shown.contains("next start"),
            "{shown}"
        );
    }
}

#[test]
fn a_reviewer_reads_grants_tests_record_and_difference() {
    let answer = json!({
        "proposal": { "id": "3f", "name": "a/b", "author": "ada", "state": "proposed",
                      "digest": "9c" },
        "description": "Adds.",
        "grants": [{ "text": "calls 'fs/read'" }],
        "report": { "cases": [{ "name": "two", "passed": true, "fuel": 3 },
            { "name": "three", "passed": false, "reason": "it did not fail", "fuel": 0 }] },
        "against": null,
        "difference": "-a\n+b\nneeded: 0\n",
        "needed": 1,
        "record": [{ "who": "ada", "did": "propose", "note": "" }],
    });
    assert_eq!(
        lines(&answer),
        [
            "3f  proposed  ada               a/b",
            "digest: 9c",
            "description: Adds.",
            "needed: 1",
            "grant: calls 'fs/read'",
            "test passed: two (3 ticks)",
            "test failed: three: it did not fail",
            "record: ada propose",
            "-a",
            "+b",
            "? needed: 0",
        ]
    );
}
