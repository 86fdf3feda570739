//! What an administrator takes from a peer of a hub, and what the peer, or the thief of its key, tries then.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use alknet_tests::{CliRunner, HostNode, TestBench, eventually};
use serde_json::{Value, json};

use super::enrolment::{EnrolmentNode, hub_config, invite, run};
use super::promoted_callers::{OperationDraft, configuration, propose};

/// Enrols, and returns the id.
fn enrolled(cli: &CliRunner, join: &str) -> String {
    let joined = run(cli, &["enroll", join]).json();
    joined["peer_id"].as_str().expect("an id").to_owned()
}

/// Tries to enrol with each of these keys.
fn are_refused(users: &[&CliRunner], join: &str) {
    for user in users {
        let refused = run(user, &["enroll", join]);
        assert_eq!(refused.code(), "ENROLL_INVALID", "{refused:?}");
    }
}

/// The thief has the disk of a peer: its key, and the text of the invitation in its configuration, which has a use left.
#[test]
fn the_thief_of_a_key_is_not_let_in_by_the_invitation_of_the_peer() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let [stolen, thief, next] = ["stolen", "thief", "next"].map(|name| bench.user(name));
    let count = ["--role", "user", "--count", "2"];
    let join = invite(&bench, &hub, &count);
    let id = enrolled(&stolen, &join);
    let admin = bench.admin();
    let set = |id: &str, more: [&str; 2]| {
        let words = [&["peer", "set", &hub.target, id][..], &more].concat();
        run(admin, &words).json()
    };
    let changed = set(&id, ["--key", &next.identity()]);
    assert_eq!(changed["closed"].as_array().map(Vec::len), Some(1));
    are_refused(&[&stolen, &thief], &join);
    let known = |user: &CliRunner| user.call(&hub.target, "node/info", &Value::Null, &[]);
    assert_eq!(known(&stolen).code(), "UNAUTHENTICATED");
    assert_eq!(known(&next).status, 0, "it has its new key");

    // An administrator gives a peer an hour, and not another one under another key.
    let guest = bench.user("guest");
    let join = invite(&bench, &hub, &count);
    let id = enrolled(&guest, &join);
    let changed = set(&id, ["--expires", "1h"]);
    assert_eq!(changed["closed"].as_array().map(Vec::len), Some(1));
    are_refused(&[&thief], &join);
    assert_eq!(known(&guest).status, 0, "the hour is not over");
}

/// An administrator added the peer by its key, and not by an invitation. It has the text of one all the same.
#[test]
fn a_removed_peer_that_was_added_is_not_let_in_by_an_older_invitation() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let [added, one, two] = ["added", "one", "two"].map(|name| bench.user(name));
    let join = invite(&bench, &hub, &["--role", "user", "--count", "2"]);
    let admin = bench.admin();
    let key = added.identity();
    run(admin, &["peer", "add", &hub.target, "mate", "--key", &key]).json();
    let remove = || run(admin, &["peer", "remove", &hub.target, "mate"]).json();
    assert_eq!(remove()["known"], true);
    are_refused(&[&added], &join);
    // Other keys use it up. With no open invitation the node has no reason to keep the key.
    for user in [&one, &two] {
        enrolled(user, &join);
    }
    assert_eq!(remove()["known"], false);
    let newer = invite(&bench, &hub, &["--role", "user"]);
    enrolled(&added, &newer);
}

/// A peer of the configuration made an invitation. It is taken out, and another one gets its name: the holder of the
/// invitation has no part in that.
#[test]
fn an_invitation_does_not_pass_to_another_peer_of_the_same_name() {
    let bench = TestBench::new();
    let [mate, other, one, two] = ["mate", "other", "one", "two"].map(|name| bench.user(name));
    let entry = |peer: &CliRunner| {
        let key = peer.identity();
        format!("[[peers]]\npeer_id = \"mate\"\nkeys = [\"{key}\"]\nscopes = [\"hub:invite\"]\n")
    };
    let hub = "[hub]\nenabled = true\n";
    let node = EnrolmentNode::start(&bench, "hub", &format!("{hub}{}", entry(&mate)), "0");
    let words = ["hub", "invite", &node.target, "--count", "5"];
    let answer = run(&mate, &words).json();
    let join = answer["join"].as_str().expect("a join string");
    enrolled(&one, join);
    let admin = bench.admin();
    let apply = |entry: &str| {
        let document = format!("node.admin_keys = [\"{}\"]\n{hub}{entry}", admin.identity());
        let input = json!({ "document": document });
        admin.call(&node.target, "config/apply", &input, &[]).json();
    };
    for entry in [String::new(), entry(&other)] {
        apply(&entry);
        are_refused(&[&two], join);
    }
    // The peer that made it is back.
    apply(&entry(&mate));
    enrolled(&two, join);
    // A client or an administrator that causes many of these records displaces only its own: the log knows both.
    let mut log = admin.subscribe(&node.target, "node/log", &json!({ "last": 1000 }));
    let records: Vec<_> = log.by_ref().map(|it| it["message"].to_string()).collect();
    for (event, payer) in [
        ("enrol.refused", " addr=127.0.0.1:"),
        ("config.apply", " by="),
    ] {
        let has = |text: &String| text.contains(event) && text.contains(payer);
        assert!(records.iter().any(has), "{event}{payer}: {records:#?}");
    }
}

