//! An administrator manages a node with the command line: the peers that the node admits, and the active
//! configuration.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use alknet_call::ALPN;
use alknet_core::{Carriage, CloseReason, PeerAddr};
use alknet_endpoint::EndpointDialer;
use alknet_test_support::deadline;
use alknet_tests::{CliOutput, CliRunner, HostNode, TestBench, binary, eventually};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::task::block_in_place;
use tokio::time::timeout;

use crate::enrolment::{EnrolmentNode, hub_config, invite, peer, run};

/// Longest wait for one step. The test fails when a step takes longer.
fn hung() -> Duration {
    deadline(Duration::from_secs(60))
}

/// The administrator runs `alknet peer VERB …` against the node.
fn administers(bench: &TestBench, verb: &str, node: &HostNode, more: &[&str]) -> CliOutput {
    run(
        bench.admin(),
        &[&["peer", verb, node.target()][..], more].concat(),
    )
}

/// Runs a command without `--json`, as a person at a terminal does.
fn plain(who: &CliRunner, words: &[&str]) -> CliOutput {
    let mut command = Command::new(binary());
    command.args(words).arg("--state").arg(who.state());
    who.run(command)
}

#[test]
fn a_peer_is_let_in_changed_and_put_out_while_the_node_runs() {
    let bench = TestBench::new();
    let node = bench.host();
    let ada = bench.user("ada");
    let key = ada.identity();
    let asks = |operation: &str| ada.call(node.target(), operation, &Value::Null, &[]);
    assert_eq!(asks("peer/list").code(), "UNAUTHENTICATED");
    let words = [
        "ada",
        "--key",
        &key,
        "--scope",
        "peer:list",
        "--name",
        "laptop",
    ];
    let added = administers(&bench, "add", &node, &words).json();
    assert_eq!(
        (&added["peer_id"], &added["source"], &added["keys"]),
        (&json!("ada"), &json!("store"), &json!([key]))
    );
    assert_eq!(asks("peer/list").status, 0);
    let twice = administers(&bench, "add", &node, &words);
    assert_eq!((twice.status, twice.code().as_str()), (1, "CONFLICT"));
    // The peer 'ada' is not an administrator, so the node refuses to change a peer for it.
    let own = run(
        &ada,
        &["peer", "set", node.target(), "ada", "--scope", "node:read"],
    );
    assert_eq!((own.status, own.code().as_str()), (4, "FORBIDDEN"));

    let renamed = ["laptop", "--scope", "node:read", "--name", "workshop"];
    let changed = administers(&bench, "set", &node, &renamed).json();
    assert_eq!(changed["display_name"], "workshop");
    assert_eq!(asks("peer/list").code(), "FORBIDDEN");
    assert_eq!(asks("node/info").status, 0);
    let shown = plain(bench.admin(), &["peer", "show", node.target(), "workshop"]);
    for said in [format!("key {key}"), "scopes node:read".to_owned()] {
        assert!(shown.output.contains(&said), "{said}: {shown:?}");
    }
    let removed = administers(&bench, "remove", &node, &["ada"]).json();
    assert_eq!(removed["known"], false);
    assert_eq!(asks("node/info").code(), "UNAUTHENTICATED");
    for verb in ["remove", "show"] {
        let again = administers(&bench, verb, &node, &["ada"]);
        assert_eq!((again.status, again.code().as_str()), (1, "NOT_FOUND"));
        let says = |what: &str| again.errors.contains(what);
        assert!(
            says("no peer 'ada'") && says("alknet peer list"),
            "{again:?}"
        );
    }
    // An administrator changes administrators and configured peers in the configuration, and not by `alknet peer`.
    let admin = administers(&bench, "set", &node, &["admin", "--disable"]);
    assert_eq!(admin.code(), "CONFLICT", "{admin:?}");
}

/// A script reads standard output unchanged. Texts for people are on standard error.
#[test]
fn what_is_made_once_stands_alone_on_standard_output() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let invited = ["hub", "invite", &hub.target, "--role", "worker", "--qr"];
    for (words, begins, beside) in [
        (&invited[..], "alkjoin1_", "Good for one worker until "),
        (
            &["token", "add", &hub.target, "--scope", "node:read"],
            "alk_",
            "Not shown again",
        ),
        (&["token", "add", "--offline"], "alk_", "[[api_keys]]"),
    ] {
        let made = plain(bench.admin(), words);
        assert_eq!(
            (made.status, made.output.lines().count()),
            (0, 1),
            "{made:?}"
        );
        assert!(made.output.starts_with(begins), "{made:?}");
        assert!(made.errors.contains(beside), "{made:?}");
    }
    let drawn = plain(bench.admin(), &invited).errors.lines().count();
    assert!(drawn > 10, "{drawn} lines of a QR code");
}