/// The thief of one of the keys of a peer of the configuration makes an invitation with it. The administrator takes that
/// key out, and the peer keeps the other one.
#[test]
fn an_invitation_ends_with_the_key_that_made_it() {
    let bench = TestBench::new();
    let [mate, stolen, one, two] = ["mate", "stolen", "one", "two"].map(|name| bench.user(name));
    let config = |keys: &[String]| {
        let hub =
            "[hub]\nenabled = true\n[[peers]]\npeer_id = \"mate\"\nscopes = [\"hub:invite\"]\n";
        format!("{hub}keys = {keys:?}\n")
    };
    let keys = [mate.identity(), stolen.identity()];
    let node = EnrolmentNode::start(&bench, "hub", &config(&keys), "0");
    let joins = [&mate, &stolen].map(|who| {
        let words = ["hub", "invite", &node.target, "--count", "5"];
        let answer = run(who, &words).json();
        answer["join"].as_str().expect("a join string").to_owned()
    });
    for join in &joins {
        enrolled(&one, join);
    }
    let document = json!({ "document": config(&keys[..1]) });
    let admin = bench.admin();
    admin
        .call(&node.target, "config/apply", &document, &[])
        .json();
    are_refused(&[&two], &joins[1]);
    enrolled(&two, &joins[0]);
}

/// The administrator takes out the key of a peer, and the node cannot keep that, as every user may write to the folder of
/// its configuration. Something else that is written there makes the node read the older file.
#[test]
fn a_key_stays_out_where_the_configuration_without_it_is_not_kept() {
    let bench = TestBench::new();
    let [mate, other] = ["mate", "other"].map(|name| bench.user(name));
    let config = |who: &CliRunner| configuration("", &[("mate", who, &["node:read"])]);
    let folder = bench.path().join("open");
    fs::create_dir(&folder).expect("the folder is ours");
    let file = folder.join("node.toml");
    fs::write(&file, config(&mate)).expect("the folder is ours");
    let node = HostNode::start_with(&bench.path().join("host"), bench.admin(), Some(&file));
    let known = |who: &CliRunner| who.call(node.target(), "node/info", &Value::Null, &[]);
    assert_eq!(known(&mate).status, 0);
    let open = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(&folder, open).expect("the folder is ours");
    let answer = node.call("config/apply", &json!({ "document": "" }));
    assert_eq!(answer["kept"], false, "{answer}");
    fs::write(folder.join("another"), "").expect("the folder is ours");
    eventually("the node passes over the file", || {
        assert_eq!(known(&mate).code(), "UNAUTHENTICATED");
        let log = node.try_call("node/log", &json!({ "last": 100 }));
        log.output
            .contains("is older than the configuration in force")
            .then_some(())
    });
    assert_eq!(known(&mate).code(), "UNAUTHENTICATED");
    // A change of the file counts.
    fs::write(&file, config(&other)).expect("the folder is ours");
    eventually("the node reads the changed file", || {
        (known(&other).status == 0).then_some(())
    });
    assert_eq!(known(&mate).code(), "UNAUTHENTICATED");
}

/// Two reviewers have to agree. The first is taken out of the configuration, and another peer gets its name.
#[test]
fn the_vote_of_a_reviewer_does_not_pass_to_another_peer_of_its_name() {
    let bench = TestBench::new();
    let [ada, rev, bob, other] = ["ada", "rev", "bob", "other"].map(|name| bench.user(name));
    let config = |rev: &CliRunner| {
        let people: [(_, _, &[&str]); 3] = [
            ("ada", &ada, &["ops:propose"]),
            ("rev", rev, &["ops:promote"]),
            ("bob", &bob, &["ops:promote"]),
        ];
        configuration("reviews = 2\n", &people)
    };
    let node = bench.host_with(&config(&rev));
    let draft = OperationDraft::waits("first");
    let id = propose(&bench, node.target(), ("ada", &ada), &draft);
    let accept = |who: &CliRunner| {
        let vote = json!({ "id": id, "accept": true });
        who.call(node.target(), "ops/promote", &vote, &[]).json()
    };
    assert_eq!(accept(&rev)["reviews"], 1);
    node.call("config/apply", &json!({ "document": config(&other) }));
    assert_eq!(accept(&bob)["reviews"], 1, "it waits");
    assert_eq!(accept(&other)["active"], true, "it has a vote of its own");
}

/// What a peer with `hub:admin` would do to another one.
fn attempts(peer: &str) -> [(&'static str, Value); 4] {
    let pool = json!({ "pool": "mine" });
    [
        ("hub/peers/remove", json!({ "peer": peer })),
        ("hub/peers/label", json!({ "peer": peer, "set": pool })),
        ("hub/peers/label", json!({ "peer": peer, "name": "mine" })),
        (
            "hub/peers/label",
            json!({ "peer": peer, "unset": ["role"] }),
        ),
    ]
}

/// A peer with `hub:admin` has power over those that enrolled and may do no more than it, and over no other peer.
#[test]
fn who_administers_enrolled_peers_changes_no_other_peer() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let users = ["porter", "rev", "user", "worker"].map(|name| bench.user(name));
    let [porter, rev, user, worker] = &users;
    let (admin, key) = (bench.admin(), rev.identity());
    let scope = ["--scope", "node:read"];
    let add = ["peer", "add", &hub.target, "rev", "--key", &key];
    run(admin, &[&add[..], &scope].concat()).json();
    let roles = [(porter, "porter"), (user, "user"), (worker, "worker")];
    let [_, above, below] =
        roles.map(|(cli, role)| enrolled(cli, &invite(&bench, &hub, &["--role", role])));
    let call = |who: &CliRunner, name: &str, input: &Value| who.call(&hub.target, name, input, &[]);
    for peer in ["rev", &above] {
        for (name, input) in attempts(peer) {
            let refused = call(porter, name, &input);
            assert_eq!(refused.code(), "FORBIDDEN", "{name} {input}: {refused:?}");
        }
    }
    let listed = call(admin, "hub/peers", &Value::Null).json();
    let rows = listed["peers"].as_array().expect("a list");
    let row = |id: &str| rows.iter().find(|row| row["peer_id"] == id);
    let row = |id: &str| row(id).expect("it is there");
    assert_eq!(
        (&row("rev")["name"], &row("rev")["scopes"]),
        (&json!("rev"), &json!(["node:read"]))
    );
    assert_eq!(row(&above)["labels"]["role"], "user");
    assert_eq!(call(rev, "node/info", &Value::Null).status, 0);
    for (name, input) in &attempts(&below)[1..3] {
        assert_eq!(call(porter, name, input).status, 0, "{input}");
    }
    assert_eq!(
        call(porter, "hub/peers/remove", &json!({ "peer": below })).status,
        0
    );
    // An administrator removes any of them.
    for peer in ["rev", &above] {
        let removed = run(admin, &["hub", "remove", &hub.target, peer]).json();
        assert_eq!(removed["peer_id"], peer);
    }
}

/// Other peers wait with the invitations of a hub: who may do less than a role does not end theirs.
#[test]
fn who_administers_enrolled_peers_closes_no_invitation_above_it() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let users = ["porter", "one", "two", "three", "four"].map(|name| bench.user(name));
    let [porter, one, two, above, below] = &users;
    enrolled(porter, &invite(&bench, &hub, &["--role", "porter"]));
    let [first, second] = [one, two].map(|cli| enrolled(cli, &invite(&bench, &hub, &[])));
    let [of_user, of_worker] =
        ["user", "worker"].map(|role| invite(&bench, &hub, &["--role", role]));
    let remove = |who: &CliRunner, peer: &str| {
        let words = ["hub", "remove", &hub.target, peer, "--close-invitations"];
        run(who, &words).json()
    };
    let removed = remove(porter, &first);
    let open = removed["open"].as_array().expect("a list");
    let roles: Vec<_> = open.iter().map(|open| &open["role"]).collect();
    assert_eq!(roles, ["user"], "{removed}");
    are_refused(&[below], &of_worker);
    enrolled(above, &of_user);
    // An administrator closes them all.
    let of_user = invite(&bench, &hub, &["--role", "user"]);
    assert_eq!(remove(bench.admin(), &second)["open"], json!([]));
    are_refused(&[below], &of_user);
}