/// The administrator reads the warning in the answer, and at a terminal beside the peer or token that the command
/// made.
#[test]
fn a_misspelt_scope_is_granted_with_a_warning() {
    let bench = TestBench::new();
    let node = bench.host();
    let key = bench.user("ada").identity();
    let scopes = ["--scope", "peer:list", "--scope", "node:raed"];
    let ada = [&["ada", "--key", &key][..], &scopes].concat();
    let added = administers(&bench, "add", &node, &ada).json();
    let what = "nothing on this node asks for the scope 'node:raed'; did you mean 'node:read'?";
    let warnings = json!([{ "id": "ada", "what": what }]);
    assert_eq!(added["warnings"], warnings);
    let set = |more: &[&str]| {
        let words = [&["ada"][..], more].concat();
        administers(&bench, "set", &node, &words).json()["warnings"].clone()
    };
    assert_eq!(set(&scopes), warnings);
    for good in [["--scope", "node:read"], ["--name", "Ada"]] {
        assert_eq!(set(&good), json!([]), "{good:?}");
    }
    let words = [&["token", "add", node.target()][..], &scopes].concat();
    let made = plain(bench.admin(), &words);
    assert_eq!(made.output.lines().count(), 1, "{made:?}");
    let warned = made
        .errors
        .lines()
        .find(|line| line.starts_with("warning: "));
    assert!(warned.is_some_and(|line| line.ends_with(what)), "{made:?}");
}

#[test]
fn a_peer_stays_let_in_after_a_restart() {
    let bench = TestBench::new();
    let state = bench.path().join("node");
    let node = HostNode::start(&state, bench.admin());
    let ada = bench.user("ada");
    let (key, other) = (ada.identity(), format!("ed25519:{}", "5b".repeat(32)));
    administers(
        &bench,
        "add",
        &node,
        &["ada", "--key", &key, "--scope", "node:read"],
    )
    .json();
    administers(&bench, "add", &node, &["bob", "--key", &other]).json();
    administers(&bench, "set", &node, &["bob", "--disable"]).json();
    drop(node);
    let node = HostNode::start(&state, bench.admin());
    assert_eq!(
        ada.call(node.target(), "node/info", &Value::Null, &[])
            .status,
        0
    );
    let bob = administers(&bench, "show", &node, &["bob"]).json();
    assert_eq!(bob["enabled"], false, "{bob}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_from_a_peer_ends_its_connections() {
    let bench = TestBench::new();
    let node = bench.host();
    let [first, second] = [1, 2].map(|n| NodeKey::from_seed(&[n; 32]));
    let texts = [&first, &second].map(|key| key.public().to_string());
    let administers = |verb: &str, more: &[&str]| {
        block_in_place(|| administers(&bench, verb, &node, more).json())
    };
    administers("add", &["ada", "--key", &texts[0], "--key", &texts[1]]);
    let target: PeerAddr = node.target().parse().expect("a target");
    let connected = async |key: &NodeKey| {
        let dialer = EndpointDialer::new(Some(key.clone()));
        let connection = dialer.dial_over(Carriage::Quic, &target, ALPN).await;
        (dialer, connection.unwrap_or_else(|error| panic!("{error}")))
    };
    // The server registers a connection, and its end, a moment after the client does.
    let has_rows = |wanted: usize| {
        let what = format!("{wanted} connections");
        eventually(&what, || {
            let row = administers("show", &["ada"]);
            let rows = row["connections"].as_array().map(Vec::len);
            (rows == Some(wanted)).then_some(())
        });
    };
    let (_one, by_first) = connected(&first).await;
    let (_two, by_second) = connected(&second).await;
    has_rows(2);
    // The administrator first removes one key of the peer, and then disables the peer.
    for (change, connection, left) in [
        (&["ada", "--key", texts[1].as_str()][..], by_first, 1),
        (&["ada", "--disable"], by_second, 0),
    ] {
        administers("set", change);
        let ended = timeout(hung(), connection.closed()).await;
        assert!(
            matches!(ended, Ok(CloseReason::Peer(..))),
            "{change:?}: {ended:?}"
        );
        has_rows(left);
    }
}

/// The disabled peer still has the join string by which it enrolled, and a second one that it never used.
#[test]
fn a_peer_of_a_hub_that_is_put_out_does_not_join_again() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let laptop = bench.user("laptop");
    let [own, other] = [0, 1].map(|_| invite(&bench, &hub, &["--role", "user", "--count", "5"]));
    let enrolled = run(
        &laptop,
        &["enroll", &own, "--name", "ada", "--hub", "attic"],
    )
    .json();
    let id = enrolled["peer_id"].as_str().expect("an id");
    for (verb, more, known) in [
        ("set", &["--disable"][..], None),
        ("remove", &[], Some(true)),
    ] {
        let words = [&["peer", verb, &hub.target, id][..], more].concat();
        let answer = run(bench.admin(), &words).json();
        assert_eq!(answer["known"].as_bool(), known, "{verb}: {answer}");
        for join in [&own, &other] {
            let refused = run(&laptop, &["enroll", join]);
            assert_eq!(refused.code(), "ENROLL_INVALID", "{verb}: {refused:?}");
        }
    }
    peer(&bench, &hub, id, "removed");
    // Enabling the peer does not give back the keys and invitations that it lost.
    let back = run(bench.admin(), &["peer", "set", &hub.target, id, "--enable"]);
    assert_eq!(back.code(), "CONFLICT", "{back:?}");
}