/// A removal knows by it that the peer enrolled, and keeps the peer's keys.
#[test]
fn the_label_of_a_role_is_no_callers_to_change() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let [porter, worker] = ["porter", "worker"].map(|name| bench.user(name));
    let [_, id] = [(&porter, "porter"), (&worker, "worker")]
        .map(|(cli, role)| enrolled(cli, &invite(&bench, &hub, &["--role", role])));
    for change in [
        json!({ "peer": id, "unset": ["role"] }),
        json!({ "peer": id, "set": { "role": "porter" } }),
    ] {
        for who in [&porter, bench.admin()] {
            let refused = who.call(&hub.target, "hub/peers/label", &change, &[]);
            assert_eq!(refused.code(), "INVALID_INPUT", "{change}: {refused:?}");
        }
    }
}

/// An administrator added the peer and put it out. It sends an enrolment request, and has a new invitation of a peer with `hub:invite`.
#[test]
fn a_peer_that_an_administrator_put_out_comes_back_by_an_administrator_alone() {
    let bench = TestBench::new();
    let config = hub_config().replace("enabled = true", "enabled = true\nenroll = \"approve\"");
    let hub = EnrolmentNode::start(&bench, "hub", &config, "0");
    let [porter, mate, user, former, smaller] =
        ["porter", "mate", "user", "former", "smaller"].map(|name| bench.user(name));
    enrolled(&porter, &invite(&bench, &hub, &["--role", "porter"]));
    // A node makes its key at its first start.
    let node = EnrolmentNode::start(&bench, "cellar", "", "0");
    let applicant = node.key().to_owned();
    drop(node);
    let admin = bench.admin();
    for (name, key) in [("cellar", &applicant), ("mate", &mate.identity())] {
        run(admin, &["peer", "add", &hub.target, name, "--key", key]).json();
        run(admin, &["peer", "set", &hub.target, name, "--disable"]).json();
    }
    // Three enrolled, and could do more than the porter before their removal. The administrator has taken the scopes of
    // one of them before that, and another one has taken a smaller role by an invitation of the porter's.
    let [above, demoted, reduced] = [&user, &former, &smaller]
        .map(|cli| enrolled(cli, &invite(&bench, &hub, &["--role", "user"])));
    let words = ["hub", "invite", &hub.target];
    let answer = run(&porter, &words).json();
    let join = answer["join"].as_str().expect("a join string");
    assert_eq!(enrolled(&smaller, join), reduced);
    run(
        admin,
        &["peer", "set", &hub.target, &demoted, "--no-scopes"],
    )
    .json();
    for removed in [&above, &demoted, &reduced] {
        run(admin, &["hub", "remove", &hub.target, removed]).json();
    }
    let answer = run(&porter, &words).json();
    are_refused(
        &[&mate, &user, &former, &smaller],
        answer["join"].as_str().expect("a join string"),
    );
    let (key, address) = hub.target.split_once('@').expect("a pinned target");
    let join = format!("[[join]]\naddress = \"{address}\"\nkey = \"{key}\"\n");
    let join = format!("[node]\nname = \"attic\"\n{join}");
    let _node = EnrolmentNode::start(&bench, "cellar", &join, "0");
    eventually("a request that waits", || {
        let listed = run(admin, &["hub", "peers", &hub.target]).json();
        let waiting = listed["waiting"].as_array()?;
        waiting
            .iter()
            .any(|it| it["key"] == *applicant)
            .then_some(())
    });
    let approve = |who: &CliRunner| {
        let words = [
            "hub",
            "approve",
            &hub.target,
            &applicant,
            "--role",
            "worker",
        ];
        run(who, &words)
    };
    let refused = approve(&porter);
    assert_eq!(refused.code(), "FORBIDDEN", "{refused:?}");
    assert_eq!(approve(admin).json()["peer_id"], "cellar");
    assert_eq!(enrolled(&mate, &invite(&bench, &hub, &[])), "mate");
    assert_eq!(enrolled(&user, &invite(&bench, &hub, &[])), above);
    assert_eq!(enrolled(&former, &invite(&bench, &hub, &[])), demoted);
    assert_eq!(enrolled(&smaller, &invite(&bench, &hub, &[])), reduced);
}