#[test]
fn a_role_gives_the_scopes_that_it_has() {
    let bench = TestBench::new();
    let node = bench.host_with("[[hub.role]]\nname = \"reader\"\nscopes = [\"node:read\"]\n");
    let ada = bench.user("ada");
    let key = ada.identity();
    let added = administers(
        &bench,
        "add",
        &node,
        &["ada", "--key", &key, "--role", "reader"],
    );
    assert_eq!(added.json()["scopes"], json!(["node:read"]));
    let unknown = administers(&bench, "set", &node, &["ada", "--role", "king"]);
    assert_eq!(
        (unknown.status, unknown.code().as_str()),
        (2, "INVALID_INPUT")
    );
    let admin = administers(&bench, "set", &node, &["ada", "--scope", "admin"]);
    assert_eq!((admin.status, admin.code().as_str()), (2, "INVALID_INPUT"));
    assert_eq!(
        ada.call(node.target(), "node/info", &Value::Null, &[])
            .status,
        0
    );
}

#[test]
fn the_configuration_in_force_is_shown_without_its_secrets() {
    let bench = TestBench::new();
    let hash = "5e".repeat(32);
    let token = format!("[[api_keys]]\nkey_id = \"monitor0\"\nsha256 = \"{hash}\"\n");
    let node = bench.host_with(&format!("[log]\nlevel = \"debug\"\n{token}"));
    let show = ["config", "show", node.target()];
    let shown = plain(bench.admin(), &show);
    assert_eq!(shown.status, 0, "{shown:?}");
    assert!(!shown.output.contains(&hash), "{shown:?}");
    for said in [
        "# generation 1, from: ",
        "# secrets are withheld at api_keys[0].sha256",
        "level = \"debug\"",
        "sha256 = \"(withheld)\"",
        // A setting that no document contains is shown with its default.
        "requests_per_second = 50",
        // The options of 'alknet serve' are part of the active configuration, too.
        &bench.admin().identity(),
    ] {
        assert!(shown.output.contains(said), "{said}: {shown:?}");
    }
    // `config show` shows the active configuration. With `--next` it shows what applies at the next start.
    let file = bench.path().join("next.toml");
    std::fs::write(
        &file,
        "[node]\nname = \"edge-1\"\n[log]\nlevel = \"info\"\n",
    )
    .expect("room");
    let file = file.to_str().expect("UTF-8");
    run(bench.admin(), &["config", "apply", node.target(), file]).json();
    let now = run(bench.admin(), &show).json();
    assert_eq!(
        (&now["generation"], &now["source"], &now["withheld"]),
        (&json!(2), &json!("operation by admin"), &json!([]))
    );
    assert_eq!(now["restart_required"], json!(["node.name"]));
    assert_eq!(now["config"]["log"]["level"], "info");
    assert_eq!(now["config"]["node"]["name"], Value::Null);
    let next = run(bench.admin(), &[&show[..], &["--next"]].concat()).json();
    assert_eq!(next["config"]["node"]["name"], "edge-1");
    // Only administrators may read the configuration.
    let ada = bench.user("ada");
    let words = ["ada", "--key", &ada.identity(), "--scope", "node:read"];
    administers(&bench, "add", &node, &words).json();
    let refused = run(&ada, &show);
    assert_eq!((refused.status, refused.code().as_str()), (4, "FORBIDDEN"));
}

/// The worker stays connected meanwhile, and its operations stay the same.
#[test]
fn a_hub_reads_again_what_it_may_call_when_its_scopes_at_a_worker_change() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let join = invite(&bench, &hub, &["--role", "worker"]);
    let document = |scopes: &str| {
        format!("[node]\nname = \"kitchen\"\n[[join]]\ncode = \"{join}\"\nscopes = [{scopes}]\n")
    };
    let worker = EnrolmentNode::start(&bench, "worker", &document("\"node:read\""), "0");
    peer(&bench, &hub, "kitchen", "ready");
    let admin = bench.admin();
    let asked = || admin.call(&hub.target, "peer/list", &json!({}), &["--peer", "kitchen"]);
    let refused = asked();
    assert_eq!(refused.code(), "NOT_FOUND", "{refused:?}");
    let next = bench.path().join("next.toml");
    for (scopes, code) in [
        ("\"node:read\", \"peer:list\"", None),
        ("\"node:read\"", Some("NOT_FOUND")),
    ] {
        std::fs::write(&next, document(scopes)).expect("the folder is ours");
        let file = next.display().to_string();
        let applied = run(admin, &["config", "apply", &worker.target, &file]).json();
        assert_eq!(applied["peers"]["changed"], json!(["hub"]), "{applied}");
        // The worker's file was replaced, and has a join string.
        let kept = bench.path().join("worker.toml");
        assert_eq!(applied["kept_in"], json!(kept), "{applied}");
        let mode = std::fs::metadata(&kept)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        eventually(scopes, || {
            let answer = asked();
            let said = (answer.status != 0).then(|| answer.code());
            (said.as_deref() == code).then_some(())
        });
    }
}
